"""Judges behind a real HTTP server of this machine, which answers well, late, broken, refusing or not at all."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.responses import JSONResponse, Response, StreamingResponse

from genalign.files.settings import read_yaml
from genalign.files.shipped import shipped
from genalign.method.losses import advantages
from genalign.reward import CompareJudge, QuestionsJudge, RankJudge, Runner, ScoreJudge, YesNoJudge, build_reward
from genalign.reward.judge.asking import Question
from genalign.reward.judge.local import LocalModel
from genalign.types import GenalignError, Media, Prompt, Scores, Track, UsageError
from tests.helpers.toy_judges import Scripted, likely, pieces, said, serving, tiny_vlm
from tests.helpers.toy_rewards import images, prompts, texts

KEY = "sk-very-secret-0123456789"
FAST = {"pause": 0.01, "timeout": 5.0, "at_once": 4}


def at(url: str, **more: Any) -> dict[str, Any]:
    return {"url": f"{url}/v1", "model": "scripted", **FAST, **more}


def yes_no(url: str, rows: int = 3, **more: Any) -> Scores:
    judge = YesNoJudge(endpoint=at(url, **more), question="Does this show {prompt}?")
    return Runner(judge, max_failure=1.0)(prompts(rows), images(rows))


def test_an_endpoint_around_a_real_model_says_what_the_model_says_in_process(tmp_path: Path) -> None:
    folder = tiny_vlm(tmp_path / "vlm")
    model, lock = LocalModel(folder), threading.Lock()
    tokenizer = model._loaded[1].tokenizer

    def answer(body: dict[str, Any], number: int) -> dict[str, Any]:
        from genalign.media.image import to_pil

        assert (body["max_tokens"], body["logprobs"]) == (1, True)
        asked = pieces(body)
        with lock:
            net, processor = model._loaded
            written = model._written(Question(tuple(asked)))
            picture = to_pil(next(p for p in asked if isinstance(p, torch.Tensor)))
            inputs = processor(text=written, images=picture, return_tensors="pt", add_special_tokens=False)
            with torch.no_grad():
                logp, best = net(**inputs).logits[0, -1].log_softmax(0).topk(body["top_logprobs"])
        return likely(**{tokenizer.convert_ids_to_tokens(int(i)): float(p) for i, p in zip(best, logp, strict=True)})

    asked, given = [Prompt(text, uid=i) for i, text in enumerate(["cat", "two dog", "star"])], images(3)
    with serving(Scripted(answer).app) as url:
        there = YesNoJudge(endpoint=at(url), question="is it {prompt} ?")(asked, given)
    here = YesNoJudge(model=folder, question="is it {prompt} ?")(asked, given)
    assert there.valid.all()
    assert there.total.tolist() == pytest.approx(here.total.tolist(), abs=1e-4)
    assert here.total.std() > 0.01


def test_a_request_holds_the_question_and_the_picture_unharmed() -> None:
    """Invariant 4."""
    endpoint = Scripted(lambda body, number: likely(_Yes=-0.5, no=-2.0))
    with serving(endpoint.app) as url:
        scores = yes_no(url, rows=1)
    p, q = torch.tensor([-0.5, -2.0]).exp()
    assert scores.total.item() == pytest.approx((p / (p + q)).item(), abs=1e-6)
    picture, text = pieces(endpoint.asked[0])
    assert text == "\nDoes this show prompt number 0? Answer yes or no."
    assert torch.equal(picture, images(1)["image"].data[0].mul(255).round() / 255)  # type: ignore[union-attr]
    assert endpoint.asked[0]["model"] == "scripted"
    assert "authorization" not in endpoint.headers[0]


def refuse(status: int, text: str = "no", **headers: str) -> Response:
    return JSONResponse({"error": text}, status, headers)


def test_a_full_server_is_asked_again_after_the_time_it_asks_for() -> None:
    when: list[float] = []

    def answer(body: dict[str, Any], number: int) -> Any:
        when.append(time.monotonic())
        if number == 0:
            return refuse(429, **{"Retry-After": "0.3"})
        return refuse(503) if number == 1 else likely(yes=-1.0, no=-1.0)

    with serving(Scripted(answer).app) as url:
        scores = yes_no(url, rows=1)
    assert scores.total.tolist() == [0.5]
    assert len(when) == 3
    assert when[1] - when[0] >= 0.29


def trickle() -> Response:
    def drops() -> Any:
        for _ in range(200):
            yield b" "
            time.sleep(0.02)

    return StreamingResponse(drops())


def late() -> Any:
    time.sleep(3.0)
    return likely(yes=0.0)


@pytest.mark.parametrize(
    ("answer", "tries", "told"),
    [
        (lambda: refuse(500, "out of memory"), 3, r"answered 500.*out of memory.*\(try 3\)"),
        (lambda: refuse(429), 3, "answered 429"),
        (lambda: refuse(429, **{"Retry-After": "3600"}), 1, "asks to wait 3600 s"),
        (late, 3, "no answer within 1 s"),
        (trickle, 3, "no whole answer within 1 s"),
        (lambda: refuse(400, "too long"), 1, "answered 400.*too long"),
        (lambda: refuse(401, f"wrong key {KEY}"), 1, r"answered 401.*wrong key \*\*\*"),
        (lambda: Response(b'{"choices": [{"mess', media_type="application/json"), 1, "not a chat completion"),
        (lambda: Response(b"<html>gateway</html>"), 1, "not a chat completion"),
        (lambda: {"choices": []}, 1, "not a chat completion"),
        (lambda: ["nonsense"], 1, "not a chat completion"),
        (lambda: said("Yes"), 1, "gives no top_logprobs"),
        (lambda: likely(The=-0.1, A=-2.0), 1, "neither yes nor no"),
        (lambda: Response(b" " * 5000), 1, "more than 4000 bytes"),
    ],
)
def test_whatever_goes_wrong_masks_its_row_within_the_bound(
    answer: Callable[[], Any], tries: int, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three siblings the second meets trouble; the others' advantages are those of a group without it."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def one_in_trouble(body: dict[str, Any], number: int) -> Any:
        row = int(re.search(r"number (\d)", json.dumps(body))[1])  # type: ignore[index]
        return answer() if row == 1 else likely(yes=-1.0 - row, no=-1.5)

    endpoint = Scripted(one_in_trouble)
    with serving(endpoint.app) as url:
        slow = answer in (late, trickle)
        scores = yes_no(url, timeout=1.0 if slow else 20.0, retries=2, limit=4000, key="JUDGE_KEY")
    assert scores.failed[:, 0].tolist() == [False, True, False]
    assert scores.total_valid.tolist() == [True, False, True]
    assert re.search(told, scores.info["error"][1])
    assert len(endpoint.asked) == 2 + tries
    group = torch.zeros(3, dtype=torch.long)
    advantage = advantages(scores, group)[0]
    alone = advantages(scores.select([0, 2]), group[:2])[0]
    assert advantage[1] == 0
    assert torch.equal(advantage[[0, 2]], alone)
    assert {headers["authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}
    assert KEY not in caplog.text
    assert KEY not in str(scores.info)


def test_a_server_that_is_not_there_fails_every_row_and_in_the_end_the_run() -> None:
    judge = YesNoJudge(endpoint=at("http://127.0.0.1:9", retries=1), question="x")
    scores = Runner(judge, max_failure=1.0)(prompts(3), images(3))
    assert scores.failed.all()
    assert "cannot be reached" in scores.info["error"][0]
    with pytest.raises(GenalignError, match=r"'yes-no' failed on 3 of the last 3 samples.*cannot be reached"):
        Runner(judge)(prompts(3), images(3))


def test_where_no_probabilities_are_given_the_word_itself_is_read() -> None:
    words = ["Yes, it does.", "no", "Perhaps"]

    def answer(body: dict[str, Any], number: int) -> dict[str, Any]:
        assert "logprobs" not in body
        return said(words[int(re.search(r"number (\d)", json.dumps(body))[1])], "length")  # type: ignore[index]

    with serving(Scripted(answer).app) as url:
        scores = yes_no(url, logprobs=False)
    assert scores.total.tolist() == [1, 0, 0]
    assert scores.failed[:, 0].tolist() == [False, False, True]


def test_the_self_ensemble_averages_what_it_can_read() -> None:
    script = {  # row -> its answers by seed rank
        0: ["Score: 2", "Score: 4", "Score: 6"],
        1: ["Score: 3", "no idea", "Score: 5"],
        2: ["Score: 3", "no idea", "Score: 11"],
    }
    seeds: dict[int, list[int]] = {row: [] for row in script}
    lock = threading.Lock()

    def answer(body: dict[str, Any], number: int) -> dict[str, Any]:
        row = int(re.search(r"number (\d)", json.dumps(body))[1])  # type: ignore[index]
        with lock:
            seeds[row].append(body["seed"])
            return said(script[row][len(seeds[row]) - 1])

    with serving(Scripted(answer).app) as url:
        judge = ScoreJudge(endpoint=at(url), question="How well does it show {prompt}?", passes=3)
        scores = judge(prompts(3), images(3))
    assert all(len(set(own)) == 3 for own in seeds.values())
    assert scores.values[:, 0].tolist() == [4, 4, 0]
    assert scores.failed[:, 0].tolist() == [False, False, True]
    assert scores.std is not None
    assert scores.std[:2, 0].tolist() == pytest.approx([2.0, 2**0.5])


@pytest.mark.parametrize(("text", "finish", "told"), [("Score: 7", "length", "cut off"), ("", "stop", "empty")])
def test_a_cut_off_or_empty_answer_is_a_failure(text: str, finish: str, told: str) -> None:
    with serving(Scripted(lambda body, number: said(text, finish)).app) as url:
        scores = ScoreJudge(endpoint=at(url), question="?")(prompts(2), images(2))
    assert scores.failed.all()
    assert told in scores.info["error"][0]


def test_minima_and_geometric_mean_are_reduced_in_each_pass_first() -> None:
    """EditScore's sqrt(min(following, consistency) * min(naturalness, artefacts)), each pass, then the mean."""
    passes = [{"follow": 9, "keep": 4, "natural": 8, "clean": 9}, {"follow": 1, "keep": 6, "natural": 4, "clean": 9}]
    turn = dict.fromkeys(passes[0], -1)

    def answer(body: dict[str, Any], number: int) -> dict[str, Any]:
        name = next(name for name in turn if f"<{name}>" in json.dumps(body))
        turn[name] += 1
        return said(f"Score: {passes[turn[name]][name]}")

    criteria = {name: f"<{name}>" for name in passes[0]}
    with serving(Scripted(answer).app) as url:
        groups = [["follow", "keep"], ["natural", "clean"]]
        judge = ScoreJudge(endpoint=at(url, at_once=1), criteria=criteria, minima=groups, passes=2)
        scores = judge(prompts(1), images(1))
    each = [(min(p["follow"], p["keep"]) * min(p["natural"], p["clean"])) ** 0.5 for p in passes]
    assert scores.total.item() == pytest.approx(sum(each) / 2)  # 3.83; the other order gives 5
    assert scores.values.tolist() == [[5, 5, 6, 9]]


