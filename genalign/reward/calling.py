"""What TRL's trainers give a reward function besides its data, in the forms in which they give it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from genalign.reward.base import METRIC
from genalign.types import Prompt


def of_trainer(step: int, rows: int, logged: dict[str, list[Any]]) -> dict[str, Any]:
    """What TRL's trainers give a function besides the data."""

    def log_extra(column: str, values: Sequence[Any]) -> None:
        if len(values) == rows:
            logged[str(column)] = list(values)

    def log_metric(name: str, value: float) -> None:
        logged[f"{METRIC}{name}"] = [float(value)] * rows

    return {"trainer_state": SimpleNamespace(global_step=step), "log_extra": log_extra, "log_metric": log_metric}


def as_messages(prompts: Sequence[Prompt], completions: Any) -> dict[str, list[Any]]:
    """Prompts and completions as lists of messages, TRL's conversational form."""
    plural: dict[str, list[Any]] = {"prompts": []}
    for prompt in prompts:
        turns = prompt.facts.get("messages") or [{"role": "user", "content": prompt.text}]
        plural["prompts"].append([dict(turn) for turn in turns])
    if completions is not None:
        plural["completions"] = [[{"role": "assistant", "content": str(text)}] for text in completions]
    return plural


def annotated_chats(annotations: Sequence[Any]) -> bool | None:
    """Whether annotations of prompts and completions are of messages or of texts; None where they leave it open."""
    found = set()
    for annotation in annotations:
        written = annotation if isinstance(annotation, str) else str(annotation)
        written = re.sub(r"typing\.|\s", "", written).lower()
        if re.fullmatch(r"(list|sequence)\[str\]", written):
            found.add(False)
        elif re.fullmatch(r"(list|sequence)\[(list|sequence)\[[^|]*\]\]", written):
            found.add(True)
    return found.pop() if len(found) == 1 else None


def awaited(result: Any) -> Any:
    """What an async function returns; in a thread where a loop runs already, as in a notebook."""

    async def wait() -> Any:
        return await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()
