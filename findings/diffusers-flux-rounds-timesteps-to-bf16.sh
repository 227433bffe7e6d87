#!/usr/bin/env bash
# In bfloat16 the Flux pipeline tells its transformer another timestep than the scheduler's.
#
# Expected: Timesteps are numbers and not activations: the model is told the timestep of the scheduler, at any
#   dtype.
# Seen: The pipeline casts the timestep to the latents' dtype and divides by 1000 in it: of 28 steps the worst
#   is 3.9 (of 1000) off. The sinusoidal embedding of the time differs clearly.
# Versions: diffusers 0.42.1, FluxPipeline with a tiny transformer; WanPipeline and StableDiffusion3Pipeline
#   keep float32 or integers.
# Harm: A training step that passes t / 1000 in float32, as papers write it, asks the model at another time than
#   the sampler did, so log-probabilities and the velocity target are those of another step; the log-ratio is
#   not 0 at equal weights.
# genalign: It lets the pipeline itself make the denoiser's call, in replay and in the forward process, so the
#   cast is the same in both. A test with a bfloat16 Flux should hold that.
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
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding

print("torch", torch.__version__, "diffusers", diffusers.__version__)
diffusers.utils.logging.set_verbosity_error()
torch.manual_seed(0)
transformer = FluxTransformer2DModel(
    patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
    joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
)
vae = AutoencoderKL(block_out_channels=(4,), latent_channels=1, norm_num_groups=1, sample_size=32)
worst = {}
for dtype in (torch.float32, torch.bfloat16):
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    ).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    hook = transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["timestep"].float().item() * 1000), with_kwargs=True
    )
    pipe(
        prompt_embeds=torch.randn(1, 4, 32, dtype=dtype), pooled_prompt_embeds=torch.randn(1, 32, dtype=dtype),
        height=16, width=16, num_inference_steps=28, output_type="latent",
    )
    hook.remove()
    planned = pipe.scheduler.timesteps.tolist()
    at = max(range(28), key=lambda i: abs(seen[i] - planned[i]))
    worst[dtype] = abs(seen[at] - planned[at])
    print(f"{dtype}: worst step: scheduler {planned[at]:.2f}, transformer {seen[at]:.2f}")
times = torch.tensor([planned[at], seen[at]])
apart = get_timestep_embedding(times, 256).diff(dim=0).abs().max().item()
print(f"embeddings of those two times differ by up to {apart:.2f} (they lie in [-1, 1])")
still = worst[torch.float32] < 0.01 and worst[torch.bfloat16] > 1

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
