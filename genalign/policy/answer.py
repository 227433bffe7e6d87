"""The form in which a denoiser answers, and the one tensor a batch that everything else here computes with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genalign.types import UsageError


class AnswerForm:
    """Reads a denoiser's answers, and writes tensors in the form of the last one that was read.

    An answer is a tensor (R,*L) or a list of R rows, by itself or as the first value of a tuple or of an output class;
    or, of a model that draws several media at once, a tensor (R,*L) each, which are read as one (R,N): flat, end to
    end. name: the denoiser's class, for what is said of an answer that is none of these.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.write: Callable[[Tensor], Any] = lambda x: (x,)
        """(R,*L) or (R,N) as the pipeline expects it."""
        self._zeros: Tensor | None = None  # (1, ...) like one row

    @property
    def known(self) -> bool:
        """Whether an answer was read."""
        return self._zeros is not None

    def zeros(self, rows: int) -> Tensor:
        """Zeros of the shape and dtype that was read, (rows, ...)."""
        assert self._zeros is not None
        return self._zeros.expand(rows, *self._zeros.shape[1:])

    def read(self, answer: Any) -> Tensor:
        """The answer as one tensor. Raises UsageError where it is none."""
        media = _media(answer)
        tensor = self._read_media(answer, media) if media else self._read_one(answer)
        self._zeros = torch.zeros_like(tensor[:1])
        return tensor

    def _read_media(self, answer: Any, media: list[Tensor]) -> Tensor:
        shapes = [x.shape[1:] for x in media]
        kind, names = type(answer), list(answer) if isinstance(answer, dict) else None

        def write(x: Tensor) -> Any:
            flat = x.split([shape.numel() for shape in shapes], 1)
            parts = [part.reshape(-1, *shape) for part, shape in zip(flat, shapes, strict=True)]
            return tuple(parts) if names is None else kind(**dict(zip(names, parts, strict=True)))

        self.write = write
        return torch.cat([x.flatten(1) for x in media], 1)

    def _read_one(self, answer: Any) -> Tensor:
        value = answer if isinstance(answer, Tensor) else answer[0]
        as_list = isinstance(value, list) and len({row.shape for row in value}) == 1
        tensor: Any = torch.stack(value) if isinstance(value, list) and as_list else value
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{self.name} returns a {type(tensor).__name__}, not one tensor a batch")

        def rows(x: Tensor) -> Any:
            return list(x) if as_list else x

        if isinstance(answer, Tensor):
            self.write = rows
        elif isinstance(answer, dict):
            kind, key = type(answer), next(iter(answer))
            self.write = lambda x: kind(**{key: rows(x)})
        else:
            self.write = lambda x: (rows(x),)
        return tensor


def _media(answer: Any) -> list[Tensor]:
    """The tensors of an answer that holds one for each of several media; none of any other answer."""
    values = list(answer.values()) if isinstance(answer, dict) else answer
    if not isinstance(values, (tuple, list)) or isinstance(answer, list) or len(values) < 2:
        return []
    tensors = all(isinstance(x, Tensor) and x.is_floating_point() for x in values)
    return list(values) if tensors and len({len(x) for x in values}) == 1 else []
