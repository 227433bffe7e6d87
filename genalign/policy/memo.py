"""Networks that a pipeline asks before it samples, answered from memory when it is entered again."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genalign.policy.hooks import attribute

KEPT, LARGEST = 2**30, 2**28  # bytes of answers, the oldest of which make room, and of one


class Kept:
    """Answers by their keys, as many as fit into KEPT bytes, the oldest of which make room."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Any, Any] = OrderedDict()
        self._size = 0

    def get(self, key: Any) -> Any:
        """None where nothing is kept of it."""
        return self._answers.get(key)

    def keep(self, key: Any, answer: Any) -> None:
        self.drop(key)
        if _bytes(answer) <= LARGEST:
            self._answers[key] = answer
            self._size += _bytes(answer)
        while self._size > KEPT:
            self.drop(next(iter(self._answers)))

    def drop(self, key: Any) -> None:
        if key in self._answers:
            self._size -= _bytes(self._answers.pop(key))


class EncoderMemo:
    """Answers whatever network a pipeline asks before its denoiser: autoencoders that encode a picture, vision towers,
    connectors, text encoders. The same arguments, by a digest of their values, have the same answer.

    Arguments that no digest can stand for (a cache of keys and values) are never remembered, nor is an answer that the
    pipeline has written into. closed: whether the present run has come to its denoiser.
    """

    def __init__(self, pipeline: Any, denoisers: Collection[str]) -> None:
        self.pipeline, self.denoisers, self.closed = pipeline, set(denoisers), False
        self._kept = Kept()  # (answer, the versions of its tensors)

    @contextmanager
    def active(self) -> Iterator[None]:
        self.closed = False
        with ExitStack() as stack:
            for name, module in self.pipeline.components.items():
                method = "encode" if hasattr(module, "decode") else "forward"
                if isinstance(module, nn.Module) and name not in self.denoisers and hasattr(module, method):
                    stack.enter_context(attribute(module, method, self._remembering(name, module, method)))
            yield

    def _remembering(self, name: str, module: nn.Module, method: str) -> Callable[..., Any]:
        real = getattr(module, method)

        @functools.wraps(real)
        def ask(*args: Any, **kwargs: Any) -> Any:
            if self.closed or any(x.requires_grad for x in tensors((args, kwargs))):
                return real(*args, **kwargs)
            try:
                key = name, getattr(module, "dtype", None), _digest((args, kwargs))
            except TypeError:
                return real(*args, **kwargs)
            answer, versions = self._kept.get(key) or (None, [])
            if answer is None or [x._version for x in tensors(answer)] != versions:
                with torch.no_grad():
                    answer = real(*args, **kwargs)
                self._keep(key, answer)
            return answer

        return ask

    def _keep(self, key: Any, answer: Any) -> None:
        self._kept.drop(key)
        found = list(tensors(answer))
        if found and not any(x.is_inference() for x in found):
            self._kept.keep(key, (answer, [x._version for x in found]))


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of arguments or of an answer, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif hasattr(tree, "__dict__"):  # an output of a class of its own, such as a posterior
        yield from tensors([value for value in vars(tree).values() if value is not tree])


def _bytes(answer: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tensors(answer))


def _digest(tree: Any) -> Any:
    """What stands for the values of arguments. Raises TypeError where nothing can."""
    if isinstance(tree, Tensor):
        data = tree.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return tuple(tree.shape), str(tree.dtype), hashlib.blake2b(data.tobytes(), digest_size=16).digest()
    if isinstance(tree, (tuple, list)):
        return tuple(_digest(item) for item in tree)
    if isinstance(tree, dict):
        return tuple((key, _digest(item)) for key, item in tree.items())
    if tree is None or isinstance(tree, (bool, int, float, str, torch.dtype, torch.device)):
        return repr(tree)
    raise TypeError(type(tree).__name__)
