"""The rule verifier: reads a scene without any network, and gives its confidence.

Background by the median of the border; objects by what stands out from it (`blobs`). It never sees the held-out
judge's weights, nor the judge its output.
"""

from collections.abc import Sequence

import numpy as np

from genalign.lab.blobs import Blob, blobs
from genalign.lab.facts import KINDS, check, relation_margin
from genalign.lab.world import BACKGROUNDS, SIZE, Facts


def look(image: np.ndarray) -> tuple[list[Blob], str, float]:
    """Objects, background name and the background's sureness in one (64, 64, 3) image in [0, 1]."""
    seen, ground = blobs(image)
    palette = np.asarray(list(BACKGROUNDS.values()), dtype=np.float32) / 255
    distance = np.abs(palette - ground).mean(axis=1)
    nearest, second = np.argsort(distance)[:2]
    sureness = float(np.clip(1 - distance[nearest] / max(distance[second], 1e-6), 0, 1) * (distance[nearest] < 0.1))
    return seen, list(BACKGROUNDS)[nearest], sureness


def verify(image: np.ndarray, facts: Facts) -> dict[str, tuple[float, float]]:
    """Score and confidence, both in [0, 1], for each kind of fact; (nan, 0) where the prompt does not state it.

    Scores give partial credit: objects is the F1 of seen against stated names, count falls by 1/2 for each object too
    many or too few, relation rises over 12 px around the threshold of `facts.check`, background is 0 or 1.
    `all_facts` is strict. Confidence is the sureness of what the score rests on.

    Raises:
        ValueError: the image is not (64, 64, 3) in [0, 1].
    """
    if image.shape != (SIZE, SIZE, 3) or image.min() < -0.01 or image.max() > 1.01:
        raise ValueError(
            f"the verifier reads one ({SIZE}, {SIZE}, 3) image in [0, 1], not shape {image.shape} "
            f"in [{image.min():.2f}, {image.max():.2f}]"
        )
    objects, background, background_sureness = look(image)
    seen = [(b.name, b.x, b.y) for b in objects]
    strict = check(facts, seen, background)
    stated = {o["name"]: o["count"] for o in facts["objects"]}
    sure = float(np.mean([b.sureness for b in objects])) if objects else 0.5
    found = {b.name for b in objects}
    hits = len(found & set(stated))
    scores = {"objects": 2 * hits / (len(found) + len(stated))}
    off = sum(abs(sum(b.name == name for b in objects) - count) for name, count in stated.items())
    scores["count"] = 0.5**off
    if facts["relation"] is not None:
        scores["relation"] = float(np.clip(0.5 + relation_margin(facts, seen) / 12, 0, 1))
    if facts["background"] is not None:
        scores["background"] = float(background == facts["background"])
    result = {
        kind: (scores[kind], background_sureness if kind == "background" else sure) if kind in scores else (np.nan, 0.0)
        for kind in KINDS
    }
    weakest = min([sure] + [background_sureness] * (facts["background"] is not None))
    result["all_facts"] = (float(bool(strict["all_facts"])), weakest)
    return result


def verify_batch(images: np.ndarray, facts: Sequence[Facts]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`verify` over (B, 64, 64, 3): kind -> (score (B,), confidence (B,)); score nan where a fact is not stated."""
    rows = [verify(image, f) for image, f in zip(images, facts, strict=True)]
    return {
        kind: (np.array([row[kind][0] for row in rows]), np.array([row[kind][1] for row in rows]))
        for kind in ("all_facts", *KINDS)
    }
