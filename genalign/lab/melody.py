"""MelodyWorld: who plays what and how, as facts, and its captions (true, changed and web-like).

Facts are plain data, the same in Python and in the .jsonl files: `{"melody": str | None, "voices": [lead] or [lead,
second], "key": "D minor" | None, "tempo": "slow" | "medium" | "fast" | None, "register": "low" | "high" | None,
"loudness": "soft" | "loud" | None, "drums": bool | None}`. The lead plays the melody, the second voice chords below it.
"""

from typing import Any

import numpy as np

from genalign.lab.melody_bank import INSTRUMENTS
from genalign.lab.melody_songs import KEYS, songs
from genalign.lab.split import is_held_out, sample_split
from genalign.lab.world import Facts, Shares, article

TEMPI = ("slow", "medium", "fast")
REGISTERS = ("low", "high")
LOUDNESSES = ("soft", "loud")
SECONDS = ("piano", "organ", "guitar", "marimba")  # instruments that accompany
HIGH_ONLY = ("flute", "violin")  # whose lowest notes lie above the low register
KINDS = ("melody", "instruments", "order", "key", "tempo", "register", "loudness", "drums")
OMITTABLE = ("melody", "key", "tempo", "register", "loudness", "drums")
OPTIONS: dict[str, tuple[str, ...]] = {"tempo": TEMPI, "register": REGISTERS, "loudness": LOUDNESSES}
DUET, BEAT = 0.4, 0.4  # shares of pieces with a second voice, and with drums

ADJECTIVES = {
    "slow": ("slow",), "medium": ("medium-tempo", "moderate"), "fast": ("fast", "quick"),
    "low": ("low",), "high": ("high",), "soft": ("soft", "quiet"), "loud": ("loud",),
}  # fmt: skip
ADVERBS = {
    "slow": ("slowly", "at a slow tempo"), "medium": ("at a medium tempo", "moderately"), "fast": ("fast", "quickly"),
    "low": ("in a low register",), "high": ("in a high register",),
    "soft": ("softly", "quietly"), "loud": ("loudly",),
}  # fmt: skip
BEATS = {True: ("with drums", "with a drum beat"), False: ("without drums", "with no drums")}
OVER = ("over", "above", "accompanied by")


def combinations(facts: Facts) -> list[str]:
    """What the split holds out: who plays which melody, at which tempo in which key, and over which other voice."""
    lead, found = facts["voices"][0], []
    if facts["melody"] is not None:
        found.append(f"{lead} plays {facts['melody']}")
    if facts["tempo"] is not None and facts["key"] is not None:
        found.append(f"{lead} {facts['tempo']} in {facts['key']}")
    if len(facts["voices"]) == 2:
        found.append(" over ".join(facts["voices"]))
    return found


def held_out(facts: Facts) -> bool:
    """Whether one of the combinations belongs to the held-out split (fixed: by a hash, without random state)."""
    return any(map(is_held_out, combinations(facts)))


def sample_facts(rng: np.random.Generator, split: str | None = None) -> dict[str, Any]:
    """Facts of a random piece, all of them stated. `split` is "train", "heldout" or None for either.

    Raises:
        ValueError: unknown split.
    """
    return sample_split(_any_facts, held_out, rng, split)


def _any_facts(rng: np.random.Generator) -> dict[str, Any]:
    lead = str(rng.choice(INSTRUMENTS))
    duet = rng.random() < DUET
    song = songs()[str(rng.choice(list(songs())))]
    return {
        "melody": song.name,
        "voices": [lead, str(rng.choice([name for name in SECONDS if name != lead]))] if duet else [lead],
        "key": str(rng.choice([key for key in KEYS if key.endswith(song.mode)])),
        "tempo": str(rng.choice(TEMPI)),
        "register": "high" if duet or lead in HIGH_ONLY else str(rng.choice(REGISTERS)),
        "loudness": str(rng.choice(LOUDNESSES)),
        "drums": bool(rng.random() < BEAT),
    }


