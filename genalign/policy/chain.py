"""A language model writes the prompt and a diffusion model draws it: one policy, one row of log-probabilities."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genalign.files.shipped import PIPELINE
from genalign.policy.centred import generate_centred
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.language import LanguagePolicy, load_language
from genalign.policy.load import load_diffusion
from genalign.policy.settings import PolicySettings
from genalign.types import Media, Policy, Prompt, Steps, Track, Trajectory, UsageError, Weights, sample_seed

TAGS = re.compile(r"(?:<[^>]*>,?\s*)+")


@dataclass(frozen=True)
class ChainTrajectory(Trajectory):
    """Columns 0..words-1 are the writer's tokens, replayed together; the others are the painter's denoising steps.

    tape: (the writer's trajectory, the painter's), row by row the same samples.
    """

    words: int = 0

    def units(self, rows: Sequence[int] | None = None) -> list[tuple[list[int], list[int]]]:
        writer, painter = self.tape
        units = list(writer.units(rows))
        for block, steps in painter.units(rows):
            units.append((block, [self.words + step for step in steps]))
        return units


class ChainPolicy:
    """prompt -> writer -> a longer prompt -> painter -> image (Parrot's prompt expansion, arXiv 2401.05675).

    Each row has a text of its own. The writer never sees tags, that is leading words in angle brackets: they are put
    before what it wrote. Where it writes nothing the prompt stays as it was. Media hold the image and, as `text`, the
    prompt it was drawn from. A trajectory's prompts are the original ones, so rewards judge by these.

    generate() writes greedily, and is guided by the original and the written prompt at once; `share` is the part of the
    guidance that goes to the original one. writer: the prompt expander. painter: the generator.
    """

    def __init__(self, writer: LanguagePolicy, painter: DiffusionPolicy, share: float = 0.5) -> None:
        self.writer, self.painter, self.share = writer, painter, share
        self.modalities = painter.modalities

    @property
    def guided(self) -> bool:
        return self.painter.guided

    @property
    def _parts(self) -> dict[str, Policy]:
        return {"writer": self.writer, "painter": self.painter}

    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> ChainTrajectory:
        rows = [prompt for prompt in prompts for _ in range(per_prompt)]
        own = sample_seed(seed, -2, 0) if isinstance(seed, int) else [sample_seed(s, -2, 0) for s in seed]
        written = self.writer.rollout([_bare(prompt) for prompt in prompts], per_prompt, own)
        texts = written.media["text"].data
        # Siblings have texts of their own; by its seed a row still starts where its siblings do, if they share that.
        drawn = self.painter.rollout_rows(
            _written(rows, texts), self.painter.row_seeds(prompts, per_prompt, seed), seed
        )
        return ChainTrajectory(
            prompts=tuple(rows),
            media=_with_text(drawn.media, drawn.prompts),
            group=torch.tensor([prompt.uid for prompt in rows]),
            logp=torch.cat([written.logp, drawn.logp.to(written.logp.device)], 1),
            mask=torch.cat([written.mask, drawn.mask.to(written.mask.device)], 1),
            seeds=drawn.seeds,
            rows_together=drawn.rows_together,
            steps_together=1,
            tape=(written, drawn),
            words=written.logp.shape[1],
        )

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        """Columns come back in the order writer, painter; `count` is the painter's where there is a step of it."""
        assert isinstance(trajectory, ChainTrajectory)
        written, drawn = trajectory.tape
        columns = list(range(trajectory.logp.shape[1])) if steps is None else list(steps)
        words = [column for column in columns if column < trajectory.words]
        strokes = [column - trajectory.words for column in columns if column >= trajectory.words]
        parts = []
        if words:
            parts.append(self.writer.replay(written, rows, words, versus))
        if strokes:
            parts.append(self.painter.replay(drawn, rows, strokes, versus))
        return parts[0] if len(parts) == 1 else _side_by_side(parts)

    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media:
        """One image a prompt, and as `text` what was written for it."""
        written = _written(prompts, self.writer.generate([_bare(prompt) for prompt in prompts], seeds)["text"].data)
        pipe = self.painter._pipe
        return _with_text(generate_centred(pipe, prompts, written, seeds, guidance, steps, self.share), written)

    def check_prompt(self, prompt: Prompt, answer: str | None = None) -> None:
        """Refuse a prompt that the writer cannot complete."""
        self.writer.check_prompt(_bare(prompt))

    @contextmanager
    def _both(self, which: Weights) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self._parts.values():
                stack.enter_context(part.weights(which))
            yield

    def weights(self, which: Weights) -> AbstractContextManager[None]:
        return self._both(which)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts.values() for group in part.parameter_groups()]

    def named_trainable(self) -> dict[str, nn.Parameter]:
        found = {}
        for name, part in self._parts.items():
            for key, parameter in part.named_trainable().items():
                found[f"{name}.{key}"] = parameter
        return found

    def step_ema(self, decay: float) -> None:
        for part in self._parts.values():
            part.step_ema(decay)

    def save_adapter(self, folder: Path | str) -> None:
        """The painter's files in `folder`, where diffusers looks for them; the writer's in its folder writer/."""
        self.painter.save_adapter(folder)
        self.writer.save_adapter(Path(folder) / "writer")

    def load_adapter(self, folder: Path | str) -> None:
        self.painter.load_adapter(folder)
        self.writer.load_adapter(Path(folder) / "writer")

    def shard(self, shard: Callable[[nn.Module], None]) -> None:
        self.writer.shard(shard)
        self.painter.shard(shard)

    def calls(self) -> int:
        return sum(part.calls() for part in self._parts.values())

    def digest(self) -> Mapping[str, str]:
        writer, painter = self.writer.digest(), self.painter.digest()
        return {key: f"{writer[key]}-{painter[key]}" for key in painter}


