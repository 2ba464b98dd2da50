"""Render a built-in set of videos into files of the cache, once (a stand-in for §4's datasets)."""

import dataclasses
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.data.sources.digit_motion_rendering import Split
from keras_vjepa.data.sources.video_writing import write_h264, write_motion_jpeg

ResultT = TypeVar("ResultT")
Progress = Callable[[int, int], None]
WriteVideo = Callable[[Path, NDArray[np.uint8], int], None]


class SetConfig(Protocol):
    """Says how many videos a set has, as `DigitMotionConfig` does."""

    @property
    def num_training_videos(self) -> int:
        """Return the number of training videos."""

    @property
    def num_test_videos(self) -> int:
        """Return the number of test videos."""


def print_progress(num_done: int, num_videos: int) -> None:
    """Print a line to stderr for each tenth of the videos."""
    if num_done % max(1, num_videos // 10) == 0 or num_done == num_videos:
        print(f"Built-in set: {num_done} of {num_videos} videos rendered", file=sys.stderr)


def folder_in_cache(kind: str, version: int, config: Any, cache_dir: str | Path | None) -> Path:
    """Return the folder in which a set lies once it is rendered.

    Args:
        kind, version, config, cache_dir: as in `rendered_folder`.
    """
    use_h264 = importlib.util.find_spec("av") is not None
    described = f"{version} {dataclasses.asdict(config)} {use_h264=}"
    name = hashlib.sha256(described.encode()).hexdigest()[:16]
    cache = files.cache_folder() if cache_dir is None else Path(cache_dir).expanduser()
    return cache / kind / name


def rendered_folder(
    kind: str,
    version: int,
    config: Any,
    cache_dir: str | Path | None,
    write: Callable[[Path, bool], None],
) -> Path:
    """Find the folder of a set in the cache, and have it written if it is not there.

    Args:
        kind: name of the folder that all sets of this kind lie in.
        version: number that changes whenever the rendering does.
        config: dataclass that describes what is rendered.
        cache_dir: root of the cache; None for the usual one.
        write: writes the set into an unfinished folder, as H.264 or else as Motion JPEG.

    Raises:
        OSError: if the cache folder cannot be written.
    """
    folder = folder_in_cache(kind, version, config, cache_dir)
    if not folder.exists():
        with files.unfinished_folder(folder, existing="keep") as unfinished:
            write(unfinished, importlib.util.find_spec("av") is not None)
    return folder


def video_writer(use_h264: bool) -> tuple[WriteVideo, str]:
    """Return what writes a video, and the extension of its files."""
    return (write_h264, ".mp4") if use_h264 else (write_motion_jpeg, ".avi")


def in_parallel(
    config: SetConfig, render: Callable[[tuple[Split, int]], ResultT], progress: Progress | None
) -> Iterator[ResultT]:
    """Render all videos of a set by threads, the training videos first.

    Args:
        config: says how many there are.
        render: renders the video of a split and number, and writes it.
        progress: called with the number of finished videos and of all videos; None is silent.

    Yields:
        What `render` returns, in the order of the videos.
    """
    counts: dict[Split, int] = {
        "train": config.num_training_videos,
        "test": config.num_test_videos,
    }
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for num_done, result in enumerate(executor.map(render, jobs), start=1):
            yield result
            if progress is not None:
                progress(num_done, len(jobs))
