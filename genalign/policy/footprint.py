"""How many bytes a model takes, without its weights: networks of shapes alone, run forwards and backwards.

What autograd keeps and what kernels hand on are counted storage by storage, as they are made and freed, while the
denoiser runs on torch's "meta" device. Attention counts as the fused kernels compute it, which keep no scores.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genalign.files.places import model_file
from genalign.policy.adapter import Adapter
from genalign.policy.decoding import FRAMES
from genalign.policy.denoiser_inputs import Drawn, denoiser_inputs, takes_packed
from genalign.policy.denoisers import DENOISERS
from genalign.policy.live import Live, fused_attention
from genalign.policy.meta_networks import bytes_of, is_video, latent_frames, on_meta, parts_of, pixels_per_latent
from genalign.policy.residence import blocks_of, modules_outside
from genalign.policy.settings import PolicySettings
from genalign.types import GenalignError, UsageError

TOKENS = 256  # of a text, where the recipe does not say


@dataclass(frozen=True)
class Row:
    """Bytes of one row in a denoiser: at the peak of a pass, and those that its graph holds after the forward pass."""

    peak: int
    held: int


class Footprint:
    """The bytes of a model under some settings; parts of it that are asked once are remembered.

    Raises UsageError where nothing is known about the model without downloading it.
    """

    def __init__(self, settings: PolicySettings, model: Path | str) -> None:
        self.settings, self.model = settings, model
        self.dtype = getattr(torch, settings.dtype)
        self.parts = parts_of(model)
        self.denoisers = sorted(name for name in self.parts if name.startswith(DENOISERS))
        self.autoencoder = next((name for name in self.parts if "vae" in name or name == "movq"), None)
        self._remembered: dict[Any, Any] = {}

    # ---- weights --------------------------------------------------------------------------------------------------

    def network(self, name: str) -> Any:
        """A component on "meta", in the dtype of its weights; None where only the number of its weights is known."""
        return self._once(("network", name), lambda: on_meta(self.parts[name], self.dtype))

    def weights(self, name: str, settings: PolicySettings) -> int:
        """Bytes of a component's frozen weights and buffers, as the settings hold them."""
        kind = settings.quantization if name in self.denoisers else None
        return self._once(("weights", name, kind), lambda: self._weights(name, kind, whole=True))

    def resident(self, name: str, settings: PolicySettings) -> int:
        """Those of a denoiser that are on the device together: with its blocks offloaded, all else and the largest."""
        if settings.offload != "blocks" or name not in self.denoisers:
            return self.weights(name, settings)
        kind = settings.quantization
        return self._once(("resident", name, kind), lambda: self._weights(name, kind, whole=False))

    def _weights(self, name: str, kind: str | None, whole: bool) -> int:
        network = self.network(name)
        if network is None:
            return self.parts[name].count * self.dtype.itemsize
        blocks, seen = {} if whole else blocks_of(network), set[int]()
        apart = {id(block) for block in blocks.values()}
        rest = sum(bytes_of(module, kind, seen) for module in modules_outside(network, apart))
        each = [sum(bytes_of(module, kind, seen) for module in block.modules()) for block in blocks.values()]
        return rest + max(each, default=0)

    @cached_property
    def trained(self) -> int:
        """How many numbers the adapters hold."""
        return sum(p.numel() for name in self.denoisers for p in self.adapted(name).parameters() if p.requires_grad)

    def adapted(self, name: str) -> Any:
        """A denoiser with its adapter, on "meta"."""

        def make() -> Any:
            network = on_meta(self.parts[name], self.dtype)
            Adapter(network, self.settings.lora)
            return network

        return self._once(("adapted", name), make)

    # ---- what is computed -------------------------------------------------------------------------------------------

    def drawn(self, settings: PolicySettings) -> Drawn:
        """The latents of a micro-batch."""
        call, vae = settings.call, self.network(self.autoencoder) if self.autoencoder else None
        denoiser = self.network(self.denoisers[0])
        if vae is None or denoiser is None:
            raise UsageError(f"the sizes of {self.model} are not known without its files; download it, and ask again")
        scale = pixels_per_latent(vae)
        size = getattr(denoiser.config, "sample_size", None) or 0
        side = size * scale if isinstance(size, int) and size else 1024
        frames = int(call.get("num_frames", 1))
        latent = latent_frames(vae, frames)
        channels = getattr(vae.config, "z_dim", None) or vae.config.latent_channels
        height, width = (int(call.get(name, side)) // scale for name in ("height", "width"))
        return Drawn(settings.batch_size, height, width, latent, channels, self._tokens(call))

    def _tokens(self, call: Mapping[str, Any]) -> int:
        """Of one text, as its pipeline pads it: to the first tokenizer's length where there is no other."""
        denoiser = self.network(self.denoisers[0])
        parameters = inspect.signature(denoiser.forward).parameters
        if "sample" in parameters:
            return self._padded
        long = takes_packed(parameters) or any(denoiser.config.get(name) for name in ("text_dim", "cap_feat_dim"))
        longest = int(call.get("max_sequence_length", 512 if long else TOKENS))
        both = "pooled_projections" in parameters and not takes_packed(parameters)  # one text behind the other
        return self._padded + longest if both else longest

    @cached_property
    def _padded(self) -> int:
        """Tokens of the first tokenizer."""
        if isinstance(self.model, str):
            return 77
        try:
            said = json.loads(model_file(self.model, "tokenizer/tokenizer_config.json").read_text(encoding="utf-8"))
            return int(said["model_max_length"])
        except (GenalignError, OSError, ValueError, KeyError):
            return 77

    def sampling(self, settings: PolicySettings) -> int | None:
        """Peak bytes of a forward pass without a graph; None where the denoiser's class is not known here."""
        return self._denoising(settings, graph=False)

    def learning(self, settings: PolicySettings) -> int | None:
        """Peak bytes of a forward and a backward pass, gradients of the adapter among them."""
        return self._denoising(settings, graph=True)

    def climbing(self, settings: PolicySettings, rows: int, steps: int) -> int | None:
        """Peak bytes where a reward's gradient goes through the autoencoder and the last steps, whose graphs are kept:
        those of the reward itself left out, and the adapter's gradients among them."""
        alone = settings.model_copy(update={"batch_size": 1})
        one, decoded = self._row(settings, graph=True), self.decoding(alone, graph=True)
        if one is None or decoded is None:
            return None
        once = 4 * self.trained
        return once + rows * max((steps - 1) * one.held + one.peak - once, steps * one.held + decoded)

    def _denoising(self, settings: PolicySettings, graph: bool) -> int | None:
        """Of one row, as many times as there are rows; the gradients of the adapter are there once."""
        one, once = self._row(settings, graph), 4 * self.trained if graph else 0
        return None if one is None else once + settings.batch_size * (one.peak - once)

    def _row(self, settings: PolicySettings, graph: bool) -> Row | None:
        drawn = replace(self.drawn(settings), rows=1)
        again = settings.gradient_checkpointing and graph
        found: Row | None = self._once(("row", graph, again, drawn), lambda: self._denoise(drawn, graph, again))
        return found

    def _denoise(self, drawn: Drawn, graph: bool, again: bool) -> Row | None:
        peaks, held = [], []
        for name in self.denoisers:
            network = self.adapted(name)
            given = denoiser_inputs(network, drawn, self.dtype)
            if given is None:
                return None
            if again:
                network.enable_gradient_checkpointing(computed_again)
            with torch.set_grad_enabled(graph), fused_attention(), Live() as live:
                out = network(**given, return_dict=False)[0]
                held.append(live.now)
                if graph:
                    _stacked(out).float().square().sum().backward()
                del out
            peaks.append(live.peak)
            network.zero_grad(set_to_none=True)
            if again:
                network.disable_gradient_checkpointing()
        return Row(max(peaks), max(held))

    def decoding(self, settings: PolicySettings, graph: bool = False) -> int | None:
        """Peak bytes of the autoencoder on a micro-batch; None where it cannot be tried. graph: and back to latents."""
        drawn, vae = self.drawn(settings), settings.vae
        if vae.slicing:
            drawn = replace(drawn, rows=1)
        key = ("decode", graph, drawn, vae.model_dump_json())
        return self._once(key, lambda: self._decode(drawn, settings, graph))

    def _decode(self, drawn: Drawn, settings: PolicySettings, graph: bool) -> int | None:
        assert self.autoencoder is not None
        network = on_meta(self.parts[self.autoencoder], self.dtype)
        if settings.vae.tiling:
            network.enable_tiling()
        if settings.vae.chunk is not None and hasattr(network, FRAMES):
            setattr(network, FRAMES, settings.vae.chunk)
        video = [drawn.frames] if is_video(network) else []
        z = torch.empty(drawn.rows, drawn.channels, *video, drawn.height, drawn.width, dtype=self.dtype, device="meta")
        try:
            with torch.set_grad_enabled(graph), fused_attention(), Live() as live:
                made = network.decode(z.requires_grad_(graph), return_dict=False)[0]
                if graph:
                    made.float().square().sum().backward()
                del made
        except (RuntimeError, ValueError, NotImplementedError, TypeError):  # what has no kernel of shapes alone
            return None
        return live.peak

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]


def _stacked(out: Tensor | list[Tensor]) -> Tensor:
    """What a denoiser makes, which of some is a list of rows."""
    return out if isinstance(out, Tensor) else torch.stack(out)


def computed_again(block: Any, *args: Any) -> Any:
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
