"""The forms of judged samples that public preference sets have, known by their columns, and how a row of each is read.

Pick-a-Pic (caption, jpg_0, jpg_1, label_0, label_1), HPDv2 (train: file_path or image_path, human_preference; test:
image_path, rank), ImageRewardDB (generations, ranking; or a row a picture: prompt_id, rank), VideoGen-RewardBench
(path_A, path_B, VQ, MQ, TA, Overall), VideoFeedback (text prompt, images: the frames, and five marks), VideoDPO
(frame_caption, video1, video2: the numbers of a better and a worse clip), Music Arena (audio_a, audio_b, preference),
RewardBench 2 (chosen and rejected lists, subset), RLAIF-V (question, chosen, rejected, image), VL-RewardBench (query,
response, image, human_ranking), conversations (chosen and rejected lists of messages, with a prompt or without, as
UltraFeedback and Skywork have them, or transcripts as HH-RLHF has them), and plain rows: {"prompt", "chosen",
"rejected"}, {"prompt", "a", "b", "p"} with p in [0,1] that a is better, {"prompt", "text" or "image" or "video" or
"audio", "rating"}. A plain row may name its "user", and of texts a "rejected_prompt", which its "rejected" (it may be
equal to "chosen") answers in the place of "prompt".
In half of the sets the best has rank 1, in the others label 1: here p is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple, get_args

from genalign.data.conversations import answers_of, is_conversation, is_messages
from genalign.data.judged import OVERALL, Comparisons, Kind, Listing, key_of
from genalign.data.tables import Table
from genalign.media import MEDIA


def _numbers(marks: Sequence[Any]) -> list[float]:
    try:
        numbers = [float(mark) for mark in marks]  # a .csv file has them as texts
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"prefers by {list(marks)}, which are not all numbers")
    return numbers


def _pick_a_pic(found: Comparisons, row: Mapping[str, Any]) -> None:
    if row.get("has_label") is False:
        found.undecided += 1
        return
    first, second = _numbers([row["label_0"], row["label_1"]])
    if min(first, second) < 0:
        raise ValueError(f"has the labels {first:g} and {second:g}, of which none may be below 0")
    if row.get("are_different") is False or first + second == 0:  # nobody preferred either
        found.undecided += 1
        return
    a, b = (found.item(row["caption"], row[name], "image") for name in ("jpg_0", "jpg_1"))
    user = str(row.get("user_id") or "")
    found.compare(a, b, first / (first + second), found.group(row["caption"]), user=user)


def _ranked(found: Comparisons, row: Mapping[str, Any], files: str, marks: str, sign: int) -> None:
    """Every two of a list; sign: +1 where the better one has the higher mark, -1 where it has the lower."""
    values, given = row[files], row[marks]
    if not isinstance(values, list) or not isinstance(given, list) or not 2 <= len(values) == len(given):
        raise ValueError(f"has not one {marks} for each picture of its {files}, of two or more")
    scores = [sign * mark for mark in _numbers(given)]
    numbers = [found.item(row["prompt"], value, "image") for value in values]
    for i, j in combinations(range(len(values)), 2):
        p = 0.5 if scores[i] == scores[j] else float(scores[i] > scores[j])
        found.compare(numbers[i], numbers[j], p, found.group(row["prompt"]))


def _hpd_train(found: Comparisons, row: Mapping[str, Any]) -> None:
    _ranked(found, row, "file_path" if row.get("file_path") else "image_path", "human_preference", 1)


def _hpd_test(found: Comparisons, row: Mapping[str, Any]) -> None:
    _ranked(found, row, "image_path", "rank", -1)


def _image_reward(found: Comparisons, row: Mapping[str, Any]) -> None:
    _ranked(found, row, "generations", "ranking", -1)


def _by_prompt(table: Table) -> list[tuple[str, dict[str, Any]]]:
    """ImageRewardDB's rows of one picture each, as rows of one prompt each, with the place of the first."""
    merged: dict[Any, tuple[str, dict[str, Any]]] = {}
    for place, row in zip(table.places, table.rows, strict=True):
        empty: dict[str, Any] = {"prompt": row["prompt"], "generations": [], "ranking": []}
        _, into = merged.setdefault(row["prompt_id"], (place, empty))
        into["generations"].append(row.get("image") or row["image_path"])
        into["ranking"].append(row["rank"])
    return [(place, row) for place, row in merged.values() if len(row["ranking"]) > 1]


def _videogen(found: Comparisons, row: Mapping[str, Any]) -> None:
    a, b = (found.item(row["prompt"], row[name], "video") for name in ("path_A", "path_B"))
    for aspect in ("VQ", "MQ", "TA", "Overall"):
        p = {"A": 1.0, "B": 0.0, "same": 0.5}.get(row[aspect])
        if p is not None:  # the training file marks what nobody judged
            name = OVERALL if aspect == "Overall" else aspect
            found.compare(a, b, p, found.group(row["prompt"]), name)


VOTES = {"A": 1.0, "B": 0.0, "TIE": 0.5, "BOTH_BAD": 0.5}  # of Music Arena, arXiv 2507.20900


