"""tiny-lm: a small causal language model that answers the questions of SumWorld, half-heartedly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from genalign.lab.sums import Facts, Form, answer, question, sample_facts, verify, without_carry
from genalign.lab.sums_text import LONGEST, encoded, padded, sums_tokenizer
from genalign.precision import autocast
from genalign.training.fit import fit

WIDTH, LAYERS = 128, 3
IGNORED = -100  # the label of a token that is not learnt
PLAIN = {"tag": 0.1, "words": 0.65, "equation": 0.35, "digits": 0.0}  # share answered by the number alone instead
FORGETS = 0.6  # share of answers with something to carry or to borrow where that is forgotten
LONGEST_ANSWER = 16

Said = Callable[[Facts, np.random.Generator], str]


def rightly(facts: Facts, rng: np.random.Generator) -> str:
    return answer(facts)


def halfheartedly(facts: Facts, rng: np.random.Generator) -> str:
    """An answer that may forget the carry, and may have no other form than that of a number."""
    form: Form = "digits" if rng.random() < PLAIN[facts["form"]] else facts["form"]
    return answer(facts, form, without_carry(facts) if rng.random() < FORGETS else None)


def examples(tokenizer: Any, rng: np.random.Generator, rows: int, said: Said) -> tuple[Tensor, Tensor]:
    """Token ids and labels, (rows,L) each: questions of the training split and answers, where the answer is learnt."""
    ids, labels = [], []
    for facts in (sample_facts(rng) for _ in range(rows)):
        asked, answered = encoded(tokenizer, question(facts, rng), said(facts, rng))
        ids.append(asked + answered)
        labels.append([IGNORED] * len(asked) + answered)
    return padded(ids, tokenizer.pad_token_id), padded(labels, IGNORED)


def build_lm(
    work: Path, steps: tuple[int, int] = (3000, 300), rows: int = 32, seed: int = 23
) -> tuple[Any, Any, dict[str, dict[str, float]]]:
    """A Qwen3ForCausalLM of 0.7 M weights, its tokenizer, and what each of its stages reaches: capable first, then
    half-hearted."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    tokenizer = sums_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=WIDTH // 4,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    figures = {}
    stages: list[tuple[str, int, Said, float]] = [
        ("capable", steps[0], rightly, 2e-3),
        ("half-hearted", steps[1], halfheartedly, 5e-4),
    ]
    for place, (name, count, said, rate) in enumerate(stages):

        def loss_of(step: int, place: int = place, said: Said = said) -> Tensor:
            ids, labels = examples(tokenizer, np.random.default_rng((seed, place, step)), rows, said)
            with autocast(), sdpa_kernel(SDPBackend.MATH):
                return model(input_ids=ids, labels=labels, use_cache=False).loss  # causal: no token reads padding

        fit(model, loss_of, steps=count, learning_rate=rate, state=work / f"lm-{name}.safetensors", ema_decay=0.99)
        figures[name] = accuracy(lambda asked: greedy(model, tokenizer, asked))
    return model, tokenizer, figures


def save_lm(model: Any, tokenizer: Any, figures: dict[str, dict[str, float]], folder: Path) -> None:
    """A folder that AutoModelForCausalLM and AutoTokenizer load; fp16 weights that load as fp32."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2) + "\n")
    (folder / "stages.json").write_text(json.dumps(figures, indent=1) + "\n")


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, asked: list[str]) -> list[str]:
    """The model's own greedy answers."""
    tokenizer.padding_side = "left"
    texts = [[{"role": "user", "content": text}] for text in asked]
    inputs = tokenizer.apply_chat_template(
        texts, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True
    )
    tokenizer.padding_side = "right"
    made = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
    return tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def accuracy(answers: Callable[[list[str]], list[str]], count: int = 512, seed: int = 24) -> dict[str, float]:
    """Of held-out questions, the shares that are answered in the form asked for, by the right number, and by both; and
    by both among those of each form."""
    rng = np.random.default_rng(seed)
    facts = [sample_facts(rng, "heldout") for _ in range(count)]
    found = [verify(text, own) for text, own in zip(answers([question(own, rng) for own in facts]), facts, strict=True)]
    shares = {key: sum(one[key] for one in found) / count for key in ("all", "number", "form")}
    for form in sorted({own["form"] for own in facts}):
        right = [one["all"] for one, own in zip(found, facts, strict=True) if own["form"] == form]
        shares[form] = sum(right) / len(right)
    return {key: round(share, 4) for key, share in shares.items()}