def shipped_at(name: str, url: str) -> Any:
    """A shipped reward file with its judge behind this address."""
    spec = read_yaml(shipped("rewards") / f"{name}.yaml")
    judge = spec.get("shape", spec)
    judge.pop("model", None)
    judge["endpoint"] = at(url)
    return build_reward(spec, Path())


def test_edit_score_asks_two_questions_and_reads_two_scores_of_each() -> None:
    """By hand, of the published formula: sqrt(min(22, 18.5) min(16, 20)), in units of 25 as they are."""

    def answer(body: dict[str, Any], number: int) -> dict[str, Any]:
        both = sum(isinstance(piece, torch.Tensor) for piece in pieces(body)) == 2
        return said('{"reasoning": "...", "score": %s}' % ("[22, 18.5]" if both else "[16, 20]"))

    before, after = images(1)["image"].data, images(2)["image"].data[1:]
    script = Scripted(answer)
    with serving(script.app) as url:
        asked = [Prompt("make it red", Media(image=Track(before)))]
        scores = shipped_at("edit-score", url)(asked, Media(image=Track(after)))
    assert len(script.asked) == 2
    both = next(body for body in script.asked if len(pieces(body)) == 3)
    assert torch.allclose(pieces(both)[0], before[0], atol=1 / 255)  # the picture that is edited first
    assert torch.allclose(pieces(both)[1], after[0], atol=1 / 255)
    assert pieces(both)[2].endswith("Editing instruction: make it red\n")
    assert scores.values.tolist() == [[22, 18.5, 16, 20]]
    assert scores.total.item() == pytest.approx((18.5 * 16) ** 0.5)


