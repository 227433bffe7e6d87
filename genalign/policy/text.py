"""Text encoded once per unique prompt, whatever the pipeline."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

REMEMBERED = 2048  # prompts whose embeddings stay in (CPU) memory


class TextMemo:
    """Answers a pipeline's encode_prompt from memory.

    A prompt is encoded alone, so that its embedding depends neither on its neighbours nor on whether a run was resumed.
    Where single embeddings do not stack (padding to the longest of a batch) the unique prompts of a batch are encoded
    together. Embeddings live on the CPU, the last batch also on the device: replay asks for it step by step.
    """

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._single: dict[Any, Any] = {}
        self._last: tuple[Any, Any] = (None, None)

    @contextmanager
    def active(self) -> Iterator[None]:
        real = getattr(self.pipeline, "encode_prompt", None)
        if real is None:
            yield
            return

        @functools.wraps(real)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad():
                return self._answer(real, inspect.signature(real).bind(*args, **kwargs).arguments)

        self.pipeline.encode_prompt = encode_prompt
        try:
            yield
        finally:
            del self.pipeline.encode_prompt

    def _answer(self, real: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        arguments = {**arguments, **arguments.get("kwargs", {})}
        arguments.pop("kwargs", None)
        prompt = arguments.get("prompt")
        tensors = any(isinstance(value, Tensor) for value in arguments.values())
        if not isinstance(prompt, list) or tensors or arguments.get("num_images_per_prompt", 1) != 1:
            return real(**arguments)
        by_row = [
            n for n, value in arguments.items() if isinstance(value, list) and n.startswith(("prompt", "negative"))
        ]
        shared = {name: value for name, value in arguments.items() if name not in by_row}
        rows = [tuple(arguments[name][k] for name in by_row) for k in range(len(prompt))]
        key = (tuple(by_row), repr(sorted(shared.items(), key=lambda item: item[0])), tuple(rows))
        if self._last[0] != key:
            self._last = (key, self._batch(real, by_row, shared, rows, key[1]))
        return self._last[1]

    def _batch(
        self, real: Callable[..., Any], by_row: Sequence[str], shared: dict[str, Any], rows: list[Any], kind: str
    ) -> Any:
        def encode(chosen: Sequence[Any]) -> Any:
            return real(**shared, **{name: [row[j] for row in chosen] for j, name in enumerate(by_row)})

        unique = list(dict.fromkeys(rows))
        device = self.pipeline._execution_device
        for row in unique:
            if (kind, row) not in self._single:
                while len(self._single) >= REMEMBERED:
                    self._single.pop(next(iter(self._single)))
                self._single[kind, row] = _map(encode([row]), lambda x: x.cpu())
        singles = [self._single[kind, row] for row in unique if (kind, row) in self._single]
        where = [unique.index(row) for row in rows]
        if len(singles) == len(unique) and _stacks(singles):
            return _map(_stack(singles, where), lambda x: x.to(device))
        together = encode(unique)
        return _map(together, lambda x: x[where] if x.shape[:1] == (len(unique),) else x)


def _map(tree: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(item, fn) for item in tree)
    return tree


def _stacks(trees: Sequence[Any]) -> bool:
    first = trees[0]
    if isinstance(first, Tensor):
        return all(isinstance(tree, Tensor) and tree.shape == first.shape for tree in trees)
    if isinstance(first, tuple):
        return all(isinstance(t, tuple) and len(t) == len(first) for t in trees) and all(
            _stacks(items) for items in zip(*trees, strict=True)
        )
    return first is None and all(tree is None for tree in trees)


def _stack(trees: Sequence[Any], where: Sequence[int]) -> Any:
    """One batch from single rows; what has no batch axis (position ids) is shared."""
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.cat([trees[k] for k in where]) if first.shape[:1] == (1,) else first
    if isinstance(first, tuple):
        return tuple(_stack(items, where) for items in zip(*trees, strict=True))
    return None
