"""Rules about text that need no model: length, budget, format, repetition, order. Where there is no text they
abstain."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genalign.files.untrusted import check_model
from genalign.reward.base import Stateless, digest
from genalign.reward.combine.combination import choice, number
from genalign.types import Media, Prompt, Scores, UsageError

Unit = Literal["words", "characters", "tokens"]
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")


class TextRule(Stateless):
    """One score a text, by a formula. settings: what distinguishes two rules of one class, beside the name; hashed."""

    needs = frozenset({"text"})
    looks_at: Literal["sample"] = "sample"
    differentiable = False
    settings: tuple[Any, ...] = ()

    def __init__(self, name: str) -> None:
        self.name, self.aspects = name, (name,)

    @property
    def version(self) -> str:
        return digest(type(self).__name__.lower(), self.name, self.settings)

    def rate(self, text: str, prompt: Prompt) -> float | None:
        """None: the rule does not apply."""
        raise NotImplementedError

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        written: list[Any] = list(media["text"].data) if "text" in media else [None] * len(prompts)
        scores = [None if t is None else self.rate(t, prompt) for t, prompt in zip(written, prompts, strict=True)]
        values = torch.tensor([0.0 if score is None else score for score in scores])
        valid = torch.tensor([score is not None for score in scores], dtype=torch.bool)
        nothing = torch.zeros_like(valid)[:, None]
        return Scores(self.aspects, values[:, None], valid[:, None], nothing, values, valid, torch.ones(1))


class Counted(TextRule):
    """A rule about how long a text is, in words, characters, or tokens of the tokenizer in the folder `model`."""

    def __init__(self, unit: Unit, model: str | Path | None, name: str) -> None:
        super().__init__(name)
        self.unit: Unit = choice(name, "unit", unit, Unit)
        if (unit == "tokens") != (model is not None):
            raise UsageError(f"reward {name!r}: 'unit: tokens' and 'model', whose tokenizer counts, go together")
        self.model = None if model is None else str(model)

    @property
    def version(self) -> str:
        file = Path(self.model or "", "tokenizer.json")
        tokens = hashlib.sha256(file.read_bytes()).hexdigest() if self.model and file.is_file() else self.model
        return digest(super().version, self.unit, tokens)

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        check_model(str(self.model))
        try:
            return AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the tokenizer of {self.model} cannot be loaded: {' '.join(str(error).split())}"
            ) from error

    def count(self, text: str) -> int:
        if self.unit == "tokens":
            return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        return len(text.split()) if self.unit == "words" else len(text)


class Length(Counted):
    """-(max(0, (n - hi) / hi) + max(0, (lo - n) / lo)): 0 between lo and hi, below 0 outside, at least -cap.

    A two-sided form of HARMO's length penalty (arXiv 2510.05283), whose own formula is not published. To punish the
    length of right answers alone, multiply: `Product(Length(...), correct)`.
    """

    def __init__(
        self,
        lo: float | None = None,
        hi: float | None = None,
        *,
        cap: float | None = None,
        unit: Unit = "words",
        model: str | Path | None = None,
        name: str = "length",
    ) -> None:
        super().__init__(unit, model, name)
        if lo is None and hi is None:
            raise UsageError(f"reward {name!r} needs lo or hi, the least or the greatest length that costs nothing")
        self.lo = None if lo is None else number(name, "lo", lo, 1e-9)
        self.hi = None if hi is None else number(name, "hi", hi, 1e-9)
        self.cap = None if cap is None else number(name, "cap", cap, 1e-9)
        if self.lo is not None and self.hi is not None and self.lo > self.hi:
            raise UsageError(f"reward {name!r} has lo {lo:g} above hi {hi:g}; exchange them")
        self.settings = (self.lo, self.hi, self.cap)

    def rate(self, text: str, prompt: Prompt) -> float:
        n, off = self.count(text), 0.0
        if self.hi is not None:
            off += max(0.0, (n - self.hi) / self.hi)
        if self.lo is not None:
            off += max(0.0, (self.lo - n) / self.lo)
        return -off if self.cap is None else -min(off, self.cap)


class Budget(Counted):
    """How well a text keeps within a budget b of n: HBPO ("Hierarchical Budget Policy Optimization").

    min(h cos(pi n / 2L) - |b - n| / L, h cos(pi b / 2L)), with L = `longest` and h = `height`; with no budget
    h cos(pi n / 2L), n at most L. budget: a number, or None for the prompt's fact of that name. For right answers
    alone: `Product(Budget(...), correct)`.
    """

    def __init__(
        self,
        budget: float | None = None,
        *,
        longest: float = 4096.0,
        height: float = 4.0,
        unit: Unit = "words",
        model: str | Path | None = None,
        name: str = "budget",
    ) -> None:
        super().__init__(unit, model, name)
        self.budget = None if budget is None else number(name, "budget", budget, 0.0)
        self.longest, self.height = number(name, "longest", longest, 1.0), number(name, "height", height, 0.0)
        self.settings = (self.budget, self.longest, self.height)

    def rate(self, text: str, prompt: Prompt) -> float:
        n, budget = self.count(text), prompt.facts.get("budget") if self.budget is None else self.budget
        if budget is None:
            return self._worth(n)
        return min(self._worth(n) - abs(budget - n) / self.longest, self._worth(budget))

    def _worth(self, n: float) -> float:
        """h cos(pi n / 2L), n at most L."""
        return self.height * math.cos(math.pi / 2 * min(n / self.longest, 1.0))


class Format(TextRule):
    """1 where the whole text has the form, else 0 (ToolRL's and LaV-CoT's format reward).

    pattern: a regular expression, in which a dot matches line breaks too. tags: or names of XML-like tags, each of
    which must occur once, in this order, with nothing but white space between them.
    """

    def __init__(self, pattern: str | None = None, *, tags: Sequence[str] | None = None, name: str = "format") -> None:
        super().__init__(name)
        if (pattern is None) == (tags is None):
            raise UsageError(f"reward {name!r} takes a pattern or tags, one of the two")
        self.tags = tuple(tags or ())
        if pattern is None:
            blocks = (rf"<{tag}>(?:(?!</?{tag}>).)*</{tag}>" for tag in map(re.escape, self.tags))
            pattern = r"\s*".join(["", *blocks, ""])
        try:
            self.pattern = re.compile(pattern, re.DOTALL)
        except (re.error, TypeError) as error:
            raise UsageError(f"the pattern of reward {name!r} is not a regular expression: {error}") from error
        self.settings = (self.pattern.pattern,)

    def rate(self, text: str, prompt: Prompt) -> float:
        once = all(text.count(f"<{tag}>") == 1 for tag in self.tags)
        return float(once and self.pattern.fullmatch(text) is not None)


class Repetition(TextRule):
    """-(1 - distinct n-grams / n-grams) of lower-case words, in [-1,0]; 0 for a text of fewer than n words.

    (The repetition penalty of "Demystifying Long Chain-of-Thought Reasoning in LLMs", as TRL has it for tokens.)
    """

    def __init__(self, n: int = 3, name: str = "repetition") -> None:
        super().__init__(name)
        self.n = int(number(name, "n", n, 1.0))
        self.settings = (self.n,)

    def rate(self, text: str, prompt: Prompt) -> float:
        words = text.lower().split()
        grams = [tuple(words[i : i + self.n]) for i in range(len(words) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0


class RankAgreement(TextRule):
    """Kendall's tau-b, in [-1,1], between the scores that a text gives to several things and the right ones: how a
    model that is asked to judge is rewarded (URPO's referee: "URPO: A Unified Reward & Policy Optimization Framework";
    of two things it is 1 for the right order and -1 for the wrong one, as in SPARK's pairs).

    The prompt's fact `scores` lists the right ones; the text's are the numbers of its last <answer>, or of all of it.
    Another count of numbers is -1. Where the right ones are all equal the rule abstains.
    """

    needs = frozenset({"text", "facts.scores"})

    def __init__(self, *, name: str = "rank-agreement") -> None:
        super().__init__(name)

    def rate(self, text: str, prompt: Prompt) -> float | None:
        from scipy.stats import kendalltau

        right = [float(score) for score in prompt.facts.get("scores") or []]
        if len(set(right)) < 2:
            return None
        answers: list[str] = ANSWER.findall(text)
        given = [float(number) for number in NUMBER.findall(answers[-1] if answers else text)]
        if len(given) != len(right):
            return -1.0
        return float(kendalltau(given, right).statistic) if len(set(given)) > 1 else 0.0
