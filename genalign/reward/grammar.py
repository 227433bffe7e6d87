"""The keys of a reward file that make rewards of rewards: what stands behind each, and which class it builds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from genalign.reward.base import first_missing
from genalign.reward.combine.algebra import Pick
from genalign.reward.combine.ensemble import Ensemble, Repeat
from genalign.reward.combine.gates import Cascade, Gate, Product
from genalign.reward.combine.means import KRC, Geometric, Min
from genalign.reward.combine.multiplier import Constraint, Schedule
from genalign.reward.combine.objectives import Conditioned, DynamicWeights, MarginalGain, Pareto
from genalign.reward.combine.shaping import Shape
from genalign.reward.runtime.cache import Cached
from genalign.reward.runtime.process import ProcessReward
from genalign.reward.runtime.runner import Runner
from genalign.types import Reward, UsageError, nearest

Build = Callable[[Any], Reward]


@dataclass(frozen=True)
class Form:
    """What a key takes. kind: the class. slots: a mapping of these to rewards, with the settings among them; without
    slots it is one reward, or (`many`) a list of them, with the settings beside. each: the number that an entry of the
    list may carry, and its default.
    """

    kind: Callable[..., Reward]
    slots: tuple[str, ...] = ()
    many: bool = False
    each: tuple[str, float | None] | None = None


WEIGHT = ("weight", 1.0)
FORMS = {
    "pick": Form(Pick),
    "gate": Form(Gate, slots=("high", "low")),
    "cascade": Form(Cascade, many=True, each=("at", None)),
    "product": Form(Product, slots=("main", "by")),
    "geometric": Form(Geometric, many=True, each=WEIGHT),
    "krc": Form(KRC, many=True, each=WEIGHT),
    "min": Form(Min, many=True),
    "ensemble": Form(Ensemble, many=True),
    "repeat": Form(Repeat),
    "shape": Form(Shape),
    "schedule": Form(Schedule),
    "constraint": Form(Constraint),
    "dynamic": Form(DynamicWeights, many=True),
    "pareto": Form(Pareto, many=True),
    "conditioned": Form(Conditioned, many=True),
    "marginal": Form(MarginalGain, many=True, each=WEIGHT),
}


def build_form(key: str, content: Any, beside: Mapping[str, Any], build: Build) -> Reward:
    """The reward of `key: content` with the settings `beside` it; `build` makes the rewards inside.

    Raises:
        UsageError: content of another kind than the key takes, an unknown setting, or one that does not fit.
    """
    form = FORMS[key]
    settings = dict(beside)
    if form.slots:
        check_keys(key, settings, {"name"})
        if not isinstance(content, Mapping) or not set(form.slots) <= set(content):
            raise UsageError(f"{key!r} takes a mapping with the keys {' and '.join(form.slots)}, not {short(content)}")
        settings |= {str(name): value for name, value in content.items() if name not in form.slots}
    known = set(list(inspect.signature(form.kind).parameters)[len(form.slots) or 1 :])
    check_keys(key, settings, known)
    inside: list[Any]
    if form.slots:
        inside = []
        for slot in form.slots:
            given = content[slot]
            inside.append([build(one) for one in given] if isinstance(given, list) else build(given))
    elif form.many:
        inside = [entries(key, content, build, form.each)]
    else:
        inside = [build(content)]
    try:
        return form.kind(*inside, **settings)
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"the settings of reward {key!r} do not fit it: {error}") from error


def entries(key: str, items: Any, build: Build, each: tuple[str, float | None] | None) -> list[Any]:
    """A list of rewards; with `each`, of pairs of a reward and the number that stands beside it (or the default)."""
    if not isinstance(items, list):
        raise UsageError(f"{key!r} takes a list of rewards, not {short(items)}")
    if each is None:
        return [build(item) for item in items]
    extra, default = each
    pairs = []
    for item in items:
        value = item.get(extra, default) if isinstance(item, Mapping) else default
        if value is not None and not isinstance(value, int | float):
            raise UsageError(f"the {extra} of {short(item)} is {value!r}; it must be a number")
        bare = {name: v for name, v in item.items() if name != extra} if isinstance(item, Mapping) else item
        pairs.append((build(bare), None if value is None else float(value)))
    return pairs


def short(spec: Any) -> str:
    """Of a part of a reward file, what fits into a sentence."""
    text = repr(spec)
    return text if len(text) < 80 else f"{text[:77]}..."


def check_keys(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Refuse a setting that is not `known`.

    Raises:
        UsageError: naming the nearest.
    """
    unknown = first_missing(given, known)
    if unknown is not None:
        raise UsageError(f"reward {what!r} has no setting {unknown!r}{nearest(unknown, known)}")


# ---- the key `run`: where and how a reward is called, whatever it is ---

On = Literal["inline", "thread", "process", "sandbox"]
RUN_KEYS = ("on", "batch_size", "cache", "timeout", "memory", "max_failure")


def run_as(
    spec: Mapping[str, Any], settings: Any, folder: Path, build: Callable[[Mapping[str, Any], Path], Reward]
) -> Runner:
    """The reward that `spec` describes, called as `settings` prescribe:

    on: inline (when all is sampled); thread (beside sampling, in this process); process (one of its own, killed when
    its time is over); sandbox (the same, for code that nobody has read). Default: what waits for a server or a process,
    and what is the same to the bit in parts, beside sampling; the rest inline. timeout:
    seconds a call may take, and memory: GiB, in a process or sandbox. batch_size: rows a call. cache: true, or an
    SQLite file relative to `folder`. max_failure: share of failed rows that ends the run.

    Raises:
        UsageError: an unknown setting, or one that does not fit the others.
    """
    if not isinstance(settings, Mapping):
        raise UsageError(f"'run' takes a mapping with any of the keys {', '.join(RUN_KEYS)}, not {settings!r}")
    unknown = first_missing(map(str, settings), RUN_KEYS)
    if unknown:
        raise UsageError(f"'run' has no setting {unknown!r}{nearest(unknown, RUN_KEYS)}")
    on, cache = settings.get("on"), settings.get("cache", False)
    if on is not None and on not in get_args(On):
        raise UsageError(f"a reward cannot run on {on!r}{nearest(str(on), get_args(On))}")
    apart = {key: settings[key] for key in ("timeout", "memory") if key in settings}
    if on not in ("process", "sandbox") and apart:
        raise UsageError(f"{' and '.join(apart)} can only be kept by a process; set run.on to process or sandbox")
    _check_number("batch_size", settings.get("batch_size", 1), 1)
    _check_number("max_failure", settings.get("max_failure", 0.0), 0)
    if on in ("process", "sandbox"):
        reward: Reward = ProcessReward(dict(spec), folder, sandbox=on == "sandbox", **apart)
    else:
        reward = build(spec, folder)
    if not isinstance(cache, bool | str):
        raise UsageError(f"run.cache is {cache!r}; write true, false or the name of a file")
    if cache:
        reward = Cached(reward, folder / cache if isinstance(cache, str) else None)
    options = {key: settings[key] for key in ("batch_size", "max_failure") if key in settings}
    return Runner(reward, overlaps={"thread": True, "inline": False}.get(str(on)), **options)


def _check_number(what: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise UsageError(f"run.{what} is {value!r}; it must be a number of at least {least}")
