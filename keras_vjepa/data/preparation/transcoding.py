"""Copy a video into a form that is read fast: small, H.264, key frames close together (§3.4).

Models are usually trained on copies of Kinetics of this kind, whose shorter side has 256 pixels
(App. C crops 224 of them). The originals have 720 lines and one key frame in ten seconds.

The frames of a copy are those that `VideoReader` gives of the original, upright and in their order,
each shown at the time at which the original shows it. Sound is left out.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import MOST_SIDE, check_whole
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import media_at
from keras_vjepa.data.reading.media import EncodedMedia, Media
from keras_vjepa.data.reading.video import VideoReader, open_video

Frame = NDArray[np.uint8]

# Ticks in a second, as in MPEG: a frame lasts a whole number of them at every common frame rate.
_TICKS = 90_000
_AT_ONCE = 32
# A frame that differs from the original's by more than this many of 256 levels on average does not
# look like it. Encoding at the lowest quality changes less.
_MOST_DIFFERENT = 24.0
# Seconds by which a frame may be shown earlier or later.
_LATE = 0.002
_LOWEST_QUALITY = 40


@dataclass(frozen=True)
class Copy:
    """Says what became of one file.

    Attributes:
        reason: why there is no copy, "" if there is one.
        num_frames: number of frames, the same in the copy and the original.
        num_bytes: size of the copy.
        original_bytes: size of the original.
    """

    reason: str = ""
    num_frames: int = 0
    num_bytes: int = 0
    original_bytes: int = 0


@dataclass(frozen=True)
class Transcoding:
    """Says how videos are copied; it can be sent to another process.

    Args:
        short_side: pixels of the shorter side; a video that is smaller keeps its size.
        keyframe_distance: frames from one key frame to the next.
        quality: x264's constant rate factor: 0 is without loss, 18 looks the same, and each 6 more
            halve the bytes.
        limits: time and pixels that a file may take; the time is for 32 frames at once.

    Raises:
        ValueError: if an argument is out of its range.
    """

    short_side: int = 256
    keyframe_distance: int = 16
    quality: int = 18
    limits: ReadingLimits = field(default=DEFAULT_LIMITS)

    def __post_init__(self) -> None:
        check_whole(16, MOST_SIDE, short_side=self.short_side)
        check_whole(1, 10_000, keyframe_distance=self.keyframe_distance)
        check_whole(0, _LOWEST_QUALITY, quality=self.quality)

    def __call__(self, names: tuple[str | Media, str]) -> Copy:
        """Copy a file; the copy gets its name only after it has been read and compared.

        Args:
            names: the original, as a path or as other media, and the path of the copy, which is
                replaced if there is one.

        Returns:
            What became of the file; if the original cannot be read, the reason.

        Raises:
            OSError: if the copy cannot be written.
        """
        source, target = names
        media = media_at(source)
        try:
            with files.unfinished_file(target) as unfinished:
                num_frames = 1
                if media.is_image:
                    read_image(media, self.limits)
                    unfinished.write_bytes(_bytes_of(media))
                else:
                    num_frames = self._write(media, unfinished)
                num_bytes = os.path.getsize(unfinished)
        except UnreadableVideoError as error:
            return Copy(error.reason)
        return Copy("", num_frames, num_bytes, _size_of(media))

    def _write(self, media: Media, unfinished: Path) -> int:
        with open_video(media, limits=self.limits) as video:
            times = self._ticks(video)
            height, width = self._size(video)
            samples = {0, video.num_frames // 2, video.num_frames - 1}
            shown: dict[int, Frame] = {}

            def frames() -> Iterator[Frame]:
                for number, frame in enumerate(self._frames(video, height, width)):
                    if number in samples:
                        shown[number] = frame
                    yield frame

            rate = Fraction(video.fps or 30).limit_denominator(1001)
            self._encode(unfinished, frames(), times, rate)
            self._compare(media.name, unfinished, times, shown)
            return video.num_frames

    def _ticks(self, video: VideoReader) -> NDArray[np.int64]:
        times = video.times()
        if times is None and not video.fps:
            raise UnreadableVideoError(video.path, "it does not say when its frames are shown")
        if times is None:
            times = np.arange(video.num_frames) / video.fps
        ticks = np.rint((times - times[0]) * _TICKS).astype(np.int64)
        # A file can hold only one frame for each tick, so frames at the same tick are moved apart.
        return np.maximum.accumulate(ticks - np.arange(len(ticks))) + np.arange(len(ticks))

    def _size(self, video: VideoReader) -> tuple[int, int]:
        height, width = video.info.height, video.info.width
        scale = min(1.0, self.short_side / min(height, width))
        # H.264 keeps one colour for each two by two pixels, so both sides must be even.
        return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))

    def _frames(self, video: VideoReader, height: int, width: int) -> Iterator[Frame]:
        for start in range(0, video.num_frames, _AT_ONCE):
            for frame in video.read(np.arange(start, min(start + _AT_ONCE, video.num_frames))):
                if frame.shape[:2] == (height, width):
                    yield frame
                else:
                    resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
                    yield np.asarray(resized, np.uint8)

    def _encode(
        self, unfinished: Path, frames: Iterator[Frame], ticks: NDArray[np.int64], rate: Fraction
    ) -> None:
        import av

        options = {"crf": str(self.quality), "preset": "medium"}
        reformatter = av.video.reformatter.VideoReformatter()
        stream: Any = None
        settings = {"movflags": "+faststart"}
        with av.open(str(unfinished), "w", format="mp4", options=settings) as container:
            for image, tick in zip(frames, ticks.tolist(), strict=True):
                if stream is None:
                    stream = container.add_stream("libx264", rate=rate, options=options)
                    stream.height, stream.width = image.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.codec_context.gop_size = self.keyframe_distance
                    stream.codec_context.time_base = Fraction(1, _TICKS)
                    stream.codec_context.thread_count = 1
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame = reformatter.reformat(frame, format="yuv420p", threads=1)
                frame.pts, frame.time_base = tick, Fraction(1, _TICKS)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    def _compare(
        self, path: str, unfinished: Path, ticks: NDArray[np.int64], shown: dict[int, Frame]
    ) -> None:
        """Raise an error unless a copy has the frames of the original, at their times."""
        with open_video(unfinished, limits=self.limits) as copy:
            decoded = -1
            while (now := copy.decode_on(_AT_ONCE)) != decoded:
                decoded = now
            numbers = sorted(shown)
            differences = [
                float(np.abs(frame.astype(int) - shown[number]).mean())
                if frame.shape == shown[number].shape
                else np.inf
                for number, frame in zip(numbers, copy.read(np.array(numbers)), strict=True)
            ]
            times = copy.times()
            late = np.inf
            if times is not None and len(times) == len(ticks):
                late = float(np.abs(times - times[0] - ticks / _TICKS).max())
            problem = ""
            if not decoded == copy.num_frames == len(ticks) or copy.num_damaged:
                problem = f"{decoded} of {len(ticks)} frames"
            elif late > _LATE:
                problem = f"frames that are shown {late:.3f} seconds too early or late"
            elif max(differences) > _MOST_DIFFERENT:
                problem = "frames that look different"
        if problem:
            raise UnreadableVideoError(path, f"its copy has {problem}, and was not kept")


def _bytes_of(media: Media) -> bytes:
    assert isinstance(media, EncodedMedia)
    with media.content() as content:
        return content.read_at(0, content.size)


def _size_of(media: Media) -> int:
    """Return the bytes of an original; 0 for a folder of frames, which is not a single file."""
    if not isinstance(media, EncodedMedia):
        return 0
    with media.content() as content:
        return content.size
