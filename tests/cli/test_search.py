"""Searches, guidance and their recipes through the real command line, on a tiny random pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from genalign.cli.main import main
from genalign.cli.search import gain_over
from genalign.method import MethodSettings, build_method
from genalign.policy import load_policy
from genalign.policy.settings import PolicySettings, Sampler
from genalign.reward import Runner, Sharpness
from genalign.types import Prompt
from tests.helpers.tiny_recipe import image_model, write_recipe
from tests.helpers.toy_rewards import tiny_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, whose scheduler does not clip."""
    folder = tmp_path_factory.mktemp("model") / "tiny-unclipped"
    shutil.copytree(image_model(), folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "clip_sample": False}))
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def pixels(path: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).int()


@pytest.fixture
def policy(model: Path) -> Any:
    settings = PolicySettings(model=str(model), sampler=Sampler(kernel="ode", steps=3, guidance=1.0))
    return load_policy(settings, model, "cpu")


@pytest.mark.parametrize("name", ["best-of-n", "random", "reno", "fk"])
def test_each_search_betters_a_real_pipeline(policy: Any, name: str) -> None:
    prompts, seeds = [Prompt("a cat", uid=0), Prompt("two stars", uid=1)], [5, 6]
    reward = Runner(Sharpness())
    search: Any = build_method(MethodSettings(name=name, budget=16))
    with policy.weights("reference"):
        plain = reward(prompts, policy.generate(prompts, seeds, guidance=1.0)).total
        calls = policy.calls()
        found = search.find(policy, prompts, seeds, reward, guidance=1.0)
    assert (found.total >= plain - 1e-6).all()
    assert found.total.mean() > plain.mean()
    torch.testing.assert_close(reward(prompts, found.media).total, found.total, rtol=1e-4, atol=1e-5)
    assert found.spent.units <= 16 * 5 * 2 + 5
    assert policy.calls() - calls < found.spent.forward
    assert all(parameter.grad is None for parameter in policy.pipeline.unet.parameters())


def test_iterate_0_of_reno_is_plain_sampling_bit_for_bit(policy: Any) -> None:
    prompts, seeds = [Prompt("a cat"), Prompt("two stars", uid=1)], [5, 6]
    search: Any = build_method(MethodSettings(name="reno", budget=1))
    found = search.find(policy, prompts, seeds, Runner(Sharpness()), guidance=2.0)
    assert torch.equal(found.media["image"].data, policy.generate(prompts, seeds, guidance=2.0)["image"].data)


def test_reno_encodes_text_once(policy: Any, tmp_path: Path) -> None:
    """A prompt goes through the pipeline's text tower and the reward's one time each in 10 iterations."""
    from genalign.reward import ClipReward

    read = {"pipeline": 0, "reward": 0}
    clip = ClipReward(tiny_clip(tmp_path / "clip"))

    def count(module: torch.nn.Module, where: str) -> None:
        module.register_forward_pre_hook(lambda *_: read.__setitem__(where, read[where] + 1))

    policy.generate([Prompt("warm")], [0], guidance=1.0)  # a pipeline's first text also shows how texts stack
    count(policy.pipeline.text_encoder, "pipeline")
    count(clip._loaded[0].token_embedding, "reward")
    search: Any = build_method(MethodSettings(name="reno", budget=28))
    found = search.find(policy, [Prompt("a cat")], [0], Runner(clip), guidance=1.0)
    assert found.spent.backward == 9 * 5
    assert read == {"pipeline": 1, "reward": 1}


def test_searches_side_by_side_from_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    words = ["--n", "2", "--seed", "3", "--guidance", "1", "--steps", "2", "--budget", "7", "--out", str(out)]
    search = ["--search", "reno", "best-of-n", "random", "--reward", "sharpness=2"]
    assert main(["sample", str(model), "a cat", *search, *words]) == 0
    table = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert list(table) == ["plain", "reno", "best-of-n", "random"]
    costs = {name: float(line.split("│")[4]) for name, line in table.items()}
    assert costs == {"plain": 1.0, "reno": 7.0, "best-of-n": 7.0, "random": 7.0}
    rows = rows_of(out)
    assert [row["search"] for row in rows] == ["reno", "reno", "best-of-n", "best-of-n", "random", "random"]
    assert [row["file"] for row in rows[:2]] == ["reno-00000.png", "reno-00001.png"]
    assert rows[0]["seed"] == 3
    best = next(row for row in rows if row["search"] == "best-of-n")
    again = tmp_path / "again"
    plainly = ["--seed", str(best["seed"]), "--guidance", "1", "--steps", "2", "--out", str(again)]
    assert main(["sample", str(model), "a cat", *plainly]) == 0
    assert (pixels(again / "00000.png") - pixels(out / best["file"])).abs().max() <= 1


