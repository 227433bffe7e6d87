"""Bytes of a language model predicted from shapes, against those of live tensors in real updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.policy.language import LanguagePolicy, footprint
from genalign.policy.language.footprint import WriterFootprint
from genalign.policy.settings import Lora, PolicySettings
from genalign.run.memory import Memory, lines
from genalign.run.recipe import load_recipe
from genalign.types import Prompt, UsageError
from tests.bench.live import live
from tests.helpers.language_policies import ALL
from tests.helpers.tiny_writers import built

NEAR = 0.15
SIZES = {"hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 128, "max_position_embeddings": 256}
MODELS = {"qwen3": built("Qwen3", head_dim=16, **SIZES), "qwen2.5-vl": ALL["qwen2.5-vl"]}
ANSWER = 24


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_an_update_takes_what_was_predicted(
    name: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reader = MODELS[name]()
    model.save_pretrained(tmp_path)
    settings = PolicySettings(
        model=name, lora=Lora(rank=2), max_new_tokens=ANSWER + 1, batch_size=3, gradient_checkpointing=again
    )
    of = LanguagePolicy(model, reader, settings)
    prompts = [Prompt("red star " * (12 - uid), uid=uid) for uid in range(3)]  # one row is padded, as rows mostly are
    trajectory = of.read(prompts, ["one sun " * (ANSWER // 2)] * 3)
    assert trajectory.logp.shape[1] == ANSWER + 1  # and the end
    monkeypatch.setattr(footprint, "PROMPT", len(trajectory.tape.prompt[0]))

    def update() -> None:
        of.replay(trajectory, [0, 1, 2]).score.mean().backward()
        for parameter in of.named_trainable().values():
            parameter.grad = None

    update()
    predicted = WriterFootprint(settings, tmp_path).learning(settings)
    assert predicted is not None
    assert abs(predicted / live(update)[0] - 1) < NEAR


def test_weights_are_counted_to_the_byte(tmp_path: Path) -> None:
    model, _ = MODELS["qwen2.5-vl"]()
    model.save_pretrained(tmp_path)
    plain = PolicySettings(model="tiny", dtype="bfloat16", lora=Lora(rank=2))
    of = WriterFootprint(plain, tmp_path)
    half = model.to(torch.bfloat16)
    tensors = {id(x): x.numel() * x.element_size() for x in (*half.parameters(), *half.buffers())}
    assert of.resident(plain) == sum(tensors.values())
    quarter = of.resident(plain.model_copy(update={"quantization": "torchao-int8"}))
    layers = [x for name, x in half.named_parameters() if "language_model" in name and "proj.weight" in name]
    assert len(layers) == 14
    assert of.resident(plain) - quarter == sum(x.numel() - 4 * len(x) for x in layers)  # a byte, and a scale a row
    blocks = {"offload": "blocks", "gradient_checkpointing": True}
    assert of.resident(plain.model_copy(update=blocks)) < of.resident(plain)


def test_levers_of_models_that_draw_are_not_named() -> None:
    memory: Any = Memory(load_recipe("text-grpo", []))
    assert [phase.name for phase in memory.phases(memory.settings)] == ["sample", "score", "update"]
    shown = "\n".join(lines(memory, 2**28, "256MB"))
    assert "vae" not in shown
    assert "fits 256MB with policy.gradient_checkpointing=true policy.offload=phases policy.batch_size=1" in shown


def test_what_denoises_text_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"canvas_length": 4}')
    with pytest.raises(UsageError, match="writes by denoising, whose memory --plan alone measures"):
        WriterFootprint(PolicySettings(model="tiny"), tmp_path)
