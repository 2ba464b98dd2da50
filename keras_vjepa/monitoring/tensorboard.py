"""Write a run's numbers, masks and config for TensorBoard (App. C).

The files are written by tensorboardX, which needs neither TensorFlow nor TensorBoard. To look at
them, TensorBoard must be installed, on this machine or another one.
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
        tensorboard: whether they are wanted.

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
    """Writes rows of a run's tables into a folder for TensorBoard.

    If a run makes steps again, TensorBoard hides what the folder held of them before.

    Args:
        folder: the folder to write to.
        options: options of the run's config, written as text.
        pictures: files by their names, written as images. Files that do not exist are left out.
    """

    def __init__(
        self, folder: Path, options: Mapping[str, Any], pictures: Mapping[str, Path]
    ) -> None:
        self.folder = folder
        self.options = options
        self.pictures = pictures
        self._events: Any = None

    def write(self, table: str, rows: Sequence[Row]) -> None:
        """Write rows of a table.

        Args:
            table: name of the table, as a prefix of the names of columns.
            rows: rows with a `step`; numbers become curves, and text is shown as text.

        Raises:
            OSError: if the rows cannot be written.
        """
        if not rows:
            return
        # Imported here, because it is not always installed.
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
        """Open a file and write config and pictures to it.

        TensorBoard then hides everything in older files from this step on.
        """
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self.folder.mkdir(parents=True, exist_ok=True)
        # The package's usual writer works in a thread, which would lose the end of a run that is
        # killed, so that this one is used.
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
