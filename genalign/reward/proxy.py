"""A reward that runs elsewhere: what must be known of it there, and the object that stands in for it here."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from genalign.reward.base import Scope, StepCounting, aspect_weights, needs_by_aspect
from genalign.reward.wrapper import with_defaults
from genalign.types import MODALITIES, CoreReward, UsageError


def about(reward: CoreReward) -> dict[str, Any]:
    """What one must know of a reward to stand in for it, as plain data.

    Raises:
        UsageError: it has a state, which training could not move from where the stand-in is.
    """
    whole = with_defaults(reward)
    steps = isinstance(reward, StepCounting) and reward.steps  # a call carries the number of the step
    if whole.state_dict() and not steps:
        raise UsageError(f"reward {whole.name!r} has a state that training moves; use its parts elsewhere, not it")
    return {
        "name": whole.name,
        "needs": sorted(whole.needs),
        "lacks": {kind: sorted(whole.lacks({kind})) for kind in MODALITIES},
        "aspects": list(whole.aspects),
        "weights": aspect_weights(whole).tolist(),
        "aspect_needs": [sorted(names) for names in needs_by_aspect(whole)],
        "looks_at": whole.looks_at,
        "version": whole.version,
        **({"steps": True} if steps else {}),
    }


class RemoteProxy(StepCounting):
    """A reward that is elsewhere: `_about`, what `about` says of it there, is fetched when first needed."""

    differentiable = False
    waits = True
    name: str
    _about: Mapping[str, Any]

    @property
    def steps(self) -> bool:  # type: ignore[override]
        """Whether the reward reads the number of the training step."""
        return bool(self._about.get("steps"))

    def _counted(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message, with the step where the reward reads it."""
        return {**message, "step": self.step} if self.steps else message

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self._about["needs"])

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        # `about` answers for one modality at a time; for none or several, everything that it reads is wanted.
        kinds = [kind for kind in MODALITIES if kind in offered]
        wanted = self._about.get("lacks", {}).get(kinds[0]) if len(kinds) == 1 else None
        return frozenset(self.needs if wanted is None else wanted) - offered

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(self._about["aspects"])

    @property
    def weights(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(self._about["weights"])

    @property
    def aspect_needs(self) -> tuple[frozenset[str], ...]:  # type: ignore[override]
        return tuple(frozenset(names) for names in self._about.get("aspect_needs", ()))  # an older server sends none

    @property
    def looks_at(self) -> Scope:
        return self._about["looks_at"]

    @property
    def version(self) -> str:
        return self._about["version"]
