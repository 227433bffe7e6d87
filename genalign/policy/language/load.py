"""A language or vision-language model from a folder, as people have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from genalign.files.untrusted import check_model
from genalign.policy import sees_or_hears
from genalign.policy.adapter import read_elsewhere
from genalign.policy.language.adapted import language_part
from genalign.policy.language.policy import LanguagePolicy
from genalign.policy.language.processor import is_processor
from genalign.policy.language.turns import Environment
from genalign.policy.merged import merged
from genalign.policy.quantize import check_quantization, quantize_layers
from genalign.policy.settings import PolicySettings
from genalign.types import GenalignError, UsageError

KERNELS = {"sdpa": "sdpa", "flash": "flash_attention_2"}


def load_language(
    settings: PolicySettings, folder: Path, device: str = "cpu", environment: Environment | None = None
) -> LanguagePolicy:
    """The language model of a folder and its tokenizer, or the vision-language model and its processor, with a fresh
    adapter.

    Raises:
        UsageError: no such model, no tokenizer or processor, or an attention kernel that cannot serve it.
        GenalignError: a corrupt weight file.
    """
    from safetensors import SafetensorError

    if settings.attention not in KERNELS:
        raise UsageError(f"policy.attention {settings.attention} serves diffusion pipelines only; take sdpa or flash")
    at, kind = torch.device(device), settings.quantization
    if kind is not None:
        check_quantization(kind, at, getattr(torch, settings.dtype))
    check_model(folder)
    try:
        model, reader = _loaded(settings, folder)
    except SafetensorError as error:
        raise GenalignError(f"the weights in {folder} are corrupt ({error}); copy or download them again") from error
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} does not load as a causal language model: {reason}") from error
    for adapter in settings.adapters_merged:
        model = merged(model, Path(adapter))
    if kind is not None:
        quantize_writer(model, kind, at, language_part(model) if is_processor(reader) else "")
    return LanguagePolicy(model if settings.offload is not None else model.to(at), reader, settings, environment, at)


def quantize_writer(model: Any, kind: str, device: torch.device, within: str) -> None:
    """All linear layers of the part that writes but those whose weights are read by something else than the layer."""
    head = model.get_output_embeddings()
    apart = {name for name, module in model.named_modules() if module is head}
    quantize_layers(model, kind, device, within, {*apart, *read_elsewhere(model)})


def _loaded(settings: PolicySettings, folder: Path) -> tuple[Any, Any]:
    import transformers as hf

    config = hf.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    sees = sees_or_hears(config.model_type)
    reader = _reader(hf.AutoProcessor if sees else hf.AutoTokenizer, folder)
    model = (hf.AutoModelForImageTextToText if sees else hf.AutoModelForCausalLM).from_pretrained(
        folder,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=KERNELS[settings.attention],
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model, reader


def _reader(kind: Any, folder: Path) -> Any:
    """The processor or the tokenizer of a folder.

    Raises:
        UsageError: it has none, or a processor without the files of its tokenizer.
    """
    try:
        return kind.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError, TypeError) as error:
        what = kind.__name__.removeprefix("Auto").lower()
        reason = str(error).strip().splitlines()[0].rstrip(" :")
        raise UsageError(
            f"{folder} does not load as a language model: its {what} is missing or has no tokenizer ({reason}); put "
            f"the {what}'s files and tokenizer.json, as they were published, beside the weights"
        ) from error
