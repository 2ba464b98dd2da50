"""Write pages that are a single file and need no network: their style and their parts (App. C)."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_vjepa import files

# With this policy a browser fetches nothing for a page and runs no code in it, so that people can
# open a page that they do not trust.
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
        path: path of the page.
        title: title of the page, which is also its heading.
        parts: pieces of HTML, one below the other.

    Raises:
        ValueError: if the path does not end in .html or .htm.
        OSError: if the page cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"`output` must end in .html. Received: {path}")
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
    """Convert any value to text for a page, safe for HTML.

    Args:
        value: the value; numbers are shortened, and values other than strings become JSON.
    """
    if isinstance(value, float):
        value = f"{value:.4g}"
    return html.escape(value if isinstance(value, str) else json.dumps(value))


def table(rows: Sequence[Sequence[Any]], head: Sequence[Any] = ()) -> str:
    """Make the HTML of a table.

    Args:
        rows: values of each row, as `text` takes them.
        head: headings of the columns; without headings if it is empty.
    """
    lines = ["".join(f"<th>{text(cell)}</th>" for cell in head)] if head else []
    lines += ["".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def pairs(heading: str, found: Mapping[str, Any] | None) -> list[str]:
    """Make the HTML of a table of names and values below a heading.

    Args:
        heading: text of the heading.
        found: values by name; if there are none, there is no heading either.
    """
    return [f"<h2>{text(heading)}</h2>", table(sorted(found.items()))] if found else []


def drawings(heading: str, drawn: Sequence[str | None]) -> list[str]:
    """Make the HTML of drawings side by side below a heading.

    Args:
        heading: text of the heading.
        drawn: SVG of each drawing; None is left out. Without drawings there is no heading either.
    """
    shown = [one for one in drawn if one is not None]
    if not shown:
        return []
    return [f"<h2>{text(heading)}</h2>", f'<div class="curves">{"".join(shown)}</div>']


def picture(path: Path, name: str) -> str:
    """Make the HTML of a picture, with the picture's data in it.

    Args:
        path: path of a .png.
        name: text that a browser shows if it cannot show the picture.
    """
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{text(name)}" src="data:image/png;base64,{data}">'
