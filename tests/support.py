"""Golden data and batches shared by the tests."""

import socket
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_vjepa.backend import device

ROOT = Path(__file__).parent.parent
# First on the path of a process, TensorFlow is as good as not installed.
WITHOUT_TENSORFLOW = ROOT / "tests" / "without_tensorflow"
GOLDEN = Path(__file__).parent / "golden"
# Files of older code; its README.md says what is there. Tests that write work in a copy.
BEFORE_THE_HOUSE = GOLDEN / "before_the_house"


def slow_but_on(*backends: str) -> Any:
    """The mark `slow` on other backends: what is tested is the same code on each.

    tests/README.md says which tests remain there; that they notice the same faults is not shown.
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
    return device.compiled_alone(lambda *arrays: function(*arrays))


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
    # No Linux has a process of this number.
    path = folder / f".unfinished-{2**22 + 1}-0-{socket.gethostname()}"
    path.mkdir(parents=True)
    (path / "half").write_text("half of a file")
    return path
