"""How much votes help: a script votes on the page's own pairs, and d3po aligns by its votes (docs/demo.md).

`python -m tests.bench.votes` votes as the rule verifier would, wrong in one vote of ten, through the page's own code:
the deck draws pairs, the booth stores votes, the tab Align trains. At 50, 100 and 300 votes that prefer something a run
is trained on those so far, and measured by the held-out judge on prompts that were never trained on; once with pairs by
chance, once with those that fitted rewards dispute. About an hour of one core; a run that is there already is not
trained again (`--out`, default runs/votes-bench), and `--counts 300 --choices chance` does a part.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genalign.demo.align import Alignment
from genalign.demo.choice import of_pictures
from genalign.demo.deck import BASE_PAIRS, Deck
from genalign.demo.models import Models
from genalign.demo.vote import Booth
from genalign.demo.votes import Votes
from genalign.lab.verifier import verify_batch

WRONG = 0.1  # of the votes
EVALUATED = 512
HEADINGS = ("", "pairs", "seed", "votes", "ties beside", "before", "after", "difference, 95% interval")
COUNTS, CHOICES = (50, 100, 300), ("chance", "disputed")
FACTS = ("objects", "count", "relation", "background")


class Script:
    """An annotator who looks at a ballot as the page sends it, and at the two pictures on it, and presses a key."""

    def __init__(self, booth: Booth, votes: Votes, seed: int) -> None:
        self.booth, self.votes, self.random = booth, votes, random.Random(seed)
        self.html = booth.show("script", "script", BASE_PAIRS)

    def vote(self) -> str:
        """One vote; returns what it was."""
        shown = self.booth._shown["script"]
        scores = [self._score(self.votes.place(side), shown.prompt.facts) for side in shown.samples]
        choice = "tie" if scores[0] == scores[1] else "left" if scores[0] > scores[1] else "right"
        if choice != "tie" and self.random.random() < WRONG:
            choice = "right" if choice == "left" else "left"
        (token,) = re.findall(r'data-pair="(\w+)"', self.html)
        self.html = self.booth.vote("script", "script", BASE_PAIRS, choice, token)
        return choice

    @staticmethod
    def _score(file: Path, facts: Any) -> float:
        """Half for the facts that are shown, half for all of them together, as rewards/scene_rules.py has it."""
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))[None].astype(np.float32) / 255
        seen = verify_batch(pixels, [facts])
        stated = [float(seen[fact][0][0]) for fact in FACTS if np.isfinite(seen[fact][0][0])]
        return round((float(np.mean(stated)) + float(seen["all_facts"][0][0])) / 2, 6)


def row(models: Models, folder: Path, count: int, choice: str, steps: int, seed: int) -> dict[str, Any]:
    """Vote until `count` votes prefer something, align, and return what the judge found, or had found before."""
    done = folder / f"{choice}-{seed}-{count}-{steps}.json"
    if done.is_file():
        return json.loads(done.read_text())
    votes = Votes(folder / f"{choice}-{seed}-votes")
    rank = of_pictures(votes) if choice == "disputed" else None
    script = Script(Booth(Deck(models, votes, seed=seed + votes.count(), rank=rank), votes), votes, seed)
    while sum(vote.decided is not None for vote in votes.all()) < count:
        script.vote()
    alignment = Alignment(models, votes, EVALUATED)
    run = alignment.start("d3po", steps)
    while alignment.state(run.name).state == "training":
        time.sleep(1)
    found = alignment.state(run.name)
    if found.state != "finished":
        raise SystemExit(f"{run} ended early: {found.said}; see its train.log")
    judged = json.loads((run / "eval.json").read_text())["metrics"]["judge/all_facts"]
    given = votes.all()
    result = {"choice": choice, "seed": seed, "votes": count, "ties": len(given) - count, "steps": steps}
    result |= {key: judged[key] for key in ("before", "after", "delta", "ci95")} | {"run": run.name}
    done.write_text(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/votes-bench"))
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--choices", nargs="+", default=CHOICES, choices=CHOICES)
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    models = Models("image-d3po", [], given.out / "runs")
    print(f"{' | '.join(HEADINGS).strip()} |\n{'|---' * (len(HEADINGS) - 1)}|")
    for choice in given.choices:
        for seed in given.seeds:
            for count in sorted(given.counts):
                found = row(models, given.out, count, choice, given.steps, seed)
                low, high = (100 * bound for bound in found["ci95"])
                print(
                    f"| {choice} | {seed} | {count} | {found['ties']} | {found['before']:.1%} | {found['after']:.1%} | "
                    f"{low:+.1f} to {high:+.1f} points |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
