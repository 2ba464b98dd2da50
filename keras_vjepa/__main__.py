"""Run recipes and tools by one command, `keras-vjepa` or `python -m keras_vjepa`."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import keras_vjepa
from keras_vjepa.backend import choice
from keras_vjepa.configuration import nearest

# Each module has a `main(arguments, program)`, and a docstring whose first line the help shows.
COMMANDS = {
    "pretrain": "keras_vjepa.recipes.pretrain",
    "probe": "keras_vjepa.recipes.probe",
    "finetune": "keras_vjepa.recipes.finetune",
    "detect-table": "keras_vjepa.tools.detect_table",
    "finetune-table": "keras_vjepa.tools.finetune_table",
    "detect": "keras_vjepa.recipes.detect",
    "decode": "keras_vjepa.tools.decode",
    "knn": "keras_vjepa.tools.neighbors",
    "probe-table": "keras_vjepa.tools.probe_table",
    "dense-probe": "keras_vjepa.tools.dense_probe",
    "supervised": "keras_vjepa.recipes.supervised",
    "check-videos": "keras_vjepa.tools.check_videos",
    "transcode": "keras_vjepa.tools.transcode",
    "videomix": "keras_vjepa.tools.videomix",
    "features": "keras_vjepa.tools.extract_features",
    "convert": "keras_vjepa.tools.convert_checkpoint",
    "export": "keras_vjepa.tools.export_checkpoint",
    "export-checkpoint": "keras_vjepa.tools.export_run",
    "verify": "keras_vjepa.tools.verify_weights",
    "upload": "keras_vjepa.tools.upload_preset",
    "report": "keras_vjepa.tools.report_run",
    "compare": "keras_vjepa.tools.compare_runs",
    "masks": "keras_vjepa.tools.show_masks",
    "picture": "keras_vjepa.tools.picture",
    "bench": "keras_vjepa.tools.bench",
    "bench-finetune": "keras_vjepa.tools.bench_finetune",
    "bench-plain": "keras_vjepa.tools.bench_plain",
    "bench-rivals": "keras_vjepa.tools.plain_torch_rivals",
    "bench-pretraining": "keras_vjepa.tools.bench_pretraining",
    "find-batch": "keras_vjepa.tools.find_batch",
    "bench-data": "keras_vjepa.tools.bench_data",
    "bench-decoding": "keras_vjepa.tools.bench_decoding",
    "plain-torch-step": "keras_vjepa.tools.plain_torch_step",
    "sweep": "keras_vjepa.tools.sweep",
    "ablations": "keras_vjepa.tools.ablations",
    "check-resume": "keras_vjepa.tools.check_resume",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that a command line names.

    Args:
        arguments: the words of the command line; None takes those of the process.

    Returns:
        The exit code.
    """
    called = Path(sys.argv[0]).stem.removesuffix("-script")
    program = choice.COMMAND if called == choice.COMMAND else "python -m keras_vjepa"
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help"):
        print(_help(program))
        return 0
    if name == "--version":
        return _say_version(program)
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = [*COMMANDS, "--help", "--version"]
        problem = f"unknown {kind} {name}{nearest(name, known)}" if name else "no command is given"
        print(f"{program}: {problem} ({program} --help lists them)", file=sys.stderr)
        return 2
    try:
        command = _load(name)
    except ImportError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return command(rest, f"{program} {name}") or 0


def _load(name: str) -> Callable[[list[str], str], Any]:
    chosen = choice.choose()
    choice.prepare_program()
    if chosen:
        print(chosen, file=sys.stderr)
    if not hasattr(keras_vjepa, "VJEPABackbone"):
        # The package was imported without its public names, for commands that need no backend; this
        # command needs them.
        choice.is_deferred = False
        importlib.reload(keras_vjepa)
    return importlib.import_module(COMMANDS[name]).main


def _help(program: str) -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}s}{_first_line(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {program} COMMAND [OPTIONS]",
            "",
            (keras_vjepa.__doc__ or "").splitlines()[0],
            "",
            "commands:",
            *lines,
            "",
            f"{program} COMMAND --help shows a command's options, {program} --version what runs.",
        ]
    )


def _first_line(module: str) -> str:
    """Read the first line of a module's docstring, without importing it; leave out sections."""
    spec = importlib.util.find_spec(module)
    source = Path(spec.origin or "").read_text("utf-8") if spec else ""
    line = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    return line.partition(" (")[0].removesuffix(".")


def _say_version(program: str) -> int:
    """Print the versions installed and the backend, and what is wrong with the chosen one."""
    problem, on = "", ""
    try:
        choice.choose()
        on = f" on {choice.chosen()}"
    except ImportError as error:
        problem = str(error)
    backends = ", ".join(map(_with_version, choice.installed())) or "no backend"
    print(
        f"keras-vjepa {keras_vjepa.__version__} ({_with_version('keras')}{on}; "
        f"installed: {backends})"
    )
    if problem:
        print(f"{program}: {problem}", file=sys.stderr)
    return 1 if problem else 0


def _with_version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:  # TensorFlow may be installed under another name
        return package


if __name__ == "__main__":
    sys.exit(main())
