"""Write samples as a list that `list_samples` reads (§3.4: V-JEPA's index, `path label`)."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from keras_vjepa import files
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.frame_folder import DEFAULT_FPS, FrameFolder
from keras_vjepa.data.reading.kinds import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, extension
from keras_vjepa.data.reading.remote import ADDRESS
from keras_vjepa.data.sources.rows import read_rows
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.sources.tables import FPS_COLUMN, table_rows

# Matches a path that needs no quotes in a row of the authors' lists.
_PLAIN = re.compile(r"[\w/.\-+@%=~]+")
_HEADER = f"path,label,{FPS_COLUMN}"

# Path, label and frames per second.
Written = tuple[str, int | str | None, float | None]


def why_not_listed(sample: Sample) -> str:
    """Say why no list can name a file; empty if one can.

    Args:
        sample: the file and its label.

    Example:

    >>> why_not_listed(Sample("/videos/a cat.mp4", 3)), why_not_listed(Sample("/videos/a\\n.mp4"))
    ('', 'its name holds a line break, or begins or ends with a space')
    """
    if set(sample.path) & set("\n\r\0") or sample.path.strip("\ufeff \t") != sample.path:
        return "its name holds a line break, or begins or ends with a space"
    return ""


def write_list(path: Path, samples: Sequence[Sample]) -> None:
    """Write a list of files, one row `path label` for each, in place of one that is there.

    If folders of frames have other frames per second than by default, or names in which a space
    could be taken for the end, the list is a table with the columns `path`, `label` and `fps`.

    Args:
        path: the list, `.csv`.
        samples: the files, whose paths are written from the root of the file system; see
            `why_not_listed`.

    Raises:
        ValueError: if reading the list would not give the same samples.
        OSError: if the list cannot be written.

    Example:

    >>> import tempfile
    >>> from keras_vjepa.data.sources.listing import list_samples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_list(Path(folder, "train.csv"), [Sample("/videos/a cat.mp4", 3)])
    ...     list_samples(Path(folder, "train.csv"))
    [Sample(path='/videos/a cat.mp4', label=3)]
    """
    rows = [(_from_the_root(sample.path), sample.label, _fps(sample)) for sample in samples]
    is_table = any(fps is not None or _needs_columns(path, label) for path, label, fps in rows)
    lines = [_HEADER, *map(_row_of_table, rows)] if is_table else [_row(*row[:2]) for row in rows]
    with files.unfinished_file(path) as unfinished:
        text = "".join(f"{line}\n" for line in lines)
        unfinished.write_bytes(text.encode("utf-8", "surrogateescape"))
        found: list[Written] = []
        with suppress(ValueError):
            read = table_rows(unfinished, "path", "label") if is_table else read_rows(unfinished)
            found += [(row.path, row.label, getattr(row.media, "fps", None)) for row in read]
        if found != rows:
            wrong = [row for row, same in zip(rows, found, strict=False) if row != same]
            example = printable((wrong or rows)[0][0])
            raise ValueError(f"{path} must name files that a list can name. Received: {example}")


def _needs_columns(path: str, label: int | str | None) -> bool:
    """Tell whether a row `path label` could mean something else, for want of both its ends."""
    is_known = extension(path) in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
    return label is None and not is_known and not _PLAIN.fullmatch(path)


def _fps(sample: Sample) -> float | None:
    """Return the frames per second of a folder of frames, None if they are the default ones."""
    fps = sample.media.fps if isinstance(sample.media, FrameFolder) else DEFAULT_FPS
    return None if fps == DEFAULT_FPS else fps


def _row_of_table(row: Written) -> str:
    path, *numbers = row
    cells = ['"' + path.replace('"', '""') + '"']
    return ",".join(cells + ["" if number is None else repr(number) for number in numbers])


def _from_the_root(path: str) -> str:
    return path if ADDRESS.match(path) else os.path.abspath(path)


def _row(path: str, label: int | None) -> str:
    written = path if _PLAIN.fullmatch(path) else '"' + path.replace('"', '""') + '"'
    return written if label is None else f"{written} {label}"
