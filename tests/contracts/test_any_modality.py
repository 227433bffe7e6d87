"""One reward file for pictures, for answers about a picture, and for texts: parts of another modality abstain."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genalign.files.shipped import shipped
from genalign.lab.world import caption, place, render, sample_facts
from genalign.reward import (
    Cached,
    ClipReward,
    Difference,
    Ensemble,
    FileReward,
    FunctionReward,
    Gate,
    Hybrid,
    Min,
    ProcessReward,
    Runner,
    Sum,
    WinRate,
    build_reward,
    check_needs,
    shipped_rewards,
)
from genalign.reward.heads.head import HeadReward
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import Media, Prompt, Reward, Scores, Track, UsageError
from tests.helpers.tiny_language import save_tiny_language
from tests.helpers.tiny_recipe import image_model
from tests.helpers.toy_rewards import images, prompts, says, texts, tiny_clip, tiny_text_head

RULE, WORDS = "scene_facts", "says_facts"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped file and the rules that it names, with random models under the names that it uses."""
    folder = tmp_path_factory.mktemp("room")
    for name in ("any-hybrid.yaml", "scene_rules.py", "text_rules.py"):
        shutil.copy(shipped("rewards", name), folder)
    tiny_clip(folder / "tiny-clip")
    tiny_text_head(folder / "tiny-text-head", readout="sigmoid")
    return folder


def batch(kind: str) -> tuple[list[Prompt], Media]:
    """Four samples: pictures of scenes; answers to a question about a picture; or captions."""
    rng = np.random.default_rng(3)
    facts = [sample_facts(rng) for _ in range(4)]
    pictures = torch.from_numpy(np.stack([render(place(f, rng)) for f in facts])).permute(0, 3, 1, 2)
    if kind == "image":
        return [Prompt(caption(f, rng), facts=f, uid=i) for i, f in enumerate(facts)], Media(image=Track(pictures))
    if kind == "text":
        asked = [Prompt("Describe it.", facts=f, uid=i) for i, f in enumerate(facts)]
        return asked, texts(*(caption(f, rng) for f in facts[:3]), "nothing of the kind")
    seen = [Media(image=Track(picture[None])) for picture in pictures]
    answers = [3, "2", 1, None]
    asked = [Prompt("How many stars?", seen[i], {"answer": answers[i]}, uid=i) for i in range(4)]
    return asked, texts("there are three stars", "first I saw 2, but it is 4", "many", "no idea")


def column(scores: Scores, ending: str) -> Tensor:
    return scores.valid[:, next(k for k, name in enumerate(scores.names) if name.endswith(ending))]


@pytest.mark.parametrize("kind", ["image", "answer", "text"])
def test_one_file_scores_pictures_answers_and_texts(kind: str, room: Path) -> None:
    asked, media = batch(kind)
    hybrid = build_reward("any-hybrid.yaml", room)
    runner = Runner(hybrid, max_failure=0.0)
    scores = runner(asked, media)
    assert not scores.failed.any()
    assert scores.total_valid.all()

    alone: tuple[Reward, Reward] = (
        (FileReward("scene_rules.py:scene_facts", room), ClipReward(room / "tiny-clip"))
        if kind == "image"
        else (FileReward("text_rules.py:says_facts", room), HeadReward(room / "tiny-text-head"))
    )
    rule, model = (part(asked, media) for part in alone)
    assert rule.confidence is not None
    sure = torch.where(rule.total_valid, rule.confidence[:, 0], 0.0)
    assert torch.allclose(scores.total, sure * rule.total + (1 - sure) * model.total, atol=1e-6)

    heard = {RULE: kind == "image", "clip": kind == "image", WORDS: kind != "image", "fluency": kind != "image"}
    for name, speaks in heard.items():
        rows = rule.total_valid if name == WORDS else torch.ones(4, dtype=torch.bool)
        assert column(scores, f"/{name}").tolist() == (rows.tolist() if speaks else [False] * 4), name
    told = runner.log()
    silent = {key.split("/")[-2] for key, rate in told.items() if key.endswith("abstain_rate") and rate == 1.0}
    assert {name for name, speaks in heard.items() if not speaks} <= silent
    assert not silent & {name for name, speaks in heard.items() if speaks}


def test_what_the_rule_for_texts_says() -> None:
    rule = build_reward({"use": "text_rules.py:says_facts"}, Path())
    scores = rule(*batch("answer"))
    assert scores.total.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scores.valid[:, 0].tolist() == [True, True, True, False]  # the last prompt asks for no number
    assert scores.confidence is not None
    assert scores.confidence[:, 0].tolist() == [1.0, 1.0, 0.5, 0.0]
    asked = prompts(5, answer=[10, 2.5, -1, "a cat", 3])
    scores = rule(asked, texts("ten", "it is 2.5.", "-1", "a cat", "none at all"))
    assert scores.total.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert scores.valid[:, 0].tolist() == [True, True, True, False, True]


def reads(kind: str, *values: float, facts: tuple[str, ...] = ()) -> FunctionReward:
    """A reward that breaks where there is none of its modality."""

    def told(media: Media) -> list[float]:
        return [value for value, _ in zip(values, media[kind].data, strict=True)]

    return FunctionReward(told, name=f"of-{kind}", needs=[kind, *(f"facts.{fact}" for fact in facts)])


