"""Searches on the toy sampler."""

from __future__ import annotations

from torch import Tensor

from genalign.method import MethodSettings, build_method
from genalign.method.search.base import Searching
from genalign.types import Method, Prompt
from tests.helpers.toy_sampler import ToySampler, redness

PROMPTS = [Prompt(f"scene {i}", uid=i) for i in range(3)]
SEEDS = [4, 4, 9]


def search(name: str, **keys: object) -> Searching:
    method = build_method(MethodSettings(name=name, **keys))
    assert isinstance(method, Searching)
    assert isinstance(method, Method)
    return method


def total_of(policy: ToySampler, seeds: list[int], prompts: list[Prompt] = PROMPTS) -> Tensor:
    return redness(policy.generate(prompts, seeds)["image"].data)
