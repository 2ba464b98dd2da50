"""Results that are damaged are named, and not taken for what a run left."""

import json
import os
import shutil

import pytest

from keras_vjepa.training.results import damaged_result, read_result
from tests.support import BEFORE_THE_HOUSE

pytestmark = pytest.mark.data


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"steps": 6}))
    shutil.copytree(BEFORE_THE_HOUSE / "presets" / "backbone_sincos", tmp_path / "preset")
    return tmp_path


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def make_a_list(path):
    path.write_text("[1]")


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def not_utf_8(path):
    path.write_bytes(b'{"steps": "\xe9"}')


def nest_deep(path):
    path.write_text('{"a":' * 3000 + "1" + "}" * 3000)


def make_a_number(path):
    path.write_text("3")


def make_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = (cut, make_a_list, make_a_number, make_a_folder, make_a_pipe, nest_deep, not_utf_8)


@pytest.mark.parametrize("do", [*DAMAGES, os.remove])
def test_a_damaged_file_is_no_result(do, workdir):
    names = ["config.json"]
    assert read_result(workdir / "config.json") == {"steps": 6}
    assert damaged_result(workdir, names, ["preset"]) is None
    do(workdir / "config.json")
    assert read_result(workdir / "config.json") is None
    assert damaged_result(workdir, names, ["preset"]) == f"{workdir / 'config.json'} is damaged"


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_a_damaged_preset_is_named(name, workdir):
    cut(workdir / "preset" / name)
    problem = damaged_result(workdir, ["config.json"], ["preset", "untrained"])
    assert problem.startswith(f"{workdir / 'preset' / name} is ")
    # A result that was never written is not damaged.
    assert damaged_result(workdir, ["config.json"], ["untrained"]) is None
