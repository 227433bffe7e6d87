"""Rewards inside TRL's own trainer, and TRL's functions as rewards; the right values are those of TRL's calls."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from genalign.reward import FunctionReward, Schedule, Sum, from_trl, reward, to_trl
from genalign.reward.combine.pairwise import Difference, WinRate
from genalign.types import GenalignError, Media, Prompt, Track, UsageError
from tests.helpers.tiny_language import tiny_language

ROWS = [{"prompt": f"how many {noun}", "answer": noun} for noun in ("star", "cat", "dog", "sun")]


def names_it(text: list[str], answer: list[str]) -> list[float]:
    return [
        float(wanted in written.split()) + 0.01 * len(written) for written, wanted in zip(text, answer, strict=True)
    ]


def short(text: list[str]) -> list[float | None]:
    return [None if len(written) % 5 == 4 else -float(len(written.split())) for written in text]


def hybrid() -> Sum:
    return Sum([FunctionReward(names_it), (FunctionReward(short), 0.25)], name="mixed")


def as_chat(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "prompt": [{"role": "user", "content": row["prompt"]}]}


@pytest.mark.parametrize("chat", [False, True])
def test_trls_trainer_logs_what_the_reward_gives(chat: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model, words = tiny_language(chat=chat)
    inner, seen = to_trl(hybrid(), num_generations=4), []

    def kept(**given: Any) -> list[float | None]:
        seen.append(given)
        return inner(**given)

    kept.__name__ = inner.__name__
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=8, num_generations=4, max_completion_length=6,
        max_steps=2,
        use_cpu=True, report_to="none", save_strategy="no", logging_steps=1, bf16=False, disable_tqdm=True,
    )  # fmt: skip
    data = datasets.Dataset.from_list([as_chat(row) if chat else row for row in ROWS])
    trainer = trl.GRPOTrainer(
        model=model, args=arguments, reward_funcs=kept, train_dataset=data, processing_class=words
    )
    trainer.train()
    assert len(seen) == 2
    for given, log in zip(seen, trainer.state.log_history, strict=False):
        written = [one[0]["content"] if chat else one for one in given["completions"]]
        prompts = [Prompt("x", facts={"answer": answer}, uid=i // 4) for i, answer in enumerate(given["answer"])]
        group = torch.arange(8) // 4
        scores = hybrid()(prompts, Media(text=Track(written)), group)
        assert log["rewards/mixed/mean"] == pytest.approx(float(scores.total[scores.total_valid].mean()), rel=1e-5)
        assert log["rewards/names_it/mean"] == pytest.approx(float(scores.values[:, 0].mean()), rel=1e-5)
        assert log["rewards/short/fail_rate"] == 0


def test_there_and_back_is_the_reward_itself() -> None:
    made, prompts = Media(text=Track(["a star", "a cat or two", "no"])), [Prompt("q", facts={"answer": "star"})] * 3
    direct = FunctionReward(names_it)
    again = from_trl(to_trl(direct))
    torch.testing.assert_close(again(prompts, made).total, direct(prompts, made).total)


def test_several_functions_are_summed_by_weight_as_trl_sums_them() -> None:
    def one(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    def other(prompts: list[str], completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        return [float(answer[i] in text) for i, text in enumerate(completions)]

    texts, answers = ["a star", "cats", ""], ["star", "dog", "sun"]
    table = torch.tensor([one(completions=texts), other(prompts=["q"] * 3, completions=texts, answer=answers)]).T
    wanted = (table * torch.tensor([0.5, 2.0])).nansum(1)
    scores = from_trl(one, other, weights=[0.5, 2.0])(
        [Prompt("q", facts={"answer": answer}) for answer in answers], Media(text=Track(texts))
    )
    torch.testing.assert_close(scores.total, wanted)
    assert from_trl(one).aspects == ("one",)
    with pytest.raises(UsageError, match="2 reward functions were given 1 weights"):
        from_trl(one, other, weights=[1.0])


def test_pictures_reach_the_reward_from_columns_and_from_messages() -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    from PIL import Image

    seen: list[Prompt] = []

    class Looks(FunctionReward):
        def __call__(self, prompts: Any, media: Any, group: Any = None) -> Any:
            seen.extend(prompts)
            return super().__call__(prompts, media, group)

    function = to_trl(Looks(lambda text: [1.0] * len(text), name="looks"))
    pictures = [[Image.new("RGB", (4, 3), "red")], [], [Image.new("RGB", (2, 2)), Image.new("RGB", (5, 2), "blue")]]
    turns = [[{"role": "user", "content": "what colour?"}] for _ in pictures]
    prompts = [data_utils.prepare_multimodal_messages(t, p) for t, p in zip(turns, pictures, strict=True)]
    answers = [[{"role": "assistant", "content": "red"}]] * 3
    for columns in ({"images": pictures}, {}):
        seen.clear()
        assert function(prompts=prompts, completions=answers, completion_ids=[[1]] * 3, **columns) == [1.0] * 3
        assert [row.text for row in seen] == ["what colour?"] * 3
        assert seen[1].media is None
        assert seen[0].media is not None
        assert seen[0].media["image"].row(0)[:, 0, 0].tolist() == [1, 0, 0]
        assert seen[2].media is not None
        assert [tuple(row.shape) for row in seen[2].media["image"]] == [(3, 2, 2), (3, 2, 5)]


def test_a_conversation_keeps_its_turns_and_tools_answers_are_not_the_models_words() -> None:
    @reward
    def turns_and_text(messages: list[Any], text: list[str]) -> list[float]:
        assert text == ["I look it up\nit is 4"]
        return [float(len(messages[0]))]

    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 and 2?"}]
    completion = [
        {"role": "assistant", "content": "I look it up", "tool_calls": []},
        {"role": "tool", "name": "add", "content": "4"},
        {"role": "assistant", "content": "it is 4"},
    ]
    assert to_trl(turns_and_text)(prompts=[prompt], completions=[completion]) == [2.0]


def test_failures_and_abstentions_are_none_and_too_many_end_the_run() -> None:
    def broken(text: list[str]) -> list[float | None]:
        return [math.nan, None, 2.0]

    with pytest.raises(GenalignError, match="broken"):
        to_trl(FunctionReward(broken, name="broken"))(prompts=["q"] * 3 * 4, completions=["a", "b", "c"] * 4)

    def silent(text: list[str]) -> list[float | None]:
        return [None, 2.0]

    assert to_trl(FunctionReward(silent))(prompts=["q"] * 2, completions=["a", "b"]) == [None, 2.0]


def test_who_looks_at_siblings_needs_whole_groups() -> None:
    longer = FunctionReward(lambda text: [float(len(one)) for one in text], name="longer")
    siblings = WinRate(Difference(longer))
    with pytest.raises(UsageError, match="looks at siblings; give to_trl the trainer's num_generations"):
        to_trl(siblings)
    function = to_trl(siblings, num_generations=2)
    found = function(prompts=["p", "p", "q", "q"], completions=["aaa", "a", "a", "aa"])
    assert found == pytest.approx([1 / (1 + math.exp(-lead)) for lead in (2, -2, -1, 1)])
    with pytest.raises(UsageError, match="not whole groups of one prompt; make the batch of a process a multiple"):
        function(prompts=["p", "q", "q", "r"], completions=["a"] * 4)
    with pytest.raises(UsageError, match="not whole groups"):
        function(prompts=["p"] * 3, completions=["a"] * 3)


def test_a_schedule_moves_with_the_trainers_steps() -> None:
    one = FunctionReward(lambda text: [1.0] * len(text), name="one")
    function = to_trl(Schedule(one, {0: 1.0, 4: 3.0}))
    found = [
        function(prompts=["p"], completions=["a"], trainer_state=SimpleNamespace(global_step=step))[0]
        for step in (0, 0, 1, 2, 4, 9)
    ]
    assert found == [1.0, 1.0, 1.5, 2.0, 3.0, 3.0]


def test_a_reward_file_by_name() -> None:
    given = {"prompts": ["two red apples"] * 2, "completions": ["two red apples", "no"]}
    assert len(to_trl("text-fluency")(**given, completion_ids=None)) == 2
