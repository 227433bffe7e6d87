"""How well an edited clip shows its prompt, less how much it is still its source: CLIP-delta, for video to video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.files.shipped import OPEN_CLIP
from genalign.reward.base import Stateless, cut_info, digest, texts
from genalign.reward.heads.clip import ClipReward
from genalign.reward.heads.clips import TransformersClip
from genalign.reward.heads.weights import find_weights
from genalign.reward.scores import readable_rows
from genalign.types import Media, Prompt, Scores, Track, UsageError


class ClipDelta(Stateless):
    """score = scale cos(frame, prompt) - weight cos(frame, source frame): 0, about, of a clip that was left as it was.

    (UniRL's VideoCLIPDelta; the source is the video, or the picture, that the prompt brings along, and a prompt that
    brings neither is abstained from.) Without the second term a clip that shows what its source showed is near the best
    already. model: as of `ClipReward`, or of `TransformersClip` where it is no folder of open_clip's; processor: of the
    latter. scale: None is exp(logit_scale) / 26, with which PickScore's first term is about 0.8. frames: how many of
    either clip, evenly spaced, first and last among them; 1: the first alone, as UniRL does. Gradients flow to pixels.

    Raises:
        UsageError: frames below 1, or as those two classes.
    """

    needs = frozenset({"video", "prompt"})
    looks_at = "sample"
    differentiable = True

    def __init__(
        self,
        model: str | Path,
        *,
        processor: str | Path | None = None,
        scale: float | None = None,
        weight: float = 1.0,
        frames: int = 1,
        batch_size: int = 64,
        name: str = "clip-delta",
    ) -> None:
        if frames < 1:
            raise UsageError(f"frames of reward {name!r} is {frames}; 1 is the least")
        found = find_weights(model, Path())
        if (Path(found) / OPEN_CLIP).is_file():
            self.clip: ClipReward = ClipReward(found, batch_size=batch_size, name=name)
        else:
            self.clip = TransformersClip(found, processor=processor, batch_size=batch_size, name=name)
        self.scale, self.weight, self.frames = scale, float(weight), int(frames)
        self.name, self.aspects = name, (name,)

    @property
    def version(self) -> str:
        return digest("clip-delta", self.clip.version, self.scale, self.weight, self.frames)

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        sources = [source_of(prompt) for prompt in prompts]
        rows = [row for row, source in enumerate(sources) if source is not None]
        values, valid = torch.zeros(len(prompts)), torch.zeros(len(prompts), dtype=torch.bool)
        cut = [False] * len(prompts)
        if rows:
            asked = texts([prompts[row] for row in rows])
            edited = self._see([media["video"].row(row, self._chosen(media["video"], row)) for row in rows])
            given = self._see([source.row(0, self._chosen(source, 0)) for source in sources if source is not None])
            said = F.normalize(self.clip.read(asked, edited.device), dim=1)[:, None]  # (R,1,E)
            shows, keeps = (edited * said).sum(2).mean(1), (edited * given).sum(2).mean(1)
            delta = self._scale() * shows - self.weight * keeps
            values = values.index_put((torch.tensor(rows),), delta.cpu())
            valid[rows] = True
            for row, was_cut in zip(rows, self.clip.cut(asked), strict=True):
                cut[row] = was_cut
        none = torch.zeros_like(valid)[:, None]
        info = cut_info(self.name, cut)
        return Scores(self.aspects, values[:, None], valid[:, None], none, values, valid, torch.ones(1), info=info)

    def _chosen(self, track: Track, row: int) -> list[int]:
        last = len(track.held[row]) - 1
        return torch.linspace(0, last if self.frames > 1 else 0, self.frames).round().int().tolist()

    def _see(self, clips: Sequence[Tensor]) -> Tensor:
        """(R,frames,E) of length 1, of clips (frames,3,H,W) that may differ in size."""
        alike = len({clip.shape for clip in clips}) == 1
        pictures = torch.cat(list(clips)) if alike else [frame for clip in clips for frame in clip]
        seen = F.normalize(self.clip.see(Media(image=Track(pictures))), dim=1)
        return seen.unflatten(0, (len(clips), self.frames))

    def _scale(self) -> Tensor | float:
        if self.scale is not None:
            return self.scale
        net = self.clip._loaded[0]
        return getattr(net, "clip", net).logit_scale.detach().float().exp() / 26


def source_of(prompt: Prompt) -> Track | None:
    """The clip that a prompt brings along, or its picture as a clip of one frame; None where it brings neither."""
    if prompt.media is None:
        return None
    if "video" in prompt.media:
        return prompt.media["video"]
    picture = prompt.media.get("image")
    return None if picture is None else Track(picture.row(0)[None, None])
