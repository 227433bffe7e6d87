"""VideoScore2 on a tiny Qwen2.5-VL of random weights, whose answers are forced and whose scores are not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from genalign.reward import build_reward
from genalign.reward.heads.videoscore import DIGITS, score_places
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.tiny_heads import QWEN_CHAT, SPECIAL, VISION, randomise, word_tokenizer

MORE = ("visual", "quality", "text-to-video", "alignment", "physical/common-sense", "consistency", "clarity,", "\n")
ANSWER = (
    "rate visual quality : 3 the physical/common-sense consistency good \n "
    "visual quality clarity, : 1 \n text-to-video alignment : 1 \n physical/common-sense consistency : 1 </s>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VideoScore2 as it is published: a plain checkpoint of the class, and its processor."""
    place = tmp_path_factory.mktemp("score") / "videoscore2"
    tokenizer = word_tokenizer((*SPECIAL, *VISION))
    tokenizer.add_tokens(list(MORE))
    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "rope_theta": 1e6}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "pad_token_id": 0}
    text |= {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "bos_token_id": 1, "eos_token_id": 2}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}
    vision |= {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "fullatt_block_indexes": [0]}
    known = {"image_token_id": 8, "video_token_id": 9, "vision_start_token_id": 6, "vision_end_token_id": 7}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **known)
    randomise(Qwen2_5_VLForConditionalGeneration(config), std=0.5).save_pretrained(place)
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=QWEN_CHAT
    ).save_pretrained(place)
    return place


def forced(reward: Any, answer: str) -> list[int]:
    """Let the reward's net write these words; where a digit stands, whichever digit it likes best."""
    net, processor, digits = reward._loaded
    ids = processor.tokenizer.encode(answer, add_special_tokens=False)
    generate = net.generate

    def write(**inputs: Any) -> Any:
        start = inputs["input_ids"].shape[1]

        def force(so_far: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            wanted = ids[so_far.shape[1] - start]
            allowed = digits if wanted in digits else [wanted]
            mask = torch.full_like(logits, -torch.inf)
            mask[:, allowed] = 0
            return logits + mask

        return generate(**inputs | {"logits_processor": [force, *inputs["logits_processor"]]})

    net.generate = write
    return ids


def test_scores_are_expected_digits_where_the_answer_writes_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one pass of the plain model over question and answer, without generate()."""
    reward = build_reward({"use": "videoscore2", "model": str(folder), "dtype": "float32"}, Path())
    clips = torch.rand(2, 24, 3, 70, 90, generator=torch.Generator().manual_seed(1))
    asked, media = [Prompt("a cat"), Prompt("two cats and the star")], Media(video=Track(clips, rate=12.0))
    ids, made = forced(reward, ANSWER), []
    generate = reward._loaded[0].generate  # type: ignore[attr-defined]

    def kept(**inputs: Any) -> Any:
        made.append((inputs, generate(**inputs)))
        return made[-1][1]

    monkeypatch.setattr(reward._loaded[0], "generate", kept)  # type: ignore[attr-defined]
    scores = reward(asked, media)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = reward._loaded[2]  # type: ignore[attr-defined]
    for row, (inputs, whole) in enumerate(made):
        start = inputs["input_ids"].shape[1]
        given = {
            k: v for k, v in inputs.items() if k in ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        }
        types = torch.cat([inputs["mm_token_type_ids"], torch.zeros(1, len(ids), dtype=torch.long)], 1)
        with torch.no_grad():
            logits = plain(input_ids=whole, mm_token_type_ids=types, **given).logits[0]
        places = [start + at for at, token in enumerate(ids) if token in tokens][1:]  # the first is a thought
        for column, place in enumerate(places):
            share = logits[place - 1, tokens].softmax(0)
            expected = sum(float(share[k]) * (k + 1) for k in range(5))
            assert scores.values[row, column].item() == pytest.approx(expected, abs=1e-4)
        assert inputs["video_grid_thw"][0, 0] == 2  # four frames of two seconds, in pairs
    assert scores.names == ("VQ", "TA", "PC")
    assert torch.allclose(scores.total, scores.values.mean(1))
    assert scores.values.std(1).min() > 0.01  # each place has a score of its own


def test_an_answer_without_scores_and_clips_that_cannot_be_read_fail_their_row(folder: Path) -> None:
    reward = build_reward({"use": "videoscore2", "model": str(folder), "dtype": "float32", "max_tokens": 4}, Path())
    clips = [torch.rand(8, 3, 56, 56), torch.rand(1, 3, 56, 56), torch.rand(4, 3, 2, 500)]
    scores = reward([Prompt("a cat")] * 3, Media(video=Track(clips, rate=8.0)))
    assert scores.failed.all()
    for error, wanted in zip(scores.info["error"], ["holds no score of", "too short", "too narrow"], strict=True):
        assert wanted in error
    with pytest.raises(UsageError, match="frames a second of a video"):
        reward([Prompt("a cat")], Media(video=Track(clips[:1])))
    with pytest.raises(UsageError, match="must be above 0"):
        build_reward({"use": "videoscore2", "model": str(folder), "fps": 0}, Path())


def test_a_score_is_a_digit_alone_after_its_name() -> None:
    """Letters as tokens, so that what is decoded is what is read."""

    def places(text: str) -> dict[str, str]:
        letters = [ord(letter) for letter in text]

        def decode(tokens: list[int], skip_special_tokens: bool = False) -> str:
            return "".join(map(chr, tokens))

        found = score_places(letters, [ord(digit) for digit in DIGITS], decode)
        return {name: text[at] for name, at in found.items()}

    released = "(1) visual quality – clarity, smoothness, artifacts: 3\n(2) text-to-video alignment – fidelity: 4\n"
    assert places(released + "(3) physical/common-sense consistency – naturalness …: 2") == {
        "VQ": "3",
        "TA": "4",
        "PC": "2",
    }
    asked = "visual quality: 5;\ntext-to-video alignment: 1,\nphysical/common-sense consistency: 2"
    assert places(asked) == {"VQ": "5", "TA": "1", "PC": "2"}
    assert places("Visual quality: at first 2. So **visual quality:** 4") == {"VQ": "4"}
    assert places("visual quality: 35; text-to-video alignment\n: 4; visual quality of 3: no") == {}
