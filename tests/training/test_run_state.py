"""Checkpoints: what is in them, which are kept, and what damage or a full disk does."""

import errno
import os
import subprocess

import keras
import numpy as np
import pytest

from keras_vjepa import AdamW
from keras_vjepa.training.run_state import (
    Checkpoints,
    copy_training_state,
    restore_training_state,
    training_variables,
)
from tests.support import left_over, random_batch


def state(step):
    return {"a/kernel": np.full((50, 40), step, "float32"), "iteration": np.array(step)}


def save(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, state(step), {"seed": 1})
    checkpoints.wait()


def file_of(folder, step):
    [path] = folder.glob(f"step-{step:08d}-*.npz")
    return path


# --- Files ---------------------------------------------------------------------------------------


@pytest.mark.data
def test_the_newest_comes_back(tmp_path):
    save(Checkpoints(tmp_path), 3, 12)
    found = Checkpoints(tmp_path).latest()
    assert (found.step, found.description) == (12, {"seed": 1})
    assert found.arrays.keys() == state(12).keys()
    for name, array in state(12).items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype
    assert Checkpoints(tmp_path / "nothing").latest() is None


@pytest.mark.data
def test_equal_states_have_equal_files(tmp_path):
    save(Checkpoints(tmp_path / "a"), 3)
    save(Checkpoints(tmp_path / "b"), 3)
    first, second = (file_of(tmp_path / name, 3) for name in "ab")
    assert first.name == second.name and first.read_bytes() == second.read_bytes()


@pytest.mark.data
def test_the_last_and_every_nth_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=10)
    save(checkpoints, 5, 10, 15, 20, 25, 30, 35)
    assert checkpoints.steps() == [10, 20, 30, 35]
    # A protected checkpoint is kept as long as something needs it.
    checkpoints.protected = frozenset({35})
    save(checkpoints, 36, 37)
    assert checkpoints.steps() == [10, 20, 30, 35, 36, 37]
    checkpoints.protected = frozenset()
    save(checkpoints, 38)
    assert checkpoints.steps() == [10, 20, 30, 37, 38]
    with pytest.raises(ValueError, match="`keep_last` must be at least 1"):
        Checkpoints(tmp_path, keep_last=0)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.data
@pytest.mark.parametrize("damage", [truncate, empty, flip_bit])
def test_a_damaged_one_is_named_and_the_one_before_it_used(damage, tmp_path, caplog):
    save(Checkpoints(tmp_path), 3, 6)
    damage(file_of(tmp_path, 6))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest().step == 3
    assert str(file_of(tmp_path, 6)) in caplog.text
    # The damaged checkpoint does not count among the last two.
    save(checkpoints, 9)
    assert checkpoints.steps() == [3, 9]


def make_a_folder(path):
    path.unlink()
    path.mkdir()
    (path / "of somebody").write_text("kept")


@pytest.mark.data
def test_a_folder_with_a_checkpoint_s_name_is_in_nobody_s_way(tmp_path, caplog):
    save(Checkpoints(tmp_path), 3, 6)
    blocked = file_of(tmp_path, 6)
    make_a_folder(blocked)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest().step == 3
    assert f"{blocked}: it is no file" in caplog.text
    # The run reaches the same step with the same state, so its file has exactly this name.
    save(checkpoints, 6)
    assert blocked.is_file() and Checkpoints(tmp_path).latest().step == 6
    moved = blocked.with_name(f"{blocked.name}.folder")
    assert (moved / "of somebody").read_text() == "kept"
    save(checkpoints, 9, 12)
    assert checkpoints.steps() == [9, 12] and moved.is_dir()


@pytest.mark.data
def test_a_folder_that_is_the_only_one_is_named(tmp_path, caplog):
    save(Checkpoints(tmp_path), 3)
    make_a_folder(file_of(tmp_path, 3))
    with pytest.raises(OSError, match="None of the 1 checkpoints in .* can be read. Move that"):
        Checkpoints(tmp_path).latest()
    assert str(file_of(tmp_path, 3)) in caplog.text


@pytest.mark.data
def test_all_damaged_is_an_error(tmp_path):
    save(Checkpoints(tmp_path), 3)
    flip_bit(file_of(tmp_path, 3))
    with pytest.raises(OSError, match="None of the 1 checkpoints in .* can be read"):
        Checkpoints(tmp_path).latest()


@pytest.mark.data
def test_what_is_not_finite_is_not_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 3)
    checkpoints.save(6, {"a/kernel": np.array([1.0, np.inf])}, {})
    with pytest.raises(FloatingPointError, match="a/kernel is not finite after step 6"):
        checkpoints.wait()
    assert checkpoints.steps() == [3]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, with room for 1 MiB; remounted by the tests."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    # The folder is unmounted lazily, because NumPy 2.0 leaves a file open if it could not write all
    # of it.
    subprocess.run(["umount", "-l", str(folder)], check=True)


