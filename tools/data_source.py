"""Add and read the options that say which videos and images a command reads (§3.4)."""

import argparse
import os
import sys
from collections.abc import Callable

import keras

from keras_vjepa.arguments import check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.configuration import descriptions
from keras_vjepa.data.batches.workers import usable_cores
from keras_vjepa.data.reading.frame_folder import DEFAULT_FPS, check_fps
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.remote import ADDRESS
from keras_vjepa.data.sources.folders import EXTENSIONS, Kind
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import Sample, list_class_folders

_MOST_PROCESSES = 1024


def source_of(text: str) -> str:
    """Read a source from the command line."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must be a folder, a list or a file. Received: nothing")
    # The result is text, because a path would turn the two slashes of an address into one.
    return text if ADDRESS.match(text) else os.path.expanduser(text)


def add_listing(parser: OneLineParser, kind: Kind = "video") -> None:
    """Add the options that say which files to read."""
    parser.add_argument(
        "source", type=source_of, help="a folder, a list, shards, one file, or an address of these"
    )
    parser.add_argument(
        "--kind",
        choices=tuple(EXTENSIONS),
        default=kind,
        help="what to look for: video, image, any of both, or frames: folders of numbered pictures",
    )
    parser.add_argument(
        "--videos", type=source_of, help="folder of the videos, for published lists (default: none)"
    )
    parser.add_argument(
        "--path-column", default="", help="of a table (default: path, file, video or the like)"
    )


def add_source(parser: OneLineParser) -> None:
    """Add the options that say which files to read, and how many at a time."""
    add_listing(parser)
    parser.add_argument(
        "--fps", type=float, default=DEFAULT_FPS, help="frames per second of folders of frames"
    )
    parser.add_argument(
        "--label-names",
        type=source_of,
        help="labels.json of Something-Something v2 (default: none)",
    )
    parser.add_argument(
        "--class-folders",
        action="store_true",
        help="label each file by the folder of a class that it lies in",
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        default=usable_cores(),
        help="processes that read (default: the number of cores, %(default)s)",
    )
    described = descriptions(ReadingLimits)
    for limit, kind in (("max_file_seconds", float), ("max_frame_pixels", int)):
        default = getattr(DEFAULT_LIMITS, limit)
        option = "--" + limit.replace("_", "-")
        parser.add_argument(option, type=kind, default=default, help=described[limit])


def check_source(options: argparse.Namespace) -> ReadingLimits:
    """Check the options of `add_source`; raise `ValueError` with the name of a wrong one."""
    check_whole(1, _MOST_PROCESSES, num_workers=options.num_workers)
    check_fps(options.fps)
    return ReadingLimits(options.max_file_seconds, options.max_frame_pixels)


def samples_of(options: argparse.Namespace) -> list[Sample]:
    """List the files that the options name."""
    if options.class_folders:
        return list_class_folders(options.source, None, options.kind, options.fps)
    return list_samples(
        options.source,
        options.kind,
        fps=options.fps,
        videos=options.videos or "",
        label_names=options.label_names or "",
        path_column=options.path_column,
    )


def progress_bar() -> Callable[[int, int], None]:
    """Make a progress bar: a function of the number of files done and of all files."""
    bars: list[keras.utils.Progbar] = []

    def update(done: int, count: int) -> None:
        if not bars:
            interval = 0.05 if sys.stdout.isatty() else 60
            bars.append(keras.utils.Progbar(count, unit_name="file", interval=interval))
        bars[0].update(done)

    return update
