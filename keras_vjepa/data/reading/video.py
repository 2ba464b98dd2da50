"""Open a video and read exact frames (§3.4, App. B, App. D.1).

One open serves the length and the frames:

    with open_video("clip.mp4") as video:
        indices = clip_frame_indices(video.num_frames, frames_per_clip=16, frame_step=4)
        frames = video.read(indices[0])  # uint8 (16, height, width, 3), RGB

How it is read, and why:

* The number of frames that a header states is often wrong. Here the packets are counted, which
  needs no decoding (2 ms for 10 s of 340×256, 14 ms for 30 s of 720p), and the count is believed
  only if the header and an MP4's edit list agree with it. Otherwise every frame is decoded once.
* A frame's timestamp is its identity. After every seek the timestamp of each frame that is used
  must be the expected one; if it is not, the file is read again from the start, in order.
* Within a clip frames are decoded in order and only the wanted ones are converted to RGB. A seek
  happens only across a keyframe: measured on 16 frames of stride 4, seeking gains nothing inside
  one group of pictures (340×256: 25 ms either way) and halves or thirds the time across them
  (720p, 22 s into the file: 306 ms instead of 933 ms).
* OpenCV decodes by default. PyAV, where installed, opens what OpenCV cannot (AV1 above all).
  Variable frame rate and transport streams need no PyAV here: their frames are in order.
"""

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from keras_vjepa.data.reading.decoders import (
    AVDecoder,
    Decoder,
    Frames,
    Indices,
    OpenCVDecoder,
    PacketIndex,
)
from keras_vjepa.data.reading.errors import UnreadableVideoError

# OpenCV begins its seek this many frames before the wanted one, so only an earlier keyframe helps.
SEEK_MARGIN = 16
# Files whose index is remembered: 80 MB if they have 300 frames each.
MAX_INDICES = 32_768


# ---------------------------------------------------------------------------- reading the frames


@dataclass(frozen=True)
class VideoInfo:
    """What a file really holds.

    Attributes:
        num_frames: number of frames that can be decoded (see `VideoReader`).
        fps: frames per second on average; 0.0 if the file does not say.
        height: height of a frame in pixels, after rotation.
        width: width of a frame in pixels, after rotation.
    """

    num_frames: int
    fps: float
    height: int
    width: int


# Of files that were read before: most recently used last.
_indices: OrderedDict[tuple[Any, ...], PacketIndex | None] = OrderedDict()
_indices_lock = threading.Lock()


def _packet_index(path: str, decoder: Decoder) -> PacketIndex | None:
    """The index, remembered for as long as the file does not change.

    It costs a look at every packet, a fifth of the time of a clip of a small video, and training
    comes back to each file in every epoch.
    """
    status = os.stat(path)
    key = (type(decoder), path, status.st_size, status.st_mtime_ns)
    with _indices_lock:
        if key in _indices:
            _indices.move_to_end(key)
            return _indices[key]
    index = decoder.packet_index()
    with _indices_lock:
        _indices[key] = index
        if len(_indices) > MAX_INDICES:
            _indices.popitem(last=False)
    return index


