"""Segment the digits of built-in videos by a linear layer on frozen patches (vjepa21 §7).

    keras-vjepa dense-probe workdir/digit_motion/preset workdir/digit_motion/untrained
    keras-vjepa dense-probe PRESET PRESET ... --output dense/ --layers 0 1 2 3

Each row of the printed table is a preset, with mean and deviation over the seeds of the layer: the
mean intersection over union of background and ten digits, that of all digits as one class, and the
share of pixels that are right. `--output` names a folder that gets the table and all numbers.
"""

import json
import sys
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
from keras_vjepa import VJEPABackbone, VJEPAVideoPreprocessor, files
from keras_vjepa.arguments import MOST_SEED, check_number, check_whole
from keras_vjepa.command_line import OneLineParser, read_folder
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.evaluation.dense_probe import dense_probe, digit_samples
from keras_vjepa.evaluation.report import mean_and_deviation
from keras_vjepa.locks import locked
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.training.resumable import check_folder, writable_folder

# The headings of the numbers, in the order of the table.
HEADINGS = {"miou": "mIoU", "digit_iou": "IoU of digits", "accuracy": "pixels"}


def measure(preset: str, options: Any) -> list[dict[str, float]]:
    """Return the numbers of a preset, of one linear layer for each seed."""
    backbone = VJEPABackbone.from_preset(preset)
    backbone.trainable = False
    pixels = VJEPAVideoPreprocessor.from_preset(preset)
    of_preset = pixels.mean, pixels.std, options.layers
    config = SETS[options.data]
    train = digit_samples(backbone, "train", options.num_videos, config, *of_preset)
    test = digit_samples(backbone, "test", options.num_test_videos, config, *of_preset)
    rate = options.learning_rate
    return [
        dense_probe(train, test, options.epochs, learning_rate=rate, seed=seed)
        for seed in options.seeds
    ]


def table_of(numbers: dict[str, list[dict[str, float]]]) -> str:
    """Write the table of all presets as text."""
    lines = [f"| linear layer on patches, in % | {' | '.join(HEADINGS.values())} |"]
    lines.append("|---" * (1 + len(HEADINGS)) + "|")
    for preset, found in numbers.items():
        cells = [mean_and_deviation([one[name] for one in found]) for name in HEADINGS]
        lines.append(f"| {preset} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run(options: Any) -> str:
    """Measure all presets, and return the table."""
    numbers: dict[str, list[dict[str, float]]] = {}
    for preset in options.presets:
        numbers[preset] = measure(preset, options)
        print(table_of({preset: numbers[preset]}).splitlines()[-1], file=sys.stderr, flush=True)
        if options.output is not None:
            files.write_text(options.output / "table.json", json.dumps(numbers, indent=1))
            files.write_text(options.output / "table.md", table_of(numbers))
    return table_of(numbers)


def main(arguments: list[str] | None = None, program: str = "dense_probe.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("presets", nargs="+", metavar="preset", help="of the encoders")
    parser.add_argument("--data", choices=[*SETS], default="digit_motion", help="built-in set")
    parser.add_argument("--num-videos", type=int, default=300, help="to train on")
    parser.add_argument("--num-test-videos", type=int, default=100, help="to test on")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=(), help="blocks, side by side (default: the last)"
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the videos")
    parser.add_argument("--learning-rate", type=float, default=1e-2, help="of AdamW, at the start")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the linear layer")
    parser.add_argument("--output", type=read_folder, help="folder of the table [no folder]")
    options = parser.parse_all(arguments)
    with parser.refusing():
        for seed in options.seeds:
            check_whole(0, MOST_SEED, seeds=seed)
        check_whole(1, num_videos=options.num_videos, num_test_videos=options.num_test_videos)
        check_whole(1, epochs=options.epochs)
        check_number("[0, inf)", learning_rate=options.learning_rate)
        if options.output is not None:
            check_folder(options.output, "--output")
        for preset in options.presets:
            check_preset(preset)
    with parser.failing():
        if options.output is None:
            print(run(options), end="")
            return
        with locked(writable_folder(options.output), "--output"):
            print(run(options), end="")


if __name__ == "__main__":
    main()
