"""Which arguments of a denoiser have a row axis, and how guidance branches and rows are cut out of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Place = tuple[Any, ...]  # a path in the tree of a denoiser's arguments


def row_axes(one: Any, two: Any) -> tuple[dict[Place, int | None], bool]:
    """From the arguments of a call of one row and of two: place -> the axis that doubled or None, and are rows mixed.

    Rows are mixed where the first axis doubled and another one changed as well: then a row's argument depends on its
    neighbours (several input images read as one row's).
    """
    shapes, mixed = dict(leaves(two)), False
    axes: dict[Place, int | None] = {}
    for place, single in leaves(one):
        double = shapes.get(place, ())
        if len(single) != len(double):
            continue
        axes[place] = None
        changed = [axis for axis, (a, b) in enumerate(zip(single, double, strict=True)) if a != b]
        if len(changed) == 1 and double[changed[0]] == 2 * single[changed[0]]:
            axes[place] = changed[0]
        elif changed and double[0] == 2 * single[0]:
            mixed = True
    return axes, mixed


def part(tree: Any, k: int, many: int, rows: int, axes: Mapping[Place, int | None]) -> Any:
    """Branch k of a tree of arguments that holds `many` branches of `rows` rows; rows lead where nothing is known."""
    return _cut(_own(tree, k, many, axes, ()), range(k * rows, (k + 1) * rows), many * rows, axes, ())


def _own(tree: Any, k: int, many: int, axes: Mapping[Place, int | None], place: Place) -> Any:
    """The tree with branch k's number where there is one a branch, whatever the rows (a time)."""
    if isinstance(tree, Tensor) and tree.shape == (many,) and place in axes and axes[place] is None:
        return tree[k : k + 1]
    if isinstance(tree, dict):
        return {key: _own(item, k, many, axes, (*place, key)) for key, item in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_own(item, k, many, axes, (*place, j)) for j, item in enumerate(tree))
    return tree


def pick(tree: Any, chosen: Sequence[int], rows: int, axes: Mapping[Place, int | None]) -> Any:
    """The chosen rows of a tree of arguments that holds one branch of `rows` rows."""
    return _cut(tree, chosen, rows, axes, ())


def _cut(tree: Any, at: Sequence[int], size: int, axes: Mapping[Place, int | None], place: Place) -> Any:
    if isinstance(tree, list) and axes.get(place) is None and any(isinstance(item, Tensor) for item in tree):
        return [_cut(item, at, size, axes, (*place, j)) for j, item in enumerate(tree)]  # (of one tensor a layer)
    if isinstance(tree, (Tensor, list)):
        axis = axes.get(place, 0 if _shape(tree) else None)
        many = 0 if axis is None else _shape(tree)[axis] // size
        if axis is None or not many or many * size != _shape(tree)[axis] or (many > 1 and place not in axes):
            return tree
        if many > 1:  # several beside each other for one row, such as a text for each of its frames
            at = [i * many + j for i in at for j in range(many)]
        if isinstance(tree, list):
            return [tree[i] for i in at]
        if isinstance(at, range):
            return tree.narrow(axis, at.start, len(at))
        return tree.index_select(axis, torch.tensor(at, device=tree.device))
    if isinstance(tree, dict):
        return {key: _cut(item, at, size, axes, (*place, key)) for key, item in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_cut(item, at, size, axes, (*place, j)) for j, item in enumerate(tree))
    return tree


def leaves(tree: Any, place: Place = ()) -> Iterator[tuple[Place, tuple[int, ...]]]:
    """Place and shape of each tensor and each list of a tree, and of the tensors in its lists."""
    if isinstance(tree, (Tensor, list)):
        yield place, _shape(tree)
        for j, item in enumerate(tree if isinstance(tree, list) else ()):
            if isinstance(item, Tensor):
                yield (*place, j), _shape(item)
    elif isinstance(tree, dict):
        for key, item in tree.items():
            yield from leaves(item, (*place, key))
    elif isinstance(tree, tuple):
        for j, item in enumerate(tree):
            yield from leaves(item, (*place, j))


def _shape(leaf: Tensor | list[Any]) -> tuple[int, ...]:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else (len(leaf),)
