"""Published rewards by name: the table, calibration, licences, the doctor's rows."""

import importlib
import inspect
import logging
from pathlib import Path

import pytest
import torch

from genalign.cli import doctor
from genalign.reward import PRESETS, Calibrated, Runner, Sharpness, build_reward
from genalign.reward.heads import published as presets
from genalign.reward.heads.weights import hub_file
from genalign.types import UsageError
from tests.helpers.tiny_heads import tiny_transformers_clip
from tests.helpers.toy_rewards import images, prompts


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_its_class(name: str) -> None:
    preset = PRESETS[name]
    module, _, attribute = preset.address.partition(":")
    kind = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(kind).parameters
    assert set(preset.settings) <= set(parameters)
    needed = {p.name for p in parameters.values() if p.default is p.empty}
    assert needed <= {*preset.settings, *preset.given}
    assert needed.isdisjoint(preset.settings) or needed - set(preset.given) <= set(preset.settings)
    assert preset.licence
    assert preset.gigabytes > 0
    assert preset.files or preset.pickled
    assert preset.settings["name"] == name
    if preset.published:
        assert all(len(column) == len(kind.aspects) for column in preset.published.values())


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.given])
def test_what_must_be_given_is_asked_for_with_the_way_to_get_it(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_reward({"use": name}, Path())
    told = str(caught.value)
    assert f"reward {name!r} needs the setting {PRESETS[name].given[0]!r}" in told
    assert presets.how_to_get(name) in told
    assert "\n" not in told


def test_names_are_suggested_and_settings_checked() -> None:
    with pytest.raises(UsageError, match="no reward 'pickscor'; did you mean 'pickscore'"):
        build_reward("pickscor", Path())
    with pytest.raises(UsageError, match="'pickscore' has no setting 'scal'; did you mean 'scale'"):
        build_reward({"use": "pickscore", "scal": 2}, Path())


def test_absent_weights_are_told_before_anything_loads(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"HPSv3.safetensors of MizzenAI/HPSv3 is not on this machine.*hf download"):
        hub_file("MizzenAI/HPSv3", "HPSv3.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has no HPS_v2.1_compressed.safetensors; put the published weights there"):
        build_reward({"use": "hpsv2.1", "model": "empty"}, tmp_path)
    with pytest.raises(UsageError, match="no model folder 'nowhere'"):
        build_reward({"use": "hpsv2.1", "model": "nowhere"}, tmp_path)


def test_calibration_is_explicit_and_raw_scores_stay(tmp_path: Path) -> None:
    folder = str(tiny_transformers_clip(tmp_path / "clip"))
    asked, given = prompts(3), images(3)
    raw = build_reward({"use": "clipscore", "model": folder}, Path())
    unit = build_reward({"use": "clipscore", "model": folder, "calibrate": {"mean": 25, "std": 4}}, Path())
    scores, told = raw(asked, given), Runner(unit)(asked, given)
    assert torch.allclose(told.total, (scores.total - 25) / 4, atol=1e-5)
    assert torch.allclose(torch.tensor(told.info["raw"]), scores.values, atol=1e-5)
    assert unit.version != raw.version
    assert (unit.name, unit.aspects, unit.needs) == (raw.name, raw.aspects, raw.needs)
    with pytest.raises(UsageError, match="no calibration of reward 'clipscore' is published"):
        build_reward({"use": "clipscore", "model": folder, "calibrate": "published"}, Path())
    with pytest.raises(UsageError, match=r"write \{mean: M, std: S\} or published"):
        build_reward({"use": "clipscore", "model": folder, "calibrate": 26}, Path())
    with pytest.raises(UsageError, match="must be above 0"):
        Calibrated(Sharpness(), 0.0, 0.0)
    with pytest.raises(UsageError, match="must be numbers, one or 1"):
        Calibrated(Sharpness(), [0.0, 1.0], 1.0)


def test_a_licence_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 37."""
    monkeypatch.setattr(presets, "_warned", set())
    folder = str(tiny_transformers_clip(tmp_path / "clip"))
    with caplog.at_level(logging.WARNING, "genalign"):
        for _ in range(2):
            build_reward({"use": "clipscore", "model": folder}, Path())
    assert caplog.messages == ["reward clipscore: weights under MIT"]


def test_the_doctor_says_what_is_here_and_how_to_get_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present = {
        ("openai/clip-vit-large-patch14", file) for file in PRESETS["clipscore"].files["openai/clip-vit-large-patch14"]
    }

    def cached(repo: str, file: str) -> str | None:
        return "/a/file" if (repo, file) in present else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    rows = {row.what: row for row in doctor._rewards()}
    assert set(rows) == {f"reward: {name}" for name in PRESETS}
    assert [what for what, row in rows.items() if row.state == "ok"] == [
        "reward: clipscore",
        "reward: clip-iqa",
    ]  # one model
    assert rows["reward: clipscore"].detail == "MIT; about 1.7 GB; here"
    assert "hf download yuvalkirstain/PickScore_v1 model.safetensors" in rows["reward: pickscore"].detail
    assert "CC-BY-4.0" in rows["reward: audiobox"].detail
    for name, preset in PRESETS.items():
        for setting in preset.given:
            assert f"`{setting}: " in rows[f"reward: {name}"].detail
    present.clear()
    assert not [row for row in doctor._rewards() if row.state == "ok"]
