"""Turn the notebooks of docs/notebooks/ into pages of the site, as they stand, outputs and all.

A notebook is JSON, and the few kinds of cells and outputs that these have are turned into Markdown
here. The plugin that does it for every notebook, mkdocs-jupyter, brings fifty packages.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
# What stands behind the fence of an output; style.css says how it looks.
OUTPUT = "{ .text .output }"
# Formats of pictures, by their types in a notebook.
_PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def notebooks() -> list[Path]:
    """Return the notebooks of the site."""
    return sorted(FOLDER.glob("*.ipynb"))


def page_and_pictures(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown of a notebook's page, and the pictures that it shows.

    Args:
        path: the notebook.

    Returns:
        The page, and the bytes of each picture by its name; pictures lie beside the page.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(_fenced(source, "python"))
        for place, output in enumerate(cell["outputs"]):
            text, picture = _shown(output, f"{path.stem}_{number}_{place}")
            parts.append(text)
            pictures |= picture
    # Links and pictures in Markdown would be looked for in the repository.
    parts.append(f'<a href="{path.name}" download>This page as a notebook</a>')
    return "\n\n".join(parts) + "\n", pictures


def _joined(text: str | list[str]) -> str:
    """Return a text of a notebook, which may be a list of its lines."""
    return text if isinstance(text, str) else "".join(text)


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _shown(output: Mapping[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown of an output, and its picture if it has one."""
    if output["output_type"] == "stream":
        return _fenced(_joined(output["text"]), OUTPUT), {}
    for kind, ending in _PICTURES.items():
        if kind in output["data"]:
            file = f"{name}.{ending}"
            drawn = base64.b64decode(_joined(output["data"][kind]))
            return f'<img src="{file}" alt="What the lines above draw">', {file: drawn}
    return _fenced(_joined(output["data"]["text/plain"]), OUTPUT), {}
