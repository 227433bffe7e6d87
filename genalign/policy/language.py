"""Any causal language model as a policy: its steps are tokens, and one replay forward scores a whole completion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genalign.files.untrusted import check_model
from genalign.policy.adapter import Adapter
from genalign.policy.apart import keeps_rows_apart
from genalign.policy.archive import settings_digest, weights_digest
from genalign.policy.chat import Chat, Encoded
from genalign.policy.merged import merged
from genalign.policy.settings import PolicySettings
from genalign.types import GenalignError, Media, Prompt, Steps, Track, Trajectory, UsageError, Weights, sample_seed


@dataclass(frozen=True)
class Tokens:
    """The tape: token ids of every row, unpadded. A completion ends with its end-of-sequence token if it has one."""

    prompt: tuple[tuple[int, ...], ...]
    completion: tuple[tuple[int, ...], ...]


class LanguagePolicy:
    """Samples completions token by token and replays them, text in and text out.

    A row's randomness is one uniform number a token from a generator of its own, so that neither batch size nor world
    size changes what is drawn. logp is recorded by the very forward that replay makes (right padding, no cache): the
    log-ratio is exactly 0 in the rollout's own micro-batches, whatever the generation kernels round.

    Log-probabilities are those of the sampling distribution, temperature included.
    """

    modalities = frozenset({"text"})
    guided = False

    def __init__(self, model: Any, tokenizer: Any, settings: PolicySettings) -> None:
        from transformers import GenerationConfig

        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.adapter = Adapter(model, settings.lora)
        named = getattr(model.generation_config, "eos_token_id", None)
        self.ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
        # The folder's own generation settings (repetition_penalty, suppressed tokens ...) would bend the distribution
        # away from the one that replay scores.
        vocabulary = len(model.get_input_embeddings().weight)
        fillers = (tokenizer.pad_token_id, tokenizer.eos_token_id)  # attention never reads one; it must have a row
        self.pad = next((i for i in fillers if i is not None and 0 <= i < vocabulary), 0)
        model.generation_config = GenerationConfig(eos_token_id=sorted(self.ends) or None, pad_token_id=self.pad)
        self.chat = Chat(tokenizer, settings, self.ends, vocabulary)
        self._calls = 0

    # ---- sampling ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, prompts: Sequence[Prompt], per_prompt: int, seed: int | Sequence[int]) -> Trajectory:
        rows = tuple(prompt for prompt in prompts for _ in range(per_prompt))
        if isinstance(seed, int):
            seeds = [sample_seed(seed, prompt.uid, k) for prompt in prompts for k in range(per_prompt)]
        else:
            seeds = list(seed)
        if not rows or len(seeds) != len(rows):
            raise UsageError(f"a rollout needs prompts and one seed a row, not {len(seeds)} seeds for {len(rows)} rows")
        encoded = self._encode(rows, self.settings.max_new_tokens)
        completions: list[tuple[int, ...]] = []
        for block in self._blocks(len(rows)):
            uniform = torch.stack([self._uniform(seeds[row]) for row in block])
            completions += self._complete([encoded[row].ids for row in block], self.settings.max_new_tokens, uniform)
        return self._trajectory(rows, encoded, completions, seeds)

    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Trajectory:
        """Given texts, one a prompt, as a trajectory that `replay` scores; each ends as this model's completions do.

        Raises:
            UsageError: a prompt and its answer are longer than the model's context.
        """
        encoded = [self._encode_one(prompt, 0) for prompt in prompts]
        completions = [self._answer(*pair) for pair in zip(prompts, answers, strict=True)]
        return self._trajectory(tuple(prompts), encoded, completions, [0] * len(encoded))

    def _trajectory(
        self,
        rows: tuple[Prompt, ...],
        encoded: Sequence[Encoded],
        completions: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
    ) -> Trajectory:
        tape = Tokens(tuple(one.ids for one in encoded), tuple(completions))
        lengths = torch.tensor([len(completion) for completion in completions])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B,S)
        logp = torch.zeros(mask.shape)
        for block in self._blocks(len(rows)):
            own = self._token_logp(tape, block)[1].cpu()
            logp[block, : own.shape[1]] = own
        return Trajectory(
            prompts=rows,
            media=Media(text=Track(list(map(self.chat.text, encoded, completions)), ids=completions)),
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
        if guidance not in (None, 1.0):
            raise UsageError(f"a language model has no guidance; leave it out instead of {guidance}")
        longest = steps or self.settings.max_new_tokens
        encoded = self._encode(prompts, longest)
        texts: list[str] = []
        ids: list[tuple[int, ...]] = []
        for block in self._blocks(len(prompts)):
            batch = [encoded[row] for row in block]
            made = self._complete([one.ids for one in batch], longest, None)
            texts, ids = texts + list(map(self.chat.text, batch, made)), ids + list(made)
        return Media(text=Track(texts, ids=ids))

    def _complete(
        self, prompts: Sequence[tuple[int, ...]], longest: int, uniform: Tensor | None
    ) -> list[tuple[int, ...]]:
        """Completions of R prompts: sampled with `uniform` (R,longest), or greedy without."""
        if len(prompts) > 1 and not self._keeps_rows_apart:
            own = [None] * len(prompts) if uniform is None else uniform.split(1)
            return [self._complete([prompt], longest, row)[0] for prompt, row in zip(prompts, own, strict=True)]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad)
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attention[row, width - len(prompt) :] = 1
        pick = None if uniform is None else [_Pick(uniform.to(self.device), self.settings.temperature, width)]
        out = self.model.generate(
            input_ids=ids.to(self.device),
            attention_mask=attention.to(self.device),
            max_new_tokens=longest,
            do_sample=False,
            logits_processor=pick,
        )[:, width:]
        self._calls += out.numel()  # one forward a token
        return [self._cut(row) for row in out.tolist()]

    @cached_property
    def _keeps_rows_apart(self) -> bool:
        return keeps_rows_apart(self.model, self.pad)

    def _cut(self, ids: list[int]) -> tuple[int, ...]:
        end = next((i for i, token in enumerate(ids) if token in self.ends), len(ids) - 1)
        return tuple(ids[: end + 1])

    def _uniform(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.settings.max_new_tokens, dtype=torch.float64, generator=generator)

    def _encode(self, prompts: Sequence[Prompt], longest: int) -> list[Encoded]:
        for prompt in prompts:
            if prompt.media is not None:
                raise UsageError(f"prompt {prompt.text!r} brings media along, but this language model reads text only")
        known: dict[Any, Encoded] = {}
        for prompt in prompts:
            key = (prompt.text, prompt.uid if "messages" in prompt.facts else None)
            if key not in known:
                known[key] = self._encode_one(prompt, longest)
        return [known[prompt.text, prompt.uid if "messages" in prompt.facts else None] for prompt in prompts]

    def check_prompt(self, prompt: Prompt, answer: str | None = None) -> None:
        """Refuse a prompt that cannot be completed, or, with a given answer, be scored.

        Raises:
            UsageError: it brings media, has no tokens, or leaves no room in the model's context.
        """
        if answer is None:
            self._encode([prompt], self.settings.max_new_tokens)
        else:
            self._answer(prompt, answer)

    def _answer(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """The tokens of a given completion, up to and with the one that ends a turn."""
        ids = self.chat.answer(self.chat.encode(prompt), text)
        if not ids:
            raise UsageError(f"an answer to {prompt.text[:40]!r} has no tokens in this model's vocabulary; drop it")
        self._encode_one(prompt, len(ids))
        return ids

    def _encode_one(self, prompt: Prompt, longest: int) -> Encoded:
        encoded = self.chat.encode(prompt)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(encoded.ids) + longest > limit:
            raise UsageError(
                f"prompt {prompt.text[:40]!r} has {len(encoded.ids)} tokens, which leaves no room for {longest} more "
                f"in the model's {limit}; shorten it or lower policy.max_new_tokens"
            )
        return encoded

    # ---- replay -----------------------------------------------------------------------------------------------------

    def replay(
        self,
        trajectory: Trajectory,
        rows: Sequence[int],
        steps: Sequence[int] | None = None,
        versus: Weights | None = None,
    ) -> Steps:
        tape: Tokens = trajectory.tape
        columns = list(range(trajectory.logp.shape[1])) if steps is None else list(steps)
        mask = trajectory.mask[list(rows)][:, columns].to(self.device)
        distribution, score = self._token_logp(tape, rows)  # (R,S',V), (R,S')

        def spread(x: Tensor) -> Tensor:  # from these rows' own longest completion to the columns asked for
            return F.pad(x, (0, trajectory.logp.shape[1] - x.shape[1]))[:, columns]

        if versus is None:
            return Steps(spread(score), 1, mask)
        with torch.no_grad(), self.weights(versus):
            other_distribution, other = self._token_logp(tape, rows)
        kl = (distribution.exp() * (distribution - other_distribution)).sum(-1).clamp(min=0)
        kl = spread(torch.where(self._own_mask(tape, rows), kl, 0.0))
        return Steps(spread(score), 1, mask, versus_score=spread(other), kl=kl)

    def _token_logp(self, tape: Tokens, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The log-distribution at each token (R,S',V) and the token's own log-probability (R,S'), 0 in padding."""
        sequences = [torch.tensor(tape.prompt[row] + tape.completion[row]) for row in rows]
        ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=self.pad).to(self.device)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=self.device)
        attention = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        self._calls += len(ids)
        logits = self.model(input_ids=ids, attention_mask=attention.long(), use_cache=False).logits
        mask = self._own_mask(tape, rows)
        starts = torch.tensor([len(tape.prompt[row]) for row in rows], device=self.device)
        places = starts[:, None] + torch.arange(mask.shape[1], device=self.device)  # of the completion's tokens
        places = places.clamp(max=ids.shape[1] - 1)
        row = torch.arange(len(ids), device=self.device)[:, None]
        distribution = (logits[row, places - 1].float() / self.settings.temperature).log_softmax(-1)
        score = distribution.gather(-1, ids[row, places][..., None])[..., 0]
        return distribution, torch.where(mask, score, 0.0)

    def _own_mask(self, tape: Tokens, rows: Sequence[int]) -> Tensor:
        lengths = torch.tensor([len(tape.completion[row]) for row in rows], device=self.device)
        return torch.arange(int(lengths.max()), device=self.device) < lengths[:, None]

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
        """What must be unchanged for a seed to give the same completion: the reference weights, and how they sample."""
        s = self.settings
        sampler: list[Any] = [s.max_new_tokens, s.temperature, s.system, s.dtype]
        if s.template:  # absent, so that pairs labelled before this setting existed keep their digest
            sampler.append(s.template)
        return {"model": self._model_digest, "sampler": settings_digest(*sampler)}

    @cached_property
    def _model_digest(self) -> str:
        return weights_digest([self.model], self.adapter.named_trainable().values())


