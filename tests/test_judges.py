"""Judges in this process: p(yes) against the softmax written out, both orders, criteria, and reading of answers."""

import json
import math
from pathlib import Path

import pytest
import torch

from genalign.media.image import save_png, to_pil
from genalign.reward import CompareJudge, RankJudge, Runner, ScoreJudge, YesNoJudge, build_reward
from genalign.reward.base import ScoringError
from genalign.reward.judge.asking import fill, p_yes, read_score, read_scores
from genalign.types import Media, Prompt, Reward, Track, UsageError
from tests.tiny_language import save_tiny_language
from tests.toy_judges import tiny_vlm
from tests.toy_rewards import images, prompts, texts


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm(tmp_path_factory.mktemp("models") / "vlm")


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_language(tmp_path_factory.mktemp("models") / "language")


def cats(rows: int) -> list[Prompt]:
    """Prompts of different lengths, all of words that the tiny models know."""
    return [Prompt(" ".join(["two", "cat", "dog", "star"][: 1 + i % 4]), uid=i) for i in range(rows)]


@pytest.mark.parametrize("chat", [True, False])
def test_p_yes_is_the_softmax_over_yes_and_no(tmp_path: Path, chat: bool) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tiny_vlm(tmp_path / "vlm", chat)
    asked, given = cats(5), images(5)
    scores = YesNoJudge(model=folder, question="is it {prompt} ?", batch_size=2)(asked, given)
    net, processor = AutoModelForImageTextToText.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    for row, prompt in enumerate(asked):
        turn = f"<image>\nis it {prompt.text} ? Answer yes or no."
        written = f"user {turn} " if chat else turn
        picture = to_pil(given["image"].data[row])  # type: ignore[arg-type]
        inputs = processor(text=written, images=picture, return_tensors="pt", add_special_tokens=not chat)
        with torch.no_grad():
            p = net(**inputs).logits[0, -1].double().softmax(0)
        yes, no, capital = (processor.tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no", "Yes"))
        expected = (p[yes] + p[capital]) / (p[yes] + p[capital] + p[no])
        assert scores.total[row].item() == pytest.approx(expected.item(), abs=1e-5)
    assert scores.total.std() > 0.01
    assert scores.valid.all()


def test_batch_size_and_order_do_not_matter(vlm: Path, language: Path) -> None:
    asked, order = cats(6), [4, 0, 5, 2, 1, 3]
    for reads, folder, given in (("image", vlm, images(6)), ("text", language, texts(*["a cat", "two red dog"] * 3))):
        judges = [
            YesNoJudge(model=folder, question="is it {prompt}", reads=reads, batch_size=size)  # type: ignore[arg-type]
            for size in (1, 4, 8)
        ]
        one, four, all_ = (judge(asked, given).total for judge in judges)
        shuffled = judges[1]([asked[i] for i in order], given.select(order)).total
        assert one.std() > 1e-3
        assert torch.allclose(one, four, atol=1e-5)
        assert torch.allclose(one, all_, atol=1e-5)
        assert torch.allclose(shuffled, one[order], atol=1e-5)


def test_p_yes_has_the_gradient_of_its_own_difference_quotient(vlm: Path) -> None:
    tasks = {"a": {"cat": "is it {prompt}", "dog": "two {prompt}"}, "b": {"dog": "two {prompt}"}}
    judge = YesNoJudge(model=vlm, tasks=tasks, batch_size=2, dtype="float32")
    asked = [Prompt(p.text, facts={"task": "ab"[p.uid % 2]}, uid=p.uid) for p in cats(3)]
    plain = images(3)["image"].data
    assert isinstance(plain, torch.Tensor)
    pixels = plain.clone().requires_grad_()
    scores = judge(asked, Media(image=Track(pixels)))
    told = judge(asked, Media(image=Track(plain)))
    assert judge.differentiable
    assert told.total.grad_fn is None
    assert torch.equal(scores.valid, told.valid)
    assert scores.valid.tolist() == [[True, True], [False, True], [True, True]]
    torch.testing.assert_close(scores.total, told.total, atol=2e-3, rtol=0)  # 8 bits there, float here
    for row in range(3):
        (gradient,) = torch.autograd.grad(scores.total[row], pixels, retain_graph=True)
        others = [k for k in range(3) if k != row]
        assert not gradient[others].any()
        way = gradient[row] / gradient[row].norm()
        ends = []
        for step in (0.02, -0.02):
            there = plain.clone()
            there[row] += step * way
            ends.append(judge(asked, Media(image=Track(there.requires_grad_()))).total[row].item())
        assert (ends[0] - ends[1]) / 0.04 == pytest.approx(gradient[row].norm().item(), rel=0.05)
        assert ends[0] - ends[1] > 1e-3


def test_only_a_model_in_this_process_passes_gradients_to_pictures(
    vlm: Path, language: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = YesNoJudge(endpoint={"url": "http://127.0.0.1:9/v1", "model": "x"}, question="is it {prompt}")
    of_texts = YesNoJudge(model=language, question="is it {prompt}", reads="text")
    assert not there.differentiable
    assert not of_texts.differentiable
    assert not ScoreJudge(model=vlm, question="rate {prompt}").differentiable
    assert not YesNoJudge(model=vlm, question="is it {prompt}", template="{question}").differentiable
    judge = YesNoJudge(model=vlm, question="is it {prompt}")
    pixels = images(1)["image"].data
    assert isinstance(pixels, torch.Tensor)
    given = Media(image=Track(pixels.requires_grad_()))
    with torch.no_grad():
        assert not judge(cats(1), given).total.requires_grad
    assert Runner(judge)(cats(1), given).total.requires_grad
    processor = judge.answerer._loaded[1].image_processor  # type: ignore[attr-defined]
    real = type(processor).preprocess

    def by(leave):
        return lambda self, x, *a, **k: real(self, [[leave(leaf) for leaf in row] for row in x], *a, **k)

    for leave in (lambda leaf: leaf.detach(), lambda leaf: leaf.numpy()):  # as processors in PIL and numpy do
        monkeypatch.setattr(type(processor), "preprocess", by(leave))
        with pytest.raises(UsageError, match="passes no gradient on to the pixels"):
            Runner(judge)(cats(1), given)


def test_a_language_model_judges_texts_and_sees_no_picture(language: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    judge = YesNoJudge(model=language, question="is {prompt} red", reads="text", template="{sample} {question}")
    assert judge.needs == {"text", "prompt"}
    got = judge([Prompt("the cat")], texts("a red cat")).total.item()
    net, tokenizer = AutoModelForCausalLM.from_pretrained(language).eval(), AutoTokenizer.from_pretrained(language)
    with torch.no_grad():
        p = net(**tokenizer("a red cat is the cat red", return_tensors="pt")).logits[0, -1].double().softmax(0)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    assert got == pytest.approx((p[yes] / (p[yes] + p[no])).item(), abs=1e-5)
    with pytest.raises(UsageError, match="sees no picture"):
        YesNoJudge(model=language, question="good")(prompts(1), images(1))


def test_tasks_and_criteria_are_asked_of_one_model_and_abstain_where_they_do_not_apply(vlm: Path) -> None:
    tasks = {"fill": {"fits": "is it {prompt} ?", "good": "good ?"}, "remove": {"gone": "is {facts.object} this ?"}}
    judge = YesNoJudge(model=vlm, tasks=tasks, weights={"good": 3.0})
    assert judge.aspects == ("fits", "good", "gone")
    assert judge.needs == {"image", "prompt", "facts.task", "facts.object"}
    facts = [
        {"task": "fill"},
        {"task": "remove", "object": "dog"},
        {"task": "remove", "object": None},
        {"task": "else"},
    ]
    asked = [Prompt("cat", facts=fact) for fact in facts]
    given = images(4)
    scores = judge(asked, given)
    assert scores.valid.tolist() == [[True, True, False], [False, False, True], [False] * 3, [False] * 3]
    assert not scores.failed.any()
    assert scores.total_valid.tolist() == [True, True, False, False]
    fits, good = (YesNoJudge(model=vlm, question=q)(asked[:1], given.select([0])).total for q in tasks["fill"].values())
    assert scores.values[0, :2].tolist() == pytest.approx([fits.item(), good.item()], abs=1e-5)
    assert scores.total[0].item() == pytest.approx(
        (fits + 3 * good).item() * 5 / 4, abs=1e-5
    )  # all weights: 5, told: 4


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
    rows = [{"file": f"{i:05d}.png", "prompt": prompt, "seed": i} for i, prompt in enumerate(["cat", "dog"])]
    for i, row in enumerate(rows):
        save_png(other["image"].data[i], drawn / str(row["file"]))  # type: ignore[arg-type]
    (drawn / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = build_reward({"use": "judge-compare", "model": str(vlm), "references": "base"}, tmp_path)
    assert isinstance(judge, Reward)
    scores = judge([Prompt("dog"), Prompt("star"), Prompt("cat")], mine)
    assert scores.valid[:, 0].tolist() == [True, False, True]
    assert not scores.failed.any()
    exact = Media(image=Track(other["image"].data.mul(255).round().div(255)))  # type: ignore[union-attr]
    asked = [Prompt("dog", media=exact.select([1])), Prompt("cat", media=exact.select([0]))]
    expected = CompareJudge(model=vlm, reference="prompt")(asked, mine.select([0, 2])).total
    assert scores.total[[0, 2]].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_nonsense_of_a_real_model_is_a_failure_and_never_a_number(vlm: Path) -> None:
    judges = [
        ScoreJudge(model=vlm, question="good ?", max_tokens=6, passes=3),
        RankJudge(model=vlm, principle="good", max_tokens=6),
    ]
    for judge in judges:
        scores = Runner(judge, max_failure=1.0)(cats(2), images(2), torch.tensor([0, 0]))
        assert scores.failed.all()
        assert not scores.total_valid.any()
        assert all("cut off" in error or "score" in error or "empty" in error for error in scores.info["error"])


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([("Yes", 0.6), (" yes", 0.1), ("No", 0.2), ("maybe", 0.1)], 0.7 / 0.9),
        ([("▁YES", 0.3), ("Ġno", 0.3), ("yesterday", 0.4)], 0.5),
        ([("yes", 1e-8), ("no", 3e-8)], 0.25),
        ([("no,", 0.9)], 0.0),
    ],
)
def test_p_yes_sums_over_spellings(tokens: list[tuple[str, float]], expected: float) -> None:
    """Invariant 31."""
    logs = [(token, math.log(p)) for token, p in tokens]
    assert p_yes(logs) == pytest.approx(expected)
    swap = {
        "Yes": "No",
        " yes": " no",
        "No": "Yes",
        "▁YES": "▁NO",
        "Ġno": "Ġyes",
        "yes": "no",
        "no": "yes",
        "no,": "yes,",
    }
    assert p_yes([(swap.get(token, token), logp) for token, logp in logs]) == pytest.approx(1 - expected)


def test_p_yes_of_neither_is_no_answer() -> None:
    """Invariant 31."""
    with pytest.raises(ScoringError, match="neither yes nor no"):
        p_yes([("The", -0.1), ("I", -2.0)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", 4.0),
        (" 3.5. ", 3.5),
        ("The colours fit.\nScore: 4", 4.0),
        ("Final Score: 4.25", 4.25),
        ("**Score:** 5", 5.0),
        ('{"reason": "2 cats", "score": 3}', 3.0),
        ("Score: 1. On reflection, Score: 2", 2.0),
        ("score = 4/5", 4.0),
        ("Score: 0", None),
        ("Score: 6", None),
        ("Score: -3", None),
        ("Score: 4/10", None),
        ("Score: 1-5", None),
        ("Score: 15", None),
        ("I see 3 cats", None),
        ("", None),
        ("Score:", None),
        ("four", None),
    ],
)
def test_a_score_is_read_whole_or_not_at_all(text: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(ScoringError):
            read_score(text, 1, 5)
    else:
        assert read_score(text, 1, 5) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"scores": {"A": 1}}',
        '{"scores": {"A": 1, "B": 2, "C": 3}}',
        '{"scores": {"A": 1, "B": "2"}}',
        '{"scores": {"A": 1, "B": 9}}',
        '{"scores": {"A": 1, "B": true}}',
        '{"scores": {"A": 1, "B": 2',
        '{"scores": {"A": 1, "B": NaN}}',
        "A: 1, B: 2",
        "",
    ],
)
def test_a_list_is_read_whole_or_not_at_all(text: str) -> None:
    with pytest.raises(ScoringError):
        read_scores(text, ["A", "B"], 1, 5)


