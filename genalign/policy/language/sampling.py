"""Completions by the model's own generate, each row drawn by uniform numbers of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genalign.policy.language.apart import TOKENS, Way, cheapest_way
from genalign.policy.language.batch import Encoded, beside_tokens, media_of
from genalign.policy.language.head import NO_NUMBERS, Head
from genalign.types import GenalignError, UsageError

BLOCK = 256  # tokens whose probabilities are added up before one of them is looked for

Drawn = list[list[int]]
Tilt = Callable[[Tensor], Tensor]
Seen = Callable[[Tensor], None]
Forward = Callable[[Sequence[Encoded], Sequence[Sequence[int]]], list[Tensor]]

# Of generate(). A model that is split over ranks is not waited for by it: ranks write as long as their own rows are.
GREEDY: dict[str, Any] = {"do_sample": False, "synced_gpus": False}


class Sampler:
    """Continues prompts, in the cheapest way that writes by the logits that are scored (see apart.py).

    The way is found on the first rows with media, and on the first without. together: how many rows may share a batch.
    calls: tokens written so far.

    forward: the logits (S,V) at given completions of R prompts, of each row in a forward of its own.
    """

    def __init__(self, head: Head, pad: int, longest: int, together: int, forward: Forward) -> None:
        self.head, self.model, self.forward = head, head.model, forward
        self.pad, self.longest, self.together = pad, longest, together
        self.calls = 0
        self._tilt: Tilt | None = None
        self._ways: dict[bool, Way] = {}

    @torch.no_grad()
    def __call__(
        self, rows: Sequence[Encoded], longest: int, uniform: Tensor | None, seen: Seen | None = None
    ) -> Drawn:
        """At most `longest` tokens for each of R prompts: sampled with `uniform` (R,longest), or greedy without.

        seen: called before each token with those of all rows so far, (R,S); for rows that share a batch.
        """
        way = self.way(rows)
        found: Drawn = [[]] * len(rows)
        for group in self._groups(rows, way):
            pick = Pick(self.head, None if uniform is None else uniform[group], self._tilt, seen)
            with pick.watching():
                out = self._generate([rows[i] for i in group], way, pick, longest)[0]
            pick.check()
            self.calls += out.numel()  # one forward a token
            for i, tokens in zip(group, out.tolist(), strict=True):
                found[i] = tokens
        return found

    @contextmanager
    def tilted(self, tilt: Tilt) -> Iterator[None]:
        """Within the context tilt(hidden states (R,H)) (R,V), in nats, is added to what tokens are drawn from."""
        self._tilt = tilt
        try:
            yield
        finally:
            self._tilt = None

    def way(self, rows: Sequence[Encoded]) -> Way:
        """How rows like these are continued."""
        sees = any(row.media or row.seen for row in rows)
        if sees not in self._ways:
            trial = self._trial(rows) if sees else self._texts()
            name, half = type(self.model).__name__, self.head.half
            try:
                self._ways[sees] = cheapest_way(
                    name,
                    half,
                    lambda way: self._continued(trial, way),
                    lambda tokens: torch.stack(self.forward(trial, tokens.tolist())),
                )
            except (IndexError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())
                cure = "set policy.batch_size=1" if self.together > 1 else "take another class of model"
                raise UsageError(f"{name} does not take these prompts in one batch ({reason}); {cure}") from error
        return self._ways[sees]

    def _trial(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Two siblings with media, the same prompt with more text, and of all with media, and of all without, the one
        most unlike them in length."""
        sees = [row for row in rows if row.media or row.seen]
        others = [row for row in rows if not (row.media or row.seen)]
        first = sees[0]
        longer = replace(first, ids=first.ids + tuple(self.head.allowed(7)), along=_with_zeros(first.along, 7))
        unlike = [max(group, key=lambda row: abs(len(row.ids) - len(first.ids))) for group in (sees, others) if group]
        return [first, first, longer, *unlike]

    def _texts(self) -> list[Encoded]:
        """Two siblings, another of their length, and a shorter one."""
        long = tuple(self.head.allowed(10))
        first = Encoded(long)
        return [first, first, Encoded(long[::-1]), Encoded(long[3::-1])]

    def _continued(self, rows: Sequence[Encoded], way: Way) -> tuple[Tensor, Tensor]:
        """Some greedy tokens (R,S) and their raw logits (R,S,V)."""
        count = min(TOKENS, self.longest)
        tokens: list[Tensor] = [torch.empty(0)] * len(rows)
        logits = list(tokens)
        for group in self._groups(rows, way):
            options = {"min_new_tokens": count, "output_logits": True, "return_dict_in_generate": True}
            out, raw = self._generate([rows[i] for i in group], way, Pick(self.head, None), count, **options)
            for place, i in enumerate(group):
                tokens[i], logits[i] = out[place], raw[place]
        return torch.stack(tokens), torch.stack(logits)

    def _groups(self, rows: Sequence[Encoded], way: Way) -> list[list[int]]:
        """Rows that share a batch."""
        places, size = list(range(len(rows))), 1 if way == "alone" else self.together
        lengths = [len(row.ids) for row in rows]
        alike = [[i for i in places if lengths[i] == n] for n in sorted(set(lengths))] if way == "equal" else [places]
        return [group[i : i + size] for group in alike for i in range(0, len(group), size)]

    def _generate(self, rows: Sequence[Encoded], way: Way, pick: Pick, longest: int, **options: Any) -> Any:
        """Tokens (R,S), and, where they are asked for, raw logits (R,S,V)."""
        device = next(self.model.parameters()).device
        given = beside_tokens(rows, self.pad, device)
        width = pick.width = given["input_ids"].shape[1]
        given |= self._prefilled(rows) if way == "shared" and width > 1 else media_of(rows, device)
        # Greedy, so that no top_k or top_p applies; `pick` leaves what is drawn.
        out = self.model.generate(**given, max_new_tokens=longest, logits_processor=[pick], **GREEDY, **options)
        if not options:
            return out[:, width:], None
        return out.sequences[:, width:], torch.stack(out.logits, 1).float()

    def _prefilled(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """A cache of all tokens but the last, for which siblings' prompt was computed once."""
        device = next(self.model.parameters()).device
        owners = list({id(row): row for row in rows}.values())
        place = {id(row): i for i, row in enumerate(owners)}
        index = torch.tensor([place[id(row)] for row in rows], device=device)
        prefix = {name: value[:, :-1] for name, value in beside_tokens(owners, self.pad, device).items()}
        # What is written here is no part of the cache, which by then holds what it was written from.
        options = {**GREEDY, "max_new_tokens": 1, "return_dict_in_generate": True}
        out = self.model.generate(**prefix, **media_of(owners, device), **options)
        name = "cache" if "cache" in out else "past_key_values"
        cache = out[name]
        cache.batch_select_indices(index)
        # Qwen's models keep how far the last media shift each row's positions on the model, and not in the cache.
        for module in self.model.modules():
            if isinstance(getattr(module, "rope_deltas", None), Tensor):
                module.rope_deltas = module.rope_deltas[index]
        return {name: cache}


def _with_zeros(along: Mapping[str, tuple[int, ...]], count: int) -> dict[str, tuple[int, ...]]:
    return {name: (*values, *[0] * count) for name, values in along.items()}


class Pick:
    """A logits processor that leaves one token, by inverse transform sampling with the row's own uniform numbers; or,
    without `uniform` (R,S), all but the forbidden ones. width: of the prompts. tilt: added to the logits, after the
    temperature, of the hidden states that the output layer was given last. seen: see Sampler."""

    def __init__(self, head: Head, uniform: Tensor | None, tilt: Tilt | None = None, seen: Seen | None = None) -> None:
        self.head, self.width = head, 0
        self.uniform, self.tilt, self.seen = uniform, tilt, seen
        self._last = torch.empty(0)  # hidden states
        self._finite: Tensor | None = None

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen(ids[:, self.width :])
        if self.uniform is None and self.tilt is None:
            return self.head.masked(logits.clone())
        z = logits.div_(self.head.temperature)  # generate hands over a copy of its own, float32
        if self.tilt is not None:
            z += self.tilt(self._last).to(z)
        z = self.head.masked(z)
        if self.uniform is None:
            return z
        mass = z.sub_(z.amax(-1, keepdim=True)).exp()  # (R,V), unnormalised
        uniform = self.uniform[:, ids.shape[1] - self.width, None].to(mass.device)
        token, total = drawn(mass, uniform)
        fine = total.isfinite().all()
        self._finite = fine if self._finite is None else self._finite & fine
        return logits.scatter_(-1, token, torch.inf)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context the output layer's input at the last token is kept, where there is a tilt."""
        layer = self.head.model.get_output_embeddings() if self.tilt is not None else None
        if layer is None:
            yield
            return

        def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
            self._last = given[0][:, -1]

        hook = layer.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def check(self) -> None:
        """Raises GenalignError where logits were no numbers."""
        if self._finite is not None and not bool(self._finite):
            raise GenalignError(NO_NUMBERS)


def drawn(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The first token (R,1) up to which more than the share `uniform` (R,1) of the mass (R,V) lies; and all mass (R,1).

    Masses are added up in float64, in blocks first, and then within the block where the share is reached.
    """
    blocks = F.pad(mass, (0, -mass.shape[1] % BLOCK)).view(len(mass), -1, BLOCK)
    upto = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # (R,blocks)
    total = upto[:, -1:]
    target = uniform * total
    block = torch.searchsorted(upto, target, right=True).clamp(max=upto.shape[1] - 1)
    before = F.pad(upto, (1, 0)).gather(-1, block)
    row = torch.arange(len(mass), device=mass.device)[:, None]
    within = blocks[row, block][:, 0].double().cumsum(-1)  # (R,BLOCK)
    least = torch.nextafter(within[:, -1:], within.new_zeros(()))  # rounding must not lead past what has mass
    place = torch.searchsorted(within, torch.minimum(target - before, least).clamp(min=0), right=True)
    return (block * BLOCK + place).clamp(max=mass.shape[1] - 1), total