class _Pick:
    """A logits processor that leaves one token: inverse transform sampling with the row's own uniform numbers."""

    def __init__(self, uniform: Tensor, temperature: float, width: int) -> None:
        self.uniform, self.temperature, self.width = uniform, temperature, width

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        cumulative = (logits.float() / self.temperature).softmax(-1).double().cumsum(-1)  # (R,V)
        target = self.uniform[:, ids.shape[1] - self.width, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, target, right=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, token, 0.0)


def load_language(settings: PolicySettings, folder: Path, device: str = "cpu") -> LanguagePolicy:
    """The causal language model and tokenizer of a folder, with a fresh adapter.

    Raises:
        UsageError: no causal language model, no tokenizer, or an attention kernel that cannot serve it.
        GenalignError: a corrupt weight file.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kernels = {"sdpa": "sdpa", "flash": "flash_attention_2"}
    if settings.attention not in kernels:
        raise UsageError(f"policy.attention {settings.attention} serves diffusion pipelines only; take sdpa or flash")
    check_model(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=kernels[settings.attention],
            use_safetensors=True,
            trust_remote_code=False,
        )
    except SafetensorError as error:
        raise GenalignError(f"the weights in {folder} are corrupt ({error}); copy or download them again") from error
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} does not load as a causal language model: {reason}") from error
    if settings.merged is not None:
        model = merged(model, Path(settings.merged))
    return LanguagePolicy(model.to(device), tokenizer, settings)
