#!/usr/bin/env bash
# CogVideoX returns 16 frames where 13 are asked for, and its autoencoder does the same to a clip of 13.
#
# Expected: 13 = 4 * 3 + 1 is a length that an autoencoder with a first frame of its own and four frames a latent
#   holds: 13 frames in, four latents, 13 frames out.
# Seen: Latents are decoded in twos, and the first frame is treated as such only where the first part is odd. With an
#   even number of latents all are taken for four frames: 5, 13, 21 and 29 become 8, 16, 24 and 32; 9, 17 and 25 stay.
# Versions: diffusers 0.42.1, AutoencoderKLCogVideoX and CogVideoXPipeline, small random weights.
# Harm: Clips are longer than asked for and their later frames out of step with the reference clip: losses and
#   rewards by frame compare different moments, or fail on shapes, at some lengths alone.
# genalign: policy/clip_form.py tries the count with the autoencoder before weights load, and names the nearest that
#   it holds.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 transformers==5.24.0 diffusers==0.42.1 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel

print("torch", torch.__version__, "diffusers", diffusers.__version__)
torch.manual_seed(0)
autoencoder = AutoencoderKLCogVideoX(
    down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
    temporal_compression_ratio=4,
).eval()
transformer = CogVideoXTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=8,
    num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2, max_text_seq_length=4,
)
pipe = CogVideoXPipeline(
    tokenizer=None, text_encoder=None, vae=autoencoder, transformer=transformer, scheduler=CogVideoXDDIMScheduler()
)
pipe.set_progress_bar_config(disable=True)


@torch.no_grad()
def coded(frames: int) -> int:
    latents = autoencoder.encode(torch.rand(1, 3, frames, 16, 16)).latent_dist.mode()
    return autoencoder.decode(latents).sample.shape[2]


def drawn(frames: int) -> int:
    return pipe(
        prompt_embeds=torch.randn(1, 4, 8), num_frames=frames, height=16, width=16, num_inference_steps=1,
        guidance_scale=1.0, output_type="pt",
    ).frames.shape[1]


lengths = [5, 9, 13, 17, 21, 25, 29]
through, sampled = {n: coded(n) for n in lengths}, {n: drawn(n) for n in lengths}
print("frames through the autoencoder:", through)
print("frames drawn by the pipeline:", sampled)
still = all(found[n] == n + 3 * (n % 8 == 5) for found in (through, sampled) for n in lengths)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
