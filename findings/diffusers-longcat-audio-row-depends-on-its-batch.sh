#!/usr/bin/env bash
# What LongCatAudioDiTPipeline plays for a text depends on how long the other texts of its batch are.
#
# Expected: The pipeline hands its transformer a mask of the tokens of each text, so a text that is padded to the length
#   of another, with the same noise and the same duration, sounds as it does alone.
# Seen: The convolution over the text normalises each channel by its size over all places, those of the padding
#   included: the sound differs by some percent of its size, where beside a text of the same length it differs by
#   rounding alone, as it does with text_conv=False. Where no duration is given, every row is also as long as the longest
#   text of the batch asks for.
# Versions: diffusers 0.42.1, LongCatAudioDiTPipeline and transformer at its default text_conv; random weights.
# Harm: A sound is not reproducible by text and seed, and in reinforcement learning a replay in other batches has
#   another density.
# genalign: Replays rows in the batches that they were drawn in; docs/families.md says to draw texts of several lengths
#   one by one; tiny-music has no such convolution.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 accelerate==1.15.0 sentencepiece==0.2.1
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

print("torch", torch.__version__, "diffusers", diffusers.__version__)
torch.manual_seed(0)
SHORT, LONG = "rain", "a choir sings far away in a very large church at night"
tokens = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
tokenizer = T5Tokenizer(vocab=[(token, -float(k)) for k, token in enumerate(tokens)], extra_ids=0, model_max_length=64)
text = UMT5EncoderModel(
    UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
).eval()
vae = LongCatAudioDiTVae(
    channels=8, c_mults=[1, 1], strides=[4, 2], latent_dim=4, encoder_latent_dim=8, downsampling_ratio=8,
    sample_rate=800,
).eval()
noise = torch.randn(2, 20, 4)


def pipeline(**options):
    torch.manual_seed(1)
    transformer = LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=32, latent_dim=4, **options
    ).eval()
    for parameter in transformer.parameters():
        if not parameter.detach().any():  # gates that training would open
            torch.nn.init.normal_(parameter, std=0.1)
    made = LongCatAudioDiTPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    )
    made.set_progress_bar_config(disable=True)
    return made


def first(made, *texts):
    call = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    return made(list(texts), latents=noise[: len(texts)], **call).audios[0]


def off(made, other):
    alone = first(made, SHORT)
    return float((first(made, SHORT, other) - alone).abs().max() / alone.std())


usual, plain = pipeline(), pipeline(text_conv=False)
longer, equal, without = off(usual, LONG), off(usual, "wind"), off(plain, LONG)
print(f"by its size, beside a longer text {longer:.1e}, beside one as long {equal:.1e}; without convolution {without:.1e}")
lengths = [usual(texts, num_inference_steps=1, output_type="pt").audios.shape[-1] for texts in ([SHORT], [SHORT, LONG])]
print(f"samples of the same text: alone {lengths[0]}, beside a longer one {lengths[1]}")

if not (longer > 1e-3 and equal < 1e-5 and without < 1e-5 and lengths[1] > 5 * lengths[0]):
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
