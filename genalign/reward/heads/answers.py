"""Rules for answers that can be checked: a word, a number, or boxes in a picture. They say how sure they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from genalign.reward.combine.combination import number
from genalign.reward.heads.rules import Rated, TextRule
from genalign.reward.tags import tagged
from genalign.types import Prompt, UsageError

EDITION = 3  # of `answer`'s formula; another one makes other scores, which no run takes for the old ones
COUNTED = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
NUMBER = re.compile(
    rf"""
    (?:\b(minus|negative)\s+)?
    (?:(?<![\w.])([-−+]?(?>(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?|\.\d+))  # 1,000.5, -2, .5; never a part of one
    (?:e([-−+]?\d+)  # 6.6e-34
    | \s*(?:[x×·*]|\\times|\\cdot)\s*10\s*(?:\^|\*\*)\s*{{?([-−+]?\d+)}}?)?  # 6.6 x 10^-34, 6.6 \times 10^{{-34}}
    %?(?!\w)
    | \b({"|".join(COUNTED)})\b)
    """,
    re.IGNORECASE | re.VERBOSE,
)
FRACTION = re.compile(
    r"""
    \\[dt]?frac\s*{\s*([-−+]?\d+)\s*}\s*{\s*(\d+)\s*}  # \frac{1}{2}
    | (?<![\w./])([-−+]?\d+)\s?/\s?(\d+)(?![\w/]|\.\d)  # 1/2, and no date
    """,
    re.VERBOSE,
)
WORD = re.compile(
    r"""
    (?<![\w.])[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:[.:/]\d+)*(?!\w)  # -5, 1,000.5, 2:30, 1/2
    | \w+(?:\+\+|\#)?  # C++ and C# are not C
    | [<>=≤≥≠]+  # x >= 5 is not x <= 5
    """,
    re.VERBOSE,
)
BOX = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*[\])]")


class Answer(TextRule):
    """1 where the answer is the right one, else 0; and how sure that is. A text without an answer has 0.

    key: the prompt's fact with the right answer; a row where it is null abstains. tag: the answer stands between <tag>
    and </tag>, once; null: it is the whole text. A right answer that is a number, in digits, as a fraction or as an
    English word up to twenty, is compared as a number, whole numbers exactly and others to `tolerance` of its own size,
    so that 6.6e-34 is not 1.6e-19; any other as words: in lower case, without articles and punctuation (SQuAD's
    normalisation, arXiv 1606.05250), but for what makes another answer of it (`plain_words`).

    unsure: the confidence where an answer cannot be read with certainty: in words, the right ones stand among others;
    as a number, there is none or several differ. Its score is then 0, and in a hybrid the model has the other share
    (HARMO, arXiv 2510.05283: a rule where the task can be verified, a model where not).

    near: partial credit of a wrong number, max(0, 1 - |p - g| / max(|g|, 1)), g the right one (LaV-CoT's count reward,
    arXiv 2509.10026).
    """

    def __init__(
        self,
        key: str = "answer",
        *,
        tag: str | None = "answer",
        tolerance: float = 1e-6,
        unsure: float = 0.5,
        near: bool = False,
        name: str = "answer",
    ) -> None:
        super().__init__(name)
        self.key, self.tag, self.near = key, tag, bool(near)
        self.tolerance = number(name, "tolerance", tolerance, 0.0)
        self.unsure = number(name, "unsure", unsure, 0.0, 1.0)
        self.needs = frozenset({"text", f"facts.{key}"})
        self.settings = (EDITION, key, tag, self.tolerance, self.unsure, self.near)

    def rate(self, text: str, prompt: Prompt) -> Rated | None:
        right = prompt.facts.get(self.key)
        if right is None:
            return None
        given = text if self.tag is None else tagged(text, self.tag)
        if not given:
            return Rated((0.0,))
        wanted = numbers_of(str(right))
        if len(wanted) == 1 and not plain_words(NUMBER.sub(" ", str(right))):
            return self._number(given, wanted[0])
        words = plain_words(given) or [given.strip()]  # an answer may be a mere sign
        those = plain_words(str(right)) or [str(right).strip()]
        if words == those:
            return Rated((1.0,))
        among = any(words[at : at + len(those)] == those for at in range(len(words)))
        return Rated((0.0,), self.unsure if among else 1.0)

    def _number(self, given: str, wanted: float) -> Rated:
        found = set(numbers_of(given))
        if len(found) != 1:
            return Rated((0.0,), self.unsure)
        answer = found.pop()
        off = abs(answer - wanted)
        whole = answer.is_integer() and wanted.is_integer()
        if off <= (0.0 if whole else self.tolerance * abs(wanted)):
            return Rated((1.0,))
        return Rated((max(0.0, 1.0 - off / max(abs(wanted), 1.0)) if self.near else 0.0,))


class Boxes(TextRule):
    """Two aspects of the boxes that a text names, in [0,1]: precision and recall, each half of the total (Vision-R1,
    arXiv 2503.18013: criterion-driven reward).

    A box is [left, top, right, bottom], in the units of the right ones. Given and right boxes are matched one to one
    for the greatest sum of IoU; a match counts from IoU `least` on. recall: matches / right boxes. precision: the sum
    of their IoU / given boxes. Without a right box both are 1 where none is given, else 0.

    key: the prompt's fact with the right boxes, a list of lists of 4 numbers; a row where it is null abstains. tag: as
    `Answer` has it; a text without it has 0.

    The paper's progressive thresholds are a `schedule` of these aspects, `of: band`.

    Departs from the paper's code: (1) the matching is by IoU alone, without L1 and GIoU, and there are no classes.
    (2) Precision divides by all boxes that are given, not by the matches, so that surplus boxes cost something.
    """

    weights = (0.5, 0.5)

    def __init__(
        self, key: str = "boxes", *, tag: str | None = "answer", least: float = 0.5, name: str = "boxes"
    ) -> None:
        super().__init__(name)
        self.key, self.tag, self.least = key, tag, number(name, "least", least, 0.0, 1.0)
        self.aspects = ("precision", "recall")
        self.needs = frozenset({"text", f"facts.{key}"})
        self.settings = (key, tag, self.least)

    def rate(self, text: str, prompt: Prompt) -> Rated | None:
        fact = prompt.facts.get(self.key)
        if fact is None:
            return None
        try:
            right = np.array(fact, dtype=float).reshape(-1, 4)
        except ValueError as error:
            raise UsageError(
                f"the fact {self.key!r} of prompt {prompt.text[:40]!r} is not a list of boxes of 4 numbers; mend it"
            ) from error
        answer = text if self.tag is None else tagged(text, self.tag)
        if answer is None:
            return Rated((0.0, 0.0))
        return Rated(matched(boxes_of(answer), right, self.least))


def matched(given: Any, right: Any, least: float) -> tuple[float, float]:
    """Precision and recall of boxes (G,4) against the right ones (R,4), as `Boxes` has them."""
    from scipy.optimize import linear_sum_assignment

    if not len(right) or not len(given):
        both = float(len(right) == len(given))
        return both, both
    overlap = iou(given, right)
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    counted = overlap[rows, columns]
    counted = counted[counted >= least]
    return float(counted.sum() / len(given)), len(counted) / len(right)


def iou(one: Any, other: Any) -> Any:
    """(G,R) intersection over union of boxes (G,4) and (R,4), (left, top, right, bottom); 0 of a box without area."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def boxes_of(text: str) -> Any:
    """(G,4) the boxes that a text names, as [1, 2, 3, 4] or (1, 2, 3, 4)."""
    return np.array([[float(edge) for edge in box] for box in BOX.findall(text)]).reshape(-1, 4)


def numbers_of(text: str) -> list[float]:
    """The numbers of a text, in digits ("1,000", "-2.5", "40%", "6.6e-34", "6.6 x 10^-34", "1/2") or as English words
    up to twenty; "minus" or "negative" before either is its sign."""
    found = []
    for minus, digits, *powers, word in NUMBER.findall(FRACTION.sub(_quotient, text)):
        if word:
            value = float(COUNTED.index(word.lower()))
        else:
            power = "".join(powers) or "0"
            value = float(f"{digits}e{power}".replace(",", "").replace("−", "-"))
        found.append(-value if minus else value)
    return found


def _quotient(fraction: re.Match[str]) -> str:
    """A fraction as a decimal number; itself where its denominator is 0."""
    above, below = (int(part.replace("−", "-")) for part in fraction.groups() if part is not None)
    return repr(above / below) if below else fraction[0]


def plain_words(text: str) -> Sequence[str]:
    """Its words in lower case, without articles and punctuation.

    Departs from the paper, whose code deletes every mark and every "a": the sign and the point of a number stay, as do
    C++ and C#, signs of comparison, and an "a" at the end, which is a name (vitamin A, choice A).
    """
    words = [word.replace("−", "-").replace(",", "") for word in WORD.findall(text.lower())]
    return [word for word in words[:-1] if word not in ("a", "an", "the")] + words[-1:]
