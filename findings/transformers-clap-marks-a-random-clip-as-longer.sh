#!/usr/bin/env bash
# CLAP's feature extractor marks one short clip of a batch as a long one, drawn from numpy's global generator.
#
# Expected: is_longer is true of clips longer than ten seconds, so a clip's embedding follows from the clip.
# Seen: Of a batch with no such clip one is drawn by np.random and marked. A fusion model then reads it by another
#   path, and its embedding changes. A clip that is alone is always marked; which one of a batch is depends on
#   numpy's global seed and on everything that has drawn from it before.
# Versions: transformers 5.24.0, ClapFeatureExtractor with truncation "fusion", ClapModel with enable_fusion (as
#   clap-htsat-fused has them).
# Harm: A CLAP reward of the same short clips differs between two calls, between a clip alone and in its batch,
#   and in one row of every batch from the other rows: an advantage that the samples did not earn.
# genalign: reward/heads/audio.py makes the features of each wave alone and refuses fusion models.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import torch
import transformers
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
config = ClapConfig(
    text_config=dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        projection_dim=8,
    ),
    audio_config=dict(
        patch_embeds_hidden_size=16, hidden_size=128, depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1],
        projection_dim=8, enable_fusion=True,
    ),
    projection_dim=8,
)
model, extractor = ClapModel(config).eval(), ClapFeatureExtractor()
second = [0.1 * np.random.default_rng(i).normal(size=48000).astype(np.float32) for i in range(4)]  # of one second


def embedded(clips: list[np.ndarray], seed: int) -> tuple[list[bool], torch.Tensor]:
    np.random.seed(seed)
    inputs = extractor(clips, sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        return inputs["is_longer"].flatten().tolist(), model.get_audio_features(**inputs).pooler_output


marks, embeddings = zip(*(embedded(second, seed) for seed in (0, 1)))
alone, embedding = embedded(second[2:3], 0)
for seed in (0, 1):
    print(f"numpy seed {seed}: longer than ten seconds are {marks[seed]}")
cosine = torch.cosine_similarity(embeddings[0], embeddings[1], dim=1)
print("cosine of each clip's embeddings at the two seeds:", [round(value, 3) for value in cosine.tolist()])
own = torch.cosine_similarity(embedding[0], embeddings[0][2], dim=0).item()
print(f"the third clip alone: {alone}, cosine to itself in the batch {own:.3f}")
still = sum(marks[0]) == sum(marks[1]) == 1 and marks[0] != marks[1] and alone == [True]
changed = torch.tensor(marks[0]) | torch.tensor(marks[1])
still = still and bool((cosine[changed] < 0.99).all() and (cosine[~changed] > 0.9999).all()) and own < 0.99

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
