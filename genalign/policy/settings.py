"""The keys of a recipe's `policy:` section."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

Kernel = Literal["flow-sde", "cps", "dance", "ddim", "ode"]
QUANTIZED = ("bitsandbytes-nf4", "bitsandbytes-int8", "torchao-int8", "torchao-float8", "torchao-int4")
WEIGHT_ONLY = "torchao-int8 or torchao-float8, which are of weights alone"


class Lora(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rank: int = Field(default=16, ge=1)
    """Rank of each update."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update counts alpha / rank."""
    targets: list[str] | Literal["all-linear"] | None = None
    """Names (or name ends) of the linear layers to adapt, or all-linear. None: attention projections. Of a model that
    sees or hears, in the part that writes alone."""


class Sampler(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kernel: Kernel = "flow-sde"
    """How a rollout steps: flow-sde, dance (flow models only), cps, ddim, ode (any model)."""
    noise: float = Field(default=0.7, ge=0)
    """Noise level of the kernel: a of flow-sde, eta of dance, cps and ddim. Of a diffusion language model, how freely
    places are drawn; 0: the surest."""
    noise_block: int = Field(default=1, ge=1)
    """Side of the squares of latents that share exploration noise, in each frame of a video; 1: each latent has its
    own. A larger one makes policy gradients less noisy, and leaves detail unexplored."""
    steps: int = Field(default=10, ge=1)
    """Denoising steps of a rollout; of a diffusion language model, turns in which a whole block is written."""
    sigmas: list[float] | None = None
    """Noise levels of those steps, falling within (0, 1], before the scheduler shifts them: fewer steps can spend a
    large one where layout is decided. None: where the pipeline puts that many, as it does whenever steps are named."""
    window: int | None = Field(default=None, ge=1)
    """How many consecutive steps are stochastic (and trained); the others follow the ODE. None: all that can be."""
    window_start: tuple[int, int] | None = None
    """Half-open range from which the rollout seed draws the window's first step. None: wherever the window fits."""
    shared_start: bool = False
    """Whether the siblings of a prompt start from one initial noise and part at the first stochastic step, so that
    they differ by nothing but the noise whose density is scored. What they have in common is computed once a batch."""
    guidance: float | None = None
    """Guidance scale of rollouts, 1 for none. None: the pipeline's own default."""

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.sigmas is not None:
            falling = all(a > b for a, b in pairwise([*self.sigmas, 0.0]))
            if len(self.sigmas) != self.steps or self.sigmas[0] > 1 or not falling:
                raise ValueError(f"sigmas must be {self.steps} falling numbers within (0, 1], one a step; or null")
        return self


class Vae(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tiling: bool = False
    """Whether pictures larger than a tile are decoded tile by tile, by diffusers, which blends their edges."""
    slicing: bool = False
    """Whether samples of a batch are decoded one by one."""
    chunk: int | None = Field(default=None, ge=1)
    """How many frames (of latents, where the autoencoder counts those) are decoded at a time. None: its own number."""


class Cache(BaseModel):
    model_config = ConfigDict(extra="forbid")

    folder: str
    """Where files of embeddings and latents lie; runs may share it."""
    gigabytes: float = Field(default=20.0, gt=0)
    """How much of the disk they may take; those that were asked for longest ago make room."""


class PolicySettings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str
    """A shipped model's name, a folder that from_pretrained loads, a hub id, or a .gguf file of a language model."""
    merged: str | list[str] | None = None
    """A LoRA that is merged into the frozen weights first, so that the reference has it too: one for few steps, or
    `adapter/` of an earlier run. A folder, a .safetensors file, a shipped one, or a hub id (`owner/name`, also
    `owner/name/file.safetensors`). Several: a list, merged in this order."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """What the frozen weights are held in; adapters stay float32. auto: bfloat16 where that is no slower, on a GPU or a
    CPU with AVX-512 or AMX, else float32; what it came to here is written into the run's recipe."""
    lora: Lora = Lora()
    """The trained adapter."""
    sampler: Sampler = Sampler()
    """How a diffusion rollout samples."""
    batch_size: int = Field(default=32, ge=1)
    """Rows of one micro-batch, in rollouts and in replay."""
    gradient_checkpointing: bool = False
    """Whether a denoiser's blocks, or a language model's layers, are computed again in the backward pass instead of
    kept: the same gradients, memory of about one block, and one more forward pass for each backward pass."""
    quantization: str | None = None
    """How frozen linear layers of a denoiser, or of what writes in a language model, are held: bitsandbytes-nf4,
    bitsandbytes-int8, torchao-int8, torchao-float8, torchao-int4, or a .gguf file of the same denoiser. The adapter
    stays float32. None: in dtype."""
    offload: Literal["phases", "blocks"] | None = None
    """What waits on the CPU: all networks but the one that is asked (phases), and of a denoiser or a language model all
    blocks but one, too (blocks; quantised ones need gradient_checkpointing). The same numbers, and time for the copies.
    None: nothing."""
    vae: Vae = Vae()
    """How the autoencoder decodes; each of it changes rounding, and tiling the edges of tiles."""
    cache: Cache | None = None
    """Keep embeddings of prompts, and clean latents of given samples, on the disk from run to run. None: in memory."""
    attention: Literal["sdpa", "xformers", "flash"] = "sdpa"
    """Attention kernel."""
    call: dict[str, Any] = {}
    """Further arguments of the pipeline call (height, negative_prompt, ...), the same in rollout and generate."""
    frame_rate: float | None = Field(default=None, gt=0)
    """Frames a second of what a video model draws, where its pipeline has no argument that says so."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Language models: the longest completion; of one that denoises, the places of an answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Language models: sampling temperature of a rollout."""
    system: str | None = None
    """Language models: system prompt."""
    template: dict[str, Any] = {}
    """Language models: variables of the tokenizer's chat template, such as enable_thinking: false, or date_string where
    it would write today's date. A variable that the template does not read changes nothing and is not refused."""
    environment: str | None = None
    """Language models: `file.py:function`, which answers the model's turns, as a tool does; nothing is learnt from its
    answers. It is called with lists, by parameter name: `text` (the last turn), `turns` (all since the prompt) and keys
    of the facts; it returns a text or None (finished) for each."""
    turns: int = Field(default=4, ge=1)
    """Language models: the most turns of the model in one completion, where there is an environment."""
    writer: str | None = None
    """A language model that rewrites the prompt of an image model; both are trained. None: prompts stay as they are."""
    asked_share: float = Field(default=0.5, ge=0, le=1)
    """With a writer: the part of the guidance in generate that goes to the original prompt."""

    _dtype_is_open: bool = PrivateAttr(default=False)

    @property
    def dtype_is_open(self) -> bool:
        """Whether `dtype` was left to the machine, which has chosen it."""
        return self._dtype_is_open

    def __eq__(self, other: object) -> bool:
        """Settings that say the same are equal, whoever has chosen the dtype."""
        return isinstance(other, PolicySettings) and dict(self) == dict(other)

    @model_validator(mode="wrap")
    @classmethod
    def _open(cls, given: Any, parse: Callable[[Any], Self]) -> Self:
        settings = parse(given)
        settings._dtype_is_open = isinstance(given, Mapping) and given.get("dtype") == "auto"
        return settings

    @field_validator("dtype")
    @classmethod
    def _chosen(cls, value: str) -> str:
        if value != "auto":
            return value
        import torch

        from genalign.precision import computes_bfloat16

        return "bfloat16" if computes_bfloat16("cuda" if torch.cuda.is_available() else "cpu") else "float32"

    @field_validator("quantization")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is None or value in QUANTIZED or value.endswith(".gguf"):
            return value
        if "dynamic" in value:
            raise ValueError(
                f"{value} would quantise activations as well, whose layers let no gradient through, so that the adapter"
                f" is moved in wrong directions; take {WEIGHT_ONLY}"
            )
        raise ValueError(f"there is no {value!r}; write a .gguf file or one of {', '.join(QUANTIZED)}")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.offload == "blocks" and self.quantization is not None and not self.gradient_checkpointing:
            raise ValueError(
                f"offload blocks of {self.quantization} needs gradient_checkpointing: true, without which every block's"
                " quantised weights are kept for the backward pass"
            )
        if self.offload is not None and self.quantization == "bitsandbytes-int8":
            raise ValueError("bitsandbytes-int8 layers cannot be moved; offload with bitsandbytes-nf4 or torchao-int8")
        if self.quantization is not None and self.quantization.endswith(".gguf") and self.merged:
            raise ValueError("nothing can be merged into a .gguf file; leave merged out, or take another quantization")
        return self

    @property
    def adapters_merged(self) -> list[str]:
        """What `merged` names, in order."""
        return [self.merged] if isinstance(self.merged, str) else self.merged or []
