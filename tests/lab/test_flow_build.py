"""The builder of tiny-flow: what its stages are taught from, and a short run of all of them by its one function."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genalign.lab import bank, few_steps, flow_build, flow_matching, reading
from genalign.lab.counting import counting_scene, mixed_facts
from genalign.lab.teacher import teacher
from genalign.lab.world import held_out, sample_facts


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "CHUNK", 4)
    monkeypatch.setattr(few_steps, "CHUNK", 4)
    monkeypatch.setattr(reading, "reading", partial(reading.reading, rows=32))
    for module in (flow_matching, few_steps):  # compiling takes longer than these few steps
        monkeypatch.setattr(module, "compiled", lambda model: model.forward)


def test_mixed_scenes_contain_nothing_that_is_held_out() -> None:
    rng = np.random.default_rng(0)
    several = 0
    for _ in range(500):
        facts = mixed_facts(rng)
        assert not held_out(facts)
        for one in facts["objects"]:
            alone = {"objects": [one], "relation": None, "background": facts["background"]}
            several += one["count"] > 1
            assert one["count"] == 1 or not held_out(alone)
        first, second = (dict(o, count=1) for o in facts["objects"])
        assert not held_out({"objects": [first, second], "relation": None, "background": None})
    assert several >= 500


def test_size_does_not_give_the_number_away() -> None:
    """In EmojiWorld's own scenes the sizes of one, two and three objects overlap in 25 and 26 px of two and three."""
    rng, sizes = np.random.default_rng(1), dict[int, set[int]]()
    for _ in range(500):
        placed = counting_scene(rng).placed
        sizes.setdefault(len(placed), set()).update(size for *_, size in placed)
    assert set(sizes) == {1, 2, 3, 4}
    for a, b in combinations(sizes.values(), 2):
        assert {20, 21, 22, 23, 24} <= a & b


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (([("cat", 1), ("red heart", 1)], ["red heart", "left of", "cat"], "blue"), ["red heart", "cat", 1, 1, 1, 1]),
        (([("dog", 1), ("cat", 1)], ["cat", "above", "dog"], None), ["cat", "dog", 1, 1, 2, 6]),
        (([("rose", 3)], None, "white"), ["rose", None, 3, 0, 0, 0]),
        (([("star", 2), ("bus", 1)], None, "gray"), ["bus", "star", 1, 2, 0, 5]),
    ],
)
def test_the_answers_are_what_the_caption_says(facts: Any, expected: list[Any]) -> None:
    """Of a relation the first object is first; of two without one, the first of the alphabet."""
    objects = [{"name": name, "count": count} for name, count in facts[0]]
    right = reading.answers({"objects": objects, "relation": facts[1], "background": facts[2]})
    names = [*reading.sprites(), None]
    assert [names[right[0]], names[right[1]], *right[2:]] == expected


def test_a_trajectory_is_the_pipelines_own_guided_sampling_and_outlives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the pipeline's call from the same noise; bf16 products leave a hundredth of the latents' unit size."""
    pipeline = teacher()
    paths, texts = few_steps.trajectories(pipeline, tmp_path, 8, guidance=2.0)
    pipeline.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 2.0, "sigmas": flow_matching.even(few_steps.STEPS), "max_sequence_length": 1}
    noise = paths[:, 0].float()
    theirs = pipeline(texts, latents=noise, output_type="latent", height=64, width=64, **call).images
    gaps = (paths[:, -1] - theirs).square().mean(dim=(1, 2, 3)).sqrt() / theirs.std()
    assert gaps.median() < 0.03  # of one row, guidance makes another layout of such a hundredth
    (tmp_path / "trajectories-001.safetensors").unlink()
    drawn: list[int] = []
    real = few_steps._ode
    monkeypatch.setattr(few_steps, "_ode", lambda *args: (drawn.append(len(args[1])), real(*args))[1])
    again, _ = few_steps.trajectories(pipeline, tmp_path, 8, guidance=2.0)
    assert drawn == [4]
    assert torch.equal(again, paths)


def test_the_borders_are_where_three_steps_stand() -> None:
    pipeline = teacher()
    path = few_steps.path_of(pipeline.scheduler)
    pipeline.scheduler.set_timesteps(sigmas=few_steps.SIGMAS)
    assert [path[border] for border in few_steps.BORDERS] == pytest.approx(pipeline.scheduler.sigmas.tolist())


def test_three_steps_learn_to_cross_where_the_teacher_took_nine(tmp_path: Path) -> None:
    """From the same noise, three Euler steps end nearer to the teacher's nine, on the handful of paths fitted to."""
    pipeline = teacher()
    paths, texts = few_steps.trajectories(pipeline, tmp_path, 4, guidance=1.0)
    pipeline.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 1.0, "sigmas": few_steps.SIGMAS, "max_sequence_length": 1, "output_type": "latent"}

    def gap() -> float:
        with torch.no_grad():
            ends = pipeline(texts, latents=paths[:, 0].float(), height=64, width=64, **call).images
        return float((ends - paths[:, -1]).square().mean())

    before = gap()
    few_steps.distil_steps(pipeline, paths, texts, tmp_path, steps=40, rows=6)
    assert gap() < 0.7 * before


def test_a_short_run_of_all_stages_makes_a_pipeline_of_three_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusion3Pipeline

    from genalign.lab.build import _save_pipeline

    monkeypatch.setattr(flow_build, "teach_reading", partial(flow_build.teach_reading, rows=4))
    stages = flow_build.Stages(
        pretrain=2, read=2, capable=(2, 2, 2), half_hearted=2, few_steps=2, scenes=8, trajectories=4, prompts=4, rows=4
    )
    pipeline, figures = flow_build.build_flow(tmp_path, teacher().vae, stages)
    assert list(figures) == ["read", "capable", "half-hearted", "few steps, 3", "few steps, 10"]
    assert set(figures["capable"]) == {"all_facts", "objects", "count", "relation", "background"}
    built = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    _save_pipeline(pipeline, tmp_path / "out")
    loaded = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 1.0, "num_inference_steps": 3, "max_sequence_length": 1, "output_type": "pt"}
    assert loaded("two cats", height=64, width=64, **call).images.shape == (1, 3, 64, 64)

    def trained(*_: object) -> None:
        raise AssertionError("a finished stage was trained again")

    for module in (flow_matching, few_steps):
        monkeypatch.setattr(module, "velocity", trained)
    again, _ = flow_build.build_flow(tmp_path, teacher().vae, stages)
    for name, tensor in again.transformer.state_dict().items():
        assert torch.equal(tensor, built[name])


def test_training_scenes_of_the_bank_are_of_the_training_split(tmp_path: Path) -> None:
    made = bank.latent_bank(teacher().vae, tmp_path, "world", 8)
    assert made.latents.shape == (8, 4, 16, 16)
    assert not any(held_out(row) for row in made.facts)
    assert made.facts[0] == sample_facts(np.random.default_rng(20_000_000), "train")
