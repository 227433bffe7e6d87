"""A tool between a model's turns: its tokens are read and no steps; oracles are plain forwards and the template."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings
from genalign.reward.runtime.environment import FileEnvironment
from genalign.run.build import build
from genalign.run.recipe import load_recipe
from genalign.types import GenalignError, Prompt, UsageError
from tests.helpers.tiny_language import save_tiny_language, tiny_language
from tests.helpers.toy_policy import ToyReward, make_scores

ASKED = [Prompt("how many star", uid=0), Prompt("hello", uid=1), Prompt("is the red car left", uid=2)]
CHATML = (
    "{% for m in messages %}<bos> {{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}<bos> user{% endif %}"
)


class Echo:
    """Says how many words the last turn had, until the model has had so many turns, or one of more than eight words."""

    version = "1"

    def __init__(self, turns: int = 9) -> None:
        self.turns = turns
        self.seen: list[list[dict[str, str]]] = []

    def __call__(self, prompts: Sequence[Prompt], turns: Sequence[Sequence[dict[str, str]]]) -> list[str | None]:
        self.seen += [[dict(turn) for turn in own] for own in turns]
        count = ["one", "two", "three", "red", "green", "blue", "left", "right"]
        words = [own[-1]["content"].split() for own in turns]
        return [
            count[len(own) % 8] + " <eos> star" if len(talk) < 2 * self.turns - 1 else None
            for own, talk in zip(words, turns, strict=True)
        ]


def policy_of(environment: Any, chat: str | None = CHATML, batch_size: int = 4, **keys: Any) -> LanguagePolicy:
    model, words = tiny_language(0)
    words.chat_template = chat
    with torch.no_grad():
        model.lm_head.weight[2] += 0.5 * model.lm_head.weight.std()  # turns end soon
        model.lm_head.weight[2] *= 1.5
    chosen = {"model": "tiny", "lora": Lora(rank=4), "max_new_tokens": 24, "turns": 3, **keys}
    policy = LanguagePolicy(model, words, PolicySettings(batch_size=batch_size, **chosen), environment)
    with torch.no_grad():
        for k, parameter in enumerate(policy.named_trainable().values()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k))
    return policy


@pytest.mark.parametrize("chat", [CHATML, None])
def test_the_log_ratio_is_0_at_replay_and_a_tools_tokens_are_no_steps(chat: str | None) -> None:
    policy = policy_of(Echo(), chat)
    trajectory = policy.rollout(ASKED, 4, 7)
    for rows, steps in trajectory.units():
        replayed = policy.replay(trajectory, rows, steps)
        assert torch.equal(replayed.score, trajectory.logp[rows][:, steps])
        assert torch.equal(replayed.mask, trajectory.mask[rows][:, steps])
    tape = trajectory.tape
    said = [not all(own) for own in tape.own]
    assert sum(said) >= 3  # rows in which the tool had a word
    for row, ids in enumerate(tape.completion):
        own = torch.tensor(tape.own[row])
        assert torch.equal(trajectory.mask[row, : len(ids)], own)
        assert not trajectory.mask[row, len(ids) :].any()
        assert not trajectory.logp[row][~trajectory.mask[row]].any()
        whole = torch.tensor([[*tape.prompt[row], *ids]])
        with torch.no_grad():
            logp = policy.model(input_ids=whole).logits[0].log_softmax(-1)
        start = len(tape.prompt[row]) - 1
        wanted = logp[start : start + len(ids)].gather(-1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(trajectory.logp[row, : len(ids)][own], wanted[own], atol=1e-4, rtol=1e-4)


def test_a_turn_of_the_tool_stands_as_the_template_writes_it() -> None:
    """The whole completion is what the template makes of the conversation, control tokens in the answer being text."""
    echo = Echo()
    policy = policy_of(echo)
    tape, media = (trajectory := policy.rollout(ASKED[:1], 8, 3)).tape, trajectory.media
    rows = [row for row in range(8) if not all(tape.own[row])]
    assert rows
    decode = policy.tokenizer.decode
    for row in rows:
        ids, own = tape.completion[row], tape.own[row]
        first = own.index(False)
        assert ids[first - 1] == 2  # the turn had ended
        theirs = [token for token, mine in zip(ids, own, strict=True) if not mine]
        behind = ids[first : first + own[first:].index(True)]
        words = len(decode([token for token in ids[:first] if token > 2]).split())
        count = ["one", "two", "three", "red", "green", "blue", "left", "right"][words % 8]
        unknown = policy.tokenizer("<eos>", add_special_tokens=False, split_special_tokens=True).input_ids
        wanted = policy.tokenizer(f"<bos> tool {count}", add_special_tokens=False).input_ids
        wanted += [*unknown, *policy.tokenizer("star <eos> <bos> user", add_special_tokens=False).input_ids]
        assert list(behind) == wanted
        assert list(media["text"].ids[row]) == [token for token, mine in zip(ids, own, strict=True) if mine]
        assert count not in media["text"].data[row].split() or theirs
    longest = max(len(ids) for ids in tape.completion)
    assert longest <= 24


def test_neither_batch_size_nor_neighbours_change_a_conversation() -> None:
    whole = policy_of(Echo(), batch_size=16).rollout(ASKED, 3, 5)
    for size in (1, 4):
        found = policy_of(Echo(), batch_size=size).rollout(ASKED, 3, 5)
        assert found.tape.completion == whole.tape.completion
        assert found.tape.own == whole.tape.own
    assert policy_of(None).rollout(ASKED, 3, 5).tape.own != whole.tape.own


def test_greedy_turns_are_the_likeliest_tokens() -> None:
    policy = policy_of(Echo())
    ids = policy.generate(ASKED, [0] * 3)["text"].ids
    rolled = policy._converse(ASKED, policy._encode(ASKED, 24), 24, None)
    assert any(not all(one.own) for one in rolled)
    for row, one in enumerate(rolled):
        assert list(ids[row]) == [token for token, mine in zip(one.ids, one.own, strict=True) if mine]
        prompt = policy.chat.encode(ASKED[row]).ids
        logits = policy.model(input_ids=torch.tensor([[*prompt, *one.ids]])).logits[0]
        best = logits[len(prompt) - 1 : -1].argmax(-1)
        own = torch.tensor(one.own)
        assert torch.equal(best[own], torch.tensor(one.ids)[own])


def test_a_conversation_ends_by_the_tool_by_its_turns_and_by_room() -> None:
    for echo, keys, most in ((Echo(1), {}, 1), (Echo(), {"turns": 2}, 2), (Echo(), {"turns": 1}, 1)):
        trajectory = policy_of(echo, **keys).rollout(ASKED, 4, 7)
        spans = [sum(mine and not (k and own[k - 1]) for k, mine in enumerate(own)) for own in trajectory.tape.own]
        assert max(spans) == most
    short = policy_of(Echo(), max_new_tokens=7).rollout(ASKED, 4, 7)
    assert max(map(len, short.tape.completion)) <= 7
    assert all(own[-1] for own in short.tape.own)  # never a tool's word without one behind it


def test_gradients_pass_over_a_tools_tokens() -> None:
    """A step of GRPO: what the loss is a mean over are the model's own tokens."""

    class Short(ToyReward):
        name, aspects = "short", ("short",)

        def __call__(self, prompts: Any, media: Any, group: Any = None) -> Any:
            return make_scores(torch.tensor([[-float(len(ids))] for ids in media["text"].ids]))

    policy, learner = policy_of(Echo()), build_method(MethodSettings(name="grpo", group=4))
    experience = learner.collect(policy, ASKED, Short(), 0, 0)
    for loss in learner.losses(policy, experience):
        loss.total.backward()
    found = {name: p.grad.clone() for name, p in policy.named_trainable().items()}
    policy.model.zero_grad()
    trajectory, tape = experience.trajectory, experience.trajectory.tape
    total, count = torch.zeros(()), int((trajectory.mask & experience.counted[:, None]).sum())
    for row, ids in enumerate(tape.completion):
        whole = torch.tensor([[*tape.prompt[row], *ids]])
        logp = policy.model(input_ids=whole).logits[0, len(tape.prompt[row]) - 1 : -1].log_softmax(-1)
        own = torch.tensor(tape.own[row])
        total = total - experience.advantage[row] * logp.gather(-1, torch.tensor(ids)[:, None])[:, 0][own].sum()
    (total / count).backward()
    for name, parameter in policy.named_trainable().items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


