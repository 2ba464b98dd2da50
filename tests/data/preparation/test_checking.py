"""Every kind of file is told, nothing is lost or done twice, and the list is read as it was."""

import os
import signal
import subprocess
import sys
import tarfile
import time

import cv2
import pytest

from keras_vjepa.data.preparation.checking import check_videos
from keras_vjepa.data.preparation.inspection import Inspection, VideoReport
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import Sample
from tests.data.reading.stamped import stamped_frame, write_with_av, write_with_opencv

pytestmark = pytest.mark.data


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "videos"
    root.mkdir()
    write_with_opencv(root / "a good one.avi", "MJPG", num_frames=30)
    content = (root / "a good one.avi").read_bytes()
    (root / "cut.avi").write_bytes(content[: len(content) * 2 // 3])
    (root / "the same.avi").write_bytes(content)
    (root / "text.mp4").write_text("no video")
    write_with_opencv(root / "short.avi", "MJPG", num_frames=5)
    return root


def kinds(checked):
    return {os.path.basename(s.path): r.problem for s, r in checked.reports}


def test_what_is_wrong_is_told(folder, tmp_path, alone):
    samples = [*list_samples(folder), Sample(str(folder / "gone.mp4"))]
    checked = check_videos(samples, tmp_path / "out", Inspection(), min_frames=10)
    assert kinds(checked) == {
        "a good one.avi": "",
        "cut.avi": "truncated",
        "gone.mp4": "missing",
        "short.avi": "short",
        "text.mp4": "unreadable",
        "the same.avi": "duplicate",
    }
    assert list_samples(tmp_path / "out/clean.csv") == checked.usable == samples[:1]
    reasons = (tmp_path / "out/reasons.csv").read_text().splitlines()
    assert len(reasons) == 6 and reasons[0] == "path,problem,reason"
    assert any(line.endswith('/a good one.avi"') and '"duplicate"' in line for line in reasons)
    assert '"it has 5 frames, fewer than 10"' in "".join(reasons)
    facts = checked.reports[0][1]
    assert (facts.codec, facts.num_frames, facts.width, facts.height) == ("mjpeg", 30, 96, 64)
    assert (facts.fps, facts.seconds, facts.keyframe_distance <= 1) == (30.0, 1.0, True)
    assert len((tmp_path / "out/videos.csv").read_text().splitlines()) == 7


def test_labels_stay_and_a_second_one_is_told(folder, tmp_path, alone):
    names = ("a good one.avi", "the same.avi", "a good one.avi", "short.avi")
    samples = [Sample(str(folder / name), number) for number, name in enumerate(names)]
    checked = check_videos(samples, tmp_path / "out", Inspection())
    assert checked.usable == [samples[0], samples[3]] == list_samples(tmp_path / "out/clean.csv")
    reasons = [r.reason for _, r in checked.reports if r.problem]
    assert reasons[0].startswith("the same content as ")
    assert reasons[0].endswith("a good one.avi, with the label 0 in place of 1")
    assert reasons[1] == "it is listed before, with the label 0 in place of 2"
    kept = check_videos(samples, tmp_path / "out", Inspection(), keep=["duplicate"])
    assert kept.usable == samples and kept.known == 3


def test_nothing_is_read_twice_but_what_changed(folder, tmp_path, alone):
    samples = list_samples(folder)

    def stop(done, count):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_videos(samples, tmp_path / "out", Inspection(), progress=stop)
    checked = check_videos(samples, tmp_path / "out", Inspection())
    assert checked.known == 2 and set(alone.read.values()) == {1} and len(alone.read) == 5
    write_with_opencv(folder / "text.mp4", "mp4v", num_frames=8)
    again = check_videos(samples, tmp_path / "out", Inspection())
    assert again.known == 4 and alone.read[str(folder / "text.mp4")] == 2
    assert kinds(again)["text.mp4"] == ""
    # Results of another depth of inspection are not used.
    assert check_videos(samples, tmp_path / "out", Inspection(decodes_all=False)).known == 0


def test_a_crash_is_named_and_tried_again(folder, tmp_path):
    samples = [Sample(str(folder / "short.avi")), Sample(str(folder / "cut.avi"))]
    checked = check_videos(samples, tmp_path / "out", _Crashes())
    assert [r.reason for _, r in checked.reports] == ["the decoder crashed (SIGSEGV)", ""]
    assert len(checked.usable) == 1
    again = check_videos(samples, tmp_path / "out", Inspection())
    assert kinds(again) == {"short.avi": "", "cut.avi": ""} and again.known == 1


class _Crashes(Inspection):
    def __call__(self, path):
        if path.endswith("short.avi"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return VideoReport(num_frames=1, content=path)


def test_damage_in_the_middle_needs_all_frames(tmp_path, alone):
    path = write_with_av(tmp_path / "a.mp4", "libx264")
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 200):
        content[place] ^= 0x5A
    path.write_bytes(content)
    samples = [Sample(str(path))]
    assert kinds(check_videos(samples, tmp_path / "out", Inspection())) == {"a.mp4": "damaged"}
    quick = Inspection(decodes_all=False)
    assert kinds(check_videos(samples, tmp_path / "out", quick)) == {"a.mp4": ""}


def test_variable_rate_and_key_frames(tmp_path):
    times = [33 * i + (i % 3) * 5 for i in range(60)]
    options = {"codec": "libx264", "num_frames": 60}
    variable = write_with_av(tmp_path / "a.mp4", milliseconds=times, **options)
    steady = write_with_av(tmp_path / "b.mkv", keyframe_distance=20, **options)
    found = [Inspection()(str(path)) for path in (variable, steady)]
    assert [r.has_variable_rate for r in found] == [True, False]
    assert [r.keyframe_distance for r in found] == [12, 20]
    assert [r.codec for r in found] == ["h264", "h264"]
    assert abs(found[1].seconds - 2) < 0.01


_CHECK = """
import sys
import tarfile
sys.argv = ["keras-vjepa"]
from pathlib import Path
from keras_vjepa.data.preparation.checking import check_videos
from keras_vjepa.data.preparation.inspection import Inspection
from keras_vjepa.data.sources.listing import list_samples
check_videos(list_samples(sys.path[0] + "/videos"), Path(sys.path[0] + "/out"), Inspection())
"""


def test_killed_it_goes_on(folder, tmp_path):
    content = (folder / "short.avi").read_bytes()
    for number in range(40):
        (folder / f"{number:02}.avi").write_bytes(content)
    (tmp_path / "check.py").write_text(_CHECK)
    command = [sys.executable, str(tmp_path / "check.py")]
    results = tmp_path / "out/results.jsonl"
    process = subprocess.Popen(command)
    while not results.exists() or results.stat().st_size < 2000:
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "out/clean.csv").exists()
    before = results.read_text().count("\n")
    assert 0 < before < 45
    subprocess.run(command, check=True)
    assert results.read_text().count('{"path"') in (45, 46)  # at most one line was cut off
    assert [os.path.basename(s.path) for s in list_samples(tmp_path / "out/clean.csv")] == [
        "00.avi",
        "a good one.avi",
    ]


def test_folders_of_frames_and_members_of_shards(tmp_path, alone):
    (tmp_path / "frames/v1").mkdir(parents=True)
    for number in range(6):
        cv2.imwrite(f"{tmp_path}/frames/v1/img_{number:03}.png", stamped_frame(number))
    video = write_with_opencv(tmp_path / "a.avi", "MJPG", num_frames=9)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.add(video, "good.avi")
        tar.add(video, "same.avi")
        (tmp_path / "bad.avi").write_bytes(video.read_bytes()[:-500])
        tar.add(tmp_path / "bad.avi", "cut.avi")
    frames = list_samples(tmp_path / "frames", "frames")
    samples = [*frames, *list_samples(tmp_path / "b.tar"), Sample(f"{tmp_path}/b.tar/gone.avi")]
    checked = check_videos(samples, tmp_path / "out", Inspection())
    problems = [report.problem for _, report in checked.reports]
    assert problems == ["", "", "duplicate", "truncated", "missing"]
    assert [report.num_frames for _, report in checked.reports[:2]] == [6, 9]
    again = list_samples(tmp_path / "out/clean.csv")
    assert again == checked.usable and len(again) == 2
    assert check_videos(samples, tmp_path / "out", Inspection()).known == 5
