"""The held-out judge of EmojiWorld moves: what it is taught, how it reads, and a short run of its builder."""

from functools import partial

import numpy as np
import pytest
import torch

from genalign import build_reward
from genalign.lab import build, moves, moves_judge
from genalign.lab.moves_clips import FRAMES, RATE, SIDE, Clip, Path, choreograph, render
from genalign.lab.moves_judge import MovesJudge, MovesNet, save_judge, seen_facts, splats, truth
from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS
from genalign.types import Media, Prompt, Track, UsageError

SHEET = list(sprites())
PASSING = {
    "moves": [
        {"name": "robot", "motion": ["right"], "speed": None},
        {"name": "cat", "motion": ["still"], "speed": None},
    ],
    "passing": ["robot", "in front of", "cat"],
    "background": "pink",
}
FAST, SLOW = (
    {"moves": [{"name": "cat", "motion": ["left"], "speed": speed}], "passing": None, "background": "gray"}
    for speed in ("fast", "slow")
)
STILL = np.tile([10.0, 30.0, 16.0, 0.0], (FRAMES, 1))


def test_what_it_is_taught_is_what_the_facts_say():
    """Classes by hand: objects in the order of the sheet, where the cat stands before the robot."""
    clip = Clip((Path("cat", STILL), Path("robot", STILL)), "pink", PASSING)
    names, motion, speed, depth, ground = truth(clip)
    assert [SHEET[k] for k in names] == ["cat", "robot"]
    assert [moves.MOTIONS[k] for k in motion] == [("still",), ("right",)]
    assert speed == [-1, -1]
    assert depth == 2  # the cat is behind the robot
    assert list(BACKGROUNDS)[ground] == "pink"
    alone = {
        "moves": [{"name": "key", "motion": ["up"], "speed": "fast"}],
        "passing": None,
        "background": "blue",
    }
    assert truth(Clip((Path("key", STILL),), "blue", alone)) == ([SHEET.index("key"), -1], [2, -1], [1, -1], -1, 1)
    heat = splats(clip)
    assert heat.shape == (FRAMES, len(SHEET), 12, 12)
    assert heat[3, SHEET.index("cat")].argmax() == 7 * 12 + 2  # 30 px down and 10 px right in cells of 4 px
    assert (heat == 1).sum() == 2 * FRAMES


class Oracle(MovesNet):
    """Answers as if it had read these classes."""

    def __init__(self, *answers):
        super().__init__(16)
        self.answers = answers

    def forward(self, clips):
        names, *_, ground = self.answers
        marks = torch.full((1, FRAMES, len(SHEET), 12, 12), -9.0)
        marks[:, :, [k for k in names if k >= 0], 5, 5] = 9.0
        return torch.zeros(1), marks, torch.nn.functional.one_hot(torch.tensor([ground]), 6).float()

    def moving(self, features, marks, names):
        taught, motion, speed, depth, _ = self.answers
        if taught[1] >= 0:
            assert names.tolist() == [taught]  # in the order in which it was taught
        one_hot = torch.nn.functional.one_hot
        picked = [max(k, 0) for k in motion], [max(k, 0) for k in speed], max(depth, 0)
        return (
            one_hot(torch.tensor([picked[0]]), len(moves.MOTIONS)).float(),
            one_hot(torch.tensor([picked[1]]), 2).float(),
            one_hot(torch.tensor([picked[2]]), 3).float(),
        )


