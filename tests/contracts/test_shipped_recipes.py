"""Every shipped recipe trains two steps offline, from its own file, with its own rewards and prompts."""

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from genalign.cli.main import main
from genalign.data.prompts import read_prompts
from genalign.files.shipped import shipped
from genalign.media.film import write_video
from genalign.method import build_method
from genalign.method.search.base import Searching
from genalign.policy import clip_form_of
from genalign.run.recipe import Recipe, load_recipe
from genalign.types import UsageError
from tests.helpers.clips import bouncing, gliding
from tests.helpers.hub_models import PICTURES, PIPELINES, reward_stand_in, stand_in
from tests.helpers.tiny_sounds import SOUNDS
from tests.helpers.tiny_videos import RATE
from tests.helpers.untrained import MODELS

ALL = {path.stem: load_recipe(path.stem) for path in sorted(shipped("pipelines").glob("*.yaml"))}
RECIPES = [name for name in ALL if ALL[name].policy.model not in PICTURES]  # see test_recipes_of_bases.py
SMALL = ["train.steps=2", "data.prompts_per_step=2", "method.group=4", "policy.batch_size=4"]
LOOKED_AT = ["eval.count=2", "eval.batch_size=2"]

SEARCHES = [name for name in RECIPES if isinstance(build_method(ALL[name].method), Searching)]
TRAINED = [name for name in RECIPES if name not in SEARCHES]

# Another recipe trains the same model by the same method, and differs in its reward or in a number; what each of these
# names is built in run/test_recipe.py, and its reward scores in reward/test_build.py.
AGAIN = (
    *("image-dragon-frechet", "image-dragon-instance", "image-dragon-text", "image-vlm-judge"),
    *("music-dragon-aesthetics", "music-dragon-clap", "music-dragon-fad", "music-dragon-persong-fad"),
    *("music-dragon-text-exemplars", "music-dragon-vendi", "vlm-grpo-hybrid"),
)


def learnt(recipe: Recipe) -> tuple[str, str]:
    return recipe.policy.model, recipe.method.name


def looked_at(recipe: Recipe) -> tuple[Any, ...]:
    """The model and its evaluation, but for its size."""
    report, policy = recipe.eval, recipe.policy
    assert report is not None
    return policy.model, policy.writer, report.prompts, str(report.rewards), str(report.held_out)


def first_of_each(kind: Callable[[Recipe], Any], names: Iterable[str]) -> set[str]:
    found: dict[Any, str] = {}
    for name in names:
        found.setdefault(kind(ALL[name]), name)
    return set(found.values())