JUDGES = (YesNoJudge, ScoreJudge, CompareJudge, QuestionsJudge)


@pytest.mark.parametrize(
    ("kind", "named"),
    [*((kind, name) for kind in JUDGES for name in ("image", "facts.style")), (RankJudge, "facts.style")],
)
def test_a_prompt_without_what_the_template_names_is_not_asked_about(kind: Any, named: str) -> None:
    """Neither the empty place of a picture nor the braces of a fact reach the judge: those rows abstain."""

    def answer(body: dict[str, Any], number: int) -> Any:
        if kind is RankJudge:
            return said('{"scores": {"A": 4}}')
        return said("Score: 4") if kind is ScoreJudge else likely(yes=-0.1, no=-3.0)

    own = {
        CompareJudge: {"reference": "facts.best"},
        RankJudge: {"principle": "good"},
        QuestionsJudge: {},
    }.get(kind, {"question": "Good?"})
    rest = {CompareJudge: "{first} {second}", RankJudge: "{samples} {keys}"}.get(kind, "{sample} {question}")
    picture, asks = Media(image=images(1)["image"]), [{"question": "Good?"}]
    whole = Prompt("a", picture, {"style": "ink", "best": "z", "questions": asks})
    bare = Prompt("b", None, {"style": None, "best": "z", "questions": asks})
    empty = Prompt("c", Media(text=Track(["x"])), {"best": "z", "questions": asks})
    script = Scripted(answer)
    with serving(script.app) as url:
        judge = kind(endpoint=at(url), reads="text", template=f"{{{named}}} {rest}", **own)
        scores = judge([bare, whole, empty], texts("x", "y", "z"), torch.tensor([0, 1, 2]))
    assert scores.valid[:, 0].tolist() == scores.total_valid.tolist() == [False, True, False]
    assert not scores.failed.any()
    assert script.asked
    for body in script.asked:
        words = "".join(piece for piece in pieces(body) if isinstance(piece, str))
        assert "{" not in words.replace('{"', "")
        assert ("ink" in words) if named != "image" else any(isinstance(piece, torch.Tensor) for piece in pieces(body))
    assert (named in judge.needs) == (named != "image")


