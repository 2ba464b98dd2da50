"""The command that copies videos: what it says, and what it refuses."""

import sys

import pytest

from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.tools import transcode
from tests.data.reading.stamped import write_with_opencv

pytestmark = pytest.mark.data


@pytest.fixture
def videos(tmp_path):
    (tmp_path / "videos").mkdir()
    write_with_opencv(tmp_path / "videos/a.avi", "MJPG", num_frames=20)
    return tmp_path / "videos"


def test_says_what_was_gained(videos, tmp_path, capsys):
    pytest.importorskip("av")
    given = [str(videos), str(tmp_path / "out"), "--num-workers", "1", "--gain-videos", "1"]
    assert transcode.main(given) == 0
    *_, copies, size, gain = capsys.readouterr().out.splitlines()
    assert copies.endswith(f"1 copy of 1 file, 1 made now: {tmp_path}/out/copies.csv")
    assert " of the bytes." in size and gain.startswith("Read on one core, 2 clips of 16 frames")
    assert len(list_samples(tmp_path / "out/copies.csv")) == 1
    (videos / "bad.avi").write_text("no video")
    assert transcode.main(given) == 1
    out = capsys.readouterr().out
    assert "1 copy of 2 files, 0 made now" in out and "Not copied: 1 file." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "existing folder or list. Received: nowhere"),
        (["videos", "videos/small"], "folder must not lie in videos. Received: videos/small"),
        (["videos", "out", "--quality", "99"], "--quality must be at most 40. Received: 99"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, message, videos, capsys, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.chdir(videos.parent)
    with pytest.raises(SystemExit) as ended:
        transcode.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and message in said
    assert sorted(path.name for path in videos.parent.iterdir()) == ["videos"]


def test_without_the_library_it_says_what_to_install(videos, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SystemExit) as ended:
        transcode.main([str(videos), "out"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("PyAV is needed to write H.264: pip install av\n")
