#!/usr/bin/env bash
# With FirstBlockCache a sample depends on what else is in its batch: one mean over all rows says which steps are skipped.
#
# Expected: A cache that skips blocks where their input has hardly changed decides by row, or once for a schedule; a
#   sample of a seed and a prompt stays what it is alone, as without the cache (to rounding).
# Seen: The change is averaged over the whole batch, unconditional rows of a classifier-free pair included where they
#   come in one call. Beside another prompt a row's final latent differs by three hundredths (its own scale is 1); without the
#   cache by less than 1e-5.
# Versions: diffusers 0.42.1, torch 2.13.0.
# Harm: Samples of a group, an evaluation or a preference pair change with the batch size, the order of prompts and the
#   number of ranks; a seed does not redraw a picture; and what was drawn is not the distribution whose density is
#   replayed.
# genalign: Enables no step cache.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 transformers==5.24.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import diffusers
import torch
from diffusers import FluxTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig

print("torch", torch.__version__, "diffusers", diffusers.__version__)
noise = torch.Generator().manual_seed(1)
starts, texts, pooled = (torch.randn(2, *shape, generator=noise) for shape in ((64, 16), (8, 32), (32,)))
texts[1] *= 0.2  # another prompt
places = torch.zeros(64, 3)
places[:, 1], places[:, 2] = torch.arange(64) // 8, torch.arange(64) % 8


@torch.no_grad()
def drawn(rows: list[int], threshold: float | None, steps: int = 10) -> torch.Tensor:
    """The end of an Euler path of these rows, drawn in one batch."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
    ).eval()
    if threshold is not None:
        model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    latent, times = starts[rows].clone(), torch.linspace(1, 0, steps + 1)
    with model.cache_context("cond"):
        for now, then in zip(times[:-1], times[1:], strict=True):
            velocity = model(
                hidden_states=latent, encoder_hidden_states=texts[rows], pooled_projections=pooled[rows],
                timestep=now.expand(len(rows)), img_ids=places, txt_ids=torch.zeros(8, 3),
            ).sample
            latent = latent + (then - now) * velocity
    return latent


def apart(threshold: float | None) -> list[float]:
    """How far each row drawn with the other is from the same row drawn alone."""
    together = drawn([0, 1], threshold)
    return [float((together[row] - drawn([row], threshold)[0]).abs().max()) for row in (0, 1)]


still = max(apart(None)) < 1e-5
print("no cache:", apart(None))
seen = {threshold: apart(threshold) for threshold in (0.06, 0.42, 0.46, 0.5, 0.54)}
for threshold, rows in seen.items():
    print(f"threshold {threshold}: row 0 {rows[0]:.2g}, row 1 {rows[1]:.2g}")
still = still and max(seen[0.06]) < 1e-5 and max(max(rows) for rows in seen.values()) > 0.01
raise SystemExit(0 if still else "this has changed: each row is drawn as it is alone")
PY
