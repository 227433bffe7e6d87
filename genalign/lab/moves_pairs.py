"""Pairs of moving clips, judged aspect by aspect by how each clip was made: what a reward of videos is fitted to."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from scipy import ndimage

from genalign.files.atomic import replace_file
from genalign.lab.moves import KINDS, caption, change_one_fact, held_out, is_stated, sample_facts
from genalign.lab.moves_clips import RATE, SIDE, Clip, choreograph, render
from genalign.lab.moves_degraded import DEGRADATIONS
from genalign.lab.world import Facts

ASPECTS = ("VQ", "MQ", "TA")  # visual quality, motion quality, text alignment
MISMATCHED, STRANGE = "mismatched", "strange"  # one fact is another; the clip is of another prompt
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


# How each fault is made, and what is left of each aspect: visual quality is that of each frame by itself. A clip whose
# motion is lost, or whose colours change, no longer shows what its prompt says, to a degree that nobody can state: its
# alignment is not judged.
FAULTS: dict[str, tuple[Spoil, Levels]] = {
    "noisy": (noisy, (0, 1, 1)),
    "blurred": (blurred, (0, 1, 1)),
    "blocky": (blocky, (0, 1, 1)),
    "drifting": (DEGRADATIONS["drifting"][1], (0, 1, None)),
    "jerky": (DEGRADATIONS["jerky"][1], (1, 0, None)),
    "frozen": (DEGRADATIONS["frozen"][1], (1, 0, None)),
    "flickering": (DEGRADATIONS["flickering"][1], (1, 0, None)),
    "vanished": (DEGRADATIONS["vanished"][1], (1, 0, None)),
}
OF_MOTION = ("jerky", "frozen")  # which a clip at rest cannot have
OWN = {fault: ASPECTS[levels.index(0)] for fault, (_, levels) in FAULTS.items()} | {MISMATCHED: "TA", STRANGE: "TA"}


@dataclass(frozen=True, eq=False)
class Made:
    """A clip by the name of its file: what it was to show, the fault that it has ("" for none) and what is left of the
    aspects under a caption of these facts; changed: the kind of fact in which it differs from its prompt's others."""

    name: str
    facts: Facts
    frames: np.ndarray
    fault: str = ""
    levels: Levels = (1, 1, 1)
    changed: str = ""


def six_clips(number: int, rng: np.random.Generator, split: str) -> list[Made]:
    """Two that show the same facts, two that show them but for one, of different kinds where there are two, and two
    that show them with a fault each. In the training split nothing shows what is held out."""
    facts = sample_facts(rng, split)
    kinds = list(rng.permutation([kind for kind in KINDS if is_stated(kind, facts)]))
    moving = facts["moves"][0]["motion"] != ["still"]
    faults = rng.permutation([name for name in FAULTS if moving or name not in OF_MOTION])[:2]
    names = [f"{number:05d}-{place}.mkv" for place in range(6)]
    clips = [Made(name, facts, render(choreograph(facts, rng), rng)) for name in names[:2]]
    for name, kind in zip(names[2:4], (kinds * 2)[:2], strict=True):
        other = change_one_fact(facts, rng, (kind,))
        while split == "train" and held_out(other):
            kind = str(rng.choice(kinds))
            other = change_one_fact(facts, rng, (kind,))
        clips.append(Made(name, other, render(choreograph(other, rng), rng), changed=kind))
    for name, fault in zip(names[4:], faults, strict=True):
        spoil, levels = FAULTS[fault]
        clips.append(Made(name, facts, spoil(choreograph(facts, rng), rng), str(fault), levels))
    return clips


def compared(
    clips: Sequence[Made], strangers: Sequence[Made], rng: np.random.Generator
) -> Iterator[tuple[str, Facts, Made, Made]]:
    """Captions, their facts, and two clips that are compared under them, in either order. The changed clips have
    captions of their own too, so that no clip is always the better one."""
    right, again, other, another, worse, faulty = clips
    under = [(right, again), (right, other), (again, another), (right, worse), (again, faulty), (worse, faulty)]
    under += [(other, worse), (another, faulty), *((right, stranger) for stranger in strangers[:2])]
    mine = [(other, right), (other, another), *((other, stranger) for stranger in strangers[2:3])]
    its = [(another, again), (another, other), *((another, stranger) for stranger in strangers[3:4])]
    for pairs in (under, mine, its):
        facts = pairs[0][0].facts
        text = caption(facts, rng)
        for a, b in pairs:
            yield (text, facts, a, b) if rng.random() < 0.5 else (text, facts, b, a)


def levels_under(facts: Facts, clip: Made) -> Levels:
    """What is left of each aspect of a clip under a caption of these facts."""
    return clip.levels if clip.facts == facts else (*clip.levels[:2], 0)


def fault_under(facts: Facts, clip: Made, clips: Sequence[Made]) -> str:
    """What is wrong with a clip under a caption of these facts, in words; "" where nothing is."""
    if clip.facts == facts:
        return clip.fault
    changed = {clip.changed, *(each.changed for each in clips if each.facts == facts)} - {""}
    one = clip in clips and len(changed) == 1 and not clip.fault
    return f"{MISMATCHED} {changed.pop()}" if one else STRANGE


def verdict(a: int | None, b: int | None) -> str:
    """A, B or same, as VideoGen-RewardBench writes it; "" where nobody can judge, as of two that are both worse."""
    if a is None or b is None or a + b == 0:
        return ""
    return "same" if a == b else "A" if a > b else "B"


def build_pairs(folder: Path, split: str, prompts: int, seed: int = 41) -> Path:
    """pairs.jsonl in the form of VideoGen-RewardBench, with each clip's fault, and the clips, lossless."""
    rng, rows = np.random.default_rng((seed, split == "heldout")), []
    folder.mkdir(parents=True, exist_ok=True)
    strangers: list[Made] = []
    for number in range(prompts):
        clips = six_clips(number, rng, split)
        for clip in clips:
            write_lossless(clip.frames, folder / clip.name)
        for text, facts, a, b in compared(clips, strangers, rng):
            levels = zip(ASPECTS, levels_under(facts, a), levels_under(facts, b), strict=True)
            verdicts = {aspect: verdict(*both) for aspect, *both in levels}
            faults = {"fault_A": fault_under(facts, a, clips), "fault_B": fault_under(facts, b, clips)}
            rows.append({"prompt": text, "path_A": a.name, "path_B": b.name, **faults, **verdicts, "Overall": ""})
        strangers = clips[:4]
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
