"""Resume a run with the schedules it began with, unless others are asked for (App. C, Table 9)."""

import sys
from pathlib import Path
from typing import Any

from keras_vjepa.configuration import ConfigT, replace
from keras_vjepa.training.results import CHECKPOINTS, read_result
from keras_vjepa.training.run_state import Checkpoints

# A run writes this file into its folder at its start: the value of every option, as asked for.
OPTIONS_FILE = "options.json"


def stored_options(workdir: Path) -> dict[str, Any]:
    """Read the options of the run in a folder; an empty dictionary if the folder holds no run.

    Args:
        workdir: the folder of the run. If the run is not finished, its checkpoints hold the
            options.
    """
    stored = read_result(workdir / "config.json")
    return stored or Checkpoints(workdir / CHECKPOINTS).described().get("run") or {}


def with_its_schedule(config: ConfigT, workdir: Path, says: bool = True) -> ConfigT:
    """Keep the schedules of a run that goes on, unless others are asked for, and say so.

    Args:
        config: the config asked for.
        workdir: the folder in which the run may have begun.
        says: whether this process is the one that prints.

    Returns:
        The config. If it has no `schedule_steps`, it gets those that the run began with.
    """
    stored = stored_options(workdir)
    begun = stored.get("schedule_steps") or stored.get("steps")
    wanted = config.run.steps if config.schedule_steps is None else config.schedule_steps
    if begun is None or begun == wanted:
        return config
    if config.schedule_steps is None:
        line = (
            f"Schedules stay those of {begun:,} steps, with which this run began; "
            f"--schedule_steps {wanted} stretches them from where it is."
        )
        config = replace(config, schedule_steps=begun)
    else:
        line = f"Schedules are of {wanted:,} steps from here on, and were of {begun:,} so far."
    if says:
        print(line, file=sys.stderr)
    return config
