"""Which files of a hub repository a model is loaded from."""

from __future__ import annotations

import re
from collections.abc import Sequence

from genalign.files.shipped import PIPELINE

SMALL_FILES = (".json", ".txt", ".model", ".jinja")  # settings, vocabularies, chat templates


def needed_files(files: Sequence[str]) -> list[str]:
    """Of all files of a hub repository those that loading it reads: one copy of the weights, as safetensors.

    Repositories hold the same weights as pickles, for other frameworks, in half precision (a variant, *.fp16.*) and as
    one file of everything; a variant is taken only where a folder has nothing else.
    """
    pipeline = PIPELINE in files
    kept = [name for name in files if name.endswith(SMALL_FILES) and (pipeline or "/" not in name)]
    weights = [name for name in files if name.endswith((".safetensors", ".safetensors.index.json"))]
    folders = {name.rpartition("/")[0] for name in weights}
    for folder in sorted(folders):
        own = [name for name in weights if name.rpartition("/")[0] == folder]
        if (folder == "") == pipeline or "/" in folder:  # (one file of everything, or a copy for another program)
            continue
        plain = [name for name in own if variant_of(name) is None]
        kept += plain if any(name.endswith(".safetensors") for name in plain) else own
    return sorted(set(kept))


def variant_of(name: str) -> str | None:
    """What stands between the name and its end, such as fp16 in model.fp16.safetensors, shards and indices included."""
    found = re.search(r"\.([a-z_0-9]+)(-\d{5}-of-\d{5})?\.safetensors|\.safetensors\.index\.([a-z_0-9]+)\.json", name)
    return None if found is None else found.group(1) or found.group(3)
