"""Write the built-in labelled video set to files (a stand-in for §4's datasets).

`digit_motion_rendering.py` says what the videos show. Frames and labels are the same on every
machine; the bytes of the video files are not, because encoders differ.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from keras_vjepa.data.sources.digit_motion_rendering import (
    RENDERING_VERSION,
    DigitMotionConfig,
    Split,
    render_digit_motion,
)
from keras_vjepa.data.sources.rendered_sets import (
    Progress,
    folder_in_cache,
    in_parallel,
    print_progress,
    rendered_folder,
    video_writer,
)


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


def prepare_digit_motion(
    cache_dir: str | Path | None = None,
    config: DigitMotionConfig | None = None,
    progress: Progress | None = print_progress,
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
    folder = rendered_folder(
        "digit_motion",
        RENDERING_VERSION,
        config,
        cache_dir,
        lambda unfinished, use_h264: _render_files(unfinished, config, use_h264, progress),
    )
    return DigitMotionFiles(folder, folder / "train.csv", folder / "test.csv")


def smallest_prepared(
    config: DigitMotionConfig, num_train: int, num_test: int
) -> DigitMotionConfig:
    """Choose the set to take a number of videos from: a smaller one, unless the whole is there.

    A video follows from its number, so that both begin with the same videos, byte by byte.

    Args:
        config: the whole set.
        num_train: how many training videos are wanted, from the first.
        num_test: how many test videos are wanted.

    Returns:
        The config of a set that has as many, or all that there are.
    """
    part = replace(
        config,
        num_training_videos=min(num_train, config.num_training_videos),
        num_test_videos=min(num_test, config.num_test_videos),
    )
    sets = [folder_in_cache("digit_motion", RENDERING_VERSION, one, None) for one in (part, config)]
    return config if sets[1].exists() and not sets[0].exists() else part


def _render_files(
    unfinished: Path,
    config: DigitMotionConfig,
    use_h264: bool,
    progress: Progress | None,
) -> None:
    write, extension = video_writer(use_h264)

    def render(job: tuple[Split, int]) -> tuple[Split, str]:
        split, index = job
        video = render_digit_motion(split, index, config)
        name = f"{split}/{index:05d}{extension}"
        write(unfinished / name, video.frames, config.fps // config.frame_step)
        return split, f"{name} {video.label}\n"

    rows: dict[Split, list[str]] = {"train": [], "test": []}
    for split in rows:
        (unfinished / split).mkdir()
    for split, row in in_parallel(config, render, progress):
        rows[split].append(row)
    for split, lines in rows.items():
        (unfinished / f"{split}.csv").write_text("".join(lines))
