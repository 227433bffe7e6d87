"""Judges whose next token is not an answer, and what their chat templates and endpoints are given."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.responses import JSONResponse
from transformers import AutoModelForImageTextToText, AutoProcessor

from genalign.reward import CompareJudge, Runner, ScoreJudge, YesNoJudge
from genalign.reward.base import ScoringError
from genalign.reward.judge.asking import p_yes
from genalign.types import Media, Prompt, Scores, Track, UsageError
from tests.helpers.toy_judges import CHAT, Scripted, likely, said, serving, tiny_vlm
from tests.helpers.toy_rewards import images, prompts

THINKS = "{{ 'cat ' if enable_thinking is not defined or enable_thinking else 'dog ' }}"


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge whose chat template reads enable_thinking."""
    folder = tiny_vlm(tmp_path_factory.mktemp("models") / "vlm")
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = CHAT + THINKS
    processor.save_pretrained(folder)
    return folder


def shifted(judge: Any, token: str, by: float) -> Any:
    """The judge, its model putting exp(by) more on a token: a stand-in for one that begins with <think>."""
    net, processor = judge.answerer._loaded
    index = processor.tokenizer.convert_tokens_to_ids(token)
    head = net.get_output_embeddings()

    def more(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        shift = torch.zeros(logits.shape[-1])
        shift[index] = by
        return logits + shift

    head.register_forward_hook(more)
    return judge


# ---- the mass of yes and no ------------------------------------------------------------------------------------------


def test_a_ratio_of_nothing_is_no_answer_here_as_there(vlm: Path) -> None:
    """lm-evaluation-harness#3088: p(yes) / (p(yes) + p(no)) of two probabilities that are both 0 is noise."""
    judge = shifted(YesNoJudge(model=vlm, question="is it {prompt} ?"), "star", 30.0)
    scores = Runner(judge, max_failure=1.0)(prompts(3), images(3))
    assert scores.failed.all()
    assert not scores.total_valid.any()
    assert re.search(r"neither yes nor no.*below 0\.01.*'star'", scores.info["error"][0])


@pytest.mark.parametrize("graph", [False, True])
def test_rows_with_mass_keep_their_value_beside_rows_without(vlm: Path, graph: bool) -> None:
    judge, data = YesNoJudge(model=vlm, question="is it {prompt} ?"), images(3)["image"].data
    assert isinstance(data, torch.Tensor)
    before = judge(prompts(3), Media(image=Track(data))).total
    net = judge.answerer._loaded[0]  # type: ignore[attr-defined]
    star = judge.answerer._tokenizer.convert_tokens_to_ids("star")  # type: ignore[attr-defined]

    def second_row(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        shift = torch.zeros_like(logits)
        shift[1, :, star] = 40.0
        return logits + shift

    net.get_output_embeddings().register_forward_hook(second_row)
    pixels = data.clone().requires_grad_(graph)
    scores = judge(prompts(3), Media(image=Track(pixels)))
    assert scores.failed[:, 0].tolist() == [False, True, False]
    assert scores.total_valid.tolist() == [True, False, True]
    assert scores.total[[0, 2]].tolist() == pytest.approx(before[[0, 2]].tolist(), abs=2e-3)
    assert scores.total.requires_grad == graph
    if graph:
        (gradient,) = torch.autograd.grad(scores.total.sum(), pixels)
        assert gradient.isfinite().all()
        assert not gradient[1].any()
        assert gradient[0].any()


def test_logits_that_are_not_finite_fail(vlm: Path) -> None:
    judge = shifted(YesNoJudge(model=vlm, question="is it {prompt} ?"), "star", math.nan)
    assert judge(prompts(2), images(2)).failed.all()


def test_a_comparison_has_the_same_rule(vlm: Path) -> None:
    judge = shifted(CompareJudge(model=vlm, reference="prompt"), "star", 30.0)
    scores = judge([Prompt("cat", media=images(1))], images(1))
    assert scores.failed.all()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"yes": 0.02, "no": 0.02, "The": 0.9}, 0.5),
        ({"yes": 0.004, "no": 0.004, "The": 0.9}, None),
        ({"<think>": 1.0, "yes": 1e-9}, None),
        ({"Yes": 0.97, "It": 0.01, "The": 0.01, "A": 0.005, "I": 0.004}, 1.0),  # five alternatives
        ({"The": 0.5, "It": 0.2, "A": 0.1, "I": 0.08, "yes": 0.07}, None),  # "no" may have almost as much
    ],
)
def test_p_yes_needs_its_mass_and_both_sides(tokens: dict[str, float], expected: float | None) -> None:
    listed = [(token, math.log(p)) for token, p in tokens.items()]
    if expected is None:
        with pytest.raises(ScoringError, match=r"neither yes nor no|top_logprobs"):
            p_yes(listed)
    else:
        assert p_yes(listed) == pytest.approx(expected)


