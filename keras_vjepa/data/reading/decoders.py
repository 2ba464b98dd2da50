"""Describe what reading videos needs of a decoding library (§3.4).

Frames are uint8 (height, width, 3), RGB and upright, from either library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from keras_vjepa.data.reading.image_headers import still_image_format
from keras_vjepa.data.reading.mp4_boxes import kinds_of_boxes

Frames = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PacketIndex:
    """Holds the timestamps of all frames in display order, and tells where one may seek to.

    Attributes:
        timestamps: (num_frames,), strictly increasing, in the decoder's own unit.
        keyframes: (num_keyframes,), positions in `timestamps`, increasing; empty if a seek cannot
            be trusted.
    """

    timestamps: npt.NDArray[Any]
    keyframes: Indices

    @classmethod
    def from_packets(
        cls, timestamps: Sequence[float], is_keyframe: Sequence[bool]
    ) -> "PacketIndex | None":
        """Sort packets by time; return `None` if the times do not tell the frames apart."""
        times = np.asarray(timestamps)
        order = np.argsort(times, kind="stable")
        times = times[order]
        if len(times) == 0 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
            return None
        return cls(times, np.flatnonzero(np.asarray(is_keyframe)[order]))

    def position(self, timestamp: float) -> int:
        """Find the position of the frame with this timestamp, or where it would be."""
        return int(np.searchsorted(self.timestamps, timestamp))

    def has(self, timestamp: float, position: int) -> bool:
        """Tell whether the frame at a position has this timestamp."""
        return position < len(self.timestamps) and self.timestamps[position] == timestamp


class Decoder(Protocol):
    """Describes what `VideoReader` needs of a decoding library.

    Any error that it raises becomes one that names the file.
    """

    fps: float
    # FFmpeg's name of the codec.
    codec: str
    # Seconds of one unit of a timestamp.
    time_unit: float
    # The number of decoded frames that the library knows to be damaged, and of packets that it
    # refused.
    num_damaged: int
    # A seek begins this many frames before the wanted one, so that only a keyframe before that
    # point helps.
    seek_margin: int
    # Whether frames that are not wanted may be missing.
    passes_over: bool

    def packet_index(self) -> PacketIndex | None:
        """Index all frames without decoding them; return `None` if that cannot be trusted."""

    def rewind(self) -> None:
        """Go back to before the first frame."""

    def seek(self, timestamp: float) -> None:
        """Go to some place before the frame with this timestamp."""

    def want(self, timestamps: frozenset[float]) -> None:
        """Say which frames matter. Others before the last of them may be passed over."""

    def advance(self) -> float | None:
        """Decode the next frame and return its timestamp, `None` at the end."""

    def size(self) -> tuple[int, int]:
        """Return height and width of the frame last decoded, after rotation."""

    def write_frame(self, out: Frames) -> None:
        """Write the frame last decoded, RGB and upright, to uint8 (height, width, 3)."""

    def close(self) -> None:
        """Free the file."""


def check_same_size(frame: Frames, out: Frames) -> None:
    """Check that a frame is as large as those before it.

    Args:
        frame: the frame.
        out: where it is to be written.

    Raises:
        ValueError: if it is not.
    """
    if frame.shape != out.shape:
        raise ValueError(f"its frames change size, from {out.shape[:2]} to {frame.shape[:2]}")


def why_not_opened(path: str) -> str:
    """Say what is wrong with a file in which a library finds no video."""
    with open(path, "rb") as file:
        format_of_image = still_image_format(file.read(16))
    if format_of_image is not None:
        return f"it is a still image ({format_of_image}), not a video"
    kinds = kinds_of_boxes(path)
    if kinds[:1] == [b"ftyp"] and b"moov" not in kinds:
        return "it is truncated: the index of the MP4 file (its moov box) is missing"
    return "no video is found in it (not a video file, damaged, or an unknown format)"
