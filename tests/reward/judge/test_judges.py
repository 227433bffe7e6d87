"""Judges in this process: p(yes) against the softmax written out, criteria, gradients."""

from pathlib import Path

import pytest
import torch

from genalign.media.image import to_pil
from genalign.reward import RankJudge, Runner, ScoreJudge, YesNoJudge, build_reward
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.toy_judges import tiny_vlm
from tests.helpers.toy_rewards import images, prompts, texts


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
