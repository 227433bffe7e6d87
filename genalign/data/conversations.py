"""Preferred answers as public sets write them: texts, lists of messages, or transcripts, with or without a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TURN = re.compile(r"\n\n(Human|Assistant):[ \t]*")  # of transcripts (HH-RLHF)
ROLES = {"Human": "user", "Assistant": "assistant"}

Turn = dict[str, str]  # {"role", "content"}


class Answers(NamedTuple):
    """turns: the messages that both answer. chosen, rejected: the last message of each side. pictures: how many parts
    of these messages stand for one."""

    turns: tuple[Turn, ...]
    chosen: str
    rejected: str
    pictures: int = 0


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, {"role": ..., "content": ...} each."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether chosen and rejected are messages, answers to messages, or transcripts that hold their prompt."""
    sides = [row.get("chosen"), row.get("rejected")]
    transcripts = all(isinstance(side, str) and TURN.match(side) for side in sides)
    answers = is_messages(row.get("prompt")) and all(isinstance(side, str) for side in sides)
    return all(map(is_messages, sides)) or answers or ("prompt" not in row and transcripts)


def answers_of(row: Mapping[str, Any]) -> Answers:
    """The prompt and the two answers of a row for which `is_conversation` holds.

    What chosen and rejected have in common belongs to the prompt (as TRL's `extract_prompt` has it); a key `prompt`, a
    text or messages, stands before it, unless they begin with it.

    Raises:
        ValueError: there is no prompt, the two part before their last message, or a picture stands where none is shown.
    """
    chosen, rejected = turns_of(row["chosen"]), turns_of(row["rejected"])
    most = min(len(chosen), len(rejected)) - 1  # the last message is an answer, even where both are equal
    common = 0
    while common < most and chosen[common] == rejected[common]:
        common += 1
    if len(chosen) - common != 1 or len(rejected) - common != 1:
        raise ValueError("has answers that part before their last message; keep one answer of each")
    before = [{"role": "user", "content": row["prompt"]}] if isinstance(row.get("prompt"), str) else row.get("prompt")
    prompt = turns_of(before or [])
    shared = chosen[:common]
    if prompt and not _begins(shared, prompt):
        shared = [*prompt, *shared]
    if not any(turn["content"].strip() for turn in shared):
        raise ValueError("has no prompt before its answers")
    pictures = max(pictures_in(row.get("prompt")), pictures_in(row["chosen"]), pictures_in(row["rejected"]))
    return Answers(tuple(shared), chosen[-1]["content"], rejected[-1]["content"], pictures)


def prompt_text(turns: Sequence[Turn]) -> str:
    """One user turn as it is; a longer conversation as a transcript, a paragraph a turn."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _begins(turns: Sequence[Turn], prompt: Sequence[Turn]) -> bool:
    """Whether a conversation has the prompt in it already: at its beginning, or behind a system turn."""
    behind = [turn for turn in turns if turn["role"] != "system"]
    return list(turns[: len(prompt)]) == list(prompt) or behind[: len(prompt)] == list(prompt)


def turns_of(value: Any) -> list[Turn]:
    """The turns of a list of messages, of a transcript, or of one answer."""
    if isinstance(value, str) and not TURN.match(value):
        return [{"role": "assistant", "content": value}]
    if isinstance(value, str):
        _, *parts = TURN.split(value)  # role, content, role, content ...
        return [
            {"role": ROLES[role], "content": content.strip()}
            for role, content in zip(parts[::2], parts[1::2], strict=True)
        ]
    return [{"role": str(message["role"]), "content": _content(message.get("content"))} for message in value]


def pictures_in(value: Any) -> int:
    """How many parts of a list of messages stand for pictures, which the row names apart (as TRL has it).

    Raises:
        ValueError: one stands elsewhere than before the text of the first user turn, where pictures are shown; or is
            the picture itself.
    """
    if not is_messages(value):
        return 0
    found, asked = 0, False  # asked: whether the first user turn has begun to speak
    for message in value:
        for part in message["content"] if isinstance(message.get("content"), list) else ():
            if _is_picture(part):
                if asked or message["role"] != "user":
                    raise ValueError("has a picture behind words; pictures are shown before the text of the first turn")
                if part.get("image") is not None:
                    raise ValueError("has a picture inside a message; name its file under 'images'")
                found += 1
            else:
                asked = asked or message["role"] == "user"
        asked = asked or message["role"] == "user"
    return found


def _content(content: Any) -> str:
    """The text of a message, also where it is a list of parts; see `pictures_in` for those that are pictures."""
    if isinstance(content, str):
        return content
    parts = [part for part in content if not _is_picture(part)] if isinstance(content, list) else []
    if not parts or not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in parts):
        raise ValueError("has a message that is not text")
    return "".join(part["text"] for part in parts)


def _is_picture(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"
