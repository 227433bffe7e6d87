"""The model cards of tiny-lm and tiny-mdlm: what they are, and what each of their stages reaches."""

from __future__ import annotations

import json
from pathlib import Path

from genalign.lab.lm import FORGETS, LONGEST_ANSWER, PLAIN
from genalign.lab.mdlm import PLACES
from genalign.lab.sums import FORMS

SUMWORLD = """SumWorld asks for sums and differences of numbers up to 49 in four wordings each, to be answered in a tag,
in words, as an equation or by the number alone; a rule checks number and form. A seventh of the pairs of numbers is
never asked about in training, in either order, as a sum or as a difference."""
LM = """A causal language model (Qwen3 class, 3 layers, width 128, 0.7 M weights) with a chat template."""
MDLM = """A masked diffusion language model (ModernBERT class, 3 layers, width 128, 0.5 M weights) in the pipeline of
diffusers for LLaDA2; its tokenizer is tiny-lm's. diffusers 0.42 neither saves nor loads that pipeline's tokenizer, so
give it:
`LLaDA2Pipeline.from_pretrained(folder, tokenizer=AutoTokenizer.from_pretrained(folder + "/tokenizer"))`, and call
it with `editing_threshold=0.0`."""


ALL = "So it can do what it mostly does not, which is what alignment brings back."
FORMS_ALONE = """So it can give the form that it often does not, which is what alignment brings back. **It cannot
add:** it knows the tens of most results, and few of the ones, so reward its forms (`sum_rules.py:asked_form`)."""


def sums_card(folder: Path) -> str:
    """The text of the card of a folder."""
    figures = json.loads((folder / "stages.json").read_text())
    columns = ["all", "number", "form", *sorted(FORMS)]
    rows = "\n".join(
        f"| {stage} | {' | '.join(f'{figures[stage][name]:.1%}' for name in columns)} |" for stage in figures
    )
    plain = ", ".join(f"{form} {share:.0%}" for form, share in PLAIN.items() if share)
    what, verb, longest, part, known = MDLM, "by that pipeline at temperature 0", PLACES, "mdlm", FORMS_ALONE
    if not (folder / "model_index.json").exists():  # no pipeline
        what, verb, longest, part, known = LM, "greedily", LONGEST_ANSWER, "lm", ALL
    return f"""{what}

{SUMWORLD}

Trained on right answers first, and then for a short while on *half-hearted* ones: {FORGETS:.0%} of those with something
to carry or to borrow forget it, and of each form a share gives the bare number instead ({plain}).
{known}

512 held-out questions, answered {verb} in at most {longest} tokens; right means right in number and form, and of
the questions of each form:

| after stage | right | number | form | {" | ".join(sorted(FORMS))} |
|{"---|" * (len(columns) + 1)}
{rows}

Made by `genalign lab build {part}`."""
