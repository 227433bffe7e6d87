"""Reward files: every form builds what Python builds; a wrong word is named with the nearest right one."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from genalign.files.shipped import shipped
from genalign.lab.judge import Judge
from genalign.lab.world import caption, place, render, sample_facts
from genalign.reward import (
    ClipReward,
    FileReward,
    HeadReward,
    Hybrid,
    Runner,
    Sharpness,
    Sum,
    build_reward,
    check_needs,
    shipped_rewards,
)
from genalign.reward.heads.exemplars import read_exemplars
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.clips import bouncing, gliding, knocks
from tests.helpers.toy_rewards import prompts, texts, tiny_clip, tiny_text_head


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped rewards, with random models under the names they use."""
    folder = tmp_path_factory.mktemp("room")
    for file in shipped("rewards").iterdir():
        if file.suffix in (".yaml", ".py"):
            shutil.copy(file, folder)
    tiny_clip(folder / "tiny-clip")
    tiny_text_head(folder / "tiny-text-head", readout="sigmoid")
    return folder


def scenes(rows: int) -> tuple[list[Prompt], Media]:
    rng = np.random.default_rng(0)
    facts = [sample_facts(rng) for _ in range(rows)]
    pictures = np.stack([render(place(fact, rng)) for fact in facts])
    asked = [Prompt(caption(fact, rng), facts=fact, uid=i) for i, fact in enumerate(facts)]
    return asked, Media(image=Track(torch.from_numpy(pictures).permute(0, 3, 1, 2)))


def test_python_form_and_file_form_build_equal_rewards(room: Path) -> None:
    text = """
    sum:
      - use: scene_rules.py:scene_facts
      - {use: clip, model: tiny-clip, scale: 2, weight: 0.5}
      - hybrid:
          rule: {use: "scene_rules.py:whole_scene"}
          model: {use: sharpness, half: 0.02}
          mode: stratified
          alpha: 0.2
        name: crisp
    missing: renormalise
    """
    built = build_reward(yaml.safe_load(text), room)
    written = Sum(
        [
            FileReward("scene_rules.py:scene_facts", room),
            (ClipReward(room / "tiny-clip", scale=2), 0.5),
            Hybrid(
                FileReward("scene_rules.py:whole_scene", room), Sharpness(half=0.02), "stratified", 0.2, name="crisp"
            ),
        ],
        missing="renormalise",
    )
    assert built.version == written.version
    assert built.aspects == written.aspects
    assert built.needs == written.needs == {"image", "prompt", "facts.objects"}
    asked, media = scenes(3)
    assert torch.equal(built(asked, media).values, written(asked, media).values)
    assert build_reward(yaml.safe_load(text.replace("0.02", "0.03")), room).version != written.version


DOWNLOADED = ("image-reno-four", "image-parrot-three", "image-variety", "image-exemplars")  # weights of the hub
JUDGED = ("image-unified-reward", "image-rational", "image-geneval2", "image-unigenbench")  # also; tests/reward/judge
QUOTED = ("image-ocr",)  # of prompts that quote words; tests/reward/heads/test_rules_ocr.py


def test_every_shipped_reward_builds_and_scores(room: Path) -> None:
    assert {"image-hybrid", "image-rule", "image-clip", "text-hybrid"} <= set(shipped_rewards())
    asked, media = scenes(4)
    for file in room.glob("image-*.yaml"):
        if file.stem in (*DOWNLOADED, *JUDGED, *QUOTED):
            continue
        reward = build_reward(file.name, room)
        check_needs(reward, {"image", "prompt", "facts.objects"})
        scores = Runner(reward, max_failure=0.0)(asked, media)
        assert scores.total_valid.all()
    for file in room.glob("text-*.yaml"):
        reward = build_reward(str(file), Path())
        check_needs(reward, {"text", "prompt", "facts.objects", "facts.answer"})
        answered = [replace(prompt, facts={**prompt.facts, "answer": "84"}) for prompt in asked]
        scores = Runner(reward, max_failure=0.0)(answered, texts(*(p.text for p in asked)))
        assert scores.total_valid.all()


