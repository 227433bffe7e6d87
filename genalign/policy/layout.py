"""Samples into the latents that a pipeline steps in, by turning its decoding around without knowing its class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from genalign.policy.hooks import attribute
from genalign.policy.inputs import input_shape
from genalign.policy.pathwise import decoded
from genalign.policy.pipe import Pipe
from genalign.policy.tape import Enough
from genalign.policy.turn import packed
from genalign.types import Media, UsageError

TOLERANCE = 1e-4  # of the largest value: float32 arithmetic on values that a probe makes about 3


@dataclass(frozen=True)
class Layout:
    """What a pipeline does between its last latents z and its autoencoder: v[j] = scale[j] z[order[j]] + shift[j].

    latent (*L) and inner are the shapes of one row of z and v; order, scale and shift are flat. size: that of what is
    drawn. axes: of what the autoencoder is given; one less than of v where it is given frames for rows.
    """

    latent: tuple[int, ...]
    inner: tuple[int, ...]
    order: Tensor
    scale: Tensor
    shift: Tensor
    size: tuple[int, ...]
    axes: int

    def latents(self, v: Tensor) -> Tensor:
        """(R,*inner) -> (R,*L)."""
        z = torch.empty(len(v), len(self.order), dtype=v.dtype, device=v.device)
        z[:, self.order] = (v.flatten(1) - self.shift) / self.scale
        return z.reshape(len(v), *self.latent)


def learn_layout(
    name: str, zero: Tensor, shift: Tensor, size: tuple[int, ...], axes: int, before: Callable[[Tensor], Tensor]
) -> Layout:
    """The layout of a pipeline. before: latents (R,*L) -> what its autoencoder is given.

    zero: one row of zeros, and shift: what is given for it. Ones show the scale, and the bits of each element's index
    where it went. Random latents then prove that this is all the pipeline does.

    Raises UsageError where it is not.
    """
    count = zero.numel()
    index = torch.arange(count, device=zero.device)
    bits = [(index >> k) & 1 for k in range(max(1, (count - 1).bit_length()))]
    proof = 3 * torch.randn(count, generator=torch.Generator().manual_seed(0)).to(zero)
    probes = torch.stack([torch.ones_like(proof), *(bit.to(zero) for bit in bits), proof])
    shown = before(probes.reshape(-1, *zero.shape[1:])).flatten(1) - shift.flatten()
    scale, places = shown[0], shown[1:-1]
    order = torch.zeros_like(scale, dtype=torch.long)
    for k, bit in enumerate(places):  # of each element's index, one binary digit a probe
        order |= (bit / scale).round().long().clamp(0, 1) << k
    exact = (
        bool((scale != 0).all() and torch.isfinite(shown).all())
        and torch.equal(order.sort().values, index)
        and bool((shown[-1] - scale * proof[order]).abs().max() <= TOLERANCE * shown[-1].abs().max())
    )
    if not exact:
        raise UsageError(
            f"{name} decodes its latents by more than moving, scaling and shifting each of their elements, so nothing"
            " can be encoded for it; train it on its own samples"
        )
    return Layout(tuple(zero.shape[1:]), tuple(shift.shape[1:]), order, scale, shift.flatten(), size, axes)


class Encoder:
    """Samples to clean latents, by a layout that is learnt and proved once for each size of sample that is drawn."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self._layouts: dict[Any, Layout] = {}

    @torch.no_grad()
    def __call__(self, media: Media) -> Tensor:
        """Media -> (B,*L), the mode of the posterior; pixels of another size are resized to the one that is drawn."""
        samples = self.pipe.tracks.encodable(media)
        self.pipe.take_for_size(samples.row(0))
        autoencoder = _autoencoder(self.pipe)
        with self.pipe.stage.staying(autoencoder), _widened(autoencoder):
            layout = self._layout(autoencoder)
            rows = range(len(samples))
            return torch.cat(
                [
                    self._rows(autoencoder, layout, [samples.row(row) for row in rows[part]])
                    for part in self.pipe.parts(len(samples))
                ]
            )

    def _rows(self, autoencoder: Any, layout: Layout, samples: Sequence[Tensor]) -> Tensor:
        values = self.pipe.tracks.values(samples, layout.size, layout.axes)
        draws = "sample_posterior" in inspect.signature(autoencoder.encode).parameters  # LongCat's, unless told not to
        told = {"sample_posterior": False} if draws else {}
        found = autoencoder.encode(values.to(next(autoencoder.parameters())), **told)
        if hasattr(found, "latent_dist"):
            v = found.latent_dist.mode()
        else:
            v = found.latents if hasattr(found, "latents") else found.latent
        v = packed([v], len(samples))
        if tuple(v.shape[1:]) != layout.inner:
            raise UsageError(
                f"{self.pipe.name} decodes {layout.inner} to a sample of {'x'.join(map(str, layout.size))}, but that is"
                f" encoded to {tuple(v.shape[1:])}; set height and width in policy.call to what the model knows"
            )
        return layout.latents(v)

    def _layout(self, autoencoder: Any) -> Layout:
        key = input_shape(self.pipe.like)
        if key not in self._layouts:
            given: list[Tensor] = []
            zeros: list[Tensor] = []

            def zero(x: Tensor) -> Tensor:
                zeros.append(torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)))
                return zeros[-1]

            with self.pipe.tracks.watched():
                made = self.pipe.tracks(decoded(self.pipe, 1, zero, _decoding(autoencoder, given.append)))

            times, axes = len(given), given[0].ndim  # some decode a few frames at a time
            shift = packed([torch.cat(given)], 1)

            def enough(v: Tensor) -> None:
                given.append(v)
                if len(given) == times:
                    raise Enough

            def before(probes: Tensor) -> Tensor:
                shown = []
                for part in self.pipe.parts(len(probes)) if times == 1 else one_by_one(len(probes)):
                    given.clear()
                    rows = probes[part]
                    decoded(self.pipe, len(rows), lambda x, z=rows: z, _decoding(autoencoder, enough))  # type: ignore[misc]
                    shown.append(packed([torch.cat(given)], len(rows)))
                return torch.cat(shown)

            size = self.pipe.tracks.size(made)
            self._layouts[key] = learn_layout(self.pipe.name, zeros[0], shift, size, axes, before)
        return self._layouts[key]


def one_by_one(rows: int) -> list[slice]:
    return [slice(row, row + 1) for row in range(rows)]


def _autoencoder(pipe: Pipe) -> Any:
    for module in pipe.pipeline.components.values():
        if isinstance(module, nn.Module) and hasattr(module, "encode") and hasattr(module, "decode"):
            return module
    raise UsageError(f"{pipe.name} has no autoencoder, so samples cannot be encoded for it")


@contextmanager
def _decoding(autoencoder: Any, seen: Callable[[Tensor], Any]) -> Iterator[None]:
    """Within the context `seen` is called with what the autoencoder decodes, just before it does."""
    real = autoencoder.decode

    @functools.wraps(real)
    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen(z)
        return real(z, *args, **kwargs)

    with attribute(autoencoder, "decode", decode):
        yield


@contextmanager
def _widened(module: nn.Module) -> Iterator[None]:
    """Within the context the module computes in at least float32; its tensors come back untouched."""
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point() and t.dtype.itemsize < 4]
    before = [t.data for t in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.data = data
