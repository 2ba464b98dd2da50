"""The command `keras-vjepa`: what it lists, what it loads, and what it says of bad input."""

import importlib
import inspect
import os
import subprocess
import sys
import time

import keras
import pytest

import keras_vjepa
from keras_vjepa import __main__ as command
from keras_vjepa.backend import choice
from tests.support import ROOT

pytestmark = pytest.mark.data


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "keras_vjepa", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        env={**os.environ, **environment},
    )


def test_every_program_is_a_command():
    programs = {
        f"keras_vjepa.{path.parent.name}.{path.stem}"
        for folder in ("recipes", "tools")
        for path in (ROOT / folder).glob("*.py")
        if "__main__" in path.read_text()
    }
    assert programs == set(command.COMMANDS.values())


@pytest.mark.parametrize("module", command.COMMANDS.values())
def test_commands_share_a_signature(module):
    main = importlib.import_module(module).main
    parameters = inspect.signature(main).parameters
    assert list(parameters) == ["arguments", "program"]
    assert parameters["program"].default == module.split(".")[-1] + ".py"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_every_command_in_one_line(arguments, capsys):
    assert command.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in command.COMMANDS:
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line) > len(name) + 20 and len(line) <= 100


def test_version(capsys):
    assert command.main(["--version"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"keras-vjepa {keras_vjepa.__version__} (keras 3.")
    assert all(backend in out for backend in choice.installed())
    assert f" on {keras.config.backend()}; installed: " in out


def test_version_claims_no_backend_that_does_not_run(capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "trch")
    monkeypatch.delitem(sys.modules, "keras")
    assert command.main(["--version"]) == 1
    out, err = capsys.readouterr()
    assert out.count("\n") == err.count("\n") == 1
    assert out.startswith("keras-vjepa ") and " on " not in out
    assert err.endswith("must be jax, torch or tensorflow. Received: 'trch'; did you mean torch?\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "unknown command pretrian; did you mean pretrain?"),
        (["feature"], "unknown command feature; did you mean features?"),
        (["zzz"], "unknown command zzz ("),
        (["--verison"], "unknown option --verison; did you mean --version?"),
        ([], "no command is given"),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_options_of_a_command_are_its_own(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["convert", "--probes", "x"])
    assert ended.value.code == 2
    error = "python -m keras_vjepa convert: unknown option --probes; did you mean --probe?\n"
    assert capsys.readouterr().err == error


def test_the_program_is_named_as_it_was_called(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/keras-vjepa", "masks", "--output", "a.txt"])
    with pytest.raises(SystemExit):
        command.main()
    assert capsys.readouterr().err.startswith("keras-vjepa masks: --output must be")


def test_exit_codes(tmp_path):
    assert command.main(["masks", "--output", str(tmp_path / "masks.png")]) == 0
    assert (tmp_path / "masks.png").exists()


def test_help_is_fast_and_needs_no_backend():
    start = time.perf_counter()
    done = run("--help", KERAS_BACKEND="none such")
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m keras_vjepa COMMAND")
    assert time.perf_counter() - start < 5
    script = "import sys; sys.argv, sys.orig_argv = ['-m'], ['-m', 'keras_vjepa']\n"
    script += "from keras_vjepa import __main__; __main__.main(['--help'])\n"
    script += "print([name for name in ('keras', 'numpy', 'torch', 'jax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "program", [["-m", "keras_vjepa", "pretrain"], ["recipes/pretrain.py"], ["tools/bench.py"]]
)
def test_a_missing_backend_ends_programs_in_one_line(program):
    environment = {**os.environ, "KERAS_BACKEND": "none such"}
    done = subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Received: 'none such'" in done.stderr


def test_a_missing_backend_is_an_import_error():
    environment = {**os.environ, "KERAS_BACKEND": "none such"}
    script = "try:\n    import keras_vjepa\nexcept ImportError as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.stdout.count("\n") == 1 and "`KERAS_BACKEND` must be jax, torch" in done.stdout
