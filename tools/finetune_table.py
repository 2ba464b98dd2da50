"""Compare fine-tuning, frozen probes and training from scratch by labels (Tables 1, 5, 7, 8).

    keras-vjepa finetune-table workdir/table --preset workdir/digit_motion_long/preset

On a built-in set, it fine-tunes the encoder, trains a frozen probe on it, and trains the same
network from its initial weights, each with the same labels, for each seed. All have the same number
of steps, unless `--scratch-steps` gives the last more. Fine-tunings are runs of `finetune` in
folders of their own. Numbers that are there are not computed again, so that the same command
continues after an interruption. `table.md` is written again after each number, and `table.json` has
all numbers.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras

from keras_vjepa.arguments import MOST_LONG, MOST_SEED, check_number, check_whole
from keras_vjepa.command_line import OneLineParser, read_folder
from keras_vjepa.configuration import ConfigT, replace
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.labelled_sets import first_of_built_in
from keras_vjepa.data.sources.labels import low_shot
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.evaluator import Evaluator
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.labelled_videos import TASK_NAMES, LabelledVideos, of_task
from keras_vjepa.evaluation.seed_table import SeedTable, settings_of, with_settings
from keras_vjepa.evaluation.splits import split_for
from keras_vjepa.evaluation.sweep import ProbeSweep
from keras_vjepa.locks import locked
from keras_vjepa.presets.fingerprints import fingerprint
from keras_vjepa.presets.preset import check_preset, load_backbone
from keras_vjepa.recipes import finetune, finetune_configs, probe_configs
from keras_vjepa.recipes.probe_configs import ProbeConfig
from keras_vjepa.training.resumable import check_folder, folder_of_results

FINE_TUNED, FROZEN, SCRATCH = "fine-tuned", "frozen probe", "from scratch"
METHODS = SCRATCH, FROZEN, FINE_TUNED
_PROBE_BATCH = 32
# Settings on which numbers depend, besides the encoder.
_SETTINGS = "data", "steps", "scratch_steps", "num_videos", "num_test_videos"
# Initial weights hold nothing that a layer should keep, so that all layers have the same rate; for
# 32 videos a batch it is that of pretraining, 1e-3.
_ANEW: dict[str, Any] = {"layer_decay": 1.0, "learning_rate": 8e-3, "drop_path_rate": 0.0}


@dataclass(frozen=True)
class Comparison:
    """Trains fine-tuned models and frozen probes on the same videos."""

    options: Any
    train: list[Sample]
    test: list[Sample]

    def fine_tune(
        self, preset: str, steps: int, fraction: float, seed: int, name: str, **changes: Any
    ) -> float:
        """Fine-tune a preset with a share of the labels, and return the accuracy."""
        options = self.options
        train = low_shot(self.train, fraction, seed)
        config = _config(finetune_configs.CONFIGS, options.data)
        batch_size = min(config.batches.batch_size, len(train))
        epochs = -(-steps // (len(train) // batch_size))
        config = replace(
            config,
            preset=preset,
            task=options.task,
            seed=seed,
            batch_size=batch_size,
            epochs=epochs,
            validate_every=epochs,
            **changes,
        )
        names = TASK_NAMES[options.task]
        videos = LabelledVideos(train, self.test, len(names), names)
        accuracy = finetune.run(
            config, options.workdir / f"{name} {options.task} {fraction:g} {seed}", videos
        )
        assert accuracy is not None
        return accuracy

    def probe(self, encoder: Any, fraction: float, seed: int, sweeps: dict[str, Any]) -> float:
        """Train frozen probes with the labels of `fine_tune`; return the accuracy of the best."""
        options = self.options
        train = low_shot(self.train, fraction, seed)
        settings = replace(
            self._settings(len(train), seed),
            image_size=encoder.image_size,
            num_frames=encoder.num_frames,
        )
        cache = options.workdir / "features"
        one = FrozenProbe(encoder, settings, cache, sweep=sweeps.get(options.task))
        sweeps[options.task] = one.sweep
        [found] = Evaluator(one, train, self.test, options.workdir / "probes")(1)
        return float(found[options.task]["top1"])

    def _settings(self, num_videos: int, seed: int) -> ProbeConfig:
        options = self.options
        return replace(
            _config(probe_configs.CONFIGS, options.data),
            tasks=(options.task,),
            num_classes=(len(TASK_NAMES[options.task]),),
            seed=seed,
            readouts=False,
            epochs=-(-options.steps // -(-num_videos // _PROBE_BATCH)),
            batch_size=_PROBE_BATCH,
        )

    def check_share(self, fraction: float, seed: int) -> None:
        """Check that a share of the labels is enough for frozen probes, before all trainings.

        Raises:
            ValueError: if a class has no video beside those by which the best probe is chosen.
        """
        train = low_shot(self.train, fraction, seed)
        settings = self._settings(len(train), seed)
        try:
            split_for(settings, train)
        except ValueError as error:
            raise ValueError(
                "`fractions` must leave each class a video to learn from, beside those by which a "
                "frozen probe is chosen: take larger ones, or a larger `num_videos`. "
                f"Received: {fraction:g}, which is {len(train)} of {len(self.train)} videos"
            ) from error


def _config(configs: Mapping[str, Callable[[], ConfigT]], data: str) -> ConfigT:
    """Return the config of a built-in set; without its own, that of one with such digits."""
    if data in configs:
        return configs[data]()
    return replace(configs["digit_motion_black"](), data=data)


def run(options: Any) -> str:
    """Compute the numbers that the table lacks, and return its text."""
    with folder_of_results(options.workdir) as workdir, locked(workdir, "workdir"):
        heading = f"{options.task}, top-1 in %, labels"
        table = SeedTable(workdir, heading, METHODS)
        keras.config.set_dtype_policy("float32")
        encoder = load_backbone(options.preset)
        settings = settings_of(options, _SETTINGS)
        with with_settings(workdir, heading, {"preset": fingerprint(encoder), **settings}):
            _fill(table, options, encoder)
        return table.text()


def _fill(table: SeedTable, options: Any, encoder: Any) -> None:
    """Compute the numbers that the table lacks."""
    videos = first_of_built_in(options.data, options.num_videos, options.num_test_videos)
    comparison = Comparison(options, *(of_task(samples, options.task) for samples in videos))
    sweeps: dict[str, ProbeSweep] = {}
    for seed, fraction in itertools.product(options.seeds, options.fractions):
        if FROZEN in options.methods and table.lacks(FROZEN, _row(fraction), seed):
            comparison.check_share(fraction, seed)
    untrained = first_weights(options.preset, encoder, table.workdir)
    for seed in options.seeds:
        for fraction in sorted(options.fractions):
            cell, place = (fraction, seed), (_row(fraction), seed)
            tuned = options.preset, options.steps, *cell, FINE_TUNED
            anew = untrained, options.scratch_steps or options.steps, *cell, SCRATCH
            made = {
                FROZEN: functools.partial(comparison.probe, encoder, *cell, sweeps),
                FINE_TUNED: functools.partial(comparison.fine_tune, *tuned),
                SCRATCH: functools.partial(comparison.fine_tune, *anew, **_ANEW),
            }
            for method in options.methods:
                table.fill(method, *place, made[method])


def _row(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def first_weights(preset: str, encoder: Any, workdir: Path) -> str:
    """Find the preset of the encoder before its training, or write one of an encoder like it."""
    left = Path(preset).parent / "untrained"
    if Path(preset).is_dir() and left.is_dir():
        return str(left)
    folder = workdir / "untrained"
    if not folder.is_dir():
        keras.utils.set_random_seed(0)
        type(encoder).from_config(encoder.get_config()).save_to_preset(folder)
    return str(folder)


def main(arguments: list[str] | None = None, program: str = "finetune_table.py") -> None:
    """Run the command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("workdir", type=read_folder, help="folder of the runs and of the table")
    parser.add_argument("--preset", required=True, help="of the encoder")
    parser.add_argument(
        "--data", choices=[*SETS], default="digit_motion_black", help="built-in set"
    )
    parser.add_argument("--task", choices=[*TASK_NAMES], default="motion", help="what is named")
    parser.add_argument(
        "--fractions", type=float, nargs="+", default=[0.05, 0.1, 1.0], help="of the labels"
    )
    parser.add_argument(
        "--methods", choices=METHODS, nargs="+", default=METHODS, help="columns to fill"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each number")
    parser.add_argument("--steps", type=int, default=1500, help="of each training, at least")
    parser.add_argument(
        "--scratch-steps", type=int, help="of a training from scratch (default: as of the others)"
    )
    parser.add_argument("--num-videos", type=int, default=8000, help="that all labels are of")
    parser.add_argument("--num-test-videos", type=int, default=600, help="to test on")
    options = parser.parse_all(arguments)
    with parser.refusing():
        for fraction in options.fractions:
            check_number("(0, 1]", fractions=fraction)
        for seed in options.seeds:
            check_whole(0, MOST_SEED, seeds=seed)
        check_whole(1, MOST_LONG, steps=options.steps)
        check_whole(1, MOST_LONG, optional=True, scratch_steps=options.scratch_steps)
        check_whole(100, num_videos=options.num_videos)
        check_whole(1, num_test_videos=options.num_test_videos)
        check_folder(options.workdir)
        check_preset(options.preset)
    with parser.failing():
        print(run(options), end="")


if __name__ == "__main__":
    main()
