"""Generators whose sampling can be replayed with gradients: diffusion pipelines, and models that write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from genalign.files.places import is_gguf, pipeline_class
from genalign.files.shipped import CONFIG

if TYPE_CHECKING:
    from genalign.media.form import ClipForm
    from genalign.policy.language.turns import Environment
    from genalign.policy.settings import PolicySettings
    from genalign.types import Policy


def modalities_of(model: Path | str) -> frozenset[str]:
    """What a model makes, by its folder or hub id, before any weight loads.

    Raises UsageError where the folder holds no model; GenalignError where the hub cannot be reached.
    """
    name = pipeline_class(model)
    if name is None:
        return frozenset({"text"})
    from genalign.policy.tracks import media_of_class

    return media_of_class(name)


def clip_form_of(settings: PolicySettings, model: Path | str) -> ClipForm | None:
    """The form of clips that a model draws, by its folder or hub id, before any weight loads; None where it draws none.

    Raises UsageError where it is not known how many frames a second they have, or its autoencoder cannot hold so many.
    """
    name = pipeline_class(model)
    if name is None:
        return None
    from genalign.policy.clip_form import form_of

    return form_of(name, settings, model)


def denoises_text(model: Path | str) -> bool:
    """Whether a model that writes text does so by denoising, at several places at a time: a pipeline of diffusers, or
    a model of transformers with a canvas; before any weight loads."""
    if modalities_of(model) != {"text"}:
        return False
    if pipeline_class(model) is not None:
        return True
    if is_gguf(model):
        return False
    return isinstance(model, Path) and "canvas_length" in json.loads((model / CONFIG).read_text(encoding="utf-8"))


def sees_or_hears(model_type: str | None) -> bool:
    """Whether a language model of this kind, as its config.json names it, takes media through its processor."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def load_policy(
    settings: PolicySettings, model_path: Path | str, device: str = "cpu", environment: Environment | None = None
) -> Policy:
    """The policy in a folder: a diffusion pipeline where it holds a model_index.json, else a language model, which may
    see or hear; and either may write text by denoising.

    `settings.writer`, a folder, makes a pipeline the second part of a chain. environment: what `settings.environment`
    names, of a language model.

    Raises UsageError where the folder is neither.
    """
    folder = Path(model_path)
    if settings.writer is not None:
        from genalign.policy.chain import load_chain

        return load_chain(settings, folder, device)
    if denoises_text(folder):
        from genalign.policy.unmasking import load_unmasking

        return load_unmasking(settings, folder, device)
    if pipeline_class(folder) is None:
        from genalign.policy.language import load_language

        return load_language(settings, folder, device, environment)
    from genalign.policy.load import load_diffusion

    clip_form_of(settings, folder)
    return load_diffusion(settings, folder, device)