def test_a_model_that_thinks_first_is_told_the_cure() -> None:
    with pytest.raises(ScoringError, match="enable_thinking: false"):
        p_yes([("<think>", -1e-6), ("yes", -16.0)])


# ---- template arguments ---------------------------------------------------------------------------------------------


def test_arguments_reach_the_chat_template(vlm: Path) -> None:
    """The oracle is the processor's own apply_chat_template."""
    asked = YesNoJudge(model=vlm, question="is it {prompt} ?", chat_template_kwargs={"enable_thinking": False})
    (question,) = [asked._ask(Prompt("cat"), [torch.zeros(3, 16, 16)], "is it {prompt} ?")]
    processor = AutoProcessor.from_pretrained(vlm)
    content = [{"type": "image"}, {"type": "text", "text": "\nis it cat ? Answer yes or no."}]
    turns = [{"role": "user", "content": content}]
    expected = processor.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=False)
    assert asked.answerer._written(question) == expected  # type: ignore[attr-defined]
    assert expected.endswith("dog ")
    inputs = processor(text=expected, images=torch.zeros(3, 16, 16), return_tensors="pt", add_special_tokens=False)
    net = AutoModelForImageTextToText.from_pretrained(vlm).eval()
    with torch.no_grad():
        p = net(**inputs).logits[0, -1].double().softmax(0)
    yes, no, capital = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no", "Yes"))
    got = asked([Prompt("cat")], Media(image=Track(torch.zeros(1, 3, 16, 16)))).total.item()
    assert got == pytest.approx(((p[yes] + p[capital]) / (p[yes] + p[capital] + p[no])).item(), abs=1e-4)


def test_versions_change_with_them_and_only_with_them(vlm: Path) -> None:
    plain = YesNoJudge(model=vlm, question="x").version
    assert YesNoJudge(model=vlm, question="x", chat_template_kwargs={}).version == plain
    off = YesNoJudge(model=vlm, question="x", chat_template_kwargs={"enable_thinking": False}).version
    on = YesNoJudge(model=vlm, question="x", chat_template_kwargs={"enable_thinking": True}).version
    assert len({plain, off, on}) == 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"enable_thinkin": False}, "does not read 'enable_thinkin'; did you mean 'enable_thinking'"),
        ({"tokenize": True}, "genalign's own"),
        ({"messages": []}, "genalign's own"),
        ("enable_thinking", "is a mapping"),
    ],
)
def test_wrong_arguments_are_refused(vlm: Path, given: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        YesNoJudge(model=vlm, question="x", chat_template_kwargs=given)(prompts(1), images(1))


# ---- endpoints ------------------------------------------------------------------------------------------------------


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
        (lambda: JSONResponse({"error": {"message": "out of credit", "code": 402}}), "answered an error: out of credit"),
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
    import time

    at: list[float] = []

    def answer(body: Any, number: int) -> Any:
        at.append(time.monotonic())
        if number == 0:
            return JSONResponse({}, 429, {"retry-after-ms": "300"})
        return JSONResponse({}, 520) if number == 1 else likely(yes=-1.0, no=-1.0)

    scores, _ = ask(answer, retries=2)
    assert scores.total.tolist() == [0.5]
    assert at[1] - at[0] >= 0.29


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
