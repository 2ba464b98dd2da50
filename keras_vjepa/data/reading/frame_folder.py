"""Read folders of frames: videos that are kept as numbered pictures (§3.4, App. D).

`img_00001.jpg`, `img_00002.jpg`, ... in a folder are the frames of a video, in the order of their
numbers, which may begin anywhere. The folder does not say how many frames make a second.

If frames are missing between others, the log names them when the folder is first read, and the rest
is read as if they had never been there. Pictures of several names in one folder, or of several
sizes, are refused, because nobody can tell which of them are the video.
"""

import hashlib
import itertools
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from keras_vjepa.arguments import check_number
from keras_vjepa.data.reading.decoders import Frames, PacketIndex
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.image_decoding import check_bytes_of_image, decoded_image
from keras_vjepa.data.reading.kinds import has_image_extension
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.reading.media import HASH_BYTES, NO_CONTENT, File, FrameMedia
from keras_vjepa.data.reading.picture_decoder import PictureDecoder

# The default rate, which AVA's frames and most copies of Kinetics have.
DEFAULT_FPS = 30.0

_LOG = logging.getLogger(__name__)
# Everything before the last number of a name, that number, and the rest.
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)
_MOST_NAMED = 3


def check_fps(fps: float) -> None:
    """Raise `ValueError` if a number of frames per second is out of range."""
    check_number("(0, 100000]", fps=fps)


@dataclass(frozen=True)
class NumberedFrames:
    """Names the pictures of a folder that are the frames of its video.

    Attributes:
        names: names of the files, in the order of their numbers.
        numbers: numbers of the files.
    """

    names: list[str]
    numbers: list[int]

    @property
    def missing(self) -> list[int]:
        """Return numbers in gaps, a few of each gap; frames may be numbered 5, 10, 15, ... too."""
        pairs = list(itertools.pairwise(self.numbers))
        step = min((after - before for before, after in pairs), default=1)
        gaps = [(before, after) for before, after in pairs if after - before >= 2 * step]
        found: list[int] = []
        for before, after in gaps:
            found += [*itertools.islice(range(before + step, after, step), _MOST_NAMED + 1)]
        return found


def numbered_frames(names: Iterable[str]) -> NumberedFrames:
    """Sort the files of a folder that are frames of a video by their numbers.

    Args:
        names: names of all files in the folder; hidden ones and those that are no pictures are
            passed over.

    Returns:
        The frames; none if no file is a picture.

    Raises:
        ValueError: if there are pictures of several names, without a number, or two of one number.

    Example:

    >>> numbered_frames(["f10.jpg", "f9.jpg", "f12.jpg", "sound.wav"])
    NumberedFrames(names=['f9.jpg', 'f10.jpg', 'f12.jpg'], numbers=[9, 10, 12])
    """
    kinds: dict[str, dict[int, str]] = defaultdict(dict)
    for name in sorted(names):
        if name.startswith(".") or not has_image_extension(name):
            continue
        stem = os.path.splitext(name)[0]
        parts = _NUMBERED.fullmatch(stem)
        if parts is None:
            raise ValueError(f"its pictures must be numbered frames, and {printable(name)} is none")
        of_kind, number = kinds[f"{parts[1]}*{parts[3]}"], int(parts[2])
        if number in of_kind:
            raise ValueError(
                f"its frames must differ in their numbers, and {printable(of_kind[number])} and "
                f"{printable(name)} do not"
            )
        of_kind[number] = name
    if len(kinds) > 1:
        counts = Counter({kind: len(found) for kind, found in kinds.items()}).most_common()
        shown = ", ".join(f"{printable(kind)} ({count:,})" for kind, count in counts[:_MOST_NAMED])
        raise ValueError(
            f"its pictures must have one name but for their numbers. Found {shown}"
            f"{', ...' if len(counts) > _MOST_NAMED else ''}"
        )
    frames = sorted(next(iter(kinds.values()), {}).items())
    return NumberedFrames([name for _, name in frames], [number for number, _ in frames])


@dataclass(frozen=True)
class FrameFolder(FrameMedia):
    """Stands for a folder whose pictures are the frames of a video.

    Args:
        name: the folder's path.
        fps: frames per second at which they were taken.

    Raises:
        ValueError: if `fps` is out of range.
    """

    name: str
    fps: float = DEFAULT_FPS

    what = "a folder"

    def __post_init__(self) -> None:
        check_fps(self.fps)

    def frames(self) -> NumberedFrames:
        """List the frames; raise `ValueError` if they make no video."""
        try:
            found = numbered_frames(os.listdir(self.name))
        except OSError as error:
            raise ValueError(f"the folder cannot be read: {error.strerror}") from error
        if not found.names:
            raise ValueError("it is a folder, and holds no pictures that could be its frames")
        return found

    def decoder(self, limits: ReadingLimits) -> "FrameFolderDecoder":
        """Make a decoder of the frames."""
        return FrameFolderDecoder(self, limits)

    def status(self) -> tuple[int, int, int, int]:
        """Return size, times and number of the folder; zeros if there is none."""
        try:
            status = os.stat(self.name)
        except (OSError, ValueError):
            return 0, 0, 0, 0
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (2**63 - 1)

    def content_hash(self) -> bytes:
        """Hash names and sizes of all frames, and the content of the first, middle and last."""
        try:
            names = self.frames().names
            sizes = [os.stat(os.path.join(self.name, name)).st_size for name in names]
        except (OSError, ValueError):
            return NO_CONTENT
        listing = "\0".join(f"{name}\0{size}" for name, size in zip(names, sizes, strict=True))
        parts = [os.fsencode(listing)]
        for place in sorted({0, len(names) // 2, len(names) - 1}):
            parts.append(File(os.path.join(self.name, names[place])).content_hash())
        return hashlib.blake2b(b"\0".join(parts), digest_size=HASH_BYTES).digest()


class FrameFolderDecoder(PictureDecoder):
    """Reads the pictures of a folder; see `PictureDecoder`."""

    def __init__(self, folder: FrameFolder, limits: ReadingLimits) -> None:
        self._folder, self._limits = folder, limits
        self._frames = folder.frames()
        super().__init__(len(self._frames.names), folder.fps)

    def packet_index(self) -> PacketIndex | None:
        """Return the index, and name missing frames in the log."""
        # The error names the folder here, because the index is only read for a folder that is new
        # or has changed.
        missing = self._frames.missing
        if missing:
            shown = ", ".join(map(str, missing[:_MOST_NAMED]))
            more = ", ..." if len(missing) > _MOST_NAMED else ""
            _LOG.warning(
                "%s lacks frames between others, and is read without them: %s%s",
                *(printable(self._folder.name), shown, more),
            )
        return super().packet_index()

    def name_of(self, position: int) -> str:
        """Return the name of a frame's file."""
        return printable(self._frames.names[position])

    def picture(self, position: int) -> Frames:
        """Read and decode the file of a frame."""
        file = File(os.path.join(self._folder.name, self._frames.names[position]))
        with file.content() as content:
            check_bytes_of_image(content.size, self._limits)
            return decoded_image(content.read_at(0, content.size), self._limits)
