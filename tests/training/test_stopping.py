"""Early stopping on written metrics, and on a toy that forgets: the best checkpoint's weights come back."""

import json
from pathlib import Path

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.training.checkpoint import load_checkpoint
from genalign.training.loop import train
from genalign.training.progress import restore, start
from genalign.training.settings import TrainSettings
from genalign.training.stopping import best_step, until_no_better
from genalign.types import Prompt, UsageError
from tests.helpers.averaged import Averaged
from tests.helpers.toy_policy import ToyReward, make_scores

PROMPTS = [Prompt(f"prompt {i}", uid=i) for i in range(3)]
SETTINGS = TrainSettings(
    steps=60, learning_rate=0.1, checkpoint_every=2, keep_checkpoints=4, patience=3, ema=0.5, max_grad_norm=100.0
)


@pytest.mark.parametrize(
    ("rewards", "patience", "best"),
    [
        ([1, 2, 3, 4, 5], 2, None),
        ([1, 5, 3, 4], 2, 4),
        ([1, 5, 3, 4], 3, None),
        ([5, 1, 1], 2, 2),
        ([1, 5, 5, 5], 2, 4),  # as good is no better
        ([1, 5, 3], 2, None),
    ],
)
def test_the_best_checkpoint_is_found_once_patience_ends(tmp_path: Path, rewards, patience, best):
    rows = [{"step": 2 * k + j, "reward": reward + (j - 1.5)} for k, reward in enumerate(rewards) for j in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert best_step(tmp_path / "metrics.jsonl", 2, patience, 2 * len(rewards)) == best


def test_steps_without_a_reward_are_left_out(tmp_path: Path):
    rows = [{"step": 1, "reward": 3.0}, {"step": 2}, {"step": 3, "reward": 2.0}, {"step": 4}, {"step": 5}, {"step": 6}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert best_step(tmp_path / "metrics.jsonl", 2, 2, 6) == 2


class Near(ToyReward):
    """Highest for a middling brightness: a policy that goes on rising overshoots."""

    def __call__(self, prompts, media, group=None):
        return make_scores(-(super().__call__(prompts, media, group).values - 0.8).abs())


def steps_of(folder: Path, settings: TrainSettings = SETTINGS, saved: Path | None = None):
    folder.mkdir(exist_ok=True)
    progress = start(Averaged(), Near(), settings)
    if saved is not None:
        restore(progress, load_checkpoint(saved))
    # the method is told that brighter is better, whatever the reward of the run says of it
    learner = build_method(MethodSettings(name="flow-grpo", group=8))
    logs = train(progress, _Brighter(learner), lambda step: PROMPTS, folder)
    return progress, list(until_no_better(progress, logs, folder))


class _Brighter:
    """A method that optimises a proxy while the log follows the reward of the run."""

    def __init__(self, learner) -> None:
        self.learner, self.name, self.needs = learner, learner.name, learner.needs

    def collect(self, policy, prompts, reward, seed, step):
        experience = self.learner.collect(policy, prompts, ToyReward(), seed, step)
        told = reward(experience.trajectory.prompts, experience.trajectory.media)
        experience.log["reward"] = float(told.total.mean())
        return experience

    def losses(self, policy, experience):
        return self.learner.losses(policy, experience)


def test_an_overshooting_run_ends_with_its_best_weights(tmp_path: Path):
    progress, logs = steps_of(tmp_path / "run")
    last = int(logs[-1]["step"])
    assert last < 60
    assert last % 2 == 0
    assert progress.step == last - 2 * 3
    assert progress.step > 2  # an interior one
    windows = [sum(log["reward"] for log in logs[k : k + 2]) / 2 for k in range(0, last, 2)]
    assert progress.step == 2 * (1 + windows.index(max(windows)))
    saved = load_checkpoint(tmp_path / "run" / f"checkpoint-{progress.step}")
    assert torch.equal(progress.policy.delta, saved.parts["adapter"]["delta"])
    with progress.policy.weights("ema"):
        assert torch.equal(progress.policy.delta, saved.parts["ema"]["delta"])
    again, more = steps_of(tmp_path / "run", saved=tmp_path / "run" / f"checkpoint-{last}")
    assert more == []  # a run that had stopped is not trained on
    assert again.step == progress.step


def test_without_patience_a_run_goes_to_its_end(tmp_path: Path):
    progress, logs = steps_of(tmp_path / "run", SETTINGS.model_copy(update={"patience": None, "steps": 20}))
    assert progress.step == len(logs) == 20


def test_a_checkpoint_that_would_be_gone_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"set train\.keep_checkpoints=4"):
        steps_of(tmp_path / "run", SETTINGS.model_copy(update={"keep_checkpoints": 3}))