def assert_the_last_good_one_survives(folder, message):
    checkpoints = Checkpoints(folder)
    checkpoints.save(6, {"large": np.random.default_rng(0).normal(size=200_000)}, {})
    with pytest.raises(OSError, match=message) as error:
        checkpoints.wait()
    assert "The last one is of step 3." in str(error.value)
    assert [path.name for path in folder.iterdir()] == [file_of(folder, 3).name]
    assert Checkpoints(folder).latest().step == 3


@pytest.mark.data
def test_a_full_disk(small_disk):
    save(Checkpoints(small_disk), 3)
    assert_the_last_good_one_survives(small_disk, "step 6 cannot be written to .*: No space left")


@pytest.mark.data
def test_a_read_only_folder(small_disk):
    save(Checkpoints(small_disk), 3)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert_the_last_good_one_survives(small_disk, "step 6 cannot be written to .*: Read-only")


@pytest.mark.data
def test_a_disk_that_fails_where_nothing_can_be_mounted(tmp_path, monkeypatch):
    save(Checkpoints(tmp_path), 3)

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert_the_last_good_one_survives(tmp_path, "No space left on device")


@pytest.mark.data
def test_what_a_killed_process_left_goes_away(tmp_path):
    left_over(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    save(checkpoints, 3)
    assert [path.name for path in tmp_path.iterdir()] == [file_of(tmp_path, 3).name]


# --- A model's state -----------------------------------------------------------------------------


class SaveOnce(keras.callbacks.Callback):
    """Copies the state after a step, in the middle of an epoch."""

    def __init__(self, after):
        super().__init__()
        self.after, self.state = after, None

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.after:
            self.state = copy_training_state(self.model)


def train(pretrainer, steps, callbacks=()):
    batches = [random_batch(step, pretrainer) for step in steps]
    pretrainer.fit(
        ((batch,) for batch in batches),
        steps_per_epoch=len(batches),
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


def test_training_goes_on_bit_by_bit(tiny_pretrainer, tmp_path):
    def compiled():
        copy = type(tiny_pretrainer).from_config(tiny_pretrainer.get_config())
        copy.set_weights(tiny_pretrainer.get_weights())
        copy.compile(AdamW(1e-3, clip_norm=1.0))
        return copy

    whole, resumed = compiled(), compiled()
    saved = SaveOnce(after=2)
    train(whole, range(4), [saved])
    # The stored state is a copy, and not a view of arrays that training changes afterwards.
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, saved.state, {})
    checkpoints.wait()
    restore_training_state(resumed, checkpoints.latest().arrays)
    assert int(resumed.optimizer.iterations) == 2
    train(resumed, range(2, 4))
    expected = copy_training_state(whole)
    for name, array in copy_training_state(resumed).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_state_of_another_model_is_named(tiny_pretrainer):
    with pytest.raises(ValueError, match="must be compiled"):
        training_variables(tiny_pretrainer)
    tiny_pretrainer.compile(AdamW())
    good = copy_training_state(tiny_pretrainer)
    before = tiny_pretrainer.get_weights()
    name = next(iter(good))
    for arrays in (
        {k: v for k, v in good.items() if k != name},
        {**good, "more": np.zeros(3)},
        {**good, name: np.zeros((3, 3))},
    ):
        with pytest.raises(ValueError, match="The checkpoint must be of this model: "):
            restore_training_state(tiny_pretrainer, arrays)
    for was, now in zip(before, tiny_pretrainer.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)


def test_a_model_that_was_made_a_second_time_is_the_same(tmp_path):
    """Keras then numbers its layers, and with them all paths."""

    def made():
        model = keras.Sequential([keras.Input((3,)), *(keras.layers.Dense(3) for _ in range(2))])
        model.compile(keras.optimizers.Adam())
        model.optimizer.build(model.trainable_variables)
        return model

    first, second = made(), made()
    state = copy_training_state(first)
    assert state.keys() != copy_training_state(second).keys()
    # A file stores them in the same order.
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    restore_training_state(second, checkpoints.latest().arrays)
    for was, now in zip(state.values(), copy_training_state(second).values(), strict=True):
        np.testing.assert_array_equal(was, now)
    turned = dict(reversed(state.items()))
    with pytest.raises(ValueError, match="must be of this model"):
        restore_training_state(second, turned)


def test_bfloat16_survives(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="bfloat16")])
    model.compile(keras.optimizers.SGD())
    model.optimizer.build(model.trainable_variables)
    kernel = keras.ops.convert_to_numpy(model.layers[0].kernel).astype("float32")
    checkpoints = Checkpoints(tmp_path)
    state = copy_training_state(model)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    model.layers[0].kernel.assign(np.zeros((3, 2)))
    again = copy_training_state(model, into=state)
    assert all(again[path] is array for path, array in state.items())
    assert not again[model.layers[0].kernel.path].any()
    restore_training_state(model, checkpoints.latest().arrays)
    restored = keras.ops.convert_to_numpy(model.layers[0].kernel).astype("float32")
    np.testing.assert_array_equal(restored, kernel)
