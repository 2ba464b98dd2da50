"""What a run writes of itself, as TensorBoard reads it: numbers, masks and the config (App. C).

Written by tensorboardX, which needs neither TensorFlow nor TensorBoard; whoever looks at it needs
TensorBoard, wherever that is.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2

from keras_vjepa.monitoring.tables import Row

FOLDER = "tensorboard"


def check_tensorboard(tensorboard: bool) -> None:
    """Check that files for TensorBoard can be written, if they are wanted.

    Args:
        tensorboard: whether they are.

    Raises:
        ValueError: if the package that writes them is not installed.
    """
    if not tensorboard:
        return
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise ValueError(
            "`tensorboard` must be false without tensorboardX: "
            "pip install 'keras-vjepa[tensorboard]'. Received: true"
        ) from None


class TensorBoardWriter:
    """Writes rows of a run's tables into a folder that TensorBoard is pointed to.

    What is there of steps that the run goes back to is hidden by TensorBoard.

    Args:
        folder: where to.
        options: of the run's config, written as text.
        pictures: files by their names, written as images. Those that are not there are left out.
    """

    def __init__(
        self, folder: Path, options: Mapping[str, Any], pictures: Mapping[str, Path]
    ) -> None:
        self.folder = folder
        self.options = options
        self.pictures = pictures
        self._events: Any = None

    def write(self, table: str, rows: Sequence[Row]) -> None:
        """Write rows.

        Args:
            table: its name, in front of the names of columns.
            rows: with a `step`; numbers become curves, and text is shown as such.

        Raises:
            OSError: if they cannot be written.
        """
        if not rows:
            return
        # Here, since it is not always installed.
        from tensorboardX import summary

        if self._events is None:
            self._begin(rows[0]["step"])
        for row in rows:
            for name, value in row.items():
                tag = f"{table}/{name}"
                if isinstance(value, str):
                    self._add(row["step"], summary=summary.text(tag, value))
                elif value is not None and name != "step":
                    self._add(row["step"], summary=summary.scalar(tag, float(value)))
        self._events.flush()

    def _begin(self, step: int) -> None:
        """Open a file, whose first step hides what there is from it on, and write what stays."""
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self.folder.mkdir(parents=True, exist_ok=True)
        # Not the package's usual writer, whose thread would lose the end of a run that is killed.
        self._events = EventsWriter(str(self.folder / "events"))
        self._add(step, session_log=SessionLog(status=SessionLog.START))
        lines = [f"| {name} | `{value}` |" for name, value in sorted(self.options.items())]
        text = "\n".join(["| option | value |", "|---|---|", *lines])
        self._add(step, summary=summary.text("config", text))
        for name, path in self.pictures.items():
            picture = cv2.imread(str(path)) if path.is_file() else None
            if picture is not None:
                image = summary.image(name, picture[..., ::-1], dataformats="HWC")
                self._add(step, summary=image)

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
