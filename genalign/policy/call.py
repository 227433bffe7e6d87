"""The arguments of a pipeline's own __call__."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from genalign.policy.inputs import Inputs
from genalign.types import Prompt, UsageError

OURS = ("prompt", "generator", "num_inference_steps", "output_type")
# Arguments that a recipe sets elsewhere, or that are no choice, and what to do instead.
ELSEWHERE = {
    "prompt": "prompts are those of data.prompts",
    "num_inference_steps": "set policy.sampler.steps",
    "sigmas": "set policy.sampler.sigmas",
    "timesteps": "set policy.sampler.steps",
    "generator": "seeds are those of the run",
    "latents": "initial noise is drawn from the seeds of the run",
    **dict.fromkeys(
        ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt"),
        "set method.group, or --n of genalign sample",
    ),
    "output_type": "rewards read tensors",
    "return_dict": "outputs are read by their names",
}

# Texts beside the prompt, which a row of data.prompts may bring among its facts; else every row has the same. ACE-Step
# indexes them by row, whatever it says of one text for all.
TEXTS_OF_A_ROW = ("lyrics", "vocal_language")


class Calls:
    """Arguments for some rows: their texts and input media, a generator each, guidance scale and number of steps.

    A Pipe owns one, and hands what it makes to its Stage. fixed: further arguments, the same in every call; a text
    among them stands for every row.

    Raises UsageError where the pipeline lacks an argument that is needed or given.
    """

    def __init__(self, pipeline: Any, denoiser: Any, fixed: Mapping[str, Any], inputs: Inputs) -> None:
        self.name, self.fixed, self.inputs = type(pipeline).__name__, dict(fixed), inputs
        self.parameters = inspect.signature(type(pipeline).__call__).parameters
        # The scale is an input of the model (Flux; latent consistency models, by an embedding beside the time's).
        self.guider = getattr(pipeline, "guider", None)  # a component that holds the scale, where there is one
        self.embedded = bool(denoiser.config.get("guidance_embeds") or denoiser.config.get("time_cond_proj_dim"))
        missing = [name for name in OURS if name not in self.parameters]
        if missing:
            raise UsageError(f"{self.name} takes no argument {missing[0]!r}, which sampling from prompts needs")
        if len({"height", "width"} & set(self.fixed)) == 1:
            raise UsageError("policy.call has one of height and width, which pipelines then ignore; give both")
        unknown = [name for name in self.fixed if name not in self.parameters]
        if unknown:
            raise UsageError(f"policy.call: {self.name} takes no argument {unknown[0]!r}")
        ours = [name for name in self.fixed if name in ELSEWHERE]
        if ours:
            raise UsageError(f"policy.call cannot set {ours[0]!r}; {ELSEWHERE[ours[0]]}")
        for name, value in self.fixed.items():
            # A LoRA scale reaches the forward pass, but not the recomputation of a checkpointed backward; 0 resets it.
            if name.endswith("attention_kwargs") and isinstance(value, Mapping) and value.get("scale", 1.0) != 1.0:
                raise UsageError(f"policy.call.{name} scales the trained adapter; remove its key 'scale'")
            if isinstance(value, list) and _wants_tuple(self.parameters[name]):  # YAML has no tuples
                self.fixed[name] = tuple(value)

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
            name = self.guidance_argument()
            call[name] = guidance
            if name == "true_cfg_scale" and guidance > 1:
                call.setdefault("negative_prompt", " ")
            elif name == "true_cfg_scale":
                call.pop("negative_prompt", None)
        for name, value in call.items():
            if isinstance(value, str) and name.startswith(("negative_prompt", "prompt")):
                call[name] = [value] * len(prompts)
        for name in set(TEXTS_OF_A_ROW) & set(self.parameters):
            every = call.get(name, self.parameters[name].default)
            call[name] = [str(prompt.facts.get(name) or every) for prompt in prompts]
        return {
            **call,
            **self.inputs(prompts),
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
        named = {"guidance_scale", "true_cfg_scale"} & set(self.parameters)
        return bool(named or hasattr(self.guider, "guidance_scale"))

    def mixing(self) -> dict[str, float]:
        """Further scales, and values of them that mix no branches in."""
        off = {}
        for name, parameter in self.parameters.items():
            number = isinstance(parameter.default, (int, float)) or "float" in str(parameter.annotation)
            if name == "true_cfg_scale" and self.embedded:
                off[name] = 1.0
            elif name.endswith("_scale") and number and name not in ("guidance_scale", "true_cfg_scale"):
                off[name] = 0.0
        return off

    def guidance_argument(self) -> str:
        names = ("guidance_scale", "true_cfg_scale") if self.embedded else ("true_cfg_scale", "guidance_scale")
        for name in names:
            if name in self.parameters:
                return name
        if hasattr(self.guider, "guidance_scale"):
            return "guider.guidance_scale"
        raise UsageError(f"{self.name} takes no guidance scale; leave policy.sampler.guidance out")


def _wants_tuple(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.default, tuple) or "tuple" in str(parameter.annotation).lower()
