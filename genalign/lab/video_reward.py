"""tiny-video-reward: how good a moving clip looks, moves and shows its caption, by fitted heads; and its card."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genalign.data.comparisons import read_comparisons
from genalign.data.judged import Comparisons, Item
from genalign.files.shipped import shipped
from genalign.lab.moves_pairs import ASPECTS, MISMATCHED, OWN, STRANGE, build_pairs
from genalign.reward.fit import measures
from genalign.reward.fit.fitted import FittedReward
from genalign.reward.fit.losses import expected_win, tie_probability
from genalign.reward.fit.recipe import fit_to_preferences

PROMPTS = {"train": 800, "heldout": 200}
FIGURES = "heldout.json"


def build_video_reward(
    work: Path, out: Path, prompts: dict[str, int] = PROMPTS, overrides: tuple[str, ...] = ()
) -> None:
    """Pairs of both splits in `work`/video-pairs, the fit to the first by the shipped recipe, and what it reaches on
    the second, whose combinations of object and motion are new to it. About five minutes of one core."""
    files = {split: work / "video-pairs" / split / "pairs.jsonl" for split in prompts}
    for split, count in prompts.items():
        if not files[split].exists():
            build_pairs(files[split].parent, split, count)
    recipe = shipped("assets", "tiny-video-reward", "fit.yaml")
    fit_to_preferences(str(recipe), [f"data.file={files['train'].resolve()}", *overrides], out)
    (out / "fit.json").unlink()  # it names the folder of the pairs; FIGURES are of prompts that share no clip with them
    (out / FIGURES).write_text(json.dumps(measure(out, files["heldout"]), indent=1) + "\n")


def measure(folder: Path, pairs: Path) -> dict[str, Any]:
    """What a fitted reward of the three aspects reaches on such pairs.

    aspects: of each the pairs, the accuracy without ties; with ties, where the likeliest of the three outcomes is the
    prediction; and the calibration. falls: fault -> by how many spreads each aspect is lower than of the same caption's
    clips that are right. mismatched: kind of fact -> accuracy of TA where that one is another.
    """
    reward, found = FittedReward(folder), read_comparisons(pairs)
    rows = []
    with torch.no_grad():
        for at in range(0, len(found.items), 8):
            rows.append(reward(*found.load(range(at, min(at + 8, len(found.items))))).values)
    values = torch.cat(rows).double()  # (items, 3)
    aspects = {}
    for column, aspect in enumerate(ASPECTS):
        judged = [pair for pair in found.pairs if pair.aspect == aspect]
        lead = values[[pair.a for pair in judged], column] - values[[pair.b for pair in judged], column]
        aspects[aspect] = agreement(np.array([pair.p for pair in judged]), lead, reward.fit.loss.k)
    faults = faults_of(pairs, found.items)
    falls = _falls(found.items, faults, values * torch.tensor(reward.weights))
    return {"aspects": aspects, "falls": falls, "mismatched": _told(found, faults, values[:, ASPECTS.index("TA")])}


def _falls(items: Sequence[Item], faults: Sequence[str], values: torch.Tensor) -> dict[str, dict[str, float]]:
    right: dict[str, list[torch.Tensor]] = defaultdict(list)
    for item, fault, row in zip(items, faults, values, strict=True):
        if not fault:
            right[item.prompt].append(row)
    falls: dict[str, list[torch.Tensor]] = defaultdict(list)
    for item, fault, row in zip(items, faults, values, strict=True):
        if fault:
            falls[fault.partition(" ")[0]].append(torch.stack(right[item.prompt]).mean(0) - row)
    means = {fault: torch.stack(falls[fault]).mean(0).tolist() for fault in OWN if fault in falls}
    return {fault: dict(zip(ASPECTS, mean, strict=True)) for fault, mean in means.items()}


def _told(found: Comparisons, faults: Sequence[str], alignment: torch.Tensor) -> dict[str, float]:
    told: dict[str, list[bool]] = defaultdict(list)
    for pair in found.pairs:
        worse = faults[pair.b if pair.p > 0.5 else pair.a]
        if pair.aspect == "TA" and pair.p != 0.5 and worse.startswith((MISMATCHED, STRANGE)):
            told[worse.removeprefix(MISMATCHED).strip()].append(
                bool(alignment[pair.a] > alignment[pair.b]) == (pair.p > 0.5)
            )
    return {kind: float(np.mean(hits)) for kind, hits in sorted(told.items())}


def agreement(h: np.ndarray, lead: torch.Tensor, k: float) -> dict[str, float]:
    """Verdicts (N,) against leads (N,) of a reward that was fitted with ties, k as there."""
    likely_tie = (tie_probability(lead, k) > torch.maximum(*_wins(lead, k))).numpy()
    called = np.where(likely_tie, 0.5, (lead > 0).numpy().astype(float))
    ece, brier = measures.calibration(h, expected_win(lead, k).logit().numpy())
    return {
        "pairs": len(h),
        "tied": int((h == 0.5).sum()),
        "accuracy": measures.accuracy(h, lead.numpy()),
        "accuracy with ties": float((called == h).mean()),
        "ece": ece,
        "brier": brier,
    }


def _wins(lead: torch.Tensor, k: float) -> tuple[torch.Tensor, torch.Tensor]:
    """P(a) and P(b) of Bradley-Terry with ties."""
    half = tie_probability(lead, k) / 2
    return expected_win(lead, k) - half, expected_win(-lead, k) - half


def faults_of(pairs: Path, items: Sequence[Item]) -> list[str]:
    """What is wrong with each clip under its caption, by the rows of `build_pairs`."""
    known: dict[tuple[str, str], str] = {}
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        known |= {(row["prompt"], row[f"path_{side}"]): row[f"fault_{side}"] for side in "AB"}
    return [known[item.prompt, item.value] for item in items]


def reward_card(folder: Path) -> str:
    """The text, from the heldout.json that stands in `folder`."""
    figures = json.loads((folder / FIGURES).read_text())
    names = ("pairs", "tied", "accuracy", "accuracy with ties", "ece", "brier")
    lines = []
    for aspect, row in figures["aspects"].items():
        shares = [f"{row[name]:.1%}" for name in ("accuracy", "accuracy with ties")]
        errors = [f"{row[name]:.3f}" for name in ("ece", "brier")]
        lines.append(f"| {' | '.join([aspect, str(row['pairs']), str(row['tied']), *shares, *errors])} |")
    falls = []
    for fault, row in figures["falls"].items():
        falls.append(f"| {fault} | {OWN[fault]} | {' | '.join(f'{row[aspect]:.2f}' for aspect in ASPECTS)} |")
    kinds = ", ".join(f"{kind} {share:.1%}" for kind, share in figures["mismatched"].items())
    counts = f"{PROMPTS['train']:,}"
    table, wide = "\n".join(lines), "\n".join(falls)
    return f"""A reward of three aspects for clips of EmojiWorld moves, a possible training reward: visual quality (VQ),
