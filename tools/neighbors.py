"""Measure frozen features by nearest neighbours, in seconds, without training (§4.3, App. D.1).

    keras-vjepa knn --preset workdir/digit_motion@75
    keras-vjepa knn --preset PRESET --data my_videos/

For a checkpoint of a run, without --data, it prints all numbers that the run's monitor computes, on
the same clips. With --data, it prints how many samples are classified right by nearest neighbours
and by a ridge on pooled features. Options are those of `probe` that are not about training.
"""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_vjepa import command_line
from keras_vjepa.backend import collectives
from keras_vjepa.configuration import options, replace
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.monitoring.looking import Looking
from keras_vjepa.monitoring.looks import variables_of
from keras_vjepa.monitoring.run_callbacks import watched_clips
from keras_vjepa.monitoring.run_tables import read_run
from keras_vjepa.recipes import probe
from keras_vjepa.recipes.pretrain_objects import make_batches
from keras_vjepa.recipes.pretrain_parts import PretrainConfig
from keras_vjepa.recipes.probe_configs import CONFIGS, ProbeConfig
from keras_vjepa.tasks.checkpoint_presets import model_at, run_and_step


def look_again(run: Path, step: int | None = None) -> dict[str, Any]:
    """Measure for a checkpoint what the monitor of its run measures.

    Args:
        run: folder of the run.
        step: step of the checkpoint; None for the last one.

    Returns:
        The numbers by name, and `step`.

    Raises:
        OSError: if there is no such checkpoint, or the videos are gone.
        ValueError: if the run has too few videos for a monitor.
    """
    model, checkpoint = model_at(run, step)
    config = config_of(read_run(run).options)
    keras.config.set_dtype_policy(config.dtype)
    watched = watched_clips(config, make_batches(config, model.encoder.grid_shape))
    if watched is None:
        raise ValueError(f"`run` must have two videos or more. Received: {run}")
    found = Looking(model, watched)(collectives.values(variables_of(model)))
    return {"step": checkpoint.step, **found}


def config_of(stored: Mapping[str, Any]) -> PretrainConfig:
    """Make the config of a run from its stored options; leave out options that no longer exist.

    Args:
        stored: values by the names of options.
    """
    known = options(PretrainConfig())
    found = {name: _as_tuples(value) for name, value in stored.items() if name in known}
    return replace(PretrainConfig(), **found)


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def read_out(config: ProbeConfig, workdir: Path) -> dict[str, dict[str, float]]:
    """Measure how many samples quick checks on frozen features classify right.

    Args:
        config: config of the evaluation.
        workdir: folder for the features.

    Returns:
        For each task, the shares of samples by the names of the checks.
    """
    keras.config.set_dtype_policy(config.dtype)
    config = replace(probe.completed(config), readouts=True, augment=False, online=False)
    train, test = probe.samples_of(config)
    config = config.for_samples([*train, *test])
    encoder = probe.make_encoder(config)
    return FrozenProbe(encoder, config, probe.cache_of(config, workdir)).read_out(train, test)


def main(arguments: list[str] | None = None, program: str = "neighbors.py") -> None:
    """Run the command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    given = sys.argv[1:] if arguments is None else arguments
    with command_line.refusing(program, CONFIGS, given):
        config, workdir = probe.parse_arguments(given, program, __doc__ or "", "knn_")
        probe.check(config, workdir)
    run, step = run_and_step(config.preset)
    try:
        names_a_step = run != Path(config.preset).expanduser()
        if names_a_step and not any(one.startswith("--data") for one in given):
            numbers = look_again(run, step)
            print("\n".join(f"{name} {value:.9g}" for name, value in numbers.items()))
            return
        results = read_out(config, workdir)
    except (ValueError, OSError, TooManyBadFilesError) as error:
        sys.exit(f"{program}: {command_line.explain(error, CONFIGS)}")
    for task, shares in results.items():
        found = ", ".join(f"{k.replace('_', ' ')} {100 * v:.1f} %" for k, v in shares.items())
        print(f"{task}: {found}")


if __name__ == "__main__":
    main()
