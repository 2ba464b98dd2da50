"""Evaluate one frozen encoder in many ways, and write a table (Tables 3, 8 and 15).

    KERAS_BACKEND=jax python tools/probe_table.py --preset workdir/digit_motion/preset

The rows compare, on the built-in videos, attentive and average pooling, one clip and two, fewer
labels, the same network untrained, and single frames, each with `--splits` seeds (default 3).
Options are those of `recipes/probe.py`; each row sets the options that it is about.
"""

import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras

from keras_vjepa import command_line, files
from keras_vjepa.configuration import replace
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.evaluation.comparison import make_untrained
from keras_vjepa.evaluation.evaluator import Evaluator
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.labelled_videos import check_rows_of_one
from keras_vjepa.evaluation.report import mean_and_deviation
from keras_vjepa.evaluation.sweep import ProbeSweep
from keras_vjepa.evaluation_pixels import seen_as_by_the_preset
from keras_vjepa.locks import locked
from keras_vjepa.recipes import probe
from keras_vjepa.recipes.probe_configs import ProbeConfig, digit_motion, digit_motion_black
from keras_vjepa.training.resumable import folder_of_results


@dataclass(frozen=True)
class Row:
    """Says what a row of the table changes of the config."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    half_the_time: bool = False
    untrained: bool = False
    single_frame: bool = False

    def of(self, config: ProbeConfig) -> ProbeConfig:
        """Return the config of the row.

        Args:
            config: config of the first row.
        """
        stride = config.clip.frame_step // (2 if self.half_the_time else 1)
        return replace(config, temporal_stride=stride, **self.changes)


# A clip spans nearly the whole video; with half the stride, it spans less than half.
ROWS = (
    Row("pretrained, attentive pooling"),
    Row("average pooling", {"pooling": "average"}),
    Row("1 clip of half the time", half_the_time=True),
    Row("2 clips of half the time", {"num_clips": 2}, half_the_time=True),
    Row("50 % of the labels", {"fraction": 0.5}),
    Row("10 % of the labels", {"fraction": 0.1}),
    Row("5 % of the labels", {"fraction": 0.05}),
    Row("untrained", untrained=True),
    Row("untrained, 50 % of the labels", {"fraction": 0.5}, untrained=True),
    Row("untrained, 10 % of the labels", {"fraction": 0.1}, untrained=True),
    Row("untrained, 5 % of the labels", {"fraction": 0.05}, untrained=True),
    Row("single frame", single_frame=True),
)

CONFIGS = {function.__name__: function for function in (digit_motion, digit_motion_black)}


def run(config: ProbeConfig, workdir: Path) -> str:
    """Evaluate every row, save and return the table; continue a run that was stopped."""
    with folder_of_results(workdir), locked(workdir, "--workdir"):
        return _table(config, workdir)


def _table(config: ProbeConfig, workdir: Path) -> str:
    """Evaluate every row, save and return the table, while no other run uses the folder."""
    keras.config.set_dtype_policy(config.dtype)
    config = probe.completed(config)
    train, test = probe.samples_of(config)
    check_rows_of_one([row.of(config) for row in ROWS], train)
    encoder = probe.make_encoder(config)
    if config.preset != probe.UNTRAINED:
        config = seen_as_by_the_preset(config, config.preset)
    untrained = make_untrained(config, encoder)
    cache, sweeps = probe.cache_of(config, workdir), dict[Any, ProbeSweep]()
    lines = [f"| {' | '.join(('frozen probe, top-1 in %', *config.tasks))} |"]
    lines.append("|---" * (1 + len(config.tasks)) + "|")
    for row in ROWS:
        start = time.perf_counter()
        changed = row.of(config)
        # Rows with the same probes on features of one shape share the compiled step.
        shape = (changed.classifier.pooling, changed.classifier.num_clips)
        seen_by = untrained if row.untrained else encoder
        one = FrozenProbe(seen_by, changed, cache, row.single_frame, sweeps.get(shape))
        sweeps[shape] = one.sweep
        results = Evaluator(one, train, test, workdir / "rows")(config.splits)
        cells = [
            mean_and_deviation([result[task]["top1"] for result in results])
            for task in config.tasks
        ]
        lines.append(f"| {' | '.join((row.name, *cells))} |")
        print(f"{lines[-1]}  {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    table = "\n".join(lines) + "\n"
    files.write_text(workdir / "table.md", table)
    return table


def check(config: ProbeConfig, workdir: Path) -> None:
    """Check the config of every row, before anything is made or written.

    Raises:
        ValueError: for the first option that is out of range, by its name.
        OSError: if data, preset or a folder do not exist or cannot be made.
    """
    probe.check(config, workdir)
    if config.clip.frame_step < 2:
        raise ValueError(
            "`temporal_stride` must be at least 2, for the rows of half the time. "
            f"Received: {config.clip.frame_step}"
        )
    for row in ROWS:
        row.of(config)


def parse_arguments(
    arguments: list[str] | None = None, program: str = "probe_table.py"
) -> tuple[ProbeConfig, Path]:
    """Read the config of the first row and the workdir that a command line asks for."""
    name, changes, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, "probe_table_"
    )
    return replace(CONFIGS[name](), **{"splits": 3, "readouts": False, **changes}), workdir


def main(arguments: list[str] | None = None, program: str = "probe_table.py") -> None:
    """Run the recipe as a command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with command_line.refusing(program, CONFIGS, arguments):
        config, workdir = parse_arguments(arguments, program)
        check(config, workdir)
    try:
        if config.preset == probe.UNTRAINED:
            print("The encoder is untrained: the rows say what the data gives away.")
        print(run(config, workdir), end="")
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError) as error:
        sys.exit(f"{program}: {command_line.explain(error, CONFIGS)}")
