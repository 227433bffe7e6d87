"""Log-probabilities of given tokens, and KL, without the logits of all tokens at once.

The output head is applied to a chunk of hidden states at a time, and the gradient to these is computed beside the
log-probability (fused.py), where the head is a frozen product.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genalign.policy.language.apart import agree
from genalign.policy.language.fused import Fused
from genalign.types import GenalignError, UsageError

log = logging.getLogger(__name__)

CHUNK = 7 * 2**20  # logits that are computed at a time: 28 MiB of floats, which allocator.py keeps for the next chunk
NO_NUMBERS = (
    "the model's logits are NaN or infinite, so nothing can be sampled; set policy.dtype=float32, or check the weights"
)
TRIAL = 4  # tokens on which the head is compared with the model's own logits

# What classes multiply the head's output by, or divide it (Granite, which others read the other way): by the setting.
FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma; RecurrentGemma; xLSTM


class Scored(NamedTuple):
    """Of N tokens: their log-probabilities (N,); those under the other hidden states, and KL to these."""

    logp: Tensor
    other: Tensor | None = None
    kl: Tensor | None = None


class Head:
    """The last layer of a language model: from hidden states (N,H) to the distribution that is sampled from.

    The logits of a token are cap tanh(factor W h / cap), as far as the class has these, divided by the temperature;
    the `forbidden` ids have none. They are float32, whatever the weights are.

    Where that is not what the model's own forward gives (its class does something else), the model's whole logits are
    taken as they are, at a cost in memory; the log says so.

    trial: the model's arguments to compare on; by default a few tokens.
    """

    def __init__(
        self, model: Any, forbidden: Sequence[int], temperature: float, trial: dict[str, Any] | None = None
    ) -> None:
        self.factor = 1.0
        self.cap: float | None = None
        self.model, self.temperature, self.trial = model, temperature, trial
        self.half = next(model.parameters()).dtype.itemsize < 4
        self.layer: nn.Module | None = model.get_output_embeddings()
        self.forbidden = torch.tensor(sorted(forbidden), dtype=torch.long)
        self._tried = False
        self._open = False

    # ---- a model that is split over ranks ---------------------------------------------------------------------------

    def check_split(self) -> None:
        """Refuse to be split where the layer's weights would be asked for once more in the backward pass.

        Raises:
            UsageError: saying so.
        """
        self._try_once(next(self.model.parameters()).device)
        if self.layer is not None and not self._is_frozen_product:
            raise UsageError(
                f"the output layer of {type(self.model).__name__} is no plain linear layer, so the model cannot be "
                f"split over ranks; set train.backend=replicated"
            )

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within the context the layer's weights can be used outside the model's forward, which alone gathers them."""
        gather = getattr(self.model, "unshard", None)
        if gather is None or self._open or self.layer is None:
            yield
            return
        gather()
        self._open = True
        try:
            yield
        finally:
            self._open = False
            self.model.reshard()

    # ---- hidden states ----------------------------------------------------------------------------------------------

    def hidden(self, inputs: dict[str, Any]) -> Tensor:
        """What the head is given at every token, (R,L,H); or the logits (R,L,V), where it is not used."""
        self._try_once(inputs["input_ids"].device)
        if self.layer is None:
            logits: Tensor = self.model(**inputs, use_cache=False).logits
            return logits
        return self._before_head(self.layer, inputs)

    def _before_head(self, layer: nn.Module, inputs: dict[str, Any]) -> Tensor:
        seen: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(given[0])
            return (given[0][:, :0], *given[1:])  # the head and what follows it compute nothing

        hook = layer.register_forward_pre_hook(keep)
        try:
            self.model(**inputs, use_cache=False)
        finally:
            hook.remove()
        gather = getattr(self.model, "unshard", None)
        if gather is not None and seen[0].requires_grad:  # a backward pass that begins inside of the model's forward
            seen[0].register_hook(lambda _: gather())
        return seen[0]

    @torch.no_grad()
    def _try_once(self, device: torch.device) -> None:
        """Compare with the model's own logits, the first time."""
        if self._tried:
            return
        self._tried = True
        ids = torch.tensor([self.allowed(TRIAL)], device=device)
        inputs = self.trial or {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        whole = self.model(**inputs, use_cache=False).logits[0].float()
        if not bool(whole.isfinite().all()):
            raise GenalignError(NO_NUMBERS)
        if not any(self._fits(inputs, whole, *tail) for tail in self._tails()):
            log.warning("%s does more than a product to make its logits, so they are all held in memory at once",
                        type(self.model).__name__)  # fmt: skip
            self.layer, self.factor, self.cap = None, 1.0, None

    def _tails(self) -> list[tuple[float, float | None]]:
        """The factors and caps that the class may use, of which its configuration speaks; or may not, as Gemma 3 with a
        picture tower does not."""
        config = self.model.config.get_text_config()
        named = [float(value) for name in FACTORS if (value := getattr(config, name, None))]
        caps = [float(value) for name in CAPS if (value := getattr(config, name, None))]
        factors = [factor for value in named for factor in (value, 1 / value)]
        return [(factor, cap) for factor in [*factors, 1.0] for cap in [*caps, None]]

    def _fits(self, inputs: dict[str, Tensor], whole: Tensor, factor: float, cap: float | None) -> bool:
        self.factor, self.cap = factor, cap
        try:
            return self.layer is not None and agree(
                self.logits(self._before_head(self.layer, inputs)[0]), whole, self.half
            )
        except (IndexError, RuntimeError, TypeError):  # a class that computes with the logits of certain tokens
            return False

    def allowed(self, count: int) -> list[int]:
        """The first ids that may be written."""
        known, forbidden = len(self.model.get_input_embeddings().weight), set(self.forbidden.tolist())
        free = [token for token in range(min(known, count + len(forbidden))) if token not in forbidden]
        return [free[i % len(free)] for i in range(count)]

    # ---- logits -----------------------------------------------------------------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits (N,V), float32, before temperature, and of forbidden tokens too."""
        with self.here():
            z = (hidden if self.layer is None else self.layer(hidden)).float()
        z = z if self.factor == 1 else z * self.factor
        return z if self.cap is None else self.cap * (z / self.cap).tanh()

    def scores(self, hidden: Tensor, tokens: Tensor, other: Tensor | None = None) -> Scored:
        """log p of N tokens given the hidden states (N,H) before them; with `other` (N,H), which gets no gradient, the
        same under these, and KL(p || other) in nats, exact.

        Gradients reach the hidden states, and the head where it is trainable.
        """
        if self.layer is not None and self._is_frozen_product:
            with self.here():
                found = Fused.apply(hidden, other, tokens, self)
            return Scored(*found) if other is not None else Scored(found)
        parts = [
            checkpoint(self._plainly, *part, use_reentrant=False, preserve_rng_state=False)
            for part in self.chunks(hidden, tokens, other)
        ]
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        return Scored(*columns)

    @torch.no_grad()
    def certainty(self, hidden: Tensor) -> Tensor:
        """KL(uniform || p) in nats, over the tokens that may be written, given the hidden states (N,H) before them."""
        found = []
        for (part,) in self.chunks(hidden):
            logp = self.masked(self.logits(part) / self.temperature).log_softmax(-1)
            allowed = logp.isfinite()
            count = allowed.sum(-1)
            found.append(-torch.where(allowed, logp, 0.0).sum(-1) / count - count.log())
        return torch.cat(found)

    @property
    def _is_frozen_product(self) -> bool:
        return type(self.layer) is nn.Linear and not any(p.requires_grad for p in self.layer.parameters())

    def chunks(self, *columns: Tensor | None) -> list[tuple[Any, ...]]:
        """Columns of N rows, some rows at a time."""
        size = self.model.config.get_text_config().vocab_size
        rows, step = len(columns[0]) if columns[0] is not None else 0, max(1, CHUNK // size)
        return [tuple(None if x is None else x[i : i + step] for x in columns) for i in range(0, rows, step)]

    def _plainly(self, hidden: Tensor, tokens: Tensor, other: Tensor | None) -> tuple[Tensor, ...]:
        logp = self.masked(self.logits(hidden) / self.temperature).log_softmax(-1)
        score = logp.gather(-1, tokens[:, None])[:, 0]
        if other is None:
            return (score,)
        with torch.no_grad():
            logq = self.masked(self.logits(other) / self.temperature).log_softmax(-1)
        apart = (logp - logq).index_fill(-1, self.forbidden.to(logp.device), 0.0)
        return score, logq.gather(-1, tokens[:, None])[:, 0], (logp.exp() * apart).sum(-1).clamp(min=0)

    def masked(self, z: Tensor) -> Tensor:
        """z (N,V) without the forbidden tokens, in place where it may be."""
        if not len(self.forbidden):
            return z
        fill = z.index_fill if z.requires_grad else z.index_fill_
        return fill(-1, self.forbidden.to(z.device), -torch.inf)
