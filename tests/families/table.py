"""The table of families in docs, as the sweep finds them. `python -m tests.families.table` writes it.

What a row says is proved elsewhere: test_families.py, test_edit_policies.py and policy/test_diffusion.py draw, replay,
train and export each family, and here their policies are asked again.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from genalign.policy.diffusion import DiffusionPolicy
from tests.helpers import edits, families
from tests.helpers.tiny_pipelines import EDIT, REFUSED

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
OPEN, CLOSE = "<!-- written by python -m tests.families.table -->", "<!-- the end of that -->"
HEAD = "| diffusers pipeline | draws from | its adapter is loaded by, or it is refused because |\n|---|---|---|\n"


def loaders(policy: DiffusionPolicy) -> str:
    """What reads the adapter that this policy saves."""
    with TemporaryDirectory() as folder:
        policy.save_adapter(folder)
        own = (Path(folder) / "pytorch_lora_weights.safetensors").exists()
    return "`load_lora_weights` or `PeftModel`" if own else "`PeftModel`"


def rows() -> list[tuple[str, str, str]]:
    """(pipeline, what it draws from, loaders or refusal), by name, refused ones last."""
    works = []
    for source, names, rolled in (
        ("text", families.ALL, families.rolled),
        ("text and an image", EDIT, edits.rolled),
    ):
        for name in names:
            policy, trajectory = rolled(name)
            assert trajectory.logp.shape[1] > 0
            works.append((type(policy.pipeline).__name__, source, loaders(policy)))
    refused = []
    for name in REFUSED:
        pipeline, sentence = families.refusal(name)
        because = sentence.split(" and policy.call")[0].removeprefix(f"{pipeline} ")
        refused.append((pipeline, "", f"refused: {because}"))
    return sorted(works) + sorted(refused)


def table() -> str:
    return HEAD + "".join(f"| {pipeline} | {source} | {says} |\n" for pipeline, source, says in rows())


def committed() -> str:
    """The table that stands on the page."""
    return PAGE.read_text().split(f"{OPEN}\n")[1].split(CLOSE)[0]


def main() -> None:
    text, written = PAGE.read_text(), f"{OPEN}\n{table()}{CLOSE}"
    PAGE.write_text(re.sub(f"{re.escape(OPEN)}.*?{re.escape(CLOSE)}", lambda _: written, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
