"""Steps of GRPO and of DPO on a language model, in seconds and bytes, beside TRL's.

`python -m tests.bench.test_bench_language` prints the tables. The models are Llamas of 10 and of 40 million random
weights, which differ in their vocabulary, under a LoRA of all attention projections. A step of GRPO is 8 prompts of 8
completions, scored by a rule, and one update, all in one micro-batch; one of DPO is 32 pairs of answers as long. TRL's
gradient checkpointing is off: it would spend time for memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import Media, Prompt, Scores, Track
from tests.bench.live import live
from tests.helpers.tiny_language import WORDS
from tests.helpers.toy_policy import ToyReward, make_scores

PROMPTS, GROUP, LENGTH = 8, 8, 48
ROWS = PROMPTS * GROUP
SMALL = {"layers": 1, "hidden": 32}


def model_of(vocabulary: int, layers: int = 8, hidden: int = 256) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=8 * hidden // 3, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=0.02,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def words_of(vocabulary: int) -> Any:
    """A word for each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = ["<pad>", "<bos>", "<eos>", "<unk>", *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(named)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_tokens([f"w{i}" for i in range(len(named), vocabulary)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def asked() -> list[Prompt]:
    return [Prompt(f"draw {' '.join(WORDS[k : k + 8])}", uid=k) for k in range(PROMPTS)]


def length_of(texts: Any) -> list[float]:
    return [float(len(text) % 97) for text in texts]


class Letters(ToyReward):
    name, aspects = "letters", ("letters",)

    def __call__(self, prompts: Any, media: Media, group: Any = None) -> Scores:
        return make_scores(torch.tensor(length_of(media["text"].data))[:, None])


def ours(vocabulary: int, words: Any, kl: float = 0.0, **size: Any) -> Callable[[], None]:
    """One step of ours."""
    settings = PolicySettings(model="x", lora=Lora(rank=16), batch_size=ROWS, max_new_tokens=LENGTH)
    policy = LanguagePolicy(model_of(vocabulary, **size).eval(), words, settings)
    method = build_method(MethodSettings(name="grpo", group=GROUP, kl_beta=kl))
    optimizer = torch.optim.AdamW(policy.parameter_groups(), lr=1e-4)
    prompts, reward, step = asked(), Letters(), iter(range(1000))

    def work() -> None:
        experience = method.collect(policy, prompts, reward, 0, next(step))
        for loss in method.losses(policy, experience):
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


class Pairs:
    """Two answers of LENGTH words to each of ROWS / 2 prompts."""

    kind, rows_together = "text", ROWS

    def load(self, pairs: Sequence[int]) -> Media:
        return Media(text=Track([answer for pair in pairs for answer in answers(pair)]))


def answers(pair: int) -> tuple[str, str]:
    """The preferred one first; the words of both are of the smallest vocabulary."""
    words = [WORDS[(7 * pair + 3 * k) % len(WORDS)] for k in range(2 * LENGTH)]
    return " ".join(words[:LENGTH]), " ".join(words[LENGTH:])


def questions() -> list[Prompt]:
    return [Prompt(f"draw {' '.join(WORDS[k % 16 : k % 16 + 8])}", uid=k) for k in range(ROWS // 2)]


def our_dpo(vocabulary: int, words: Any, **size: Any) -> Callable[[], None]:
    """One step of DPO of ours; the reference is the model without its adapter."""
    settings = PolicySettings(model="x", lora=Lora(rank=16), batch_size=ROWS, max_new_tokens=LENGTH)
    policy = LanguagePolicy(model_of(vocabulary, **size).eval(), words, settings)
    method = MethodSettings(name="dpo").build_on(Pairs())
    optimizer = torch.optim.AdamW(policy.parameter_groups(), lr=1e-4)

    def work() -> None:
        for loss in method.losses(policy, method.collect(policy, questions(), None, 0, 0)):
            loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def marking(marks: list[float]) -> Any:
    """A callback of transformers' trainers: CPU seconds at the end of each step."""
    from transformers import TrainerCallback

    class Mark(TrainerCallback):
        def on_step_end(self, *given: Any, **named: Any) -> None:
            marks.append(time.process_time())

    return Mark()


def their_dpo(
    vocabulary: int, words: Any, folder: str, steps: int, marks: list[float], **size: Any
) -> Callable[[], None]:
    """`steps` steps of TRL's DPOTrainer on the same pairs."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(
        output_dir=folder, per_device_train_batch_size=ROWS // 2, max_steps=steps, use_cpu=True, report_to="none",
        save_strategy="no", logging_strategy="no", bf16=False, learning_rate=1e-4, disable_tqdm=True,
        gradient_checkpointing=False, max_length=128,
    )  # fmt: skip
    rows = [
        {"prompt": prompt.text, "chosen": f" {answers(prompt.uid)[0]}", "rejected": f" {answers(prompt.uid)[1]}"}
        for prompt in questions()
    ]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    trainer = DPOTrainer(
        model=model_of(vocabulary, **size), args=arguments, train_dataset=Dataset.from_list(rows),
        processing_class=words, peft_config=lora, callbacks=[marking(marks)],
    )  # fmt: skip
    return trainer.train


def theirs(vocabulary: int, words: Any, folder: str, steps: int, marks: list[float], **size: Any) -> Callable[[], None]:
    """`steps` steps of TRL's GRPOTrainer; marks: CPU seconds at the end of each."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=folder, per_device_train_batch_size=ROWS, num_generations=GROUP, max_completion_length=LENGTH,
        max_steps=steps, beta=0.0, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
        bf16=False, loss_type="grpo", learning_rate=1e-4, disable_tqdm=True, gradient_checkpointing=False, top_k=0,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    trainer = GRPOTrainer(
        model=model_of(vocabulary, **size), args=arguments,
        reward_funcs=lambda completions, **_: length_of(completions),
        train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in asked()] * 8), processing_class=words,
        peft_config=lora, callbacks=[marking(marks)],
    )  # fmt: skip
    return trainer.train


def test_peak_bytes_do_not_grow_with_the_vocabulary() -> None:
    """Beyond the embedding's and the head's own weights, which were there before, and one row of logits a sample while
    that is drawn."""
    peaks = {}
    for vocabulary in (4096, 32768):
        work = ours(vocabulary, words_of(64), kl=0.1, **SMALL)
        work()
        peaks[vocabulary] = live(work)[0]
    assert peaks[32768] <= 1.15 * peaks[4096] + 4 * ROWS * 32768 * 4


def test_a_step_of_trl_and_one_of_ours_train_the_same_rows(tmp_path: Any) -> None:
    """What the table compares is there: both make a step."""
    pytest.importorskip("trl")
    marks: list[float] = []
    theirs(128, words_of(128), str(tmp_path), 1, marks, **SMALL)()
    ours(128, words_of(128), **SMALL)()
    their_dpo(128, words_of(128), str(tmp_path), 1, marks, **SMALL)()
    our_dpo(128, words_of(128), **SMALL)()
    assert len(marks) == 2


def beside(work: Callable[[], None], other: Callable[..., Callable[[], None]], rounds: int) -> tuple[float, ...]:
    """CPU seconds of a step and bytes at its peak: here, and of TRL; the first step of each is not counted."""
    work()
    spent = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    with TemporaryDirectory() as folder:
        marks: list[float] = []
        other(folder, rounds + 1, marks)()
        trl = [after - before for before, after in pairwise(marks)]
        return median(spent), median(trl), live(work)[0], live(other(folder, 1, []))[0]


def main(rounds: int = 3) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    print(f"{ROWS} completions of {LENGTH} tokens, LoRA, one thread; CPU seconds a step, and bytes at its peak\n")
    print(
        "| model | step | s here | s TRL | ratio | bytes here | bytes TRL | ratio |\n|---|---|---|---|---|---|---|---|"
    )
    for vocabulary in (8192, 65536):
        words = words_of(vocabulary)
        weights = sum(p.numel() for p in model_of(vocabulary).parameters())
        for name, work, other in (("GRPO", ours, theirs), ("DPO", our_dpo, their_dpo)):
            here, trl, mine, peak = beside(work(vocabulary, words), partial(other, vocabulary, words), rounds)
            cells = f"{here:.2f} | {trl:.2f} | {here / trl:.2f} | {mine:,} | {peak:,} | {mine / peak:.2f}"
            print(f"| {weights / 1e6:.0f} M, vocabulary {vocabulary:,} | {name} | {cells} |", flush=True)
    work = ours(131072, words_of(131072))
    work()
    print(f"\nbytes at the peak of a step of GRPO at a vocabulary of 131,072: {live(work)[0]:,}", flush=True)


if __name__ == "__main__":
    main()
