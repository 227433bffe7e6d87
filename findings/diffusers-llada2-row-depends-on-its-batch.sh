#!/usr/bin/env bash
# What LLaDA2Pipeline writes at temperature 0 for a prompt depends on the other prompts of its batch.
#
# Expected: Greedy decoding of prompts of one length, with a model that keeps rows apart, gives each prompt the text
#   that it gets alone.
# Seen: A row goes on being edited as long as any row of the batch has places to fill, up to the steps of the block. A
#   finished row that would have stopped alone has tokens replaced again: here 6 of 16 rows keep their text. With
#   editing off (editing_threshold=0.0) all 16 do.
# Versions: diffusers 0.42.1, LLaDA2Pipeline with BlockRefinementScheduler; a small transformer of random weights.
# Harm: Samples are not reproducible by prompt and seed, an evaluation changes with its batch size, and a group's
#   texts are no independent draws of one policy.
# genalign: Its policy of masked text writes by itself; nothing that is written is written again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

print("torch", torch.__version__, "diffusers", diffusers.__version__)
torch.manual_seed(0)
WORDS, END, MASK = 18, 18, 19


class Denoiser(nn.Module):
    """Logits (B,L,20) of every place, from all places of the row; the mask token is never likely."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(20, 16), nn.Embedding(64, 16)
        self.block, self.head = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), nn.Linear(16, 20)
        self.head.weight.data.mul_(8)  # as sure of its tokens as a trained model
        self.head.bias.data[MASK] = -1e4

    def forward(self, input_ids: Tensor, position_ids: Tensor, **options) -> CausalLMOutput:
        return CausalLMOutput(logits=self.head(self.block(self.tokens(input_ids) + self.places(position_ids))))


pipe = LLaDA2Pipeline(model=Denoiser().eval(), scheduler=BlockRefinementScheduler(), tokenizer=None)
pipe.set_progress_bar_config(disable=True)
prompts = torch.randint(0, WORDS, (16, 4))


def written(rows: Tensor, **options) -> Tensor:
    return pipe(
        input_ids=rows, gen_length=16, block_length=8, num_inference_steps=8, temperature=0.0, mask_token_id=MASK,
        eos_token_id=END, eos_early_stop=False, output_type="seq", **options,
    ).sequences


def same_alone(**options) -> int:
    alone = torch.cat([written(row[None], **options) for row in prompts])
    return (alone == written(prompts, **options)).all(1).sum().item()


again = torch.equal(written(prompts), written(prompts))
edited, filled = same_alone(), same_alone(editing_threshold=0.0)
print(f"rows with the same text alone and in a batch of 16: {edited}; with editing off {filled}")
print(f"the same batch twice is equal: {again}")
still = again and filled == 16 and edited < 12

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
