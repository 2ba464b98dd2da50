"""Load hundreds of damaged checkpoints and presets in another process, and say what came of it.

    python -m tests.conversion.fuzz --count 1000 --seed 11 --results fuzz.jsonl

Nothing may come of an artefact of `mutants.py` but a model, or one error of one line that names the
file. A process that dies or hangs is told apart by what was being loaded. Prints a table, and exits
with 1 if something else happened; `--keep FOLDER` keeps what did.
"""

import argparse
import collections
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.watched import WatchedProcess, answer, environment_with

# The most that a file of 100 kB may need, in seconds and in additional MiB.
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

    def load_one(request: str) -> str:
        kind, folder = request.split("\t")
        outcome = load(kind, Path(folder))
        keras.utils.clear_session()
        return outcome

    answer(load_one)


def fuzz(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Load the artefacts; yields results."""
    from tests.conversion.mutants import damaged, sound_artefacts

    command = ["-m", "tests.conversion.fuzz", "--load"]
    loader = WatchedProcess(command, environment_with(), HANG_SECONDS, MOST_MIB)
    with tempfile.TemporaryDirectory() as parent:
        for i, (kind, artefact) in enumerate(
            damaged(sound_artefacts(), options.count, options.seed)
        ):
            folder = Path(parent, f"{i:05d}")
            folder.mkdir()
            for name, content in artefact.items():
                (folder / name).write_bytes(content)
            result = {"name": f"{i:05d} {kind}", "kind": kind, **loader.ask(f"{kind}\t{folder}")}
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