def load_chain(settings: PolicySettings, folder: Path, device: str) -> ChainPolicy:
    """The pipeline in `folder`, with the prompts of the language model in the folder `settings.writer`.

    Raises UsageError where one of them is not what it should be.
    """
    if not (folder / PIPELINE).is_file():
        raise UsageError(f"{folder} is not a diffusion pipeline, so nothing can be written for it; drop policy.writer")
    lora = settings.lora.model_copy(update={"targets": None})  # those named are the pipeline's, and so are its levers
    plain = {"gradient_checkpointing": False, "quantization": None, "offload": None}
    own = settings.model_copy(update={"lora": lora, "attention": "sdpa", "merged": None, **plain})
    writer = load_language(own, Path(str(settings.writer)), device)
    return ChainPolicy(writer, load_diffusion(settings, folder, device), settings.asked_share)


def _bare(prompt: Prompt) -> Prompt:
    """The prompt without leading tags, and without media, as the writer reads it."""
    tags = TAGS.match(prompt.text)
    return replace(prompt, text=prompt.text[tags.end() :] if tags else prompt.text, media=None)


def _written(original: Sequence[Prompt], texts: Any) -> list[Prompt]:
    """The painter's prompts: the tags of the original ones before the writer's text."""
    found = []
    for prompt, text in zip(original, texts, strict=True):
        tags = TAGS.match(prompt.text)
        written = " ".join(text.split())
        found.append(replace(prompt, text=(tags.group() if tags else "") + written) if written else prompt)
    return found


def _with_text(media: Media, prompts: Sequence[Prompt]) -> Media:
    return Media(**media, text=Track([prompt.text for prompt in prompts]))


def _side_by_side(parts: Sequence[Steps]) -> Steps:
    def cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
        known = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(known, 1) if len(known) == len(tensors) else None

    return Steps(
        score=torch.cat([part.score for part in parts], 1),
        count=parts[-1].count,
        mask=torch.cat([part.mask.to(part.score.device) for part in parts], 1),
        versus_score=cat([part.versus_score for part in parts]),
        kl=cat([part.kl for part in parts]),
    )
