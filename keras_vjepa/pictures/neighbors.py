"""The videos that an encoder finds most like one (§4.3, App. D.1)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.pictures.drawing import boxed, sheet
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor

# Frames of each video in a sheet, and pixels along the side of one.
_SHOWN, _SIDE = 3, 160


def nearest_videos(
    backbone: VJEPABackbone,
    preprocessor: VJEPAVideoPreprocessor,
    video: str | Path,
    others: Sequence[str | Path],
    count: int = 7,
) -> list[tuple[str | Path, float]]:
    """Find the videos whose mean features are most like those of one.

    Args:
        backbone: the encoder.
        preprocessor: makes its input, of one clip and view.
        video: the one; left out of the others.
        others: where to look.
        count: how many to return at most.

    Returns:
        Videos and cosines, the most similar first.

    Raises:
        UnreadableVideoError: if a file cannot be read.
        ValueError: for no other videos, and a count below one.
    """
    check_whole(1, count=count)
    own = Path(video).resolve()
    others = [one for one in others if Path(one).resolve() != own]
    if not others:
        raise ValueError("`others` must hold a video besides the one itself. Received: none")
    query = _feature(backbone, preprocessor, video)
    cosines = [float(query @ _feature(backbone, preprocessor, other)) for other in others]
    order = np.argsort(-np.asarray(cosines), kind="stable")[:count]
    return [(others[i], cosines[i]) for i in order]


def _feature(
    backbone: VJEPABackbone, preprocessor: VJEPAVideoPreprocessor, video: str | Path
) -> NDArray[np.float64]:
    """The mean of the tokens, of length one."""
    tokens = np.asarray(backbone.predict_on_batch(preprocessor(video)), "float64")
    mean = tokens.reshape(-1, tokens.shape[-1]).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def neighbor_sheet(
    path: files.PathLike, video: str | Path, found: Sequence[tuple[str | Path, float]]
) -> None:
    """Draw a video and those that are most like it: of each the frames in its quarters.

    Args:
        path: the picture.
        video: the one.
        found: as `nearest_videos` gives them.

    Raises:
        OSError: if it cannot be written.
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
