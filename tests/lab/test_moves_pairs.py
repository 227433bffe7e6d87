"""Pairs of moving clips: their verdicts against the rule verifier, their files, and the count of a reward's calls."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genalign.data.comparisons import read_comparisons
from genalign.lab import moves
from genalign.lab.moves_clips import RATE, choreograph, render
from genalign.lab.moves_pairs import (
    ASPECTS,
    FAULTS,
    MISMATCHED,
    OWN,
    STRANGE,
    build_pairs,
    compared,
    fault_under,
    levels_under,
    six_clips,
    verdict,
)
from genalign.lab.moves_verifier import verify
from genalign.lab.video_reward import agreement, build_video_reward, reward_card
from genalign.media.container import load_video
from genalign.reward import build_reward
from genalign.types import Media, Prompt, Track

NOWHERE = Path()


def test_verdicts_written_out() -> None:
    table = {(1, 1): "same", (1, 0): "A", (0, 1): "B", (0, 0): "", (None, 1): "", (0, None): ""}
    assert {both: verdict(*both) for both in table} == table
    assert set(OWN.values()) == set(ASPECTS)
    assert all(levels.count(0) == 1 for _, levels in FAULTS.values())


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_what_a_pair_says_is_what_the_verifier_sees(split: str) -> None:
    rng, before, seen = np.random.default_rng(3), [], set()
    for number in range(6):
        clips = six_clips(number, rng, split)
        assert split == "heldout" or not any(moves.held_out(clip.facts) for clip in clips)
        for text, facts, a, b in compared(clips, before, rng):
            assert text[0] == "a"
            for clip in (a, b):
                fault, (quality, motion, shown) = fault_under(facts, clip, clips), levels_under(facts, clip)
                found = verify(clip.frames, facts)
                seen.add(fault.partition(" ")[0])
                if shown == 1 and not fault:
                    assert (quality, motion, found["whole"][0]) == (1, 1, 1)
                elif shown == 0 and not clip.fault:
                    assert found["all_facts"][0] == 0, (text, clip.facts)
                if fault.startswith(MISMATCHED):
                    assert found[fault.partition(" ")[2]][0] < 1
        before = clips[:4]
    assert {"", MISMATCHED, STRANGE} <= seen
    assert len(seen & set(FAULTS)) >= 4


def test_files_lose_nothing_and_hold_every_verdict(tmp_path: Path) -> None:
    file = build_pairs(tmp_path, "train", 2)
    rng = np.random.default_rng((41, False))
    first = six_clips(0, rng, "train")
    for clip in first:
        frames, rate = load_video(tmp_path / clip.name, None)
        assert rate == 8.0
        assert np.array_equal(frames.numpy(), np.round(clip.frames * 255).astype(np.uint8))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = read_comparisons(file)
    for aspect in ASPECTS:
        assert sum(pair.aspect == aspect for pair in found.pairs) == sum(row[aspect] != "" for row in rows)
    assert file.read_text().startswith(build_pairs(tmp_path / "again", "train", 1).read_text())


def test_agreement_calls_the_likeliest_outcome() -> None:
    """Rao and Kupper's three probabilities, written out, at k = 3: a tie is likeliest where |lead| is small."""
    h, lead = np.array([1.0, 0.0, 0.5, 0.5, 1.0]), torch.tensor([4.0, -4.0, 0.1, 3.0, -2.0], dtype=torch.float64)
    called = []
    for d in np.exp(lead.numpy()):
        win, loss = d / (d + 3), 1 / (1 + 3 * d)
        called.append((1.0, 0.0, 0.5)[int(np.argmax([win, loss, 1 - win - loss]))])
    assert called == [1.0, 0.0, 0.5, 1.0, 0.0]
    told = agreement(h, lead, 3.0)
    assert told["accuracy with ties"] == pytest.approx(3 / 5)
    assert told["accuracy"] == pytest.approx(2 / 3)
    assert (told["pairs"], told["tied"]) == (5, 2)


def test_the_builder_makes_pairs_reward_and_card(tmp_path: Path) -> None:
    prompts = {"train": 6, "heldout": 3}
    out = tmp_path / "tiny-video-reward"
    build_video_reward(tmp_path / "work", out, prompts, ("fit.steps=20", "head.width=8"))
    assert sorted(file.name for file in out.iterdir()) == ["heldout.json", "reward.json", "reward.safetensors"]
    assert str(tmp_path) not in (out / "reward.json").read_text()
    told = json.loads((out / "heldout.json").read_text())
    assert list(told["aspects"]) == list(ASPECTS)
    assert MISMATCHED in told["falls"]
    card = reward_card(out)
    for aspect in ASPECTS:
        assert f"| {aspect} | {told['aspects'][aspect]['pairs']} |" in card
    asked, media = read_comparisons(tmp_path / "work/video-pairs/heldout/pairs.jsonl").load([0, 1, 2])
    scores = build_reward(str(out), tmp_path)(asked, media)
    assert scores.values.shape == (3, 3)
    assert bool(scores.total_valid.all())


def test_each_rule_of_clips_falls_on_the_fault_that_it_is_about() -> None:
    rng, clips = np.random.default_rng(5), []
    while len(clips) < 8:
        facts = moves.sample_facts(rng)
        if facts["moves"][0]["motion"] != ["still"]:
            clips.append(choreograph(facts, rng))
    made = {"right": np.stack([render(clip, rng) for clip in clips])}
    for fault in ("jerky", "frozen", "flickering"):
        made[fault] = np.stack([FAULTS[fault][0](clip, rng) for clip in clips])
    asked = [Prompt("x")] * len(clips)
    means: dict[str, dict[str, float]] = {}
    for rule in ("moving", "steady", "smooth-motion"):
        reward = build_reward(rule, NOWHERE)
        found = {fault: reward(asked, Media(video=Track(torch.from_numpy(x), RATE))) for fault, x in made.items()}
        means[rule] = {fault: float(s.total[s.total_valid].mean()) for fault, s in found.items() if s.total_valid.any()}
    assert means["moving"]["right"] == 1
    assert means["moving"]["frozen"] == 0
    assert means["steady"]["right"] > 0.98
    assert min(means["steady"], key=lambda fault: means["steady"][fault]) == "flickering"
    assert "frozen" not in means["smooth-motion"]  # at rest: it says nothing
    assert means["smooth-motion"]["jerky"] < means["smooth-motion"]["right"] - 0.2
