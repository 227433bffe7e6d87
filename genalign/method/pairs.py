"""Labelled pairs: which of two seeds of a prompt a person, or a reward, preferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from genalign.files.text import Line, parse_row, read_lines
from genalign.method.settings import PairSource
from genalign.types import Policy, Prompt, Trajectory, UsageError

SHAPE = '{"prompt": str, "chosen_seed": int, "rejected_seed": int, "model": str, "sampler": str}'


@dataclass(frozen=True)
class LabelledPair:
    """One line of the file. model, sampler: digests of what drew the two samples, so that they can be drawn again."""

    prompt: str
    chosen_seed: int
    rejected_seed: int
    model: str
    sampler: str


@runtime_checkable
class Reproducible(Protocol):
    """A policy that knows whether it would draw the same sample from the same seed."""

    def digest(self) -> Mapping[str, str]:
        """{"model": hash of the reference weights, "sampler": hash of the sampling settings}."""
        ...


@runtime_checkable
class Recalling(Protocol):
    """A policy that reads stored trajectories back."""

    def recall(self, folder: Path, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Trajectory:
        """The rows of these prompts and seeds, in this order, without sampling."""
        ...


@runtime_checkable
class Reading(Protocol):
    """A policy that can score samples which it did not draw."""

    def read(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Trajectory:
        """Given texts, one a prompt, as a trajectory that can be replayed."""
        ...


def read_pairs(path: Path) -> dict[str, list[LabelledPair]]:
    """The labelled pairs of a .jsonl file by prompt.

    Raises:
        UsageError: missing, unreadable, empty, or a line that is not a labelled pair (named by its number).
    """
    if not path.is_file():
        raise UsageError(f"cannot read the labelled pairs {path}, which is not a file; check method.pairs")
    pairs: dict[str, list[LabelledPair]] = {}
    for line in read_lines(path):
        pair = _parse(line, path)
        pairs.setdefault(pair.prompt, []).append(pair)
    if not pairs:
        raise UsageError(f"{path} holds no labelled pairs; write one {SHAPE} a line")
    return pairs


def _parse(line: Line, path: Path) -> LabelledPair:
    where, row = f"line {line.number} of {path}", parse_row(line, path, f"write one {SHAPE} a line")
    for key, kind in LabelledPair.__annotations__.items():
        value = row.get(key)
        if type(value).__name__ != kind:
            raise UsageError(f"{where} has no {kind} under {key!r}; write one {SHAPE} a line")
    if row["chosen_seed"] == row["rejected_seed"]:
        raise UsageError(f"{where} prefers seed {row['chosen_seed']} to itself; drop the line")
    return LabelledPair(**{key: row[key] for key in LabelledPair.__annotations__})


def check_digest(policy: object, pair: LabelledPair, path: Path) -> None:
    """Refuse pairs that this policy would not draw again as they were labelled.

    Raises:
        UsageError: another model or another sampler drew them, or the policy has no digest.
    """
    if not isinstance(policy, Reproducible):
        raise UsageError(f"{type(policy).__name__} has no digest, so the pairs of {path} cannot be drawn again with it")
    now = policy.digest()
    for key, cure in (("model", "policy.model"), ("sampler", "policy.sampler")):
        if getattr(pair, key) != now[key]:
            raise UsageError(
                f"the pairs of {path} were drawn with {key} {getattr(pair, key)[:12]}, not with this recipe's "
                f"{now[key][:12]}; set {cure} to what it was, or label again"
            )


class LabelledPairs:
    """The labelled pairs of a file, whose samples are drawn again from their seeds under the reference weights.

    stored: a folder of trajectories that they are read from instead.
    """

    def __init__(self, path: Path, stored: Path | None = None) -> None:
        self.path, self.stored = path, stored
        self.of_prompt = read_pairs(path)

    def draw(self, policy: Policy, prompts: Sequence[Prompt], step: int) -> Trajectory:
        """One pair for each prompt that has any, another one each time that the prompt is drawn; two rows a pair, the
        chosen one first.

        Raises:
            UsageError: no prompt has one, they were drawn by another model, or the policy stores no trajectories.
        """
        chosen = self._chosen(prompts, step)
        for _, pair in chosen:
            check_digest(policy, pair, self.path)
        seeds: list[int] = []
        for _, pair in chosen:
            seeds += [pair.chosen_seed, pair.rejected_seed]
        if self.stored is None:
            with policy.weights("reference"):
                return policy.rollout([prompt for prompt, _ in chosen], 2, seeds)
        if not isinstance(policy, Recalling):
            raise UsageError(f"{type(policy).__name__} stores no trajectories; drop method.trajectories")
        return policy.recall(self.stored, [prompt for prompt, _ in chosen for _ in range(2)], seeds)

    def _chosen(self, prompts: Sequence[Prompt], step: int) -> list[tuple[Prompt, LabelledPair]]:
        found: list[tuple[Prompt, LabelledPair]] = []
        for prompt in prompts:
            known = self.of_prompt.get(prompt.text)
            if known:
                found.append((prompt, known[(prompt.uid + step) % len(known)]))
        if not found:
            raise UsageError(
                f"no prompt of step {step} has a labelled pair in {self.path}; set data.prompts to that file"
            )
        return found


def read_given(policy: Policy, given: PairSource, prompts: Sequence[Prompt]) -> Trajectory:
    """The given texts of these prompts' pairs, two rows a pair, the preferred one first; nobody drew them, so what is
    recorded is the reference's. The fact `rejected_prompt` is what the other one answers, where that is another prompt
    (Multi-Level Aware Preference Learning: one answer, to a prompt that it obeys and to one that it does not).

    Raises:
        UsageError: the policy scores no texts that it did not draw.
    """
    if not isinstance(policy, Reading):
        raise UsageError(f"{type(policy).__name__} cannot score given texts; take a language model")
    rows: list[Prompt] = []
    for prompt in prompts:
        rows += [prompt, replace(prompt, text=prompt.facts.get("rejected_prompt", prompt.text))]
    texts = given.load([prompt.uid for prompt in prompts])["text"].data
    with policy.weights("reference"):
        return policy.read(rows, [str(text) for text in texts])
