"""Searches of a language model: votes, certainty and tilted tokens, against formulas and plain transformers."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.cli.main import main
from genalign.method.search.base import candidate_seed
from genalign.method.search.best_of_n import answer_of
from genalign.method.search.value_sampling import TokenValue, ValueSamplingSettings, fitted
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings
from genalign.types import Media, Prompt, Scores, UsageError
from tests.helpers.searches import search
from tests.helpers.tiny_language import save_tiny_language, tiny_language
from tests.helpers.toy_policy import ToyReward, make_scores
from tests.helpers.toy_sampler import PixelReward, ToySampler, redness

ASKED = [Prompt("how many star", uid=0), Prompt("hello", uid=1)]
SEEDS = [3, 9]


def tiny(**keys: Any) -> LanguagePolicy:
    chosen = {"model": "tiny", "lora": Lora(rank=4), "batch_size": 16, "max_new_tokens": 4, **keys}
    return LanguagePolicy(*tiny_language(0), PolicySettings(**chosen))


class Letters(ToyReward):
    """How many letters a there are, and minus the words."""

    name, aspects = "letters", ("a", "b")
    needs = frozenset({"text"})

    def __init__(self, weights: Sequence[float] = (1.0, 0.0)) -> None:
        super().__init__()
        self.own, self.asked = weights, 0

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        self.asked += len(prompts)
        rows = [[float(text.count("a")), -float(len(text.split()))] for text in media["text"].data]
        return make_scores(torch.tensor(rows), weights=self.own)


def drawn(policy: LanguagePolicy, row: int, count: int) -> list[Any]:
    """The sampled candidates of a row, as trajectories."""
    seeds = [candidate_seed(SEEDS[row], ASKED[row], k) for k in range(1, count + 1)]
    return [policy.rollout([ASKED[row]], 1, [seed]) for seed in seeds]


def test_best_of_n_draws_tokens_and_keeps_the_greedy_one_in_the_race() -> None:
    policy = tiny()
    found = search("best-of-n", budget=100, group=8).find(policy, ASKED, SEEDS, Letters())
    greedy = policy.generate(ASKED, SEEDS)["text"].data
    for row in range(2):
        best = max([greedy[row].count("a")] + [t.media["text"].data[0].count("a") for t in drawn(policy, row, 8)])
        assert float(found.total[row]) >= best
        assert float(found.total[row]) == found.media["text"].data[row].count("a")
    assert found.media["text"].data != greedy


def test_answers_are_read_as_people_write_them() -> None:
    assert answer_of("I think <answer> Two  Stars </answer> or <answer>3</answer>") == "3"
    assert answer_of("it is 12 and then 4.5") == "4.5"
    assert answer_of("  Yes  Sir ") == "yes sir"
    assert answer_of("a -3") == "-3"


def watched(policy: LanguagePolicy, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that the policy draws from now on."""
    seen: list[Any] = []
    rollout = policy.rollout

    def kept(*given: Any) -> Any:
        seen.append(rollout(*given))
        return seen[-1]

    monkeypatch.setattr(policy, "rollout", kept)
    return seen


def test_a_majority_is_the_first_of_the_commonest_answers_and_the_reward_has_no_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, reward = tiny(max_new_tokens=1), Letters()
    seen = watched(policy, monkeypatch)
    found = search("majority-vote", budget=21, group=4).find(policy, ASKED, SEEDS, reward)
    assert reward.asked == 4  # the plain samples, and the chosen
    for row in range(2):
        texts = [
            text
            for trajectory in seen
            for text, prompt in zip(trajectory.media["text"].data, trajectory.prompts, strict=True)
            if prompt == ASKED[row]
        ]
        assert len(texts) >= 8
        most = max(Counter(texts).values())
        assert most > 1
        winner = next(text for text in texts if texts.count(text) == most)
        assert found.media["text"].data[row] == winner
        again = policy.rollout([ASKED[row]], 1, [found.seeds[row]])
        assert again.media["text"].data == [winner]
    with pytest.raises(UsageError, match="is of language models; take --search best-of-n"):
        search("majority-vote").find(ToySampler(steps=2), ASKED, SEEDS, PixelReward(redness))
    with pytest.raises(UsageError, match=r"nearby searches by a reward; set method\.select=reward"):
        search("majority-vote", propose="nearby")


def test_certainty_is_the_kl_from_uniform_by_plain_transformers() -> None:
    policy = tiny(temperature=0.7)
    trajectory = policy.rollout(ASKED, 3, 1)
    found = policy.certainty(trajectory, range(6))
    for row in range(6):
        prompt, ids = trajectory.tape.prompt[row], trajectory.tape.completion[row]
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        logp = (logits.double() / 0.7).log_softmax(-1)
        uniform = torch.full_like(logp, 1 / logp.shape[-1])
        wanted = (uniform * (uniform.log() - logp)).sum(-1).mean()
        assert float(found[row]) == pytest.approx(float(wanted), rel=1e-5)


