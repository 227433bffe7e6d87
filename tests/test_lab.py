"""EmojiWorld: the world, the eyes that check it, and the shipped models' stated accuracies."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from genalign.files.shipped import shipped
from genalign.lab import world
from genalign.lab.blobs import boxes, segment
from genalign.lab.facts import check, relation_margin
from genalign.lab.sprites import sprites
from genalign.lab.verifier import verify, verify_batch
from genalign.training.fit import fit
from genalign.types import Media, Prompt, Track


def scenes(count, seed, split=None, noise=0.0):
    rng = np.random.default_rng(seed)
    facts = [world.sample_facts(rng, split) for _ in range(count)]
    images = np.stack([world.render(world.place(f, rng), rng) for f in facts])
    images = np.clip(images + noise * rng.standard_normal(images.shape), 0, 1).astype(np.float32)
    changed = [world.change_one_fact(f, rng) for f in facts]
    return images, facts, changed


def test_world_is_seeded_and_has_at_least_forty_sprites():
    assert len(sprites()) >= 40
    first, second = scenes(5, seed=3)[0], scenes(5, seed=3)[0]
    assert np.array_equal(first, second)
    assert not np.array_equal(first, scenes(5, seed=4)[0])


def test_heldout_combinations_never_occur_in_the_training_prompts():
    """Invariant 34."""
    rows = {}
    for split in ("train", "heldout"):
        lines = shipped("assets", "emojiworld", f"{split}.jsonl").read_text().splitlines()
        rows[split] = [json.loads(line) for line in lines]
    train = {world.combination(r["facts"]) for r in rows["train"]}
    held = {world.combination(r["facts"]) for r in rows["heldout"]}
    assert len(rows["heldout"]) >= 512
    assert not train & held
    assert all(world.held_out(r["facts"]) for r in rows["heldout"])


def test_facts_of_the_scene_are_true_by_construction():
    rng = np.random.default_rng(0)
    for _ in range(300):
        facts = world.sample_facts(rng)
        scene = world.place(facts, rng)
        seen = [(name, left + size / 2, top + size / 2) for name, left, top, size in scene.placed]
        assert check(facts, seen, scene.background)["all_facts"]
        assert not check(world.change_one_fact(facts, rng), seen, scene.background)["all_facts"]


def test_relation_margin_follows_its_definition():
    facts = {"objects": [], "relation": ["a", "left of", "b"], "background": None}
    assert relation_margin(facts, [("a", 10, 30), ("b", 30, 30)]) == pytest.approx(14)  # 20 px further left, less 6
    assert relation_margin(facts, [("a", 30, 30), ("b", 10, 30)]) < 0
    assert relation_margin(facts, [("a", 10, 0), ("b", 30, 40)]) == pytest.approx(20 - 30)  # too diagonal
    assert relation_margin(facts, [("a", 10, 30)]) == -float("inf")


def _counted(name, count):
    return {"objects": [{"name": name, "count": count}], "relation": None, "background": "pink"}


def test_web_captions_contradict_in_the_stated_shares():
    rng = np.random.default_rng(1)
    kept = Counter()
    total = 6000
    name = next(n for n in sprites() if not any(world.held_out(_counted(n, count)) for count in (2, 3, 4)))
    facts = _counted(name, 3)  # whose contradictions are all combinations of the training split
    for _ in range(total):
        text = world.web_caption(facts, rng)
        kept["count"] += "three" in text or "3" in text
        kept["true ground"] += "pink" in text
        kept["any ground"] += any(colour in text for colour in world.BACKGROUNDS)
    spread = 4 * (0.25 / total) ** 0.5
    assert kept["count"] / total == pytest.approx(1 - world.WEB_WRONG["count"], abs=spread)
    assert kept["any ground"] / total == pytest.approx(1 - world.WEB_OMIT["background"], abs=spread)
    assert kept["true ground"] / total == pytest.approx(
        1 - world.WEB_OMIT["background"] - world.WEB_WRONG["background"], abs=spread
    )


def test_no_web_caption_of_a_training_scene_names_a_held_out_combination(monkeypatch):
    rng, told = np.random.default_rng(3), []
    monkeypatch.setattr(world, "caption", lambda facts, rng: told.append(facts) or "")
    scenes_ = [world.sample_facts(rng, "train") for _ in range(2000)]
    for facts in scenes_:
        world.web_caption(facts, rng)
    assert not any(world.held_out(facts) for facts in told)
    assert sum(a["objects"] != b["objects"] for a, b in zip(scenes_, told, strict=True)) > 50


@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.98), (0.03, 0.98), (0.055, 0.98)])
def test_verifier_accuracy(noise, least):
    images, facts, changed = scenes(300, seed=8, noise=noise)
    right = verify_batch(images, facts)["all_facts"]
    wrong = verify_batch(images, changed)["all_facts"]
    assert right[0].mean() >= least
    assert (wrong[0] == 0).mean() >= 0.98


def test_verifier_is_less_sure_where_it_is_wrong():
    images, facts, _ = scenes(400, seed=9, noise=0.09)
    score, confidence = verify_batch(images, facts)["all_facts"]
    assert 0.2 < score.mean() < 0.98  # noise makes some of both
    assert confidence[score == 1].mean() > confidence[score == 0].mean() + 0.05


def test_verifier_takes_touching_objects_apart():
    facts = {"objects": [{"name": "red apple", "count": 2}], "relation": None, "background": "blue"}
    touching = world.Scene((("red apple", 4, 20, 28), ("red apple", 31, 22, 28)), "blue", facts)
    image = ndimage.gaussian_filter(world.render(touching), (1, 1, 0))  # as soft as what a small model draws
    assert len(boxes(segment(image)[1])) == 1
    assert verify(image, facts)["all_facts"][0] == 1


def test_verifier_gives_partial_credit_and_abstains_on_what_is_not_stated():
    rng = np.random.default_rng(2)
    truth = {"objects": [{"name": "cat", "count": 3}], "relation": None, "background": "blue"}
    image = world.render(world.place(truth, rng))
    asked = {"objects": [{"name": "cat", "count": 4}], "relation": None, "background": None}
    result = verify(image, asked)
    assert result["objects"][0] == 1
    assert result["count"][0] == 0.5
    assert np.isnan(result["relation"][0])
    assert np.isnan(result["background"][0])
    assert result["all_facts"][0] == 0
    with pytest.raises(ValueError, match="64"):
        verify(image[:32], asked)


def as_media(images):
    return Media(image=Track(torch.from_numpy(images).permute(0, 3, 1, 2)))


def test_held_out_judge_reads_clean_scenes_and_rejects_a_changed_fact():
    from genalign.lab.judge import Judge

    images, facts, changed = scenes(400, seed=10, split="heldout")
    judge = Judge()
    right = judge([Prompt("", facts=f) for f in facts], as_media(images))
    wrong = judge([Prompt("", facts=f) for f in changed], as_media(images))
    assert right.total.mean() >= 0.95
    assert 1 - wrong.total.mean() >= 0.95
    relation = right.names.index("relation")
    assert right.valid[:, relation].tolist() == [f["relation"] is not None for f in facts]


def test_tiny_clip_prefers_the_true_caption():
    from genalign.lab.clip import clip_accuracy

    assert clip_accuracy(shipped("assets", "tiny-clip"), count=600) >= 0.85


def test_shipped_weights_fit_their_budget_and_are_half_precision():
    files = list(shipped("assets").rglob("*.safetensors"))
    folders = {f.relative_to(shipped("assets")).parts[0] for f in files}
    kinds = ("flow", "sd", "turbo", "clip", "judge", "vlm-judge", "text-head", "expander")
    assert {f"tiny-{kind}" for kind in kinds} <= folders
    assert sum(f.stat().st_size for f in files) <= 75e6


def test_no_shipped_config_names_a_folder_of_the_machine_that_built_it():
    configs = [path for path in shipped("assets").rglob("*.json") if path.name != "table.json"]
    assert len(configs) > 20
    assert [path for path in configs if '"_name_or_path": "/' in path.read_text()] == []


@pytest.mark.parametrize("name", ["tiny-flow", "tiny-sd"])
def test_shipped_pipelines_load_by_plain_from_pretrained_and_draw(name):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(shipped("assets", name))
    pipe.set_progress_bar_config(disable=True)
    make = {"guidance_scale": 2.0, "num_inference_steps": 8, "output_type": "np", "height": 64, "width": 64}
    images = pipe(["a cat on a pink background"] * 6, generator=torch.Generator().manual_seed(0), **make).images
    pink = np.asarray(world.BACKGROUNDS["pink"]) / 255
    border = np.median(images[:, :2].reshape(6, -1, 3), axis=1)
    assert images.shape == (6, 64, 64, 3)
    assert images.std(axis=(1, 2, 3)).min() > 0.02  # something is drawn
    assert np.abs(border - pink).max(axis=1).min() < 0.12  # and the background is heard at least once


def test_builders_resume_where_they_were_killed(tmp_path):
    class KilledError(Exception):
        pass

    def train(state, die_at=None):
        torch.manual_seed(0)
        net = nn.Linear(3, 1)

        def loss_of(step):
            if step == die_at:
                raise KilledError
            return net(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().mean()

        fit(net, loss_of, steps=10, learning_rate=0.1, state=state, save_every=5)
        return net.weight.detach()

    whole = train(tmp_path / "whole.safetensors")
    with pytest.raises(KilledError):
        train(tmp_path / "killed.safetensors", die_at=7)
    assert torch.equal(whole, train(tmp_path / "killed.safetensors"))


def test_tokenizer_is_the_same_in_every_process_and_gives_each_word_one_token():
    import subprocess
    import sys

    code = "from genalign.lab.text import build_tokenizer as b; print(b()('a red apple left of 3 cacti').input_ids)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert len(json.loads(runs[0].stdout)) == 7 + 2
