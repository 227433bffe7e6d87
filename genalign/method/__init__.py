"""Methods: which experience is collected, and which losses are computed from it. A family is one file."""

from __future__ import annotations

from pathlib import Path

# Each of these defines its settings, which join the table of families in this order.
# isort: off
from genalign.method import (  # noqa: F401
    gradient,
    preference,
    kto,
    dpok,
    forward_preference,
    weighted,
    matching,
    pareto,
    ppo,
    distributional,
    pathwise,
)
from genalign.method.search import best_of_n, reno, feynman_kac, nrg, value_sampling  # noqa: F401

# isort: on
from genalign.method.settings import MethodSettings
from genalign.types import Method

__all__ = ["FAMILIES", "PRESETS", "MethodSettings", "build_method"]

FAMILIES = tuple(MethodSettings.families)
PRESETS = {name: dict(keys) for kind in FAMILIES for name, keys in kind.presets.items()}


def build_method(settings: MethodSettings, folder: Path = Path()) -> Method:
    """The method a recipe names; `folder` is what a relative path among its settings is relative to.

    Raises:
        UsageError: what the family cannot read, such as a malformed file of labelled pairs.
    """
    return settings.build(folder)
