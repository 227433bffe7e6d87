"""Methods: what you collect and what you lose. A preset is a name for settings of one of two classes."""

from __future__ import annotations

from pathlib import Path

from genalign.method.settings import PRESETS, MethodSettings
from genalign.types import Method

__all__ = ["PRESETS", "MethodSettings", "build_method"]


def build_method(settings: MethodSettings, folder: Path = Path()) -> Method:
    """The method a recipe names; `folder` is what a relative `pairs` file is relative to.

    Raises:
        UsageError: a labelled-pairs file that is missing, empty or malformed.
    """
    if settings.by_preference:
        from genalign.method.preference import Preference

        return Preference(settings, folder)
    from genalign.method.gradient import PolicyGradient

    return PolicyGradient(settings)
