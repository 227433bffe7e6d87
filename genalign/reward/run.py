"""The key `run` of a reward file: how a reward is asked, whatever it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from genalign.reward.base import nearest
from genalign.reward.cache import Cached
from genalign.reward.process import ProcessReward
from genalign.reward.runner import Runner
from genalign.types import Reward, UsageError

On = Literal["inline", "thread", "process", "sandbox"]
KEYS = ("on", "batch_size", "cache", "timeout", "memory", "max_failure")


def run_as(
    spec: Mapping[str, Any], settings: Any, folder: Path, build: Callable[[Mapping[str, Any], Path], Reward]
) -> Runner:
    """The reward that `spec` describes, asked as `settings` say:

    on: inline; thread (beside sampling, in this process); process (one of its own, killed when its time is over);
    sandbox (the same, for code that nobody has read). Unsaid: thread for a served reward, else inline. timeout: seconds
    a call may take, and memory: GiB, in a process or sandbox. batch_size: rows a call. cache: true, or an SQLite file
    relative to `folder`. max_failure: share of failed rows that ends the run.

    Raises:
        UsageError: an unknown setting, or one that does not fit the others.
    """
    if not isinstance(settings, Mapping):
        raise UsageError(f"'run' takes a mapping with any of the keys {', '.join(KEYS)}, not {settings!r}")
    unknown = next((str(key) for key in settings if key not in KEYS), None)
    if unknown:
        raise UsageError(f"'run' has no setting {unknown!r}{nearest(unknown, KEYS)}")
    on, cache = settings.get("on"), settings.get("cache", False)
    if on is not None and on not in get_args(On):
        raise UsageError(f"a reward cannot run on {on!r}{nearest(str(on), get_args(On))}")
    apart = {key: settings[key] for key in ("timeout", "memory") if key in settings}
    if on not in ("process", "sandbox") and apart:
        raise UsageError(f"{' and '.join(apart)} can only be kept by a process; set run.on to process or sandbox")
    _check_number("batch_size", settings.get("batch_size", 1), 1)
    _check_number("max_failure", settings.get("max_failure", 0.0), 0)
    if on in ("process", "sandbox"):
        reward: Reward = ProcessReward(dict(spec), folder, sandbox=on == "sandbox", **apart)
    else:
        reward = build(spec, folder)
    if not isinstance(cache, bool | str):
        raise UsageError(f"run.cache is {cache!r}; write true, false or the name of a file")
    waits = bool(getattr(reward, "waits", False))
    if cache:
        reward = Cached(reward, folder / cache if isinstance(cache, str) else None)
    options = {key: settings[key] for key in ("batch_size", "max_failure") if key in settings}
    return Runner(reward, overlaps=on == "thread" or (waits and on != "inline"), **options)


def _check_number(what: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
        raise UsageError(f"run.{what} is {value!r}; it must be a number of at least {least}")
