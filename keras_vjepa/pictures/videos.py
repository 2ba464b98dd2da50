"""Cut a whole video into clips that a model takes, and say which token shows each frame (§3.4)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import check_whole
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD, Colour
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.models.families import RivalBackbone

# Backbones whose patches lie on a grid that is known.
PicturedBackbone = VJEPABackbone | RivalBackbone

# The most bytes of frames that are held at a time; nobody would look at a picture of more.
MOST_BYTES = 2**31
_AT_ONCE = 32
_FPS_IF_UNSAID = 24.0


@dataclass(frozen=True)
class WatchedVideo:
    """Holds the frames of a video, and where the clips of a model lie in them.

    Clips follow each other. The last clip ends with the video, so that it may overlap the one
    before it; for frames that both have, the earlier clip is shown.

    Args:
        frames: uint8 `(frames, height, width, 3)`, RGB.
        fps: frames per second.
        clip_frames: number of frames of a clip.
        frame_step: number of the video's frames for each frame of a clip; smaller if the video is
            too short.
        token_frames: number of frames of a clip that share their tokens.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.pictures import WatchedVideo
    >>> video = WatchedVideo(np.zeros((10, 32, 32, 3), np.uint8), 24.0, clip_frames=4)
    >>> video.clip_indices.tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]]
    """

    frames: NDArray[np.uint8]
    fps: float
    clip_frames: int = 16
    frame_step: int = 1
    token_frames: int = 2

    @property
    def step(self) -> int:
        """Return the step between the frames of a clip."""
        return max(1, min(self.frame_step, len(self.frames) // self.clip_frames))

    @property
    def starts(self) -> NDArray[np.int64]:
        """Return the first frame of each clip."""
        span, count = self.step * self.clip_frames, len(self.frames)
        number = max(1, math.ceil(count / span))
        return np.minimum(span * np.arange(number), max(0, count - span))

    @property
    def clip_indices(self) -> NDArray[np.int64]:
        """Return the frames of each clip, `(clips, clip_frames)`; the last one is repeated."""
        steps = self.step * np.arange(self.clip_frames)
        return np.minimum(self.starts[:, np.newaxis] + steps, len(self.frames) - 1)

    def of_frames(self, maps: NDArray[Any]) -> NDArray[Any]:
        """Look up the values of tokens for every frame of the video.

        Args:
            maps: values of tokens, `(clips, time, ...)`.

        Returns:
            Values of frames, `(frames, ...)`.
        """
        frames = np.arange(len(self.frames))
        clips = np.minimum(frames // (self.step * self.clip_frames), len(self.starts) - 1)
        places = (frames - self.starts[clips]) // (self.step * self.token_frames)
        return maps[clips, np.minimum(places, maps.shape[1] - 1)]

    def frames_of_token(self, clip: int, time: int) -> NDArray[np.int64]:
        """List the video's frames that belong to a time step of a clip."""
        span = self.step * self.token_frames
        first = int(self.starts[clip]) + time * span
        return np.arange(first, min(first + span, len(self.frames)))

    def clips(
        self, size: tuple[int, int], mean: Colour = PIXEL_MEAN, std: Colour = PIXEL_STD
    ) -> NDArray[np.float32]:
        """Make the input of a model from whole frames.

        Args:
            size: height and width in pixels.
            mean: mean of red, green and blue in [0, 1].
            std: deviation of red, green and blue in [0, 1].

        Returns:
            `(clips, clip_frames, height, width, 3)`.
        """
        height, width = size
        smaller = height * width < math.prod(self.frames.shape[1:3])
        how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        wanted, place = np.unique(self.clip_indices, return_inverse=True)
        resized = np.stack(
            [cv2.resize(self.frames[i], (width, height), interpolation=how) for i in wanted]
        ).astype("float32")
        resized = (resized / 255 - np.asarray(mean, "float32")) / np.asarray(std, "float32")
        return np.asarray(resized[place.reshape(self.clip_indices.shape)], "float32")


