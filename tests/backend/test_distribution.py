"""Data-parallel runs equal one process on one device, on loopback; and stop when a process dies."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import types

import keras
import numpy as np
import pytest

from keras_vjepa.backend import collectives, distribution
from keras_vjepa.configuration import replace
from keras_vjepa.data.sources.digit_motion import prepare_digit_motion
from keras_vjepa.data.sources.digit_motion_rendering import DigitMotionConfig
from keras_vjepa.recipes import pretrain, probe
from keras_vjepa.recipes.pretrain_configs import digit_motion
from tests.backend import data_parallel_worker as worker
from tests.recipes.test_pretrain_recipe import SHRUNK
from tests.support import ROOT, WITHOUT_TENSORFLOW, slow_but_on

BACKEND = keras.config.backend()
WORKER = ["-m", "tests.backend.data_parallel_worker"]
# How the launcher or runtime of each backend names process 1 when it dies.
DEATH_NOTICE = {
    "torch": "rank      : 1",
    "jax": r"(Task |task:)1 heartbeat timeout",  # JAX 0.10 and JAX 0.7
    "tensorflow": "task:1",
}
RECIPE = ROOT / "recipes" / "pretrain.py"


def environment(virtual_devices=1, flags=""):
    """Of a process on this backend; JAX and torch do without TensorFlow, which Keras would load."""
    flags = f"{os.environ['XLA_FLAGS']} {flags}"
    path = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={virtual_devices}",
        "PYTHONPATH": path if BACKEND == "tensorflow" else f"{WITHOUT_TENSORFLOW}:{path}",
    }


def launch(command, count=1, virtual_devices=1, flags=""):
    """Start the processes of a run, each as its backend's launcher would."""
    running = []
    for several in distribution.environments(count):
        running.append(
            subprocess.Popen(
                [sys.executable, *command],
                env={**environment(virtual_devices, flags), **several},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return running


def finish(running, timeout=480):
    """Exit codes and outputs; no process is left behind."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return [process.returncode for process in running], outputs


@pytest.fixture(scope="module")
def alone():
    """Losses and final state of one process on one device."""
    pretrainer = worker.make_pretrainer()
    losses = worker.train(distribution.setup(), pretrainer)
    return losses, worker.state(pretrainer)


def assert_equal(losses, state, alone):
    expected_losses, expected = alone
    np.testing.assert_allclose(losses, expected_losses, rtol=0, atol=1e-6)
    assert set(state) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(state[name], value, rtol=0, atol=1e-6, err_msg=name)


def run(tmp_path, count=1, flags="", **options):
    command = [*WORKER, str(tmp_path / "run.npz"), json.dumps(options)]
    codes, outputs = finish(launch(command, count, options.get("virtual_devices", 1), flags))
    assert codes == [0] * count, "\n".join(outputs)
    arrays = np.load(tmp_path / "run.npz")
    return arrays["losses"], states_in(arrays), outputs


def states_in(arrays):
    return {name[6:]: arrays[name] for name in arrays if name.startswith("state:")}


def evaluation_of(folder, workdir, **options):
    """Arguments of an evaluation of the built-in set as folders of classes, made where missing."""
    videos = folder / "videos"
    if not videos.exists():
        config = DigitMotionConfig(num_frames=16, num_training_videos=40, num_test_videos=13)
        prepare_digit_motion(folder / "made", config, None).folder.rename(videos)
        for video in [*videos.glob("*/*.mp4")]:
            label = video.parent / str(int(video.stem) % 10)
            label.mkdir(exist_ok=True)
            video.rename(label / video.name)
        (videos / "test" / "3" / "broken.mp4").write_bytes(b"no video")
    options |= {"data": videos, "tasks": "motion", "num_classes": 10, "max_bad_share": 0.5}
    options |= {"image_size": 16, "num_frames": 4, "temporal_stride": 4, "preset": "untrained"}
    options |= {"batch_size": 8, "feature_batch_size": 8, "epochs": 1}
    options["workdir"] = folder / workdir
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Exit codes, outputs and folder of two processes that train, and evaluate; then one dies.

    On torch as a user starts them.
    """
    folder = tmp_path_factory.mktemp("two_processes")
    # Neither the whole batch nor a process's share of it is divisible by 3.
    options = {"accumulation_steps": 3, "dying_process": 1, "heartbeat": 10}
    options |= {
        "classifier": BACKEND != "tensorflow",
        "evaluation": evaluation_of(folder, "several"),
    }
    command = [*WORKER, str(folder / "run.npz"), json.dumps(options)]
    if BACKEND != "torch":
        return *finish(launch(command, count=2)), folder
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.Popen(
        [sys.executable, *launcher, *command],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return *finish([process]), folder


def test_two_processes_equal_one(alone, two_processes):
    _, outputs, folder = two_processes
    arrays = np.load(folder / "run.npz")
    assert_equal(arrays["losses"], states_in(arrays), alone)
    # Both processes print the line before training, and the first one again before evaluating.
    assert "\n".join(outputs).count(f"2 processes, 2 devices on {BACKEND}") == 3
    if BACKEND == "jax":
        # Neither process has set a seed, but both draw the same weights.
        drawn = [re.search(r"drawn: (\S+)", output).group(1) for output in outputs]
        assert drawn[0] == drawn[1]


def test_a_dead_process_ends_the_run(two_processes):
    """Process 1 dies in its third step; the others end by themselves, not after a timeout."""
    codes, outputs, folder = two_processes
    print(outputs[0][-6000:])
    assert 0 not in codes
    assert re.search(DEATH_NOTICE[BACKEND], outputs[0])
    assert not (folder / "finished").exists()


@pytest.mark.skipif(BACKEND == "tensorflow", reason="Keras takes a batch of its own to build with")
def test_a_classifier_with_an_optimizer_of_keras_equals_one_process(two_processes):
    """Gradients are averaged once: by us, and not by Keras 3.16 as well."""
    _, outputs, folder = two_processes
    assert (folder / "classifier.npz").is_file(), "\n".join(outputs)
    losses, weights = worker.train_classifier(distribution.ALONE)
    found = np.load(folder / "classifier.npz")
    np.testing.assert_allclose(found["losses"], losses, rtol=0, atol=1e-6)
    state = states_in(found)
    assert len(state) == len(weights)
    for i, weight in enumerate(weights):
        np.testing.assert_allclose(state[str(i)], weight, rtol=0, atol=1e-6)


@pytest.mark.skipif(BACKEND == "torch", reason="torch has a process per device")
@slow_but_on("jax")
def test_four_devices_equal_one(alone, tmp_path):
    dump = tmp_path / "programs"
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_module_re=jit_train_step.*"
    losses, state, [output] = run(
        tmp_path, virtual_devices=4, by_head=True, flags=flags if BACKEND == "jax" else ""
    )
    assert_equal(losses, state, alone)
    assert f"1 process, 4 devices on {BACKEND}" in output
    if BACKEND == "jax":
        # A device that gathers the rows of others would repeat their work.
        [program] = dump.glob("*after_optimizations.txt")
        assert "all-reduce(" in program.read_text()
        assert "all-gather(" not in program.read_text()


def test_remat_and_accumulation_give_the_same_numbers(alone):
    pretrainer = worker.make_pretrainer(remat=True, accumulation_steps=4)
    losses = worker.train(distribution.ALONE, pretrainer)
    assert_equal(losses, worker.state(pretrainer), alone)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX shards parameters")
def test_sharded_parameters_give_the_same_numbers(alone, tmp_path):
    losses, state, outputs = run(tmp_path, count=2, virtual_devices=2, shard_parameters=True)
    assert_equal(losses, state, alone)
    assert all("2 processes, 4 devices on jax (ModelParallel" in output for output in outputs)
    # A device holds a quarter of the blocks' kernels and of their optimizer state, and all of the
    # rest.
    kernels = sum(v.size for name, v in state.items() if re.search(r"block_\d+.*kernel", name))
    expected = 1 - 0.75 * kernels / sum(v.size for v in state.values())
    shares = [float(output.split("share held: ")[1].split()[0]) for output in outputs]
    assert shares == pytest.approx([expected] * 2, abs=1e-3)


@pytest.mark.slow
def test_the_recipe_goes_on_with_another_number_of_processes(tmp_path):
    """One, two, one: the losses of a run that one process did, and one that writes and speaks."""
    videos = prepare_digit_motion(
        tmp_path, DigitMotionConfig(num_training_videos=8, num_test_videos=4), None
    ).folder
    steps = {"steps": 6, "checkpoint_every": 2, "keep_last": 3}
    fields = {**SHRUNK, **steps, "data": str(videos)}
    whole, in_two, alone_again = (tmp_path / name for name in ("whole", "in_two", "alone_again"))

    def go_on(workdir, before, step):
        (workdir / "checkpoints").mkdir(parents=True)
        [checkpoint] = (before / "checkpoints").glob(f"step-{step:08d}-*")
        shutil.copy(checkpoint, workdir / "checkpoints")

    config = replace(digit_motion(), **fields)
    pretrain.run(config, whole)
    assert (whole / "preset" / "model.weights.h5").is_file()
    go_on(in_two, whole, step=2)
    options = [text for name, value in fields.items() for text in (f"--{name}", str(value))]
    codes, outputs = finish(launch([str(RECIPE), *options, "--workdir", str(in_two)], count=2))
    assert codes == [0, 0], "\n".join(outputs)
    assert [output.count("Saved") for output in outputs] == [1, 0]
    assert "Going on from step 2" in outputs[0]
    assert (in_two / "preset" / "model.weights.h5").is_file()
    go_on(alone_again, in_two, step=4)
    pretrain.run(config, alone_again)
    expected, *losses = (
        np.loadtxt(workdir / "loss.csv", delimiter=",", skiprows=1)
        for workdir in (whole, in_two, alone_again)
    )
    assert len(expected) == 6
    np.testing.assert_allclose(losses, [expected] * 2, rtol=0, atol=1e-5)


def test_a_batch_that_the_devices_do_not_divide_is_named():
    parallel = distribution.DataParallel(0, 2, 8, "an engine")
    parallel.check_batch_size(32, accumulation_steps=2)
    with pytest.raises(ValueError, match=r"`batch_size` must be a multiple of 16 .* Received: 24"):
        parallel.check_batch_size(24, accumulation_steps=2)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX shards parameters")
def test_sharding_elsewhere_is_an_error():
    with pytest.raises(ValueError, match="`shard_parameters` must be False on "):
        distribution.setup(shard_parameters=True)


@pytest.mark.skipif(BACKEND != "torch", reason="one process drives all devices elsewhere")
def test_torch_starts_a_process_for_each_device(monkeypatch):
    import torch

    started = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(os, "execv", lambda program, arguments: started.append(arguments))
    monkeypatch.setattr(sys, "argv", ["recipes/pretrain.py", "--steps", "5"])
    distribution.launch_on_all_devices()
    monkeypatch.setenv("WORLD_SIZE", "8")
    distribution.launch_on_all_devices()
    monkeypatch.delenv("WORLD_SIZE")
    # `python -m keras_vjepa` leaves `__main__` like this.
    main = types.ModuleType("__main__")
    main.__spec__ = importlib.util.find_spec("keras_vjepa.__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [main.__spec__.origin, "pretrain", "--steps", "5"])
    distribution.launch_on_all_devices()
    by_file, by_name = (arguments[3:] for arguments in started)
    launcher = ["--standalone", "--nproc_per_node=8"]
    assert by_file == [*launcher, "recipes/pretrain.py", "--steps", "5"]
    assert by_name == [*launcher, "-m", "keras_vjepa", "pretrain", "--steps", "5"]


@pytest.mark.skipif(BACKEND != "torch", reason="one process drives all devices elsewhere")
def test_batches_are_made_on_the_device_of_their_process(monkeypatch):
    """A new thread would begin on the first device, where a decoder's features are not computed."""
    import torch

    chosen = []

    def choose(device):
        chosen.append((device, threading.current_thread() is threading.main_thread()))

    stream = types.SimpleNamespace(device=torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.setattr(distribution, "has_accelerator", lambda: True)
    assert [*distribution.ALONE.feed(iter(()))] == []
    assert chosen == [(stream.device, False)]


def test_one_of_several_processes_leaves_at_once(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="the disk is full"):
        collectives.exit_with_error("the disk is full")
    if BACKEND == "jax":
        codes = []
        monkeypatch.setattr("jax.process_count", lambda: 2)
        monkeypatch.setattr(os, "_exit", codes.append)
        with pytest.raises(SystemExit):
            collectives.exit_with_error("the disk is full")
        assert codes == [1] and capsys.readouterr().err == "the disk is full\n"


def assert_equal_evaluations(alone, several):
    """Of the folders of two; a test video that cannot be read counts once."""
    expected, found = (
        json.loads((workdir / "result.json").read_text())["splits"][0]["motion"]
        for workdir in (alone, several)
    )
    assert found["num_counted"] == 14 and found["predictions"].count(None) == 1
    assert found["predictions"] == expected["predictions"]
    assert found["candidates"] == expected["candidates"]


def test_an_evaluation_by_two_processes_equals_one_by_one(two_processes):
    """On features that both compute."""
    _, outputs, folder = two_processes
    assert (folder / "several").is_dir(), "\n".join(outputs)
    probe.run(*probe.parse_arguments(evaluation_of(folder, "one")))
    assert_equal_evaluations(folder / "one", folder / "several")
    features = [sorted((folder / name).glob("features/*/*.npy")) for name in ("one", "several")]
    assert len(features[0]) == len(features[1]) == 2
    for expected, array in zip(*features, strict=True):
        np.testing.assert_allclose(np.load(array), np.load(expected), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_evaluation_by_several_devices_equals_one_by_one(tmp_path, monkeypatch):
    """On augmented clips, which no features are kept of."""
    probe.run(*probe.parse_arguments(evaluation_of(tmp_path, "one", augment=True)))
    count, devices = (2, 1) if BACKEND == "torch" else (1, 4)
    code = (
        "from tests.backend import data_parallel_worker as worker; "
        "from keras_vjepa.recipes import probe; "
        f"worker.virtual_devices({devices}); probe.main()"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    command = ["-c", code, *evaluation_of(tmp_path, "several", augment=True)]
    codes, outputs = finish(launch(command, count, devices))
    assert codes == [0] * count, "\n".join(outputs)
    assert f"{count * devices} devices on {BACKEND}" in outputs[0]
    assert_equal_evaluations(tmp_path / "one", tmp_path / "several")
    assert not [*tmp_path.glob("*/features/*/*.npy")]
