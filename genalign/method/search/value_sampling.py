"""Value Augmented Sampling: a language model's next token is tilted by what it is worth, learnt from its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from genalign.method.search.base import Inference, InferenceSettings, SearchState, candidate_seed
from genalign.types import Method


class ValueSamplingSettings(InferenceSettings):
    """Value Augmented Sampling: how much the value tilts, and how it is learnt."""

    presets: ClassVar = {"vas": {"group": 8}}

    tilt: float = Field(3.0, gt=0)
    """Nats that a token gains for each standard deviation of the reward that it is worth."""
    learning_share: float = Field(0.5, gt=0, lt=1)
    """The part of the budget that is spent on plain samples from which the value is learnt."""
    rank: int = Field(16, ge=1)
    """Of the product of state and token in the value."""
    value_steps: int = Field(200, ge=1)
    """Updates of the value."""
    value_learning_rate: float = Field(3e-3, gt=0)
    """Of its AdamW."""

    def build(self, folder: Path) -> Method:
        return ValueSampling(self)


class TokenValue(nn.Module):
    """Q_k(s, a) = c_k + v_k s + (P_k s) (G e_a), what aspect k of the reward will be if token a follows the hidden
    state s, e_a being what the output layer holds of a; of K aspects at once, in units of their deviations."""

    def __init__(self, width: int, aspects: int, rank: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.state = nn.Linear(width, aspects)
            self.left = nn.Linear(width, aspects * rank, bias=False)
            self.right = nn.Linear(width, rank, bias=False)
        nn.init.zeros_(self.left.weight)  # at first every token is worth the same
        self.aspects, self.rank = aspects, rank

    def forward(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(N,H) hidden states and (N,H) embeddings of the tokens behind them -> (N,K)."""
        left = self.left(hidden).view(-1, self.aspects, self.rank)
        found: Tensor = self.state(hidden) + torch.einsum("nkr,nr->nk", left, self.right(tokens))
        return found

    def tilt(self, hidden: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
        """(R,V): what each of V tokens is worth more than others behind R states, by weights (K,) of the aspects."""
        left = torch.einsum("nkr,k->nr", self.left(hidden).view(-1, self.aspects, self.rank), weights)
        return left @ self.right(tokens).T


class ValueSampling(Inference):
    """pi(a | s) ~ p(a | s) exp(tilt sum_k w_k Q_k(s, a)) (Value Augmented Sampling, arXiv 2405.06639): the model is
    frozen, and several values are mixed by the weights of the reward's aspects while sampling.

    Q is learnt by regression to the rewards of plain samples, the first part of the budget; the rest is drawn with the
    tilt, and the best of all stands.

    Departs from the paper: (1) Q is one low-rank product on the model's own hidden states and output embeddings, so all
    tokens are weighed at the price of one more output layer, where the paper asks a second model about the likeliest
    ones. (2) It is fitted to the reward of the whole (TD with lambda 1), for the prompts at hand. (3) Rewards are in
    standard deviations. (4) A mean of Q over what follows is tilted by, which is the optimum of one token alone; of
    several it is not (the soft value is).
    """

    def __init__(self, settings: ValueSamplingSettings) -> None:
        self.settings, self.name = settings, settings.name
        self.needs = frozenset({"reward"})

    @torch.no_grad()
    def _search(self, state: SearchState) -> None:
        writing, s = state.writing, self.settings
        state.plain_samples()
        embeddings = writing.embeddings().float()
        seeds = list(state.seeds)
        (hidden, tokens, worth, weights), first = self._plainly(state, seeds)
        value = fitted(hidden, embeddings[tokens], worth, s)
        scale = s.tilt * weights.to(embeddings.device)
        with writing.tilted(lambda seen: value.tilt(seen.float(), embeddings, scale)):
            while count := min(s.group, state.left(s.budget)):
                rows = [row for row in range(len(seeds)) for _ in range(count)]
                drawn = [candidate_seed(seeds[r], state.prompts[r], first + k % count) for k, r in enumerate(rows)]
                state.draw(rows, drawn)
                first += count

    def _plainly(self, state: SearchState, seeds: list[int]) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], int]:
        """Of all tokens of plain samples: hidden states (N,H), ids (N,), rewards by aspect (N,K) in their deviations;
        and the aspects' weights (K,), in the deviations of their weighted sum. And how many candidates a row had."""
        s, first = self.settings, 1
        columns: tuple[list[Tensor], ...] = ([], [], [])
        weights = torch.ones(1)
        while count := min(s.group, state.left(s.learning_share * s.budget)) or (1 if first == 1 else 0):
            rows = [row for row in range(len(seeds)) for _ in range(count)]
            drawn = [candidate_seed(seeds[r], state.prompts[r], first + k % count) for k, r in enumerate(rows)]
            with state.paying():
                trajectory = state.policy.rollout([state.prompts[row] for row in rows], 1, drawn)
                seen = [state.policy.replay(trajectory, *unit) for unit in trajectory.units()]
            state.score(trajectory.media, rows, drawn)
            assert state.scored is not None
            counted = state.scored.weights != 0
            weights, whole = state.scored.weights[counted], state.scored.valid[:, counted].all(1)
            features = torch.cat([one.features for one in seen if one.features is not None])
            mask = trajectory.mask.to(features.device) & whole.to(features.device)[:, None]
            ids = torch.zeros(mask.shape, dtype=torch.long)
            for place, own, written in zip(ids, trajectory.mask, trajectory.media["text"].ids or [], strict=True):
                place[own] = torch.tensor(list(written))
            length = mask.sum(1)
            columns[0].append(features[mask].float())
            columns[1].append(ids.to(mask.device)[mask])
            columns[2].append(state.scored.values[:, counted].to(mask.device).repeat_interleave(length, 0))
            first += count
        hidden, tokens, values = (torch.cat(column) for column in columns)
        deviation = values.std(0).clamp(min=torch.finfo(values.dtype).tiny)
        total = (values @ weights.to(values)).std().clamp(min=torch.finfo(values.dtype).tiny)
        worth = (values - values.mean(0)) / deviation
        return (hidden, tokens, worth, weights * deviation.cpu() / total.cpu()), first


def fitted(hidden: Tensor, tokens: Tensor, worth: Tensor, settings: ValueSamplingSettings) -> TokenValue:
    """A value learnt from N tokens (their embeddings, (N,H)) behind N states (N,H), of samples worth (N,K)."""
    value = TokenValue(hidden.shape[1], worth.shape[1], settings.rank).to(hidden.device)
    optimizer: Any = torch.optim.AdamW(value.parameters(), lr=settings.value_learning_rate)
    with torch.enable_grad():
        for _ in range(settings.value_steps if len(hidden) else 0):
            optimizer.zero_grad()
            (value(hidden, tokens) - worth).square().mean().backward()
            optimizer.step()
    return value.requires_grad_(False)
