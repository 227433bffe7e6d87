"""Exemplars: pictures or texts that show by example what is wanted; and how similar to them a picture is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.files.places import file_path, find
from genalign.files.text import parse_row, read_lines
from genalign.files.untrusted import neighbour
from genalign.media.image import SUFFIXES, load_png
from genalign.reward.base import ScoringError, Stateless, digest
from genalign.reward.heads.clip import ClipReward
from genalign.reward.prefetch import Prefetch
from genalign.reward.runtime.user_file import import_file
from genalign.reward.runtime.worker import ask
from genalign.reward.scores import readable_rows
from genalign.types import Media, Prompt, Scores, Track, UsageError, nearest

FORMS = "a folder of pictures, a .txt or .jsonl file, or file.py:function"


@dataclass(frozen=True)
class Exemplars:
    """pictures: files, or tensors (3,H,W) in [0,1]. texts. Where both are given, they belong together row by row."""

    pictures: tuple[Path | Tensor, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """A hash of their content, whatever their files are called."""
        sha = hashlib.sha256(json.dumps(self.texts).encode())
        for picture in self.pictures:
            sha.update(picture.read_bytes() if isinstance(picture, Path) else picture.numpy().tobytes())
        return sha.hexdigest()[:16]

    @torch.no_grad()
    def seen(self, clip: ClipReward) -> Tensor:
        """The pictures' features (M,E), of length 1, float64."""
        parts = []
        for at in range(0, len(self.pictures), clip.batch_size):
            some = self.pictures[at : at + clip.batch_size]
            tensors = [load_png(picture) if isinstance(picture, Path) else picture for picture in some]
            alike = len({tensor.shape for tensor in tensors}) == 1
            media = Media(image=Track(torch.stack(tensors) if alike else tensors))
            parts.append(F.normalize(clip.see(media).double().cpu(), dim=1))
        return torch.cat(parts)

    def read(self, clip: ClipReward) -> Tensor:
        """The texts' features (M,E), of length 1, float64."""
        return F.normalize(clip.read(self.texts).double().cpu(), dim=1)


def find_exemplars(source: str, folder: Path) -> str:
    """The absolute address of exemplars named relative to `folder`, to the shipped rewards or to the shipped assets.

    Raises:
        UsageError: in none of these places.
    """
    path, colon, function = source.rpartition(":")
    if path.endswith(".py"):
        return f"{file_path(path, folder)}{colon}{function}"
    found = find(source, folder, "rewards", "assets")
    if found is None:
        raise UsageError(
            f"there are no exemplars {source!r} in {folder.resolve()} or among the shipped ones; name {FORMS}"
        )
    return str(found)


def read_exemplars(address: str) -> Exemplars:
    """What an address of `find_exemplars` holds.

    A folder: its pictures. A .txt: a text a line. A .jsonl: rows {"prompt": str}, or {"prompt": str, "image": file}. A
    function: it returns pictures (M,3,H,W) in [0,1], or texts, or both as a pair; it runs in the worker's process.

    Raises:
        UsageError: nothing of the kind there, or nothing in it.
    """
    path, _, function = address.rpartition(":")
    if path.endswith(".py"):
        exemplars = _from_function(Path(path), function)
    elif Path(address).is_dir():
        files = sorted(file for file in Path(address).iterdir() if file.suffix.lower() in SUFFIXES)
        exemplars = Exemplars(pictures=tuple(files))
    elif Path(address).suffix in (".txt", ".jsonl"):
        exemplars = _from_lines(Path(address))
    else:
        raise UsageError(f"{address} holds no exemplars; name {FORMS}")
    if not exemplars.pictures and not exemplars.texts:
        raise UsageError(f"{address} is empty; put exemplars there")
    return exemplars


