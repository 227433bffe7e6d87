"""Prompts from a file: their rows, and the order in which a run draws them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from genalign.data.prompts import Prompts, read_prompts
from genalign.run.recipe import Recipe
from genalign.types import Prompt, UsageError


@pytest.fixture
def prompts(tmp_path: Path) -> Prompts:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(7)))
    return read_prompts(path)


def test_a_curriculum_is_drawn_as_it_is_written(prompts: Prompts) -> None:
    written = replace(prompts, order="written")
    drawn = [[p.uid for p in written.draw(step, 3, seed=1)] for step in range(4)]
    assert drawn == [[0, 1, 2], [3, 4, 5]] * 2
    recipe = Recipe(policy={"model": "x"}, data={"prompts": "x.txt"}, method={"name": "grpo"})
    assert recipe.data.order == "shuffled"


def test_draws_are_without_replacement_and_need_no_state(prompts: Prompts) -> None:
    drawn = [[p.uid for p in prompts.draw(step, 3, seed=1)] for step in range(40)]
    assert drawn == [[p.uid for p in prompts.draw(step, 3, seed=1)] for step in range(40)]
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):  # 7 // 3 steps use one order
        assert len(set(first + second)) == 6
    assert {uid for step in drawn for uid in step} == set(range(7))  # nobody is left out for ever
    assert drawn[0] != drawn[2]
    assert drawn != [[p.uid for p in prompts.draw(step, 3, seed=2)] for step in range(40)]


def test_more_prompts_a_step_than_there_are(prompts: Prompts) -> None:
    with pytest.raises(UsageError, match=r"prompts_per_step is 8 .* 7 prompts"):
        prompts.draw(0, 8, 0)


def test_prompt_rows_carry_facts_and_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "two stars", "facts": {"answer": 2}}\n\n{"prompt": "a cat", "facts": {"answer": 1, "x": 0}}\n'
    )
    rows = read_prompts(path)
    assert [(p.text, p.uid, dict(p.facts)) for p in rows] == [
        ("two stars", 0, {"answer": 2}),
        ("a cat", 1, {"answer": 1, "x": 0}),
    ]
    assert rows.facts() == {"answer"}
    assert isinstance(next(iter(rows)), Prompt)


def test_a_row_brings_a_first_and_a_last_frame(tmp_path: Path) -> None:
    for level in (0, 51, 255):
        Image.new("RGB", (4, 2), (level, 0, 0)).save(tmp_path / f"{level}.png")
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "a", "image": ["51.png", "255.png"]}, {"prompt": "b", "image": "0.png"}]
    rows.append({"prompt": "c", "image": ["0.png"] * 3})  # that the policy may refuse, and a language model may not
    file.write_text("\n".join(map(json.dumps, rows)))
    both, one, three = (prompt.media["image"].data for prompt in read_prompts(file).rows)
    assert both.shape == (2, 3, 2, 4)
    assert both[:, 0, 0, 0].tolist() == [pytest.approx(0.2), 1.0]
    assert one.shape == (1, 3, 2, 4)
    assert three.shape == (3, 3, 2, 4)
    for wrong in ([], [1, 2], {"first": "51.png"}):
        file.write_text(json.dumps({"prompt": "a", "image": wrong}))
        with pytest.raises(UsageError, match=r"'image' in line 1 of .* is not the name of a picture"):
            read_prompts(file)


def test_a_row_brings_a_sound(tmp_path: Path) -> None:
    wave = np.stack([np.linspace(-0.5, 0.5, 400), np.zeros(400)], 1)  # 0.05 s of two channels
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "a", "audio": "a.wav"}))
    track = read_prompts(file).rows[0].media["audio"]
    assert track.rate == 8000.0
    assert np.allclose(track.data[0].numpy(), wave.T, atol=1e-6)
    for wrong, sentence in (
        (["a.wav"], "'audio' in line 1 of .* is not the name of one file"),
        ("b.wav", "b.wav"),
    ):
        file.write_text(json.dumps({"prompt": "a", "audio": wrong}))
        with pytest.raises(UsageError, match=sentence):
            read_prompts(file)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 2)).save(tmp_path / name)
    file.write_text(json.dumps({"prompt": "a", "image": ["1.png", "2.png"], "audio": "a.wav"}))
    with pytest.raises(UsageError, match="several pictures and a clip or a sound"):
        read_prompts(file)


def test_conversational_prompts_of_trl_are_read(tmp_path: Path) -> None:
    """One user turn is what its text alone is; a longer conversation reaches the chat template as it stands."""
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "two stars"}
    rows = [{"prompt": [user], "facts": {"n": 2}}, {"prompt": [system, user]}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone, longer = read_prompts(tmp_path / "p.jsonl").rows
    assert (alone.text, dict(alone.facts)) == ("two stars", {"n": 2})
    assert longer.facts["messages"] == [system, user]
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": [{"role": "user", "content": [{"image": "a.png"}]}]}))
    with pytest.raises(UsageError, match=r"line 1 of .* is not a list of messages of text"):
        read_prompts(tmp_path / "q.jsonl")
