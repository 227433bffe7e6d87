"""Diffusion language models as policies, against plain forwards of their models, loops in float64 and enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from genalign.policy import denoises_text, modalities_of
from genalign.policy.unmasking.order import NOWHERE
from genalign.types import Media, Prompt, Track, UsageError
from tests.helpers.unmasking_policies import MAKERS, PROMPTS, exact_bound, expected_fit, few_words, folder, policy


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


# ---- rollouts and their replay --------------------------------------------------------------------------------------


def test_a_model_that_writes_by_denoising_is_known_before_it_loads(kind):
    assert modalities_of(folder(kind)) == {"text"}
    assert denoises_text(folder(kind))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_replay_gives_the_recorded_log_probabilities_bit_for_bit(kind, noise):
    own = policy(folder(kind), 0.2, sampler={"noise": noise})
    trajectory = own.rollout(PROMPTS, 4, 7)
    assert bool((trajectory.logp[trajectory.mask] < 0).any())
    for rows, steps in trajectory.units():
        replayed = own.replay(trajectory, rows, steps, versus="policy")
        recorded = trajectory.logp[rows][:, steps]
        assert torch.equal(replayed.score.detach(), recorded)
        assert torch.equal(replayed.versus_score, recorded)
        assert replayed.score.requires_grad


def test_columns_may_be_asked_for_in_any_order():
    own = policy(folder("masks"))
    trajectory = own.rollout(PROMPTS[:1], 2, 7)
    some = own.replay(trajectory, [1, 0], [7, 0, 4])
    assert torch.allclose(some.score, trajectory.logp[[1, 0]][:, [7, 0, 4]], atol=1e-6)
    assert some.mask.tolist() == trajectory.mask[[1, 0]][:, [7, 0, 4]].tolist()


def test_what_a_row_writes_does_not_depend_on_its_batch(kind):
    together = policy(folder(kind), batch_size=8).rollout(PROMPTS, 3, 7)
    alone = policy(folder(kind), batch_size=1).rollout(PROMPTS[1:], 3, 7)
    assert alone.media["text"].ids == together.media["text"].ids[3:]
    width = alone.logp.shape[1]
    assert torch.allclose(alone.logp, together.logp[3:, :width], atol=1e-5)


def test_the_mask_is_never_drawn_though_the_model_likes_it():
    own = policy(folder("masks"))
    with torch.no_grad():
        own.model.decoder.bias[own.form.mask] += 50
    trajectory = own.rollout(PROMPTS, 8, 3)
    assert not bool((trajectory.tape.tokens == own.form.mask).any())
    assert own.form.mask not in {token for ids in own.generate(PROMPTS, [0, 1])["text"].ids for token in ids}


def test_a_row_stops_once_an_end_has_nothing_unwritten_before_it():
    own = policy(folder("masks"))
    with torch.no_grad():
        own.model.decoder.bias[1] += 4  # the end token
    trajectory = own.rollout(PROMPTS, 16, 3)
    written = trajectory.tape.turn < 100
    assert bool((~written).any())
    for row, tokens in enumerate(trajectory.tape.tokens.tolist()):
        if not bool(written[row].all()):
            first = next(i for i, token in enumerate(tokens) if token == 1 and written[row, i])
            assert bool(written[row, :first].all())
            assert trajectory.media["text"].ids[row] == tuple(tokens[: first + 1])


# ---- the density, by plain forwards ---------------------------------------------------------------------------------


def plain_logits(own, row: int, trajectory, before: int) -> Tensor:
    """float64 logits (L,V) at the block of a turn, by the model's own forward of this row alone; its first place."""
    tape, number = trajectory.tape, before
    each = trajectory.steps_together
    prompt = list(tape.read[row].ids)
    start, end = own.turns.spans(len(prompt), each)[number]
    block = [
        int(tape.tokens[row, i]) if int(tape.turn[row, i]) < number else own.form.filler(1, torch.Generator()).item()
        for i in range(start, end)
    ]
    context = prompt + tape.tokens[row, :start].tolist()
    if own.form.masked:
        logits = own.model(input_ids=torch.tensor([context + block])).logits[0, len(context) :]
    else:
        noise = tape.noise[row, number].tolist()
        block = [int(tape.tokens[row, start + i]) if int(tape.turn[row, start + i]) < number else noise[i]
                 for i in range(end - start)]  # fmt: skip
        logits = own.model(input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([block])).logits[0]
    return logits.double(), start