class VideoReader:
    """An open video: its length and its frames. Made by `open_video`; for one thread at a time.

    `info.num_frames` is the number of frames that can be decoded, not what the header states. The
    exception is a file whose packets are all there but damaged inside (flipped bits): then `read`
    numbers the frames that decode, and raises if there are too few of them.

    Attributes:
        path: the file.
        info: number of frames, frames per second, height and width.
    """

    def __init__(self, path: str, decoder: Decoder) -> None:
        self.path = path
        self._decoder = decoder
        self._time = decoder.advance()
        if self._time is None:
            raise UnreadableVideoError(path, "no frame can be decoded")
        self._position = 0
        height, width, _ = decoder.frame().shape
        self._index = _packet_index(path, decoder)
        if self._index is not None and self._index.timestamps[0] != self._time:
            self._index = None
        num_frames = self._count() if self._index is None else len(self._index.timestamps)
        if num_frames == 1 and cv2.haveImageReader(path):
            raise UnreadableVideoError(path, "it is a still image, not a video")
        self.info = VideoInfo(num_frames, decoder.fps, height, width)

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.info.num_frames

    @property
    def fps(self) -> float:
        """Frames per second on average; 0.0 if the file does not say."""
        return self.info.fps

    def read(self, indices: npt.ArrayLike) -> Frames:
        """Read frames.

        Args:
            indices: (n,) integers in [0, num_frames), in any order; repeats are decoded once.

        Returns:
            uint8 (n, height, width, 3), RGB.

        Raises:
            ValueError: if an index is outside the video.
            UnreadableVideoError: if a frame cannot be decoded.
        """
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or wanted.size == 0 or not np.issubdtype(wanted.dtype, np.integer):
            raise ValueError(
                "`indices` must be a non-empty list of integers. "
                f"Received: shape {wanted.shape}, dtype {wanted.dtype}"
            )
        if wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise ValueError(
                f"`indices` must lie in [0, {self.num_frames}), the frames of {self.path}. "
                f"Received: {wanted.min()} to {wanted.max()}"
            )
        frames = np.empty((len(wanted), self.info.height, self.info.width, 3), np.uint8)
        if not self._fill(frames, wanted, self._index):
            # For good: a reader of many windows would begin anew at every one of them.
            self._index = None
            self._rewind()
            if not self._fill(frames, wanted, None):
                raise UnreadableVideoError(
                    self.path,
                    f"it promises {self.num_frames} frames, "
                    f"but only {self._position + 1} can be decoded",
                )
        return frames

    def _fill(self, frames: Frames, wanted: Indices, index: PacketIndex | None) -> bool:
        for position in np.unique(wanted):
            if not self._go_to(int(position), index):
                return False
            frame = self._decoder.frame()
            if frame.shape != frames.shape[1:]:
                raise UnreadableVideoError(
                    self.path,
                    f"its frames change size, from {frames.shape[1:3]} to {frame.shape[:2]}",
                )
            frames[wanted == position] = frame
        return True

    def _go_to(self, position: int, index: PacketIndex | None) -> bool:
        """Decode up to a frame; with an index seek where it helps, and check the timestamp."""
        if index is not None and self._seek_helps(position, index):
            self._decoder.seek(index.timestamps[position])
            self._time = self._decoder.advance()
            if self._time is None:
                return False
            self._position = int(np.searchsorted(index.timestamps, self._time))
        elif position < self._position:
            self._rewind()
        while self._position < position:
            time = self._decoder.advance()
            if time is None:
                return False
            self._time = time
            self._position += 1
        return index is None or (
            self._position == position and self._time == index.timestamps[position]
        )

    def _seek_helps(self, position: int, index: PacketIndex) -> bool:
        nearest = np.searchsorted(index.keyframes, position - SEEK_MARGIN, side="right") - 1
        if nearest < 0:
            return False
        return bool(index.keyframes[nearest] > self._position or position < self._position)

    def _rewind(self) -> None:
        self._decoder.rewind()
        self._position = -1

    def _count(self) -> int:
        while self._decoder.advance() is not None:
            self._position += 1
        return self._position + 1

    def close(self) -> None:
        """Free the file; reading afterwards is an error."""
        self._decoder.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_video(path: str | Path, decoder: str = "auto") -> VideoReader:
    """Open a video file.

    Args:
        path: the file.
        decoder: `"opencv"`, `"av"` (PyAV, an extra), or `"auto"`: OpenCV, then PyAV if it is
            installed and OpenCV cannot decode the first frame.

    Returns:
        A `VideoReader`, to be used in a `with` statement.

    Raises:
        UnreadableVideoError: if the file is missing, a folder, empty, truncated, a still image,
            or holds no video that can be decoded.
        ImportError: if `decoder="av"` and PyAV is not installed.
        ValueError: if `decoder` is not one of the three.

    Example:

    >>> open_video("nowhere.mp4")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ...
    UnreadableVideoError: Cannot read the video nowhere.mp4: no such file
    """
    if decoder not in ("auto", "opencv", "av"):
        raise ValueError(f'`decoder` must be "auto", "opencv" or "av". Received: {decoder!r}')
    if not os.path.exists(path):
        raise UnreadableVideoError(path, "no such file")
    if not os.path.isfile(path):
        raise UnreadableVideoError(path, "it is a folder, not a file")
    if not os.access(path, os.R_OK):
        raise UnreadableVideoError(path, "no permission to read it")
    if os.path.getsize(path) == 0:
        raise UnreadableVideoError(path, "the file is empty")
    if decoder == "av":
        return VideoReader(str(path), AVDecoder(str(path)))
    try:
        return VideoReader(str(path), OpenCVDecoder(str(path)))
    except UnreadableVideoError as error:
        if decoder == "opencv":
            raise
        try:
            av_decoder = AVDecoder(str(path))
        except ImportError:
            reason = f"{error.reason} (PyAV reads more formats: pip install av)"
            raise UnreadableVideoError(path, reason) from error
    return VideoReader(str(path), av_decoder)


def read_frames(path: str | Path, indices: npt.ArrayLike) -> Frames:
    """Read frames of a file: `open_video` and `VideoReader.read` in one call.

    Args:
        path: the file.
        indices: (n,) integers in [0, number of frames).

    Returns:
        uint8 (n, height, width, 3), RGB.

    Raises:
        UnreadableVideoError: if the file or a frame cannot be read.
        ValueError: if an index is outside the video.
    """
    with open_video(path) as video:
        return video.read(indices)


def video_info(path: str | Path) -> VideoInfo:
    """Number of frames, frame rate and size of a file.

    Args:
        path: the file.

    Returns:
        A `VideoInfo` whose `num_frames` can be trusted.

    Raises:
        UnreadableVideoError: if the file cannot be read.
    """
    with open_video(path) as video:
        return video.info
