"""Check that data are a batch for pretraining, and say what is wrong otherwise (§3.1, §3.2)."""

from collections.abc import Mapping
from typing import Any, TypeGuard

from keras_vjepa.training.batches import Batches

_CONTEXT, _TARGET = "context_indices_", "target_indices_"


def check_batch(target: str = "features", **given: Any) -> None:
    """Check that the data given to a pretrainer are batches.

    Args:
        target: what the pretrainer predicts; if it is "given", a batch must hold `targets`.
        given: the data, by the name of the argument.

    Raises:
        ValueError: if one is no batch; the message says what a batch is, and what makes one.

    Example:

    >>> from keras_vjepa.tasks.pretraining_batch import check_batch
    >>> check_batch(x={"videos": 0, "context_indices_0": 0, "target_indices_0": 0})
    """
    for name, inputs in given.items():
        received = _what_it_is_instead(inputs)
        if received is None and target == "given" and "targets" not in inputs:
            raise ValueError(
                f"`{name}` must hold `targets`, features (batch, tokens, output_dim) that are "
                "predicted, since `target` is 'given'; or give the pretrainer a `teacher`. "
                f"Received: only {', '.join(map('`{}`'.format, inputs))}"
            )
        if received is not None:
            raise ValueError(
                f"`{name}` must be a batch: a dictionary of `videos` (batch, frames, height, "
                f"width, channels) and, for each kind of masks i = 0, 1, ..., `{_CONTEXT}i` and "
                f"`{_TARGET}i` (batch, tokens), as keras_vjepa.data.ClipBatches makes them. "
                f"Received: {received}"
            )


def check_images(target: str, teacher: Any) -> None:
    """Check that there is something to predict for images, of which a batch was given.

    Args:
        target: what the pretrainer predicts.
        teacher: the encoder whose features are predicted, or None.

    Raises:
        ValueError: if what is predicted is known only for videos.
    """
    if target == "pixels":
        raise ValueError(
            "`target` must not be 'pixels' for images beside videos: a patch of an image has fewer "
            "pixels than one of a video. Received: a batch of images, clips of one frame"
        )
    if teacher is not None and not teacher.modalities:
        raise ValueError(
            "`teacher` must have `modalities` for images beside videos. Received: one without, "
            "and a batch of images, clips of one frame"
        )


def is_stream(source: Any) -> TypeGuard[Batches]:
    """Tell whether batches are made as a function of the step, as `ClipBatches` makes them."""
    return hasattr(source, "stream") and hasattr(source, "batch")


def _what_it_is_instead(inputs: Any) -> str | None:
    if not isinstance(inputs, Mapping):
        shape = getattr(inputs, "shape", None)
        if shape is not None:
            return f"an array of shape {tuple(shape)}"
        kind = type(inputs).__name__
        return f"{kind}, whose `batch(0)` is one" if is_stream(inputs) else f"{kind}"
    kinds = {
        str(key)[len(start) :]
        for key in inputs
        for start in (_CONTEXT, _TARGET)
        if str(key).startswith(start)
    }
    needed = [f"{start}{kind}" for kind in sorted(kinds | {"0"}) for start in (_CONTEXT, _TARGET)]
    missing = [key for key in ("videos", *needed) if key not in inputs]
    if not missing:
        return None
    found = ", ".join(f"`{key}`" for key in inputs) or "nothing"
    return f"a dictionary of {found}, without {' and '.join(f'`{key}`' for key in missing)}"
