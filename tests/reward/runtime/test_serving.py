"""A served reward says what it says at home, over a real socket, and refuses what is no batch."""

from __future__ import annotations

import base64
import io
import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from genalign.cli.main import main
from genalign.media.image import to_pil
from genalign.reward import FunctionReward, Hybrid, RemoteReward, Runner, Sharpness, Sum, build_reward
from genalign.reward.runtime.serving import application, serve
from genalign.reward.runtime.wire import FRAME, pack_batch, receive, send
from genalign.types import GenalignError, Media, Prompt, Reward, Track, UsageError
from tests.helpers.tiny_recipe import write_recipe
from tests.helpers.toy_judges import serving
from tests.helpers.toy_rewards import images, prompts, says, texts


def rules(image: Any, number: list[float | None]) -> dict[str, Any]:
    """Two aspects with confidence, of which the second abstains where the prompt has no number."""
    return {"mean": image.mean((1, 2, 3)), "number": [None if n is None else (n, 0.25) for n in number]}


def two(name: str = "rules") -> FunctionReward:
    return FunctionReward(rules, name=name, aspects={"mean": 1.0, "number": 0.5})


def frame(asked: list[Prompt], media: Media, group: torch.Tensor | None = None) -> bytes:
    out = io.BytesIO()
    send(out, pack_batch(asked, media, group))
    return out.getvalue()


def test_the_client_is_the_served_reward() -> None:
    """Invariant 4."""
    local, asked, given = two(), prompts(4, number=[1.0, None, 3.0, float("nan")]), images(4)
    group = torch.tensor([0, 0, 1, 1])
    with serving(application(local)) as url:
        remote = build_reward({"use": url, "timeout": 5}, Path())
        assert isinstance(remote, RemoteReward)
        assert isinstance(remote, Reward)
        for attribute in ("name", "needs", "aspects", "weights", "looks_at", "version"):
            assert getattr(remote, attribute) == getattr(local, attribute), attribute
        assert not remote.differentiable
        here, there = local(asked, given, group), remote(asked, given, group)
        whole = Sum([(remote, 2.0), (Sharpness(), 1.0)])
        assert whole.aspects == ("rules/mean", "rules/number", "sharpness")
        together = whole(asked, given, group)
    for field in ("values", "valid", "failed", "total", "total_valid", "weights", "confidence"):
        assert torch.equal(getattr(here, field), getattr(there, field)), field  # to the last bit
    assert here.info == there.info
    assert here.failed[3, 1]
    assert together.total[0].item() == pytest.approx((2 * here.total[0] + Sharpness()(asked, given).total[0]).item())


def test_texts_audio_and_unequal_sizes_cross_the_wire() -> None:
    def length(media: Media) -> list[float]:
        return [float(row.numel()) if isinstance(row, torch.Tensor) else len(row) for row in media["audio"].data]

    def same(text: list[str], prompt: list[str]) -> list[float]:
        return [float(a == b) for a, b in zip(text, prompt, strict=True)]

    waves = Media(audio=Track([torch.zeros(1, 5), torch.zeros(2, 7)], rate=16000.0))
    with serving(application(FunctionReward(length, needs=["audio"]))) as url:
        assert RemoteReward(url)(prompts(2), waves).total.tolist() == [5, 14]
    with serving(application(FunctionReward(same))) as url:
        assert RemoteReward(url)([Prompt("ä\n"), Prompt("b")], texts("ä\n", "c")).total.tolist() == [1, 0]


def test_a_failing_reward_is_a_mask_there_and_here() -> None:
    def breaks(prompt: list[str]) -> list[float]:
        if any("2" in p for p in prompt):
            raise RuntimeError("no memory")
        return [1.0] * len(prompt)

    with serving(application(FunctionReward(breaks))) as url:
        scores = Runner(RemoteReward(url), max_failure=1.0)(prompts(3), images(3))
    assert scores.failed[:, 0].tolist() == [False, False, True]
    assert "RuntimeError: no memory" in scores.info["error"][2]


def test_a_missing_fact_is_told_and_not_retried() -> None:
    def missing(prompt: list[str]) -> list[float]:
        raise UsageError("the judge needs facts")

    with serving(application(FunctionReward(missing))) as url:
        scores = Runner(RemoteReward(url), max_failure=1.0)(prompts(1), images(1))
    assert "answered 422" in scores.info["error"][0]
    assert "the judge needs facts" in scores.info["error"][0]


def test_a_token_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGHT", "right")
    monkeypatch.setenv("WRONG", "wrong")
    with serving(application(two(), token="right")) as url:
        assert httpx.get(f"{url}/health").json()["status"] == "ok"
        asked, given = prompts(1, number=[1.0]), images(1)
        assert RemoteReward(url, key="RIGHT")(asked, given).valid.all()
        for key in ("WRONG", None):
            scores = Runner(RemoteReward(url, key=key), max_failure=1.0)(asked, given)
            assert "answered 401" in scores.info["error"][0]
            assert "right" not in scores.info["error"][0]