SEES, READS = reads("image", 0.25, 0.75, facts=("scene",)), reads("text", 0.5, 1.0)
EMPTY: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("reward", "picture", "text", "totals"),
    [
        (Sum([SEES, (READS, 2.0)]), {"facts.scene"}, EMPTY, [1.0, 2.0]),
        (Sum([SEES, (READS, 2.0)], missing="renormalise"), {"facts.scene"}, EMPTY, [1.5, 3.0]),
        (Sum([SEES, READS], missing="invalid"), {"facts.scene", "text"}, {"image", "facts.scene"}, [None, None]),
        (Sum([SEES, (READS, 0.0)]), {"facts.scene"}, {"image", "facts.scene"}, [None, None]),  # it only logs
        (Hybrid(SEES, READS), {"facts.scene"}, EMPTY, [0.5, 1.0]),
        (Hybrid(READS, SEES, mode="fallback"), {"facts.scene"}, EMPTY, [0.5, 1.0]),
        (Hybrid(READS, SEES, mode="stratified"), {"text", "facts.scene"}, EMPTY, [1.0, 1.0]),  # it needs the classes
        (Ensemble([SEES, READS]), {"facts.scene"}, EMPTY, [0.5, 1.0]),
        (Min([SEES, READS]), {"text", "facts.scene"}, {"image", "facts.scene"}, [None, None]),
        (Gate(READS, SEES), {"text", "facts.scene"}, {"image", "facts.scene"}, [None, None]),
        (Sum([Min([SEES, READS]), READS]), {"text", "facts.scene"}, EMPTY, [0.5, 1.0]),
        (WinRate(Difference(Hybrid(SEES, READS))), {"facts.scene"}, EMPTY, [1 / (1 + np.e**0.5), 1 / (1 + np.e**-0.5)]),
        (Runner(Cached(Sum([SEES, READS], missing="renormalise"))), {"facts.scene"}, EMPTY, [1.0, 2.0]),
    ],
)
def test_each_combination_knows_whom_it_can_do_without(
    reward: Reward, picture: set[str], text: set[str], totals: list[float | None]
) -> None:
    assert reward.lacks({"image", "prompt"}) == picture
    assert reward.lacks({"text", "prompt"}) == text
    assert not reward.lacks({"image", "text", "facts.scene"})
    group = torch.zeros(2, dtype=torch.long) if reward.looks_at == "group" else None
    scores = reward(prompts(2), texts("x", "y"), group)
    told = [t if ok else None for t, ok in zip(scores.total.tolist(), scores.total_valid.tolist(), strict=True)]
    assert told == (totals if totals[0] is None else pytest.approx(totals))
    assert not scores.failed.any()


def test_what_nothing_can_read_is_refused_before_any_weight_loads(room: Path) -> None:
    hybrid = build_reward("any-hybrid.yaml", room)
    for kind, facts in (("image", "facts.objects"), ("text", "prompt")):
        check_needs(hybrid, {kind, "prompt", facts})
    with pytest.raises(UsageError, match=r"reward 'hybrid' reads 'image', 'text', which the data does not offer"):
        check_needs(hybrid, {"audio", "prompt", "facts.objects"})
    with pytest.raises(UsageError, match=r"needs 'facts.objects', .*did you mean 'facts.object'"):
        check_needs(hybrid, {"image", "prompt", "facts.object"})  # a fact is no modality
    with pytest.raises(UsageError, match=r"reward 'min' needs 'image', which"):
        check_needs(Min([SEES, READS]), {"text", "facts.scene"})
    loaded = [part for part in hybrid.parts[1].parts if "_loaded" in vars(part)]  # type: ignore[attr-defined]
    assert not loaded


def test_a_reward_in_another_process_abstains_as_it_does_here(room: Path) -> None:
    (room / "pair.yaml").write_text("sum: [{use: clip, model: tiny-clip}, {use: length, lo: 2}]")
    apart = ProcessReward("pair.yaml", room)
    for kind, given in (("image", images(2)), ("text", texts("one", "and two"))):
        check_needs(apart, {kind, "prompt"})
        assert torch.equal(apart(prompts(2), given).total, build_reward("pair.yaml", room)(prompts(2), given).total)
    with pytest.raises(UsageError, match="reads 'image', 'text'"):
        check_needs(apart, {"video", "prompt"})
    apart.close()


def test_a_part_of_another_modality_is_not_even_asked() -> None:
    both = Sum([SEES, says(1.0, 2.0, name="b")])
    scores = both(prompts(2, row=range(2)), texts("x", "y"))
    assert scores.valid.tolist() == [[False, True], [False, True]]
    assert not scores.failed.any()
    assert SEES(prompts(2), texts("x", "y")).failed.all()  # what asking it would have done


@pytest.mark.parametrize("recipe", ["image-flow-grpo", "text-grpo"])
def test_recipes_of_both_kinds_take_the_file_as_it_is(recipe: str, tmp_path: Path) -> None:
    assert "any-hybrid" in shipped_rewards()
    model = image_model() if recipe.startswith("image") else save_tiny_language(tmp_path / "model")
    words = ["reward=any-hybrid.yaml", f"policy.model={model}"]
    built = build(load_recipe(recipe, words))
    assert built.reward is not None
    assert built.reward.version == Runner(build_reward("any-hybrid", Path())).version


def test_a_sum_of_nothing_that_fits_is_no_reward_of_a_recipe(tmp_path: Path) -> None:
    spec: dict[str, Any] = {"sum": [{"use": "length", "lo": 2}, {"use": "format", "tags": ["a"]}]}
    words = [f"policy.model={image_model()}"]
    recipe = load_recipe("image-flow-grpo", words).model_copy(update={"reward": spec})
    with pytest.raises(UsageError, match="reward 'sum' needs 'text', which the data does not offer"):
        build(recipe)
