"""The command that extracts features from a folder."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoPreprocessor
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.video import VideoReader
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.tools import extract_features
from tests.support import ROOT, left_over


@pytest.fixture
def preset(tmp_path):
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    backbone.save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


@pytest.fixture
def videos(tmp_path):
    """Two videos, one in a folder, an image, and three files that are none."""
    folder, rng = tmp_path / "videos", np.random.default_rng(0)
    (folder / "inner").mkdir(parents=True)
    frames = rng.integers(256, size=(90, 40, 48, 3), dtype=np.uint8)
    write_motion_jpeg(folder / "long.avi", frames, 24)
    write_motion_jpeg(folder / "inner" / "short.avi", frames[:5], 24)
    cv2.imwrite(str(folder / "image.png"), frames[0])
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "empty.avi").touch()
    (folder / "notes.txt").write_text("neither")
    return folder


def run(preset, videos, output, *arguments):
    return extract_features.main(
        [str(videos), "--preset", str(preset), "--output", str(output), *map(str, arguments)]
    )


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_folder(preset, videos, tmp_path, capsys):
    assert run(preset, videos, tmp_path / "out") == 1
    names = ["image.png.npy", "inner/short.avi.npy", "long.avi.npy", "settings.json"]
    assert files_in(tmp_path / "out") == names
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and errors[-1] == "extract_features.py: 3 files cannot be read."
    for name in ("broken.mp4", "broken.jpg", "empty.avi"):
        assert any(name in line for line in errors)
    backbone = VJEPABackbone.from_preset(preset)
    preprocessor = VJEPAVideoPreprocessor.from_preset(preset)
    # 90 frames: windows of 16 begin at 0, 16, ... 80.
    expected = {"image.png.npy": 1, "inner/short.avi.npy": 1, "long.avi.npy": 6}
    for name, rows in expected.items():
        features = np.load(tmp_path / "out" / name)
        assert features.shape == (rows, 24) and features.dtype == np.float32
        clip = preprocessor(videos / name.removesuffix(".npy"))
        first = ops.convert_to_numpy(backbone(clip)).mean(axis=1)
        np.testing.assert_allclose(features[:1], first, atol=2e-6)


def test_limits_of_reading(preset, videos, tmp_path, capsys):
    assert run(preset, videos, tmp_path / "out", "--max-frame-pixels", 40 * 48 - 1) == 1
    errors = capsys.readouterr().err
    assert errors.count("48x40 pixels are more than `max_frame_pixels`=1919") == 3
    assert files_in(tmp_path / "out") == ["settings.json"]
    with pytest.raises(SystemExit):
        run(preset, videos, tmp_path / "out", "--max-file-seconds", "nan")
    message = "`--max-file-seconds` must be positive and finite. Received: nan"
    assert capsys.readouterr().err == f"extract_features.py: {message}\n"


def test_tokens_of_overlapping_windows_and_images_of_one_tubelet(preset, videos, tmp_path):
    options = ["--tokens", "--stride", 8, "--image-frames", 2, "--image-size", 32, 64]
    assert run(preset, videos, tmp_path / "out", *options) == 1
    assert np.load(tmp_path / "out" / "long.avi.npy").shape == (11, 16, 24)
    assert np.load(tmp_path / "out" / "image.png.npy").shape == (1, 8, 24)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["stride"] == 8 and settings["image_size"] == [32, 64]


def test_finished_files_are_not_repeated(preset, videos, tmp_path, capsys):
    killed = left_over(tmp_path / "out")
    run(preset, videos, tmp_path / "out")
    (tmp_path / "out" / "image.png.npy").unlink()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.avi.npy")}
    assert run(preset, videos, tmp_path / "out") == 1
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.avi.npy")}
    assert np.load(tmp_path / "out" / "image.png.npy").shape == (1, 24)
    assert not killed.exists()
    # Other settings would mix with what is there.
    capsys.readouterr()
    assert run(preset, videos, tmp_path / "out", "--stride", 3) == 2
    error = capsys.readouterr().err
    assert "holds features with stride = 16. Received: 3" in error and error.count("\n") == 1


def test_a_video_that_fails_in_the_middle_leaves_no_features(
    preset, videos, tmp_path, monkeypatch, capsys
):
    """The first windows have been written when a frame that was promised does not come."""
    read = VideoReader.read

    def fail_late(self, indices):
        if min(indices) > 60:
            raise UnreadableVideoError(self.path, "a frame is missing")
        return read(self, indices)

    monkeypatch.setattr(VideoReader, "read", fail_late)
    assert run(preset, videos / "long.avi", tmp_path / "out", "--batch-size", 1) == 1
    assert files_in(tmp_path / "out") == ["settings.json"]
    assert "long.avi: a frame is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options,message",
    [
        (["--image-size", 33], "`height` must be a multiple of `patch_size`=16. Received: 33"),
        (["--num-frames", 5], "`num_frames` must be a multiple of `tubelet_size`=2. Received: 5"),
        (["--image-frames", 3], "must be a multiple of `tubelet_size`=2. Received: 3"),
    ],
)
def test_bad_settings_are_one_line(preset, videos, tmp_path, capsys, options, message):
    assert run(preset, videos, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_presets_and_folders_are_one_line(preset, videos, tmp_path, capsys):
    assert run("vjepa", videos, tmp_path / "out") == 2
    assert "`preset` must be a folder, hf://" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        run(preset, tmp_path / "none", tmp_path / "out")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        f"extract_features.py: no such file or folder: {tmp_path / 'none'}\n"
    )


@pytest.mark.data
@pytest.mark.slow
def test_it_goes_on_after_a_kill(preset, tmp_path):
    """SIGKILL in the middle; what was finished stays as it was."""
    (tmp_path / "videos").mkdir()
    frames = np.random.default_rng(0).integers(256, size=(80, 40, 48, 3), dtype=np.uint8)
    for i in range(8):
        write_motion_jpeg(tmp_path / "videos" / f"{i:02d}.avi", frames, 24)
    tool = [sys.executable, str(ROOT / "tools" / "extract_features.py"), str(tmp_path / "videos")]
    command = [*tool, "--preset", str(preset), "--output", str(tmp_path / "out"), "--stride", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while len(list((tmp_path / "out").glob("[!.]*.npy"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("[!.]*.npy")}
    assert 2 <= len(before) < 8
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    assert len(list((tmp_path / "out").glob("[!.]*.npy"))) == 8
    assert before == {p: p.stat().st_mtime_ns for p in before}
    assert not list((tmp_path / "out").glob(".*"))
