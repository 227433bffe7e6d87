"""Bad clips give one sentence that says what is wrong and how to mend it; before weights load, where a file tells."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml

from genalign import build_reward
from genalign.cli.main import main
from genalign.cli.sample import sample
from genalign.cli.score import score
from genalign.media.film import write_video
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.clips import bouncing, gliding, knocks
from tests.helpers.tiny_videos import RATE
from tests.helpers.video_policies import BOTH


@functools.cache
def model(name: str, weights: bool = False) -> Path:
    """A pipeline of the sweep in a folder, without its weights: whoever refuses with this one has loaded none."""
    folder = Path(mkdtemp()) / name
    BOTH[name].build().save_pretrained(folder)
    for file in folder.glob("**/*.safetensors") if not weights else ():
        file.unlink()
    return folder


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Trains on rows, or says why not, in one sentence."""

    def run(*rows: dict[str, Any], name: str = "wan", weights: bool = False, **policy: Any) -> str:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        call = {**BOTH[name].call, **policy.pop("call", {})}
        recipe = {
            "policy": {"model": str(model(name, weights)), "frame_rate": RATE, **policy, "call": call},
            "data": {"prompts": "rows.jsonl", "prompts_per_step": 1},
            "method": {"name": "sft" if "video" in rows[0] else "flow-dpo"},
            "train": {"steps": 1},
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        capfd.readouterr()
        assert main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 2
        lines = capfd.readouterr().err.splitlines()
        sentences = [line.removeprefix("genalign: ") for line in lines if line.startswith("genalign: ")]
        assert len(sentences) == 1, lines
        assert not any("Traceback" in line for line in lines)
        return sentences[0]

    write_video(gliding(9), RATE, tmp_path / "a.mp4")
    write_video(bouncing(4, 9), RATE, tmp_path / "b.mp4")
    return run


A, PAIR = {"prompt": "a b", "video": "a.mp4"}, {"prompt": "a b", "chosen": "a.mp4", "rejected": "b.mp4"}


@pytest.mark.parametrize("row", [A, PAIR], ids=["sft", "pairs"])
def test_a_clip_shorter_than_the_model_draws(refused: Any, row: dict[str, str]) -> None:
    sentence = refused(row, call={"num_frames": 13})
    assert re.search(
        r"a\.mp4 \(line 1 of .*rows\.jsonl\) is too short: it gives 9 frames at 16 a second, where the model draws 13; "
        r"drop it, or lower policy\.call\.num_frames$",
        sentence,
    )


@pytest.mark.parametrize("row", [A, PAIR], ids=["sft", "pairs"])
def test_a_clip_of_fewer_frames_a_second(refused: Any, row: dict[str, str]) -> None:
    sentence = refused(row, frame_rate=24.0)
    assert re.search(
        r"a\.mp4 \(line 1 of .*rows\.jsonl\) has 16 frames a second, of which the model draws 24; "
        r"set policy\.frame_rate to 16, or give clips of 24 or more$",
        sentence,
    )


def test_a_model_that_does_not_say_its_frames_a_second(refused: Any) -> None:
    assert refused(A, frame_rate=None) == (
        "WanPipeline does not say how many frames a second its videos have; set policy.frame_rate"
    )


@pytest.mark.parametrize("count", [8, 11, 10])
def test_a_count_of_frames_that_the_autoencoder_cannot_hold(refused: Any, count: int) -> None:
    assert refused(A, call={"num_frames": count}) == (
        f"policy.call.num_frames is {count}, but the autoencoder of WanPipeline cannot hold a clip of {count} frames; "
        f"the nearest that it can is {13 if count == 11 else 9}"
    )


@pytest.mark.parametrize("where", ["front", "end", "webm"])
@pytest.mark.parametrize("row", [A, PAIR], ids=["sft", "pairs"])
def test_a_clip_that_is_cut_short(refused: Any, tmp_path: Path, row: dict[str, str], where: str) -> None:
    name = "a.webm" if where == "webm" else "a.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 48, 3), np.uint8)
    options = {"movflags": "faststart"} if where == "front" else {}
    with av.open(str(tmp_path / name), "w", options=options) as container:
        stream = container.add_stream("libvpx-vp9" if where == "webm" else "libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 48, 48, "yuv420p"
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    sentence = refused({key: name if value == "a.mp4" else value for key, value in row.items()})
    assert re.search(rf"{name} .*cut short.*(again|write it again), or drop it$", sentence)


def test_a_row_that_is_no_clip(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("not a clip")
    sentence = refused({"prompt": "a b", "video": "words.mp4"})
    assert "words.mp4 cannot be read as a video: Invalid data found when processing input; it may be cut" in sentence
    assert "names the clip 'none.mp4', which is not in" in refused({"prompt": "a b", "video": "none.mp4"})
    sentence = refused(A, {"prompt": "c d"})
    assert re.search(
        r"line 2 of .* brings no video to learn from, as other lines do; give it one, or drop the", sentence
    )


def test_no_list_of_clips(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip itself, a folder that is not found where it was looked for, and one without words."""
    (tmp_path / "own").mkdir()
    (tmp_path / "a.mp4").rename(tmp_path / "own" / "a.mp4")
    data = {"policy": {"model": str(model("wan"))}, "method": {"name": "sft"}, "data": {"prompts": "own"}}
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text(yaml.safe_dump({**data, "train": {"steps": 1}}))
    monkeypatch.chdir(tmp_path)
    for given, sentence in (
        ("own", r"own: No such file or directory; write it \./own$"),
        ("./own", r"put the prompt of each file into a \.txt of its name, or write one .* of a pairs\.jsonl$"),
        ("own/a.mp4", r"own/a\.mp4 is neither \.jsonl nor \.txt; name a prompts file that ends in one of them$"),
    ):
        with pytest.raises(UsageError, match=sentence):
            build(load_recipe("recipes/r.yaml", ["policy.frame_rate=16", f"data.prompts={given}"]))


def test_rows_without_clips(refused: Any, tmp_path: Path) -> None:
    sentence = refused({"prompt": "a b", "video": None})
    assert sentence.endswith(
        'names no videos to learn from; name a file in each row, as {"prompt": ..., "video": ...}, or add the key '
        "'reward'"
    )


def test_rows_without_a_clip_that_is_preferred(refused: Any, tmp_path: Path) -> None:
    sentence = refused({"prompt": "a b", "chosen": None, "rejected": "b.mp4"})
    assert re.search(r"has no path of a clip under 'chosen'", sentence)
    assert refused({"prompt": "a b", "chosen": "a.mp4"}).endswith(
        "add the key 'reward', or 'chosen' and 'rejected' to each row of data.prompts"
    )


def test_video_and_sound_at_once_cannot_be_encoded_from_files(refused: Any) -> None:
    assert refused(A, name="ltx-2", frame_rate=None).endswith(
        "makes video and audio at once, which cannot be encoded from files; train it on its own samples, with a reward"
    )


def test_a_model_without_a_recipe_can_be_told_what_it_does_not_say() -> None:
    source, call = str(model("wan", weights=True)), {**BOTH["wan"].call, "num_frames": 5}
    with pytest.raises(UsageError, match=r"set policy\.frame_rate$"):
        next(sample(source, "a b"))
    drawn = next(sample(source, "a b", overrides=["policy.frame_rate=12", f"policy.call={call}"], steps=2))
    assert (drawn.media["video"].rate, drawn.media["video"].data.shape) == (12.0, (1, 5, 3, 16, 16))
    with pytest.raises(UsageError, match=r"'train\.steps=1' would change a recipe, but .* only keys of policy can be"):
        sample(source, "a b", overrides=["train.steps=1"])
    with pytest.raises(UsageError, match=r"policy: there is no key 'frame_rat'; did you mean 'frame_rate'\?$"):
        sample(source, "a b", overrides=["policy.frame_rat=1"])


def test_sizes_that_the_model_cannot_draw(refused: Any) -> None:
    """The pipeline's own rule, in one sentence, before anything is trained."""
    sentence = refused(A, weights=True, call={"height": 17, "width": 16})
    assert re.search(r"WanPipeline does not run with .* 17 and 16", sentence)


def test_a_model_that_begins_with_a_picture_and_rows_without_one(refused: Any) -> None:
    sentence = refused(A, name="wan-i2v", weights=True)
    assert re.search(
        r"line 1 of .*: WanImageToVideoPipeline begins with an input image; name its file under 'image' in each row$",
        sentence,
    )


@pytest.mark.parametrize("shape", [(2, 3, 9, 16, 16), (2, 9, 16, 16, 3), (9, 3, 16, 16)])
def test_axes_in_another_order(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError) as error:
        Media(video=Track(torch.rand(shape), 8.0))
    assert str(error.value) == f"a row of video has shape {shape[1:]}, not (F,3,H,W); mind the order of its axes"
    with pytest.raises(UsageError, match="a row of video has shape"):
        Media(video=Track(list(torch.rand(shape)), 8.0))


def test_a_rule_of_moments_asks_for_rates() -> None:
    media = Media(video=Track(bouncing()[None]), audio=Track(knocks([0.5], 1.125)[None], 8000.0))
    with pytest.raises(UsageError, match=r"needs the rates of video and audio; give Track\(video, rate\)"):
        build_reward("synchrony", Path())([Prompt("x")], media)


def test_clips_without_sound_are_abstained_from(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By rewards of sound, and by these alone; a sentence names each. Where nothing has a score, that is an error."""
    heard = write_video(bouncing(), 8.0, tmp_path / "heard.mp4", (knocks([0.5], 1.125), 8000.0))
    mute = write_video(bouncing(), 8.0, tmp_path / "mute.mp4")
    (tmp_path / "both.yaml").write_text("sum:\n  - use: synchrony\n  - use: moving\n")
    assert main(["score", "synchrony", "--media", str(mute)]) == 1
    assert f"{mute}: synchrony abstained; it has no sound" in capfd.readouterr().out
    assert main(["score", "synchrony", "--media", str(mute), str(heard)]) == 0
    assert capfd.readouterr().out.count("abstained") == 1
    assert main(["score", str(tmp_path / "both.yaml"), "--media", str(mute), str(heard), "--json"]) == 0
    first, second = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    assert (first["synchrony"], first["moving"], first["total"], first["failed"]) == (None, 1.0, 1.0, [])
    assert second["synchrony"] > 0.9
    assert main(["score", "moving", "--media", str(mute), str(heard)]) == 0
    assert main(["score", "sharpness", "--media", str(mute)]) == 2  # which reads pictures
    assert "needs 'image', which the data does not offer" in capfd.readouterr().err


@pytest.mark.parametrize("reward", ["moving", "smooth-motion", "synchrony", "loudness", "tiny-video-reward"])
def test_files_of_several_rates_have_the_scores_that_each_has_alone(tmp_path: Path, reward: str) -> None:
    files = []
    for rate, sound, bounces in ((8.0, 8000.0, 3), (12.0, 16000.0, 4)):
        times = torch.arange(round(3 * sound)) / sound
        knock = (0.5 * torch.sin(500 * 6.2832 * times) * (times % 0.75 < 0.05))[None]
        files.append(write_video(torch.cat([bouncing()] * bounces), rate, tmp_path / f"{rate:g}.mp4", (knock, sound)))
    together = [row["total"] for row in score(reward, files, "a star moves right")]
    alone = [score(reward, [file], "a star moves right")[0]["total"] for file in files]
    assert together == pytest.approx(alone, abs=1e-5)
    assert None not in together
