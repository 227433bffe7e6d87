"""Rewards from data: the grammar of reward files. `rewards/image-hybrid.yaml` explains it to its users."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from genalign.files.places import file_path
from genalign.files.settings import read_yaml
from genalign.reward.base import first_missing
from genalign.reward.combine.algebra import Hybrid, Sum
from genalign.reward.combine.means import Harmonic
from genalign.reward.combine.pairwise import Difference, Gpm, Preference, Versus, WinRate
from genalign.reward.fit.fitted import fitted_folder
from genalign.reward.grammar import FORMS, build_form, entries, run_as, short
from genalign.reward.grammar import check_keys as _check_keys
from genalign.reward.heads.exemplars import find_exemplars
from genalign.reward.heads.published import PRESETS, calibrated, how_to_get, warn_of_licence
from genalign.reward.heads.sound_features import MEL
from genalign.reward.heads.weights import find_weights
from genalign.reward.runtime.worker import FileReward
from genalign.types import Reward, UsageError, nearest

HEADS = {
    "clip": "genalign.reward.heads.clip:ClipReward",
    "sharpness": "genalign.reward.heads.sharpness:Sharpness",
    "head": "genalign.reward.heads.head:HeadReward",
    "set": "genalign.reward.sets.reward:SetReward",
    "similarity": "genalign.reward.heads.exemplars:Similarity",
    "emojiworld-judge": "genalign.lab.judge:Judge",
    "emojiworld-facts": "genalign.lab.fact_judge:FactJudge",
    "emojimoves-judge": "genalign.lab.moves_judge:MovesJudge",
    "melodyworld-judge": "genalign.lab.music_judge:MusicJudge",
    "judge": "genalign.lab.judge:Judge",  # its name in older recipes
    "judge-yes-no": "genalign.reward.judge.judges:YesNoJudge",
    "judge-score": "genalign.reward.judge.judges:ScoreJudge",
    "judge-questions": "genalign.reward.judge.questions:QuestionsJudge",
    "judge-compare": "genalign.reward.judge.comparing:CompareJudge",
    "judge-rank": "genalign.reward.judge.comparing:RankJudge",
    "length": "genalign.reward.heads.rules:Length",
    "budget": "genalign.reward.heads.rules:Budget",
    "format": "genalign.reward.heads.rules:Format",
    "repetition": "genalign.reward.heads.rules:Repetition",
    "answer": "genalign.reward.heads.answers:Answer",
    "boxes": "genalign.reward.heads.answers:Boxes",
    "rank-agreement": "genalign.reward.heads.rules:RankAgreement",
    "structured": "genalign.reward.heads.structured:StructuredMatch",
    "moving": "genalign.reward.heads.motion:Moving",
    "steady": "genalign.reward.heads.motion:Steady",
    "smooth-motion": "genalign.reward.heads.motion:SmoothMotion",
    "synchrony": "genalign.reward.heads.motion:Synchrony",
    "loudness": "genalign.reward.heads.sound:Loudness",
    "clipping": "genalign.reward.heads.sound:Clipping",
    "silence": "genalign.reward.heads.sound:Silence",
    "clicks": "genalign.reward.heads.sound:Clicks",
    "steady-beat": "genalign.reward.heads.sound:SteadyBeat",
    "one-key": "genalign.reward.heads.sound:OneKey",
}
PAIRWISE = {"winrate": WinRate, "versus": Versus}
KINDS = ("use", "sum", "hybrid", "harmonic", *PAIRWISE, *FORMS)


def build_reward(spec: str | Mapping[str, Any], folder: Path) -> Reward:
    """The reward that `spec` describes; weights load when it is first used.

    spec: a mapping as in a reward file, or a string: a reward file or its shipped name, `file.py:function`, a head
    (`sharpness`), or the folder of a fitted reward. Relative paths are relative to `folder` (a reward file's own
    to where it is), then to the shipped rooms.

    Raises:
        UsageError: an unknown key or name (the nearest is named), a missing file or model, a setting that does not fit.
    """
    if isinstance(spec, str):
        return _from_name(spec, {}, folder)
    if not isinstance(spec, Mapping):
        raise UsageError(f"a reward is a name or a mapping, not {spec!r}")
    if "run" in spec:
        return run_as({key: value for key, value in spec.items() if key != "run"}, spec["run"], folder, build_reward)
    kinds = [key for key in spec if key in KINDS]
    if len(kinds) != 1:
        unknown = first_missing(map(str, spec), KINDS) or ""
        found = f"has {' and '.join(kinds)}" if kinds else "has none"
        raise UsageError(
            f"a reward mapping needs exactly one of the keys {', '.join(KINDS)}, but {short(spec)} {found}"
            f"{nearest(unknown, KINDS) if not kinds else ''}"
        )
    rest = {str(key): value for key, value in spec.items() if key != kinds[0]}
    if kinds[0] == "use":
        if not isinstance(spec["use"], str):
            raise UsageError(f"'use' takes a name, not {spec['use']!r}")
        return _from_name(spec["use"], rest, folder)
    if kinds[0] in FORMS:
        return build_form(kinds[0], spec[kinds[0]], rest, partial(build_reward, folder=folder))
    if kinds[0] == "sum":
        return _sum(spec["sum"], rest, folder)
    if kinds[0] == "harmonic":
        _check_keys("harmonic", rest, {"name"})
        return Harmonic(_weighted("harmonic", spec["harmonic"], folder), **rest)
    if kinds[0] in PAIRWISE:
        return _pairwise(kinds[0], spec[kinds[0]], rest, folder)
    return _hybrid(spec["hybrid"], rest, folder)


def _pairwise(kind: str, compared: Any, rest: dict[str, Any], folder: Path) -> Reward:
    """{winrate: PREFERENCE} and {versus: PREFERENCE, reference: prompt | facts.KEY}."""
    known = set(inspect.signature(PAIRWISE[kind]).parameters) - {"preference"}
    _check_keys(kind, rest, known | {"tau"})
    if kind == "versus" and "reference" not in rest:
        raise UsageError("'versus' needs the setting 'reference'; write prompt or facts.KEY")
    options = {"tau": rest.pop("tau")} if "tau" in rest else {}
    _check_number("tau", options.get("tau", 1.0), compared)
    return PAIRWISE[kind](_preference(compared, options, folder), **rest)


def _preference(compared: Any, options: dict[str, Any], folder: Path) -> Preference:
    """A reward, whose differences are logits, or {gpm: REWARD}, whose aspects are an embedding."""
    if isinstance(compared, Mapping) and "gpm" in compared:
        _check_keys("gpm", compared, {"gpm", "scales"})
        return Gpm(build_reward(compared["gpm"], folder), scales=compared.get("scales"), **options)
    return Difference(build_reward(compared, folder), **options)


def _sum(items: Any, rest: dict[str, Any], folder: Path) -> Reward:
    parts = _weighted("sum", items, folder)
    _check_keys("sum", rest, {"missing", "name"})
    return Sum(parts, **rest)


def _weighted(what: str, items: Any, folder: Path) -> list[tuple[Reward, float]]:
    return entries(what, items, partial(build_reward, folder=folder), ("weight", 1.0))


def _hybrid(settings: Any, rest: dict[str, Any], folder: Path) -> Reward:
    if not isinstance(settings, Mapping) or not {"rule", "model"} <= set(settings):
        raise UsageError(f"'hybrid' takes a mapping with the keys rule and model, not {short(settings)}")
    _check_keys("hybrid", rest, {"name"})
    options = {str(key): value for key, value in settings.items() if key not in ("rule", "model")}
    _check_keys("hybrid", options, {"rule", "model", "mode", "alpha", "threshold"})
    for key in ("alpha", "threshold"):
        _check_number(key, options.get(key, 0.0), settings)
    rule, model = build_reward(settings["rule"], folder), build_reward(settings["model"], folder)
    return Hybrid(rule, model, **options, **rest)


def _from_name(name: str, settings: dict[str, Any], folder: Path) -> Reward:
    path, _, attribute = name.rpartition(":")
    if name.startswith(("http://", "https://")):
        return _head("genalign.reward.runtime.remote:RemoteReward", name, {"url": name, **settings}, folder)
    if name in HEADS:
        return _head(HEADS[name], name, settings, folder)
    if name in PRESETS:
        return _preset(name, settings, folder)
    if name.endswith(".py"):
        raise UsageError(f"{name!r} is a file of functions; name one of them, as {name}:FUNCTION")
    if path.endswith(".py"):
        return FileReward(name, folder, **settings)
    if (fitted := fitted_folder(name, folder, Path())) is not None:
        return _head("genalign.reward.fit.fitted:FittedReward", name, {**settings, "folder": str(fitted)}, folder)
    if attribute.isidentifier() and all(part.isidentifier() for part in path.split(".")):
        return _head(_registered(name), name, settings, folder)
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    try:
        found = file_path(file, folder)
    except UsageError as error:
        if file == name:
            raise
        raise UsageError(
            f"there is no reward {name!r}{nearest(name, [*HEADS, *PRESETS, *shipped_rewards()])}"
        ) from error
    _check_keys(name, settings, {"name"})
    spec = read_yaml(found)
    if spec is None:
        raise UsageError(f"the reward file {found} is empty; write a reward into it, for example use: clip")
    renamed = {**spec, **settings} if isinstance(spec, Mapping) else spec
    return build_reward(renamed, found.parent)


def _registered(address: str) -> str:
    """`address` itself, where it is that of a head or a preset: a recipe cannot name other code by its module.

    Old recipes may have the address that it had before rewards had rooms.
    """
    addresses = {*HEADS.values(), *(preset.address for preset in PRESETS.values())}
    before_rooms = {re.sub(r"\.(heads|judge)(?=\.)", "", each): each for each in addresses}
    before_rooms["genalign.reward.sets:SetReward"] = HEADS["set"]
    if found := address if address in addresses else before_rooms.get(address):
        return found
    raise UsageError(
        f"reward {address!r} names code by its module, which no reward file may do; put a function into a file of "
        f"yours and write use: file.py:function"
    )


def shipped_rewards() -> list[str]:
    """Names of the reward files that come with genalign."""
    from genalign.files.shipped import shipped

    return sorted(path.stem for path in shipped("rewards").glob("*.yaml"))


def _preset(name: str, settings: dict[str, Any], folder: Path) -> Reward:
    settings = {**PRESETS[name].settings, **settings}
    calibrate = settings.pop("calibrate", None)
    absent = first_missing(PRESETS[name].given, settings)
    if absent:
        raise UsageError(f"reward {name!r} needs the setting {absent!r}; to get its weights: {how_to_get(name)}")
    for key in ("processor", "weights", "base", "tokenizer"):
        if key in settings:
            settings[key] = find_weights(settings[key], folder)
    if "template" in settings:
        settings["template"] = str(folder / str(settings["template"]))
    head = _head(PRESETS[name].address, name, settings, folder)
    warn_of_licence(name)
    return head if calibrate is None else calibrated(head, name, calibrate)


def _head(address: str, name: str, settings: dict[str, Any], folder: Path) -> Reward:
    """The reward of the class at `address`; settings that name a model or exemplars are resolved first."""
    module, _, attribute = address.partition(":")
    try:
        kind: Callable[..., Reward] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"reward {name!r} cannot be imported: {error}; check the package and class names") from error
    parameters = inspect.signature(kind).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # such a class checks them itself
        _check_keys(name, settings, set(parameters))
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    absent = first_missing(required, settings)
    if absent:
        raise UsageError(f"reward {name!r} needs the setting {absent!r}; write it beside 'use: {name}'")
    if settings.get("model", MEL) != MEL:
        settings = {**settings, "model": find_weights(settings["model"], folder)}
    for key in ("exemplars", "pairs", "references"):
        if isinstance(settings.get(key), str):
            settings = {**settings, key: find_exemplars(settings[key], folder)}
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the settings of reward {name!r} do not fit it: {error}") from error


def _check_number(what: str, value: Any, spec: Any) -> None:
    if not isinstance(value, int | float):
        raise UsageError(f"the {what} of {short(spec)} is {value!r}; it must be a number")
