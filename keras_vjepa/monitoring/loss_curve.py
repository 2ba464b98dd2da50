"""The loss of a run as a table and a picture, as far as its last checkpoint (App. C)."""

from collections.abc import Sequence
from pathlib import Path

from keras_vjepa import files
from keras_vjepa.monitoring.pictures import draw_curve
from keras_vjepa.training.resumable import RunCallback


class LossCurve(RunCallback):
    """Writes `loss.csv` and `loss.png` into a folder, with every checkpoint of a run.

    Args:
        folder: where to.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_checkpoint(self, losses: Sequence[float]) -> None:
        rows = "".join(f"{i},{loss:.9g}\n" for i, loss in enumerate(losses, start=1))
        files.write_text(self.folder / "loss.csv", "step,loss\n" + rows)
        draw_curve(losses, self.folder / "loss.png")
