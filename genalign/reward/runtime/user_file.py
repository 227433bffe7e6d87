"""A user's file of Python: what is in it. Only the worker's process imports one."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from genalign.reward.function import FunctionReward
from genalign.reward.returned import describe
from genalign.types import UsageError, nearest


def load_function(
    path: str, function: str, name: str | None = None, settings: Mapping[str, Any] | None = None
) -> FunctionReward:
    """Import a user's file under a name nothing else has, and take the function from it as a reward.

    Raises:
        UsageError: the file cannot be imported, or has no such function.
    """
    module = import_file(Path(path))
    found = getattr(module, function, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{path} has no function {function!r}{nearest(function, own)}")
    reward = found if isinstance(found, FunctionReward) else FunctionReward(found, name=function)
    return reward.with_settings(settings or {}, name)


def import_file(path: Path) -> ModuleType:
    """A user's file as a module, under a name nothing else has.

    Raises:
        UsageError: it cannot be imported.
    """
    unique = f"genalign_reward_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # so that the file may import its neighbours
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        raise UsageError(f"reward file {path} cannot be imported: {describe(error)}") from error
    return module
