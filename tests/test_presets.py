"""Published rewards by name: the table, pickles refused and converted, calibration, licences, the doctor's rows."""

import importlib
import inspect
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from genalign.cli import doctor
from genalign.reward import PRESETS, Calibrated, Runner, Sharpness, build_reward
from genalign.reward.heads import published as presets
from genalign.reward.heads.weights import fit, from_hub, hub_file, read_weights, weights_file
from genalign.types import UsageError
from tests.tiny_heads import save_state, tiny_transformers_clip, write_json
from tests.toy_rewards import images, prompts


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


def test_pickles_are_refused_and_the_sentence_converts_them(tmp_path: Path) -> None:
    """Invariant 36."""
    weights = {"a.weight": torch.randn(2, 3), "b": torch.arange(4)}
    torch.save(
        {"state_dict": {**weights, "tied": weights["a.weight"]}, "epoch": 3}, tmp_path / "HPS_v2.1_compressed.pt"
    )
    with pytest.raises(UsageError, match=r"only HPS_v2.1_compressed.pt; genalign reads no pickled weights") as caught:
        weights_file(tmp_path, "HPS_v2.1_compressed.safetensors")
    code = str(caught.value).split('python -c "')[1].rstrip('"')
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    made = load_file(weights_file(tmp_path, "HPS_v2.1_compressed.safetensors"))
    assert set(made) == {"a.weight", "b", "tied"}
    assert torch.equal(made["a.weight"], weights["a.weight"])
    with pytest.raises(UsageError, match="is a pickle; genalign reads no pickled weights"):
        weights_file(tmp_path / "HPS_v2.1_compressed.pt", "x.safetensors")
    with pytest.raises(UsageError, match="is a pickle"):
        build_reward({"use": "hpsv2.1", "model": "HPS_v2.1_compressed.pt"}, tmp_path)


def test_models_of_transformers_are_read_from_safetensors_alone(tmp_path: Path) -> None:
    from transformers import CLIPModel

    folder = tiny_transformers_clip(tmp_path / "clip")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"cannot be loaded: .*genalign reads no pickled weights; convert it once"):
        from_hub(CLIPModel, folder)


def test_weights_fit_key_by_key(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    whole = {"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}
    fitted = fit(net, whole, "here")
    assert torch.equal(fitted.weight, torch.ones(2, 3))  # type: ignore[arg-type]
    assert not any(parameter.requires_grad for parameter in fitted.parameters())
    with pytest.raises(UsageError, match="here has no weight 'bias'; it is not a checkpoint of Linear"):
        fit(net, {"weight": torch.ones(2, 3)}, "here")
    with pytest.raises(UsageError, match=r"weight 'weight' of here has shape \(3, 2\), but Linear needs \(2, 3\)"):
        fit(net, {**whole, "weight": torch.ones(3, 2)}, "here")
    save_state({"weight": whole["weight"]}, tmp_path / "1.safetensors")
    save_state({"bias": whole["bias"]}, tmp_path / "2.safetensors")
    index = {"weight_map": {"weight": "1.safetensors", "bias": "2.safetensors"}}
    assert set(read_weights(write_json(index, tmp_path / "index.json"))) == {"weight", "bias"}
    (tmp_path / "torn.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(UsageError, match=r"torn\.safetensors cannot be read as safetensors"):
        read_weights(tmp_path / "torn.safetensors")


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
    assert [what for what, row in rows.items() if row.state == "ok"] == ["reward: clipscore"]
    assert rows["reward: clipscore"].detail == "MIT; about 1.7 GB; here"
    assert "hf download yuvalkirstain/PickScore_v1 model.safetensors" in rows["reward: pickscore"].detail
    assert "CC-BY-4.0" in rows["reward: audiobox"].detail
    for name, preset in PRESETS.items():
        for setting in preset.given:
            assert f"`{setting}: " in rows[f"reward: {name}"].detail
    present.clear()
    assert not [row for row in doctor._rewards() if row.state == "ok"]