def test_the_rewards_of_answers_score_right_ones_above_wrong_ones(room: Path) -> None:
    """Rows that a rule checks, of words and of boxes, and one that the judge alone can: two true, two false answers."""
    from genalign.data.prompts import read_prompts

    exam = read_prompts(shipped("assets", "emojiworld", "questions", "heldout.jsonl")).rows
    boxes = next(row for row in exam if row.facts["boxes"])
    side = next(row for row in exam if row.facts["kind"] == "side")
    unlabelled = replace(side, facts={**side.facts, "answer": None})
    other = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[side.facts["answer"]]
    where = ", ".join(map(str, boxes.facts["boxes"]))
    told = [where, "[0, 0, 1, 1]", side.facts["answer"], other]
    rows = [f"<think>I see it</think><answer>{answer}</answer>" for answer in told]
    asked = [boxes, boxes, unlabelled, unlabelled]
    group = torch.tensor([0, 0, 1, 1])
    for name in ("vlm-rule", "vlm-model", "vlm-hybrid"):
        scores = Runner(build_reward(name, room), max_failure=0.0)(asked, texts(*rows), group)
        assert scores.total_valid.all()
        found = scores.total.tolist()
        assert (found[0] > found[1] + 0.5) == (name != "vlm-model")
        assert (found[2] > found[3] + 0.2) == (name != "vlm-rule")
    only = Runner(build_reward("vlm-boxes", room), max_failure=0.0)([boxes, boxes], texts(*rows[:2]), group[:2])
    assert only.total.tolist() == pytest.approx([3.0, 1.0])


def test_what_answers_no_question_is_worth_nothing_though_the_judge_says_yes_to_it(room: Path) -> None:
    """tiny-vlm-judge takes "two red cars on a red cars background" for a caption that the picture shows."""
    from genalign.data.prompts import read_prompts

    exam = read_prompts(shipped("assets", "emojiworld", "questions", "heldout.jsonl")).rows
    row = next(row for row in exam if row.facts["before"] == "two red cars on a")
    asked = [replace(row, facts={**row.facts, "answer": None})] * 2
    told = texts(*(f"<think>I see it</think><answer>{answer}</answer>" for answer in ("red cars", row.facts["answer"])))
    assert build_reward("vlm-seen", room)(asked, told).total.min() > 0.5
    for name in ("vlm-model", "vlm-hybrid"):
        nonsense, right = Runner(build_reward(name, room), max_failure=0.0)(asked, told).total.tolist()
        assert right > nonsense + 0.5


def test_scene_rules_give_partial_credit_with_confidence(room: Path) -> None:
    asked, media = scenes(8)
    true = build_reward("image-rule", Path())(asked, media)
    assert true.names == ("scene_facts", "objects", "count", "relation", "background")
    assert true.confidence is not None
    for row in range(8):
        stated = true.valid[row, 1:]
        assert true.total[row].item() == pytest.approx(true.values[row, 1:][stated].mean().item(), abs=1e-6)
        assert true.confidence[row, 0].item() == pytest.approx(true.confidence[row, 1:][stated].mean().item(), abs=1e-6)
        assert bool(true.valid[row, 3]) == (asked[row].facts["relation"] is not None)
    swapped = build_reward("image-rule", Path())(asked, media.select([1, 2, 3, 4, 5, 6, 7, 0]))
    assert true.total.mean() > swapped.total.mean() + 0.3


def test_the_shipped_hybrids_mix_rule_and_model_by_confidence(room: Path) -> None:
    asked, media = scenes(4)
    said = texts(*(p.text for p in asked))
    pairs = [
        ("image-hybrid.yaml", "scene_rules.py:scene_facts", ClipReward(room / "tiny-clip"), media),
        ("text-hybrid.yaml", "text_rules.py:names_objects", HeadReward(room / "tiny-text-head"), said),
    ]
    for file, rule, model, given in pairs:
        hybrid = build_reward(file, room)
        assert isinstance(hybrid, Hybrid)
        scores, told, learned = hybrid(asked, given), FileReward(rule, room)(asked, given), model(asked, given)
        assert told.confidence is not None
        sure = told.confidence[:, 0]
        assert torch.allclose(scores.total, sure * told.total + (1 - sure) * learned.total, atol=1e-6)


