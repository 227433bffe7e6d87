"""DiffusionPolicy on tiny random pipelines of seven families, guided at their default scale and unguided."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

import genalign
from genalign.method import MethodSettings, build_method
from genalign.method.value import WORDS
from genalign.policy import load_policy
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import Lora, PolicySettings, Sampler
from genalign.policy.walk import Walked
from genalign.types import GenalignError, Media, Policy, Prompt, Track, Trajectory, UsageError, sample_seed
from tests.helpers.diffusion import PROMPTS, Remembering, draw, log_ratio, moved, policy, settings
from tests.helpers.tiny_pipelines import EDIT, FAMILIES, MORE, REFUSED, stable_diffusion, stable_diffusion_3
from tests.helpers.toy_policy import ToyReward

ROWS = 6
EVERY = [(name, guided) for name in FAMILIES for guided in (True, False)]


@functools.cache
def rolled(name: str, guided: bool) -> tuple[DiffusionPolicy, Trajectory]:
    """Shared by tests, which leave the weights as they found them."""
    made = policy(name, guided)
    return made, made.rollout(PROMPTS, 2, seed=0)


@pytest.mark.parametrize(("name", "guided"), EVERY)
def test_log_ratio_is_zero_before_an_update_and_not_after(name, guided) -> None:
    made, trajectory = rolled(name, guided)
    assert trajectory.logp.shape == (ROWS, len(trajectory.tape.steps))
    assert trajectory.logp.shape[1] >= 2
    assert bool((log_ratio(made, trajectory) == 0).all())
    with moved(made):
        optimizer = torch.optim.SGD(made.parameter_groups(), lr=1e-3)
        made.replay(trajectory, range(4), [0]).score.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert log_ratio(made, trajectory).abs().max() > 1e-3
    assert bool((log_ratio(made, trajectory) == 0).all())


@pytest.mark.parametrize(("name", "guided"), EVERY)
def test_other_layouts_stay_within_1e_4_nats(name, guided, monkeypatch) -> None:
    made, trajectory = rolled(name, guided)
    with torch.no_grad():
        order = [5, 0, 3]
        shuffled = made.replay(trajectory, order).score - trajectory.logp[order]
        denoisers = made._stage.denoisers

        def joint(args, kwargs, rows, graph=None, twins=None):
            return list(denoisers.count(args, kwargs)[0].chunk(denoisers.branches(args, kwargs, rows)))

        monkeypatch.setattr(denoisers, "answer", joint)
        joined = made.replay(trajectory, range(4)).score - trajectory.logp[:4]
    assert shuffled.abs().max() <= 1e-4
    assert joined.abs().max() <= 1e-4


@pytest.mark.parametrize(("name", "guided"), EVERY)
def test_reference_is_the_base_and_another_prompt_is_another_density(name, guided) -> None:
    made, trajectory = rolled(name, guided)
    rows = list(range(4))
    same = made.replay(trajectory, rows, [0, 1], versus="reference")
    assert bool((same.kl == 0).all())
    assert bool((same.gap == 0).all())
    with moved(made):
        steps = made.replay(trajectory, rows, [0, 1], versus="reference")
        assert torch.equal(steps.versus_score, same.score)  # bit-equal to the base, whatever the adapter holds
        assert not steps.versus_score.requires_grad
        assert bool((steps.kl > 0).all())
        with made.weights("reference"):
            assert torch.equal(made.replay(trajectory, rows, [0, 1]).score, same.score)
        assert all(p.requires_grad for p in made.named_trainable().values())
    other = Trajectory(**{**vars(trajectory), "prompts": (Prompt("z q"), *trajectory.prompts[1:])})
    difference = (made.replay(other, rows, [0, 1]).score - same.score).abs()
    assert difference[0].max() > 1e-4
    assert difference[1:].max() <= 1e-4


@pytest.mark.parametrize(("name", "guided"), EVERY)
def test_gradient_matches_finite_differences(name, guided, monkeypatch) -> None:
    made = policy(name, guided, torch.float64)
    trajectory = made.rollout(PROMPTS[:2], 1, seed=0)
    denoisers, real = made._stage.denoisers, made._stage.denoisers.answer
    constants: list[list[torch.Tensor]] = []

    def remember(args, kwargs, rows, graph=None, twins=None):
        outs = real(args, kwargs, rows, graph, twins)
        constants.append([out.detach() for out in outs])
        return outs

    def score() -> torch.Tensor:
        return made.replay(trajectory, [0, 1], [1]).score.sum()

    with moved(made, 0.2):
        monkeypatch.setattr(denoisers, "answer", remember)
        score().backward()

        def frozen(args, kwargs, rows, graph, twins):  # branches without a graph are constants of the gradient
            outs = real(args, kwargs, rows, graph, twins)
            kept = constants[len(seen)]
            seen.append(1)
            return [out if graph[k] else kept[k] for k, out in enumerate(outs)]

        monkeypatch.setattr(denoisers, "answer", frozen)
        entries = [(p, int(p.grad.abs().argmax())) for p in made.named_trainable().values() if p.grad is not None]
        entries.sort(key=lambda entry: -float(entry[0].grad.flatten()[entry[1]].abs()))
        for p, at in entries[:3]:
            flat, slopes = p.data.view(-1), []
            for step in (1e-3, 1e-4):  # the wider one where parts of a pipeline stay in float32, the other near a kink
                ends = []
                for sign in (1, -1):
                    flat[at] += sign * step
                    seen: list[int] = []
                    with torch.no_grad():
                        ends.append(float(score()))
                    flat[at] -= sign * step
                slopes.append((ends[0] - ends[1]) / (2 * step))
            grad = float(p.grad.flatten()[at])
            assert min(abs(slope - grad) for slope in slopes) <= 1e-3 * abs(grad)


@pytest.mark.parametrize(("name", "guided"), EVERY)
def test_half_precision_keeps_the_ratio(name, guided) -> None:
    made = policy(name, guided, torch.bfloat16)
    trajectory = made.rollout(PROMPTS, 1, seed=0)
    latent = next(iter(trajectory.tape.chunks[0].latents.values()))
    assert trajectory.logp.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in made.named_trainable().values())
    assert log_ratio(made, trajectory).abs().max() / latent[0].numel() <= 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_exported_adapter_draws_the_same_image_in_plain_diffusers(name, tmp_path) -> None:
    made, _ = rolled(name, True)
    with moved(made, 0.2):
        made.save_adapter(tmp_path)
        ours = made.generate(PROMPTS[:1], [7])["image"].data
    base = made.generate(PROMPTS[:1], [7])["image"].data
    plain = FAMILIES[name].build()
    family, sampler = FAMILIES[name], made.settings.sampler
    if hasattr(plain, "load_lora_weights"):
        plain.load_lora_weights(tmp_path)
        images = [draw(plain, made)]
        plain = family.build()
    else:
        assert not (tmp_path / "pytorch_lora_weights.safetensors").exists()
        images = []
    from peft import PeftModel

    part = made._stage.denoisers.component
    setattr(plain, part, PeftModel.from_pretrained(getattr(plain, part), tmp_path))
    images.append(draw(plain, made))
    for image in images:
        torch.testing.assert_close(ours, image, rtol=0, atol=1e-5)
    assert (ours - base).abs().max() > 1e-3
    assert sampler.guidance is None


@pytest.mark.parametrize("name", ["stable-diffusion-3", "stable-diffusion", "flux"])
def test_the_lora_file_needs_no_header(name, tmp_path) -> None:
    """Tensors alone give W + B A, what a program draws that takes alpha = rank: peft's own merge is the oracle."""
    from safetensors.torch import load_file

    made, _ = rolled(name, True)
    with moved(made, 0.2):
        made.save_adapter(tmp_path)
        tensors = load_file(tmp_path / "pytorch_lora_weights.safetensors")
        assert made.settings.lora.alpha != made.settings.lora.rank
        halves = {key.rpartition(".lora_")[0] for key in tensors}
        assert len(halves) == len(made.named_trainable()) // 2
        for half in halves:
            layer = made.denoiser.get_submodule(half.partition(".")[2])
            change = tensors[f"{half}.lora_B.weight"] @ tensors[f"{half}.lora_A.weight"]
            torch.testing.assert_close(change, layer.get_delta_weight("default"))


