"""tiny-video-judge: the held-out judge of EmojiWorld moves, which was never, and must never be, a training reward.

It differs from the rule verifier in everything but the meaning of the facts: a network that marks each object's centre
in every frame, and reads from what stands there over time how it moves. Trained on rendered clips alone.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from genalign.lab.facts_judge import FactsJudge
from genalign.lab.judge import shake
from genalign.lab.moves import DEPTHS, DIRECTIONS, KINDS, MOTIONS, SPEEDS, change_one_fact, is_stated, sample_facts
from genalign.lab.moves_clips import FRAMES, RATE, SIDE, Clip, choreograph, render
from genalign.lab.moves_facts import check
from genalign.lab.sprites import sprites
from genalign.lab.world import BACKGROUNDS, Facts
from genalign.training.fit import fit
from genalign.types import Media, Prompt, Track, UsageError

STRIDE = 4
GRID = SIDE // STRIDE
MOST = 2  # objects of a clip
PRESENT = 0.3  # mean over the frames of the surest mark of an object that is there
BACKGROUND, MOTION = 0.3, 0.5  # weights of the losses beside the marks'


class _Block(nn.Module):
    """Frames by themselves, then each place and channel over three frames."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip
        self.time = nn.Parameter(torch.randn(3, width, 1, 1) / 3)  # as sums: such a Conv3d is slow on a CPU

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.frame(x)
        padded = F.pad(x.unflatten(0, (-1, FRAMES)), (0, 0, 0, 0, 0, 0, 1, 1))  # (B, 11, D, 12, 12)
        mixed = torch.stack([weight * padded[:, k : k + FRAMES] for k, weight in enumerate(self.time)]).sum(dim=0)
        return x + mixed.flatten(0, 1)


