"""Prompts and seeds from pictures as A1111 and ComfyUI write them, and pairs of them on the ballot."""

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genalign.demo.deck import FOUND_PAIRS, Deck
from genalign.demo.found import pictures_by_prompt, read_metadata
from genalign.types import UsageError

A1111 = """a red apple, <lora:emoji:0.8>
on a table
Negative prompt: blurry, two apples
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 4204200, Size: 64x64, Model hash: 6ce0161689, Version: v1.10.1"""
PROMPT = "a red apple, <lora:emoji:0.8> on a table"
COMFYUI = {  # the default workflow, with a guidance node between sampler and text as Flux's has
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286, "steps": 20, "cfg": 8, "sampler_name": "euler", "denoise": 1,
            "model": ["4", 0], "positive": ["26", 0], "negative": ["7", 0], "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a yellow star\nat night", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
    "26": {"class_type": "FluxGuidance", "inputs": {"guidance": 3.5, "conditioning": ["6", 0]}},
}  # fmt: skip


def png(path, level, **chunks):
    info = PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8), (level,) * 3).save(path, pnginfo=info)
    return path


def with_comment(path, level, text):
    image = Image.new("RGB", (8, 8), (level,) * 3)
    exif = image.getexif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    image.save(path, exif=exif)
    return path


def test_a1111_writes_into_png(tmp_path):
    found = read_metadata(png(tmp_path / "a.png", 1, parameters=A1111))
    assert (found.prompt, found.seed) == (PROMPT, 4204200)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_a1111_writes_into_exif(tmp_path, suffix):
    found = read_metadata(with_comment(tmp_path / f"a.{suffix}", 1, A1111))
    assert (found.prompt, found.seed) == (PROMPT, 4204200)


def test_comfyui_writes_its_graph(tmp_path):
    found = read_metadata(png(tmp_path / "a.png", 1, prompt=json.dumps(COMFYUI), workflow="{}"))
    assert (found.prompt, found.seed) == ("a yellow star at night", 156680208700286)


@pytest.mark.parametrize(
    "chunks",
    [
        {},
        {"parameters": "Steps: 20, Seed: 1"},
        {"prompt": "no graph"},
        {"prompt": "[1]"},
        {"prompt": json.dumps({"1": {"inputs": {"positive": ["1", 0]}}})},  # a ring
    ],
)
def test_a_picture_that_says_nothing_is_left_out(tmp_path, chunks):
    assert read_metadata(png(tmp_path / "a.png", 1, **chunks)) is None


def test_what_is_no_picture_is_left_out(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    assert read_metadata(tmp_path / "a.png") is None


def test_pairs_are_two_pictures_of_one_prompt(models, votes, tmp_path):
    for level in (10, 20, 30):
        png(tmp_path / f"{level}.png", level, parameters=A1111)
    png(tmp_path / "alone.png", 40, prompt=json.dumps(COMFYUI))
    pictures = pictures_by_prompt(tmp_path)
    assert list(pictures) == [PROMPT]
    deck = Deck(models, votes, seed=0, pictures=pictures)
    assert deck.kinds()[0] == FOUND_PAIRS
    pair = deck.take(FOUND_PAIRS)
    assert (pair.prompt.text, pair.samples[0].seed, pair.samples[0].model) == (PROMPT, 4204200, None)
    levels = set()
    for one in pair.samples:
        with Image.open(votes.place(one)) as image:
            levels.add(image.getextrema()[0][0])
            assert not image.info.get("parameters")  # the copy carries no metadata along
    assert len(levels & {10, 20, 30}) == 2


def test_a_folder_without_pairs_is_a_sentence(tmp_path):
    png(tmp_path / "alone.png", 40, prompt=json.dumps(COMFYUI))
    with pytest.raises(UsageError, match=r"have one prompt \(1 have any"):
        pictures_by_prompt(tmp_path)
    with pytest.raises(UsageError, match="check --pictures"):
        pictures_by_prompt(tmp_path / "nowhere")
