"""Compute features of all windows of files, several files in one batch (§4.3, App. D)."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import is_image
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.data.sources.content_hashes import content_hash
from keras_vjepa.evaluation.reading_ahead import FileAhead, FilesAhead, Name, Opened, Window

Rows = NDArray[np.float32]


class WindowReader:
    """Opens files as windows, with what is noted of them.

    Args:
        preprocessor: a `VJEPAVideoPreprocessor`, with one clip and one view.
        stride: source frames from the start of a window to the next; None for no overlap.
        limits: time and pixels that a file may take.
    """

    def __init__(
        self,
        preprocessor: Any,
        stride: int | None = None,
        limits: ReadingLimits = DEFAULT_LIMITS,
    ) -> None:
        self.preprocessor = preprocessor
        self.stride = stride
        self.limits = limits

    def open(self, path: Name) -> Opened:
        """Open a video or an image.

        Raises:
            UnreadableVideoError: if the file cannot be read.
        """
        # The source is hashed before it is read, so that the next run notices if it was replaced
        # in the meantime.
        content = content_hash(path).hex()
        count, windows = self.preprocessor.windows(path, self.stride, self.limits)
        repeats = False
        if not is_image(path):
            with open_video(path, limits=self.limits) as video:
                repeats = self.preprocessor.repeats(video.num_frames, self.stride)
        return Opened(content, count, repeats, windows)


@dataclass
class _Progress:
    """Holds the rows of a file that nobody has taken, and whether more will come."""

    rows: deque[Rows] = field(default_factory=deque)
    is_read: bool = False
    error: Exception | None = None


class WindowFeatures:
    """Computes the features of files in their order, from batches that windows of several fill.

    Args:
        backbone: the encoder.
        files: the files, as they are read.
        batch_size: windows at a time.
        tokens: whether features are those of tokens, and not their mean.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import VJEPABackbone
    >>> from keras_vjepa.evaluation.reading_ahead import FilesAhead, Opened
    >>> from keras_vjepa.evaluation.window_features import WindowFeatures
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> def opened(path):
    ...     return Opened("", 3, False, iter(np.zeros((3, 4, 32, 32, 3), "float32")))
    >>> with FilesAhead(["a.mp4", "b.mp4"], opened, num_workers=1, most_ahead=2) as files:
    ...     features = WindowFeatures(backbone, files, batch_size=4, tokens=False)
    ...     for file in features.files():
    ...         print(file.path, sum(map(len, features.rows(file))))
    a.mp4 3
    b.mp4 3
    """

    def __init__(self, backbone: Any, files: FilesAhead, batch_size: int, tokens: bool) -> None:
        self.backbone = backbone
        self.batch_size = batch_size
        self.tokens = tokens
        # In the order of the files. An entry is removed when the next file is asked for.
        self._progress: dict[FileAhead, _Progress] = {}
        self._batches = self._in_batches(files)
        self._compiled_for: tuple[int, ...] | None = None

    def files(self) -> Iterator[FileAhead]:
        """Yield each file once, when it is open or cannot be opened."""
        while True:
            while not self._progress:
                if not self._compute() and not self._progress:
                    return
            file = next(iter(self._progress))
            yield file
            del self._progress[file]

    def rows(self, file: FileAhead) -> Iterator[Rows]:
        """Yield the features of the windows of a file that `files` yielded last, in batches.

        Raises:
            UnreadableVideoError: if the file cannot be read to its end.
        """
        progress = self._progress[file]
        while True:
            while progress.rows:
                yield progress.rows.popleft()
            if progress.error is not None:
                raise progress.error
            if progress.is_read:
                return
            self._compute()

    def _one_by_one(self, files: FilesAhead) -> Iterator[tuple[_Progress, Window]]:
        for file in files:
            progress = self._progress[file] = _Progress()
            try:
                for window in file.windows():
                    yield progress, window
            except Exception as error:
                progress.error = error
            progress.is_read = True

    def _in_batches(self, files: FilesAhead) -> Iterator[list[tuple[_Progress, Window]]]:
        # An image may have fewer frames than a window of a video.
        for _, alike in groupby(self._one_by_one(files), key=lambda one: one[1].shape):
            while batch := list(islice(alike, self.batch_size)):
                yield batch

    def _compute(self) -> bool:
        """Compute the next batch; return whether there was one."""
        batch = next(self._batches, [])
        # Windows that do not fill a batch follow one by one. There are then only two shapes of
        # batches, and the model is compiled only twice.
        whole = len(batch) == self.batch_size
        for part in [batch] if whole else [[one] for one in batch]:
            features = self._features(np.stack([window for _, window in part]))
            for (progress, _), row in zip(part, features, strict=True):
                progress.rows.append(row[np.newaxis])
        return bool(batch)

    def _features(self, windows: NDArray[np.float32]) -> Rows:
        if windows.shape[1:] != self._compiled_for:
            # The function is made anew, because TensorFlow would otherwise compile it for any
            # number of frames, which cannot be divided into patches.
            self.backbone.make_predict_function(force=True)
            self._compiled_for = windows.shape[1:]
        features = np.asarray(self.backbone.predict_on_batch(windows)).astype(np.float32)
        return features if self.tokens else features.mean(axis=1)
