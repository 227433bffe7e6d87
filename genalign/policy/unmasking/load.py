"""A diffusion language model from a folder: a pipeline of diffusers, or a model of transformers with a canvas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from genalign.files.shipped import CONFIG, PIPELINE
from genalign.files.untrusted import check_model
from genalign.policy.language.load import quantize_writer
from genalign.policy.quantize import check_quantization
from genalign.policy.settings import PolicySettings
from genalign.policy.unmasking.form import Form, MasksInText, NoiseOnCanvas
from genalign.policy.unmasking.policy import UnmaskingPolicy
from genalign.types import GenalignError, UsageError

ASKED = {"block_length"}  # what a recipe may say under policy.call
OF_TEXT = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a configuration's ids, those that stand for no media


def load_unmasking(settings: PolicySettings, folder: Path, device: str = "cpu") -> UnmaskingPolicy:
    """The diffusion language model of a folder with a fresh adapter.

    Raises:
        UsageError: it does not load without code of its own, has no mask, or is asked for what it does not take.
        GenalignError: a corrupt weight file.
    """
    from safetensors import SafetensorError

    at, kind = torch.device(device), settings.quantization
    if kind is not None:
        check_quantization(kind, at, getattr(torch, settings.dtype))
    check_model(folder)
    if unknown := sorted(settings.call.keys() - ASKED):
        raise UsageError(f"policy.call.{unknown[0]} is nothing that a diffusion language model takes; remove it")
    if settings.adapters_merged:
        raise UsageError("policy.merged is not for diffusion language models; merge the adapter into the folder before")
    try:
        model, tokenizer, form = (_of_pipeline if (folder / PIPELINE).is_file() else _of_canvas)(settings, folder)
    except SafetensorError as error:
        raise GenalignError(f"the weights in {folder} are corrupt ({error}); copy or download them again") from error
    except (OSError, ValueError, ImportError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} does not load as a diffusion language model: {reason}") from error
    within = "" if form.masked else _name_of(model, model.get_decoder())
    if kind is not None:
        quantize_writer(model, kind, at, within)
    model = model if settings.offload is not None else model.to(at)
    return UnmaskingPolicy(model.eval(), tokenizer, form, settings, within, at)


def _of_pipeline(settings: PolicySettings, folder: Path) -> tuple[Any, Any, Form]:
    from diffusers import DiffusionPipeline
    from transformers import AutoTokenizer

    inner = folder / "model"
    if _has_canvas(inner):
        raise UsageError(
            f"{folder} is a pipeline around a model that writes on a canvas, which is read without it; copy {inner} to "
            f"a folder of its own, the tokenizer's files beside its weights, and set policy.model to that"
        )
    # diffusers 0.42 neither saves this pipeline's tokenizer nor loads one, but takes its name for it.
    own = folder / "tokenizer"
    if not own.is_dir():
        raise UsageError(f"{folder} has no tokenizer/, which save_pretrained of the pipeline leaves out; save it there")
    tokenizer = AutoTokenizer.from_pretrained(own, trust_remote_code=False)
    if tokenizer.mask_token_id is None:
        raise UsageError(f"the tokenizer in {folder} has no mask token, which the model writes over; give it one")
    pipeline: Any = DiffusionPipeline.from_pretrained(
        folder,
        tokenizer=tokenizer,
        torch_dtype=getattr(torch, settings.dtype),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    block = int(settings.call.get("block_length", pipeline.scheduler.config.block_length))
    return pipeline.model, tokenizer, MasksInText(tokenizer.mask_token_id, block)


def _of_canvas(settings: PolicySettings, folder: Path) -> tuple[Any, Any, Form]:
    import transformers as hf

    model = hf.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, settings.dtype), use_safetensors=True, trust_remote_code=False
    )
    tokenizer = hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    config, vocabulary = model.config, model.config.get_text_config().vocab_size
    media = [value for name, value in vars(config).items() if name.endswith("_token_id") and name not in OF_TEXT]
    known = sorted(token for token in media if isinstance(token, int) and token < vocabulary)
    return model, tokenizer, NoiseOnCanvas(config.canvas_length, vocabulary, tuple(known))


def _has_canvas(folder: Path) -> bool:
    path = folder / CONFIG
    return path.is_file() and "canvas_length" in json.loads(path.read_text(encoding="utf-8"))


def _name_of(model: Any, part: Any) -> str:
    return next(name for name, module in model.named_modules() if module is part)
