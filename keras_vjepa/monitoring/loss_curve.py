"""Write the loss of a run as a table and a picture, up to its last checkpoint (App. C)."""

from collections.abc import Sequence
from pathlib import Path

from keras_vjepa import files
from keras_vjepa.monitoring.curves import draw_loss
from keras_vjepa.training.results import CHECKPOINTS
from keras_vjepa.training.resumable import RunCallback

_TABLE, _PICTURE = "loss.csv", "loss.png"
_END_OF_PNG = b"IEND\xaeB`\x82"


def damaged_curve(folder: Path, steps: int) -> str | None:
    """Say which file of a finished run's `LossCurve` is damaged, if it can be written again.

    Args:
        folder: folder of the run.
        steps: number of steps of the whole run.

    Returns:
        The file and what is wrong with it; None if nothing is wrong, or if there are no checkpoints
        to take the losses from.
    """
    if not (folder / CHECKPOINTS).is_dir():
        return None
    table, picture = folder / _TABLE, folder / _PICTURE
    if not table.is_file() or table.read_bytes().count(b"\n") != steps + 1:
        return f"{table} is missing or damaged"
    if not picture.is_file() or not picture.read_bytes().endswith(_END_OF_PNG):
        return f"{picture} is missing or damaged"
    return None


class LossCurve(RunCallback):
    """Writes `loss.csv` and `loss.png` into a folder at every checkpoint of a run.

    Args:
        folder: the folder to write to.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_checkpoint(self, losses: Sequence[float]) -> None:
        rows = "".join(f"{i},{loss:.9g}\n" for i, loss in enumerate(losses, start=1))
        files.write_text(self.folder / _TABLE, "step,loss\n" + rows)
        draw_loss(losses, self.folder / _PICTURE)
