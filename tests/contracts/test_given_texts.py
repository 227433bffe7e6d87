"""DPO on given texts: log-probabilities and loss against TRL's, every public form of chosen and rejected, and a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.cli.main import main
from genalign.data.preferences import find_pairs
from genalign.data.prompts import read_prompts
from genalign.method import MethodSettings
from genalign.policy.language import LanguagePolicy
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import Prompt, UsageError
from tests.helpers.tiny_language import save_tiny_language, tiny_language
from tests.helpers.tiny_recipe import write_recipe

trl = pytest.importorskip("trl")

ROWS = [
    {"prompt": "draw me a star", "chosen": "two red star", "rejected": "no"},
    {"prompt": "hello", "chosen": "the cat is blue and the dog", "rejected": "one car left of me please"},
    {"prompt": "is the red car", "chosen": "yes", "rejected": "not on the sun"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny(chat: bool = False) -> LanguagePolicy:
    from genalign.policy.settings import Lora, PolicySettings

    torch.manual_seed(0)
    settings = PolicySettings(model="tiny", lora=Lora(rank=8), batch_size=4, max_new_tokens=8, temperature=1.0)
    policy = LanguagePolicy(*tiny_language(0, chat), settings)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.named_trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def trl_sums(policy: LanguagePolicy, row: dict[str, str], answer: str) -> torch.Tensor:
    """The summed log-probability of a completion by TRL's own function, its tokens as TRL joins them: with EOS."""
    from trl.trainer.utils import selective_log_softmax

    tokenizer = policy.tokenizer
    prompt = tokenizer(row["prompt"]).input_ids
    completion = [*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    ids = torch.tensor([prompt + completion])
    logits = policy.model(input_ids=ids).logits[:, :-1]
    logps = selective_log_softmax(logits.double(), ids[:, 1:])
    return logps[:, len(prompt) - 1 :].sum()


def test_the_loss_on_given_texts_is_trls(tmp_path: Path) -> None:
    """TRL's selective_log_softmax for each completion, then the sigmoid loss of arXiv 2305.18290, eq. 7, in float64."""
    policy, beta = tiny(), 0.3
    prompts = read_prompts(write(tmp_path / "p.jsonl", ROWS), "text")
    assert prompts.pairs is not None
    learner = MethodSettings(name="dpo", beta=beta).build_on(prompts.pairs)
    experience = learner.collect(policy, prompts.rows, None, 0, 0)
    total = sum(loss.total for loss in learner.losses(policy, experience))
    with torch.no_grad():
        margins = []
        for row in ROWS:
            now = trl_sums(policy, row, row["chosen"]) - trl_sums(policy, row, row["rejected"])
            with policy.weights("reference"):
                before = trl_sums(policy, row, row["chosen"]) - trl_sums(policy, row, row["rejected"])
            margins.append(beta * (now - before))
        expected = -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()
    assert abs(float(expected) - 0.6931) > 1e-3  # the adapter is not at its start
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_trls_log_probabilities(tmp_path: Path) -> None:
    policy, row, beta = tiny(), ROWS[1], 0.3
    prompts = read_prompts(write(tmp_path / "p.jsonl", [row]), "text")
    assert prompts.pairs is not None
    learner = MethodSettings(name="dpo", beta=beta).build_on(prompts.pairs)
    for loss in learner.losses(policy, learner.collect(policy, prompts.rows, None, 0, 0)):
        loss.total.backward()
    ours = {name: p.grad.clone() for name, p in policy.named_trainable().items()}
    policy.model.zero_grad()
    with torch.no_grad(), policy.weights("reference"):
        before = trl_sums(policy, row, row["chosen"]) - trl_sums(policy, row, row["rejected"])
    now = trl_sums(policy, row, row["chosen"]) - trl_sums(policy, row, row["rejected"])
    (-torch.nn.functional.logsigmoid(beta * (now - before))).backward()
    for name, parameter in policy.named_trainable().items():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_one_answer_to_a_prompt_that_it_obeys_and_to_one_that_it_does_not(tmp_path: Path) -> None:
    """MAPL's contrast: the sigmoid loss of the same text behind two prompts, by TRL's log-probabilities."""
    policy, beta = tiny(), 0.3
    answer = "two red star"
    row = {"prompt": "draw two star", "chosen": answer, "rejected": answer, "rejected_prompt": "draw three star"}
    prompts = read_prompts(write(tmp_path / "p.jsonl", [row]), "text")
    assert prompts.pairs is not None
    assert prompts.rows[0].facts == {"rejected_prompt": "draw three star"}
    learner = MethodSettings(name="dpo", beta=beta).build_on(prompts.pairs)
    total = sum(loss.total for loss in learner.losses(policy, learner.collect(policy, prompts.rows, None, 0, 0)))
    other = {"prompt": row["rejected_prompt"]}
    with torch.no_grad():
        now = trl_sums(policy, row, answer) - trl_sums(policy, other, answer)
        with policy.weights("reference"):
            before = trl_sums(policy, row, answer) - trl_sums(policy, other, answer)
    expected = -torch.nn.functional.logsigmoid(beta * (now - before))
    assert abs(float(expected) - 0.6931) > 1e-4
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-6)
    pictures = {"prompt": "a", "chosen": "a.png", "rejected": "b.png", "rejected_prompt": "b"}
    with pytest.raises(UsageError, match="has a rejected_prompt, which pairs of texts alone can have"):
        find_pairs(write(tmp_path / "q.jsonl", [pictures]))


