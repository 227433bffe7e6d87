"""Rollouts of a pipeline by the sampler's kernel, and their replay with gradients under other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from genalign.clock import spent
from genalign.policy.agreement import check_agreement
from genalign.policy.chunk import Chunk, features, gather
from genalign.policy.pathwise import shows_its_input
from genalign.policy.pipe import Pipe
from genalign.policy.record import Recorder, Tape, graphs, parting, twins_of, verify
from genalign.policy.replay import Replay
from genalign.policy.schedule import windowed
from genalign.policy.spans import Spans, spans_of
from genalign.policy.tables import Tables
from genalign.policy.transition import StepTable
from genalign.types import (
    GenalignError,
    Media,
    Prompt,
    Steps,
    Trajectory,
    UsageError,
    Weights,
    family_seed,
    sample_seed,
    sibling_seed,
)


class Rollouts:
    """What a DiffusionPolicy samples with known densities and scores again. weights: its own context of that name.

    graph: per step, which branches keep a graph in replay; None until the first micro-batch has proved that the
    pipeline can be replayed. remembers: whether its guidance reads earlier steps, so that every output is kept.
    """

    def __init__(self, pipe: Pipe, weights: Callable[[Weights], AbstractContextManager[None]]) -> None:
        self.pipe, self.stage, self.settings, self.weights = pipe, pipe.stage, pipe.settings, weights
        self.graph: list[list[bool]] | None = None
        self.remembers = False

    def row_seeds(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> list[int]:
        """The seed of each row of a rollout; with sampler.shared_start, siblings' have their start in common."""
        if not isinstance(seed, int):
            return list(seed)
        name = sibling_seed if self.settings.sampler.shared_start else sample_seed
        return [name(seed, prompt.uid, k) for prompt in prompts for k in range(per_prompt)]

    @torch.no_grad()
    def rolling(
        self, rows: Sequence[Prompt], seeds: Sequence[int], seed: int | Sequence[int]
    ) -> Iterator[tuple[list[Prompt], Media, Tensor] | Trajectory]:
        """Prompts, media and group of each micro-batch as it is sampled, and last the trajectory of all. Until they are
        scored videos wait as levels on the CPU.

        seed: the rollout's, as the rows' `seeds` were made from.
        """
        # A window must not depend on which rows are sampled together, so seeds a row do not choose it.
        window_seed = seed if isinstance(seed, int) else 0
        if len(seeds) != len(rows):
            raise UsageError(f"{len(seeds)} seeds for {len(rows)} rows; give one seed a row")
        chunks: list[Chunk] = []
        logps: list[Tensor] = []
        media: list[Media] = []
        table: StepTable | Tables | None = None
        with self.pipe.on_kernel():
            for part in self.pipe.parts(len(rows)):
                record, made = self._record(rows[part], seeds[part], window_seed, table)
                made, table = made.compact(), record.table
                chunks.append(record.chunk)
                logps.append(torch.stack(record.logp, 1) if record.logp else torch.zeros(len(rows[part]), 0))
                media.append(made)
                yield list(rows[part]), made, torch.tensor([prompt.uid for prompt in rows[part]])
        if table is None:
            raise UsageError("a rollout needs at least one prompt and one sample of it")
        logp = torch.cat(logps)  # (B, S)
        yield Trajectory(
            prompts=tuple(rows),
            media=Media.cat(media),
            group=torch.tensor([prompt.uid for prompt in rows]),
            logp=logp,
            mask=torch.ones_like(logp, dtype=torch.bool),
            seeds=tuple(seeds),
            rows_together=self.settings.batch_size,
            steps_together=max(1, len(self.about)),
            about=self.about,
            tape=Tape(table, self._columns(table), tuple(chunks)),
        )

    @property
    def about(self) -> tuple[str, ...]:
        """What each of a step's columns is about; () before the first rollout, and where a step has one column."""
        return () if self.pipe.spans is None else self.pipe.spans.media

    def _columns(self, table: StepTable | Tables) -> tuple[int, ...]:
        """The step of each column of logp."""
        return tuple(i for i in table.stochastic for _ in self.about or ("all",))

    def _record(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], window_seed: int, table: StepTable | Tables | None
    ) -> tuple[Recorder, Media]:
        sampler = self.settings.sampler

        def make_table() -> StepTable | Tables:
            if table is not None:
                return table
            whole = self.pipe.table(entry, sampler.kernel, sampler.noise, sampler.noise_block)
            return windowed(whole, sampler, window_seed)

        def call() -> dict[str, Any]:
            return self.pipe.call(prompts, self._starts(seeds))

        first = self.graph is None
        started = call()
        entry = self.pipe.entry() if table is None else 0  # before the run: it is a run of its own
        # Siblings that share their start draw the kernel's noise from seeds of their own, every other row goes on with
        # the generator of its initial noise.
        explorers = [torch.Generator().manual_seed(seed) for seed in seeds]
        generators = explorers if sampler.shared_start else started["generator"]
        twins = twins_of(prompts, self._starts(seeds))
        record = Recorder(self.stage, generators, make_table, spans_of(self.pipe), first or self.remembers, twins)
        with spent("sample"):  # and, from its last step on, decode
            made = self.pipe.draw(started, record.denoise, record.step)
        if first:

            def play(replay: Replay) -> None:
                self.stage.run(call(), replay.denoise, replay.step)

            self.remembers = verify(record, play)
            self.pipe.blends = bool(record.chunk.before) or shows_its_input(self.pipe, prompts[0], record.chunk.clean)
            check_agreement(self.pipe, prompts[0], seeds[0])
            self.graph = graphs(record, play)
            if not self.remembers:
                record.forget()
        return record, made

    def replay(
        self, trajectory: Trajectory, rows: Sequence[int], steps: Sequence[int] | None, versus: Weights | None
    ) -> Steps:
        """Recorded steps scored under the present weights, with grad; versus: without grad under those as well."""
        tape: Tape = trajectory.tape
        columns = list(range(len(tape.steps)) if steps is None else steps)
        wanted = list(dict.fromkeys(tape.steps[column] for column in columns))
        chunk = gather(tape.chunks, rows, trajectory.rows_together)
        others: dict[int, Tensor] = {}
        if versus is not None:  # first, so that nothing of it is alive beside the graph
            with torch.no_grad(), self.weights(versus):
                others = self._guided(trajectory, rows, chunk, wanted)
        outs = self._guided(trajectory, rows, chunk, wanted)
        spans = spans_of(self.pipe)
        latents, tables = spans.split(chunk.latents[wanted[0]]), spans.tables(tape.table)
        counts = [table.scored(part[0]) for table, part in zip(tables, latents, strict=True)]
        found = [scored(tape.table, spans, chunk, i, outs[i], others.get(i)) for i in wanted]
        chosen = [wanted.index(tape.steps[column]) * len(counts) + column % len(counts) for column in columns]
        several = torch.tensor([counts[k % len(counts)] for k in chosen], device=trajectory.mask.device)
        joined: dict[str, Any] = {name: torch.cat([one[name] for one in found], 1)[:, chosen] for name in found[0]}
        mask = trajectory.mask[list(rows)][:, columns]
        return Steps(mask=mask, count=counts[0] if len(counts) == 1 else several, **joined)

    def _guided(
        self, trajectory: Trajectory, rows: Sequence[int], chunk: Chunk, wanted: Sequence[int]
    ) -> dict[int, Tensor]:
        """The guided outputs of the wanted steps under the present weights."""
        graph = self.graph
        if graph is None:
            raise GenalignError("replay before any rollout of this policy; roll out once first")

        prompts = [trajectory.prompts[row] for row in rows]
        starts = self._starts([trajectory.seeds[row] for row in rows])
        twins, last = twins_of(prompts, starts), parting(trajectory.tape.table)

        def answer(step: int, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
            equal = twins if step <= last else None
            return self.stage.denoisers.answer(args, kwargs, len(rows), graph[step][branch:], equal)

        play = Replay(self.stage, chunk, len(rows), wanted, answer)
        with self.pipe.on_kernel():
            self.stage.run(self.pipe.call(prompts, starts), play.denoise, play.step)
        return play.received

    def _starts(self, seeds: Sequence[int]) -> Sequence[int]:
        """The seeds of what the pipeline draws itself: the initial noise."""
        return [family_seed(seed) for seed in seeds] if self.settings.sampler.shared_start else seeds


def scored(
    table: StepTable | Tables, spans: Spans, chunk: Chunk, i: int, out: Tensor, other: Tensor | None
) -> dict[str, Tensor]:
    """What replay yields of step i, by its name in Steps, (R,M) with a column for each medium. out, other: the guided
    outputs (R,*L) under the present weights and under those that they are compared with."""
    x, x_next, tables = chunk.state(i), spans.split(chunk.latents[i + 1]), spans.tables(table)
    mean = table.mean(i, x, out)
    means = spans.split(mean)
    found = {
        "score": [own.logp(i, *pair) for own, *pair in zip(tables, x_next, means, strict=True)],
        "features": [features(x)] * len(means),
    }
    if other is not None:
        others = spans.split(table.mean(i, x, other))
        found["versus_score"] = [own.logp(i, *pair) for own, *pair in zip(tables, x_next, others, strict=True)]
        found["kl"] = [own.kl(i, *pair) for own, *pair in zip(tables, means, others, strict=True)]
        found["gap"] = [apart.float().square().flatten(1).sum(1) for apart in spans.split(out - other)]
    return {name: torch.stack(columns, 1) for name, columns in found.items()}