def test_a_criterion_that_names_the_prompts_picture_abstains_without_one() -> None:
    script = Scripted(lambda body, number: likely(yes=-0.1, no=-3.0))
    with serving(script.app) as url:
        about = {"kept": "Is {image} kept in {sample}?", "good": "Is it good?"}
        judge = YesNoJudge(endpoint=at(url), reads="text", criteria=about)
        asked = [Prompt("a"), Prompt("a", Media(image=images(1)["image"]))]
        scores = judge(asked, texts("x", "y"))
    assert scores.valid.tolist() == [[False, True], [True, True]]
    assert scores.total_valid.tolist() == [True, True]
    assert len(script.asked) == 3


def test_a_question_about_two_samples_names_neither() -> None:
    with pytest.raises(UsageError, match=r"has \{sample\} in its template, which nothing fills"):
        CompareJudge(endpoint=at("http://x"), reference="facts.best", reads="text", question="Is {sample} good?")


def test_scores_of_one_answer_abstain_where_it_says_none() -> None:
    """RationalRewards' (mean - 1) / 3 over what applies, and UnifiedReward's three."""
    rational = "## Score: 2.5\n## Score: 3.5\n## Score: N/A"
    unified = "Alignment Score (1-5): 2.5\nCoherence Score (1-5): 3\nStyle Score (1-5): 4.25"
    for name, text, total in (("image-rational", rational, 2 / 3), ("image-unified-reward", unified, 9.75)):
        script = Scripted(lambda body, number, text=text: said(text))  # type: ignore[misc]
        with serving(script.app) as url:
            scores = shipped_at(name, url)(prompts(1), images(1))
        assert len(script.asked) == 1
        assert scores.total.item() == pytest.approx(total)


