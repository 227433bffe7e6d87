"""RAFT's smoothness: flow as torchvision computes it, and the formula on flows that are known."""

from pathlib import Path

import pytest
import torch
from torchvision.models.optical_flow import raft_small

from genalign.reward import build_reward
from genalign.reward.heads.raft import FILES, RaftSmoothness, followed
from genalign.types import Media, Track, UsageError
from tests.helpers.clips import gliding
from tests.helpers.tiny_heads import save_state
from tests.helpers.toy_rewards import prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    where = tmp_path_factory.mktemp("raft")
    save_state(raft_small(weights=None).state_dict(), where / f"{FILES['small']}.safetensors")
    return where


def test_flow_is_torchvisions(folder: Path) -> None:
    rule = build_reward({"use": "raft", "weights": str(folder), "size": "small", "side": 128}, Path())
    assert isinstance(rule, RaftSmoothness)
    net = raft_small(weights=None).eval()
    net.load_state_dict(rule._net.state_dict())
    first, second = torch.rand(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(rule.flow(first, second), net(2 * first - 1, 2 * second - 1)[-1])
    assert rule._size(480, 832) == (128, 224)
    assert RaftSmoothness(weights=folder, size="small")._size(480, 832) == (144, 256)


@pytest.mark.parametrize(
    ("speeds", "wanted"),
    [([2, 2, 2, 2], 1.0), ([2, 4, 2, 4], 1 - 2 / 6), ([3, -3, 3, -3], 0.0), ([4, 0, 4, 0], 0.0), ([0, 0, 0, 0], None)],
)
def test_smoothness_of_known_flows(folder: Path, monkeypatch, speeds: list[int], wanted: float | None) -> None:
    """Everything moves right by so many pixels: |u' - u| over |u'| + |u|."""
    rule = RaftSmoothness(weights=folder, size="small")
    flows = iter(speeds)

    def known(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        flow = torch.zeros(1, 2, *first.shape[-2:])
        flow[:, 0] = next(flows)
        return flow

    monkeypatch.setattr(rule, "flow", known)
    scores = rule(prompts(1), Media(video=Track(gliding(5)[None], 8.0)))
    assert scores.total_valid.tolist() == [wanted is not None]
    assert float(scores.total) == pytest.approx(wanted or 0.0, abs=1e-5)


def test_flow_is_read_where_the_pixel_then_is() -> None:
    """A ramp u = (0, x): a pixel led 3 to the right finds 3 more there, unless that is outside."""
    ramp = torch.zeros(1, 2, 6, 10)
    ramp[:, 1] = torch.arange(10.0)
    along = torch.zeros(1, 2, 6, 10)
    along[:, 0] = 3
    there, inside = followed(ramp, along)
    assert inside[0, 0].tolist() == [x + 3 <= 9 for x in range(10)]
    assert torch.allclose(there[0, 1, :, :7], torch.arange(3.0, 10.0).expand(6, 7), atol=1e-4)


def test_random_weights_score_a_clip(folder: Path) -> None:
    rule = RaftSmoothness(weights=folder, size="small", side=128)
    scores = rule(prompts(1), Media(video=Track(gliding(3)[None], 8.0)))
    assert not scores.failed.any()
    assert not scores.total_valid or 0 <= float(scores.total) <= 1


def test_bad_settings_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no size 'huge'; small or large"):
        RaftSmoothness(weights=folder, size="huge")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="RAFT needs 128 pixels at least"):
        RaftSmoothness(weights=folder, size="small", side=64)
    (tmp_path / f"{FILES['large']}.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=r"only raft_large.*genalign reads no pickled weights"):
        RaftSmoothness(weights=tmp_path)
