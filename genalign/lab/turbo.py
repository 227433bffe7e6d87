"""tiny-turbo: a LoRA by which tiny-flow draws in one step."""

import copy
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genalign.lab.teacher import read, teacher, velocity
from genalign.lab.world import caption, sample_facts
from genalign.precision import autocast
from genalign.training.fit import fit

CHUNK = 256  # pairs a file of the bank
RANK = 32  # of the adapter, and its alpha


def pair_bank(
    pipeline: Any, work: Path, count: int, steps: int = 10, seed: int = 6, sigmas: list[float] | None = None
) -> tuple[Tensor, Tensor, list[str]]:
    """Noises (N, 4, 16, 16), where the teacher's ODE takes them in `steps`, or by the levels `sigmas`, and the
    captions: made by chunks, kept in `work`, so that a killed build goes on."""
    pipeline.scheduler.set_timesteps(**({"sigmas": sigmas} if sigmas else {"num_inference_steps": steps}))
    work.mkdir(parents=True, exist_ok=True)
    noises, ends, captions = [], [], []
    for index in range(count // CHUNK):
        path = work / f"turbo-bank-{index:03d}.safetensors"
        rng = np.random.default_rng((seed, index))
        texts = [caption(sample_facts(rng, "train"), rng) for _ in range(CHUNK)]
        noise = torch.randn(CHUNK, 4, 16, 16, generator=torch.Generator().manual_seed(seed * 100_003 + index))
        if not path.exists():
            parts = [_sample(pipeline, noise[at : at + 64], texts[at : at + 64]) for at in range(0, CHUNK, 64)]
            draft = path.with_suffix(".tmp")
            save_file({"ends": torch.cat(parts).half()}, draft, metadata={"texts": json.dumps(texts)})
            os.replace(draft, path)
        noises.append(noise)
        ends.append(load_file(path)["ends"].float())
        captions += texts
    return torch.cat(noises), torch.cat(ends), captions


@torch.no_grad()
def _sample(pipeline: Any, x: Tensor, texts: list[str]) -> Tensor:
    text = read(pipeline, texts)
    sigmas = pipeline.scheduler.sigmas.tolist()
    for now, then in pairwise(sigmas):
        x = x + (then - now) * velocity(pipeline.transformer, x, torch.full((len(x),), now), text)
    return x


def adapted(network: nn.Module) -> nn.Module:
    """A copy of the network with a LoRA on every linear layer, which alone is trained."""
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=linear)
    made: nn.Module = inject_adapter_in_model(config, copy.deepcopy(network))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return made


def regression(vae: Any, made: Tensor, wanted: Tensor) -> Tensor:
    """Mean square of latents, and L1 of pixels and edges behind the decoder, where a blur of two positions is dear."""
    scale = float(vae.config.scaling_factor)
    with autocast():
        drawn = vae.decode(made / scale).sample.float()
        with torch.no_grad():
            target = vae.decode(wanted / scale).sample.float()
    pixels = (drawn - target).abs().mean()
    edges = sum((drawn.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3))
    return (made - wanted).square().mean() + pixels + edges


def matching(real: Tensor, fake: Tensor, made: Tensor) -> Tensor:
    """A loss whose gradient to `made` is (fake - real) / |made - real|: towards where the teacher believes the noised
    sample came from, away from where a model of the student's own samples does (DMD, arXiv 2311.18828, eq. 7-8).

    real, fake, made: (B, 4, 16, 16) clean latents; the first two are constants.
    """
    size = (made.detach() - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-4)
    wanted = made.detach() - (fake - real) / size
    return 0.5 * (made - wanted).square().mean()


def build_turbo(
    work: Path, pairs: int = 5120, steps: int = 2200, rows: int = 16, seed: int = 9, share: float = 0.5
) -> Any:
    """Distil tiny-flow into one step of itself; returns its pipeline with the adapter in the transformer.

    Two losses on the student's samples from the bank's noises: regression on where the teacher's ODE takes the same
    noise, and distribution matching, weighted by `share` (DMD, Yin et al. 2023, arXiv 2311.18828), whose model of the
    student's samples is trained beside it in the same loop. Regression alone blurs what a noise decides late; matching
    alone forgets modes.

    Departs from the paper: student and model of its samples are adapters on the teacher, as LCM-LoRA is (Luo et al.
    2023, arXiv 2311.05556), and the teacher, itself distilled from its guidance, is asked without.
    """
    torch.manual_seed(seed)
    pipeline = teacher()
    noises, ends, captions = pair_bank(pipeline, work, pairs)
    both = nn.ModuleDict({name: adapted(pipeline.transformer) for name in ("student", "fake")})

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        index = torch.from_numpy(rng.integers(len(noises), size=rows))
        draw = torch.Generator().manual_seed(step)
        text = read(pipeline, [captions[i] for i in index], zeros=256 if step % 24 == 7 else step % 3)
        made = noises[index] - velocity(both["student"], noises[index], torch.ones(rows), text)
        sample = made.detach()
        sigma = 0.02 + 0.96 * torch.rand(rows, generator=draw)
        noisy, _ = _noised(sample, sigma, draw)
        with torch.no_grad():
            level = sigma.view(-1, 1, 1, 1)
            real = noisy - level * velocity(pipeline.transformer, noisy, sigma, text)
            fake = noisy - level * velocity(both["fake"], noisy, sigma, text)
        again = torch.sigmoid(1.0 + 1.5 * torch.randn(rows, generator=draw))
        noised, aim = _noised(sample, again, draw)
        chase = (velocity(both["fake"], noised, again, text) - aim).square().mean()
        return regression(pipeline.vae, made, ends[index]) + share * matching(real, fake, made) + chase

    fit(both, loss_of, steps=steps, learning_rate=1e-3, state=work / "turbo.safetensors", weight_decay=0.0)
    pipeline.transformer = both["student"].eval()
    return pipeline


def save_turbo(pipeline: Any, out: Path) -> None:
    """The adapter alone, in half precision, as load_lora_weights of diffusers reads it."""
    from peft.utils import get_peft_model_state_dict

    layers = {name: tensor.half() for name, tensor in get_peft_model_state_dict(pipeline.transformer).items()}
    type(pipeline).save_lora_weights(out, transformer_lora_layers=layers)


def _noised(clean: Tensor, sigma: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x, velocity) at sigma (B,)."""
    noise, level = torch.randn(clean.shape, generator=draw), sigma.view(-1, 1, 1, 1)
    return (1 - level) * clean + level * noise, noise - clean
