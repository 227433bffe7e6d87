"""Levers of memory of models that write: the same model without them is the oracle, and what is away is poisoned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from genalign.policy.language import LanguagePolicy
from genalign.policy.language.saving import layers_of
from genalign.policy.settings import PolicySettings
from genalign.types import UsageError
from tests.helpers.absence import poison
from tests.helpers.language_policies import ALL, asked, policy
from tests.helpers.saved_memory import LEVERS, moved, updated
from tests.helpers.unmasking_policies import MAKERS, PROMPTS, folder
from tests.helpers.unmasking_policies import policy as unmasking

QUICK = ("qwen3", "qwen3-moe", "mamba2", "qwen2.5-vl", "gemma4")
MEDIA = {"qwen2.5-vl": "image", "gemma4": "image"}


def the_same(plain: Any, saving: Any) -> None:
    (first, wanted, _), (second, found, worst) = plain, saving
    assert bool(wanted.any())
    assert worst == 0
    assert first.media["text"].data == second.media["text"].data
    assert torch.equal(first.logp, second.logp)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in sorted(ALL)]
)
def test_samples_and_gradients_are_the_same_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = asked(MEDIA.get(name, "text"))
    plain = updated(moved(policy(name, batch_size=3)), prompts)
    poison(monkeypatch)
    for levers in LEVERS.values():
        of = moved(policy(name, batch_size=3, **levers))
        the_same(plain, updated(of, prompts))
        with of.plainly():  # by which the first update of a run looks at the gradients
            of.replay(plain[0], [0], None)


@pytest.mark.parametrize("kind", MAKERS)
def test_so_are_those_of_diffusion_language_models(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where = folder(kind)
    plain = updated(moved(unmasking(where)), PROMPTS)
    poison(monkeypatch)
    for levers in LEVERS.values():
        the_same(plain, updated(moved(unmasking(where, **levers)), PROMPTS))


def test_layers_are_computed_again_in_the_backward_pass_alone() -> None:
    again, ran = moved(policy("qwen3", **LEVERS["blocks and checkpointing"])), [0]
    layers = layers_of(again.model)
    assert list(layers) == ["model.layers.0", "model.layers.1"]
    for layer in layers.values():
        attention: Any = layer.self_attn
        attention.register_forward_pre_hook(lambda *_: ran.__setitem__(0, ran[0] + 1))
    trajectory = again.rollout(asked("text")[:1], 1, seed=0)
    ran[0] = 0
    score = again.replay(trajectory, [0]).score.sum()
    assert ran[0] == len(layers)
    score.backward()
    assert ran[0] == 2 * len(layers)
    with again.plainly():
        again.replay(trajectory, [0]).score.sum().backward()
    assert ran[0] == 3 * len(layers)


def test_a_model_without_layers_is_one_sentence() -> None:
    class Bare(torch.nn.Linear):
        pass

    with pytest.raises(UsageError, match="has no layers that can be computed again"):
        layers_of(Bare(2, 2))


def test_weights_on_meta_are_refused() -> None:
    model, tokenizer = ALL["qwen3"]()
    model.model.layers[0].to("meta")
    with pytest.raises(UsageError, match="'meta', where an adapter gets no gradient"):
        LanguagePolicy(model, tokenizer, PolicySettings(model="tiny"))