class MovesNet(nn.Module):
    """Marks of every object in every frame; then, of two objects that are named to it, how they move."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), _Block(width), _Block(width),
            nn.GroupNorm(8, width), nn.SiLU(),
        )  # fmt: skip
        self.marks = nn.Conv2d(width, len(sprites()), 1)
        self.ground = nn.Linear(width, len(BACKGROUNDS))
        self.over_time = nn.Sequential(
            nn.Conv1d(width + 2, width, 3, padding=1), nn.SiLU(), nn.Conv1d(width, width, 3, padding=1), nn.SiLU()
        )
        self.motion = nn.Linear(FRAMES * width, len(MOTIONS))
        self.speed = nn.Linear(FRAMES * width, len(SPEEDS))
        self.depth = nn.Linear(2 * FRAMES * width, 1 + len(DEPTHS))
        nn.init.constant_(self.marks.bias, -4.6)  # type: ignore[arg-type]  # centres are rare: focal loss needs it

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Clips (B, 9, 3, 48, 48) in [0, 1] -> features (B, 9, D, 12, 12); logits of marks (B, 9, K, 12, 12) and of
        the background (B, 6)."""
        features = self.stem(clips.flatten(0, 1) * 4 - 2)
        marks = self.marks(features).unflatten(0, (-1, FRAMES))
        features = features.unflatten(0, (-1, FRAMES))
        return features, marks, self.ground(features.mean(dim=(1, 3, 4)))

    def moving(self, features: Tensor, marks: Tensor, names: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Motion (B, 2, M) and speed (B, 2, 2) of the objects `names` (B, 2), and (B, 3) whether the first passes the
        second: not at all, in front of it, or behind."""
        picked = marks.gather(2, names[:, None, :, None, None].expand(-1, FRAMES, -1, GRID, GRID))
        attention = picked.flatten(3).softmax(dim=3)  # (B, 9, 2, 144)
        cells = torch.linspace(-1, 1, GRID, dtype=marks.dtype, device=marks.device)
        places = torch.stack(torch.meshgrid(cells, cells, indexing="ij")).flatten(1)  # (2, 144)
        seen = torch.cat([features.flatten(3), places.expand(*features.shape[:2], -1, -1)], dim=2)
        tracks = torch.einsum("bfoc,bfdc->bodf", attention, seen)  # (B, 2, D + 2, 9)
        read = self.over_time(tracks.flatten(0, 1)).flatten(1).unflatten(0, (-1, MOST))
        return self.motion(read), self.speed(read), self.depth(read.flatten(1))


@torch.no_grad()
def seen_facts(net: MovesNet, clips: Tensor) -> list[dict[str, Any]]:
    """What the network sees in clips (B, 9, 3, 48, 48), written as facts; every direction has its speed."""
    features, marks, ground = net(clips)
    surest, names = marks.sigmoid().amax(dim=(3, 4)).mean(dim=1).topk(MOST + 1)  # (B, 3)
    there = surest > PRESENT
    two = there[:, 1:2]  # in the order of the sheet, as the network was taught
    names[:, :MOST] = torch.where(two, names[:, :MOST].sort(dim=1).values, names[:, :MOST])
    motion, speed, depth = (logits.argmax(dim=-1) for logits in net.moving(features, marks, names[:, :MOST]))
    rows = []
    for row, found in enumerate(names.tolist()):
        moves = []
        for k, name in enumerate(found):
            if there[row, k]:
                read = min(k, MOST - 1)  # one too many is wrong however it moves
                words, pace = MOTIONS[int(motion[row, read])], SPEEDS[int(speed[row, read])]
                straight = len(words) == 1 and words[0] in DIRECTIONS
                moves.append(
                    {"name": list(sprites())[name], "motion": list(words), "speed": pace if straight else None}
                )
        passing = _of_the_mover(moves, DEPTHS[int(depth[row]) - 1]) if len(moves) == 2 and depth[row] > 0 else None
        rows.append({"moves": moves, "passing": passing, "background": list(BACKGROUNDS)[int(ground[row].argmax())]})
    return rows


def _of_the_mover(moves: list[dict[str, Any]], depth: str) -> list[str]:
    """The first is `depth` the second; facts say so of the one that moves."""
    first, second = (move["name"] for move in moves)
    if moves[0]["motion"] != ["still"]:
        return [first, depth, second]
    return [second, DEPTHS[1 - DEPTHS.index(depth)], first]


@lru_cache(maxsize=2)
def _load(folder: Path) -> MovesNet:
    settings = json.loads((folder / "config.json").read_text())
    net = MovesNet(settings["width"])
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()})
    return net.eval().requires_grad_(False)


class MovesJudge(FactsJudge):
    """Held-out reward of EmojiWorld moves: all_facts, object, motion, speed, order, passing and background, as
    `moves_facts.check` defines them.

    Raises:
        UsageError: its weights are missing, a prompt without such facts, or clips that are not (B, 9, 3, 48, 48).
    """

    name = "moves-judge"
    part = "video-judge"
    needs = frozenset({"video", "facts.moves"})
    aspects = ("all_facts", *KINDS)
    weights = (1.0, *[0.0] * len(KINDS))

    def seen(self, prompts: Sequence[Prompt], media: Media) -> list[dict[str, Any]]:
        clips = media["video"].data
        if not isinstance(clips, Tensor) or clips.shape[1:] != (FRAMES, 3, SIDE, SIDE):
            raise UsageError(f"this judge reads clips of shape (B, {FRAMES}, 3, {SIDE}, {SIDE}); give it EmojiWorld's")
        if any("moves" not in prompt.facts for prompt in prompts):
            raise UsageError("this judge needs prompts with facts of moves (facts.moves); use emojimoves/*.jsonl")
        net, found = _load(self.folder), []
        for start in range(0, len(prompts), 32):
            found += seen_facts(net, clips[start : start + 32].float().cpu().clamp(0, 1))
        return found

    def checked(self, stated: Facts, seen: Facts) -> dict[str, bool | None]:
        return check(stated, seen)


def save_judge(net: MovesNet, folder: Path) -> None:
    """Write config.json and model.safetensors (fp16)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.half().contiguous() for name, t in net.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"width": net.ground.in_features}) + "\n")


def build_judge(work: Path, steps: int = 3000, rows: int = 24, seed: int = 17) -> MovesNet:
    """Train on rendered clips and true facts alone: marks by focal loss (Zhou et al. 2019, "Objects as Points",
    equation 1), all else by cross-entropy. Never on generated clips, nor on the verifier's output."""
    torch.manual_seed(seed)
    net = MovesNet()

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng((seed, step))
        clips = [choreograph(sample_facts(rng), rng) for _ in range(rows)]
        right = [truth(clip) for clip in clips]
        names, motion, speed, depth, ground = (torch.tensor(column) for column in zip(*right, strict=True))
        heat = torch.from_numpy(np.stack([splats(clip) for clip in clips]))
        features, marks, colours = net(shaken(np.stack([render(clip, rng) for clip in clips]), rng))
        moving, pace, passing = net.moving(features, marks, names.clamp(min=0))
        loss = focal(marks, heat) + BACKGROUND * F.cross_entropy(colours, ground)
        of_moves = F.cross_entropy(moving.flatten(0, 1), motion.flatten(), ignore_index=-1)
        of_speed = F.cross_entropy(pace.flatten(0, 1), speed.flatten(), ignore_index=-1, reduction="sum")
        of_depth = F.cross_entropy(passing, depth, ignore_index=-1, reduction="sum")
        speeds, pairs = (speed >= 0).sum().clamp(min=1), (depth >= 0).sum().clamp(min=1)
        return loss + MOTION * (of_moves + of_speed / speeds + of_depth / pairs)

    fit(net, loss_of, steps=steps, learning_rate=2e-3, state=work / "video-judge.safetensors", ema_decay=0.99)
    return net


