"""What a rank computes and sends as ranks are added to one step. `python -m tests.bench.test_bench_ranks`.

CPU seconds of a rank, since ranks may share a core: where each has its own, a step lasts as long as the slowest.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.helpers.traffic import on_ranks

PROMPTS = 4


def main() -> None:
    print(f"a step of Flow-GRPO on a tiny SD3, {PROMPTS} prompts over all ranks\n")
    print(
        "| backend | ranks | CPU s of the slowest | over one rank's, per rank | passes of a rank | bytes it hands in |"
    )
    print("|---|---|---|---|---|---|")
    for backend in ("replicated", "fsdp2"):
        alone = 0.0
        for world in (1, 2, 4):
            with tempfile.TemporaryDirectory() as folder:
                case = "plain", backend
                found = on_ranks(world, Path(folder), [case], prompts=PROMPTS, steps=4)[case]
            slowest = max(found, key=lambda rank: rank["seconds"])
            seconds = slowest["seconds"] / slowest["steps"]
            alone = alone or seconds
            sent = sum(slowest["sent"].values()) + sum(slowest["small"].values())
            passes = (slowest["passes"]["plain"] + slowest["passes"]["graph"]) / slowest["steps"]
            cells = f"{seconds:.2f} | {world * seconds / alone:.2f} | {passes:.0f} | {sent / slowest['steps']:,.0f}"
            print(f"| {backend} | {world} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
