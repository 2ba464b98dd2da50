"""Training a decoder and sampling from it, by the command."""

import json
import shutil
from argparse import Namespace

import keras
import numpy as np
import pytest

from keras_vjepa import (
    FeatureDecoder,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoPreprocessor,
    training,
)
from keras_vjepa.command_line import text_of
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.reading.video import video_info
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.decoding import Regions, region_clips, region_in_tokens, region_sampler
from keras_vjepa.models.diffusion_network import DiffusionNetwork
from keras_vjepa.monitoring.run_tables import read_run
from keras_vjepa.pictures import writing
from keras_vjepa.pictures.decoded import HiddenRegion
from keras_vjepa.recipes import decode as recipe
from keras_vjepa.recipes.decode_configs import CONFIGS
from keras_vjepa.recipes.pretrain_objects import make_samples
from keras_vjepa.tasks.region_features import RegionFeatures, check_made_for
from keras_vjepa.tools import child_runs, decode, decode_evaluate, decode_table
from keras_vjepa.training.resumable import RunCallback
from tests.backend.test_distribution import finish, launch
from tests.support import slow_but_on

SMALL = {
    "width": 8, "multipliers": (1,), "groups": 4, "batch_size": 2, "num_workers": 1,
    "warmup_steps": 1, "steps": 4, "checkpoint_every": 2, "temporal_stride": 1,
}  # fmt: skip