# ---- functions of files ---------------------------------------------------------------------------------------------

TOOLS = """
import os

def count(text, turns, answer):
    return [None if a is None else f"{len(t.split())} of {len(c)} {a}" for t, c, a in zip(text, turns, answer)]

def where(text):
    return [str(os.getpid())] * len(text)

def wrong(text):
    return [1.0] * len(text)

def raises(text):
    raise RuntimeError("the lamp is broken")
"""


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(TOOLS)
    return tmp_path


def test_a_function_of_a_file_answers_in_the_worker(tools: Path) -> None:
    turns = [[{"role": "assistant", "content": "a b"}], [{"role": "assistant", "content": "c"}] * 3]
    prompts = [replace(ASKED[0], facts={"answer": "x"}), replace(ASKED[1], facts={"answer": None})]
    count = FileEnvironment("tools.py:count", tools)
    assert count(prompts, turns) == ["2 of 1 x", None]
    assert count.needs == {"text", "facts.answer"}
    assert FileEnvironment("tools.py:where", tools)(prompts, turns)[0] != str(os.getpid())
    before = count.version
    (tools / "tools.py").write_text(TOOLS + "\nMORE = 1\n")
    assert FileEnvironment("tools.py:count", tools).version != before


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "tools.py:wrong",
            GenalignError,
            r"environment wrong .*returned \[1.0, 1.0\] for 2 rows; return a text or None",
        ),
        ("tools.py:raises", GenalignError, "environment raises .*the lamp is broken"),
        ("tools.py:rases", UsageError, "has no function 'rases'; did you mean 'raises'"),
        ("tool.py:count", UsageError, "tool.py"),
        ("tools:count", UsageError, "write file and function as 'file.py:function'"),
    ],
)
def test_an_environment_that_fails_is_one_sentence(tools: Path, name: str, error: type, said: str) -> None:
    turns = [[{"role": "assistant", "content": "a"}]] * 2
    with pytest.raises(error, match=said):
        FileEnvironment(name, tools)(ASKED[:2], turns)