def caption(facts: Facts, rng: np.random.Generator) -> str:
    """A true sentence, in one of several phrasings; what is None is left unsaid."""
    stated = [facts[kind] for kind in rng.permutation(["loudness", "tempo", "register"]) if facts[kind] is not None]
    lead, *second = (_one(voice) for voice in facts["voices"])
    under = f" {rng.choice(OVER)} {second[0]}" if second else ""
    if facts["melody"] is not None:
        late, tune = stated, facts["melody"]
        forms = [f"{tune} on {lead}{under}", f"{lead}{under} plays {tune}"]
    else:
        early = [word for word in stated if rng.random() < 0.7]
        late = [word for word in stated if word not in early]
        described = [str(rng.choice(ADJECTIVES[word])) for word in early]
        tune = _one(" ".join([*described, "melody"]))
        forms = [f"{_one(' '.join([*described, facts['voices'][0]]))} melody{under}", f"{lead}{under} plays {tune}"]
    if second:
        forms.append(f"{second[0]} accompanies {lead} playing {tune}")
    text = str(rng.choice(forms))
    endings = [] if facts["key"] is None else [f"in {facts['key']}"]
    if facts["drums"] is not None:
        endings.append(str(rng.choice(BEATS[facts["drums"]])))
    if rng.random() < 0.3:
        endings.reverse()
    manner = [str(rng.choice(ADVERBS[word])) for word in late]
    if manner and rng.random() < 0.5:
        return ", ".join([" ".join([text, *endings]), *manner])
    return " ".join([text, *manner, *endings])


def _one(words: str) -> str:
    return f"{article(words)} {words}"


def change_one_fact(facts: Facts, rng: np.random.Generator, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """Facts with exactly one of KINDS made wrong, of those that are stated; an instrument where none of `kinds` is."""
    kind = str(rng.choice([k for k in kinds if is_stated(k, facts)] or ["instruments"]))
    changed = {**facts, "voices": list(facts["voices"])}
    if kind == "instruments":
        victim = int(rng.integers(len(changed["voices"])))
        others = INSTRUMENTS if victim == 0 else SECONDS
        changed["voices"][victim] = str(rng.choice([name for name in others if name not in facts["voices"]]))
    elif kind == "order":
        changed["voices"].reverse()
    elif kind == "drums":
        changed["drums"] = not facts["drums"]
    else:
        changed[kind] = str(rng.choice([word for word in _options(kind, facts) if word != facts[kind]]))
    return changed


def _options(kind: str, facts: Facts) -> list[str]:
    """What a fact could be without contradicting another: a melody has its own mode."""
    if kind == "melody":
        return [song.name for song in songs().values() if song.mode == songs()[facts["melody"]].mode]
    if kind == "key":
        melody = facts["melody"]
        return [key for key in KEYS if melody is None or key.endswith(songs()[melody].mode)]
    return list(OPTIONS[kind])


def is_stated(kind: str, facts: Facts) -> bool:
    """Whether facts say anything of this kind."""
    if kind == "order":
        return len(facts["voices"]) == 2
    return kind == "instruments" or facts[kind] is not None


WEB = Shares(  # contradictions rather than omissions, which guidance undoes
    {"melody": 0.25, "key": 0.30, "tempo": 0.25, "register": 0.35, "loudness": 0.35, "drums": 0.35},
    dict.fromkeys(KINDS, 0.25) | {"instruments": 0.12, "melody": 0.15},
)


def web_caption(facts: Facts, rng: np.random.Generator, shares: Shares = WEB) -> str:
    """A caption as the web would write it: facts left out, or contradicted, in these shares.

    A contradiction that happens to name a held-out combination is left out, for it would teach that these words never
    mean what they say.
    """
    stated = dict(facts)
    for kind, contradicted in shares.contradicted.items():
        omitted, draw = shares.omitted.get(kind, 0.0), rng.random()
        if not is_stated(kind, stated):
            continue
        if draw < omitted:
            stated = without(kind, stated)
        elif draw < omitted + contradicted:
            changed = change_one_fact(stated, rng, (kind,))
            stated = stated if held_out(changed) else changed
    return caption(stated, rng)


def without(kind: str, facts: Facts) -> dict[str, Any]:
    """Facts that leave one kind unsaid; a caption cannot do without the instruments.

    Raises:
        ValueError: a kind that cannot be left out.
    """
    if kind not in OMITTABLE:
        raise ValueError(f"only {', '.join(OMITTABLE)} can be left out of a caption, not {kind!r}")
    return {**facts, kind: None}
