"""Time reading clips of your own videos: decoders, kinds and numbers of workers (§3.4, App. C).

    keras-vjepa bench-data my_videos/
    keras-vjepa bench-data train.csv --rate 400 --num-workers 1 4 16

A clip is what pretraining reads: every fourth frame, 16 in all, at a random place in one of a few
files, with pretraining's transform. The command measures clips per second, by the clock, for each
decoder that is installed, with threads, with worker processes, and with grain if that is installed.
The processor time of a clip shows how many cores keep up with the rate at which a model trains.
The last line shows what training's batches add to decoding and transform, for the same clips. Other
work on the machine disturbs the measurement; with `--rounds`, each is timed several times, in turns
with the others, and the fastest time counts.
"""

import argparse
import logging
import math
import sys
from pathlib import Path

import cv2

from keras_vjepa.arguments import MOST_LONG, MOST_SIDE, check_number, check_whole, counted
from keras_vjepa.command_line import WRONG_USAGE, OneLineParser
from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.preparation.pipeline_share import LEAST_ROUNDS, pipeline_share
from keras_vjepa.data.preparation.throughput import (
    ClipReading,
    Throughput,
    decoders,
    kinds_of_workers,
    throughput,
)
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.reading.locating import is_image
from keras_vjepa.data.reading.video import video_info
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.tools.data_source import add_listing

_MOST_WORKERS = 1024
Table = dict[tuple[str, str], dict[int, Throughput]]


def parse(arguments: list[str] | None, program: str) -> tuple[argparse.Namespace, OneLineParser]:
    """Read the command line; wrong input ends the process with a line that names the option."""
    parser = OneLineParser(prog=program, description=__doc__)
    add_listing(parser)
    parser.add_argument("--rate", type=float, default=100.0, help="clips a second of the training")
    parser.add_argument(
        "--num-workers", type=int, nargs="+", default=[1, 2, 4], help="numbers of workers to try"
    )
    parser.add_argument("--clips", type=int, default=40, help="clips timed for each number")
    parser.add_argument("--rounds", type=int, default=1, help="turns, of which the fastest counts")
    parser.add_argument("--files", type=int, default=8, help="files they are of, at random")
    parser.add_argument("--num-frames", type=int, default=16, help="frames of a clip")
    parser.add_argument("--frame-step", type=int, default=4, help="source frames per clip frame")
    parser.add_argument("--crop-size", type=int, default=224, help="pixels of a side, afterwards")
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_number("(0, 1e9]", rate=options.rate)
        for number in options.num_workers:
            check_whole(1, _MOST_WORKERS, num_workers=number)
        check_whole(1, 10**6, clips=options.clips, files=options.files)
        check_whole(1, 10**3, rounds=options.rounds)
        check_whole(1, MOST_LONG, num_frames=options.num_frames, frame_step=options.frame_step)
        check_whole(1, MOST_SIDE, crop_size=options.crop_size)
    return options, parser


def chosen_files(options: argparse.Namespace) -> list[str]:
    """Choose some videos of a source at random, and name those that cannot be read."""
    samples = list_samples(
        options.source,
        options.kind,
        videos=options.videos or "",
        path_column=options.path_column,
    )
    # Other processes find the same at the path of a file, or of a folder of frames.
    usable = [s for s in samples if s.media is None or isinstance(s.media, FrameFolder)]
    paths = [s.path for s in usable if not is_image(s.path)]
    found: list[str] = []
    for place in random_stream(0, 0).permutation(len(paths)).tolist():
        if len(found) == options.files:
            break
        try:
            info = video_info(paths[place])
        except UnreadableVideoError as error:
            print(f"Left out: {error}", file=sys.stderr)
            continue
        found.append(paths[place])
        print(
            f"{Path(paths[place]).name}: {info.num_frames:,} frames of {info.width}x{info.height}"
        )
    if not found:
        raise ValueError(f"`source` must hold a video that can be read. Received: {options.source}")
    return found


def measure(paths: list[str], options: argparse.Namespace) -> Table:
    """Time every decoder with threads, and the first one with the other kinds of workers."""
    clip = ClipSettings(options.num_frames, options.frame_step)
    kinds, table = kinds_of_workers(), Table()
    first, *others = decoders()
    names = [(first, kind) for kind in kinds] + [(one, "threads") for one in others]
    failed = set()
    for _ in range(options.rounds):
        for decoder, kind in (name for name in names if name not in failed):
            reading = ClipReading(decoder, clip, options.crop_size)
            row = table.setdefault((decoder, kind), {})
            for count in sorted({1, *options.num_workers}):
                try:
                    found = throughput(kinds[kind], reading, paths, count, options.clips)
                except UnreadableVideoError as error:
                    print(f"{decoder}, {kind}: {error}", file=sys.stderr)
                    failed.add((decoder, kind))
                    break
                row[count] = row.get(count, found).or_faster(found)
    return table


def in_words(table: Table, rate: float) -> str:
    """Write the table, and the number of cores that the rate needs."""
    counts = sorted({count for row in table.values() for count in row})
    head = "".join(f"{count:>9,}" for count in counts)
    lines = [f"clips/s, workers:{'':11}{head}   ms of a core for a clip"]
    for (decoder, kind), row in table.items():
        cells = "".join(
            f"{row[n].clips_per_second:9.1f}" if n in row else f"{'-':>9}" for n in counts
        )
        cost = f"{1000 * row[1].seconds_per_clip:10.1f}" if 1 in row else ""
        lines.append(f"{f'{decoder}, {kind}':28}{cells}{cost}")
    costs = {name: row[1].seconds_per_clip for name, row in table.items() if 1 in row}
    best = min(costs, key=lambda name: costs[name])
    cores = math.ceil(rate * costs[best])
    lines.append(
        f"{rate:,.0f} clips/s need {counted(cores, 'core')} with {best[0]}: "
        f"{1 / max(costs[best], 1e-9):,.1f} clips/s a core."
    )
    fastest = max(
        ((row[n].clips_per_second, name, n) for name, row in table.items() for n in row),
    )
    lines.append(
        f"Fastest here: {fastest[0]:,.1f} clips/s with {fastest[1][0]} and {fastest[2]:,} "
        f"{fastest[1][1]}."
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None, program: str = "bench_data.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    options, parser = parse(arguments, program)
    # As in training, OpenCV has no threads of its own, which would compete with the workers.
    cv2.setNumThreads(1)
    with parser.refusing():
        paths = chosen_files(options)
    table = measure(paths, options)
    if not any(table.values()):
        print(f"{program}: no decoder reads these files", file=sys.stderr)
        return WRONG_USAGE
    print(in_words(table, options.rate))
    clip = ClipSettings(options.num_frames, options.frame_step)
    share = pipeline_share(
        paths, clip, options.crop_size, options.clips, max(LEAST_ROUNDS, options.rounds)
    )
    print(
        f"Batches with one worker: {1000 * share.batched:.1f} ms of a core for a clip, "
        f"{1000 * share.plain:.1f} in a plain loop: {share.added:+.1%}; by the clock "
        f"{share.added_by_the_clock:+.1%}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