@pytest.mark.parametrize("name", ["stable-diffusion-3", "stable-diffusion", "flux"])
def test_an_adapter_on_every_linear_layer_draws_the_same_in_plain_diffusers(name, tmp_path) -> None:
    chosen = settings(name, True).model_copy(update={"lora": Lora(rank=2, alpha=4, targets="all-linear")})
    made = DiffusionPolicy(FAMILIES[name].build(), chosen)
    layers = [part for part in made.denoiser.modules() if type(part) is torch.nn.Linear]
    assert len(made.named_trainable()) == 2 * len(layers) > 0
    with moved(made, 0.1):
        made.save_adapter(tmp_path)
        ours = made.generate(PROMPTS[:1], [7])["image"].data
    plain = FAMILIES[name].build()
    plain.load_lora_weights(tmp_path)
    torch.testing.assert_close(ours, draw(plain, made), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "own"),
    [("stable-diffusion-3", True), ("stable-diffusion-xl", True), ("stable-diffusion", False), ("sana", False)],
)
def test_generate_is_plain_diffusers(name, own) -> None:
    """With the pipeline's own scheduler where that is a one-step one."""
    made, _ = rolled(name, True)
    plain = FAMILIES[name].build()
    assert (type(made.pipeline.scheduler) is type(plain.scheduler)) == own
    image = draw(plain, made)
    drawn = made.generate(PROMPTS[:1], [7])["image"].data
    assert torch.equal(drawn, image) if own else torch.allclose(drawn, image, rtol=0, atol=1e-5)
    assert made.generate(PROMPTS, [7, 8, 9])["image"].data.shape == (3, *image.shape[1:])


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler"]
)
def test_schedulers_with_memory_or_noise_are_swapped(name) -> None:
    pipeline = stable_diffusion()
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    made = DiffusionPolicy(pipeline, settings("stable-diffusion", False))
    assert isinstance(made.pipeline.scheduler, Walked)
    assert bool((log_ratio(made, made.rollout(PROMPTS, 1, seed=0)) == 0).all())


