"""Text encoded once per unique prompt, whatever the pipeline."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from genalign.policy.memo import Kept
from genalign.policy.stored import Stored

REMEMBERED = 2048  # prompts whose embeddings stay in (CPU) memory


class TextMemo:
    """Answers a pipeline's encode_prompt from memory.

    A prompt is encoded alone, so that its embedding depends neither on its neighbours nor on whether a run was resumed.
    Where single embeddings do not stack (padding to the longest of a batch) the unique prompts of a batch are encoded
    together, and where a prompt has several rows (a negative one of each in front of all) the batch as it is; then
    batches are remembered. Embeddings live on the CPU, the last batch also on the device: replay asks for it step by
    step. stored: where they are kept from run to run; None: nowhere.
    """

    stored: Stored | None = None

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self._single: dict[Any, Any] = {}
        self._axes: dict[str, Any] = {}  # per kind of call: the tree of what it returns, with the axis of its rows
        self._together = Kept()  # batches
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
        if not isinstance(prompt, list) or arguments.get("num_images_per_prompt", 1) != 1:
            return real(**arguments)
        by_row, shared = [], {}
        for name, value in arguments.items():
            if name == "batch_size" and value == len(prompt):
                continue  # so many rows as are encoded
            if isinstance(value, list) and (name.startswith(("prompt", "negative")) or all(map(_is_picture, value))):
                by_row.append(name)
                unknown = len(value) != len(prompt)
            else:
                shared[name] = value
                unknown = isinstance(value, Tensor) or _is_picture(value)
            if unknown:  # what no key can stand for is not remembered
                return real(**arguments)
        rows = list(zip(*(arguments[name] for name in by_row), strict=True))
        keys = tuple(tuple(map(_content, row)) for row in rows)
        key = (tuple(by_row), repr(sorted(shared.items(), key=lambda item: item[0])), keys)
        if self._last[0] != key:
            counted = _counting(real) if arguments.get("batch_size") == len(prompt) else real
            self._last = (key, self._batch(counted, by_row, shared, dict(zip(keys, rows, strict=True)), keys, key[1]))
        return self._last[1]

    def _batch(
        self,
        real: Callable[..., Any],
        by_row: Sequence[str],
        shared: dict[str, Any],
        rows: Mapping[Any, Any],
        keys: Sequence[Any],
        kind: str,
    ) -> Any:
        """rows: the arguments of each unique key; keys: that of each row of the batch."""

        def encode(*chosen: Any) -> Any:
            columns = zip(*(rows[key] for key in chosen), strict=True)
            return real(**shared, **dict(zip(by_row, map(list, columns), strict=True)))

        device = self.pipeline._execution_device
        for key in rows:
            if (kind, key) not in self._single:
                while len(self._single) >= REMEMBERED:
                    self._single.pop(next(iter(self._single)))
                single = self._single[kind, key] = self._encoded(kind, (key,), encode)
                if kind not in self._axes:
                    # One row of everything: the first axis. Else a second row shows which axis doubles.
                    obvious = all(map(_is_one_row, _leaves(single)))
                    self._axes[kind] = _axes(single, single if obvious else encode(key, key))
        axes = self._axes[kind]
        singles = [self._single[kind, key] for key in rows if (kind, key) in self._single]
        place = {key: k for k, key in enumerate(rows)}
        where = [place[key] for key in keys]
        single = self._single.get((kind, keys[0]))
        one_row_each = single is None or _one_row_each(axes, single)
        if one_row_each and len(singles) == len(rows) and _stacks(axes, singles):
            return _map(_take(axes, _stack(axes, singles), where), lambda x: x.to(device))
        chosen = tuple(rows) if one_row_each else keys
        together = self._together.get((kind, chosen))
        if together is None:
            together = self._encoded(kind, chosen, encode)
            self._together.keep((kind, chosen), together)
        return _map(_take(axes, together, where) if one_row_each else together, lambda x: x.to(device))

    def _encoded(self, kind: str, chosen: Sequence[Any], encode: Callable[..., Any]) -> Any:
        def make() -> Any:
            return _map(encode(*chosen), lambda x: x.cpu())

        return make() if self.stored is None else self.stored.answer(("encoder", kind, tuple(chosen)), make)


def _counting(real: Callable[..., Any]) -> Callable[..., Any]:
    """The same, for a pipeline that wants the number of its rows beside them."""

    def encode(**arguments: Any) -> Any:
        return real(**arguments, batch_size=len(arguments["prompt"]))

    return encode


def _is_picture(value: Any) -> bool:
    import PIL.Image

    return isinstance(value, PIL.Image.Image)


def _content(value: Any) -> Any:
    """What stands for an argument in a key: text itself, and the digest of a picture."""
    if not _is_picture(value):
        return value
    return value.size, value.mode, hashlib.sha256(value.tobytes()).hexdigest()


def _map(tree: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_map(item, fn) for item in tree)
    return tree


def _leaves(tree: Any) -> Iterator[Tensor | list[Any]]:
    if isinstance(tree, (Tensor, list)):
        yield tree
    elif isinstance(tree, tuple):
        for item in tree:
            yield from _leaves(item)


def _is_one_row(leaf: Tensor | list[Any]) -> bool:
    return leaf.shape[:1] == (1,) if isinstance(leaf, Tensor) else len(leaf) <= 1


def _axes(one: Any, two: Any) -> Any:
    """Of each leaf, the axis that doubles from one row to two (the first if `two` is `one`), None for none."""
    if isinstance(one, Tensor):
        doubled = (axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if b == 2 * a)
        return 0 if one is two else next(doubled, None)
    if isinstance(one, list) and (one is two or len(two) == 2 * len(one)):
        return 0
    if isinstance(one, (tuple, list)):
        return tuple(_axes(a, b) for a, b in zip(one, two, strict=True))
    return 0  # of what is absent here and may be a tensor elsewhere (a mask that nothing needs yet)


def _one_row_each(axes: Any, single: Any) -> bool:
    """Whether what was encoded of one prompt is one row wherever it has rows."""
    if isinstance(axes, tuple):
        return all(map(_one_row_each, axes, single))
    if axes is None or single is None:
        return True
    return len(single) <= 1 if isinstance(single, list) else bool(single.shape[axes] == 1)


def _stacks(axes: Any, trees: Sequence[Any]) -> bool:
    """Whether encoded rows fit together: what has no row axis (position ids) must be the same in all."""
    first = trees[0]
    if isinstance(axes, tuple):
        return all(_stacks(axis, items) for axis, *items in zip(axes, *trees, strict=True))
    if isinstance(first, Tensor):
        alike = all(isinstance(tree, Tensor) and tree.shape == first.shape for tree in trees)
        return alike and (axes is not None or all(torch.equal(tree, first) for tree in trees))
    return isinstance(first, list) or all(tree is None for tree in trees)


def _stack(axes: Any, trees: Sequence[Any]) -> Any:
    first = trees[0]
    if isinstance(axes, tuple):
        return type(first)(_stack(axis, items) for axis, *items in zip(axes, *trees, strict=True))
    if axes is None or first is None:
        return first
    return [item for tree in trees for item in tree] if isinstance(first, list) else torch.cat(list(trees), axes)


def _take(axes: Any, tree: Any, where: Sequence[int]) -> Any:
    if isinstance(axes, tuple):
        return type(tree)(_take(axis, item, where) for axis, item in zip(axes, tree, strict=True))
    if axes is None or tree is None:
        return tree
    if isinstance(tree, list):
        return [tree[k] for k in where] if tree else tree
    return tree.index_select(axes, torch.as_tensor(where, device=tree.device))
