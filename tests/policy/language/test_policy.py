"""A tiny random language model through the same two methods as images."""

from __future__ import annotations

import json

import pytest
import torch

from genalign.method import MethodSettings, build_method
from genalign.policy import load_policy
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora, PolicySettings
from genalign.reward import build_reward, save_head
from genalign.types import GenalignError, Media, Policy, Prompt, Track, UsageError
from tests.helpers.tiny_language import save_tiny_language, tiny_language

PROMPTS = [
    Prompt("draw me a star", uid=0),
    Prompt("hello", uid=1),
    Prompt("is the red car left of a blue sun", uid=2),
]
ALL_LINEAR = Lora(rank=4, targets="all-linear")
RULE = """
from genalign.reward import reward

@reward
def stars(text):
    return [(min(said.split().count("star"), 4) / 4, 0.9) for said in text]
"""


def settings(**keys) -> PolicySettings:
    defaults = {"model": "tiny", "lora": Lora(rank=8), "batch_size": 8, "max_new_tokens": 8}
    return PolicySettings(**{**defaults, **keys})


def tiny_policy(seed: int = 0, chat: bool = False, **keys) -> LanguagePolicy:
    torch.manual_seed(0)
    return LanguagePolicy(*tiny_language(seed, chat), settings(**keys))


def pairs(tape) -> list:
    """(prompt, completion) of each row."""
    return list(zip(tape.prompt, tape.completion, strict=True))


def disturb(policy: LanguagePolicy) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.named_trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def texts(media: Media) -> list[str]:
    return list(media["text"].data)


def train(policy: LanguagePolicy, name: str, reward, steps: int = 24) -> list[float]:
    learner = build_method(MethodSettings(name=name, group=8))
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=1e-2)
    rewards = []
    for step in range(steps):
        experience = learner.collect(policy, PROMPTS, reward, 0, step)
        rewards.append(experience.log["reward"])
        for loss in learner.losses(policy, experience):
            loss.total.backward()
            if loss.step:
                optimizer.step()
                optimizer.zero_grad()
    return rewards


# ---- learning -------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A rule, a learned head on a language backbone, and the reward file that joins them."""
    head = save_tiny_language(tmp_path / "tiny-head", seed=3)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(0)) / 32
    save_head(head, weight, torch.zeros(1), ["fluent"], readout="sigmoid")
    (tmp_path / "rules.py").write_text(RULE)
    (tmp_path / "hybrid.yaml").write_text(
        "hybrid:\n  rule: {use: 'rules.py:stars'}\n  model: {use: head, model: tiny-head}\n  mode: confidence\n"
    )
    return tmp_path


def test_grpo_raises_a_hybrid_reward(folder):
    reward, policy = build_reward("hybrid.yaml", folder), tiny_policy()
    rewards = train(policy, "grpo", reward)
    assert rewards[0] < 0.2
    assert rewards[-1] > 0.7
    assert "star" in texts(policy.generate(PROMPTS, [0, 1, 2]))[0]


def test_dpo_raises_a_rule_reward(folder):
    rewards = train(tiny_policy(), "dpo", build_reward("rules.py:stars", folder))
    assert rewards[0] < 0.2
    assert rewards[-1] > 0.7


def test_dpo_learns_from_labelled_pairs(tmp_path):
    policy = tiny_policy()
    rows = []
    for prompt in PROMPTS * 8:
        made = policy.rollout([prompt], 2, [len(rows) * 2, len(rows) * 2 + 1])
        longer = made.mask.sum(1).argsort(descending=True).tolist()
        best, worst = (made.seeds[i] for i in longer)
        rows.append({"prompt": prompt.text, "chosen_seed": best, "rejected_seed": worst, **policy.digest()})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    learner = build_method(MethodSettings(name="dpo", pairs="pairs.jsonl"), tmp_path)
    optimizer = torch.optim.Adam(policy.parameter_groups(), lr=3e-3)
    logged = []
    for step in range(16):
        for loss in learner.losses(policy, learner.collect(policy, PROMPTS, None, 0, step)):
            loss.total.backward()
        logged.append(loss.log)
        optimizer.step()
        optimizer.zero_grad()
    total, count = logged[0]["loss"]
    assert total / count == pytest.approx(0.6931472, abs=1e-6)
    assert logged[-1]["loss"][0] < 0.9 * total
    assert logged[-1]["rewards/accuracies"] == (3.0, 3.0)
    other = tiny_policy(temperature=0.5)
    with pytest.raises(UsageError, match="drawn with sampler"):
        learner.collect(other, PROMPTS, None, 0, 0)


