"""What a prompt brings along, on its way through a model's own processor; each fault is one sentence."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genalign.policy import load_policy, sees_or_hears
from genalign.policy.language import LanguagePolicy
from genalign.policy.language.processor import Reader
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import Media, Prompt, Track, UsageError
from genalign.types.samples import to_levels
from tests.helpers.language_policies import CLIPS, PICTURES, SOUNDS, TEXTS, noise
from tests.helpers.tiny_readers import READERS, template

PICTURE = PICTURES[0].media


def policy(name: str = "qwen2.5-vl", prepare: Any = None, **keys: Any) -> LanguagePolicy:
    model, processor = READERS[name].build()
    if prepare is not None:
        prepare(model, processor)
    chosen = {"model": "tiny", "lora": Lora(rank=4), "batch_size": 16, "max_new_tokens": 4, **keys}
    return LanguagePolicy(model, processor, PolicySettings(**chosen))


def without_pictures(model: Any, processor: Any) -> None:
    processor.chat_template = template("").replace("{% elif part['type'] == 'image' %}{{ '' }}", "")


def without_types(model: Any, processor: Any) -> None:
    processor.return_mm_token_type_ids = False


def without_template(model: Any, processor: Any) -> None:
    processor.chat_template = processor.tokenizer.chat_template = None


def sentence(prompt: Prompt, name: str = "qwen2.5-vl", prepare: Any = None, **keys: Any) -> str:
    with pytest.raises(UsageError) as error:
        policy(name, prepare, **keys).check_prompt(prompt)
    return str(error.value)


NARROW = Prompt("a", Media(image=Track(noise(1, 3, 1, 400))))
MANY = Prompt("a", Media(image=Track(noise(40, 3, 20, 20))))
UNREADABLE = [
    ("gemma3", CLIPS[0], None, "brings video, which Gemma3Processor does not read"),
    ("qwen2.5-vl", SOUNDS[0], None, "brings audio, which Qwen2_5_VLProcessor does not read"),
    ("qwen2.5-vl", PICTURES[0], without_pictures, "brings 1 of image, but is written with '<|image_pad|>' 0 times"),
    ("qwen3-vl", Prompt("<|image_pad|>"), None, "brings 0 of image, but is written with '<|image_pad|>' 1 times"),
    ("llava", Prompt("<image> a <image>", PICTURE), None, "brings 1 of image, but is written with '<image>' 2 times"),
    ("qwen2.5-vl", PICTURES[0], without_types, "needs mm_token_type_ids to place media, and Qwen2_5_VLProcessor gives"),
    ("gemma3", PICTURES[0], without_types, "needs token_type_ids to place media, and Gemma3Processor gives none"),
    ("qwen3-vl", Prompt("a", Media(video=Track(noise(1, 4, 3, 20, 20)))), None, "a clip without its frame rate"),
    ("qwen2.5-omni", Prompt("a", Media(audio=Track(noise(1, 1, 100)))), None, "a sound without its rate"),
    ("qwen3-vl", NARROW, None, "does not read the media of prompt 'a': absolute aspect ratio must be smaller than 200"),
    ("llava", MANY, None, "which leaves no room for 4 more in the model's 512"),
]


@pytest.mark.parametrize(("name", "prompt", "prepare", "said"), UNREADABLE)
def test_media_that_cannot_be_read(name: str, prompt: Prompt, prepare: Any, said: str) -> None:
    assert said in sentence(prompt, name, prepare)


def test_a_processor_without_a_tokenizer() -> None:
    model, processor = READERS["llava"].build()
    with pytest.raises(UsageError, match="has no tokenizer; put the tokenizer's files beside the processor's"):
        Reader(SimpleNamespace(image_processor=processor.image_processor), model)


@pytest.mark.parametrize("missing", [["tokenizer.json", "tokenizer_config.json"], ["processor_config.json"]])
def test_a_folder_without_its_tokenizer_or_its_processor(missing: list[str], tmp_path: Any) -> None:
    for part in READERS["llava"].build():
        part.save_pretrained(tmp_path)
    for name in missing:
        (tmp_path / name).unlink()
    said = r"its processor is missing or has no tokenizer \(.*put the processor's files and tokenizer.json"
    with pytest.raises(UsageError, match=said):
        load_policy(PolicySettings(model="tiny"), tmp_path)


def test_an_answer_with_a_placeholder_is_refused() -> None:
    with pytest.raises(UsageError, match="holds a placeholder of media"):
        policy().read([PICTURES[0]], ["a <|image_pad|> star"])


def test_given_answers_about_pictures_are_scored_as_samples_are() -> None:
    of = policy(max_new_tokens=6)
    drawn = of.rollout(PICTURES, 1, 0)
    texts = list(drawn.media["text"].data)
    read = of.read(PICTURES, [f"star {text}" for text in texts])
    assert read.mask.any(1).all()
    again = of.read(PICTURES[:1], [f"star {texts[0]}"])
    length = int(again.mask[0].sum())
    torch.testing.assert_close(read.logp[0, :length], again.logp[0], atol=1e-5, rtol=0)


def test_levels_and_floats_are_the_same_picture() -> None:
    """Processors divide by 255 whatever they are given: floats in [0,1] would be black."""
    of = policy()
    levels = Prompt("how many star", Media(image=Track(torch.stack([to_levels(row) for row in PICTURE["image"].data]))))
    black = Prompt("how many star", Media(image=Track(torch.zeros(1, 3, 20, 20))))
    seen = [row.media["pixel_values"] for row in map(of.chat.encode, (PICTURES[0], levels, black))]
    assert torch.equal(seen[0], seen[1])
    assert (seen[0] - seen[2]).abs().mean() > 0.5


def test_a_prompt_may_place_its_pictures_itself() -> None:
    of = policy("llava")
    ids = [of.chat.encode(Prompt(text, PICTURE)).ids for text in ("a star", "a <image> star")]
    mark = of.tokenizer.convert_tokens_to_ids("<image>")
    assert [ids.count(mark) for ids in ids] == [16, 16]
    assert ids[0].index(mark) + 1 == ids[1].index(mark)  # before the text, and behind its first word


def test_without_a_chat_template_pictures_stand_first() -> None:
    of = policy("llava", without_template)
    encoded = of.chat.encode(PICTURES[0])
    mark = of.tokenizer.convert_tokens_to_ids("<image>")
    assert encoded.ids == (*[mark] * 16, *of.tokenizer("how many star").input_ids)
    assert of.rollout(PICTURES, 2, 0).mask.any(1).all()


@pytest.mark.parametrize("name", ["qwen2.5-vl", "gemma3", "internvl"])
def test_pictures_are_encoded_once_a_prompt(name: str) -> None:
    of, count = policy(name), [0]
    real = of.model.base_model.get_image_features

    def counted(*given: Any, **named: Any) -> Any:
        count[0] += 1
        return real(*given, **named)

    of.model.base_model.get_image_features = counted
    counted.__signature__ = __import__("inspect").signature(real)  # type: ignore[attr-defined]
    trajectory = of.rollout(PICTURES, 4, 0)
    for rows, steps in trajectory.units():
        of.replay(trajectory, rows, steps, versus="reference").score.sum().backward()
    assert count[0] == sum(prompt.media is not None for prompt in PICTURES)


def test_rows_of_one_prompt_do_not_see_those_of_another() -> None:
    """Two prompts whose pictures are exchanged have exchanged densities, in one batch and with a text between them."""
    of = policy("qwen3-vl")
    a, b = PICTURES[0], dataclasses.replace(PICTURES[0], media=Media(image=Track(noise(1, 3, 20, 20, seed=9))), uid=5)
    answers = ["star sun", "star", "star sun"]
    one = of.read([a, TEXTS[1], b], answers).logp
    two = of.read([b, TEXTS[1], a], answers).logp
    torch.testing.assert_close(one[[2, 1, 0]], two, atol=1e-5, rtol=0)
    assert (one[0] - one[2]).abs().max() > 1e-2


def test_a_folder_with_a_processor_is_read_with_it(tmp_path: Any) -> None:
    model, processor = READERS["qwen2.5-vl"].build()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert sees_or_hears(json.loads((tmp_path / "config.json").read_text())["model_type"])
    settings = PolicySettings(model="tiny", lora=Lora(rank=4), batch_size=16, max_new_tokens=4)
    of = load_policy(settings, tmp_path)
    assert isinstance(of, LanguagePolicy)
    assert of.rollout(PICTURES, 2, 3).tape == policy().rollout(PICTURES, 2, 3).tape


@pytest.mark.parametrize(("targets", "named"), [(None, "attn"), (["q_proj"], "q_proj"), ("all-linear", "")])
def test_adapters_are_anchored_at_the_language_model(targets: Any, named: str, caplog: Any) -> None:
    """["q_proj"] is a layer of this model's picture tower too."""
    with caplog.at_level("INFO", "genalign"):
        of = policy("gemma3", lora=Lora(rank=2, targets=targets))
    layers = {name.rpartition(".lora_")[0] for name in of.named_trainable()}
    assert all(name.startswith("model.language_model.") and named in name for name in layers)
    assert f"{len(layers)} layers are adapted: model.language_model." in caplog.text


def test_a_layer_of_the_tower_alone_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"'multi_modal_projector.linear_1' is not a linear layer of the model in model"
    ):
        policy("llava", lora=Lora(rank=2, targets=["multi_modal_projector.linear_1"]))
