"""The model card of a run: what the adapter is, what it was measured to do, and how to load it without genalign."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from genalign.evaluation.report import read_eval
from genalign.files.atomic import replace_file
from genalign.files.shipped import shipped
from genalign.types import GenalignError

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"


def write_card(run: Path) -> Path:
    """Write `run`/README.md from its recipe, adapter and evaluation.

    Raises:
        GenalignError: the folder has no recipe.yaml, so it is no run.
    """
    facts, result = provenance(run), read_eval(run)
    front = {"base_model": facts["base_model"], "tags": ["genalign", "lora", facts["method"]]}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {run.resolve().name}",
        f"A LoRA adapter for `{facts['base_model']}`, aligned with [genalign](https://pypi.org/project/genalign/) "
        f"{facts['genalign']} by {facts['method']} on the reward `{facts['reward']}`. "
        f"`recipe.yaml` (SHA-256 {facts['recipe_sha256'][:16]}) repeats it: `genalign train recipe.yaml`.",
        f"## Use\n\n```python\n{loading(run)}\n```",
        f"## Before and after\n\n{table(result)}" if result else "Not evaluated yet: `genalign eval` does that.",
        f"## Licence\n\nThe adapter follows the licence of its base model, `{facts['base_model']}`.",
    ]
    path = run / "README.md"
    replace_file(path, ("\n\n".join(parts) + "\n").encode())
    return path


def provenance(run: Path) -> dict[str, str]:
    """Where an adapter comes from, as flat text that fits a safetensors header.

    Raises:
        GenalignError: the folder has no recipe.yaml.
    """
    from importlib.metadata import PackageNotFoundError, version

    recipe, blob = read_recipe(run)
    model = Path(str(recipe["policy"]["model"]))
    try:
        own = version("genalign")
    except PackageNotFoundError:
        own = "from a checkout"
    return {
        "base_model": model.name if model.is_absolute() else str(model),
        "method": str(recipe["method"]["name"]),
        "reward": reward_name(recipe.get("reward")),
        "recipe_sha256": hashlib.sha256(blob).hexdigest(),
        "run": run.resolve().name,
        "genalign": own,
    }


def read_recipe(run: Path) -> tuple[dict[str, Any], bytes]:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise GenalignError(f"{run} is no run folder: it has no recipe.yaml; name a folder that `genalign train` wrote")
    blob = path.read_bytes()
    return yaml.safe_load(blob), blob


def reward_name(spec: Any) -> str:
    """The name of a head, a file or a function; of a combination, its kind and its parts."""
    if spec is None:
        return "labelled pairs"
    if isinstance(spec, Mapping) and "name" in spec:
        return str(spec["name"])
    parts = ", ".join(_heads(spec))
    return f"{next(iter(spec))}({parts})" if isinstance(spec, Mapping) and "use" not in spec else parts


def _heads(spec: Any) -> list[str]:
    if isinstance(spec, str):
        return [spec.rpartition("/")[2].removesuffix(".yaml")]
    if isinstance(spec, Mapping):
        if "use" in spec:
            return _heads(spec["use"])
        spec = [value for value in spec.values() if isinstance(value, dict | list)]
    return [head for part in spec for head in _heads(part)]


def loading(run: Path) -> str:
    """The lines of Python that load this adapter without genalign."""
    model = base_model(run)
    index = pipeline_index(model)
    absent = sorted(name for name, kind in (index or {}).items() if kind == [None, None])
    arguments = ", ".join([f'"{model}"', *(f"{name}=None" for name in absent)])  # diffusers insists on hearing of some
    pipeline = f"from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained({arguments})\n"
    if (run / "adapter" / DIFFUSERS_FILE).is_file():
        return f'{pipeline}pipe.load_lora_weights("adapter")'
    if index is not None:
        denoiser = "unet" if "unet" in index else "transformer"
        return (
            f"from peft import PeftModel\n{pipeline}"
            f'pipe.{denoiser} = PeftModel.from_pretrained(pipe.{denoiser}, "adapter")'
        )
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{model}"), "adapter")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{model}")'
    )


def base_model(run: Path) -> str:
    """Folder or hub id, as the recipe has it."""
    return str(read_recipe(run)[0]["policy"]["model"])


def pipeline_index(model: str) -> dict[str, Any] | None:
    """model_index.json of a diffusers pipeline (shipped, in a folder, in the hub's cache); None for any other model."""
    path = shipped("assets", model, "model_index.json")  # a full path stays what it is
    if not path.exists() and model.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "model_index.json")
        path = Path(cached) if isinstance(cached, str) else path
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(result: Mapping[str, Any]) -> str:
    """eval.json as Markdown: the table, and how it was measured."""
    lines = ["| metric | before | after | delta | 95% interval |", "|---|---:|---:|---:|---:|"]
    for name, row in sorted(result["metrics"].items(), key=lambda item: not item[1]["held_out"]):
        low, high = row["ci95"]
        label = f"{name} (held-out)" if row["held_out"] else name
        numbers = f"{row['before']:.4f} | {row['after']:.4f} | {row['delta']:+.4f} | {low:+.4f} to {high:+.4f}"
        lines.append(f"| {label} | {numbers} |")
    sweep = result["sweep"]
    told = f"{result['prompts']} prompts, sampling seeds {', '.join(map(str, result['seeds']))}"
    if sweep["guidance"] != [None]:
        told += f"; guidance {sweep['before']['best']:g} before and {sweep['after']['best']:g} after, the best of "
        told += f"{', '.join(f'{scale:g}' for scale in sweep['guidance'])} for each, {sweep['steps']} steps"
    return "\n".join(lines) + f"\n\n{told}. Held-out rewards were never optimised."
