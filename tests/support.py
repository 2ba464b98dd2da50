"""Golden data and batches shared by the tests."""

import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_vjepa import locks
from keras_vjepa.backend import device

ROOT = Path(__file__).parent.parent
# With this folder first on its path, a process runs as if TensorFlow were not installed.
WITHOUT_TENSORFLOW = ROOT / "tests" / "without_tensorflow"
GOLDEN = Path(__file__).parent / "golden"
# Files written by older code, described in the README.md beside them. Tests that write use a copy.
BEFORE_THE_HOUSE = GOLDEN / "before_the_house"


def slow_but_on(*backends: str) -> Any:
    """The mark `slow` on other backends: what is tested is the same code on each.

    tests/README.md says which tests remain there, and what planted fault they were seen to notice.
    """
    if keras.config.backend() in backends:
        return pytest.mark.skipif(False, reason="")
    return pytest.mark.slow


def golden(name: str) -> Any:
    """Arrays of the authors' code; `tests/golden/README.md` says what each is."""
    return np.load(GOLDEN / name)


def compiled(function: Any) -> Any:
    """`function` as one program on JAX, which takes seconds to compile a model's operations singly.

    Of arrays; made anew each time, so that it sees what was changed in a model.
    """
    if keras.config.backend() != "jax":
        return function
    return device.compiled_alone(lambda *arrays: function(*arrays))


def _who_asked() -> str:
    """The file, of this package or of Keras above its operations, that asked for an operation."""
    for frame in reversed(traceback.extract_stack()):
        of_keras = "/keras/src/" in frame.filename
        below = any(part in frame.filename for part in ("/keras/src/ops/", "/keras/src/backend/"))
        if (
            (of_keras and not below)
            or "/keras_vjepa/" in frame.filename
            or (
                "/tests/" in frame.filename
                and frame.name not in ("_who_asked", "made", "__torch_dispatch__")
            )
        ):
            return "/".join(Path(frame.filename).parts[-3:])
    return "nobody known"


def waits_of_a_step(model: Any, batch: tuple[Any, ...], monkeypatch: Any) -> list[str]:
    """What stops host or device in a second training step on torch: numbers asked for, or copied.

    Args:
        model: a compiled model; it makes one step before, which may do anything.
        batch: what `fit` gives to a step, as arrays.
        monkeypatch: pytest's, in whose context torch's functions are watched.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    waits: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function is torch.ops.aten._local_scalar_dense.default:
                waits.append(f"a number is asked for by {_who_asked()}")
            return function(*args, **(kwargs or {}))

    def watched(make: Any) -> Any:
        def made(data: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(data, torch.Tensor):
                waits.append(f"{data} is copied by {_who_asked()}")
            return make(data, *args, **kwargs)

        return made

    batch = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
    model.train_step(batch)
    with monkeypatch.context() as patch:
        for name in ("as_tensor", "tensor", "from_numpy"):
            patch.setattr(torch, name, watched(getattr(torch, name)))
        with Watch():
            model.train_step(batch)
    return waits


def channels_last(clip: np.ndarray) -> np.ndarray:
    """(batch, channel, time, height, width) to (batch, time, height, width, channel)."""
    return clip.transpose(0, 2, 3, 4, 1)


def reference_batch(arrays: Any, step: int | None = None) -> dict[str, np.ndarray]:
    """The batch of forward.npz, or of one step of train5.npz."""
    middle = "" if step is None else f"_{step}"
    batch = {"videos": channels_last(arrays["clip" + middle])}
    for role in ("context", "target"):
        for i in range(2):
            indices = arrays[f"mask_{role}{middle}_{i}"]
            batch[f"{role}_indices_{i}"] = indices.astype("int32")
    return batch


def random_batch(
    seed: int, pretrainer: Any, batch_size: int = 2, context: int = 3, target: int = 4
) -> dict[str, np.ndarray]:
    """Random clips and masks that fit a pretrainer."""
    rng = np.random.default_rng(seed)
    encoder = pretrainer.encoder
    size = encoder.image_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (batch_size, encoder.num_frames, height, width, encoder.num_channels)
    batch = {"videos": rng.normal(size=shape).astype("float32")}
    for i in range(pretrainer.predictor.num_mask_tokens):
        order = np.argsort(rng.random((batch_size, encoder.num_tokens)), axis=1).astype("int32")
        batch[f"context_indices_{i}"] = np.sort(order[:, :context], axis=1)
        batch[f"target_indices_{i}"] = np.sort(order[:, context : context + target], axis=1)
    return batch


def left_over(folder: Path) -> Path:
    """What a killed process leaves in a folder, as `keras_vjepa.files` would have written it."""
    # Linux never gives a process this number.
    path = folder / f".unfinished-{2**22 + 1}-0-{socket.gethostname()}"
    path.mkdir(parents=True)
    (path / "half").write_text("half of a file")
    return path


# Only this module is loaded, because importing Keras takes seconds.
_HOLDER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("locks", sys.argv[1])
locks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(locks)
with locks.locked(sys.argv[2], "--workdir", name=sys.argv[3]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def lock_holder(folder: Path, name: str = locks.LOCK_FILE) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder until its input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, locks.__file__, str(folder), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