def test_the_held_out_judge_stands_beside_the_searches(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows the answers 0.25 and 0.75, whatever is drawn; without facts it is left out, and as the goal."""
    prompts = tmp_path / "asked.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "a cat", "facts": {"answer": a}}) + "\n" for a in (0.25, 0.75)))
    recipe = write_recipe(
        tmp_path,
        policy={"model": str(model)},
        reward={"use": "sharpness"},
        eval={"prompts": str(prompts), "guidance": [1.0], "held_out": "rules.py:knows"},
    )
    search = ["--search", "best-of-n", "--budget", "2", "--steps", "2", "--out"]
    assert main(["sample", str(recipe), "--prompts", str(prompts), *search, str(tmp_path / "facts")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    told = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert [row[4:] for row in told] == [["0.5000", ""], ["0.5000", "+0.0000 ±0.000"]]
    assert main(["sample", str(recipe), "a cat", *search, str(tmp_path / "plain")]) == 0
    assert "judge ┃" not in capsys.readouterr().out
    itself = ["--reward", str(tmp_path / "rules.py:knows")]
    assert main(["sample", str(recipe), "--prompts", str(prompts), *search, str(tmp_path / "goal"), *itself]) == 0
    assert "judge ┃" not in capsys.readouterr().out


def test_a_gain_is_over_prompts_that_can_be_read_before_and_after() -> None:
    nan = float("nan")
    plain, found = torch.tensor([1.0, 3.0, nan, 0.0]), torch.tensor([2.0, 5.0, 7.0, nan])
    assert gain_over(plain, plain, 2) == (pytest.approx(4 / 3), None, None)
    assert gain_over(plain, found, 1) == (pytest.approx(14 / 3), pytest.approx(14 / 3 - 4 / 3), None)
    mean, gain, half_width = gain_over(plain, found, 2)  # by prompts: 3.5 - 2, 7 - 0
    assert (mean, gain) == (pytest.approx(14 / 3), pytest.approx(4.25))
    assert half_width == pytest.approx((7 - 1.5) / 2)  # of two prompts the interval reaches from one to the other
    assert gain_over(torch.tensor([nan]), torch.tensor([1.0]), 1) == (1.0, None, None)
    assert gain_over(torch.tensor([1.0]), torch.tensor([nan]), 1) == (None, None, None)


def test_a_recipe_of_a_search_samples_and_is_measured(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(
        tmp_path,
        policy={"model": str(model)},
        reward={"use": "sharpness"},
        method={"name": "reno", "group": 1, "kl_beta": None},
        eval={"guidance": [1.0], "rewards": ["rules.py:bright"]},
    )
    plain = json.dumps({"name": "reno", "budget": 10})
    text = recipe.read_text()
    start = text.index("method:")
    recipe.write_text(text[:start] + f"method: {plain}\n" + text[text.index("policy:") :])
    assert main(["sample", str(recipe), "a cat", "method.budget=4", "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    assert [row["search"] for row in rows_of(tmp_path / "s")] == ["reno"]
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert result["metrics"]["sharpness"]["delta"] > 0
    assert "bright" in result["metrics"]
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "adapter").exists()
    capsys.readouterr()
    assert main(["train", str(recipe), "eval=null", "--out", str(tmp_path / "none")]) == 2
    assert "trains nothing, so its run is its evaluation" in capsys.readouterr().err
    assert main(["train", str(recipe), "--plan"]) == 2
    assert "reno trains nothing" in capsys.readouterr().err


def nrg_recipe(folder: Path, model: Path, **method: Any) -> Path:
    recipe = write_recipe(
        folder,
        policy={"model": str(model), "sampler": {"kernel": "ode", "steps": 2, "guidance": 1.0}},
        reward={"sum": [{"use": "sharpness"}, {"use": "rules.py:bright", "weight": 0.5}]},
        eval=None,
        train=None,
    )
    plain = {
        "name": "nrg",
        "noisy": str(folder / "noisy"),
        "fit": {
            "prompts": 4,
            "per_prompt": 3,
            "steps": 4,
            "prompts_per_batch": 2,
            "text": str(tiny_clip(folder / "clip")),
        },
        **method,
    }
    text = recipe.read_text().replace("train: null\n", "")
    start = text.index("method:")
    recipe.write_text(text[:start] + f"method: {json.dumps(plain)}\n" + text[text.index("policy:") :])
    return recipe


def test_a_reward_is_fitted_and_guides(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = nrg_recipe(tmp_path, model), tmp_path / "noisy"
    assert main(["sample", str(recipe), "a cat", "--out", str(tmp_path / "early")]) == 2
    assert "there is no fitted reward" in capsys.readouterr().err
    assert main(["fit-reward", str(recipe), "--out", str(out)]) == 0
    told = json.loads((out / "fit.json").read_text())
    assert told["samples"] == 12
    assert list(told["accuracy"]) == ["sharpness", "bright"]
    assert "sharpness" in capsys.readouterr().out
    before = load_file(out / "noisy.safetensors")
    drawn = (out / "bank.safetensors").stat().st_mtime_ns
    assert main(["fit-reward", str(recipe), "--out", str(out)]) == 0  # nothing is left to do
    assert_same(load_file(out / "noisy.safetensors"), before)
    assert (out / "bank.safetensors").stat().st_mtime_ns == drawn

    def sample(name: str, *words: str) -> torch.Tensor:
        common = ["--guidance", "1", "--steps", "3", "--seed", "4", "--out", str(tmp_path / name)]
        assert main(["sample", str(recipe), "a cat", *words, *common]) == 0
        return pixels(tmp_path / name / "00000.png")

    plain = sample("plain", "method.strength=0")
    words = ["--guidance", "1", "--steps", "3", "--seed", "4", "--out", str(tmp_path / "model")]
    assert main(["sample", str(model), "a cat", *words]) == 0
    assert torch.equal(pixels(tmp_path / "model" / "00000.png"), plain)
    sharp = sample("sharp", "method.strength=50", "method.weights={sharpness: 1}")
    bright = sample("bright", "method.strength=50", "method.weights={bright: 1}")
    assert not torch.equal(sharp, plain)
    assert not torch.equal(sharp, bright)


@pytest.mark.parametrize("name", ["image-nrg", "image-reno", "image-fk"])
def test_the_shipped_searches_take_one_prompt(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    few = [] if name == "image-nrg" else ["--budget", "4"]
    assert main(["sample", name, "two red apples on blue", "--out", str(out), *few]) == 0
    (row,) = rows_of(out)
    assert (out / row["file"]).is_file()
    assert (row["score"] is None) == (name == "image-nrg")  # a rule cannot read a prompt without facts
    assert ("scores none of these prompts, since some lack facts.objects" in caplog.text) == (name == "image-nrg")


def test_a_fit_that_was_killed_goes_on_where_it_was(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from genalign.cli import fit_reward as fitting

    recipe = nrg_recipe(tmp_path, model)
    assert main(["fit-reward", str(recipe), "--out", str(tmp_path / "whole")]) == 0
    real, asked = fitting.noisy_loss, []

    def dies(*args: Any) -> Any:
        asked.append(args)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(fitting, "noisy_loss", dies)
    assert main(["fit-reward", str(recipe), "--out", str(tmp_path / "killed")]) == 130
    monkeypatch.setattr(fitting, "noisy_loss", real)
    assert main(["fit-reward", str(recipe), "--out", str(tmp_path / "killed")]) == 0
    whole, killed = (load_file(tmp_path / name / "noisy.safetensors") for name in ("whole", "killed"))
    assert_same(killed, whole)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--search", "reno"], "name a reward with --reward"),
        (["--reward", "sharpness"], "belong to a search"),
        (["--budget", "3"], "belong to a search"),
        (["--search", "reno", "--reward", "sharpness", "--budget", "0"], "--budget is 0; it must be at least 1"),
        (["--search", "reno", "--reward", "sharpness=heavy"], "'heavy' is not a number"),
        (["--search", "reno", "--reward", "image-rule"], "needs 'facts.objects'"),
        (["--search", "climb", "--reward", "sharpness"], "invalid choice"),
        (["method.budget=3"], "would change a recipe"),
    ],
)
def test_wrong_searches(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["sample", str(model), "a cat", *words, "--out", str(tmp_path / "s")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("genalign: ")]) == 1
    assert sentence in lines[-1]


@pytest.mark.parametrize("name", ["reno", "alignprop"])
def test_a_reward_without_gradients_is_refused_before_any_weight_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    recipe = write_recipe(tmp_path, eval=None)
    (tmp_path / "empty").mkdir()
    shutil.copy(image_model() / "model_index.json", tmp_path / "empty")
    text = recipe.read_text()
    start, end = text.index("method:"), text.index("policy:")
    recipe.write_text(text[:start] + f"method: {{name: {name}}}\n" + text[end:])
    words = ["train", str(recipe), f"policy.model={tmp_path / 'empty'}", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"method {name} needs gradients of the reward, but reward bright is not differentiable" in error
    if name == "reno":
        facts = tmp_path / "p.jsonl"
        facts.write_text('{"prompt": "a", "facts": {"objects": []}}\n')
        rule = ["--prompts", str(facts), "--search", "reno", "--reward", "image-rule", "--out", str(tmp_path / "s")]
        assert main(["sample", str(tmp_path / "empty"), *rule]) == 2
        assert "needs gradients of the reward" in capsys.readouterr().err
