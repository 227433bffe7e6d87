"""CLIP-like checkpoints by the formats they are published in: transformers' CLIPModel, and bare open_clip weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from genalign.reward.base import digest, weights_digest
from genalign.reward.heads.clip import ClipReward, noting_cuts, on_tensors
from genalign.reward.heads.text_features import context, too_long
from genalign.reward.heads.weights import find_weights, fit, from_hub, read_weights, weights_file
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores, UsageError

ResizeMode = Literal["shortest", "longest", "squash"]


class TransformersClip(ClipReward):
    """score = scale * cos(image, prompt) + offset, by transformers' CLIPModel; gradients flow to the pixels.

    PickScore (arXiv 2305.01569, section 4) is scale="logit": exp(logit_scale) of the checkpoint, about 18 to 24.
    CLIPScore is scale=100 (as torchmetrics; the paper's 2.5 is a matter of scale). model: a folder or hub id of the
    weights. processor: a folder or hub id of the tokenizer and of preprocessor_config.json, where it is another one.
    The rest is as in ClipReward, whose departures hold here too.

    Raises:
        UsageError: no such model or processor, pickled weights, or a preprocessing without a tensor form.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        processor: str | Path | None = None,
        scale: float | Literal["logit"] = 1.0,
        offset: float = 0.0,
        batch_size: int = 64,
        name: str = "clip",
    ) -> None:
        self.by_logit = scale == "logit"
        super().__init__(
            model, scale=1.0 if scale == "logit" else scale, offset=offset, batch_size=batch_size, name=name
        )
        self.processor = self.model if processor is None else find_weights(processor, Path())

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Any]:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        towers = _Towers(from_hub(CLIPModel, self.model))
        tokenizer = from_hub(AutoTokenizer, self.processor)
        longest = context(towers.clip.text_model)

        def tokens(captions: list[str]) -> tuple[Tensor, list[bool]]:
            read = tokenizer(captions, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            return read.input_ids, too_long(tokenizer, captions, longest)

        return towers, self._transform(from_hub(CLIPImageProcessor, self.processor)), tokens

    def _transform(self, processor: Any) -> Any:
        return transform_of(processor)

    @property
    def version(self) -> str:
        net, preprocess, _ = self._loaded
        return digest(
            "clip-hf", self.name, weights_digest(net), preprocess.settings, self.scale, self.offset, self.by_logit
        )

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        cosine = super().__call__(prompts, media, group)
        if not self.by_logit:
            return cosine
        scale = self._loaded[0].clip.logit_scale.float().exp().cpu()
        return all_valid(self.aspects, scale * (cosine.values - self.offset) + self.offset, info=cosine.info)


class OpenClipWeights(ClipReward):
    """score = cos(image, prompt), by weights of an open_clip architecture that come as one bare state dict.

    HPSv2 and HPSv2.1 (arXiv 2306.09341): ViT-H-14, the cosine alone, about 0.2 to 0.35 (leaderboards print 100 times
    that). model: a folder or hub id that holds `file`, or the file. arch: a name of open_clip's. resize_mode:
    open_clip's word: "longest" (HPSv2: the longest side becomes the model's, and black fills the rest), "shortest" (and
    the middle is cropped) or "squash".

    As in the official code, float pixels are resized and not cut where they overshoot. Departs from it: it names no
    antialias, so that its scores depend on the version of torchvision; here the resize is antialiased. A picture whose
    longest side is the model's already is padded too, where the official code ends in an error.

    Raises:
        UsageError: no such model, pickled weights, an architecture that open_clip does not know, or another shape.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        arch: str,
        file: str = "model.safetensors",
        resize_mode: ResizeMode = "shortest",
        scale: float = 1.0,
        offset: float = 0.0,
        batch_size: int = 64,
        name: str = "clip",
    ) -> None:
        self._set(find_weights(model, Path()), scale, offset, batch_size, name)
        if resize_mode not in get_args(ResizeMode):
            raise UsageError(f"reward {name!r} has no resize_mode {resize_mode!r}; {', '.join(get_args(ResizeMode))}")
        self.arch, self.file, self.resize_mode = arch, file, resize_mode
        if Path(self.model).exists():
            weights_file(self.model, file)

    @cached_property
    def _loaded(self) -> tuple[Any, Callable[[Tensor], Tensor], Any]:
        import open_clip

        path = weights_file(self.model, self.file)
        if self.arch not in open_clip.list_models():
            raise UsageError(f"open_clip knows no architecture {self.arch!r}; see open_clip.list_models()")
        net, _, preprocess = open_clip.create_model_and_transforms(self.arch, image_resize_mode=self.resize_mode)
        for step in preprocess.transforms:
            if getattr(step, "longest", 0.0) == 1.0:
                step.get_params = longest_side
        fit(net, read_weights(path), path)
        return net.float(), on_tensors(preprocess, clamp=False), noting_cuts(open_clip.get_tokenizer(self.arch))

    @property
    def version(self) -> str:
        return digest("clip-weights", super().version)


def longest_side(picture: Any, size: tuple[int, int], longest: float) -> list[int]:
    """Height and width of a picture whose longest side becomes size[0], rounded as HPSv2's ResizeMaxSize does it.

    (open_clip divides where this multiplies; the two differ by a pixel at some halves.)
    """
    width, height = picture.size
    scale = size[0] / float(max(height, width))
    return [round(side * scale) for side in (height, width)]


class _Towers(nn.Module):
    """transformers' CLIPModel under the two verbs of open_clip's."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip: Any = clip

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=pixels).pooler_output

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.clip.get_text_features(input_ids=tokens).pooler_output