def save_pretrained(folder, image_size=32, **arguments):
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(image_size, 2, 8, 1, 8, 1, 2)
    predictor = VJEPAPredictor(8, encoder.grid_shape, 8, 1, 2)
    VJEPAPretrainer(encoder, predictor, **arguments).save_to_preset(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decode")
    save_pretrained(folder / "pretrained")
    (folder / "videos").mkdir()
    for number in range(4):
        frames = np.random.default_rng(number).integers(0, 256, (6, 32, 48, 3), np.uint8)
        write_motion_jpeg(folder / "videos" / f"{number}.avi", frames, 12)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    recipe.run(config(folder), folder / "run")
    return folder / "run"


def config(folder, **more):
    given = {"preset": str(folder / "pretrained"), "data": str(folder / "videos")}
    return replace(CONFIGS["digit_motion_black"](), **{**given, **SMALL, **more})


@slow_but_on("torch")
def test_training_leaves_a_preset_and_the_tables_of_a_run(trained):
    names = {path.name for path in trained.iterdir()}
    assert {"preset", "report.html", "loss.csv", "steps.csv", "options.json"} <= names
    network = FeatureDecoder.from_preset(trained / "preset").network
    assert (network.clip_shape, network.grid_shape) == ((2, 16, 16), (2, 2, 2))


@pytest.mark.slow
def test_two_processes_train_the_decoder_of_one(folder, trained, tmp_path):
    given = {"preset": folder / "pretrained", "data": folder / "videos", **SMALL}
    words = [f"--{name}={text_of(value)}" for name, value in given.items()]
    command = ["-m", "keras_vjepa", "decode", "train", *words, f"--workdir={tmp_path / 'run'}"]
    codes, outputs = finish(launch(command, count=2))
    assert codes == [0, 0], outputs
    found, expected = (
        FeatureDecoder.from_preset(one / "preset").get_weights()
        for one in (tmp_path / "run", trained)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


class StopError(Exception):
    """Raised in place of a kill."""


class StopAfter(RunCallback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise StopError


@slow_but_on("torch")
def test_a_run_that_was_stopped_ends_with_the_same_weights(folder, trained, tmp_path, monkeypatch):
    run = training.run
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "LossCurve", lambda workdir: StopAfter())
        with pytest.raises(StopError):
            recipe.run(config(folder), tmp_path)
    assert run is training.run
    recipe.run(config(folder), tmp_path)
    whole, stopped = (FeatureDecoder.from_preset(one / "preset") for one in (trained, tmp_path))
    for one, other in zip(whole.get_weights(), stopped.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    options = (tmp_path / "options.json").read_bytes()
    with pytest.raises(ValueError, match="another config: region"):
        recipe.run(config(folder, region=(8, 16)), tmp_path)
    # A run that is refused does not replace the options of the one that is there.
    assert (tmp_path / "options.json").read_bytes() == options


@slow_but_on("torch")
def test_a_finished_run_is_not_made_again(folder, trained, monkeypatch, capsys):
    def load(*_, **__):
        raise AssertionError("a model was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "load_pictured", load)
        recipe.run(config(folder, num_workers=2), trained)
        assert "holds this run, finished: 4 steps" in capsys.readouterr().err
        with pytest.raises(AssertionError):
            recipe.run(config(folder, learning_rate=1e-4), trained)
    weights = trained / "preset" / "decoder.weights.h5"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    recipe.run(config(folder), trained)
    assert "are made anew from the checkpoint" in capsys.readouterr().err
    assert len(weights.read_bytes()) == len(whole)


@pytest.mark.data
def test_help_shows_all_actions(capsys):
    with pytest.raises(SystemExit) as ended:
        decode.main(["--help"], "decode")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in ("train", "sample", "evaluate", "table"))
    assert "--seeds" not in said
    for words in ([], ["draw"], ["clip.mp4", "--seeds", "4"]):
        with pytest.raises(SystemExit) as ended:
            decode.main(words, "decode")
        error = capsys.readouterr().err
        assert ended.value.code == 2 and "action" in error and error.count("\n") == 1


def arguments_of(folder, output, *more, decoder="run/preset", preset="pretrained"):
    video = str(folder / "videos" / "0.avi")
    named = {"--preset": preset, "--decoder": decoder}
    paths = [part for name, path in named.items() for part in (name, str(folder / path))]
    return ["sample", video, *paths, "--output", str(output), "--steps", "2", *more]


@slow_but_on("torch")
def test_a_video_has_a_row_for_each_seed(folder, trained, tmp_path, capsys):
    pytest.importorskip("av")
    output = tmp_path / "out.mp4"
    assert decode.main(arguments_of(folder, output, "--seeds", "3")) == 0
    made = video_info(output)
    # The columns are the input, the hidden part, and the seeds. Frames of 32 x 48 are enlarged
    # three times.
    assert (made.num_frames, made.height, made.width) == (2, 96, 5 * 144)
    assert decode.main(arguments_of(folder, tmp_path / "out.png", "--kind", "target")) == 0
    assert "step 2/2" in capsys.readouterr().err


@slow_but_on("torch")
@pytest.mark.parametrize(("start", "step"), [(0, 1), (3, 1), (1, 2)])
def test_a_picture_has_the_times_of_the_video(folder, trained, tmp_path, monkeypatch, start, step):
    shown = []

    def look(cells, columns, title):
        shown.extend(columns)
        return np.zeros((8, 8, 3), "uint8")

    monkeypatch.setattr(writing, "sheet", look)
    more = ["--seeds", "0", "--start", str(start), "--frame-step", str(step)]
    assert decode.main(arguments_of(folder, tmp_path / "out.png", *more)) == 0
    # The video has 12 frames per second.
    assert shown == [f"{frame / 12:.2f} s" for frame in (start, start + step)]


@slow_but_on("torch")
@pytest.mark.parametrize(
    ("more", "named", "words"),
    [
        (["--place", "3", "0"], {}, "--place must be a row from 0 to 2 and a column from 0 to 2"),
        (["--place", "-1", "0"], {}, "--place must be at least 0"),
        ([], {"decoder": "pretrained"}, "--decoder must be a folder that holds decoder.json"),
        ([], {"decoder": "nothing"}, "--decoder must be"),
        ([], {"preset": "other"}, "--decoder must be of this preset, whose tokens are 2 x 1 x 2"),
        ([], {"preset": "twin"}, "--decoder must be trained on the features of this preset"),
        (["--start", "6"], {}, "--start must be a frame of the video"),
        (["--seeds", "-1"], {}, "--seeds must be at least 0"),
        (["--steps", "2000"], {}, "--steps must be at most 1,000"),
        (["--guidance", "-1"], {}, "--guidance must be in (0, 100]. Received: -1.0"),
    ],
)
def test_bad_input_is_answered_in_one_line(folder, trained, more, named, words, tmp_path, capsys):
    if named.get("preset") == "other":
        save_pretrained(folder / "other", (8, 16))
    if named.get("preset") == "twin":
        save_pretrained(folder / "twin")
        twin = VJEPAPretrainer.from_preset(folder / "twin")
        twin.predictor.weights[0].assign_add(1.0)
        twin.predictor.weights[0].assign(np.ones(twin.predictor.weights[0].shape))
        twin.save_to_preset(folder / "twin")
    with pytest.raises(SystemExit) as ended:
        decode.main(arguments_of(folder, tmp_path / "out.png", *more, **named), "decode")
    assert ended.value.code == 2
    [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("decode: ")]
    assert words in line
    assert not (tmp_path / "out.png").exists()


@pytest.mark.data
@pytest.mark.parametrize("action", ["sample", "evaluate"])
def test_guidance_without_training_for_it_is_refused(action, folder, tmp_path, capsys):
    """What a decoder draws without features, if it was never trained so, is noise."""
    decoder = tmp_path / "run" / "preset"
    decoder.mkdir(parents=True)
    (decoder / "decoder.json").write_text("{}")
    line = [action, *[str(folder / "videos" / "0.avi")][: action == "sample"]]
    line += ["--preset", str(folder / "pretrained"), "--decoder", str(decoder)]
    line += ["--output", str(tmp_path / "made.png")]
    for kinds, guidance, words in (
        (
            (0, 1, 0),
            "2",
            "--guidance must be 1 for a decoder that was not trained without features",
        ),
        ((0, 1, 0), "1", "decoder"),
        ((0.2, 0.4, 0.4), "2", "decoder"),
    ):
        options = json.dumps(values(config(folder, kinds=kinds)))
        (tmp_path / "run" / "options.json").write_text(options)
        with pytest.raises(SystemExit) as ended:
            decode.main([*line, "--guidance", guidance], "decode")
        error = capsys.readouterr().err
        assert ended.value.code and words in error and ("trained" in error) == (len(words) > 9)
    assert not (tmp_path / "made.png").exists()


@slow_but_on("torch")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"region": (12, 16)}, "`region` must be multiples of 8"),
        ({"region": (32, 32)}, "`region` must leave something around it"),
        ({"multipliers": (1, 1, 1, 1, 1, 1)}, "`clip_shape` must have sides that 32 divides"),
    ],
)
def test_regions_that_do_not_fit_are_refused(folder, more, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        recipe.run(config(folder, **more), tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


@pytest.mark.data
def test_options_are_checked_before_anything_is_made(tmp_path, capsys):
    for option, words in (
        ("--kinds=0,0,0", "not all 0"),
        ("--kinds=2,0,0", "--kinds must be in [0, 1]"),
        ("--region=0,8", "--region must be at least 1"),
        ("--noise_steps=0", "--noise_steps must be at least 1"),
        ("--noise_steps=20", "--noise_steps must be at least 21"),
        ("--noise_steps=100000", "--noise_steps must be at most 65,536"),
        ("--average=1", "--average must be in [0, 1)"),
        ("--condition=mean", "--condition must be"),
    ):
        with pytest.raises(SystemExit) as ended:
            decode.main(["train", "--preset", "here", option], "decode")
        assert ended.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        decode.main(["train"], "decode")
    assert "--preset must be given" in capsys.readouterr().err
    network = CONFIGS["paper"]().network
    assert (network.width, network.num_blocks, network.multipliers) == (192, 3, (1, 2, 3, 4))


@pytest.mark.data
@pytest.mark.parametrize(
    ("grid", "rows", "columns"),
    [((2, 4, 4), 2, 2), ((8, 14, 14), 6, 5), ((1, 3, 7), 1, 6), ((2, 24, 24), 23, 24)],
)
def test_one_box_is_hidden_over_all_time(grid, rows, columns):
    drawn = region_sampler(grid, rows, columns)(step=3, batch_size=4)
    assert drawn["target_indices_0"].shape == (4, grid[0] * rows * columns)
    for around, within in zip(*drawn.values(), strict=True):
        row, column = divmod(int(within[0]), grid[2])
        expected = HiddenRegion(grid, rows, columns, row, column).tokens
        np.testing.assert_array_equal(around, expected[0])
        np.testing.assert_array_equal(within, expected[1])


@pytest.mark.data
def test_regions_are_cut_where_their_tokens_are():
    videos = np.random.default_rng(0).uniform(size=(2, 2, 16, 24, 3)).astype("float32")
    regions = Regions((2, 4, 6), 4, 2, 3, (8, 12), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    targets = region_sampler((2, 4, 6), 2, 3)(0, 2)["target_indices_0"]
    found = regions.pixels(videos, targets)
    top, left = regions.place(targets[1])
    cut = videos[1, :, top : top + 8, left : left + 12]
    np.testing.assert_allclose(found[1], (2 * (cut * 0.25 + 0.5) - 1).clip(-1, 1), atol=1e-6)
    small = Regions((2, 4, 6), 4, 2, 3, (4, 6), (0, 0, 0), (1, 1, 1)).pixels(videos, targets)
    assert small.shape == (2, 2, 4, 6, 3)
    np.testing.assert_allclose(small[1].mean(), 2 * cut.mean() - 1, atol=1e-4)
    # A region that gets narrower alone loses no pixels either.
    narrow = Regions((2, 4, 6), 4, 2, 3, (8, 3), (0, 0, 0), (1, 1, 1)).pixels(videos, targets)
    expected = 2 * cut.reshape(2, 8, 3, 4, 3).mean(axis=3) - 1
    np.testing.assert_allclose(narrow[1], expected, atol=1e-4)


@pytest.mark.data
@pytest.mark.parametrize(
    "more, mean", [({}, (0.5, 0.25, 0.75)), ({"mean": (0.1,) * 3}, (0.1,) * 3)]
)
def test_clips_have_the_colours_of_the_preset(folder, more, mean, tmp_path):
    preset = shutil.copytree(folder / "pretrained", tmp_path / "preset")
    own = {"mean": (0.5, 0.25, 0.75), "std": (0.25, 0.5, 0.5)}
    VJEPAVideoPreprocessor.from_preset(preset, **own).save_to_preset(preset)
    sizes = Namespace(image_size=(32, 32), grid_shape=(2, 4, 4), num_frames=2, patch_size=8)
    given = config(folder, preset=str(preset), **more)
    clips, regions = region_clips(given, make_samples(given), sizes, (2, 2), (16, 16))
    assert clips.transform.mean == regions.mean == mean
    assert clips.transform.std == regions.std == own["std"]


@slow_but_on("torch")
def test_the_colours_that_are_used_are_recorded(folder, tmp_path, monkeypatch):
    """The options said the usual ones, as did the description by which a run continues."""
    preset = shutil.copytree(folder / "pretrained", tmp_path / "preset")
    own = {"mean": (0.5, 0.25, 0.75), "std": (0.25, 0.5, 0.5)}
    VJEPAVideoPreprocessor.from_preset(preset, **own).save_to_preset(preset)
    given = config(folder, preset=str(preset), steps=2)
    recipe.run(given, tmp_path / "run")
    recorded = [
        json.loads((tmp_path / "run" / f"{name}.json").read_text())
        for name in ("options", "finished")
    ]
    for found in (*recorded, read_run(tmp_path / "run").options):
        assert (found["mean"], found["std"]) == ([*own["mean"]], [*own["std"]])
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "load_pictured", None)  # it is finished
        recipe.run(given, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for name, words in (("empty", "must have a predictor"), ("gone", "there is no such folder")):
        with pytest.raises((OSError, ValueError), match=words):
            recipe.run(replace(given, preset=str(tmp_path / name)), tmp_path / "other")
    usual = replace(given, mean=(0.485, 0.456, 0.406))
    with pytest.raises(ValueError, match=r"config: mean \[0.5, 0.25, 0.75\] -> \[0.485, 0.456"):
        recipe.run(usual, tmp_path / "run")


@pytest.mark.data
def test_a_region_without_a_pixel_is_named():
    region = HiddenRegion((2, 4, 4), 1, 2, 0, 1)
    assert region.pixels(4, 3) == (0, 0, 1, 2)
    with pytest.raises(ValueError, match="a pixel for each of 4 x 4 patches. Received: frames of"):
        region.pixels(3, 3)


def test_a_region_of_pixels_in_tokens():
    encoder = VJEPABackbone((16, 32), 2, 8, 1, 8, 1, 2)
    assert region_in_tokens((8, 16), encoder) == (1, 2)
    with pytest.raises(ValueError, match="`region` must be multiples of 8, the side of a patch"):
        region_in_tokens((24, 8), encoder)


@pytest.mark.slow
def test_an_evaluation_says_what_is_seen_of_each_kind(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, 8, 2, 8, 1, 2)
    predictor = VJEPAPredictor(8, encoder.grid_shape, 8, 1, 2)
    VJEPAPretrainer(encoder, predictor).save_to_preset(tmp_path / "pretrained")
    given = config(tmp_path, data="digit_motion_black", steps=2, temporal_stride=2)
    recipe.run(given, tmp_path / "run")
    line = ["evaluate", "--preset", str(tmp_path / "pretrained"), "--clips", "60", "--steps", "2"]
    line += ["--decoder", str(tmp_path / "run" / "preset"), "--seeds", "2", "--epochs", "10"]
    line += ["--train-clips", "8000", "--output", str(tmp_path / "evaluation.json")]
    assert decode.main(line) == 0
    said = capsys.readouterr()
    assert "none: 100 of 100 clips decoded" in said.err and len(said.out.splitlines()) == 7
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["num_clips"] == 100 and found["options"]["seeds"] == 2
    shown = found["found"]
    assert list(shown) == ["real", "target", "predicted", "predicted of another clip", "none"]
    # The classifier reads real regions. A decoder of two steps draws nothing that it could read.
    assert shown["real"]["motion"]["accuracy"] > 0.2 > shown["none"]["motion"]["accuracy"]
    assert shown["real"]["direction"] > 0.99 and abs(shown["none"]["direction"]) < 0.2
    # Features of an encoder that was never trained tell something of the motion.
    read = {kind: one["features"] for kind, one in shown.items() if "features" in one}
    assert list(read) == ["target", "predicted"]
    assert read["target"]["motion"]["accuracy"] > 0.15
    # Of clips that show it, most are of a class that is easily seen: chance is no longer a tenth.
    number = round(100 * shown["real"]["motion"]["accuracy"])
    assert shown["target"]["motion"]["shown"]["clips"] == number
    assert "shown" not in shown["real"]["motion"]
    # The noise of a seed is that of every clip, so that without features clips are all alike.
    assert shown["none"]["varying_share"] == pytest.approx(1, abs=1e-6)


class Shows:
    """Stands for a classifier: the first pixel of a clip is its class."""

    def classes(self, samples):
        return {"digit": samples[..., 0, 0, 0, 0].astype("int64")}


def test_accuracy_of_clips_that_show_their_class():
    pixels = np.zeros((4, 2, 2, 2, 3), "uint8")
    pixels[:, 0, 0, 0, 0] = 5, 6, 7, 0
    real = decode_evaluate.HiddenRegions(pixels, {"digit": np.array([5, 6, 8, 9])}, {})
    samples = np.zeros((4, 2, 2, 2, 2, 3), "uint8")
    # Of the first clip one of two samples is right, of the second both, of the third one.
    samples[:, :, 0, 0, 0, 0] = [[5, 1], [6, 6], [8, 2], [0, 0]]
    shown = {"digit": np.array([True, True, False, False])}
    found = decode_evaluate.measured(Shows(), real, samples, shown)["digit"]
    assert found["accuracy"] == 0.5
    assert found["shown"]["accuracy"] == 0.75 and found["shown"]["clips"] == 2
    nowhere = {"digit": np.zeros(4, bool)}
    assert "shown" not in decode_evaluate.measured(Shows(), real, samples, nowhere)["digit"]


@pytest.mark.slow
def test_a_table_has_the_mean_over_decoders_and_is_not_made_twice(tmp_path, capsys, monkeypatch):
    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(32, 4, 8, 2, 8, 1, 2)
    predictor = VJEPAPredictor(8, encoder.grid_shape, 8, 1, 2)
    VJEPAPretrainer(encoder, predictor).save_to_preset(tmp_path / "pretrained")
    line = ["table", str(tmp_path / "table"), "--preset", str(tmp_path / "pretrained")]
    line += ["--train-steps", "2", "--clips", "50", "--train-clips", "200", "--epochs", "1"]
    line += ["--timesteps", "2", "--seeds"]
    assert decode.main([*line, "1", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "table" / "table.md").read_text()
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in shown.splitlines()}
    assert [cell.count("(2)") for cell in rows["motion"]] == [1] * 5
    # Real regions have no samples to compare, and only features that are given can be read.
    agreeing = rows["motion, samples of a clip that agree"]
    assert [cell.strip(" |") != "" for cell in agreeing] == [False, True, True, True, True]
    read = rows["digit, read of the features"]
    assert [cell.strip(" |") != "" for cell in read] == [False, True, True, False, False]
    numbers = json.loads((tmp_path / "table" / "table.json").read_text())
    [by_kind] = numbers.values()
    one, other = by_kind["none"]["variance of pixels among samples of a clip"].values()
    assert one == pytest.approx(1, abs=1e-6) and other == pytest.approx(1, abs=1e-6)
    one, other = by_kind["target"]["direction, 100 x the cosine"].values()
    assert one != other
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "run", None)
        assert decode.main([*line, "2", "1"]) == 0
        assert capsys.readouterr().out == shown
        with pytest.raises(SystemExit, match=r"--timesteps 2 -> 3, --train-steps 2 -> 3$"):
            decode.main(["3" if word == "2" else word for word in line] + ["1"])


@pytest.mark.data
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "1"], "--samples must be at least 2. Received: 1"),
        (["--train-steps", "0"], "--train-steps must be at least 1. Received: 0"),
        # A decoder has a thousand, which is said before one is trained.
        (["--timesteps", "1001"], "--timesteps must be at most 1,000. Received: 1001"),
        (["--seeds", "1", "-1"], "--seeds must be at least 0. Received: -1"),
        (["--guidance", "-1"], "--guidance must be in (0, 100]. Received: -1.0"),
        (["--kinds", "0,0,0"], "--kinds must be shares of none, predicted, target, not all 0."),
        (["--kinds", "1,2"], "--kinds: must be"),
        (["--kinds", "0,1,nan"], "--kinds must be in [0, 1]. Received: nan"),
        (["--kinds", "0,1,0", "--guidance", "4"], "--guidance must be 1 for a decoder that was"),
        (["--condition", "attend"], "argument --condition: invalid choice: 'attend'"),
        (["--jobs", "0"], "--jobs must be at least 1. Received: 0"),
        (["--jobs", "100000"], "--jobs must be at most the number of cores"),
    ],
)
def test_a_table_refuses_in_one_line(folder, tmp_path, more, message, capsys):
    with pytest.raises(SystemExit):
        decode.main(["table", str(tmp_path / "t"), "--preset", str(folder / "pretrained"), *more])
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "t").exists()


