"""A judge in this process: any AutoModelForImageTextToText, or AutoModelForCausalLM, in its own chat template."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genalign.files.untrusted import check_model
from genalign.media.image import to_pil
from genalign.reward.base import ScoringError, digest, resolve_model, weights_digest
from genalign.reward.judge.asking import (
    LEAST_MASS,
    THINKS_FIRST,
    Question,
    bare_word,
    spellings,
    thinks_first,
    too_little,
    yes_or_no,
)
from genalign.types import UsageError, nearest

OURS = (
    "messages",
    "conversation",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
    "return_tensors",
)


class LocalModel:
    """A vision-language or language model; loads when first used.

    model: a folder or a hub id. batch_size: questions a forward pass (its memory, not its result). device, dtype: where
    and in what it computes; probabilities are fp32. Pictures are rounded to 8 bits, as its processor takes them; where
    gradients are wanted they stay float, through the processor's own resize and normalisation. chat_template_kwargs:
    what its chat template reads besides the turns, such as enable_thinking.

    yes() is one forward pass: p(yes) = sum over the vocabulary's spellings of yes of the next token's softmax, over the
    same plus those of no (VQAScore, arXiv 2404.01291; RewardDance, arXiv 2509.08826). Where the two together have less
    than LEAST_MASS (a model that thinks first, or is not finite), the question has failed.

    Raises:
        UsageError: no such model, a tokenizer without a token for yes, or without one for no, or a chat template that
            does not read a given argument.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str = "float32",
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.batch_size = resolve_model(model), batch_size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, dtype, None)
        if not isinstance(self.dtype, torch.dtype):
            raise UsageError(f"there is no dtype {dtype!r}; write float32, bfloat16 or float16")
        self.template_kwargs = dict(chat_template_kwargs or {})
        own = next((name for name in self.template_kwargs if name in OURS), None)
        if own is not None:
            raise UsageError(f"chat_template_kwargs of judge {model} has {own!r}, which is genalign's own; take it out")

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import transformers as hf

        check_model(self.model)
        try:
            config = hf.AutoConfig.from_pretrained(self.model, trust_remote_code=False)
            sees = type(config) in hf.AutoModelForImageTextToText._model_mapping
            kind = hf.AutoModelForImageTextToText if sees else hf.AutoModelForCausalLM
            net = kind.from_pretrained(self.model, use_safetensors=True, dtype=self.dtype, trust_remote_code=False)
            reader = hf.AutoProcessor if sees else hf.AutoTokenizer
            processor = reader.from_pretrained(self.model, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"judge {self.model} cannot be loaded: {' '.join(str(error).split())}") from error
        tokenizer = getattr(processor, "tokenizer", processor)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._check_kwargs(getattr(processor, "chat_template", None) or tokenizer.chat_template)
        return net.to(self.device).eval().requires_grad_(False), processor

    def _check_kwargs(self, template: Any) -> None:
        """Refuse an argument that no chat template of the model reads."""
        from jinja2 import Environment, TemplateError, meta

        if not self.template_kwargs:
            return
        written = list(template.values()) if isinstance(template, Mapping) else [template] if template else []
        if not written:
            raise UsageError(f"judge {self.model} has no chat template that reads chat_template_kwargs; take them out")
        names: set[str] = set()
        try:
            for one in written:
                parser = Environment(extensions=["jinja2.ext.loopcontrols"])
                names |= meta.find_undeclared_variables(parser.parse(one))
        except TemplateError:  # a tag of transformers' own, such as generation: nothing can be checked here
            return
        unread = next((name for name in self.template_kwargs if name not in names), None)
        if unread is not None:
            known = sorted(names - {*OURS, "bos_token", "eos_token", "raise_exception", "strftime_now"})
            raise UsageError(
                f"the chat template of judge {self.model} does not read {unread!r}{nearest(unread, known)}"
            )

    @property
    def _tokenizer(self) -> Any:
        return getattr(self._loaded[1], "tokenizer", self._loaded[1])

    @cached_property
    def _sides(self) -> tuple[Tensor, Tensor]:
        vocabulary = self._tokenizer.get_vocab()
        yes = [i for token, i in sorted(vocabulary.items()) if yes_or_no(token) == "yes"]
        no = [i for token, i in sorted(vocabulary.items()) if yes_or_no(token) == "no"]
        if not yes or not no:
            raise UsageError(f"the tokenizer of judge {self.model} has no single token for yes or for no")
        return torch.tensor(yes, device=self.device), torch.tensor(no, device=self.device)

    @cached_property
    def version(self) -> str:
        more = [self.template_kwargs] if self.template_kwargs else []
        return digest("local", weights_digest(self._loaded[0]), self._tokenizer.chat_template, str(self.dtype), *more)

    @torch.no_grad()
    def yes(self, questions: Sequence[Question]) -> list[float | ScoringError]:
        answers, errors = self._yes(questions, graph=False)
        return [p if error is None else error for p, error in zip(answers.tolist(), errors, strict=True)]

    @torch.no_grad()
    def says(self, questions: Sequence[Question], answers: Sequence[str]) -> list[float | ScoringError]:
        """Soft-TIFA's score (GenEval 2, arXiv 2512.16853): the answer's share of the next token's softmax.

        Departs from its evaluation.py: every token that spells the answer alone counts, and counts once, where it takes
        the first token of four spellings ("10" is a token of "1").
        """
        found: list[float | ScoringError] = []
        for part in self._parts(len(questions)):
            p = self._next_token(questions[part.start : part.stop], graph=False).exp().cpu()  # (R,V)
            for row, likeliest in enumerate(self._tokenizer.convert_ids_to_tokens(p.argmax(1).tolist())):
                answer = answers[part.start + row]
                tokens = [token for word in spellings(answer) for token in self._by_word.get(word, ())]
                if thinks_first(likeliest):
                    found.append(ScoringError(f"the judge's next token is {likeliest!r}; {THINKS_FIRST}"))
                elif not tokens:
                    found.append(ScoringError(f"the tokenizer of judge {self.model} has no token for {answer!r}"))
                else:
                    found.append(float(p[row, tokens].sum()))
        return found

    @cached_property
    def _by_word(self) -> dict[str, list[int]]:
        """Bare word -> the tokens that spell it."""
        tokens: dict[str, list[int]] = {}
        for token, number in sorted(self._tokenizer.get_vocab().items()):
            tokens.setdefault(bare_word(token), []).append(number)
        return tokens

    def yes_with_grad(self, questions: Sequence[Question]) -> tuple[Tensor, list[ScoringError | None]]:
        """yes() as a tensor (R,), with gradients to the questions' pictures, and what went wrong with each.

        All its passes are held until backward.

        Raises:
            UsageError: the model's image processor leaves torch on the way.
        """
        answers, errors = self._yes(questions, graph=True)
        if not answers.requires_grad:
            raise self._without_gradient()
        return answers, errors

    def _without_gradient(self) -> UsageError:
        return UsageError(
            f"the image processor of judge {self.model} passes no gradient on to the pixels; give a model whose "
            f"processor computes in torch, or take a method that only needs scores"
        )

    def _yes(self, questions: Sequence[Question], graph: bool) -> tuple[Tensor, list[ScoringError | None]]:
        answers: list[Tensor] = []
        errors: list[ScoringError | None] = []
        for part in self._parts(len(questions)):
            logp = self._next_token(questions[part.start : part.stop], graph)
            yes, no = (logp[:, side].logsumexp(1) for side in self._sides)
            answers.append((yes - no).sigmoid().cpu())
            mass, likeliest = torch.logaddexp(yes, no).detach().exp().tolist(), logp.argmax(1).tolist()
            for both, token in zip(mass, likeliest, strict=True):
                errors.append(None if both >= LEAST_MASS else too_little(both, self._tokenizer.decode([token])))
        return (torch.cat(answers) if answers else torch.zeros(0)), errors

    def _next_token(self, questions: Sequence[Question], graph: bool) -> Tensor:
        """Log-probabilities (R,V) of what follows each question."""
        net, _ = self._loaded
        inputs = self._inputs(questions, "right", graph)  # no position is shifted, and no real token sees what pads it
        last = inputs["attention_mask"].sum(1) - 1  # (R,)
        # Only the logits of each row's last token are needed; at every position they would be the largest tensor.
        kept, which = torch.unique(last, return_inverse=True)
        few = "logits_to_keep" in inspect.signature(net.forward).parameters
        logits = net(**inputs, logits_to_keep=kept).logits if few else net(**inputs).logits[:, kept]
        return logits[torch.arange(len(last)), which].float().log_softmax(1)

    @torch.no_grad()
    def write(
        self, questions: Sequence[Question], seeds: Sequence[int], tokens: int, temperature: float
    ) -> list[str | ScoringError]:
        answers: list[str | ScoringError] = []
        for part in self._parts(len(questions)):
            inputs = self._inputs(questions[part.start : part.stop], "left", graph=False)
            # Where a folder names no top_k, generate would keep the 50 likeliest tokens alone.
            choice: dict[str, Any] = {"do_sample": False}
            if temperature:
                top_k = self._loaded[0].generation_config.top_k or 0
                choice = {"do_sample": True, "temperature": temperature, "top_k": top_k}
            with torch.random.fork_rng(enabled=bool(temperature)):
                if temperature:
                    torch.manual_seed(sum(seeds[i] for i in part) % 2**63)
                out = self._loaded[0].generate(
                    **inputs, **choice, max_new_tokens=tokens, pad_token_id=self._tokenizer.pad_token_id
                )
            answers += [self._read(row, tokens) for row in out[:, inputs["input_ids"].shape[1] :].cpu()]
        return answers

    def _read(self, ids: Tensor, tokens: int) -> str | ScoringError:
        stops = self._loaded[0].generation_config.eos_token_id
        ends = set(stops if isinstance(stops, list) else [stops]) | {self._tokenizer.eos_token_id}
        if len(ids) == tokens and not ends & set(ids.tolist()):
            return ScoringError("the judge's answer was cut off; raise max_tokens")
        # Where the end of thinking is a special token, it would be dropped below, and thoughts read as the answer.
        end = self._tokenizer.get_vocab().get("</think>")
        thought = (ids == end).nonzero() if end is not None else ids.new_zeros(0)
        text = self._tokenizer.decode(ids[int(thought[-1]) + 1 :] if len(thought) else ids, skip_special_tokens=True)
        return text if text.strip() else ScoringError("the judge's answer is empty")

    def _parts(self, rows: int) -> list[range]:
        """Rows in batches."""
        return [range(at, min(at + self.batch_size, rows)) for at in range(0, rows, self.batch_size)]

    def _inputs(self, questions: Sequence[Question], side: str, graph: bool) -> Any:
        """graph: pictures stay float tensors, with their graph."""
        _, processor = self._loaded
        written = [self._written(question) for question in questions]
        pictures: list[list[Any]] = []
        for question in questions:
            own = [piece for piece in question.pieces if isinstance(piece, Tensor)]
            pictures.append(list(own) if graph else [to_pil(picture) for picture in own])
        options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
        if graph:
            options["do_rescale"] = False  # they are in [0,1] already
        self._tokenizer.padding_side = side
        templated = bool(self._tokenizer.chat_template or getattr(processor, "chat_template", None))
        options["add_special_tokens"] = not templated  # a template writes its own
        if processor is self._tokenizer:
            if any(pictures):
                raise UsageError(f"judge {self.model} is a language model and sees no picture; set reads: text")
            return processor(written, **options).to(self.device)
        try:
            read = processor(text=written, images=pictures if any(pictures) else None, **options)
        except (RuntimeError, TypeError, ValueError) as error:  # of numpy or PIL, which take no graph
            if graph:
                raise self._without_gradient() from error
            raise
        return read.to(self.device, self.dtype)

    def _written(self, question: Question) -> str:
        _, processor = self._loaded
        if self._tokenizer.chat_template or getattr(processor, "chat_template", None):
            text_only = processor is self._tokenizer
            # A tokenizer's template takes strings, a processor's takes lists of parts.
            pieces = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in question.pieces]
            content: Any = "".join(str(p) for p in question.pieces) if text_only else pieces
            instruction: Any = question.system if text_only else [{"type": "text", "text": question.system}]
            system = [{"role": "system", "content": instruction}] if question.system else []
            messages = [*system, {"role": "user", "content": content}]
            return processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self.template_kwargs
            )
        image = getattr(processor, "image_token", "<image>")
        return "".join([question.system or "", *(p if isinstance(p, str) else image for p in question.pieces)])
