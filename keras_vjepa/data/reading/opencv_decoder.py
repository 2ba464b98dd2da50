"""Decode videos with OpenCV (§3.4).

OpenCV names no error, takes no limits but those of time, and converts every frame to the size of
the first one, so the size is checked when a file is opened. From 4.13 on it does not convert
interlaced frames, but gives what is left in its memory, black or the frame before, without an
error. So a frame that looks exactly like the one before is looked at once more.
"""

import math
import os
import tempfile

import cv2
import numpy as np

from keras_vjepa.data.reading.avi_chunks import check_frames_of_avi, is_avi
from keras_vjepa.data.reading.decoders import (
    Frames,
    PacketIndex,
    check_same_size,
    why_not_opened,
)
from keras_vjepa.data.reading.gate import check_time
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.reading.mp4_boxes import edit_list_seconds

# A grab fails at the end of the file, but also at a damaged packet, after which good frames may
# follow. After this many failures, the file counts as ended.
MAX_FAILED_GRABS = 32

# FFmpeg shows the cover picture of an audio file as a video stream of one frame, at this rate.
_FPS_OF_COVERS = 90_000

_NAMES_OF_CODECS = {
    **dict.fromkeys(("h264", "avc1", "x264"), "h264"),
    **dict.fromkeys(("hevc", "hev1", "hvc1"), "hevc"),
    **dict.fromkeys(("fmp4", "mp4v", "xvid", "divx", "dx50"), "mpeg4"),
    **dict.fromkeys(("mjpg", "jpeg"), "mjpeg"),
    **{"vp80": "vp8", "vp90": "vp9", "vp09": "vp9", "av01": "av1"},
    **{"mpg1": "mpeg1video", "mpg2": "mpeg2video"},
}

_INTERLACED = (
    "its frames are black, or interlaced, which OpenCV does not convert (PyAV does: pip install av)"
)


