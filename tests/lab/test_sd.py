"""The builder of tiny-sd: it reads what tiny-flow reads, learns what tiny-flow draws, and plain diffusers loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genalign.lab import sd, turbo
from genalign.lab.build import _save_pipeline
from genalign.lab.few_steps import SIGMAS
from genalign.lab.reading import token_ids

TEXTS = ["three roses on a pink background", "a cat left of a dog"]


@pytest.fixture(scope="module")
def told_by():
    pipeline = turbo.teacher()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_its_text_tower_ends_where_tiny_flow_reads(told_by) -> None:
    """The states before the last layer, under the norm that a StableDiffusionPipeline takes the last ones through."""
    ids = token_ids(told_by.tokenizer, TEXTS)
    with torch.no_grad():
        read = told_by.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        norm = dict(told_by.text_encoder.named_modules())["text_model.final_layer_norm"]
        made = sd.text_encoder(told_by.text_encoder)(ids).last_hidden_state
    torch.testing.assert_close(made, norm(read), rtol=0, atol=1e-5)
    assert told_by.text_encoder.config.num_hidden_layers == 3  # the teacher's own is as it was


def test_what_it_learns_is_what_tiny_flow_draws_in_three_steps(told_by, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(turbo, "CHUNK", 4)
    noises, ends, texts = turbo.pair_bank(told_by, tmp_path, 4, sigmas=SIGMAS)
    call = {"guidance_scale": 1.0, "sigmas": SIGMAS, "max_sequence_length": 1, "height": 64, "width": 64}
    theirs = told_by(texts, latents=noises, output_type="latent", **call).images
    assert (ends - theirs).square().mean().sqrt() < 0.05 * theirs.std()


def test_a_short_run_learns_and_is_loaded_by_diffusers(tmp_path: Path, monkeypatch) -> None:
    from diffusers import StableDiffusionPipeline

    monkeypatch.setattr(turbo, "CHUNK", 4)
    monkeypatch.setattr(sd, "compiled", lambda model: model.forward)
    pipeline = sd.build_sd(tmp_path / "work", steps=3, samples=4, rows=2)
    _save_pipeline(pipeline, tmp_path / "tiny-sd")
    assert (tmp_path / "tiny-sd/unet/diffusion_pytorch_model.safetensors").stat().st_size < 8.5e6
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path / "tiny-sd")
    loaded.set_progress_bar_config(disable=True)
    drawn = loaded(TEXTS[0], guidance_scale=2.0, num_inference_steps=2, output_type="pt").images
    assert drawn.shape == (1, 3, 64, 64)
    assert float(loaded.scheduler.alphas_cumprod[-1]) == pytest.approx(0.0, abs=1e-9)  # its last step is pure noise