def _music_arena(found: Comparisons, row: Mapping[str, Any]) -> None:
    """A battle; undecided where nobody voted or named a prompt, or where a sound was not released."""
    vote, sounds = row["preference"], (row["audio_a"], row["audio_b"])
    if vote and vote not in VOTES:
        raise ValueError(f"has a preference that is none of {', '.join(VOTES)} ({vote})")
    if not vote or not all(sounds) or not row["prompt"]:
        found.undecided += 1
        return
    a, b = (found.item(row["prompt"], sound, "audio") for sound in sounds)
    user = str(row.get("user_pseudonym") or "")
    found.compare(a, b, VOTES[vote], found.group(row["prompt"]), user=user)


MARKS = {  # of VideoFeedback, 1 (bad) to 4: VideoScore, arXiv 2406.15252
    "visual quality": "VQ",
    "temporal consistency": "TC",
    "dynamic degree": "DD",
    "text-to-video alignment": "TA",
    "factual consistency": "FC",
}


def _clips_by_prompt(table: Table) -> list[tuple[str, dict[str, Any]]]:
    """VideoFeedback's rows of one clip each, as rows of one prompt each, with the place of the first."""
    merged: dict[Any, tuple[str, dict[str, Any]]] = {}
    for place, row in zip(table.places, table.rows, strict=True):
        _, into = merged.setdefault(row["text prompt"], (place, {"prompt": row["text prompt"], "clips": []}))
        into["clips"].append(row)
    return list(merged.values())


def _video_feedback(found: Comparisons, row: Mapping[str, Any]) -> None:
    """Every two clips of a prompt, by each mark and by their mean, which is also a clip's rating."""
    marks, numbers = [], []
    for clip in row["clips"]:
        frames = clip["images"]
        if not isinstance(frames, list) or not frames:
            raise ValueError("has no list of frames under 'images'")
        marks.append(_numbers([clip[column] for column in MARKS]))
        numbers.append(found.item(row["prompt"], tuple(frames), "video"))
        found.ratings[numbers[-1]] = sum(marks[-1]) / len(MARKS)
    for i, j in combinations(range(len(numbers)), 2):
        both = zip((OVERALL, *MARKS.values()), (sum(marks[i]), *marks[i]), (sum(marks[j]), *marks[j]), strict=True)
        for aspect, first, second in both:
            p = 0.5 if first == second else float(first > second)
            found.compare(numbers[i], numbers[j], p, found.group(row["prompt"]), aspect)


def _video_dpo(found: Comparisons, row: Mapping[str, Any]) -> None:
    """video1 is preferred; number n is clip n // 2 of the better ones where it is even, else of the worse ones."""
    caption = row["frame_caption"]
    prompt = caption[0] if isinstance(caption, list) and caption else caption
    clips = []
    for name in ("video1", "video2"):
        if not isinstance(row[name], int) or row[name] < 0:
            raise ValueError(f"has no number of a clip under {name!r}")
        folder = "losevideos" if row[name] % 2 else "winvideos"
        clips.append(found.item(prompt, f"{folder}/{row[name] // 2:06d}.mp4", "video"))
    found.compare(clips[0], clips[1], 1.0, found.group(prompt))


def _vl_reward_bench(found: Comparisons, row: Mapping[str, Any]) -> None:
    first, second = row["response"]
    a, b = (found.item(row["query"], text, "text", row["image"]) for text in (first, second))
    ranks = row["human_ranking"]
    p = 0.5 if ranks[0] == ranks[1] else float(ranks[0] < ranks[1])
    found.compare(a, b, p, found.group((row["query"], key_of(row["image"]))))


def _reward_bench_2(found: Comparisons, row: Mapping[str, Any]) -> None:
    right = [found.item(row["prompt"], text, "text") for text in row["chosen"]]
    wrong = [found.item(row["prompt"], text, "text") for text in row["rejected"]]
    group = found.group(row["prompt"])
    for a, b in product(right, wrong):
        found.compare(a, b, 1.0, group)
    name, subset = str(row.get("id", group)), str(row["subset"])
    found.listings.append(Listing(name, subset, tuple(right), tuple(wrong)))


def _conversation(found: Comparisons, row: Mapping[str, Any]) -> None:
    if not is_conversation(row):
        raise ValueError("has no messages or transcripts as chosen and rejected")
    answers = answers_of(row)
    if answers.chosen == answers.rejected:  # public sets have some
        found.undecided += 1
        return
    begins = _begins(row)
    shown = len(begins) if isinstance(begins, tuple) else int(begins is not None)
    if answers.pictures and answers.pictures != shown:
        raise ValueError(f"writes {answers.pictures} pictures into its messages and brings {shown} under 'images'")
    a, b = (found.answer(answers.turns, text, begins) for text in (answers.chosen, answers.rejected))
    user = str(row.get("user", ""))
    found.compare(a, b, 1.0, found.group(_about(found.items[a].prompt, begins)), user=user)


