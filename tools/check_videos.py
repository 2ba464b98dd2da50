"""Check every file of a data set, and list the usable ones (§3.4).

    keras-vjepa check-videos my_videos/ --output checked
    keras-vjepa check-videos train.csv --output checked --num-workers 16

`checked/clean.csv` lists the usable files with their labels, for every recipe.
`checked/reasons.csv` says for each other file why it is not usable: it cannot be read, is cut,
damaged, or the same as another one. `checked/videos.csv` has codec, size, frame rate, length and
distance of key frames of each file. Files are read in separate processes, so that a file that
crashes a decoder does not end the check. After an interruption, the same command continues, and
checks files again that have changed. The exit code is 1 if no file is usable.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from keras_vjepa.arguments import check_whole, counted
from keras_vjepa.command_line import WRONG_USAGE, OneLineParser
from keras_vjepa.data.preparation.checking import (
    CLEAN,
    READABLE,
    REASONS,
    CheckedVideos,
    check_videos,
)
from keras_vjepa.data.preparation.inspection import Inspection, VideoReport
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.locks import locked
from keras_vjepa.tools.data_source import add_source, check_source, progress_bar, samples_of

# If key frames are further apart, a seek costs more than a clip of 16 frames, every fourth.
_FAR_APART = 64


def in_words(checked: CheckedVideos, output: Path) -> str:
    """Describe the results of the check in words."""
    count = len(checked.reports)
    lines = [
        f"{counted(len(checked.usable), 'usable file')} of {count:,}: {printable(output / CLEAN)}"
        if checked.usable
        else f"No file of {count:,} is usable."
    ]
    if checked.problems:
        kinds = ", ".join(f"{many:,} {kind}" for kind, many in checked.problems.most_common())
        lines.append(
            f"Left out {checked.problems.total():,}: {kinds}. See {printable(output / REASONS)}"
        )
    videos = [r for _, r in checked.reports if not r.problem and r.codec != "image"]
    return "\n".join(lines + _facts_in_words(videos))


def _facts_in_words(videos: Sequence[VideoReport]) -> list[str]:
    if not videos:
        return []
    codecs = _most_common(r.codec for r in videos)
    sizes = _most_common(f"{r.width}x{r.height}" for r in videos)
    hours = sum(r.seconds for r in videos) / 3600
    many_bytes = sum(r.num_bytes for r in videos) / 1e9
    lines = [f"Videos: {hours:,.2f} hours, {many_bytes:,.2f} GB; {codecs}; {sizes}."]
    variable = sum(r.has_variable_rate for r in videos)
    if variable:
        lines.append(f"Frame rate varies within {counted(variable, 'video')}.")
    far = [r.keyframe_distance for r in videos if r.keyframe_distance > _FAR_APART]
    if far:
        lines.append(
            f"Key frames are up to {max(far):,} frames apart, more than {_FAR_APART} in "
            f"{counted(len(far), 'video')}: copies by `transcode` are read faster."
        )
    return lines


def _most_common(values: Iterable[str]) -> str:
    counter = Counter(values)
    named = ", ".join(f"{value} ({many:,})" for value, many in counter.most_common(3))
    return named + (f" and {len(counter) - 3} others" if len(counter) > 3 else "")


def parse(
    arguments: list[str] | None, program: str
) -> tuple[argparse.Namespace, ReadingLimits, OneLineParser]:
    """Read the command line; wrong input ends the process with a line that names the option."""
    parser = OneLineParser(prog=program, description=__doc__)
    add_source(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder of the lists and tables")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="decode the first frame alone: finds what cannot be opened or is cut, not damage",
    )
    parser.add_argument(
        "--min-frames", type=int, default=1, help="leave out videos with fewer frames"
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        choices=READABLE,
        metavar="PROBLEM",
        default=(),
        help=f"use files with these problems too: {', '.join(READABLE)} (default: none)",
    )
    options = parser.parse_all(arguments)
    with parser.refusing():
        limits = check_source(options)
        check_whole(1, min_frames=options.min_frames)
    return options, limits, parser


def main(arguments: list[str] | None = None, program: str = "check_videos.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    options, limits, parser = parse(arguments, program)
    output = options.output.expanduser()
    with parser.refusing():
        samples = samples_of(options)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked(output, "--output"):
            checked = check_videos(
                samples,
                output,
                Inspection(limits, decodes_all=not options.quick),
                options.num_workers,
                options.min_frames,
                options.keep,
                progress_bar(),
            )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return WRONG_USAGE
    if checked.known:
        print(f"Checked before, and unchanged since: {counted(checked.known, 'file')}.")
    print(in_words(checked, output))
    return 0 if checked.usable else 1


if __name__ == "__main__":
    sys.exit(main())
