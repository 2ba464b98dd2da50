"""A preset of any checkpoint of a run, by the run's folder and the step."""

import shutil

import h5py
import keras
import numpy as np
import pytest

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.presets.integrity import damage
from keras_vjepa.presets.preset import check_preset, load_backbone
from keras_vjepa.tasks.checkpoint_presets import model_at
from keras_vjepa.tools import export_run
from keras_vjepa.training import Checkpoints
from keras_vjepa.training.kept_model import keep_model
from keras_vjepa.training.run_state import copy_training_state


def small_pretrainer():
    encoder = VJEPABackbone(16, 2, 8, hidden_dim=8, num_layers=1, num_heads=1, name="encoder")
    predictor = VJEPAPredictor(8, encoder.position_axes, 4, 1, 1, name="predictor")
    pretrainer = VJEPAPretrainer(encoder, predictor, name="pretrainer")
    pretrainer.compile(AdamW(1e-2))
    return pretrainer


@pytest.fixture
def run(tmp_path):
    """Checkpoints of the steps 2 and 4, as a run leaves them, and the weights of each."""
    keras.utils.set_random_seed(0)
    pretrainer = small_pretrainer()
    run = tmp_path / "run"
    checkpoints = Checkpoints(run / "checkpoints")
    for step in (2, 4):
        pretrainer.set_weights([weight + step for weight in weights_of(pretrainer)])
        state = copy_training_state(pretrainer)
        checkpoints.save(step, {**state, "losses": np.arange(float(step))}, {"run": {}})
        checkpoints.wait()
    keep_model(run, pretrainer)
    return run, pretrainer


def weights_of(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def assert_equal(found, expected, less=0):
    for one, other in zip(weights_of(found), weights_of(expected), strict=True):
        np.testing.assert_allclose(one, other - less, rtol=0, atol=1e-6 if less else 0)


def test_a_checkpoint_is_a_preset_by_its_step(run, capsys):
    folder, pretrainer = run
    last = VJEPABackbone.from_preset(f"{folder}@last")
    assert_equal(last, pretrainer.target_encoder)
    assert_equal(load_backbone(f"{folder}@4"), pretrainer.target_encoder)
    # The preset is made only once.
    assert capsys.readouterr().err.count("the preset of step 4") == 1
    assert_equal(VJEPAPretrainer.from_preset(f"{folder}@2").encoder, pretrainer.encoder, less=4)


def test_a_preset_outlives_its_checkpoint(run):
    folder, pretrainer = run
    check_preset(f"{folder}@2")
    first = VJEPABackbone.from_preset(f"{folder}@2")
    shutil.rmtree(folder / "checkpoints")
    assert_equal(VJEPABackbone.from_preset(f"{folder}@2"), first)
    with pytest.raises(FileNotFoundError, match="there are those of no step. Received: .*@4"):
        check_preset(f"{folder}@4")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("run@3", "`encoder` must be RUN@STEP .* of .*run there are those of 2, 4. Received: .*@3"),
        ("run", "run without one; .*run@last is its last checkpoint, of step 4"),
        ("run/preset", "a run writes at its end; .*run@last is its last checkpoint, of step 4"),
        ("other@3", "`encoder` must be the folder of a preset. Received: .*other@3"),
    ],
)
def test_what_is_not_there_is_said(run, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        check_preset(str(run[0].parent / name), "encoder")


@pytest.mark.data
def test_a_folder_may_have_such_a_name(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run@2")
    with pytest.raises(FileNotFoundError, match="run@2@last is its last"):
        check_preset(tmp_path / "run@2")


@pytest.mark.data
def test_the_command(run, tmp_path, capsys):
    folder, pretrainer = run
    export_run.main([f"{folder}@2", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'out'}, the preset of step 2.\n"
    assert_equal(VJEPABackbone.from_preset(tmp_path / "out"), pretrainer.target_encoder, less=4)
    with pytest.raises(SystemExit, match="^x: `step` must be .* where there are 2, 4. Received: 9"):
        export_run.main([f"{folder}@9", str(tmp_path / "out")], "x")
    with pytest.raises(SystemExit, match="^x: `run` must be a folder with checkpoints of a run"):
        export_run.main([str(tmp_path), str(tmp_path / "out")], "x")


@pytest.mark.data
def test_a_preset_may_have_half_the_size(run, tmp_path):
    folder, _ = run
    export_run.main([str(folder), str(tmp_path / "whole")])
    export_run.main([str(folder), str(tmp_path / "half"), "--half-precision"])
    whole, half = (VJEPAPretrainer.from_preset(tmp_path / name) for name in ("whole", "half"))
    assert damage(tmp_path / "half") is None
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {path.name for path in (tmp_path / "half").iterdir()}
    for name in (name for name in names if name.endswith(".h5")):
        sizes = []
        for one in ("whole", "half"):
            with h5py.File(tmp_path / one / name) as file:
                sizes.append(_bytes_of(file))
        assert sizes[1] == sizes[0] // 2 > 0
    for one, other in zip(whole.weights, half.weights, strict=True):
        values, found = (keras.ops.convert_to_numpy(weight) for weight in (one, other))
        assert found.dtype == values.dtype
        expected = values.astype("float16") if values.dtype == "float32" else values
        np.testing.assert_array_equal(found, expected)


def _bytes_of(group):
    return sum(_bytes_of(x) if isinstance(x, h5py.Group) else x.nbytes for x in group.values())


@pytest.mark.data
def test_weights_too_large_for_half_precision_are_refused(tmp_path):
    backbone = VJEPABackbone(16, 2, 8, 1, 8, 1, 2)
    backbone.norm.gamma.assign([7e4] * 8)
    with pytest.raises(
        ValueError, match="`half_precision` must be False for weights beyond 65,504"
    ):
        backbone.save_to_preset(tmp_path / "half", half_precision=True)
    assert not (tmp_path / "half").exists()


@pytest.mark.data
def test_a_run_of_before_is_known_by_the_preset_that_it_left(run):
    folder, pretrainer = run
    (folder / "model.json").unlink()
    with pytest.raises(ValueError, match="must hold model.json.*continue the run"):
        model_at(folder)
    pretrainer.save_to_preset(folder / "preset")
    assert_equal(model_at(folder, 2)[0].predictor, pretrainer.predictor, less=4)


@pytest.mark.data
def test_damage_is_said(run):
    folder, _ = run
    [path] = (folder / "checkpoints").glob("step-00000002-*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="is damaged: its content does not fit the hash"):
        VJEPABackbone.from_preset(f"{folder}@2")
    (folder / "model.json").write_text("{}")
    with pytest.raises(ValueError, match="model.json"):
        model_at(folder)
