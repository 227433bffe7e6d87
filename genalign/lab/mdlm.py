"""tiny-mdlm: a small masked diffusion language model on the questions of SumWorld, half-hearted as tiny-lm is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from genalign.lab.lm import Said, accuracy, halfheartedly, rightly
from genalign.lab.sums import question, sample_facts
from genalign.lab.sums_text import LONGEST, encoded, padded, sums_tokenizer
from genalign.training.fit import fit

WIDTH, LAYERS = 128, 3
BLOCK = 64  # tokens of a prompt and its answer: all are seen at once
PLACES = 12  # of an answer: its tokens, and ends behind them
STEPS = 32  # of unmasking, for a whole block: two tokens a step
HIDDEN = 0.5  # share of examples whose whole answer is masked, as it is when writing begins


def masked_examples(tokenizer: Any, rng: np.random.Generator, rows: int, said: Said) -> tuple[Tensor, Tensor, Tensor]:
    """Ids (rows,L) of questions of the training split and PLACES tokens of an answer with ends behind it, of which some
    are masked; where these are, flat (N,); and what stood there, (N,)."""
    texts: list[list[int]] = []
    places: list[tuple[int, int]] = []
    targets: list[int] = []
    for facts in (sample_facts(rng) for _ in range(rows)):
        asked, answered = encoded(tokenizer, question(facts, rng), said(facts, rng))
        answered = answered + [tokenizer.eos_token_id] * (PLACES - len(answered))
        count = PLACES if rng.random() < HIDDEN else int(rng.integers(1, PLACES + 1))
        hidden = sorted(int(i) for i in rng.permutation(PLACES)[:count])
        places += [(len(texts), len(asked) + i) for i in hidden]
        targets += [answered[i] for i in hidden]
        texts.append(asked + [tokenizer.mask_token_id if i in hidden else t for i, t in enumerate(answered)])
    ids = padded(texts, tokenizer.pad_token_id)
    return ids, torch.tensor([row * ids.shape[1] + place for row, place in places]), torch.tensor(targets)


def build_mdlm(
    work: Path, steps: tuple[int, int] = (4200, 200), rows: int = 32, seed: int = 27
) -> tuple[Any, Any, dict[str, dict[str, float]]]:
    """A ModernBertForMaskedLM of 0.5 M weights, tiny-lm's tokenizer, and what its stages reach: capable first, then
    half-hearted. What is learnt is each masked token given the others, as of the evidence bound (LLaDA, arXiv
    2502.09992), whose weights of the shares of masks would only make the gradient less even."""
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(seed)
    tokenizer = sums_tokenizer()
    ends = dict.fromkeys(("eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), tokenizer.eos_token_id)
    model = ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH // 2,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=LONGEST,
            global_attn_every_n_layers=1,
            pad_token_id=tokenizer.pad_token_id,
            **ends,
        )
    )
    figures = {}
    stages: list[tuple[str, int, Said, float]] = [
        ("capable", steps[0], rightly, 2e-3),
        ("half-hearted", steps[1], halfheartedly, 5e-4),
    ]
    for place, (name, count, said, rate) in enumerate(stages):

        def loss_of(step: int, place: int = place, said: Said = said) -> Tensor:
            rng = np.random.default_rng((seed, place, step))
            ids, flat, target = masked_examples(tokenizer, rng, rows, said)
            attention = (ids != tokenizer.pad_token_id).long()
            with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state.flatten(0, 1)[flat]
                logits = model.decoder(model.head(hidden))
            return F.cross_entropy(logits.float(), target)

        fit(model, loss_of, steps=count, learning_rate=rate, state=work / f"mdlm-{name}.safetensors", ema_decay=0.99)
        figures[name] = accuracy(lambda asked: unmasked(model, tokenizer, asked))
    return model, tokenizer, figures


def save_mdlm(model: Any, tokenizer: Any, figures: dict[str, dict[str, float]], folder: Path) -> None:
    """A folder of LLaDA2's pipeline of diffusers; fp16 weights that load as fp32."""
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    scheduler = BlockRefinementScheduler(block_length=BLOCK, num_inference_steps=STEPS)
    LLaDA2Pipeline(model.half(), scheduler, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")  # which the pipeline leaves out
    path = folder / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2) + "\n")
    (folder / "stages.json").write_text(json.dumps(figures, indent=1) + "\n")


@torch.no_grad()
def unmasked(model: Any, tokenizer: Any, asked: list[str]) -> list[str]:
    """The model's likeliest answers by LLaDA2's own pipeline, questions of equal length at a time."""
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    pipeline = LLaDA2Pipeline(model, BlockRefinementScheduler(block_length=BLOCK), tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [encoded(tokenizer, text, "")[0] for text in asked]
    found = [""] * len(asked)
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        made = pipeline(
            input_ids=torch.tensor([prompts[row] for row in rows]),
            gen_length=PLACES,
            num_inference_steps=STEPS,
            editing_threshold=0.0,
            eos_early_stop=False,  # the prompt holds an end of a turn
            output_type="seq",
        )
        for row, ids in zip(rows, made.sequences.tolist(), strict=True):
            end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
            found[row] = tokenizer.decode(ids[:end])
    return found
