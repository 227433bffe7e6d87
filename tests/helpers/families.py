"""Policies on the pipelines of the sweep; each is rolled out once a process."""

from __future__ import annotations

import functools

import pytest

from genalign.policy.diffusion import DiffusionPolicy
from genalign.types import Trajectory, UsageError
from tests.helpers.diffusion import PROMPTS, settings
from tests.helpers.tiny_pipelines import FAMILIES, MORE, REFUSED

ALL = {**FAMILIES, **MORE}


def made(name: str, **sampler) -> DiffusionPolicy:
    return DiffusionPolicy(ALL[name].build(), settings(name, True, **sampler))


@functools.cache
def rolled(name: str) -> tuple[DiffusionPolicy, Trajectory]:
    """Shared by tests, which leave the weights as they found them."""
    of = made(name)
    return of, of.rollout(PROMPTS, 2, seed=0)


@functools.cache
def refusal(name: str) -> tuple[str, str]:
    """The pipeline, and what is said of it."""
    pipeline = REFUSED[name][0]()
    with pytest.raises(UsageError) as error:
        DiffusionPolicy(pipeline, settings("stable-diffusion", True)).rollout(PROMPTS, 1, seed=0)
    return type(pipeline).__name__, str(error.value)
