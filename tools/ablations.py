"""Repeat the paper's ablations at the size of the built-in videos (§4, App. E.3).

    keras-vjepa ablations workdir/ablations --table 1 3
    keras-vjepa ablations workdir/ablations --table 4 --steps 3000 --seeds 0

Each row is a pretraining in a folder of its own, probed as `pretrain` does at its end; rows that
differ only in the probe share one. Numbers that are there are not made again, so that the same
command continues after an interruption. `table.md` is written again after each number, with the
paper's figures beside it and whether ours point in the same direction; `table.json` has all
numbers. With `--jobs 2`, two pretrainings at a time run side by side, each on half of the cores.
"""

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
from keras_vjepa.arguments import MOST_LONG, MOST_SEED, check_whole
from keras_vjepa.command_line import OneLineParser, read_folder, refusing, text_of
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.batches.named_masks import mask_kinds
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.evaluation.ablation_cost import COST
from keras_vjepa.evaluation.ablation_table import AblationTable, cost_in_words
from keras_vjepa.evaluation.ablation_variants import ABLATIONS, Variant
from keras_vjepa.evaluation.seed_table import check_settings
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS
from keras_vjepa.locks import locked
from keras_vjepa.monitoring.monitor import CollapseError
from keras_vjepa.recipes import pretrain
from keras_vjepa.recipes.pretrain_configs import CONFIGS
from keras_vjepa.recipes.pretrain_derived import (
    MAY_DIFFER,
    check_files,
    check_options,
    resolved,
    token_grid,
)
from keras_vjepa.recipes.pretrain_parts import PretrainConfig
from keras_vjepa.tools.ablation_runs import PRETRAINED, UNTRAINED, AblationRuns, config_of
from keras_vjepa.tools.child_runs import (
    ChildRun,
    ChildRunError,
    check_jobs,
    raise_if_failed,
    render_sets,
    run_side_by_side,
)
from keras_vjepa.training.description import defining
from keras_vjepa.training.resumable import check_folder, writable_folder

# Results do not depend on these, but on the number of steps they do.
_FREE = (MAY_DIFFER - {"steps", "data"}) | {"seed"}


def run(workdir: Path, configs: Mapping[str, PretrainConfig], options: Any) -> str:
    """Make the numbers that the tables lack, and return the text of the tables.

    Args:
        workdir: folder of the runs and the tables.
        configs: the config that each table's variants change.
        options: options of the command.
    """
    with locked(writable_folder(workdir), "workdir"):
        for name, config in configs.items():
            _check_settings(workdir, name, config)
        text = ""
        # What the runs print is no part of the tables.
        with redirect_stdout(sys.stderr):
            if options.jobs > 1:
                _pretrain_side_by_side(workdir, configs, options)
            for name, config in configs.items():
                text = _fill(AblationTable(workdir, name), config, options)
        return text


def _fill(table: AblationTable, config: PretrainConfig, options: Any) -> str:
    """Make the numbers that one table lacks."""
    variants = ABLATIONS[table.heading].variants
    runs = AblationRuns(table.workdir, config, options.fine_tune_steps)
    folders = {runs.folder(v, s): runs.is_finished(v, s) for s in options.seeds for v in variants}
    cost = cost_in_words(folders.values(), config.run.steps, config.batches.batch_size)
    print(f"Table {table.heading}: {cost}.", file=sys.stderr, flush=True)
    COST.steps_left = [*folders.values()].count(False) * config.run.steps
    for column, variant, seed, made in _numbers(table.heading, runs, options):
        table.fill(column, variant.name, seed, made)
    return table.text()


def _numbers(
    name: str, runs: AblationRuns, options: Any
) -> Iterator[tuple[str, Variant, int, Callable[[], float]]]:
    """List the numbers of a table: the column, the variant and the seed, and what makes it."""
    for seed in options.seeds:
        for variant in ABLATIONS[name].variants:
            for which, words in ((PRETRAINED, ""), (UNTRAINED, "untrained, ")):
                for task in reversed(DIGIT_MOTION_TASKS):
                    made = functools.partial(runs.accuracy, variant, seed, which, task)
                    yield f"{words}{task}", variant, seed, made
            if options.fine_tune_steps and name == "1":
                for task in reversed(DIGIT_MOTION_TASKS):
                    made = functools.partial(runs.fine_tuned, variant, seed, task)
                    yield f"fine-tuned {options.fine_tune_steps} steps, {task}", variant, seed, made


