"""Any diffusers pipeline as a Policy: rollouts with known densities, and their replay with gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genalign.files.header import sort_header
from genalign.policy import forward, pathwise, retake
from genalign.policy.adapters import Adapters
from genalign.policy.archive import recalled, save_trajectory, settings_digest, weights_digest
from genalign.policy.layout import Encoder
from genalign.policy.pipe import Pipe
from genalign.policy.recompute import recompute_blocks
from genalign.policy.record import Tape
from genalign.policy.rollout import Rollouts
from genalign.policy.settings import PolicySettings
from genalign.policy.stored import Stored, media_key
from genalign.policy.twin import twin
from genalign.types import Guide, Media, Prompt, Steps, Trajectory, UsageError, Weights


class DiffusionPolicy:
    """A pipeline that draws images, videos or sound from text, or from text and any of these, and whose denoisers carry
    a trained LoRA.

    Latents, means, log-densities and KL are computed in at least float32; x' is rounded to the dtype the pipeline keeps
    latents in before it is scored. Every row draws from its own CPU generator, so neither batch nor world size changes
    what is drawn. Guidance branches with a negative share in the guided output (the unconditional one) are replayed
    without a graph, as Flow-GRPO does. pipeline, denoiser and settings are public; nothing is wrapped. device: where it
    computes, if its networks wait elsewhere (policy.offload); None: where they are.

    Raises UsageError where the pipeline cannot be aligned; GenalignError at the first rollout where it cannot be
    replayed exactly.
    """

    def __init__(self, pipeline: Any, settings: PolicySettings, device: torch.device | None = None) -> None:
        self.pipeline, self.settings = pipeline, settings
        self._pipe = Pipe(pipeline, settings, device)
        self.modalities = self._pipe.tracks.modalities
        self.guided = self._pipe.calls.takes_guidance
        self._stage = self._pipe.stage
        self.denoiser = self._stage.denoisers.main
        self.device = self._pipe.device
        self._adapters = Adapters(self._stage.denoisers.each, settings.lora, self.device)
        self._encoder = Encoder(self._pipe)
        self._stored: Stored | None = None
        if settings.cache is not None:
            size = round(settings.cache.gigabytes * 1e9)
            self._stored = Stored(Path(settings.cache.folder), size, self._answering)
            self._stage.store_texts(self._stored)
        self._rollouts = Rollouts(self._pipe, self.weights)

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
        yield from self._rollouts.rolling(rows, self.row_seeds(prompts, per_prompt, seed), seed)

    def row_seeds(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> list[int]:
        """The seed of each row of a rollout; with sampler.shared_start, siblings' have their start in common."""
        return self._rollouts.row_seeds(prompts, per_prompt, seed)

    def rollout_rows(self, rows: Sequence[Prompt], seeds: Sequence[int], seed: int | Sequence[int]) -> Trajectory:
        """The rollout of rows that have a prompt and a seed each; `seed` is the rollout's, as they were made from."""
        *_, trajectory = self._rollouts.rolling(rows, seeds, seed)
        assert isinstance(trajectory, Trajectory)
        return trajectory

    def check_prompt(self, prompt: Prompt, answer: str | None = None) -> None:
        """Refuse a prompt whose media the pipeline cannot take, or that lacks what it cannot do without."""
        given = self._pipe.inputs([prompt])
        lacking = self._pipe.inputs.required - set(given)
        if lacking:
            name = min(lacking)
            raise UsageError(f"{self._pipe.name} begins with an input {name}; name its file under {name!r} in each row")
        if prompt.media is not None:
            self._pipe.like = prompt  # samples may be encoded before anything is drawn

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        return self._rollouts.replay(trajectory, rows, steps, versus)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        guidance: float | None = None,
        steps: int | None = None,
    ) -> Media:
        """The same image as plain diffusers draws from `torch.Generator().manual_seed(seed)`, in half precision to its
        rounding.

        With the pipeline's own scheduler where that is a deterministic one-step one, else with the Euler or DDIM step
        on its schedule. None: guidance and steps of the sampler.
        """
        if len(seeds) != len(prompts) or not prompts:
            raise UsageError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one seed a prompt, and at least one")
        made = []
        for part in self._pipe.parts_of(prompts):
            call = self._pipe.call(prompts[part], seeds[part], guidance, steps)
            made.append(self._pipe.draw(call, self._stage.denoisers.count, None))
        return Media.cat(made)

    def encode(self, media: Media) -> Tensor:
        """Images of another size are resized to the one that is drawn."""
        if self._stored is None:
            return self._encoder(media)
        s, latents = self.settings, []
        form = settings_digest(s.call, s.vae.model_dump(), s.frame_rate)
        for row in range(media.rows):  # each alone, so that it depends on no neighbour
            one = media.select([row])
            question = ("clean", form, media_key(one))
            latents.append(self._stored.answer(question, lambda one=one: self._encoder(one).cpu()))  # type: ignore[misc]
        return torch.cat(latents).to(self.device)

    def clean(self, trajectory: Trajectory) -> Tensor:
        """Raises UsageError where the trajectory was stored without its last latents."""
        tape: Tape = trajectory.tape
        return tape.clean()

    def fit(
        self, prompts: Sequence[Prompt], clean: Tensor, at: float, seeds: Sequence[int], versus: Weights | None = None
    ) -> Steps:
        """The fine grid is the pipeline's own of 50 steps; of the branches only the conditional one is run."""
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
        hooks = pathwise.GradHooks(self._pipe, grad_steps, guide, checkpoint)
        return pathwise.generate_with_grad(self._pipe, prompts, seeds, noise, guidance, steps, hooks)

    def initial_noise(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Tensor:
        return pathwise.initial_noise(self._pipe, prompts, seeds)

    def decode(self, clean: Tensor) -> Media:
        """A guide may ask for this in the middle of sampling."""
        if self._pipe.blends:
            raise UsageError(
                f"{self._pipe.name} blends its picture into what it decodes, so latents alone are not a sample of it;"
                " take a method that scores whole rollouts"
            )
        self._twin.like = self._pipe.like
        return pathwise.decode(self._twin, clean)

    @cached_property
    def _twin(self) -> Pipe:
        return twin(self._pipe)

    def retake(self, prompts: Sequence[Prompt], clean: Tensor, seeds: Sequence[int]) -> Media:
        """The sampler's last step taken again with grad, from `clean` (R,*L) noised by each row's seed."""
        return retake.retake(self._pipe, prompts, clean, seeds)

    def weights(self, which: Weights) -> AbstractContextManager[None]:
        return self._adapters.weights(which)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.named_trainable().values())}]

    def named_trainable(self) -> dict[str, nn.Parameter]:
        return self._adapters.named_trainable()

    def step_ema(self, decay: float) -> None:
        self._adapters.step_ema(decay)

    def save_adapter(self, folder: Path | str) -> None:
        """peft's two files, and pytorch_lora_weights.safetensors where the pipeline class has a LoRA loader; of several
        denoisers each in a folder of its own.

        The latter is written with alpha = rank: its header alone holds alpha, which many programs do not read.
        """
        from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

        self._adapters.save(Path(folder))
        save = getattr(self.pipeline, "save_lora_weights", None)
        main = self._stage.denoisers.component  # by whose names diffusers writes that of any of them
        if save is None or f"{main}_lora_layers" not in inspect.signature(save).parameters:
            return
        for name, place in self._adapters.folders(Path(folder)).items():
            adapter = self._adapters.each[name]
            metadata = {**adapter.config.to_dict(), "lora_alpha": adapter.config.r}
            layers = {f"{main}_lora_layers": adapter.folded(), f"{main}_lora_adapter_metadata": metadata}
            save(place, **layers)
            sort_header(place / LORA_WEIGHT_NAME_SAFE)

    def load_adapter(self, folder: Path | str) -> None:
        """Read adapter_model.safetensors of a folder that save_adapter wrote."""
        self._adapters.load(Path(folder))

    def saving(self) -> tuple[str, ...]:
        return tuple(name for name in ("gradient_checkpointing", "offload") if getattr(self.settings, name))

    @contextmanager
    def plainly(self) -> Iterator[None]:
        """Of offload: all that is asked stays on the device."""
        residence, again = self._stage.residence, self.settings.gradient_checkpointing
        networks: list[Any] = list(self._stage.denoisers.each.values()) if again else []
        with residence.staying() if residence is not None else nullcontext():
            for network in networks:
                network.disable_gradient_checkpointing()
            try:
                yield
            finally:
                for network in networks:
                    recompute_blocks(network)

    def shard(self, shard: Callable[[nn.Module], None]) -> None:
        """Its denoisers; text encoders and autoencoders stay whole."""
        self._model_digest  # noqa: B018 (cached, while the weights are here)
        self._stage.denoisers.shard(shard)

    def calls(self) -> int:
        return self._stage.denoisers.calls

    def digest(self) -> dict[str, str]:
        """What must be unchanged for a seed to give the same rollout: the reference weights, and how they sample."""
        s = self.settings
        return {"model": self._model_digest, "sampler": settings_digest(s.sampler.model_dump(), s.dtype, s.call)}

    @cached_property
    def _model_digest(self) -> str:
        modules = [module for module in self.pipeline.components.values() if isinstance(module, nn.Module)]
        return weights_digest(modules, self.named_trainable().values())

    def _answering(self) -> Any:
        """What decides an embedding or clean latents beside what is asked: frozen weights, dtype, device, libraries."""
        import diffusers
        import transformers

        tuned, parts = self._stage.denoisers.each, self.pipeline.components
        frozen = [part for name, part in parts.items() if name not in tuned and isinstance(part, nn.Module)]
        versions = (torch.__version__, diffusers.__version__, transformers.__version__)
        return weights_digest(frozen, ()), self.settings.dtype, self.settings.attention, self.device.type, versions

    def save_trajectory(self, trajectory: Trajectory, path: Path) -> None:
        """Write what replay needs of a rollout, so that `recall` brings its rows back without sampling."""
        save_trajectory(trajectory, path)

    def recall(self, folder: Path, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Trajectory:
        """The stored rows of these prompts and seeds, in this order; without media.

        Raises UsageError where `folder` lacks one of them.
        """
        if self._rollouts.graph is None:
            self.rollout(prompts[:1], 1, seeds[:1])  # proves that this pipeline can be replayed
        return recalled(folder, prompts, seeds, self.settings.batch_size, self._rollouts.about)