def test_a_network_that_learnt_it_sees_the_facts():
    """The classes of true clips, read back, are the facts: neither direction of the translation has lost anything."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        facts = moves.sample_facts(rng)
        clip = choreograph(facts, rng)
        (seen,) = seen_facts(Oracle(*truth(clip)), torch.zeros(1, FRAMES, 3, SIDE, SIDE))
        assert moves_judge.check(facts, seen)["all_facts"], (facts, seen)
        if facts["passing"] is None:
            wrong = moves.change_one_fact(facts, rng)
            assert not moves_judge.check(wrong, seen)["all_facts"]


def test_it_can_learn_all_facts_of_one_batch(tmp_path, monkeypatch):
    """Every part of the loss has its gradient: the same clips, some passing, are told apart after some steps."""
    real, drawn = moves_judge.fit, []

    def one_batch(net, loss_of, **settings):
        def loss(step):
            monkeypatch.setattr(moves_judge, "sample_facts", taken)
            return loss_of(0)

        real(net, loss, **{**settings, "learning_rate": 1e-2, "weight_decay": 0.0})

    def taken(rng):
        drawn.append(None)
        return [PASSING, {**PASSING, "passing": ["robot", "behind", "cat"]}, FAST, SLOW][(len(drawn) - 1) % 4]

    monkeypatch.setattr(moves_judge, "fit", one_batch)
    monkeypatch.setattr(moves_judge, "shaken", lambda clips, rng: torch.from_numpy(clips))
    net = moves_judge.build_judge(tmp_path, steps=45, rows=4)
    rng = np.random.default_rng((17, 0))
    clips = [choreograph(taken(rng), rng) for _ in range(4)]
    features, marks, ground = net(torch.from_numpy(np.stack([render(clip, rng) for clip in clips])))
    names, motion, speed, depth, grounds = (torch.tensor(column) for column in zip(*map(truth, clips), strict=True))
    read = [logits.argmax(dim=-1) for logits in net.moving(features, marks, names.clamp(min=0))]
    for seen, right in zip((*read, ground.argmax(dim=1)), (motion, speed, depth, grounds), strict=True):
        assert torch.equal(seen[right >= 0], right[right >= 0])


def test_a_short_run_resumes_and_is_loaded_as_a_held_out_reward(tmp_path, monkeypatch):
    steps = []
    real = moves_judge.fit

    def followed(net, loss_of, **settings):
        real(net, lambda step: steps.append(step) or loss_of(step), **settings)

    monkeypatch.setattr(moves_judge, "fit", followed)
    short = partial(moves_judge.build_judge, rows=4)
    net = short(tmp_path / "work", steps=3)
    assert steps == [0, 1, 2]
    again = short(tmp_path / "work", steps=3)  # all of it is in the work folder
    assert steps == [0, 1, 2]
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name])
    monkeypatch.setattr(moves_judge, "build_judge", lambda work: net)
    build._video_judge(tmp_path / "work", tmp_path / "out")

    judge = MovesJudge(tmp_path / "out")
    rng = np.random.default_rng(1)
    facts = [moves.sample_facts(rng) for _ in range(5)]
    clips = torch.from_numpy(np.stack([render(choreograph(each, rng), rng) for each in facts]))
    prompts = [Prompt("", facts=each, uid=k) for k, each in enumerate(facts)]
    scores = judge(prompts, Media(video=Track(clips, RATE)))
    assert scores.names == ("all_facts", *moves.KINDS)
    stated = [[True, *(moves.is_stated(kind, each) for kind in moves.KINDS)] for each in facts]
    assert scores.valid.tolist() == stated
    assert torch.equal(scores.total, scores.values[:, 0])
    one = judge(prompts[3:4], Media(video=Track(clips[3:4], RATE)))
    assert torch.equal(one.values[0], scores.values[3])
    with pytest.raises(UsageError, match=r"\(B, 9, 3, 48, 48\)"):
        judge(prompts, Media(video=Track(clips[:, :8], RATE)))
    with pytest.raises(UsageError, match=r"facts\.moves"):
        judge([Prompt("a cat")] * 5, Media(video=Track(clips, RATE)))


def test_without_weights_one_sentence_says_how_to_make_them(tmp_path):
    with pytest.raises(UsageError, match="genalign lab build video-judge"):
        build_reward({"use": "emojimoves-judge", "folder": str(tmp_path)}, tmp_path)


def test_time_is_mixed_as_a_depthwise_convolution_does():
    """Against torch's Conv3d of the same three weights a channel."""
    torch.manual_seed(0)
    block = moves_judge._Block(8)
    torch.nn.init.zeros_(block.frame[-1].weight)
    torch.nn.init.zeros_(block.frame[-1].bias)  # frames alone change nothing
    x = torch.randn(2 * FRAMES, 8, 4, 4)
    conv = torch.nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), groups=8, bias=False)
    conv.weight.data = block.time.data.permute(1, 2, 0, 3)[:, :, :, :, None].reshape(8, 1, 3, 1, 1)
    over_time = x.unflatten(0, (2, FRAMES)).transpose(1, 2)
    assert torch.allclose(block(x), x + conv(over_time).transpose(1, 2).flatten(0, 1), atol=1e-5)


def test_a_judged_network_is_half_precision_on_disk(tmp_path):
    from safetensors.torch import load_file

    save_judge(MovesNet(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert (tmp_path / "model.safetensors").stat().st_size < 1e6
