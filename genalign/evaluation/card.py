"""The model card of a run: what the adapter is, what it was measured to do, and how to load it without genalign."""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from genalign.evaluation.report import players
from genalign.evaluation.results import HEADINGS, read_eval, rows
from genalign.evaluation.summary import lead_in, sentence
from genalign.files.atomic import replace_file
from genalign.files.places import find
from genalign.files.settings import parse_yaml
from genalign.files.shipped import CONFIG, PIPELINE, shipped
from genalign.files.text import decode_text
from genalign.policy import sees_or_hears
from genalign.training.metrics import METRICS, read_rows
from genalign.types import GenalignError

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
READS_TEXT = ("AutoModelForCausalLM", "AutoTokenizer", "tokenizer")
READS_MEDIA = ("AutoModelForImageTextToText", "AutoProcessor", "processor")
PLAYED = 2 << 20  # bytes of sounds and videos that a card carries
CACHED = re.compile(r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")


def write_card(run: Path) -> Path:
    """Write `run`/README.md from its recipe, adapter, evaluation and samples; no path of this machine is in it.

    Raises:
        GenalignError: the folder has no recipe.yaml, so it is not a run.
    """
    facts, result = provenance(run), read_eval(run)
    front = {"base_model": facts["base_model"], "tags": ["genalign", "lora", facts["method"]]}
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {run.resolve().name}",
        f"A LoRA adapter for `{facts['base_model']}`, aligned with genalign {facts['genalign']} "
        f"by {facts['method']} on the reward `{facts['reward']}`. "
        f"`recipe.yaml` (SHA-256 {facts['recipe_sha256'][:16]}) repeats it: `genalign train recipe.yaml`.",
        f"## Use\n\n```python\n{loading(run)}\n```",
        f"## Before and after\n\n{sentence(result, lead_in(read_rows(run / METRICS)))}\n\n{table(result)}"
        if result
        else "Not evaluated yet: `genalign eval` does that.",
        _samples(run),
        f"## Licence\n\nThe adapter follows the licence of its base model, `{facts['base_model']}`.",
    ]
    path = run / "README.md"
    replace_file(path, ("\n\n".join(filter(None, parts)) + "\n").encode())
    return path


def _samples(run: Path) -> str:
    """Players of sounds and videos; texts stand in the report."""
    lines = [
        f"<tr><td>{html.escape(prompt)}</td><td>{base}</td><td>{tuned}</td></tr>"
        for prompt, base, tuned in players(run, PLAYED)
        if "<" in base + tuned
    ]
    head = "<tr><th>prompt</th><th>base</th><th>tuned</th></tr>"
    return "\n".join(["## Samples\n", f"<table>{head}", *lines, "</table>"]) if lines else ""


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
        "base_model": model_name(base_model(run)),
        "method": str(recipe["method"]["name"]),
        "reward": reward_name(recipe.get("reward")),
        "recipe_sha256": hashlib.sha256(blob).hexdigest(),
        "run": run.resolve().name,
        "genalign": own,
    }


def read_recipe(run: Path) -> tuple[dict[str, Any], bytes]:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise GenalignError(
            f"{run} is not a run folder: it has no recipe.yaml; name a folder that `genalign train` wrote"
        )
    blob = path.read_bytes()
    return parse_yaml(decode_text(blob, path), path), blob


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


def model_name(model: str) -> str:
    """What others know a model by: its hub id, also of a folder in the hub's cache, or the name of its folder."""
    cached = CACHED.search(model)
    if cached:
        return f"{cached['owner']}/{cached['name']}"
    return Path(model).name if Path(model).is_absolute() or Path(model).is_dir() else model


