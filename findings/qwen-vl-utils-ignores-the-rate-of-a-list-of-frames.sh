#!/usr/bin/env bash
# A clip given to qwen-vl-utils as a list of frames is one of 2 frames a second, whatever "fps" says; an odd one gets a frame.
#
# Expected: {"type": "video", "video": [frames], "fps": 8} is a clip of 8 frames a second, and {"nframes": 4} shows four of
#   them, as both keys do where the clip is a file; nine frames are nine.
# Seen: Both keys are ignored without a word, and 2.0 is what the model is told: nine frames at 8 a second last 5 seconds
#   instead of 1.1. Only the key sample_fps is read there. The last frame of an odd count is shown twice.
# Versions: qwen-vl-utils 0.0.14, torch 2.14.1, torchvision 0.29.1, pillow 11.3.0, numpy 2.4.6.
# Harm: The package stands between generated frames and every judge of the Qwen-VL class (VideoReward, UnifiedReward, VLM
#   judges of motion). Positions in time are off by the factor: fast motion is judged as slow, and a clip held for a moment
#   at its end.
# genalign: Hands frames and their rate to the model's own processor; a wrong rate is refused (docs/rewards.md).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  qwen-vl-utils==0.0.14 torch==2.14.1 torchvision==0.29.1 pillow==11.3.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

from PIL import Image
from qwen_vl_utils import process_vision_info

print("qwen-vl-utils", version("qwen-vl-utils"))
FRAMES = [Image.new("RGB", (64, 64), (20 * k, 0, 0)) for k in range(9)]


def read(**keys: float) -> tuple[list[int], float]:
    """The red level of each frame that the model sees, and the rate that it is told."""
    message = {"role": "user", "content": [{"type": "video", "video": FRAMES, **keys}]}
    _, clips, told = process_vision_info([message], return_video_kwargs=True)
    return clips[0][:, 0, 0, 0].int().tolist(), float(told["fps"][0])


seen = {str(keys): read(**keys) for keys in ({}, {"fps": 8}, {"nframes": 4}, {"sample_fps": 8})}
for keys, (levels, rate) in seen.items():
    print(f"{len(FRAMES)} frames, {keys}: {len(levels)} seen, {levels}, at {rate} a second")
levels = [20 * k for k in range(9)] + [160]
still = all(found == (levels, rate) for found, rate in zip(seen.values(), (2.0, 2.0, 2.0, 8.0), strict=True))
raise SystemExit(0 if still else "this has changed: fps or nframes is heeded for a list, or no frame is added")
PY
