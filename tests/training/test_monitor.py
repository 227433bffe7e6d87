"""The hacking monitor: the proxy point by hand, a toy run that overshoots, and a run from the command line."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from genalign.cli.main import main
from genalign.files.settings import changed_key
from genalign.method import MethodSettings, build_method
from genalign.ranks import leave
from genalign.run.build import build
from genalign.run.recipe import MAY_CHANGE, load_recipe
from genalign.training.checkpoint import load_checkpoint
from genalign.training.loop import train
from genalign.training.monitor import ALARM, Monitor, MonitorSettings, proxy_point, symptoms
from genalign.training.progress import restore, start
from genalign.training.settings import TrainSettings
from genalign.training.stopping import watched
from genalign.types import Media, Prompt, Scores, Track, UsageError
from tests.helpers.averaged import Averaged
from tests.helpers.forked import run_ranks
from tests.helpers.tiny_recipe import write_recipe
from tests.helpers.toy_policy import ToyReward, make_scores

PROMPTS = [Prompt(f"prompt {i}", uid=i) for i in range(3)]
SETTINGS = TrainSettings(
    steps=60, learning_rate=0.1, checkpoint_every=2, keep_checkpoints=30, ema=0.5, max_grad_norm=100.0
)

SHORT = SETTINGS.model_copy(update={"steps": 24})


@pytest.mark.parametrize(
    ("looks", "patience", "point"),
    [
        ([(1, 1), (2, 2), (3, 1), (4, 0)], 2, 2),
        ([(1, 1), (2, 2), (3, 1), (4, 0)], 3, None),  # not for long enough
        ([(1, 1), (2, 2), (3, 3), (4, 4)], 2, None),  # both rise
        ([(4, 1), (3, 2), (2, 1), (1, 0)], 2, None),  # both fall: nothing is hacked
        ([(1, 5), (2, 4), (3, 6), (4, 5), (5, 5)], 2, 3),
        ([(1, 5), (2, 4), (1, 4), (3, 4)], 2, None),  # the proxy was no better in between
        ([(1, 2), (2, 1)], 2, None),
        ([], 1, None),
    ],
)
def test_the_proxy_point_by_hand(looks, patience: int, point):
    steps = [(step, float(proxy), float(held)) for step, (proxy, held) in enumerate(looks, 1)]
    assert proxy_point(steps, patience) == point


class Near(ToyReward):
    """Highest for a middling brightness: what really counts, where the training reward only wants more."""

    name = "near"
    aspects = ("near",)

    def __call__(self, prompts, media, group=None):
        torch.rand(3)  # a reward may draw
        return make_scores(-(super().__call__(prompts, media, group).values - 0.8).abs())


def monitor(**keys) -> Monitor:
    settings = MonitorSettings(**{"every": 2, "per_prompt": 2, "patience": 3} | keys)
    return Monitor(settings, PROMPTS, ToyReward(), [Near()], "ema")


def steps_of(folder: Path, watcher: Monitor | None, settings: TrainSettings = SETTINGS, saved: Path | None = None):
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    progress = start(Averaged(), ToyReward(), settings)
    if saved is not None:
        restore(progress, load_checkpoint(saved))
    learner = build_method(MethodSettings(name="flow-grpo", group=8))
    logs = train(progress, learner, lambda step: PROMPTS, folder)
    return progress, list(watched(progress, logs, folder, watcher))


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_overshooting_run_is_noticed_and_not_changed(tmp_path: Path, capsys):
    """Invariant 35."""
    plain, _ = steps_of(tmp_path / "plain", None)
    seen, logs = steps_of(tmp_path / "seen", monitor())
    assert torch.equal(plain.policy.delta, seen.policy.delta)
    assert torch.equal(plain.policy.average, seen.policy.average)
    said = capsys.readouterr().err
    assert said.count("the reward is being hacked") == 1  # once, not at every look
    looks = [log for log in logs if "monitor/near" in log]
    assert [int(log["step"]) for log in looks] == list(range(2, 61, 2))
    assert rows(tmp_path / "seen") == logs  # what was yielded is what is written
    proxy, held = ([log[f"monitor/{name}"] for log in looks] for name in (ToyReward().name, "near"))
    best = held.index(max(held))
    assert 0 < best < len(held) - 3
    assert proxy[-1] > proxy[best]
    first = next(k for k, log in enumerate(looks) if ALARM in log)
    assert first >= best + 3
    assert f"since step {2 * (best + 1)}" in said
    assert {"monitor/diversity", "monitor/saturation", "monitor/jpeg_kib"} <= set(looks[0])


def test_it_may_stop_with_the_checkpoint_before_the_proxy_point(tmp_path: Path):
    _, whole = steps_of(tmp_path / "whole", monitor())
    progress, logs = steps_of(tmp_path / "run", monitor(stop=True))
    last = int(logs[-1]["step"])
    assert ALARM in logs[-1]
    assert last == next(int(log["step"]) for log in whole if ALARM in log)
    held = [log["monitor/near"] for log in logs if "monitor/near" in log]
    assert progress.step == 2 * (1 + held.index(max(held)))
    saved = load_checkpoint(tmp_path / "run" / f"checkpoint-{progress.step}")
    assert torch.equal(progress.policy.delta, saved.parts["adapter"]["delta"])
    again, more = steps_of(tmp_path / "run", monitor(stop=True), saved=tmp_path / "run" / f"checkpoint-{last}")
    assert more == []  # a run that had stopped is not trained on
    assert again.step == progress.step


@pytest.mark.parametrize(
    ("held", "patience", "ends"),
    [
        ([1, 2, 3], 2, None),
        ([1, 3, 2, 2], 2, 4),
        ([1, 3, 3, 3], 2, 4),  # as good is no better
        ([3, 1], 2, None),
        ([1, 3, 2, 2], 3, None),
    ],
)
def test_the_peak_by_hand(held, patience: int, ends):
    watcher = monitor(stop="peak", patience=patience)
    looks = [{"step": 2 * (k + 1), "monitor/near": float(value)} for k, value in enumerate(held)]
    assert watcher.end([{"step": 1}, *looks]) == ends
    assert watcher.peak([{"step": 1}]) is None


@pytest.mark.parametrize("steps", [24, 12])
def test_a_run_may_end_with_its_best_look(tmp_path: Path, steps: int):
    """At 24 steps it is stopped; at 12 it comes to its end when it is past the peak, not yet for long enough."""
    settings = SETTINGS.model_copy(update={"steps": steps})
    _, whole = steps_of(tmp_path / "whole", monitor(), settings)
    held = [log["monitor/near"] for log in whole if "monitor/near" in log]
    best = held.index(max(held))
    progress, logs = steps_of(tmp_path / "run", monitor(stop="peak", patience=4), settings)
    assert 0 < best < len(held) - 1
    assert progress.step == 2 * (best + 1)
    assert int(logs[-1]["step"]) == min(steps, 2 * (best + 1 + 4))
    saved = load_checkpoint(tmp_path / "run" / f"checkpoint-{progress.step}")
    with progress.policy.weights("ema"):
        assert torch.equal(progress.policy.delta, saved.parts["ema"]["delta"])
    newest = tmp_path / "run" / f"checkpoint-{int(logs[-1]['step'])}"
    again, more = steps_of(tmp_path / "run", monitor(stop="peak", patience=4), settings, saved=newest)
    assert more == []
    assert again.step == progress.step


@pytest.mark.parametrize(
    ("keys", "cure"),
    [
        ({"checkpoint_every": 4}, "set train.checkpoint_every=6"),
        ({"checkpoint_every": 3, "keep_checkpoints": 6}, "set train.keep_checkpoints=7"),
    ],
)
def test_a_best_look_whose_checkpoint_would_be_gone_is_refused(tmp_path: Path, keys, cure: str):
    train = {"monitor": {"every": 6, "patience": 3, "stop": "peak"}, **keys}
    with pytest.raises(UsageError, match=re.escape(cure)):
        load_recipe(write_recipe(tmp_path, train=train))
    TrainSettings(monitor=MonitorSettings(every=6, patience=3, stop="peak"), checkpoint_every=3, keep_checkpoints=7)


class Kinds(ToyReward):
    """Two aspects, the second of which says nothing about the first prompt."""

    name = "kinds"
    aspects = ("kinds", "second")

    def __call__(self, prompts, media, group=None):
        values = super().__call__(prompts, media, group).values
        valid = torch.tensor([[True, prompt.uid != 0] for prompt in prompts])
        both = torch.cat([values, 3 * values], dim=1) * valid
        none = torch.zeros_like(valid)
        return Scores(self.aspects, both, valid, none, both[:, 0], valid[:, 0], torch.tensor([1.0, 0.0]))


def test_aspects_of_held_out_rewards_are_followed_where_they_are_valid():
    policy, settings = Averaged(), MonitorSettings(per_prompt=1)
    alone = [Monitor(settings, [prompt], None, [ToyReward()]).look(policy) for prompt in PROMPTS]
    each = [look[f"monitor/{ToyReward().name}"] for look in alone]
    seen = Monitor(settings, PROMPTS, None, [Kinds()]).look(policy)
    assert seen["monitor/kinds"] == pytest.approx(sum(each) / 3)
    assert seen["monitor/kinds/second"] == pytest.approx(3 * (each[1] + each[2]) / 2)
    assert "monitor/kinds/kinds" not in seen
    assert "monitor/kinds/second" not in Monitor(settings, PROMPTS, Kinds(), [ToyReward()]).look(policy)


def test_a_resumed_run_looks_and_stops_as_an_unbroken_one(tmp_path: Path):
    short = SETTINGS.model_copy(update={"steps": 8})
    steps_of(tmp_path / "run", monitor(stop=True), short)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    torn = {name: value for name, value in json.loads(lines[-1]).items() if not name.startswith("monitor/")}
    (tmp_path / "run/metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(torn), '{"step": 9, "re']))
    first, _ = steps_of(tmp_path / "run", monitor(stop=True), saved=tmp_path / "run/checkpoint-8")
    second, _ = steps_of(tmp_path / "unbroken", monitor(stop=True))
    assert first.step == second.step
    timed = ("time", "perf", "step_time")
    for mine, theirs in zip(rows(tmp_path / "run"), rows(tmp_path / "unbroken"), strict=True):
        assert {k: v for k, v in mine.items() if not k.startswith(timed)} == {
            k: v for k, v in theirs.items() if not k.startswith(timed)
        }


def test_a_run_killed_before_its_last_look_takes_it_when_resumed(tmp_path: Path):
    """Also where the last step is no multiple of `every`."""
    short = SETTINGS.model_copy(update={"steps": 5})
    steps_of(tmp_path / "run", monitor(stop="peak"), short)
    whole = rows(tmp_path / "run")
    torn = {name: value for name, value in whole[-1].items() if not name.startswith("monitor/")}
    assert torn != whole[-1]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*whole[:-1], torn]))
    steps_of(tmp_path / "run", monitor(stop="peak"), short, saved=tmp_path / "run/checkpoint-5")
    assert rows(tmp_path / "run") == whole


def _one_of_two(index: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(index), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    progress, logs = steps_of(Path(folder), monitor(stop="peak"), SHORT)
    steps = torch.tensor([progress.step, logs[-1]["step"]])
    save_file({"steps": steps, "delta": progress.policy.delta.detach()}, Path(folder) / f"end-{index}.safetensors")
    torch.distributed.destroy_process_group()
    leave(0)


def test_two_ranks_look_and_stop_as_one(tmp_path: Path):
    alone, logs = steps_of(tmp_path / "alone", monitor(stop="peak"), SHORT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "both").mkdir()
    run_ranks(_one_of_two, (port, str(tmp_path / "both")), 2)
    for index in (0, 1):
        end = load_file(tmp_path / f"both/end-{index}.safetensors")
        assert end["steps"].tolist() == [alone.step, logs[-1]["step"]]
        torch.testing.assert_close(end["delta"], alone.policy.delta)
    seen = [[row.get("monitor/near", 0.0) for row in rows(tmp_path / name)] for name in ("both", "alone")]
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)


def test_honest_runs_raise_no_alarm(tmp_path: Path, capsys):
    honest = Monitor(MonitorSettings(every=2), PROMPTS, ToyReward(), [ToyReward()], "ema")
    _, logs = steps_of(tmp_path / "run", honest, SETTINGS.model_copy(update={"steps": 20}))
    assert not any(ALARM in log for log in logs)
    assert capsys.readouterr().err == ""
    assert Monitor(MonitorSettings(), PROMPTS, None, [Near()]).alarm(logs) is None  # pairs have no proxy


def test_symptoms_by_hand():
    """Invariant 35."""
    grey, red = torch.full((3, 8, 8), 0.5), torch.stack([torch.ones(8, 8), torch.zeros(8, 8), torch.zeros(8, 8)])
    group = torch.tensor([1, 1, 2, 2])
    told = symptoms(Media(image=Track([grey, red, grey, grey])), group)
    assert told["saturation"] == pytest.approx(0.25)
    assert told["diversity"] == pytest.approx(0.25)  # 1/2 apart in every channel, and 0
    noisy = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert symptoms(Media(image=Track([noisy])), group[:1])["jpeg_kib"] > told["jpeg_kib"] / 4
    assert "diversity" not in symptoms(Media(image=Track([noisy])), group[:1])
    texts = symptoms(Media(text=Track(["a b", "a c", "a", "a"])), group)
    assert texts["words"] == 1.5
    assert texts["diversity"] == pytest.approx((2 / 3 + 0) / 2)


# ---- the command line -----------------------------------------------------------------------------------------------


WATCH = {"every": 1, "count": 2, "per_prompt": 2, "steps": 2, "held_out": ["sharpness"], "patience": 1}


def test_a_watched_run_from_the_command_line(tmp_path: Path):
    recipe = write_recipe(tmp_path, train={"steps": 2, "monitor": WATCH}, eval=None)
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    told = rows(tmp_path / "run")
    assert [row["step"] for row in told] == [1, 2]
    assert all({"monitor/bright", "monitor/sharpness", "monitor/diversity", "reward"} <= set(row) for row in told)
    assert "monitor/sharpness" in (tmp_path / "run/report.html").read_text()
    other = load_recipe(recipe, ["train.monitor.every=5"]).resolved()
    assert changed_key(load_recipe(recipe).resolved(), other) is not None
    assert changed_key(load_recipe(recipe).resolved(), other, MAY_CHANGE) is None  # resumed, watched otherwise


def test_what_is_followed_by_default(tmp_path: Path):
    recipe = write_recipe(
        tmp_path, train={"steps": 2, "monitor": {}}, eval={"prompts": "exam.txt", "held_out": "sharpness"}
    )
    built = build(load_recipe(recipe))
    assert [reward.name for reward in built.monitor.held_out] == ["sharpness"]
    assert [prompt.text for prompt in built.monitor.prompts] == ["exam a", "exam b", "exam c"]
    assert built.monitor.proxy.reward is built.reward.reward
    assert built.monitor.proxy is not built.reward  # counted apart
    assert (built.monitor.settings.steps, built.monitor.settings.guidance) == (2, 1.0)  # those of eval
    own = build(load_recipe(recipe, ["train.monitor={steps: 5, guidance: 3.0}"])).monitor
    assert (own.settings.steps, own.settings.guidance) == (5, 3.0)
    apart = build(load_recipe(recipe, ["eval.count=1"])).monitor
    assert [prompt.text for prompt in apart.prompts] == ["exam b", "exam c"]  # not those of the report
    assert build(load_recipe(recipe, ["train.monitor=null"])).monitor is None
    with pytest.raises(UsageError, match=r"name some in train\.monitor\.held_out"):
        build(load_recipe(recipe, ["eval=null"]))
    with pytest.raises(UsageError, match=r"'train\.monitor\.evry'; did you mean 'every'"):
        load_recipe(recipe, ["train.monitor.evry=2"])
    assert yaml.safe_load(recipe.read_text())["train"]["monitor"] == {}


def test_a_run_from_the_command_line_shows_its_looks_and_its_best_weights(tmp_path: Path, capsys):
    train = {"steps": 4, "checkpoint_every": 1, "keep_checkpoints": 9, "sample_every": 1}
    recipe = write_recipe(tmp_path, train={**train, "monitor": {**WATCH, "stop": "peak"}}, eval=None)
    plain = write_recipe(tmp_path / "plain", train=train, eval=None)
    assert main(["train", str(plain), "--out", str(tmp_path / "plain/run")]) == 0
    capsys.readouterr()
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    said, told = capsys.readouterr().out, rows(tmp_path / "run")
    for row in told:
        assert f"held-out sharpness {row['monitor/sharpness']:.4f}" in said
    held = [row["monitor/sharpness"] for row in told]
    best = 1 + held.index(max(held))
    assert len(held) == min(4, best + 1)
    for step in range(1, len(held) + 1):  # the same training, and the same counters, but for the looks
        mine, theirs = (
            load_checkpoint(folder / f"checkpoint-{step}") for folder in (tmp_path / "run", tmp_path / "plain/run")
        )
        exact = {"rtol": 0, "atol": 0, "equal_nan": True}
        for part in ("adapter", "ema", "random"):
            torch.testing.assert_close(dict(mine.parts[part]), dict(theirs.parts[part]), **exact)
    for mine, theirs in zip(told, rows(tmp_path / "plain/run"), strict=False):
        same = {
            name: value
            for name, value in mine.items()
            if not name.startswith(("monitor/", "time", "step_time", "perf"))
        }
        assert same == {
            name: value for name, value in theirs.items() if not name.startswith(("time", "step_time", "perf"))
        }
    adapter = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    saved = load_checkpoint(tmp_path / "run" / f"checkpoint-{best}").parts["ema"]
    assert sorted(float(value.sum()) for value in adapter.values()) == sorted(
        float(value.sum()) for value in saved.values()
    )
    grids = {path.name for path in (tmp_path / "run/samples").iterdir()}
    assert grids == {f"step-{step}" for step in range(1, best + 1)}
    if best < 4:
        assert f"the held-out sharpness was best at step {best}: the weights are those of step {best}" in said
