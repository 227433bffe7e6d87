"""Frozen weights split over ranks (FSDP2) against whole ones, and both against one process, method by method.

A prompt more a step than there are ranks, so that one samples, replays and fits more often than the others.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genalign import ranks
from genalign.method import MethodSettings, build_method
from genalign.policy.diffusion import DiffusionPolicy
from genalign.reward import FunctionReward
from genalign.training.checkpoint import load_checkpoint
from genalign.training.loop import train
from genalign.training.progress import Progress, restore, start
from genalign.training.settings import TrainSettings
from genalign.types import Policy, Prompt, UsageError
from tests.helpers import diffusion, language_policies, video_policies
from tests.helpers.forked import run_ranks
from tests.helpers.tiny_pipelines import FAMILIES
from tests.helpers.toy_policy import ToyPolicy

CASES: dict[str, dict[str, Any]] = {
    "image-policy-gradient": {"name": "flow-grpo", "group": 2, "kl_beta": 0.1},
    "image-nft": {"name": "nft", "group": 2},
    "image-preference": {"name": "d3po", "group": 2},
    "image-weighted": {"name": "flow-rwr", "group": 2},
    "image-pathwise": {"name": "draft", "grad_steps": 2, "renoised": 0, "micro_batch": 2},
    "image-dragon": {"name": "dragon", "group": 2},
    "recomputed-policy-gradient": {"name": "flow-grpo", "group": 2},
    "experts-nft": {"name": "nft", "group": 2},
    "seen-grpo": {"name": "grpo", "group": 2},
    "text-grpo": {"name": "grpo", "group": 2, "kl_beta": 0.1, "updates_per_rollout": 1},
    "text-dpo": {"name": "dpo", "group": 2},
}
QUICK = ["image-policy-gradient", "image-nft", "text-grpo"]
ON_FOUR = [name for name in CASES if name.startswith(("image", "text"))]
PROMPTS = {
    "image": diffusion.PROMPTS, "recomputed": diffusion.PROMPTS, "experts": diffusion.PROMPTS,
    "text": language_policies.TEXTS, "seen": language_policies.PICTURES,
}  # fmt: skip


def prompts(kind: str, world: int) -> list[Prompt]:
    """One more than there are ranks."""
    again = [replace(prompt, uid=10 + prompt.uid) for prompt in PROMPTS[kind]]
    return [*PROMPTS[kind], *again][: world + 1]


def brightness(image: Tensor) -> Tensor:
    return image.mean((1, 2, 3))


def motion(video: Tensor) -> Tensor:
    return video.flatten(1).std(1)


def letters(text: list[str]) -> list[float]:
    return [float(len(set(one))) for one in text]


def made(kind: str) -> Policy:
    """Its micro-batches are the two samples of a prompt, whatever the number of ranks."""
    if kind == "text":
        return language_policies.policy("qwen3", batch_size=2)  # its embeddings are its head, too
    if kind == "seen":
        return language_policies.policy("qwen2.5-vl", batch_size=2)
    if kind == "experts":
        return video_policies.made("wan-2-2")  # two denoisers
    more = {"batch_size": 2, "gradient_checkpointing": kind == "recomputed"}
    settings = diffusion.settings("stable-diffusion-3").model_copy(update=more)
    return DiffusionPolicy(FAMILIES["stable-diffusion-3"].build(), settings)


def begun(policy: Policy, kind: str, backend: str, steps: int = 3) -> Progress:
    score = {"text": letters, "seen": letters, "experts": motion}.get(kind, brightness)
    reward = FunctionReward(score, differentiable=kind == "image")
    settings = TrainSettings(steps=steps, checkpoint_every=2, ema=0.9, backend=backend)
    return start(policy, reward, settings)


def trained(progress: Progress, kind: str, method: Mapping[str, Any], run: Path, world: int = 2) -> dict[str, Tensor]:
    """The gradient of the first update, and the weights and their average after the last.

    Between the first gradient and its step there is a sampling pass. world: of the ranks that the prompts are for.
    """
    run.mkdir(parents=True, exist_ok=True)
    policy, drawn, found = progress.policy, prompts(kind, world), {}
    named = policy.named_trainable()
    check = progress.backend.check

    def look(what: Any) -> None:
        check(what)
        if what == "gradients":
            found.update({f"gradient/{name}": p.grad.clone() for name, p in named.items() if p.grad is not None})
            policy.generate(drawn[:1], [3])

    progress.backend.check = look  # type: ignore[method-assign]
    for _ in train(progress, build_method(MethodSettings(**method)), lambda step: drawn, run):
        pass
    for which, of in (("weight", policy.weights("policy")), ("average", policy.weights("ema"))):
        with of:
            found |= {f"{which}/{name}": p.detach().clone() for name, p in policy.named_trainable().items()}
    return found


def network(policy: Any) -> nn.Module:
    found: nn.Module = getattr(policy, "denoiser", None) or policy.model
    return found


def split_share(policy: Policy) -> Tensor:
    """Numbers that this rank holds of the frozen weights, of how many; and whether all of them are split."""
    from torch.distributed.tensor import DTensor

    frozen = [p for p in network(policy).parameters() if not p.requires_grad]
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in frozen)
    return torch.tensor([held, sum(p.numel() for p in frozen), all(isinstance(p, DTensor) for p in frozen)])


def _worker(rank: int, world: int, port: int, out: Path, cases: list[str], steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    for case in cases:
        kind = case.partition("-")[0]
        for backend in ("replicated", "fsdp2"):
            policy = made(kind)
            progress = begun(policy, kind, backend, steps)
            found = trained(progress, kind, CASES[case], out / f"{case}-{backend}", world)
            if backend == "fsdp2":
                found["split"] = split_share(policy)
            save_file(found, out / f"{case}-{backend}-{rank}.safetensors")
            if rank == 0:  # as it draws a grid of samples, while the others go on or have ended
                policy.generate(PROMPTS[kind][:1], [3])
    ranks.leave(0)


def on_ranks(world: int, out: Path, cases: list[str], steps: int) -> Path:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_ranks(_worker, (world, port, out, cases, steps), world)
    return out


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), QUICK, 3)


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory) -> Path:
    return on_ranks(2, tmp_path_factory.mktemp("ranks"), [*CASES], 10)


@pytest.fixture(scope="module")
def on_four(tmp_path_factory) -> Path:
    return on_ranks(4, tmp_path_factory.mktemp("ranks"), ON_FOUR, 10)


def check(case: str, world: int, out: Path, tmp_path: Path, steps: int) -> None:
    kind = case.partition("-")[0]
    one = trained(begun(made(kind), kind, "replicated", steps), kind, CASES[case], tmp_path, world)
    each = {
        name: [load_file(out / f"{case}-{name}-{rank}.safetensors") for rank in range(world)]
        for name in ("replicated", "fsdp2")
    }
    for of_rank in each["fsdp2"]:
        held, of, all_split = of_rank.pop("split").tolist()
        assert all_split  # nothing stays gathered, the group of what is in no block neither
        assert held <= (1 / world + 0.1) * of
    whole = each["replicated"][0]
    for other in (*each["replicated"], *each["fsdp2"]):
        assert other.keys() == one.keys()
        assert all(torch.equal(other[name], whole[name]) for name in one)
    for name in one:
        torch.testing.assert_close(whole[name], one[name], atol=1e-6, rtol=1e-5)
    start = made(kind).named_trainable()
    for which, far in (("weight", 5e-4), ("average", 5e-5)):
        assert max((one[f"{which}/{name}"] - p).abs().max() for name, p in start.items()) > far  # it moved


@pytest.mark.parametrize("case", QUICK)
def test_split_weights_train_as_whole_ones_do(case: str, quick: Path, tmp_path: Path) -> None:
    check(case, 2, quick, tmp_path, 3)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ten_steps_of_every_method(case: str, ten_steps: Path, tmp_path: Path) -> None:
    check(case, 2, ten_steps, tmp_path, 10)


@pytest.mark.slow
@pytest.mark.parametrize("case", ON_FOUR)
def test_ten_steps_on_four_ranks(case: str, on_four: Path, tmp_path: Path) -> None:
    check(case, 4, on_four, tmp_path, 10)


@pytest.mark.parametrize("case", ["image-nft", "text-grpo"])
def test_a_checkpoint_of_split_ranks_goes_on_in_one_process(case: str, quick: Path, tmp_path: Path) -> None:
    kind = case.partition("-")[0]
    progress = begun(made(kind), kind, "replicated")
    restore(progress, load_checkpoint(quick / f"{case}-fsdp2" / "checkpoint-2"))
    assert progress.step == 2
    found = trained(progress, kind, CASES[case], tmp_path)
    unbroken = load_file(quick / f"{case}-fsdp2-0.safetensors")
    for name in found:
        if name.startswith("weight/"):
            torch.testing.assert_close(found[name], unbroken[name], atol=1e-6, rtol=0)


def test_a_policy_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ToyPolicy cannot be split over ranks; set train\.backend=replicated"):
        start(ToyPolicy(), None, TrainSettings(backend="fsdp2"))


def test_one_process_holds_everything_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    policy = made("text")
    progress = begun(policy, "text", "fsdp2")
    progress.backend.forget()  # nothing that an update left behind
    assert "one process, which holds the whole model" in caplog.text
    assert type(network(policy)) is type(network(made("text")))
