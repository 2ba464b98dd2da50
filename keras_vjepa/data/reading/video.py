"""Open a video and read exact frames (§3.4, App. B, App. D.1).

A video is opened once for its length and its frames:

    with open_video("clip.mp4") as video:
        indices = clip_frame_indices(video.num_frames, frames_per_clip=16, frame_step=4)
        frames = video.read(indices[0])  # uint8 (16, height, width, 3), RGB

How it is read, and why:

* The number of frames that a header states is often wrong. Here the packets are counted, which
  needs no decoding (2 ms for 10 s of 340×256, 14 ms for 30 s of 720p), and the count is believed
  only if the header and an MP4's edit list agree with it. Otherwise every frame is decoded once.
* A frame's timestamp is its identity. A frame is taken only if its timestamp is the expected one;
  if it is not, the file is read again from the start, in order.
* Within a clip frames are decoded in order and only the wanted ones are converted to RGB. A seek
  happens only across a keyframe: measured on 16 frames of stride 4, seeking gains nothing inside
  one group of pictures (340×256: 25 ms either way) and halves or thirds the time across them
  (720p, 22 s into the file: 306 ms instead of 933 ms).
* PyAV decodes where it is installed, else OpenCV. Both give the same pixels; PyAV opens more
  (AV1 above all), passes over frames that nobody needs, and takes limits.
* Files are opened and read behind the gate (see `gate.py`): whatever goes wrong there becomes an
  `UnreadableVideoError`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from keras_vjepa.data.reading.av_decoder import AVDecoder, has_av
from keras_vjepa.data.reading.claims import check_claims
from keras_vjepa.data.reading.contents import (
    VideoContents,
    is_remembered,
    remember,
    remembered,
)
from keras_vjepa.data.reading.decoders import Decoder, Frames, Indices, PacketIndex
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.gate import through_gate
from keras_vjepa.data.reading.image_headers import still_image_format
from keras_vjepa.data.reading.lent_files import LentFile
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import media_at, name_of
from keras_vjepa.data.reading.media import EncodedMedia, FrameMedia, Media, file_status
from keras_vjepa.data.reading.opencv_decoder import OpenCVDecoder
from keras_vjepa.data.reading.video_headers import check_is_no_list

ResultT = TypeVar("ResultT")

# ---------------------------------------------------------------------------- reading the frames


@dataclass(frozen=True)
class VideoInfo:
    """Describes a video as it really is, whatever its header says.

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


