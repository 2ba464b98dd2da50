"""Write the built-in labelled video set to files (a stand-in for §4's datasets).

`digit_motion_rendering.py` says what the videos show. Frames and labels are the same on every
machine; the bytes of the video files are not, because encoders differ.
"""

import dataclasses
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from keras_vjepa import files
from keras_vjepa.data.sources.digit_motion_rendering import (
    RENDERING_VERSION,
    DigitMotionConfig,
    render_digit_motion,
)
from keras_vjepa.data.sources.video_writing import write_h264, write_motion_jpeg

Split = Literal["train", "test"]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class DigitMotionFiles:
    """Says where the files of the rendered set are.

    Attributes:
        folder: folder of this configuration in the cache.
        train: list of the training videos, rows `path label`, for `list_samples`.
        test: list of the test videos.
    """

    folder: Path
    train: Path
    test: Path


# --------------------------------------------------------------------------------------- files


def print_progress(num_done: int, num_videos: int) -> None:
    """Print a line to stderr for each tenth of the videos."""
    if num_done % max(1, num_videos // 10) == 0 or num_done == num_videos:
        print(f"Built-in set: {num_done} of {num_videos} videos rendered", file=sys.stderr)


def prepare_digit_motion(
    cache_dir: str | Path | None = None,
    config: DigitMotionConfig | None = None,
    progress: Callable[[int, int], None] | None = print_progress,
) -> DigitMotionFiles:
    """Render the set into a cache folder, unless it is there already.

    The videos are H.264 (`.mp4`) if PyAV is installed, else Motion JPEG (`.avi`). They appear all
    at once or not at all. If two processes call this at a time, both do the work, and both get the
    same files.

    Args:
        cache_dir: root of the cache; `None` is the environment variable `KERAS_VJEPA_CACHE`, or
            `~/.cache/keras_vjepa`. The files go to `digit_motion/<hash of config>` below it.
        config: what to render; `None` is the standard set of 2,000 and 600 videos.
        progress: called with the number of finished videos and of all videos; `None` is silent.

    Returns:
        The folder and the lists of both splits; the label of a row is `digit * 10 + motion`.

    Raises:
        OSError: if the cache folder cannot be written.
    """
    config = config or DigitMotionConfig()
    use_h264 = importlib.util.find_spec("av") is not None
    described = f"{RENDERING_VERSION} {dataclasses.asdict(config)} {use_h264=}"
    name = hashlib.sha256(described.encode()).hexdigest()[:16]
    cache = files.cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
    folder = cache / "digit_motion" / name
    if not folder.exists():
        with files.unfinished_folder(folder, existing="keep") as unfinished:
            _render_files(unfinished, config, use_h264, progress)
    return DigitMotionFiles(folder, folder / "train.csv", folder / "test.csv")


def _render_files(
    unfinished: Path,
    config: DigitMotionConfig,
    use_h264: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    write, extension = (write_h264, ".mp4") if use_h264 else (write_motion_jpeg, ".avi")
    counts: dict[Split, int] = {
        "train": config.num_training_videos,
        "test": config.num_test_videos,
    }
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]

    def render(job: tuple[Split, int]) -> tuple[Split, str]:
        split, index = job
        video = render_digit_motion(split, index, config)
        name = f"{split}/{index:05d}{extension}"
        write(unfinished / name, video.frames, config.fps // config.frame_step)
        return split, f"{name} {video.label}\n"

    rows: dict[Split, list[str]] = {"train": [], "test": []}
    for split in rows:
        (unfinished / split).mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for num_done, (split, row) in enumerate(executor.map(render, jobs), start=1):
            rows[split].append(row)
            if progress is not None:
                progress(num_done, len(jobs))
    for split, lines in rows.items():
        (unfinished / f"{split}.csv").write_text("".join(lines))
