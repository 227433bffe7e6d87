"""tiny-judge: the held-out judge. A small detector that was never, and must never be, a training reward.

It differs from the rule verifier in everything but the meaning of the facts: a convolutional network, trained on
rendered scenes with blur, noise, colour and size changes, that marks each object's centre on a 16x16 grid.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.files.shipped import shipped
from genalign.lab.facts import KINDS, check
from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS, SIZE
from genalign.types import Media, Prompt, Scores, UsageError

GRID = 16
STRIDE = SIZE // GRID


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class JudgeNet(nn.Module):
    """(B, 3, 64, 64) in [0, 1] -> centre logits (B, K, 16, 16) and background logits (B, 6)."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(width // 2), nn.SiLU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1), _Residual(width), _Residual(width),
        )  # fmt: skip
        self.deep = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), _Residual(width), _Residual(width))
        self.join = nn.Sequential(_Residual(width), nn.BatchNorm2d(width), nn.SiLU())
        self.centres = nn.Conv2d(width, len(sprites()), 1)
        self.ground = nn.Linear(width, len(BACKGROUNDS))
        nn.init.constant_(self.centres.bias, -4.6)  # type: ignore[arg-type]  # centres are rare: focal loss needs it

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(images * 4 - 2)
        joined = self.join(fine + F.interpolate(self.deep(fine), scale_factor=2.0))
        return self.centres(joined), self.ground(joined.mean(dim=(2, 3)))


def detect(centre_logits: Tensor, threshold: float = 0.4) -> list[list[tuple[str, float, float]]]:
    """Peaks of (B, K, 16, 16) logits as (name, x, y) in pixels; of several names at one place the surest stays."""
    heat = centre_logits.sigmoid()
    best, name = heat.max(dim=1)  # (B, 16, 16)
    peak = (best == F.max_pool2d(best[:, None], 5, stride=1, padding=2)[:, 0]) & (best > threshold)
    names = list(sprites())
    seen: list[list[tuple[str, float, float]]] = [[] for _ in range(len(heat))]
    for row, y, x in peak.nonzero().tolist():
        seen[row].append((names[int(name[row, y, x])], (x + 0.5) * STRIDE, (y + 0.5) * STRIDE))
    return seen


@lru_cache(maxsize=2)
def _load(folder: Path) -> JudgeNet:
    settings = json.loads((folder / "config.json").read_text())
    net = JudgeNet(settings["width"])
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return net.eval().requires_grad_(False)


class Judge:
    """Held-out reward of EmojiWorld: aspects all_facts, objects, count, relation, background, each 1 or 0.

    An aspect abstains where the prompt does not state it. total is all_facts.

    Raises:
        UsageError: a prompt without EmojiWorld facts, or images that are not (B, 3, 64, 64).
    """

    name = "judge"
    needs = frozenset({"image", "facts.objects"})
    aspects = ("all_facts", *KINDS)
    looks_at: Literal["sample"] = "sample"
    differentiable = False

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder else shipped("assets", "tiny-judge")
        weights = self.folder / "model.safetensors"
        if not weights.exists():
            raise UsageError(f"the judge's weights {weights} are missing; make them with `genalign lab build judge`")
        self.version = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], media: Media, group: Tensor | None = None) -> Scores:
        images = media["image"].data
        if not isinstance(images, Tensor) or images.shape[1:] != (3, SIZE, SIZE):
            raise UsageError(f"the judge reads images of shape (B, 3, {SIZE}, {SIZE}); give it EmojiWorld's")
        if any("objects" not in p.facts for p in prompts):
            raise UsageError("the judge needs prompts with EmojiWorld facts (facts.objects); use emojiworld/*.jsonl")
        net = _load(self.folder)
        rows: list[dict[str, bool | None]] = []
        for start in range(0, len(prompts), 64):
            centres, ground = net(images[start : start + 64].float().cpu().clamp(0, 1))
            colours = [list(BACKGROUNDS)[i] for i in ground.argmax(dim=1).tolist()]
            chunk = prompts[start : start + 64]
            rows += [check(p.facts, s, c) for p, s, c in zip(chunk, detect(centres), colours, strict=True)]
        stated = [[row[a] is not None for a in self.aspects] for row in rows]
        values = torch.tensor([[float(bool(row[a])) for a in self.aspects] for row in rows]).reshape(-1, 5)
        valid = torch.tensor(stated, dtype=torch.bool).reshape(-1, 5)
        return Scores(
            names=self.aspects,
            values=values,
            valid=valid,
            failed=torch.zeros_like(valid),
            total=values[:, 0],
            total_valid=torch.ones(len(rows), dtype=torch.bool),
            weights=torch.tensor([1.0, 0, 0, 0, 0]),
        )

    def update(self, scores: Scores, step: int) -> None:
        """The judge has no state."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise ValueError(f"the judge has no state, but was given {sorted(state)}")


def save_judge(net: JudgeNet, folder: Path) -> None:
    """Write config.json and model.safetensors (fp16)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"width": net.ground.in_features}) + "\n")


