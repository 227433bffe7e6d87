"""What is voted on, drawn ahead: two or four samples of a base or of a run, or one of each at the same seed."""

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

TOGETHER = 16  # samples that are drawn at a time
ASKED = 4  # one in so many groups of them, where they are ranked
LOW = 4  # groups left at which more are drawn
# What there is to vote on; the words before a run's name, where they are about one.
BASE_PAIRS, GROWN_PAIRS, MIXED_PAIRS = "two of the base", "two of", "base against"
BASE_FOURS, GROWN_FOURS = "four of the base", "four of"
FOUND_PAIRS, FOUND_FOURS = "pictures of the folder", "four pictures of the folder"


@dataclass(frozen=True)
class Group:
    """Samples of a prompt, two or four, not yet at their places."""

    prompt: Prompt
    samples: tuple[Candidate, ...]


def size_of(kind: str) -> int:
    """How many samples a group of a kind has."""
    return 4 if kind.startswith("four ") else 2


class Deck:
    """Groups that wait to be shown, of each kind, drawn some at a time and ahead.

    rank: the places of groups in the order in which they are worth asking about, of which one in ASKED is kept; None:
    all are. pictures: drawn elsewhere, by their prompt; see found.py.
    """

    def __init__(
        self,
        models: Models,
        votes: Votes,
        seed: int | None = None,
        rank: Callable[[Sequence[Group]], Sequence[int]] | None = None,
        pictures: Mapping[str, Sequence[Found]] | None = None,
    ) -> None:
        self.models, self.votes, self.rank = models, votes, rank
        self.pictures = pictures or {}
        self._random = random.Random(secrets.randbits(64) if seed is None else seed)
        self._waiting: dict[str, deque[Group]] = {}
        self._drawing, self._refilling = threading.Lock(), threading.Lock()
        self._drawn = 0

    def kinds(self) -> list[str]:
        """What can be voted on: samples of the base, of a run, a run's beside the base's, or pictures of the folder."""
        runs = [name for name in self.models.names() if name != BASE]
        of_runs = [f"{words} {name}" for words in (GROWN_PAIRS, GROWN_FOURS, MIXED_PAIRS) for name in runs]
        fours = any(len(found) >= size_of(FOUND_FOURS) for found in self.pictures.values())
        found = [*([FOUND_PAIRS] if self.pictures else []), *([FOUND_FOURS] if fours else [])]
        return [*found, BASE_PAIRS, BASE_FOURS, *of_runs]

    def take(self, kind: str) -> Group:
        """The next group of a kind.

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
        except GenalignError:  # who takes the next group meets it
            pass

    def _fill(self, kind: str) -> None:
        groups = [group for group in self._draw(kind) if len({one.file for one in group.samples}) == size_of(kind)]
        if self.rank is not None:
            kept = TOGETHER // size_of(kind) // ASKED
            groups = [groups[place] for place in list(self.rank(groups))[:kept]]
        with self._drawing:
            self._waiting.setdefault(kind, deque()).extend(groups)

    def _draw(self, kind: str) -> list[Group]:
        size = size_of(kind)
        count = TOGETHER // size
        if self.pictures and kind in (FOUND_PAIRS, FOUND_FOURS):
            return [self._found(size) for _ in range(count)]
        if kind in (BASE_PAIRS, BASE_FOURS):
            name, words = BASE, kind
        elif kind in self.kinds():
            words = next(one for one in (GROWN_PAIRS, GROWN_FOURS, MIXED_PAIRS) if kind.startswith(f"{one} "))
            name = kind.removeprefix(f"{words} ")
        else:
            raise UsageError(f"there are no pairs {kind!r}; choose one of the list")
        plain = self.models.plain
        prompts = [plain[(self._drawn + k) % len(plain)] for k in range(count)]
        self._drawn += count
        number, grown = self._random.getrandbits(62), words in (GROWN_PAIRS, GROWN_FOURS)
        with self.models.drawing(name, grown) as source:
            policy = source.policy
            seeds = [row_seeds(policy, prompt, size, number + k) for k, prompt in enumerate(prompts)]
            if words == MIXED_PAIRS:
                return self._against(policy, prompts, [own[0] for own in seeds], name)
            rows, drawn = [prompt for prompt in prompts for _ in range(size)], [seed for own in seeds for seed in own]
            found = self._rolled_out(policy, rows, drawn, name if grown else "")
        return [Group(prompt, tuple(found[size * k : size * (k + 1)])) for k, prompt in enumerate(prompts)]

    def _found(self, size: int) -> Group:
        prompt = self._random.choice([prompt for prompt, found in self.pictures.items() if len(found) >= size])
        files = self._random.sample(self.pictures[prompt], size)
        samples = [Candidate(self.votes.keep(read_media([one.file]), 0), one.seed) for one in files]
        return Group(Prompt(prompt), tuple(samples))

    def _rolled_out(self, policy: Policy, rows: Sequence[Prompt], seeds: Sequence[int], run: str) -> list[Candidate]:
        """As training draws them again from their seeds: under the reference weights."""
        digests = policy.digest() if isinstance(policy, Reproducible) else {}
        with policy.weights("reference"):
            media = policy.rollout(rows, 1, seeds).media
        model, sampler = digests.get("model"), digests.get("sampler")
        return [Candidate(self.votes.keep(media, row), seed, model, sampler, run) for row, seed in enumerate(seeds)]

    def _against(self, policy: Policy, prompts: Sequence[Prompt], seeds: Sequence[int], run: str) -> list[Group]:
        """The base's sample and the run's at one seed."""
        base = self._rolled_out(policy, prompts, seeds, "")
        with policy.weights("policy"):
            media = policy.rollout(prompts, 1, seeds).media
        model = hashlib.sha256(f"{base[0].model} with {_adapter_digest(self.models.folder(run))}".encode()).hexdigest()
        groups = []
        for row, (prompt, one) in enumerate(zip(prompts, base, strict=True)):
            tuned = replace(one, file=self.votes.keep(media, row), model=model, source=run)
            groups.append(Group(prompt, (one, tuned)))
        return groups


def _adapter_digest(run: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted((run / "adapter").rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
