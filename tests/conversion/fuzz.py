"""Load hundreds of damaged checkpoints and presets in another process, and say what came of it.

    python -m tests.conversion.fuzz --count 1000 --seed 11 --results fuzz.jsonl

Nothing may come of an artefact of `mutants.py` but a model, or one error of one line that names the
file. A process that dies or hangs is told apart by what was being loaded. Prints a table, and exits
with 1 if something else happened; `--keep FOLDER` keeps what did.
"""

import argparse
import collections
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# What an artefact of 100 kB may take at the most, in seconds and in MiB beyond what was there.
HANG_SECONDS, MOST_MIB = 10.0, 1024


def loaders() -> dict[str, Callable[[Path], Any]]:
    """How each kind of artefact is loaded, from the folder that holds it."""
    from keras_vjepa import (
        VJEPABackbone,
        VJEPAPretrainer,
        VJEPAVideoClassifier,
        VJEPAVideoPreprocessor,
        conversion,
    )
    from keras_vjepa.presets.preset import load_backbone
    from keras_vjepa.training.run_state import Checkpoints

    def preset(folder: Path) -> None:
        VJEPAVideoPreprocessor.from_preset(folder)
        load_backbone(folder)
        VJEPABackbone.from_preset(folder)

    folder_of_another_package = conversion.convert
    return {
        "authors": lambda folder: conversion.convert(folder / "a.pth.tar", num_heads=2),
        "probe": lambda folder: conversion.convert_probe(folder / "a.pth.tar", num_heads=2),
        "hugging_face": folder_of_another_package,
        "hugging_face_index": folder_of_another_package,
        "hugging_face_classifier": folder_of_another_package,
        "preset": preset,
        "preset_pretrainer": VJEPAPretrainer.from_preset,
        "preset_classifier": VJEPAVideoClassifier.from_preset,
        "state": lambda folder: Checkpoints(folder).latest(),
    }


def load(kind: str, folder: Path) -> str:
    """Load an artefact. Returns "loaded" or "named", and what is wrong otherwise."""
    from keras_vjepa.conversion import CheckpointError

    allowed = (ValueError, OSError) if kind.startswith(("preset", "state")) else CheckpointError
    try:
        loaders()[kind](folder)
    except allowed as error:
        text = str(error)
        if "\n" in text or len(text) > 1500:
            return "named in several lines, or very long ones"
        return "named" if str(folder) in text else f"not named: {text[:200]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    return "loaded"


def load_for_another_process() -> None:
    """Load the artefacts whose kinds and folders come in, and say after each what came of it."""
    import keras

    import keras_vjepa.training.run_state  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        kind, folder = line.rstrip("\n").split("\t")
        outcome = load(kind, Path(folder))
        keras.utils.clear_session()
        print("done", " ".join(outcome.split()), most_mib(), sep="\t", flush=True)


def most_mib() -> int:
    """Most memory that this process ever had, in MiB; 0 if not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10
    except OSError:
        return 0


class Loader:
    """A process that loads artefacts, begun anew when it dies or hangs."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.conversion.fuzz", "--load"]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, args=(self._process, self._lines)).start()
        assert self._lines.get(timeout=300) == "ready"
        self._most = 0

    def _listen(self, process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # Libraries may write here too.
            if line.startswith(("ready", "done\t")):
                lines.put(line.rstrip("\n"))
        lines.put("")

    def load(self, kind: str, folder: Path) -> dict[str, Any]:
        """Load an artefact: what came of it, in how many seconds, and what the process holds."""
        assert self._process.stdin is not None
        start = time.monotonic()
        self._process.stdin.write(f"{kind}\t{folder}\n")
        self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=HANG_SECONDS)
            outcome = "" if line else f"CRASH {self._process.wait()}"
        except queue.Empty:
            outcome = "HANG"
        seconds = round(time.monotonic() - start, 2)
        if outcome:
            self.close()
            self._start()
            return {"outcome": outcome, "seconds": seconds, "mib": 0}
        _, outcome, mib = line.split("\t")
        grown = int(mib) - self._most if self._most else 0
        self._most = int(mib)
        if grown > MOST_MIB:
            outcome = f"{grown} MiB"
        return {"outcome": outcome, "seconds": seconds, "mib": int(mib)}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def fuzz(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Load the artefacts; yields results."""
    from tests.conversion.mutants import damaged, sound_artefacts

    loader = Loader()
    with tempfile.TemporaryDirectory() as parent:
        for i, (kind, artefact) in enumerate(
            damaged(sound_artefacts(), options.count, options.seed)
        ):
            folder = Path(parent, f"{i:05d}")
            folder.mkdir()
            for name, content in artefact.items():
                (folder / name).write_bytes(content)
            result = {"name": f"{i:05d} {kind}", "kind": kind, **loader.load(kind, folder)}
            yield result
            if options.keep and not is_wanted(result["outcome"]):
                shutil.copytree(folder, options.keep / f"{options.seed}_{i:05d}_{kind}")
            shutil.rmtree(folder)
    loader.close()


def is_wanted(outcome: str) -> bool:
    return outcome in ("loaded", "named")


def report(results: list[dict[str, Any]]) -> Iterator[str]:
    """A table of outcomes by kind, the extremes, and what should not have been."""
    outcomes = collections.Counter((r["kind"], r["outcome"][:40]) for r in results)
    for (kind, outcome), count in sorted(outcomes.items()):
        yield f"{kind:24} {outcome:40} {count}"
    for what in ("seconds", "mib"):
        most = max(results, key=lambda r: float(r[what]))
        yield f"most {what}: {most[what]} ({most['name']})"
    yield from (f"{r['name']}: {r['outcome']}" for r in results if not is_wanted(r["outcome"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="file of results, added to")
    parser.add_argument("--keep", type=Path, help="folder for what did something else")
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        load_for_another_process()
        return
    results = []
    for result in fuzz(options):
        results.append(result)
        if options.results:
            with open(options.results, "a") as file:
                file.write(json.dumps(result) + "\n")
    print("\n".join(report(results)))
    sys.exit(not all(is_wanted(result["outcome"]) for result in results))


if __name__ == "__main__":
    main()
