"""A diffusers pipeline made ready: frozen, on a scheduler of single steps, with one way of being called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from genalign.policy.attention import use_attention
from genalign.policy.call import Calls
from genalign.policy.schedule import check_kernel, is_deterministic_one_step, is_flow, one_step
from genalign.policy.settings import PolicySettings
from genalign.policy.tape import Stage
from genalign.policy.tracks import Tracks
from genalign.types import GenalignError, Prompt, UsageError


class Pipe:
    """A pipeline and what is needed to run it. A DiffusionPolicy owns one; it owns the Stage that enters the pipeline's
    __call__, the Calls that make the arguments of such a run, and the Tracks that read its output.

    pipeline: with its own scheduler where plain sampling by that is the ODE, else with kernel_scheduler.
    kernel_scheduler: whose time grid the kernels walk. like: what stands for prompts where only decoding is wanted; the
    last prompt that brought an image, since that may set the size.

    Raises UsageError where the pipeline cannot be aligned.
    """

    def __init__(self, pipeline: Any, settings: PolicySettings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.name = type(pipeline).__name__
        self.stage = Stage(pipeline)
        self.tracks = Tracks(pipeline, settings.call)
        self.calls = Calls(pipeline, self.stage.denoiser, settings.call, self.tracks)
        self.like = Prompt("-")
        self.kernel_scheduler = one_step(pipeline.scheduler)
        check_kernel(self.kernel_scheduler, settings.sampler)
        if not is_deterministic_one_step(pipeline.scheduler):
            pipeline.scheduler = self.kernel_scheduler
        for module in pipeline.components.values():
            if isinstance(module, nn.Module):
                module.requires_grad_(False).eval()
        pipeline.set_progress_bar_config(disable=True)
        use_attention(self.stage.denoiser, settings.attention)
        sampler = settings.sampler
        self.calls([self.like], [0], sampler.guidance, sampler.steps, sampler.sigmas)  # a wrong argument fails here
        self._looked = False

    def call(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> dict[str, Any]:
        """Arguments of the pipeline's __call__; None: guidance and steps of the sampler. Guidance 1 is none."""
        self._look(prompts[0])
        self.like = next((prompt for prompt in reversed(prompts) if prompt.media is not None), self.like)
        sampler = self.settings.sampler
        scale = sampler.guidance if guidance is None else guidance
        if scale == 1 and self.calls.scaled:
            scale = self._off
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
        return self.call(prompts, seeds, 1.0 if self.calls.scaled else None, steps)

    def parts(self, rows: int) -> list[slice]:
        """The rows of each micro-batch."""
        size = self.settings.batch_size
        return [slice(at, min(at + size, rows)) for at in range(0, rows, size)]

    @contextmanager
    def on_kernel(self) -> Iterator[None]:
        """Within the context the pipeline holds the kernels' scheduler."""
        plain, self.pipeline.scheduler = self.pipeline.scheduler, self.kernel_scheduler
        try:
            yield
        finally:
            self.pipeline.scheduler = plain

    def take_for_size(self, image: Tensor) -> None:
        """Let this image (3,H,W) stand for those of the prompts, where none was seen and the pipeline needs one."""
        try:
            self._look(self.like)
        except UsageError:
            self.like = Prompt("-", media=self.tracks.as_input(image))

    def _look(self, prompt: Prompt) -> None:
        """Before the first call: where the denoiser has its rows, and whether the pipeline runs at all."""
        if self._looked:
            return
        sampler, alone = self.settings.sampler, self.settings.batch_size == 1 and prompt.media is not None
        if not alone:  # a pipeline that mixes the images of several rows is right with one row
            calls = [self.calls([prompt] * n, [0] * n, sampler.guidance, sampler.steps) for n in (1, 2)]
            try:
                self.stage.learn_batching(calls)
            except GenalignError:
                raise
            except Exception as error:  # whatever the pipeline runs into
                text_only = prompt.media is None and self.tracks.reads_input
                raise UsageError(
                    f"{self.name} does not run with {type(self.pipeline.scheduler).__name__} and policy.call"
                    f" {self.settings.call}{', or not without an image beside the text' if text_only else ''}: {error}"
                ) from error
        self._looked = True

    @cached_property
    def _off(self) -> float:
        """The scale that runs the fewest branches: 1, but 0 where the pipeline adds w (cond - uncond) to cond."""
        before, branches = self.stage.calls, {}
        for scale in (1.0, 0.0):
            call = self.calls([self.like], [0], scale, self.settings.sampler.steps)
            branches[scale] = self.stage.branches_of(call)
        self.stage.calls = before  # a probe is not what anything costs
        return min(branches, key=lambda scale: branches[scale])