def huge_header() -> bytes:
    return struct.pack("<Q", 1 << 60) + b"{}"


def bomb(shape: list[int], dtype: str = "torch.float32") -> bytes:
    header = json.dumps({"body": {"prompts": [], "media": {}, "group": None}, "tensors": [(dtype, shape)]}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    ("body", "kind", "status", "told"),
    [
        (b"x" * 100_001, FRAME, 413, "more than 100000 bytes"),
        (b"", "application/python-pickle", 415, "content type"),
        (b"", FRAME, 400, "not a frame"),
        (b"\x80\x04\x95hello, I am a pickle.", FRAME, 400, "not a frame"),
        (huge_header(), FRAME, 400, "not a frame"),
        (bomb([1 << 40, 1 << 20]), FRAME, 400, "not a frame"),
        (bomb([-1]), FRAME, 400, "not a frame"),
        (bomb([1], "torch.qint8"), FRAME, 400, "not a frame"),
        (b"[" * 50_000, "application/json", 400, "not a batch"),
        (b'{"prompts": ["a"], "media": {"image": []}}', "application/json", 400, "not a batch"),
        (b'{"prompts": ["a"], "media": {"picture": ["x"]}}', "application/json", 400, "not a batch"),
        (b'{"prompts": ["a"], "media": {"image": ["not base64!"]}}', "application/json", 400, "not a batch"),
        (b'{"prompts": ["a"], "media": {"image": ["AAAA"]}}', "application/json", 400, "not a batch"),
    ],
)
def test_what_is_no_batch_is_refused_in_one_sentence(body: bytes, kind: str, status: int, told: str) -> None:
    with serving(application(two(), max_body=100_000)) as url:
        reply = httpx.post(f"{url}/score", content=body, headers={"content-type": kind})
        assert reply.status_code == status
        assert told in reply.json()["error"]
        assert RemoteReward(url)(prompts(1, number=[1.0]), images(1)).valid.all()  # and it goes on


def test_a_picture_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genalign.reward.runtime.serving.PIXELS", 24 * 24 * 2 - 1)
    with serving(application(two())) as url:
        reply = httpx.post(f"{url}/score", json={"prompts": ["a", "b"], "media": {"image": [png(i) for i in range(2)]}})
    assert reply.status_code == 400
    assert "pixels" in reply.json()["error"]


def png(row: int) -> str:
    file = io.BytesIO()
    to_pil(images(2)["image"].data[row]).save(file, format="PNG")  # type: ignore[arg-type]
    return base64.b64encode(file.getvalue()).decode()


def test_any_program_may_ask_in_json() -> None:
    asked = [{"text": "a", "facts": {"number": 2.0}}, "b"]
    with serving(application(two())) as url:
        batch = {"prompts": asked, "media": {"image": [png(0), png(1)]}, "group": [7, 7]}
        reply = httpx.post(f"{url}/score", json=batch).json()
    rounded = images(2)["image"].data.mul(255).round().div(255).mean((1, 2, 3))  # type: ignore[union-attr]
    assert reply["names"] == ["mean", "number"]
    assert [row[0] for row in reply["values"]] == pytest.approx(rounded.tolist(), abs=1e-6)
    assert [row[1] for row in reply["values"]] == [2.0, None]
    assert reply["total"][1] == pytest.approx(rounded[1].item() + 0.5 * 2.0)  # its sibling's opinion, as everywhere
    assert reply["valid"] == [[True, True], [True, False]]


def test_audio_and_video_cross_in_json() -> None:
    import soundfile

    def loud(audio: Any, video: Any, media: Media) -> dict[str, list[float]]:
        return {
            "audio": [float(row.abs().max()) for row in audio],
            "rate": [media["audio"].rate or 0.0] * len(audio),
            "frames": [float(row.shape[0]) for row in video],
        }

    wave, file = torch.tensor([0.0, 0.5, -0.25, 0.0]), io.BytesIO()
    soundfile.write(file, wave.numpy(), 8000, format="FLAC", subtype="PCM_24")
    media = {"audio": [base64.b64encode(file.getvalue()).decode()], "video": [[png(0), png(1), png(0)]], "rate": 4}
    with serving(application(FunctionReward(loud, aspects=["audio", "rate", "frames"]))) as url:
        reply = httpx.post(f"{url}/score", json={"prompts": ["a"], "media": media}).json()
    assert reply["values"][0] == pytest.approx([0.5, 8000.0, 3.0], abs=1e-6)


def test_a_full_house_is_told_to_come_back_and_the_client_does() -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(prompt: list[str]) -> list[float]:
        entered.set()
        assert leave.wait(20)
        return [1.0] * len(prompt)

    with serving(application(FunctionReward(slow), waiting=1)) as url:
        first = threading.Thread(target=lambda: RemoteReward(url)(prompts(1), images(1)))
        first.start()
        assert entered.wait(20)
        body = frame(prompts(1), images(1))
        reply = httpx.post(f"{url}/score", content=body, headers={"content-type": FRAME})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        leave.set()
        assert RemoteReward(url)(prompts(1), images(1)).total.tolist() == [1.0]
        first.join(20)


