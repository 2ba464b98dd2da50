"""Read a whole video file, and say what is in it and what is wrong with it (§3.4, App. B)."""

import hashlib
import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import is_image
from keras_vjepa.data.reading.truncation import missing_bytes
from keras_vjepa.data.reading.video import VideoReader, open_video

Problem = Literal[
    "", "missing", "unreadable", "crash", "truncated", "damaged", "short", "duplicate", "unnameable"
]

# Frames decoded at a time, each time within the limit of seconds.
_AT_ONCE = 256
# Two frames are as far apart as two others if it is so but for what the container rounds.
_SAME_DISTANCE = 0.002


@dataclass(frozen=True)
class VideoReport:
    """Says what is in a file.

    Attributes:
        problem: kind of what is wrong with it, "" if nothing is.
        reason: what is wrong, in words.
        codec: FFmpeg's name of it; "image" for an image.
        num_frames: frames that can be read.
        fps: frames per second on average, 0.0 if it does not say.
        seconds: its length; 0.0 if it does not say.
        height, width: of a frame in pixels, upright.
        keyframe_distance: the most frames from one key frame to the next, or to the end; 0 if it
            does not say.
        has_variable_rate: whether frames are shown for different times.
        num_bytes: size of the file.
        content: hash of all of its bytes.
    """

    problem: Problem = ""
    reason: str = ""
    codec: str = ""
    num_frames: int = 0
    fps: float = 0.0
    seconds: float = 0.0
    height: int = 0
    width: int = 0
    keyframe_distance: int = 0
    has_variable_rate: bool = False
    num_bytes: int = 0
    content: str = ""


@dataclass(frozen=True)
class Inspection:
    """Says how files are inspected; can be sent to another process.

    Args:
        limits: time and pixels that a file may take; the time is for 256 frames at once.
        decodes_all: decode every frame, so that damage anywhere is found; without it the index is
            read and the first frame is decoded.
    """

    limits: ReadingLimits = field(default=DEFAULT_LIMITS)
    decodes_all: bool = True

    def __call__(self, path: str) -> VideoReport:
        """Inspect a file.

        Args:
            path: a video, or an image by its extension.

        Returns:
            What is in it; what is wrong with it is said there too.
        """
        if not os.path.exists(path):
            return VideoReport("missing", "no such file")
        found: dict[str, Any] = {}
        try:
            if is_image(path):
                height, width = read_image(path, self.limits).shape[:2]
                found |= {"codec": "image", "num_frames": 1, "height": height, "width": width}
            else:
                with open_video(path, limits=self.limits) as video:
                    found |= _facts(video)
                    problem, reason = self._damage(video)
                    found |= {"problem": problem, "reason": reason}
            found["num_bytes"] = os.path.getsize(path)
            found["content"] = _hash_of(path)
        except UnreadableVideoError as error:
            found |= {"problem": _kind_of(path, error.reason), "reason": error.reason}
        except OSError as error:
            reason = error.strerror or type(error).__name__
            found |= {"problem": "unreadable", "reason": reason}
        return VideoReport(**found)

    def _damage(self, video: VideoReader) -> tuple[Problem, str]:
        """What is wrong with a file that can be opened."""
        missing = missing_bytes(video.path)
        if missing:
            return "truncated", f"its last {missing:,} bytes are missing"
        if not self.decodes_all:
            return "", ""
        decoded = -1
        while (now := video.decode_on(_AT_ONCE)) != decoded:
            decoded = now
        if decoded < video.num_frames:
            return "damaged", f"of {video.num_frames} frames only {decoded} can be decoded"
        if video.num_damaged:
            return "damaged", f"{video.num_damaged} of its frames or packets are damaged"
        return "", ""


def _kind_of(path: str, reason: str) -> Problem:
    try:
        is_cut = "truncated" in reason or missing_bytes(path) > 0
    except OSError:
        is_cut = False
    return "truncated" if is_cut else "unreadable"


def _facts(video: VideoReader) -> dict[str, Any]:
    info, times = video.info, video.times()
    return {
        "codec": video.codec,
        "num_frames": info.num_frames,
        "fps": round(info.fps, 3),
        "seconds": round(_seconds(info.num_frames, info.fps, times), 3),
        "height": info.height,
        "width": info.width,
        "keyframe_distance": _keyframe_distance(video),
        "has_variable_rate": times is not None and _is_variable(times),
    }


def _seconds(num_frames: int, fps: float, times: NDArray[np.float64] | None) -> float:
    if times is None or len(times) < 2:
        return num_frames / fps if fps else 0.0
    # The last frame is shown as long as the others on average.
    return float(times[-1] - times[0]) * len(times) / (len(times) - 1)


def _keyframe_distance(video: VideoReader) -> int:
    keyframes = video.keyframes()
    if keyframes is None or not len(keyframes):
        return 0
    return int(np.diff([*keyframes, video.num_frames]).max())


def _is_variable(times: NDArray[np.float64]) -> bool:
    """Whether frames are unevenly spaced, by more than what containers round."""
    distances = np.diff(times)
    if len(distances) < 2:
        return False
    # A millisecond either way is what Matroska rounds to.
    return bool(np.ptp(distances) > max(_SAME_DISTANCE, 0.01 * math.fabs(np.median(distances))))


def _hash_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
