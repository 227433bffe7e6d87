"""The arguments of a pipeline's own __call__."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from genalign.policy.tracks import Tracks
from genalign.types import Prompt, UsageError

OURS = ("prompt", "generator", "num_inference_steps", "output_type")


class Calls:
    """Arguments for some rows: their texts and input media, a generator each, guidance scale and number of steps.

    A Pipe owns one, and hands what it makes to its Stage. fixed: further arguments, the same in every call; a text
    among them stands for every row.

    Raises UsageError where the pipeline lacks an argument that is needed or given.
    """

    def __init__(self, pipeline: Any, denoiser: Any, fixed: Mapping[str, Any], tracks: Tracks) -> None:
        self.name, self.fixed, self.tracks = type(pipeline).__name__, dict(fixed), tracks
        self.parameters = inspect.signature(type(pipeline).__call__).parameters
        self.embedded = bool(denoiser.config.get("guidance_embeds"))  # the scale is an input of the model
        missing = [name for name in OURS if name not in self.parameters]
        if missing:
            raise UsageError(f"{self.name} takes no argument {missing[0]!r}, which sampling from prompts needs")
        if len({"height", "width"} & set(self.fixed)) == 1:
            raise UsageError("policy.call has one of height and width, which pipelines then ignore; give both")
        unknown = [name for name in self.fixed if name not in self.parameters]
        if unknown:
            raise UsageError(f"policy.call: {self.name} takes no argument {unknown[0]!r}")

    def __call__(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        guidance: float | None,
        steps: int,
        sigmas: list[float] | None = None,
    ) -> dict[str, Any]:
        call = dict(self.fixed)
        if sigmas is not None and "sigmas" not in self.parameters:
            raise UsageError(f"{self.name} takes no noise levels; leave policy.sampler.sigmas out")
        if sigmas is not None:
            call["sigmas"] = sigmas
        if guidance is not None:
            name = self._guidance_argument()
            call[name] = guidance
            if name == "true_cfg_scale" and guidance > 1:
                call.setdefault("negative_prompt", " ")
            elif name == "true_cfg_scale":
                call.pop("negative_prompt", None)
        for name, value in call.items():
            if isinstance(value, str) and name.startswith(("negative_prompt", "prompt")):
                call[name] = [value] * len(prompts)
        return {
            **call,
            **self.tracks.inputs(prompts),
            "prompt": [prompt.text for prompt in prompts],
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "num_inference_steps": steps,
            "output_type": "pt",
        }

    @property
    def scaled(self) -> bool:
        """Whether branches are mixed by a scale that __call__ takes."""
        return not self.embedded and self.takes_guidance

    @property
    def takes_guidance(self) -> bool:
        return bool({"guidance_scale", "true_cfg_scale"} & set(self.parameters))

    def _guidance_argument(self) -> str:
        names = ("guidance_scale", "true_cfg_scale") if self.embedded else ("true_cfg_scale", "guidance_scale")
        for name in names:
            if name in self.parameters:
                return name
        raise UsageError(f"{self.name} takes no guidance scale; leave policy.sampler.guidance out")
