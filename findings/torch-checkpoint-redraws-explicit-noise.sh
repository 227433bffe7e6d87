#!/usr/bin/env bash
# Gradient checkpointing computes a step with an explicit generator again with other noise.
#
# Expected: torch.utils.checkpoint (preserve_rng_state=True, the default) gives the gradients of the forward
#   that was run, noise included.
# Seen: Only the default generators are put back. A torch.Generator that the function uses goes on, so the
#   recomputed noise differs from that of the forward: same output, wrong gradient, no error. With the default
#   generator the gradient is right.
# Versions: torch 2.13.0 and 2.14.1, CPU, use_reentrant=False.
# Harm: A stochastic sampler step (noise from a generator per sample, as pipelines are given) inside a
#   checkpoint makes reward gradients (DRaFT, AlignProp, ReFL) belong to another trajectory. The loss looks
#   right; only a comparison of gradients with and without checkpointing shows it.
# genalign: policy/pathwise.py checkpoints the denoiser alone; the step, which draws the noise, stays outside. A
#   test should hold that.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
from torch.utils.checkpoint import checkpoint

print("torch", torch.__version__)


def gradient(recompute: bool, explicit: bool) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(5) if explicit else None
    weight = torch.full((64,), 2.0, requires_grad=True)

    def step(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * weight * torch.rand(64, generator=generator))

    x = torch.ones(64)
    out = checkpoint(step, x, use_reentrant=False) if recompute else step(x)
    out.sum().backward()
    return out.detach(), weight.grad


still = True
for explicit in (False, True):
    (out, plain), (again, recomputed) = gradient(False, explicit), gradient(True, explicit)
    cosine = torch.cosine_similarity(plain, recomputed, dim=0).item()
    print(f"explicit generator {explicit}: same output {torch.equal(out, again)}, cosine of gradients {cosine:.3f}")
    still = still and torch.equal(out, again) and (cosine < 0.95) == explicit

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
