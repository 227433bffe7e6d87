#!/usr/bin/env bash
# What LongCatAudioDiTPipeline samples with where its folder names another flow scheduler than Euler's.
#
# Expected: The scheduler that a pipeline is given, or is saved with, is the one that it samples with; one that it cannot
#   use is refused.
# Seen: Any scheduler but FlowMatchEulerDiscreteScheduler is exchanged at construction, without a warning, for one with
#   shift 1 and inverted noise levels, whose times run the other way. A pipeline that samples with Heun's class at shift
#   3 is saved with that name in model_index.json, loads with another scheduler, and its sound is another one than by
#   Euler's at the shift that was saved.
# Versions: diffusers 0.42.1, LongCatAudioDiTPipeline; random weights.
# Harm: A model that was tuned with its own scheduler is loaded with noise levels that it never saw, in the other order.
# genalign: Loading such a folder says which scheduler stands in place of which; tiny-music is saved with Euler's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 accelerate==1.15.0 sentencepiece==0.2.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import json
import warnings

import diffusers
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

print("torch", torch.__version__, "diffusers", diffusers.__version__)
torch.manual_seed(0)
tokens = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
tokenizer = T5Tokenizer(vocab=[(token, -float(k)) for k, token in enumerate(tokens)], extra_ids=0, model_max_length=64)
text = UMT5EncoderModel(
    UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
).eval()
vae = LongCatAudioDiTVae(
    channels=8, c_mults=[1, 2], strides=[2, 4], latent_dim=8, encoder_latent_dim=16, downsampling_ratio=8,
    sample_rate=800,
).eval()
transformer = LongCatAudioDiTTransformer(
    dit_dim=32, dit_depth=1, dit_heads=2, dit_text_dim=32, latent_dim=8, text_conv=False
).eval()
for parameter in transformer.parameters():
    if not parameter.any():
        torch.nn.init.normal_(parameter, std=0.1)
parts = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "transformer": transformer}

given = FlowMatchHeunDiscreteScheduler(shift=3.0)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    pipeline = LongCatAudioDiTPipeline(**parts, scheduler=given)
has = pipeline.scheduler
print("given", type(given).__name__, "has", type(has).__name__, dict(has.config)["shift"], has.config.invert_sigmas)
assert not warned
assert isinstance(has, FlowMatchEulerDiscreteScheduler)
assert (has.config.shift, has.config.invert_sigmas) == (1.0, True)

pipeline.scheduler = given
pipeline.save_pretrained("saved")
named = json.load(open("saved/model_index.json"))["scheduler"][1]
loaded = LongCatAudioDiTPipeline.from_pretrained("saved")
print("saved as", named, "loaded with", type(loaded.scheduler).__name__)
assert named == "FlowMatchHeunDiscreteScheduler"
assert type(loaded.scheduler) is FlowMatchEulerDiscreteScheduler


def sound(pipe):
    pipe.set_progress_bar_config(disable=True)
    call = {"audio_duration_s": 0.64, "num_inference_steps": 6, "guidance_scale": 1.0, "output_type": "pt"}
    return pipe("rain", generator=torch.Generator().manual_seed(0), **call).audios


theirs = sound(loaded)
wanted = sound(LongCatAudioDiTPipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)))
apart = float((theirs - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
print(f"from Euler's at the saved shift by {apart:.2f} of its size")
assert apart > 0.5
PY
echo "as described: a scheduler of another class is exchanged without a word"
