"""Recording a rollout, and proving on its first micro-batch that replay reproduces it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genalign.clock import switch
from genalign.policy.chunk import Chunk
from genalign.policy.replay import Replay
from genalign.policy.spans import Spans
from genalign.policy.tables import Tables
from genalign.policy.tape import Stage
from genalign.policy.transition import StepTable
from genalign.policy.turn import Turn, packed
from genalign.policy.walk import stored_dtype
from genalign.types import GenalignError, Prompt, UsageError


@dataclass(frozen=True)
class Tape:
    """What replay needs: the rollout's table, which step each column of logp is of, and the latents by micro-batch."""

    table: StepTable | Tables
    steps: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def clean(self) -> Tensor:
        """The last latents (B,*L). Raises UsageError where they were not kept."""
        kept = [chunk.clean for chunk in self.chunks if chunk.clean is not None]
        if len(kept) < len(self.chunks):
            raise UsageError("these trajectories were stored without their last latents; draw them again")
        return torch.cat(kept)


class Recorder:
    """Denoise and step hooks of one micro-batch: the kernel steps, and what replay needs is kept.

    table: made when it is first needed and the scheduler knows its time grid. spans: what has a log-density of its own,
    (R,) of each medium for each step in logp. keep: also hold every latent, argument
    and output, for `verify` or because guidance remembers earlier steps. twins: `twins_of` the rows; until they part
    the denoiser runs on one of each.
    """

    def __init__(
        self,
        stage: Stage,
        generators: Sequence[torch.Generator],
        make_table: Callable[[], StepTable | Tables],
        spans: Spans,
        keep: bool,
        twins: Sequence[int] | None,
    ) -> None:
        self.stage, self.generators, self.make_table, self.spans = stage, generators, make_table, spans
        self.keep, self.twins = keep, twins
        self.rows = len(generators)
        self.table: StepTable | Tables | None = None
        self.chunk = Chunk()
        self.logp: list[Tensor] = []
        self.arguments: list[list[tuple[int, Any]]] = [[]]  # per step: (first branch, (args, kwargs)) of each call
        self.received: list[Tensor] = []
        self._turn = Turn(stage.turn, self.rows)
        self._step = 0

    def denoise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        equal = self.twins is not None and self._step <= parting(self._known_table())
        outs = self.stage.denoisers.answer(args, kwargs, self.rows, twins=self.twins if equal else None)
        if self.keep:
            branches = self.chunk.outputs.setdefault(self._step, [])
            self.arguments[-1].append((len(branches), _copied((args, kwargs))))
            branches.extend(outs)
        return self.stage.denoisers.join(outs)

    def step(self, out: Tensor, sample: Tensor) -> Tensor:
        table, i = self._known_table(), self._step
        if sample._is_view():  # into which a pipeline may write x'
            sample = sample.clone()
        own = table.part(self._turn.part)
        mean = own.mean(i, sample, out)
        # x' is rounded to the dtype it is stored in before it is scored: replay scores the stored value.
        dtype = stored_dtype(self.stage.pipeline.scheduler, out, sample)
        moved = own.step(i, mean, self._noise(mean) if i in table.stochastic else None, dtype)
        whole = self._turn.add(out, sample, moved, mean)
        if whole is not None:
            self._take(table, i, *whole)
        return moved

    def _take(
        self, table: StepTable | Tables, i: int, out: Tensor, sample: Tensor, moved: Tensor, mean: Tensor
    ) -> None:
        """Keep what replay needs of a step, (R,*L) each."""
        noisy = i in table.stochastic
        if noisy or self.keep:
            made = self.chunk.latents.setdefault(i, sample)
            if made is not sample and not _same(made, sample):
                self.chunk.before[i] = sample
        # Also before a noisy step: replay hands it to the pipeline, which then changes it as it did here.
        if noisy or self.keep or i + 1 in table.stochastic:
            self.chunk.latents[i + 1] = moved
        if noisy:
            pairs = zip(self.spans.split(moved), self.spans.split(mean), strict=True)
            for own, pair in zip(self.spans.tables(table), pairs, strict=True):
                self.logp.append(own.logp(i, *pair))
        self.chunk.clean = moved  # of the last step, in the end
        if self.keep:
            self.received.append(out)
            self.arguments.append([])
        self._step += 1
        if self._step == len(table):
            switch("decode")

    def _known_table(self) -> StepTable | Tables:
        if self.table is None:
            self.table = self.make_table()
        return self.table

    def forget(self) -> None:
        """Drop what only `verify` needed."""
        noisy = set(self.table.stochastic) if self.table is not None else set()
        kept = noisy | {i + 1 for i in noisy}
        self.chunk = Chunk(
            {i: x for i, x in self.chunk.latents.items() if i in kept},
            clean=self.chunk.clean,
            before={i: x for i, x in self.chunk.before.items() if i in noisy},
        )
        self.arguments, self.received = [], []

    def _noise(self, like: Tensor) -> Tensor:
        shape = (1, *packed([like], self.rows).shape[1:])
        drawn = [torch.randn(shape, generator=generator) for generator in self.generators]
        return torch.cat(drawn).reshape(like.shape).to(like)


