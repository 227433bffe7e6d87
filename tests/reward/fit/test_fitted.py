"""`genalign fit-reward` on each backbone, from a YAML file to a reward of the stack; what it refuses."""

import json
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from genalign.cli.eval_reward import report
from genalign.cli.main import main
from genalign.data.comparisons import read_comparisons
from genalign.files.shipped import shipped
from genalign.media.video import write as write_video
from genalign.reward import Sum, build_reward
from genalign.reward.fit.backbones import BackboneSettings, build_backbone, word_counts
from genalign.reward.fit.recipe import fit_to_preferences, split
from genalign.reward.fit.train import PreferenceData
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.preference_files import FORMS
from tests.helpers.toy_rewards import tiny_clip

COLOURS = {"red": (220, 40, 30), "blue": (30, 60, 220), "green": (30, 180, 60), "grey": (128, 128, 128)}
ORDER = list(COLOURS)  # the earlier, the better


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("models") / "clip")


def coloured(folder: Path, pairs: int = 60, better=lambda a, b: ORDER.index(a) < ORDER.index(b), **rest) -> Path:
    """pairs.jsonl and its pictures: which of two colours is better, by `better`."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for number in range(pairs):
        i, j = torch.randperm(4, generator=rng)[:2].tolist()
        files = []
        for colour in (ORDER[i], ORDER[j]):
            shade = (torch.tensor(COLOURS[colour]) + torch.randint(-15, 15, (3,), generator=rng)).clamp(0, 255)
            files.append(f"{number}-{colour}.png")
            Image.new("RGB", (16, 16), tuple(shade.tolist())).save(folder / files[-1])
        row = {"prompt": f"scene {number % 20}", "a": files[0], "b": files[1]}
        rows.append(row | {"p": float(better(ORDER[i], ORDER[j]))} | {k: v(number) for k, v in rest.items()})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


def recipe(folder: Path, backbone: dict, file: str = "pairs.jsonl", **keys) -> Path:
    plain = {"data": {"file": file, "held_out": 0.2}, "backbone": backbone, "fit": {"steps": 150}} | keys
    (folder / "fit.yaml").write_text(yaml.safe_dump(plain))
    return folder / "fit.yaml"


def swatches(*names: str) -> Media:
    data = torch.stack([torch.tensor(COLOURS[name]).float().div(255).view(3, 1, 1).expand(3, 16, 16) for name in names])
    return Media(image=Track(data))


def prompts(count: int, **facts) -> list[Prompt]:
    return [Prompt("scene 1", facts=facts) for _ in range(count)]


def test_a_clip_head_from_the_command_line_to_the_algebra(tmp_path, clip, capsys):
    coloured(tmp_path)
    path = recipe(tmp_path, {"kind": "clip", "model": str(clip)}, head={"kind": "mlp", "width": 16})
    assert main(["fit-reward", str(path), "fit.seed=3", "--out", str(tmp_path / "mine")]) == 0
    assert "accuracy" in capsys.readouterr().out
    told = json.loads((tmp_path / "mine/fit.json").read_text())
    assert told["accuracy"] > 0.8
    assert told["held_out"] + told["learnt_from"] == 60
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == [
        "fit.json",
        "reward.json",
        "reward.safetensors",
    ]
    reward = build_reward({"use": "mine", "name": "colour"}, tmp_path)
    scores = reward(prompts(4), swatches(*ORDER))
    assert (int(scores.total.argmax()), int(scores.total.argmin())) == (0, 3)
    assert (scores.names, reward.looks_at) == (("colour",), "sample")
    assert reward.needs == {"image", "prompt"}
    half = Sum([(reward, 0.5)])(prompts(4), swatches(*ORDER))
    torch.testing.assert_close(half.total, scores.total / 2)
    again = build_reward(str(tmp_path / "mine"), Path())
    assert again.version != reward.version  # another name
    assert build_reward({"use": str(tmp_path / "mine"), "name": "colour"}, Path()).version == reward.version
    pixels = swatches("grey")["image"].data.clone().requires_grad_()
    assert reward.differentiable
    reward(prompts(1), Media(image=Track(pixels))).total.sum().backward()
    assert pixels.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in reward.head.parameters())
    assert reward.state_dict() == {}
    assert main(["score", str(tmp_path / "mine"), "--media", str(tmp_path / "0-red.png"), "--prompt", "x"]) == 0


def test_a_file_scores_the_same_as_its_tensor_and_in_any_batch(tmp_path, clip):
    coloured(tmp_path)
    fit_to_preferences(str(recipe(tmp_path, {"kind": "clip", "model": str(clip), "prompt": False})), [], tmp_path / "r")
    one, many = (build_reward({"use": "r", "batch_size": size}, tmp_path) for size in (1, 8))
    media = swatches(*ORDER, "red", "grey")
    torch.testing.assert_close(one(prompts(6), media).total, many(prompts(6), media).total, atol=1e-4, rtol=0)
    assert one.needs == {"image"}
    turned = many(prompts(6), media.select([5, 4, 3, 2, 1, 0])).total
    torch.testing.assert_close(turned.flip(0), many(prompts(6), media).total, atol=1e-4, rtol=0)


@pytest.mark.parametrize("loss", ["gpm", "yes-no"])
def test_a_cycle_becomes_a_win_rate_among_siblings(tmp_path, clip, loss: str):
    """Red beats blue, blue green, green red; grey loses to all."""

    def better(a: str, b: str) -> bool:
        ring = ["red", "blue", "green"]
        return b == "grey" or (a != "grey" and ring[(ring.index(a) + 1) % 3] == b)

    coloured(tmp_path, 120, better)
    keys = {"head": {"kind": "mlp", "width": 32, "planes": 2}, "loss": {"name": loss}, "fit": {"steps": 400}}
    path = recipe(tmp_path, {"kind": "clip", "model": str(clip), "prompt": False}, **keys)
    assert fit_to_preferences(str(path), [], tmp_path / "ring")["accuracy"] > 0.9
    reward = build_reward("ring", tmp_path)
    assert (reward.looks_at, reward.differentiable) == ("group", False)
    lead = reward.compare(prompts(4), swatches("red", "blue", "green", "grey"), swatches("blue", "green", "red", "red"))
    assert (lead > 0).tolist() == [True, True, True, False]
    (told, *_) = report(reward, read_comparisons(tmp_path / "pairs.jsonl"))
    assert told["accuracy"] > 0.95  # asked pair by pair: no number for each picture could be right about a ring
    group = torch.tensor([7, 7, 3, 3, 7, 1])
    scores = reward(prompts(6), swatches("red", "blue", "grey", "green", "grey", "red"), group)
    assert scores.total_valid.tolist() == [True] * 5 + [False]  # alone, it has beaten nobody
    assert not scores.failed.any()
    for name in (7, 3):  # invariant 27
        assert float(scores.total[group == name].mean()) == pytest.approx(0.5, abs=1e-5)
    assert scores.total[4] < 0.2
    assert scores.total[3] > 0.8


def test_a_personal_reward_knows_its_users(tmp_path, clip):
    """Ann likes red, bob does not; others are asked for nobody's taste."""
    who = ["ann", "bob"]
    pairs = coloured(tmp_path, 160)
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"user": who[number % 2], "p": row["p"] if number % 2 == 0 else 1 - row["p"]}
    pairs.write_text("\n".join(map(json.dumps, rows)))
    path = recipe(tmp_path, {"kind": "clip", "model": str(clip), "prompt": False}, head={"kind": "pal"})
    assert fit_to_preferences(str(path), ["fit.steps=300"], tmp_path / "taste")["accuracy"] > 0.85
    reward, of_bob = (build_reward({"use": "taste", **user}, tmp_path) for user in ({}, {"user": "bob"}))
    for facts, asked in (({"user": "ann"}, reward), ({"user": "bob"}, reward), ({"user": "ann"}, of_bob)):
        red, grey = asked(prompts(2, **facts), swatches("red", "grey")).total
        assert (red > grey) == (facts["user"] == "ann" and asked is reward)
    (told, *_) = report(reward, read_comparisons(pairs))
    assert told["accuracy"] > 0.85  # each pair as its own user sees it
    assert report(of_bob, read_comparisons(pairs))[0]["accuracy"] < 0.65
    stranger = reward(prompts(2), swatches("red", "grey")).total
    assert torch.isfinite(stranger).all()
    with pytest.raises(UsageError, match="does not know the user 'bobb'; did you mean 'bob'"):
        build_reward({"use": "taste", "user": "bobb"}, tmp_path)


