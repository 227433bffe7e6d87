"""Judges in this process whose next token is not an answer, and what their chat templates are given."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from genalign.reward import CompareJudge, Runner, YesNoJudge
from genalign.reward.base import ScoringError
from genalign.reward.judge.asking import Question, p_yes
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.tiny_language import tiny_language
from tests.helpers.toy_judges import CHAT, tiny_vlm
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


@pytest.mark.parametrize("special", [True, False])
def test_thoughts_are_no_answer_whether_their_end_is_a_special_token_or_not(tmp_path: Path, special: bool) -> None:
    folder = tiny_vlm(tmp_path / "vlm")
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_tokens(["</think>"], special_tokens=special)
    processor.tokenizer.save_pretrained(folder)
    answerer: Any = YesNoJudge(model=folder, question="x").answerer
    tokens = ["no", "cat", "</think>", "dog", "star", "<eos>"]
    ids = torch.tensor(answerer._tokenizer.convert_tokens_to_ids(tokens))
    assert answerer._read(ids, 20).split() == ["dog", "star"]


@pytest.mark.parametrize(("own", "most"), [(None, 400), (20, 20)])
def test_an_answer_is_drawn_from_all_tokens_unless_the_folder_says_otherwise(
    tmp_path: Path, own: int | None, most: int
) -> None:
    """Of 400 nearly equally likely tokens 640 draws find 400 (1 - (1 - 1/400)^640) = 319; not transformers' 50."""
    model, tokenizer = tiny_language(chat=True)
    model.resize_token_embeddings(400)
    torch.nn.init.normal_(model.lm_head.weight, std=1e-3)  # equal ones would all be among the likeliest 50
    model.generation_config.update(top_k=own, eos_token_id=None, do_sample=own is not None)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    answerer: Any = YesNoJudge(model=tmp_path, question="x", batch_size=64).answerer
    drawn: list[int] = []
    answerer._read = lambda ids, tokens: drawn.extend(ids.tolist()) or "read"
    assert answerer.write([Question(("hello",))] * 640, list(range(640)), 1, 1.0) == ["read"] * 640
    assert len(drawn) == 640
    found = len(set(drawn))
    assert found <= most
    assert found > 0.7 * most


# ---- answers about the prompt's own picture -----------------------------------------------------------------------


def test_a_tagged_answer_is_judged_beside_the_picture_that_the_prompt_brings(vlm: Path) -> None:
    """As asking the model by hand about the same picture with the answer in the question; without the tag p(yes) is 0,
    and without the fact that the question needs the row abstains."""
    pictures = images(3)["image"].data
    assert isinstance(pictures, torch.Tensor)
    asked = [
        Prompt("what", Media(image=Track(picture[None])), {"after": after})
        for picture, after in zip(pictures, ("star", "star", None), strict=True)
    ]
    written = ["<think>two dog</think><answer> a cat </answer>", "a cat", "<answer>a cat</answer>"]
    about = {"question": "is this {sample} {facts.after} ?", "reads": "text", "template": "{image} {question}"}
    judge = YesNoJudge(model=vlm, tag="answer", **about)  # type: ignore[arg-type]
    assert judge.needs == {"text", "facts.after"}
    assert judge.prefetches(frozenset({"text"})) == ()
    scores = judge(asked, Media(text=Track(written)))
    plain = YesNoJudge(model=vlm, question="is this a cat star ?", template="{sample} {question}")
    expected = float(plain([Prompt("x")], Media(image=Track(pictures[:1]))).total[0])
    assert scores.total.tolist() == pytest.approx([expected, 0.0, 0.0], abs=1e-5)
    assert scores.valid[:, 0].tolist() == [True, True, False]
    other = plain([Prompt("x")], Media(image=Track(pictures[1:2]))).total
    assert abs(float(other[0]) - expected) > 1e-6
    assert judge.version != YesNoJudge(model=vlm, **about).version  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "alike"), [({}, True), ({"template": "{image} {sample}"}, False), ({"question": "{facts.x} ?"}, False)]
)
def test_batches_begin_at_the_same_samples_only_where_all_are_asked(vlm: Path, words: Any, alike: bool) -> None:
    judge = YesNoJudge(model=vlm, **{"question": "good ?", **words})
    assert bool(judge.prefetches(frozenset({"image"}))) == alike


def test_a_tag_is_of_a_text(vlm: Path) -> None:
    with pytest.raises(UsageError, match="set reads: text"):
        YesNoJudge(model=vlm, question="x", tag="answer")