def _copied(tree: Any) -> Any:
    """Arguments with tensors of their own, for a pipeline may write into those it passed."""
    if isinstance(tree, Tensor):
        return tree.clone()
    if type(tree) in (tuple, list):
        return type(tree)(_copied(item) for item in tree)
    return {key: _copied(item) for key, item in tree.items()} if type(tree) is dict else tree


def twins_of(prompts: Sequence[Prompt], starts: Sequence[int]) -> list[int] | None:
    """For each row the first one of the same prompt that starts from the same seed; None where no two rows do."""
    walks = [(p.uid, p.text, id(p.media), start) for p, start in zip(prompts, starts, strict=True)]
    return None if len(set(walks)) == len(walks) else [walks.index(walk) for walk in walks]


def parting(table: StepTable | Tables) -> int:
    """The last step at which twins are equal: the first one that adds noise, or past the end where none does."""
    return min(table.stochastic, default=len(table))


def verify(record: Recorder, play: Callable[[Replay], None]) -> bool:
    """Replay every step of a fully kept recording; returns whether guidance remembers earlier steps.

    Recorded outputs answer for the denoiser, so this proves the pipeline's own code around it: at each step the
    denoiser must be given, and the scheduler must receive, bit for bit what the rollout saw; x included.

    Raises GenalignError where even a complete recording is not reproduced.
    """
    lean = _first_inexact(record, play, whole=False)
    if lean is None:
        return False
    whole = _first_inexact(record, play, whole=True)
    if whole is None:
        return True
    raise GenalignError(
        f"{type(record.stage.pipeline).__name__} cannot be replayed exactly: step {whole} of {len(record.received)}"
        " differs when its __call__ is entered again; report it with the pipeline's name"
    )


def _first_inexact(record: Recorder, play: Callable[[Replay], None], whole: bool) -> int | None:
    for i in range(len(record.received)):
        chunk = record.chunk if whole else Chunk({i: record.chunk.latents[i]})
        given: list[tuple[int, Any]] = []

        def answer(
            step: int, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any], given: list[Any] = given
        ) -> list[Tensor]:
            given.append((branch, (args, kwargs)))
            many = record.stage.denoisers.branches(args, kwargs, record.rows)
            return record.chunk.outputs[step][branch : branch + many]

        replay = Replay(record.stage, chunk, record.rows, [i], answer)
        play(replay)
        same_x = _same(replay.samples.get(i), record.chunk.state(i))
        if not (same_x and _same(given, record.arguments[i]) and _same(replay.received.get(i), record.received[i])):
            return i
    return None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
            return torch.equal(a, b)
        return torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)  # masked padding may be NaN
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and bool(a == b)


def graphs(record: Recorder, play: Callable[[Replay], None]) -> list[list[bool]]:
    """For each step, which branches the guided output leans towards, and which so keep their graph in replay.

    Noise answers for the denoiser at the step in question, so the weights (least squares) are the pipeline's
    own and do not depend on the data. The unconditional branch of guidance has weight 1 - w, of the other sign than all
    weights together, and loses its graph.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for i, outs in record.chunk.outputs.items():
        noise = [torch.randn(out.shape, generator=generator).to(out) for out in outs]

        def answer(
            step: int, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any], noise: list[Tensor] = noise
        ) -> list[Tensor]:
            return noise[branch : branch + record.stage.denoisers.branches(args, kwargs, record.rows)]

        replay = Replay(record.stage, record.chunk, record.rows, [i], answer)
        play(replay)
        found.append(_leaning(replay.received[i], noise))
    return found


def _leaning(received: Tensor, branches: Sequence[Tensor]) -> list[bool]:
    channels = received.shape[1]
    same = [x if x.numel() == received.numel() else x[:, :channels] for x in branches]  # a variance half is cut
    if len(same) == 1 or any(x.numel() != received.numel() for x in same):
        return [True] * len(same)
    columns = torch.stack([x.double().flatten() for x in same], 1).cpu()
    weights = torch.linalg.lstsq(columns, received.double().flatten()[:, None].cpu()).solution[:, 0]
    leaning = (weights * weights.sum() > 0).tolist()  # some pipelines turn the sign of all of them
    return leaning if any(leaning) else [True] * len(same)
