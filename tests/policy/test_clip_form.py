"""What a video pipeline would draw, said without its weights; the pipelines of the sweep are the oracle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from genalign.policy import clip_form_of
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import PolicySettings
from genalign.types import UsageError
from tests.helpers.tiny_videos import RATE
from tests.helpers.video_policies import BOTH, prompts, rolled, settings

COUNTED = ["wan", "ltx", "cogvideox", "hunyuan-video", "mochi"]  # one of each autoencoder that is tried
OWN = ("ltx-2", "ltx-2-3", "ltx-2-i2v")  # whose tiny autoencoder is of another ratio than the pipeline takes it for


def saved(name: str, folder: Path) -> Path:
    """The pipeline as a folder without a single weight."""
    BOTH[name].build().save_pretrained(folder / name)
    for file in (folder / name).glob("**/*.safetensors"):
        file.unlink()
    return folder / name


@pytest.mark.parametrize("name", BOTH)
def test_the_form_is_that_of_what_is_drawn(name: str, tmp_path: Path) -> None:
    of, trajectory = rolled(name)
    form = clip_form_of(of.settings, saved(name, tmp_path))
    drawn = trajectory.media["video"]
    assert form is not None
    assert form.rate == drawn.rate
    assert form.frames in (None, drawn.held.shape[1]) or name in OWN
    assert (form.frames is None) is (name == "cogvideox-v2v")  # as many as the clip that it begins with


@pytest.mark.parametrize("name", COUNTED)
def test_the_nearest_count_that_is_named_is_drawn_as_it_is(name: str, tmp_path: Path) -> None:
    """A count that the autoencoder cannot hold is refused, and the one that is named instead is what comes out."""
    of, folder = rolled(name)[0], saved(name, tmp_path)
    key = "frames" if "frames" in BOTH[name].call else "num_frames"
    given = [count for count in (6, 8) if refused(of.settings, folder, key, count)]
    near = {int(refused(of.settings, folder, key, count).rsplit(" ", 1)[1]) for count in given}
    assert given
    assert not any(refused(of.settings, folder, key, count) for count in near)
    assert all(drawn(name, count, key) == count for count in sorted(near)[:1])


def refused(of: PolicySettings, folder: Path, key: str, count: int) -> str:
    """The sentence; empty where the count is taken."""
    chosen = of.model_copy(update={"call": {**of.call, key: count}})
    try:
        found = clip_form_of(chosen, folder)
    except UsageError as error:
        return str(error)
    assert found.frames == count
    return ""


def drawn(name: str, count: int, key: str) -> int:
    pipeline = BOTH[name].build()
    of = settings(pipeline, name)
    of = of.model_copy(update={"call": {**of.call, key: count}})
    media = DiffusionPolicy(pipeline, of).generate(prompts(name)[:1], [0])
    return media["video"].data.shape[1]


def test_a_count_that_pipelines_would_round_is_named_with_the_nearest(tmp_path: Path) -> None:
    """Wan rounds 8 up to 9, LTX down to 7: both without an error."""
    for name, given, near in (("wan", 8, 9), ("ltx", 8, 9), ("mochi", 9, 7)):
        of, folder = rolled(name)[0], saved(name, tmp_path)
        chosen = of.settings.model_copy(update={"call": {**of.settings.call, "num_frames": given}})
        with pytest.raises(UsageError) as error:
            clip_form_of(chosen, folder)
        assert str(error.value).endswith(f"hold a clip of {given} frames; the nearest that it can is {near}")
        shutil.rmtree(folder)


def test_what_makes_no_clips_has_no_form(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert clip_form_of(PolicySettings(model="x"), tmp_path) is None
    (tmp_path / "model_index.json").write_text('{"_class_name": "SomeOtherPipeline"}')
    assert clip_form_of(PolicySettings(model="x"), tmp_path) is None


def test_frames_a_second_that_nobody_named_are_asked_for_before_weights_load(tmp_path: Path) -> None:
    folder = saved("wan", tmp_path)
    call = BOTH["wan"].call
    with pytest.raises(
        UsageError, match=r"does not say how many frames a second its videos have; set policy.frame_rate"
    ):
        clip_form_of(PolicySettings(model="wan", call=call), folder)
    assert clip_form_of(PolicySettings(model="wan", call=call, frame_rate=RATE), folder).rate == RATE
    for bad in (2.5, 0, "many"):
        with pytest.raises(UsageError, match=r"policy.call.num_frames is .*, which is no number of frames"):
            clip_form_of(PolicySettings(model="wan", call={**call, "num_frames": bad}, frame_rate=RATE), folder)
