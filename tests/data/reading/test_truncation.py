"""Bytes that are missing at the end of a file are counted, where a container says its size."""

import pytest

from keras_vjepa.data.reading.truncation import missing_bytes
from tests.data.reading.stamped import write_with_av, write_with_opencv

pytestmark = pytest.mark.data


@pytest.mark.parametrize("name", ["a.mp4", "fast.mp4", "a.mov", "a.mkv", "a.webm", "a.avi"])
def test_what_is_cut_off_is_counted(name, tmp_path):
    path = tmp_path / name
    if name == "a.avi":
        write_with_opencv(path, "MJPG", num_frames=30)
    else:
        options = {"movflags": "+faststart"} if name == "fast.mp4" else {}
        codec = "libvpx" if name == "a.webm" else "libx264"
        write_with_av(path, codec, options=options, num_frames=30)
    content = path.read_bytes()
    assert missing_bytes(str(path)) == 0
    path.write_bytes(content + b"\0" * 100)  # bytes that were appended are not a truncation
    assert missing_bytes(str(path)) == 0
    path.write_bytes(content[:-1000])
    assert missing_bytes(str(path)) == 1000


@pytest.mark.parametrize("content", [b"", b"a", b"RIFF", b"\x1a\x45\xdf\xa3", b"\0" * 64])
def test_of_anything_else_nothing_is_missing(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    assert missing_bytes(str(tmp_path / "a")) == 0
