"""Which backend runs is decided before Keras is imported, or refused in one line."""

import json
import os
import subprocess
import sys
import types

import pytest

from keras_vjepa.backend import choice, compiled_programs, host_memory

pytestmark = pytest.mark.data


@pytest.fixture
def choose(monkeypatch, tmp_path):
    """`choose` in a process that has not imported Keras, in which some backends are installed."""

    def run(found, variable=None, file=None):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "keras", raising=False)
            patch.setattr(choice, "installed", lambda: found.split())
            patch.setenv("KERAS_HOME", str(tmp_path))
            (tmp_path / "keras.json").unlink(missing_ok=True)
            if file is not None:
                (tmp_path / "keras.json").write_text(file)
            patch.setenv("KERAS_BACKEND", variable or "")
            if variable is None:
                patch.delenv("KERAS_BACKEND")
            said = choice.choose()
            return said, os.environ.get("KERAS_BACKEND")

    return run


def written(backend):
    return json.dumps({"backend": backend})


@pytest.mark.parametrize("backend", choice.BACKENDS)
def test_what_is_chosen_and_installed_stays(choose, backend):
    assert choose(backend, variable=backend) == ("", backend)
    assert choose("jax torch tensorflow", file=written(backend)) == ("", None)


def test_the_only_one_installed_is_taken_and_named(choose):
    for backend in ("jax", "torch"):
        said, variable = choose(backend)
        assert variable == backend and f"runs on {backend}, the only backend" in said
        # What Keras writes by itself is not a user's choice, nor is a file that cannot be read.
        assert choose(backend, file=written("tensorflow")) == (said, backend)
        assert choose(backend, file="{") == choose(backend, file="[]") == (said, backend)
        assert choose(backend, variable="") == (said, backend)
    assert choose("tensorflow") == ("", None)


def test_of_several_keras_decides(choose):
    assert choose("jax torch tensorflow") == ("", None)


@pytest.mark.parametrize(
    ("state", "messages"),
    [
        ({"found": ""}, ["keras-vjepa[jax]", "KERAS_BACKEND"]),
        ({"found": "jax torch"}, ["`KERAS_BACKEND` must be jax or torch"]),
        (
            {"found": "jax", "variable": "torch"},
            ["`KERAS_BACKEND` must be an installed", "pip install 'keras-vjepa[torch]'"],
        ),
        ({"found": "jax torch", "variable": "tensorflow"}, ["set KERAS_BACKEND to jax or torch"]),
        ({"found": "", "variable": "torch"}, ["keras-vjepa[torch]", "nothing else is installed"]),
        (
            {"found": "jax", "variable": "pytorch"},
            ["jax, torch or tensorflow. Received: 'pytorch'"],
        ),
        ({"found": "jax", "variable": "numpy"}, ["Received: 'numpy'"]),
        ({"found": "jax", "file": written("torch")}, ["`backend` in ", "keras.json"]),
    ],
)
def test_what_is_missing_is_said_in_one_line(choose, state, messages):
    with pytest.raises(ImportError) as error:
        choose(**state)
    for message in messages:
        assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_keras_that_is_imported_has_its_backend(monkeypatch):
    assert choice.choose() == ""
    other = types.SimpleNamespace(config=types.SimpleNamespace(backend=lambda: "openvino"))
    monkeypatch.setitem(sys.modules, "keras", other)
    with pytest.raises(ImportError, match="that Keras was imported with must be jax, torch"):
        choice.choose()


def test_a_folder_of_that_name_is_no_backend(tmp_path, monkeypatch):
    (tmp_path / "jax").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [sys.meta_path[-1]])
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    assert "jax" not in choice.installed()


# --- What a process was started as ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv0", "orig_argv", "command", "file"),
    [
        ("/usr/bin/keras-vjepa", ["python", "/usr/bin/keras-vjepa", "probe"], True, ""),
        (r"keras-vjepa.exe", ["keras-vjepa.exe", "probe"], True, ""),
        ("-m", ["python", "-u", "-m", "keras_vjepa", "probe"], True, ""),
        ("-m", ["python", "-m", "pytest", "tests"], False, ""),
        ("-m", ["python", "-m", "keras_vjepa.recipes.probe"], False, "keras_vjepa.recipes.probe"),
        ("ROOT/recipes/probe.py", ["python", "recipes/probe.py"], False, "probe.py"),
        ("ROOT/tools/bench.py", ["python", "tools/bench.py"], False, "bench.py"),
        ("ROOT/keras_vjepa/tools/bench.py", ["python", "x"], False, "bench.py"),
        ("ROOT/elsewhere/recipes/probe.py", ["python", "x"], False, ""),
        ("", ["python"], False, ""),
    ],
)
def test_started_as(monkeypatch, argv0, orig_argv, command, file):
    root = str(choice._PACKAGE.parent)
    monkeypatch.setattr(sys, "argv", [argv0.replace("ROOT", root)])
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    assert choice.started_as_command() == command
    assert choice.started_as_file() == file


def test_our_programs_end_in_one_line_and_others_get_an_error(monkeypatch):
    def refuse():
        raise ImportError("nothing is installed")

    monkeypatch.setattr(choice, "choose", refuse)
    monkeypatch.setattr(choice, "started_as_file", lambda: "probe.py")
    with pytest.raises(SystemExit) as ended:
        choice.prepare()
    assert ended.value.code == "probe.py: nothing is installed"
    monkeypatch.setattr(choice, "started_as_file", lambda: "")
    with pytest.raises(ImportError, match="nothing is installed"):
        choice.prepare()


def test_ctrl_c_is_answered_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    choice.quieten()
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    [_, line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Stopped by Ctrl-C.")
    sys.excepthook(ZeroDivisionError, ZeroDivisionError("1 / 0"), None)
    assert "ZeroDivisionError: 1 / 0" in capsys.readouterr().err


@pytest.mark.parametrize("backend", choice.BACKENDS)
@pytest.mark.parametrize("given", [None, "1"])
def test_tensorflow_is_quiet_where_it_computes_nothing(backend, given, monkeypatch):
    monkeypatch.setattr(choice, "chosen", lambda: backend)
    monkeypatch.setattr(compiled_programs, "keep_compiled_programs", lambda: None)
    monkeypatch.setattr(host_memory, "jax_runs_on_processor", lambda: False)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", given or "")
    if given is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    choice.prepare_program()
    expected = given if backend == "tensorflow" else given or "0"
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == expected


def test_tensorflow_says_nothing_on_torch():
    """In a process of its own, since TensorFlow speaks when it is first imported."""
    program = "from keras_vjepa.backend import choice; choice.prepare_program(); import tensorflow"
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stderr == ""


def test_a_choice_is_said(monkeypatch, capsys, caplog):
    monkeypatch.setattr(choice, "choose", lambda: "Keras runs on jax.")
    monkeypatch.setattr(choice, "started_as_file", lambda: "probe.py")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    choice.prepare()
    assert capsys.readouterr().err == "Keras runs on jax.\n"
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
    monkeypatch.setattr(choice, "started_as_file", lambda: "")
    with caplog.at_level("INFO", logger="keras_vjepa"):
        choice.prepare()
    assert caplog.messages == ["Keras runs on jax."] and capsys.readouterr().err == ""