def listwise(score: Callable[[str, int], float], broken: str = "") -> Callable[[dict[str, Any], int], Any]:
    """A judge that reads `[A]:` text blocks and scores each by `score(text, place)`."""

    def answer(body: dict[str, Any], number: int) -> Any:
        told = pieces(body)[0]
        if broken and broken in told:
            return said('{"scores": {"A": 3')
        blocks = re.findall(r"^\[(\w+)\]:\n(.*)$", told, re.MULTILINE)
        return said("I think. " + json.dumps({"scores": {key: score(text, i) for i, (key, text) in enumerate(blocks)}}))

    return answer


def test_a_principle_decides_a_shuffled_list() -> None:
    said_texts = ["one", "one two", "one two three", "a", "a b c d"]
    asked, group = [Prompt("go", uid=u) for u in (0, 0, 0, 1, 1)], torch.tensor([0, 0, 0, 1, 1])

    def words(body: dict[str, Any], number: int) -> Any:
        short = "concise" in pieces(body)[0]
        return listwise(lambda text, place: 5.0 - len(text.split()) if short else 0.5 + len(text.split()))(body, number)

    endpoint = Scripted(words)
    with serving(endpoint.app) as url:
        short, long = (
            RankJudge(endpoint=at(url), principle=principle, reads="text", passes=4)
            for principle in ("be concise", "be detailed")
        )
        assert short.looks_at == "group"
        one, two = short(asked, texts(*said_texts), group), long(asked, texts(*said_texts), group)
        order = [4, 2, 0, 3, 1]
        back = short([asked[i] for i in order], texts(*(said_texts[i] for i in order)), group[order])
    assert one.total.tolist() == [4, 3, 2, 4, 1]
    assert two.total.tolist() == [1.5, 2.5, 3.5, 1.5, 4.5]
    assert back.total.tolist() == one.total[order].tolist()
    assert one.std is not None
    assert one.std.abs().max() == 0
    first_shown = {re.search(r"\[A\]:\n(.*)", pieces(body)[0])[1] for body in endpoint.asked}  # type: ignore[index]
    assert len(first_shown) > 3  # the orders differ


def test_a_judge_that_prefers_the_top_of_a_list_is_told_of_and_averaged_out() -> None:
    asked, group = [Prompt("go", uid=0) for _ in range(2)], torch.tensor([0, 0])
    with serving(Scripted(listwise(lambda text, place: 5.0 - 3 * place)).app) as url:
        judge = RankJudge(endpoint=at(url), principle="good", reads="text", passes=32)
        scores = judge(asked, texts("x", "y"), group)
    assert scores.info["position_bias"] == [3.0, 3.0]
    assert (scores.total[0] - scores.total[1]).abs() < 1.6
    assert scores.std is not None
    assert scores.std.min() > 1.3


def test_a_broken_list_masks_its_group_and_no_other() -> None:
    asked, group = [Prompt("go", uid=u) for u in (0, 0, 1, 1)], torch.tensor([0, 0, 1, 1])
    with serving(Scripted(listwise(lambda text, place: 2.0, broken="poison")).app) as url:
        judge = RankJudge(endpoint=at(url), principle="good", reads="text")
        scores = judge(asked, texts("x", "poison", "y", "z"), group)
    assert scores.failed[:, 0].tolist() == [True, True, False, False]
    assert scores.total_valid.tolist() == [False, False, True, True]


