"""The model card of a run: what the adapter is, what it was measured to do, and how to load it without genalign."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from genalign.report import read_eval
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
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def provenance(run: Path) -> dict[str, str]:
    """Where an adapter comes from, as flat text that fits a safetensors header.

    Raises:
        GenalignError: the folder has no recipe.yaml.
    """
    from importlib.metadata import PackageNotFoundError, version

    recipe, blob = read_recipe(run)
    try:
        own = version("genalign")
    except PackageNotFoundError:
        own = "from a checkout"
    return {
        "base_model": str(recipe["policy"]["model"]),
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
    """A reward file's stem, the name of a head, or the parts of a combination."""
    if spec is None:
        return "labelled pairs"
    if isinstance(spec, Mapping):
        if "use" in spec:
            return reward_name(spec["use"])
        return " + ".join(
            f"{key}({reward_name(value)})" for key, value in spec.items() if isinstance(value, dict | list)
        )
    if isinstance(spec, list):
        return ", ".join(reward_name(part) for part in spec)
    name = str(spec).rpartition("/")[2]
    return name.removesuffix(".yaml")


def loading(run: Path) -> str:
    """The lines of Python that load this adapter with diffusers, transformers and peft alone."""
    model, index = Path(str(read_recipe(run)[0]["policy"]["model"])), {}
    if (model / "model_index.json").is_file():
        index = json.loads((model / "model_index.json").read_text(encoding="utf-8"))
    pipeline = f'from diffusers import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained("{model}")\n'
    if (run / "adapter" / DIFFUSERS_FILE).is_file():
        return f'{pipeline}pipe.load_lora_weights("adapter")'
    if index:
        denoiser = "unet" if "unet" in index else "transformer"
        peft = f'pipe.{denoiser} = PeftModel.from_pretrained(pipe.{denoiser}, "adapter")'
        return f"from peft import PeftModel\n{pipeline}{peft}"
    return (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{model}"), "adapter")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{model}")'
    )


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
