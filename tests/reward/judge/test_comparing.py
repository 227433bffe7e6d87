"""Comparisons by a judge in this process: both orders, references."""

import json
from pathlib import Path

import pytest
import torch

from genalign.media.image import save_png
from genalign.reward import CompareJudge, build_reward
from genalign.types import Media, Prompt, Reward, Track
from tests.helpers.toy_judges import tiny_vlm
from tests.helpers.toy_rewards import images


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm(tmp_path_factory.mktemp("models") / "vlm")


def test_both_orders_make_a_comparison_antisymmetric_and_its_bias_is_told(vlm: Path) -> None:
    """Invariants 20, 32."""
    a, b = images(3, seed=1), images(3, seed=2)

    def against(mine: Media, other: Media, **settings: bool) -> tuple[torch.Tensor, dict]:
        asked = [Prompt("cat", media=other.select([i])) for i in range(3)]
        scores = CompareJudge(model=vlm, reference="prompt", **settings)(asked, mine)  # type: ignore[arg-type]
        return scores.total, dict(scores.info)

    (ab, told), (ba, told_back) = against(a, b), against(b, a)
    assert (ab + ba).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    assert against(a, a)[0].tolist() == pytest.approx([0.5] * 3, abs=1e-6)
    first, second = against(a, b, both_orders=False)[0], against(b, a, both_orders=False)[0]
    assert ab.tolist() == pytest.approx(((first + 1 - second) / 2).tolist(), abs=1e-6)
    assert told["position_bias"] == pytest.approx((first + second - 1).tolist(), abs=1e-6)
    assert told["position_bias"] == pytest.approx(told_back["position_bias"], abs=1e-6)
    assert told["order_flips"] == [bool((p > 0.5) != (q < 0.5)) for p, q in zip(first, second, strict=True)]


def test_references_are_a_folder_that_sample_wrote_and_a_row_without_one_abstains(vlm: Path, tmp_path: Path) -> None:
    other, mine = images(2, seed=5), images(3)
    drawn = tmp_path / "base"
    names = ["cat", "dog\u2028bone"]  # a line separator, which other writers leave in a string as it is
    rows = [{"file": f"{i:05d}.png", "prompt": prompt, "seed": i} for i, prompt in enumerate(names)]
    for i, row in enumerate(rows):
        save_png(other["image"].data[i], drawn / str(row["file"]))  # type: ignore[arg-type]
    (drawn / "samples.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    judge = build_reward({"use": "judge-compare", "model": str(vlm), "references": "base"}, tmp_path)
    assert isinstance(judge, Reward)
    scores = judge([Prompt(names[1]), Prompt("star"), Prompt("cat")], mine)
    assert scores.valid[:, 0].tolist() == [True, False, True]
    assert not scores.failed.any()
    exact = Media(image=Track(other["image"].data.mul(255).round().div(255)))  # type: ignore[union-attr]
    asked = [Prompt(names[1], media=exact.select([1])), Prompt("cat", media=exact.select([0]))]
    expected = CompareJudge(model=vlm, reference="prompt")(asked, mine.select([0, 2])).total
    assert scores.total[[0, 2]].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
