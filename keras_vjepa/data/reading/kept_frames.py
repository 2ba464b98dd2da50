"""Keep the frames of videos in memory, so that small sets are decoded only once (§3.4).

A small model trains faster than its videos can be decoded: of 0.32 s of a step of the recipe
`digit_motion_features`, 0.08 s are for opening and decoding files of 18 frames.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from keras_vjepa.data.reading.decoders import Frames
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import name_of
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.video import VideoInfo, VideoReader, open_video

_LOG = logging.getLogger(__name__)


class KeptVideo:
    """Reads frames of a video that is in memory, as `VideoReader` does from a file.

    Args:
        path: name of the video.
        info: what is known about it.
        frames: uint8 (frames, height, width, 3), all of it.
    """

    def __init__(self, path: str, info: VideoInfo, frames: Frames) -> None:
        self.path, self.info, self._frames = path, info, frames

    @property
    def num_frames(self) -> int:
        """Return the number of frames."""
        return self.info.num_frames

    def read(self, indices: ArrayLike, out: Frames | None = None) -> Frames:
        """Copy frames, `(n, height, width, 3)`.

        Args:
            indices: (n,) integers in [0, num_frames).
            out: memory for the frames; by default new memory.
        """
        return np.take(self._frames, np.asarray(indices), axis=0, out=out)


class KeptFrames:
    """Keeps decoded videos, as many as a number of bytes allows, for several threads.

    A video is decoded whole when it is first opened, so that one of which a frame is damaged is
    unreadable, whichever frames are wanted. A file that is replaced later is not read again. Videos
    beyond the limit are opened as usual each time, and the log says when the limit is reached.

    Args:
        most_bytes: of all frames together.

    Attributes:
        num_bytes: of the frames that are kept.

    Example:

    >>> from keras_vjepa.data.reading.kept_frames import KeptFrames
    >>> KeptFrames(most_bytes=2**30).num_bytes
    0
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes, self.num_bytes = most_bytes, 0
        self._videos: dict[str, KeptVideo | None] = {}
        self._is_full = False
        self._lock = threading.Lock()

    @contextmanager
    def opened(
        self, source: str | Path | Media, limits: ReadingLimits = DEFAULT_LIMITS
    ) -> Iterator[VideoReader | KeptVideo]:
        """Lend a video, from memory if it is kept there.

        Args:
            source: as in `open_video`.
            limits: likewise.

        Raises:
            UnreadableVideoError: as `open_video`, and if a frame cannot be decoded.
        """
        name = name_of(source)
        kept = self._videos.get(name)
        if kept is not None:
            yield kept
            return
        with open_video(source, limits=limits) as video:
            if name not in self._videos:
                kept = self._keep(name, video)
            yield kept or video

    def _keep(self, name: str, video: VideoReader) -> KeptVideo | None:
        """Decode and keep a video; None if there is no room, or another thread is about to."""
        info = video.info
        size = info.num_frames * info.height * info.width * 3
        if not self._reserve(name, size):
            return None
        try:
            kept = KeptVideo(video.path, info, video.read(np.arange(info.num_frames)))
        except BaseException:
            with self._lock:
                self.num_bytes -= size
                del self._videos[name]
            raise
        self._videos[name] = kept
        return kept

    def _reserve(self, name: str, size: int) -> bool:
        """Tell whether a video is to be kept, and no other thread is about to keep it."""
        with self._lock:
            if name in self._videos:
                return False
            self._videos[name] = None
            if self.num_bytes + size > self.most_bytes:
                if not self._is_full:
                    count = sum(video is not None for video in self._videos.values())
                    _LOG.warning(
                        "The frames of %d videos are kept in memory, %.2f GiB; those that do not "
                        "fit into the %.2f GiB allowed are decoded each time",
                        count, self.num_bytes / 2**30, self.most_bytes / 2**30,
                    )  # fmt: skip
                self._is_full = True
                return False
            self.num_bytes += size
            return True
