#!/usr/bin/env bash
# An aspect ratio of 16:9 in a YAML file is the number 969.
#
# Expected: `aspect: 16:9` is the text "16:9", as it is in JSON with quotes and in YAML 1.2.
# Seen: PyYAML reads numbers with colons in base 60, as YAML 1.1 says: 16:9 is 969, 4:3 is 243, 1:1 is 61; so does
#   OmegaConf, which mends 1e-4, in files and in its own overrides (from_dotlist). 2.39:1 stays text. ruamel.yaml reads
#   text.
# Versions: PyYAML 6.0.4, omegaconf 2.4.0, ruamel.yaml 0.19.1.
# Harm: Recipes of image and video models name aspect ratios and lengths (1:30). They are unknown buckets, or sizes, or
#   sampling weights named by numbers; a list of ratios with 2.39:1 is half text, half numbers.
# genalign: Reads the core schema of YAML 1.2, where 16:9 is text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pyyaml==6.0.4 omegaconf==2.4.0 ruamel.yaml==0.19.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import yaml
from omegaconf import OmegaConf
from ruamel.yaml import YAML

print("PyYAML", version("pyyaml"), "omegaconf", version("omegaconf"), "ruamel.yaml", version("ruamel.yaml"))
ratios = ["16:9", "4:3", "1:1", "9:16", "2.39:1", "1:30"]
lines = "ratios: [" + ", ".join(ratios) + "]"
found = {
    "PyYAML": yaml.safe_load(lines)["ratios"],
    "OmegaConf": list(OmegaConf.create(lines).ratios),
    "OmegaConf.from_dotlist": [OmegaConf.from_dotlist([f"ratio={ratio}"]).ratio for ratio in ratios],
    "ruamel.yaml": list(YAML(typ="safe").load(lines)["ratios"]),
}
for name, values in found.items():
    print(name, dict(zip(ratios, values, strict=True)))
sixty = [969, 243, 61, 556, "2.39:1", 90]
still = found.pop("ruamel.yaml") == ratios and all(values == sixty for values in found.values())

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
