"""A reward that reads latents on their way: a small network on noisy latents, their noise level and the prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.reward.base import digest, resolve_model, texts
from genalign.reward.fit.backbones import word_counts
from genalign.reward.heads.clip import ClipReward
from genalign.types import Prompt, UsageError

FILE = "noisy.safetensors"
WIDTH, LAYERS, HEADS = 128, 3, 4
FREQUENCIES = 16


class NoisyNet(nn.Module):
    """(u (R,*L), t (R,), text (R,E)) -> (R,K): latents as tokens, and one more token for level and prompt.

    u = (1 - t) x0 + t eps, whatever path the sampler walks: (a x0 + s eps) / (a + s) is that point at t = s / (a + s).
    """

    def __init__(self, latent: Sequence[int], text_width: int, aspects: int) -> None:
        super().__init__()
        tokens = _tokens(torch.zeros(1, *latent))
        self.latent, self.text_width = tuple(latent), text_width
        self.inward = nn.Linear(tokens.shape[2], WIDTH)
        self.place = nn.Parameter(0.02 * torch.randn(tokens.shape[1], WIDTH))
        self.level = nn.Linear(2 * FREQUENCIES, WIDTH)
        self.text = nn.Linear(text_width, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, aspects)

    def forward(self, u: Tensor, t: Tensor, text: Tensor) -> Tensor:
        waves = math.pi * 2.0 ** torch.arange(FREQUENCIES, device=u.device).div(4) * t[:, None]
        level = self.level(torch.cat([waves.sin(), waves.cos()], 1))  # (R,WIDTH)
        summary = level + self.text(F.normalize(text, dim=1) * self.text_width**0.5)  # the token that is read out
        tokens = self.inward(_tokens(u)) + self.place + level[:, None]
        return self.head(self.blocks(torch.cat([summary[:, None], tokens], 1))[:, 0])


def _tokens(u: Tensor) -> Tensor:
    """(R,C,H,W) -> 2x2 patches (R,HW/4,4C), (R,C,F,H,W) -> those of each frame (R,FHW/4,4C); (R,N,C) as it is.

    Raises:
        UsageError: latents of another form.
    """
    if u.dim() == 3:
        return u
    if u.dim() not in (4, 5) or u.shape[-2] % 2 or u.shape[-1] % 2:
        raise UsageError(
            f"noisy rewards read latents (C,H,W) or (C,F,H,W) of even sides, or (N,C), not {tuple(u.shape[1:])}"
        )
    if u.dim() == 4:
        return F.pixel_unshuffle(u, 2).flatten(2).transpose(1, 2)
    frames = u.transpose(1, 2)  # (R,F,C,H,W)
    return F.pixel_unshuffle(frames, 2).flatten(3).transpose(2, 3).flatten(1, 2)


@dataclass(frozen=True)
class Bank:
    """Clean latents to learn from.

    latents (N,*L); group (N,) int64, equal for samples of one prompt; prompts: N texts; values, valid (N,K); weights
    (K,): what each aspect counts in the reward's total.
    """

    latents: Tensor
    group: Tensor
    prompts: tuple[str, ...]
    values: Tensor
    valid: Tensor
    weights: Tensor


def pair_loss(rewards: Tensor, values: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """Mean of -log sigmoid(R_w - R_l) (Bradley-Terry) over all untied pairs of a group, aspect by aspect; 0 if none.

    rewards, values (R,K), valid (R,K) bool, group (R,).
    """
    wins = (values[:, None] > values[None]) & valid[:, None] & valid[None] & (group[:, None] == group[None])[..., None]
    losses = F.softplus(rewards[None] - rewards[:, None])  # [w, l] = softplus(R_l - R_w)
    return torch.where(wins, losses, 0.0).sum() / wins.sum().clamp(min=1)


def pair_accuracy(rewards: Tensor, values: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """(K,) share of untied pairs that are ranked right, NaN where there are none."""
    wins = (values[:, None] > values[None]) & valid[:, None] & valid[None] & (group[:, None] == group[None])[..., None]
    right = wins & (rewards[:, None] > rewards[None])
    return right.sum((0, 1)) / wins.sum((0, 1)).double()


def noisy_loss(net: NoisyNet, bank: Bank, text: Tensor, rows: Tensor, seed: int, noise_aware: bool) -> Tensor:
    """The loss of one batch: siblings share their noise level t ~ U(0,1) and their noise (Flow-NRG, arXiv 2501.13918).

    text (N,E): the prompts of the bank, read. rows: whose latents; whole groups. noise_aware False: t is always 0.
    """
    generator = torch.Generator().manual_seed(seed)
    # Siblings differ in their latents alone, so that a pair compares what they show and not how noisy they are.
    _, own = torch.unique(bank.group[rows], return_inverse=True)
    t = torch.rand(len(rows), generator=generator)[own] * noise_aware
    clean = bank.latents[rows].float()
    eps = torch.randn(clean.shape, generator=generator)[own]
    rewards = net(_mix(clean, eps, t), t, text[rows])
    return pair_loss(rewards, bank.values[rows], bank.valid[rows], bank.group[rows])


def _mix(clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """(1 - t) x0 + t eps, a level t (R,) a row."""
    share = t.view(-1, *[1] * (clean.dim() - 1))
    return (1 - share) * clean + share * eps


@torch.no_grad()
def measure(
    net: NoisyNet, bank: Bank, text: Tensor, rows: Tensor, levels: Sequence[float], noise_aware: bool = True
) -> Tensor:
    """(len(levels), K) accuracy on the pairs among `rows` at each noise level t, each row with a noise of its own."""
    clean, accuracies = bank.latents[rows].float(), []
    for t in levels:
        eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        level = torch.full((len(rows),), t)
        parts = _split(_mix(clean, eps, level), level, text[rows])
        rewards = torch.cat([net(u, at * noise_aware, c) for u, at, c in parts])
        accuracies.append(pair_accuracy(rewards, bank.values[rows], bank.valid[rows], bank.group[rows]))
    return torch.stack(accuracies)


def _split(*tensors: Tensor) -> Any:
    """Rows of several tensors, in batches."""
    return zip(*(tensor.split(256) for tensor in tensors), strict=True)


@torch.no_grad()
def save_noisy(
    net: NoisyNet,
    folder: Path,
    bank: Bank,
    text: Tensor,
    aspects: Sequence[str],
    model: str,
    noise_aware: bool,
    words: int = 0,
) -> None:
    """Write noisy.safetensors (fp16). Each aspect is divided by its spread over the bank's clean latents, so that one
    guidance strength serves all. model, words: what `text` was read by (see `reader`)."""
    clean = [net(u.float(), torch.zeros(len(u)), c) for u, c in _split(bank.latents, text)]
    spread = torch.cat(clean).std(0).clamp(min=1e-6)
    settings = {
        "aspects": list(aspects),
        "weights": bank.weights.tolist(),
        "latent": list(net.latent),
        "text": model,
        "words": words,
        "noise_aware": noise_aware,
    }
    tensors = {f"net.{name}": tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**tensors, "spread": spread}, folder / FILE, metadata={"settings": json.dumps(settings)})


class NoisyReward:
    """What `genalign fit-reward` made, to guide by: (prompts, x (R,*L), a, s) -> (R,K) with grad to x = a x0 + s eps.

    folder: where noisy.safetensors lies. aspects: the K objectives, each in units of its spread over clean samples.
    weights (K,): what each counts unless a user says otherwise. One that was fitted on clean latents alone takes any x
    for a clean one.

    Raises:
        UsageError: no such file, or one that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            with safe_open(folder / FILE, "pt") as file:
                self._settings = json.loads((file.metadata() or {})["settings"])
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.aspects = tuple(map(str, self._settings["aspects"]))
            self.weights = tuple(map(float, self._settings["weights"]))
            self.latent = tuple(map(int, self._settings["latent"]))
            self.noise_aware = bool(self._settings["noise_aware"])
            self._text, self._words = str(self._settings["text"]), int(self._settings.get("words", 0))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UsageError(
                f"{folder / FILE} holds no fitted reward ({error}); make one: genalign fit-reward RECIPE --out {folder}"
            ) from error

    @property
    def version(self) -> str:
        sums = [[name, tensor.float().sum().item()] for name, tensor in sorted(self._tensors.items())]
        return digest("noisy", self._settings, sums)

    @cached_property
    def _net(self) -> NoisyNet:
        weights = {n.removeprefix("net."): w.float() for n, w in self._tensors.items() if n.startswith("net.")}
        net = NoisyNet(self.latent, weights["text.weight"].shape[1], len(self.aspects))
        net.load_state_dict(weights)
        return net.eval().requires_grad_(False)

    @cached_property
    def _reader(self) -> Callable[[Sequence[str]], Tensor]:
        return reader(self._text, self._words, self.folder)

    def __call__(self, prompts: Sequence[Prompt], x: Tensor, a: float, s: float) -> Tensor:
        if tuple(x.shape[1:]) != self.latent:
            raise UsageError(
                f"the reward in {self.folder} was fitted to latents {self.latent}, but this model samples "
                f"{tuple(x.shape[1:])}; fit one to this model"
            )
        u = (x / (a + s)).float()
        t = u.new_full((len(u),), s / (a + s) if self.noise_aware else 0.0)
        net, text = self._net.to(u.device), self._reader(texts(prompts)).to(u.device)
        return net(u, t, text) / self._tensors["spread"].to(u)


def reader(model: str, words: int, folder: Path) -> Callable[[Sequence[str]], Tensor]:
    """Texts -> features (R,E) of the frozen text tower of an open_clip model, each text read once; followed, where
    `words` is not 0, by their hashed words and pairs of words (R,words), both of length 1."""
    tower = ClipReward(resolve_model(model, folder)).read

    def both(prompts: Sequence[str]) -> Tensor:
        return torch.cat([F.normalize(tower(prompts), dim=1), word_counts(prompts, words)], 1)

    return both if words else tower
