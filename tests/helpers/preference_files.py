"""Small files in the column forms of public preference sets. A sample is the better, the lighter (or longer) it is."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import PIL.Image

LIGHT = {"dark": 0.1, "dim": 0.3, "fair": 0.6, "light": 0.9}
LONG = {"bad": "no", "poor": "no no no", "good": "yes " * 6, "best": "yes " * 9}


def png(name: str) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (round(255 * LIGHT[name]),) * 3).save(file, format="PNG")
    return file.getvalue()


def pictures(folder: Path) -> None:
    for name in LIGHT:
        (folder / f"{name}.png").write_bytes(png(name))


def films(folder: Path) -> None:
    """12 frames at 6 a second each."""
    import av
    import numpy as np

    for name, level in LIGHT.items():
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=6)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for _ in range(12):
                pixels = np.full((32, 32, 3), round(255 * level), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def pick_a_pic(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rest = {"are_different": True, "has_label": True, "user_id": 7, "ranking_id": 3, "num_example_per_prompt": 1}
    rows = [
        {"caption": "a bird", "jpg_0": png("light"), "jpg_1": png("dark"), "label_0": 1.0, "label_1": 0.0, **rest},
        {"caption": "a bird", "jpg_0": png("dark"), "jpg_1": png("dim"), "label_0": 0.0, "label_1": 1.0, **rest},
        {"caption": "a cat", "jpg_0": png("fair"), "jpg_1": png("fair"), "label_0": 0.5, "label_1": 0.5, **rest},
        {"caption": "a cat", "jpg_0": png("dim"), "jpg_1": png("light"), "label_0": 1.0, "label_1": 0.0, **rest}
        | {"has_label": False},
    ]
    path = folder / "pickapic.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def written(folder: Path, name: str, rows: list[dict]) -> Path:
    pictures(folder)
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def hpd_train(folder: Path) -> Path:
    return written(
        folder,
        "train.json",
        [
            {"prompt": "a bird", "file_path": ["dark.png", "light.png"], "human_preference": [0, 1]},
            {"prompt": "a cat", "file_path": ["fair.png", "dim.png"], "human_preference": [1, 0]},
        ],
    )


def hpd_test(folder: Path) -> Path:
    raw = [{"rank": [2, 1, 3], "user_hash": "x"}]
    rows = [{"prompt": "a bird", "image_path": ["fair.png", "light.png", "dark.png"], "rank": [2, 1, 3]}]
    return written(folder, "test.json", [row | {"raw_annotations": raw} for row in rows])


def image_reward(folder: Path) -> Path:
    rows = [
        {"id": "1", "prompt": "a bird", "generations": ["light.png", "dark.png", "dim.png"], "ranking": [1, 5, 3]},
        {"id": "2", "prompt": "a cat", "generations": ["fair.png", "dim.png"], "ranking": [2, 2]},
    ]
    return written(folder, "imagereward.json", rows)


def image_reward_by_picture(folder: Path) -> Path:
    row = {"prompt_id": "1", "prompt": "a bird", "classification": "Animals", "image_amount_in_total": 3}
    rows = [row | {"image_path": f"{n}.png", "rank": r} for n, r in (("dim", 2), ("light", 1), ("dark", 3))]
    return written(folder, "imagerewarddb.json", [*rows, row | {"prompt_id": "2", "image_path": "fair.png", "rank": 1}])


def videogen(folder: Path) -> Path:
    films(folder)
    path = folder / "videogen-rewardbench.csv"
    judged = [("light", "dark", "A", "A", "same", "A"), ("dim", "fair", "B", "same", "B", "B")]
    with path.open("w", newline="") as file:
        names = ["path_A", "path_B", "A_model", "B_model", "prompt", "VQ", "MQ", "TA", "Overall"]
        table = csv.DictWriter(file, [*names, "fps_A", "num_frames_A", "fps_B", "num_frames_B"])
        table.writeheader()
        for a, b, *labels in judged:
            row = [f"{a}.mp4", f"{b}.mp4", "kling", "luma", "a ball", *labels]
            table.writerow(dict(zip(names, row, strict=True)) | {"fps_A": 6, "num_frames_A": 12})
    return path


def video_feedback(folder: Path) -> Path:
    """Clips as lists of frames; the lighter one has the better marks but for its dynamic degree."""
    pictures(folder)
    rows = []
    for number, (prompt, name, marks) in enumerate(
        [
            ("a ball", "light", (4, 4, 1, 4, 3)),
            ("a ball", "dark", (1, 2, 3, 1, 1)),
            ("a ball", "dim", (2, 2, 3, 2, 2)),
            ("a car", "fair", (3, 3, 3, 3, 3)),
        ]
    ):
        columns = ("visual quality", "temporal consistency", "dynamic degree", "text-to-video alignment")
        row = {"id": str(number), "images": [f"{name}.png"] * 3, "text prompt": prompt, "video link": "https://x"}
        row |= dict(zip((*columns, "factual consistency"), marks, strict=True))
        rows.append(row | {"conversations": [{"from": "human", "value": "rate it"}]})
    path = folder / "data_annotated.json"
    path.write_text(json.dumps(rows))
    return path


def video_dpo(folder: Path) -> Path:
    """Clips 0 and 3: the first of the better ones and the second of the worse ones."""
    films(folder)
    for old, new in (("light", "winvideos/000000"), ("fair", "winvideos/000001"), ("dark", "losevideos/000001")):
        (folder / new).parent.mkdir(exist_ok=True)
        (folder / f"{old}.mp4").rename(folder / f"{new}.mp4")
    rows = [
        {"frame_caption": "a ball", "video1": 0, "video2": 3},
        {"frame_caption": ["a car"], "video1": 2, "video2": 3},
    ]
    path = folder / "pair.json"
    path.write_text(json.dumps(rows))
    return path


def vl_reward_bench(folder: Path) -> Path:
    row = {"image": "light.png", "models": ["x", "y"], "query_source": "POVID", "ground_truth": None}
    rows = [
        {"id": "1", "query": "what is it?", "response": [LONG["best"], LONG["bad"]], "human_ranking": [0, 1], **row},
        {"id": "2", "query": "and this?", "response": [LONG["poor"], LONG["good"]], "human_ranking": [1, 0], **row},
    ]
    return written(folder, "vl.json", rows)


def reward_bench_2(folder: Path) -> Path:
    wrong = [LONG["bad"], LONG["poor"], "no no"]
    row = {"num_correct": 1, "num_incorrect": 3, "total_completions": 4, "models": ["m"] * 4}
    rows = [
        {"id": "12", "prompt": "say yes", "chosen": [LONG["good"]], "rejected": wrong, "subset": "Focus", **row},
        {"id": "ref:0", "prompt": "one?", "chosen": [LONG["good"]], "rejected": wrong, "subset": "Ties", **row},
        {"id": "tied:0", "prompt": "some?", "chosen": [LONG["good"], LONG["best"]], "rejected": wrong, "subset": "Ties"}
        | row,
    ]
    return written(folder, "rb2.json", rows)


def music_arena(folder: Path) -> Path:
    """A folder as the dataset's repository has it: a file a battle, of which two count and two are ties. The last two
    have no vote, and a sound that its maker keeps."""
    import numpy as np
    import soundfile

    (folder / "audio_files/01-2025JULAUG").mkdir(parents=True)
    for name, level in LIGHT.items():
        wave = np.full(800, level, np.float32)
        soundfile.write(folder / f"audio_files/01-2025JULAUG/{name}.wav", wave, 8000, subtype="PCM_16")
    battles = [
        ("light", "dark", "A"),
        ("dim", "fair", "B"),
        ("dim", "fair", "TIE"),
        ("dim", "dark", "BOTH_BAD"),
        ("dim", "fair", None),
        ("dim", "", "A"),
    ]
    for number, (a, b, preference) in enumerate(battles):
        sounds = {
            f"audio_{side}": name and f"audio_files/01-2025JULAUG/{name}.wav" for side, name in (("a", a), ("b", b))
        }
        row = {"battle_uuid": str(number), "prompt": f"a song {number // 2}", "is_instrumental": True, **sounds}
        row |= {"preference": preference, "user_pseudonym": f"u{number}", "system_a": "x", "lyrics": "", "feedback": ""}
        month = folder / "battle_data" / ("01-2025JULAUG", "02-2025SEP")[number % 2]
        month.mkdir(parents=True, exist_ok=True)
        (month / f"{number}.json").write_text(json.dumps(row))
    return folder


FORMS = {
    "Pick-a-Pic": pick_a_pic,
    "HPDv2 train": hpd_train,
    "HPDv2 test": hpd_test,
    "ImageRewardDB": image_reward,
    "ImageRewardDB by picture": image_reward_by_picture,
    "VideoGen-RewardBench": videogen,
    "VideoFeedback": video_feedback,
    "VideoDPO": video_dpo,
    "VL-RewardBench": vl_reward_bench,
    "RewardBench 2": reward_bench_2,
    "Music Arena": music_arena,
}
