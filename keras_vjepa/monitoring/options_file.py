"""Write the options of a run into its folder (App. C)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_vjepa import files
from keras_vjepa.training.continuing import OPTIONS_FILE


class OptionsFile(keras.callbacks.Callback):
    """Writes all options of a run once it begins, so that a run that is refused leaves them alone.

    Args:
        workdir: folder of the run.
        options: the values, in types of JSON.
    """

    def __init__(self, workdir: Path, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.workdir = workdir
        self.options = options

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Write the file."""
        files.write_text(self.workdir / OPTIONS_FILE, json.dumps(self.options, indent=1))
