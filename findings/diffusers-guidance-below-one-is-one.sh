#!/usr/bin/env bash
# guidance_scale 0 gives the conditional sample, not the unconditional one.
#
# Expected: unconditional + g (conditional - unconditional): at g = 0 the prompt plays no part, at 0.5 half a
#   part.
# Seen: Guidance is switched off for every g up to 1, so 0, 0.5 and 1 are the same conditional sample to the
#   bit; the negative prompt is not used.
# Versions: diffusers 0.42.1, WanPipeline (most pipelines of classifier-free guidance have the same condition).
# Harm: Sweeps of the scale, guidance-free baselines, unconditional samples for FID or precision and recall, and
#   prompt-dropout checks silently use the prompt.
# genalign: Scales below 1 are refused, but for 0, which some write for none (policy/pipe.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0 peft==0.21.2
cd "$work"
"$work/venv/bin/python" - <<'PY'
import diffusers
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

print("torch", torch.__version__, "diffusers", diffusers.__version__)
torch.manual_seed(0)
pipe = WanPipeline(
    tokenizer=None, text_encoder=None, scheduler=FlowMatchEulerDiscreteScheduler(),
    vae=AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval(),
    transformer=WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=32, freq_dim=256, ffn_dim=32, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    ),
)
pipe.set_progress_bar_config(disable=True)
prompt, negative = torch.randn(2, 1, 16, 32)


def sample(scale: float, positive: torch.Tensor = prompt) -> torch.Tensor:
    return pipe(
        prompt_embeds=positive, negative_prompt_embeds=negative, num_frames=5, height=16, width=16,
        num_inference_steps=2, guidance_scale=scale, output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).frames


conditional, unconditional = sample(1.0), sample(1.0, negative)
for scale in (0.0, 0.5):
    print(f"guidance {scale}: from the conditional sample {(sample(scale) - conditional).abs().max().item():.4f}, "
          f"from the unconditional one {(sample(scale) - unconditional).abs().max().item():.4f}")
still = (
    torch.equal(sample(0.0), conditional) and torch.equal(sample(0.5), conditional)
    and not torch.equal(conditional, unconditional)
)

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