class VideoReader:
    """Reads an open video; `open_video` makes it, for one thread at a time.

    `info.num_frames` is the number of frames that can be decoded, not what the header states. The
    exception is a file whose packets are all there but damaged inside (flipped bits): then `read`
    numbers the frames that decode, and raises if there are too few of them.

    Attributes:
        path: the file.
        info: number of frames, frames per second, height and width.
    """

    def __init__(
        self,
        path: str,
        decoder: Decoder,
        limits: ReadingLimits = DEFAULT_LIMITS,
        lent: LentFile | None = None,
    ) -> None:
        self.path = path
        self._decoder = decoder
        self._lent = LentFile(path, file_status(path)) if lent is None else lent
        self._limits = limits
        self._is_busy, self._is_closed = False, False
        # Whether to read without seeking or skipping, because timestamps turned out to be wrong.
        self._in_order = False
        # Position in decoding order, and timestamp, of the frame that was decoded last.
        self._position, self._time = -1, -math.inf
        self._key = (type(decoder), path, *self._lent.identity)
        contents = remembered(self._key, self._look)
        self._index = contents.index
        self.info = VideoInfo(contents.num_frames, decoder.fps, contents.height, contents.width)

    @property
    def num_frames(self) -> int:
        """Return the number of frames."""
        return self.info.num_frames

    @property
    def fps(self) -> float:
        """Return the frames per second on average; 0.0 if the file does not say."""
        return self.info.fps

    @property
    def codec(self) -> str:
        """Return FFmpeg's name of the codec, such as "h264"."""
        return self._decoder.codec

    @property
    def num_damaged(self) -> int:
        """Return the number of damaged frames decoded so far, as far as the library tells."""
        return self._decoder.num_damaged

    def times(self) -> npt.NDArray[np.float64] | None:
        """Return the second at which each frame is shown; None if the file does not say."""
        if self._index is None:
            return None
        return np.asarray(self._index.timestamps, np.float64) * self._decoder.time_unit

    def keyframes(self) -> Indices | None:
        """Return the frames that need no other to be decoded; None if the file does not say."""
        return None if self._index is None else self._index.keyframes

    def decode_on(self, count: int) -> int:
        """Decode the next frames without converting them, to see that they can be decoded.

        Args:
            count: how many frames at most; the first call begins with the second frame if opening
                the file has decoded the first.

        Returns:
            The number of frames decoded since the start of the file.

        Raises:
            UnreadableVideoError: if that takes too long.
        """
        return self._through_gate(lambda: self._decode_on(count))

    def _decode_on(self, count: int) -> int:
        for _ in range(count):
            if not self._advance():
                break
        return self._position + 1

    def read(self, indices: npt.ArrayLike, out: Frames | None = None) -> Frames:
        """Read frames.

        Args:
            indices: (n,) integers in [0, num_frames), in any order; repeats are decoded once.
            out: memory for the m different frames, (m, height, width, 3); by default new memory.

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
        return self._through_gate(lambda: self._read(wanted, out))

    def _read(self, wanted: Indices, out: Frames | None = None) -> Frames:
        positions, places = np.unique(wanted, return_inverse=True)
        shape = (len(positions), self.info.height, self.info.width, 3)
        frames = np.empty(shape, np.uint8) if out is None else out
        if frames.shape != shape:
            raise ValueError(f"`out` must have the shape {shape}. Received: {frames.shape}")
        while not self._fill(frames, positions):
            self._trust_less()
        # Most clips repeat no frame, and need no copy.
        return frames if np.array_equal(wanted, positions) else frames[places]

    def _fill(self, frames: Frames, positions: Indices) -> bool:
        if self._index is not None:
            times = [] if self._in_order else self._index.timestamps[positions].tolist()
            self._decoder.want(frozenset(times))
        for position, out in zip(positions.tolist(), frames, strict=True):
            index = self._index
            if not (self._count_to(position) if index is None else self._go_to(position, index)):
                return False
            self._decoder.write_frame(out)
        return True

    def _count_to(self, position: int) -> bool:
        """Decode up to a frame that is known by its place in the order of decoding."""
        if position < self._position:
            self._rewind()
        while self._position < position and self._advance():
            pass
        return self._position == position

    def _go_to(self, position: int, index: PacketIndex) -> bool:
        """Decode up to a frame that is known by its timestamp; seek where it helps."""
        target = index.timestamps[position]
        if (keyframe := self._nearest_keyframe(position, index)) is not None:
            # OpenCV goes back from the given frame to a keyframe by itself. Other decoders are sent
            # to the keyframe itself, because otherwise they may miss a keyframe that is shown later
            # than it is decoded.
            self._decoder.seek(target if self._decoder.seek_margin else keyframe)
            if not self._advance():
                return False
            self._position = index.position(self._time)
        elif not self._time <= target:
            self._rewind()
        while self._time < target and self._advance():
            # If nothing is skipped, each frame must be the one that the index has next.
            is_strict = self._in_order or not self._decoder.passes_over
            if is_strict and not index.has(self._time, self._position):
                return False
        return self._time == target

    def _nearest_keyframe(self, position: int, index: PacketIndex) -> float | None:
        """Return the timestamp of the keyframe to start from, `None` if a seek is of no use.

        It is of no use if no keyframe lies between the last frame and the wanted one, unless the
        wanted one comes before.
        """
        if self._in_order:
            return None
        before = position - self._decoder.seek_margin
        nearest = int(np.searchsorted(index.keyframes, before, side="right")) - 1
        if nearest < 0:
            return None
        keyframe = float(index.timestamps[index.keyframes[nearest]])
        is_ahead = self._time <= index.timestamps[position]
        # A video that has just been opened reaches its first frame without a seek.
        reached = max(self._time, float(index.timestamps[0]))
        return None if is_ahead and keyframe <= reached else keyframe

    def _trust_less(self) -> None:
        """Give up what misled: first seeks and passing over frames, then timestamps.

        They are given up for good, or a reader of many windows would begin again at each of them.
        """
        if self._index is None or (self._in_order and self._time == math.inf):
            self._complain(self._position + 1)
        elif not self._in_order:
            self._in_order = True
            self._index = replace(self._index, keyframes=self._index.keyframes[:0])
        else:
            # Find out whether all frames can be decoded, and can thus be counted, or whether one is
            # damaged.
            self._index = None
            self._rewind()
            while self._advance():
                pass
            if self._position + 1 < self.num_frames:
                self._complain(self._position + 1)
        size = self.info.height, self.info.width
        remember(self._key, VideoContents(self._index, self.num_frames, *size))
        self._rewind()

    def _complain(self, num_decoded: int) -> NoReturn:
        reason = f"it promises {self.num_frames} frames, but only {num_decoded} can be decoded"
        raise UnreadableVideoError(self.path, reason)

    def _advance(self) -> bool:
        """Decode the next frame; its time is infinite at the end."""
        time = self._decoder.advance()
        self._time = math.inf if time is None else time
        self._position += time is not None
        return time is not None

    def _rewind(self) -> None:
        self._decoder.rewind()
        self._position, self._time = -1, -math.inf

    def _look(self) -> VideoContents:
        if not self._advance():
            most = self._limits.max_frame_pixels
            raise UnreadableVideoError(self.path, f"no frame of up to {most} pixels can be decoded")
        height, width = self._decoder.size()
        self._limits.check_size(height, width)
        index = self._decoder.packet_index()
        # If the index is wrong, frames are counted by decoding them.
        if index is None or index.timestamps[0] != self._time:
            index = None
            while self._advance():
                pass
        num_frames = self._position + 1 if index is None else len(index.timestamps)
        return VideoContents(index, num_frames, height, width)

    def _through_gate(self, action: Callable[[], ResultT]) -> ResultT:
        """Do something with the decoder, unless an earlier call, which is late, still uses it."""
        if self._is_busy:
            raise UnreadableVideoError(self.path, "an earlier call has not returned yet")

        def alone() -> ResultT:
            self._is_busy = True
            try:
                return action()
            finally:
                self._is_busy = False
                if self._is_closed:
                    self._give_back()

        return through_gate(self.path, UnreadableVideoError, self._limits.max_file_seconds, alone)

    def close(self) -> None:
        """Free the file; reading afterwards is an error."""
        if self._is_busy:
            self._is_closed = True  # the call that is still running frees the file when it ends
        else:
            self._through_gate(self._give_back)

    def _give_back(self) -> None:
        self._decoder.close()
        self._lent.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_video(
    source: str | Path | Media, decoder: str = "auto", limits: ReadingLimits = DEFAULT_LIMITS
) -> VideoReader:
    """Open a video.

    Args:
        source: the path of a file, or anything else that `media_at` takes.
        decoder: `"opencv"`, `"av"` (PyAV, an extra), or `"auto"`: PyAV if it is installed, else
            OpenCV.
        limits: time and pixels that it may take.

    Returns:
        A `VideoReader`, to be used in a `with` statement.

    Raises:
        UnreadableVideoError: if the file is missing, a pipe, empty, truncated, a still
            image, a list of other files, beyond the limits, or holds no video that can be decoded.
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
    hint = ""
    if decoder == "auto":
        decoder = "av" if has_av() else "opencv"
        hint = "" if has_av() else " (PyAV reads more formats: pip install av)"
    elif decoder == "av" and not has_av():
        raise ImportError('`decoder="av"` needs PyAV: pip install av')
    opened = lambda: _opened(media_at(source), decoder, limits, hint)  # noqa: E731
    return through_gate(name_of(source), UnreadableVideoError, limits.max_file_seconds, opened)


