"""The builder of tiny-turbo: its bank is what the pipeline itself draws, and a few steps of it make an adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genalign.lab import turbo


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbo, "CHUNK", 4)


def test_the_bank_is_the_teachers_own_sampling_and_outlives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the pipeline's call from the same noise; bf16 products leave a hundredth of the latents' unit size."""
    pipeline = turbo.teacher()
    noises, ends, texts = turbo.pair_bank(pipeline, tmp_path, 8, steps=3)
    pipeline.set_progress_bar_config(disable=True)
    call = {"guidance_scale": 1.0, "num_inference_steps": 3, "max_sequence_length": 1}
    theirs = pipeline(texts, latents=noises, output_type="latent", height=64, width=64, **call).images
    assert (ends - theirs).square().mean().sqrt() < 0.05 * theirs.std()
    assert len(set(texts)) > 4
    (tmp_path / "turbo-bank-001.safetensors").unlink()
    drawn: list[int] = []
    real = turbo._sample
    monkeypatch.setattr(turbo, "_sample", lambda *args: (drawn.append(len(args[1])), real(*args))[1])
    again = turbo.pair_bank(pipeline, tmp_path, 8, steps=3)
    assert drawn == [4]
    assert torch.equal(again[1], ends)
    assert again[2] == texts


def test_matching_pulls_a_sample_from_the_fake_towards_the_real() -> None:
    draw = torch.Generator().manual_seed(0)
    real, fake, made = (torch.randn(3, 4, 16, 16, generator=draw) for _ in range(3))
    leaf = made.clone().requires_grad_()
    (slope,) = torch.autograd.grad(turbo.matching(real, fake, leaf), leaf)
    expected = torch.stack([(f - r) / (m - r).abs().mean() for r, f, m in zip(real, fake, made, strict=True)])
    torch.testing.assert_close(slope, expected / made.numel())
    same = made.clone().requires_grad_()
    assert not torch.autograd.grad(turbo.matching(real, real, same), same)[0].any()


def test_a_built_student_is_an_adapter_of_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers loads it onto tiny-flow and draws with it in one step; the teacher's own weights are untouched."""
    told: list[float] = []
    real = turbo.regression
    monkeypatch.setattr(
        turbo, "regression", lambda *args: (told.append(float((loss := real(*args)).detach())), loss)[1]
    )
    built = turbo.build_turbo(tmp_path, pairs=4, steps=8, rows=4)
    assert sum(told[-2:]) < sum(told[:2])  # it fits the handful it has seen
    turbo.save_turbo(built, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["pytorch_lora_weights.safetensors"]
    pipeline = turbo.teacher()
    before = {name: weight.clone() for name, weight in pipeline.transformer.state_dict().items()}
    pipeline.load_lora_weights(tmp_path / "out")
    after = {name.replace(".base_layer", ""): weight for name, weight in pipeline.transformer.state_dict().items()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    layers = {name: part for name, part in pipeline.transformer.named_modules() if hasattr(part, "lora_A")}
    trained = {name: part for name, part in built.transformer.named_modules() if hasattr(part, "lora_A")}
    assert layers.keys() == trained.keys()
    moved = 0.0
    for name, layer in layers.items():
        theirs, ours = layer.get_delta_weight("default_0"), trained[name].get_delta_weight("default")
        torch.testing.assert_close(theirs, ours, rtol=5e-3, atol=1e-6)  # saved in half precision
        moved += float(ours.square().sum())
    assert moved > 0
