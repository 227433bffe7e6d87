"""Batches and scores as frames of bytes: a JSON header followed by raw tensors. Nothing here can execute anything."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import IO, Any

import torch
from torch import Tensor

from genalign.types import Media, Prompt, Scores, Track, UsageError

DTYPES = {str(t): t for t in (torch.float32, torch.float64, torch.float16, torch.bfloat16)}
DTYPES |= {str(t): t for t in (torch.bool, torch.uint8, torch.int32, torch.int64)}
FRAME = "application/vnd.genalign.frame"  # its content type in HTTP
MARK = "__tensor__"  # {MARK: i} stands for the i-th tensor after the header


def send(stream: IO[bytes], message: Mapping[str, Any]) -> None:
    """Write one frame: length of the header (8 bytes, little endian), header, tensors.

    Raises:
        UsageError: something in `message` is neither JSON nor a tensor.
    """
    tensors: list[Tensor] = []
    body = _strip(message, tensors)
    shapes = [(str(tensor.dtype), list(tensor.shape)) for tensor in tensors]
    try:
        header = json.dumps({"body": body, "tensors": shapes}).encode()
    except TypeError as error:
        raise UsageError(f"a reward in a worker can only be given plain data, but a fact is not: {error}") from error
    stream.write(struct.pack("<Q", len(header)) + header)
    for tensor in tensors:
        stream.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read one frame; None where the stream has ended, also in the middle of a frame.

    Whatever the sender wrote, no more memory is taken than it sent.

    Raises:
        ValueError, KeyError: a header of another form.
    """
    size = stream.read(8)
    header = stream.read(struct.unpack("<Q", size)[0]) if len(size) == 8 else b""
    if not header:
        return None
    parsed = json.loads(header)
    tensors = []
    for name, shape in parsed["tensors"]:
        dtype = DTYPES[name]
        if not all(isinstance(length, int) and length >= 0 for length in shape):
            raise ValueError(f"a tensor cannot have the shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        data = stream.read(size)
        if len(data) < size:
            return None
        whole = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        tensors.append(whole.reshape(shape))
    return _fill(parsed["body"], tensors)


def _strip(node: Any, tensors: list[Tensor]) -> Any:
    if isinstance(node, Tensor):
        tensors.append(node)
        return {MARK: len(tensors) - 1}
    if isinstance(node, Mapping):
        return {str(key): _strip(value, tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_strip(value, tensors) for value in node]
    return node


def _fill(node: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(node, dict):
        return tensors[node[MARK]] if MARK in node else {key: _fill(value, tensors) for key, value in node.items()}
    return [_fill(value, tensors) for value in node] if isinstance(node, list) else node


def pack_batch(prompts: Sequence[Prompt], media: Media, group: Tensor | None) -> dict[str, Any]:
    """What a reward is called with, as a message for `send`."""
    rows = []
    for prompt in prompts:
        held = None if prompt.media is None else _pack_media(prompt.media)
        rows.append({"text": prompt.text, "facts": prompt.facts, "uid": prompt.uid, "media": held})
    return {"prompts": rows, "media": _pack_media(media), "group": group}


def unpack_batch(message: Mapping[str, Any]) -> tuple[list[Prompt], Media, Tensor | None]:
    """What `pack_batch` packed.

    Raises:
        KeyError, TypeError, ValueError: the message is of another form.
    """
    prompts = []
    for row in message["prompts"]:
        held = None if row["media"] is None else _unpack_media(row["media"])
        prompts.append(Prompt(row["text"], held, row["facts"], row["uid"]))
    return prompts, _unpack_media(message["media"]), message["group"]


def pack_scores(scores: Scores) -> dict[str, Any]:
    """Scores as a message; info that is not plain data crosses as text."""
    info: dict[str, list[Any]] = {}
    for key, rows in scores.info.items():
        info[key] = [_plain(value) for value in rows]
    return {**vars(scores), "info": info}


def unpack_scores(message: Mapping[str, Any]) -> Scores:
    """What `pack_scores` packed."""
    return Scores(**{**message, "names": tuple(message["names"])})


def _pack_media(media: Media) -> dict[str, Any]:
    packed: dict[str, Any] = {}
    for name, track in media.items():
        held = track.held if isinstance(track.held, Tensor) else list(track.held)
        packed[name] = {"data": held, "rate": track.rate}
        if track.ids is not None:
            packed[name]["ids"] = [list(ids) for ids in track.ids]
        if track.rates is not None:
            packed[name]["rates"] = list(track.rates)
    return packed


def _unpack_media(message: Mapping[str, Any]) -> Media:
    tracks: dict[str, Track] = {}
    for name, track in message.items():
        rates = track.get("rates")
        tracks[name] = Track(track["data"], track["rate"], track.get("ids"), None if rates is None else tuple(rates))
    return Media(**tracks)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
