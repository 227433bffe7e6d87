"""docs/capacity.md: its figures follow from its formulas, and from the shapes of the models that it works out."""

from __future__ import annotations

import pytest

from genalign.run.memory import Memory
from genalign.run.recipe import load_recipe
from tests.contracts.tree import ROOT

PAGE = (ROOT / "docs" / "capacity.md").read_text()


def row(section: str, begins: str) -> str:
    """The bytes in a section's row."""
    (found,) = (line for line in section.splitlines() if line.startswith(f"| {begins}"))
    return found.split("|")[2].strip()


@pytest.mark.parametrize(
    ("heading", "recipe", "ranks", "passes", "unit"),
    [
        ("SD3.5 Medium on 8", "sd35-medium-flow-grpo", 8, 9 * (4 * 9 + 2 * 10 + 9), 1e6),
        ("Wan 2.2 A14B on 512", "video-flow-grpo-wan-2.2-a14b", 512, 8 * (2 * 2 + 2 * 10 + 2), 1e9),
    ],
)
def test_figures_follow_from_shapes(heading: str, recipe: str, ranks: int, passes: int, unit: float) -> None:
    section = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    memory = Memory(load_recipe(recipe))
    footprint, settings = memory.footprint, memory.settings
    sizes = {name: footprint.weights(name, settings) for name in footprint.parts}
    denoiser = sizes[footprint.denoisers[0]]
    texts = sum(size for name, size in sizes.items() if name.startswith("text_encoder"))
    many = f"{len(footprint.denoisers)} x " if len(footprint.denoisers) > 1 else ""
    weights = f"{many}{denoiser / 1e9:.2f} + {texts / 1e9:.2f} + {sizes['vae'] / 1e9:.2f} GB"
    begins = "experts" if many else "denoiser"
    assert row(section, begins) == weights
    trained, link = footprint.trained, 2 * (ranks - 1) / ranks * 4 * footprint.trained
    assert f"{trained / 1e6:.1f} M weights" in section
    name, digits = ("GB", 2) if unit == 1e9 else ("MB", 1)
    assert row(section, "both adapters" if many else "adapter") == f"{20 * trained / unit:.{digits}f} {name}"
    assert row(section, "gradient") == f"{4 * trained / 1e6:.1f} MB"
    assert row(section, "over each link, `replicated`") == f"{link / unit:.{digits}f} {name} a step"
    gathered = (ranks - 1) / ranks * denoiser * passes
    assert row(section, "over each link, `fsdp2`") == f"{gathered / 1e12:.2f} TB a step"
    assert row(section, "a checkpoint") == f"{16 * trained / unit:.{digits}f} {name}"
    assert f"P {passes} |" in section
    if many:
        one = denoiser + 20 * trained + 5.17e9
        assert row(section, "peak with") == f"{one / 1e9:.1f} GB"
