"""A run that goes on, with what it began with where nothing else is asked for (App. C, Table 9)."""

import sys
from pathlib import Path
from typing import Any

from keras_vjepa.configuration import ConfigT, replace
from keras_vjepa.training.results import CHECKPOINTS, read_result
from keras_vjepa.training.run_state import Checkpoints

# In a run's folder from its start: the value of every option, as it was asked for.
OPTIONS_FILE = "options.json"


def stored_options(workdir: Path) -> dict[str, Any]:
    """Read the options of the run that a folder holds; none if it holds none.

    Args:
        workdir: of the run. Of one that is not finished, they are in its checkpoints.
    """
    stored = read_result(workdir / "config.json")
    return stored or Checkpoints(workdir / CHECKPOINTS).described().get("run") or {}


def with_its_schedule(config: ConfigT, workdir: Path, says: bool = True) -> ConfigT:
    """Keep the schedules of a run that goes on, unless others are asked for; say so.

    Args:
        config: as it is asked for.
        workdir: in which the run may have begun.
        says: whether this process is the one that prints.

    Returns:
        The config, with `schedule_steps` as the run began with them unless it has a value.
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
