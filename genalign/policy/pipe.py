"""A diffusers pipeline made ready: frozen, on a scheduler of single steps, with one way of being called."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genalign.policy.attention import use_attention
from genalign.policy.call import Calls
from genalign.policy.decoding import set_decoding
from genalign.policy.denoisers import Denoise, denoiser_names
from genalign.policy.frozen import freeze, leave_off
from genalign.policy.guidance import Guidance
from genalign.policy.inputs import Inputs
from genalign.policy.recompute import recompute_blocks
from genalign.policy.residence import residence_of
from genalign.policy.schedule import (
    MAIN,
    all_only,
    check_kernel,
    is_deterministic_one_step,
    one_step,
    replaces_step,
    scheduler_names,
)
from genalign.policy.settings import Kernel, PolicySettings
from genalign.policy.tables import Tables
from genalign.policy.tape import Stage, Step
from genalign.policy.tracks import Tracks
from genalign.policy.transition import Path, StepTable, step_table
from genalign.policy.walk import is_flow, path_of
from genalign.types import GenalignError, Media, Prompt, UsageError

if TYPE_CHECKING:
    from genalign.policy.spans import Spans

Hook = AbstractContextManager[None]


class Pipe:
    """A pipeline and what is needed to run it. A DiffusionPolicy owns one; it owns the Stage that enters the pipeline's
    __call__, the Calls that make the arguments of such a run, and the Tracks that read its output.

    pipeline: with its own scheduler where plain sampling by that is the ODE, else with kernel_scheduler.
    kernel_scheduler: whose time grid the kernels walk, and kernel_schedulers: those of all that it steps with. like:
    what stands for prompts where only decoding is wanted; the last prompt that brought media, which may set the size.
    device: where it computes.

    Raises UsageError where the pipeline cannot be aligned.
    """

    def __init__(self, pipeline: Any, settings: PolicySettings, device: torch.device | None = None) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.name = type(pipeline).__name__
        names = denoiser_names(pipeline)
        self.device, residence = next(getattr(pipeline, names[0]).parameters()).device, None
        if settings.offload is not None:
            self.device = device or self.device
            residence = residence_of(pipeline, names, self.device, blocks=settings.offload == "blocks")
        self.stage = Stage(pipeline, residence)
        call = {**settings.call, **set_decoding(pipeline, settings.vae)}
        self.tracks = Tracks(pipeline, call, settings.frame_rate)
        self.inputs = Inputs(self.tracks)
        self.calls = Calls(pipeline, self.stage.denoisers.main, call, self.inputs)
        scale = self.calls.guidance_argument() if settings.sampler.guidance is not None else None
        if scale in settings.call:
            raise UsageError(f"policy.call sets {scale!r}, as policy.sampler.guidance does; leave one of them out")
        self.like = Prompt("-")
        self.blends = False  # whether the pipeline changes latents after its steps; known once there was a rollout
        self.spans: Spans | None = None  # see spans.spans_of
        self.unit = 1.0  # std of the noise that the pipeline starts from; known once it was entered
        self.left_off = leave_off(pipeline)
        self.kernel_schedulers = {name: one_step(getattr(pipeline, name)) for name in scheduler_names(pipeline)}
        for name, kernel in self.kernel_schedulers.items():
            own = getattr(pipeline, name)
            check_kernel(kernel, settings.sampler)
            if not is_deterministic_one_step(own):
                if replaces_step(own):
                    warnings.warn(
                        f"{self.name} is sampled by single ODE steps at the times of its {type(own).__name__}, whose"
                        " own steps have no transition density",
                        stacklevel=3,
                    )
                setattr(pipeline, name, kernel)
        self.plain_schedulers = {name: getattr(pipeline, name) for name in self.kernel_schedulers}
        freeze(pipeline, self.device)
        pipeline.set_progress_bar_config(disable=True)
        for denoiser in self.stage.denoisers.each.values():
            use_attention(denoiser, settings.attention, self.device)
            if settings.gradient_checkpointing:
                recompute_blocks(denoiser)
        sampler = settings.sampler
        self.calls([self.like], [0], sampler.guidance, sampler.steps, sampler.sigmas)  # a wrong argument fails here
        self._looked = False
        self._last = self.like  # the first prompt of the last call: probes with it encode no text of their own
        self._starts: dict[int, int] = {}
        self.guidance = Guidance(self.name, self.stage, self.calls, sampler.steps, lambda: self._last)

    def call(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> dict[str, Any]:
        """Arguments of the pipeline's __call__; None: guidance and steps of the sampler. Guidance 1 is none."""
        self._look(prompts[0])
        known = prompts[0] if self.like.media is None else self.like  # a text that is encoded anyway
        self.like = next((prompt for prompt in reversed(prompts) if prompt.media is not None), known)
        self._last = prompts[0]
        sampler = self.settings.sampler
        scale = sampler.guidance if guidance is None else guidance
        if scale is not None and self.calls.scaled:
            scale = self.guidance.scale(scale)
        self._check_steps(steps or sampler.steps)
        return self.calls(prompts, seeds, scale, steps or sampler.steps, None if steps else sampler.sigmas)

    def _check_steps(self, steps: int) -> None:
        config = self.pipeline.scheduler.config
        most = config.get("num_train_timesteps", steps)
        if config.get("timestep_spacing") == "leading":
            most -= config.get("steps_offset", 0)  # its first time would be one beyond the last
        if not is_flow(self.pipeline.scheduler) and steps > most:
            raise UsageError(f"{steps} steps are more than the {most} that {self.name} can take; take fewer")

    def unguided(self, prompts: Sequence[Prompt], seeds: Sequence[int], steps: int) -> dict[str, Any]:
        """The same, for the conditional branch alone; a model that reads the scale goes on reading the sampler's."""
        return {**self.call(prompts, seeds, 1.0 if self.calls.scaled else None, steps), **self.guidance.alone}

    def draw(self, call: Mapping[str, Any], denoise: Denoise | None, step: Step | None, *hooks: Hook) -> Media:
        """What a run of the pipeline makes."""
        with self.tracks.watched():
            return self.tracks(self.stage.run(call, denoise, step, *hooks))

    def entry(self, steps: int | None = None) -> int:
        """How many of the grid's times the pipeline leaves out, at `steps` or else the sampler's: image-to-image starts
        where its picture is noised to."""
        sampler = self.settings.sampler
        many = steps or sampler.steps
        if many not in self._starts:
            before = self.stage.denoisers.calls
            with self.on_kernel():
                call = self.calls([self._last], [0], sampler.guidance, many, None if steps else sampler.sigmas)
                self._starts[many], first = self.stage.start(call)
            self.stage.denoisers.calls = before  # a probe is not what anything costs
            if self._starts[many] == 0:
                self.unit = _unit(first, getattr(self.kernel_scheduler, "init_noise_sigma", 1.0))
        return self._starts[many]

    @property
    def kernel_scheduler(self) -> Any:
        return self.kernel_schedulers[MAIN]

    def table(self, entry: int, kernel: Kernel, noise: float, block: int = 1) -> StepTable | Tables:
        """The steps that the pipeline takes from `entry` on, once its schedulers know their times; of each part its
        own, where a scheduler of its own steps it."""
        paths = {name: path_of(getattr(self.pipeline, name)) for name in dict.fromkeys(self.stage.steppers)}
        placed = {name: self.placed(path, entry) for name, path in paths.items()}
        tables = {name: step_table(path, kernel, noise, block) for name, path in placed.items()}
        if len(tables) == 1:
            return next(iter(tables.values()))
        return Tables.of([tables[name] for name in self.stage.steppers], self.stage.parts)

    def placed(self, path: Path, entry: int) -> Path:
        """A path as the pipeline walks it: from where it enters, with noise of its size."""
        return replace(path.from_step(entry), unit=self.unit)

    def at_one_time(
        self, pick: Callable[[int], int], times: int, seen: Callable[[Path, int], None], steps: int | None = None
    ) -> Hook:
        """A hook with which a run of `steps` (None: the sampler's) walks one time of its grid, `times` over. pick:
        number of steps -> which one; seen: called with the path and that step."""
        entry = self.entry(steps)

        def look(path: Path, step: int) -> None:
            seen(self.placed(path, 0), step)

        return all_only(self.kernel_schedulers, pick, times + entry, look)

    def parts(self, rows: int) -> list[slice]:
        """The rows of each micro-batch."""
        size = self.settings.batch_size
        return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]

    def parts_of(self, prompts: Sequence[Prompt]) -> list[slice]:
        """The same for rows of these prompts; each of one picture, where the pipeline draws a batch from one."""
        if not self.draws_from_one_picture(prompts):
            return self.parts(len(prompts))
        parts, at = [], 0
        for row in range(1, len(prompts) + 1):
            whole = row == len(prompts) or row - at == self.settings.batch_size
            if whole or prompts[row].media is not prompts[at].media:
                parts.append(slice(at, row))
                at = row
        return parts

    def draws_from_one_picture(self, prompts: Sequence[Prompt]) -> bool:
        """Whether rows of several pictures need a call each."""
        self._look(prompts[0])
        return self.inputs.bare

    def on_kernel(self) -> Hook:
        """Within the context the pipeline holds the kernels' schedulers."""
        return self._on(self.kernel_schedulers)

    def on_plain(self) -> Hook:
        """Within the context the pipeline holds the schedulers that generate() samples by, also inside of on_kernel."""
        return self._on(self.plain_schedulers)

    @contextmanager
    def _on(self, schedulers: Mapping[str, Any]) -> Iterator[None]:
        before = {name: getattr(self.pipeline, name) for name in schedulers}
        for name, scheduler in schedulers.items():
            setattr(self.pipeline, name, scheduler)
        try:
            yield
        finally:
            for name, scheduler in before.items():
                setattr(self.pipeline, name, scheduler)

    def take_for_size(self, sample: Tensor) -> None:
        """Let this sample stand for the media of prompts, where none was seen and the pipeline needs one."""
        try:
            self._look(self.like)
        except UsageError:
            if not self.inputs.reads:
                raise
            self.like = Prompt("-", media=self.inputs.as_input(sample))

    def _look(self, prompt: Prompt) -> None:
        """Before the first call: where the denoiser has its rows, and whether the pipeline runs at all."""
        if self._looked:
            return
        alone = self.settings.batch_size == 1 and prompt.media is not None
        # A pipeline that mixes the images of several rows is right with one row.
        error = self._trial(prompt, (1,) if alone else (1, 2))
        if error is not None and prompt.media is not None:  # some take one picture, and no list of them
            self.inputs.bare = True
            error = self._trial(prompt, (1,) if alone else (1, 2)) and error
        missed = [part for part in self.left_off if part.replace("_", " ") in str(error)]
        if missed:
            raise UsageError(
                f"{self.name} does not run without its {missed[0]}, which changes samples behind the decoder and lets"
                " no gradients through"
            ) from error
        if error is not None:
            reads = self.inputs.reads if prompt.media is None else ""
            raise UsageError(
                f"{self.name} does not run with {type(self.pipeline.scheduler).__name__} and policy.call"
                f" {self.settings.call}{f', or not without {reads} beside the text' if reads else ''}: {error}"
            ) from error
        self._looked = True

    def _trial(self, prompt: Prompt, counts: Sequence[int]) -> Exception | None:
        """Whatever the pipeline runs into before its denoiser, with so many rows."""
        sampler = self.settings.sampler
        try:
            self.stage.learn_batching(
                [self.calls([prompt] * n, [0] * n, sampler.guidance, sampler.steps) for n in counts]
            )
        except GenalignError:
            raise
        except Exception as error:
            return error
        return None


def _unit(first: Tensor, scale: float) -> float:
    """The std that the noise of seed 0 was given, on the way to the first latents (1,*L); 1 where they are not it.

    Pipelines move the elements about, so they are compared in order of their size.
    """
    noise = torch.randn(first.numel(), generator=torch.Generator().manual_seed(0), dtype=first.dtype).double()
    drawn = first.detach().cpu().double().flatten() / float(scale)
    unit = float(drawn.norm() / noise.norm())
    same = torch.allclose(drawn.sort().values, unit * noise.sort().values, rtol=1e-2, atol=1e-2 * unit)
    return round(unit, 3) if same else 1.0
