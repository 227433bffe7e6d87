"""tiny-expander: a small causal language model that expands an EmojiWorld prompt, for policy/chain.py."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genalign.lab.sprites import sprites
from genalign.lab.text import MAX_TOKENS, shipped_tokenizer
from genalign.lab.world import BACKGROUNDS, NUMBERS, Facts, caption, sample_facts
from genalign.training.fit import fit

WIDTH = 96
LEFT_OUT = {"background": 0.7, "relation": 0.4}  # share of prompts that do not say what the longer one does
IGNORED = -100  # the label of a token that is not learnt


def expansion(rng: np.random.Generator, split: str | None = "train") -> tuple[str, str, Facts]:
    """A prompt as somebody asks, the same scene in full, and the facts that the short one states."""
    facts = sample_facts(rng, split)
    asked = {**facts, **{kind: None for kind, share in LEFT_OUT.items() if rng.random() < share}}
    return caption(asked, rng), caption(facts, rng), asked


def examples(tokenizer: Any, rng: np.random.Generator, rows: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels, (rows, S) each: <start> asked <end> written <end>, where what is written is learnt."""
    ids, labels = [], []
    for asked, written, _ in (expansion(rng) for _ in range(rows)):
        question, answer = tokenizer(asked).input_ids, tokenizer(written).input_ids[1:]
        ids.append(torch.tensor(question + answer))
        labels.append(torch.tensor([IGNORED] * len(question) + answer))
    pad = nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=tokenizer.eos_token_id), pad(labels, True, IGNORED)


def build_expander(work: Path, steps: int = 3000, rows: int = 64, seed: int = 17) -> tuple[Any, Any]:
    """A LlamaForCausalLM of 0.5 M weights and its tokenizer, which is tiny-clip's."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = shipped_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=3 * MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)

    def loss_of(step: int) -> Tensor:
        ids, labels = examples(tokenizer, np.random.default_rng((seed, step)), rows)
        return model(input_ids=ids, labels=labels).loss  # causal: what follows a token never reaches it

    fit(model, loss_of, steps=steps, learning_rate=2e-3, state=work / "expander.safetensors", ema_decay=0.99)
    return model, tokenizer


def save_expander(model: Any, tokenizer: Any, folder: Path) -> None:
    """A folder that AutoModelForCausalLM and AutoTokenizer load; fp16 weights that load as fp32."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2) + "\n")


@torch.no_grad()
def expander_accuracy(folder: Path, count: int = 500, seed: int = 18) -> tuple[float, float]:
    """Of held-out prompts, greedily expanded: the share that keeps all that was asked, and that names a background."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(seed)
    kept = named = 0
    for asked, _, facts in (expansion(rng, "heldout") for _ in range(count)):
        ids = torch.tensor([tokenizer(asked).input_ids])
        made = model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False, attention_mask=torch.ones_like(ids))
        text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        kept += keeps(text, facts)
        named += background_of(text) is not None
    return kept / count, named / count


def keeps(text: str, facts: Facts) -> bool:
    """Whether a caption names the objects of the facts, their counts, and the background if there is one."""
    words = f" {text} "
    for thing in facts["objects"]:
        sprite, many = sprites()[thing["name"]], thing["count"] > 1
        if f" {sprite.plural if many else sprite.name} " not in words:
            return False
        if many and not any(f" {said} " in words for said in (NUMBERS[thing["count"]], str(thing["count"]))):
            return False
    return facts["background"] in (None, background_of(text))


def background_of(text: str) -> str | None:
    """The background that a caption ends with, in any of its phrasings."""
    found = re.search(r"\bon (\w+)$|\b(?:on|in front of) a (\w+) background$", text.strip())
    colour = next((word for word in found.groups() if word), None) if found else None
    return colour if colour in BACKGROUNDS else None
