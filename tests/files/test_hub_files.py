"""Which files of a hub repository are fetched: one copy of the weights. The lists are those of public repositories."""

from __future__ import annotations

from pathlib import Path

import pytest

from genalign.files import places
from genalign.files.hub_files import needed_files

# As stable-diffusion-v1-5/stable-diffusion-v1-5 has them.
STABLE_DIFFUSION = [
    ".gitattributes", "README.md", "model_index.json", "v1-5-pruned-emaonly.ckpt", "v1-5-pruned-emaonly.safetensors",
    "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "v1-inference.yaml", "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json", "safety_checker/model.fp16.safetensors", "safety_checker/model.safetensors",
    "safety_checker/pytorch_model.bin", "safety_checker/pytorch_model.fp16.bin", "scheduler/scheduler_config.json",
    "text_encoder/config.json", "text_encoder/model.fp16.safetensors", "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "unet/config.json",
    "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors",
]  # fmt: skip
WEIGHTS = {
    "safety_checker/model.safetensors",
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
}


def test_one_copy_of_a_pipelines_weights() -> None:
    needed = needed_files(STABLE_DIFFUSION)
    assert {name for name in needed if name.endswith(".safetensors")} == WEIGHTS
    settings = {name for name in STABLE_DIFFUSION if name.endswith((".json", ".txt"))}
    assert set(needed) == WEIGHTS | settings


def test_a_variant_only_where_there_is_nothing_else_and_shards_with_their_index() -> None:
    files = [
        "model_index.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/model.fp16-00001-of-00001.safetensors",
        "text_encoder/model.safetensors.index.fp16.json",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "tokenizer/spiece.model",
        "onnx/unet/model.safetensors",
    ]
    needed = set(needed_files(files))
    assert {name for name in needed if "fp16" in name and name.endswith(".safetensors")} == {
        "transformer/diffusion_pytorch_model.fp16.safetensors"
    }
    assert {"text_encoder/model.safetensors.index.json", "tokenizer/spiece.model"} <= needed
    assert {f"text_encoder/model-0000{k}-of-00002.safetensors" for k in (1, 2)} <= needed
    assert "onnx/unet/model.safetensors" not in needed


def test_a_language_models_weights_stand_at_the_top() -> None:
    files = [
        "config.json", "generation_config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "LICENSE",
        "tokenizer.json", "chat_template.jinja", "onnx/model.onnx", "original/model.safetensors",
        "original/params.json",
    ]  # fmt: skip
    assert needed_files(files) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip


def test_that_is_what_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[object] = []

    def download(model: str, allow_patterns: list[str] | None = None) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda model: STABLE_DIFFUSION)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert places.fetch_model("some/model") == tmp_path

    def offline(model: str) -> list[str]:
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.list_repo_files", offline)
    places.fetch_model("some/model")
    assert asked == [needed_files(STABLE_DIFFUSION), None]