def test_the_calculator_computes_and_answers_nothing_else() -> None:
    calculator = FileEnvironment("text_tools.py:calculator", Path())
    given = ["<calc>12 * 7</calc>", "84", "so <calc>1</calc> and <calc>2 - -3</calc>", "<calc>2 ** 9</calc>", "<calc>"]
    turns = [[{"role": "assistant", "content": text}] for text in given]
    assert calculator(ASKED[:1] * 5, turns) == ["84", None, "5", "that is no formula of whole numbers", None]


def test_a_recipe_with_a_tool_that_reads_what_prompts_lack_is_refused(tools: Path) -> None:
    save_tiny_language(tools / "model")
    (tools / "prompts.txt").write_text("hello\n" * 8)
    recipe = "policy: {model: model, environment: 'tools.py:count'}\ndata: {prompts: prompts.txt}\n"
    recipe += "reward: {use: length, hi: 3}\n"
    (tools / "recipe.yaml").write_text(recipe + "method: {name: grpo}\n")
    with pytest.raises(
        UsageError, match=r"policy\.environment tools\.py:count reads facts\.answer, which not all prompts"
    ):
        build(load_recipe(tools / "recipe.yaml"))
    built = build(load_recipe(tools / "recipe.yaml", ["policy.environment=tools.py:where"]))
    assert built.policy.environment is built.environment
    (tools / "recipe.yaml").write_text(recipe.replace("model: model", "model: tiny-flow") + "method: {name: grpo}\n")
    with pytest.raises(UsageError, match=r"policy\.environment answers language models, but tiny-flow makes images"):
        build(load_recipe(tools / "recipe.yaml", ["reward={use: sharpness}"]))
