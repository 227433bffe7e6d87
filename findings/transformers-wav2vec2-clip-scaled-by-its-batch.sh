#!/usr/bin/env bash
# Wav2Vec2FeatureExtractor scales a clip by how much padding its batch gives it.
#
# Expected: Each clip is normalised to zero mean and unit variance by itself, so its input does not depend on
#   the batch.
# Seen: Without return_attention_mask=True the mean and variance are taken over the padding too: a clip beside
#   one twice as long is scaled up by 1.41, and its padding is not 0.
# Versions: transformers 5.24.0, padding=True.
# Harm: Rewards of speech and music (wav2vec2, HuBERT, MERT, WavLM) give a sample another score depending on the
#   longest sample of its batch; groups of unequal lengths get advantages from their batch mates.
# genalign: Its audio heads compute features from each wave alone. A user's reward needs
#   return_attention_mask=True.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
import transformers
from transformers import Wav2Vec2FeatureExtractor

print("transformers", transformers.__version__)
clip = np.random.default_rng(0).normal(size=16000).astype(np.float32)
longer = np.concatenate([clip, clip])


def scale_in_batch(**options) -> float:
    extractor = Wav2Vec2FeatureExtractor(**options)
    alone = np.asarray(extractor(clip, sampling_rate=16000).input_values[0])
    mate = np.asarray(extractor([clip, longer], sampling_rate=16000, padding=True).input_values[0])[:16000]
    return float(mate.std() / alone.std())


plain, masked = scale_in_batch(), scale_in_batch(return_attention_mask=True)
print(f"scale of the clip in a batch against alone: {plain:.3f}; with return_attention_mask=True {masked:.3f}")
still = abs(plain - 2**0.5) < 0.01 and abs(masked - 1) < 1e-3

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
