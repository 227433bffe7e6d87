"""What it means that a sound shows the facts of a prompt, given what was heard in it. Shared by verifier and judge."""

from genalign.lab.world import Facts


def check(facts: Facts, heard: Facts) -> dict[str, bool | None]:
    """Strict truth of each kind of fact (None: not stated), and `all_facts`, the whole prompt.

    heard: facts, all of them known. instruments: every named one sounds and no other does. order: the one that is named
    first plays the melody. The others: the same.
    """
    result: dict[str, bool | None] = {
        "melody": None if facts["melody"] is None else heard["melody"] == facts["melody"],
        "instruments": set(heard["voices"]) == set(facts["voices"]),
        "order": None if len(facts["voices"]) < 2 else list(heard["voices"]) == list(facts["voices"]),
    }
    for kind in ("key", "tempo", "register", "loudness", "drums"):
        result[kind] = None if facts[kind] is None else heard[kind] == facts[kind]
    result["all_facts"] = all(value for value in result.values() if value is not None)
    return result
