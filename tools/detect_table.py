"""Compare detectors on encoders that were pretrained and that were not (Table 6, App. D.2).

    keras-vjepa detect-table workdir/scenes_table --preset workdir/digit_scene/preset

On a built-in set, it trains detectors on the pretrained encoder and on one like it that has learnt
nothing, with the encoder frozen and trained, for each seed. Each is tested with true boxes and with
detected ones. Detectors are runs of `detect` in folders of their own. Numbers that are there are
not computed again, so that the same command continues after an interruption. `table.md` is written
again after each number, and `table.json` has all numbers.
"""

import dataclasses
import functools
import logging
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
from keras_vjepa.arguments import MOST_SEED, check_number, check_whole
from keras_vjepa.command_line import OneLineParser, read_folder
from keras_vjepa.configuration import replace
from keras_vjepa.data.sources.detection_sets import DetectionSet
from keras_vjepa.data.sources.digit_scene import SCENES
from keras_vjepa.evaluation.seed_table import SeedTable, settings_of, with_settings
from keras_vjepa.locks import locked
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.presets.fingerprints import fingerprint
from keras_vjepa.presets.preset import check_preset, load_backbone
from keras_vjepa.recipes import detect
from keras_vjepa.recipes.detect_configs import CONFIGS, DetectConfig
from keras_vjepa.training.resumable import check_folder, folder_of_results

# By the column's name: whether the encoder has learnt nothing, and whether it is trained.
METHODS = {
    "untrained, frozen": (True, False),
    "pretrained, frozen": (False, False),
    "untrained, fine-tuned": (True, True),
    "pretrained, fine-tuned": (False, True),
}

# Settings on which numbers depend, besides the encoder.
_SETTINGS = (
    "data", "epochs", "learning_rate", "layer_decay", "frozen_learning_rate", "num_key_frames",
    "num_test_key_frames",
)  # fmt: skip


def shortened(found: DetectionSet, num_train: int, num_test: int) -> DetectionSet:
    """Leave out key frames beyond a number of those to train on, and of those to test on."""
    kept = {sample.key for sample in found.test["true"][:num_test]}
    return dataclasses.replace(
        found,
        train=found.train[:num_train],
        test={kind: [s for s in samples if s.key in kept] for kind, samples in found.test.items()},
        excluded=[*found.excluded, *(k for k in found.truth.key_frames if k not in kept)],
    )


def fitted(config: DetectConfig, encoder: Any) -> DetectConfig:
    """Set a config to the one size of an encoder that has no other, and to clips of the same time.

    Frames for other encoders are enlarged to whole patches: 64 pixels to 70 for patches of 14.

    Args:
        config: config of a detector.
        encoder: any backbone.
    """
    if getattr(encoder, "input_shapes", "any") != "one":
        missing = -config.crop_size % getattr(encoder, "patch_size", 1)
        low, high = (side + missing for side in config.short_side)
        return replace(config, crop_size=config.crop_size + missing, short_side=(low, high))
    side, clip = max(height_and_width(encoder.image_size)), config.clip
    frames, stride = clip.num_frames, clip.frame_step
    taken = encoder.num_frames if encoder.num_frames > 1 else frames
    return replace(
        config,
        crop_size=side,
        short_side=(side, side),
        test_size=side,
        num_frames=taken,
        temporal_stride=max(1, frames * stride // taken),
    )


def check_squares(encoder: Any, preset: str) -> None:
    """Check that an encoder takes squares, before data are listed for it.

    Args:
        encoder: any backbone.
        preset: its name, for the message.

    Raises:
        ValueError: for an encoder whose one size is no square.
    """
    if getattr(encoder, "input_shapes", "any") == "one":
        height, width = height_and_width(encoder.image_size)
        if height != width:
            raise ValueError(
                "`preset` must be of an encoder that takes squares, in which frames are cut. "
                f"Received: {preset}, whose one size is {height} x {width}"
            )


def configured(options: Any, untrained: bool, trained: bool, seed: int) -> DetectConfig:
    """Make the config of a detector of the table."""
    return replace(
        CONFIGS[options.data](),
        preset=options.preset,
        untrained=untrained,
        trainable_backbone=trained,
        epochs=options.epochs,
        warmup_epochs=min(1, options.epochs - 1),
        learning_rate=options.learning_rate if trained else options.frozen_learning_rate,
        layer_decay=options.layer_decay if trained else None,
        # A test after each epoch would cost as much as the training.
        validate_every=options.epochs,
        seed=seed,
    )


def run(options: Any) -> str:
    """Compute the numbers that the table lacks, and return its text."""
    with folder_of_results(options.workdir) as workdir, locked(workdir, "workdir"):
        table = SeedTable(workdir, "mAP in %, boxes", [*METHODS])
        encoder = load_backbone(options.preset)
        check_squares(encoder, options.preset)
        settings = settings_of(options, _SETTINGS)
        with with_settings(workdir, table.heading, {"preset": fingerprint(encoder), **settings}):
            _fill(table, options, encoder)
        return table.text()


def _fill(table: SeedTable, options: Any, encoder: Any) -> None:
    """Compute the numbers that the table lacks."""
    found = shortened(
        CONFIGS[options.data]().data.make(), options.num_key_frames, options.num_test_key_frames
    )
    for seed in options.seeds:
        for method in options.methods:
            untrained, trained = METHODS[method]
            folder = table.workdir / f"{method.replace(',', '')} {seed}"
            config = fitted(configured(options, untrained, trained, seed), encoder)
            batch_size = min(config.batches.batch_size, len(found.train))
            config = replace(config, batch_size=batch_size)
            scores = functools.cache(functools.partial(detect.run, config, folder, found))
            for kind in found.test:
                table.fill(method, kind, seed, lambda kind=kind, made=scores: made()[kind])  # type: ignore[misc]


def main(arguments: list[str] | None = None, program: str = "detect_table.py") -> None:
    """Run the command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("workdir", type=read_folder, help="folder of the runs and of the table")
    parser.add_argument("--preset", required=True, help="of the encoder")
    parser.add_argument("--data", choices=[*SCENES], default="digit_scene", help="built-in set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each number")
    parser.add_argument(
        "--methods", choices=[*METHODS], nargs="+", default=[*METHODS], help="columns to fill"
    )
    parser.add_argument("--epochs", type=int, default=8, help="passes over the key frames")
    parser.add_argument(
        "--learning-rate", type=float, default=1e-2, help="the highest, with a trained encoder"
    )
    parser.add_argument(
        "--layer-decay", type=float, default=0.35, help="of the rates of a trained encoder's layers"
    )
    parser.add_argument(
        "--frozen-learning-rate", type=float, default=3e-2, help="the highest, of a layer alone"
    )
    parser.add_argument("--num-key-frames", type=int, default=1200, help="to train on, at most")
    parser.add_argument("--num-test-key-frames", type=int, default=300, help="to test on, at most")
    options = parser.parse_all(arguments)
    with parser.refusing():
        for seed in options.seeds:
            check_whole(0, MOST_SEED, seeds=seed)
        check_whole(1, epochs=options.epochs, num_test_key_frames=options.num_test_key_frames)
        check_whole(1, num_key_frames=options.num_key_frames)
        check_number("[0, inf)", learning_rate=options.learning_rate)
        check_number("[0, inf)", frozen_learning_rate=options.frozen_learning_rate)
        check_number("(0, 1]", layer_decay=options.layer_decay)
        check_folder(options.workdir)
        check_preset(options.preset)
    with parser.failing():
        print(run(options), end="")


if __name__ == "__main__":
    main()