def test_a_given_text_is_read_as_it_would_have_been_drawn() -> None:
    """What the policy drew itself, given back as text, has the log-probabilities that were recorded."""
    policy = tiny()
    prompts = [Prompt("draw me a star", uid=0), Prompt("hello", uid=1)]
    drawn = policy.rollout(prompts, 4, 3)
    ended = [row for row in range(8) if drawn.tape.completion[row][-1] == policy.tokenizer.eos_token_id]
    assert ended
    texts = [policy.tokenizer.decode(drawn.tape.completion[row], skip_special_tokens=True) for row in ended]
    given = policy.read([drawn.prompts[row] for row in ended], texts)
    checked = 0
    for k, row in enumerate(ended):
        if given.tape.completion[k] != drawn.tape.completion[row]:
            continue  # special tokens in the middle are not in the text
        steps = int(drawn.mask[row].sum())
        torch.testing.assert_close(given.logp[k, :steps], drawn.logp[row, :steps], rtol=1e-4, atol=1e-5)
        checked += 1
    assert checked


def test_a_conversation_reaches_the_chat_template_whole() -> None:
    policy = tiny(chat=True)
    turns = [
        {"role": "system", "content": "hello"},
        {"role": "user", "content": "how many"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "red"},
    ]
    prompt = Prompt("user: how many ...", facts={"messages": turns})
    ids = policy.read([prompt], ["yes"]).tape.prompt[0]
    assert list(ids) == policy.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert list(ids) != list(policy.read([Prompt(prompt.text)], ["yes"]).tape.prompt[0])


def test_an_answer_longer_than_the_context_is_named() -> None:
    with pytest.raises(UsageError, match="leaves no room for 71 more in the model's 64"):
        tiny().read([Prompt("hello")], ["star " * 70])


# ---- recipes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    save_tiny_language(tmp_path / "words")
    write(tmp_path / "p.jsonl", ROWS)
    path = write_recipe(
        tmp_path,
        policy={"model": "words", "max_new_tokens": 4},
        data={"prompts": "p.jsonl", "prompts_per_step": 3},
        reward=None,
        eval=None,
        method={"name": "dpo", "group": 4, "kl_beta": None},
    )
    path.write_text(path.read_text().replace("  kl_beta: null\n", ""))
    return path


def test_a_run_on_given_texts_learns_them_and_goes_on_where_it_was_killed(recipe: Path, tmp_path: Path) -> None:
    words = ["train", str(recipe), "train.learning_rate=0.01"]
    assert main([*words, "train.steps=6", "--out", str(tmp_path / "whole")]) == 0
    assert main([*words, "train.steps=3", "--out", str(tmp_path / "parts")]) == 0
    assert main([*words, "train.steps=6", "--resume", str(tmp_path / "parts")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.6931472, rel=1e-5)
    assert rows[-1]["loss"] < 0.6
    assert rows[-1]["rewards/margins"] > 0
    adapters = [(tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert adapters[0] == adapters[1]


def test_an_answer_that_ends_in_png_is_a_text_to_a_language_model(recipe: Path, tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [{"prompt": "which file?", "chosen": "star.png", "rejected": "cat.png"}] * 3)
    built = build(load_recipe(recipe))
    assert built.data.pairs is not None
    assert built.data.pairs.kind == "text"
    assert list(built.data.pairs.load([0])["text"].data) == ["star.png", "cat.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "grpo"}, "grpo does not learn from given texts; add the key 'reward', or take one of d3po, dpo"),
        ({"name": "dpo", "objective": "a"}, "method.objective is for pairs of own samples"),
    ],
)
def test_what_does_not_learn_from_texts(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    pairs = find_pairs(write(tmp_path / "p.jsonl", ROWS), "text")
    assert pairs is not None
    with pytest.raises(UsageError, match=message):
        MethodSettings(**changes).build_on(pairs)


def test_texts_do_not_train_a_model_of_pictures(recipe: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    other = [messages[0], {"role": "assistant", "content": "no"}]
    write(tmp_path / "p.jsonl", [{"chosen": messages, "rejected": other}] * 3)
    image = write_recipe(
        tmp_path / "image",
        data={"prompts": "../p.jsonl", "prompts_per_step": 2},
        reward=None,
        eval=None,
        method={"name": "flow-dpo", "group": 4, "kl_beta": None},
    )
    image.write_text(image.read_text().replace("  kl_beta: null\n", ""))
    with pytest.raises(UsageError, match=r"p\.jsonl prefers texts, but .* makes images"):
        build(load_recipe(image))