motion quality (MQ), text alignment (TA). Heads of two layers on frozen features: tiny-clip's view of three frames, the
affine motion from frame to frame and their light, and for TA the words of the prompt, which VQ and MQ do not see. The
sprites are 42 Noto Color Emoji (Apache-2.0 images).

Fitted by Bradley-Terry with ties (VideoReward, arXiv 2501.13918) to pairs of rendered clips: six of each of {counts}
training prompts, of which two are right, two differ in one fact, and two have one fault; also compared under captions
of what the two others show. Never fitted to generated clips, nor to the rule verifier's or the judge's output.

{PROMPTS["heldout"]} other prompts, with held-out combinations of object and motion (steps and decay were chosen on
them). With ties: the likeliest of the three outcomes is the prediction. ece, brier: of the probability that the first
is better, half of a tie's included.

| aspect | {" | ".join(names)} |
|{"---|" * (1 + len(names))}
{table}

How far each fault moves each aspect, in spreads of that aspect, and the aspect that it is about:

| fault | about | {" | ".join(ASPECTS)} |
|---|---|{"---|" * len(ASPECTS)}
{wide}

TA's accuracy where one fact is another, by its kind, and where the clip is of a strange prompt:
{kinds}. Who passes in front of whom it cannot tell. The log says that tiny-clip cuts long captions; the words are
read to their end. The total has each aspect in units of its spread, which is widest in TA: weigh it more where clips of
one prompt differ in little.

```yaml
reward: {{use: tiny-video-reward}}
```

Made by `genalign lab build video-reward`, which leaves its pairs in runs/lab/video-pairs; fit.yaml is the recipe."""
