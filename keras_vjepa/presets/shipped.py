"""Lists the small models that lie in the package itself, for a first look without a download (§4).

Each has a folder in `shipped/`: a preset, and `card.json`, which says what it was trained on, by
which command, and how good its features were measured to be. They are this package's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_vjepa.json_files import read_json_object
from keras_vjepa.presets.preset import BUILT_IN, CONFIG_FILE, PREPROCESSOR_FILE

SHIPPED = Path(__file__).with_name("shipped")
CARD_FILE = "card.json"

# The class of a model, by the file that describes it.
_CLASSES = {
    CONFIG_FILE: "VJEPABackbone",
    "predictor.json": "VJEPAPredictor",
    "pretrainer.json": "VJEPAPretrainer",
    "task.json": "VJEPAVideoClassifier",
    PREPROCESSOR_FILE: "VJEPAVideoPreprocessor",
}


@dataclass(frozen=True)
class ShippedEntry:
    """Stands for a preset in the package.

    Attributes:
        path: folder of the preset, with its card.
    """

    path: Path

    def classes(self) -> tuple[str, ...]:
        """Names the classes that the preset holds; a classifier's backbone is one of its own."""
        found = [name for file, name in _CLASSES.items() if (self.path / file).is_file()]
        if "VJEPAVideoClassifier" in found:
            found.remove("VJEPABackbone")
        return tuple(found)

    def describe(self) -> dict[str, Any]:
        """Return what the card says, as `list_presets` has it of every name."""
        return {**read_json_object(self.path / CARD_FILE), "files": []}

    def configs(self) -> dict[str, dict[str, Any]]:
        """Return nothing: the files are in the package, and are checked when they are read."""
        return {}

    def folder(self, name: str, load_weights: bool, trust_on_first_use: bool) -> Path:
        """Return the folder, which is where the package is."""
        return self.path


def entries() -> Iterator[tuple[str, ShippedEntry]]:
    """Yield name and entry of each model in the package."""
    for path in sorted(SHIPPED.glob(f"*/{CARD_FILE}")):
        yield path.parent.name, ShippedEntry(path.parent)


BUILT_IN.update(entries())
