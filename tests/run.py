"""Run every check: style, types, what needs no backend once, and the suite on each backend.

python tests/run.py                  what CI runs: all tests but `slow` ones
python tests/run.py jax data         some of the steps
python tests/run.py all [jax data]   with those, and programs compiled as users' are
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parent.parent
# A folder with a TensorFlow that cannot be imported. On torch the suite runs with it, because Keras
# would otherwise import TensorFlow where it is installed.
BLOCKED = str(ROOT / "tests" / "without_tensorflow")
# The same for PyAV.
WITHOUT_AV = str(ROOT / "tests" / "without_av")

# The environment, program and arguments of each step, longest first.
STEPS: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "jax": ({"KERAS_BACKEND": "jax"}, "pytest", ["-m", "not data"]),
    "tensorflow": ({"KERAS_BACKEND": "tensorflow"}, "pytest", ["-m", "not data"]),
    "torch": ({"KERAS_BACKEND": "torch", "PYTHONPATH": BLOCKED}, "pytest", ["-m", "not data"]),
    "data": ({"KERAS_BACKEND": "torch"}, "pytest", ["-m", "data"]),
    # Without PyAV, files are read by OpenCV.
    "without_av": (
        {"KERAS_BACKEND": "torch", "PYTHONPATH": WITHOUT_AV},
        "pytest",
        ["-m", "data", "tests/data/reading", "tests/data/batches"],
    ),
    "types": ({}, "mypy", []),
    "format": ({}, "ruff", ["format", "--check", "."]),
    "style": ({}, "ruff", ["check", "."]),
}


def command(step: str, slow: bool) -> tuple[dict[str, str], list[str]]:
    """Environment and command line of a step."""
    environment, program, arguments = STEPS[step]
    if program == "pytest":
        arguments = ["--durations=5", *arguments]
        marks = arguments.index("-m") + 1
        if slow:
            environment = {**environment, "XLA_FLAGS": ""}
        else:
            arguments[marks] += " and not slow"
    return environment, [sys.executable, "-m", program, *arguments]


def run(step: str, slow: bool) -> tuple[str, int, float, str]:
    """One step: its name, exit code, seconds and output."""
    environment, line = command(step, slow)
    start = time.perf_counter()
    # The suite's processes on JAX compile many programs more than once, which takes a fifth of
    # their time.
    with tempfile.TemporaryDirectory() as cache:
        shared = {
            # Two steps run at a time, so more threads would only take each other's cores.
            "OMP_NUM_THREADS": "1",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        done = subprocess.run(
            line,
            cwd=ROOT,
            env={**os.environ, **shared, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return step, done.returncode, time.perf_counter() - start, done.stdout


def main() -> None:
    names = sys.argv[1:]
    slow = names[:1] == ["all"]
    names = names[slow:] or list(STEPS)
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        sys.exit(f"run.py: steps must be among {', '.join(STEPS)}. Received: {unknown[0]}")
    failed = []
    # Two steps run at a time, because compilation and Python would otherwise leave a core idle.
    with ThreadPoolExecutor(2) as pool:
        for done in as_completed([pool.submit(run, name, slow) for name in names]):
            name, code, seconds, output = done.result()
            print(f"===== {name}: {'passed' if code == 0 else 'FAILED'} in {seconds:.0f} s")
            print(output if code else "\n".join(output.splitlines()[-8:]), flush=True)
            if code:
                failed.append(name)
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