read_once = cache(read_prompts)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples are shown, and the thousands of prompts that many recipes share are read once."""
    monkeypatch.setattr("genalign.run.steps.GRID_PROMPTS", 2)
    monkeypatch.setattr("genalign.run.build.read_prompts", read_once)


REPORTED = first_of_each(looked_at, sorted(TRAINED, key=AGAIN.__contains__)) | set(AGAIN)


def test_what_is_left_to_the_slow_tests_is_trained_by_another_recipe() -> None:
    quick = {learnt(ALL[name]) for name in TRAINED if name not in AGAIN}
    assert {learnt(ALL[name]) for name in TRAINED} == quick


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in AGAIN else n for n in TRAINED])
def test_a_shipped_recipe_trains_two_steps(name: str, tmp_path: Path) -> None:
    """And is evaluated, where no other of the same model already is on the same prompts by the same rewards."""
    recipe = ALL[name]
    words = [*SMALL, *stand_in(recipe.policy, tmp_path / "model")]
    if PIPELINES.get(recipe.policy.model) in SOUNDS:  # of the hub, whose stand-ins draw a hundredth of a second
        words.append("reward={sum: [{use: silence}, {use: clipping}]}")
    elif recipe.policy.model in PIPELINES:  # of the hub, as the weights of its reward are
        words.append(f"reward={str(recipe.reward).replace('general', 'rules')}")
    elif not name.startswith(("text", "vlm")):
        words += reward_stand_in(recipe.reward, tmp_path / "reward")
    if "/" in recipe.policy.model:
        words.append("data.prompts_per_step=1")
        words += ["policy.sampler.steps=4"] if recipe.policy.sampler.kernel == "ode" else []
    if recipe.method.name == "parrot":
        words.append("method.group=2")  # for each of its tags
    if name in REPORTED:
        words += LOOKED_AT
        guidance = recipe.eval.guidance[-1] if recipe.eval and recipe.policy.model in PIPELINES else 1.0
        words += ["eval.steps=4", f"eval.guidance=[{guidance}]"] if not name.startswith(("text", "vlm")) else []
        words += ["train.monitor.count=2"] if recipe.train.monitor is not None else []
    else:
        words += ["eval=null", "train.monitor=null"]
    assert main(["train", name, *words, "--out", str(tmp_path / "out")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all("reward" in row for row in rows)
    if name in REPORTED:
        assert json.loads((tmp_path / "out" / "eval.json").read_text())["prompts"] == 2


def test_a_run_with_pictures_in_its_prompts_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Pictures, a rule, a judge in this process and a function in a worker: after a stop, as without one."""
    words = [*SMALL[1:], "eval=null", "train.checkpoint_every=1", "train.schedule=constant", "--out"]
    assert main(["train", "vlm-grpo-hybrid", "train.steps=3", *words, str(tmp_path / "whole")]) == 0
    assert main(["train", "vlm-grpo-hybrid", "train.steps=2", *words, str(tmp_path / "parts")]) == 0
    assert main(["train", "vlm-grpo-hybrid", "train.steps=3", *words[:-1], "--resume", str(tmp_path / "parts")]) == 0
    adapters = [(tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_shipped_search_is_measured_and_samples(name: str, tmp_path: Path) -> None:
    """Whatever it searches with: here the shipped model in few steps, and a reward fitted in two."""
    model = (
        stand_in(ALL[name].policy, tmp_path / "model")
        if name.startswith(("video", "music"))
        else ["policy.model=tiny-flow"]
    )
    small = [*model, "policy.sampler.steps=3", "policy.sampler.sigmas=null", "policy.batch_size=8"]
    if name.endswith("nrg"):
        fit = ["method.fit.prompts=2", "method.fit.per_prompt=2", "method.fit.steps=2"]
        assert main(["fit-reward", name, *small, *fit, "--out", str(tmp_path / "noisy")]) == 0
        small += [f"method.noisy={tmp_path / 'noisy'}"]
    else:
        small += ["method.budget=4", "method.group=1"]
    tiny = [*small, "eval.count=2", "eval.batch_size=2", "eval.steps=3", "eval.guidance=[1.0]"]
    assert main(["train", name, *tiny, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "eval.json").read_text())["prompts"] == 2
    assert (tmp_path / "out" / "report.html").is_file()
    report = ALL[name].eval
    assert report is not None
    (tmp_path / "p.jsonl").write_text(shipped("assets", report.prompts).read_text().splitlines()[0])
    words = ["--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "s")]
    assert main(["sample", name, *words, *small]) == 0
    (row,) = map(json.loads, (tmp_path / "s" / "samples.jsonl").read_text().splitlines())
    assert row["search"] == ALL[name].method.name
    assert (tmp_path / "s" / row["file"]).is_file()


OTHERS = ("tiny-video", *MODELS, "tiny-lm", "tiny-mdlm")
BUILT = [name for name in RECIPES if ALL[name].policy.model in OTHERS and name not in SEARCHES]
# Of each way of learning one: by gradients, by what was recorded, and by evidence bounds.
QUICK = ("video-draft", "video-flow-grpo", "text-grpo", "mdlm-grpo", "mdlm-dpo")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BUILT]
)
def test_a_recipe_on_a_shipped_model_goes_on_where_it_was_killed(name: str, tmp_path: Path) -> None:
    """1 + 1 steps are 2 steps, bit for bit: the adapter, and what was logged but for its times."""
    recipe = ALL[name]
    words = [*SMALL, *stand_in(recipe.policy, tmp_path / "model"), "eval=null", "train.monitor=null"]
    words += ["train.checkpoint_every=1", *reward_stand_in(recipe.reward, tmp_path / "reward")]
    assert main(["train", name, *words, "--out", str(tmp_path / "whole")]) == 0
    assert main(["train", name, *words, "train.steps=1", "--out", str(tmp_path / "parts")]) == 0
    assert main(["train", name, *words, "--resume", str(tmp_path / "parts")]) == 0
    runs = [tmp_path / run for run in ("whole", "parts")]
    adapters = [(run / "adapter" / "adapter_model.safetensors").read_bytes() for run in runs]
    assert adapters[0] == adapters[1]
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    assert [row["step"] for row in logs[0]] == [1, 2]
    for row in [row for log in logs for row in log]:
        for key in [key for key in row if "time" in key or key.startswith("perf/") or key.endswith("_rate")]:
            del row[key]  # rates of failing and abstaining are those of the last rows of this process
    assert logs[0] == logs[1]


# ---- models of the hub ----------------------------------------------------------------------------------------------

OWN = {  # recipe -> what its head says of clips of one's own: the keys of two rows
    "video-sft": ({"video": "a.mp4"}, {"video": "b.mp4"}),
    "video-flow-dpo": ({"chosen": "a.mp4", "rejected": "b.mp4"}, {"chosen": "b.mp4", "rejected": "a.mp4"}),
    "video-sft-wan-1.3b": ({"video": "a.mp4"}, {"video": "b.mp4"}),
    "video-flow-dpo-wan-2.2-5b": ({"chosen": "a.mp4", "rejected": "b.mp4"}, {"chosen": "b.mp4", "rejected": "a.mp4"}),
}


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_learns_from_own_clips_and_another_goes_on(name: str, tmp_path: Path) -> None:
    recipe = ALL[name]
    for file, clip in (("a.mp4", gliding), ("b.mp4", bouncing)):
        write_video(clip(), recipe.policy.frame_rate or RATE, tmp_path / file)
    rows = [{"prompt": f"it moves {k}", **row} for k, row in enumerate(OWN[name])]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = [*SMALL[:2], "policy.batch_size=2", "eval.count=1", "eval.batch_size=1", "eval.guidance=[1.0]"]
    small += stand_in(recipe.policy, tmp_path / "model")
    own = ["reward=null", f"data.prompts={tmp_path / 'own.jsonl'}", "eval.rewards=[video-rules.yaml]"]
    if recipe.policy.model == "tiny-video":
        own.append("method.times=[0, 1]")
    assert main(["train", name, *small, *own, "--out", str(tmp_path / "run")]) == 0
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("reward" not in log and log["loss"] > 0 for log in logs)
    assert "rules" in json.loads((tmp_path / "run" / "eval.json").read_text())["metrics"]
    if name == "video-sft-wan-1.3b":
        merged = [f"policy.merged={tmp_path / 'run' / 'adapter'}", "reward=video-rules.yaml", "method.group=2"]
        later = ["train", "video-nft-wan-1.3b", *small, *merged, "train.steps=1", "eval=null"]
        assert main([*later, "--out", str(tmp_path / "later")]) == 0


# The published autoencoders, by what differs from diffusers' own defaults; and what sides must be multiples of: the
# autoencoder's pixels a latent, times the denoiser's patch.
AUTOENCODERS = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("WanPipeline", "AutoencoderKLWan", {}, 16),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": ("WanPipeline", "AutoencoderKLWan", {}, 16),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": (
        "WanPipeline",
        "AutoencoderKLWan",
        {
            **{"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2},
            **{"in_channels": 12, "out_channels": 12, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},
        },
        32,
    ),
    "diffusers/LTX-2.3-Diffusers": ("LTX2Pipeline", "AutoencoderKLLTX2Video", {}, 32),
}


@pytest.mark.parametrize("name", [name for name in RECIPES if ALL[name].policy.model in AUTOENCODERS])
def test_real_autoencoders_hold_what_a_recipe_asks_for(name: str, tmp_path: Path) -> None:
    policy = ALL[name].policy
    pipeline, autoencoder, config, side = AUTOENCODERS[policy.model]
    (tmp_path / "vae").mkdir()
    index = {"_class_name": pipeline, "vae": ["diffusers", autoencoder]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    form = clip_form_of(policy, tmp_path)
    assert form is not None
    assert form.frames == policy.call["num_frames"]
    assert form.rate == (24.0 if "2.2-TI2V" in policy.model or "LTX" in policy.model else 16.0)
    assert policy.call["height"] % side == policy.call["width"] % side == 0
    one_more = policy.model_copy(update={"call": {**policy.call, "num_frames": policy.call["num_frames"] + 1}})
    with pytest.raises(UsageError, match=f"the nearest that it can is {policy.call['num_frames']}"):
        clip_form_of(one_more, tmp_path)
