"""Write features of all videos and images in a folder, one .npy file each (§4.3, App. D).

    keras-vjepa features --preset vjepa_large_patch16_224 videos/ --output features/

`videos/a/clip.mp4` becomes `features/a/clip.mp4.npy`, float32: a row for each position of a window
that slides over the video, (windows, dim), or with `--tokens` (windows, tokens, dim). Row i begins
at frame `i * stride`; an image has one row. Files are read, and features written, window by window,
so memory does not grow with a video's length. The same command goes on after an interruption:
files that have their features are not read again. A file that cannot be read never stops the
others; all of them are named at the end, and the exit code is 1.

One process at a time may write to an output folder.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# First, for it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import VJEPAVideoPreprocessor, files
from keras_vjepa.configuration import descriptions
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.sources.folders import is_image, search_folder
from keras_vjepa.presets.preset import load_backbone
from keras_vjepa.recipes.command_line import OneLineParser

Rows = NDArray[np.float32]

SETTINGS_FILE = "settings.json"


class Extractor:
    """A backbone and what is asked of it."""

    def __init__(
        self,
        backbone: Any,
        preprocessor: VJEPAVideoPreprocessor,
        stride: int | None,
        tokens: bool,
        batch_size: int,
        limits: ReadingLimits = DEFAULT_LIMITS,
    ) -> None:
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.stride = stride
        self.tokens = tokens
        self.batch_size = batch_size
        self.limits = limits
        self._compiled_for: tuple[int, ...] | None = None
        size = preprocessor.image_size
        height, width = (size, size) if isinstance(size, int) else size
        for frames in {preprocessor.num_frames, preprocessor.image_frames} - {None}:
            # Says now, and not at the first file, which sizes the backbone cannot take.
            backbone.compute_output_shape((1, frames, height, width, 3))

    def features(self, source: Path) -> tuple[int, Iterator[Rows]]:
        """The number of rows of a file, and these rows in batches."""
        count, windows = self.preprocessor.windows(source, self.stride, self.limits)
        return count, self._batches(count, windows)

    def _batches(self, count: int, windows: Iterator[NDArray[np.float32]]) -> Iterator[Rows]:
        # The rest singly: two shapes of batch in all, and no more compilations than that.
        sizes = [self.batch_size] * (count // self.batch_size) + [1] * (count % self.batch_size)
        for size in sizes:
            batch = np.stack([next(windows) for _ in range(size)])
            if batch.shape[1:] != self._compiled_for:
                # Or TensorFlow generalises to any number of frames, of which there are no patches.
                self.backbone.make_predict_function(force=True)
                self._compiled_for = batch.shape[1:]
            features = np.asarray(self.backbone.predict_on_batch(batch)).astype(np.float32)
            yield features if self.tokens else features.mean(axis=1)


def write_rows(path: Path, count: int, batches: Iterator[Rows]) -> None:
    """Write an .npy file batch by batch; it appears complete or not at all."""
    with files.unfinished_file(path) as unfinished, open(unfinished, "wb") as file:
        for i, batch in enumerate(batches):
            if i == 0:
                header = {"descr": "<f4", "fortran_order": False}
                shape = {"shape": (count, *batch.shape[1:])}
                np.lib.format.write_array_header_1_0(file, {**header, **shape})
            file.write(batch.astype("<f4").tobytes())


def extract_all(extractor: Extractor, source: Path, output: Path) -> dict[str, str]:
    """Write the features of every file that has none yet.

    Returns:
        The files that cannot be read, and why.
    """
    if source.is_file():
        root, paths = source.parent, [source]
    else:
        root = source
        # Images last: in fewer frames they are another shape, to be compiled once.
        found = search_folder(source, "video", "image").paths
        paths = [Path(path) for path in sorted(found, key=lambda path: (is_image(path), path))]
    progress, bad_files = keras.utils.Progbar(len(paths), unit_name="file"), {}
    for i, path in enumerate(paths, start=1):
        relative = path.relative_to(root)
        target = output / relative.with_name(f"{relative.name}.npy")
        if not target.exists():
            try:
                write_rows(target, *extractor.features(path))
            except UnreadableVideoError as error:
                bad_files[str(path)] = str(error)
        progress.update(i)
    return bad_files


def keep_settings(output: Path, settings: dict[str, Any]) -> None:
    """Write the settings into the output folder.

    Raises:
        ValueError: if it holds features of other settings.
    """
    path = output / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        files.write_text(path, json.dumps(settings, indent=2))
        return
    found = json.loads(path.read_text())
    changed = [name for name in settings if found.get(name) != settings[name]]
    if changed:
        name = changed[0]
        raise ValueError(
            f"`--output` must be another folder: {output} holds features with {name} = "
            f"{found.get(name)}. Received: {settings[name]}"
        )


def parse(arguments: list[str] | None, program: str) -> argparse.Namespace:
    parser = OneLineParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a folder of videos and images, or one file")
    parser.add_argument("--preset", required=True, help="what `from_preset` takes")
    parser.add_argument("--output", type=Path, required=True, help="folder of the features")
    parser.add_argument("--tokens", action="store_true", help="one row per token, not their mean")
    parser.add_argument("--stride", type=int, help="frames between windows; default: no overlap")
    parser.add_argument("--image-size", type=int, nargs="+", help="one side, or height and width")
    parser.add_argument("--num-frames", type=int, help="of a window; default: the preset's")
    parser.add_argument("--frame-step", type=int, help="source frames per frame of a window")
    parser.add_argument("--image-frames", type=int, help="how often an image is repeated")
    parser.add_argument("--batch-size", type=int, default=4, help="windows at a time (default: 4)")
    described = descriptions(ReadingLimits)
    for limit, kind in (("max_file_seconds", float), ("max_frame_pixels", int)):
        default = getattr(DEFAULT_LIMITS, limit)
        text = f"{described[limit]} (default: {default:,})"
        option = "--" + limit.replace("_", "-")
        parser.add_argument(option, type=kind, default=default, help=text)
    parser.add_argument("--dtype", default="float32", help="of the model, such as bfloat16")
    parser.add_argument("--trust-on-first-use", action="store_true", help="see the README")
    options = parser.parse_all(arguments)
    if not options.source.exists():
        parser.error(f"no such file or folder: {options.source}")
    for name in ("batch_size", "stride"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            value, option = getattr(options, name), name.replace("_", "-")
            parser.error(f"--{option} must be at least 1. Received: {value}")
    try:
        options.limits = ReadingLimits(options.max_file_seconds, options.max_frame_pixels)
    except ValueError as error:
        parser.error(str(error).replace("`max", "`--max").replace("_", "-"))
    return options


def prepare(options: argparse.Namespace) -> Extractor:
    """Model and preprocessor of the preset, with what the command line changes."""
    backbone = load_backbone(
        options.preset, trust_on_first_use=options.trust_on_first_use, dtype=options.dtype
    )
    size = options.image_size
    changes = {
        "image_size": size[0] if size and len(size) == 1 else size,
        "num_frames": options.num_frames,
        "frame_step": options.frame_step,
        "image_frames": options.image_frames,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    # A classifier's several clips and views are for its probe.
    preprocessor = VJEPAVideoPreprocessor.from_preset(
        options.preset, num_clips=1, num_views=1, **given
    )
    extractor = Extractor(
        backbone,
        preprocessor,
        options.stride,
        options.tokens,
        options.batch_size,
        options.limits,
    )
    settings = {
        "preset": options.preset,
        "dtype": options.dtype,
        "tokens": options.tokens,
        "stride": options.stride or preprocessor.num_frames * preprocessor.frame_step,
        **preprocessor.get_config(),
    }
    keep_settings(options.output, settings)
    return extractor


def main(arguments: list[str] | None = None, program: str = "extract_features.py") -> int:
    """Run the command; `program` stands in front of its messages. Returns the exit code."""
    options = parse(arguments, program)
    try:
        extractor = prepare(options)
        bad_files = extract_all(extractor, options.source, options.output)
    except (ImportError, OSError, ValueError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    for reason in bad_files.values():
        print(reason, file=sys.stderr)
    if bad_files:
        print(f"{program}: {len(bad_files)} files cannot be read.", file=sys.stderr)
    return 1 if bad_files else 0


if __name__ == "__main__":
    sys.exit(main())