def _from_function(path: Path, name: str) -> Exemplars:
    try:
        made = ask({"ask": "exemplars", "path": str(path), "function": name})
    except ScoringError as error:
        raise UsageError(f"{name} of {path} gives no exemplars: {error}") from error
    return Exemplars(tuple(made["pictures"]), tuple(made["texts"]))


def made_by(path: str, function: str) -> dict[str, Any]:
    """What a user's function returns, as `pictures` (M,3,H,W) fp32 and `texts`; for the worker's process alone.

    Raises:
        UsageError: no such function, or it returns something else.
    """
    module = import_file(Path(path))
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"{path} has no function {function!r}{nearest(function, vars(module))}")
    made: Any = found()
    if isinstance(made, tuple):
        pictures, texts = made
    else:
        pictures, texts = ((), made) if _all_texts(made) else (made, ())
    try:
        shown = torch.as_tensor(pictures).float() if len(pictures) else torch.empty(0, 3, 1, 1)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{function} of {path} returns neither pictures nor texts: {error}") from error
    if shown.ndim != 4 or shown.shape[1] != 3 or not all(isinstance(text, str) for text in texts):
        raise UsageError(
            f"{function} of {path} must return pictures (M,3,H,W), texts, or both, not {type(made).__name__}"
        )
    return {"pictures": shown, "texts": list(texts)}


def _all_texts(made: Any) -> bool:
    return isinstance(made, list) and all(isinstance(item, str) for item in made)


def _from_lines(path: Path) -> Exemplars:
    lines = read_lines(path)
    if path.suffix == ".txt":
        return Exemplars(texts=tuple(line.text.strip() for line in lines))
    rows = [parse_row(line, path, 'write {"prompt": str} on each line') for line in lines]
    try:
        pictures = tuple(neighbour(path.parent, str(row["image"]), str(path)) for row in rows if "image" in row)
        texts = tuple(str(row["prompt"]) for row in rows)
    except (TypeError, KeyError) as error:
        raise UsageError(
            f'a row of {path} is not an exemplar ({error}); write {{"prompt": str}} on each line'
        ) from error
    if pictures and len(pictures) != len(texts):
        raise UsageError(f"only some rows of {path} have an 'image'; give one to every row, or to none")
    return Exemplars(pictures, texts)


class Similarity(Stateless):
    """score = scale * mean over the exemplars' pictures of cos(image, exemplar) + offset (CLIP-I, arXiv 2208.12242).

    model: as of `clip`. exemplars: see `read_exemplars`; pictures of the subject. Gradients flow to the pixels.

    Raises:
        UsageError: no such model, no exemplars there, or texts alone.
    """

    needs = frozenset({"image"})
    looks_at = "sample"
    differentiable = True

    def __init__(
        self,
        model: str | Path,
        exemplars: str,
        *,
        scale: float = 1.0,
        offset: float = 0.0,
        batch_size: int = 64,
        name: str = "similarity",
    ) -> None:
        self.clip = ClipReward(model, batch_size=batch_size)
        self.exemplars = read_exemplars(exemplars)
        if not self.exemplars.pictures:
            raise UsageError(f"{exemplars} holds texts; reward {name!r} compares with pictures")
        self.scale, self.offset, self.name, self.aspects = float(scale), float(offset), name, (name,)

    @cached_property
    def _mean(self) -> Tensor:
        return self.exemplars.seen(self.clip).mean(0).float()

    @property
    def version(self) -> str:
        return digest("similarity", self.name, self.clip.version, self.exemplars.digest, self.scale, self.offset)

    def prefetches(self, modalities: AbstractSet[str]) -> tuple[Prefetch, ...]:
        return self.clip.prefetches(modalities)

    @readable_rows
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        seen = F.normalize(self.clip.see(media), dim=1).cpu()
        value = self.scale * (seen @ self._mean) + self.offset
        valid = torch.ones(len(prompts), 1, dtype=torch.bool)
        return Scores(self.aspects, value[:, None], valid, ~valid, value, valid[:, 0], torch.ones(1))
