#!/usr/bin/env bash
# webdataset makes one sample of files whose names differ after their first dot.
#
# Expected: a_cfg7.0.jpg and a_cfg7.5.jpg in a tar are two samples, each with its picture and its text.
# Seen: A name is cut at its first dot: both have the key a_cfg7, and the rest (0.jpg, 5.jpg) is the field's
#   name. They become one sample without a jpg field.
# Versions: webdataset 1.0.2.
# Harm: Samples named by a guidance scale, a learning rate, a version or a reward (score0.87.png) are merged or
#   lost: a loop over samples with a jpg field skips them, and preference pairs lose one side.
# genalign: It reads no webdataset shards. A row in docs/data.md for those who convert them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile webdataset==1.0.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io
import tarfile
from importlib.metadata import version

import webdataset

print("webdataset", version("webdataset"))
with tarfile.open("shard.tar", "w") as tar:
    for stem in ("a_cfg7.0", "a_cfg7.5", "b_cfg8"):
        for ending in ("jpg", "txt"):
            info = tarfile.TarInfo(f"{stem}.{ending}")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
samples = []
for sample in webdataset.WebDataset("shard.tar", shardshuffle=False):
    samples.append((sample["__key__"], sorted(name for name in sample if not name.startswith("__"))))
    print(*samples[-1])
still = samples == [("a_cfg7", ["0.jpg", "0.txt", "5.jpg", "5.txt"]), ("b_cfg8", ["jpg", "txt"])]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
