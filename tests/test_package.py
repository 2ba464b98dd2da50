"""The package as users get it: a wheel, installed where there is no checkout and one backend."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vjepa.backend.choice import BACKENDS
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from tests.support import GOLDEN, ROOT, slow_but_on

BACKEND = keras.config.backend()
SHRUNK = """--patch_size 16 --hidden_dim 24 --num_layers 1 --num_heads 2
    --predictor_hidden_dim 12 --predictor_num_layers 1 --context_budgets 28,8
    --target_budgets 20,44 --batch_size 2 --steps 2 --warmup_steps 1 --dtype float32"""
PROBE = """--config k400 --num_classes 2 --image_size 64 --num_frames 8 --temporal_stride 1
    --num_clips 1 --batch_size 4 --feature_batch_size 4 --epochs 1 --learning_rates 1e-3
    --weight_decays 0 --dtype float32 --readouts false --augment false"""


def test_the_wheel_has_every_folder_and_no_more():
    """`pyproject.toml` lists them, since recipes and tools are mapped into the package."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("keras_vjepa/**/__init__.py")}
    listed = {".".join(folder.parts) for folder in folders}
    mapped = {f"keras_vjepa.{name}" for name in ("recipes", "tools")}
    assert set(settings["packages"]) == listed | mapped
    for name in mapped:
        assert settings["package-dir"][name] == name.split(".")[-1]


# --- An installation -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the checkout gets no `build` folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("keras_vjepa", "recipes", "tools"):
        shutil.copytree(
            ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*command, "-w", str(folder), str(folder / "source")], check=True)
    [built] = folder.glob("*.whl")
    return built


def installation(folder, wheel, backends):
    """An environment with the wheel, and of this one's packages all but the other backends."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    [site] = (folder / "lib").glob("python*/site-packages")
    left_out = [*(set(BACKENDS) - set(backends)), "keras_vjepa", "__editable__"]
    for path in reversed([Path(path) for path in sys.path if path.endswith("site-packages")]):
        for package in path.iterdir():
            if not package.name.startswith(tuple(left_out)) and package.suffix != ".pth":
                (site / package.name).unlink(missing_ok=True)
                (site / package.name).symlink_to(package)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "-q"]
    subprocess.run([*command, "--no-index", str(wheel)], check=True)
    return python


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    return installation(tmp_path_factory.mktemp("installed"), wheel, [BACKEND])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A working folder outside the checkout, with two classes of videos and a list of them."""
    folder, rng, rows = tmp_path_factory.mktemp("home"), np.random.default_rng(0), []
    for number in range(8):
        path = folder / "videos" / f"{number}.avi"
        write_motion_jpeg(path, rng.integers(256, size=(8, 40, 48, 3), dtype=np.uint8), 24)
        rows.append(f"{path} {number % 2}\n")
    (folder / "labelled.csv").write_text("".join(rows))
    return folder


def run(program, home, **environment):
    """Run a program that must end well, in a folder and an environment of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept.pop("KERAS_BACKEND", None)
    done = subprocess.run(
        list(map(str, program)),
        capture_output=True,
        text=True,
        cwd=home,
        env={**kept, "HOME": str(home), "KERAS_VJEPA_CACHE": str(home / "cache"), **environment},
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout + done.stderr
    return done


@pytest.mark.data
def test_what_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("py.typed", "files.py", "__main__.py", "recipes/pretrain.py", "tools/bench.py"):
        assert f"keras_vjepa/{name}" in names
    assert {"keras_vjepa/data/sources/digits.npz", "keras_vjepa/recipes/README.md"} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"keras_vjepa", "keras_vjepa-0.1.0.dist-info"}
    [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "keras-vjepa = keras_vjepa.__main__:main" in text


@slow_but_on("torch")
def test_the_commands_from_a_wheel(python, home):
    """The only backend that is installed is found; nothing of the checkout is needed."""
    command = [python.parent / "keras-vjepa"]
    done = run([*command, "pretrain", "--data", "videos", *SHRUNK.split()], home)
    runs_on = [line for line in done.stderr.splitlines() if "the only backend" in line]
    assert len(runs_on) == (BACKEND != "tensorflow") and all(BACKEND in line for line in runs_on)
    preset = home / "workdir" / "digit_motion" / "preset"
    assert (preset / "config.json").is_file()
    by_name = [python, "-m", "keras_vjepa"]
    data = ["--data", "labelled.csv", "--test_data", "labelled.csv"]
    done = run([*by_name, "probe", "--preset", preset, *data, *PROBE.split()], home)
    assert "top-1" in done.stdout
    run([*command, "features", "videos", "--preset", preset, "--output", "features"], home)
    assert np.load(home / "features" / "7.avi.npy").shape == (1, 24)
    checkpoint = GOLDEN / "tiny.pth.tar"
    run([*command, "convert", checkpoint, "tiny", "--num-heads", 4], home)
    run([*command, "export", "tiny", "tiny.pth.tar"], home)
    assert (home / "tiny.pth.tar").is_file()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="torch's launcher")
def test_torchrun_takes_the_module(python, home):
    launcher = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "keras_vjepa", "pretrain", "--data", "videos", *SHRUNK.split()]
    done = run([*command, "--workdir", "two"], home, OMP_NUM_THREADS="1")
    assert "2 processes, 2 devices" in done.stderr
    assert (home / "two" / "preset" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.data
def test_programs_of_the_checkout(home):
    """The editable way: the file, and the command, are the same program."""
    help_of_file, help_of_command = (
        run([sys.executable, *program, "--help"], home, KERAS_BACKEND=BACKEND).stdout
        for program in ([ROOT / "recipes" / "pretrain.py"], ["-m", "keras_vjepa", "pretrain"])
    )
    assert help_of_file.startswith("usage: pretrain.py ")
    name = "python -m keras_vjepa pretrain"
    assert help_of_file.replace("pretrain.py", name, 1) == help_of_command


@pytest.mark.data
def test_an_installation_without_a_backend(wheel, tmp_path):
    python = installation(tmp_path / "installed", wheel, [])
    assert run([python.parent / "keras-vjepa", "--help"], tmp_path).stdout.count("\n") > 10
    for program in ([python.parent / "keras-vjepa", "masks"], [python, "-c", "import keras_vjepa"]):
        with pytest.raises(AssertionError, match="A backend must be installed: pip install"):
            run(program, tmp_path)
