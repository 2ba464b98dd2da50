"""The two libraries that decode videos, behind one interface (§3.4).

Frames are uint8 (height, width, 3), RGB and upright, from either.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.mp4_boxes import edit_list_seconds, kinds_of_boxes

Frames = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]

# A damaged packet makes a grab fail though good frames follow; so does the end of the file.
MAX_FAILED_GRABS = 32


@dataclass(frozen=True)
class PacketIndex:
    """Timestamps of all frames in display order, and which frames are keyframes.

    Attributes:
        timestamps: (num_frames,), strictly increasing, in the decoder's own unit.
        keyframes: (num_keyframes,), positions in `timestamps`, increasing.
    """

    timestamps: npt.NDArray[Any]
    keyframes: Indices

    @classmethod
    def from_packets(
        cls, timestamps: Sequence[float], is_keyframe: Sequence[bool]
    ) -> "PacketIndex | None":
        """Sort packets by time; `None` where the times do not tell the frames apart."""
        times = np.asarray(timestamps)
        order = np.argsort(times, kind="stable")
        times = times[order]
        if len(times) == 0 or np.isnan(times).any() or (np.diff(times) <= 0).any():
            return None
        return cls(times, np.flatnonzero(np.asarray(is_keyframe)[order]))


class Decoder(Protocol):
    """What `VideoReader` needs of a decoding library."""

    fps: float

    def packet_index(self) -> PacketIndex | None:
        """Index of all frames without decoding them; `None` if it cannot be trusted."""

    def rewind(self) -> None:
        """Go back to before the first frame."""

    def seek(self, timestamp: float) -> None:
        """Go to some place before the frame with this timestamp."""

    def advance(self) -> float | None:
        """Decode the next frame and return its timestamp, `None` at the end."""

    def frame(self) -> Frames:
        """The frame last decoded: uint8 (height, width, 3), RGB, upright."""

    def close(self) -> None:
        """Free the file."""


class OpenCVDecoder:
    """Timestamps in milliseconds."""

    def __init__(self, path: str) -> None:
        # An absolute path, or FFmpeg takes a colon in the name for a protocol.
        self._path = os.path.abspath(path)
        self._shown_path = path
        self.rewind()
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else 0.0

    def rewind(self) -> None:
        # One thread: a loader runs many readers, and more threads for each only fight.
        self._capture = cv2.VideoCapture(self._path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise UnreadableVideoError(self._shown_path, _why_not_opened(self._path))

    def packet_index(self) -> PacketIndex | None:
        # FORMAT -1 makes OpenCV hand out packets without decoding them.
        packets = cv2.VideoCapture(self._path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
        timestamps, is_keyframe = [], []
        while packets.grab():
            timestamps.append(packets.get(cv2.CAP_PROP_POS_MSEC))
            is_keyframe.append(packets.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) > 0)
        packets.release()
        # They differ where packets are damaged or missing, and in VP8 that hides reference frames.
        if self._capture.get(cv2.CAP_PROP_FRAME_COUNT) != len(timestamps):
            return None
        shown = edit_list_seconds(self._path)
        if shown is not None and abs(shown * self.fps - len(timestamps)) >= 0.5:
            return None
        return PacketIndex.from_packets(timestamps, is_keyframe)

    def seek(self, timestamp: float) -> None:
        self._capture.set(cv2.CAP_PROP_POS_MSEC, timestamp)

    def advance(self) -> float | None:
        for _ in range(MAX_FAILED_GRABS):
            if self._capture.grab():
                return self._capture.get(cv2.CAP_PROP_POS_MSEC)
        return None

    def frame(self) -> Frames:
        retrieved, frame = self._capture.retrieve()
        if not retrieved:
            raise UnreadableVideoError(self._shown_path, "a decoded frame cannot be converted")
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)

    def close(self) -> None:
        self._capture.release()


class AVDecoder:
    """Timestamps in units of the stream's time base."""

    def __init__(self, path: str) -> None:
        try:
            import av
        except ImportError as error:
            raise ImportError('`decoder="av"` needs PyAV: pip install av') from error
        self._av = av
        self._path = path
        # One scaler for the whole file: building it anew for each frame costs 11 times as much.
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._container = self._open()
        self._start()

    def _open(self) -> Any:
        try:
            container = self._av.open(os.path.abspath(self._path))
        except self._av.FFmpegError as error:
            raise UnreadableVideoError(self._path, _why_not_opened(self._path)) from error
        if not container.streams.video:
            container.close()
            raise UnreadableVideoError(self._path, "it has no video stream")
        return container

    def _start(self) -> None:
        self._stream = self._container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        self.fps = float(self._stream.average_rate or 0)
        self._frames = self._decode()

    def rewind(self) -> None:
        self._container.close()
        self._container = self._open()
        self._start()

    def packet_index(self) -> PacketIndex | None:
        timestamps, is_keyframe = [], []
        with self._open() as container:
            try:
                for packet in container.demux(container.streams.video[0]):
                    if packet.is_corrupt:
                        return None
                    if packet.size and not packet.is_discard:
                        timestamps.append(math.nan if packet.pts is None else packet.pts)
                        is_keyframe.append(packet.is_keyframe)
            except self._av.FFmpegError:
                return None
        return PacketIndex.from_packets(timestamps, is_keyframe)

    def seek(self, timestamp: float) -> None:
        self._container.seek(int(timestamp), stream=self._stream)
        self._frames = self._decode()

    def _decode(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            # A damaged packet is passed over; each packet is tried once, so this ends.
            try:
                packet = next(packets, None)
                frames = [] if packet is None else packet.decode()
            except self._av.FFmpegError:
                continue
            if packet is None:
                return
            yield from frames

    def advance(self) -> float | None:
        frame = next(self._frames, None)
        if frame is None:
            return None
        self._frame = frame
        return math.nan if frame.pts is None else frame.pts

    def frame(self) -> Frames:
        rgb = self._reformatter.reformat(self._frame, format="rgb24", threads=1).to_ndarray()
        # OpenCV turns a phone's video upright by itself, PyAV does not.
        return np.asarray(np.rot90(rgb, self._frame.rotation // 90), np.uint8)

    def close(self) -> None:
        self._container.close()


def _why_not_opened(path: str) -> str:
    kinds = kinds_of_boxes(path)
    if kinds[:1] == [b"ftyp"] and b"moov" not in kinds:
        return "it is truncated: the index of the MP4 file (its moov box) is missing"
    return "no video is found in it (not a video file, damaged, or an unknown format)"
