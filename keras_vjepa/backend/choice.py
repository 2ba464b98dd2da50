"""Choose Keras' backend before Keras is imported (App. C names one, this package runs on three).

Keras runs on the backend in the environment variable KERAS_BACKEND, else on that in its own
keras.json, else on TensorFlow. A user who has only installed JAX and chosen nothing would get 25
lines that end in "No module named 'tensorflow'". This module takes the only backend that is
installed instead. If there is none, or several, an error of one line says what to install or set.

Nothing here imports Keras or a backend.
"""

import importlib.util
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from keras_vjepa.configuration import nearest

BACKENDS = ("jax", "torch", "tensorflow")
VARIABLE = "KERAS_BACKEND"
COMMAND = "keras-vjepa"

_PACKAGE = Path(__file__).parents[1]
_PROGRAMS = ("recipes", "tools")
# The backend that Keras takes if nobody chose, and writes into a new keras.json by itself.
_DEFAULT = "tensorflow"
# How long Python may still ignore errors, as in a callback of its garbage collector.
_AGAIN_AFTER_SECONDS = 0.05


def prepare() -> None:
    """Choose the backend for this process; if that fails, end a recipe or tool with one line.

    Raises:
        ImportError: as `choose` does, in a process that is neither recipe nor tool.
    """
    program = started_as_file()
    try:
        chosen = choose()
    except ImportError as error:
        if program:
            sys.exit(f"{program}: {error}")
        raise error.with_traceback(None) from None
    if program:
        prepare_program()
    if chosen and program:
        print(chosen, file=sys.stderr)
    elif chosen:
        logging.getLogger(__name__).info(chosen)


def prepare_program() -> None:
    """Set what holds for a whole process that is one of our commands, before Keras is imported."""
    quieten()
    if chosen() in ("jax", "torch"):
        # Keras imports TensorFlow here too, where it is installed, and computes nothing with it;
        # TensorFlow would say in four lines how it computes, whatever the level of its messages.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if chosen() == "jax":
        # This module is imported for `--help` too, which must be fast.
        from keras_vjepa.backend import compiled_programs, host_memory

        compiled_programs.keep_compiled_programs()
        if host_memory.jax_runs_on_processor():
            # JAX' threads take part from their start, or not at all.
            host_memory.keep_memory(of_threads=True)


def quieten() -> None:
    """Keep TensorFlow's messages at its start, and the traceback of Ctrl-C, off the screen.

    Also let Ctrl-C come again where Python ignores it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # does not replace a user's choice
    sys.excepthook = _excepthook
    sys.unraisablehook = _unraisablehook


def _excepthook(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print one line if the user ended the program; for other errors, what Python prints."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nStopped by Ctrl-C. What was finished is kept.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def signal_again(number: int) -> None:
    """Raise a signal in this process a moment later, when Python no longer ignores errors.

    Args:
        number: of the signal.
    """
    timer = threading.Timer(_AGAIN_AFTER_SECONDS, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def _unraisablehook(unraisable: Any) -> None:
    """Raise an interrupt again if Python ignored it; for other errors, do as Python does.

    It ignores errors in callbacks of its garbage collector, of which JAX has one that takes long
    while modules are imported.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        signal_again(signal.SIGINT)
    else:
        sys.__unraisablehook__(unraisable)


def choose() -> str:
    """Set KERAS_BACKEND to the only backend that is installed, unless one has been chosen.

    Returns:
        A sentence that says what was chosen; empty if Keras' own rule applies.

    Raises:
        ImportError: if no backend is installed, or the chosen one is not, or several are installed
            and none is chosen; or if Keras was imported with a backend that this package does not
            run on.
    """
    found = installed()
    if "keras" in sys.modules:
        _check(
            sys.modules["keras"].config.backend(), "The backend that Keras was imported with", found
        )
        return ""
    if os.environ.get(VARIABLE):
        _check(os.environ[VARIABLE], f"`{VARIABLE}`", found)
        return ""
    path = _keras_folder() / "keras.json"
    written = _written_in(path)
    if written != _DEFAULT:
        _check(written, f"`backend` in {path}", found)
        return ""
    if _DEFAULT in found:
        return ""
    if len(found) == 1:
        os.environ[VARIABLE] = found[0]
        return f"Keras runs on {found[0]}, the only backend that is installed."
    if found:
        raise ImportError(
            f"`{VARIABLE}` must be {' or '.join(found)}, which are installed; Keras' own choice, "
            f"{_DEFAULT}, is not. Received: none"
        )
    raise ImportError(
        "A backend must be installed: pip install 'keras-vjepa[jax]', or [torch] or [tensorflow]. "
        f"Of several, set `{VARIABLE}` to one. Received: none"
    )


def installed() -> list[str]:
    """List the backends that can be imported, without importing them."""
    specs = {name: importlib.util.find_spec(name) for name in BACKENDS}
    # A folder of that name in the current directory has a spec as well, but no origin, and contains
    # nothing to run.
    return [name for name, spec in specs.items() if spec is not None and spec.origin is not None]


def chosen() -> str:
    """Name the backend that Keras runs on, or would run on, after `choose`."""
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend()
    return os.environ.get(VARIABLE) or _written_in(_keras_folder() / "keras.json")


def _check(name: str, chosen_by: str, found: list[str]) -> None:
    if name not in BACKENDS:
        raise ImportError(
            f"{chosen_by} must be jax, torch or tensorflow. Received: {name!r}"
            f"{nearest(name, BACKENDS)}"
        )
    if name not in found:
        there = f"set {VARIABLE} to {' or '.join(found)}" if found else "nothing else is installed"
        raise ImportError(
            f"{chosen_by} must be an installed backend: pip install 'keras-vjepa[{name}]', or "
            f"{there}. Received: {name!r}"
        )


def _keras_folder() -> Path:
    """Return the folder in which Keras looks for its keras.json."""
    home = Path("~").expanduser()
    default = (home if os.access(home, os.W_OK) else Path("/tmp")) / ".keras"
    return Path(os.environ.get("KERAS_HOME", default)).expanduser()


def _written_in(path: Path) -> str:
    try:
        return json.loads(path.read_text()).get("backend", _DEFAULT)
    except (OSError, ValueError, AttributeError):
        return _DEFAULT


# --- What this process was started as ------------------------------------------------------------


def started_as_command() -> bool:
    """Tell whether this process is `keras-vjepa` or `python -m keras_vjepa`.

    Such a process loads the package only once it knows that it must: `--help` needs no backend.
    """
    program = sys.argv[0] if sys.argv else ""
    # With -m, the program's name is "-m" while its package is being imported.
    by_name = program == "-m" and _PACKAGE.name in sys.orig_argv
    return by_name or Path(program).stem in (COMMAND, f"{COMMAND}-script")


def started_as_file() -> str:
    """Return the name of the recipe or tool that this process runs as a file, else nothing."""
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":
        started = [name for name in sys.orig_argv if name.startswith(f"{_PACKAGE.name}.")]
        return started[0] if started else ""
    path = Path(program).resolve()
    # Recipes and tools lie beside the package in a checkout, and within it in an installation.
    folders = [parent / name for parent in (_PACKAGE, _PACKAGE.parent) for name in _PROGRAMS]
    return path.name if path.parent in folders else ""


# Whether the package stays without its public names until `__main__.py` asks for them.
is_deferred = started_as_command()
