"""Videos from files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genalign.types import UsageError

FILMS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,gif,avi"  # a playlist would name files and addresses of its own


def load_video(path: Path | str, fps: float = 2.0) -> tuple[Tensor, float]:
    """Frames (F,3,H,W) fp32 in [0,1] of a video file, at most `fps` a second of it (evenly picked), and their rate.

    Raises UsageError where the file is missing or no video, or PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UsageError(f"{path} is read by PyAV; pip install 'genalign[video]'") from error
    try:
        with Path(path).open("rb") as file, av.open(file, options={"format_whitelist": FILMS}) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or fps)
            apart, frames, due = max(rate / fps, 1.0), [], 0.0
            for number, frame in enumerate(container.decode(stream)):
                if number >= due:
                    frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
                    due += apart
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UsageError(f"{path} cannot be read as a video: {error}") from error
    if not frames:
        raise UsageError(f"{path} holds no frame; drop it")
    return torch.stack(frames).permute(0, 3, 1, 2).float().div(255), rate / apart
