"""Any diffusers pipeline as a Policy: rollouts with known densities, and their replay with gradients."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genalign.policy.adapter import Adapter
from genalign.policy.archive import index_rows, load_rows, save_rows, settings_digest, weights_digest
from genalign.policy.attention import use_attention
from genalign.policy.record import Recorder, graphs, verify
from genalign.policy.schedule import check_kernel, is_deterministic_one_step, one_step, path_of, windowed
from genalign.policy.settings import PolicySettings
from genalign.policy.tape import Chunk, Replay, Stage, gather
from genalign.transition import StepTable, step_table
from genalign.types import GenalignError, Media, Prompt, Steps, Track, Trajectory, UsageError, Weights, sample_seed


@dataclass(frozen=True)
class Tape:
    """What replay needs: the rollout's table, which step each column of logp is, and the latents by micro-batch."""

    table: StepTable
    steps: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class DiffusionPolicy:
    """A text-to-image pipeline whose transformer or unet carries a trained LoRA.

    Latents, means, log-densities and KL are computed in at least float32; x' is rounded to the dtype the pipeline keeps
    latents in before it is scored. Every row draws from its own CPU generator, so neither batch nor world size changes
    what is drawn. Guidance branches with a negative share in the guided output (the unconditional one) are replayed
    without a graph, as Flow-GRPO does. pipeline, denoiser and settings are public; nothing is wrapped.

    Raises UsageError where the pipeline cannot be aligned; GenalignError at the first rollout where it cannot be
    replayed exactly.
    """

    def __init__(self, pipeline: Any, settings: PolicySettings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.modalities = _modalities(pipeline)
        self._kernel_scheduler = one_step(pipeline.scheduler)
        check_kernel(self._kernel_scheduler, settings.sampler)
        if not is_deterministic_one_step(pipeline.scheduler):
            pipeline.scheduler = self._kernel_scheduler
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        pipeline.set_progress_bar_config(disable=True)
        self._stage = Stage(pipeline)
        self.denoiser = self._stage.denoiser
        self.device = next(self.denoiser.parameters()).device
        use_attention(self.denoiser, settings.attention)
        self._adapter = Adapter(self.denoiser, settings.lora)
        self._parameters = inspect.signature(type(pipeline).__call__).parameters
        self._call(["-"], [0], settings.sampler.guidance, settings.sampler.steps)  # an unknown argument fails here
        self._graph: list[list[bool]] | None = None  # per step, which branches keep a graph; known after verification
        self._remembers = False

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        rows = [prompt for prompt in prompts for _ in range(per_prompt)]
        if isinstance(seed, int):
            seeds = [sample_seed(seed, prompt.uid, k) for prompt in prompts for k in range(per_prompt)]
            window_seed = seed
        else:
            seeds = list(seed)
            window_seed = 0  # where a window is drawn, it must not hang on which rows are drawn together
        if len(seeds) != len(rows):
            raise UsageError(f"{len(seeds)} seeds for {len(rows)} rows; give one seed a row")
        chunks: list[Chunk] = []
        logps: list[Tensor] = []
        media: list[Media] = []
        table: StepTable | None = None
        with self._scheduler():
            for at in range(0, len(rows), self.settings.batch_size):
                texts = _texts(rows[at : at + self.settings.batch_size])
                record, made = self._record(texts, seeds[at : at + len(texts)], window_seed, table)
                table = record.table
                chunks.append(record.chunk)
                logps.append(torch.stack(record.logp, 1) if record.logp else torch.zeros(len(texts), 0))
                media.append(made)
        if table is None:
            raise UsageError("a rollout needs at least one prompt and one sample of it")
        logp = torch.cat(logps)  # (B, S)
        return Trajectory(
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
        self, texts: list[str], seeds: Sequence[int], window_seed: int, table: StepTable | None
    ) -> tuple[Recorder, Media]:
        sampler = self.settings.sampler

        def make_table() -> StepTable:
            if table is not None:
                return table
            whole = step_table(path_of(self.pipeline.scheduler), sampler.kernel, sampler.noise)
            return windowed(whole, sampler, window_seed)

        def call() -> dict[str, Any]:
            return self._call(texts, seeds, sampler.guidance, sampler.steps)

        first = self._graph is None
        if first:
            one = (texts[:1], list(seeds[:1]))
            calls = [self._call(one[0] * n, one[1] * n, sampler.guidance, sampler.steps) for n in (1, 2)]
            self._stage.learn_batching(calls)
        started = call()
        record = Recorder(self._stage, started["generator"], make_table, keep=first or self._remembers)
        made = _media(self._stage.run(started, record.denoise, record.step))
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
            count=chunk.latents[wanted[0]][0].numel(),
            mask=trajectory.mask[list(rows)][:, columns],
            versus_score=torch.stack(versus_score, 1) if versus else None,
            kl=torch.stack(kl, 1) if versus else None,
            gap=torch.stack(gap, 1) if versus else None,
        )

    def _guided(
        self, trajectory: Trajectory, rows: Sequence[int], chunk: Chunk, wanted: Sequence[int]
    ) -> dict[int, Tensor]:
        """The guided outputs of the wanted steps under the present weights."""
        sampler, graph = self.settings.sampler, self._graph
        if graph is None:
            raise GenalignError("replay before any rollout of this policy; roll out once first")
        texts = _texts([trajectory.prompts[row] for row in rows])

        def answer(step: int, branch: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
            return self._stage.answer(args, kwargs, len(rows), graph[step][branch:])

        play = Replay(self._stage, chunk, len(rows), wanted, answer)
        call = self._call(texts, [trajectory.seeds[row] for row in rows], sampler.guidance, sampler.steps)
        with self._scheduler():
            self._stage.run(call, play.denoise, play.step)
        return play.received

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
        sampler, size = self.settings.sampler, self.settings.batch_size
        made = []
        for at in range(0, len(prompts), size):
            call = self._call(
                _texts(prompts[at : at + size]),
                seeds[at : at + size],
                sampler.guidance if guidance is None else guidance,
                steps or sampler.steps,
            )
            made.append(_media(self._stage.run(call, lambda args, kwargs: self._stage.count(args, kwargs), None)))
        return Media.cat(made)

    def _call(self, texts: list[str], seeds: Sequence[int], guidance: float | None, steps: int) -> dict[str, Any]:
        """Arguments of the pipeline's __call__; text given once stands for every row."""
        call = dict(self.settings.call)
        if guidance is not None:
            name = self._guidance_argument()
            call[name] = guidance
            if name == "true_cfg_scale" and guidance > 1:
                call.setdefault("negative_prompt", " ")
        for name, value in call.items():
            if name not in self._parameters:
                raise UsageError(f"policy.call: {type(self.pipeline).__name__} takes no argument {name!r}")
            if isinstance(value, str) and name.startswith(("negative_prompt", "prompt")):
                call[name] = [value] * len(texts)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return {**call, "prompt": texts, "generator": generators, "num_inference_steps": steps, "output_type": "pt"}

    def _guidance_argument(self) -> str:
        """Where the pipeline takes its scale: a model with embedded guidance reads guidance_scale as an input."""
        embedded = bool(self.denoiser.config.get("guidance_embeds"))
        names = ("guidance_scale", "true_cfg_scale") if embedded else ("true_cfg_scale", "guidance_scale")
        for name in names:
            if name in self._parameters:
                return name
        raise UsageError(f"{type(self.pipeline).__name__} takes no guidance scale; leave policy.sampler.guidance out")

    @contextmanager
    def _scheduler(self) -> Iterator[None]:
        plain, self.pipeline.scheduler = self.pipeline.scheduler, self._kernel_scheduler
        try:
            yield
        finally:
            self.pipeline.scheduler = plain

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
        tape: Tape = trajectory.tape
        labels = [[prompt.text, seed] for prompt, seed in zip(trajectory.prompts, trajectory.seeds, strict=True)]
        save_rows(path, tape.table, tape.steps, Chunk.cat(tape.chunks), trajectory.logp, labels)

    def recall(self, folder: Path, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Trajectory:
        """The stored rows of these prompts and seeds, in this order; without media.

        Raises UsageError where `folder` lacks one of them.
        """
        if self._graph is None:
            self.rollout(prompts[:1], 1, seeds[:1])  # proves that this pipeline can be replayed
        index = index_rows(folder)
        missing = [pair for pair in zip(_texts(prompts), seeds, strict=True) if pair not in index]
        if missing:
            raise UsageError(f"{folder} has no trajectory of seed {missing[0][1]} for prompt {missing[0][0]!r}")
        table, steps, rows, logp = load_rows([index[pair] for pair in zip(_texts(prompts), seeds, strict=True)])
        size = self.settings.batch_size
        chunks = [rows.select(list(range(at, min(at + size, len(seeds))))) for at in range(0, len(seeds), size)]
        return Trajectory(
            prompts=tuple(prompts),
            media=Media(),
            group=torch.tensor([prompt.uid for prompt in prompts]),
            logp=logp,
            mask=torch.ones_like(logp, dtype=torch.bool),
            seeds=tuple(seeds),
            rows_together=size,
            steps_together=1,
            tape=Tape(table, steps, tuple(chunks)),
        )


def load_diffusion(settings: PolicySettings, folder: Path, device: str) -> DiffusionPolicy:
    """The pipeline in a folder; only safetensors and only local files are read.

    Raises UsageError where diffusers cannot read it.
    """
    from diffusers import DiffusionPipeline

    try:
        index = json.loads((folder / "model_index.json").read_text())
        absent = {name: None for name, kind in index.items() if kind == [None, None]}  # diffusers wants these said
        pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=getattr(torch, settings.dtype), local_files_only=True, use_safetensors=True, **absent
        )
    except Exception as error:  # diffusers raises whatever the first broken file raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"the pipeline in {folder} cannot be loaded: {reason}") from error
    return DiffusionPolicy(pipeline.to(device), settings)


def _texts(prompts: Sequence[Prompt]) -> list[str]:
    for prompt in prompts:
        if prompt.media is not None:
            raise UsageError(f"prompt {prompt.uid} brings media, but this policy is given text only")
    return [prompt.text for prompt in prompts]


def _modalities(pipeline: Any) -> frozenset[str]:
    if hasattr(pipeline, "video_processor") or not hasattr(pipeline, "image_processor"):
        raise UsageError(f"{type(pipeline).__name__} does not make images, which is all this policy knows yet")
    return frozenset({"image"})


def _media(output: Any) -> Media:
    return Media(image=Track(output.images.float().clamp(0, 1)))
