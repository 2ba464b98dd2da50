"""A fixed sample of damaged checkpoints and presets ends in a model or in one named line."""

import copy

import pytest

from keras_vjepa.conversion import torch_archive
from tests.conversion import fuzz, mutants

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def sound():
    return mutants.sound_artefacts()


def write(folder, artefact):
    folder.mkdir()
    for name, content in artefact.items():
        (folder / name).write_bytes(content)
    return folder


def test_sound_artefacts_load(sound, tmp_path):
    assert set(sound) == set(fuzz.loaders())
    for kind, artefact in sound.items():
        assert fuzz.load(kind, write(tmp_path / kind, artefact)) == "loaded", kind


def test_damaged_artefacts(sound, tmp_path):
    outcomes = []
    for i, (kind, artefact) in enumerate(mutants.damaged(sound, 90, seed=1)):
        outcomes.append(fuzz.load(kind, write(tmp_path / str(i), artefact)))
        assert outcomes[-1] in ("loaded", "named"), (i, kind)
    # Both outcomes occur often enough for the test to mean something.
    assert outcomes.count("named") > 40 and outcomes.count("loaded") > 5


def test_the_same_seed_makes_the_same_artefacts(sound):
    extremes = copy.deepcopy(mutants.EXTREMES)
    # HDF5 files contain the time at which they were written.
    kinds = {kind: sound[kind] for kind in ("authors", "hugging_face", "probe")}
    first, second = (list(mutants.damaged(kinds, 30, seed=2)) for _ in "ab")
    assert mutants.EXTREMES == extremes
    names = [name for kind, one in first for name in one if not name.endswith(".tar")]
    assert names
    for (_, one), (_, other) in zip(first, second, strict=True):
        assert all(one[n] == other[n] for n in one if not n.endswith(".tar"))


def test_another_exception_and_several_lines_are_noticed(sound, tmp_path, monkeypatch):
    folder = write(tmp_path / "a", sound["authors"])
    for error, outcome in (
        (KeyError("x"), "KeyError"),
        (torch_archive.CheckpointError("a\nb"), "named in several lines"),
        (torch_archive.CheckpointError("x"), "not named"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("keras_vjepa.conversion.authors.convert", fail)
        assert fuzz.load("authors", folder).startswith(outcome)
