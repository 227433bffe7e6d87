"""Families of language and vision-language models, real classes with tiny random weights, through one policy.

The oracle of a row's log-probabilities is plain transformers: the processor's own apply_chat_template on the prompt,
the completion behind it, and one forward of that row alone, on pixels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.media.image import to_pil
from genalign.policy.language import LanguagePolicy
from genalign.policy.settings import Lora
from genalign.types import Prompt, Trajectory, UsageError
from genalign.types.samples import to_levels
from tests.families.language_table import committed, table
from tests.helpers.language_policies import ALL, CLIPS, PICTURES, TEMPERATURE, TEXTS, asked, noise, policy, rolled
from tests.helpers.tiny_readers import READERS
from tests.helpers.tiny_writers import WRITERS

CASES = [(name, medium) for name, reader in READERS.items() for medium in sorted(reader.media)]
CASES += [(name, "text") for name in WRITERS]


def messages(prompt: Prompt) -> list[dict[str, Any]]:
    """A prompt as plain transformers takes it."""
    media = prompt.media or {}
    parts: list[dict[str, Any]] = [{"type": "image", "image": to_pil(row)} for row in media.get("image", ())]
    parts += [{"type": "video", "video": to_levels(row)} for row in media.get("video", ())]
    parts += [{"type": "audio", "audio": row.mean(0).numpy()} for row in media.get("audio", ())]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt.text}]}]


def plain_logits(of: LanguagePolicy, reader: Any, prompt: Prompt, completion: tuple[int, ...]) -> Tensor:
    """Logits (S,V) at a completion, by transformers alone."""
    if of.chat.reader is None:
        read: dict[str, Any] = dict(reader([prompt.text], return_tensors="pt"))
    else:
        clocks = [
            {"fps": 2.0, "total_num_frames": len(row), "duration": len(row) / 2, "frames_indices": [*range(len(row))]}
            for row in (prompt.media or {}).get("video", ())
        ]
        about = {"video_metadata": [clocks]} | ({"do_sample_frames": False} if _short(reader) else {}) if clocks else {}
        read = dict(
            reader.apply_chat_template(
                messages(prompt), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
                processor_kwargs=about,
            )
        )  # fmt: skip
    start, more = read["input_ids"].shape[1], torch.tensor([completion])
    read["input_ids"] = torch.cat([read["input_ids"], more], 1)
    read["attention_mask"] = torch.ones_like(read["input_ids"])
    for kind in ("mm_token_type_ids", "token_type_ids"):
        if kind in read:
            read[kind] = torch.cat([read[kind], torch.zeros_like(more)], 1)
    return of.model(**read, use_cache=False).logits[0, start - 1 : -1].float()


def _short(reader: Any) -> bool:
    return (getattr(reader.video_processor, "num_frames", None) or 0) > 4


def expected(of: LanguagePolicy, reader: Any, trajectory: Trajectory, row: int) -> Tensor:
    completion = trajectory.tape.completion[row]
    logits = plain_logits(of, reader, trajectory.prompts[row], completion) / TEMPERATURE
    logits[:, sorted(of.placeholders)] = -torch.inf
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize(("name", "medium"), CASES)
def test_densities_are_those_of_plain_transformers_and_replay_is_exact(name: str, medium: str) -> None:
    of, trajectory = rolled(name, medium)
    for rows, steps in trajectory.units():
        replayed = of.replay(trajectory, rows, steps, versus="reference")
        assert torch.equal(replayed.score.detach(), trajectory.logp[rows])
        assert torch.equal(replayed.versus_score, trajectory.logp[rows])  # type: ignore[arg-type]
        assert not replayed.kl.any()  # type: ignore[union-attr]
    assert trajectory.logp[trajectory.mask].std() > 0.1
    reader = ALL[name]()[1]
    with torch.no_grad():
        for row in range(0, len(trajectory.prompts), 3):
            length = len(trajectory.tape.completion[row])
            ours = trajectory.logp[row, :length]
            torch.testing.assert_close(ours, expected(of, reader, trajectory, row), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("name", "medium"), CASES)
def test_neither_batch_size_nor_padding_side_changes_what_is_drawn(name: str, medium: str) -> None:
    _, trajectory = rolled(name, medium)
    other = policy(name, 2, "left").rollout(asked(medium), 3, 5)
    assert other.tape == trajectory.tape
    torch.testing.assert_close(other.logp, trajectory.logp, atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_the_head_is_applied_in_chunks_and_its_gradient_is_autograds(name: str) -> None:
    """Against autograd through the whole logits, with KL to other weights."""
    of = policy(name, lora=Lora(rank=4, targets="all-linear"))
    disturb(of)
    trajectory = of.rollout(asked("image" if name in READERS else "text"), 1, 5)
    assert of.head.layer is not None
    rows, parameters = range(len(trajectory.prompts)), list(of.named_trainable().values())
    replayed = of.replay(trajectory, rows, versus="reference")
    weight = noise(*replayed.score.shape)
    ours = torch.autograd.grad((weight * (replayed.score + 2 * replayed.kl)).sum(), parameters, allow_unused=True)
    of.head.layer, of.head.factor, of.head.cap = None, 1.0, None
    whole = of.replay(trajectory, rows, versus="reference")
    theirs = torch.autograd.grad((weight * (whole.score + 2 * whole.kl)).sum(), parameters, allow_unused=True)
    torch.testing.assert_close(replayed.kl, whole.kl, atol=1e-5, rtol=1e-4)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in ours) > len(ours) // 2
    for mine, own in zip(ours, theirs, strict=True):
        assert (mine is None) == (own is None)
        if mine is not None and own is not None:
            torch.testing.assert_close(mine, own, atol=1e-4 * float(own.abs().max()) + 1e-6, rtol=1e-3)


def disturb(of: LanguagePolicy) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in of.named_trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("name", READERS)
def test_a_model_that_would_write_a_placeholder_never_does(name: str) -> None:
    """The head is bent towards placeholders, which sampling, greedy decoding and the scored distribution leave out."""
    of = policy(name)
    assert len(of.placeholders) >= 1
    bend = torch.zeros(of.model.get_output_embeddings().weight.shape[0])
    bend[sorted(of.placeholders)] = 50.0
    of.model.get_output_embeddings().register_forward_hook(lambda layer, given, out: out + bend)
    trajectory = of.rollout(PICTURES, 3, 5)
    written = {token for completion in trajectory.tape.completion for token in completion}
    assert not written & of.placeholders
    greedy = of.generate(PICTURES, [0, 0, 0])["text"].ids
    assert not {token for ids in greedy or () for token in ids} & of.placeholders
    assert torch.equal(of.replay(trajectory, range(len(trajectory.prompts))).score, trajectory.logp)
    reader = ALL[name]()[1]
    with torch.no_grad():
        torch.testing.assert_close(
            trajectory.logp[0, : len(trajectory.tape.completion[0])],
            expected(of, reader, trajectory, 0),
            atol=2e-4,
            rtol=0,
        )


@pytest.mark.parametrize("name", ALL)
def test_an_adapter_is_of_the_language_model_and_loads_in_plain_peft(name: str, tmp_path: Any) -> None:
    from peft import PeftModel

    of = policy(name, lora=Lora(rank=4, targets="all-linear"))
    disturb(of)
    adapted = {key.rpartition(".lora_")[0] for key in of.named_trainable()}
    eyes = ("vision", "visual", "projector", "connector", "merger", "embed_vision", "audio")
    assert not [key for key in adapted if any(eye in key for eye in eyes)]
    of.save_adapter(tmp_path)
    model, reader = ALL[name]()
    plain = PeftModel.from_pretrained(model, tmp_path).eval()
    prompt = PICTURES[0] if name in READERS else TEXTS[0]
    with torch.no_grad():
        ours = plain_logits(of, reader, prompt, (5, 6, 7))
        of.model = plain
        torch.testing.assert_close(plain_logits(of, reader, prompt, (5, 6, 7)), ours, atol=1e-5, rtol=1e-4)


def test_the_table_of_the_docs_is_what_the_sweep_finds() -> None:
    assert committed() == table(), "write it anew: python -m tests.families.language_table"


def test_a_class_that_takes_pictures_and_clips_apart_is_told_so() -> None:
    """GLM-4V looks for both at the same placeholder."""
    with pytest.raises(UsageError, match=r"does not take these prompts in one batch .*set policy.batch_size=1"):
        policy("glm-4v").rollout([PICTURES[0], CLIPS[0]], 1, 0)
    alone = policy("glm-4v", batch_size=1).rollout([PICTURES[0], CLIPS[0]], 2, 0)
    assert alone.mask.any(1).all()
