"""Read a whole video file, and say what is in it and what is wrong with it (§3.4, App. B)."""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import media_at
from keras_vjepa.data.reading.media import EncodedMedia, Media
from keras_vjepa.data.reading.truncation import missing_bytes
from keras_vjepa.data.reading.video import VideoReader, open_video

Problem = Literal[
    "", "missing", "unreadable", "crash", "truncated", "damaged", "short", "duplicate", "unnameable"
]

# Number of frames that are decoded at a time, each time within the limit of seconds.
_AT_ONCE = 256
_BLOCK = 2**22
# Distances between frames that differ by no more than this, in seconds, count as equal, because
# containers round times.
_SAME_DISTANCE = 0.002


@dataclass(frozen=True)
class VideoReport:
    """Says what is in a file.

    Attributes:
        problem: kind of the file's problem, "" if it has none.
        reason: the problem in words.
        codec: FFmpeg's name of the codec; "image" for an image.
        num_frames: number of frames that can be read.
        fps: frames per second on average, 0.0 if the file does not say.
        seconds: length of the video; 0.0 if the file does not say.
        height, width: size of an upright frame in pixels.
        keyframe_distance: the most frames from one key frame to the next, or to the end; 0 if the
            file does not say.
        has_variable_rate: whether some frames are shown for longer than others.
        num_bytes: size of the file.
        content: hash of all bytes of the file.
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
    """Says how files are inspected; it can be sent to another process.

    Args:
        limits: time and pixels that a file may take; the time is for 256 frames at once.
        decodes_all: decode every frame, so that damage anywhere is found; without it the index is
            read and the first frame is decoded.
    """

    limits: ReadingLimits = field(default=DEFAULT_LIMITS)
    decodes_all: bool = True

    def __call__(self, source: str | Media) -> VideoReport:
        """Inspect a file.

        Args:
            source: a path, whose extension tells an image from a video; or other media.

        Returns:
            What is in the file, and what is wrong with it, if anything is.
        """
        found: dict[str, Any] = {}
        media = media_at(source)
        try:
            if media.is_image:
                height, width = read_image(media, self.limits).shape[:2]
                found |= {"codec": "image", "num_frames": 1, "height": height, "width": width}
            else:
                with open_video(media, limits=self.limits) as video:
                    found |= _facts(video)
                    problem, reason = self._damage(media, video)
                    found |= {"problem": problem, "reason": reason}
            found["num_bytes"], found["content"] = _size_and_hash(media)
        except UnreadableVideoError as error:
            found |= {"problem": _kind_of(media, error.reason), "reason": error.reason}
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", "") or str(error) or type(error).__name__
            found |= {"problem": "unreadable", "reason": reason}
        return VideoReport(**found)

    def _damage(self, media: Media, video: VideoReader) -> tuple[Problem, str]:
        """Find what is wrong with a file that can be opened."""
        missing = _missing_bytes(media)
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


def _missing_bytes(media: Media) -> int:
    if not isinstance(media, EncodedMedia):
        return 0
    lent = media.lent_file()
    try:
        return missing_bytes(lent.path)
    finally:
        lent.close()


def _kind_of(media: Media, reason: str) -> Problem:
    if not any(media.status()):
        return "missing"
    try:
        is_cut = "truncated" in reason or _missing_bytes(media) > 0
    except (OSError, ValueError):
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
    # The last frame is taken to last as long as the others on average.
    return float(times[-1] - times[0]) * len(times) / (len(times) - 1)


def _keyframe_distance(video: VideoReader) -> int:
    keyframes = video.keyframes()
    if keyframes is None or not len(keyframes):
        return 0
    return int(np.diff([*keyframes, video.num_frames]).max())


def _is_variable(times: NDArray[np.float64]) -> bool:
    """Tell whether frames are unevenly spaced, by more than containers round."""
    distances = np.diff(times)
    if len(distances) < 2:
        return False
    # Matroska rounds each time to a millisecond, so distances may differ by two.
    return bool(np.ptp(distances) > max(_SAME_DISTANCE, 0.01 * math.fabs(np.median(distances))))


def _size_and_hash(media: Media) -> tuple[int, str]:
    """Count and hash the bytes of a file; for a folder of frames, take the hash of `Media`."""
    if not isinstance(media, EncodedMedia):
        return 0, media.content_hash().hex()
    digest = hashlib.blake2b(digest_size=16)
    with media.content() as content:
        for place in range(0, content.size, _BLOCK):
            digest.update(content.read_at(place, _BLOCK))
        return content.size, digest.hexdigest()