def _pretrain_side_by_side(
    workdir: Path, configs: Mapping[str, PretrainConfig], options: Any
) -> None:
    """Do the pretrainings that the tables lack, some at a time; the tables find them finished."""
    children: dict[Path, ChildRun] = {}
    for name, config in configs.items():
        table, runs = AblationTable(workdir, name), AblationRuns(workdir, config, None)
        words = _pretraining_words(name, options.words)
        for column, variant, seed, _ in _numbers(name, runs, options):
            folder = runs.folder(variant, seed)
            if table.lacks(column, variant.name, seed) and not runs.is_finished(variant, seed):
                children.setdefault(folder, runs.child(variant, seed, words))
    if children:
        render_sets(config.data for config in configs.values())
        run_side_by_side([*children.values()], options.jobs, raise_if_failed)


def _check_settings(workdir: Path, name: str, config: PretrainConfig) -> None:
    """Write the settings of a table, or raise if its numbers were made with others."""
    ablation = ABLATIONS[name]
    # Tables that change the same base share runs.
    key = json.dumps([ablation.base, ablation.changes])
    current = defining(resolved(config, token_grid(config)), _FREE | ablation.varied())
    check_settings(workdir, key, current)


# --- The command line ----------------------------------------------------------------------------


def base_config(name: str, words: list[str], program: str) -> PretrainConfig:
    """Read the config that a table's variants change; an error ends the process.

    Args:
        name: name of the table.
        words: options of pretraining, as they were typed.
        program: name by which the command was called.
    """
    ablation, given = ABLATIONS[name], _names(words)
    config, _ = pretrain.parse_arguments(_pretraining_words(name, words), program)
    with refusing(program, CONFIGS, words):
        for option in sorted(given & {*ablation.varied(), "seed", "workdir"}):
            hint = {"seed": "--seeds sets it", "workdir": "the folder comes first"}
            reason = hint.get(option, f"the variants of table {name} set it")
            raise ValueError(f"`{option}` must be left out: {reason}. Received: one")
        if config.data not in SETS:
            raise ValueError(
                f"`data` must be a built-in set with labels for the probe, {' or '.join(SETS)}. "
                f"Received: {config.data}"
            )
        for variant in ablation.variants:
            check_options(config_of(config, variant, 0))
        _check_context(config, name)
    return config


def _names(words: list[str]) -> set[str]:
    """Return the names of the options in a command line."""
    return {word.split("=")[0].removeprefix("--") for word in words if word.startswith("--")}


def _pretraining_words(name: str, words: list[str]) -> list[str]:
    """Return the options of `pretrain` that make the config that a table's variants change."""
    ablation = ABLATIONS[name]
    known = ["--config", ablation.base]
    for option, value in ablation.changes.items() if "config" not in _names(words) else ():
        known += [f"--{option}", text_of(value)]
    return [*known, *words]


def _check_context(config: PretrainConfig, name: str) -> None:
    """Raise if two causal variants would show the same time steps, or all of them."""
    steps = token_grid(config)[0]
    causal = [v for v in ABLATIONS[name].variants if v.context_frames]
    shown = [mask_kinds(config_of(config, v, 0))[0].num_context_steps(steps) for v in causal]  # type: ignore[attr-defined]
    if len({*shown, steps}) <= len(causal) and causal:
        names = " and ".join(f"{v.name} {count}" for v, count in zip(causal, shown, strict=True))
        raise ValueError(
            "`num_frames` must be enough for causal masks that differ. "
            f"Received: {config.encoder.num_frames}, of whose {steps} time steps {names} show"
        )


def main(arguments: list[str] | None = None, program: str = "ablations.py") -> None:
    """Run the command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    parser = OneLineParser(
        prog=program,
        description=__doc__,
        epilog="All other options are those of pretrain, for example --config or --steps.",
        allow_abbrev=False,
    )
    parser.add_argument("workdir", type=read_folder, help="folder of the runs and of the tables")
    parser.add_argument(
        "--table",
        choices=[*ABLATIONS],
        nargs="+",
        required=True,
        help="what to make: 8 is Fig. 8, videomae part of Table 5",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each number")
    parser.add_argument(
        "--fine-tune-steps",
        type=int,
        help="fine-tune the encoders of table 1 too, with so many steps (default: not)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="how many pretrainings run side by side, each on its share of the cores",
    )
    options, words = parser.parse_known_args(arguments)
    options.words = words
    with parser.refusing():
        for name, given in (("seeds", options.seeds), ("table", options.table)):
            if len({*given}) < len(given):
                raise ValueError(f"`{name}` must differ. Received: {' '.join(map(str, given))}")
        for seed in options.seeds:
            check_whole(0, MOST_SEED, seeds=seed)
        check_whole(1, MOST_LONG, optional=True, fine_tune_steps=options.fine_tune_steps)
        check_jobs(options.jobs)
        check_folder(options.workdir)
    configs = {name: base_config(name, words, program) for name in options.table}
    with refusing(program, CONFIGS, words):
        for config in configs.values():
            check_files(config, options.workdir)
    with parser.failing(TooManyBadFilesError, CollapseError, ChildRunError):
        print(run(options.workdir, configs, options), end="")


if __name__ == "__main__":
    main()
