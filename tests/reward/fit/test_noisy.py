"""The latent reward: its loss in a loop, its accuracy over noise, its file."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from genalign.reward.fit.noisy import (
    Bank,
    NoisyNet,
    NoisyReward,
    _tokens,
    measure,
    noisy_loss,
    pair_accuracy,
    pair_loss,
    reader,
    save_noisy,
)
from genalign.types import Prompt, UsageError
from tests.helpers.toy_rewards import tiny_clip


def test_pair_loss_is_bradley_terry_over_all_untied_siblings():
    draw = torch.Generator().manual_seed(0)
    rewards = torch.randn(6, 2, dtype=torch.float64, generator=draw)
    values = torch.tensor([[1.0, 0], [2, 0], [2, 1], [5, 3], [1, 2], [0, 2]])
    valid = torch.ones(6, 2, dtype=torch.bool)
    valid[4, 0] = False
    group = torch.tensor([7, 7, 7, 3, 3, 3])
    losses, right = [], [[], []]
    for k in range(2):
        for i in range(6):
            for j in range(6):
                if group[i] == group[j] and valid[i, k] and valid[j, k] and values[i, k] > values[j, k]:
                    losses.append(-math.log(1 / (1 + math.exp(float(rewards[j, k] - rewards[i, k])))))
                    right[k].append(float(rewards[i, k] > rewards[j, k]))
    assert float(pair_loss(rewards, values, valid, group)) == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    told = [sum(column) / len(column) for column in right]
    assert pair_accuracy(rewards, values, valid, group).tolist() == pytest.approx(told)
    tied = torch.zeros(6, 2)
    assert float(pair_loss(rewards, tied, valid, group)) == 0.0
    assert pair_accuracy(rewards, tied, valid, group).isnan().all()


def bank_of(groups: int, siblings: int = 6, seed: int = 0) -> Bank:
    """Latents (4,4,4) whose brightness in the first channel is what is good, in a noise that says nothing."""
    draw = torch.Generator().manual_seed(seed)
    rows = groups * siblings
    latents = torch.randn(rows, 4, 4, 4, generator=draw)
    values = latents[:, 0].mean((1, 2))[:, None]
    group = torch.arange(groups).repeat_interleave(siblings)
    return Bank(latents, group, tuple(f"p{g}" for g in group), values, torch.ones(rows, 1).bool(), torch.ones(1))


@pytest.fixture(scope="module")
def trained() -> tuple[NoisyNet, NoisyNet, Bank]:
    """A noise-aware net and its clean-latent ablation, equally long at it."""
    bank, nets = bank_of(40), []
    text = torch.zeros(240, 8)
    for aware in (True, False):
        torch.manual_seed(0)
        net = NoisyNet((4, 4, 4), 8, 1)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for step in range(120):
            rows = torch.isin(bank.group, torch.randint(40, (8,), generator=torch.Generator().manual_seed(step)))
            loss = noisy_loss(net, bank, text, rows.nonzero()[:, 0], step, aware)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        nets.append(net.eval())
    return nets[0], nets[1], bank


def test_accuracy_falls_with_noise_and_stays_above_chance(trained):
    aware, clean_only, _ = trained
    exam, text = bank_of(60, seed=1), torch.zeros(360, 8)
    rows = torch.arange(360)
    told = measure(aware, exam, text, rows, (0.0, 0.5, 0.98))[:, 0]
    assert told[0] > 0.85
    assert told[0] > told[1] > 0.6
    assert told[2] < 0.6
    ablation = measure(clean_only, exam, text, rows, (0.0,), noise_aware=False)[:, 0]
    assert ablation[0] > 0.85


def test_siblings_share_noise_and_level(trained):
    net, _, bank = trained
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(u: Tensor, t: Tensor, text: Tensor) -> Tensor:
        seen.append((u, t))
        return net(u, t, text)

    rows = torch.arange(12)
    noisy_loss(spy, bank, torch.zeros(240, 8), rows, 5, True)  # type: ignore[arg-type]
    noisy_loss(spy, bank, torch.zeros(240, 8), rows, 5, False)  # type: ignore[arg-type]
    (u, t), (clean, zero) = seen
    assert len(set(t[:6].tolist())) == len(set(t[6:].tolist())) == 1
    assert t[0] != t[6]
    eps = (u - (1 - t.view(-1, 1, 1, 1)) * bank.latents[:12]) / t.view(-1, 1, 1, 1)
    torch.testing.assert_close(eps[1], eps[0], rtol=1e-4, atol=1e-4)
    assert (eps[6] - eps[0]).abs().max() > 0.1
    assert torch.equal(clean, bank.latents[:12])
    assert not zero.any()


def test_a_saved_reward_is_the_net_in_units_of_its_spread(trained, tmp_path):
    _, _, bank = trained
    model = str(tiny_clip(tmp_path / "clip"))
    text = torch.zeros(240, 16)
    wide = NoisyNet((4, 4, 4), 16, 1).eval()
    save_noisy(wide, tmp_path / "out", bank, text, ["bright"], model, True)
    reward = NoisyReward(tmp_path / "out")
    assert (reward.aspects, reward.weights) == (("bright",), (1.0,))
    prompts = [Prompt("a"), Prompt("b"), Prompt("a")]
    x = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    flow = reward(prompts, x, 0.4, 0.6)
    (slope,) = torch.autograd.grad(flow.sum(), x)
    assert slope.abs().max() > 0
    read = reward._reader([p.text for p in prompts])
    with torch.no_grad():
        spread = torch.cat([wide(bank.latents, torch.zeros(240), text)]).std(0)
        told = wide(x, torch.full((3,), 0.6), read) / spread
    torch.testing.assert_close(flow, told, rtol=0.02, atol=0.02)  # weights are kept in fp16
    # the same point of another path: a variance-preserving sampler's x is the flow's, scaled
    a, s = math.cos(0.7), math.sin(0.7)
    same = reward(prompts, x * (a + s), a, s)
    torch.testing.assert_close(same, reward(prompts, x, a / (a + s), s / (a + s)))
    with pytest.raises(UsageError, match="fit one to this model"):
        reward(prompts, torch.zeros(3, 4, 2, 2), 0.5, 0.5)
    with pytest.raises(UsageError, match="holds no fitted reward"):
        NoisyReward(tmp_path)


def test_hashed_words_tell_what_the_tower_does_not(tmp_path):
    """A tower that reads no word: its features and, beside them, a count of each word and pair, by hand."""
    model = str(tiny_clip(tmp_path / "clip"))
    bank, prompts = bank_of(2), ["up then left", "left then up", "Up, then left"]
    read = reader(model, 64, tmp_path)(prompts)
    width = read.shape[1] - 64
    torch.testing.assert_close(read[:, :width], F.normalize(reader(model, 0, tmp_path)(prompts), dim=1))
    counts = torch.zeros(64)
    for term in ("up", "then", "left", "up then", "then left"):
        counts[zlib.crc32(term.encode()) % 64] += 1
    torch.testing.assert_close(read[0, width:], counts / counts.norm())
    assert torch.equal(read[2, width:], read[0, width:])
    assert not torch.equal(read[1, width:], read[0, width:])
    net = NoisyNet((4, 4, 4), width + 64, 1).eval()
    save_noisy(net, tmp_path / "out", bank, reader(model, 64, tmp_path)(bank.prompts), ["a"], model, True, 64)
    values = NoisyReward(tmp_path / "out")([Prompt(text) for text in prompts], torch.zeros(3, 4, 4, 4), 0.5, 0.5)
    assert values[0] != values[1]


def test_latents_of_videos_are_tokens_of_each_frame():
    """As if each frame were a picture, in their order; and what is told depends on the order."""
    clips = torch.randn(2, 4, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    frames = [_tokens(clips[:, :, f]) for f in range(3)]
    assert torch.equal(_tokens(clips), torch.cat(frames, 1))
    torch.manual_seed(0)
    net = NoisyNet((4, 3, 6, 4), 8, 3).eval()
    told = [net(u, torch.full((2,), 0.3), torch.ones(2, 8)) for u in (clips, clips.flip(2))]
    assert told[0].shape == (2, 3)
    assert (told[0] - told[1]).abs().max() > 1e-3
    with pytest.raises(UsageError, match="even sides"):
        NoisyNet((4, 3, 5, 4), 8, 1)


def test_latents_of_other_forms():
    packed = NoisyNet((16, 12), 8, 2)
    assert packed(torch.randn(3, 16, 12), torch.rand(3), torch.randn(3, 8)).shape == (3, 2)
    with pytest.raises(UsageError, match="even sides"):
        NoisyNet((4, 5, 4), 8, 1)
