"""A reward of three aspects that is arithmetic: one always says something, one abstains, one fails."""

from dataclasses import dataclass, field

import torch

from genalign.types import Scores


@dataclass
class Level:
    """Reads the grey level; `odd` abstains on even prompts, `broken` fails on prompt 3."""

    name: str = "level"
    aspects: tuple[str, ...] = ("grey", "odd", "broken")
    version: str = "1"
    needs: frozenset[str] = frozenset({"image"})
    looks_at: str = "sample"
    rows: list = field(default_factory=list)

    def __call__(self, prompts, media, group=None):
        self.rows.append(len(prompts))
        track = next(iter(media.values())).data
        level = torch.tensor([float(t) for t in track]) if isinstance(track, list) else track.mean((1, 2, 3))
        uid = torch.tensor([p.uid for p in prompts])
        valid = torch.stack([uid >= 0, uid % 2 == 1, uid != 3], dim=1)
        failed = torch.stack([uid < 0, uid < 0, uid == 3], dim=1)
        values = torch.stack([level, 2 * level, 3 * level], dim=1) * valid
        total_valid = torch.ones(len(uid), dtype=torch.bool)
        return Scores(self.aspects, values, valid, failed, values.sum(1), total_valid, torch.ones(3))
