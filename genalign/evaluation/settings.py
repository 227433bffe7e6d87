"""What a recipe may say under `eval:`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class EvalSettings(BaseModel):
    """What `eval:` of a recipe may set."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    prompts: str
    """File of held-out prompts (.jsonl or .txt), relative to the recipe, then to the shipped assets."""
    count: int = Field(default=512, gt=0)
    """How many prompts: the first ones of the file."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Sampling seeds: each prompt is drawn once a seed, with the same noise before and after."""
    guidance: list[float] = Field(default=[1.0, 2.0, 3.0, 5.0], min_length=1)
    """Guidance scales; base and tuned model are each reported at their best one. Ignored where sampling
    has no guidance scale, as a language model's."""
    steps: int | None = Field(default=None, gt=0)
    """Denoising steps, equal before and after; null: those of policy.sampler, at its noise levels. Ignored where
    guidance is."""
    held_out: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    """The judge that is never optimised, a reward spec, or a list of several. The first aspect of the first one chooses
    the best guidance scale; the others are measured beside it."""
    rewards: list[str | dict[str, Any]] = []
    """Further reward specs to report beside the training reward and the judge."""
    batch_size: int = Field(default=64, gt=0)
    """Prompts sampled and scored at a time; all of them where a reward looks at the whole batch."""
    training_prompts: int = Field(default=0, ge=0)
    """How many of data.prompts to score by training reward and judge as well, at the first scale: what was learnt."""
    base_cache: str | None = None
    """A .safetensors file that keeps the base's scores from run to run, relative to the working directory; those of
    training prompts stand beside it, as NAME-training.safetensors."""

    @property
    def judges(self) -> list[str | dict[str, Any]]:
        """The specs of `held_out` as a list."""
        if self.held_out is None:
            return []
        return self.held_out if isinstance(self.held_out, list) else [self.held_out]
