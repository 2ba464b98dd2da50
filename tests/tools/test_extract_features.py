"""The command that extracts features from a folder."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoPreprocessor, files
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.video import VideoReader, read_frames
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.evaluation.feature_folder import FeatureFolder
from keras_vjepa.locks import LOCK_FILE
from keras_vjepa.tools import extract_features
from tests.data.sources.file_server import serving
from tests.data.sources.test_shards import write_tar
from tests.support import ROOT, left_over


@pytest.fixture(scope="module")
def two_presets(tmp_path_factory):
    """Of models that differ in their weights alone."""
    folder = tmp_path_factory.mktemp("presets")
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    backbone.save_to_preset(folder / "one")
    backbone.norm.beta.assign(backbone.norm.beta + 1e-3)
    backbone.save_to_preset(folder / "other")
    return folder


@pytest.fixture
def preset(two_presets, tmp_path):
    return shutil.copytree(two_presets / "one", tmp_path / "preset")


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
    names = ["image.png.npy", "inner/short.avi.npy", "long.avi.npy"]
    assert files_in(tmp_path / "out") == [*names, "settings.json", "sources.jsonl"]
    printed = capsys.readouterr()
    assert "out: features of 3 of 6 files, 3 made now (replaced files: 0;" in printed.out
    repeating, *errors = printed.err.splitlines()
    assert repeating == (
        "The last window of 2 videos is longer than what is left of it, less than 16 frames, and "
        "repeats the last frame."
    )
    assert len(errors) == 4 and errors[-1] == "extract_features.py: 3 files cannot be read."
    for name in ("broken.mp4", "broken.jpg", "empty.avi"):
        assert any(name in line for line in errors)
    backbone = VJEPABackbone.from_preset(preset)
    preprocessor = VJEPAVideoPreprocessor.from_preset(preset)
    # A video of 90 frames has windows of 16 that begin at 0, 16, ... 80.
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


def test_images_for_a_model_with_a_tokenizer_for_them(videos, tmp_path, capsys):
    """A user of V-JEPA 2.1 learns that images were made clips, and how they stay images."""
    backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2, modalities=True)
    backbone.save_to_preset(tmp_path / "preset")
    image, hint = videos / "image.png", "With --image-frames 1, and another --output"
    for options, tokens in ([], 8), (["--image-frames", 1], 4):
        output = tmp_path / f"out{tokens}"
        assert run(tmp_path / "preset", image, output, "--tokens", *options) == 0
        assert np.load(output / "image.png.npy").shape == (1, tokens, 24)
        said = capsys.readouterr().err
        assert (f"clips of 4 frames. {hint}" in said) == (tokens == 8), said
    clip = VJEPAVideoPreprocessor.from_preset(tmp_path / "preset", image_frames=1)(image)
    expected = ops.convert_to_numpy(backbone(clip))
    np.testing.assert_allclose(np.load(tmp_path / "out4" / "image.png.npy"), expected, atol=2e-6)


def test_frames_that_a_long_stride_leaves_out_are_said(preset, videos, tmp_path, capsys):
    assert run(preset, videos / "long.avi", tmp_path / "out", "--stride", 37) == 0
    said = capsys.readouterr().err
    # Windows of 16 begin at 0, 37 and 74, and the last one ends with the video.
    assert said == "--stride leaves out 21 frames between two windows of 16.\n"


def test_finished_files_are_not_repeated(preset, videos, tmp_path, capsys):
    killed = left_over(tmp_path / "out")
    run(preset, videos, tmp_path / "out")
    (tmp_path / "out" / "image.png.npy").unlink()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.avi.npy")}
    assert run(preset, videos, tmp_path / "out") == 1
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.avi.npy")}
    assert np.load(tmp_path / "out" / "image.png.npy").shape == (1, 24)
    assert not killed.exists()
    # Other settings would mix with the features that are there.
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
        (["--image-size", 33], "--image-size: `height` must be a multiple of `patch_size`=16."),
        (["--image-size", 32, 40], "--image-size: `width` must be a multiple of `patch_size`=16."),
        (["--image-size", 1_000_000], "--image-size must be one or two numbers from 1 to 8192."),
        (
            ["--image-size", 0],
            "--image-size must be one or two numbers from 1 to 8192. Received: 0",
        ),
        (["--image-size", 32, 32, 32], "--image-size must be one or two numbers from 1 to 8192."),
        (["--image-size", "1e3"], "argument --image-size: invalid int value: '1e3'"),
        (["--num-frames", 5], "--num-frames: `num_frames` must be a multiple of `tubelet_size`=2."),
        (["--num-frames", 2 * 10**8], "--num-frames must be from 1 to 65536. Received: 200000000"),
        (["--image-frames", 10**9], "--image-frames must be from 1 to 65536. Received: 1000000000"),
        (["--batch-size", 10**9], ": --batch-size must be smaller: 1000000000 windows of 4x32x32"),
        (["--image-frames", 3], "--image-frames: `num_frames` must be a multiple of"),
        (["--batch-size", 0], "--batch-size must be from 1 to 2147483647. Received: 0"),
        (["--batch_size", 0], "unknown option --batch_size"),
        (["--stride", -1], "--stride must be from 1 to 2147483647. Received: -1"),
        (["--stride", 10**30], "--stride must be from 1 to 2147483647."),
        (["--frame-step", 0], "--frame-step must be from 1 to 2147483647. Received: 0"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--output", ""], "argument --output: must be a path on this machine. Received: ''"),
        (
            ["--output", "gs://bucket/features"],
            "argument --output: must be a path on this machine.",
        ),
        (["--output", __file__], f"--output must be a folder. Received the file {__file__}"),
        (["--output", f"{__file__}/a"], "--output must be a folder that can be made"),
        (["--preset", ""], "--preset: `preset` must be a folder"),
        (["--max-file-seconds", "nan"], "`--max-file-seconds` must be positive and finite."),
    ],
)
def test_bad_options_are_one_line_that_names_them(
    preset, videos, tmp_path, capsys, options, message
):
    try:
        code = run(preset, videos, tmp_path / "out", *options)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_windows_that_no_memory_holds(preset, videos, tmp_path, monkeypatch, capsys):
    """As it is on an accelerator, whose memory nobody knows beforehand."""

    def fail(features):
        raise RuntimeError("CUDA out of memory. Tried to allocate 4 GiB.\nAnd a page more.")

    monkeypatch.setattr(extract_features.WindowFeatures, "files", fail)
    assert run(preset, videos, tmp_path / "out", "--image-size", 64) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert ": --image-size or --batch-size must be smaller, for there is not enough" in line
    assert line.endswith("CUDA out of memory. Tried to allocate 4 GiB.")


def test_a_folder_without_videos_is_an_error(preset, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "notes.txt").touch()
    assert run(preset, tmp_path / "videos", tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"source must hold videos or images. Received: {tmp_path / 'videos'}")
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


def test_another_model_at_the_same_place_is_refused(preset, two_presets, videos, tmp_path, capsys):
    videos = videos / "inner"
    assert run(preset, videos, tmp_path / "out") == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    moved = preset.rename(tmp_path / "moved")
    shutil.copytree(two_presets / "other", preset)
    capsys.readouterr()
    assert run(preset, videos, tmp_path / "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"must be another folder: {tmp_path / 'out'} holds features with model = " in line
    # The same model in another folder gives the same features.
    assert run(moved, videos, tmp_path / "out") == 0
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}


def test_what_changed_is_made_anew_and_counted(preset, videos, tmp_path, capsys, caplog):
    run(preset, videos, tmp_path / "out")
    expected = np.load(tmp_path / "out" / "inner" / "short.avi.npy")
    image = cv2.imread(str(videos / "image.png"))
    cv2.imwrite(str(videos / "image.png"), 255 - image)
    (tmp_path / "out" / "inner" / "short.avi.npy").write_bytes(b"")
    stale = np.load(tmp_path / "out" / "image.png.npy")
    capsys.readouterr()
    assert run(preset, videos, tmp_path / "out") == 1
    assert "3 of 6 files, 2 made now (replaced files: 1; damaged or unknown features: 1)" in (
        capsys.readouterr().out
    )
    assert "replaced since, made anew: image.png.npy" in caplog.text
    assert "damaged, made anew: inner/short.avi.npy" in caplog.text
    again = np.load(tmp_path / "out" / "inner" / "short.avi.npy")
    np.testing.assert_allclose(again, expected, atol=2e-6)
    assert abs(np.load(tmp_path / "out" / "image.png.npy") - stale).max() > 0.01


def test_a_file_that_became_unreadable_has_no_features_any_more(preset, videos, tmp_path, capsys):
    run(preset, videos, tmp_path / "out")
    (videos / "image.png").write_bytes(b"no image")
    assert run(preset, videos, tmp_path / "out") == 1
    assert "extract_features.py: 4 files cannot be read." in capsys.readouterr().err
    assert not (tmp_path / "out" / "image.png.npy").exists()


def test_features_that_are_spoiled_meanwhile_are_not_called_finished(
    preset, videos, tmp_path, monkeypatch, capsys
):
    made = tmp_path / "out" / "inner" / "short.avi.npy"
    for name in ("broken.mp4", "broken.jpg", "empty.avi"):
        (videos / name).unlink()
    assert run(preset, videos, tmp_path / "out") == 0
    (tmp_path / "out" / "image.png.npy").unlink()
    write = FeatureFolder.write

    def spoil(self, *arguments):
        made.write_bytes(b"")
        write(self, *arguments)

    monkeypatch.setattr(FeatureFolder, "write", spoil)
    capsys.readouterr()
    assert run(preset, videos, tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert f"{made} is damaged or gone again.\nextract_features.py: run the same command" in errors


def in_use(folder):
    """Hold the lock of a folder as another process does, until the file is closed."""
    folder.mkdir(exist_ok=True)
    file = open(folder / LOCK_FILE, "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_features_that_are_not_finite_are_not_written(number, preset, videos, tmp_path, capsys):
    backbone = VJEPABackbone.from_preset(preset)
    backbone.norm.beta.assign(backbone.norm.beta + number)
    backbone.save_to_preset(preset)
    assert run(preset, videos, tmp_path / "out") == 2
    [line] = [one for one in capsys.readouterr().err.splitlines() if "finite" in one]
    assert "--preset must give finite features in --dtype float32. Received: NaN or inf" in line
    assert files_in(tmp_path / "out") == ["settings.json"]


def test_one_run_a_folder(preset, videos, tmp_path, monkeypatch, capsys):
    """A second is refused before it loads the model; and if the first began meanwhile."""
    with in_use(tmp_path / "out"):
        assert run("no preset", videos, tmp_path / "out") == 2
    prepare, held = extract_features.prepare, []

    def during_loading(options):
        held.append(in_use(tmp_path / "later"))
        return prepare(options)

    monkeypatch.setattr(extract_features, "prepare", during_loading)
    assert run(preset, videos, tmp_path / "later") == 2
    held[0].close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line, name in zip(lines, ("out", "later"), strict=True):
        assert "--output must be a folder in which no other run is at work." in line
        assert files_in(tmp_path / name) == [LOCK_FILE]
    monkeypatch.undo()
    # Files that a killed process has left do no harm.
    assert run(preset, videos, tmp_path / "out") == 1
    assert LOCK_FILE not in files_in(tmp_path / "out")


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


def test_shards_lists_and_folders_of_frames(preset, videos, tmp_path, capsys):
    """Features of one video, however it is kept."""
    frames = read_frames(videos / "inner" / "short.avi", range(5))
    write_tar(tmp_path / "x.tar", {"b/s.avi": (videos / "inner" / "short.avi").read_bytes()})
    (tmp_path / "list.csv").write_text("videos/inner/short.avi 1\n")
    (tmp_path / "frames" / "s").mkdir(parents=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / "frames" / "s" / f"{number}.png"), frame[..., ::-1])
    found = []
    for source, name, *options in (
        (tmp_path / "x.tar", "s.avi.npy"),
        (tmp_path / "list.csv", "short.avi.npy"),
        (tmp_path / "frames", "s.npy", "--kind", "frames"),
        (tmp_path / "frames" / "s", "s.npy", "--kind", "frames"),
    ):
        output = tmp_path / f"out{len(found)}"
        assert run(preset, source, output, *options) == 0
        assert {*files_in(output)} == {name, "settings.json", "sources.jsonl"}
        found.append(np.load(output / name))
    for features in found[1:]:
        np.testing.assert_array_equal(features, found[0])
    # Members may have any names, and none of them leads out of the folder of features.
    content = (videos / "inner" / "short.avi").read_bytes()
    write_tar(tmp_path / "z.tar", {"../../a.avi": content, "/b.avi": content})
    assert run(preset, tmp_path / "z.tar", tmp_path / "odd") == 0
    names = {"%2e%2e/%2e%2e/a.avi.npy", "b.avi.npy", "settings.json", "sources.jsonl"}
    assert {*files_in(tmp_path / "odd")} == names
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(preset, f"{tmp_path}/y-{{0..3}}.tar", tmp_path / "out")
    assert "no such file or folder: " in capsys.readouterr().err


def test_addresses_tables_and_published_lists(preset, videos, tmp_path, monkeypatch):
    """Features of one video, from whatever source that `pretrain` takes."""
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    video = videos / "inner" / "short.avi"
    shutil.copy(video, folder / "short.avi")
    (folder / "list.csv").write_text("short.avi 1\n")
    write_tar(folder / "x.tar", {"b/short.avi": video.read_bytes()})
    (tmp_path / "shards").mkdir()
    shutil.copy(folder / "x.tar", tmp_path / "shards")
    (tmp_path / "val.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nyoga,short,0,10,val\n"
    )
    with serving(folder) as (address, _):
        (tmp_path / "table.jsonl").write_text(json.dumps({"clip": f"{address}/short.avi"}))
        found = []
        for source, *options in (
            (video,),
            (f"{address}/short.avi",),
            (f"{address}/list.csv",),
            (f"{address}/x.tar",),
            (tmp_path / "shards",),
            (tmp_path / "table.jsonl", "--path-column", "clip"),
            (tmp_path / "val.csv", "--videos", videos),
        ):
            output = tmp_path / f"out{len(found)}"
            assert run(preset, source, output, *options) == 0
            assert {*files_in(output)} == {"short.avi.npy", "settings.json", "sources.jsonl"}
            found.append(np.load(output / "short.avi.npy"))
        for features in found[1:]:
            np.testing.assert_array_equal(features, found[0])
        # As long as an address reports no change, nothing is computed again.
        before = (tmp_path / "out1" / "short.avi.npy").stat().st_mtime_ns
        assert run(preset, f"{address}/short.avi", tmp_path / "out1") == 0
        assert (tmp_path / "out1" / "short.avi.npy").stat().st_mtime_ns == before