@pytest.mark.parametrize("kernel", ["flow-sde", "cps", "dance", "ddim", "ode"])
def test_every_kernel_rolls_out_and_replays(kernel) -> None:
    made = policy(kernel=kernel, noise=0.4)
    trajectory = made.rollout(PROMPTS, 1, seed=0)
    assert (trajectory.logp.shape[1] > 0) == (kernel != "ode")
    assert bool((log_ratio(made, trajectory) == 0).all())
    if kernel == "ode":
        seeds = [sample_seed(0, prompt.uid, 0) for prompt in PROMPTS]
        plain = made.generate(PROMPTS, seeds)["image"].data
        torch.testing.assert_close(trajectory.media["image"].data, plain, rtol=0, atol=1e-5)


def test_steps_stand_where_the_sampler_says_until_steps_are_named() -> None:
    levels = [1.0, 0.6, 0.2]
    made, plain = policy(steps=3, sigmas=levels), FAMILIES["stable-diffusion-3"].build()
    trajectory = made.rollout(PROMPTS, 2, seed=0)
    assert float(log_ratio(made, trajectory).abs().max()) == 0
    for named, call in ((None, {"sigmas": levels}), (3, {})):
        drawn = made.generate(PROMPTS[:1], [7], steps=named)["image"].data
        asked = {**made.settings.call, "guidance_scale": 1.0, "num_inference_steps": 3, "output_type": "pt", **call}
        with torch.no_grad():
            wanted = plain(prompt=PROMPTS[0].text, generator=torch.Generator().manual_seed(7), **asked).images
        torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [[1.0, 0.5], [1.0, 0.5, 0.5], [1.2, 0.5, 0.1], [1.0, 0.5, 0.0]])
def test_noise_levels_that_cannot_be_are_refused(levels) -> None:
    with pytest.raises(ValueError, match="3 falling numbers"):
        Sampler(steps=3, sigmas=levels)


def test_a_pipeline_without_noise_levels_says_so() -> None:
    with pytest.raises(UsageError, match=r"not noise levels; leave policy\.sampler\.sigmas out"):
        policy("stable-diffusion", sigmas=[k / 8 for k in range(8, 0, -1)])
    asked = PolicySettings(model="bria", call=MORE["bria"].call, sampler=Sampler(steps=2, sigmas=[1.0, 0.5]))
    with pytest.raises(UsageError, match=r"BriaPipeline takes no noise levels; leave policy\.sampler\.sigmas out"):
        DiffusionPolicy(MORE["bria"].build(), asked)