def test_the_most_certain_candidate_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny()
    seen = watched(policy, monkeypatch)
    found = search("self-certainty", budget=12, group=4).find(policy, ASKED, SEEDS, Letters())
    for row in range(2):
        certain = {
            trajectory.seeds[k]: float(policy.certainty(trajectory, [k]))
            for trajectory in seen
            for k, prompt in enumerate(trajectory.prompts)
            if prompt == ASKED[row]
        }
        assert len(certain) >= 4
        assert found.seeds[row] == max(certain, key=certain.__getitem__)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_tilt_is_what_is_drawn_from_and_nothing_that_is_recorded(temperature: float) -> None:
    """Frequencies of the first token over many rows against softmax(z / T + tilt), by a chi-squared bound."""
    policy = tiny(max_new_tokens=1, temperature=temperature, batch_size=256)
    prompt = policy.chat.encode(ASKED[0]).ids
    with torch.no_grad():
        z = policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / temperature
    bend = torch.linspace(0, 3, len(z)).double()
    with policy.tilted(lambda hidden: bend.expand(len(hidden), -1)):
        trajectory = policy.rollout(ASKED[:1], 1024, 1)
        greedy = policy.generate(ASKED[:1], [0])["text"].ids[0]
    wanted = (z + bend).softmax(-1)
    counts = torch.bincount(torch.tensor([ids[0] for ids in trajectory.tape.completion]), minlength=len(z)).double()
    expected = 1024 * wanted
    used = expected > 5
    distance = float(((counts - expected)[used].square() / expected[used]).sum())
    freedom = int(used.sum())
    assert distance < freedom + 4 * math.sqrt(2 * freedom) + 4
    assert greedy[0] == int((z + bend).argmax())
    own = z.log_softmax(-1)[torch.tensor([ids[0] for ids in trajectory.tape.completion])]
    torch.testing.assert_close(trajectory.logp[:, 0].double(), own, atol=1e-4, rtol=1e-4)
    assert policy.rollout(ASKED[:1], 8, 1).tape.completion != trajectory.tape.completion[:8]  # and it has ended


def test_a_tilt_reads_the_state_before_each_token() -> None:
    """What it is given at each step is what the output layer reads in a forward of the whole row."""
    policy, seen = tiny(), []

    def kept(hidden: Tensor) -> Tensor:
        seen.append(hidden.clone())
        return torch.zeros(len(hidden), 40)[:, : policy.embeddings().shape[0]]

    with policy.tilted(kept):
        trajectory = policy.rollout(ASKED, 2, 4)
    with torch.no_grad():
        features = policy.replay(trajectory, range(4)).features
    assert features is not None
    for step in range(trajectory.logp.shape[1]):
        here = trajectory.mask[:, step]
        torch.testing.assert_close(seen[step][here], features[here, step], atol=1e-4, rtol=1e-3)


def test_the_value_is_its_formula_and_finds_a_planted_one() -> None:
    value = TokenValue(5, 2, 3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in value.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden, tokens = torch.randn(4, 5, generator=generator), torch.randn(7, 5, generator=generator)
    weights = torch.tensor([0.7, -0.2])
    tilt = value.tilt(hidden, tokens, weights)
    for i in range(4):
        worth = torch.stack([value(hidden[i : i + 1], tokens[j : j + 1])[0] @ weights for j in range(7)])
        torch.testing.assert_close(tilt[i] - tilt[i, 0], worth - worth[0], atol=1e-4, rtol=1e-4)
    states, given = torch.randn(600, 5, generator=generator), torch.randn(600, 5, generator=generator)
    planted = (states[:, :1] * given[:, 1:2]).repeat(1, 2)
    learnt = fitted(states, given, planted, ValueSamplingSettings(name="vas", rank=4, value_steps=400))
    assert float((learnt(states, given) - planted).square().mean()) < 0.05 * float(planted.square().mean())


class Watched(Letters):
    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__(weights)
        self.scored: list[list[float]] = []

    def __call__(self, prompts: Any, media: Any, group: Any = None) -> Scores:
        found = super().__call__(prompts, media, group)
        self.scored += found.values.tolist()
        return found


def test_tilted_samples_are_worth_more_and_mixed_values_more_of_what_counts() -> None:
    """The mean reward of what is drawn in the second half of the budget, against that of the first."""
    means = {}
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        policy, reward = tiny(max_new_tokens=6), Watched(weights)
        method = search("vas", budget=160, group=16, tilt=4.0, value_steps=150)
        method.find(policy, ASKED, SEEDS, reward)
        drawn = torch.tensor(reward.scored[2:])
        first, second = drawn[: len(drawn) // 3], drawn[-len(drawn) // 3 :]
        means[weights] = second.mean(0)
        k = weights.index(1.0)
        assert float(second[:, k].mean()) > float(first[:, k].mean()) + 0.3 * float(first[:, k].std())
    assert means[(1.0, 0.0)][0] > means[(0.0, 1.0)][0]
    assert means[(0.0, 1.0)][1] > means[(1.0, 0.0)][1]


def test_all_of_them_in_one_table_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_language(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("hello\nhow many star\n" * 4)
    (tmp_path / "recipe.yaml").write_text(
        "policy: {model: model, max_new_tokens: 3, batch_size: 8}\ndata: {prompts: prompts.txt}\n"
        "reward: {use: length, hi: 1}\nmethod: {name: grpo}\n"
    )
    names = ["best-of-n", "majority-vote", "self-certainty", "vas"]
    words = ["sample", str(tmp_path / "recipe.yaml"), "hello", "--search", *names, "--budget", "6", "--out"]
    assert main([*words, str(tmp_path / "found")]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("plain", *names))
    rows = [json.loads(line) for line in (tmp_path / "found" / "samples.jsonl").read_text().splitlines()]
    assert [row["search"] for row in rows] == names
    assert all((tmp_path / "found" / row["file"]).read_text() is not None for row in rows)
