"""A writer and a painter as one policy, on tiny random models; guidance by two prompts against its formula."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.policy import load_policy
from genalign.policy.centred import generate_centred
from genalign.policy.chain import ChainPolicy
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.training.selfcheck import check_replay
from genalign.types import Policy, Prompt
from tests.helpers.tiny_language import save_tiny_language, tiny_language
from tests.helpers.tiny_pipelines import FAMILIES
from tests.helpers.toy_policy import make_scores

PROMPTS = [Prompt("<a> red star", uid=3), Prompt("blue cat", uid=4)]
SETTINGS = PolicySettings(
    model="x",
    sampler=Sampler(kernel="flow-sde", steps=4, guidance=2.0),
    lora=Lora(rank=2, alpha=4),
    batch_size=3,
    max_new_tokens=5,
)


def painter(name: str = "stable-diffusion-3", **sampler) -> DiffusionPolicy:
    family = FAMILIES[name]
    kernel = {} if family.flow else {"kernel": "ddim", "noise": 1.0}
    sampler = SETTINGS.sampler.model_copy(update=kernel | sampler)
    return DiffusionPolicy(
        family.build(), SETTINGS.model_copy(update={"call": {**family.call, **family.on}, "sampler": sampler})
    )


def chain(**sampler) -> ChainPolicy:
    return ChainPolicy(LanguagePolicy(*tiny_language(), SETTINGS), painter(**sampler))


@functools.cache
def rolled():
    made = chain()
    return made, made.rollout(PROMPTS, 4, seed=0)


def moved(made: Policy) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.named_trainable().values():
            p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p))


# ---- one row of log-probabilities -----------------------------------------------------------------------------------


def test_a_row_holds_the_tokens_and_the_strokes():
    made, trajectory = rolled()
    assert isinstance(made, Policy)
    told, drawn = trajectory.tape
    assert trajectory.logp.shape == (8, told.logp.shape[1] + drawn.logp.shape[1])
    assert drawn.logp.shape[1] > 1
    assert torch.equal(trajectory.logp[:, : trajectory.words], told.logp)
    assert torch.equal(trajectory.logp[:, trajectory.words :], drawn.logp)
    assert torch.equal(trajectory.mask[:, : trajectory.words], told.mask)
    assert [p.text for p in trajectory.prompts] == ["<a> red star"] * 4 + ["blue cat"] * 4
    assert trajectory.group.tolist() == [3] * 4 + [4] * 4
    texts = trajectory.media["text"].data
    assert len(set(texts)) > 2
    assert all(text.startswith("<a> ") for text in texts[:4])
    assert not any(text.startswith("<a>") for text in texts[4:])
    assert len(set(drawn.seeds)) == 8
    assert [p.text for p in drawn.prompts] == texts
    assert {p.text for p in told.prompts} == {"red star", "blue cat"}  # no tag reaches the writer


def test_the_units_cover_every_column_once_and_replay_exactly():
    made, trajectory = rolled()
    seen = torch.zeros(trajectory.logp.shape, dtype=torch.long)
    for rows, steps in trajectory.units():
        seen[torch.tensor(rows)[:, None], steps] += 1
        with torch.no_grad():
            replayed = made.replay(trajectory, rows, steps)
        assert torch.equal(replayed.score[replayed.mask], trajectory.logp[rows][:, steps][replayed.mask])
        assert replayed.count == (1 if steps[0] < trajectory.words else 256)
    assert (seen == 1).all()
    rows = list(range(3))
    with torch.no_grad():
        whole = made.replay(trajectory, rows, versus="reference")
    mask = trajectory.mask[rows]
    assert torch.equal(whole.score[mask], trajectory.logp[rows][mask])
    assert torch.equal(whole.score[mask], whole.versus_score[mask])
    assert not whole.kl[mask].any()


def test_the_same_seed_draws_the_same_rows_whatever_the_batch():
    made, trajectory = rolled()
    again = made.rollout(PROMPTS[1:], 4, seed=0)
    assert again.media["text"].data == trajectory.media["text"].data[4:]
    torch.testing.assert_close(again.media["image"].data, trajectory.media["image"].data[4:], atol=1e-4, rtol=1e-4)
    by_seed = made.rollout(PROMPTS[:1], 2, [7, 7])
    assert by_seed.media["text"].data[0] == by_seed.media["text"].data[1]


@pytest.mark.parametrize("shared", [True, False])
def test_siblings_with_texts_of_their_own_start_from_one_noise_where_that_is_asked(shared: bool):
    made = chain(shared_start=shared)
    trajectory = made.rollout(PROMPTS, 3, seed=0)
    starts = torch.cat([part.latents[0] for part in trajectory.tape[1].tape.chunks])
    same = [[bool(torch.equal(a, b)) for b in starts] for a in starts]
    assert same == [[a // 3 == b // 3 if shared else a == b for b in range(6)] for a in range(6)]
    assert len(set(trajectory.media["text"].data)) == 6
    ends = trajectory.media["image"].data
    assert not any(torch.equal(ends[a], ends[b]) for a in range(6) for b in range(a))
    rows = list(range(3))
    with torch.no_grad():
        replayed = made.replay(trajectory, rows)
    assert torch.equal(replayed.score[replayed.mask], trajectory.logp[rows][replayed.mask])


def test_a_writer_that_says_nothing_leaves_the_prompt(monkeypatch):
    made = chain()
    monkeypatch.setattr(made.writer.chat, "text", lambda encoded, completion: " ")
    trajectory = made.rollout(PROMPTS, 1, seed=0)
    assert trajectory.media["text"].data == ["<a> red star", "blue cat"]


# ---- training -------------------------------------------------------------------------------------------------------


class Long:
    """How long the text is; and how bright the image."""

    name, needs, aspects, looks_at, differentiable, version = "long", frozenset(), ("a", "b"), "sample", False, "1"

    def __call__(self, prompts, media, group=None):
        words = torch.tensor([float(len({*text.split()} - {"<unk>"})) for text in media["text"].data])
        return make_scores(torch.stack([words / 5, media["image"].data.mean((1, 2, 3))], 1))


@pytest.mark.parametrize("name", ["grpo", "parrot"])
def test_both_parts_learn_from_one_loss(name: str):
    made, keys = chain(), {"tags": {"a": "<1>", "b": "<2>"}} if name == "parrot" else {}
    learner = build_method(MethodSettings(name=name, group=6, **keys))
    experience = learner.collect(made, PROMPTS, Long(), 0, 0)
    check_replay(made, experience, fresh=True)
    losses = list(learner.losses(made, experience))
    total = sum(loss.total for loss in losses)
    parameters = made.named_trainable()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    told = {name: float(g.abs().max()) for name, g in zip(parameters, gradients, strict=True) if g is not None}
    for part in ("writer.", "painter."):
        assert max(value for key, value in told.items() if key.startswith(part)) > 0
    # the same loss, all at once: mean over the columns that count of -advantage * log-density
    counted = experience.counted.nonzero().flatten().tolist()
    mask = experience.trajectory.mask[counted]
    whole = made.replay(experience.trajectory, counted)
    surrogate = -(whole.score * experience.advantage[counted][:, None])[mask].sum() / mask.sum()
    expected = torch.autograd.grad(surrogate, list(parameters.values()), allow_unused=True)
    for one, other in zip(gradients, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.slow  # test_both_parts_learn_from_one_loss holds the same gradient against its formula
def test_the_writer_learns_to_say_more():
    made = chain()
    learner = build_method(MethodSettings(name="grpo", group=8))
    optimizer = torch.optim.Adam(made.writer.parameter_groups()[0]["params"], lr=0.02)
    rewards = []
    for step in range(12):
        experience = learner.collect(made, PROMPTS, Long(), 0, step)
        rewards.append(float(experience.scores.values[:, 0].mean()))
        for loss in learner.losses(made, experience):
            loss.total.backward()
        optimizer.step()
        made.painter.denoiser.zero_grad()
        optimizer.zero_grad()
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05


def test_weights_switch_save_and_load_together(tmp_path: Path):
    made, other = chain(), chain()
    moved(made)
    trajectory = made.rollout(PROMPTS, 2, seed=0)
    rows = [0, 1, 2]
    with torch.no_grad():
        tuned = made.replay(trajectory, rows, versus="reference")
        with made.weights("reference"):
            off = made.replay(trajectory, rows)
    mask = trajectory.mask[rows]
    assert torch.equal(tuned.versus_score[mask], off.score[mask])
    for part in (slice(0, trajectory.words), slice(trajectory.words, None)):
        assert (tuned.score - off.score)[:, part].abs().max() > 1e-4
    made.save_adapter(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert (tmp_path / "writer" / "adapter_model.safetensors").is_file()
    other.load_adapter(tmp_path)
    for name, parameter in other.named_trainable().items():
        assert torch.equal(parameter, made.named_trainable()[name])
    made.step_ema(0.5)
    with made.weights("ema"):
        averaged = {name: p.detach().clone() for name, p in made.named_trainable().items()}
    assert all(not torch.equal(averaged[name], p) for name, p in made.named_trainable().items() if "lora_A" in name)


def test_a_recipe_names_the_writer_beside_the_model(tmp_path: Path):
    folder, writer = tmp_path / "painter", save_tiny_language(tmp_path / "writer")
    FAMILIES["stable-diffusion-3"].build().save_pretrained(folder)
    lora = Lora(rank=2, alpha=4, targets=["to_q"])  # names layers of the painter
    settings = SETTINGS.model_copy(update={"writer": str(writer), "lora": lora, "asked_share": 0.25})
    made = load_policy(settings, folder)
    assert isinstance(made, ChainPolicy)
    assert made.share == 0.25
    assert made.generate(PROMPTS, [1, 2]).rows == 2


# ---- guidance by two prompts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_guidance_by_two_prompts_at_its_limits(name: str):
    made = painter(name)
    asked, written, seeds = [Prompt("a b"), Prompt("c")], [Prompt("d e f", uid=1), Prompt("g", uid=2)], [5, 6]
    plain = {key: made.generate(prompts, seeds)["image"].data for key, prompts in (("a", asked), ("w", written))}
    assert (plain["a"] - plain["w"]).abs().max() > 1e-5

    def centred(a, w, share):
        return generate_centred(made._pipe, a, w, seeds, None, None, share)["image"].data

    torch.testing.assert_close(centred(asked, written, 0.0), plain["w"], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(centred(asked, asked, 0.5), plain["a"], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(centred(asked, written, 1.0), plain["a"], atol=2e-4, rtol=1e-3)


def test_what_the_sampler_receives_is_the_papers_sum():
    made, scale, share = painter(), 4.0, 0.25
    asked, written, seeds = [Prompt("a b"), Prompt("c")], [Prompt("d e f"), Prompt("g")], [5, 6]
    scheduler, received = made.pipeline.scheduler, []
    real = scheduler.step

    def step(model_output, *args, **kwargs):
        received.append(model_output)
        return real(model_output, *args, **kwargs)

    scheduler.step = step
    first = []
    for prompts, guidance in ((asked, 1.0), (written, 1.0), (asked, 3.0)):
        received.clear()
        made.generate(prompts, seeds, guidance)
        first.append(received[0])
    told, expanded, guided = first
    null = (3 * told - guided) / 2  # guided = null + 3 (told - null)
    generate_centred(made._pipe, asked, written, seeds, scale, 1, share)
    received.clear()
    calls = made.calls()
    generate_centred(made._pipe, asked, written, seeds, scale, 1, share)
    w1, w2 = scale * share, scale * (1 - share)
    expected = w1 * told + (1 - w1 - w2) * null + w2 * expanded
    torch.testing.assert_close(received[0], expected, atol=1e-5, rtol=1e-4)
    assert made.calls() - calls == 3 * 2  # three evaluations a step, two rows