def test_a_slow_server_is_left_after_the_time_out() -> None:
    def slow(prompt: list[str]) -> list[float]:
        time.sleep(0.8)
        return [1.0] * len(prompt)

    with serving(application(FunctionReward(slow))) as url:
        scores = Runner(RemoteReward(url, timeout=0.2, retries=0), max_failure=1.0)(prompts(1), images(1))
        assert scores.failed.all()
        assert "no answer within 0.2 s" in scores.info["error"][0]


def test_a_server_that_changed_its_reward_fails_its_rows() -> None:
    served = [two(), two()]
    current = application(served[0])

    async def either(scope: Any, receive: Any, send: Any) -> None:
        await current(scope, receive, send)

    with serving(either) as url:
        remote = RemoteReward(url)
        assert remote(prompts(1, number=[1.0]), images(1)).valid.all()
        current = application(FunctionReward(rules, name="rules", aspects={"mean": 1.0, "number": 0.75}))
        with pytest.raises(GenalignError, match="now serves another reward"):
            Runner(remote)([*prompts(2, number=[1.0, 2.0])], images(2))


def test_what_cannot_be_served_or_reached_is_refused() -> None:
    class Stateful(Sharpness):
        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"multiplier": torch.ones(1)}

    with pytest.raises(UsageError, match="state that training moves"):
        application(Stateful())
    with pytest.raises(UsageError, match=r"0\.0\.0\.0 can be reached by others.*--token-env"):
        serve(Sharpness(), "0.0.0.0", 0)
    with pytest.raises(UsageError, match=r"no reward is served at http://127.0.0.1:9"):
        RemoteReward("http://127.0.0.1:9", retries=0).needs  # noqa: B018
    with pytest.raises(UsageError, match="no setting 'tiemout'; did you mean 'timeout'"):
        build_reward({"use": "http://127.0.0.1:9", "tiemout": 3}, Path())
    with serving(lambda scope, receive, send: _other(scope, receive, send)) as url, pytest.raises(UsageError):
        RemoteReward(url).needs  # noqa: B018


async def _other(scope: Any, receive: Any, send: Any) -> None:
    """A server of something else."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"status": "ok"}'})


def test_the_verb_serves_a_reward_file(tmp_path: Path) -> None:
    (tmp_path / "rule.py").write_text("def bright(image, offset=0.0):\n    return image.mean((1, 2, 3)) + offset\n")
    (tmp_path / "mine.yaml").write_text(
        "sum:\n  - {use: 'rule.py:bright', offset: 1}\n  - {use: sharpness, weight: 0}\n"
    )
    with serving(_other) as url:  # a port that is free a moment later
        port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "genalign", "serve-reward", str(tmp_path / "mine.yaml"), "--port", port]
    server = subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        remote = RemoteReward(f"http://127.0.0.1:{port}", retries=8, pause=0.1)
        hybrid = Hybrid(says((1.0, 0.0), (1.0, 1.0), name="rule"), remote)
        given = images(2)
        scores = Runner(hybrid)(prompts(2, row=range(2)), given)
    finally:
        server.terminate()
        server.wait(20)
    mean = given["image"].data[0].mean().item()  # type: ignore[union-attr]
    assert scores.total.tolist() == pytest.approx([mean + 1, 1.0], abs=1e-6)


def test_a_frame_that_is_cut_takes_no_memory_for_what_is_missing() -> None:
    assert receive(io.BytesIO(bomb([1 << 45]))) is None


def test_a_recipe_trains_on_a_served_reward(tmp_path: Path) -> None:
    """The run's rewards are what the server says of the very pictures, and its counters stand in the log."""
    sizes: list[int] = []

    def bright(image: Any) -> Any:
        sizes.append(len(image))
        return image.mean((1, 2, 3))

    with serving(application(FunctionReward(bright))) as url:
        runs = {}
        for name, reward in (("there", {"use": url, "run": {"batch_size": 3}}), ("here", "rules.py:bright")):
            train = {"steps": 1, "sample_every": 1}
            recipe = write_recipe(tmp_path / name, reward=reward, eval=None, train=train)
            assert main(["train", str(recipe), "--out", str(tmp_path / name / "run")]) == 0
            runs[name] = json.loads((tmp_path / name / "run" / "metrics.jsonl").read_text())
    assert sizes == [3, 3, 2]  # of micro-batches of four, in the requests that a call on all eight makes
    assert runs["there"]["reward"] == pytest.approx(runs["here"]["reward"], abs=1e-6)
    assert runs["there"]["loss"] == pytest.approx(runs["here"]["loss"], abs=1e-5)
    assert runs["there"]["rewards/bright/fail_rate"] == 0
    assert runs["there"]["time/reward"] > 0
