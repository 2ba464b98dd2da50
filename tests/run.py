"""Run every check: style, types, the data side once, the suite on each backend, and without
TensorFlow.

    python tests/run.py            everything
    python tests/run.py jax data   some of the steps below
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTEST = [sys.executable, "-m", "pytest", "--durations=5"]
# One file has a step of its own.
SUITE = [*PYTEST, "-m", "not data", "--ignore=tests/test_without_tensorflow.py"]

STEPS = {
    "style": ({}, [sys.executable, "-m", "ruff", "check", "."]),
    "format": ({}, [sys.executable, "-m", "ruff", "format", "--check", "."]),
    "types": ({}, [sys.executable, "-m", "mypy"]),
    # The longest first.
    "jax": ({"KERAS_BACKEND": "jax"}, SUITE),
    "tensorflow": ({"KERAS_BACKEND": "tensorflow"}, SUITE),
    "torch": ({"KERAS_BACKEND": "torch"}, SUITE),
    "data": ({"KERAS_BACKEND": "torch"}, [*PYTEST, "-m", "data"]),
    # A folder that stands in for TensorFlow and cannot be imported comes first on the path.
    "without_tensorflow": (
        {"KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT / "tests" / "without_tensorflow")},
        [*PYTEST, "-m", "not data", "tests/test_without_tensorflow.py", "tests/test_recipes.py"],
    ),
}


def run(name: str) -> tuple[str, int, float, str]:
    """One step: its name, exit code, seconds and output."""
    environment, command = STEPS[name]
    start = time.perf_counter()
    # The suite's processes on JAX compile many programs more than once: a fifth of their time.
    with tempfile.TemporaryDirectory() as cache:
        shared = {
            # Two steps at a time: threads that wait for each other would take the other's core.
            "OMP_NUM_THREADS": "1",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **shared, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return name, done.returncode, time.perf_counter() - start, done.stdout


def main() -> None:
    names = sys.argv[1:] or list(STEPS)
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        sys.exit(f"run.py: steps must be among {', '.join(STEPS)}. Received: {unknown[0]}")
    failed = []
    # Two at a time: compilation and Python leave a core idle otherwise.
    with ThreadPoolExecutor(2) as pool:
        for done in as_completed([pool.submit(run, name) for name in names]):
            name, code, seconds, output = done.result()
            print(f"===== {name}: {'passed' if code == 0 else 'FAILED'} in {seconds:.0f} s")
            print(output if code else "\n".join(output.splitlines()[-8:]), flush=True)
            if code:
                failed.append(name)
    print(f"{len(names) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