def loading(run: Path) -> str:
    """The lines of Python that load this adapter: a hub model without genalign, a shipped one from its assets."""
    model, named = base_model(run), read_recipe(run)[0]["policy"].get("merged") or []
    index = pipeline_index(model)
    imports, lines = _origin("base", model)
    adapters = [named] if isinstance(named, str) else named
    merged = ["merged"] if len(adapters) == 1 else [f"merged_{k}" for k in range(len(adapters))]
    for variable, adapter in zip(merged, adapters, strict=True):
        more, line = _origin(variable, adapter)
        imports, lines = sorted({*imports, *more}), lines + line
    absent = sorted(name for name, kind in (index or {}).items() if kind == [None, None])
    arguments = ", ".join(["base", *(f"{name}=None" for name in absent)])  # diffusers wants absent parts to be named
    if (run / "adapter" / DIFFUSERS_FILE).is_file():
        lines.append(f"pipe = DiffusionPipeline.from_pretrained({arguments})")
        for variable in merged:
            lines += [f"pipe.load_lora_weights({variable})", "pipe.fuse_lora()", "pipe.unload_lora_weights()"]
        lines.append('pipe.load_lora_weights("adapter")')
        return "\n".join(["from diffusers import DiffusionPipeline", *imports, "", *lines])
    if index is None:
        config = _json_of(model, CONFIG) or {}
        kind, reader, read = READS_TEXT if not sees_or_hears(config.get("model_type")) else READS_MEDIA
        imports.insert(0, f"from transformers import {kind}, {reader}")
        where = "base"
        if model.endswith(".gguf"):
            imports.insert(0, "from pathlib import Path")
            where = "Path(base).parent, gguf_file=Path(base).name"
        lines += [f"model = {kind}.from_pretrained({where})", *_adapted("model", "", merged)]
        lines.append(f"{read} = {reader}.from_pretrained({where})")
    else:
        imports.insert(0, "from diffusers import DiffusionPipeline")
        lines.append(f"pipe = DiffusionPipeline.from_pretrained({arguments})")
        saved = [file.parent.name for file in sorted((run / "adapter").glob("*/adapter_config.json"))]
        experts = [name for name in saved if name in index]  # of a pipeline that samples with several denoisers
        for name in experts:
            lines += _adapted(f"pipe.{name}", f"/{name}", merged)
        if not experts:
            lines += _adapted(f"pipe.{'unet' if 'unet' in index else 'transformer'}", "", merged)
    return "\n".join(["from peft import PeftModel", *imports, "", *lines])


def _adapted(network: str, part: str, merged: Sequence[str]) -> list[str]:
    """Lines that put the merged adapters (variables) and the run's own on a network; `part` of their folders."""
    places = [f'f"{{{variable}}}{part}"' if part else variable for variable in merged]
    before = [f"{network} = PeftModel.from_pretrained({network}, {place}).merge_and_unload()" for place in places]
    return [*before, f'{network} = PeftModel.from_pretrained({network}, "adapter{part}")']


def _origin(variable: str, model: str) -> tuple[list[str], list[str]]:
    """Imports, and the line that sets `variable`: how a reader gets the model, or the adapter that is merged."""
    name = model_name(model)
    if find(model, Path(), "assets") == shipped("assets", name).resolve():
        place = ["from genalign.files.shipped import shipped"]
        return place, [f'{variable} = shipped("assets", "{name}")  # small, and comes with genalign']
    if Path(model).exists() and not CACHED.search(model):
        return [], [f'{variable} = "{name}"  # local when this was trained: give the path of yours']
    return [], [f'{variable} = "{name}"']


def base_model(run: Path) -> str:
    """Folder or hub id, as the recipe has it."""
    return str(read_recipe(run)[0]["policy"]["model"])


def pipeline_index(model: str) -> dict[str, Any] | None:
    """model_index.json of a diffusers pipeline; None for any other model."""
    return _json_of(model, PIPELINE)


def _json_of(model: str, name: str) -> dict[str, Any] | None:
    """A file of a model, from its folder, a shipped one or the hub's cache, if it is there."""
    folder = find(model, Path(), "assets")
    path = (folder or Path(model)) / name
    if folder is None and model.count("/") == 1:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, name)
        path = Path(cached) if isinstance(cached, str) else path
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(result: Mapping[str, Any]) -> str:
    """eval.json as Markdown: the table, and how it was measured."""
    lines = [f"| {' | '.join(HEADINGS)} |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {' | '.join(row.cells)} |" for row in rows(result)]
    sweep = result["sweep"]
    measured = f"{result['prompts']} prompts, sampling seeds {', '.join(map(str, result['seeds']))}"
    if len(sweep["guidance"]) > 1:
        measured += f"; guidance {sweep['before']['best']:g} before and {sweep['after']['best']:g} after, the best of "
        measured += f"{', '.join(f'{scale:g}' for scale in sweep['guidance'])} for each, {_steps(sweep)}"
    elif sweep["guidance"] != [None]:
        measured += f"; guidance {sweep['guidance'][0]:g}, {_steps(sweep)}"
    return "\n".join(lines) + f"\n\n{measured}. Held-out rewards were never optimised."


def _steps(sweep: Mapping[str, Any]) -> str:
    return "the sampler's steps" if sweep["steps"] is None else f"{sweep['steps']} steps"
