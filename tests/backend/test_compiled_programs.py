"""Commands on JAX keep their compiled programs, unless the user has decided."""

import pytest

from keras_vjepa.backend import choice, compiled_programs
from keras_vjepa.backend.compiled_programs import FOLDER, keep_compiled_programs, machine_name

pytestmark = pytest.mark.data


def test_programs_are_kept_below_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path))
    environment = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "3"}
    folder = keep_compiled_programs(environment)
    assert folder == tmp_path / "jax_programs" / machine_name() and folder.is_dir()
    assert environment[FOLDER] == str(folder)
    assert environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "3"


@pytest.mark.parametrize("name", [FOLDER, "JAX_ENABLE_COMPILATION_CACHE"])
@pytest.mark.parametrize("value", ["mine", ""])
def test_what_the_user_decided_stays(monkeypatch, tmp_path, name, value):
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path))
    environment = {name: value}
    assert keep_compiled_programs(environment) is None
    assert environment == {name: value} and not list(tmp_path.iterdir())


def test_a_cache_folder_that_cannot_be_made_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "file"))
    environment = {}
    assert keep_compiled_programs(environment) is None and environment == {}


def test_a_processor_with_other_instructions_has_its_own_folder(monkeypatch):
    here = machine_name()
    assert here == machine_name()
    monkeypatch.setattr(compiled_programs.platform, "processor", lambda: "another")
    assert machine_name() != here


@pytest.mark.parametrize("backend", choice.BACKENDS)
def test_only_commands_on_jax_set_it(monkeypatch, backend):
    asked = []
    monkeypatch.setattr(choice, "quieten", lambda: None)
    monkeypatch.setattr(choice, "chosen", lambda: backend)
    keep = "keep_compiled_programs"
    monkeypatch.setattr(compiled_programs, keep, lambda: asked.append(backend))
    choice.prepare_program()
    assert asked == (["jax"] if backend == "jax" else [])
