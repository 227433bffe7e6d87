"""The builder of tiny-video: its conventions are WanPipeline's own, and a short run of all of its stages."""

from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genalign.lab import bank, few_steps, flow_matching, moves_reading, reading, video, video_build
from genalign.lab.build import _save_pipeline, _save_staged
from genalign.lab.cards import write_card
from genalign.lab.flow_matching import batch, per_row
from genalign.lab.moves import held_out
from genalign.lab.moves_clips import FRAMES, RATE, SIDE
from genalign.lab.stages import Stages
from genalign.lab.teacher import velocity
from genalign.lab.video import CALL, CLIPS, LATENTS
from genalign.lab.video_autoencoder import build_autoencoder, clips, measure_latents
from genalign.lab.video_figures import SHEET, draw_sheet
from genalign.policy import load_policy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.types import Media, Prompt, Track
from tests.helpers.diffusion import log_ratio, moved

TEXTS = ["a cat moves left", "a red car grows on blue", "a dog turns clockwise", "a key sinks"]
tokenizer = cache(moves_reading.moves_tokenizer)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "CHUNK", 4)
    monkeypatch.setattr(few_steps, "CHUNK", 4)
    monkeypatch.setattr(reading, "reading", partial(reading.reading, rows=32))
    monkeypatch.setattr(moves_reading, "moves_tokenizer", tokenizer)
    for module in (flow_matching, few_steps):  # compiling takes longer than these few steps
        monkeypatch.setattr(module, "compiled", lambda model: model.forward)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory):
    """Untrained, with latents of another mean and deviation in each channel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moves_reading, "moves_tokenizer", tokenizer)
        patch.setattr(reading, "reading", partial(reading.reading, rows=4))
        tower, words, _ = moves_reading.build_text_tower(tmp_path_factory.mktemp("tower"), steps=1, rows=4)
    vae = video.autoencoder().eval().requires_grad_(False)
    measure_latents(vae, bank.encoded(vae, clips(0, 0, 4)))
    made = video.assemble(vae, tower, words)
    made.set_progress_bar_config(disable=True)
    return made


def test_the_whole_of_it_is_small_enough_to_ship(pipeline, tmp_path: Path) -> None:
    from diffusers import WanPipeline

    copied = WanPipeline(**pipeline.components)
    halves = {name: tensor.clone() for name, tensor in copied.transformer.state_dict().items()}
    _save_pipeline(copied, tmp_path)
    copied.to(torch.float32)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) <= 9_000_000
    loaded = WanPipeline.from_pretrained(tmp_path)
    assert {loaded.transformer.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {torch.float32}
    for name, tensor in loaded.transformer.state_dict().items():
        torch.testing.assert_close(tensor, halves[name], rtol=1e-3, atol=1e-4)


def test_texts_are_read_as_the_pipeline_reads_them(pipeline) -> None:
    for zeros, tokens in zip(CLIPS.zeros, (CALL["max_sequence_length"], 512), strict=True):
        theirs, _ = pipeline.encode_prompt(TEXTS, do_classifier_free_guidance=False, max_sequence_length=tokens)
        ours = CLIPS.read(pipeline, TEXTS, zeros)["encoder_hidden_states"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_what_is_matched_is_what_the_pipeline_follows_and_decodes(pipeline, tmp_path: Path, monkeypatch) -> None:
    """With the exact velocity of a latent of the bank in place of the transformer, the pipeline arrives at it, and
    gives its autoencoder what that once made of the clip."""
    vae = pipeline.vae
    made = bank.latent_bank(vae, tmp_path, "moves", 4)
    drawn_from = batch(made, vae, CLIPS.caption, step=0, rows=2, seed=0)
    clean, noise = drawn_from.clean, drawn_from.noise
    assert clean.shape == (2, *LATENTS)

    def exact(x, timestep, **_):
        sigma = timestep.float() / 1000
        return ((x - clean) / per_row(sigma, x),)

    sigma = torch.tensor([0.3, 0.9])
    noisy = torch.lerp(clean, noise, per_row(sigma, clean))
    torch.testing.assert_close(velocity(exact, noisy, sigma, {}), noise - clean, rtol=0, atol=1e-4)
    monkeypatch.setattr(pipeline.transformer, "forward", lambda hidden_states, **call: exact(hidden_states, **call))
    given, real = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, **call: given.append(z) or real(z, **call))
    drawn = pipeline(
        TEXTS[:2], latents=noise, num_inference_steps=3, guidance_scale=1.0, output_type="pt", **CALL
    ).frames  # fmt: skip
    assert drawn.shape == (2, FRAMES, 3, SIDE, SIDE)
    index = np.random.default_rng((0, 0)).integers(4, size=2)
    torch.testing.assert_close(given[0], made.latents[torch.from_numpy(index)].float(), rtol=0, atol=1e-2)


def test_a_trajectory_is_the_pipelines_own_guided_sampling(pipeline, tmp_path: Path) -> None:
    """Against the pipeline's call from the same noise, within bf16's products and whole training times."""
    paths, texts = few_steps.trajectories(pipeline, tmp_path, 4, guidance=2.0, world=CLIPS)
    call = {"guidance_scale": 2.0, "num_inference_steps": few_steps.STEPS, "output_type": "latent", **CALL}
    theirs = pipeline(texts, latents=paths[:, 0].float(), **call).frames
    moved_by = (theirs - paths[:, 0]).square().mean().sqrt()
    assert (paths[:, -1] - theirs).square().mean().sqrt() < 0.03 * moved_by


def test_the_borders_are_where_three_steps_stand(pipeline) -> None:
    path = few_steps.path_of(pipeline.scheduler, CLIPS)
    CLIPS.set_steps(pipeline.scheduler, 3)
    assert [path[border] for border in few_steps.BORDERS] == pytest.approx(pipeline.scheduler.sigmas.tolist())


def test_an_autoencoder_learns_to_reconstruct_and_keeps_its_posteriors_width(tmp_path: Path) -> None:
    wanted = clips(1, 0, 2)
    vae, off = video.autoencoder(), []
    for trained in (vae, build_autoencoder(tmp_path, steps=30, rows=1)):
        with torch.no_grad():
            posterior = trained.encode(wanted).latent_dist
            off.append(float((trained.decode(posterior.mode()).sample - wanted).abs().mean()))
        torch.testing.assert_close(posterior.std, torch.full((2, *LATENTS), 0.1))
    assert off[1] < 0.8 * off[0]
    latents = 3 * torch.randn(40, *LATENTS) + torch.arange(1.0 * LATENTS[0]).view(-1, 1, 1, 1)
    measure_latents(vae, latents)
    again = bank.normalised(vae, latents)
    torch.testing.assert_close(again.mean(dim=(0, 2, 3, 4)), torch.zeros(LATENTS[0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(again.std(dim=(0, 2, 3, 4)), torch.ones(LATENTS[0]), rtol=0, atol=1e-4)


STAGES = Stages(
    autoencoder=2, read=2, capable=(1, 1), half_hearted=2, few_steps=2, samples=8, trajectories=4, guidance=(1.0, 2.0),
    prompts=2, rows=4,
)  # fmt: skip


def test_a_short_run_of_all_stages_goes_on_where_it_was_killed_and_is_rolled_out_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import WanPipeline

    matched: list[int] = []

    def counted(*args):
        matched.append(len(args[1]))
        if len(matched) == 4:  # the second step on web-like captions
            raise KeyboardInterrupt
        return velocity(*args)

    monkeypatch.setattr(flow_matching, "velocity", counted)
    with pytest.raises(KeyboardInterrupt):
        video_build.build_video(tmp_path / "work", STAGES)
    pipeline, figures = video_build.build_video(tmp_path / "work", STAGES)
    assert len(matched) == 6  # both steps of that stage once more, and none of the one before
    halves = [f"half-hearted, guidance {scale}" for scale in (1, 2)]
    assert list(figures) == ["autoencoder", "read", "capable", *halves, "few steps, 3", "few steps, 9"]
    assert {"all_facts", "motion", "whole"} <= set(figures["capable"]["rule"])
    built = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}

    folder = tmp_path / "anywhere"
    folder.mkdir()
    _save_staged(pipeline, figures, folder)
    write_card(folder, "tiny-video")
    card = (folder / "README.md").read_text()
    assert SHEET in card
    assert all(stage in card for stage in figures if stage != "read")
    loaded = WanPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    drawn = loaded(TEXTS[0], guidance_scale=1.0, num_inference_steps=3, output_type="pt", **CALL).frames
    assert drawn.shape == (1, FRAMES, 3, SIDE, SIDE)
    draw_sheet(loaded, folder / SHEET, count=2)
    assert Image.open(folder / SHEET).size == (2 * FRAMES * (SIDE + 2), 2 * 2 * (SIDE + 2))

    def trained(*_):
        raise AssertionError("a finished stage was trained again")

    for module in (flow_matching, few_steps):
        monkeypatch.setattr(module, "velocity", trained)
    monkeypatch.setattr(few_steps, "_ode", trained)
    again, _ = video_build.build_video(tmp_path / "work", STAGES)
    for name, tensor in again.transformer.state_dict().items():
        assert torch.equal(tensor, built[name])

    settings = PolicySettings(
        model=str(folder), call=CALL, frame_rate=RATE, lora=Lora(rank=2, alpha=4), batch_size=2,
        sampler=Sampler(steps=3, kernel="flow-sde", guidance=1.0),
    )  # fmt: skip
    of = load_policy(settings, folder)
    trajectory = of.rollout([Prompt(text, uid=k) for k, text in enumerate(TEXTS[:2])], 2, seed=0)
    assert trajectory.media["video"].data.shape == (4, FRAMES, 3, SIDE, SIDE)
    assert bool((log_ratio(of, trajectory) == 0).all())
    with moved(of):
        assert log_ratio(of, trajectory).abs().max() > 1e-4
    given = clips(3, 0, 2)
    media = Media(video=Track(given.transpose(1, 2).add(1).div(2), RATE))
    ours = bank.normalised(of.pipeline.vae, bank.encoded(of.pipeline.vae, given))
    torch.testing.assert_close(of.encode(media), ours, rtol=0, atol=1e-3)


def test_clips_of_the_bank_and_captions_of_trajectories_are_of_the_training_split(pipeline, tmp_path: Path) -> None:
    made = bank.latent_bank(pipeline.vae, tmp_path, "moves", 8)
    assert made.latents.shape == (8, *LATENTS)
    assert made.shown is not None
    assert made.shown.shape == (8, 3 * 6 * 6)
    assert not any(held_out(row) for row in made.facts)
    rng = np.random.default_rng(0)
    assert not any(held_out(CLIPS.facts(rng)) for _ in range(50))


def test_telling_what_is_where_trains_the_transformer_and_leaves_no_trace(pipeline) -> None:
    """Against the middle block's own states, in a float64 loop over the places."""
    net, places = pipeline.transformer, LATENTS[1] * LATENTS[2] * LATENTS[3]
    told, kept = flow_matching.Told(net, CLIPS), []
    (things,) = CLIPS.things
    tap = net.blocks[2].register_forward_hook(lambda module, given, states: kept.append(states))
    noisy, sigma = torch.randn(2, *LATENTS), torch.tensor([0.3, 0.9])
    shown = torch.randint(things, (2, places))
    shown[:, ::2] = things - 1
    net.requires_grad_(True)
    velocity(net, noisy, sigma, CLIPS.read(pipeline, TEXTS[:2], 0))
    loss, wanted, whole = told.loss(shown), 0.0, 0.0
    rows = told.head(kept[0].detach().float()).flatten(0, 1).double()
    for logits, right in zip(rows, shown.flatten().tolist(), strict=True):
        weight = flow_matching.EMPTY if right == things - 1 else 1.0
        wanted -= weight * float(logits.log_softmax(0)[right])
        whole += weight
    assert float(loss) == pytest.approx(CLIPS.telling * wanted / whole, rel=1e-5)
    loss.backward()
    reached = [block.ffn.net[-1].weight.grad is not None for block in net.blocks]
    assert reached == [True, True, True, False, False]
    net.requires_grad_(False).zero_grad(set_to_none=True)
    tap.remove()
    told.hook.remove()
    velocity(net, noisy, sigma, CLIPS.read(pipeline, TEXTS[:2], 0))
    assert not told.states
