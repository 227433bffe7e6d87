"""Rewards for TRL's trainers, and TRL's reward functions as a reward: `to_trl` and `from_trl`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from genalign.data.conversations import is_messages, prompt_text, turns_of
from genalign.media.image import cell_picture
from genalign.reward.build import build_reward
from genalign.reward.combine.algebra import Sum
from genalign.reward.function import FunctionReward
from genalign.reward.runtime.runner import Runner
from genalign.types import CoreReward, Media, Prompt, Reward, Scores, Track, UsageError

PICTURES = ("image", "images")  # columns of TRL's sets that hold what a prompt shows
BESIDE = ("trainer_state", "log_extra", "log_metric", "environments")  # what is no column


def from_trl(*functions: Callable[..., Any], weights: Sequence[float] | None = None) -> Reward:
    """TRL's reward functions as one reward: their sum by `weights` (None: 1 each), as `reward_weights` makes it.

    What a function may read and return is what genalign.reward.function describes.

    Departs from TRL: where one of several functions returns None, the mean of the row's siblings stands for it, and not
    0, so that it moves no advantage.

    Raises:
        UsageError: no function, or another number of weights.
    """
    parts = [FunctionReward(function) for function in functions]
    if len(parts) == 1 and weights is None:
        return parts[0]
    if weights is not None and len(weights) != len(parts):
        raise UsageError(f"{len(parts)} reward functions were given {len(weights)} weights; give each one")
    return Sum(list(zip(parts, weights or [1.0] * len(parts), strict=True)), name="trl")


def to_trl(reward: CoreReward | str | Path, num_generations: int | None = None) -> Callable[..., list[float | None]]:
    """A reward as a function for `reward_funcs` of TRL's GRPOTrainer and RLOOTrainer.

    Columns of the dataset are the prompts' facts; pictures (columns `image` or `images`, or parts of messages) are what
    the prompt shows. A row that failed or abstains is None. Aspects, and the shares of rows that failed, are logged
    under `rewards/`.

    reward: or a reward file, or a name that reward files know. num_generations: the trainer's, of a reward that looks
    at siblings, which must lie on one process.

    Raises:
        UsageError: a reward that looks at siblings without `num_generations`, or (when called) siblings that are not
            all there.
        GenalignError: (when called) too many rows failed.
    """
    built = build_reward(str(reward), Path()) if isinstance(reward, str | Path) else reward
    if built.looks_at != "sample" and num_generations is None:
        raise UsageError(f"reward {built.name!r} looks at siblings; give to_trl the trainer's num_generations")
    return _Function(built if isinstance(built, Runner) else Runner(built), num_generations or 1)


class _Function:
    """What TRL calls: named like the reward, with the last scores of a step, from which its state moves on."""

    def __init__(self, reward: Runner, siblings: int) -> None:
        self.reward, self.siblings = reward, siblings
        self.__name__ = reward.name  # TRL logs by it
        self._last: tuple[int, Scores] | None = None

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        step = int(getattr(columns.get("trainer_state"), "global_step", 0))
        if self._last is not None and self._last[0] < step:
            self.reward.update(self._last[1], step - 1)
        rows = self._rows(prompts, {name: given for name, given in columns.items() if name not in BESIDE})
        ids = None if completion_ids is None else [tuple(map(int, row)) for row in completion_ids]
        media = Media(text=Track([_written(completion) for completion in completions], ids=ids))
        with torch.no_grad():
            scores = self.reward(rows, media, torch.tensor([row.uid for row in rows]))
        self._last = step, scores
        self._log(scores, columns.get("log_metric"))
        return [
            float(total) if readable else None
            for total, readable in zip(scores.total.tolist(), scores.total_valid.tolist(), strict=True)
        ]

    def _rows(self, prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]) -> list[Prompt]:
        known: dict[int, torch.Tensor] = {}  # siblings show the same picture
        rows = []
        for row, prompt in enumerate(prompts):
            facts = {name: values[row] for name, values in columns.items() if name not in PICTURES}
            if isinstance(facts.get("facts"), Mapping):
                facts |= facts.pop("facts")
            rows.append(_prompt(prompt, facts, _shown(prompt, columns, row, known), row // self.siblings))
        self._check_siblings(rows)
        return rows

    def _check_siblings(self, rows: Sequence[Prompt]) -> None:
        groups = [{row.text for row in rows[i : i + self.siblings]} for i in range(0, len(rows), self.siblings)]
        if len(rows) % self.siblings or any(len(texts) > 1 for texts in groups):
            raise UsageError(
                f"reward {self.reward.name!r} looks at {self.siblings} siblings, but these rows are not whole groups "
                f"of one prompt; make the batch of a process a multiple of num_generations"
            )

    def _log(self, scores: Scores, log_metric: Callable[[str, float], None] | None) -> None:
        if log_metric is None:
            return
        for k, aspect in enumerate(scores.names):
            if aspect != self.reward.name and bool(scores.valid[:, k].any()):
                log_metric(f"rewards/{aspect}/mean", float(scores.values[scores.valid[:, k], k].mean()))
        for name, value in self.reward.log().items():
            log_metric(name, value)


def _prompt(given: Any, facts: dict[str, Any], media: Media | None, uid: int) -> Prompt:
    """A prompt as prompt files have it: one user turn is its text; of a longer one the messages are a fact."""
    if not is_messages(given):
        return Prompt(str(given), media, facts, uid)
    turns = turns_of([{**turn, "content": _words(turn.get("content"))} for turn in given])
    alone = len(turns) == 1 and turns[0]["role"] == "user"
    return Prompt(prompt_text(turns), media, facts if alone else {**facts, "messages": turns}, uid)


def _shown(prompt: Any, columns: Mapping[str, Sequence[Any]], row: int, known: dict[int, torch.Tensor]) -> Media | None:
    """The pictures of a row: those of its columns, else those inside its messages."""
    given = [columns[name][row] for name in PICTURES if name in columns]
    found = [one for value in given for one in (value if isinstance(value, list) else [value]) if one is not None]
    if not given and is_messages(prompt):
        parts = [part for turn in prompt if isinstance(turn.get("content"), list) for part in turn["content"]]
        found = [part["image"] for part in parts if isinstance(part, Mapping) and part.get("image") is not None]
    if not found:
        return None
    for one in found:
        if id(one) not in known:
            known[id(one)] = cell_picture(one, Path(), f"the picture of row {row + 1} cannot be read")
    pictures = [known[id(one)] for one in found]
    alike = len({picture.shape for picture in pictures}) == 1
    return Media(image=Track(torch.stack(pictures) if alike else pictures))


def _words(content: Any) -> Any:
    """The text of a message without its pictures."""
    if not isinstance(content, list):
        return content or ""
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))


def _written(completion: Any) -> str:
    """A completion's text: what the assistant wrote, one turn a line where tools answered in between."""
    if not is_messages(completion):
        return str(completion)
    return "\n".join(str(_words(turn.get("content"))) for turn in completion if turn["role"] == "assistant")