def test_shared_noise_rolls_out_and_replays() -> None:
    made = policy(kernel="flow-sde", noise_block=2)
    trajectory = made.rollout(PROMPTS, 2, seed=0)
    assert float(log_ratio(made, trajectory).abs().max()) == 0
    dims = made.replay(trajectory, [0], [0]).count
    assert dims * 4 == policy(kernel="flow-sde").rollout(PROMPTS[:1], 1, seed=0).tape.chunks[0].latents[0][0].numel()


@pytest.mark.parametrize("name", ["stable-diffusion-3", "stable-diffusion", "flux", "qwen-image"])
@pytest.mark.parametrize("guided", [False, True])
def test_siblings_that_start_together_part_at_the_window_and_are_one_until_then(name, guided) -> None:
    made = policy(name, guided, shared_start=True, window=2, window_start=(2, 3), steps=8, kernel="cps", noise=0.4)
    made.initial_noise(PROMPTS[:1], [0])
    before = made.calls()
    trajectory = made.rollout(PROMPTS, 2, seed=0)
    branches = 2 if guided and name != "flux" else 1
    assert made.calls() - before == branches * (3 * len(PROMPTS) + 5 * ROWS)  # a step before the noise, and the next
    assert float(log_ratio(made, trajectory).abs().max()) == 0
    at_once = policy(name, guided, shared_start=True, window=2, window_start=(0, 1), steps=8, kernel="cps", noise=0.4)
    at_once.initial_noise(PROMPTS[:1], [0])
    before = at_once.calls()
    at_once.rollout(PROMPTS, 2, seed=0)
    assert at_once.calls() - before == branches * (len(PROMPTS) + 7 * ROWS)  # the first call is one a prompt
    first, last = (torch.cat([chunk.latents[i] for chunk in trajectory.tape.chunks]) for i in (2, 3))  # (ROWS, ...)
    torch.testing.assert_close(first[0::2], first[1::2], rtol=0, atol=1e-6)
    noise = (last - first)[0::2] - (last - first)[1::2]
    assert float(noise.abs().max()) > 0.1
    assert float((first[0] - first[2]).abs().max()) > 0.1
    again = made.rollout([PROMPTS[2], PROMPTS[0]], 1, seed=[trajectory.seeds[5], trajectory.seeds[0]])
    torch.testing.assert_close(again.media["image"].data, trajectory.media["image"].data[[5, 0]], rtol=0, atol=1e-4)


@pytest.mark.parametrize("guided", [False, True])
def test_siblings_have_the_gradients_of_rows_that_are_each_asked_about(guided, monkeypatch) -> None:
    """At the step where they part they are one question with several answers."""
    made = policy("stable-diffusion-3", guided, shared_start=True, window=1, window_start=(2, 3), kernel="cps")
    trajectory = made.rollout(PROMPTS, 2, seed=0)
    branches = 2 if guided else 1

    def gradients() -> tuple[int, list[Tensor]]:
        before = made.calls()
        score = made.replay(trajectory, range(ROWS)).score  # (ROWS,1)
        grads = torch.autograd.grad((score[:, 0] * torch.arange(1.0, ROWS + 1)).sum(), made.named_trainable().values())
        return made.calls() - before, list(grads)

    once, shared = gradients()
    monkeypatch.setattr("genalign.policy.rollout.twins_of", lambda prompts, starts: None)
    each, own = gradients()
    assert (once, each) == (branches * len(PROMPTS), branches * ROWS)
    for a, b in zip(shared, own, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * float(b.abs().max()) + 1e-12)
    assert any(float(a.abs().max()) > 0 for a in shared)


def test_what_is_drawn_does_not_depend_on_batches_or_on_who_draws() -> None:
    made, trajectory = rolled("stable-diffusion-3", True)
    assert isinstance(made, Policy)
    one = settings("stable-diffusion-3", True).model_copy(update={"batch_size": 1})
    alone = DiffusionPolicy(FAMILIES["stable-diffusion-3"].build(), one)
    last = alone.rollout(PROMPTS[2:], 2, seed=0)
    assert last.seeds == trajectory.seeds[4:]
    torch.testing.assert_close(last.media["image"].data, trajectory.media["image"].data[4:], rtol=0, atol=1e-4)
    torch.testing.assert_close(last.logp, trajectory.logp[4:], rtol=0, atol=2e-3)  # rounding of x0 reaches it
    again = made.rollout([PROMPTS[2], PROMPTS[0]], 1, seed=[trajectory.seeds[5], trajectory.seeds[0]])
    torch.testing.assert_close(again.media["image"].data, trajectory.media["image"].data[[5, 0]], rtol=0, atol=1e-4)
    assert len(set(trajectory.seeds)) == ROWS
    assert trajectory.group.tolist() == [1, 1, 2, 2, 5, 5]