def _chosen(found: Comparisons, row: Mapping[str, Any]) -> None:
    for side in ("chosen", "rejected"):
        if row[side] is None or isinstance(row[side], list):
            kind = "text" if found.plain_kind == "text" else f"path of a {MEDIA[found.plain_kind].NOUN}"
            raise ValueError(f"has no {kind} under {side!r}")
    _plain(found, {**row, "a": row["chosen"], "b": row["rejected"], "p": 1.0})


def _asked_about(found: Comparisons, row: Mapping[str, Any]) -> None:
    _chosen(found, {**row, "prompt": row["question"]})


def _plain(found: Comparisons, row: Mapping[str, Any]) -> None:
    (p,) = _numbers([row["p"]])
    if not 0 <= p <= 1:
        raise ValueError(f"has a p of {p}, which is not in [0,1]")
    begins = _begins(row)
    other = row.get("rejected_prompt") or row["prompt"]
    if other != row["prompt"] and found.plain_kind != "text":
        raise ValueError("has a rejected_prompt, which pairs of texts alone can have")
    a, b = found.item(row["prompt"], row["a"], picture=begins), found.item(other, row["b"], picture=begins)
    if a == b and found.plain_kind == "text":
        found.undecided += 1
        return
    if a == b:
        raise ValueError(f"prefers a {MEDIA[found.plain_kind].NOUN} to an equal one ({row['a']})")
    aspect, user = str(row.get("aspect", OVERALL)), str(row.get("user", ""))
    group = _about(row["prompt"], begins) if found.plain_kind == "text" else row["prompt"]
    found.compare(a, b, p, found.group(group), aspect, user)


def _begins(row: Mapping[str, Any]) -> Any:
    """The picture, or a tuple of several, that both samples begin with, or that both texts are about."""
    given = row.get("image", row.get("images"))
    return (tuple(given) or None) if isinstance(given, list) else given


def _about(prompt: str, picture: Any) -> Any:
    """What names a question."""
    return prompt if picture is None else (prompt, key_of(picture))


def _rated(found: Comparisons, row: Mapping[str, Any]) -> None:
    kind = next((one for one in get_args(Kind) if one in row), None)
    if kind is None:
        raise ValueError(f"lacks one of {', '.join(get_args(Kind))}")
    rating = float(row["rating"])
    if not math.isfinite(rating):
        raise ValueError(f"has a rating that is not a finite number ({rating})")
    found.ratings[found.item(row["prompt"], row[kind], kind)] = rating


class Form(NamedTuple):
    """The columns by which a public form is known, whether the last of them is a plain list, and what reads a row.

    samples: the columns of samples whose kind the form leaves open. gather: makes rows of one prompt out of rows of one
    sample.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Comparisons, Mapping[str, Any]], None]
    listed: bool = False
    samples: tuple[str, ...] = ()
    gather: Callable[[Table], list[tuple[str, dict[str, Any]]]] | None = None


FORMS = (
    Form("Pick-a-Pic", ("caption", "jpg_0", "jpg_1", "label_0", "label_1"), _pick_a_pic),
    Form("HPDv2 train", ("prompt", "human_preference"), _hpd_train, listed=True),
    Form("HPDv2 test", ("prompt", "image_path", "rank"), _hpd_test, listed=True),
    Form("ImageRewardDB", ("prompt", "generations", "ranking"), _image_reward, listed=True),
    Form("ImageRewardDB by picture", ("prompt", "prompt_id", "rank"), _image_reward, gather=_by_prompt),
    Form("VideoGen-RewardBench", ("prompt", "path_A", "path_B", "VQ", "MQ", "TA", "Overall"), _videogen),
    Form("Music Arena", ("prompt", "audio_a", "audio_b", "preference"), _music_arena),
    Form("VideoFeedback", ("text prompt", "images", *MARKS), _video_feedback, gather=_clips_by_prompt),
    Form("VideoDPO", ("frame_caption", "video1", "video2"), _video_dpo),
    Form("VL-RewardBench", ("query", "image", "response", "human_ranking"), _vl_reward_bench, listed=True),
    Form("RewardBench 2", ("prompt", "subset", "chosen", "rejected"), _reward_bench_2, listed=True),
    Form("conversations", ("chosen", "rejected"), _conversation),
    Form("chosen and rejected", ("prompt", "chosen", "rejected"), _chosen, samples=("chosen", "rejected")),
    Form("RLAIF-V", ("question", "chosen", "rejected"), _asked_about, samples=("chosen", "rejected")),
    Form("a, b and p", ("prompt", "a", "b", "p"), _plain, samples=("a", "b")),
    Form("ratings", ("prompt", "rating"), _rated),
)


def form_of(row: Mapping[str, Any]) -> Form | None:
    """The form whose columns a row has."""
    for form in FORMS:
        if not set(form.columns) <= set(row):
            continue
        value = row[form.columns[-1]]
        plain_list = isinstance(value, list) and not is_messages(value)
        if form.listed == plain_list and (form.name != "conversations" or is_conversation(row)):
            return form
    return None
