"""Write features of all videos and images in a folder, one .npy file each (§4.3, App. D).

    keras-vjepa features --preset vjepa_large_patch16_224 videos/ --output features/

Instead of a folder it takes a list, a table, shards, a published list with `--videos`, one file, or
the address of any of these. The features of `videos/a/clip.mp4` are written to
`features/a/clip.mp4.npy` as float32, with a row for each position of a window that slides over the
video: (windows, dim), or with `--tokens` (windows, tokens, dim). Row i begins at the frame
`i * stride`; an image has one row. Files are read and features written window by window, so that
memory does not grow with the length of a video.

After an interruption, the same command continues. `features/sources.jsonl` names the source of each
output. Features that are damaged, or whose source was replaced, are made again; features of another
model or with other options need a folder of their own. Files of the same name from several folders
have an output each. A file that cannot be read does not stop the others; all such files are named
at the end, and the exit code is 1.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras
import numpy as np

from keras_vjepa import VJEPAVideoPreprocessor
from keras_vjepa.arguments import MOST, MOST_LONG, MOST_SIDE, counted
from keras_vjepa.backend import engine
from keras_vjepa.backend.device import memory_of_machine
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.configuration import descriptions
from keras_vjepa.data.batches.workers import default_threads
from keras_vjepa.data.reading.errors import UnreadableVideoError, printable
from keras_vjepa.data.reading.kinds import extension
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import is_image
from keras_vjepa.data.sources.folders import EXTENSIONS, IN_WORDS, Kind, search_folder
from keras_vjepa.data.sources.listing import list_samples, source_exists
from keras_vjepa.data.sources.names import absolute_name, shared_root
from keras_vjepa.data.sources.shards import is_folder_of_shards
from keras_vjepa.evaluation.feature_folder import FeatureFolder, FeaturePlan, Name, Rows
from keras_vjepa.evaluation.feature_settings import BACKEND, MODEL, PRESET
from keras_vjepa.evaluation.reading_ahead import WAITING, FilesAhead
from keras_vjepa.evaluation.window_features import WindowFeatures, WindowReader
from keras_vjepa.locks import locked
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.presets.fingerprints import fingerprint
from keras_vjepa.presets.preset import find_preset, load_backbone
from keras_vjepa.tools.data_source import add_listing

DTYPES = ("float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16", "float64")

# Time between two lines of progress if the output is not a terminal.
_SECONDS_BETWEEN_LINES = 60


@dataclass(frozen=True)
class Extraction:
    """Holds what computes features of files.

    Attributes:
        backbone: the encoder.
        reader: opens files as windows.
        tokens: whether features are those of tokens, and not their mean.
        batch_size: windows at a time.
        num_workers: threads that read files.
    """

    backbone: Any
    reader: WindowReader
    tokens: bool
    batch_size: int
    num_workers: int


def check_frames(backbone: Any, preprocessor: VJEPAVideoPreprocessor) -> None:
    """Refuse sizes that the backbone cannot take now, rather than at the first file.

    Raises:
        ValueError: for a wrong size, by the name of its option.
    """
    height, width = height_and_width(preprocessor.image_size)
    for option in ("num_frames", "image_frames"):
        frames = getattr(preprocessor, option) or preprocessor.num_frames
        try:
            backbone.compute_output_shape((1, frames, height, width, 3))
        except ValueError as error:
            of_size = str(error).startswith(("`height`", "`width`"))
            raise ValueError(f"{typed('image_size' if of_size else option)}: {error}") from error


def typed(name: str) -> str:
    """Write an option as it is typed."""
    return "--" + name.replace("_", "-")


def listed(
    source: str, kind: Kind = "any", videos: str = "", path_column: str = ""
) -> tuple[str, list[Name]]:
    """Find the files to read, and the folder below which their outputs are named.

    Raises:
        ValueError: if there are no such files.
    """
    is_folder = os.path.isdir(source) and not is_folder_of_shards(source, kind)
    if is_folder:
        found = search_folder(source, kind).paths
        if not found:
            raise ValueError(f"source must hold {IN_WORDS[kind]}. Received: {printable(source)}")
    elif extension(source) in EXTENSIONS["any"]:
        found = [source]
    else:
        samples = list_samples(
            source, kind, videos=videos, path_column=path_column, label_column=""
        )
        found = [*dict.fromkeys(absolute_name(sample.path) for sample in samples)]
    root = source if is_folder and found != [source] else shared_root(found)
    # Images come last. They have fewer frames, and so another shape, which is compiled only once.
    found.sort(key=lambda name: (is_image(name), name))
    # Some names stay text, because a path would turn the two slashes of an address, or of a name
    # within a tar file, into one.
    return root, [Path(name) if str(Path(name)) == name else name for name in found]


def extract_all(
    extraction: Extraction, folder: FeatureFolder, plan: FeaturePlan
) -> tuple[dict[Name, str], int]:
    """Write the features that are missing.

    Returns:
        The files that cannot be read, and why; the number of videos in which a window reaches
        beyond the end.
    """
    bad_files, repeating = dict[Name, str](), 0
    interval = 0.05 if sys.stdout.isatty() else _SECONDS_BETWEEN_LINES
    bar = keras.utils.Progbar(len(plan.missing), unit_name="file", interval=interval)

    def watched(path: Name, number: int, count: int, batches: Iterator[Rows]) -> Iterator[Rows]:
        done = 0
        for batch in batches:
            if not np.isfinite(batch).all():
                raise ValueError(
                    f"--preset must give finite features in --dtype {extraction.backbone.dtype}. "
                    f"Received: NaN or infinity for {printable(path)}"
                )
            yield batch
            done += len(batch)
            # A part of a file counts as progress, so that a video of hours shows some.
            bar.update(number + 0.99 * done / count)

    workers, batch_size = extraction.num_workers, extraction.batch_size
    ahead = FilesAhead(plan.missing, extraction.reader.open, workers, workers + batch_size)
    with ahead as files:
        features = WindowFeatures(extraction.backbone, files, batch_size, extraction.tokens)
        for number, file in enumerate(features.files()):
            try:
                opened = file.opened()
                rows = watched(file.path, number, opened.count, features.rows(file))
                output = plan.outputs[file.path]
                folder.write(file.path, output, opened.content, opened.count, rows)
                repeating += opened.repeats
            except UnreadableVideoError as error:
                bad_files[file.path] = str(error)
            bar.update(number + 1)
    return bad_files, repeating


# --- The command line ----------------------------------------------------------------------------


def path_of(text: str) -> Path:
    """Read a path from the command line; refuse an address, which is no path."""
    if not text or re.match(r"\w+://", text):
        raise argparse.ArgumentTypeError(f"must be a path on this machine. Received: {text!r}")
    # Shells do not replace the ~ in `--output=~/features`.
    return Path(text).expanduser()


def parse(arguments: list[str] | None, program: str) -> argparse.Namespace:
    """Read the command line; wrong input ends the process with a line that names the option."""
    parser = OneLineParser(prog=program, description=__doc__)
    add_listing(parser, "any")
    parser.add_argument(
        "--preset",
        required=True,
        help="name of a released model, folder, or address hf://user/repo",
    )
    parser.add_argument("--output", type=path_of, required=True, help="folder of the features")
    parser.add_argument("--tokens", action="store_true", help="one row per token, not their mean")
    parser.add_argument(
        "--stride",
        type=int,
        help="source frames from the start of a window to the next (default: no overlap)",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        help="one side, or height and width (default: the preset's)",
    )
    parser.add_argument("--num-frames", type=int, help="frames of a window (default: the preset's)")
    parser.add_argument(
        "--frame-step", type=int, help="source frames per frame of a window (default: the preset's)"
    )
    parser.add_argument(
        "--image-frames",
        type=int,
        help="how often an image is repeated (default: the preset's)",
    )
    parser.add_argument("--batch-size", type=int, default=4, help="windows at a time")
    parser.add_argument(
        "--num-workers",
        type=int,
        help="threads that read files ahead (default: one for each core, from 2 to 32)",
    )
    described = descriptions(ReadingLimits)
    for limit, kind in (("max_file_seconds", float), ("max_frame_pixels", int)):
        default = getattr(DEFAULT_LIMITS, limit)
        parser.add_argument(typed(limit), type=kind, default=default, help=described[limit])
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], metavar="DTYPE",
        help=f"precision of the model: {', '.join(DTYPES)}",
    )  # fmt: skip
    parser.add_argument(
        "--trust-on-first-use",
        action="store_true",
        help="download a released file whose SHA-256 is not known yet, and keep its hash",
    )
    options = parser.parse_all(arguments)
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        options.limits = ReadingLimits(options.max_file_seconds, options.max_frame_pixels)
    except ValueError as error:
        parser.error(str(error).replace("`max", "`--max").replace("_", "-"))
    return options


def check(options: argparse.Namespace) -> None:
    """Check the options that can be checked without a model.

    Raises:
        ValueError: for the first wrong option, by its name.
    """
    if not source_exists(options.source):
        raise ValueError(f"no such file or folder: {printable(options.source)}")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder. Received the file {options.output}")
    if options.output.exists() and not os.access(options.output, os.W_OK):
        raise ValueError(f"--output must be a folder that can be written: {options.output}")
    for name in ("batch_size", "num_workers", "stride", "num_frames", "frame_step", "image_frames"):
        value = getattr(options, name)
        most = MOST_LONG if name in ("num_frames", "image_frames") else MOST
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{typed(name)} must be from 1 to {most}. Received: {value}")
    size = options.image_size or [1]
    if len(size) > 2 or not all(1 <= side <= MOST_SIDE for side in size):
        received = " ".join(map(str, size))
        raise ValueError(
            f"--image-size must be one or two numbers from 1 to {MOST_SIDE}. Received: {received}"
        )


def prepare(options: argparse.Namespace) -> tuple[Extraction, dict[str, Any], Path]:
    """Make what computes features, the settings that they depend on, and the preset's folder."""
    try:
        preset = find_preset(options.preset, trust_on_first_use=options.trust_on_first_use)
        backbone = load_backbone(preset, dtype=options.dtype)
        size = options.image_size
        changes = {
            "image_size": size[0] if size and len(size) == 1 else size,
            "num_frames": options.num_frames,
            "frame_step": options.frame_step,
            "image_frames": options.image_frames,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        # A classifier's preprocessor may make several clips and views, but only its probe needs
        # them.
        preprocessor = VJEPAVideoPreprocessor.from_preset(preset, num_clips=1, num_views=1, **given)
    except (OSError, ValueError) as error:
        raise ValueError(f"--preset: {error}") from error
    check_memory(preprocessor, options)
    check_frames(backbone, preprocessor)
    extraction = Extraction(
        backbone,
        WindowReader(preprocessor, options.stride, options.limits),
        options.tokens,
        options.batch_size,
        options.num_workers or default_threads(),
    )
    settings = {
        PRESET: options.preset,
        MODEL: fingerprint(backbone),
        BACKEND: engine.name(),
        "dtype": options.dtype,
        "tokens": options.tokens,
        "stride": options.stride or preprocessor.num_frames * preprocessor.frame_step,
        **preprocessor.get_config(),
    }
    return extraction, settings, preset


def check_memory(preprocessor: VJEPAVideoPreprocessor, options: argparse.Namespace) -> None:
    """Refuse sizes for which the pixels of one batch do not fit into this machine's memory."""
    height, width = height_and_width(preprocessor.image_size)
    frames = max(preprocessor.num_frames, preprocessor.image_frames or 0)
    # Windows exist both by themselves and as a batch, and of each file that is read ahead some
    # wait.
    workers = options.num_workers or default_threads()
    waiting = WAITING * (workers + options.batch_size)
    needed = (2 * options.batch_size + waiting) * frames * height * width * 3 * 4
    has = memory_of_machine()
    if has is not None and needed > has:
        raise ValueError(
            f"{sizes_of(options)} must be smaller: {options.batch_size} windows of "
            f"{frames}x{height}x{width} pixels take {needed / 1e9:,.1f} GB, and this machine has "
            f"{has / 1e9:,.1f} GB"
        )


def sizes_of(options: argparse.Namespace) -> str:
    """Name the options that determine the memory: those that were given, and the batch size."""
    names = ("image_size", "num_frames", "image_frames")
    given = [typed(name) for name in names if getattr(options, name) is not None]
    return " or ".join([*given, typed("batch_size")])


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error means too little memory; each engine has its own error for it."""
    words = ("out of memory", "allocate", "RESOURCE_EXHAUSTED", "OOM")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def extract(options: argparse.Namespace) -> tuple[FeaturePlan, dict[Name, str], list[str]]:
    """Make the features that the command line asks for.

    Returns:
        The plan of what was to be done, the files that cannot be read with the reasons, and the
        features that are damaged.
    """
    root, paths = listed(options.source, options.kind, options.videos or "", options.path_column)
    output = options.output
    # An existing folder is locked now already, so that an error does not come after minutes of
    # loading.
    with locked(output, "--output") if output.is_dir() else nullcontext():
        extraction, settings, preset = prepare(options)
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--output must be a folder that can be made: {error}") from error
        with locked(output, "--output"):
            folder = FeatureFolder(output, settings, preset)
            plan = folder.plan(root, paths)
            bad_files, repeating = (
                extract_all(extraction, folder, plan) if plan.missing else ({}, 0)
            )
            say_frames(extraction.reader, repeating)
            say_images(extraction, plan)
            return plan, bad_files, folder.problems(plan, bad_files)


def say_frames(reader: WindowReader, repeating: int) -> None:
    """Say which frames of videos windows leave out, and in how many videos they repeat some."""
    preprocessor = reader.preprocessor
    span = preprocessor.num_frames * preprocessor.frame_step
    if repeating:
        print(
            f"The last window of {counted(repeating, 'video')} is longer than what is "
            f"left of it, less than {counted(span, 'frame')}, and repeats the last frame.",
            file=sys.stderr,
        )
    gap = (reader.stride or span) - span
    if gap > 0:
        print(
            f"--stride leaves out {counted(gap, 'frame')} between two windows of {span:,}.",
            file=sys.stderr,
        )


def say_images(extraction: Extraction, plan: FeaturePlan) -> None:
    """Say that images were made clips for a model that has a tokenizer for images."""
    preprocessor = extraction.reader.preprocessor
    frames = preprocessor.image_frames or preprocessor.num_frames
    has_tokenizer = getattr(extraction.backbone, "modalities", False)
    if has_tokenizer and frames > 1 and any(is_image(name) for name in plan.missing):
        print(
            f"Images were repeated to clips of {frames:,} frames. With --image-frames 1, and "
            "another --output, V-JEPA 2.1 takes them as images.",
            file=sys.stderr,
        )


def main(arguments: list[str] | None = None, program: str = "extract_features.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    options = parse(arguments, program)
    try:
        plan, bad_files, problems = extract(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        print(
            f"{program}: {sizes_of(options)} must be smaller, for there is not enough memory: "
            f"{reason}",
            file=sys.stderr,
        )
        return 2
    return report(plan, bad_files, problems, options.output, program)


def report(
    plan: FeaturePlan,
    bad_files: dict[Name, str],
    problems: Sequence[str],
    output: Path,
    program: str,
) -> int:
    """Print what was done and what failed, and return the exit code."""
    for reason in bad_files.values():
        print(reason, file=sys.stderr)
    if bad_files:
        print(f"{program}: {counted(len(bad_files), 'file')} cannot be read.", file=sys.stderr)
    for problem in problems:
        print(f"{printable(problem)} is damaged or gone again.", file=sys.stderr)
    if problems:
        print(f"{program}: run the same command again.", file=sys.stderr)
    found, made = len(plan.outputs) - len(bad_files), len(plan.missing) - len(bad_files)
    print(
        f"{printable(output)}: features of {found:,} of {len(plan.outputs):,} files, {made:,} made "
        f"now (replaced files: {len(plan.replaced):,}; damaged or unknown features: "
        f"{len(plan.damaged) + len(plan.unknown):,})."
    )
    return 1 if bad_files or problems else 0


if __name__ == "__main__":
    sys.exit(main())
