"""Another process that loads what a gesture has saved, calls it and tells what it found.

It has made none of the models itself. One is asked for all files: each takes seconds to begin.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import ROOT


class FreshProcess:
    """Loads models where they were not made; begins when it is first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def load(self, path: Path, inputs: Any, preset_of: str = "") -> dict[str, Any]:
        """Load a model, call it and return its outputs, and what `_facts` tells of it.

        Args:
            path: a file that Keras saved, or a preset.
            inputs: of the call.
            preset_of: the model's class, for a preset.

        Raises:
            RuntimeError: with the error of the other process.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        folder = path.parent
        arrays = inputs if isinstance(inputs, dict) else {"": inputs}
        np.savez(folder / "inputs.npz", **{f"_{name}": array for name, array in arrays.items()})
        request = {"path": str(path), "folder": str(folder), "preset_of": preset_of}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that loads has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return {**answer, "outputs": np.load(folder / "outputs.npy")}

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None


# --- The other side ------------------------------------------------------------------------------


def facts(model: Any) -> dict[str, Any]:
    """What must be the same after a model was saved and loaded."""
    optimizer = getattr(model, "optimizer", None)
    return {
        "weights": model.count_params(),
        "trainable": sorted(variable.path for variable in model.trainable_variables),
        "iterations": None if optimizer is None else int(optimizer.iterations),
        "precision": model.dtype_policy.name,
        "config": json.loads(json.dumps(model.get_config())),
    }


def _answer(request: dict[str, str]) -> dict[str, Any]:
    import keras

    import keras_vjepa

    folder = Path(request["folder"])
    if request["preset_of"]:
        model = getattr(keras_vjepa, request["preset_of"]).from_preset(request["path"])
    else:
        model = keras.saving.load_model(request["path"])
    with np.load(folder / "inputs.npz") as arrays:
        inputs = {name[1:]: arrays[name] for name in arrays}
    outputs = model(inputs.get("", inputs))
    outputs = keras.ops.convert_to_numpy(keras.ops.cast(outputs, "float64"))
    np.save(folder / "outputs.npy", outputs)
    return facts(model)


def main() -> None:
    # Output of libraries must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
