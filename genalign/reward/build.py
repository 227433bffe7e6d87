"""Rewards from data: the grammar of reward files. `rewards/image-hybrid.yaml` explains it to its users."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from genalign.reward.algebra import Hybrid, Sum
from genalign.reward.base import nearest, resolve_model
from genalign.reward.exemplars import find_exemplars
from genalign.reward.fitted import fitted_folder
from genalign.reward.harmonic import Harmonic
from genalign.reward.worker import FileReward, find_file
from genalign.types import Reward, UsageError

HEADS = {
    "clip": "genalign.reward.clip:ClipReward",
    "sharpness": "genalign.reward.sharpness:Sharpness",
    "head": "genalign.reward.head:HeadReward",
    "set": "genalign.reward.sets:SetReward",
    "similarity": "genalign.reward.exemplars:Similarity",
    "judge": "genalign.lab.judge:Judge",
}
KINDS = ("use", "sum", "hybrid", "harmonic")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; here it is a number, as in a recipe."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[\d.]+[eE][-+]?\d+$"), list("-+.0123456789"))


def build_reward(spec: str | Mapping[str, Any], folder: Path) -> Reward:
    """The reward that `spec` describes; weights load when it is first used.

    spec: a mapping as in a reward file, or a string: a reward file or its shipped name, `file.py:function`, a head
    (`sharpness`), the folder of a fitted reward, or an installed `package.module:Class`. Relative paths are relative to
    `folder` (a reward file's own to where it is), then to the shipped rooms.

    Raises:
        UsageError: an unknown key or name (the nearest is named), a missing file or model, a setting that does not fit.
    """
    if isinstance(spec, str):
        return _from_name(spec, {}, folder)
    if not isinstance(spec, Mapping):
        raise UsageError(f"a reward is a name or a mapping, not {spec!r}")
    kinds = [key for key in spec if key in KINDS]
    if len(kinds) != 1:
        unknown = next((str(key) for key in spec if key not in KINDS), "")
        told = f"has {' and '.join(kinds)}" if kinds else "has none"
        raise UsageError(
            f"a reward mapping needs exactly one of the keys {', '.join(KINDS)}, but {_short(spec)} {told}"
            f"{nearest(unknown, KINDS) if not kinds else ''}"
        )
    rest = {str(key): value for key, value in spec.items() if key != kinds[0]}
    if kinds[0] == "use":
        if not isinstance(spec["use"], str):
            raise UsageError(f"'use' takes a name, not {spec['use']!r}")
        return _from_name(spec["use"], rest, folder)
    if kinds[0] == "sum":
        return _sum(spec["sum"], rest, folder)
    if kinds[0] == "harmonic":
        _check_keys("harmonic", rest, {"name"})
        return Harmonic(_weighted("harmonic", spec["harmonic"], folder), **rest)
    return _hybrid(spec["hybrid"], rest, folder)


def _sum(items: Any, rest: dict[str, Any], folder: Path) -> Reward:
    parts = _weighted("sum", items, folder)
    _check_keys("sum", rest, {"missing", "name"})
    return Sum(parts, **rest)


def _weighted(what: str, items: Any, folder: Path) -> list[tuple[Reward, float]]:
    if not isinstance(items, list):
        raise UsageError(f"{what!r} takes a list of rewards, not {_short(items)}")
    parts: list[tuple[Reward, float]] = []
    for item in items:
        weight = item.get("weight", 1.0) if isinstance(item, Mapping) else 1.0
        _check_number("weight", weight, item)
        bare = {key: value for key, value in item.items() if key != "weight"} if isinstance(item, Mapping) else item
        parts.append((build_reward(bare, folder), float(weight)))
    return parts


def _hybrid(settings: Any, rest: dict[str, Any], folder: Path) -> Reward:
    if not isinstance(settings, Mapping) or not {"rule", "model"} <= set(settings):
        raise UsageError(f"'hybrid' takes a mapping with the keys rule and model, not {_short(settings)}")
    _check_keys("hybrid", rest, {"name"})
    options = {str(key): value for key, value in settings.items() if key not in ("rule", "model")}
    _check_keys("hybrid", options, {"rule", "model", "mode", "alpha", "threshold"})
    for key in ("alpha", "threshold"):
        _check_number(key, options.get(key, 0.0), settings)
    rule, model = (build_reward(settings[key], folder) for key in ("rule", "model"))
    return Hybrid(rule, model, **options, **rest)


def _from_name(name: str, settings: dict[str, Any], folder: Path) -> Reward:
    path, _, attribute = name.rpartition(":")
    if name in HEADS:
        return _head(HEADS[name], name, settings, folder)
    if path.endswith(".py"):
        return FileReward(name, folder, **settings)
    if (fitted := fitted_folder(name, folder, Path())) is not None:
        return _head("genalign.reward.fitted:FittedReward", name, {**settings, "folder": str(fitted)}, folder)
    if attribute.isidentifier() and all(part.isidentifier() for part in path.split(".")):
        return _head(name, name, settings, folder)
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    try:
        found = find_file(file, folder)
    except UsageError as error:
        if file == name:
            raise
        raise UsageError(f"there is no reward {name!r}{nearest(name, [*HEADS, *shipped_rewards()])}") from error
    _check_keys(name, settings, {"name"})
    spec = _read(found)
    renamed = {**spec, **settings} if isinstance(spec, Mapping) else spec
    return build_reward(renamed, found.parent)


def shipped_rewards() -> list[str]:
    """Names of the reward files that come with genalign."""
    from genalign.shipped import shipped

    return sorted(path.stem for path in shipped("rewards").glob("*.yaml"))


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(), _Loader)  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"reward file {path} cannot be read: {' '.join(str(error).split())}") from error


def _head(address: str, name: str, settings: dict[str, Any], folder: Path) -> Reward:
    module, _, attribute = address.partition(":")
    try:
        kind: Callable[..., Reward] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"reward {name!r} cannot be imported: {error}; check the package and class names") from error
    parameters = inspect.signature(kind).parameters
    _check_keys(name, settings, set(parameters))
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    absent = next((parameter for parameter in required if parameter not in settings), None)
    if absent:
        raise UsageError(f"reward {name!r} needs the setting {absent!r}; write it beside 'use: {name}'")
    if "model" in settings:
        settings = {**settings, "model": resolve_model(settings["model"], folder)}
    for key in ("exemplars", "pairs"):
        if isinstance(settings.get(key), str):
            settings = {**settings, key: find_exemplars(settings[key], folder)}
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the settings of reward {name!r} do not fit it: {error}") from error


def _check_keys(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        raise UsageError(f"reward {what!r} has no setting {unknown!r}{nearest(unknown, known)}")


def _check_number(what: str, value: Any, spec: Any) -> None:
    if not isinstance(value, int | float):
        raise UsageError(f"the {what} of {_short(spec)} is {value!r}; it must be a number")


def _short(spec: Any) -> str:
    text = repr(spec)
    return text if len(text) < 80 else f"{text[:77]}..."
