"""What comes with a published Qwen2-VL reward: its template, the names of its tensors, its LoRA, and its frame rate."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from genalign.types import UsageError


def read_template(where: str | Path) -> str:
    """A template's text, to the byte; `file.py:NAME` is a string constant of that file, which is parsed and not run.

    Raises:
        UsageError: no such file or constant.
    """
    path, _, name = str(where).rpartition(":")
    try:
        if not path.endswith(".py"):
            return Path(where).read_text(encoding="utf-8")
        for statement in ast.parse(Path(path).read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and any(getattr(to, "id", None) == name for to in statement.targets):
                return str(ast.literal_eval(statement.value))
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"template {where} cannot be read: {' '.join(str(error).split())}") from error
    raise UsageError(f"{path} has no constant {name!r}")


def published_names(key: str) -> str:
    """A key of a Qwen2-VL saved by transformers 4 in the names of transformers 5."""
    if key.startswith("visual."):
        return f"model.{key}"
    if key.startswith("model.") and not key.startswith(("model.visual.", "model.language_model.")):
        return f"model.language_model.{key.removeprefix('model.')}"
    return key


def merged(state: Mapping[str, Tensor], settings: Path) -> dict[str, Tensor]:
    """A state dict with its LoRA weights added in: W + s B A, s = alpha / r (rslora: alpha / sqrt r), in fp32.

    settings: VideoAlign's model_config.json, read only where there are LoRA weights.
    """
    bare = {key.removeprefix("base_model.model."): value for key, value in state.items()}
    downs = [key for key in bare if key.endswith(".lora_A.default.weight")]
    scale = _lora_scale(settings) if downs else 1.0
    plain: dict[str, Tensor] = {}
    for key, value in bare.items():
        if ".lora_" not in key and ".original_module." not in key:
            plain[key.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = value
    for key in downs:
        stem = key.removesuffix(".lora_A.default.weight")
        change = bare[f"{stem}.lora_B.default.weight"].float() @ bare[key].float()
        plain[f"{stem}.weight"] = (plain[f"{stem}.weight"].float() + scale * change).to(plain[f"{stem}.weight"].dtype)
    return plain


def trained_fps(model: Path) -> float | None:
    """Frames a second that a VideoReward was trained on, by the model_config.json beside its weights; None where that
    is not here, or does not say."""
    settings = (model if model.is_dir() else model.parent) / "model_config.json"
    try:
        return float(json.loads(settings.read_text(encoding="utf-8"))["data_config"]["fps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lora_scale(settings: Path) -> float:
    try:
        lora = json.loads(settings.read_text(encoding="utf-8"))["peft_lora_config"]
        rank = lora["lora_r"]
        return float(lora["lora_alpha"]) / (math.sqrt(rank) if lora.get("use_rslora") else rank)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{settings} does not say how its LoRA weights are scaled ({error}); put the published model_config.json "
            f"beside the weights"
        ) from error
