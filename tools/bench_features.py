"""Time features of a folder: reading, the model, and both together (§4.3, App. D).

`keras-vjepa bench --features my_videos/` prints the table. `keras-vjepa features` reads files ahead
in threads while the model works. Where both have cores of their own, it should be as fast as the
slower of the two.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import VJEPAVideoPreprocessor
from keras_vjepa.arguments import counted
from keras_vjepa.data.batches.workers import default_threads
from keras_vjepa.data.reading.errors import UnreadableVideoError, printable
from keras_vjepa.data.sources.listing import source_exists
from keras_vjepa.evaluation.reading_ahead import FilesAhead, Name
from keras_vjepa.evaluation.window_features import WindowFeatures, WindowReader
from keras_vjepa.tools.extract_features import listed


@dataclass(frozen=True)
class Found:
    """Holds what was found of a folder.

    Attributes:
        reader: opens files as windows.
        paths: the files that can be read.
        count: their windows that fill whole batches.
        batch: the first batch of windows.
    """

    reader: WindowReader
    paths: list[Name]
    count: int
    batch: NDArray[np.float32]

    @property
    def batch_size(self) -> int:
        """Return the number of windows of a batch."""
        return len(self.batch)


def steady_rate(windows: Iterable[Any], first: int) -> float:
    """Time things from the end of the first ones on.

    Args:
        windows: yields each as soon as it is done.
        first: how many are not timed.

    Returns:
        How many a second.

    Raises:
        ValueError: if there are no more than the first.

    Example:

    >>> import time
    >>> from keras_vjepa.tools.bench_features import steady_rate
    >>> steady_rate((time.sleep(0.05) for _ in range(4)), first=2) < 21
    True
    """
    count, start = 0, 0.0
    for count, _ in enumerate(windows, 1):
        if count == first:
            start = time.perf_counter()
    if count <= first:
        raise ValueError(f"`windows` must be more than {first}. Received: {count}")
    return (count - first) / max(time.perf_counter() - start, 1e-9)


def ahead(reader: WindowReader, paths: list[Name], batch_size: int) -> FilesAhead:
    """Read files ahead as `keras-vjepa features` does."""
    workers = default_threads()
    return FilesAhead(paths, reader.open, workers, workers + batch_size)


def look_through(source: str, preprocessor: VJEPAVideoPreprocessor, batch_size: int) -> Found:
    """Read all files once, and name those that cannot be read.

    Args:
        source: what `keras-vjepa features` takes.
        preprocessor: makes clips of frames.
        batch_size: windows at a time.

    Raises:
        ValueError: if there is no such source, or fewer windows than three batches.
    """
    if not source_exists(source):
        raise ValueError(f"`features`: no such file or folder: {printable(source)}")
    reader = WindowReader(preprocessor)
    paths, count, first = list[Name](), 0, list[NDArray[np.float32]]()
    try:
        found = listed(source, "video")[1]
    except ValueError as error:
        raise ValueError(f"`features`: {error}") from error
    with ahead(reader, found, batch_size) as files:
        for file in files:
            try:
                windows = 0
                for window in file.windows():
                    windows += 1
                    first += [window] * (len(first) < batch_size)
            except UnreadableVideoError as error:
                print(f"Left out: {error}", file=sys.stderr)
                continue
            paths.append(file.path)
            count += windows
    if count < 3 * batch_size:
        raise ValueError(
            f"`features` must hold windows for three batches of `batch_size`={batch_size}. "
            f"Received: {counted(count, 'window')} of {counted(len(paths), 'file')}"
        )
    return Found(reader, paths, count // batch_size * batch_size, np.stack(first))


def windows_of(found: Found) -> Iterator[NDArray[np.float32]]:
    """Read windows, and do nothing with them."""
    with ahead(found.reader, found.paths, found.batch_size) as files:
        yield from islice((window for file in files for window in file.windows()), found.count)


def features_again(backbone: Any, found: Found) -> Iterator[NDArray[np.float32]]:
    """Compute the features of the first batch, as often as there are batches."""
    for _ in range(found.count // found.batch_size):
        yield from np.asarray(backbone.predict_on_batch(found.batch))


def features_of(backbone: Any, found: Found) -> Iterator[NDArray[np.float32]]:
    """Read windows and compute their features, as `keras-vjepa features` does."""
    with ahead(found.reader, found.paths, found.batch_size) as files:
        features = WindowFeatures(backbone, files, found.batch_size, tokens=False)
        rows = (row for file in features.files() for row in features.rows(file))
        yield from islice(rows, found.count)


def print_features(source: str, backbone: Any, batch_size: int, rounds: int) -> None:
    """Print windows a second: read, computed, and read and computed.

    Args:
        source: what `keras-vjepa features` takes.
        backbone: the encoder; its windows are of every fourth frame.
        batch_size: windows at a time.
        rounds: how often each is timed, in turns; the fastest counts.

    Raises:
        ValueError: as `look_through` does.
    """
    preprocessor = VJEPAVideoPreprocessor(backbone.image_size, backbone.num_frames)
    found = look_through(source, preprocessor, batch_size)
    reading = model = together = 0.0
    for _ in range(rounds):
        reading = max(reading, steady_rate(windows_of(found), batch_size))
        model = max(model, steady_rate(features_again(backbone, found), batch_size))
        together = max(together, steady_rate(features_of(backbone, found), batch_size))
    print(
        f"windows/s of {found.count:,}: reading {reading:.2f}, model {model:.2f}, together "
        f"{together:.2f} = {together / min(reading, model):.2f} of the slower"
    )
