"""Which pair, or group, to ask about next: the one that rewards fitted to the votes so far disagree about most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genalign.demo.deck import Group
from genalign.demo.votes import Candidate, Vote, Votes
from genalign.media.files import read_media
from genalign.reward.fit.backbones import Backbone, BackboneSettings, build_backbone
from genalign.reward.fit.train import Fit, FitSettings, PreferenceData, compare, fit_head
from genalign.types import Prompt

FIRST = 20  # decided votes; before that, the next pair is left to chance
AGAIN = 10  # votes after which the rewards are fitted again
MEMBERS = 5
STEPS = 300  # of each fit: fewer leave a trace of where a head began


class Disagreement:
    """Groups by the spread of p(first is better) over an ensemble, on average over their pairs, the largest first.

    Its members are linear heads on frozen features, each fitted to the votes drawn with replacement (a bootstrap), as
    query by committee does (Seung, Opper and Sompolinsky, 1992).
    """

    def __init__(self, votes: Votes, backbone: Backbone, seed: int = 0) -> None:
        self.votes, self.backbone, self.seed = votes, backbone, seed
        self._features: dict[tuple[str, str], Tensor] = {}
        self._heads: list[Any] = []
        self._fitted = 0

    def __call__(self, groups: Sequence[Group]) -> list[int]:
        """The places of groups of one size in the order in which they are worth asking about; as given before the first
        fit."""
        decided = self.votes.count()
        if decided >= FIRST and (not self._heads or decided >= self._fitted + AGAIN):
            self._fit([vote for vote in self.votes.all() if vote.decided is not None])
            self._fitted = decided
        if not self._heads or not groups:
            return list(range(len(groups)))
        pairs = [(group.prompt.text, *pair) for group in groups for pair in combinations(group.samples, 2)]
        data = self._data(pairs)
        shares = torch.stack([compare(head, data).sigmoid() for head in self._heads])  # (members, pairs)
        return shares.std(0).view(len(groups), -1).mean(1).argsort(descending=True).tolist()

    def _fit(self, votes: Sequence[Vote]) -> None:
        if len(votes) < FIRST:
            return
        data = self._data([(vote.prompt, *decided) for vote in votes if (decided := vote.decided) is not None])
        self._heads = []
        for member in range(MEMBERS):
            generator = torch.Generator().manual_seed(self.seed + member)
            rows = torch.randint(len(data), (len(data),), generator=generator)
            plan = Fit(fit=FitSettings(steps=STEPS, weight_decay=0.1, seed=self.seed + member))
            self._heads.append(fit_head(plan, data.select(rows)))

    def _data(self, pairs: Sequence[tuple[str, Candidate, Candidate]]) -> PreferenceData:
        """Pairs of which the first sample is the better one, as far as labels count."""
        rows = [self._of(prompt, one) for prompt, *sides in pairs for one in sides]
        a = torch.arange(0, len(rows), 2)
        nobody = torch.full((len(a),), -1)
        return PreferenceData(torch.stack(rows), a, a + 1, torch.ones(len(a)), nobody, torch.arange(len(a)))

    @torch.no_grad()
    def _of(self, prompt: str, candidate: Candidate) -> Tensor:
        """(H,) the features of a sample, computed once."""
        key = prompt, candidate.file
        if key not in self._features:
            media = read_media([self.votes.place(candidate)])
            self._features[key] = self.backbone.features([Prompt(prompt)], media)[0]
        return self._features[key]


def of_pictures(votes: Votes) -> Disagreement:
    """By the embedded tiny-clip, whose features say how a picture suits its prompt."""
    settings = BackboneSettings(kind="clip", model="tiny-clip")
    return Disagreement(votes, build_backbone(settings, "image", Path()))