# ---- sampling and replay --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_first_replay_is_exact_and_later_ones_are_not(chat):
    policy = tiny_policy(chat=chat, system="how many", temperature=0.8)
    trajectory = policy.rollout(PROMPTS, 5, 3)
    assert isinstance(policy, Policy)
    assert len(trajectory.units()) == 2  # 15 rows in micro-batches of 8: prompts of different lengths share one
    for rows, steps in trajectory.units():
        replayed = policy.replay(trajectory, rows, steps, versus="reference")
        assert torch.equal(replayed.score, trajectory.logp[rows])
        assert torch.equal(replayed.versus_score, trajectory.logp[rows])
        assert not replayed.kl.any()
    disturb(policy)
    replayed = policy.replay(trajectory, range(8), versus="reference")
    assert (replayed.score - trajectory.logp[:8]).abs().max() > 0.01
    assert torch.equal(replayed.versus_score, trajectory.logp[:8])


def alone(policy: LanguagePolicy, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    """Log-distribution (S,V) at each token of one unpadded row, straight from the model."""
    logits = policy.model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    return (logits[len(prompt) - 1 : -1] / policy.settings.temperature).log_softmax(-1)


def test_scores_are_the_models_own_log_probabilities():
    policy = tiny_policy(temperature=0.7)
    disturb(policy)
    trajectory = policy.rollout(PROMPTS, 3, 1)
    tape = trajectory.tape
    replayed = policy.replay(trajectory, [7, 0, 4], [0, 2, 1], versus="reference")
    for i, row in enumerate([7, 0, 4]):
        prompt, completion = tape.prompt[row], tape.completion[row]
        now = alone(policy, prompt, completion)
        with policy.weights("reference"):
            before = alone(policy, prompt, completion)
        for j, step in enumerate([0, 2, 1]):
            assert bool(replayed.mask[i, j]) == (step < len(completion))
            if step < len(completion):
                token = completion[step]
                assert float(replayed.score[i, j].detach()) == pytest.approx(float(now[step, token].detach()), abs=1e-5)
                assert float(replayed.versus_score[i, j]) == pytest.approx(
                    float(before[step, token].detach()), abs=1e-5
                )
                exact = torch.distributions.kl_divergence(
                    torch.distributions.Categorical(logits=now[step]),
                    torch.distributions.Categorical(logits=before[step]),
                )
                assert float(replayed.kl[i, j].detach()) == pytest.approx(float(exact.detach()), abs=1e-5)
            else:
                assert replayed.score[i, j] == replayed.kl[i, j] == 0


def test_gradient_is_that_of_finite_differences():
    policy = tiny_policy()
    disturb(policy)
    policy.model.double()
    trajectory = policy.rollout(PROMPTS, 2, 1)
    width = 5e-3  # LlamaRMSNorm computes in fp32 whatever it is given, so narrower differences drown in rounding
    name, parameter = next(iter(policy.named_trainable().items()))

    def total() -> torch.Tensor:
        logp = [alone(policy, p, c) for p, c in zip(trajectory.tape.prompt, trajectory.tape.completion, strict=True)]
        return sum(
            x.gather(1, torch.tensor(c)[:, None]).sum() for x, c in zip(logp, trajectory.tape.completion, strict=True)
        )

    (gradient,) = torch.autograd.grad(policy.replay(trajectory, range(6)).score.sum(), parameter)
    with torch.no_grad():
        for index in ((0, 0), (1, 5), (3, 2)):
            step = torch.zeros_like(parameter)
            step[index] = width
            parameter += step
            up = total()
            parameter -= 2 * step
            down = total()
            parameter += step
            assert float(gradient[index]) == pytest.approx(float(up - down) / (2 * width), rel=1e-2, abs=1e-3), name


def test_neither_batch_size_nor_neighbours_change_what_is_drawn():
    expected = texts(tiny_policy(batch_size=15).rollout(PROMPTS, 5, 9).media)
    for batch_size in (1, 4):
        assert texts(tiny_policy(batch_size=batch_size).rollout(PROMPTS, 5, 9).media) == expected
    assert texts(tiny_policy().rollout(PROMPTS[2:], 5, 9).media) == expected[10:]
    policy = tiny_policy()
    seeds = policy.rollout(PROMPTS, 5, 9).seeds
    assert texts(policy.rollout([PROMPTS[2], PROMPTS[0]], 2, [*seeds[12:14], *seeds[:2]]).media) == [
        *expected[12:14],
        *expected[:2],
    ]
    assert texts(policy.rollout(PROMPTS, 5, 10).media) != expected


def test_tokens_are_drawn_from_the_models_distribution():
    """Frequencies of 3000 first tokens within four standard deviations of the model's own probabilities."""
    policy = tiny_policy(max_new_tokens=1, batch_size=1000, temperature=1.3)
    trajectory = policy.rollout(PROMPTS[:1], 3000, 5)
    probability = alone(policy, trajectory.tape.prompt[0], (0,))[0].exp().detach()
    drawn = torch.tensor([c[0] for c in trajectory.tape.completion])
    frequency = torch.bincount(drawn, minlength=len(probability)) / 3000
    deviation = (probability * (1 - probability) / 3000).sqrt()
    assert ((frequency - probability).abs() < 4 * deviation + 1e-9).all()
    assert (frequency > 0).sum() > 10


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": True, "top_k": 1},
        {"do_sample": True, "top_p": 0.01},
        {"do_sample": True, "min_p": 0.9},
        {"do_sample": True, "temperature": 0.0},
        {"temperature": 0.01},
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(4, 20))},
        {"begin_suppress_tokens": list(range(4, 20))},
        {"bad_words_ids": [[4], [5], [6]]},
        {"sequence_bias": [[[5], 9.0]]},
        {"forced_bos_token_id": 5},
        {"forced_eos_token_id": 5},
        {"min_new_tokens": 8},
        {"exponential_decay_length_penalty": [1, 2.0]},
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 3},
        {"guidance_scale": 3.0},
        {"max_length": 5},
        {"use_cache": False},
        {"return_dict_in_generate": True},
    ],
    ids=str,
)
def test_the_folders_generation_settings_do_not_bend_sampling(tmp_path, given):
    folder = save_tiny_language(tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **given}))
    bent, plain = load_policy(settings(), folder), tiny_policy()
    assert texts(bent.rollout(PROMPTS, 4, 2).media) == texts(plain.rollout(PROMPTS, 4, 2).media)
    assert texts(bent.generate(PROMPTS, [0, 0, 0])) == texts(plain.generate(PROMPTS, [0, 0, 0]))


