"""Does a picture show the words that its prompt quotes? Read by PP-OCR. Copy and change it; see scene_rules.py.

rapidocr carries the weights (Apache-2.0), and nothing is fetched: pip install 'genalign[ocr]'.
"""

import re
from functools import cache

from genalign.media.image import to_pil
from genalign.reward import reward

try:
    from rapidfuzz.distance import Levenshtein
    from rapidocr import RapidOCR
except ImportError as error:
    raise ImportError(f"{error}; pictures are read by rapidocr: pip install 'genalign[ocr]'") from error

QUOTED = re.compile(r'"([^"]+)"|“([^“”]+)”|「([^「」]+)」|«([^«»]+)»')
# As Flow-GRPO sets PaddleOCR up: no classifier of upside-down lines, and no picture is enlarged.
SETTINGS = {"Global.use_cls": False, "Det.limit_type": "max", "Det.limit_side_len": 960}


@reward
def words_shown(prompt, image, facts):
    """1 - distance / length, in [0,1]: Levenshtein's distance of what is read to the words that were asked for, and
    their length; 1 where these stand among other words, 0 from a distance of their length on (Flow-GRPO, arXiv
    2505.05470, as its ocr.py has it). Case and blanks do not count; lines are joined as they are read.

    The words: the prompt's fact `words`, or what the prompt quotes first, in "", “”, 「」 or «». A prompt without them
    is abstained from, where Flow-GRPO stops; a picture that cannot be read fails, where Flow-GRPO gives 0.
    """
    scores = []
    for text, picture, known in zip(prompt, image, facts, strict=True):
        wanted = bare(known.get("words") or quoted(text))
        scores.append(nearness(bare(seen(picture)), wanted) if wanted else None)
    return scores


def quoted(prompt):
    """What the prompt quotes first; nothing where it quotes nothing."""
    found = QUOTED.search(prompt)
    return next(filter(None, found.groups())) if found else ""


def bare(text):
    """Without blanks, in lower case."""
    return "".join(str(text).split()).lower()


def nearness(read, wanted):
    """1 - distance / length, in [0,1], of two bare texts."""
    distance = 0 if wanted in read else Levenshtein.distance(read, wanted)
    return 1 - min(distance, len(wanted)) / len(wanted)


@cache
def reader():
    """The models, loaded once a process."""
    return RapidOCR(params={"Global.log_level": "critical", **SETTINGS})


def seen(picture):
    """What is written in a picture (3,H,W), line by line."""
    return " ".join(reader()(to_pil(picture)).txts or ())
