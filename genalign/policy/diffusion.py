"""Any diffusers pipeline as a Policy: rollouts with known densities, and their replay with gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genalign.policy import forward, pathwise, retake
from genalign.policy.adapter import Adapter
from genalign.policy.archive import recalled, save_trajectory, settings_digest, weights_digest
from genalign.policy.chunk import Chunk, features, gather
from genalign.policy.layout import Encoder
from genalign.policy.pipe import Pipe
from genalign.policy.record import Recorder, Tape, graphs, parting, twins_of, verify
from genalign.policy.schedule import path_of, windowed
from genalign.policy.settings import PolicySettings
from genalign.policy.tape import Replay
from genalign.policy.transition import StepTable, step_table
from genalign.policy.twin import twin
from genalign.types import (
    GenalignError,
    Guide,
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


class DiffusionPolicy:
    """A pipeline that draws images from text, or from text and an image, and whose denoiser carries a trained LoRA.

    Latents, means, log-densities and KL are computed in at least float32; x' is rounded to the dtype the pipeline keeps
    latents in before it is scored. Every row draws from its own CPU generator, so neither batch nor world size changes
    what is drawn. Guidance branches with a negative share in the guided output (the unconditional one) are replayed
    without a graph, as Flow-GRPO does. pipeline, denoiser and settings are public; nothing is wrapped.

    Raises UsageError where the pipeline cannot be aligned; GenalignError at the first rollout where it cannot be
    replayed exactly.
    """

    def __init__(self, pipeline: Any, settings: PolicySettings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.modalities = frozenset({"image"})
        self._pipe = Pipe(pipeline, settings)
        self._stage = self._pipe.stage
        self.denoiser = self._stage.denoiser
        self.device = next(self.denoiser.parameters()).device
        self._adapter = Adapter(self.denoiser, settings.lora)
        self._encoder = Encoder(self._pipe)
        self._graph: list[list[bool]] | None = None  # per step, which branches keep a graph; known after verification
        self._remembers = False

    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        *_, trajectory = self.rolling(prompts, per_prompt, seed)
        assert isinstance(trajectory, Trajectory)
        return trajectory

    def rolling(
        self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]
    ) -> Iterator[tuple[list[Prompt], Media, Tensor] | Trajectory]:
        """A rollout as it comes about: prompts, media and group of each micro-batch, and last the trajectory of all.

        What is yielded early may be scored while the rest is sampled.
        """
        rows = [prompt for prompt in prompts for _ in range(per_prompt)]
        yield from self._rolling(rows, self.row_seeds(prompts, per_prompt, seed), seed)

    def row_seeds(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> list[int]:
        """The seed of each row of a rollout; with sampler.shared_start, siblings' have their start in common."""
        if not isinstance(seed, int):
            return list(seed)
        name = sibling_seed if self.settings.sampler.shared_start else sample_seed
        return [name(seed, prompt.uid, k) for prompt in prompts for k in range(per_prompt)]

    def rollout_rows(self, rows: Sequence[Prompt], seeds: Sequence[int], seed: int | Sequence[int]) -> Trajectory:
        """The rollout of rows that have a prompt and a seed each; `seed` is the rollout's, as they were made from."""
        *_, trajectory = self._rolling(rows, seeds, seed)
        assert isinstance(trajectory, Trajectory)
        return trajectory

    def check_prompt(self, prompt: Prompt) -> None:
        """Refuse a prompt whose media the pipeline cannot take."""
        self._pipe.calls._pictures([prompt])

    @torch.no_grad()
    def _rolling(
        self, rows: Sequence[Prompt], seeds: Sequence[int], seed: int | Sequence[int]
    ) -> Iterator[tuple[list[Prompt], Media, Tensor] | Trajectory]:
        # Where a window is drawn from seeds a row, it must not hang on which rows are drawn together.
        window_seed = seed if isinstance(seed, int) else 0
        if len(seeds) != len(rows):
            raise UsageError(f"{len(seeds)} seeds for {len(rows)} rows; give one seed a row")
        chunks: list[Chunk] = []
        logps: list[Tensor] = []
        media: list[Media] = []
        table: StepTable | None = None
        with self._pipe.on_kernel():
            for part in self._pipe.parts(len(rows)):
                record, made = self._record(rows[part], seeds[part], window_seed, table)
                table = record.table
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
            steps_together=1,
            tape=Tape(table, tuple(table.stochastic), tuple(chunks)),
        )

    def _record(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], window_seed: int, table: StepTable | None
    ) -> tuple[Recorder, Media]:
        sampler = self.settings.sampler

        def make_table() -> StepTable:
            if table is not None:
                return table
            whole = step_table(path_of(self.pipeline.scheduler), sampler.kernel, sampler.noise, sampler.noise_block)
            return windowed(whole, sampler, window_seed)

        def call() -> dict[str, Any]:
            return self._pipe.call(prompts, self._starts(seeds))

        first = self._graph is None
        started = call()
        explorers = [torch.Generator().manual_seed(seed) for seed in seeds]
        generators = explorers if sampler.shared_start else started["generator"]
        twins = twins_of(prompts, self._starts(seeds))
        record = Recorder(self._stage, generators, make_table, first or self._remembers, twins)
        made = pathwise.images_of(self._stage.run(started, record.denoise, record.step))
        if first:

            def play(replay: Replay) -> None:
                self._stage.run(call(), replay.denoise, replay.step)

            self._remembers = verify(record, play)
            self._graph = graphs(record, play)
            if not self._remembers:
                record.forget()
        return record, made

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        tape: Tape = trajectory.tape
        columns = list(range(len(tape.steps)) if steps is None else steps)
        wanted = [tape.steps[column] for column in columns]
        chunk = gather(tape.chunks, rows, trajectory.rows_together)
        others: dict[int, Tensor] = {}
        if versus is not None:  # first, so that nothing of it is alive beside the graph
            with torch.no_grad(), self.weights(versus):
                others = self._guided(trajectory, rows, chunk, wanted)
        outs = self._guided(trajectory, rows, chunk, wanted)
        score, versus_score, kl, gap = [], [], [], []
        for i in wanted:
            x, x_next = chunk.latents[i], chunk.latents[i + 1]
            mean = tape.table.mean(i, x, outs[i])
            score.append(tape.table.logp(i, x_next, mean))
            if versus is not None:
                other = tape.table.mean(i, x, others[i])
                versus_score.append(tape.table.logp(i, x_next, other))
                kl.append(tape.table.kl(i, mean, other))
                gap.append((outs[i] - others[i]).float().square().flatten(1).sum(1))
        return Steps(
            score=torch.stack(score, 1),
            count=tape.table.scored(chunk.latents[wanted[0]][0]),
            mask=trajectory.mask[list(rows)][:, columns],
            versus_score=torch.stack(versus_score, 1) if versus else None,
            kl=torch.stack(kl, 1) if versus else None,
            gap=torch.stack(gap, 1) if versus else None,
            features=torch.stack([features(chunk.latents[i]) for i in wanted], 1),
        )

    def _guided(
        self, trajectory: Trajectory, rows: Sequence[int], chunk: Chunk, wanted: Sequence[int]
    ) -> dict[int, Tensor]:
        """The guided outputs of the wanted steps under the present weights."""
        graph = self._graph
        if graph is None:
            raise GenalignError("replay before any rollout of this policy; roll out once first")

        prompts = [trajectory.prompts[row] for row in rows]
        starts = self._starts([trajectory.seeds[row] for row in rows])
        twins, last = twins_of(prompts, starts), parting(trajectory.tape.table)

        def answer(step: int, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
            equal = twins if step <= last else None
            return self._stage.answer(args, kwargs, len(rows), graph[step][branch:], equal)

        play = Replay(self._stage, chunk, len(rows), wanted, answer)
        with self._pipe.on_kernel():
            self._stage.run(self._pipe.call(prompts, starts), play.denoise, play.step)
        return play.received

    def _starts(self, seeds: Sequence[int]) -> Sequence[int]:
        """The seeds of what the pipeline draws itself: the initial noise."""
        return [family_seed(seed) for seed in seeds] if self.settings.sampler.shared_start else seeds

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int | None = None,
    ) -> Media:
        """The same image as plain diffusers draws from `torch.Generator().manual_seed(seed)`.

        With the pipeline's own scheduler where that is a deterministic one-step one, else with the Euler or DDIM step
        on its schedule. None: guidance and steps of the sampler.
        """
        if len(seeds) != len(prompts) or not prompts:
            raise UsageError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed a prompt, and at least one")
        made = []
        for part in self._pipe.parts(len(prompts)):
            call = self._pipe.call(prompts[part], seeds[part], guidance, steps)
            made.append(pathwise.images_of(self._stage.run(call, self._stage.count, None)))
        return Media.cat(made)

    def encode(self, media: Media) -> Tensor:
        """Images of another size are resized to the one that is drawn."""
        return self._encoder(media)

    def clean(self, trajectory: Trajectory) -> Tensor:
        """Raises UsageError where the trajectory was stored without its last latents."""
        tape: Tape = trajectory.tape
        return tape.clean()

    def fit(
        self, prompts: Sequence[Prompt], clean: Tensor, at: float, seeds: Sequence[int], versus: Weights | None = None
    ) -> Steps:
        """The fine grid is the pipeline's own of 50 steps; the conditional branch alone is asked."""
        return forward.fit(self._pipe, self.weights, prompts, clean, at, seeds, versus)

    def generate_with_grad(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int] | None = None,
        *,
        noise: Tensor | None = None,
        grad_steps: int | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        guide: Guide | None = None,
        checkpoint: bool = True,
    ) -> Media:
        """Bit for bit what generate() draws; under a guide the steps are those of the kernels' ODE, whatever the
        pipeline's own scheduler."""
        hooks = pathwise.GradHooks(self._stage, grad_steps, guide, checkpoint)
        return pathwise.generate_with_grad(self._pipe, prompts, seeds, noise, guidance, steps, hooks)

    def initial_noise(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        return pathwise.initial_noise(self._pipe, prompts, seeds)

    def decode(self, clean: Tensor) -> Media:
        """A guide may ask for this in the middle of sampling."""
        self._twin.like = self._pipe.like
        return pathwise.decode(self._twin, clean)

    @cached_property
    def _twin(self) -> Pipe:
        return twin(self._pipe)

    def retake(self, prompts: Sequence[Prompt], clean: Tensor, seeds: Sequence[int]) -> Media:
        """The sampler's last step taken again with grad, from `clean` (R,*L) noised by each row's seed."""
        return retake.retake(self._pipe, prompts, clean, seeds)

    def weights(self, which: Weights) -> AbstractContextManager[None]:
        return self._adapter.weights(which)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.named_trainable().values())}]

    def named_trainable(self) -> dict[str, nn.Parameter]:
        return self._adapter.named_trainable()

    def step_ema(self, decay: float) -> None:
        self._adapter.step_ema(decay)

    def save_adapter(self, folder: Path | str) -> None:
        """peft's two files, and pytorch_lora_weights.safetensors where the pipeline class has a LoRA loader."""
        self._adapter.save(Path(folder))
        save = getattr(self.pipeline, "save_lora_weights", None)
        name = self._stage.component
        if save is None or f"{name}_lora_layers" not in inspect.signature(save).parameters:
            return
        layers = {f"{name}_lora_layers": self._adapter.state_dict()}
        save(folder, **layers, **{f"{name}_lora_adapter_metadata": self._adapter.config.to_dict()})

    def load_adapter(self, folder: Path | str) -> None:
        """Read adapter_model.safetensors of a folder that save_adapter wrote."""
        self._adapter.load(Path(folder))

    def calls(self) -> int:
        return self._stage.calls

    def digest(self) -> dict[str, str]:
        """What must be unchanged for a seed to give the same rollout: the reference weights, and how they sample."""
        s = self.settings
        return {"model": self._model_digest, "sampler": settings_digest(s.sampler.model_dump(), s.dtype, s.call)}

    @cached_property
    def _model_digest(self) -> str:
        modules = [module for module in self.pipeline.components.values() if isinstance(module, nn.Module)]
        return weights_digest(modules, self.named_trainable().values())

    def save_trajectory(self, trajectory: Trajectory, path: Path) -> None:
        """Write what replay needs of a rollout, so that `recall` brings its rows back without sampling."""
        save_trajectory(trajectory, path)

    def recall(self, folder: Path, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Trajectory:
        """The stored rows of these prompts and seeds, in this order; without media.

        Raises UsageError where `folder` lacks one of them.
        """
        if self._graph is None:
            self.rollout(prompts[:1], 1, seeds[:1])  # proves that this pipeline can be replayed
        return recalled(folder, prompts, seeds, self.settings.batch_size)
