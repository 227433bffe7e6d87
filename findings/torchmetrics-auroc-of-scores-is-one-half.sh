#!/usr/bin/env bash
# torchmetrics' BinaryAUROC calls a good scorer a coin toss when its scores are large.
#
# Expected: AUROC depends on the order of the scores only.
# Seen: If any score lies outside [0, 1], a sigmoid is applied in float32, which turns scores from about 17 on
#   into exactly 1: all tie and the area is 0.5. Rescaled to [0, 1] the same scores give 0.88. The choice is
#   made per update, so batches with and without such a score are put on different scales.
# Versions: torchmetrics 1.9.0.
# Harm: CLIP scores times 100, PickScore and logits of reward models lie at 17 to 40: a reward's accuracy on
#   preference pairs, or of a hallucination detector, is reported as chance.
# genalign: Its measures of rewards use the raw scores' order and no sigmoid.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import torch
import torchmetrics
from torchmetrics.classification import BinaryAUROC

print("torch", torch.__version__, "torchmetrics", torchmetrics.__version__)
torch.manual_seed(0)
label = torch.tensor([0, 1] * 50)
score = 25 + 2 * torch.randn(100) + 3 * label
unit = (score - score.min()) / (score.max() - score.min())
pairs = (score[label == 1][:, None] > score[label == 0][None]).float().mean().item()
raw, rescaled = BinaryAUROC()(score, label).item(), BinaryAUROC()(unit, label).item()
print(f"by counting pairs {pairs:.3f}; BinaryAUROC of the scores {raw:.3f}, rescaled to [0, 1] {rescaled:.3f}")
parts = BinaryAUROC()
small = torch.tensor([0.2, 0.9, 0.4, 0.6]), torch.tensor([5.0, 1.2, 0.1, 3.0])
for part, truth in zip(small, (torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 0, 1])), strict=True):
    parts.update(part, truth)
together = BinaryAUROC()(torch.cat(small), torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])).item()
print(f"one set of eight scores: in two updates {parts.compute().item():.3f}, in one {together:.3f}")
still = raw == 0.5 and abs(rescaled - pairs) < 1e-3 and pairs > 0.8 and parts.compute().item() != together

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