class _Transform:
    """A transform on float tensors, and its settings as JSON-like data (for version)."""

    def __init__(self, apply: Callable[[Tensor], Tensor], settings: Any) -> None:
        self.apply, self.settings = apply, settings

    def __call__(self, images: Tensor) -> Tensor:
        return self.apply(images)


def transform_of(processor: Any, crop: Any = None) -> Any:
    """A transformers image processor's resize, centre crop and normalisation, on float tensors in [0,1].

    crop: which class crops, where a scorer used another than the processor's own.

    Raises:
        UsageError: it does not resize by the shortest edge (or to a fixed size), or not to [0,1]; its crop is larger
            than what it resizes to; or its filter has no tensor form.
    """
    from torchvision.transforms import CenterCrop, InterpolationMode, Normalize, Resize

    class FloorCrop(CenterCrop):
        """transformers rounds an odd margin down, torchvision to even."""

        def forward(self, img: Tensor) -> Tensor:
            height, width = self.size
            top, left = (img.shape[-2] - height) // 2, (img.shape[-1] - width) // 2
            return img[..., top : top + height, left : left + width]

    size = dict(processor.size)
    edge = size.get("shortest_edge") or (size.get("height"), size.get("width"))
    sides = edge if isinstance(edge, tuple) else (edge, edge)
    modes = {0: InterpolationMode.NEAREST, 2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}
    filter_of = modes.get(int(processor.resample))
    cropped = dict(processor.crop_size) if processor.do_center_crop else {"height": 0, "width": 0}
    scaled = processor.do_rescale and abs(processor.rescale_factor - 1 / 255) < 1e-9
    if None in sides or not scaled or filter_of is None or not processor.do_resize:
        raise UsageError(f"the preprocessing {size} of {type(processor).__name__} has no tensor form in genalign")
    if cropped["height"] > sides[0] or cropped["width"] > sides[1]:
        raise UsageError(f"{type(processor).__name__} crops {cropped} from {size}; mend preprocessor_config.json")
    steps: list[Any] = [Resize(edge, filter_of)]
    if processor.do_center_crop:
        steps.append((crop or FloorCrop)((cropped["height"], cropped["width"])))
    if processor.do_normalize:
        steps.append(Normalize(processor.image_mean, processor.image_std))
    return _Transform(on_tensors(SimpleNamespace(transforms=steps)), [str(step) for step in steps])
