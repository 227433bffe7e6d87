"""What every method asks of the denoiser, and the memory of an update. `python -m tests.bench.test_bench_methods`.

In units of one denoiser forward pass on one sample (F) and one backward pass (b), for T sampling steps of which W are
recorded, K keep their graph and D is the number of noised times: no method asks for more than its floor, the least that
the gradient of its own formula takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from genalign.method import PRESETS, MethodSettings, build_method
from genalign.policy.diffusion import DiffusionPolicy
from genalign.types import Media, Prompt, Scores, Track
from tests.bench.bare import PROMPTS, Bare, made, peak_bytes
from tests.bench.meter import Rows, metered
from tests.helpers.diffusion import saved_bytes
from tests.helpers.toy_policy import ToyReward, make_scores

T, W, D, K, GROUP = 4, 2, 3, 2, 2
P = len(PROMPTS)
B = P * GROUP
BUDGET = 9  # evaluations of a search


class Colours(ToyReward):
    """Two aspects of the picture, with gradients."""

    name, aspects, differentiable = "colours", ("a", "b"), True

    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        red, green, blue = media["image"].data.mean((2, 3)).unbind(1)  # type: ignore[union-attr]
        return make_scores(torch.stack([red - blue, green + 0.5 * blue], 1))


class Latent:
    """A reward of noisy latents, which nrg guides by."""

    aspects, weights = ("a",), (1.0,)
    rows = 0

    def __call__(self, prompts: Sequence[Prompt], x: Tensor, a: float, s: float) -> Tensor:
        self.rows += len(x)
        return x.flatten(1).sum(1, keepdim=True) / (a + s)


@dataclass(frozen=True)
class Cost:
    """What a training step of B samples (or a search for P) asks for: forward rows without and with a graph, backward
    rows; and the floor (F, b)."""

    plain: int
    graph: int
    b: int
    floor: tuple[int, int]
    keys: dict[str, Any] = field(default_factory=dict)


def gradient(**keys: Any) -> Cost:
    """T + W (F + b) a sample, all without guidance; what no step is recorded of is sampled once."""
    return Cost(T * B, W * B, W * B, (T * B + W * B, W * B), keys)


LATER = {"draws": D, "times": (0.1, 1.0)}  # where siblings' noised samples differ


def fitted(reference: int, rows: int = B, **keys: Any) -> Cost:
    """D (F + b) a sample that is learnt from, and F more at each time for each other network it is compared with."""
    forward = D * reference * rows
    return Cost(T * B + forward, D * rows, D * rows, (T * B + forward + D * rows, D * rows), {**LATER, **keys})


def pathwise(kept: int, recomputed: int, steps: int = T, copies: int = 0, **keys: Any) -> Cost:
    """T + K (F + b) a sample: the last K steps are computed again where more than one keeps its graph."""
    graph = kept + recomputed + copies
    floor = (steps + copies + kept) * B, (kept + copies) * B
    return Cost((steps - kept) * B, graph * B, (kept + copies) * B, floor, {"micro_batch": B, **keys})


TRAINING = {
    "ddpo": gradient(),
    "flow-grpo": gradient(),
    "grpo": gradient(),
    "rloo": gradient(),
    "parrot": gradient(),
    **{name: gradient() for name in ("dr-grpo", "dapo", "cispo", "sapo", "reinforce++")},
    "raft": gradient(),
    "simpo": gradient(),  # a preference without reference
    # Of a pair: 2T + 2W (F + b), and 2W for the reference, which preferences by log-ratios cannot do without.
    "d3po": Cost(T * B + W * B, W * B, W * B, (T * B + 2 * W * B, W * B)),
    **{
        name: Cost(T * B + W * B, W * B, W * B, (T * B + 2 * W * B, W * B))
        for name in ("dpo", "rpo", "dno", "selm", "kto", "gpo")
    },
    "ppo": Cost(T * B + W * B, W * B, W * B, (T * B + 2 * W * B, W * B)),  # of the base, before anything is learnt
    "dpok": Cost(T * B + W * B, W * B, W * B, (T * B + 2 * W * B, W * B)),
    "diffusion-dpo": fitted(1),
    "flow-dpo": fitted(1),
    "dragon": fitted(1),
    "flow-rwr": fitted(0),
    "sft": fitted(0, rows=P),  # the best of each prompt
    "nft": fitted(1),
    "awm": fitted(0),
    "alignprop": pathwise(K, K, truncation="fixed", grad_steps=K),
    "draft": pathwise(1, 0),
    "draft-lv": pathwise(1, 0, copies=2),
    # It stops at the step that is scored: T - K + 1 steps, of which one keeps its graph.
    "refl": pathwise(1, 0, steps=T - K + 1, truncation="fixed", grad_steps=K),
}
ASKED = P * T  # of the denoiser by one plain evaluation of all rows
SEARCHES = {
    "best-of-n": Cost(BUDGET * ASKED, 0, 0, (BUDGET * ASKED, 0)),
    "random": Cost(BUDGET * ASKED, 0, 0, (BUDGET * ASKED, 0)),
    # n iterations: n forward, n - 1 backward passes; budget 1 + 3 (n - 1)
    "reno": Cost(P, (BUDGET - 1) // 3 * P, (BUDGET - 1) // 3 * P, (((BUDGET - 1) // 3 + 1) * P, (BUDGET - 1) // 3 * P)),
    # The plain sample, one row that is watched, and populations of GROUP particles.
    "fk": Cost(ASKED + T + GROUP * ASKED, 0, 0, (ASKED + T + GROUP * ASKED, 0), {"budget": 3.0, "every": T}),
    "nrg": Cost(ASKED, 0, 0, (ASKED, 0)),
}


def drawn_once(guidance: float = 1.0, width: int = 16, layers: int = 1, **sampler: Any) -> DiffusionPolicy:
    """A tiny rectified flow that has drawn and decoded before: its first questions show a policy how to ask."""
    window = {"window": W, "window_start": (1, 2)}
    policy = made(guidance, width, layers, B, **{"steps": T, **window, **sampler})
    policy.decode(policy.clean(policy.rollout(PROMPTS[:1], 1, seed=0)))
    return policy


WHOLE = {"window": None, "window_start": None}  # every step is recorded but the last, which adds no noise


def trained(policy: DiffusionPolicy, name: str, reward: Any, **keys: Any) -> Rows:
    method = build_method(MethodSettings(name=name, group=GROUP, **keys))
    with metered(policy) as rows:
        for loss in method.losses(policy, method.collect(policy, PROMPTS, reward, 0, 0)):
            loss.total.backward()
    return rows


def within(rows: Rows, floor: tuple[int, int]) -> bool:
    return rows.forward <= floor[0] and rows.b <= floor[1]


def test_every_method_has_its_cost_here() -> None:
    elsewhere = {"gspo", "orpo", "tgdpo", "rto"}  # which read whole rows of tokens, or ask an adapter of another run
    elsewhere |= {"majority-vote", "self-certainty", "vas", "vrpo"}  # of language models
    assert set(TRAINING) | set(SEARCHES) | elsewhere == set(PRESETS)


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_costs_its_formula_and_no_more_than_its_floor(name: str) -> None:
    cost = TRAINING[name]
    rows = trained(drawn_once(), name, Colours(), **cost.keys)
    assert (rows.plain, rows.graph, rows.b) == (cost.plain, cost.graph, cost.b)
    assert within(rows, cost.floor)
    assert rows.read == P - 1  # each text once, and one of them was known
    assert rows.encoded == 0


def test_without_reference_a_preference_costs_what_a_policy_gradient_does() -> None:
    rows = trained(drawn_once(**WHOLE), "d3po", Colours(), loss="simpo")
    assert (rows.plain, rows.graph, rows.b) == (T * B, (T - 1) * B, (T - 1) * B)


@pytest.mark.parametrize(("name", "networks"), [("flow-dpo", 2), ("nft", 2), ("awm", 1)])
def test_at_pure_noise_siblings_that_share_it_are_one_question(name: str, networks: int) -> None:
    """T + D (F + b) / G a sample, and D F / G for each other network."""
    rows = trained(drawn_once(), name, Colours(), draws=D, times=(0, 0.02))
    assert (rows.plain, rows.graph, rows.b) == (T * B + D * (networks - 1) * P, D * P, D * P)


def test_kto_asks_once_more_for_its_zero_and_the_reference_once() -> None:
    rows = trained(drawn_once(), "dragon", Colours(), loss="kto", **LATER)
    assert (rows.plain, rows.graph, rows.b) == (T * B + 2 * D * B, D * B, D * B)


def test_guidance_doubles_the_forward_passes_alone() -> None:
    """The unconditional branch is replayed without a graph."""
    rows = trained(drawn_once(4.0), "flow-grpo", Colours())
    assert (rows.plain, rows.graph, rows.b) == (2 * T * B + W * B, W * B, W * B)


def test_siblings_that_start_together_are_one_until_they_part_in_replay_too() -> None:
    """(k + 1)/G + T - k - 1 + (1/G + W - 1) (F + b) a sample, for k steps before the window."""
    rows = trained(drawn_once(shared_start=True), "flow-grpo", Colours())
    assert (rows.plain, rows.graph, rows.b) == (2 * P + (T - 2) * B, P + (W - 1) * B, P + (W - 1) * B)


def test_given_pictures_are_encoded_once_and_the_reference_asked_once_a_cycle() -> None:
    """2F + 2b + 2F a pair and time; where times come round again, 2F + 2b."""

    class Pictures:
        kind, rows_together = "image", B

        def load(self, pairs: Sequence[int]) -> Media:
            generator = torch.Generator().manual_seed(0)
            return Media(image=Track(torch.rand(2 * len(pairs), 3, 32, 32, generator=generator)))

    policy, spent = drawn_once(), []
    method = MethodSettings(name="flow-dpo", cycle=1, **LATER).build_on(Pictures())
    for step in range(2):
        with metered(policy) as rows:
            for loss in method.losses(policy, method.collect(policy, PROMPTS, None, 0, step)):
                loss.total.backward()
        spent.append((rows.plain, rows.graph, rows.b, rows.encoded > 0, rows.read))
    assert spent == [(D * B, D * B, D * B, True, P - 1), (0, D * B, D * B, False, 0)]


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_costs_its_budget(name: str) -> None:
    cost = SEARCHES[name]
    policy = drawn_once(**{"steps": 1, **WHOLE} if name == "reno" else {})
    keys = {} if name == "nrg" else {"budget": float(BUDGET), "group": GROUP if name == "fk" else 1, **cost.keys}
    method: Any = build_method(MethodSettings(name=name, **keys))
    latent = method.latent = Latent()
    if name == "nrg":
        method.latent = lambda: latent
    policy.initial_noise(PROMPTS[:1], [0])
    with policy.weights("reference"), metered(policy) as rows:
        method.find(policy, PROMPTS, range(P), Colours())
    assert (rows.plain, rows.graph, rows.b) == (cost.plain, cost.graph, cost.b)
    assert within(rows, cost.floor)
    assert latent.rows == (ASKED if name == "nrg" else 0)
    assert rows.read == P - 1


def test_a_rollout_keeps_each_recorded_latent_once() -> None:
    """W + 1 latents a sample, and the last one, which methods on the forward process start from."""
    policy = drawn_once()
    trajectory = policy.rollout(PROMPTS, GROUP, seed=0)
    kept = [x for chunk in trajectory.tape.chunks for x in (*chunk.latents.values(), chunk.clean)]
    assert len({x.data_ptr() for x in kept}) == len(kept) == W + 2
    assert sum(x.numel() * x.element_size() for x in kept) == (W + 2) * B * 4 * 16 * 16 * 4


def saved(steps: int, kept: int) -> int:
    """Bytes that autograd keeps of a micro-batch of AlignProp until its backward pass."""
    policy = drawn_once(steps=steps, **WHOLE)
    method = build_method(MethodSettings(name="alignprop", micro_batch=B, truncation="fixed", grad_steps=kept))
    experience = method.collect(policy, PROMPTS, Colours(), 0, 0)
    return saved_bytes(lambda: next(iter(method.losses(policy, experience))).total)


def test_the_bytes_that_alignprop_keeps_do_not_hang_on_the_steps_before() -> None:
    assert saved(3, K) == saved(6, K) == saved(12, K) > 0


# ---- what `make bench` prints ---------------------------------------------------------------------------------------


def peak_of(name: str, of: Callable[[], DiffusionPolicy]) -> int:
    """Peak bytes of the updates of a training step, its samples drawn and scored before."""
    policy, cost = of(), TRAINING[name]
    method = build_method(MethodSettings(name=name, group=GROUP, **cost.keys))

    def update(experience: Any) -> None:
        for loss in method.losses(policy, experience):
            loss.total.backward()
        for p in policy.named_trainable().values():
            p.grad = None

    update(method.collect(policy, PROMPTS, Colours(), 0, 0))
    experience = method.collect(policy, PROMPTS, Colours(), 0, 1)
    return peak_bytes(lambda: update(experience))


def bare_peaks(of: Callable[[], DiffusionPolicy]) -> tuple[int, int]:
    """Peak bytes of one forward and backward pass of the denoiser; and of denoiser, decoder and reward."""
    policy = of()
    bare, vae, reward = Bare(policy), policy.pipeline.vae, Colours()

    def whole() -> None:
        out = bare.denoiser(**bare.kwargs)[0]
        pixels = (vae.decode(out / vae.config.scaling_factor)[0] / 2 + 0.5).clamp(0, 1)
        reward(PROMPTS * GROUP, Media(image=Track(pixels))).total.mean().backward()

    def denoiser() -> None:
        bare.denoiser(**bare.kwargs)[0].square().mean().backward()

    denoiser()
    return peak_bytes(denoiser), peak_bytes(whole)


def main() -> None:
    torch.set_num_threads(1)
    print(f"a training step of {P} prompts x {GROUP}: T = {T} steps, W = {W} recorded, K = {K} kept, D = {D} times")
    print(f"{'method':<14} {'F':>4} {'b':>4}   floor F, b   peak bytes of an update / of one bare F + b")

    def of() -> DiffusionPolicy:
        return drawn_once(width=64, layers=4)

    denoiser, whole = bare_peaks(of)  # the latter for who goes back through decoder and reward
    for name, cost in TRAINING.items():
        rows, peak = trained(drawn_once(), name, Colours(), **cost.keys), peak_of(name, of)
        bare = whole if "micro_batch" in cost.keys else denoiser
        floor = f"{cost.floor[0]:>6} {cost.floor[1]:>4}"
        print(f"{name:<14} {rows.forward:>4} {rows.b:>4}  {floor}   {peak:>12,}  {peak / bare:.3f}", flush=True)
    print(f"\nbytes kept for the backward pass by AlignProp, {K} steps with a graph, by sampling steps:")
    print("  ".join(f"{steps}: {saved(steps, K):,}" for steps in (4, 8, 16, 32)))


if __name__ == "__main__":
    main()