@slow_but_on("torch")
def test_a_table_of_a_preset_that_is_refused_leaves_no_folder(folder, tmp_path, capsys):
    save_pretrained(tmp_path / "small", 16)
    VJEPAPretrainer.from_preset(folder / "pretrained").encoder.save_to_preset(tmp_path / "encoder")
    for preset, words in (("small", "must leave something around"), ("encoder", "predictor")):
        with pytest.raises(SystemExit) as ended:
            decode.main(["table", str(tmp_path / "t" / "t"), "--preset", str(tmp_path / preset)])
        assert words in str(ended.value.code) + capsys.readouterr().err
        assert not (tmp_path / "t").exists()


@pytest.mark.data
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1. Received: 0"),
        (["--clips", "0"], "--clips must be at least 1. Received: 0"),
        (["--guidance", "nan"], "--guidance must be in (0, 100]. Received: nan"),
        (["--preset", "nowhere"], "--preset"),
        (["--output", ""], "--output must be a file that can be written. Received: ."),
        (["--output", "/dev/null/found.json"], "--output must be a file that can be written"),
        (["--output", f"/{'long' * 100}.json"], "--output must be a file that can be written"),
    ],
)
def test_an_evaluation_refuses_in_one_line(folder, more, message, capsys):
    line = ["evaluate", "--preset", str(folder / "pretrained"), "--decoder", "nowhere", *more]
    with pytest.raises(SystemExit):
        decode.main(line)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.data
