"""Read the tables and files that a run has written so far, for pages and other tools (App. C)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_vjepa.monitoring import epoch_log, monitor, step_log
from keras_vjepa.monitoring.curves import points_of
from keras_vjepa.monitoring.health import checkpoint_to_keep
from keras_vjepa.monitoring.tables import read_rows
from keras_vjepa.training.continuing import OPTIONS_FILE, stored_options
from keras_vjepa.training.results import CHECKPOINTS, read_result
from keras_vjepa.training.run_state import Checkpoints

_PARTS = ("target", "context", "predictions")
# Each entry is a title, names of columns, and whether the axis of the values is logarithmic. A name
# that ends in _ stands for all columns that begin with it.
OF_STEPS = (
    ("Loss", ("loss", "loss_mask_"), False),
    ("Gradient norms before clipping", ("gradient_norm_",), True),
    ("Learning rate", ("learning_rate",), False),
    ("Weight decay", ("weight_decay",), False),
    ("Momentum of the target encoder", ("momentum",), False),
    ("Clips a second", ("clips_per_second",), False),
    ("Share of the time that training waits for data", ("data_wait_share",), False),
)
OF_LOOKS = (
    ("Rank of clips", tuple(f"{part}_clip_rank" for part in _PARTS), False),
    ("Rank of tokens", tuple(f"{part}_token_rank" for part in _PARTS), False),
    (
        "Deviation of clips, of features of length one",
        tuple(f"{part}_clip_normalized_deviation" for part in _PARTS),
        False,
    ),
    ("Clips that a probe names right", ("probe_",), False),
    ("Clips that neighbours name right", ("neighbors_",), False),
    ("LiDAR", ("target_lidar", "context_lidar"), False),
    ("Nearest clip is of the same video", ("target_retrieval", "context_retrieval"), False),
    ("Distance between the encoders' weights", ("encoder_distance",), False),
)
OF_EPOCHS = (
    ("mAP with true boxes", ("validation_map",), False),
    ("Accuracy on test videos", ("validation_accuracy", "validation_top5"), False),
    ("Loss of an epoch", ("training_loss", "validation_loss"), False),
)
# A detector has results for each of these kinds of boxes.
KINDS_OF_BOXES = ("true", "detected")
Curves = dict[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class RunTables:
    """Holds what a run has written so far.

    Attributes:
        folder: folder of the run.
        steps: rows of the table of steps.
        looks: rows of the monitor's table.
        epochs: rows of the table of epochs of a fine-tuning.
        options: options of the config.
        versions: versions of the libraries and devices that the run used.
        probe: results of a frozen probe, by the encoder's name.
        test: results of a fine-tuning on its test videos.
        saved: steps that have a checkpoint.
    """

    folder: Path
    steps: Sequence[Mapping[str, Any]]
    looks: Sequence[Mapping[str, Any]]
    epochs: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    versions: Mapping[str, Any]
    probe: Mapping[str, Mapping[str, Any]]
    test: Mapping[str, Any]
    saved: Sequence[int]

    @property
    def done(self) -> int:
        """Return the last step that has a row in the table of steps."""
        return self.steps[-1]["step"] if self.steps else 0

    @property
    def progress(self) -> str:
        """Return words that say how many steps are done."""
        whole = self.options.get("steps")
        of_all = f" of {whole:,}" if isinstance(whole, int) else ""
        is_one = self.done == 1 and not of_all
        return f"{self.done:,}{of_all} {'step is' if is_one else 'steps are'} done"

    def to_keep(self) -> tuple[int, str] | None:
        """Name the checkpoint that is worth keeping, and say why; None if there is none."""
        return checkpoint_to_keep(self.looks, self.saved) if self.looks else None

    def curves_of(self, names: Sequence[str]) -> Curves:
        """Select columns by their names, from steps and looks.

        Args:
            names: as in `OF_STEPS`.

        Returns:
            Curves by a label that tells a column from the others below the same title, such as the
            part of the model or the network that it belongs to.
        """
        found: Curves = {}
        for rows in (self.steps, self.looks, self.epochs):
            columns = dict.fromkeys(column for row in rows for column in row)
            for name in names:
                for column in columns:
                    if column == name or (name.endswith("_") and column.startswith(name)):
                        found.setdefault(_label(column, name), points_of(rows, column))
        return found


def _label(column: str, name: str) -> str:
    words = name.removesuffix("_").split("_")
    if column == name:
        return words[0] if words[0] in _PARTS else " ".join(words)
    rest = column.removeprefix(name)
    return f"{words[-1]} {rest}" if rest.isdecimal() else rest.replace("_", " ")


def read_run(folder: Path, step: int | None = None) -> RunTables:
    """Read what a run has written so far, finished or not.

    Args:
        folder: folder of the run.
        step: reads the run as it was after that step; None for the whole run.

    Raises:
        FileNotFoundError: if the folder holds no run, or the run has not reached the step.
    """
    steps, looks, epochs = (
        [row for row in read_rows(folder / f"{name}.jsonl") if step is None or row["step"] <= step]
        for name in (step_log.FILE_NAME, monitor.FILE_NAME, epoch_log.FILE_NAME)
    )
    options = {**(read_result(folder / OPTIONS_FILE) or {}), **stored_options(folder)}
    if not steps and not looks and not options:
        raise FileNotFoundError(f"`run` must be the folder of a run. Received: {folder}")
    if step and (not steps or steps[-1]["step"] < step):
        done = steps[-1]["step"] if steps else 0
        raise FileNotFoundError(f"`run` must have come to step {step:,}. Received: {done:,} steps")
    whole = step is None or step == options.get("steps")
    probe, test = (
        (read_result(folder / name) or {}) if whole else {}
        for name in ("probe.json", "result.json")
    )
    # A probe's file of the same name holds no `test`.
    test = {**(test.get("test") or {}), "class_names": options.get("class_names")}
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    versions = checkpoints.described().get("versions") or {}
    saved = checkpoints.steps()
    return RunTables(folder, steps, looks, epochs, options, versions, probe, test, saved)
