"""A diffusion pipeline from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from genalign.files.untrusted import check_model
from genalign.policy.diffusion import DiffusionPolicy
from genalign.policy.settings import PolicySettings
from genalign.types import UsageError


def load_diffusion(settings: PolicySettings, folder: Path, device: str) -> DiffusionPolicy:
    """The pipeline in a folder; only safetensors and only local files are read.

    Raises UsageError where diffusers cannot read it.
    """
    from diffusers import DiffusionPipeline

    check_model(folder)
    try:
        index = json.loads((folder / "model_index.json").read_text())
        # An absent component must be given as None, else diffusers warns that it expected one.
        absent = {name: None for name, kind in index.items() if kind == [None, None]}
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=getattr(torch, settings.dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **absent,
        )
    except Exception as error:  # diffusers raises whatever the first broken file raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"the pipeline in {folder} cannot be loaded: {reason}") from error
    return DiffusionPolicy(pipeline.to(device), settings)
