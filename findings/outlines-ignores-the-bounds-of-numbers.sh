#!/usr/bin/env bash
# outlines lets a judge answer 57 on a scale from 1 to 10: bounds of numbers in a JSON schema are dropped without a word.
#
# Expected: Generation under a JSON schema yields what the schema allows, or a sentence says which keyword is not
#   supported.
# Seen: minimum, maximum, exclusiveMaximum and multipleOf leave no trace in the regular expression that guides generation:
#   of {"type": "integer", "minimum": 1, "maximum": 10} it is that of any integer, negative ones too. Lengths of strings
#   and arrays, enum and const are kept. An enum of the ten numbers does what is meant.
# Versions: outlines-core 0.2.14 (what outlines and vLLM's outlines backend build on), jsonschema 4.25.1.
# Harm: pydantic's Field(ge=1, le=10) is the usual way to ask a judge for a score. What comes back passes as structured
#   output, and one 57 or -3 outweighs all other scores of its group.
# genalign: A judge's score is read with its scale, and one outside masks the sample.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile outlines-core==0.2.14 jsonschema==4.25.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import json
import re
from importlib.metadata import version

import jsonschema
from outlines_core.json_schema import build_regex_from_schema

print("outlines-core", version("outlines-core"))
TRIED = [
    ({"type": "integer", "minimum": 1, "maximum": 10}, "57"),
    ({"type": "integer", "minimum": 1, "maximum": 10}, "-3"),
    ({"type": "number", "minimum": 0, "maximum": 1}, "8.5"),
    ({"type": "integer", "exclusiveMaximum": 5}, "5"),
    ({"type": "integer", "multipleOf": 5}, "7"),
    ({"type": "string", "maxLength": 3}, '"abcd"'),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 2}, "[1, 2, 3]"),
    ({"enum": [1, 2, 3]}, "57"),
]
let_through = []
for schema, answer in TRIED:
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(answer))
    allowed = re.fullmatch(build_regex_from_schema(json.dumps(schema)), answer) is not None
    let_through.append(allowed and not valid)
    print(f"{json.dumps(schema)}: {answer} is {'valid' if valid else 'not valid'} and {'can' if allowed else 'cannot'} come")
still = let_through == [True] * 5 + [False] * 3

if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
