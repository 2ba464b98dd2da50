"""Pages that are one file each and open without a network: their style and their parts (App. C)."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vjepa import files

# Whoever opens a page need not trust it: a browser fetches nothing for it, and runs nothing in it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1300px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; font-size: 13px; } th { text-align: left; }
td, th { padding: .15em .9em .15em 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
.curves { display: flex; flex-wrap: wrap; gap: 1em; } .curves svg { max-width: 100%; height: auto; }
.collapse, .not { color: #a00; font-weight: 600; }
img { width: min(100%, 900px); image-rendering: pixelated; }
"""


def write_page(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write a page.

    Args:
        path: of the page.
        title: its heading too.
        parts: HTML, one below the other.

    Raises:
        OSError: if it cannot be written.
    """
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<link rel="icon" href="data:,"><title>{text(title)}</title>\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>{text(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    files.write_text(path, page)


def text(value: Any) -> str:
    """Write anything as text of a page.

    Args:
        value: numbers are shortened, and what is no text is written as JSON.
    """
    if isinstance(value, float):
        value = f"{value:.4g}"
    return html.escape(value if isinstance(value, str) else json.dumps(value))


def table(rows: Sequence[Sequence[Any]], head: Sequence[Any] = ()) -> str:
    """Write a table.

    Args:
        rows: values for `text`.
        head: of the columns; none if it is empty.
    """
    lines = ["".join(f"<th>{text(cell)}</th>" for cell in head)] if head else []
    lines += ["".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def pairs(heading: str, found: Mapping[str, Any] | None) -> list[str]:
    """Write names and values below a heading.

    Args:
        heading: above them.
        found: by name; nothing is written if there are none.
    """
    return [f"<h2>{text(heading)}</h2>", table(sorted(found.items()))] if found else []


def drawings(heading: str, drawn: Sequence[str | None]) -> list[str]:
    """Write drawings side by side below a heading.

    Args:
        heading: above them.
        drawn: SVG; None is left out, and nothing is written if there are no others.
    """
    shown = [one for one in drawn if one is not None]
    if not shown:
        return []
    return [f"<h2>{text(heading)}</h2>", f'<div class="curves">{"".join(shown)}</div>']


def picture(path: Path, name: str) -> str:
    """Write a picture into a page.

    Args:
        path: of a .png.
        name: what is said of it where pictures are not shown.
    """
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{text(name)}" src="data:image/png;base64,{data}">'
