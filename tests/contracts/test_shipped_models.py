"""The shipped models' stated accuracies, sizes and folders."""

import json

import numpy as np
import pytest
import torch

from genalign.files.shipped import shipped
from genalign.lab import world
from genalign.types import Media, Prompt, Track
from tests.helpers.scenes import scenes


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


def test_held_out_judge_of_clips_reads_clean_ones_and_rejects_a_changed_fact():
    from genalign.lab.moves_judge import judge_accuracy

    right, rejected = judge_accuracy(shipped("assets", "tiny-video-judge"), count=150, seed=29)
    assert right >= 0.93
    assert min(rejected.values()) >= 0.85, rejected


def test_held_out_judge_of_melodies_hears_clean_ones_and_rejects_a_changed_fact():
    from genalign.lab.music_judge import judge_accuracy

    right, rejected = judge_accuracy(shipped("assets", "tiny-music-judge"), count=100, seed=29)
    assert right >= 0.95
    assert min(rejected.values()) >= 0.95, rejected


def test_tiny_clip_prefers_the_true_caption():
    from genalign.lab.clip import clip_accuracy

    assert clip_accuracy(shipped("assets", "tiny-clip"), count=600) >= 0.85


def test_tiny_lm_answers_half_of_the_held_out_sums_as_its_card_says():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from genalign.lab.lm import accuracy, greedy

    folder = shipped("assets", "tiny-lm")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = accuracy(lambda asked: greedy(model, tokenizer, asked), count=200, seed=26)
    stated = json.loads((folder / "stages.json").read_text())["half-hearted"]
    for key in ("all", "number", "form"):  # of 200 questions a share has a standard error of 0.035 at most
        assert abs(found[key] - stated[key]) < 0.11, key
    assert 0.35 < found["all"] < 0.6


def test_tiny_mdlm_loads_by_the_pipeline_of_diffusers_and_obeys_the_forms_that_its_card_says():
    from diffusers import LLaDA2Pipeline
    from transformers import AutoTokenizer

    from genalign.lab.lm import accuracy
    from genalign.lab.mdlm import unmasked

    folder = shipped("assets", "tiny-mdlm")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    pipeline = LLaDA2Pipeline.from_pretrained(folder, tokenizer=tokenizer, torch_dtype=torch.float32)
    found = accuracy(lambda asked: unmasked(pipeline.model, tokenizer, asked), count=200, seed=26)
    stated = json.loads((folder / "stages.json").read_text())["half-hearted"]
    assert abs(found["form"] - stated["form"]) < 0.11


def test_shipped_weights_fit_their_budget_and_are_half_precision():
    files = list(shipped("assets").rglob("*.safetensors"))
    folders = {f.relative_to(shipped("assets")).parts[0] for f in files}
    kinds = ("flow", "sd", "video", "turbo", "clip", "judge", "video-judge", "vlm-judge", "text-head", "expander", "lm")
    assert {f"tiny-{kind}" for kind in kinds} <= folders
    assert sum(f.stat().st_size for f in files) <= 80e6


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


def test_tiny_video_draws_what_its_card_says_and_the_background_it_is_asked_for():
    from diffusers import WanPipeline

    from genalign.lab.drawn import draw
    from genalign.lab.video import CALL
    from genalign.lab.video_figures import JUDGE, moves_prompts, right

    folder, prompts = shipped("assets", "tiny-video"), moves_prompts(96)
    pipe = WanPipeline.from_pretrained(folder)
    with torch.no_grad():
        found = right(prompts, draw(pipe, prompts, 1.0, 3, **CALL))[JUDGE]
    stated = json.loads((folder / "stages.json").read_text())["few steps, 3"][JUDGE]
    for kind in ("all_facts", "motion", "object"):  # of 96 prompts a share has a standard error of 0.051 at most
        assert abs(found[kind] - stated[kind]) < 0.16, kind


def test_tokenizer_is_the_same_in_every_process_and_gives_each_word_one_token():
    import subprocess
    import sys

    code = "from genalign.lab.text import build_tokenizer as b; print(b()('a red apple left of 3 cacti').input_ids)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout
    assert len(json.loads(runs[0].stdout)) == 7 + 2


def test_tiny_video_reward_orders_new_pairs_and_each_fault_moves_its_own_aspect_most(tmp_path):
    from genalign.lab.moves_pairs import ASPECTS, OWN, build_pairs
    from genalign.lab.video_reward import FIGURES, measure

    folder = shipped("assets", "tiny-video-reward")
    told = json.loads((folder / FIGURES).read_text())
    for aspect in ASPECTS:
        assert told["aspects"][aspect]["accuracy"] >= 0.85
    for fault, row in told["falls"].items():
        assert max(row, key=row.get) == OWN[fault], fault
    found = measure(folder, build_pairs(tmp_path, "heldout", 24, seed=43))
    for aspect in ASPECTS:
        assert found["aspects"][aspect]["accuracy"] >= 0.8, aspect  # of some hundred pairs
    for fault, row in found["falls"].items():
        if fault == "frozen":  # which shows no motion that its prompt names either: 0.76 and 0.63 of 200 prompts
            assert min(row["MQ"], row["TA"]) > 5 * abs(row["VQ"])
        else:
            assert max(row, key=row.get) == OWN[fault], fault
    assert set(told["falls"]) == set(OWN)