def worded(folder: Path) -> Path:
    """The text that says yes is better."""
    rng = torch.Generator().manual_seed(0)
    rows = []
    for number in range(40):
        words = [["two", "red", "apples", "above", "a", "star"][i] for i in torch.randperm(6, generator=rng)[:4]]
        rows.append({"prompt": f"what {number % 10}", "chosen": " ".join([*words, "cat"]), "rejected": " ".join(words)})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


@pytest.mark.parametrize("pool", ["mean", "last", "token"])
def test_a_text_head(tmp_path, pool: str):
    worded(tmp_path)
    backbone = {"kind": "text", "model": "tiny-text-head", "template": "{text}", "pool": pool}
    backbone |= {"token": "<|endoftext|>"} if pool == "token" else {}
    told = fit_to_preferences(str(recipe(tmp_path, backbone)), [], tmp_path / "cats")
    assert told["accuracy"] > 0.85
    reward = build_reward("cats", tmp_path)
    answers = ["two red a star cat", "two red a star", ""]
    together = reward(prompts(3), Media(text=Track(answers))).total
    assert together[0] > together[1]
    alone = torch.cat([reward(prompts(1), Media(text=Track([text]))).total for text in answers])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)  # padding is not read
    assert json.loads((tmp_path / "cats/reward.json").read_text())["backbone"]["model"] == "tiny-text-head"


