"""Find and draw the videos that are most similar to one by its features (§4.3, App. D.1)."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.pictures.drawing import boxed, sheet
from keras_vjepa.pictures.videos import PicturedBackbone
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor

_LOG = logging.getLogger(__name__)

# Number of frames of each video in a sheet, and the side of a frame in pixels.
_SHOWN, _SIDE = 3, 160


def nearest_videos(
    backbone: PicturedBackbone,
    preprocessor: VJEPAVideoPreprocessor,
    video: str | Path,
    others: Sequence[str | Path],
    count: int = 7,
) -> list[tuple[str | Path, float]]:
    """Find the videos whose mean features are most similar to those of a given video.

    Args:
        backbone: the encoder.
        preprocessor: makes the encoder's input, with one clip and one view.
        video: the given video; it is left out of the others.
        others: videos to choose from.
        count: number of videos to return, at most.

    Returns:
        Videos and cosines, the most similar first.

    Raises:
        UnreadableVideoError: if the given video cannot be read. Others that cannot be read are left
            out, and the log says so.
        ValueError: if there are no other videos, or the count is below one.
    """
    check_whole(1, count=count)
    own = Path(video).resolve()
    others = [one for one in others if Path(one).resolve() != own]
    if not others:
        raise ValueError("`others` must hold a video besides the one itself. Received: none")
    query = _feature(backbone, preprocessor, video)
    found: list[tuple[str | Path, float]] = []
    for other in others:
        try:
            found.append((other, float(query @ _feature(backbone, preprocessor, other))))
        except UnreadableVideoError as error:
            _LOG.warning("Left out: %s", error)
    if not found:
        raise ValueError("`others` must hold a video that can be read. Received: none")
    return sorted(found, key=lambda one: -one[1])[:count]


def _feature(
    backbone: PicturedBackbone, preprocessor: VJEPAVideoPreprocessor, video: str | Path
) -> NDArray[np.float64]:
    """Compute the mean of a video's tokens, scaled to length one."""
    tokens = np.asarray(backbone.predict_on_batch(preprocessor(video)), "float64")
    mean = tokens.reshape(-1, tokens.shape[-1]).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def neighbor_sheet(
    path: files.PathLike, video: str | Path, found: Sequence[tuple[str | Path, float]]
) -> None:
    """Draw a video and those most similar to it, with the first, middle and last frame of each.

    Args:
        path: path of the picture.
        video: the given video.
        found: similar videos as `nearest_videos` returns them.

    Raises:
        OSError: if the picture cannot be written.
        UnreadableVideoError: if a video cannot be read.
    """
    videos = [(video, "this video"), *((one, f"cosine {cosine:.4f}") for one, cosine in found)]
    columns, cells = [], []
    for one, words in videos:
        with open_video(one) as opened:
            places = np.linspace(0, opened.num_frames - 1, _SHOWN).round().astype(int)
            cells.append([*opened.read(places)])
        columns.append(f"{Path(one).name}\n{words}")
    size = (_SIDE, _SIDE, 3)
    rows = [
        (f"frame {row + 1}\nof {_SHOWN}", [boxed(frames[row], size) for frames in cells])
        for row in range(_SHOWN)
    ]
    files.write_picture(path, sheet(rows, columns, "Nearest neighbours")[..., ::-1])
