"""Public suites of prompts by name: where the authors' file comes from, and which reward scores by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genalign.data.suites import check_suite
from genalign.evaluation.settings import EvalSettings
from genalign.files.places import data_path
from genalign.types import UsageError, nearest

ALL = 1 << 30  # prompts: as many as there are


@dataclass(frozen=True)
class Suite:
    """source: the authors' file; none comes with genalign. licence: of its prompts. reward: a shipped reward file."""

    source: str
    licence: str
    reward: str


SUITES = {
    "geneval2": Suite("geneval2_data.jsonl of github.com/facebookresearch/GenEval2", "CC BY-NC 4.0", "image-geneval2"),
    "unigenbench": Suite(
        "data/test_prompts_en.csv of github.com/CodeGoat24/UniGenBench", "CC BY 4.0", "image-unigenbench"
    ),
}


def suite_settings(
    spec: str, judges: Sequence[str], rewards: Sequence[str], recipe: EvalSettings | None
) -> tuple[str, EvalSettings]:
    """The name of a suite, and what is evaluated by it.

    spec: NAME=FILE, one of SUITES with the authors' file (or a dataset's id), or FILE, any prompts file. judges: what
    scores it; without any, the suite's own, of a plain file those of the recipe. rewards: further ones. recipe: its
    `eval`, whose seeds, guidance, steps and batch size hold.

    Raises:
        UsageError: a name without its file, a file that is not there or not of that suite, or nothing to judge by.
    """
    name, given, file = spec.partition("=")
    if not file and name in SUITES:
        suite = SUITES[name]
        raise UsageError(
            f"the prompts of {name} do not come with genalign ({suite.licence}); fetch {suite.source} and write "
            f"--suite {name}=FILE"
        )
    if given and name not in SUITES:
        raise UsageError(f"of your own prompts write --suite FILE; there is no suite {name!r}{nearest(name, SUITES)}")
    file = file if given else name
    if not file:
        raise UsageError("--suite is given no file; write --suite FILE or --suite NAME=FILE")
    place = data_path(file, Path())
    if isinstance(place, Path) and not place.exists():
        raise UsageError(f"there is no prompts file {file!r} in {Path().resolve()}; check --suite {spec}")
    if given:
        check_suite(name, place)
    held_out: list[Any] = list(judges)
    if not held_out and given:
        held_out = [SUITES[name].reward]
    if not held_out:
        held_out = [] if recipe is None else recipe.judges
    if not held_out:
        raise UsageError(f"nothing judges the prompts of {file!r}; name a reward by --judge R")
    settings = EvalSettings(prompts="") if recipe is None else recipe
    changed = {"prompts": str(place), "count": ALL, "held_out": held_out, "rewards": list(rewards)}
    own = {"training_prompts": 0, "base_cache": None}
    return name if given else Path(file).stem, settings.model_copy(update={**changed, **own})
