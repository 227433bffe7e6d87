"""The builder of tiny-music: its conventions are its pipeline's own, and a short run of all of its stages."""

from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch

from genalign.lab import bank, few_steps, flow_matching, music, music_autoencoder, music_build, music_reading, reading
from genalign.lab.build import _save_staged
from genalign.lab.cards import write_card
from genalign.lab.flow_matching import batch, per_row
from genalign.lab.melody import held_out
from genalign.lab.melody_pieces import LENGTH
from genalign.lab.music import CALL, CHANNELS, LATENTS, PIECES, SOUND_RATE
from genalign.lab.music_autoencoder import build_autoencoder, pieces
from genalign.lab.music_figures import SHEET, play_sheet
from genalign.lab.stages import Stages
from genalign.lab.teacher import velocity
from genalign.media.audio import read
from genalign.policy import load_policy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import Media, Prompt, Track
from tests.helpers.diffusion import log_ratio, moved

TEXTS = ["a flute plays Frere Jacques", "a violin melody over a piano, softly, with drums"]
SAMPLES = round(LENGTH * SOUND_RATE)
tokenizer = cache(music_reading.melody_tokenizer)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "CHUNK", 4)
    monkeypatch.setattr(few_steps, "CHUNK", 4)
    monkeypatch.setattr(reading, "reading", partial(reading.reading, rows=32))
    monkeypatch.setattr(music_reading, "melody_tokenizer", tokenizer)
    for module in (flow_matching, few_steps):  # compiling takes longer than these few steps
        monkeypatch.setattr(module, "compiled", lambda model: model.forward)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory):
    """Untrained, but for gates that would be zero."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(music_reading, "melody_tokenizer", tokenizer)
        patch.setattr(reading, "reading", partial(reading.reading, rows=4))
        tower, words, _ = music_reading.build_text_tower(tmp_path_factory.mktemp("tower"), steps=1, rows=4)
    made = music.assemble(build_autoencoder(8), tower, words)
    torch.manual_seed(0)
    for parameter in made.transformer.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=0.05)
    made.set_progress_bar_config(disable=True)
    return made


def test_texts_are_read_as_the_pipeline_reads_them(pipeline) -> None:
    theirs, lengths = pipeline.encode_prompt([text.lower() for text in TEXTS], torch.device("cpu"))
    ours = PIECES.read(pipeline, TEXTS, 0)
    longest = int(lengths.max())
    for row, length in enumerate(lengths.tolist()):
        assert ours["encoder_attention_mask"][row].tolist() == [k < length for k in range(music.TOKENS)]
        torch.testing.assert_close(ours["encoder_hidden_states"][row, :length], theirs[row, :length], rtol=0, atol=1e-5)
    assert longest < music.TOKENS


def test_how_far_a_text_is_padded_changes_nothing(pipeline) -> None:
    """The pipeline pads to the longest text of its batch, the lab always to 40 tokens."""
    noise = torch.randn(2, *LATENTS, generator=torch.Generator().manual_seed(0))
    text = PIECES.read(pipeline, TEXTS, 0)
    ours = velocity(pipeline.transformer, noise, torch.tensor([1.0, 1.0]), text, PIECES.times)
    given = []
    hook = pipeline.transformer.register_forward_hook(lambda module, args, out: given.append(out[0]))
    pipeline(TEXTS, latents=noise, num_inference_steps=1, guidance_scale=2.0, output_type="latent", **CALL)
    hook.remove()
    assert (ours - given[0]).std() < 0.01 * given[0].std()  # bf16's products
    free = velocity(pipeline.transformer, noise, torch.tensor([1.0, 1.0]), PIECES.read(pipeline, ["", ""], 0), 1.0)
    assert (free - given[1]).std() < 0.01 * given[1].std()
    assert (given[0] - given[1]).std() > 0.05 * given[0].std()


def test_what_is_matched_is_what_the_pipeline_follows_and_decodes(pipeline, tmp_path: Path, monkeypatch) -> None:
    """With the exact velocity of a latent of the bank in place of the transformer, the pipeline arrives at it, and
    gives its autoencoder what that once made of the piece."""
    vae = pipeline.vae
    made = bank.latent_bank(vae, tmp_path, "melodies", 4)
    assert not any(held_out(row) for row in made.facts)
    assert made.shown is not None
    assert made.shown.shape == (4, LATENTS[0], len(PIECES.things))
    drawn_from = batch(made, vae, PIECES.caption, step=0, rows=2, seed=0)
    clean, noise = drawn_from.clean, drawn_from.noise
    assert clean.shape == (2, *LATENTS)

    def exact(hidden_states, timestep):
        return (hidden_states - clean) / per_row(timestep, hidden_states)

    class Exact(torch.nn.Module):
        def forward(self, hidden_states, timestep, **_):
            return type("Out", (), {"sample": exact(hidden_states, timestep)})

    monkeypatch.setattr(pipeline.transformer, "forward", Exact().forward)
    given, real = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, **call: given.append(z) or real(z, **call))
    drawn = pipeline(TEXTS, latents=noise, num_inference_steps=3, guidance_scale=1.0, output_type="pt", **CALL).audios
    assert drawn.shape == (2, 1, SAMPLES)
    index = np.random.default_rng((0, 0)).integers(4, size=2)
    wanted = made.latents[torch.from_numpy(index)].float()
    torch.testing.assert_close(given[0].transpose(1, 2), wanted, rtol=0, atol=1e-2)


@torch.no_grad()
def test_a_transformer_begins_by_answering_with_what_it_is_given() -> None:
    """Whatever the text and the noise level are, within a fiftieth of its power."""
    made = music.transformer(text_width=64)
    generator = torch.Generator().manual_seed(3)
    noise, text = torch.randn(4, *LATENTS, generator=generator), torch.randn(4, 9, 64, generator=generator)
    given = made(noise, text, torch.ones(4, 9, dtype=torch.bool), torch.tensor([1.0, 0.9, 0.6, 0.1])).sample
    assert float((given - noise).square().mean()) < 0.02


def test_each_column_of_what_is_shown_is_told_for_itself(pipeline) -> None:
    """Against a float64 loop over places and columns; a column's mean is by the importance of its own places."""
    told = flow_matching.Told(pipeline.transformer, PIECES)
    shown = torch.stack([torch.randint(things, (2, LATENTS[0])) for things in PIECES.things], dim=-1)
    shown[:, ::3] = torch.tensor(PIECES.things) - 1
    kept: list[torch.Tensor] = []
    tap = pipeline.transformer.blocks[len(pipeline.transformer.blocks) // 2].register_forward_hook(
        lambda module, given, states: kept.append(states)
    )
    with torch.no_grad():
        velocity(pipeline.transformer, torch.randn(2, *LATENTS), torch.tensor([0.3, 1.0]),
                 PIECES.read(pipeline, TEXTS, 0), PIECES.times)  # fmt: skip
        rows, wanted, start = told.head(kept[0].float()).flatten(0, 1).double(), 0.0, 0
        for column, things in enumerate(PIECES.things):
            wrong = whole = 0.0
            for logits, right in zip(
                rows[:, start : start + things], shown[..., column].flatten().tolist(), strict=True
            ):
                weight = flow_matching.EMPTY if right == things - 1 else 1.0
                wrong -= weight * float(logits.log_softmax(0)[right])
                whole += weight
            wanted, start = wanted + wrong / whole, start + things
        assert float(told.loss(shown)) == pytest.approx(PIECES.telling * wanted, rel=1e-5)
    tap.remove()
    told.hook.remove()


