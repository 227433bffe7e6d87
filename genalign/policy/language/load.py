"""A language or vision-language model from a folder or a GGUF file, as people have them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from genalign.files.places import is_gguf
from genalign.files.untrusted import check_model
from genalign.policy import sees_or_hears
from genalign.policy.adapter import read_elsewhere
from genalign.policy.language.adapted import language_part
from genalign.policy.language.policy import LanguagePolicy
from genalign.policy.language.processor import is_processor
from genalign.policy.language.turns import Environment
from genalign.policy.merged import merged
from genalign.policy.quantize import check_gguf, check_quantization, quantize_layers
from genalign.policy.settings import PolicySettings
from genalign.types import GenalignError, UsageError

KERNELS = {"sdpa": "sdpa", "flash": "flash_attention_2"}


def load_language(
    settings: PolicySettings, folder: Path, device: str = "cpu", environment: Environment | None = None
) -> LanguagePolicy:
    """The language model of a folder or a .gguf file and its tokenizer, or the vision-language model and its processor,
    with a fresh adapter.

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
    except GenalignError:
        raise
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

    if is_gguf(folder):
        return _from_gguf(settings, folder)
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


def _from_gguf(settings: PolicySettings, file: Path) -> tuple[Any, Any]:
    """Weights, in policy.dtype, configuration and tokenizer of a GGUF file, as transformers reads it.

    Raises:
        UsageError: it holds no model that transformers knows, or not all of one.
    """
    import transformers as hf

    check_gguf(file, "policy.model", "of a language model")
    with TemporaryDirectory() as alone:  # in which transformers finds no configuration of another model
        (Path(alone) / file.name).symlink_to(file.resolve())
        options = {"gguf_file": file.name, "trust_remote_code": False}
        try:
            reader = hf.AutoTokenizer.from_pretrained(alone, **options)
            model, report = hf.AutoModelForCausalLM.from_pretrained(
                alone,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=KERNELS[settings.attention],
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # transformers raises whatever it runs into in a file that it does not know
            reason = " ".join(str(error).replace(alone, str(file.parent)).split())
            raise UsageError(f"{file} does not load as a language model: {reason or type(error).__name__}") from error
    if absent := sorted(report["missing_keys"]):
        raise UsageError(f"{file} lacks weights of its model ({absent[0]}); take a file that is whole")
    return model, reader


def _reader(kind: Any, folder: Path) -> Any:
    """The processor or the tokenizer of a folder.

    Raises:
        UsageError: it has none, or a processor without the files of its tokenizer.
    """
    try:
        reader = kind.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError, TypeError) as error:
        what = kind.__name__.removeprefix("Auto").lower()
        reason = str(error).strip().splitlines()[0].rstrip(" :")
        raise UsageError(
            f"{folder} does not load as a language model: its {what} is missing or has no tokenizer ({reason}); put "
            f"the {what}'s files and tokenizer.json, as they were published, beside the weights"
        ) from error
    words: Any = getattr(reader, "tokenizer", reader)
    control = {*words.all_special_tokens, *map(str, words.added_tokens_decoder.values())}
    if words.get_vocab().keys() <= control:  # as transformers makes one where there is no file of it
        raise UsageError(
            f"{folder} has no vocabulary of a tokenizer; put tokenizer.json, as it was published, beside the weights"
        )
    return reader
