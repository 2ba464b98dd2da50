"""Resume a run with the schedules it began with, unless others are asked for (App. C, Table 9)."""

import sys
from pathlib import Path
from typing import Any

from keras_vjepa.configuration import ConfigT, replace, values
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


def with_its_schedule(
    config: ConfigT, workdir: Path, says: bool = True, unit: str = "steps"
) -> ConfigT:
    """Keep the schedules of a run that continues, unless others are asked for, and say so.

    Args:
        config: the config asked for.
        workdir: the folder in which the run may have begun.
        says: whether this process is the one that prints.
        unit: "steps" or "epochs": what schedules count. It is also the name of the option that
            sets the length of the run.

    Returns:
        The config. If it has no `schedule_<unit>`, it gets what the run began with.
    """
    name, stored, asked = f"schedule_{unit}", stored_options(workdir), values(config)
    begun = stored.get(name) or stored.get(unit)
    wanted = asked.get(unit) if asked[name] is None else asked[name]
    if begun is None or begun == wanted:
        return config
    if asked[name] is None:
        line = ""
        if wanted is not None:
            line = (
                f"Schedules stay those of {begun:,} {unit}, with which this run began; "
                f"--{name} {wanted} stretches them from where it is."
            )
            # The schedules of pretraining are longer than the run, and then not clamped.
            end = int(begun * asked.get("schedule_scale", 0))
            if 0 < end < wanted:
                line += f" They end at step {end:,}, after which the learning rate rises again."
        config = replace(config, **{name: begun})
    else:
        line = f"Schedules are of {wanted:,} {unit} from here on, and were of {begun:,} so far."
    if says and line:
        print(line, file=sys.stderr)
    return config
