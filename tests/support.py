"""Golden data and batches shared by the tests."""

import socket
import subprocess
import sys
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


@contextmanager
def programs_made() -> Iterator[list[str]]:
    """Names of the programs that JAX or TensorFlow makes within the block; none on torch."""
    made: list[str] = []
    if keras.config.backend() == "jax":
        from jax import monitoring

        def listen(event: str, _: float, **about: Any) -> None:
            if event.endswith("jaxpr_to_mlir_module_duration"):
                made.append(str(about.get("fun_name")))

        monitoring.register_event_duration_secs_listener(listen)
        try:
            yield made
        finally:
            monitoring.unregister_event_duration_listener(listen)
    elif keras.config.backend() == "tensorflow":
        from tensorflow.python.eager import context

        before = set(context.context().list_function_names())
        yield made
        made += sorted(set(context.context().list_function_names()) - before)
    else:
        yield made


def _who_asked() -> str:
    """The file, of this package or of Keras above its operations, that asked for an operation."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        name, frame = frame.f_code.co_filename, frame.f_back
        of_keras = "/keras/src/" in name
        below = any(part in name for part in ("/keras/src/ops/", "/keras/src/backend/"))
        if (
            (of_keras and not below)
            or "/keras_vjepa/" in name
            or ("/tests/" in name and not name.endswith("/tests/support.py"))
        ):
            return "/".join(Path(name).parts[-3:])
    return "nobody known"


@contextmanager
def watched_by_torch(monkeypatch: Any) -> Iterator[list[str]]:
    """What stops host or device within the block, on torch: numbers asked for, or copied."""
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
                waits.append(f"{np.asarray(data).nbytes} bytes are copied by {_who_asked()}")
            return make(data, *args, **kwargs)

        return made

    def read(take: Any) -> Any:
        def taken(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            # What that module looks at lies on the host anyway; elsewhere it reads nothing.
            if not (who := _who_asked()).endswith("backend/host_values.py"):
                waits.append(f"{tensor.nbytes} bytes are read by {who}")
            return take(tensor, *args, **kwargs)

        return taken

    with monkeypatch.context() as patch:
        for name in ("as_tensor", "tensor", "from_numpy"):
            patch.setattr(torch, name, watched(getattr(torch, name)))
        # On the processor, these are no operations, so a dispatch mode does not see them.
        for name in ("numpy", "tolist"):
            patch.setattr(torch.Tensor, name, read(getattr(torch.Tensor, name)))
        with Watch():
            yield waits


def waits_of_a_step(model: Any, batch: tuple[Any, ...], monkeypatch: Any) -> list[str]:
    """What stops host or device in a second training step on torch: numbers asked for, or copied.

    Args:
        model: a compiled model; it makes one step before, which may do anything.
        batch: what `fit` gives to a step, as arrays.
        monkeypatch: pytest's, in whose context torch's functions are watched.
    """
    batch = keras.tree.map_structure(keras.ops.convert_to_tensor, batch)
    model.train_step(batch)
    with watched_by_torch(monkeypatch) as waits:
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
