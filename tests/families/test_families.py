"""The sweep: families of the installed diffusers, each sampled, replayed, trained and exported by the same code."""

from __future__ import annotations

import math

import pytest
import torch

from genalign.method import build_method
from genalign.method.preference import PreferenceSettings
from genalign.method.preference_losses import dpo_loss
from genalign.policy.diffusion import DiffusionPolicy
from genalign.types import ForwardProcess, Media, Prompt, Track, Trajectory, UsageError
from tests.families.table import CLOSE, OPEN, PAGE, committed, table
from tests.helpers.diffusion import PROMPTS, draw, log_ratio, moved, settings
from tests.helpers.families import ALL, made, refusal, rolled
from tests.helpers.sound_policies import HEARD
from tests.helpers.tiny_pipelines import EDIT, FAMILIES, MORE, OMNIGEN, REFUSED, SMALL, Family
from tests.helpers.tiny_sounds import SILENT
from tests.helpers.tiny_videos import ANIMATING, CLIPS, REDRAWING, REFUSED_CLIPS
from tests.helpers.toy_policy import ToyReward

ROWS = 2 * len(PROMPTS)


def test_the_sweep_is_wide() -> None:
    pipelines = {type(family.build()).__name__ for family in ALL.values()}
    assert len(pipelines) == len(ALL) >= 16


@pytest.mark.parametrize("name", MORE)
def test_replay_is_exact_and_only_the_conditional_branch_keeps_its_graph(name) -> None:
    of, trajectory = rolled(name)
    assert trajectory.media["image"].data.shape[0] == ROWS
    assert trajectory.logp.shape[1] >= 2
    assert bool((log_ratio(of, trajectory) == 0).all())
    with moved(of):
        assert log_ratio(of, trajectory).abs().max() > 1e-4
        asked = replies(of, trajectory)
    assert len(asked) == 2
    assert [kept for kept, _ in asked] == [heeds for _, heeds in asked]


