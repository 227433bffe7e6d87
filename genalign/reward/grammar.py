"""The keys of a reward file that make rewards of rewards: what stands behind each, and which class it builds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from genalign.reward.algebra import Pick
from genalign.reward.base import nearest
from genalign.reward.ensemble import Ensemble, Repeat
from genalign.reward.gates import Cascade, Gate, Product
from genalign.reward.means import KRC, Geometric, Min
from genalign.reward.multiplier import Constraint, Schedule
from genalign.reward.objectives import Conditioned, DynamicWeights, MarginalGain, Pareto
from genalign.reward.shaping import Shape
from genalign.types import Reward, UsageError

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
        inside = [
            [build(one) for one in content[slot]] if isinstance(content[slot], list) else build(content[slot])
            for slot in form.slots
        ]
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
    text = repr(spec)
    return text if len(text) < 80 else f"{text[:77]}..."


def check_keys(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        raise UsageError(f"reward {what!r} has no setting {unknown!r}{nearest(unknown, known)}")