def test_window_is_drawn_by_the_rollout_seed_and_is_all_that_is_recorded() -> None:
    made = policy(steps=10, window=2, window_start=(1, 5))
    first = made.rollout(PROMPTS[:1], 2, seed=0)
    seen = {made.rollout(PROMPTS[:1], 1, seed=seed).tape.steps for seed in range(12)}
    assert first.logp.shape == (2, 2)
    assert len(first.tape.chunks[0].latents) == 3
    assert seen == {(1, 2), (2, 3), (3, 4), (4, 5)}
    assert first.tape.steps == made.rollout(PROMPTS[1:], 2, seed=0).tape.steps
    assert bool((log_ratio(made, first) == 0).all())
    with pytest.raises(UsageError, match="adds no noise"):
        policy(steps=10, window=2, window_start=(5, 9)).rollout(PROMPTS[:1], 1, seed=0)


def test_calls_are_counted_in_samples() -> None:
    made = policy("stable-diffusion-3", True)
    trajectory = made.rollout(PROMPTS, 2, seed=0)
    steps = made.settings.sampler.steps
    assert made.calls() == ROWS * steps * 2  # guidance counts twice; proving the replay costs no call
    made.replay(trajectory, range(4), [1], versus="reference")
    assert made.calls() == ROWS * steps * 2 + 4 * 2 * 2
    made.generate(PROMPTS, [0, 1, 2], guidance=1.0, steps=3)
    assert made.calls() == ROWS * steps * 2 + 4 * 2 * 2 + 3 * 3


@pytest.mark.parametrize("name", ["stable-diffusion-3", "flux"])
def test_a_value_head_is_told_what_each_step_started_from(name) -> None:
    made, trajectory = rolled(name, False)
    told = made.replay(trajectory, [1, 0], [0, 1]).features
    assert told.shape == (2, 2, 256)
    assert not told.requires_grad
    for column, step in enumerate(trajectory.tape.steps[:2]):
        x = trajectory.tape.chunks[0].latents[step][[1, 0]]
        torch.testing.assert_close(told[:, column], x.reshape(2, 256, -1).mean(-1))
    learner = build_method(MethodSettings(name="dpok", group=2, value_steps=1))
    list(learner.losses(made, learner.collect(made, PROMPTS, ToyReward(), 0, 0)))
    assert learner.value.network[0].in_features == WORDS + 1 + 256


def test_text_is_encoded_once_a_prompt() -> None:
    made = policy("stable-diffusion-3", True)
    encoded = []
    made.pipeline.text_encoder.register_forward_hook(lambda _module, inputs, _out: encoded.append(len(inputs[0])))
    trajectory = made.rollout(PROMPTS, 4, seed=0)
    log_ratio(made, trajectory)
    made.rollout(PROMPTS, 4, seed=1)
    assert encoded == [1] * 2 * len(PROMPTS)  # the prompt and the empty negative prompt beside it


def test_unconditional_branch_has_no_graph() -> None:
    assert rolled("stable-diffusion-3", True)[0]._rollouts.graph == [[False, True]] * 4
    assert rolled("qwen-image", True)[0]._rollouts.graph == [[True, False]] * 4
    assert rolled("flux", True)[0]._rollouts.graph == [[True]] * 4


@pytest.mark.parametrize("noisy", [False, True])
def test_guidance_that_remembers_is_replayed_and_guidance_at_random_is_refused(noisy) -> None:
    pipeline = Remembering(**stable_diffusion_3().components)
    pipeline.noisy = noisy
    made = DiffusionPolicy(pipeline, settings(guided=True))
    if noisy:
        with pytest.raises(GenalignError, match="cannot be replayed exactly"):
            made.rollout(PROMPTS, 1, seed=0)
        return
    trajectory = made.rollout(PROMPTS, 2, seed=0)
    assert bool((log_ratio(made, trajectory) == 0).all())
    assert trajectory.tape.chunks[0].outputs
    with moved(made):
        assert log_ratio(made, trajectory).abs().max() > 1e-3


