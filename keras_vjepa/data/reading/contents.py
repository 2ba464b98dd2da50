"""Remember what was found in a video file, for as long as the file does not change (§3.4)."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_vjepa.data.reading.decoders import PacketIndex

# Number of files that are remembered, which takes 80 MB if they have 300 frames each.
MAX_REMEMBERED = 32_768

# The most recently used entry is the last.
_remembered: OrderedDict[tuple[Any, ...], "VideoContents"] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class VideoContents:
    """Holds what was found in a file, whatever its header says.

    Attributes:
        index: timestamps of all frames; `None` if they cannot be believed.
        num_frames: number of frames.
        height: height of a frame in pixels, after rotation.
        width: width of a frame in pixels, after rotation.
    """

    index: PacketIndex | None
    num_frames: int
    height: int
    width: int


def remembered(key: tuple[Any, ...], look: Callable[[], VideoContents]) -> VideoContents:
    """Return the contents of a file, looking for them when it is met for the first time.

    Looking means decoding a frame and passing over every packet, a fifth of the time of a clip of a
    small video, and training comes back to each file in every epoch.

    Args:
        key: what the file is known by.
        look: finds the contents.
    """
    with _lock:
        if key in _remembered:
            _remembered.move_to_end(key)
            return _remembered[key]
    contents = look()
    remember(key, contents)
    return contents


def is_remembered(key: tuple[Any, ...]) -> bool:
    """Tell whether the contents of a file are known."""
    with _lock:
        return key in _remembered


def remember(key: tuple[Any, ...], contents: VideoContents) -> None:
    """Remember the contents of a file, in place of those that were known before."""
    with _lock:
        _remembered[key] = contents
        if len(_remembered) > MAX_REMEMBERED:
            _remembered.popitem(last=False)
