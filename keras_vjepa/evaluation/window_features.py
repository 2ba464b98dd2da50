"""Compute features of all windows of files, several files in one batch (§4.3, App. D)."""

from collections import deque
from collections.abc import Iterator
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
        self._known: deque[FileAhead] = deque()
        self._found: dict[FileAhead, deque[Rows]] = {}
        self._errors: dict[FileAhead, Exception] = {}
        self._read: set[FileAhead] = set()
        self._windows = self._one_by_one(files)
        self._next: tuple[FileAhead, Window] | None = None
        self._compiled_for: tuple[int, ...] | None = None

    def files(self) -> Iterator[FileAhead]:
        """Yield each file once, when it is open or cannot be opened."""
        while True:
            while not self._known:
                if not self._compute():
                    return
            file = self._known.popleft()
            yield file
            self._found.pop(file)
            self._errors.pop(file, None)
            self._read.discard(file)

    def rows(self, file: FileAhead) -> Iterator[Rows]:
        """Yield the features of the windows of a file that `files` yielded last, in batches.

        Raises:
            UnreadableVideoError: if the file cannot be read to its end.
        """
        found = self._found[file]
        while True:
            while found:
                yield found.popleft()
            if file in self._errors:
                raise self._errors[file]
            if file in self._read:
                return
            self._compute()

    def _one_by_one(self, files: FilesAhead) -> Iterator[tuple[FileAhead, Window]]:
        for file in files:
            self._known.append(file)
            self._found[file] = deque()
            try:
                for window in file.windows():
                    yield file, window
            except Exception as error:
                self._errors[file] = error
            self._read.add(file)

    def _compute(self) -> bool:
        """Compute the next batch; return whether there was one, or a file that has no windows."""
        before = len(self._read)
        batch = self._next_batch()
        # Windows that do not fill a batch follow one by one. There are then only two shapes of
        # batches, and the model is compiled only twice.
        whole = len(batch) == self.batch_size
        for part in [batch] if whole else [[one] for one in batch]:
            features = self._features(np.stack([window for _, window in part]))
            for (file, _), row in zip(part, features, strict=True):
                self._found[file].append(row[np.newaxis])
        return bool(batch) or len(self._read) > before

    def _next_batch(self) -> list[tuple[FileAhead, Window]]:
        batch: list[tuple[FileAhead, Window]] = []
        while len(batch) < self.batch_size:
            self._next = self._next or next(self._windows, None)
            # An image may have fewer frames than a window of a video.
            if self._next is None or (batch and batch[0][1].shape != self._next[1].shape):
                break
            batch.append(self._next)
            self._next = None
        return batch

    def _features(self, windows: NDArray[np.float32]) -> Rows:
        if windows.shape[1:] != self._compiled_for:
            # The function is made anew, because TensorFlow would otherwise compile it for any
            # number of frames, which cannot be divided into patches.
            self.backbone.make_predict_function(force=True)
            self._compiled_for = windows.shape[1:]
        features = np.asarray(self.backbone.predict_on_batch(windows)).astype(np.float32)
        return features if self.tokens else features.mean(axis=1)
