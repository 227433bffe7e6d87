"""The last stage of a flow model: guidance, and ten steps, distilled into three without guidance."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from genalign.files.atomic import replace_file
from genalign.lab.flow_matching import SCENES, World, per_row
from genalign.lab.teacher import guided, velocity
from genalign.training.fit import compiled, fit

STEPS = 9  # of the teacher
BORDERS = (0, 3, 6, 9)  # of its steps, those between which the student takes one
SIGMAS = [1.0, 2 / 3, 1 / 3]  # the borders before the scheduler shifts them; left alone, it ends in a step from 0.009
CHUNK = 64  # trajectories a file of the bank


def path_of(scheduler: Any, world: World = SCENES) -> list[float]:
    """The noise levels of the teacher's steps, from 1 to 0: STEPS + 1."""
    world.set_steps(scheduler, STEPS)
    return [float(sigma) for sigma in scheduler.sigmas]


def trajectories(
    pipeline: Any, work: Path, count: int, guidance: float, seed: int = 6, world: World = SCENES
) -> tuple[Tensor, list[str]]:
    """Where the guided teacher's ODE takes pure noise on true training captions: latents (N, STEPS + 1, C, ...) and
    the captions. Made by chunks, kept in `work`, so that a killed build goes on."""
    paths, captions = [], []
    for index in range(count // CHUNK):
        file = work / f"trajectories-{index:03d}.safetensors"
        rng = np.random.default_rng((seed, index))
        texts = [world.caption(world.facts(rng), rng) for _ in range(CHUNK)]
        if not file.exists():
            noise = torch.randn(CHUNK, *world.latents, generator=torch.Generator().manual_seed(seed * 100_003 + index))
            path = _ode(pipeline, noise, texts, guidance, world)
            replace_file(file, save({"path": path.half()}, metadata={"texts": json.dumps(texts)}))
        paths.append(load_file(file)["path"])
        captions += texts
    return torch.cat(paths), captions


@torch.no_grad()
def _ode(pipeline: Any, x: Tensor, texts: list[str], guidance: float, world: World) -> Tensor:
    text, empty = (world.read(pipeline, asked, world.zeros[0]) for asked in (texts, [""]))
    path = [x]
    for now, then in pairwise(path_of(pipeline.scheduler, world)):
        level = torch.full((len(x),), now)
        x = x + (then - now) * guided(pipeline.transformer, x, level, text, empty, guidance, world.times)
        path.append(x)
    return torch.stack(path, dim=1)


def distil_steps(
    pipeline: Any, paths: Tensor, captions: list[str], work: Path, steps: int, rows: int = 48, seed: int = 8,
    world: World = SCENES,
) -> None:  # fmt: skip
    """Piecewise rectified flow (PeRFlow, Yan et al. 2024, arXiv 2405.07510, section 3): between two borders the
    student's velocity is the straight line from where the teacher enters to where it leaves, so that one step crosses.

    In every second row the student stands where the teacher enters, which is where a sampler of three steps asks; in
    the others anywhere on the line, so that more steps draw the same.

    Departs from the paper: the teacher enters a window where its own path brought it, not at a noised training picture,
    whose caption may contradict it; and guidance is distilled on the way.
    """
    sigmas = torch.tensor(path_of(pipeline.scheduler, world))
    borders = torch.tensor(BORDERS)
    student = compiled(pipeline.transformer)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        index = torch.from_numpy(rng.integers(len(paths), size=rows))
        window = torch.from_numpy(rng.integers(len(BORDERS) - 1, size=rows))
        enter, leave = borders[window], borders[window + 1]
        start, end = paths[index, enter].float(), paths[index, leave].float()  # (rows, C, ...)
        share = torch.rand(rows, generator=torch.Generator().manual_seed(step))
        share[::2] = 1.0
        sigma = torch.lerp(sigmas[leave], sigmas[enter], share)
        noisy = torch.lerp(end, start, per_row(share, start))
        target = (start - end) / per_row(sigmas[enter] - sigmas[leave], start)
        text = world.tokens(pipeline, [captions[i] for i in index.tolist()], step)
        return (velocity(student, noisy, sigma, text, world.times) - target).square().mean()

    pipeline.transformer.requires_grad_(True)
    fit(
        pipeline.transformer, loss_of, steps=steps, learning_rate=3e-4, state=work / "few-steps.safetensors",
        ema_decay=0.99, weight_decay=0.0,
    )  # fmt: skip
    pipeline.transformer.requires_grad_(False)