@torch.no_grad()
def by_hand(own, trajectory, row: int) -> list[float]:
    """The columns of a row, one place and one token after the other."""
    tape, each, noise = trajectory.tape, trajectory.steps_together, own.settings.sampler.noise
    columns = [0.0] * trajectory.logp.shape[1]
    for number in range(len(columns) // each):
        places = [int(p) for p in tape.places[row, number * each : (number + 1) * each] if p != NOWHERE]
        if not places:
            continue
        logits, start = plain_logits(own, row, trajectory, number)
        logits[:, list(own.form.forbidden)] = -math.inf
        logp = (logits / own.settings.temperature).log_softmax(-1)
        free = [i for i in range(len(logp)) if int(tape.turn[row, start + i]) >= number]
        weights = {i: float(logp[i].max()) / noise for i in free} if noise else {}
        for k, place in enumerate(places):
            order = 0.0
            if noise:
                order = weights[place - start] - math.log(sum(math.exp(w) for w in weights.values()))
                del weights[place - start]
            columns[number * each + k] = order + float(logp[place - start, int(tape.tokens[row, place])])
    return columns


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_log_probabilities_are_those_of_a_loop_over_plain_forwards(kind, noise):
    own = policy(folder(kind), 0.2, temperature=0.8, sampler={"noise": noise})
    trajectory = own.rollout(PROMPTS, 2, 11)
    for row in range(4):
        expected = torch.tensor(by_hand(own, trajectory, row))
        assert torch.allclose(trajectory.logp[row], expected.float(), atol=2e-5)


def test_the_ratio_of_a_policy_gradient_is_that_of_the_loop():
    own = policy(folder("masks"), 0.1)
    trajectory = own.rollout(PROMPTS, 2, 11)
    before = [by_hand(own, trajectory, row) for row in range(4)]
    for parameter in own.named_trainable().values():
        parameter.data *= 1.7
    after = torch.tensor([by_hand(own, trajectory, row) for row in range(4)])
    ratio = own.replay(trajectory, range(4)).score.detach() - trajectory.logp
    assert float(ratio.abs().max()) > 1e-3
    assert torch.allclose(ratio, (after - torch.tensor(before)).float(), atol=3e-5)


def test_answers_come_as_often_as_their_enumerated_probability():
    """Of two places, one written a turn: every order, and every two tokens."""
    own = policy(few_words(), max_new_tokens=2, sampler={"steps": 8, "noise": 1.0}, batch_size=512)
    prompt, rows = Prompt("star", uid=0), 4000
    trajectory = own.rollout([prompt], rows, 5)
    ids, mask = list(trajectory.tape.read[0].ids), own.form.mask
    expected: dict[tuple[int, int], float] = {}

    @torch.no_grad()
    def logp(answer: list[int]) -> Tensor:
        logits = own.model(input_ids=torch.tensor([ids + answer])).logits[0, len(ids) :].double()
        logits[:, mask] = -math.inf
        return logits.log_softmax(-1)

    first = logp([mask, mask])
    sure = first.amax(-1).softmax(0)
    for place in (0, 1):
        for token in range(6):
            if token == mask:
                continue
            written = [mask, mask]
            written[place] = token
            chance = float(sure[place]) * float(first[place, token].exp())
            if place == 0 and token == 1:  # an end with nothing before it: the row is finished
                expected[(1, 1)] = expected.get((1, 1), 0.0) + chance
                continue
            second = logp(written)[1 - place].exp()
            for other in range(6):
                answer = (token, other) if place == 0 else (other, token)
                expected[answer] = expected.get(answer, 0.0) + chance * float(second[other])
    assert abs(sum(expected.values()) - 1) < 1e-9
    found = [tuple(row) for row in trajectory.tape.tokens.tolist()]
    for answer, chance in expected.items():
        assert abs(found.count(answer) / rows - chance) < 4.5 * math.sqrt(chance * (1 - chance) / rows) + 1e-9


def test_greedy_answers_are_those_of_the_pipeline_of_diffusers():
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    own = policy(folder("masks"), max_new_tokens=13, sampler={"steps": 4})  # with the prompt, two whole blocks
    pipeline = LLaDA2Pipeline(own.model, BlockRefinementScheduler(block_length=8), own.tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        own.model.decoder.bias[own.form.mask] -= 100  # which the pipeline would draw
    prompts = [Prompt("a red star"), Prompt("two green dog")]
    made = own.generate(prompts, [0, 0])["text"]
    for k, prompt in enumerate(prompts):
        theirs = pipeline(
            prompt.text, use_chat_template=False, gen_length=13, num_inference_steps=4, threshold=2.0,
            editing_threshold=0.0, eos_early_stop=False, output_type="seq",
        )  # fmt: skip
        row = theirs.sequences[0].tolist()
        end = row.index(1) + 1 if 1 in row else len(row)
        assert list(made.ids[k]) == row[:end]


# ---- the evidence bound ---------------------------------------------------------------------------------------------


def test_fit_is_without_bias_the_bound_over_all_orders():
    own = policy(few_words(64), 0.2, max_new_tokens=4)
    clean = torch.tensor([[4, 5, 1, 1], [5, 5, 4, 1]])
    prompts = [Prompt("star star"), Prompt("cat")]
    found, _ = expected_fit(own, prompts, clean)
    for row in range(2):
        assert abs(float(found[row]) - exact_bound(own, prompts[row], clean[row].tolist())) < 1e-5


def test_the_bound_is_one_of_the_likelihood_of_writing_in_random_order():
    own = policy(few_words(64), max_new_tokens=2)
    prompt, total = Prompt("star star"), 0.0
    for answer in itertools.product([token for token in range(6) if token != own.form.mask], repeat=2):
        total += math.exp(exact_bound(own, prompt, list(answer)))
    assert total < 1  # of the likelihoods themselves it is 1


def test_answers_in_blocks_have_the_bounds_of_their_blocks():
    """Block length 4 and a prompt of three tokens: blocks of one and of four places."""
    own = policy(few_words(4), 0.2, max_new_tokens=5)
    prompt, clean = Prompt("star cat star"), torch.tensor([[4, 5, 5, 4, 1]])
    with torch.no_grad():
        fitted = own.fit([prompt], clean, 0.0, [3])  # every place masked
    ids, mask = list(own._encode([prompt])[0].ids), own.form.mask
    expected = 0.0
    for start, end in ((0, 1), (1, 5)):
        context = ids + clean[0, :start].tolist()
        with torch.no_grad():
            logits = own.model(input_ids=torch.tensor([context + [mask] * (end - start)])).logits[0, len(context) :]
        logits[:, mask] = -math.inf
        expected += float(logits.double().log_softmax(-1)[range(end - start), clean[0, start:end]].sum())
    assert abs(float(fitted.score) - expected) < 1e-4


def test_equal_seeds_share_their_masks_and_other_weights_their_draws():
    own = policy(few_words(64), max_new_tokens=4)
    clean = torch.tensor([[4, 5, 1, 1], [4, 5, 1, 1]])
    fitted = own.fit([Prompt("cat")] * 2, clean, 0.4, [9, 9], "reference")
    assert fitted.likelihood
    assert torch.allclose(fitted.score[0], fitted.score[1], atol=1e-6)
    assert torch.equal(fitted.score.detach(), fitted.versus_score)  # no adapter yet
    fitted.score.sum().backward()
    assert any(parameter.grad is not None for parameter in own.named_trainable().values())


def test_texts_stand_at_the_places_of_an_answer_with_ends_behind():
    own = policy(folder("masks"), max_new_tokens=5)
    clean = own.encode(Media(text=Track(["a star", ""])))
    a, star = own.tokenizer("a star").input_ids
    assert clean.tolist() == [[a, star, 1, 1, 1], [1] * 5]
    with pytest.raises(UsageError, match=r"raise policy\.max_new_tokens"):
        own.encode(Media(text=Track(["a a a a a a"])))


def test_a_clean_answer_has_ends_behind_its_first_end():
    own = policy(folder("masks"))
    trajectory = own.rollout(PROMPTS, 8, 3)
    clean = own.clean(trajectory)
    for row, ids in enumerate(trajectory.media["text"].ids):
        text = [token for token in ids if token != 1]
        assert clean[row].tolist() == text + [1] * (12 - len(text))


# ---- adapters -------------------------------------------------------------------------------------------------------


def test_an_adapter_loads_into_the_plain_model(kind, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, ModernBertForMaskedLM

    own = policy(folder(kind), 0.2)
    own.save_adapter(tmp_path)
    if kind == "masks":
        plain = ModernBertForMaskedLM.from_pretrained(folder(kind) / "model")
        given = {"input_ids": torch.tensor([[4, 5, 6, 2, 2]])}
    else:
        plain = AutoModelForImageTextToText.from_pretrained(folder(kind))
        given = {"input_ids": torch.tensor([[4, 5, 6]]), "decoder_input_ids": torch.tensor([[7, 8, 9, 10]])}
    loaded = PeftModel.from_pretrained(plain, tmp_path).eval()
    with torch.no_grad():
        ours, theirs = own.model(**given).logits, loaded(**given).logits
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_mask_in_the_text_of_a_prompt_is_text():
    own = policy(folder("masks"))
    assert own.form.mask not in own._encode([Prompt("a <mask> star")])[0].ids


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_one_sentence_for_what_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="no room"):
        policy(folder("masks"), max_new_tokens=70).check_prompt(Prompt("a star"))
    with pytest.raises(UsageError, match="a multiple of that"):
        policy(folder("canvas"), max_new_tokens=6)
    with pytest.raises(UsageError, match=r"policy\.call\.height"):
        policy(folder("masks"), call={"height": 8})
    with pytest.raises(UsageError, match="has no mask"):
        policy(folder("canvas")).fit(PROMPTS[:1], torch.ones(1, 12, dtype=torch.long), 0.5, [0])
    with pytest.raises(UsageError, match="brings media"):
        policy(folder("masks")).check_prompt(Prompt("a star", media=Media(image=Track(torch.zeros(1, 3, 8, 8)))))
