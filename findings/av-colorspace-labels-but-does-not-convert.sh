#!/usr/bin/env bash
# A video stream of PyAV that is given the colour space BT.709 gets its label, and pixels of BT.601: colours shift.
#
# Expected: stream.codec_context.colorspace = 1 (BT.709) makes red what BT.709 has for red, luma 63 of 255, and a reader
#   that obeys the label reads red.
# Seen: RGB frames are converted by BT.601 whatever the stream is set to (luma 81), and only the label changes. Every
#   reader that obeys it, PyAV too, reads red as (255, 23, 0), green as (0, 215, 0). With the frame itself converted
#   (reformat with dst_colorspace="ITU709") label and pixels agree.
# Versions: av 18.1.0 with its own FFmpeg, numpy 2.4.6.
# Harm: Clips written for a data set or shown to annotators have other colours than those that were drawn and scored; a
#   reward that reads them back judges another clip, and one cannot tell by the file.
# genalign: Writes BT.601 and says so in the file (media/film.py); a test reads the colours back.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile av==18.1.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import io

import av
import numpy as np

print("av", av.__version__, "avcodec", av.library_versions["libavcodec"])
BT709, BT601 = 1, 5
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}


def there_and_back(colour: tuple[int, int, int], label: int, convert: bool) -> tuple[list[int], int]:
    """RGB of the first frame as it is read, and its luma."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "4"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace = label
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), format="rgb24")
            if convert:
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        frame = next(container.decode(video=0))
        luma = int(frame.reformat(format="yuv420p").to_ndarray()[32, 32])
        return frame.to_ndarray(format="rgb24")[32, 32].tolist(), luma


still = True
for name, colour in COLOURS.items():
    labelled, honest = there_and_back(colour, BT709, False), there_and_back(colour, BT601, False)
    converted = there_and_back(colour, BT709, True)
    print(f"{name}: labelled BT.709 {labelled}, labelled BT.601 {honest}, converted and labelled BT.709 {converted}")
    off = [np.abs(np.subtract(read, colour)).max() for read, _ in (labelled, honest, converted)]
    still = still and off[0] > 15 and off[1] <= 4 and off[2] <= 4 and abs(labelled[1] - honest[1]) <= 1
raise SystemExit(0 if still else "this has changed: frames are converted as the stream is labelled")
PY
