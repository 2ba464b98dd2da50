"""Train decoders with several seeds, and measure what they draw: one table (§6, Fig. 6, App. F).

    keras-vjepa decode table workdir/decoders --preset PRESET

For each seed it trains a decoder as `decode train` does, in a folder of its own, and measures it as
`decode evaluate` does; all decoders get the same clips. Numbers that are there are not computed
again, so that the same command continues after an interruption. `table.md` is written again after
each number, with mean and deviation over the seeds, and `table.json` has all numbers.
"""

import functools
import logging
import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras

from keras_vjepa.arguments import MOST_LONG, MOST_SEED, check_number, check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.configuration import replace
from keras_vjepa.decoding import load_decoder, region_in_tokens
from keras_vjepa.evaluation.seed_table import SeedTable, check_settings, settings_of
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS
from keras_vjepa.locks import locked
from keras_vjepa.pictures.loading import load_pictured
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes import decode as training_recipe
from keras_vjepa.recipes.decode_configs import digit_motion_black
from keras_vjepa.tasks.decoder import FeatureDecoder
from keras_vjepa.tasks.region_features import RegionFeatures, check_made_for
from keras_vjepa.tools import decode_evaluate
from keras_vjepa.tools.picture import step_of
from keras_vjepa.training.resumable import check_folder, folder_of_results

REAL = "real"
HEADING = "decoded regions, in %"
# Settings on which numbers depend, besides the features.
_SETTINGS = (
    "data", "train_steps", "clips", "samples", "timesteps", "train_clips", "epochs", "guidance",
)  # fmt: skip


def rows_of(kind: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the rows that a column has, each with the keys of its number in an evaluation."""
    for task in DIGIT_MOTION_TASKS:
        yield task, (task, "accuracy")
    yield "direction, 100 x the cosine", ("direction",)
    if kind != REAL:
        for task in DIGIT_MOTION_TASKS:
            yield f"{task}, of clips whose real region shows it", (task, "shown", "accuracy")
        for task in DIGIT_MOTION_TASKS:
            yield f"{task}, samples of a clip that agree", (task, "agreement")
        yield "variance of pixels among samples of a clip", ("varying_share",)
    if kind in ("target", "predicted"):
        for task in DIGIT_MOTION_TASKS:
            yield f"{task}, read of the features", ("features", task, "accuracy")


def train(options: Namespace, seed: int) -> Path:
    """Train the decoder of a seed, unless it is there, and return its preset."""
    default = digit_motion_black()
    config = replace(
        default,
        preset=options.preset,
        # As the clips are read by which the decoder is measured.
        temporal_stride=step_of(options.preset) or default.clip.frame_step,
        data=options.data,
        steps=options.train_steps,
        warmup_steps=min(default.learning_rate.warmup_steps, options.train_steps - 1),
        seed=seed,
    )
    folder = options.workdir / f"decoder {seed}"
    print(f"seed {seed}: {folder}", file=sys.stderr, flush=True)
    training_recipe.run(config, folder)
    return folder / "preset"


class Measurement:
    """Trains the decoders of one preset, and measures each once, all on the same clips.

    Args:
        features: the models that compute features.
        options: options of the command.
    """

    def __init__(self, features: RegionFeatures, options: Namespace) -> None:
        self.features = features
        self.options = options
        self._held: decode_evaluate.HeldOut | None = None
        self._found: dict[int, dict[str, Any]] = {}

    def __call__(self, seed: int, kind: str, row: str) -> float:
        """Return the number of a seed's decoder, by column and row."""
        if seed not in self._found:
            decoder = load_decoder(str(train(self.options, seed)))
            # The folder may hold one of a preset that was at this path before.
            check_made_for(decoder, self.features, self.options.preset)
            self._found[seed] = self._measure(decoder)
        found: Any = self._found[seed][kind]
        for key in dict(rows_of(kind))[row]:
            # Where no clip shows its class, there is no share of them either.
            found = found.get(key, {"accuracy": math.nan}) if key == "shown" else found[key]
        return float(found)

    def _measure(self, decoder: FeatureDecoder) -> dict[str, Any]:
        options = Namespace(**vars(self.options))
        # By these names `decode evaluate` knows them.
        options.seeds, options.steps, options.seed = options.samples, options.timesteps, 0
        if self._held is None:
            keras.utils.set_random_seed(options.seed)
            self._held = decode_evaluate.held_out(self.features, decoder, options)
        return decode_evaluate.found_by(self._held, decoder, options)


def run(options: Namespace) -> str:
    """Compute the numbers that the table lacks, and return its text."""
    with (
        folder_of_results(options.workdir) as workdir,
        locked(workdir, "workdir"),
        redirect_stdout(sys.stderr),
    ):
        features = RegionFeatures(load_pictured(options.preset, needs_predictor=True).pretrainer)
        region_in_tokens(digit_motion_black().region, features.pretrainer.encoder)
        settings = settings_of(options, _SETTINGS)
        check_settings(workdir, HEADING, {"preset": features.fingerprint, **settings})
        columns = [REAL, *decode_evaluate.KINDS]
        table = SeedTable(workdir, HEADING, columns)
        measure = Measurement(features, options)
        for seed in options.seeds:
            for kind in columns:
                for row, _ in rows_of(kind):
                    table.fill(kind, row, seed, functools.partial(measure, seed, kind, row))
        return table.text()


def main(arguments: list[str], program: str) -> int:
    """Run `decode table`, with `program` in front of its messages, and return the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("workdir", type=Path, help="folder of the decoders and of the table")
    parser.add_argument("--preset", required=True, help="of a pretraining run, or RUN@STEP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the decoders")
    parser.add_argument("--train-steps", type=int, default=2500, help="of each decoder")
    parser.add_argument("--samples", type=int, default=2, help="of each clip, at least 2")
    parser.add_argument("--timesteps", type=int, default=20, help="gone through for a sample")
    decode_evaluate.add_measuring(parser, clips=100, train_clips=16_000, epochs=6)
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(1, MOST_LONG, clips=options.clips)
        # Before a decoder is trained, which has so many.
        check_whole(1, digit_motion_black().decoder.num_steps, timesteps=options.timesteps)
        check_whole(1, MOST_LONG, train_clips=options.train_clips, epochs=options.epochs)
        check_whole(2, MOST_LONG, samples=options.samples)
        check_number(decode_evaluate.GUIDANCE, guidance=options.guidance)
        check_whole(1, MOST_LONG, train_steps=options.train_steps)
        for seed in options.seeds:
            check_whole(0, MOST_SEED, seeds=seed)
        check_folder(options.workdir)
        check_preset(options.preset)
    with parser.failing():
        print(run(options), end="")
    return 0