def test_a_comparison_by_an_endpoint_asks_both_orders_and_tells_its_bias() -> None:
    """The judge adds 0.1 to whatever is shown first; truth: brighter is better."""

    def answer(body: dict[str, Any], number: int) -> dict[str, Any]:
        first, second = (float(p.mean()) for p in pieces(body) if isinstance(p, torch.Tensor))
        p = torch.tensor(0.5 + 0.3 * (1 if first > second else -1) + 0.1)
        return likely(yes=float(p.log()), no=float((1 - p).log()))

    dark, bright = torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.8)
    asked = [Prompt("x", media=Media(image=Track(other[None]))) for other in (dark, bright)]
    with serving(Scripted(answer).app) as url:
        judge = CompareJudge(endpoint=at(url), reference="prompt")
        scores = judge(asked, Media(image=Track(torch.stack([bright, dark]))))
    assert scores.total.tolist() == pytest.approx([0.8, 0.2], abs=1e-6)
    assert scores.info["position_bias"] == pytest.approx([0.2, 0.2], abs=1e-6)
    assert scores.info["order_flips"] == [False, False]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "ftp://x/v1"}, "address is http"),
        ({"url": "http://user:pw@x/v1"}, "environment variable"),
        ({"url": f"http://x/v1?key={KEY}"}, "environment variable"),
        ({"key": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE.*is not set"),
        ({"timeout": 0}, "timeout of http://x/v1 is 0"),
        ({"retries": -1}, "retries of"),
        ({"at_once": 0}, "at_once"),
        ({"temprature": 0}, "no setting 'temprature'"),
    ],
)
def test_wrong_endpoints_are_refused_in_one_sentence_without_their_key(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        YesNoJudge(endpoint={"url": "http://x/v1", "model": "m", **settings}, question="?")
    assert KEY not in str(caught.value)
    assert "pw" not in str(caught.value)


# ---- requests as different endpoints want them -----------------------------------------------------------------------


def ask(
    answer: Any, judge: Any = YesNoJudge, kwargs: Any = None, retries: int = 0, **endpoint: Any
) -> tuple[Scores, list]:
    scripted = Scripted(answer)
    with serving(scripted.app) as url:
        given = {"url": f"{url}/v1", "model": "m", "pause": 0.01, "retries": retries, **endpoint}
        more = {} if kwargs is None else {"chat_template_kwargs": kwargs}
        made = judge(endpoint=given, question="is it {prompt}?", **more)
        return Runner(made, max_failure=1.0)(prompts(1), images(1)), scripted.asked


def test_a_request_has_openai_s_and_vllm_s_fields() -> None:
    """OpenAI: max_completion_tokens in place of max_tokens, no temperature; vLLM: chat_template_kwargs in the body."""
    plain = ask(lambda *_: likely(yes=-0.1, no=-2.5))[1][0]
    assert {k: v for k, v in plain.items() if k not in ("messages", "model")} == {
        "max_tokens": 1, "temperature": 0.0, "seed": 0, "logprobs": True, "top_logprobs": 20,
    }  # fmt: skip
    newer = {"max_completion_tokens": 16, "temperature": None, "top_logprobs": 5}
    body = {"seed": None, "reasoning_effort": "minimal", "chat_template_kwargs": {"a": 1}}
    scores, asked = ask(lambda *_: likely(yes=-0.1, no=-2.5), kwargs={"enable_thinking": False}, body=body, **newer)
    assert scores.valid.all()
    assert {k: v for k, v in asked[0].items() if k not in ("messages", "model")} == {
        "max_completion_tokens": 16, "logprobs": True, "top_logprobs": 5, "reasoning_effort": "minimal",
        "chat_template_kwargs": {"enable_thinking": False, "a": 1},
    }  # fmt: skip
    written = ask(lambda *_: said("Score: 7"), ScoreJudge, max_tokens=900, temperature=0.3)[1][0]
    assert (written["max_tokens"], written["temperature"]) == (900, 0.3)
    assert "logprobs" not in written


def strict(body: dict[str, Any], number: int) -> Any:
    """A server that allows 5 log-probabilities, in vLLM's words."""
    if body.get("top_logprobs", 0) > 5:
        message = "Requested sample logprobs of 20, which is greater than max allowed: 5"
        return JSONResponse({"object": "error", "message": message, "type": "BadRequestError", "code": 400}, 400)
    return likely(Yes=math.log(0.6), no=math.log(0.3), It=math.log(0.05), A=math.log(0.02), I=math.log(0.01))


def test_a_server_that_allows_five_alternatives_works_and_its_refusal_names_the_key() -> None:
    scores, _ = ask(strict)
    assert re.search(r"answered 400: Requested sample logprobs of 20.*top_logprobs", scores.info["error"][0])
    scores, _ = ask(strict, top_logprobs=5)
    assert scores.total.tolist() == pytest.approx([0.6 / 0.9])


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (
            lambda: JSONResponse({"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this "
             "model. Use 'max_completion_tokens' instead.", "type": "invalid_request_error", "param": "max_tokens",
             "code": "unsupported_parameter"}}, 400),
            r"answered 400: Unsupported parameter: 'max_tokens'.*settings are max_completion_tokens",
        ),
        (lambda: JSONResponse({"detail": [{"msg": "field required"}]}, 422), "answered 422: field required"),
        (lambda: JSONResponse({"error": "no such model"}, 404), "answered 404: no such model"),
        (lambda: JSONResponse({"error": {"message": "busy"}}, 529), r"answered 529: busy \(try 2\)"),
        (lambda: JSONResponse({"error": {"message": "no credit", "code": 402}}), "answered an error: no credit"),
        (lambda: {"choices": [{"error": {"message": "upstream died"}}]}, "upstream died"),
        (lambda: {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}, "content filter"),
        (lambda: likely(**{"<think>": -0.001, "yes": -9.0}), "neither yes nor no.*enable_thinking"),
        (lambda: {"choices": [{"message": {"content": "y"}, "logprobs": {"content": [{"token": "y", "logprob": 0.0,
          "top_logprobs": []}]}}]}, "gives no top_logprobs"),
    ],
)  # fmt: skip
def test_an_error_says_what_the_server_said(reply: Any, told: str) -> None:
    scores, _ = ask(lambda *_: reply(), retries=1)
    assert scores.failed.all()
    assert re.search(told, scores.info["error"][0])


