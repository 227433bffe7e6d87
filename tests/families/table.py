"""The table of families in docs, as the sweep finds them. `python -m tests.families.table` writes it.

What a row says is proved elsewhere, so that nothing is drawn here again: test_families.py, test_edit_policies.py,
test_clips.py, test_sounds.py and policy/test_diffusion.py draw, replay, train and export each family.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from genalign.policy.diffusion import DiffusionPolicy
from tests.helpers import edits, families, sound_policies, video_policies
from tests.helpers.tiny_pipelines import EDIT, REFUSED
from tests.helpers.tiny_sounds import RESOUNDING, SILENT, SOUNDS
from tests.helpers.tiny_videos import ANIMATING, CLIPS, REDRAWING, REFUSED_CLIPS

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
OPEN, CLOSE = "<!-- written by python -m tests.families.table -->", "<!-- the end of that -->"
HEAD = "| diffusers pipeline | draws | from | its adapter is loaded by, or it is refused because |\n|---|---|---|---|\n"


def loaders(policy: DiffusionPolicy) -> str:
    """What reads the adapter that this policy saves."""
    with TemporaryDirectory() as folder:
        policy.save_adapter(folder)
        own = any(Path(folder).rglob("pytorch_lora_weights.safetensors"))
    return "`load_lora_weights` or `PeftModel`" if own else "`PeftModel`"


def rows() -> list[tuple[str, str, str, str]]:
    """(pipeline, what it draws, and from what, loaders or refusal), by name, refused ones last."""
    works = set()
    for source, names, made in (
        ("text", families.ALL, families.made),
        ("text and an image", EDIT, edits.made),
        ("text", CLIPS, video_policies.made),
        ("text and an image", ANIMATING, video_policies.made),
        ("text and a clip", REDRAWING, video_policies.made),
        ("text", SOUNDS, sound_policies.made),
        ("text and a sound", RESOUNDING, sound_policies.made),
    ):
        for name in names:
            policy = made(name)
            draws = " and ".join(sorted(policy.modalities, reverse=True))
            works.add((type(policy.pipeline).__name__, draws, source, loaders(policy)))
    refused = []
    for names, refusal in (
        (REFUSED, families.refusal),
        (REFUSED_CLIPS, video_policies.refusal),
        (SILENT, sound_policies.refusal),
    ):
        for name in names:
            pipeline, sentence = refusal(name)
            because = re.sub(r" and policy\.call \{.*?\}", "", sentence).removeprefix(f"{pipeline} ")
            refused.append((pipeline, "", "", f"refused: {because}"))
    return sorted(works) + sorted(refused)


def table() -> str:
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


def committed() -> str:
    """The table that stands on the page."""
    return PAGE.read_text().split(f"{OPEN}\n")[1].split(CLOSE)[0]


def main() -> None:
    text, written = PAGE.read_text(), f"{OPEN}\n{table()}{CLOSE}"
    PAGE.write_text(re.sub(f"{re.escape(OPEN)}.*?{re.escape(CLOSE)}", lambda _: written, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
