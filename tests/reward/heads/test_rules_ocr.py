"""Words in pictures: Flow-GRPO's formula against another library's edit distance, and real text read by real models."""

from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from genalign.files.shipped import shipped
from genalign.media.image import from_pil
from genalign.reward import build_reward
from genalign.reward.runtime.user_file import import_file
from genalign.types import Media, Prompt, Track

pytest.importorskip("rapidocr", reason="pictures are read by rapidocr: pip install 'genalign[ocr]'")
FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def picture(*lines: str) -> torch.Tensor:
    """Black lines on white, (3,160,320)."""
    canvas = Image.new("RGB", (320, 160), "white")
    for row, line in enumerate(lines):
        ImageDraw.Draw(canvas).text((16, 16 + 64 * row), line, fill="black", font=ImageFont.truetype(FONT, 40))
    return from_pil(canvas)


def test_words_that_are_painted_are_read():
    """By hand: all the same, whatever case and blanks; nothing; two letters of ten wrong; one word of two; no quote."""
    rows = [
        ('a sign with "hello  WORLD"', ("Hello", "World")),
        ('a sign with "Hello World"', ()),
        ("a sign with “Hello World”", ("Hallo Word",)),
        ('a sign with "Hello World"', ("Hello",)),
        ("a sign", ("Hello",)),
    ]
    reward = build_reward("image-ocr", Path())
    images = torch.stack([picture(*lines) for _, lines in rows])
    scores = reward([Prompt(text) for text, _ in rows], Media(image=Track(images)))
    assert reward.name == "ocr"
    assert scores.valid[:, 0].tolist() == [True, True, True, True, False]
    assert scores.total.tolist() == pytest.approx([1.0, 0.0, 0.8, 0.5, 0.0])


def test_the_formula_is_flow_grpos():
    from torchmetrics.functional.text import edit_distance

    rules = import_file(shipped("rewards") / "ocr_rules.py")
    for read, wanted in [("kitten", "sitting"), ("", "abc"), ("opening", "grandopening"), ("zzzzzzzz", "abc")]:
        distance = float(edit_distance([read], [wanted], reduction="sum"))
        assert rules.nearness(read, wanted) == pytest.approx(1 - min(distance, len(wanted)) / len(wanted))
    assert rules.nearness("freshgrandopeningtoday", "grandopening") == 1  # among other words


def test_what_is_asked_for_is_a_fact_or_quoted_first():
    rules = import_file(shipped("rewards") / "ocr_rules.py")
    assert rules.quoted('a "Big Sale" beside "now"') == "Big Sale"
    assert rules.quoted("招牌上写着「你好」") == "你好"
    assert rules.quoted("it's a dog's life") == ""
    scores = build_reward("image-ocr", Path())(
        [Prompt('"Hello"', facts={"words": "World"})], Media(image=Track(picture("World")[None]))
    )
    assert scores.total.item() == pytest.approx(1.0)
