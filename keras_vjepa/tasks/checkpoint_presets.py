"""Make presets of a run's checkpoints, of any step, by a name such as `workdir/run@300` (App. C).

A checkpoint holds nothing but numbers. A file beside the checkpoints says which model the numbers
belong to; for a run that an earlier version finished, the preset that the run left says it.
"""

import os
import sys
from pathlib import Path
from typing import Any

from keras_vjepa.presets.integrity import METADATA_FILE
from keras_vjepa.presets.preset import AT_STEP, OF_CHECKPOINTS, PresetName
from keras_vjepa.tasks.pretrainer import VJEPAPretrainer
from keras_vjepa.training import kept_model
from keras_vjepa.training.results import CHECKPOINTS
from keras_vjepa.training.run_state import Checkpoint, Checkpoints, restore_weights

# The folder, inside a run's folder, of the presets that were made of its checkpoints.
PRESETS = "presets"
LAST = "last"


def run_and_step(name: PresetName) -> tuple[Path, int | None]:
    """Split `workdir/run@300` into the folder and the step.

    Args:
        name: what a user has typed.

    Returns:
        The folder, and the step, which is None if the name has no step or asks for the last one.

    Example:

    >>> from keras_vjepa.tasks.checkpoint_presets import run_and_step
    >>> run, step = run_and_step("workdir/run@300")
    >>> run.name, step, run_and_step("workdir/run")[1]
    ('run', 300, None)
    """
    text = os.fspath(name)
    run, at, step = text.rpartition(AT_STEP)
    if at and (step == LAST or step.isdecimal()) and not Path(text).expanduser().is_dir():
        return Path(run).expanduser(), None if step == LAST else int(step)
    return Path(text).expanduser(), None


def read_checkpoint(run: Path, step: int | None = None) -> Checkpoint:
    """Read a checkpoint of a run.

    Args:
        run: the run's folder.
        step: number of steps that the run had made by then; None for the last checkpoint.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        OSError: if it is damaged.
    """
    checkpoints = Checkpoints(run / CHECKPOINTS)
    found = checkpoints.latest() if step is None else checkpoints.of_step(step)
    if found is None:
        raise FileNotFoundError(
            f"`run` must be a folder with checkpoints of a run. Received: {run}"
        )
    return found


def model_at(run: Path, step: int | None = None) -> tuple[Any, Checkpoint]:
    """Make the model of a run as it was after a step.

    Args:
        run: the run's folder.
        step: number of steps that the run had made by then; None for the last checkpoint.

    Returns:
        The model, which is not compiled, and the checkpoint.

    Raises:
        OSError: if there is no such checkpoint, or it is damaged.
        ValueError: if nothing says which model the checkpoint belongs to.
    """
    checkpoint = read_checkpoint(run, step)
    if (run / kept_model.FILE_NAME).is_file():
        model = kept_model.make_kept_model(run)
    elif (run / "preset" / VJEPAPretrainer.config_file).is_file():
        model = VJEPAPretrainer.from_preset(run / "preset", load_weights=False)
    else:
        raise ValueError(
            f"`run` must hold {kept_model.FILE_NAME}, which says what its checkpoints are of. "
            f"Received: {run}, of an earlier version; continue the run, and it is written"
        )
    restore_weights(model, checkpoint.arrays)
    return model, checkpoint


class PresetsOfCheckpoints:
    """Makes presets of checkpoints, which users name as in `workdir/run@300`.

    The presets stay in the folder `presets` of the run. Each has the name of its checkpoint, which
    contains the checkpoint's hash, so that every preset is made only once.
    """

    def check(self, name: str, argument: str) -> bool:
        """Tell whether a name means a checkpoint of a run.

        Args:
            name: what a user has typed.
            argument: the argument that the user gave the name for; used in messages.

        Raises:
            FileNotFoundError: if the name means a checkpoint that is not there, the folder of a run
                that has no presets yet, or the preset of a run that has not ended.
        """
        run, step = run_and_step(name)
        if not run.is_dir():
            of_its_end = run.parent if run.name == "preset" else run
            if steps := Checkpoints(of_its_end / CHECKPOINTS).steps():
                raise FileNotFoundError(
                    f"`{argument}` must be the folder of a preset. Received: {name}, which a run "
                    f"writes at its end; {of_its_end}{AT_STEP}{LAST} is its last checkpoint, of "
                    f"step {steps[-1]:,}"
                )
            return False
        steps = Checkpoints(run / CHECKPOINTS).steps()
        if AT_STEP not in name or run == Path(name).expanduser():
            if steps and not any(run.glob(f"**/{METADATA_FILE}")):
                raise FileNotFoundError(
                    f"`{argument}` must be the folder of a preset. Received: {name}, a run without "
                    f"one; {name}{AT_STEP}{LAST} is its last checkpoint, of step {steps[-1]:,}"
                )
            return False
        is_there = bool(steps) if step is None else step in steps
        if not is_there and self._made(run, step) is None:
            there = ", ".join(f"{one:,}" for one in steps)
            raise FileNotFoundError(
                f"`{argument}` must be RUN{AT_STEP}STEP of a checkpoint that is there; of {run} "
                f"there are those of {there or 'no step'}. Received: {name}"
            )
        return True

    def folder(self, name: str) -> Path:
        """Find the preset folder of a checkpoint, and make the preset if it is missing.

        Args:
            name: a name that `check` accepts.

        Raises:
            OSError: if the checkpoint is damaged, or the folder cannot be written.
            ValueError: as `model_at`.
        """
        run, step = run_and_step(name)
        made = self._made(run, step)
        if made is not None:
            return made
        model, checkpoint = model_at(run, step)
        folder = run / PRESETS / checkpoint.path.stem
        model.save_to_preset(folder)
        print(f"Wrote {folder}, the preset of step {checkpoint.step:,}.", file=sys.stderr)
        return folder

    def _made(self, run: Path, step: int | None) -> Path | None:
        """Find the preset of a checkpoint, even if the checkpoint itself has been deleted since."""
        of_step = f"step-{step:08d}-*" if step is not None else "step-*"
        found = sorted((run / CHECKPOINTS).glob(f"{of_step}.npz"))
        if found:
            folder = run / PRESETS / found[-1].stem
            return folder if folder.is_dir() else None
        made = sorted((run / PRESETS).glob(of_step))
        return made[-1] if made else None


OF_CHECKPOINTS[:] = [PresetsOfCheckpoints()]
