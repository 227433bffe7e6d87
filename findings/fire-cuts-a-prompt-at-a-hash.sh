#!/usr/bin/env bash
# Fire cuts an argument off at "#" and makes a tuple of one with a comma.
#
# Expected: --prompt "portrait #2" gives the function the text "portrait #2", since the shell hands over just that.
# Seen: "portrait". An argument is parsed as an expression of Python where it can be, and there "#" begins a comment:
#   "C#" is "C", while "a portrait #2" stays whole as two words are no expression. "red,blue" is the tuple ("red",
#   "blue"), "(cat)", which is emphasis in prompts, is "cat", "1e3" is 1000.0 and "None" is None. A type annotation of
#   str changes nothing.
# Versions: fire 0.7.1.
# Harm: Many scripts that sample or download by prompts, tags and run names have their command line from Fire. The
#   prompt that is drawn is another one than was asked for, by the words in it.
# genalign: Its command line is typed; a text stays as it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile fire==0.7.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
from importlib.metadata import version

import fire

print("fire", version("fire"))


def sample(prompt: str):
    return {"prompt": prompt}


given = ["portrait #2", "a portrait #2", "C#", "red,blue", "red, a blue", "(cat)", "1e3", "None", "16:9"]
found = [fire.Fire(sample, command=["--prompt", text], serialize=lambda _: None)["prompt"] for text in given]
for text, value in zip(given, found, strict=True):
    print(f"{text!r} is {value!r}")
still = found == ["portrait", "a portrait #2", "C", ("red", "blue"), "red, a blue", "cat", 1000.0, None, "16:9"]

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
