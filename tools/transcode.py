"""Copy videos into a form that is read fast (§3.4).

    keras-vjepa transcode my_videos/ small_videos
    keras-vjepa transcode checked/clean.csv small_videos --num-workers 16

Copies are H.264 with key frames close together and a shorter side of 256 pixels, without sound.
They have the same frames at the same times. Each copy is read and compared with its original before
it gets its name; originals are left as they are. `small_videos/copies.csv` lists the copies with
their labels, for every recipe, and `small_videos/reasons.csv` the files that could not be copied.
After an interruption, the same command continues. At the end, the same clips are read from
originals and copies in turn, and the gain in speed is printed. The command needs PyAV (pip install
av). The exit code is 1 if a file could not be copied.
"""

import argparse
import logging
import sys
from pathlib import Path

from keras_vjepa.arguments import check_whole, counted
from keras_vjepa.command_line import WRONG_USAGE, OneLineParser
from keras_vjepa.data.preparation.copying import (
    COPIES,
    REASONS,
    CopiedVideos,
    check_apart,
    copy_videos,
    measured_gain,
    names_of_copies,
)
from keras_vjepa.data.preparation.transcoding import Transcoding
from keras_vjepa.data.reading.av_decoder import has_av
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.sources.names import shared_root
from keras_vjepa.locks import locked
from keras_vjepa.tools.data_source import add_source, check_source, progress_bar, samples_of


def parse(
    arguments: list[str] | None, program: str
) -> tuple[argparse.Namespace, Transcoding, OneLineParser]:
    """Read the command line; wrong input ends the process with a line that names the option."""
    parser = OneLineParser(prog=program, description=__doc__)
    add_source(parser)
    parser.add_argument("folder", type=Path, help="for the copies")
    parser.add_argument(
        "--short-side",
        type=int,
        default=Transcoding.short_side,
        help="pixels of the shorter side; a smaller video keeps its size",
    )
    parser.add_argument(
        "--keyframe-distance",
        type=int,
        default=Transcoding.keyframe_distance,
        help="frames from one key frame to the next",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=Transcoding.quality,
        help="constant rate factor of x264: 0 is without loss, each 6 more are half the bytes",
    )
    parser.add_argument(
        "--gain-videos", type=int, default=12, help="videos on which the gain is measured, 0: none"
    )
    options = parser.parse_all(arguments)
    with parser.refusing():
        limits = check_source(options)
        check_whole(0, gain_videos=options.gain_videos)
        transcoding = Transcoding(
            options.short_side, options.keyframe_distance, options.quality, limits
        )
    if not has_av():
        parser.error("PyAV is needed to write H.264: pip install av")
    return options, transcoding, parser


def in_words(done: CopiedVideos, folder: Path) -> str:
    """Say in words how many files were copied, and how large the copies are."""
    count = len(done.copies) + len(done.bad_files)
    lines = [
        f"{counted(len(done.copies), 'copy', 'copies')} of {counted(count, 'file')}, "
        f"{done.made:,} made now: {printable(folder / COPIES)}"
    ]
    if done.bad_files:
        lines.append(
            f"Not copied: {counted(len(done.bad_files), 'file')}. See {printable(folder / REASONS)}"
        )
    if done.original_bytes:
        share = done.num_bytes / done.original_bytes
        lines.append(
            f"{done.num_bytes / 1e6:,.1f} MB in place of {done.original_bytes / 1e6:,.1f}: "
            f"{share:.2f} of the bytes."
        )
    return "\n".join(lines)


def gain_in_words(done: CopiedVideos, videos: int) -> str:
    """Measure how much faster copies are read than originals, and say it in words."""
    gain = measured_gain(done.originals, done.copies, videos) if videos else None
    if gain is None:
        return ""
    return (
        f"Read on one core, {counted(gain.clips, 'clip')} of 16 frames, every fourth, at 224 "
        f"pixels: {gain.after:,.1f} clips/s in place of {gain.before:,.1f}; in the median "
        f"{gain.ratio:.2f} times as fast."
    )


def main(arguments: list[str] | None = None, program: str = "transcode.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    options, transcoding, parser = parse(arguments, program)
    source, folder = Path(options.source), options.folder.expanduser()
    with parser.refusing():
        samples = samples_of(options)
        paths = [sample.path for sample in samples]
        root = options.source if source.is_dir() else shared_root(paths)
        check_apart(paths, [*names_of_copies(paths, root, folder).values()])
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            # Copies inside the source would be taken for originals the next time.
            raise ValueError(f"folder must not lie in {source}. Received: {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, "folder"):
            done = copy_videos(
                samples, root, folder, transcoding, options.num_workers, progress_bar()
            )
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return WRONG_USAGE
    print(in_words(done, folder))
    if done.copies and (words := gain_in_words(done, options.gain_videos)):
        print(words)
    return 1 if done.bad_files else 0


if __name__ == "__main__":
    sys.exit(main())
