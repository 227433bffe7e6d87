"""A completion that is watched while it is written is the one that a rollout or a greedy sampling draws."""

import pytest

from genalign.types import UsageError
from tests.helpers.language_policies import asked, policy, rolled

OF = [("qwen3", ""), ("qwen2.5-vl", "image")]


@pytest.mark.parametrize(("name", "medium"), OF)
def test_it_is_the_row_of_a_rollout_with_its_seed(name, medium):
    of, trajectory = rolled(name, medium)
    for row in (0, 4):
        prompt, seen = asked(medium)[row // 3], []
        media = of.stream(prompt, trajectory.seeds[row], seen.append)
        assert media["text"].data == [trajectory.media["text"].data[row]]
        assert media["text"].ids == [trajectory.media["text"].ids[row]]


@pytest.mark.parametrize(("name", "medium"), OF)
def test_without_a_seed_it_is_the_greedy_one(name, medium):
    of = rolled(name, medium)[0]
    prompt = asked(medium)[0]
    wanted = of.generate([prompt], [0], steps=4)
    assert of.stream(prompt, None, lambda text: None, steps=4)["text"].data == wanted["text"].data


def test_each_token_is_seen_as_it_comes():
    of, trajectory = rolled("qwen3", "")
    seen = []
    media = of.stream(asked("")[0], trajectory.seeds[0], seen.append)
    (ids,), (whole,) = media["text"].ids, media["text"].data
    written = [of.tokenizer.decode(ids[:count]) for count in range(len(ids))]
    assert [text.split() for text in seen[: len(ids)]] == [text.split() for text in written]
    assert seen[0] == ""
    assert all(whole.startswith(text) for text in seen)


def test_whoever_looks_may_end_it():
    class EnoughError(Exception):
        pass

    def look(text):
        if len(text.split()) == 2:
            raise EnoughError

    of = policy("qwen3", max_new_tokens=40)
    before = of.calls()
    with pytest.raises(EnoughError):
        of.stream(asked("")[0], 0, look)
    assert of.calls() == before  # of a text that was not finished nothing is counted
    assert of.stream(asked("")[0], 0, lambda text: None)["text"].data  # and the model writes again


@pytest.mark.parametrize("steps", [0, 7])
def test_more_tokens_than_a_rollout_draws_are_refused(steps):
    with pytest.raises(UsageError, match="ask for 1 to 6"):
        policy("qwen3").stream(asked("")[0], 0, lambda text: None, steps)
