"""How a judge's written answer becomes numbers: one rule for the verdict. What it does not fit is a failure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from genalign.reward.base import ScoringError

# ---- one number -----------------------------------------------------------------------------------------------------

_NUMBER = r"[-−+]?(?:[0-9]+(?:[.,][0-9]+)?|\.[0-9]+)"
_OPEN, _CLOSE = r"(?:\\boxed\{|[*_`\"'$(\[{\s])*", r"[*_`\"'$)\]}]*"  # the marks that stand around a number
# A number, then what it is out of: 7, 7,5, **7**, [[7]], \boxed{7}, 7/10, 7 out of 10, 7 (of 10), 70%, 4 stars.
_VALUE = (
    rf"{_OPEN}(?P<number>{_NUMBER})(?![0-9])[*_`\"'$]*"
    rf"(?:\s*\(?(?:/|\b(?:out\s+)?of\b)\s*[*_`]*(?P<most>[0-9]+(?:[.,][0-9]+)?)|\s*(?P<percent>%|percent\b))?"
    rf"(?:\s*(?:points?|pts|stars?)\b)?{_CLOSE}"
)
BARE = re.compile(rf"\s*{_VALUE}\s*[.!]?[*_`]*\s*", re.I)
# The label of a verdict stands at the beginning of a line, a sentence or a clause; "the maximum score" is none.
LABEL = re.compile(
    r"(?:^|[.!?;:,{|]\s)[\s*_`\"'#>|{(\[-]*"
    r"(?:(?:so|thus|hence|therefore|my|the|your|final|overall|total)[\s_,]+)*(?:score|rating)\b[*_`\"']*"
    r"(?P<span>\s*[(\[][^()\[\]\n]*[)\]][*_`]*)?"
    r"(?P<sign>\s*(?:[:=：|]|\bis\b|[-–—](?=\s))[*_`\"']*)?",
    re.I | re.M,
)
TAG = re.compile(r"<(score|rating)>(?P<inside>[^<>]*)</\1>", re.I)
# What may stand behind: an end, or words of explanation that bring no second number.
REST = re.compile(
    r"\s*\|\s*(?:$|\n)|[*_`\"'}\])|]*[,;.!]?[*_`\"'}\])|]*\s*(?:$|\n)|[.;!][*_`\"']*\s|\s*(?:\(|,\s|[-–—]\s)[^0-9\n]*(?:$|\n)"
)
NAMES = ("score", "rating", "final score", "overall score", "total score", "final rating", "overall rating")


def read_score(text: str, low: float, high: float) -> float:
    """The number of a judge's verdict, in [low, high].

    The verdict is the last of: a line, sentence or clause that begins with "Score" or "Rating" (after words such as
    "my final"); a tag <score>; a JSON object with the key "score"; or, where nothing else is there, an answer or a last
    line that is a number alone (a last line only with its maximum or as a percentage, "8/10"). What was thought, up to
    </think>, is no part of the answer. A decimal comma is read, a comma before three digits is ambiguous. A maximum
    ("7/10", "7 out of 10") must be `high`; a percentage is of `high`, where low is 0.

    Raises:
        ScoringError: there is no verdict, the last one is not one number ("7-8", "N/A", "7 or 8"), one outside
            [low, high], or one out of another maximum. An earlier verdict never stands in for the last.
    """
    answer = without_thoughts(text)
    found = BARE.fullmatch(answer) or _verdict(answer)
    if found is None:
        raise ScoringError(f"the judge gave no score that can be read: {_short(text)}")
    return _number(found, low, high)


def _number(found: re.Match[str], low: float, high: float) -> float:
    """What a match of _VALUE is worth.

    Raises:
        ScoringError: it is outside [low, high], or out of another maximum.
    """
    number, most = _float(found["number"]), found["most"]
    if found["percent"]:
        if low != 0:
            raise ScoringError(f"the judge's score {found[0].strip()!r} is a percentage of [{low:g}, {high:g}]")
        number = number * high / 100
    if not low <= number <= high or (most is not None and _float(most) != high):
        raise ScoringError(f"the judge's score {found[0].strip()!r} is outside [{low:g}, {high:g}]")
    return number


def _verdict(answer: str) -> re.Match[str] | None:
    """The number of the last verdict; None where there is none, or where it is not one number."""
    last: tuple[int, re.Match[str] | None] = (-1, None)  # where it ends, and its number
    objects = _objects(answer)
    for _start, end, parsed in objects:
        for key, value in parsed.items():
            if " ".join(key.lower().replace("_", " ").split()) in NAMES:
                plain = isinstance(value, str | int | float) and not isinstance(value, bool)
                last = max(last, (end, BARE.fullmatch(str(value)) if plain else None), key=_place)
    spans = [(start, end) for start, end, _ in objects]
    for tag in TAG.finditer(answer):
        last = max(last, (tag.end(), BARE.fullmatch(tag["inside"])), key=_place)
    for label in LABEL.finditer(answer):
        if any(start <= label.start() < end - 1 for start, end in spans):  # words of the JSON object
            continue
        number = re.compile(_VALUE, re.I).match(answer, label.end())
        if number is None and label["span"]:  # "Score (4)"
            number = re.compile(_VALUE, re.I).match(answer, label.start("span"))
        whole = number is not None and REST.match(answer, number.end()) is not None
        if label["sign"] or number is not None:
            last = max(last, (label.end(), number if whole else None), key=_place)
    if last[0] < 0:  # nothing is called a score
        lines = answer.strip().splitlines()
        alone = BARE.fullmatch(lines[-1]) if lines else None
        return alone if alone is not None and (alone["most"] or alone["percent"]) else None
    return last[1]


def _place(verdict: tuple[int, re.Match[str] | None]) -> int:
    return verdict[0]


def _float(written: str) -> float:
    """A number with a decimal point or comma.

    Raises:
        ScoringError: a comma before three digits, which may also part thousands.
    """
    if re.fullmatch(r"[-−+]?[0-9]+,[0-9]{3}", written):
        raise ScoringError(f"the judge's score {written!r} may be a decimal or thousands; ask for a decimal point")
    return float(written.replace(",", ".").replace("−", "-"))


def without_thoughts(text: str) -> str:
    """What stands behind the last </think>; a template may have written the opening tag itself.

    Raises:
        ScoringError: the thoughts do not end.
    """
    *_thoughts, answer = re.split(r"</(?:think|thinking|reasoning)>", text, flags=re.I)
    if re.search(r"<(?:think|thinking|reasoning)>", answer, re.I):
        raise ScoringError("the judge's thoughts do not end; raise max_tokens, or set chat_template_kwargs")
    return answer


# ---- several numbers ------------------------------------------------------------------------------------------------

LISTED = re.compile(r"\bscores?[\"']?\s*[:=]\s*\[([^\[\],]+(?:,[^\[\],]+)+)\]", re.I)  # "score": [8, 7.5]
# A line with a score of its own: "## Score: 3.5", "2. Alignment Score (1-5): 3.5", "**Style Rating:** [N/A]".
LINE = re.compile(
    r"^[\s*_`#>|.0-9-]*(?:[a-z][\w /&-]{0,40}? )?(?:score|rating)\b[*_`]*(?:\s*\([^()\n]*\))?\s*[:=](?P<value>.*)$",
    re.I | re.M,
)
NONE = re.compile(r"[\s*_`\[(]*n/?a[\s*_`\])]*", re.I)


def read_marks(text: str, count: int, low: float, high: float) -> list[float | None]:
    """The `count` scores of an answer that gives several, in their order, each in [low, high]; None is "N/A".

    They are the last list that is called a score (`"score": [8, 7.5]`, in JSON or what was meant to be), or else the
    lines with a score of their own. One alone is the verdict of `read_score`.

    Raises:
        ScoringError: another count of them, or one that is not a number in [low, high].
    """
    if count == 1:
        return [read_score(text, low, high)]
    answer = without_thoughts(text)
    lists = LISTED.findall(answer)
    written = lists[-1].split(",") if lists else [line["value"] for line in LINE.finditer(answer)]
    if len(written) != count:
        raise ScoringError(f"the judge gave {len(written)} scores and not {count}: {_short(text)}")
    return [_mark(value, low, high) for value in written]


def _mark(value: str, low: float, high: float) -> float | None:
    if NONE.fullmatch(value):
        return None
    found = BARE.fullmatch(value)
    if found is None:
        raise ScoringError(f"the judge's score {value.strip()!r} is not one number")
    return _number(found, low, high)


def read_scores(text: str, keys: Sequence[str], low: float, high: float) -> list[float]:
    """The numbers of an answer's last JSON object {"scores": {key: number}}, one for each key and for no other.

    Raises:
        ScoringError: no such object, a key missing or unknown, a number outside [low, high].
    """
    scores: Any = None
    for _, _, parsed in _objects(without_thoughts(text)):
        scores = parsed.get("scores", scores)
    if not isinstance(scores, dict) or set(scores) != set(keys):
        raise ScoringError(f"the judge did not score exactly {', '.join(keys)}: {_short(text)}")
    numbers = [scores[key] for key in keys]
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and low <= n <= high for n in numbers):
        raise ScoringError(f"the judge's scores {numbers} are not numbers in [{low:g}, {high:g}]")
    return [float(number) for number in numbers]


def _objects(text: str) -> list[tuple[int, int, dict[str, Any]]]:
    """(start, end, object) of the JSON objects in a text, in their order; what is inside one counts to it."""
    decoder, found, at = json.JSONDecoder(object_pairs_hook=_once), [], text.find("{")
    while at >= 0:
        end = at + 1
        try:
            parsed, end = decoder.raw_decode(text, at)
            if isinstance(parsed, dict):
                found.append((at, end, parsed))
        except (ValueError, RecursionError):
            pass
        at = text.find("{", end)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these pairs; a key that stands there with two values has none."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        made[key] = value if made.get(key, value) == value else None
    return made


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) < 80 else f"...{line[-77:]}")