def build_judge(work: Path, steps: int = 1600, rows: int = 32, seed: int = 7) -> JudgeNet:
    """Train on rendered scenes and true facts alone: centre heat maps by focal loss (Zhou et al. 2019, "Objects as
    Points", equation 1), background by cross-entropy. Never on generated images, nor on the verifier's output."""
    from genalign.lab.world import place, render, sample_facts
    from genalign.training.fit import fit

    torch.manual_seed(seed)
    net = JudgeNet()
    names = list(sprites())

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((seed, step))
        images, heat = [], np.zeros((rows, len(names), GRID, GRID), dtype=np.float32)
        ground = np.zeros(rows, dtype=np.int64)
        cells = (np.arange(GRID) + 0.5) * STRIDE
        for row in range(rows):
            scene = place(sample_facts(rng), rng)
            images.append(render(scene, rng))
            ground[row] = list(BACKGROUNDS).index(scene.background)
            for name, left, top, size in scene.placed:
                dx = (cells - (left + size / 2)) / STRIDE
                dy = (cells - (top + size / 2)) / STRIDE
                splat = np.exp(-(dy[:, None] ** 2 + dx[None] ** 2) / (2 * 0.7**2))
                splat[np.abs(dy).argmin(), np.abs(dx).argmin()] = 1.0
                plane = heat[row, names.index(name)]
                np.maximum(plane, splat, out=plane)
        return shake(torch.from_numpy(np.stack(images)), rng), torch.from_numpy(heat), torch.from_numpy(ground)

    def loss_of(step: int) -> Tensor:
        images, heat, ground = batch(step)
        centres, colours = net(images)
        p = centres.sigmoid().clamp(1e-5, 1 - 1e-5)
        hit = heat == 1
        focal = torch.where(hit, -((1 - p) ** 2) * p.log(), -((1 - heat) ** 4) * p**2 * (1 - p).log())
        return focal.sum() / hit.sum() + 0.3 * F.cross_entropy(colours, ground)

    fit(net, loss_of, steps=steps, learning_rate=2e-3, state=work / "judge.safetensors", ema_decay=0.99)
    net.train()
    for module in net.modules():  # running statistics of the averaged weights
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for step in range(steps, steps + 60):
            net(batch(step)[0])
    return net.eval()


def shake(images: np.ndarray | Tensor, rng: np.random.Generator) -> Tensor:
    """(B, H, W, 3) -> (B, 3, H, W): per-image gain, offset, blur by down- and upscaling, pixel noise."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2)
    rows = len(x)
    gain = torch.from_numpy(rng.uniform(0.92, 1.08, (rows, 3, 1, 1)).astype(np.float32))
    offset = torch.from_numpy(rng.uniform(-0.03, 0.03, (rows, 3, 1, 1)).astype(np.float32))
    x = x * gain + offset
    coarse = F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), size=x.shape[-2:], mode="bilinear")
    share = torch.from_numpy(rng.uniform(0, 1, (rows, 1, 1, 1)).astype(np.float32)) ** 2
    x = x + share * (coarse - x)
    noise = torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
    level = torch.from_numpy(rng.uniform(0, 0.08, (rows, 1, 1, 1)).astype(np.float32))
    return (x + level * noise).clamp(0, 1)
