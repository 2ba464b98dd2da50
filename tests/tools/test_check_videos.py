"""The command that checks videos: what it says, its exit codes, and that its list trains."""

import cv2
import pytest

from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.tools import check_videos
from tests.data.reading.stamped import stamped_frame, write_with_opencv

pytestmark = pytest.mark.data


@pytest.fixture
def videos(tmp_path):
    for number, name in enumerate(("cat/a.avi", "cow/b.avi")):
        (tmp_path / "videos" / name).parent.mkdir(parents=True)
        write_with_opencv(tmp_path / "videos" / name, "MJPG", num_frames=10 + number)
    (tmp_path / "videos/cow/bad.mp4").write_text("no video")
    return tmp_path / "videos"


def run(*arguments):
    return check_videos.main([str(argument) for argument in arguments])


def test_says_in_words_what_it_found(videos, tmp_path, capsys):
    output = tmp_path / "out"
    given = (videos, "--output", output, "--class-folders", "--num-workers", 2)
    assert run(*given) == 0
    *_, usable, left_out, facts = capsys.readouterr().out.splitlines()
    assert usable == f"2 usable files of 3: {output}/clean.csv"
    assert left_out == f"Left out 1: 1 unreadable. See {output}/reasons.csv"
    assert "mjpeg (2); 96x64 (2)" in facts
    assert [sample.label for sample in list_samples(output / "clean.csv")] == [0, 1]
    assert run(*given) == 0
    assert (
        capsys.readouterr().out.splitlines()[0] == "Checked before, and unchanged since: 3 files."
    )


def test_frames_per_second_of_folders_are_kept(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for number in range(4):
            picture = stamped_frame(number + 4 * (name == "b"))
            cv2.imwrite(str(tmp_path / "frames" / name / f"{number}.png"), picture)
    output = tmp_path / "out"
    given = [tmp_path / "frames", "--output", output, "--num-workers", 1, "--kind", "frames"]
    for fps in (10.0, 8.0):
        assert run(*given, "--fps", fps) == 0
        found = list_samples(output / "clean.csv")
        assert [sample.media.fps for sample in found] == [fps, fps]
        facts = (output / "videos.csv").read_text().splitlines()[1].split(",")
        assert facts[4:6] == [f'"{fps}"', f'"{4 / fps}"']
    assert "Checked before, and unchanged since: 2 files." in capsys.readouterr().out


def test_exit_code_without_a_usable_file(tmp_path, capsys):
    (tmp_path / "list.txt").write_text("gone.mp4 1\n")
    assert run(tmp_path / "list.txt", "--output", tmp_path / "out", "--num-workers", 1) == 1
    out = capsys.readouterr().out
    assert "No file of 1 is usable." in out and "1 missing" in out
    assert not (tmp_path / "out/clean.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--output", "out"], "existing folder or list. Received: nowhere"),
        ([".", "--output", "out", "--num-workers", "0"], "--num-workers must be at least 1."),
        ([".", "--output", "out", "--min-frames", "0"], "--min-frames must be at least 1."),
        ([".", "--output", "out", "--keep", "missing"], "argument --keep: invalid choice"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        check_videos.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and message in said
    assert not (tmp_path / "out").exists()