def replies(of: DiffusionPolicy, trajectory: Trajectory) -> list[tuple[bool, bool]]:
    """For each branch of a replayed step: whether it keeps a graph, and whether it changes with the prompt."""
    real, outs = of._stage.denoisers.answer, []

    def answer(args, kwargs, rows, graph=None, twins=None):
        outs.append(real(args, kwargs, rows, graph, twins))
        return outs[-1]

    other = Trajectory(**{**vars(trajectory), "prompts": (Prompt("z q"), *trajectory.prompts[1:])})
    of._stage.denoisers.answer = answer
    try:
        of.replay(trajectory, [0], [0])
        first = [out for call in outs for out in call]
        outs.clear()
        of.replay(other, [0], [0])
        second = [out for call in outs for out in call]
    finally:
        of._stage.denoisers.answer = real
    return [(a.requires_grad, not torch.equal(a, b)) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("name", ALL)
def test_a_d3po_step_and_a_fitted_pair_step_move_the_adapter(name) -> None:
    of, trajectory = made(name), rolled(name)[1]
    optimizer = torch.optim.SGD(of.parameter_groups(), lr=1e-3)

    def step() -> float:
        before = [p.detach().clone() for p in of.named_trainable().values()]
        optimizer.step()
        optimizer.zero_grad()
        return max(
            float((p - q).detach().abs().max()) for p, q in zip(of.named_trainable().values(), before, strict=True)
        )

    method = build_method(PreferenceSettings(name="d3po", group=2))
    experience = method.collect(of, PROMPTS, ToyReward(), 0, 0)
    assert len(experience.pairs) == len(PROMPTS)
    losses = list(method.losses(of, experience))
    for loss in losses:
        assert loss.log["loss"][0] / loss.log["loss"][1] == pytest.approx(math.log(2), abs=1e-5)
        loss.total.backward()
    assert step() > 0
    assert isinstance(of, ForwardProcess)
    one = [PROMPTS[0]] * 2
    with of.weights("reference"):
        clean = of.encode(Media(image=Track(trajectory.media["image"].data[:2])))
    assert clean.shape == of.clean(trajectory)[:2].shape
    calls = of.calls()
    with of.weights("reference"):
        of.fit(one, clean, 0.4, [3, 3])
    assert of.calls() == calls + 2  # the conditional branch alone, once a row
    steps = of.fit(one, clean, 0.4, [3, 3], versus="reference")
    margin = (steps.score - steps.versus_score)[:, 0]
    dpo_loss("sigmoid", margin[:1], margin[1:], beta=0.1).sum().backward()
    assert bool(torch.isfinite(steps.score).all())
    assert step() > 0


# Layers of the last block that write to the text stream, which nobody reads after it.
UNREAD = {
    "stable-diffusion-3": {"transformer_blocks.1.attn.add_q_proj"},
    "qwen-image": {"transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.to_add_out"},
}


@pytest.mark.parametrize("name", ALL)
def test_every_adapted_layer_is_called_and_learns(name) -> None:
    of, trajectory = rolled(name)
    with moved(of):
        of.replay(trajectory, [0, 2], [0]).score.sum().backward()
    idle = {layer for layer, p in of.named_trainable().items() if p.grad is None or not p.grad.any()}
    for p in of.named_trainable().values():
        p.grad = None
    assert {layer.rpartition(".lora_")[0] for layer in idle} == UNREAD.get(name, set())


@pytest.mark.parametrize("name", ALL)
def test_a_row_does_not_depend_on_its_neighbours(name) -> None:
    of, trajectory = rolled(name)
    alone = [of.generate([prompt], [seed])["image"].data for prompt, seed in zip(PROMPTS, (1, 2, 3), strict=True)]
    together = of.generate([*PROMPTS, PROMPTS[0]], [1, 2, 3, 1])["image"].data
    torch.testing.assert_close(together, torch.cat([*alone, alone[0]]), rtol=0, atol=1e-4)
    clean = of.clean(trajectory)[[0, 2, 4]]
    with torch.no_grad():
        scores = [of.fit([PROMPTS[k]], clean[k : k + 1], 0.4, [k]).score for k in range(3)]
        torch.testing.assert_close(of.fit(PROMPTS, clean, 0.4, [0, 1, 2]).score, torch.cat(scores), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", MORE)
def test_siblings_that_start_together_are_asked_about_once_until_they_part(name) -> None:
    of = made(name, shared_start=True, window=1, window_start=(2, 3), kernel="cps", noise=0.4)
    of.rollout(PROMPTS[:1], 1, seed=0)
    calls = of.calls()
    trajectory = of.rollout(PROMPTS, 2, seed=0)
    steps = of.settings.sampler.steps
    spent, branches = of.calls() - calls, len(of._rollouts.graph[0])
    assert spent == branches * (3 * len(PROMPTS) + (steps - 3) * ROWS)  # two steps before the noise, and the next
    assert bool((log_ratio(of, trajectory) == 0).all())
    alone = of.rollout(PROMPTS[:1], 1, seed=[trajectory.seeds[1]])
    torch.testing.assert_close(of.clean(alone), of.clean(trajectory)[1:2], rtol=0, atol=1e-4)


def test_guidance_1_is_none_also_where_the_pipeline_adds_its_scale_to_1() -> None:
    of, _ = rolled("z-image")
    calls = of.calls()
    ours = of.generate(PROMPTS[:1], [7], guidance=1.0)["image"].data
    assert of.calls() == calls + of.settings.sampler.steps
    plain = draw(ALL["z-image"].build(), of, guidance_scale=0.0)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    assert (ours - draw(ALL["z-image"].build(), of, guidance_scale=1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("name", MORE)
def test_sampling_with_gradients_draws_what_generate_draws(name) -> None:
    of, _ = rolled(name)
    plain = of.generate(PROMPTS[:2], [1, 2])["image"].data
    noise = of.initial_noise(PROMPTS[:2], [1, 2]).requires_grad_()
    drawn = of.generate_with_grad(PROMPTS[:2], noise=noise, grad_steps=None)["image"].data
    assert torch.equal(drawn, plain)
    drawn.square().sum().backward()
    assert bool((noise.grad.flatten(1).abs().sum(1) > 0).all())
    for p in of.named_trainable().values():
        p.grad = None


@pytest.mark.parametrize("name", MORE)
def test_encode_is_what_decoding_turns_back(name) -> None:
    of, trajectory = rolled(name)
    images = trajectory.media["image"].data[:2]
    vae, given = of.pipeline.vae, []
    with torch.no_grad():
        mode = vae.encode(2 * images - 1).latent_dist.mode()
    clean, real = of.encode(Media(image=Track(images))), vae.decode
    vae.decode = lambda z, *args, **kwargs: given.append(z) or real(z, *args, **kwargs)
    try:
        of.decode(clean)
    finally:
        del vae.decode
    torch.testing.assert_close(given[0], mode, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", MORE)
def test_exported_adapter_draws_the_same_image_in_plain_diffusers(name, tmp_path) -> None:
    from peft import PeftModel

    of, _ = rolled(name)
    base = of.generate(PROMPTS[:1], [7])["image"].data
    with moved(of, 0.2):
        of.save_adapter(tmp_path)
        ours = of.generate(PROMPTS[:1], [7])["image"].data
    plain = ALL[name].build()
    images = []
    if (tmp_path / "pytorch_lora_weights.safetensors").exists():
        plain.load_lora_weights(tmp_path)
        images.append(draw(plain, of))
        plain = ALL[name].build()
    part = of._stage.denoisers.component
    setattr(plain, part, PeftModel.from_pretrained(getattr(plain, part), tmp_path))
    images.append(draw(plain, of))
    for image in images:
        torch.testing.assert_close(ours, image, rtol=0, atol=1e-5)
    assert (ours - base).abs().max() > 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_aligned_says_so_in_one_sentence(name) -> None:
    _, said = refusal(name)
    assert REFUSED[name][1] in said
    assert "\n" not in said


def test_noise_levels_that_are_counted_backwards_are_walked() -> None:
    pipeline = Family("OmniGenPipeline", OMNIGEN).build()
    of = DiffusionPolicy(pipeline, settings("flux").model_copy(update={"call": SMALL}))
    trajectory = of.rollout(PROMPTS, 1, seed=0)
    assert bool((log_ratio(of, trajectory) == 0).all())
    with moved(of):
        assert log_ratio(of, trajectory).abs().max() > 1e-4
    with pytest.raises(UsageError, match="runs several branches also without guidance"):
        of.fit(PROMPTS, of.clean(trajectory), 0.4, [0, 1, 2])


def test_the_table_in_the_docs_is_the_sweeps() -> None:
    assert PAGE.read_text().count(OPEN) == PAGE.read_text().count(CLOSE) == 1
    assert committed() == table(), "write it anew: python -m tests.families.table"
    moving = {family.pipeline for family in {**CLIPS, **ANIMATING, **REDRAWING}.values()}
    works = len(FAMILIES) + len(MORE) + len(EDIT) + len(moving) + len(HEARD)
    assert len(committed().splitlines()) == 2 + works + len(REFUSED) + len(REFUSED_CLIPS) + len(SILENT)