def test_an_evaluation_names_a_decoder_that_is_none(folder, capsys):
    preset = str(folder / "pretrained")
    with pytest.raises(SystemExit):
        decode.main(["evaluate", "--preset", preset, "--decoder", preset])
    error = capsys.readouterr().err
    assert "--decoder" in error and error.count("\n") == 1


def decoder_of(clip_shape, grid, **arguments):
    network = DiffusionNetwork(clip_shape, 8, grid, 8, (1,), 1, (), condition="pooled", groups=4)
    return FeatureDecoder(network, **arguments)


@slow_but_on("torch")
@pytest.mark.parametrize(
    ("clip_shape", "grid", "words"),
    [
        ((4, 16, 16), (2, 2, 2), "whose clips have 2 frames. Received: one for clips of 4"),
        ((2, 32, 32), (2, 4, 4), "must be of regions that leave something of the clip"),
    ],
)
def test_a_decoder_that_cannot_draw_into_clips_is_refused(folder, clip_shape, grid, words):
    features = RegionFeatures(VJEPAPretrainer.from_preset(folder / "pretrained"))
    decoder = decoder_of(clip_shape, grid, made_for=features.fingerprint)
    with pytest.raises(ValueError, match=words):
        check_made_for(decoder, features, "pretrained")


@slow_but_on("torch")
def test_weights_that_are_damaged_are_no_samples():
    decoder = decoder_of((2, 8, 8), (2, 1, 1))
    assert decoder.sample(np.zeros((1, 2, 8), "float32"), steps=1).shape == (1, 1, 2, 8, 8, 3)
    decoder.averaged.set_weights([np.full_like(one, np.nan) for one in decoder.averaged.weights])
    with pytest.raises(ValueError, match="the decoder's weights must be finite"):
        decoder.sample(np.zeros((1, 2, 8), "float32"), steps=1)


