"""How well a batch's gradient points: the cosine between those of independent batches, by method and what is explored.

`python -m tests.bench.test_bench_signal` prints the table; about 12 minutes of one core.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from genalign import build, load_recipe

PLANS: dict[str, tuple[str, list[str]]] = {
    "nft": ("image-nft", []),
    "nft, every sample from a start of its own": ("image-nft", ["policy.sampler.shared_start=false"]),
    "flow-dpo": ("image-flow-dpo", []),
    "flow-grpo": ("image-flow-grpo", []),
    "d3po": ("image-d3po", []),
    "d3po, noise shared in squares of 4": ("image-d3po", ["policy.sampler.noise_block=4"]),
    "d3po, noise of its own in every latent": ("image-d3po", ["policy.sampler.noise_block=1"]),
    "d3po, best against worst": ("image-d3po", ["method.pair_rule=best_worst"]),
    "d3po, groups of 16": ("image-d3po", ["method.group=16", "data.prompts_per_step=8"]),
    "d3po, the second step": ("image-d3po", ["policy.sampler.window_start=[1,2]"]),
}


def gradients(recipe: str, overrides: list[str], batches: int) -> list[Tensor]:
    """The adapter's gradient (P,) at the start, where only its B matrices have any, of each batch."""
    built = build(load_recipe(recipe, overrides))
    weights = [p for name, p in built.policy.named_trainable().items() if "lora_B" in name]
    found = []
    for step in range(batches):
        prompts = built.data.draw(step, built.recipe.data.prompts_per_step, 0)
        experience = built.method.collect(built.policy, prompts, built.reward, 0, step)
        for weight in weights:
            weight.grad = None
        for loss in built.method.losses(built.policy, experience):
            loss.total.backward()
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        found.append(torch.cat([grad.flatten() for grad in grads]))
    return found


def mean_cosine(vectors: list[Tensor]) -> tuple[float, float]:
    """Over all pairs, and its standard error if the pairs were independent."""
    pairs = torch.stack([torch.cosine_similarity(a, b, dim=0) for a, b in combinations(vectors, 2)])
    return float(pairs.mean()), float(pairs.std() / math.sqrt(len(pairs)))


def test_a_shared_direction_is_found_in_noise() -> None:
    """x_i = signal + noise with |signal|^2 = r |noise|^2 has the cosine r / (1 + r)."""
    draw = torch.Generator().manual_seed(0)
    signal = torch.randn(20_000, generator=draw)
    vectors = [signal / 2 + torch.randn(20_000, generator=draw) for _ in range(8)]
    assert abs(mean_cosine(vectors)[0] - 0.25 / 1.25) < 0.01


def test_the_table_can_be_measured() -> None:
    few = ["data.prompts_per_step=2", "method.group=4", "policy.batch_size=8"]
    assert all(math.isfinite(float(vector.norm())) for vector in gradients("image-flow-grpo", few, 2))


def main(batches: int = 16) -> None:
    torch.set_num_threads(1)
    print(f"| {batches} batches of 128 samples | mean cosine | its standard error |\n|---|---|---|")
    for name, plan in PLANS.items():
        cosine, error = mean_cosine(gradients(*plan, batches))
        print(f"| {name} | {cosine:+.3f} | {error:.3f} |", flush=True)


if __name__ == "__main__":
    main()
