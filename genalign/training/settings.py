"""What a recipe may say under `train:`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genalign.training.monitor import MonitorSettings


class TrainSettings(BaseModel):
    """How long, how fast, and what is kept."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    steps: int = Field(default=60, ge=1)
    """Rollouts; each ends in `method.updates_per_rollout` optimizer updates."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything drawn: adapter, prompts, samples."""
    optimizer: Literal["adamw", "adamw-8bit", "muon", "prodigy"] = "adamw"
    """By name; prodigy needs `pip install 'genalign[optimizers]'`, adamw-8bit `genalign[eight-bit]`."""
    backend: Literal["replicated", "fsdp2"] = "replicated"
    """What each of several processes holds of the frozen weights: all of them, or (fsdp2) its part."""
    staleness: Literal[0, 1] = 0
    """1: a step's samples are drawn before the update of the step before it, while that one is scored; for rewards that
    take as long as sampling, in a process or behind a server."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Of the optimizer, at its highest; of prodigy, which finds its own, a factor of that: 1."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls to 0 at `train.steps`, or that it does not."""
    warmup: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises to its highest."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW and Prodigy; muon keeps its own momentum of 0.95."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The gradient's global norm is clipped to this."""
    skip_not_finite: int = Field(default=3, ge=0)
    """Updates in a row that are left out because their gradient is NaN or infinite; one more ends the run."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the averaged weights, which are then what is evaluated and saved; null: the last weights are."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between checkpoints; one more is written at the end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""
    patience: int | None = Field(default=None, ge=1)
    """Checkpoints in a row with no better mean reward, after which training ends with the best one; null: never."""
    sample_every: int = Field(default=20, ge=1)
    """Steps between grids of base beside tuned samples; one more is drawn at the end."""
    monitor: MonitorSettings | None = None
    """Watch held-out rewards and diversity while training, and warn of a hacked reward; null: do not."""
    copy_to: str | None = None
    """URL that fsspec knows (s3://bucket/run, file:///folder), where the run folder is copied after each checkpoint."""
    resume: str | None = None
    """Run folder to go on with, or the URL of its copy, or `latest`: the newest one of this recipe."""
    report_to: list[str] = []
    """Trackers that accelerate knows, such as tensorboard or wandb, besides metrics.jsonl."""

    @model_validator(mode="after")
    def _warm_before_the_end(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(f"train.warmup {self.warmup} is longer than the run; set train.warmup={self.steps // 10}")
        return self

    @model_validator(mode="after")
    def _prodigy_finds_its_rate(self) -> Self:
        if self.optimizer == "prodigy" and self.learning_rate < 0.1:
            raise ValueError(
                f"train.optimizer prodigy finds its learning rate itself and multiplies it by train.learning_rate, "
                f"which {self.learning_rate:g} makes too small to move; set train.learning_rate=1"
            )
        return self

    @model_validator(mode="after")
    def _best_look_is_kept(self) -> Self:
        """With `stop: peak` every look has a checkpoint, and the best one's is still there `patience` looks later."""
        watched = self.monitor
        if watched is None or watched.stop != "peak":
            return self
        if watched.every % self.checkpoint_every:
            raise ValueError(
                f"train.monitor.stop peak goes back to the checkpoint of a look, but train.monitor.every "
                f"{watched.every} is no multiple of train.checkpoint_every {self.checkpoint_every}; "
                f"set train.checkpoint_every={watched.every}"
            )
        kept = watched.patience * watched.every // self.checkpoint_every + 1
        if self.keep_checkpoints < kept:
            raise ValueError(
                f"train.monitor.stop peak goes back to a checkpoint that train.keep_checkpoints "
                f"{self.keep_checkpoints} deletes; set train.keep_checkpoints={kept}"
            )
        return self
