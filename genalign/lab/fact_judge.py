"""A third judge of EmojiWorld: tiny-vlm-judge, asked about the facts of a prompt one by one.

It shares neither network nor training with the held-out judge, and no code with the rule verifier: where all three
agree in direction, what was learnt is in the pictures and not in one judge's blind spot.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genalign.files.shipped import shipped
from genalign.lab.vlm import QUESTION
from genalign.lab.world import BACKGROUNDS, MAX_COUNT, Facts, caption
from genalign.reward.base import Scope, Stateless, digest
from genalign.reward.judge.judges import YesNoJudge
from genalign.reward.scores import combine
from genalign.types import Media, Prompt, Scores, UsageError

ASKED = ("count", "relation", "background")
PHRASING = 0  # seed of how a fact is worded; the same for what is stated and for what contradicts it


class FactJudge(Stateless):
    """Aspects all_facts, count, relation, background, each 1 or 0; an aspect abstains where nothing can be asked of it.

    A fact holds where the model says yes to a sentence that states it more readily than to any sentence in which this
    fact alone is another: the other numbers of a lone kind of object, a pair's exchanged places, the other backgrounds.
    all_facts, the total: it says yes (p > 1/2) to the whole prompt, and every fact holds. Questions are of the kind
    that the model was trained on, where a false sentence has one fact changed.

    Raises:
        UsageError: the model's folder is missing, or a prompt has no EmojiWorld facts.
    """

    name = "facts"
    aspects = ("all_facts", *ASKED)
    weights = (1.0, 0.0, 0.0, 0.0)
    needs = frozenset({"image", "facts.objects"})
    looks_at: Scope = "sample"

    def __init__(self, model: str | Path | None = None, batch_size: int = 64) -> None:
        folder = Path(model) if model else shipped("assets", "tiny-vlm-judge")
        if not folder.is_dir():
            raise UsageError(f"the model {folder} is missing; make it with `genalign lab build vlm-judge`")
        self.asker = YesNoJudge(model=folder, question=QUESTION, batch_size=batch_size)

    @property
    def version(self) -> str:
        return digest(type(self).__name__, self.asker.version, (ASKED, PHRASING))

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        if any("objects" not in prompt.facts for prompt in prompts):
            raise UsageError("this judge needs prompts with EmojiWorld facts (facts.objects); use emojiworld/*.jsonl")
        asked = [question for row, prompt in enumerate(prompts) for question in _questions(row, prompt.facts)]
        rows = [question.row for question in asked]
        sentences = [replace(prompts[question.row], text=question.text) for question in asked]
        answers = self.asker(sentences, media.select(rows), None)
        values = torch.zeros(len(prompts), len(self.aspects))
        valid, failed = torch.zeros_like(values, dtype=torch.bool), torch.zeros_like(values, dtype=torch.bool)
        stated: dict[tuple[int, int], float] = {}
        for question, p, fails in zip(asked, answers.total.tolist(), answers.failed[:, 0].tolist(), strict=True):
            k = self.aspects.index(question.aspect)
            place = (question.row, k)
            failed[place] |= fails
            valid[place] = True
            if question.true:
                stated[place] = p
                values[place] = float(p > 0.5) if k == 0 else 1.0
            elif p >= stated[place]:
                values[place] = 0.0
        facts = ~valid[:, 1:] | (values[:, 1:] == 1)  # (B, 3)
        values[:, 0] *= facts.all(dim=1)
        failed[:, 0] |= failed[:, 1:].any(dim=1)
        valid &= ~failed
        total, readable = combine(values, valid, failed, torch.tensor(self.weights), None, "renormalise")
        return Scores(self.aspects, values * valid, valid, failed, total, readable, torch.tensor(self.weights))


@dataclass(frozen=True)
class _Question:
    """A sentence about the sample `row`; true: as its prompt states it, which comes before what contradicts it."""

    row: int
    aspect: str
    text: str
    true: bool


def _questions(row: int, facts: Facts) -> Iterator[_Question]:
    yield _Question(row, "all_facts", _worded(facts), True)
    for aspect in ASKED:
        others = list(_others(aspect, facts))
        if others:
            # What is asked about is said without the background, unless it is the background.
            about = facts if aspect == "background" else {**facts, "background": None}
            yield _Question(row, aspect, _worded(about), True)
            for other in others:
                yield _Question(row, aspect, _worded({**about, **other}), False)


def _others(aspect: str, facts: Facts) -> Iterator[dict[str, Any]]:
    """What facts of this aspect could have been instead; nothing where it is not stated."""
    if aspect == "count" and len(facts["objects"]) == 1:
        for count in range(1, MAX_COUNT + 1):
            if count != facts["objects"][0]["count"]:
                yield {"objects": [{**facts["objects"][0], "count": count}]}
    elif aspect == "relation" and facts["relation"] is not None:
        first, word, second = facts["relation"]
        yield {"relation": [second, word, first]}
    elif aspect == "background" and facts["background"] is not None:
        for colour in BACKGROUNDS:
            if colour != facts["background"]:
                yield {"background": colour}


def _worded(facts: Facts) -> str:
    return caption(facts, np.random.default_rng(PHRASING))
