"""A diffusion language model as a policy: one step is one token at the place where it was written, given what stood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genalign.policy.adapter import Adapter
from genalign.policy.archive import settings_digest, weights_digest
from genalign.policy.language.batch import Encoded
from genalign.policy.language.chat import Chat
from genalign.policy.language.head import Head
from genalign.policy.language.sampling import drawn
from genalign.policy.settings import PolicySettings
from genalign.policy.unmasking.form import Form
from genalign.policy.unmasking.likelihood import hidden_places
from genalign.policy.unmasking.order import NOWHERE, drawn_places, gumbel, log_order
from genalign.types import GenalignError, Media, Prompt, Steps, Track, Trajectory, UsageError, Weights, sample_seed

NEVER = 2**31 - 1  # the turn of a place that was not written


@dataclass(frozen=True)
class Written:
    """The tape: what was written where, and when.

    read: the prompt of each row. tokens (B,G): what stands at each place of the answer in the end, and turn (B,G) when
    that was written, NEVER where the row was finished before. places (B,S): the place of each column of logp, in the
    order of drawing, NOWHERE where the row has no such column. noise (B,T,L): what stands in the places of a block that
    are not written yet, by turn; L is 0 where that is always the mask.
    """

    read: tuple[Encoded, ...]
    tokens: Tensor
    turn: Tensor
    places: Tensor
    noise: Tensor = field(repr=False)


class Turn(NamedTuple):
    """The rows that write in a turn, and their blocks: hidden (N,H) at the N free places, row by row, and free (R,L)."""

    rows: list[int]
    starts: Tensor
    free: Tensor
    hidden: Tensor


class UnmaskingPolicy:
    """Writes an answer of G places block by block, in each turn a few tokens at places that it is confident of.

    In a turn, the free places of the block are drawn one after the other without replacement, in proportion to
    c^(1/noise), c being the probability of a place's likeliest token; a token is then drawn at each of these places from
    the distribution there. Both have a density, so that a rollout has one too: the column of a token is log p(place) +
    log p(token), given all that was written in the turns before, and their sum over a row is the exact log-probability of
    what was drawn. (Policy gradients over the steps that were really taken: the trajectories of TraceRL, arXiv
    2509.06949, and the Plackett-Luce order of DCoLT, arXiv 2505.10446; d1, arXiv 2504.12216, and UniGRPO, arXiv
    2505.15809, replace these by one or a few random masks of the whole answer.) Replay repeats the turn's forward on the
    turn's rows: the log-ratio is exactly 0 in the rollout's own micro-batches.

    noise: policy.sampler.noise; at 0 the surest places are taken, their choice counts as given and has no density.
    policy.sampler.steps: turns of a whole block. G is policy.max_new_tokens. A row is finished once its first end token
    has nothing unwritten before it; the text is what stands before that.

    A row's random numbers are its own, so that neither batch size nor world size changes what is drawn. The mask is
    never drawn, nor scored: it is left out of every distribution, before the softmax. Nothing that is written is
    written again (in LLaDA2's pipeline: editing_threshold=0).

    As a ForwardProcess its score is a masked evidence bound (see likelihood.py).
    """

    modalities = frozenset({"text"})
    guided = False

    def __init__(self, model: Any, tokenizer: Any, form: Form, settings: PolicySettings, within: str = "") -> None:
        self.model, self.tokenizer, self.form, self.settings = model, tokenizer, form, settings
        self.adapter = Adapter(model, settings.lora, within)
        self.ends = {tokenizer.eos_token_id} - {None}
        self.end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end
        vocabulary = len(model.get_input_embeddings().weight)
        self.chat = Chat(tokenizer, settings, self.ends, vocabulary)
        self.length = settings.max_new_tokens
        trial = [[0] * 4], [[1] * self.form.ends(4, self.length)[0]]
        self.head = Head(model, form.forbidden, settings.temperature, self.form.inputs(*trial, self.pad, self.device))
        self._calls = 0

    # ---- writing ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        rows = tuple(prompt for prompt in prompts for _ in range(per_prompt))
        if isinstance(seed, int):
            seeds = [sample_seed(seed, prompt.uid, k) for prompt in prompts for k in range(per_prompt)]
        else:
            seeds = list(seed)
        if not rows or len(seeds) != len(rows):
            raise UsageError(f"a rollout needs prompts and one seed a row, not {len(seeds)} seeds for {len(rows)} rows")
        tape, logp = self._write(self._encode(rows), seeds, self._each(None))
        if not bool(logp.isfinite().all()):
            raise GenalignError(
                "the model gives log-probabilities that are NaN or infinite; set policy.dtype=float32, or check the "
                "weights"
            )
        return Trajectory(
            prompts=rows,
            media=self._media(tape),
            group=torch.tensor([prompt.uid for prompt in rows]),
            logp=logp,
            mask=tape.places != NOWHERE,
            seeds=tuple(seeds),
            rows_together=self.settings.batch_size,
            steps_together=self._each(None),
            tape=tape,
        )

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media:
        """The likeliest tokens at the surest places; `steps`: turns of a whole block. `seeds` change noise alone."""
        if guidance not in (None, 1.0):
            raise UsageError(f"a language model has no guidance; leave it out instead of {guidance}")
        return self._media(self._write(self._encode(prompts), list(seeds), self._each(steps), greedy=True)[0])

    def _write(
        self, read: Sequence[Encoded], seeds: Sequence[int], each: int, greedy: bool = False
    ) -> tuple[Written, Tensor]:
        """The tape of B rows, `each` tokens a turn, and their columns' log-probabilities (B,S)."""
        turns = max(len(self._spans(len(one.ids), each)) for one in read)
        randoms = [self._random(seed, turns) for seed in seeds]
        tape = Written(
            tuple(read),
            torch.full((len(read), self.length), self.end),
            torch.full((len(read), self.length), NEVER),
            torch.full((len(read), turns * each), NOWHERE),
            torch.stack([noise for _, _, noise in randoms]),
        )
        logp = torch.zeros(tape.places.shape)
        order, token = (torch.stack(column) for column in list(zip(*randoms, strict=True))[:2])
        for block in self._blocks(len(read)):
            for number in range(turns):
                writing = [row for row in block if self._writes(tape, row, number, each)]
                if writing:
                    self._write_turn(tape, logp, writing, number, each, None if greedy else (order, token))
        return tape, logp

    def _write_turn(
        self,
        tape: Written,
        logp: Tensor,
        rows: list[int],
        number: int,
        each: int,
        random: tuple[Tensor, Tensor] | None,
    ) -> None:
        turn = self._turn(tape, rows, number, each)
        sure, likeliest = self._surest(turn)
        weight = sure if random is None or not self._order_noise else sure / self._order_noise
        if random is not None and self._order_noise:
            weight = weight + gumbel(random[0][rows, number, : weight.shape[1]])
        places = drawn_places(weight.cpu(), turn.free.cpu(), each)  # (R,each), in the block
        row, column = (places != NOWHERE).nonzero().unbind(1)
        local = places[row, column]
        where = turn.starts[row] + local
        if random is None:
            tokens = likeliest.cpu()[row, local]
        else:
            logits = self.head.logits(turn.hidden[self._flat(turn.free, row, local)])
            mass = self.head.masked(logits / self.settings.temperature).softmax(-1)
            uniform = random[1][torch.tensor(rows)[row], where][:, None]
            tokens = drawn(mass, uniform.to(mass.device))[0][:, 0].cpu()
        at = torch.tensor(rows)[row]
        tape.tokens[at, where], tape.turn[at, where] = tokens, number
        tape.places[at, number * each + column] = where
        if random is not None:
            own = self._turn_scores(tape, turn, number, each).cpu()
            logp[torch.tensor(rows)[:, None], torch.arange(number * each, (number + 1) * each)] = own

    def _writes(self, tape: Written, row: int, number: int, each: int) -> bool:
        """Whether a row is not finished before a turn."""
        spans = self._spans(len(tape.read[row].ids), each)
        if number >= len(spans):
            return False
        before = (tape.turn[row] < number).tolist()
        end = next((i for i, token in enumerate(tape.tokens[row].tolist()) if before[i] and token in self.ends), None)
        return end is None or not all(before[:end])

    def _spans(self, prompt: int, each: int) -> list[tuple[int, int]]:
        """The block that is written in each turn, behind a prompt of so many tokens."""
        found, start = [], 0
        for end in self.form.ends(prompt, self.length):
            found += [(start, end)] * -(-(end - start) // each)
            start = end
        return found

    def _each(self, steps: int | None) -> int:
        """Tokens of a turn."""
        first, *others = self.form.ends(0, self.length)
        whole = max([first, *(b - a for a, b in zip([first, *others], others, strict=False))])
        return -(-whole // (steps or self.settings.sampler.steps))

    def _random(self, seed: int, turns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a row, uniform numbers for the order (T,G) and for the tokens (G,); and its noise by turn (T,L)."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.rand(turns, self.length, dtype=torch.float64, generator=generator)
        token = torch.rand(self.length, dtype=torch.float64, generator=generator)
        width = 0 if self.form.masked else self.form.ends(0, self.length)[0]
        noise = torch.stack([self.form.filler(width, generator) for _ in range(turns)])
        return order, token, noise

    # ---- one turn ---------------------------------------------------------------------------------------------------

    def _turn(self, tape: Written, rows: list[int], number: int, each: int) -> Turn:
        """The model's view of what was written before a turn."""
        spans = [self._spans(len(tape.read[row].ids), each)[number] for row in rows]
        width = max(end - start for start, end in spans)
        free = torch.zeros(len(rows), width, dtype=torch.bool)
        contexts, blocks = [], []
        for i, (row, (start, end)) in enumerate(zip(rows, spans, strict=True)):
            written = tape.turn[row, start:end] < number
            free[i, : end - start] = ~written
            filler = tape.noise[row, number] if tape.noise.shape[2] else self.form.filler(end - start, torch.Generator())
            blocks.append(torch.where(written, tape.tokens[row, start:end], filler[: end - start]).tolist())
            contexts.append([*tape.read[row].ids, *tape.tokens[row, :start].tolist()])
        starts = torch.tensor([start for start, _ in spans])
        return Turn(rows, starts, free, self._hidden(contexts, blocks, free))

    def _hidden(self, contexts: Sequence[Sequence[int]], blocks: Sequence[Sequence[int]], free: Tensor) -> Tensor:
        """What the head is given at the free places (R,L) of blocks: (N,H), row by row."""
        self._calls += len(blocks)
        hidden = self.head.hidden(self.form.inputs(contexts, blocks, self.pad, self.device))
        row, place = free.nonzero().unbind(1)
        offsets = torch.tensor([self.form.offset(len(context)) for context in contexts])
        return hidden[row.to(hidden.device), (offsets[row] + place).to(hidden.device)]

    @torch.no_grad()
    def _surest(self, turn: Turn) -> tuple[Tensor, Tensor]:
        """At the free places (R,L): the log-probability of the likeliest token, minus infinity elsewhere; and its id."""
        best = self._likeliest(turn.hidden)
        sure = self.head.scores(turn.hidden, best).logp
        return self._spread(sure, turn.free, -torch.inf), self._spread(best, turn.free, 0)

    @torch.no_grad()
    def _likeliest(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.head.masked(self.head.logits(h)).argmax(-1) for (h,) in self.head.chunks(hidden)])

    def _turn_scores(self, tape: Written, turn: Turn, number: int, each: int) -> Tensor:
        """log p(place) + log p(token) of a turn's columns (R,each), 0 where a row has none."""
        columns = tape.places[turn.rows][:, number * each : (number + 1) * each]
        present = columns != NOWHERE
        row, column = present.nonzero().unbind(1)
        where = columns[row, column]
        tokens = tape.tokens[torch.tensor(turn.rows)[row], where].to(turn.hidden.device)
        local = torch.where(present, columns - turn.starts[:, None], NOWHERE)
        token = self.head.scores(turn.hidden[self._flat(turn.free, row, local[row, column])], tokens).logp
        score = self._spread(token, present, 0.0)
        if self._order_noise:
            sure = self.head.scores(turn.hidden, self._likeliest(turn.hidden)).logp
            weight = self._spread(sure, turn.free, 0.0) / self._order_noise
            score = score + log_order(weight, turn.free.to(weight.device), local.to(weight.device))
        return score

    @staticmethod
    def _spread(values: Tensor, where: Tensor, filler: float) -> Tensor:
        """values (N,) at the true places of `where`, row by row, the filler elsewhere."""
        blank = torch.full(where.shape, filler, dtype=values.dtype, device=values.device)
        return blank.masked_scatter(where.to(values.device), values)

    @staticmethod
    def _flat(free: Tensor, row: Tensor, local: Tensor) -> Tensor:
        """Where the places of rows are among all free places, row by row."""
        return (free.flatten().cumsum(0) - 1).view(free.shape)[row, local]

    @property
    def _order_noise(self) -> float:
        return self.settings.sampler.noise

    # ---- replay -----------------------------------------------------------------------------------------------------

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        each, tape = trajectory.steps_together, trajectory.tape
        columns = list(range(trajectory.logp.shape[1])) if steps is None else list(steps)
        numbers = sorted({column // each for column in columns})
        score = torch.cat([self._replayed(tape, rows, number, each) for number in numbers], 1)
        other = None
        if versus is not None:
            with torch.no_grad(), self.weights(versus):
                other = torch.cat([self._replayed(tape, rows, number, each) for number in numbers], 1)
        place = {number: k * each for k, number in enumerate(numbers)}
        chosen = [place[column // each] + column % each for column in columns]
        mask = trajectory.mask[list(rows)][:, columns].to(score.device)
        return Steps(score[:, chosen], 1, mask, versus_score=None if other is None else other[:, chosen])

    def _replayed(self, tape: Written, rows: Sequence[int], number: int, each: int) -> Tensor:
        """The columns (R,each) of a turn; zeros of the rows that write nothing in it."""
        has = (tape.places[list(rows)][:, number * each : (number + 1) * each] != NOWHERE).any(1)
        found = torch.zeros(len(has), each, device=self.device)
        if not has.any():
            return found
        turn = self._turn(tape, [row for row, own in zip(rows, has.tolist(), strict=True) if own], number, each)
        index = has.nonzero()[:, 0].to(self.device)
        return found.index_copy(0, index, self._turn_scores(tape, turn, number, each))

    # ---- given answers ----------------------------------------------------------------------------------------------

    def encode(self, media: Media) -> Tensor:
        """Texts as what stands at the G places of an answer, (B,G) ids: the text, and ends behind it.

        Raises:
            UsageError: a text has no room.
        """
        found = torch.full((media.rows, self.length), self.end)
        for row, text in zip(found, media["text"], strict=True):
            ids = [token for token in self.chat.answer(Encoded(()), text) if token not in self.ends]
            if len(ids) >= self.length:
                raise UsageError(f"an answer has {len(ids)} tokens ({text[:40]!r}); raise policy.max_new_tokens")
            row[: len(ids)] = torch.tensor(ids)
        return found

    def clean(self, trajectory: Trajectory) -> Tensor:
        """What stands at the G places of each answer, (B,G) ids, ends behind its first end."""
        tape: Written = trajectory.tape
        ends = torch.isin(tape.tokens, torch.tensor(sorted(self.ends))) if self.ends else tape.tokens < 0
        behind = (ends.cumsum(1) - ends.long()) > 0
        return tape.tokens.masked_fill(behind, self.end)

    def fit(
        self, prompts: Sequence[Prompt], clean: Tensor, at: float, seeds: Sequence[int], versus: Weights | None = None
    ) -> Steps:
        """The masked evidence bound of given answers (R,G) at one share of masks, 1 - at: score (R,1) in nats, without
        bias over `at` and the seeds; equal seeds share their masks. See likelihood.py.

        Raises:
            UsageError: the model has no mask.
        """
        if not self.form.masked:
            raise UsageError(
                f"{type(self.model).__name__} writes over random tokens and has no mask, so answers have no masked "
                f"likelihood; take a method that learns from the steps of its own rollouts, such as dpo or grpo"
            )
        read = self._encode(prompts)
        score = self._bound(read, clean, at, seeds)
        other = None
        if versus is not None:
            with torch.no_grad(), self.weights(versus):
                other = self._bound(read, clean, at, seeds)
        mask = torch.ones(len(read), 1, dtype=torch.bool, device=score.device)
        return Steps(score, self.length, mask, versus_score=other, likelihood=True)

    def _bound(self, read: Sequence[Encoded], clean: Tensor, at: float, seeds: Sequence[int]) -> Tensor:
        ends = [self.form.ends(len(one.ids), self.length) for one in read]
        total = torch.zeros(len(read), device=self.device)
        for number in range(max(map(len, ends))):
            rows = [i for i, own in enumerate(ends) if number < len(own)]
            spans = [(([0, *ends[i]])[number], ends[i][number]) for i in rows]
            width = max(end - start for start, end in spans)
            hidden = [hidden_places(end - start, width, at, seeds[i], number) for i, (start, end) in zip(rows, spans)]
            free = torch.stack(hidden)
            contexts = [[*read[i].ids, *clean[i, :start].tolist()] for i, (start, _) in zip(rows, spans, strict=True)]
            given = [clean[i, start:end] for i, (start, end) in zip(rows, spans, strict=True)]
            generator = torch.Generator()
            blocks = [
                torch.where(own[: len(x)], self.form.filler(len(x), generator), x.cpu()).tolist()
                for own, x in zip(free, given, strict=True)
            ]
            row, place = free.nonzero().unbind(1)
            tokens = torch.stack([given[r][p] for r, p in zip(row.tolist(), place.tolist(), strict=True)])
            logp = self.head.scores(self._hidden(contexts, blocks, free), tokens.to(self.device)).logp
            share = torch.tensor([len(x) / int(own.sum()) for x, own in zip(given, free, strict=True)])
            sums = self._spread(logp, free, 0.0).sum(1) * share.to(logp.device)
            total = total.index_add(0, torch.tensor(rows, device=self.device), sums)
        return total[:, None]

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def check_prompt(self, prompt: Prompt, answer: str | None = None) -> None:
        """Refuse a prompt that cannot be answered, or, with a given answer, be scored.

        Raises:
            UsageError: it brings media, has no tokens, or leaves no room in the model's context.
        """
        self._encode_one(prompt)
        if answer is not None:
            self.encode(Media(text=Track([answer])))

    def _encode(self, prompts: Sequence[Prompt]) -> list[Encoded]:
        known: dict[Any, Encoded] = {}
        keys = [(prompt.text, prompt.uid if "messages" in prompt.facts else None) for prompt in prompts]
        for key, prompt in zip(keys, prompts, strict=True):
            if key not in known:
                known[key] = self._encode_one(prompt)
        return [known[key] for key in keys]

    def _encode_one(self, prompt: Prompt) -> Encoded:
        if prompt.media is not None:
            raise UsageError(f"prompt {prompt.text!r} brings media along, but this model is trained on text only")
        encoded = self.chat.encode(prompt)
        if set(self.form.forbidden) & {*encoded.ids}:
            raise UsageError(f"prompt {prompt.text[:40]!r} holds the mask, which the model would take for its to write")
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(encoded.ids) + self.length > limit:
            raise UsageError(
                f"prompt {prompt.text[:40]!r} has {len(encoded.ids)} tokens, which leaves no room for {self.length} more "
                f"in the model's {limit}; shorten it or lower policy.max_new_tokens"
            )
        return encoded

    def _media(self, tape: Written) -> Media:
        ids = [self._cut(row) for row in tape.tokens.tolist()]
        return Media(text=Track(list(map(self.chat.text, tape.read, ids)), ids=ids))

    def _cut(self, ids: list[int]) -> tuple[int, ...]:
        end = next((i for i, token in enumerate(ids) if token in self.ends), len(ids) - 1)
        return tuple(ids[: end + 1])

    def _blocks(self, total: int) -> Iterator[list[int]]:
        size = self.settings.batch_size
        return (list(range(i, min(i + size, total))) for i in range(0, total, size))

    # ---- weights ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def weights(self, which: Weights) -> AbstractContextManager[None]:
        return self.adapter.weights(which)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.adapter.named_trainable().values())}]

    def named_trainable(self) -> dict[str, nn.Parameter]:
        return self.adapter.named_trainable()

    def step_ema(self, decay: float) -> None:
        self.adapter.step_ema(decay)

    def save_adapter(self, folder: Any) -> None:
        self.adapter.save(Path(folder))

    def load_adapter(self, folder: Any) -> None:
        self.adapter.load(Path(folder))

    def calls(self) -> int:
        return self._calls

    def digest(self) -> Mapping[str, str]:
        """What must be unchanged for a seed to give the same answer: the reference weights, and how they sample."""
        s = self.settings
        how = settings_digest(
            s.max_new_tokens, s.temperature, s.system, s.dtype, s.template, s.sampler.steps, s.sampler.noise, s.call
        )
        return {"model": self._model_digest, "sampler": how}

    @cached_property
    def _model_digest(self) -> str:
        return weights_digest([self.model], self.adapter.named_trainable().values())
