"""The ballot as HTML: two samples of which one is better, or several to be ranked; ballot.js votes by its buttons.

A button's data-keys are the keys that press it, as KeyboardEvent.key names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genalign.demo import markup
from genalign.types import GenalignError

RANK = "rank"  # the choice that brings places along
SIDES = (("left", "←", "ArrowLeft"), ("right", "→", "ArrowRight"))  # choice, the key as it is written, and its name
OTHERS = (
    ("tie", "tie", "↓", "ArrowDown t"),
    ("skip", "skip", "S", "s"),
    ("undo", "undo", "U", "u"),
)  # choice, words, the key as it is written, keys
RANKING = (
    ("equal", "same place", "=", "="),
    ("back", "clear last", "⌫", "Backspace"),
    (RANK, "store", "⏎", "Enter"),
)
HOW_TO_RANK = (
    "Press the numbers from the best to the worst; before one that is as good as the last, =. Those left out share the "
    "last place."
)


def ballot(token: str, prompt: str, files: Sequence[Path], said: str, mine: int, total: int) -> str:
    """said: what became of the vote before. mine, total: how many votes there are.

    Raises:
        GenalignError: a sample's file is missing.
    """
    pair = len(files) == 2
    if pair:
        titles = [(f"{side} is better", f"{side} sample", side, key, keys) for side, key, keys in SIDES]
    else:
        numbers = [str(k + 1) for k in range(len(files))]
        titles = [(f"sample {n}", f"sample {n}", "place", n, n) for n in numbers]
    sides = "".join(_side(file, prompt, *title) for file, title in zip(files, titles, strict=True))
    others = "".join(_button(*one) for one in (OTHERS if pair else [*RANKING, *OTHERS]))
    how = "" if pair else f'<p class="order" role="status" data-empty="{HOW_TO_RANK}">{HOW_TO_RANK}</p>'
    status = f"{markup.text(said)} · " if said else ""
    return (
        f'<div class="ballot {"pair" if pair else "group"}" tabindex="-1" data-pair="{token}">'
        f'<p class="prompt">{markup.text(prompt)}</p><div class="sides">{sides}</div>{how}'
        f'<div class="choices">{others}</div>'
        f'<p class="note" role="status">{status}<b class="mine">{mine}</b> by you, {total} in all</p></div>'
    )


def _side(file: Path, prompt: str, words: str, name: str, choice: str, key: str, keys: str) -> str:
    if not file.is_file():
        raise GenalignError(f"the sample {file.name} is missing from the folder of votes; restore it, or skip it")
    drawn = markup.element(file, markup.medium_of(file), f"{name} of {prompt}")
    badge = '<b class="rank" aria-hidden="true"></b>' if choice == "place" else ""
    return f'<figure data-choice="{choice}">{badge}{drawn}{_button(choice, words, key, keys)}</figure>'


def _button(choice: str, words: str, key: str, keys: str) -> str:
    return f'<button type="button" data-choice="{choice}" data-keys="{keys}">{words} <kbd>{key}</kbd></button>'