def test_a_wait_in_milliseconds_is_kept_and_other_5xx_are_tried_again() -> None:
    when: list[float] = []

    def answer(body: Any, number: int) -> Any:
        when.append(time.monotonic())
        if number == 0:
            return JSONResponse({}, 429, {"retry-after-ms": "300"})
        return JSONResponse({}, 520) if number == 1 else likely(yes=-1.0, no=-1.0)

    scores, _ = ask(answer, retries=2)
    assert scores.total.tolist() == [0.5]
    assert when[1] - when[0] >= 0.29


def test_the_older_form_of_logprobs_is_read() -> None:
    old = {"tokens": ["Yes"], "token_logprobs": [-0.1], "top_logprobs": [{"Yes": math.log(0.6), " no": math.log(0.2)}]}
    scores, _ = ask(lambda *_: {"choices": [{"message": {"content": "Yes"}, "logprobs": old}]})
    assert scores.total.tolist() == pytest.approx([0.75])


def test_thoughts_before_a_written_word_are_no_answer() -> None:
    for text, expected in (("<think>no?</think>Yes.", 1.0), ("no?</think>\nYes", 1.0), ("<think>yes", None)):
        scores, _ = ask(lambda *_, text=text: said(text), logprobs=False, max_tokens=64)
        assert (scores.total.item() if scores.valid.all() else None) == expected


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"body": {"messages": []}}, "genalign's own"),
        ({"body": {"stream": True}}, "genalign's own"),
        ({"body": ["x"]}, "body of endpoint"),
        ({"body": {"x": math.nan}}, "not JSON"),
        ({"top_logprobs": 0}, "top_logprobs of endpoint"),
        ({"max_completion_tokens": 0}, "max_completion_tokens of endpoint"),
        ({"temperature": "hot"}, "temperature of endpoint"),
        ({"max_completion_token": 5}, "did you mean 'max_completion_tokens'"),
    ],
)
def test_wrong_request_settings_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        YesNoJudge(endpoint={"url": "http://x/v1", "model": "m", **settings}, question="?")


def test_the_version_of_an_endpoint_holds_what_changes_its_answers() -> None:
    def version(**more: Any) -> str:
        return YesNoJudge(endpoint={"url": "http://x/v1", "model": "m", **more}, question="?").version

    plain = version()
    assert version(timeout=3.0, at_once=2, top_logprobs=20, body={}) == plain
    others = [
        version(**more)
        for more in ({"top_logprobs": 5}, {"temperature": 0.5}, {"temperature": None}, {"max_completion_tokens": 9},
                     {"body": {"seed": None}}, {"body": {"reasoning_effort": "low"}})
    ]  # fmt: skip
    assert len({plain, *others}) == 7
