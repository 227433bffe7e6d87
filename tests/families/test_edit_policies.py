"""Pipelines that draw from a text and an image go through the same policy; the image comes in Prompt.media."""

from __future__ import annotations

import math

import pytest
import torch
from peft import PeftModel

from genalign.media.image import to_pil
from genalign.method import MethodSettings, build_method
from genalign.policy.text import TextMemo
from genalign.types import Media, Prompt, Track, Trajectory, UsageError
from tests.helpers.diffusion import draw, log_ratio, moved, policy
from tests.helpers.edits import PIXELS, PROMPTS, TEXTS, asking, made, rolled
from tests.helpers.tiny_pipelines import EDIT, MORE
from tests.helpers.toy_policy import ToyReward


@pytest.mark.parametrize("name", EDIT)
def test_replay_is_exact_and_reads_each_rows_own_image(name) -> None:
    of, trajectory = rolled(name)
    assert bool((log_ratio(of, trajectory) == 0).all())
    same = of.replay(trajectory, range(4), [0, 1])
    prompts = (asking(TEXTS[0], 1 - PIXELS[0]), *trajectory.prompts[1:])
    other = of.replay(Trajectory(**{**vars(trajectory), "prompts": prompts}), range(4), [0, 1])
    difference = (other.score - same.score).abs()
    assert difference[0].max() > 1e-4
    assert difference[1:].max() <= 1e-4
    with moved(of):
        assert log_ratio(of, trajectory).abs().max() > 1e-4


@pytest.mark.parametrize("name", EDIT)
def test_generate_is_plain_diffusers_row_by_row(name) -> None:
    of, _ = rolled(name)
    drawn = of.generate(PROMPTS, [7, 8, 9])["image"].data
    plain = draw(EDIT[name].build(), of, image=to_pil(PIXELS[0]))
    torch.testing.assert_close(drawn[:1], plain, rtol=0, atol=1e-5)
    for row in (1, 2):
        alone = of.generate([PROMPTS[row]], [7 + row])["image"].data
        torch.testing.assert_close(drawn[row : row + 1], alone, rtol=0, atol=1e-4)
    swapped = of.generate([asking(TEXTS[0], PIXELS[1])], [7])["image"].data
    assert (swapped - plain).abs().max() > 1e-4


