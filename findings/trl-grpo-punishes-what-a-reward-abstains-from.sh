#!/usr/bin/env bash
# GRPOTrainer counts None from one of several rewards as 0, so a completion is worse for not being judged.
#
# Expected: A reward that returns None for a completion, as it may where it does not apply, is left out for it, as the
#   documentation says: where each reward gives all that it judges the same value, no advantage is left.
# Seen: The rewards are summed with None as 0. With one reward of 1 for all and another of 1 for two of four and None
#   for the others, the two have 1 instead of 2: a gradient away from what was not judged. Each reward's own spread is
#   logged as 0.
# Versions: trl 1.16.0.
# Harm: A verifier that abstains (no parse, time-out, another kind of task) teaches the policy to write what it does
#   not abstain from; where rewards are negative, to write what it does.
# genalign: Puts the mean of the row's judged siblings in the place of what abstains (reward/scores.py, `missing`), so
#   that it moves no advantage.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 trl==1.16.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

print("torch", torch.__version__, "trl", trl.__version__)
words = ["<pad>", "<eos>", "<unk>", "a", "b", "c"]
spelling = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
spelling.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=spelling, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
)
config = LlamaConfig(
    vocab_size=6, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
)


def always(completions: list, **columns) -> list[float]:
    return [1.0] * 4


def sometimes(completions: list, **columns) -> list[float | None]:
    return [1.0, None, 1.0, None]


def logged(*rewards) -> dict:
    torch.manual_seed(0)
    settings = GRPOConfig(
        output_dir="run", use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=4, num_generations=4,
        max_completion_length=4, logging_steps=1, report_to=[], save_strategy="no", gradient_checkpointing=False,
    )
    trainer = GRPOTrainer(
        model=LlamaForCausalLM(config), processing_class=tokenizer, reward_funcs=list(rewards),
        train_dataset=Dataset.from_list([{"prompt": "a b"}]), args=settings,
    )
    trainer.train()
    return trainer.state.log_history[0]


one, both = logged(always), logged(always, sometimes)
spreads = [both[f"rewards/{name}/std"] for name in ("always", "sometimes")]
print(f"one reward of 1 for all: spread {one['reward_std']:.4f}, gradient {one['grad_norm']:.4f}")
print(f"and one of 1 or None: spreads of the two {spreads}, of the sum {both['reward_std']:.4f}, "
      f"mean {both['reward']}, gradient {both['grad_norm']:.4f}")
still = one["grad_norm"] == 0 and spreads == [0, 0] and both["reward"] == 1.5 and both["grad_norm"] > 0.1

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
