"""How well an image fits its prompt, by a CLIP-like model of open_clip; gradients flow to the pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.files.untrusted import check_model
from genalign.reward.base import Stateless, cut_info, digest, image_batches, resolve_model, texts, weights_digest
from genalign.reward.heads.weights import hub_file
from genalign.reward.prefetch import Prefetch, prefetched
from genalign.reward.scores import all_valid, readable_rows
from genalign.types import Media, Prompt, Scores, UsageError

REMEMBERED = 8192  # prompts whose features stay in memory
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")  # what open_clip reads first


class ClipReward(Stateless):
    """score = scale * cos(image, prompt) + offset, the cosine in [-1,1] (CLIPScore, arXiv 2104.08718, eq. 1).

    model: a folder in open_clip's layout (open_clip_config.json and safetensors; relative, or a shipped asset), or the
    id of such a model on the hub. It loads when first used, and follows the images' device. Prompts longer than the
    model's context are cut, which the log says. batch_size: images a forward pass (its memory, not its result).

    Departs from the paper: (1) not cut at 0, so that the gradient never dies. (2) scale is 1, not 2.5. (3) pixels stay
    float through the model's own resize, crop and normalisation (antialiased, clamped to [0,1] after a bicubic resize),
    where the paper rounds to 8 bits; the two differ by less than 1e-3.

    Raises:
        UsageError: no such model, or no safetensors in it.
    """

    needs = frozenset({"image", "prompt"})
    looks_at = "sample"
    differentiable = True
    unit = True  # features are compared by their direction

    def __init__(
        self, model: str | Path, *, scale: float = 1.0, offset: float = 0.0, batch_size: int = 64, name: str = "clip"
    ) -> None:
        self._set(resolve_model(model), scale, offset, batch_size, name)
        files = {file.name: file.suffix for file in Path(self.model).glob("*.*")}
        pickled = not any(name in files for name in WEIGHTS) and {".bin", ".pth"} & set(files.values())
        if Path(self.model).is_dir() and (pickled or ".safetensors" not in files.values()):
            fault = f"a pickle where it needs {WEIGHTS[0]}" if pickled else "no .safetensors file"
            raise UsageError(f"CLIP model {self.model} has {fault}; genalign reads no pickled weights")

    def _set(self, model: str, scale: float, offset: float, batch_size: int, name: str) -> None:
        self.model, self.scale, self.offset = model, float(scale), float(offset)
        self.batch_size, self.name, self.aspects = batch_size, name, (name,)
        self._texts: dict[str, tuple[Tensor, bool]] = {}  # features (E,) on the CPU, and whether the prompt was cut

    @cached_property
    def _loaded(self) -> tuple[Any, Callable[[Tensor], Tensor], Any]:
        import open_clip
        from transformers import AutoConfig

        check_model(self.model)
        local = Path(self.model).is_dir()
        address = f"local-dir:{self.model}" if local else f"hf-hub:{self.model}"
        if not local:
            hub_file(self.model, WEIGHTS[0])  # without it open_clip takes the pickle
        quiet, root = logging.getLogger().level, logging.getLogger()
        root.setLevel(logging.ERROR)  # open_clip logs each step of loading on the root logger
        try:
            text = (open_clip.get_model_config(address) or {}).get("text_cfg", {})
            if "hf_model_name" in text:  # before open_clip asks at the terminal whether to run its code
                AutoConfig.from_pretrained(text["hf_model_name"], trust_remote_code=False)
            net, _, preprocess = open_clip.create_model_and_transforms(address, require_pretrained=True)
            plain = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
            tokenizer = open_clip.get_tokenizer(address, **plain)
        except Exception as error:
            raise UsageError(f"CLIP model {self.model} cannot be loaded: {' '.join(str(error).split())}") from error
        finally:
            root.setLevel(quiet)
        return net.float().eval().requires_grad_(False), on_tensors(preprocess), noting_cuts(tokenizer)

    @property
    def version(self) -> str:
        net, _, _ = self._loaded
        settings = getattr(net.visual, "preprocess_cfg", None)
        return digest("clip", self.name, weights_digest(net), settings, self.scale, self.offset)

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        seen = self.see(media)
        with torch.autocast(seen.device.type, enabled=False):
            cosine = F.cosine_similarity(seen, self.read(texts(prompts), seen.device), dim=1)
        cut = cut_info(self.name, self.cut(texts(prompts)))
        return all_valid(self.aspects, (self.scale * cosine.cpu() + self.offset)[:, None], info=cut)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        """Seeing the images; prompts are read when all are scored."""
        if "image" not in modalities:
            return ()

        def see(prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> Tensor:
            return self.see(media)

        return (Prefetch(self, see, torch.cat, self.batch_size, what="features"),)  # type: ignore[arg-type]

    def see(self, media: Media) -> Tensor:
        """Image features (B,E) of any length, with gradients, on the images' device."""
        made: Tensor | None = prefetched(self, media, "features")
        if made is not None:
            return made
        net, preprocess, _ = self._loaded
        images = image_batches(media, self.batch_size)
        device = images[0].device
        net.to(device)
        with torch.autocast(device.type, enabled=False):
            return torch.cat([net.encode_image(preprocess(part)) for part in images])

    @torch.no_grad()
    def read(self, prompts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Text features (B,E) of any length; a prompt is encoded once, however often it comes back."""
        net, _, tokenizer = self._loaded
        net.to(device)
        if len(self._texts) > REMEMBERED:
            self._texts.clear()
        fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        for at in range(0, len(fresh), self.batch_size):
            part = fresh[at : at + self.batch_size]
            tokens, cut = tokenizer(part)
            features = net.encode_text(tokens.to(device)).cpu()
            for prompt, row, longer in zip(part, features, cut, strict=True):
                self._texts[prompt] = (row, longer)
        return torch.stack([self._texts[prompt][0] for prompt in prompts]).to(device)

    def cut(self, prompts: Sequence[str]) -> list[bool]:
        """Which of the prompts just read were longer than the model's context."""
        return [self._texts[prompt][1] for prompt in prompts]


def noting_cuts(tokenizer: Any) -> Callable[[list[str]], tuple[Tensor, list[bool]]]:
    """open_clip's tokenizer, which also returns what it cut: texts that one more token would have continued."""

    def read(captions: list[str]) -> tuple[Tensor, list[bool]]:
        tokens = tokenizer(captions)
        longer = tokenizer(captions, context_length=tokens.shape[1] + 1)
        return tokens, (tokens != longer[:, :-1]).any(1).tolist()

    return read


def on_tensors(preprocess: Any, clamp: bool = True) -> Callable[[Tensor], Tensor]:
    """open_clip's own transform for PIL images, run on float tensors (B,3,H,W) in [0,1] with gradients.

    It resizes by the shortest side and crops, by the longest and pads with black, or to a fixed size, as the model's
    own preprocess_cfg has it. clamp: a bicubic resize overshoots at edges; PIL, with its 8 bits, cuts that off.
    """
    from torchvision.transforms import CenterCrop, InterpolationMode, Normalize, Resize
    from torchvision.transforms.functional import resize

    steps: list[Any] = []
    for step in preprocess.transforms:
        if hasattr(step, "fill"):  # open_clip's CenterCropOrPad; its fill is one of 256 levels
            steps.append(type(step)(step.size, fill=step.fill / 255))
        elif isinstance(step, Resize | CenterCrop | Normalize) or hasattr(step, "longest"):
            steps.append(step)

    def apply(images: Tensor) -> Tensor:
        for step in steps:
            if not hasattr(step, "interpolation"):
                images = step(images)
                continue
            size = step.size
            if hasattr(step, "longest"):  # open_clip's ResizeKeepRatio, which reads the size alone of a PIL image
                shown = SimpleNamespace(size=(images.shape[-1], images.shape[-2]))
                size = [max(1, side) for side in step.get_params(shown, step.size, step.longest)]
            images = resize(images, size, step.interpolation, antialias=True)  # some ask for none; PIL always has it
            images = images.clamp(0, 1) if clamp and step.interpolation == InterpolationMode.BICUBIC else images
        return images

    return apply
