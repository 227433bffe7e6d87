"""What a reward reads, held against what the data offers."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from genalign.reward.wrapper import with_defaults
from genalign.types import MODALITIES, CoreReward, Reward, UsageError, nearest


def reads_another_modality(reward: Reward, offered: AbstractSet[str]) -> bool:
    """Whether the reward must abstain from all such data, since it reads a modality that is not among them."""
    return not reward.lacks(offered).isdisjoint(MODALITIES)


def check_needs(reward: CoreReward, available: Iterable[str]) -> None:
    """Refuse a reward that reads what the data lacks; see `types.Reward.lacks`.

    available: modalities, "prompt", and keys of facts as "facts.answer".

    Raises:
        UsageError: naming the reward, what it needs, and the nearest name on offer.
    """
    offered = set(available)
    lacking = sorted(with_defaults(reward).lacks(offered))
    if lacking:
        absent = [need for need in lacking if need in MODALITIES] or lacking[:1]
        wanted = f"{'needs' if len(absent) == 1 else 'reads'} {', '.join(map(repr, absent))}"
        raise UsageError(f"reward {reward.name!r} {wanted}, which the data does not offer{nearest(absent[0], offered)}")