@pytest.mark.data
def test_a_table_trains_with_the_clips_that_it_measures(folder, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(recipe, "run", lambda config, _: given.append(config))
    options = Namespace(preset=str(folder / "pretrained"), data="digit_motion", train_steps=3)
    options.workdir = tmp_path
    decode_table.train(options, 1)
    monkeypatch.setattr(decode_table, "step_of", lambda preset: 3)
    assert decode_table.train(options, 2) == tmp_path / "decoder 2" / "preset"
    assert [one.clip.frame_step for one in given] == [2, 3]
    options.condition, options.kinds = "attended", (0.1, 0.6, 0.3)
    decode_table.train(options, 3)
    assert [one.network.condition for one in given] == ["grid", "grid", "attended"]
    assert given[-1].kinds == (0.1, 0.6, 0.3) != given[0].kinds


@slow_but_on("torch")
def test_decoders_side_by_side_are_those_of_one_after_the_other(folder, tmp_path, monkeypatch):
    """Decoders that are trained in processes of their own are found finished by the table."""
    monkeypatch.setattr(child_runs, "usable_cores", lambda: 2)
    line = ["--preset", str(folder / "pretrained"), "--train-steps", "2", "--clips", "20"]
    line += ["--train-clips", "40", "--epochs", "1", "--timesteps", "2", "--seeds", "1", "2"]
    line += ["--condition", "attended", "--kinds", "0.5,0.25,0.25"]
    found = []
    for jobs in ("2", "1"):
        workdir = tmp_path / jobs
        assert decode.main(["table", str(workdir), *line, "--jobs", jobs]) == 0
        found.append(json.loads((workdir / "table.json").read_text()))
        one = json.loads((workdir / "decoder 1" / "options.json").read_text())
        assert one["condition"] == "attended" and one["kinds"] == [0.5, 0.25, 0.25]
    assert json.dumps(found[0]) == json.dumps(found[1])
    assert (tmp_path / "2" / "decoder 2.log").read_text().strip()
    # Decoders whose numbers are there are not trained again, and other settings are refused.
    shutil.rmtree(tmp_path / "2" / "decoder 1")
    assert decode.main(["table", str(tmp_path / "2"), *line, "--jobs", "2"]) == 0
    assert not (tmp_path / "2" / "decoder 1").exists()
    with pytest.raises(SystemExit, match=r"--kinds 0.5,0.25,0.25 -> 0.2,0.4,0.4$"):
        decode.main(["table", str(tmp_path / "2"), *line, "--kinds", "0.2,0.4,0.4"])


@pytest.mark.data
def test_a_missing_video_is_said_before_a_model_is_loaded(folder, tmp_path, capsys):
    preset, output = str(folder / "pretrained"), tmp_path / "out.png"
    line = ["sample", "gone.mp4", "--preset", preset, "--decoder", preset, "--output", str(output)]
    output.touch()
    with pytest.raises(SystemExit):
        decode.main(line, "decode")
    assert "Cannot read the video gone.mp4: no such file\n" in capsys.readouterr().err
