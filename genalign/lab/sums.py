"""SumWorld: sums and differences of small numbers, asked in several wordings and to be answered in one of four forms.

Every question has one right answer and one form that it asks for, so that a rule can check all that it states.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np

Facts = dict[str, Any]
Form = Literal["tag", "words", "equation", "digits"]

LARGEST = 49  # of what is added
ASKED = {
    "plus": ("What is {a} + {b}?", "Add {b} to {a}.", "How much is {a} plus {b}?", "{a} + {b} = ?"),
    "minus": ("What is {a} - {b}?", "Take {b} from {a}.", "How much is {a} minus {b}?", "{a} - {b} = ?"),
}
WANTED: dict[Form, tuple[str, str]] = {
    "tag": ("Answer in <answer></answer>.", "Put the result in <answer></answer>."),
    "words": ("Answer in words.", "Write the result as words."),
    "equation": ("Write the whole equation.", "Answer with the equation."),
    "digits": ("Answer with the number alone.", "Give just the number."),
}
FORMS: tuple[Form, ...] = tuple(WANTED)
ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SIGNS = {"plus": "+", "minus": "-"}


def held_out(low: int, high: int) -> bool:
    """Whether low + high is asked about in held-out questions alone, in either order, and as a difference."""
    low, high = sorted((low, high))
    return (low + 3 * high) % 7 == 0


def sample_facts(rng: np.random.Generator, split: str | None = "train") -> Facts:
    """The facts of a question: a, b and operation, the form that it asks for, and the right number under answer.

    split: "train" or "heldout", by the two numbers that are added or were; None: any.
    """
    while True:
        one, other = (int(n) for n in rng.integers(1, LARGEST + 1, 2))
        if split is None or held_out(one, other) == (split == "heldout"):
            break
    operation = "plus" if rng.random() < 0.5 else "minus"
    a, b, answer = (one, other, one + other) if operation == "plus" else (one + other, other, one)
    form = FORMS[int(rng.integers(len(FORMS)))]
    return {"a": a, "b": b, "operation": operation, "form": form, "answer": str(answer)}


def question(facts: Facts, rng: np.random.Generator) -> str:
    """One of the wordings of a question."""
    asked, wanted = ASKED[facts["operation"]], WANTED[facts["form"]]
    asks = asked[int(rng.integers(len(asked)))].format(a=facts["a"], b=facts["b"])
    return f"{asks} {wanted[int(rng.integers(len(wanted)))]}"


def answer(facts: Facts, form: Form | None = None, number: int | None = None) -> str:
    """The right answer in the form that is asked for; or in another form, or with another number."""
    form, number = form or facts["form"], int(facts["answer"]) if number is None else number
    if form == "tag":
        return f"<answer>{number}</answer>"
    if form == "words":
        return spelled(number)
    if form == "equation":
        return f"{facts['a']} {SIGNS[facts['operation']]} {facts['b']} = {number}"
    return str(number)


def spelled(number: int) -> str:
    """A number below 1000 in English words, without "and"."""
    if number >= 100:
        rest = f" {spelled(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")


def without_carry(facts: Facts) -> int:
    """The answer of somebody who forgets to carry or to borrow; the right one where there is nothing to forget."""
    a, b, sign = facts["a"], facts["b"], 1 if facts["operation"] == "plus" else -1
    return 10 * (a // 10 + sign * (b // 10)) + (a + sign * b) % 10


def verify(text: str, facts: Facts) -> dict[str, bool]:
    """What of a text is as it was asked: number, form, and all of it.

    form: the text has the form that was asked for, and nothing beside it but space at its ends; an equation repeats the
    numbers and the sign that were asked about. number: the number that it gives is right, whatever the form; that is
    the last one, in digits or words.
    """
    said = text.strip()
    form, number = form_of(said, facts) == facts["form"], last_number(said) == int(facts["answer"])
    return {"number": number, "form": form, "all": number and form}


def form_of(said: str, facts: Facts) -> Form | None:
    """The form that a text has."""
    start = re.escape(f"{facts['a']} {SIGNS[facts['operation']]} {facts['b']} = ")
    if re.fullmatch(r"<answer>\d+</answer>", said):
        return "tag"
    if re.fullmatch(rf"{start}\d+", said):
        return "equation"
    if re.fullmatch(r"\d+", said):
        return "digits"
    return "words" if said in _NUMBERS else None


_NUMBERS = {spelled(number): number for number in range(1000)}


def last_number(said: str) -> int | None:
    """The number that a text ends with: all of it in words, or the last one in digits."""
    if said in _NUMBERS:
        return _NUMBERS[said]
    found = re.findall(r"\d+", said)
    return int(found[-1]) if found else None
