"""A reward around another: whatever it does not say of itself is what the other says."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from torch import Tensor

from genalign.reward.base import Scope, aspect_weights, lacks
from genalign.types import Reward, Scores


class Wrapper:
    """Everything of a reward but its call, handed on to `reward`."""

    reward: Reward

    @property
    def name(self) -> str:
        return self.reward.name

    @property
    def needs(self) -> frozenset[str]:
        return self.reward.needs

    def lacks(self, offered: AbstractSet[str]) -> frozenset[str]:
        return lacks(self.reward, offered)

    @property
    def aspects(self) -> tuple[str, ...]:
        return self.reward.aspects

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(aspect_weights(self.reward).tolist())

    @property
    def looks_at(self) -> Scope:
        return self.reward.looks_at

    @property
    def differentiable(self) -> bool:
        return self.reward.differentiable

    @property
    def version(self) -> str:
        return self.reward.version

    def update(self, scores: Scores, step: int) -> None:
        self.reward.update(scores, step)

    def state_dict(self) -> dict[str, Tensor]:
        return self.reward.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.reward.load_state_dict(state)
