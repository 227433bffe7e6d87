#!/usr/bin/env bash
# TensorBoard's add_video writes nothing with the moviepy of today.
#
# Expected: With tensorboard and moviepy installed, as torch's documentation asks, SummaryWriter.add_video logs a clip.
# Seen: One line on the console says that moviepy is installed but moviepy.editor cannot be imported, "some packages could
#   be missing"; nothing is missing: moviepy 2 has no such module. The event file holds no clip, and no error is raised.
# Versions: torch 2.13.0, tensorboard 2.21.0, moviepy 2.2.1.
# Harm: A run of hours that logs its clips to TensorBoard has none at its end.
# genalign: It writes the animation itself, as a GIF among the pictures.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0 tensorboard==2.21.0 moviepy==2.2.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import contextlib
import io
from importlib.metadata import version

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

print("torch", torch.__version__, "moviepy", version("moviepy"))
writer, said = SummaryWriter("log"), io.StringIO()
with contextlib.redirect_stdout(said):
    writer.add_video("clip", torch.rand(1, 8, 3, 32, 32), fps=4)
writer.add_image("picture", torch.rand(3, 32, 32))
writer.close()
events = EventAccumulator("log")
events.Reload()
print("said:", said.getvalue().strip())
print("logged:", events.Tags()["images"])
still = events.Tags()["images"] == ["picture"]
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
