"""What stands between <tag> and </tag> in a text: the answer of a model that thinks first, a tool call."""

import re


def tagged(text: str, tag: str) -> str | None:
    """It, without white space at its ends; None where the tag does not occur exactly once."""
    found = re.findall(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>", text, re.DOTALL)
    return found[0].strip() if len(found) == 1 else None
