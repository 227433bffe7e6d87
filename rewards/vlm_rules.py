"""Rules about answers to questions of EmojiWorld: is it the kind of answer that was asked for? Copy and change this
file; see scene_rules.py for how a rule is written."""

import re

from genalign.lab.questions import KINDS
from genalign.lab.vlm_figures import answers_right
from genalign.lab.world import BACKGROUNDS
from genalign.reward import reward
from genalign.types import Prompt

NUMBER = r"\d+|zero|one|two|three|four|five|six|seven|eight|nine|ten"
BOX = r"\[\s*\d+\s*,\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\]"
FORMS = {
    "count": NUMBER,
    "sum": NUMBER,
    "there": "yes|no",
    "where": rf"{BOX}(?:\s*,\s*{BOX})*",
    "side": "left of|right of|above|below",
    "object": r"\w+(?: \w+)?",
    "background": "|".join(BACKGROUNDS),
}


@reward
def adheres(text, kind):
    """1 where the answer, and nothing but it, is of the form that the question asks for; whether it is right or not."""
    return [follows(written, asked) for written, asked in zip(text, kind, strict=True)]


def follows(written, asked):
    if asked not in FORMS:
        return None
    answers = re.findall(r"<answer>(.*?)</answer>", written, re.DOTALL)
    return float(len(answers) == 1 and re.fullmatch(FORMS[asked], answers[0].strip().lower()) is not None)


@reward(aspects={"right": 1.0, **dict.fromkeys(KINDS, 0.0), "words": 0.0})
def right(prompt, text, kind, facts):
    """1 where the answer is wholly right: its word or number, or each box from IoU 0.5 on and none too many; of what
    nobody labelled it says nothing. For the log: the same among the questions of each kind, and words an answer, tags
    counted with what they are glued to."""
    asked = [Prompt(question, facts=about) for question, about in zip(prompt, facts, strict=True)]
    labelled = [about.get("answer") is not None or about.get("boxes") is not None for about in facts]
    found = [float(one) if known else None for one, known in zip(answers_right(text, asked), labelled, strict=True)]
    by_kind = {name: [score if own == name else None for score, own in zip(found, kind, strict=True)] for name in KINDS}
    return {"right": found, **by_kind, "words": [float(len(written.split())) for written in text]}
