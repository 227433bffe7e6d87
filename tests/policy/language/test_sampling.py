"""How tokens are drawn, and that they are drawn by the logits which are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genalign.policy.language import LanguagePolicy, sampling
from genalign.policy.language.apart import WAYS, agree, cheapest_way
from genalign.policy.language.sampling import BLOCK, drawn
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import GenalignError, Prompt
from tests.helpers.language_policies import PICTURES
from tests.helpers.language_policies import policy as seeing
from tests.helpers.tiny_language import tiny_language

PROMPTS = [Prompt("draw me a star", uid=0), Prompt("hello", uid=1), Prompt("is the red car left of a blue sun", uid=2)]


def policy(**keys) -> LanguagePolicy:
    chosen = {"model": "tiny", "lora": Lora(rank=4), "batch_size": 16, "max_new_tokens": 8, **keys}
    return LanguagePolicy(*tiny_language(), PolicySettings(**chosen))


@pytest.mark.parametrize("vocabulary", [7, BLOCK, 3 * BLOCK + 5])
def test_tokens_are_where_the_cumulative_mass_passes_the_share(vocabulary):
    """numpy's searchsorted in float64 is the oracle."""
    generator = np.random.default_rng(0)
    mass = generator.random((64, vocabulary)) ** 4
    mass[:, ::3] = 0
    mass = mass.astype(np.float32)
    share = generator.random((64, 1))
    share[:4] = [[0.0], [1 - 2**-53], [0.5], [1e-300]]
    token, total = drawn(torch.tensor(mass), torch.tensor(share))
    for row in range(64):
        upto = np.cumsum(mass[row].astype(np.float64))
        assert total[row, 0] == pytest.approx(upto[-1], rel=1e-12)
        wanted = np.searchsorted(upto, share[row, 0] * upto[-1], side="right")
        assert int(token[row, 0]) == min(wanted, np.flatnonzero(mass[row])[-1])
        assert mass[row, int(token[row, 0])] > 0


def test_siblings_read_their_prompt_once():
    """Tokens that the model embeds: all of a prompt but its last once, and each row's from there on."""
    of = policy(max_new_tokens=1)
    of.sampler.way([])
    embedded = []
    of.model.get_input_embeddings().register_forward_hook(lambda layer, given, out: embedded.append(given[0].numel()))
    assert of.sampler.way([]) == "shared"
    trajectory = of.rollout(PROMPTS, 4, 0)
    width = max(map(len, trajectory.tape.prompt))
    drawn_tokens, recorded = len(PROMPTS) * (width - 1) + 12, 12 * (width + 1)
    assert sum(embedded) == drawn_tokens + recorded


def test_logits_that_are_no_numbers_are_one_sentence():
    of = policy()
    of.sampler.way([])
    with torch.no_grad():
        of.model.model.norm.weight[0] = torch.nan
    with pytest.raises(GenalignError, match=r"logits are NaN or infinite, so nothing can be sampled; set policy.dtype"):
        of.rollout(PROMPTS, 2, 0)
    with pytest.raises(GenalignError, match="log-probabilities that are NaN or infinite"):
        of.read(PROMPTS, ["star"] * 3)


def test_the_first_way_that_agrees_is_taken():
    """A model that is right row by row alone, whose cache cannot be repeated; and one that never is."""
    tokens, true = torch.zeros(2, 3, dtype=torch.long), torch.randn(2, 3, 20)
    tried = []

    def continued(way):
        tried.append(way)
        if way == "shared":
            raise AttributeError("batch_select_indices")
        return tokens, true + (1e-6 if way == "alone" else 0.1) * torch.randn(true.shape)

    assert cheapest_way("Mixing", False, continued, lambda _: true) == "alone"
    assert tried == list(WAYS)
    with pytest.raises(GenalignError, match=r"Wrong writes by other logits than its forward gives .* take "):
        cheapest_way("Wrong", False, lambda way: (tokens, true + 0.1), lambda _: true)


def test_bounds_of_agreement():
    """1e-3 of the spread in float32; in 16 bits five percent of it, on average."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 100)
    sign = torch.randn(logits.shape).sign()
    spread = float(logits.std())
    for half, bound in ((False, 1e-3), (True, 0.05)):
        assert agree(logits + 0.9 * bound * spread * sign, logits, half)
        assert not agree(logits + 1.1 * bound * spread * sign, logits, half)
    assert not agree(torch.full_like(logits, torch.nan), logits, True)


def test_a_model_in_bfloat16_is_taken_in_the_cheapest_way():
    model, tokenizer = tiny_language()
    settings = PolicySettings(model="tiny", lora=Lora(rank=4), max_new_tokens=8, dtype="bfloat16")
    of = LanguagePolicy(model.to(torch.bfloat16), tokenizer, settings)
    assert of.sampler.way([]) == "shared"
    trajectory = of.rollout(PROMPTS, 2, 0)
    assert torch.equal(of.replay(trajectory, range(6)).score, trajectory.logp)


def test_no_token_is_left_out_by_its_rank():
    """Of 400 nearly equally likely tokens 640 draws find 400 (1 - (1 - 1/400)^640) = 319; not transformers' 50."""
    model, tokenizer = tiny_language()
    model.resize_token_embeddings(400)
    torch.nn.init.normal_(model.lm_head.weight, std=1e-3)  # equal ones would all be among the likeliest 50
    of = LanguagePolicy(model, tokenizer, PolicySettings(model="tiny", lora=Lora(rank=2), max_new_tokens=1))
    trajectory = of.rollout(PROMPTS[:1], 640, 0)
    assert 280 < len({completion[0] for completion in trajectory.tape.completion}) < 360
    torch.testing.assert_close(trajectory.logp, torch.full((640, 1), -np.log(400)).float(), atol=0.1, rtol=0)


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl", "qwen3.5"])
def test_a_sampler_that_lost_which_tokens_are_of_pictures_is_caught_at_the_first_rollout(name, monkeypatch):
    """generate takes prompts without mm_token_type_ids, and tells positions by the text alone: nothing else shows."""
    real = sampling.beside_tokens
    monkeypatch.setattr(
        sampling, "beside_tokens", lambda *given: {key: x for key, x in real(*given).items() if "type_ids" not in key}
    )
    with pytest.raises(GenalignError, match="writes by other logits than its forward gives"):
        seeing(name).rollout(PICTURES, 1, 0)
