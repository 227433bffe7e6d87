"""Exemplars: pictures, sounds or texts that show what is wanted; and how similar to them a picture is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.files.places import file_path, find
from genalign.files.text import parse_row, read_lines
from genalign.files.untrusted import neighbour
from genalign.media import audio, image
from genalign.media.image import load_png
from genalign.reward.base import ScoringError, Stateless, digest
from genalign.reward.heads.clip import ClipReward
from genalign.reward.prefetch import Prefetch
from genalign.reward.runtime.user_file import import_file
from genalign.reward.runtime.worker import ask
from genalign.reward.scores import readable_rows
from genalign.types import Media, Prompt, Scores, Track, UsageError, nearest

FORMS = "a folder of pictures or sounds, a .txt or .jsonl file, or file.py:function"
Sound = tuple[Tensor, float]  # (C,N) in [-1,1], and its sample rate


class Encoder(Protocol):
    """Features of media, and of texts, in one space. `unit`: rows are to be of length 1."""

    batch_size: int
    unit: bool

    def see(self, media: Media) -> Tensor: ...

    def read(self, prompts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class Exemplars:
    """pictures: files, or tensors (3,H,W) in [0,1]. sounds: files, or tensors with their rates. texts. Where texts are
    given too, they belong to pictures or sounds row by row."""

    pictures: tuple[Path | Tensor, ...] = ()
    texts: tuple[str, ...] = ()
    sounds: tuple[Path | Sound, ...] = ()

    @property
    def digest(self) -> str:
        """A hash of their content, whatever their files are called."""
        sha = hashlib.sha256(json.dumps(self.texts).encode())
        for picture in self.pictures:
            sha.update(picture.read_bytes() if isinstance(picture, Path) else picture.numpy().tobytes())
        for sound in self.sounds:
            sha.update(sound.read_bytes() if isinstance(sound, Path) else sound[0].numpy().tobytes())
            sha.update(b"" if isinstance(sound, Path) else str(sound[1]).encode())
        return sha.hexdigest()[:16]

    @property
    def shown(self) -> Sequence[Any]:
        """What is not text."""
        return self.sounds or self.pictures

    def batches(self, size: int) -> Iterator[Media]:
        """`shown`, `size` at a time.

        Raises:
            UsageError: a file that cannot be read.
        """
        for at in range(0, len(self.sounds), size):
            heard = [audio.read(sound) if isinstance(sound, Path) else sound for sound in self.sounds[at : at + size]]
            yield Media(audio=Track.of([wave for wave, _ in heard], [rate for _, rate in heard]))
        for at in range(0, 0 if self.sounds else len(self.pictures), size):
            some = self.pictures[at : at + size]
            tensors = [load_png(picture) if isinstance(picture, Path) else picture for picture in some]
            alike = len({tensor.shape for tensor in tensors}) == 1
            yield Media(image=Track(torch.stack(tensors) if alike else tensors))

    @torch.no_grad()
    def seen(self, encoder: Encoder) -> Tensor:
        """The features (M,E) of what is shown, float64; of length 1 as the encoder wants them."""
        return torch.cat([rows_of(encoder.see(media), encoder) for media in self.batches(encoder.batch_size)])

    def read(self, encoder: Encoder) -> Tensor:
        """The texts' features (M,E), float64; of length 1 as the encoder wants them."""
        return rows_of(encoder.read(self.texts), encoder)