@pytest.mark.parametrize("name", EDIT)
def test_fit_and_gradients_read_the_image(name) -> None:
    of, trajectory = rolled(name)
    clean = of.clean(trajectory)[:2]
    calls = of.calls()
    steps = of.fit([PROMPTS[0]] * 2, clean, 0.4, [1, 1], versus="reference")
    assert of.calls() == calls + 4
    assert torch.equal(steps.score, steps.versus_score)
    other = of.fit([asking(TEXTS[0], 1 - PIXELS[0])] * 2, clean, 0.4, [1, 1])
    assert (other.score - steps.score).abs().min() > 1e-4
    plain = of.generate(PROMPTS[:2], [1, 2])["image"].data
    noise = of.initial_noise(PROMPTS[:2], [1, 2])
    assert torch.equal(of.generate_with_grad(PROMPTS[:2], noise=noise)["image"].data, plain)
    torch.testing.assert_close(of.decode(clean)["image"].data, trajectory.media["image"].data[:2], rtol=0, atol=1e-6)
    fresh = made(name)
    images = Media(image=Track(plain))
    torch.testing.assert_close(fresh.encode(images), of.encode(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EDIT)
def test_pairs_train_the_adapter_and_plain_diffusers_loads_it(name, tmp_path) -> None:
    of = made(name)
    base = of.generate(PROMPTS[:1], [7])["image"].data
    optimizer = torch.optim.SGD(of.parameter_groups(), lr=1.0)
    for method in (MethodSettings(name="d3po", group=2), MethodSettings(name="flow-dpo", group=2, draws=1)):
        learner = build_method(method)
        losses = list(learner.losses(of, learner.collect(of, PROMPTS, ToyReward(), 0, 0)))
        start = sum(loss.log["loss"][0] for loss in losses) / sum(loss.log["loss"][1] for loss in losses)
        if method.name == "d3po":
            assert start == pytest.approx(math.log(2), abs=1e-5)
        sum(loss.total for loss in losses).backward()
        assert max(float(p.grad.abs().max()) for p in of.named_trainable().values() if p.grad is not None) > 0
        optimizer.step()
        optimizer.zero_grad()
    with moved(of, 0.2):
        of.save_adapter(tmp_path)
        ours = of.generate(PROMPTS[:1], [7])["image"].data
    assert (ours - base).abs().max() > 1e-4
    plain, part = EDIT[name].build(), of._stage.denoisers.component
    plain.load_lora_weights(tmp_path)
    by_peft = EDIT[name].build()
    setattr(by_peft, part, PeftModel.from_pretrained(getattr(by_peft, part), tmp_path))
    for pipeline in (plain, by_peft):
        drawn = draw(pipeline, of, image=to_pil(PIXELS[0]))
        torch.testing.assert_close(ours, drawn, rtol=0, atol=1e-5)


def test_images_that_a_pipeline_would_mix_are_drawn_one_by_one() -> None:
    large = PIXELS.repeat_interleave(4, 2).repeat_interleave(4, 3)
    prompts = [asking(text, picture) for text, picture in zip(TEXTS, large, strict=True)]
    with pytest.raises(UsageError, match=r"set policy\.batch_size to 1") as error:
        made("flux2-klein").rollout(prompts, 1, seed=0)
    assert "\n" not in str(error.value)
    of = made("flux2-klein", batch_size=1)
    trajectory = of.rollout(prompts[:2], 1, seed=0)
    assert bool((log_ratio(of, trajectory) == 0).all())
    plain = draw(MORE["flux2-klein"].build(), of, image=[to_pil(large[0])])
    torch.testing.assert_close(of.generate(prompts[:1], [7])["image"].data, plain, rtol=0, atol=1e-5)


def test_what_cannot_be_drawn_is_one_sentence(tmp_path) -> None:
    of, trajectory = rolled("flux-kontext")
    wide = asking("a", torch.zeros(3, 16, 32))
    for prompts, sentence in (
        ([PROMPTS[0], Prompt("a", uid=9)], "must all bring image, or none of them; prompt 9 differs"),
        (
            [PROMPTS[0], Prompt("a", media=Media(text=Track(["b"])), uid=8)],
            "prompt 8 brings .* takes no text",
        ),
        ([PROMPTS[0], wide], "must have one size"),
    ):
        with pytest.raises(UsageError, match=sentence):
            of.generate(prompts, [0, 1])
    with pytest.raises(UsageError, match="without an image beside the text"):
        made("instruct-pix2pix").generate([Prompt("a")], [0])
    with pytest.raises(UsageError, match="prompt 0 brings media, but StableDiffusion3Pipeline takes no image"):
        policy().rollout(PROMPTS[:1], 1, seed=0)
    with pytest.raises(UsageError, match="not for prompts that bring an image"):
        of.save_trajectory(trajectory, tmp_path / "0.safetensors")


class Seeing:
    """A pipeline whose text encoder looks at the image, as those with a vision language model do."""

    _execution_device = torch.device("cpu")

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode_prompt(self, prompt, image=None, device=None):
        self.encoded.append(len(prompt))
        lights = [float(torch.tensor(list(picture.getdata())).float().mean()) for picture in image]
        return torch.tensor([[len(text), light] for text, light in zip(prompt, lights, strict=True)]), None


def test_text_encoded_beside_an_image_is_remembered_by_its_pixels() -> None:
    pipeline = Seeing()
    memo = TextMemo(pipeline)
    pictures = [to_pil(picture) for picture in PIXELS]
    plain = pipeline.encode_prompt(["a", "a", "bc"], pictures)[0]
    pipeline.encoded.clear()
    with memo.active():
        for _ in range(2):
            again = [picture.copy() for picture in pictures]
            assert torch.equal(pipeline.encode_prompt(prompt=["a", "a", "bc"], image=again)[0], plain)
        pipeline.encode_prompt(prompt=["bc", "a", "a"], image=[pictures[2], pictures[0], pictures[0]])
        assert pipeline.encoded == [1, 1, 1]
        swapped = pipeline.encode_prompt(prompt=["bc", "a"], image=[pictures[0], pictures[2]])[0]
    assert pipeline.encoded == [1] * 5
    assert torch.equal(swapped, torch.stack([plain[0] + torch.tensor([1.0, 0.0]), plain[2] - torch.tensor([1.0, 0.0])]))


def test_one_row_at_a_time_has_the_gradient_of_a_batch() -> None:
    found = []
    for size in (1, 4):
        of = made("instruct-pix2pix", batch_size=size)
        trajectory = of.rollout(PROMPTS[:1], 1, seed=0)
        with moved(of):
            of.replay(trajectory, [0], [1]).score.sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in of.named_trainable().values() if p.grad is not None]))
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4 * float(found[0].abs().max()))