def test_a_trajectory_is_the_pipelines_own_guided_sampling(pipeline, tmp_path: Path) -> None:
    """Against the pipeline's call from the same noise, within bf16's products."""
    paths, texts = few_steps.trajectories(pipeline, tmp_path, 4, guidance=2.0, world=PIECES)
    call = {"guidance_scale": 2.0, "num_inference_steps": few_steps.STEPS, "output_type": "latent", **CALL}
    theirs = pipeline(texts, latents=paths[:, 0].float(), **call).audios
    moved_by = (theirs - paths[:, 0]).square().mean().sqrt()
    assert (paths[:, -1] - theirs).square().mean().sqrt() < 0.03 * moved_by


def test_the_borders_are_where_three_steps_stand(pipeline) -> None:
    path = few_steps.path_of(pipeline.scheduler, PIECES)
    pipeline(TEXTS[:1], num_inference_steps=3, guidance_scale=1.0, output_type="latent", **CALL)
    assert [path[border] for border in few_steps.BORDERS] == pytest.approx(pipeline.scheduler.sigmas.tolist())


def test_what_the_autoencoder_keeps_of_held_out_pieces_is_most_of_them(tmp_path: Path) -> None:
    """Of power, three quarters, after 60 pieces; without those waves of other pieces it would be 192 of 512."""
    wanted = pieces(1, 16)
    vae = build_autoencoder(60)
    back = music_autoencoder.reconstructed(vae, wanted)
    assert back.shape == (16, 1, SAMPLES)
    assert (back - wanted).square().sum() < 0.25 * wanted.square().sum()
    drawn = vae.encode(wanted, generator=torch.Generator().manual_seed(0)).latents
    assert drawn.shape == (16, CHANNELS, LATENTS[0])
    assert float((drawn - vae.encode(wanted, sample_posterior=False).latents).std()) == pytest.approx(0.1, rel=0.05)


