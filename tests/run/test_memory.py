"""Memory by phase, and what would fit a card, without a download."""

from __future__ import annotations

from typing import Any

import pytest

from genalign.cli.main import main
from genalign.run import memory
from genalign.run.memory import GB, Memory, card_bytes, sizes_of_rewards
from genalign.run.recipe import load_recipe
from genalign.types import UsageError

NAME = "sd35-medium-flow-grpo"


@pytest.fixture(scope="module")
def of() -> Memory:
    return Memory(load_recipe(NAME))


def test_a_card_is_answered_without_a_download(of: Memory, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(memory, "Memory", lambda recipe, ranks: of)  # whose seconds are spent once
    assert main(["train", NAME, "--plan", "--card", "24GB"]) == 0
    shown = capsys.readouterr().out
    assert "Stability AI Community License (gated); 16.3 GB are downloaded once" in shown
    assert [line.split()[0] for line in shown.splitlines()[2:7]] == ["encode", "sample", "decode", "score", "update"]
    assert "fits 24GB as it is: 19.7 GiB at the peak" in shown
    assert main(["train", NAME, "--plan", "--card", "16GB"]) == 0
    assert "fits 16GB with policy.offload=phases: 9.3 GiB at the peak" in capsys.readouterr().out
    assert main(["train", NAME, "--plan", "--card", "8GB"]) == 0
    assert "no lever makes it fit 8GB: the least is" in capsys.readouterr().out


def test_the_weights_are_those_of_the_published_files(of: Memory) -> None:
    """Two bytes each: the sum of the files' sizes on the hub, in bfloat16, and the reward's 3.9 GB."""
    encode = of.phases(of.settings)[0]
    networks = 2 * (2_243_171_520 + 226_492_416 + 83_819_683 + 123_650_304 + 694_659_840 + 4_762_310_656)
    assert encode.weights == pytest.approx(networks + 3.9e9, rel=1e-3)
    # value, gradient, average, two moments of rank 32 in float32
    assert encode.trained == 5 * 4 * of.footprint.trained


def test_each_lever_lowers_the_phase_that_it_is_about(of: Memory) -> None:
    def totals(**changed: Any) -> dict[str, int]:
        settings = of.settings.model_copy(update=changed)
        return {phase.name: phase.total for phase in of.phases(settings)}

    plain = totals()
    assert totals(gradient_checkpointing=False)["update"] > plain["update"] + 5 * GB
    assert totals(offload="phases")["update"] < plain["update"] - 10 * GB
    held = totals(quantization="bitsandbytes-nf4")
    assert plain["sample"] - held["sample"] == pytest.approx(2 * 2_243_171_520 * (1 - 0.5625 / 2), rel=0.03)
    assert totals(offload="blocks")["update"] < totals(offload="phases")["update"] - 3 * GB
    assert totals(batch_size=1)["update"] < plain["update"]


def test_rewards_are_counted_while_they_are_there(of: Memory) -> None:
    """PickScore's 3.9 GB beside everything; with offload while scores are made, and where its gradient is followed."""
    plain, away = of.phases(of.settings), of.phases(of.settings.model_copy(update={"offload": "phases"}))
    rewards = 3.9e9
    assert all(phase.weights > rewards for phase in plain)
    assert next(phase.weights for phase in away if phase.name == "score") == rewards
    text = 2 * 4_762_310_656  # of the largest text encoder
    assert next(phase.weights for phase in away if phase.name == "encode") == pytest.approx(text, rel=1e-3)
    climbing = Memory(load_recipe(NAME, ["method={name: draft}", "policy.offload=phases"]))
    climbing.footprint = of.footprint
    update = climbing.phases(climbing.settings)[-1]
    assert update.weights > rewards + 2 * 2_243_171_520 + 2 * 83_819_683  # the autoencoder's graph, too


def test_a_step_that_is_computed_again_as_a_whole_keeps_all_blocks(of: Memory) -> None:
    words = ["method={name: draft}", "policy.offload=blocks", "policy.gradient_checkpointing="]
    kept, again = (Memory(load_recipe(NAME, [*words[:2], words[2] + value])) for value in ("false", "true"))
    kept.footprint = again.footprint = of.footprint
    update = {memory: memory.phases(memory.settings)[-1].weights for memory in (kept, again)}
    denoiser = of.footprint.denoisers[0]
    apart = of.footprint.weights(denoiser, kept.settings) - of.footprint.resident(denoiser, kept.settings)
    assert update[kept] - update[again] == apart > 3 * GB


def test_a_reward_of_rewards_counts_each_checkpoint_once() -> None:
    assert sizes_of_rewards(load_recipe("sdxl-turbo-reno")) == {
        **{"hpsv2.1": 2.0, "imagereward": 1.8, "pickscore": 3.9},
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": 3.9,
    }
    assert sizes_of_rewards(load_recipe("image-nft")) == {}  # shipped ones, in a hybrid
    beside = load_recipe("sdxl-diffusion-dpo")
    assert sizes_of_rewards(beside) == {"pickscore": 3.9}  # of the evaluation


def test_what_is_stronger_already_is_not_offered(of: Memory) -> None:
    of_blocks = Memory(load_recipe(NAME, ["policy.offload=blocks", "policy.quantization=bitsandbytes-nf4"]))
    of_blocks.footprint = of.footprint
    offered = [words for words, _ in of_blocks.levers()]
    assert not any("offload" in words or "quantization" in words for words in offered)


@pytest.mark.parametrize(("text", "size"), [("24GB", 24), ("24", 24), ("79.5 GiB", 79.5), ("8g", 8)])
def test_cards_are_read_as_people_write_them(text: str, size: float) -> None:
    assert card_bytes(text) == size * 2**30


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--card", "24GB"], "--card belongs to --plan"),
        (["--plan", "--card", "big"], "write the card's memory as 24GB"),
        (["--plan", "--card", "24GB", "policy.model=nobody/nothing"], "are not known without its files"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["train", NAME, *words]) != 0
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert "\n" not in said


def test_a_card_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="write the card's memory"):
        card_bytes("0GB")
