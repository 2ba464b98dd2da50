"""The options of commands that go through all files of a data set (§3.4)."""

import argparse
import os
import sys
from collections.abc import Callable

import keras

from keras_vjepa.arguments import check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.configuration import descriptions
from keras_vjepa.data.batches.workers import usable_cores
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import Sample, list_class_folders

_MOST_PROCESSES = 1024


def add_source(parser: OneLineParser) -> None:
    """Add the options that say which files are meant, and how many are read at a time."""
    parser.add_argument("source", help="a folder of videos, a list, or what else recipes take")
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
    """Check these options; raise `ValueError` by the name of what is wrong."""
    check_whole(1, _MOST_PROCESSES, num_workers=options.num_workers)
    return ReadingLimits(options.max_file_seconds, options.max_frame_pixels)


def samples_of(options: argparse.Namespace) -> list[Sample]:
    """List the files that are meant."""
    # Text, for a path would make one slash of the two in an address.
    source = os.path.expanduser(options.source)
    return list_class_folders(source) if options.class_folders else list_samples(source)


def progress_bar() -> Callable[[int, int], None]:
    """Make a bar, which is told how many files are done, and how many there are."""
    bars: list[keras.utils.Progbar] = []

    def update(done: int, count: int) -> None:
        if not bars:
            interval = 0.05 if sys.stdout.isatty() else 60
            bars.append(keras.utils.Progbar(count, unit_name="file", interval=interval))
        bars[0].update(done)

    return update
