#!/usr/bin/env bash
# soundfile reads a crop of an mp3 that begins with up to 77 ms of another sound, and of an ogg one that is shifted.
#
# Expected: sf.read(file, start=a, stop=b) is the same as sf.read(file)[a:b], as it is for wav and flac.
# Seen: In 35 of 40 crops of a constant-rate mp3 of music, and in 38 of 40 of a variable-rate one, up to 3,388 samples at
#   the beginning are others, by as much as the signal itself: what the decoder would have to remember of earlier frames
#   is missing. At the highest rate, whose frames remember nothing, all are right. Crops of an ogg from the last quarter of
#   this file on are whole, but 168 samples too late. Nothing is raised.
# Versions: soundfile 0.14.0 with its libsndfile 1.2.2.
# Harm: Data loaders cut random crops of long files in just this way. Each begins with a click or a hole, which a model
#   learns and a reward of clicks or onsets counts.
# genalign: It reads files whole and cuts afterwards.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile soundfile==0.14.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import numpy as np
import soundfile as sf

print("soundfile", sf.__version__, "libsndfile", sf.__libsndfile_version__)
rate = 44100
t = np.arange(rate * 6) / rate
wave = sum(0.1 * np.sin(2 * np.pi * f * t) * np.exp(-3 * (t % 0.5)) for f in (220.0, 277.2, 329.6, 440.0))
wrong = {}
for name, file, how in (
    ("mp3, constant rate", "song.mp3", {}),
    ("mp3, variable rate", "song.mp3", {"bitrate_mode": "VARIABLE", "compression_level": 0.5}),
    ("mp3, highest rate", "song.mp3", {"bitrate_mode": "CONSTANT", "compression_level": 0.0}),
    ("ogg", "song.ogg", {}),
    ("flac", "song.flac", {}),
):
    sf.write(file, wave, rate, **how)
    whole = sf.read(file)[0]
    ends, worst = [], 0.0
    for start in np.random.default_rng(0).integers(5000, rate * 5, 40).tolist():
        error = np.abs(sf.read(file, start=start, stop=start + 8000)[0] - whole[start : start + 8000])
        off = np.nonzero(error > 1e-3)[0]
        ends += [int(off.max()) + 1] if len(off) else []
        worst = max(worst, float(error.max()))
    wrong[name] = len(ends)
    print(f"{name}: {len(ends)} of 40 crops begin wrong, by up to {max(ends, default=0)} samples and {worst:.2f}"
          f" (the peak of the whole is {np.abs(whole).max():.2f})")
sf.write("song.ogg", wave, rate)
whole, late = sf.read("song.ogg")[0], sf.read("song.ogg", start=206508, stop=206508 + 8000)[0]
shifted = np.array_equal(late[2000:6000], whole[206508 + 2168 : 206508 + 6168])
print("ogg: the crop at 206508 is the one at 206676:", shifted)
many = wrong["mp3, constant rate"] > 20 and wrong["mp3, variable rate"] > 20
still = many and shifted and wrong["mp3, highest rate"] == wrong["flac"] == 0
if not still:
    raise SystemExit("The behaviour has changed.")
print("The behaviour is as recorded.")
PY
