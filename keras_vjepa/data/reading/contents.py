"""What was found in a video file, remembered for as long as the file does not change (§3.4)."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from keras_vjepa.data.reading.decoders import PacketIndex

# Files that are remembered: 80 MB if they have 300 frames each.
MAX_REMEMBERED = 32_768

# Most recently used last.
_remembered: OrderedDict[tuple[Any, ...], "VideoContents"] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True)
class VideoContents:
    """What a file really holds.

    Attributes:
        index: timestamps of all frames; `None` where they cannot be believed.
        num_frames: number of frames.
        height: of a frame in pixels, after rotation.
        width: of a frame in pixels, after rotation.
    """

    index: PacketIndex | None
    num_frames: int
    height: int
    width: int


def remembered(key: tuple[Any, ...], look: Callable[[], VideoContents]) -> VideoContents:
    """Contents of a file, looked for when it is met for the first time.

    To look costs a decoded frame and a glance at every packet, a fifth of the time of a clip of a
    small video, and training comes back to each file in every epoch.

    Args:
        key: of the file.
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
    """Whether the contents of a file are known."""
    with _lock:
        return key in _remembered


def remember(key: tuple[Any, ...], contents: VideoContents) -> None:
    """Remember the contents of a file in the place of what was known of it."""
    with _lock:
        _remembered[key] = contents
        if len(_remembered) > MAX_REMEMBERED:
            _remembered.popitem(last=False)