def rows_of(features: Tensor, encoder: Encoder) -> Tensor:
    """Features (B,E) as float64 rows on the CPU, of length 1 where the encoder wants it; with gradients."""
    rows = features.double().cpu()
    return F.normalize(rows, dim=1) if encoder.unit else rows


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

    A folder: its pictures, or its sounds. A .txt: a text a line. A .jsonl: rows {"prompt": str}, with or without a file
    as "image" or "audio". A function: it returns pictures (M,3,H,W) in [0,1], sounds (M,C,N) with their rate as
    {"sounds": ..., "rate": ...}, or texts, or texts and one of these as a pair; it runs in the worker's process.

    Raises:
        UsageError: nothing of the kind there, or nothing in it.
    """
    path, _, function = address.rpartition(":")
    if path.endswith(".py"):
        content = Path(path).read_bytes() if Path(path).is_file() else b""
        exemplars = _from_function(Path(path), function, hashlib.sha256(content).hexdigest())
    elif Path(address).is_dir():
        exemplars = _from_folder(Path(address))
    elif Path(address).suffix in (".txt", ".jsonl"):
        exemplars = _from_lines(Path(address))
    else:
        raise UsageError(f"{address} holds no exemplars; name {FORMS}")
    if not exemplars.shown and not exemplars.texts:
        raise UsageError(f"{address} is empty; put exemplars there")
    return exemplars


def _from_folder(folder: Path) -> Exemplars:
    files = sorted(folder.iterdir())
    pictures, sounds = (tuple(file for file in files if file.suffix.lower() in m.SUFFIXES) for m in (image, audio))
    if pictures and sounds:
        raise UsageError(f"{folder} holds pictures and sounds; take a folder with one of them")
    return Exemplars(pictures=pictures, sounds=sounds)


@lru_cache(maxsize=4)
def _from_function(path: Path, name: str, content: str) -> Exemplars:
    """content: the file's hash. Rewards of a run that compare with the same exemplars share them; some take long."""
    try:
        made = ask({"ask": "exemplars", "path": str(path), "function": name})
    except ScoringError as error:
        raise UsageError(f"{name} of {path} gives no exemplars: {error}") from error
    return Exemplars(tuple(made["pictures"]), tuple(made["texts"]), tuple((w, made["rate"]) for w in made["sounds"]))


def made_by(path: str, function: str) -> dict[str, Any]:
    """What a user's function returns, as `pictures` (M,3,H,W) and `sounds` (M,C,N) in fp32, their `rate`, and `texts`;
    for the worker's process alone.

    Raises:
        UsageError: no such function, or it returns something else.
    """
    module = import_file(Path(path))
    found = getattr(module, function, None)
    if not callable(found):
        raise UsageError(f"{path} has no function {function!r}{nearest(function, vars(module))}")
    made: Any = found()
    if isinstance(made, tuple):
        shown, texts = made
    else:
        shown, texts = ((), made) if _all_texts(made) else (made, ())
    sounding = isinstance(shown, Mapping) and {"sounds", "rate"} <= set(shown)
    values = shown["sounds"] if sounding else shown
    try:
        tensor = torch.as_tensor(values).float() if len(values) else torch.empty(0, 3, 1, 1)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{function} of {path} returns neither pictures, sounds nor texts: {error}") from error
    right = tensor.ndim == 3 if sounding else tensor.ndim == 4 and tensor.shape[1] == 3
    if not right or not all(isinstance(text, str) for text in texts):
        forms = 'pictures (M,3,H,W), {"sounds": (M,C,N), "rate": R}, texts, or one of these with texts'
        raise UsageError(f"{function} of {path} must return {forms}, not {type(made).__name__}")
    pictures, sounds = (tensor[:0], tensor) if sounding else (tensor, tensor[:0])
    return {
        "pictures": pictures,
        "sounds": sounds,
        "rate": float(shown["rate"]) if sounding else 0.0,
        "texts": list(texts),
    }


def _all_texts(made: Any) -> bool:
    return isinstance(made, list) and all(isinstance(item, str) for item in made)


def _from_lines(path: Path) -> Exemplars:
    lines = read_lines(path)
    if path.suffix == ".txt":
        return Exemplars(texts=tuple(line.text.strip() for line in lines))
    rows = [parse_row(line, path, 'write {"prompt": str} on each line') for line in lines]
    try:
        pictures, sounds = (
            tuple(neighbour(path.parent, str(row[key]), str(path)) for row in rows if key in row)
            for key in ("image", "audio")
        )
        texts = tuple(str(row["prompt"]) for row in rows)
    except (TypeError, KeyError) as error:
        raise UsageError(
            f'a row of {path} is not an exemplar ({error}); write {{"prompt": str}} on each line'
        ) from error
    for key, files in (("image", pictures), ("audio", sounds)):
        if files and len(files) != len(texts):
            raise UsageError(f"only some rows of {path} have an {key!r}; give one to every row, or to none")
    if pictures and sounds:
        raise UsageError(f"the rows of {path} have both 'image' and 'audio'; drop one of them")
    return Exemplars(pictures, texts, sounds)


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
