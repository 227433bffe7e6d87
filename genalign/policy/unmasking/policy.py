"""A diffusion language model as a policy: one step is one token at the place where it was written, given what stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from genalign.policy.adapter import Adapter
from genalign.policy.adapters import check_here
from genalign.policy.archive import settings_digest
from genalign.policy.language.adapted import Adapted
from genalign.policy.language.batch import Encoded
from genalign.policy.language.chat import Chat
from genalign.policy.language.head import Head
from genalign.policy.language.rows import check_finite, check_guidance, check_room, encoded_once, rows_of, up_to_end
from genalign.policy.language.saving import Saving
from genalign.policy.settings import PolicySettings
from genalign.policy.unmasking.form import Form
from genalign.policy.unmasking.likelihood import bound
from genalign.policy.unmasking.order import NOWHERE
from genalign.policy.unmasking.turns import Turns, Written
from genalign.policy.unmasking.writing import Writer
from genalign.types import Media, Prompt, Steps, Track, Trajectory, UsageError, Weights


class UnmaskingPolicy(Adapted):
    """Writes an answer of G places block by block, in each turn a few tokens at places that it is confident of.

    In a turn, the free places of the block are drawn one after the other without replacement, in proportion to
    c^(1/noise), c being the probability of a place's likeliest token; at each a token is then drawn from the
    distribution there. Both have a density, so that a rollout has one too: a token's column is log p(place) +
    log p(token), given all that was written in the turns before, and the sum over a row is the exact log-probability
    of what was drawn. These are policy gradients over the steps that were really taken (the trajectories of TraceRL,
    arXiv 2509.06949, with the Plackett-Luce order of DCoLT, arXiv 2505.10446); d1 (arXiv 2504.12216) and UniGRPO (arXiv
    2505.15809) take one or a few random masks of the whole answer in their place, as method awm does here. Replay
    repeats a turn's forward on the turn's rows: the log-ratio is exactly 0 in the rollout's own micro-batches.

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

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        form: Form,
        settings: PolicySettings,
        within: str = "",
        device: torch.device | None = None,
    ) -> None:
        self.model, self.tokenizer, self.form, self.settings = model, tokenizer, form, settings
        check_here(model)
        self.memory = Saving(model, settings, device)
        self.adapter = Adapter(model, settings.lora, within, device)
        self.ends = {tokenizer.eos_token_id} - {None}
        self.end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end
        vocabulary = len(model.get_input_embeddings().weight)
        self.chat = Chat(tokenizer, settings, self.ends, vocabulary)
        self.length = settings.max_new_tokens
        trial = form.inputs([[0] * 4], [[1] * form.ends(4, self.length)[0]], self.pad, self.device)
        head = self.head = Head(model, form.forbidden, settings.temperature, trial)
        self.turns = Turns(head, form, self.pad, self.length, settings.sampler.noise)
        self.writer = Writer(self.turns, self.ends, self.end, settings.batch_size)

    # ---- writing ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        rows, seeds = rows_of(prompts, per_prompt, seed)
        each = self.turns.each(self.settings.sampler.steps)
        tape, logp = self.writer(self._encode(rows), seeds, each)
        self.memory.leave()
        check_finite(logp)
        return Trajectory(
            prompts=rows,
            media=self._media(tape),
            group=torch.tensor([prompt.uid for prompt in rows]),
            logp=logp,
            mask=tape.places != NOWHERE,
            seeds=tuple(seeds),
            rows_together=self.settings.batch_size,
            steps_together=each,
            tape=tape,
        )

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media:
        """The likeliest tokens at the surest places; `steps`: turns of a whole block. `seeds` change noise alone."""
        check_guidance(guidance)
        each = self.turns.each(steps or self.settings.sampler.steps)
        tape = self.writer(self._encode(prompts), seeds, each, greedy=True)[0]
        self.memory.leave()
        return self._media(tape)

    # ---- replay -----------------------------------------------------------------------------------------------------

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        self.memory.bring()
        each, tape = trajectory.steps_together, trajectory.tape
        columns = list(range(trajectory.logp.shape[1])) if steps is None else list(steps)
        numbers = sorted({column // each for column in columns})
        with self.memory.graphs():
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
        turn = self.turns.see(tape, [row for row, own in zip(rows, has.tolist(), strict=True) if own], number, each)
        index = has.nonzero()[:, 0].to(self.device)
        return found.index_copy(0, index, self.turns.scores(tape, turn, number, each))

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
        score = bound(self.turns, read, clean, at, seeds)
        other = None
        if versus is not None:
            with torch.no_grad(), self.weights(versus):
                other = bound(self.turns, read, clean, at, seeds)
        mask = torch.ones(len(read), 1, dtype=torch.bool, device=score.device)
        return Steps(score, self.length, mask, versus_score=other, likelihood=True)

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
        self.memory.bring()
        return encoded_once(prompts, self._encode_one)

    def _encode_one(self, prompt: Prompt) -> Encoded:
        if prompt.media is not None:
            raise UsageError(f"prompt {prompt.text!r} brings media along, but this model is trained on text only")
        encoded = self.chat.encode(prompt)
        if set(self.form.forbidden) & {*encoded.ids}:
            raise UsageError(f"prompt {prompt.text[:40]!r} holds the mask, which the model would take for its to write")
        check_room(self.model, prompt, encoded, self.length)
        return encoded

    def _media(self, tape: Written) -> Media:
        ids = [tuple(up_to_end(row, self.ends)) for row in tape.tokens.tolist()]
        return Media(text=Track(list(map(self.chat.text, tape.read, ids)), ids=ids))

    # ---- weights ----------------------------------------------------------------------------------------------------

    def calls(self) -> int:
        return self.turns.calls

    def digest(self) -> Mapping[str, str]:
        """What must be unchanged for a seed to give the same answer: the reference weights, and how they sample."""
        s = self.settings
        how = settings_digest(
            s.max_new_tokens, s.temperature, s.system, s.dtype, s.template, s.sampler.steps, s.sampler.noise, s.call
        )
        return {"model": self._model_digest, "sampler": how}
