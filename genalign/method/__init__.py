"""Methods: what you collect and what you lose. A family is one file and one line of the table here."""

from __future__ import annotations

from pathlib import Path

from genalign.method.distributional import DistributionalSettings
from genalign.method.forward_preference import ForwardPreferenceSettings
from genalign.method.gradient import GradientSettings
from genalign.method.guidance import GuidanceSettings
from genalign.method.matching import AwmSettings, NftSettings
from genalign.method.pareto import ParetoSettings
from genalign.method.pathwise import PathwiseSettings
from genalign.method.preference import PreferenceSettings
from genalign.method.reno import RenoSettings
from genalign.method.search import SearchSettings
from genalign.method.settings import MethodSettings
from genalign.method.steering import ParticleSettings
from genalign.method.value import ValueSettings
from genalign.method.weighted import WeightedSettings
from genalign.types import Method

__all__ = ["FAMILIES", "PRESETS", "MethodSettings", "build_method"]

FAMILIES: tuple[type[MethodSettings], ...] = (
    GradientSettings,
    PreferenceSettings,
    ValueSettings,
    ForwardPreferenceSettings,
    WeightedSettings,
    NftSettings,
    AwmSettings,
    ParetoSettings,
    DistributionalSettings,
    PathwiseSettings,
    SearchSettings,
    RenoSettings,
    ParticleSettings,
    GuidanceSettings,
)
PRESETS = {name: dict(keys) for kind in FAMILIES for name, keys in kind.presets.items()}


def build_method(settings: MethodSettings, folder: Path = Path()) -> Method:
    """The method a recipe names; `folder` is what a relative path among its settings is relative to.

    Raises:
        UsageError: what the family cannot read, such as a malformed file of labelled pairs.
    """
    return settings.build(folder)
