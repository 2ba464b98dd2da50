"""Train decoders with several seeds, and measure what they draw: one table (§6, Fig. 6, App. F).

    keras-vjepa decode table workdir/decoders --preset PRESET

For each seed it trains a decoder as `decode train` does, in a folder of its own, and measures it as
`decode evaluate` does; all decoders get the same clips. Numbers that are there are not computed
again, so that the same command continues after an interruption. `table.md` is written again after
each number, with mean and deviation over the seeds, and `table.json` has all numbers. With
`--jobs 2`, two decoders at a time are trained side by side, each on half of the cores.
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
from keras_vjepa.command_line import OneLineParser, read_folder, reader_of, text_of
from keras_vjepa.configuration import replace
from keras_vjepa.decoding import check_shares, load_decoder, region_in_tokens
from keras_vjepa.evaluation.seed_table import SeedTable, settings_of, with_settings
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS
from keras_vjepa.locks import locked
from keras_vjepa.models.diffusion_network import CONDITIONS
from keras_vjepa.pictures.loading import load_pictured
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes import decode as training_recipe
from keras_vjepa.recipes.decode_configs import digit_motion_black
from keras_vjepa.tasks.decoder import FeatureDecoder
from keras_vjepa.tasks.region_features import RegionFeatures, check_made_for
from keras_vjepa.tools import decode_evaluate
from keras_vjepa.tools.child_runs import (
    ChildRun,
    ChildRunError,
    check_jobs,
    raise_if_failed,
    render_sets,
    run_side_by_side,
)
from keras_vjepa.tools.picture import step_of
from keras_vjepa.training.resumable import check_folder, folder_of_results

REAL = "real"
HEADING = "decoded regions, in %"
# Options of this command that `decode train` has too.
_OF_TRAINING = ("condition", "kinds")
# Memory of a training for decoded videos, enough for all of the built-in set.
_CACHE_GIB = 1.0
# Settings on which numbers depend, besides the features.
_SETTINGS = (
    "data", "train_steps", "clips", "samples", "timesteps", "train_clips", "epochs", "guidance",
    *_OF_TRAINING,
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


def _changes(options: Namespace, seed: int) -> dict[str, Any]:
    """Return the options of `decode train` by which the decoder of a seed is trained."""
    default = digit_motion_black()
    given = vars(options)  # a caller may leave out what has a default
    return {
        "preset": options.preset,
        # As the clips are read by which the decoder is measured.
        "temporal_stride": step_of(options.preset) or default.clip.frame_step,
        "data": options.data,
        "steps": options.train_steps,
        "warmup_steps": min(default.learning_rate.warmup_steps, options.train_steps - 1),
        "seed": seed,
        "cache_gib": _CACHE_GIB,
        **{name: given[name] for name in _OF_TRAINING if name in given},
    }


def _folder(options: Namespace, seed: int) -> Path:
    """Return the folder of the decoder of a seed."""
    return Path(options.workdir) / f"decoder {seed}"


def train(options: Namespace, seed: int) -> Path:
    """Train the decoder of a seed, unless it is there, and return its preset."""
    folder = _folder(options, seed)
    print(f"seed {seed}: {folder}", file=sys.stderr, flush=True)
    training_recipe.run(replace(digit_motion_black(), **_changes(options, seed)), folder)
    return folder / "preset"


def _child(options: Namespace, seed: int) -> ChildRun:
    """Return the training of a seed's decoder as a command for a process of its own."""
    folder = _folder(options, seed).absolute()
    given = {**_changes(options, seed), "workdir": folder}
    words = (f"--{name}={text_of(value)}" for name, value in given.items())
    command = (sys.executable, "-m", "keras_vjepa", "decode", "train", *words)
    return ChildRun(f"decoder {seed}", command, folder, "decoder")


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
        settings["kinds"] = text_of(options.kinds)  # JSON has no tuples
        with with_settings(workdir, HEADING, {"preset": features.fingerprint, **settings}):
            table = SeedTable(workdir, HEADING, [REAL, *decode_evaluate.KINDS])
            if options.jobs > 1:
                _train_side_by_side(table, options)
            measure = Measurement(features, options)
            for seed in options.seeds:
                for kind in table.methods:
                    for row, _ in rows_of(kind):
                        table.fill(kind, row, seed, functools.partial(measure, seed, kind, row))
        return table.text()


def _train_side_by_side(table: SeedTable, options: Namespace) -> None:
    """Train the decoders whose numbers are not all there; those that are finished end at once."""
    seeds = [
        seed
        for seed in dict.fromkeys(options.seeds)
        if any(table.lacks(kind, row, seed) for kind in table.methods for row, _ in rows_of(kind))
    ]
    if seeds:
        render_sets([options.data])
        children = [_child(options, seed) for seed in seeds]
        run_side_by_side(children, options.jobs, raise_if_failed)


def main(arguments: list[str], program: str) -> int:
    """Run `decode table`, with `program` in front of its messages, and return the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("workdir", type=read_folder, help="folder of the decoders and of the table")
    parser.add_argument("--preset", required=True, help="of a pretraining run, or RUN@STEP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the decoders")
    parser.add_argument("--train-steps", type=int, default=2500, help="of each decoder")
    default = digit_motion_black()
    parser.add_argument(
        "--condition",
        choices=CONDITIONS,
        default=default.network.condition,
        help="how features enter the network",
    )
    parser.add_argument(
        "--kinds",
        type=reader_of(tuple[float, float, float]),
        default=default.kinds,
        help="how often a decoder learns from no features, predicted ones, and the target "
        f"encoder's (default: {text_of(default.kinds)})",
    )
    parser.add_argument("--samples", type=int, default=2, help="of each clip, at least 2")
    parser.add_argument("--timesteps", type=int, default=20, help="gone through for a sample")
    decode_evaluate.add_measuring(parser, clips=100, train_clips=16_000, epochs=6)
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="how many decoders are trained side by side, each on its share of the cores",
    )
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(1, MOST_LONG, clips=options.clips)
        # Before a decoder is trained, which has so many.
        check_whole(1, digit_motion_black().decoder.num_steps, timesteps=options.timesteps)
        check_whole(1, MOST_LONG, train_clips=options.train_clips, epochs=options.epochs)
        check_whole(2, MOST_LONG, samples=options.samples)
        check_number(decode_evaluate.GUIDANCE, guidance=options.guidance)
        check_shares(options.kinds)
        decode_evaluate.check_kinds(options.guidance, options.kinds)
        check_whole(1, MOST_LONG, train_steps=options.train_steps)
        for seed in options.seeds:
            check_whole(0, MOST_SEED, seeds=seed)
        check_jobs(options.jobs)
        check_folder(options.workdir)
        check_preset(options.preset)
    with parser.failing(ChildRunError):
        print(run(options), end="")
    return 0