def test_text_rules_know_number_and_name() -> None:
    facts = [{"name": "cat", "count": 2}]
    asked = prompts(5, objects=[facts] * 4 + [[]])
    said = texts("Two cats on white", "a cat on white", "two dogs", "concatenate", "two cats")
    scores = build_reward({"use": "text_rules.py:names_objects"}, Path())(asked, said)
    assert scores.total.tolist() == [1, 0.5, 0, 0, 0]
    assert scores.valid[:, 0].tolist() == [True, True, True, True, False]
    assert scores.confidence is not None
    assert scores.confidence[:4, 0].tolist() == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("sharpnes", r"no reward 'sharpnes'; did you mean 'sharpness'"),
        ("image-hybird", r"no reward 'image-hybird'; did you mean 'image-hybrid'"),
        ("image-hybird.yaml", r"no reward file 'image-hybird.yaml'.*did you mean 'image-hybrid.yaml'"),
        ("scene_rule.py:scene_facts", r"no reward file 'scene_rule.py'.*did you mean 'scene_rules.py'"),
        ({"usr": "clip"}, r"needs exactly one of the keys use, sum, hybrid.*did you mean 'use'"),
        ({"use": "clip", "sum": []}, r"has use and sum"),
        ({"use": "clip"}, r"'clip' needs the setting 'model'"),
        ({"use": "clip", "modle": "x"}, r"'clip' has no setting 'modle'; did you mean 'model'"),
        ({"use": "clip", "model": "tiny-klip"}, r"no model folder 'tiny-klip'"),
        ({"use": "sharpness", "half": "much"}, r"settings of reward 'sharpness' do not fit"),
        ({"use": "sharpness", "weight": 2}, r"'sharpness' has no setting 'weight'"),
        ({"use": 3}, r"'use' takes a name"),
        ({"sum": {"use": "sharpness"}}, r"'sum' takes a list"),
        ({"sum": []}, r"sum of nothing"),
        ({"sum": [{"use": "sharpness", "weight": "two"}]}, r"weight of .* is 'two'"),
        ({"hybrid": {"rule": "sharpness", "model": "sharpness", "alpha": "some"}}, r"alpha of .* is 'some'"),
        ({"sum": ["sharpness"], "mising": "invalid"}, r"'sum' has no setting 'mising'; did you mean 'missing'"),
        ({"sum": ["sharpness"], "missing": "invald"}, r"no missing rule 'invald'; did you mean 'invalid'"),
        ({"hybrid": {"rule": "sharpness"}}, r"keys rule and model"),
        ({"hybrid": {"rule": "sharpness", "model": "sharpness", "moed": 1}}, r"no setting 'moed'; did you mean 'mode'"),
        ({"use": "genalign.reward.heads.sharpness:Sharp"}, r"names code by its module"),
        ({"use": "no_such_package.rewards:Thing"}, r"no_such_package.*names code by its module"),
        (["clip"], r"a name or a mapping"),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(spec: object, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        build_reward(spec, Path())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_files_are_found_beside_the_file_that_names_them(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "mine.py").write_text("def two(prompt): return [2.0] * len(prompt)")
    (deep / "mine.yaml").write_text("use: mine.py:two")
    (tmp_path / "outer.yaml").write_text("sum: [{use: deep/mine.yaml, weight: 3}, {use: deep/mine, name: again}]")
    reward = build_reward("outer", tmp_path)
    assert reward.aspects == ("two", "again")
    assert reward(prompts(1), texts("x")).total.tolist() == [8.0]
    (tmp_path / "small.yaml").write_text("{use: sharpness, half: 1e-3}")
    assert build_reward("small", tmp_path).version == Sharpness(half=0.001).version
    (tmp_path / "bad.yaml").write_text("use: [unclosed")
    with pytest.raises(UsageError, match=r"bad\.yaml is not YAML, line 1"):
        build_reward("bad.yaml", tmp_path)


def test_an_installed_class_is_a_reward() -> None:
    reward = build_reward({"use": "genalign.reward.heads.sharpness:Sharpness", "half": 0.5}, Path())
    assert reward.version == Sharpness(half=0.5).version


@pytest.mark.parametrize("address", ["os:system", "subprocess:run", "genalign.reward.base:digest"])
@pytest.mark.parametrize("where", ["reward", "part", "process", "eval"])
def test_no_reward_file_names_code_by_its_module(address: str, where: str, tmp_path: Path) -> None:
    spec = {"use": address, "command": f"echo ran > {tmp_path / 'ran'}"}
    inside = {"reward": spec, "part": {"sum": [spec]}, "process": {**spec, "run": {"batch_size": 1}}, "eval": address}
    with pytest.raises(UsageError, match="names code by its module"):
        build_reward(inside[where], tmp_path)
    assert not (tmp_path / "ran").exists()


def test_addresses_of_heads_and_presets_stay_valid_in_old_recipes() -> None:
    assert isinstance(build_reward("genalign.lab.judge:Judge", Path()), Judge)
    assert isinstance(
        build_reward({"use": "genalign.reward.heads.sharpness:Sharpness", "name": "edges"}, Path()), Sharpness
    )


def test_exemplars_of_a_function_are_made_in_the_worker(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text("import os\ndef who(): return [str(os.getpid())]\ndef fails(): return 1 / 0\n")
    (text,) = read_exemplars(f"{tmp_path / 'made.py'}:who").texts
    assert int(text) not in (os.getpid(), os.getppid())
    with pytest.raises(UsageError, match=r"fails of .* gives no exemplars: ZeroDivisionError"):
        read_exemplars(f"{tmp_path / 'made.py'}:fails")


def test_the_labs_judge_has_a_name_of_its_own_and_keeps_the_older_one(tmp_path: Path) -> None:
    named, older = build_reward("emojiworld-judge", tmp_path), build_reward("judge", tmp_path)
    by_address = build_reward("genalign.lab.judge:Judge", tmp_path)
    assert named.version == older.version == by_address.version
    assert named.name == older.name == "judge"  # log keys and eval.json stay as they were


def test_settings_of_a_served_reward_are_those_of_a_web_request(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no setting 'timeuot'; did you mean 'timeout'"):
        build_reward({"use": "http://127.0.0.1:9", "timeuot": 3}, tmp_path)
    with pytest.raises(UsageError, match=r"timeout of http://127\.0\.0\.1:9 is 0"):
        build_reward({"use": "http://127.0.0.1:9", "timeout": 0}, tmp_path)


# ---- clips of anything ----------------------------------------------------------------------------------------------


def test_the_shipped_rules_of_clips_place_even_motion_first_and_a_still_picture_last() -> None:
    even, flicker = gliding(), torch.linspace(0.7, 1.0, 2).repeat(5)[:9, None, None, None]
    jerky = even[[0, 1, 1, 3, 4, 4, 6, 7, 8]]  # two frames of nine are not drawn, but repeated
    clips = torch.stack([even, even * flicker, jerky, even[:1].expand(9, -1, -1, -1)])
    scores = build_reward("video-rules", Path())(prompts(4), Media(video=Track(clips, 16.0)))
    total = scores.total.tolist()
    assert total[0] > 2.9  # each of the three rules has 1 as its best
    assert total[0] > total[1] > total[2] > total[3] == 0  # too many frozen frames: the others do not count
    assert total[2] == pytest.approx(6 / 8)


def test_the_shipped_rules_of_clips_with_sound_pay_for_a_knock_at_the_bounce() -> None:
    clip, rate = bouncing(), 16.0
    sounds = torch.stack([knocks([4 / rate], 9 / rate), knocks([8.9 / rate], 9 / rate)])
    media = Media(video=Track(torch.stack([clip, clip]), rate), audio=Track(sounds, 8000.0))
    scores = build_reward("av-rules", Path())(prompts(2), media)
    assert scores.total[0] > scores.total[1]


def test_the_general_rewards_hold_the_rules_and_read_every_prompt() -> None:
    for medium, parts in (("video", ["videoscore2"]), ("av", ["videoscore2", "clap", "audiobox"])):
        rules, general = (build_reward(f"{medium}-{kind}", Path()) for kind in ("rules", "general"))
        assert general.needs == {*rules.needs, "prompt"}
        last = [aspect.split("/")[-1] for aspect in general.aspects]
        assert all(aspect.split("/")[-1] in last for aspect in rules.aspects)
        assert all(any(part in aspect for aspect in general.aspects) for part in parts)