def judge_accuracy(folder: Path, count: int = 500, seed: int = 31) -> tuple[float, dict[str, float]]:
    """Share of clean held-out clips judged wholly right, and of captions with a fact changed rejected, by its kind."""
    rng, judge = np.random.default_rng(seed), MovesJudge(folder)
    facts = [sample_facts(rng, "heldout") for _ in range(count)]
    clips = torch.from_numpy(np.stack([render(choreograph(each, rng), rng) for each in facts]))
    right = judge([Prompt("", facts=each) for each in facts], Media(video=Track(clips, RATE))).total.mean()
    rejected = {}
    for kind in KINDS:
        rows = [k for k, each in enumerate(facts) if is_stated(kind, each)]
        wrong = [Prompt("", facts=change_one_fact(facts[k], rng, (kind,))) for k in rows]
        rejected[kind] = float(1 - judge(wrong, Media(video=Track(clips[rows], RATE))).total.mean())
    return float(right), rejected


Truth = tuple[list[int], list[int], list[int], int, int]


def truth(clip: Clip) -> Truth:
    """Names (2), motions (2), speeds (2), passing and background as classes; -1 is what nothing is to be read of.

    The network is given objects in the order of the sheet: the passing fact is about the first by that order.
    """
    sheet, facts = list(sprites()), clip.facts
    moves = sorted(facts["moves"], key=lambda move: sheet.index(move["name"]))
    blank = [-1] * (MOST - len(moves))
    names = [sheet.index(move["name"]) for move in moves] + blank
    motion = [MOTIONS.index(tuple(move["motion"])) for move in moves] + blank
    speed = [SPEEDS.index(move["speed"]) if move["speed"] else -1 for move in moves] + blank
    depth = -1 if blank else 0
    if facts["passing"] is not None:
        mover, word, _ = facts["passing"]
        depth = 1 + DEPTHS.index(word)
        depth = depth if moves[0]["name"] == mover else 3 - depth
    return names, motion, speed, depth, list(BACKGROUNDS).index(clip.background)


def splats(clip: Clip) -> np.ndarray:
    """(9, K, 12, 12) float32: 1 in the cell of each centre, and a bell of 0.7 cells around it."""
    heat, sheet = np.zeros((FRAMES, len(sprites()), GRID, GRID), np.float32), list(sprites())
    cells = (np.arange(GRID) + 0.5) * STRIDE
    for path in clip.paths:
        for frame, (x, y, *_) in enumerate(path.states):
            dx, dy = (cells - x) / STRIDE, (cells - y) / STRIDE
            bell = np.exp(-(dy[:, None] ** 2 + dx[None] ** 2) / (2 * 0.7**2))
            bell[np.abs(dy).argmin(), np.abs(dx).argmin()] = 1.0
            heat[frame, sheet.index(path.name)] = bell
    return heat


def focal(logits: Tensor, heat: Tensor) -> Tensor:
    """Mean over the centres; `heat` is 1 in their cells."""
    p, hit = logits.sigmoid().clamp(1e-5, 1 - 1e-5), heat == 1
    loss = torch.where(hit, -((1 - p) ** 2) * p.log(), -((1 - heat) ** 4) * p**2 * (1 - p).log())
    return loss.sum() / hit.sum()


def shaken(clips: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Clips (B, 9, 3, 48, 48) with the gain, offset, blur and noise of tiny-judge's scenes, all frames alike."""
    tall = clips.transpose(0, 1, 3, 4, 2).reshape(len(clips), FRAMES * SIDE, SIDE, 3)
    return shake(tall, rng).unflatten(2, (FRAMES, SIDE)).transpose(1, 2)