def tiny_vlm(folder: Path) -> Path:
    """A random LLaVA of a few thousand weights, with a processor."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = AutoTokenizer.from_pretrained(shipped("assets", "tiny-text-head"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<reward>"]})
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    seen = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        seen, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    processor.save_pretrained(folder)
    return folder


def test_a_vlm_head_reads_pictures_and_answers_about_them(tmp_path):
    vlm = tiny_vlm(tmp_path / "vlm")
    coloured(tmp_path)
    backbone = {"kind": "vlm", "model": "vlm", "pool": "token", "token": "<reward>"}
    told = fit_to_preferences(str(recipe(tmp_path, backbone)), ["fit.steps=300"], tmp_path / "seen")
    assert told["accuracy"] > 0.7
    reward = build_reward("seen", tmp_path)
    scores = reward(prompts(4), swatches(*ORDER)).total
    assert scores[0] > scores[3]
    assert reward.needs == {"image", "prompt"}
    alone = torch.cat([reward([Prompt("scene 1")], swatches(name)).total for name in ORDER])
    torch.testing.assert_close(scores, alone, atol=1e-4, rtol=1e-3)

    about = build_backbone(BackboneSettings(kind="vlm", model=str(vlm)), "text", tmp_path)
    asked = [Prompt("which?", Media(image=Track(swatches(c)["image"].data))) for c in ("red", "blue", "red")]
    rows = about.features(asked, Media(text=Track(["red", "red", "two red apples"])))
    assert rows.shape == (3, 16)
    assert not torch.allclose(rows[0], rows[1])  # the picture counts
    assert not torch.allclose(rows[0], rows[2])  # and so does the answer
    with pytest.raises(UsageError, match="a prompt has none"):
        about.features([Prompt("which?")], Media(text=Track(["red"])))


def test_a_head_on_videos(tmp_path, clip):
    found = read_comparisons(FORMS["VideoGen-RewardBench"](tmp_path))
    plan = {"kind": "clip", "model": str(clip), "prompt": False}
    told = fit_to_preferences(
        str(recipe(tmp_path, plan, "videogen-rewardbench.csv")), ["data.aspect=VQ", "data.held_out=0"], tmp_path / "vq"
    )
    assert (told["learnt_from"], told["accuracy"]) == (2, None)
    films, media = found.load([0, 1])
    light, dark = build_reward("vq", tmp_path)(films, media).total
    assert light > dark


def moving_pairs(folder: Path, prompts: int = 24) -> Path:
    """Clips of a light or dark square (VQ) that glides or rests (MQ), left or right as the prompt says (TA)."""
    generator, rows = torch.Generator().manual_seed(0), []

    def film(name: str, light: bool, moves: bool, left: bool) -> str:
        frames = torch.full((8, 3, 32, 32), 0.4) + 0.02 * torch.rand(1, 3, 1, 1, generator=generator)
        for frame in range(8):
            step = (2 * frame if moves else 8) + int(torch.randint(2, (1,), generator=generator))
            at = 20 - step if left else 4 + step
            frames[frame, :, 12:20, max(0, at) : at + 8] = 0.9 if light else 0.1
        write_video(frames, 8, folder / name)
        return f"{name}.mp4"

    def judged(a: int, b: int) -> str:
        return "same" if a == b else "A" if a > b else "B"

    for number in range(prompts):
        left = number % 2 == 0
        levels = (torch.rand(2, 3, generator=generator) < torch.tensor([0.5, 0.75, 0.5])).int().tolist()
        files = [
            film(f"{number}-{side}", bool(vq), bool(mq), left == bool(ta)) for side, (vq, mq, ta) in enumerate(levels)
        ]
        row = {"prompt": f"a box goes {'left' if left else 'right'} {number}", "path_A": files[0], "path_B": files[1]}
        verdicts = [judged(a, b) for a, b in zip(*levels, strict=True)]
        if not levels[0][1] or not levels[1][1]:
            verdicts[2] = ""  # what rests goes nowhere
        rows.append(row | dict(zip(("VQ", "MQ", "TA"), verdicts, strict=True)) | {"Overall": ""})
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "judged.jsonl"


def test_three_aspects_of_clips_each_by_a_head_of_its_own(tmp_path, clip, capsys):
    pairs = moving_pairs(tmp_path, 60)
    plan = {"kind": "clip", "model": str(clip), "motion": True, "words": 64}
    keys = {"head": {"kind": "match", "width": 8, "blind": ["VQ", "MQ"]}, "loss": {"name": "ties"}}
    path = recipe(tmp_path, plan, pairs.name, **keys, fit={"steps": 200})
    assert main(["fit-reward", str(path), "data.aspect=[VQ, MQ, TA]", "--out", str(tmp_path / "three")]) == 0
    shown = capsys.readouterr().out
    told = json.loads((tmp_path / "three/fit.json").read_text())["aspects"]
    assert all(aspect in shown for aspect in told)
    assert list(told) == ["VQ", "MQ", "TA"]
    assert len({row["held_out"] + row["learnt_from"] for row in told.values()}) > 1  # each has its own verdicts
    reward = build_reward({"use": "three", "name": "clips"}, tmp_path)
    found = read_comparisons(pairs)
    asked, media = found.load(range(12))
    scores = reward(asked, media)
    assert (scores.names, reward.needs) == (("VQ", "MQ", "TA"), {"video", "prompt"})
    config = json.loads((tmp_path / "three/reward.json").read_text())
    assert torch.allclose(scores.total, scores.values @ (1 / torch.tensor(config["spread"])), atol=1e-5)
    other = reward([Prompt("a star") for _ in asked], media)
    assert torch.equal(other.values[:, :2], scores.values[:, :2])  # the blind ones
    assert (other.values[:, 2] - scores.values[:, 2]).abs().min() > 1e-4
    for row in report(reward, found)[:3]:
        assert row["accuracy"] > 0.85, row
    backwards = Media(video=Track([film.flip(0) for film in media["video"].held], 8.0))
    assert (reward(asked, backwards).values[:, 2] - scores.values[:, 2]).abs().max() > 0.1  # order in time counts
    alone = torch.cat([reward(asked[row : row + 1], media.select([row])).values for row in range(4)])
    assert torch.allclose(alone, scores.values[:4], atol=1e-4)
    pixels = media["video"].row(0)[None].clone().requires_grad_()
    reward(asked[:1], Media(video=Track(pixels, 8.0))).total.sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().amax((0, 2, 3, 4)).min() > 0  # of every frame
    short = reward(asked[:2], Media(video=Track([media["video"].row(0), media["video"].row(1)[:1]], 8.0)))
    assert short.failed[:, 0].tolist() == [False, True]
    assert "shows no motion" in short.info["error"][1]
    lead = reward.compare([asked[0], asked[2]], media.select([0, 2]), media.select([1, 3]))
    assert torch.allclose(lead, scores.total[[0, 2]] - scores.total[[1, 3]], atol=1e-3)
    one = build_reward({"pick": {"use": "three"}, "aspect": "MQ"}, tmp_path)
    assert torch.allclose(one(asked, media).total, scores.values[:, 1])


def test_words_are_counted_with_their_order():
    first, again, turned, empty = word_counts(
        ["A cat goes LEFT, then up", "a cat goes left then up", "up then left", ""], 512
    )
    assert torch.equal(first, again)
    assert first.norm().item() == pytest.approx(1)
    assert empty.norm() == 0
    both = word_counts(["left then up", "up then left"], 4096)
    assert both[0] @ both[1] < 0.9  # the same words, other pairs of them
    assert (turned != first).any()
    counts = (both[0] > 0).nonzero()[:, 0].tolist()
    assert counts == sorted(zlib.crc32(term) % 4096 for term in (b"left", b"then", b"up", b"left then", b"then up"))


def test_ratings(tmp_path, clip):
    coloured(tmp_path)
    files = sorted(tmp_path.glob("*.png"))
    rows = [
        {"prompt": f"s {k % 9}", "image": f.name, "rating": 5.0 - ORDER.index(f.stem.split("-")[1])}
        for k, f in enumerate(files)
    ]
    (tmp_path / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {"loss": {"name": "regression"}, "fit": {"steps": 800, "learning_rate": 0.05}}
    path = recipe(tmp_path, {"kind": "clip", "model": str(clip), "prompt": False}, "rated.jsonl", **keys)
    assert fit_to_preferences(str(path), [], tmp_path / "stars")["correlation"] > 0.8
    red, grey = build_reward("stars", tmp_path)(prompts(2), swatches("red", "grey")).total
    assert red > 3.5 > 3 > grey


def test_no_prompt_is_in_both_parts():
    """Invariant 34."""
    group = torch.arange(100) % 13
    lesson = PreferenceData(torch.zeros(1, 1), group, group, group.float(), group, group)
    (learn,), (exam,) = split([lesson], 0.3, 0)
    assert not set(learn.group.tolist()) & set(exam.group.tolist())
    assert len(learn) + len(exam) == 100
    assert len(set(exam.group.tolist())) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["backbone.kid=clip"], "there is no key 'backbone.kid'; did you mean 'kind'?"),
        (["head.kind=lineer"], "head.kind"),
        (["loss.name=gpm", "votes.how=flip"], "drop votes"),
        (["data.aspect=overal"], "did you mean 'overall'?"),
        (["backbone.kind=text"], "backbone text does not read a sample of image"),
        (["backbone.model=tiny-clop"], "did you mean 'tiny-clip'"),
        (["backbone.pool=token"], "set both or neither"),
        (["loss.name=regression"], "rates nothing"),
        (["head.kind=pal"], "add 'user'"),
        (["data.file=absent.jsonl"], "check the path"),
        (["backbone.motion=true"], "backbone.motion is about videos"),
        (["backbone.words=9", "backbone.prompt=false"], "those of the prompt"),
        (["head.blind=[overall]"], "head.blind is for a list of aspects"),
        (["data.aspect=[overall]", "head.blind=[overal]"], "did you mean 'overall'"),
        (["data.aspect=[]"], "lists nothing"),
        (["data.aspect=[overall]", "loss.name=gpm"], "gpm fits one aspect at a time"),
        (["head.kind=match", "backbone.prompt=false"], "head match needs a backbone that reads the prompt apart"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, clip, capsys, change, said: str):
    coloured(tmp_path, 4)
    path = recipe(tmp_path, {"kind": "clip", "model": str(clip)})
    assert main(["fit-reward", str(path), *change, "--out", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in said.split("|")), error
    assert error.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_broken_folder_is_refused(tmp_path, clip):
    coloured(tmp_path, 8)
    fit_to_preferences(str(recipe(tmp_path, {"kind": "clip", "model": str(clip)})), ["fit.steps=2"], tmp_path / "r")
    whole = json.loads((tmp_path / "r/reward.json").read_text())
    (tmp_path / "r/reward.json").write_text(json.dumps(whole | {"features": 7}))
    with pytest.raises(UsageError, match=r"does not fit reward\.json"):
        build_reward("r", tmp_path)(prompts(1), swatches("red"))
    (tmp_path / "r/reward.json").write_text("{}")
    with pytest.raises(UsageError, match="holds no fitted reward"):
        build_reward("r", tmp_path)
