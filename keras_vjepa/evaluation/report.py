"""Write the results of an evaluation as text and as a picture (§4.3, App. D.1)."""

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.evaluation.metrics import confusion_matrix


def mean_and_deviation(shares: Sequence[float]) -> str:
    """Write the mean of shares in per cent, and if there are several, their sample deviation.

    Example:

    >>> mean_and_deviation([0.5, 0.7])
    '60.0 ± 14.1'
    """
    mean = f"{100 * np.mean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * np.std(shares, ddof=1):.1f}"


def summary(results: Sequence[dict[str, dict[str, Any]]]) -> str:
    """Write top-1 and top-5 of each task, and the candidates of the last split.

    Args:
        results: the metrics of each split, as `FrozenProbe.score` returns them.
    """
    lines = []
    for task, last in results[-1].items():
        found = [result[task] for result in results]
        top1, top5 = (mean_and_deviation([one[key] for one in found]) for key in ("top1", "top5"))
        lines.append(f"{task}: top-1 {top1} %, top-5 {top5} % of {found[0]['num_counted']} samples")
        for name in found[0]["readouts"]:
            accuracy = mean_and_deviation([one["readouts"][name] for one in found])
            lines.append(f"  {name} on pooled features: top-1 {accuracy} %")
        candidates = last["candidates"]
        for i, candidate in enumerate(candidates if len(candidates) > 1 else []):
            lines.append(
                f"  {'*' if i == last['best'] else ' '} "
                f"learning rate {candidate['learning_rate']:g}, "
                f"weight decay {candidate['weight_decay']:g}: "
                f"validation {100 * candidate['validation']:.1f} %, "
                f"test {100 * candidate['test']:.1f} %"
            )
    return "\n".join(lines)


def draw_confusion(metrics: dict[str, Any], path: str | os.PathLike[str], side: int = 600) -> None:
    """Draw the confusion matrix as a picture: a row is a class, a column what was predicted.

    Args:
        metrics: the metrics of one task, as `FrozenProbe.score` returns them.
        path: the file.
        side: side of the matrix in pixels.

    Raises:
        OSError: if it cannot be written.
    """
    num_classes = len(metrics["per_class"])
    confusion = confusion_matrix(metrics["labels"], metrics["predictions"], num_classes, side)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cell = side // len(confusion)
    grey = (255 * (1 - np.kron(share, np.ones((cell, cell))))).astype(np.uint8)
    image = cv2.copyMakeBorder(grey, 30, 10, 40, 10, cv2.BORDER_CONSTANT, value=(235,))
    if cell >= 30:
        for row, column in np.ndindex(*confusion.shape):
            colour = 255 if share[row, column] > 0.5 else 0
            place = (42 + column * cell, 30 + row * cell + cell // 2)
            _write(image, f"{100 * share[row, column]:.0f}", place, colour)
        for i in range(len(confusion)):
            _write(image, str(i), (4, 30 + i * cell + cell // 2))
    _write(image, "rows: classes, columns: predictions, per cent of the row", (42, 20))
    files.write_picture(path, image)


def _write(image: NDArray[Any], text: str, place: tuple[int, int], colour: int = 0) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (colour,), 1, cv2.LINE_AA)
