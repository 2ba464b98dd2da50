"""The command that draws what a model makes of a video."""

import json
from argparse import Namespace

import keras
import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.data.reading.video import video_info
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.pictures import token_states
from keras_vjepa.pictures.loading import load_pictured
from keras_vjepa.pictures.masks import hidden_share
from keras_vjepa.tools import picture
from tests.support import slow_but_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(64, 4, hidden_dim=24, num_layers=1, num_heads=2)
    encoder.save_to_preset(folder / "encoder")
    predictor = VJEPAPredictor(24, encoder.grid_shape, 12, 1, 2)
    VJEPAPretrainer(encoder, predictor).save_to_preset(folder / "pretrained")
    frames = np.random.default_rng(0).integers(0, 256, (9, 48, 64, 3), np.uint8)
    write_motion_jpeg(folder / "clip.avi", frames, 12)
    (folder / "no_video.mp4").write_text("nothing")
    return folder


def run(folder, kind, video, preset, output, *more):
    paths = [str(folder / video), "--preset", str(folder / preset), "--output", str(output)]
    return picture.main([kind, *paths, *more])


@pytest.mark.parametrize(
    "kind,more",
    [
        ("pca", []),
        ("attention", ["--heads", "0", "1"]),
        ("similarity", ["--patch", "0", "1", "1"]),
        ("surprise", ["--known", "past"]),
        pytest.param("surprise", [], marks=slow_but_on("torch")),
        ("masks", ["--mask", "tube", "random"]),
    ],
)
def test_every_kind(kind, more, folder, tmp_path, capsys):
    assert run(folder, kind, "clip.avi", "pretrained", tmp_path / "out.gif", *more) == 0
    assert [one.name for one in tmp_path.iterdir()] == ["out.gif"]
    said = capsys.readouterr().out
    assert said.endswith("out.gif.\n")
    assert ("clip 0: " in said) == (kind == "surprise")


def test_a_surprise_needs_what_should_have_been_predicted(folder, tmp_path, capsys):
    encoder = VJEPABackbone(64, 4, hidden_dim=24, num_layers=1, num_heads=2)
    predictor = VJEPAPredictor(24, encoder.grid_shape, 12, 1, 2)
    VJEPAPretrainer(encoder, predictor, target="given").save_to_preset(folder / "distilled")
    with pytest.raises(SystemExit):
        run(folder, "surprise", "clip.avi", "distilled", tmp_path / "out.png")
    error = capsys.readouterr().err
    assert "distilled from a teacher that is not in it" in error and error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


def test_a_video_has_frames_size_and_rate_of_the_input(folder, tmp_path):
    pytest.importorskip("av")
    run(folder, "pca", "clip.avi", "encoder", tmp_path / "out.mp4")
    given, made = video_info(folder / "clip.avi"), video_info(tmp_path / "out.mp4")
    assert (made.num_frames, made.height, made.fps) == (given.num_frames, given.height, given.fps)
    assert made.width == 2 * given.width


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["pca", "clip.avi", "encoder", "out.webm"], "--output must end in .mp4 or .gif or"),
        (["neighbors", "clip.avi", "encoder", "out.gif"], "--output must end in .png or .jpg"),
        (["pca", "clip.avi", "encoder", "none/out.png"], "--output must be a file in a folder"),
        (["pca", "no_video.mp4", "encoder", "out.png"], "no_video.mp4"),
        (["pca", "gone.mp4", "encoder", "out.png"], "no such file"),
        (["pca", "clip.avi", "encoders", "out.png"], "did you mean"),
        (["surprise", "clip.avi", "encoder", "out.png"], "--preset must have a predictor"),
        (["attention", "clip.avi", "encoder", "out.png", "--layer", "1"], "--layer must be"),
        (["attention", "clip.avi", "encoder", "out.png", "--heads", "2"], "--heads must be"),
        (["similarity", "clip.avi", "encoder", "out.png", "--patch", "0", "2", "9"], "row 0 to 2"),
        (
            ["pca", "clip.avi", "encoder", "out.png", "--patch", "0", "0", "0"],
            "--patch is an option",
        ),
        (["pca", "clip.avi", "encoder", "out.png", "--start", "9"], "--start must be a frame"),
        (["pca", "clip.avi", "encoder", "out.png", "--num-frames", "0"], "--num-frames must be"),
        (["pca", "clip.avi", "encoder", "out.png", "--frame-step", "0"], "--frame-step must be"),
        (["pac", "clip.avi", "encoder", "out.png"], "invalid choice: 'pac'"),
        (["pca", "clip.avi", "encoder", "out.png", "--head", "0"], "did you mean --heads?"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, message, folder, tmp_path, capsys):
    kind, video, preset, output, *more = arguments
    with pytest.raises(SystemExit) as stopped:
        run(folder, kind, video, preset, tmp_path / output, *more)
    assert stopped.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("picture")]
    assert message in line
    assert not list(tmp_path.iterdir())


def test_masks_and_steps_are_those_of_the_run(tmp_path):
    backbone = VJEPABackbone(64, 4, hidden_dim=24, num_layers=1, num_heads=2)
    backbone.save_to_preset(tmp_path / "run" / "preset")
    own = {"masks": "random_tokens", "mask_ratio": 0.5, "num_frames": 4, "temporal_stride": 3}
    (tmp_path / "run" / "options.json").write_text(json.dumps(own))
    preset = str(tmp_path / "run" / "preset")
    options = Namespace(preset=preset, mask=None, seed=0)
    sampler, labels = picture.masks_of(options, load_pictured(preset))
    assert hidden_share(token_states(sampler, 2)) == 0.5 and labels == ["mask 0"]
    assert picture.step_of(preset) == 3
    options.mask = ["tube"]
    assert picture.masks_of(options, load_pictured(preset))[1] == ["tube"]
