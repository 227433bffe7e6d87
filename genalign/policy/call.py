"""The arguments of a pipeline's own __call__."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genalign.media.image import to_pil
from genalign.types import Prompt, UsageError

OURS = ("prompt", "generator", "num_inference_steps", "output_type")


class Calls:
    """Arguments for some rows: their texts and input images, a generator each, guidance scale and number of steps.

    fixed: further arguments, the same in every call; a text among them stands for every row.

    Raises UsageError where the pipeline does not make images, or lacks an argument that is needed or given.
    """

    def __init__(self, pipeline: Any, denoiser: Any, fixed: Mapping[str, Any]) -> None:
        self.name, self.fixed = type(pipeline).__name__, dict(fixed)
        self.parameters = inspect.signature(type(pipeline).__call__).parameters
        self.embedded = bool(denoiser.config.get("guidance_embeds"))  # the scale is an input of the model
        if hasattr(pipeline, "video_processor"):
            raise UsageError(f"{self.name} makes videos; this policy knows only images yet")
        if not hasattr(pipeline, "image_processor"):
            raise UsageError(f"{self.name} has no image_processor, so the range of what it makes is not known")
        missing = [name for name in OURS if name not in self.parameters]
        if missing:
            raise UsageError(f"{self.name} takes no argument {missing[0]!r}, which sampling from prompts needs")
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
            **self._pictures(prompts),
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

    def _pictures(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        given = [prompt for prompt in prompts if prompt.media is not None]
        if not given:
            return {}
        if "image" not in self.parameters:
            raise UsageError(f"prompt {given[0].uid} brings media, but {self.name} takes no image")
        for prompt in prompts:
            if prompt.media is None or set(prompt.media) != {"image"} or prompt.media.rows != 1:
                raise UsageError(
                    f"prompt {prompt.uid} must bring one image and nothing else, as others of its batch do"
                )
        rows = [prompt.media["image"].data[0] for prompt in prompts if prompt.media is not None]
        images = [to_pil(row) for row in rows if isinstance(row, Tensor)]
        sizes = {image.size for image in images}
        if len(sizes) > 1:
            raise UsageError(f"input images of one batch must have one size, not {' and '.join(map(str, sizes))}")
        return {"image": images}