class OpenCVDecoder:
    """Decodes a video with OpenCV; timestamps are in milliseconds."""

    seek_margin = 16
    passes_over = False
    time_unit = 0.001
    # OpenCV hides damage and does not count it.
    num_damaged = 0

    def __init__(self, path: str, limits: ReadingLimits) -> None:
        self._limits = limits
        # An absolute path, because FFmpeg takes a colon in a relative one for a protocol.
        self._path = os.path.abspath(path)
        self._link: tempfile.TemporaryDirectory[str] | None = None
        if not _is_plain(self._path):
            self._link = tempfile.TemporaryDirectory(prefix="keras_vjepa_")
            link = os.path.join(self._link.name, "video" + _plain_extension(path))
            os.symlink(self._path, link)
            self._path = link
        self._is_still = False
        # The last converted frame, in BGR, and memory for the next one. Allocating it each time
        # would take as long as filling it.
        self._shown: Frames | None = None
        self._spare: Frames | None = None
        self.rewind()
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else 0.0
        self.codec = _name_of_codec(int(self._capture.get(cv2.CAP_PROP_FOURCC)))

    def rewind(self) -> None:
        """Go back to before the first frame, and decode it."""
        # One thread, because a loader runs many readers, and more threads would only compete.
        self._capture = self._open([cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            raise ValueError(why_not_opened(self._path))
        self._limits.check_size(*self.size())
        # The first frame is decoded now. Seeking would decode it anyway, and once it is known, its
        # remains in memory are not mistaken for another frame.
        self._is_ahead = self._is_shown = _grabbed(self._capture)
        self._shown = self._retrieved() if self._is_shown else None

    def _open(self, settings: list[int]) -> cv2.VideoCapture:
        milliseconds = min(int(1000 * self._limits.max_file_seconds) + 1, 2**31 - 1)
        for timeout in (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC):
            settings = [*settings, timeout, milliseconds]
        return cv2.VideoCapture(self._path, cv2.CAP_FFMPEG, settings)

    def packet_index(self) -> PacketIndex | None:
        """Return an index of all frames by their packets; `None` if it cannot be trusted."""
        self._check_conversion()
        # FORMAT -1 makes OpenCV hand out packets without decoding them.
        packets = self._open([cv2.CAP_PROP_FORMAT, -1])
        timestamps, is_keyframe = [], []
        while packets.grab():
            check_time()
            timestamps.append(packets.get(cv2.CAP_PROP_POS_MSEC))
            is_keyframe.append(packets.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME) > 0)
        packets.release()
        if len(timestamps) == 1 and self.fps == _FPS_OF_COVERS:
            raise ValueError("it has no video stream, but a picture of its cover")
        if is_avi(self._path):
            check_frames_of_avi(self._path, len(timestamps))
            # No seeks are used, because after a seek OpenCV believes the index about which frame it
            # is at.
            is_keyframe = [False] * len(is_keyframe)
        # The two counts differ if packets are damaged or missing, or if VP8 has hidden reference
        # frames.
        if self._capture.get(cv2.CAP_PROP_FRAME_COUNT) != len(timestamps):
            return None
        shown = edit_list_seconds(self._path)
        if shown is not None and abs(shown * self.fps - len(timestamps)) >= 0.5:
            return None
        return PacketIndex.from_packets(timestamps, is_keyframe)

    def _check_conversion(self) -> None:
        """Check that frames are converted at all, and do not show what was in memory before."""
        capture = self._open([cv2.CAP_PROP_N_THREADS, 1])
        while _grabbed(capture):
            frame = _retrieved(capture)
            if frame is not None and not _same(frame, self._shown):
                return
        # All frames look the same. Either the scene is still, or the frames are memory that was not
        # written to, which is black or has another content in another place. A frame that is really
        # black has a brightness that is not zero, with any codec but Motion JPEG.
        looks, again = self._shown, self._first_frame([])
        if looks is not None and np.mean(looks > 0) < 0.01 and not self._is_motion_jpeg():
            looks = again = self._first_frame([cv2.CAP_PROP_CONVERT_RGB, 0])
        if looks is None or not (_same(looks, again) and (looks.any() or self._is_motion_jpeg())):
            raise ValueError(_INTERLACED)

    def _first_frame(self, settings: list[int]) -> Frames | None:
        capture = self._open([cv2.CAP_PROP_N_THREADS, 1, *settings])
        return _retrieved(capture) if _grabbed(capture) else None

    def _is_motion_jpeg(self) -> bool:
        return int(self._capture.get(cv2.CAP_PROP_FOURCC)) == cv2.VideoWriter.fourcc(*"MJPG")

    def seek(self, timestamp: float) -> None:
        """Go to some place before the frame with this timestamp."""
        self._is_ahead = self._is_shown = False
        self._capture.set(cv2.CAP_PROP_POS_MSEC, timestamp)

    def want(self, timestamps: frozenset[float]) -> None:
        """Ignore which frames matter, because OpenCV decodes every frame."""

    def advance(self) -> float | None:
        """Decode the next frame and return its timestamp, `None` at the end."""
        if self._is_ahead:
            self._is_ahead = False
            return self._capture.get(cv2.CAP_PROP_POS_MSEC)
        self._is_shown = False
        if not _grabbed(self._capture):
            return None
        return self._capture.get(cv2.CAP_PROP_POS_MSEC)

    def size(self) -> tuple[int, int]:
        """Return height and width of the frames, after rotation."""
        height = self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        return int(height), int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))

    def _retrieved(self) -> Frames | None:
        """Return the frame last decoded, in BGR, in memory that the next but one overwrites."""
        frame = _retrieved(self._capture, self._spare)
        self._spare = self._shown if frame is not None else self._spare
        return frame

    def write_frame(self, out: Frames) -> None:
        """Write the frame last decoded, RGB and upright, to uint8 (height, width, 3)."""
        frame = self._retrieved()
        if frame is None:
            raise ValueError("a decoded frame cannot be converted")
        check_same_size(frame, out)
        if not self._is_still and not self._is_shown and _same(frame, self._shown):
            self._check_same_frame(frame)
        self._shown, self._is_shown = frame, True
        cv2.cvtColor(frame, cv2.COLOR_BGR2RGB, out)

    def _check_same_frame(self, frame: Frames) -> None:
        """Check in new memory that a frame really looks like the one before it."""
        time = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        capture = self._open([cv2.CAP_PROP_N_THREADS, 1])
        while _grabbed(capture) and capture.get(cv2.CAP_PROP_POS_MSEC) != time:
            pass
        if not _same(_retrieved(capture), frame):
            raise ValueError(_INTERLACED)
        self._is_still = True  # the next frames may look the same too

    def close(self) -> None:
        """Free the file."""
        self._capture.release()
        if self._link is not None:
            self._link.cleanup()


def _grabbed(capture: cv2.VideoCapture) -> bool:
    """Decode the next frame, and tell whether there is one."""
    for _ in range(MAX_FAILED_GRABS):
        check_time()
        if capture.grab():
            return True
    return False


def _retrieved(capture: cv2.VideoCapture, out: Frames | None = None) -> Frames | None:
    """Return the last decoded frame, in BGR, in `out`'s memory if it fits; `None` on failure."""
    retrieved, frame = capture.retrieve(out)
    return np.asarray(frame, np.uint8) if retrieved else None


def _same(frame: Frames | None, other: Frames | None) -> bool:
    if frame is None or other is None or frame.shape != other.shape:
        return False
    # A few rows are compared first, because most frames differ in them, and a row is contiguous in
    # memory.
    step = -(-len(frame) // 4)
    few = (
        row.tobytes() == same.tobytes()
        for row, same in zip(frame[::step], other[::step], strict=True)
    )
    return all(few) and np.array_equal(frame, other)


def _name_of_codec(code: int) -> str:
    """Return FFmpeg's name of a codec of four letters, or the letters if it is not known."""
    letters = code.to_bytes(4, "little", signed=code < 0).decode("ascii", "replace").strip("\0 ")
    return _NAMES_OF_CODECS.get(letters.lower(), letters.lower())


def _is_plain(name: str) -> bool:
    """Tell whether OpenCV takes a name for that of one file."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False  # such a name makes OpenCV 5.0 end the process
    return "%" not in name  # FFmpeg reads all files of a pattern, such as a%03d.gif


def _plain_extension(path: str) -> str:
    extension = os.path.splitext(path)[1]
    return extension if extension.isascii() and _is_plain(extension) else ""
