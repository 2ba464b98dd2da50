"""Pretrain V-JEPA (§3, App. C, Table 9).

    KERAS_BACKEND=jax python recipes/pretrain.py
    KERAS_BACKEND=jax python recipes/pretrain.py --data my_videos/ --config vitl16

Without arguments it trains a small model on the built-in videos, and then compares a frozen probe
of it with one of the untrained network. `--help` lists all options, for example `--steps 200`.
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from keras_vjepa import VJEPAPretrainer, command_line, files
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import defaults
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.batches.named_masks import MASKS
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.evaluation.comparison import comparison_table, write_results
from keras_vjepa.locks import locked
from keras_vjepa.monitoring import damaged_curve
from keras_vjepa.monitoring.monitor import CollapseError
from keras_vjepa.monitoring.report import write_report
from keras_vjepa.monitoring.run_callbacks import callbacks_of_a_run, damaged_tables
from keras_vjepa.pretraining_check import check_probe_memory, configured
from keras_vjepa.recipes.pretrain_configs import CONFIGS
from keras_vjepa.recipes.pretrain_derived import (
    MAY_DIFFER,
    as_begun,
    check_budgets,
    check_files,
    check_options,
    introduction,
    resolved,
    token_grid,
    upgraded,
)
from keras_vjepa.recipes.pretrain_evaluation import evaluate
from keras_vjepa.recipes.pretrain_objects import (
    make_batches,
    make_encoder,
    make_pretrainer,
    samples_if_there,
)
from keras_vjepa.recipes.pretrain_parts import PretrainConfig
from keras_vjepa.tasks.named_presets import presets_as_they_are, weights_of_presets
from keras_vjepa.training.continuing import with_its_schedule
from keras_vjepa.training.description import check_same_run, defining
from keras_vjepa.training.input_files import check_input_files, knows_input_files
from keras_vjepa.training.results import (
    check_not_less,
    check_not_lost,
    damaged_result,
    need_no_remaking,
    read_result,
)
from keras_vjepa.training.resumable import writable_folder
from keras_vjepa.training.signals import stop_signals


def run(config: PretrainConfig, workdir: Path, program: str = "pretrain.py") -> None:
    """Train, save and evaluate in the folder `workdir`; continue a run that was stopped there.

    Args:
        config: what to do.
        workdir: folder of the run.
        program: name by which the recipe was called.
    """
    parallel = distribution.setup(config.shard_parameters)
    writable_folder(workdir)
    with locked(workdir, "--workdir") if parallel.is_first else nullcontext():
        config = as_begun(with_its_schedule(config, workdir, parallel.is_first), workdir)
        if not _is_finished(config, workdir, parallel.is_first):
            _train(config, workdir, parallel, program)
        elif parallel.is_first:
            print(
                f"{workdir} holds this run, finished: {config.run.steps:,} steps. "
                "Take another --workdir to train again.",
                file=sys.stderr,
            )


def _train(config: PretrainConfig, workdir: Path, parallel: DataParallel, program: str) -> None:
    """Train, save and evaluate a run that is not finished."""
    if parallel.process_count == 1:
        check_probe_memory(config)
    with stop_signals():
        pretrainer = make_pretrainer(config)
        grid = pretrainer.encoder.grid_shape
        batches = make_batches(config, grid, parallel)
        if parallel.is_first:
            print(introduction(config, pretrainer, batches, parallel), file=sys.stderr)
        presets = weights_of_presets(config, pretrainer)
        config.run.make(
            model=pretrainer,
            batches=batches,
            workdir=workdir,
            callbacks=callbacks_of_a_run(config, batches, grid, workdir, parallel),
            description=defining(resolved(config, grid), MAY_DIFFER) | presets,
            # Runs of earlier versions know a preset only by its path.
            defaults=defining(defaults(config), MAY_DIFFER) | presets,
            upgrade=lambda stored: defining(upgraded(stored, config, grid), MAY_DIFFER),
            parallel=parallel,
        )
        weights = collectives.values(pretrainer.weights)
        parallel.release()
        if parallel.is_first:
            pretrainer = VJEPAPretrainer.from_config(pretrainer.get_config())
            pretrainer.set_weights(weights)
            alone = parallel.process_count == 1
            finish(config, workdir, pretrainer, presets, alone, program)
            print(f"Wrote {write_report(workdir)}.", file=sys.stderr)


def finish(
    config: PretrainConfig,
    workdir: Path,
    pretrainer: VJEPAPretrainer,
    presets: Mapping[str, str],
    alone: bool,
    program: str,
) -> None:
    """Save the config and the presets, and evaluate the encoder if the set is a built-in one.

    The saved config holds hashes of the weights that the run began with, as its checkpoints do.
    """
    options = {**resolved(config, pretrainer.encoder.grid_shape), **presets}
    files.write_text(workdir / "config.json", json.dumps(options, indent=2))
    pretrainer.save_to_preset(workdir / "preset")
    print(f"Saved {workdir}/preset, loss.png and tables (.csv).", file=sys.stderr)
    if config.data not in SETS:
        return
    encoder = make_encoder(config)
    encoder.save_to_preset(workdir / "untrained")
    if not alone:
        # The other processes have ended, so that this one cannot evaluate together with them.
        print(
            f"Evaluate with {command_line.sibling(program, 'pretrain', 'probe')} "
            f"--preset {workdir}/preset --data {config.data} "
            f"--image_size {command_line.text_of(config.encoder.image_size)}",
            file=sys.stderr,
        )
        return
    results = evaluate(config, pretrainer.target_encoder, encoder)
    write_results(workdir / "probe.json", results)
    print(comparison_table(results))


def _is_finished(config: PretrainConfig, workdir: Path, is_first: bool) -> bool:
    """Tell whether all results are there and undamaged; raise if they belong to another run."""
    names = ["config.json", "preset/config.json"]
    names += ["probe.json"] if config.data in SETS else []
    if not all((workdir / name).is_file() for name in names):
        check_not_lost(workdir, ["config.json", "preset"])
        return False
    stored = read_result(workdir / "config.json")
    if stored:
        check_not_less(config.run.steps, stored.get("steps", 0), workdir)
        is_known = config.data not in SETS and knows_input_files(workdir)
        grid, free = token_grid(config), MAY_DIFFER - (set() if is_known else {"data"})
        current = defining(resolved(config, grid), free) | presets_as_they_are(config, stored)
        described = defining(upgraded(stored, config, grid), free)
        check_same_run(described, current, workdir, defining(defaults(config), free))
        check_input_files(workdir, samples_if_there(config))
        if stored.get("steps", config.run.steps) < config.run.steps:
            check_not_lost(workdir, ["config.json", "preset"])
            return False
    problem = damaged_result(workdir, names, ["preset", "untrained"])
    problem = problem or damaged_curve(workdir, config.run.steps)
    lost = damaged_tables(workdir, config.run.steps)
    if lost is not None and is_first:
        print(f"{lost}, and cannot be made anew: a run writes it step by step.", file=sys.stderr)
    return need_no_remaking(workdir, problem, is_first)


# --- The command line ----------------------------------------------------------------------------


def parse_arguments(
    arguments: list[str] | None = None, program: str = "pretrain.py"
) -> tuple[PretrainConfig, Path]:
    """Read the config and the workdir from a command line; an error ends the process."""
    name, given, workdir = command_line.parse(program, __doc__ or "", CONFIGS, arguments)
    with command_line.refusing(program, CONFIGS, arguments):
        config = configured(CONFIGS[name](), given)
        check_options(config)
        check_budgets(config, CONFIGS[name]())
    for option in config.mask.without_effect(MASKS[config.masks], given):
        print(f"--{option} has no effect with --masks {config.masks}.", file=sys.stderr)
    return config, workdir


def main(arguments: list[str] | None = None, program: str = "pretrain.py") -> None:
    """Run the recipe as a command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    config, workdir = parse_arguments(arguments, program)
    with command_line.refusing(program, CONFIGS):
        check_files(config, workdir)
    distribution.launch_on_all_devices()
    try:
        run(config, workdir, program)
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError, CollapseError) as error:
        collectives.exit_with_error(f"{program}: {command_line.explain(error, CONFIGS)}")


if __name__ == "__main__":
    main()