def way_of_reading(limits: ReadingLimits) -> str:
    """Describe in words what, beside a file itself, decides whether it can be read.

    Args:
        limits: time and pixels that it may take.

    Example:

    >>> way_of_reading(ReadingLimits(max_file_seconds=5)).split(", ")[1:]
    ['max_file_seconds=5', 'max_frame_pixels=67108864']
    """
    decoder = "PyAV" if has_av() else "OpenCV"
    return (
        f"{decoder}, max_file_seconds={limits.max_file_seconds:g}, "
        f"max_frame_pixels={limits.max_frame_pixels}"
    )


def _opened(media: Media, decoder: str, limits: ReadingLimits, hint: str) -> VideoReader:
    if isinstance(media, FrameMedia):
        return VideoReader(media.name, media.decoder(limits), limits, LentFile("", media.status()))
    assert isinstance(media, EncodedMedia)
    library = AVDecoder if decoder == "av" else OpenCVDecoder
    lent = media.lent_file()
    try:
        check_is_no_list(lent.path)
        if not is_remembered((library, media.name, *lent.identity)):
            check_claims(lent.path, limits)
        return _decoding(media.name, lent, library, limits, hint)
    except BaseException:
        lent.close()
        raise


def _decoding(
    name: str,
    lent: LentFile,
    library: type[AVDecoder | OpenCVDecoder],
    limits: ReadingLimits,
    hint: str,
) -> VideoReader:
    opened: Decoder | None = None
    try:
        opened = library(lent.path, limits)
        video = VideoReader(name, opened, limits, lent)
        if video.num_frames == 1:
            _check_is_no_image(name, lent.path)
        return video
    except BaseException as error:
        if opened is not None:
            opened.close()
        if hint and isinstance(error, ValueError):
            reason = error.reason if isinstance(error, UnreadableVideoError) else str(error)
            raise UnreadableVideoError(name, reason + hint) from error
        raise


def _check_is_no_image(name: str, path: str) -> None:
    with open(path, "rb") as file:
        format_of_image = still_image_format(file.read(16))
    if format_of_image is not None:
        raise UnreadableVideoError(name, f"it is a still image ({format_of_image}), not a video")


def read_frames(path: str | Path | Media, indices: npt.ArrayLike) -> Frames:
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


def video_info(path: str | Path | Media) -> VideoInfo:
    """Find the number of frames, the frame rate and the size of a video.

    Args:
        path: the file.

    Returns:
        A `VideoInfo` whose `num_frames` can be trusted.

    Raises:
        UnreadableVideoError: if the file cannot be read.
    """
    with open_video(path) as video:
        return video.info