PADS = {"missing": None, "the end": "<eos>", "out of the vocabulary": "<late>", "a word": "star"}


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_samples_nor_densities(pad, side):
    expected = tiny_policy(batch_size=15).rollout(PROMPTS, 5, 9)
    for batch_size in (15, 4):
        torch.manual_seed(0)
        model, tokenizer = tiny_language()
        tokenizer.pad_token, tokenizer.padding_side = PADS[pad], side
        model.config.pad_token_id = tokenizer.pad_token_id
        policy = LanguagePolicy(model, tokenizer, settings(batch_size=batch_size))
        trajectory = policy.rollout(PROMPTS, 5, 9)
        assert trajectory.tape == expected.tape
        torch.testing.assert_close(trajectory.logp, expected.logp, atol=1e-5, rtol=0)
        for row, (prompt, completion) in enumerate(pairs(trajectory.tape)):
            exact = alone(policy, prompt, completion).gather(1, torch.tensor(completion)[:, None])[:, 0]
            torch.testing.assert_close(trajectory.logp[row, : len(completion)].double(), exact, atol=1e-5, rtol=0)


def models_of_other_positions():
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        MistralConfig,
        MistralForCausalLM,
    )

    vocabulary = {
        "vocab_size": len(tiny_language()[1]),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.25,
    }
    return {
        "learned": GPT2LMHeadModel(GPT2Config(**vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        "alibi": BloomForCausalLM(BloomConfig(**vocabulary, hidden_size=32, n_layer=2, n_head=4)),
        "window": MistralForCausalLM(
            MistralConfig(
                **vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                intermediate_size=64, sliding_window=4,
            )
        ),
    }  # fmt: skip


def models_that_mix_rows():
    """Of transformers 5.24, while they decode with a cache: the first attends to padding, the second to other rows, the
    third takes padding on the left for text."""
    from transformers import (
        MiniMaxConfig,
        MiniMaxForCausalLM,
        RwkvConfig,
        RwkvForCausalLM,
        xLSTMConfig,
        xLSTMForCausalLM,
    )

    common = {
        "vocab_size": len(tiny_language()[1]),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    linear = MiniMaxConfig(
        **common, num_attention_heads=2, num_key_value_heads=2, head_dim=16, intermediate_size=32, num_local_experts=2,
        num_experts_per_tok=1, block_size=4, initializer_range=0.2, layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    recurrent = RwkvForCausalLM(RwkvConfig(**common, attention_hidden_size=32))
    unmasked = xLSTMForCausalLM(xLSTMConfig(**{**common, "hidden_size": 128}, num_heads=2))
    with torch.no_grad():
        for parameter in [*recurrent.parameters(), *unmasked.parameters()]:
            parameter *= 4 if parameter.dim() > 1 else 1  # they start with nearly equal logits
    return {"linear": MiniMaxForCausalLM(linear), "recurrent": recurrent, "unmasked": unmasked}


@pytest.mark.parametrize("kind", ["learned", "alibi", "window"])
def test_models_of_other_positions_are_asked_in_batches(kind):
    policy = LanguagePolicy(models_of_other_positions()[kind].eval(), tiny_language()[1], settings(lora=ALL_LINEAR))
    assert policy.sampler.way([]) == "shared"


@pytest.mark.parametrize("kind", ["linear", "recurrent", "unmasked"])
def test_what_is_written_in_a_batch_is_what_forwards_of_the_row_alone_give(kind):
    """Greedy completions in a batch are those of a loop of forwards over the row alone, without a cache."""
    torch.manual_seed(0)
    model = models_that_mix_rows()[kind].eval()
    policy = LanguagePolicy(model, tiny_language()[1], settings(lora=ALL_LINEAR))
    made = policy.generate(PROMPTS, [0, 1, 2])["text"].ids
    for prompt, completion in zip(PROMPTS, made, strict=True):
        ids = list(policy.chat.encode(prompt).ids)
        for token in completion:
            with torch.no_grad():
                assert token == model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()
            ids.append(token)


@pytest.mark.parametrize("kind", ["learned", "alibi", "window", "linear", "recurrent", "unmasked"])
def test_padding_changes_nothing_whatever_the_positions_are(kind):
    made = []
    for batch_size in (15, 1, 4):
        torch.manual_seed(0)
        model = {**models_of_other_positions(), **models_that_mix_rows()}[kind].eval()
        made.append(LanguagePolicy(model, tiny_language()[1], settings(batch_size=batch_size, lora=ALL_LINEAR)))
    expected, *others = [policy.rollout(PROMPTS, 5, 9) for policy in made]
    for trajectory in others:
        assert trajectory.tape == expected.tape
        torch.testing.assert_close(trajectory.logp, expected.logp, atol=1e-5, rtol=0)


def test_densities_are_trls():
    utils = pytest.importorskip("trl.trainer.utils")
    policy = tiny_policy(temperature=0.7)
    disturb(policy)
    trajectory = policy.rollout(PROMPTS, 3, 1)
    for row, (prompt, completion) in enumerate(pairs(trajectory.tape)):
        logits = policy.model(input_ids=torch.tensor([prompt + completion])).logits[:, len(prompt) - 1 : -1] / 0.7
        theirs = utils.selective_log_softmax(logits, torch.tensor([completion]))[0]
        torch.testing.assert_close(trajectory.logp[row, : len(completion)], theirs, atol=1e-5, rtol=0)


def test_a_completion_may_be_nothing_but_its_end():
    """A model that always ends at once, and one that never does: one token and all of them, in mask and text."""
    for bias, length in ((50.0, 1), (-50.0, 8)):
        policy = tiny_policy()
        end = torch.zeros(len(policy.tokenizer)).index_fill(0, torch.tensor([2]), bias)
        policy.model.lm_head.register_forward_hook(lambda module, given, out, end=end: out + end)
        trajectory = policy.rollout(PROMPTS, 2, 0)
        assert trajectory.logp.shape == trajectory.mask.shape == (6, length)
        assert trajectory.mask.all()
        assert (texts(trajectory.media) == [""] * 6) == (bias > 0)
        assert all((completion[-1] == 2) == (bias > 0) for completion in trajectory.tape.completion)
        replayed = policy.replay(trajectory, range(6))
        torch.testing.assert_close(replayed.score, trajectory.logp, atol=1e-5, rtol=0)
        assert (texts(policy.generate(PROMPTS, [0, 0, 0])) == [""] * 3) == (bias > 0)


def test_completions_end_with_their_end_token():
    policy = tiny_policy(max_new_tokens=12)
    trajectory = policy.rollout(PROMPTS, 16, 0)
    lengths = trajectory.mask.sum(1).tolist()
    for row, completion in enumerate(trajectory.tape.completion):
        assert lengths[row] == len(completion)
        assert 2 not in completion[:-1]
        assert completion[-1] == 2 or len(completion) == 12
        assert "<eos>" not in trajectory.media["text"].data[row]
    assert min(lengths) < max(lengths) == trajectory.logp.shape[1] == trajectory.steps_together
    assert not trajectory.logp[~trajectory.mask].any()


def test_generate_is_greedy():
    policy = tiny_policy()
    disturb(policy)
    ids = policy.tokenizer(PROMPTS[2].text).input_ids
    asked = len(ids)
    for _ in range(5):
        ids.append(int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    expected = policy.tokenizer.decode(ids[asked:], skip_special_tokens=True)
    assert texts(policy.generate(PROMPTS, [0, 0, 0], steps=5))[2] == expected
    with pytest.raises(UsageError, match="has no guidance"):
        policy.generate(PROMPTS, [0, 0, 0], guidance=3.0)


def test_calls_count_tokens_and_rows():
    policy = tiny_policy(max_new_tokens=1)
    trajectory = policy.rollout(PROMPTS, 2, 0)
    assert policy.calls() == 6 + 6
    policy.replay(trajectory, range(6), versus="reference")
    assert policy.calls() == 12 + 12


# ---- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_is_told_apart_and_its_adapter_is_pefts(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    save_tiny_language(tmp_path / "model")
    policy = load_policy(settings(model="model"), tmp_path / "model")
    assert isinstance(policy, LanguagePolicy)
    disturb(policy)
    policy.save_adapter(tmp_path / "adapter")
    ids = torch.tensor([[1, 4, 5, 6]])
    tuned = policy.model(input_ids=ids).logits
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not torch.allclose(plain(input_ids=ids).logits, tuned)
    peft = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(peft(input_ids=ids).logits, tuned)
    again = tiny_policy()
    again.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(again.model(input_ids=ids).logits, tuned)


def test_digest_names_what_draws_a_seed_again():
    policy = tiny_policy()
    first = dict(policy.digest())
    disturb(policy)
    assert policy.digest() == tiny_policy(batch_size=3).digest() == first
    for other, key in ((tiny_policy(seed=1), "model"), (tiny_policy(max_new_tokens=9), "sampler")):
        assert {name for name in first if other.digest()[name] != first[name]} == {key}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("star " * 60), "61 tokens, which leaves no room for 8 more in the model's 64"),
        (Prompt("hello", media=Media(image=Track(torch.zeros(1, 3, 8, 8)))), "reads text only"),
    ],
)
def test_prompts_that_cannot_be_asked(prompt, message):
    with pytest.raises(UsageError, match=message):
        tiny_policy().rollout([prompt], 1, 0)


def test_a_rollout_wants_one_seed_a_row():
    with pytest.raises(UsageError, match="3 seeds for 6 rows"):
        tiny_policy().rollout(PROMPTS, 2, [1, 2, 3])


def test_folders_that_do_not_load_are_one_sentence(tmp_path):
    folder = save_tiny_language(tmp_path / "model")
    with pytest.raises(UsageError, match="serves diffusion pipelines only"):
        load_policy(settings(attention="xformers"), folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(GenalignError, match="corrupt"):
        load_policy(settings(), folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="does not load as a causal language model"):
        load_policy(settings(), folder)
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UsageError, match="does not load as a causal language model"):
        load_policy(settings(), folder)
