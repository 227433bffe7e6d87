"""The head in chunks, against formulas written out in float64; and what it keeps in memory."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genalign.policy.language import head as heads
from genalign.policy.language.head import Head
from tests.bench.live import live
from tests.helpers.tiny_language import tiny_language

TEMPERATURE, FORBIDDEN = 0.7, (3, 11)
TAILS = {"plain": {}, "scaled": {"logits_scaling": 0.4}, "capped": {"final_logit_softcapping": 2.0}}
TAILS["both"] = {"logit_scale": 1.5, "final_logit_softcapping": 3.0}


class Bare(nn.Module):
    """A model that is nothing but an embedding, a head and its class's tail."""

    def __init__(self, width: int, vocabulary: int, bias: bool, **tail: float) -> None:
        super().__init__()
        text = SimpleNamespace(vocab_size=vocabulary, **tail)
        self.config: Any = SimpleNamespace(get_text_config=lambda: text)
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, vocabulary, bias=bias)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).float()
        self.tail = tail

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def logits(self, z: Tensor) -> Tensor:
        z = z / self.tail.get("logits_scaling", 1) * self.tail.get("logit_scale", 1)
        cap = self.tail.get("final_logit_softcapping")
        return z if cap is None else cap * torch.tanh(z / cap)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.logits(self.head(self.embed(input_ids))))


def exact(model: Bare, hidden: Tensor, tokens: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p, log q and KL(p || q) of N tokens, one by one; q is a constant."""
    weight = model.head.weight.double()
    bias = torch.zeros(len(weight)) if model.head.bias is None else model.head.bias.double()
    allowed = [i for i in range(len(weight)) if i not in FORBIDDEN]

    def distribution(h: Tensor) -> Tensor:
        z = model.logits(weight @ h + bias)[allowed] / TEMPERATURE
        return z - torch.log(torch.exp(z).sum())

    found = []
    for h, y, o in zip(hidden.double(), tokens.tolist(), other.double(), strict=True):
        p, q = distribution(h), distribution(o).detach()
        found.append((p[allowed.index(y)], q[allowed.index(y)], (p.exp() * (p - q)).sum()))
    return tuple(torch.stack(column) for column in zip(*found, strict=True))  # type: ignore[return-value]


@pytest.fixture
def given() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden, other = (torch.randn(20, 8, generator=generator) for _ in range(2))
    tokens = torch.tensor([i for i in range(24) if i not in FORBIDDEN][:20])
    return hidden.requires_grad_(), tokens, other, torch.rand(2, 20, generator=generator)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("tail", TAILS)
def test_scores_and_gradients_are_those_of_the_formulas(monkeypatch, given, tail: str, trained: bool, bias: bool):
    monkeypatch.setattr(heads, "CHUNK", 150)  # three tokens at a time
    hidden, tokens, other, weights = given
    model = Bare(8, 50, bias, **TAILS[tail]).requires_grad_(trained)
    head = Head(model, FORBIDDEN, TEMPERATURE)
    head.hidden({"input_ids": torch.tensor([[1]]), "attention_mask": torch.ones(1, 1)})
    leaves = [hidden, model.head.weight] if trained else [hidden]
    ours = head.scores(hidden, tokens, other)
    logp, logq, kl = exact(model, hidden, tokens, other)
    assert ours.other is not None
    assert ours.kl is not None
    for mine, theirs in ((ours.logp, logp), (ours.other, logq), (ours.kl, kl)):
        torch.testing.assert_close(mine.double(), theirs, atol=1e-5, rtol=1e-5)
    mine = torch.autograd.grad((weights[0] * ours.logp + weights[1] * ours.kl).sum(), leaves)
    theirs = torch.autograd.grad((weights[0] * logp + weights[1] * kl).sum(), leaves)
    for own, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(own.double(), wanted.double(), atol=1e-4, rtol=1e-4)


def test_one_part_of_what_is_scored_may_go_unused(given):
    """Preference losses read no KL, and a penalty may read nothing else."""
    hidden, tokens, other, _ = given
    model = Bare(8, 50, False).requires_grad_(False)
    head = Head(model, FORBIDDEN, TEMPERATURE)
    logp, _, kl = exact(model, hidden, tokens, other)
    for of, wanted in ((lambda s: s.logp, logp), (lambda s: s.kl, kl)):
        (mine,) = torch.autograd.grad(of(head.scores(hidden, tokens, other)).sum(), hidden)
        (theirs,) = torch.autograd.grad(wanted.sum(), hidden, retain_graph=True)
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_a_class_with_a_tail_of_its_own_is_scored_by_its_whole_logits(given, caplog):
    _, tokens, *_ = given
    model = Bare(8, 50, False)
    model.logits = lambda z: z.sin() + z  # type: ignore[method-assign]
    head = Head(model, FORBIDDEN, TEMPERATURE)
    ids = torch.tensor([[1, 2, 5]])
    with caplog.at_level(logging.WARNING, "genalign"):
        whole = head.hidden({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert "Bare does more than a product" in caplog.text
    z = model.logits(model.head(model.embed(ids)))[0] / TEMPERATURE
    z[:, list(FORBIDDEN)] = -torch.inf
    wanted = z.log_softmax(-1)[range(3), tokens[:3]]
    scored = head.scores(whole[0], tokens[:3]).logp
    torch.testing.assert_close(scored, wanted)
    (mine,), (theirs,) = (torch.autograd.grad(x.sum(), model.embed.weight, retain_graph=True) for x in (scored, wanted))
    torch.testing.assert_close(mine, theirs)


def test_no_tensor_is_larger_than_a_chunk(monkeypatch):
    """Whatever the vocabulary: what is kept for the backward pass is of the hidden width."""
    monkeypatch.setattr(heads, "CHUNK", 2**14)
    peaks = []
    for vocabulary in (512, 4096):
        model = Bare(8, vocabulary, False).requires_grad_(False)
        hidden, other = torch.randn(256, 8, requires_grad=True), torch.randn(256, 8)
        head = Head(model, (), 1.0)
        head._try_once(torch.device("cpu"))

        def work(head: Head = head, hidden: Tensor = hidden, other: Tensor = other) -> None:
            scored = head.scores(hidden, torch.arange(256), other)
            (scored.logp + scored.kl).sum().backward()  # type: ignore[operator]

        peaks.append(live(work)[0])
    assert peaks[1] <= 1.1 * peaks[0]
    assert peaks[1] < 256 * 4096 * 4 / 4


def test_half_precision_keeps_its_head_and_scores_in_float32():
    model = tiny_language()[0].to(torch.bfloat16).requires_grad_(False)
    head = Head(model, (), 1.0)
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    hidden = head.hidden({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert head.layer is not None
    assert hidden.dtype == torch.bfloat16
    scored = head.scores(hidden[0, :-1], ids[0, 1:]).logp
    assert scored.dtype == torch.float32
    wanted = model(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(scored, wanted, atol=1e-5, rtol=0)
