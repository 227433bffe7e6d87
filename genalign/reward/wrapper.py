"""A reward around another: what it does not define itself is the other's. And a user's class, completed that way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, cast

from torch import Tensor

from genalign.reward.base import RewardDefaults, Scope, aspect_weights, needs_by_aspect
from genalign.types import CoreReward, Media, Prompt, Reward, Scores


class Wrapper(RewardDefaults):
    """Everything of a reward but its call, handed on to the one inside."""

    def __init__(self, reward: CoreReward) -> None:
        self.reward = with_defaults(reward)

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def needs(self) -> frozenset[str]:
        return self.reward.needs

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        return self.reward.lacks(offered)

    @property
    def aspects(self) -> tuple[str, ...]:
        return self.reward.aspects

    @property
    def weights(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(aspect_weights(self.reward).tolist())

    @property
    def aspect_needs(self) -> tuple[frozenset[str], ...]:  # type: ignore[override]
        return needs_by_aspect(self.reward)

    @property
    def looks_at(self) -> Scope:
        return self.reward.looks_at

    @property
    def differentiable(self) -> bool:
        return self.reward.differentiable

    @property
    def version(self) -> str:
        return self.reward.version

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return self.reward.waits

    @property
    def users(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.reward.users

    @property
    def parts(self) -> tuple[Reward, ...]:  # type: ignore[override]
        return (self.reward,)

    def update(self, scores: Scores, step: int) -> None:
        self.reward.update(scores, step)

    def state_dict(self) -> dict[str, Tensor]:
        return self.reward.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reward.load_state_dict(state)


class _Completed(Wrapper):
    """A user's reward: the members that it has are its own, those that it leaves out are the defaults."""

    def __init__(self, reward: Any) -> None:
        self.reward = reward

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        return self.reward(prompts, media, group)

    def _own(self, member: str) -> Any:
        return getattr(self.reward, member, getattr(RewardDefaults, member))

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        own = getattr(self.reward, "lacks", None)
        return frozenset(self.needs - offered) if own is None else own(offered)

    @property
    def weights(self) -> tuple[float, ...]:  # type: ignore[override]
        return tuple(self._own("weights") or ())

    @property
    def aspect_needs(self) -> tuple[frozenset[str], ...]:  # type: ignore[override]
        return tuple(self._own("aspect_needs") or ())

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return bool(self._own("waits"))

    @property
    def users(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._own("users"))

    @property
    def pairwise(self) -> bool:  # type: ignore[override]
        return bool(self._own("pairwise"))

    @property
    def parts(self) -> tuple[Reward, ...]:  # type: ignore[override]
        return tuple(self._own("parts"))


def with_defaults(reward: CoreReward) -> Reward:
    """The reward with every member of `types.Reward`: itself where it is one of ours, else completed by the defaults.

    Whatever takes a reward from outside (Runner, a combination, check_needs, a server) passes it through here once, so
    that nothing behind asks whether a member is there.
    """
    return cast(Reward, reward) if isinstance(reward, RewardDefaults) else _Completed(reward)