def read_watched(
    source: str | Path | Media,
    backbone: PicturedBackbone | None = None,
    frame_step: int = 1,
    start: int = 0,
    num_frames: int | None = None,
    limits: ReadingLimits = DEFAULT_LIMITS,
) -> WatchedVideo:
    """Read the frames of a video, all or a part of them.

    Args:
        source: the file.
        backbone: the video is cut into clips for it; None for clips of 16 frames.
        frame_step: number of the video's frames for each frame of a clip.
        start: number of the first frame.
        num_frames: number of frames, at most; None for all up to the end.
        limits: time and pixels that a file may take; the time is for 32 frames at once.

    Raises:
        UnreadableVideoError: if the file is no video or cannot be read.
        ValueError: if an argument is out of range, or the frames are too many to be held.
    """
    check_whole(0, start=start)
    check_whole(1, frame_step=frame_step)
    check_whole(1, optional=True, num_frames=num_frames)
    with open_video(source, limits=limits) as video:
        if start >= video.num_frames:
            raise ValueError(
                f"`start` must be a frame of the video, from 0 to {video.num_frames - 1}. "
                f"Received: {start}"
            )
        end = video.num_frames if num_frames is None else min(video.num_frames, start + num_frames)
        most = MOST_BYTES // (3 * video.info.height * video.info.width)
        if end - start > most:
            raise ValueError(
                f"`num_frames` must be at most {most:,} for frames of {video.info.width} x "
                f"{video.info.height} pixels. Received: {end - start:,}"
            )
        parts = [
            video.read(np.arange(first, min(first + _AT_ONCE, end)))
            for first in range(start, end, _AT_ONCE)
        ]
        fps = video.fps or _FPS_IF_UNSAID
    frames = np.concatenate(parts)
    if not len(frames):
        raise UnreadableVideoError(str(source), "it has no frames")
    if backbone is None:
        return WatchedVideo(frames, fps, frame_step=frame_step)
    return WatchedVideo(frames, fps, backbone.num_frames, frame_step, frames_of_a_token(backbone))


def check_exists(video: Path) -> None:
    """Check that a video is there, before a model is loaded for it.

    Raises:
        UnreadableVideoError: if there is none, as reading it would.
    """
    if not video.exists():
        raise UnreadableVideoError(str(video), "no such file")


def check_is_other(output: Path, video: Path) -> None:
    """Check that a video is not written over the one that it is made of.

    Raises:
        ValueError: if it would be.
    """
    if output.exists() and video.exists() and output.samefile(video):
        raise ValueError(f"`output` must not be the video itself. Received: {output}")


def frames_of_a_token(backbone: PicturedBackbone) -> int:
    """Return the number of frames of a clip that share their tokens."""
    return 1 if backbone.is_image_model else backbone.tubelet_size


def whole_frame_size(backbone: PicturedBackbone, height: int, width: int) -> tuple[int, int]:
    """Choose the height and width in which a backbone sees whole frames, hardly stretched.

    The number of tokens is about that for which the backbone was made. A video with the backbone's
    own proportions gets the backbone's own size. V-JEPA's rivals always see their own size, because
    most have no positions for another shape; a video of another shape is stretched to it.

    Args:
        backbone: its patches must divide the size.
        height: height of the video's frames.
        width: width of the video's frames.

    Example:

    >>> from keras_vjepa import VJEPABackbone
    >>> from keras_vjepa.pictures.videos import whole_frame_size
    >>> backbone = VJEPABackbone(224, 2, hidden_dim=24, num_layers=1, num_heads=2)
    >>> whole_frame_size(backbone, 720, 1280), whole_frame_size(backbone, 90, 90)
    ((160, 304), (224, 224))
    """
    own = height_and_width(backbone.image_size)
    if not isinstance(backbone, VJEPABackbone):
        return own
    scale = math.sqrt(math.prod(own) / (height * width))
    patch = backbone.patch_size
    rows, columns = (max(1, round(side * scale / patch)) for side in (height, width))
    return rows * patch, columns * patch