def test_a_list_of_scores_is_the_last_of_an_answer() -> None:
    text = 'First {"scores": {"A": 1, "B": 1}}, no: ```json\n{"scores": {"B": 4.5, "A": 2}, "ranking": ["B", "A"]}\n```'
    assert read_scores(text, ["A", "B"], 1, 5) == [2.0, 4.5]


def test_a_template_is_filled_once_and_leaves_other_braces() -> None:
    picture = torch.rand(3, 2, 2)
    made = fill('{sample} {question} {"a": {KEY: 1}} {other}', {"sample": [picture, "x"], "question": "{sample}?"})
    assert made[0] is picture
    assert made[1:] == ('x {sample}? {"a": {KEY: 1}} {other}',)


def test_versions_follow_what_decides_a_score(vlm: Path, tmp_path: Path) -> None:
    version = YesNoJudge(model=vlm, question="good ?").version
    assert YesNoJudge(model=tiny_vlm(tmp_path / "same"), question="good ?", batch_size=1).version == version
    assert YesNoJudge(model=vlm, question="bad ?").version != version
    assert YesNoJudge(model=vlm, question="good ?", template="{sample}{question}").version != version
    assert YesNoJudge(model=tiny_vlm(tmp_path / "other", chat=False), question="good ?").version != version


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"use": "judge-yes-no", "question": "x"}, "either a model .* or an endpoint"),
        ({"use": "judge-yes-no", "model": "VLM"}, "exactly one of question, criteria and tasks"),
        ({"use": "judge-yes-no", "model": "VLM", "question": "x", "reads": "picture"}, "cannot read 'picture'"),
        ({"use": "judge-yes-no", "model": "VLM", "question": "x", "template": "{simple}"}, "did you mean 'sample'"),
        ({"use": "judge-yes-no", "model": "VLM", "criteria": {"a": "x"}, "weights": {"b": 1}}, "no criterion 'b'"),
        ({"use": "judge-yes-no", "model": "VLM", "criteria": ["a"]}, "criteria of judge 'yes-no' map names"),
        ({"use": "judge-yes-no", "model": "VLM", "question": "x", "dtype": "float33"}, "no dtype 'float33'"),
        ({"use": "judge-score", "model": "VLM", "question": "x", "low": 5, "high": 1}, "low < high"),
        ({"use": "judge-score", "model": "VLM", "criteria": {"a": "x"}, "minima": [["b"]]}, "no criterion 'b'"),
        ({"use": "judge-compare", "model": "VLM"}, "either reference .* or references"),
        ({"use": "judge-compare", "model": "VLM", "reference": "facts.x"}, "a fact is a text"),
        ({"use": "judge-compare", "model": "VLM", "references": "nowhere"}, "no exemplars 'nowhere'"),
        ({"use": "judge-rank", "model": "VLM"}, "needs the setting 'principle'"),
        ({"use": "judge-rank", "endpoint": {"url": "http://x"}, "principle": "x"}, "keys url and model"),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(vlm: Path, tmp_path: Path, spec: dict, told: str) -> None:
    filled = {key: str(vlm) if value == "VLM" else value for key, value in spec.items()}
    with pytest.raises(UsageError, match=told):
        build_reward(filled, tmp_path)
