"""Pairs of moving clips, judged aspect by aspect by how each clip was made: what a reward of videos is fitted to."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy import ndimage

from genalign.files.atomic import replace_file
from genalign.lab.moves import KINDS, caption, change_one_fact, is_stated, sample_facts
from genalign.lab.moves_clips import RATE, SIDE, Clip, choreograph, render
from genalign.lab.moves_degraded import DEGRADATIONS

ASPECTS = ("VQ", "MQ", "TA")  # visual quality, motion quality, text alignment
PAIRS = ((0, 1), (0, 2), (1, 3), (0, 4), (1, 5), (2, 4), (3, 5), (4, 5))  # of the six clips of a prompt
MISMATCHED = "mismatched"  # one fact is another
Levels = tuple[int | None, int | None, int | None]  # of each aspect: 1 right, 0 worse, None not to be judged
Spoil = Callable[[Clip, np.random.Generator], np.ndarray]


def noisy(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """Every pixel of every frame by itself."""
    frames = render(clip, rng)
    return np.asarray(frames + rng.uniform(0.05, 0.2) * rng.standard_normal(frames.shape), np.float32).clip(0, 1)


def blurred(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """All frames alike."""
    sigma = rng.uniform(0.9, 2)
    return np.asarray(ndimage.gaussian_filter(render(clip, rng), (0, 0, sigma, sigma)), np.float32)


def blocky(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """Squares of 3 or 4 pixels have one colour."""
    size = int(rng.integers(3, 5))
    frames = render(clip, rng).reshape(-1, 3, SIDE // size, size, SIDE // size, size)
    return frames.mean((3, 5)).repeat(size, axis=2).repeat(size, axis=3)


# How each fault is made, and what is left of each aspect. A clip whose motion is lost, or whose colours change, no
# longer shows what its prompt says, to a degree that nobody can state: its alignment is not judged.
FAULTS: dict[str, tuple[Spoil, Levels]] = {
    "noisy": (noisy, (0, 1, 1)),
    "blurred": (blurred, (0, 1, 1)),
    "blocky": (blocky, (0, 1, 1)),
    "drifting": (DEGRADATIONS["drifting"][1], (0, 1, None)),
    "jerky": (DEGRADATIONS["jerky"][1], (1, 0, None)),
    "frozen": (DEGRADATIONS["frozen"][1], (1, 0, None)),
    "flickering": (DEGRADATIONS["flickering"][1], (None, 0, None)),
    "vanished": (DEGRADATIONS["vanished"][1], (None, 0, None)),
}
OF_MOTION = ("jerky", "frozen")  # which a clip at rest cannot have
OWN = {fault: ASPECTS[levels.index(0)] for fault, (_, levels) in FAULTS.items()} | {MISMATCHED: "TA"}


def six_clips(rng: np.random.Generator, split: str) -> tuple[str, list[tuple[str, np.ndarray, Levels]]]:
    """A caption and its clips, each by name with what is left of the aspects: two that show it, two that show it but
    for one fact, of different kinds where there are two, and two with a fault each."""
    facts = sample_facts(rng, split)
    kinds = list(rng.permutation([kind for kind in KINDS if is_stated(kind, facts)]))
    moving = facts["moves"][0]["motion"] != ["still"]
    faults = rng.permutation([name for name in FAULTS if moving or name not in OF_MOTION])[:2]
    clips: list[tuple[str, np.ndarray, Levels]] = []
    for _ in range(2):
        clips.append(("right", render(choreograph(facts, rng), rng), (1, 1, 1)))
    for kind in (kinds * 2)[:2]:
        changed = change_one_fact(facts, rng, (kind,))
        clips.append((f"{MISMATCHED} {kind}", render(choreograph(changed, rng), rng), (1, 1, 0)))
    for name in faults:
        spoil, levels = FAULTS[name]
        clips.append((str(name), spoil(choreograph(facts, rng), rng), levels))
    return caption(facts, rng), clips


def verdict(a: int | None, b: int | None) -> str:
    """A, B or same, as VideoGen-RewardBench writes it; "" where nobody can judge, as of two that are both worse."""
    if a is None or b is None or a + b == 0:
        return ""
    return "same" if a == b else "A" if a > b else "B"


def build_pairs(folder: Path, split: str, prompts: int, seed: int = 41) -> Path:
    """pairs.jsonl in the form of VideoGen-RewardBench, with the name of each clip's fault, and the clips, lossless."""
    rng, rows = np.random.default_rng((seed, split == "heldout")), []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(prompts):
        text, clips = six_clips(rng, split)
        names = [f"{number:05d}-{place}.mkv" for place in range(len(clips))]
        for name, (_, frames, _) in zip(names, clips, strict=True):
            write_lossless(frames, folder / name)
        for a, b in PAIRS:
            row = {"prompt": text, "path_A": names[a], "path_B": names[b], "made_A": clips[a][0], "made_B": clips[b][0]}
            levels = zip(ASPECTS, clips[a][2], clips[b][2], strict=True)
            rows.append({**row, **{aspect: verdict(*both) for aspect, *both in levels}, "Overall": ""})
    replace_file(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def write_lossless(frames: np.ndarray, path: Path) -> None:
    """(9,3,48,48) in [0,1] as a Matroska file that loses nothing beyond 8 bits (FFV1)."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(RATE))
        stream.height, stream.width, stream.pix_fmt = SIDE, SIDE, "bgr0"
        for frame in (frames * 255).round().astype(np.uint8).transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