def test_guidance_rescale_is_replayed_exactly() -> None:
    """A rule that is no linear combination of branches."""
    made = DiffusionPolicy(
        FAMILIES["stable-diffusion-xl"].build(),
        settings("stable-diffusion-xl", True).model_copy(update={"call": {"guidance_rescale": 0.7}}),
    )
    assert bool((log_ratio(made, made.rollout(PROMPTS, 2, seed=0)) == 0).all())


def test_averaged_weights_are_lent_and_returned() -> None:
    made = policy()
    start = {name: p.detach().clone() for name, p in made.named_trainable().items()}
    with torch.no_grad():
        for p in made.named_trainable().values():
            p.add_(1.0)
    made.step_ema(0.75)
    with made.weights("ema"):
        for name, p in made.named_trainable().items():
            torch.testing.assert_close(p.detach(), start[name] + 0.25)
    for name, p in made.named_trainable().items():
        torch.testing.assert_close(p.detach(), start[name] + 1.0)


def test_folder_round_trip_and_broken_folders(tmp_path) -> None:
    stable_diffusion_3().save_pretrained(tmp_path / "model")
    loaded = load_policy(settings(), tmp_path / "model")
    image = loaded.generate(PROMPTS[:1], [3])["image"].data
    torch.testing.assert_close(image, policy().generate(PROMPTS[:1], [3])["image"].data, rtol=0, atol=1e-5)
    with moved(loaded):
        loaded.save_adapter(tmp_path / "adapter")
        tuned = loaded.generate(PROMPTS[:1], [3])["image"].data
    loaded.load_adapter(tmp_path / "adapter")
    assert torch.equal(loaded.generate(PROMPTS[:1], [3])["image"].data, tuned)
    with pytest.raises(UsageError, match="is not a model"):
        load_policy(settings(), tmp_path)
    weights = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_policy(settings(), tmp_path / "model")
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:100])
    with pytest.raises(GenalignError, match="corrupt"):
        loaded.load_adapter(tmp_path / "adapter")
    with pytest.raises(UsageError, match="no adapter"):
        loaded.load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"call": {"heigth": 16}}, "takes no argument 'heigth'"),
        ({"attention": "xformers"}, "xformers"),
        ({"attention": "flash"}, "flash"),
        ({"lora": Lora(targets=["to_w"])}, "'to_w' is not a linear layer"),
        ({"lora": Lora(targets=[])}, "empty"),
    ],
)
def test_wrong_settings_are_one_sentence(change, sentence) -> None:
    with pytest.raises(UsageError, match=sentence) as error:
        DiffusionPolicy(stable_diffusion_3(), settings().model_copy(update=change))
    assert "\n" not in str(error.value)


def test_wrong_calls_are_one_sentence() -> None:
    with pytest.raises(UsageError, match="flow-matching"):
        policy("stable-diffusion", kernel="flow-sde")
    made, _ = rolled("stable-diffusion-3", False)
    with pytest.raises(UsageError, match="2 seeds for 3 rows"):
        made.rollout(PROMPTS, 1, seed=[0, 1])
    picture = Media(image=Track(torch.zeros(1, 3, 4, 4)))
    with pytest.raises(UsageError, match="brings media"):
        made.rollout([Prompt("a", media=picture)], 1, seed=0)


def test_no_pipeline_or_network_of_a_family_is_named_in_the_code() -> None:
    root = Path(inspect.getfile(genalign)).parent
    files = [*(root / "policy").glob("*.py"), *(root / "method").glob("*.py"), root / "loop.py"]
    families = re.compile(r"(?!DiffusionPipeline\b)\w*(Pipeline|Transformer\w*Model|UNet\w*Model)$")
    names = {name for name in dir(diffusers) if families.match(name)} | {*FAMILIES, *MORE, *EDIT, *REFUSED}
    assert len(names) > 150
    words = {file.name: set(re.findall(r"[\w-]+", file.read_text())) for file in files if file.exists()}
    assert len(words) >= 9
    assert {file: found & names for file, found in words.items() if found & names} == {}
