"""Rules for the questions of SumWorld: is the number right, and has the answer the form that was asked for?

Copy this file and change it; see scene_rules.py.
"""

from genalign.lab.sums import verify
from genalign.reward import reward


@reward(needs=["facts.form"], aspects={"right_answer": 1.0, "number": 0.0, "form": 0.0})
def right_answer(text, facts):
    """All or nothing: 1 where the number is right and in the form that was asked for; both apart for the log."""
    found = [verify(said, asked) for said, asked in zip(text, facts, strict=True)]
    names = {"right_answer": "all", "number": "number", "form": "form"}
    return {name: [float(one[key]) for one in found] for name, key in names.items()}


@reward(needs=["facts.form"], aspects={"asked_form": 1.0, "number": 0.0})
def asked_form(text, facts):
    """1 where the answer has the form that was asked for, right or wrong; the number apart for the log."""
    found = [verify(said, asked) for said, asked in zip(text, facts, strict=True)]
    names = {"asked_form": "form", "number": "number"}
    return {name: [float(one[key]) for one in found] for name, key in names.items()}
