"""Files of one medium become one Media, whatever the medium is; a mixture is refused."""

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from genalign.media.files import read_media, write_sample, written_for
from genalign.types import Media, Track, UsageError


def test_images_of_one_size_are_a_tensor_and_of_several_a_list(tmp_path) -> None:
    for name, size in (("a.png", (4, 3)), ("b.JPG", (4, 3)), ("c.tiff", (5, 3))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    media = read_media([tmp_path / "a.png", tmp_path / "b.JPG"])
    assert media["image"].data.shape == (2, 3, 3, 4)
    assert media["image"].rate is None
    assert [tuple(row.shape) for row in read_media([tmp_path / n for n in ("a.png", "c.tiff")])["image"].data] == [
        (3, 3, 4), (3, 3, 5),
    ]  # fmt: skip


def test_texts_are_utf8_and_lose_a_byte_order_mark(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffgrün\u2028zwei".encode())
    assert read_media([tmp_path / "a.txt"])["text"].data == ["grün\u2028zwei"]
    (tmp_path / "b.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(UsageError, match=r"line 1 of .*b.txt is not UTF-8 \(byte 0xfc\)"):
        read_media([tmp_path / "b.txt"])


def test_mixtures_and_unknown_files_are_refused(tmp_path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    for name in ("b.txt", "c.pdf", "d"):
        (tmp_path / name).write_text("x")
    for names in (("a.png", "b.txt"), ("c.pdf",), ("d",)):
        with pytest.raises(UsageError, match=r"all of one kind, not .*; genalign reads image .*\.mp4.*\.wav.*\.txt"):
            read_media([tmp_path / name for name in names])
    with pytest.raises(UsageError, match=r"there is no media file .*z\.png"):
        read_media([tmp_path / "z.png"])


def test_each_sound_keeps_its_own_rate(tmp_path) -> None:
    for rate in (8000, 16000):
        soundfile.write(tmp_path / f"{rate}.wav", np.zeros(100), rate)
    media = read_media([tmp_path / "8000.wav", tmp_path / "16000.wav"])
    for row, rate in enumerate((8000, 16000)):
        assert media["audio"].rate_of(row) == rate
        assert soundfile.info(write_sample(media, row, tmp_path / f"copy-{row}")).samplerate == rate


def test_a_folder_is_no_file(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"is a folder; name the files in it, as .*/\*$"):
        read_media([tmp_path])


def test_a_sample_is_written_as_what_it_mainly_is(tmp_path) -> None:
    picture = Track(torch.full((1, 3, 4, 4), 0.2))
    media = Media(text=Track(["what the painter read"]), image=picture)
    assert write_sample(media, 0, tmp_path / "0").name == "0.png"
    assert written_for(media, 0) == "what the painter read"
    assert np.asarray(Image.open(tmp_path / "0.png")).tolist() == [[[51] * 3] * 4] * 4
    assert written_for(Media(image=picture), 0) is None
    words = Media(text=Track(["one\ntwo"]))
    assert written_for(words, 0) is None
    assert write_sample(words, 0, tmp_path / "v1.5").read_bytes() == b"one\ntwo"
    assert (tmp_path / "v1.5.txt").is_file()
    sound = Media(audio=Track(torch.zeros(1, 1, 800), 8000.0))
    assert soundfile.info(write_sample(sound, 0, tmp_path / "2")).frames == 800