STAGES = Stages(
    autoencoder=8, read=2, capable=(1,), half_hearted=1, few_steps=1, samples=8, trajectories=4, guidance=(1.0, 2.0),
    prompts=2, rows=4,
)  # fmt: skip


def test_a_short_run_of_all_stages_is_loaded_by_diffusers_and_rolled_out_exactly(tmp_path: Path) -> None:
    from diffusers import LongCatAudioDiTPipeline

    pipeline, figures = music_build.build_music(tmp_path / "work", STAGES)
    halves = [f"half-hearted, guidance {scale}" for scale in (1, 2)]
    assert list(figures) == ["autoencoder", "read", "capable", *halves, "few steps, 3", "few steps, 9"]
    assert {"all_facts", "instruments", "whole"} <= set(figures["capable"]["rule"])

    folder = tmp_path / "tiny-music"
    folder.mkdir()
    play_sheet(pipeline, folder)
    _save_staged(pipeline, figures, folder)
    write_card(folder)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 9_000_000
    card = (folder / "README.md").read_text()
    sounds = sorted(folder.glob("*.ogg"))
    assert [read(sound)[0].shape for sound in sounds] == [(1, SAMPLES)] * 8
    assert all(f"]({sound.name})" in card for sound in sounds)
    assert f"]({SHEET})" in card
    assert (folder / SHEET).is_file()
    assert all(stage in card for stage in figures if stage != "read")
    loaded = LongCatAudioDiTPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    drawn = loaded(TEXTS[0], guidance_scale=1.0, num_inference_steps=3, output_type="pt", **CALL).audios
    assert drawn.shape == (1, 1, SAMPLES)

    settings = PolicySettings(
        model=str(folder), call=CALL, lora=Lora(rank=2, alpha=4), batch_size=2,
        sampler=Sampler(steps=3, kernel="flow-sde", guidance=1.0),
    )  # fmt: skip
    of = load_policy(settings, folder)
    trajectory = of.rollout([Prompt(text, uid=k) for k, text in enumerate(TEXTS)], 2, seed=0)
    assert trajectory.media["audio"].data.shape == (4, 1, SAMPLES)
    assert trajectory.media["audio"].rate == SOUND_RATE
    assert bool((log_ratio(of, trajectory) == 0).all())
    with moved(of):
        assert log_ratio(of, trajectory).abs().max() > 1e-6
    given = pieces(3, 2)
    with torch.no_grad():
        ours = of.pipeline.vae.encode(given, sample_posterior=False).latents.transpose(1, 2)
    torch.testing.assert_close(of.encode(Media(audio=Track(given, SOUND_RATE))), ours, rtol=0, atol=1e-3)
