"""Pairs to vote on, drawn ahead: two samples of a base or of a run, or one of each at the same seed."""

from __future__ import annotations

import hashlib
import random
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genalign.demo.found import Found
from genalign.demo.models import BASE, Models, row_seeds
from genalign.demo.votes import Candidate, Votes
from genalign.media.files import read_media
from genalign.method.pairs import Reproducible
from genalign.types import GenalignError, Policy, Prompt, UsageError

TOGETHER = 8  # pairs that are drawn at a time
ASKED = 2  # of them, where they are ranked
LOW = 4  # pairs left at which more are drawn
BASE_PAIRS, GROWN_PAIRS, MIXED_PAIRS = "two of the base", "two of", "base against"  # the latter two before a run's name
FOUND_PAIRS = "pictures of the folder"


@dataclass(frozen=True)
class Pair:
    """Two samples of a prompt, not yet on sides."""

    prompt: Prompt
    first: Candidate
    second: Candidate


class Deck:
    """Pairs that wait to be shown, for each kind of pair, drawn some at a time and ahead.

    rank: the places of pairs in the order in which they are worth asking about, of which ASKED are kept; None: all are.
    pictures: drawn elsewhere, by their prompt; see found.py.
    """

    def __init__(
        self,
        models: Models,
        votes: Votes,
        seed: int | None = None,
        rank: Callable[[Sequence[Pair]], Sequence[int]] | None = None,
        pictures: Mapping[str, Sequence[Found]] | None = None,
    ) -> None:
        self.models, self.votes, self.rank = models, votes, rank
        self.pictures = pictures or {}
        self._random = random.Random(secrets.randbits(64) if seed is None else seed)
        self._waiting: dict[str, deque[Pair]] = {}
        self._drawing, self._refilling = threading.Lock(), threading.Lock()
        self._prompts = list(models.plain)
        self._drawn = 0

    def kinds(self) -> list[str]:
        """What pairs there can be: two samples of the base, two of a run, a run's beside the base's, or found ones."""
        runs = [name for name in self.models.names() if name != BASE]
        of_runs = [*(f"{GROWN_PAIRS} {name}" for name in runs), *(f"{MIXED_PAIRS} {name}" for name in runs)]
        return [*([FOUND_PAIRS] if self.pictures else []), BASE_PAIRS, *of_runs]

    def take(self, kind: str) -> Pair:
        """The next pair of a kind.

        Raises:
            GenalignError: there is no such kind, or it cannot be drawn.
        """
        waiting = self._waiting.setdefault(kind, deque())
        while True:
            with self._drawing:
                if waiting:
                    return waiting.popleft()
            self._fill(kind)

    def fill_ahead(self, kind: str) -> None:
        """Draw more in a thread, where few are left."""
        if len(self._waiting.get(kind, ())) <= LOW and not self._refilling.locked():
            threading.Thread(target=self._fill_quietly, args=(kind,), daemon=True).start()

    def _fill_quietly(self, kind: str) -> None:
        try:
            with self._refilling:
                self._fill(kind)
        except GenalignError:  # who takes the next pair meets it
            pass

    def _fill(self, kind: str) -> None:
        pairs = [pair for pair in self._draw(kind) if pair.first.file != pair.second.file]
        if self.rank is not None:
            pairs = [pairs[place] for place in list(self.rank(pairs))[:ASKED]]
        with self._drawing:
            self._waiting.setdefault(kind, deque()).extend(pairs)

    def _draw(self, kind: str) -> list[Pair]:
        if kind == FOUND_PAIRS and self.pictures:
            return [self._found() for _ in range(TOGETHER)]
        prompts = [self._prompts[(self._drawn + k) % len(self._prompts)] for k in range(TOGETHER)]
        self._drawn += TOGETHER
        mixed, run = kind.startswith(MIXED_PAIRS), kind.removeprefix(MIXED_PAIRS).removeprefix(GROWN_PAIRS).strip()
        if kind == BASE_PAIRS:
            name, grown = BASE, False
        elif kind in self.kinds():
            name, grown = run, not mixed
        else:
            raise UsageError(f"there are no pairs {kind!r}; choose one of the list")
        number = self._random.getrandbits(62)
        with self.models.drawing(name, grown) as source:
            policy = source.policy
            seeds = [row_seeds(policy, prompt, 2, number + k) for k, prompt in enumerate(prompts)]
            if mixed:
                return self._against(policy, prompts, [pair[0] for pair in seeds], name)
            rows, drawn = [prompt for prompt in prompts for _ in range(2)], [seed for pair in seeds for seed in pair]
            found = self._rolled_out(policy, rows, drawn, name if grown else "")
        return [Pair(prompt, *found[2 * k : 2 * k + 2]) for k, prompt in enumerate(prompts)]

    def _found(self) -> Pair:
        prompt = self._random.choice(list(self.pictures))
        first, second = self._random.sample(self.pictures[prompt], 2)
        sides = [Candidate(self.votes.keep(read_media([one.file]), 0), one.seed) for one in (first, second)]
        return Pair(Prompt(prompt), *sides)

    def _rolled_out(self, policy: Policy, rows: Sequence[Prompt], seeds: Sequence[int], run: str) -> list[Candidate]:
        """As training draws them again from their seeds: under the reference weights."""
        digests = policy.digest() if isinstance(policy, Reproducible) else {}
        with policy.weights("reference"):
            media = policy.rollout(rows, 1, seeds).media
        model, sampler = digests.get("model"), digests.get("sampler")
        return [Candidate(self.votes.keep(media, row), seed, model, sampler, run) for row, seed in enumerate(seeds)]

    def _against(self, policy: Policy, prompts: Sequence[Prompt], seeds: Sequence[int], run: str) -> list[Pair]:
        """The base's sample and the run's at one seed."""
        base = self._rolled_out(policy, prompts, seeds, "")
        with policy.weights("policy"):
            media = policy.rollout(prompts, 1, seeds).media
        model = hashlib.sha256(f"{base[0].model} with {_adapter_digest(self.models.folder(run))}".encode()).hexdigest()
        pairs = []
        for row, (prompt, one) in enumerate(zip(prompts, base, strict=True)):
            pairs.append(Pair(prompt, one, replace(one, file=self.votes.keep(media, row), model=model, source=run)))
        return pairs


def _adapter_digest(run: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted((run / "adapter").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
