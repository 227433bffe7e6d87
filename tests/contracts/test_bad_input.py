"""Bad input through the real command line: one sentence with culprit and cure, the exit code, nothing lost."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from genalign.cli.main import main
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import PolicySettings
from tests.helpers.diffusion import Remembering
from tests.helpers.tiny_pipelines import stable_diffusion_3
from tests.helpers.tiny_recipe import image_model, write_recipe

QUICK: dict[str, Any] = {"steps": 1, "checkpoint_every": 1, "sample_every": 99}


@dataclass
class Refusal:
    code: int
    sentence: str
    stderr: str


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Any:
    image_model()

    def run(*words: str | Path) -> Refusal:
        capfd.readouterr()
        code = main([str(word) for word in words])
        lines = capfd.readouterr().err.splitlines()
        sentences = [line for line in lines if line.startswith("genalign: ")]
        assert len(sentences) == 1, lines
        return Refusal(code, sentences[0], "\n".join(lines))

    return run


def weightless(folder: Path) -> str:
    """A model folder without any weights: whoever refuses with this one has loaded none."""
    (folder / "empty-model").mkdir(parents=True, exist_ok=True)
    shutil.copy(image_model() / "model_index.json", folder / "empty-model")
    return str(folder / "empty-model")


def recipe_without_weights(folder: Path, **sections: Any) -> Path:
    return write_recipe(folder, policy={"model": weightless(folder)}, train=QUICK, eval=None, **sections)


def expect(refusal: Refusal, code: int, *parts: str) -> None:
    assert refusal.code == code, refusal.sentence
    for part in parts:
        assert part in refusal.sentence
    assert "Traceback" not in refusal.stderr
    assert 'File "' not in refusal.stderr


# ---- usage: refused before any weight loads -------------------------------------------------------------------------


def test_unknown_recipe_key(refused: Any, tmp_path: Path) -> None:
    path = recipe_without_weights(tmp_path)
    expect(refused("train", path, "train.stepz=2"), 2, "'train.stepz'", "did you mean 'steps'?")


def test_a_reward_whose_needs_the_data_lacks(refused: Any, tmp_path: Path) -> None:
    """Invariant 19."""
    path = recipe_without_weights(tmp_path, reward="rules.py:knows")
    expect(refused("train", path), 2, "'knows'", "'facts.answer'", "does not offer")


def test_a_reward_for_another_modality(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "text.py").write_text(
        "from genalign.reward import reward\n\n@reward\ndef long(text):\n    return [float(len(t)) for t in text]\n"
    )
    path = recipe_without_weights(tmp_path, reward="text.py:long")
    expect(refused("train", path), 2, "'long'", "'text'")


def test_method_and_reward_that_do_not_fit(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backpropagation:
        name, needs = "backpropagation", frozenset({"reward_grad"})

    monkeypatch.setattr("genalign.run.build.build_method", lambda settings, folder: Backpropagation())
    path = recipe_without_weights(tmp_path)
    expect(refused("train", path), 2, "backpropagation", "bright", "is not differentiable", "take a differentiable")


def test_a_method_without_the_reward_it_needs(refused: Any, tmp_path: Path) -> None:
    path = recipe_without_weights(tmp_path, reward=None)
    expect(refused("train", path), 2, "flow-grpo", "needs a reward", "add the key 'reward'")


# ---- what the methods on images refuse ------------------------------------------------------------------------------


def pictures(folder: Path, **row: str) -> dict[str, Any]:
    """Sections of a recipe that learns from given pictures: a.png and b.png, which are equal, and c.png."""
    for name, grey in (("a", 90), ("b", 90), ("c", 200)):
        Image.new("RGB", (16, 16), (grey, grey, grey)).save(folder / f"{name}.png")
    rows = [{"prompt": "one star", "chosen": "a.png", "rejected": "c.png"}, {"prompt": "two stars", **row}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return {"data": {"prompts": "rows.jsonl"}, "reward": None, "method": {"name": "flow-dpo"}}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"chosen": "z.png", "rejected": "a.png"}, ("line 2 of", "names the picture 'z.png', which is not in")),
        ({"chosen": "a.png", "rejected": "b.png"}, ("line 2 of", "prefers a picture to an equal one", "drop the line")),
        ({"chosen": "a.png", "rejected": "a.png"}, ("line 2 of", "prefers a picture to an equal one", "drop the line")),
    ],
)
def test_pairs_of_pictures_that_are_none(refused: Any, tmp_path: Path, row: Any, parts: Any) -> None:
    path = recipe_without_weights(tmp_path, **pictures(tmp_path, **row))
    expect(refused("train", path), 2, *parts)


@pytest.mark.parametrize("name", ["alignprop", "draft", "draft-lv", "refl", "reno"])
def test_a_reward_without_gradients_given_to_who_needs_them(refused: Any, tmp_path: Path, name: str) -> None:
    path = recipe_without_weights(tmp_path, method={"name": name})
    expect(refused("train", path), 2, f"method {name} needs gradients", "reward bright is not differentiable", "take a")


@pytest.mark.parametrize("name", ["flow-grpo", "ddpo", "d3po", "dpok"])
@pytest.mark.parametrize(
    ("sampler", "cure"),
    [("steps=1", "steps is 1, and a last step adds none; take more"), ("kernel=ode", "kernel is ode; take flow-sde")],
)
def test_a_sampler_without_noise_given_to_who_learns_from_it(
    refused: Any, tmp_path: Path, name: str, sampler: str, cure: str
) -> None:
    path = recipe_without_weights(tmp_path, method={"name": name, "group": 4})
    refusal = refused("train", path, f"policy.sampler.{sampler}")
    expect(refusal, 2, f"method {name} learns from the noise that sampling steps add", cure, "such as nft or draft")


class Haphazard(Remembering):
    """A family that nobody knows, and whose guidance no replay can reproduce."""

    noisy = True


@pytest.mark.parametrize(
    ("family", "sampler", "code", "parts"),
    [
        (Haphazard, {"steps": 4}, 1, ("Haphazard cannot be replayed exactly", "report it with the pipeline's name")),
        (
            StableDiffusion3Pipeline,  # this much noise overdraws both steps, so they follow the ODE
            {"steps": 2, "noise": 40.0},
            2,
            ("method flow-grpo learns from the noise", "none of this sampler's steps adds any", "raise policy.sampler"),
        ),
    ],
)
def test_what_only_a_rollout_can_show(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Any, sampler: Any, code: int, parts: Any
) -> None:
    def load(settings: PolicySettings, folder: Path, device: str, *_: Any) -> DiffusionPolicy:
        components = stable_diffusion_3().components
        return DiffusionPolicy(family(**components), settings)

    monkeypatch.setattr("genalign.run.build.load_policy", load)
    sampler = {"kernel": "flow-sde", "guidance": 3.0, **sampler}
    path = write_recipe(tmp_path, policy={"sampler": sampler}, train=QUICK, eval=None)
    expect(refused("train", path, "--out", tmp_path / "out"), code, *parts)


def test_missing_prompts_file(refused: Any, tmp_path: Path) -> None:
    path = recipe_without_weights(tmp_path, data={"prompts": "nowhere.jsonl"})
    expect(refused("train", path), 2, "nowhere.jsonl", "No such file", "data.prompts")


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_empty_prompts_file(refused: Any, tmp_path: Path, content: str) -> None:
    path = recipe_without_weights(tmp_path)
    (tmp_path / "prompts.txt").write_text(content)
    expect(refused("train", path), 2, "prompts.txt is empty", "write one prompt a line")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "two stars"', "line 2 of"),
        ('{"text": "two stars"}', "no text under 'prompt'"),
        ('{"prompt": "x", "facts": 3}', "'facts'"),
        ('"two stars"', "line 2 of"),
    ],
)
def test_garbled_prompts_file(refused: Any, tmp_path: Path, line: str, words: str) -> None:
    path = recipe_without_weights(tmp_path, data={"prompts": "rows.jsonl"})
    (tmp_path / "rows.jsonl").write_text('{"prompt": "one star"}\n' + line + "\n")
    expect(refused("train", path), 2, words, "line 2", "JSON object such as")


def test_prompts_that_are_not_text(refused: Any, tmp_path: Path) -> None:
    path = recipe_without_weights(tmp_path)
    (tmp_path / "prompts.txt").write_bytes(b"\xff\xfe\x00")
    expect(refused("train", path), 2, "prompts.txt is not UTF-8")


def test_missing_eval_prompts_stop_the_run_at_its_start(refused: Any, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, policy={"model": weightless(tmp_path)}, eval={"prompts": "gone.txt"})
    expect(refused("train", path), 2, "gone.txt")


def test_read_only_output_folder(refused: Any, tmp_path: Path) -> None:
    path = recipe_without_weights(tmp_path)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    out = Path("/proc/genalign") if os.geteuid() == 0 else locked / "run"  # root may write where the mode forbids it
    expect(refused("train", path, "--out", out), 2, f"cannot write the run folder {out}", "choose another with --out")


def test_a_folder_that_holds_a_run_is_not_written_over(refused: Any, tmp_path: Path) -> None:
    path, out = recipe_without_weights(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 1}\n')
    expect(refused("train", path, "--out", out), 2, "already holds a run", "--resume")
    assert (out / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_unknown_model_recipe_and_run(refused: Any, tmp_path: Path) -> None:
    path = recipe_without_weights(tmp_path)
    expect(refused("train", path, "policy.model=tiny-flo"), 2, "no model folder 'tiny-flo'")
    expect(refused("train", "image-d3p"), 2, "'image-d3p'", "did you mean 'image-d3po'?")
    expect(refused("train", path, "--resume", tmp_path / "none"), 2, "is not a run folder")
    expect(refused("eval", tmp_path / "empty-model"), 2, "is not a run folder")
    expect(refused("train", path, f"policy.model={tmp_path}"), 2, "is not a model", "model_index.json")


@pytest.mark.parametrize(
    "words",
    [[], ["trian"], ["train"], ["train", "x", "--plann"], ["sample", "m", "p"], ["ls", "everything"], ["ls", "a", "b"]],
)
def test_wrong_command_lines(refused: Any, words: Sequence[str]) -> None:
    expect(refused(*words), 2, "--help")


@pytest.mark.parametrize(("tracker", "words"), [("nonsense", "nonsense"), ("tensorboard", "is not installed")])
def test_a_tracker_that_is_not_there(
    refused: Any, tmp_path: Path, tracker: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.tracking.is_tensorboard_available", lambda: False)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    path = write_recipe(tmp_path, train=QUICK, eval=None)
    refusal = refused("train", path, f"train.report_to=[{tracker}]", "--out", tmp_path / "out")
    expect(refusal, 2, words, "report_to")


# ---- run errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nan", "not finite"),
        ("short", "returned 3 scores for 4 rows"),
        ("raises", "the lamp is broken"),
        ("hangs", "no answer within 3 s"),
    ],
)
def test_a_reward_that_fails(refused: Any, tmp_path: Path, function: str, words: str) -> None:
    reward = {"use": f"rules.py:{function}", "timeout": 3}
    path = write_recipe(tmp_path, train=QUICK, eval=None, reward=reward)
    expect(refused("train", path, "--out", tmp_path / "out"), 1, f"{function}", words)
    assert (tmp_path / "out" / "recipe.yaml").is_file()


def test_corrupt_model_weights(refused: Any, tmp_path: Path) -> None:
    shutil.copytree(image_model(), tmp_path / "model")
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    path = write_recipe(tmp_path, policy={"model": str(tmp_path / "model")}, train=QUICK, eval=None)
    refusal = refused("train", path, "--out", tmp_path / "out")
    expect(refusal, refusal.code, str(tmp_path / "model"))
    assert refusal.code in (1, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step. Tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_recipe(folder, train=QUICK, eval=None)
    assert main(["train", str(path), "--out", str(folder / "out")]) == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resuming_with_a_changed_recipe(refused: Any, run: Path) -> None:
    before = snapshot(run / "out")
    for override in ("train.learning_rate=0.5", "policy.lora.rank=3", "method.group=2"):
        words = ("train", run / "recipe.yaml", override, "--resume", run / "out")
        expect(refused(*words), 2, "the recipe changed at", override.partition("=")[0], "start a new run")
    assert snapshot(run / "out") == before


def test_resuming_with_a_changed_reward_or_prompts(refused: Any, run: Path) -> None:
    before = snapshot(run / "out")
    for name, what in (("rules.py", "reward"), ("prompts.txt", "data.prompts")):
        content = (run / name).read_text()
        (run / name).write_text(content + "\n# another line\n")
        refusal = refused("train", run / "recipe.yaml", "train.steps=2", "--resume", run / "out")
        (run / name).write_text(content)
        expect(refusal, 2, f"{what} changed since", "checkpoint-1")
    after = snapshot(run / "out")
    assert {name for name in before if after[name] != before[name]} <= {"recipe.yaml"}


def test_corrupt_adapter(refused: Any, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "out", tmp_path / "out")
    file = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    expect(refused("sample", tmp_path / "out", "a cat", "--out", tmp_path / "s"), 1, str(file), "corrupt")


def test_a_run_without_checkpoint_parts(refused: Any, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "adapter")
    expect(refused("sample", tmp_path / "out", "a cat", "--out", tmp_path / "s"), 1, "has no adapter yet", "--resume")


# ---- the unexpected -------------------------------------------------------------------------------------------------


def test_anything_unexpected_is_one_sentence_and_debug_shows_where(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr("genalign.run.launch.load_recipe", explode)
    assert main(["train", "image-d3po"]) == 1
    assert capfd.readouterr().err == "genalign: ZeroDivisionError: a; run again with --debug for the traceback\n"
    assert main(["train", "image-d3po", "--debug"]) == 1
    assert "in explode" in capfd.readouterr().err


def test_ctrl_c(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("genalign.run.launch.load_recipe", interrupt)
    assert main(["train", "image-d3po"]) == 130
    assert "Traceback" not in capfd.readouterr().err
