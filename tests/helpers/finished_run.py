"""A run folder as training leaves it, of a denoiser of two layers."""

import json
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from torch import nn

RANK, ALPHA = 4, 6.0


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_k": nn.Linear(8, 8)})

    def forward(self, x):
        return self.block["to_q"](x) * self.block["to_k"](x)


def finished_run(
    place: Path, base: nn.Module, targets: list[str] | None = None, kind: str = "SD3Transformer2DModel"
) -> Path:
    """A finished run of a pipeline whose denoiser is `base`, of class `kind`; peft itself writes the adapter."""
    folder, model = place / "image-d3po-1", place / "tiny-model"
    model.mkdir()
    (model / "model_index.json").write_text(
        json.dumps({"_class_name": "X", "transformer": ["diffusers", kind], "vae": [None, None]})
    )
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets or ["to_q", "to_k"], init_lora_weights=False)
    torch.manual_seed(1)
    get_peft_model(base, config).save_pretrained(folder / "adapter")
    recipe = {"policy": {"model": str(model)}, "method": {"name": "d3po"}, "reward": "/x/image-hybrid.yaml"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder
