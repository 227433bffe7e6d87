"""Rules about answers to questions of EmojiWorld: is it the kind of answer that was asked for? Copy and change this
file; see scene_rules.py for how a rule is written."""

import re

from genalign.reward import reward

NUMBER = r"\d+|zero|one|two|three|four|five|six|seven|eight|nine|ten"
BOX = r"\[\s*\d+\s*,\s*\d+\s*,\s*\d+\s*,\s*\d+\s*\]"
FORMS = {
    "count": NUMBER,
    "sum": NUMBER,
    "there": "yes|no",
    "where": rf"{BOX}(?:\s*,\s*{BOX})*",
    "side": "left of|right of|above|below",
    "object": r"\w+(?: \w+)?",
    "background": r"\w+",
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
