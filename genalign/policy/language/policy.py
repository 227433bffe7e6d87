"""Any causal or vision-language model as a policy: steps are tokens, and one forward scores a whole completion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import compress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genalign.policy.adapter import Adapter
from genalign.policy.adapters import check_here
from genalign.policy.archive import settings_digest
from genalign.policy.language.adapted import Adapted, language_part
from genalign.policy.language.batch import Encoded
from genalign.policy.language.chat import Chat
from genalign.policy.language.head import Head
from genalign.policy.language.processor import Reader, is_processor, with_encoded_media
from genalign.policy.language.rows import check_finite, check_guidance, check_room, encoded_once, rows_of, up_to_end
from genalign.policy.language.sampling import Sampler
from genalign.policy.language.saving import Saving
from genalign.policy.language.scoring import Scorer, Tokens
from genalign.policy.language.turns import Conversation, Environment, Written
from genalign.policy.settings import PolicySettings
from genalign.types import Media, Prompt, Steps, Track, Trajectory, UsageError, Weights

log = logging.getLogger(__name__)


class LanguagePolicy(Adapted):
    """Samples completions token by token and replays them: text out, and in what the model's processor takes.

    A row's randomness is one uniform number a token from a generator of its own, so that neither batch size nor world
    size changes what is drawn. logp is recorded by the very forward that replay makes (right padding, no cache): the
    log-ratio is exactly 0 in the rollout's own micro-batches, whatever the generation kernels round. That sampling is
    by the same logits is looked at on the first rows of a run (apart.py).

    Log-probabilities are those of the sampling distribution: temperature included, and placeholders of media, which a
    completion must not hold, left out.

    reader: a tokenizer, or the processor of a model that sees or hears. environment: what answers its turns, such as a
    tool; the answers are part of the completion, and no steps: nothing is learnt from them. device: where it computes,
    if the model waits elsewhere (policy.offload); None: where it is.
    """

    modalities = frozenset({"text"})
    guided = False

    def __init__(
        self,
        model: Any,
        reader: Any,
        settings: PolicySettings,
        environment: Environment | None = None,
        device: torch.device | None = None,
    ) -> None:
        from transformers import GenerationConfig

        own = Reader(reader, model) if is_processor(reader) else None
        tokenizer = reader if own is None else reader.tokenizer
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        check_here(model)
        self.memory = Saving(model, settings, device)
        self.adapter = Adapter(model, settings.lora, language_part(model) if own is not None else "", device)
        self._log_layers()
        named = getattr(model.generation_config, "eos_token_id", None)
        self.ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
        # The folder's own generation settings (repetition_penalty, suppressed tokens ...) would bend the distribution
        # away from the one that replay scores.
        vocabulary = len(model.get_input_embeddings().weight)
        fillers = (tokenizer.pad_token_id, tokenizer.eos_token_id)  # attention never reads one; it must have a row
        self.pad = next((i for i in fillers if i is not None and 0 <= i < vocabulary), 0)
        model.generation_config = GenerationConfig(eos_token_id=sorted(self.ends) or None, pad_token_id=self.pad)
        self.chat = Chat(tokenizer, settings, self.ends, vocabulary, own)
        self.placeholders = frozenset() if own is None else own.placeholders
        self.head = Head(model, sorted(self.placeholders), settings.temperature)
        self.scorer = Scorer(self.head, self.adapter, self.pad)
        self.sampler = Sampler(
            self.head, self.pad, settings.max_new_tokens, settings.batch_size, self.scorer.logits_alone
        )
        self.environment = environment

    # ---- sampling ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        rows, seeds = rows_of(prompts, per_prompt, seed)
        longest = self.settings.max_new_tokens
        encoded = self._encode(rows, longest)
        self.sampler.way(encoded)
        written: list[Written] = []
        for block in self._blocks(len(rows)):
            uniform = torch.stack([self._uniform(seeds[row]) for row in block])
            written += self._converse([rows[row] for row in block], [encoded[row] for row in block], longest, uniform)
        trajectory = self._trajectory(rows, encoded, written, seeds)
        self.memory.leave()
        return trajectory

    def _converse(
        self, prompts: Sequence[Prompt], encoded: Sequence[Encoded], longest: int, uniform: Tensor | None
    ) -> list[Written]:
        """Completions of these rows, with what the environment answered."""

        def draw(rows: Sequence[Encoded], longest: int, uniform: Tensor | None) -> list[list[int]]:
            return [up_to_end(ids, self.ends) for ids in self.sampler(rows, longest, uniform)]

        converse = Conversation(self.chat, draw, self.environment, longest, self.settings.turns)
        return converse(prompts, encoded, uniform)

    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Trajectory:
        """Given texts, one a prompt, as a trajectory that `replay` scores; each ends as this model's completions do.

        Raises:
            UsageError: a prompt and its answer are longer than the model's context.
        """
        encoded = self._encode(prompts, 0)
        written = []
        for given in zip(prompts, encoded, answers, strict=True):
            ids = list(self._answer(*given))
            turns = [{"role": "assistant", "content": self.chat.text(given[1], ids)}]
            written.append(Written(ids, [True] * len(ids), turns))
        trajectory = self._trajectory(tuple(prompts), encoded, written, [0] * len(encoded))
        self.memory.leave()
        return trajectory

    def _trajectory(
        self,
        rows: tuple[Prompt, ...],
        encoded: Sequence[Encoded],
        written: Sequence[Written],
        seeds: Sequence[int],
    ) -> Trajectory:
        tape = Tokens(
            prompt=tuple(one.ids for one in encoded),
            completion=tuple(tuple(one.ids) for one in written),
            own=tuple(tuple(one.own) for one in written),
            read=tuple(encoded),
        )
        mask = tape.mask(range(len(rows)))  # (B,S)
        logp = torch.zeros(mask.shape)
        for block in self._blocks(len(rows)):
            own = self.scorer(tape, block)[0].logp.cpu()
            logp[block, : own.shape[1]] = own
        check_finite(logp)
        return Trajectory(
            prompts=rows,
            media=_media(written),
            group=torch.tensor([prompt.uid for prompt in rows]),
            logp=logp,
            mask=mask,
            seeds=tuple(seeds),
            rows_together=self.settings.batch_size,
            steps_together=mask.shape[1],
            tape=tape,
        )

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], guidance: float | None = None, steps: int | None = None
    ) -> Media:
        """Greedy completions; `steps` bounds their length in tokens, and `seeds` change nothing."""
        check_guidance(guidance)
        longest = steps or self.settings.max_new_tokens
        encoded = self._encode(prompts, longest)
        written: list[Written] = []
        for block in self._blocks(len(prompts)):
            own = [encoded[row] for row in block]
            written += self._converse([prompts[row] for row in block], own, longest, None)
        self.memory.leave()
        return _media(written)

    @torch.no_grad()
    def stream(self, prompt: Prompt, seed: int | None, seen: Callable[[str], None], steps: int | None = None) -> Media:
        """One completion, of one turn; `seen` is called with its text so far before each token.

        seed: that of a row of `rollout`; None: greedy, as `generate`. steps: the most tokens (None: the recipe's).

        Raises:
            UsageError: more tokens than a rollout draws.
        """
        most = self.settings.max_new_tokens
        longest = most if steps is None else steps
        if not 1 <= longest <= most:
            raise UsageError(f"{longest} tokens are wanted; ask for 1 to {most}, or set policy.max_new_tokens")
        (encoded,) = self._encode([prompt], longest)
        uniform = None if seed is None else self._uniform(seed)[None]

        def show(ids: Tensor) -> None:
            seen(self.chat.text(encoded, tuple(ids[0].tolist())))

        (drawn,) = self.sampler([encoded], longest, uniform, show)
        completion = up_to_end(drawn, self.ends)
        self.memory.leave()
        return Media(text=Track([self.chat.text(encoded, completion)], ids=[tuple(completion)]))

    def _uniform(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.settings.max_new_tokens, dtype=torch.float64, generator=generator)

    def _encode(self, prompts: Sequence[Prompt], longest: int) -> list[Encoded]:
        self.memory.bring()
        return encoded_once(prompts, lambda prompt: with_encoded_media(self.model, self._encode_one(prompt, longest)))

    def check_prompt(self, prompt: Prompt, answer: str | None = None) -> None:
        """Refuse a prompt that cannot be completed, or, with a given answer, be scored.

        Raises:
            UsageError: it brings media, has no tokens, or leaves no room in the model's context.
        """
        encoded = self._encode_one(prompt, self.settings.max_new_tokens if answer is None else 0)
        if answer is not None:
            self._answer(prompt, encoded, answer)

    def _answer(self, prompt: Prompt, encoded: Encoded, text: str) -> tuple[int, ...]:
        """The tokens of a given completion, up to and with the one that ends a turn."""
        ids = self.chat.answer(encoded, text)
        if not ids:
            raise UsageError(f"an answer to {prompt.text[:40]!r} has no tokens in this model's vocabulary; drop it")
        if self.placeholders & {*ids}:
            raise UsageError(f"an answer to {prompt.text[:40]!r} holds a placeholder of media, as none can; drop it")
        check_room(self.model, prompt, encoded, len(ids))
        return ids

    def _encode_one(self, prompt: Prompt, longest: int) -> Encoded:
        if prompt.media is not None and self.chat.reader is None:
            raise UsageError(f"prompt {prompt.text!r} brings media along, but this language model reads text only")
        encoded = self.chat.encode(prompt)
        check_room(self.model, prompt, encoded, longest)
        return encoded

    # ---- replay -----------------------------------------------------------------------------------------------------

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        self.memory.bring()
        tape: Tokens = trajectory.tape
        columns = list(range(trajectory.logp.shape[1])) if steps is None else list(steps)
        mask = trajectory.mask[list(rows)][:, columns].to(self.device)
        with self.memory.graphs():
            scored, hidden = self.scorer(tape, rows, versus)

        def spread(x: Tensor) -> Tensor:  # from these rows' own longest completion to the columns asked for
            return F.pad(x, (0, trajectory.logp.shape[1] - x.shape[1]))[:, columns]

        score, other, kl = (None if x is None else spread(x) for x in scored)
        assert score is not None
        # What a value head reads; with a graph it would be kept until the backward pass.
        features = None
        if not torch.is_grad_enabled() and self.head.layer is not None:
            features = hidden.new_zeros(*mask.shape, hidden.shape[-1])
            features[mask] = hidden
        return Steps(score, 1, mask, versus_score=other, kl=kl, features=features)

    # ---- searching --------------------------------------------------------------------------------------------------

    def certainty(self, trajectory: Trajectory, rows: Sequence[int]) -> Tensor:
        self.memory.bring()
        return self.scorer.certainty(trajectory.tape, rows)

    def embeddings(self) -> Tensor:
        self.memory.bring()
        layer = self.model.get_output_embeddings()
        if layer is None:
            raise UsageError(f"{type(self.model).__name__} has no output layer to read tokens from; take best-of-n")
        weight: Tensor = layer.weight.detach()
        return weight

    def tilted(self, tilt: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        return self.sampler.tilted(tilt)

    def _blocks(self, total: int) -> Iterator[list[int]]:
        size = self.settings.batch_size
        return (list(range(i, min(i + size, total))) for i in range(0, total, size))

    # ---- weights ----------------------------------------------------------------------------------------------------

    def calls(self) -> int:
        return self.scorer.calls + self.sampler.calls

    def digest(self) -> Mapping[str, str]:
        """What must be unchanged for a seed to give the same completion: the reference weights, and how they sample."""
        s = self.settings
        sampler: list[Any] = [s.max_new_tokens, s.temperature, s.system, s.dtype]
        if s.template:  # absent, so that pairs labelled before this setting existed keep their digest
            sampler.append(s.template)
        if self.environment is not None:
            sampler += [s.turns, self.environment.version]
        return {"model": self._model_digest, "sampler": settings_digest(*sampler)}

    def _log_layers(self) -> None:
        names = sorted({name.rpartition(".lora_")[0] for name in self.adapter.named_trainable()})
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        log.info("%s: %d layers are adapted: %s", type(self.model).__name__, len(names), some)


def _media(written: Sequence[Written]) -> Media:
    """What rewards read: the model's own words, a line for each turn where there are several, and its own tokens."""
    texts = ["\n".join(turn["content"] for turn in one.turns if turn["role"] == "assistant") for one in written]
    return Media(text=Track(texts, ids=[tuple(compress(one.ids, one.own)) for one in written]))
