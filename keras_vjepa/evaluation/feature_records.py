"""What the features in a folder are of: `sources.jsonl`, a line for each file (§4.3, App. D).

    {"output": "a/clip.mp4.npy", "source": "/videos/a/clip.mp4",
     "content": hash of the source, "features": hash of the output, "settings": hash of these}

A line is added when features are written; of two with one output the later counts.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from keras_vjepa import files


@dataclasses.dataclass(frozen=True)
class FeatureRecord:
    """What is known of the features of one file.

    Attributes:
        output: their file, below the output folder, with slashes.
        source: absolute path of the video or image.
        content: hash of what was in it.
        features: hash of the file of the features.
        settings: hash of what else the features depend on.
    """

    output: str
    source: str
    content: str
    features: str
    settings: str


def read_records(path: Path) -> tuple[dict[str, FeatureRecord], int]:
    """Read the records of a folder.

    Args:
        path: the file of the records, which need not exist.

    Returns:
        The last record of each output, and the number of lines that are damaged.

    Raises:
        OSError: if the file is there and cannot be read, or is none: a pipe would be read for ever.
    """
    kind = files.kind_of(path)
    if kind is None:
        return {}, 0
    if kind != "file":
        raise OSError(f"{path} must be a file. Received: a {kind}. Remove it")
    # A line that was cut short has no end.
    *lines, rest = path.read_bytes().split(b"\n")
    records = [_record_of(line) for line in lines]
    damaged = records.count(None) + bool(rest)
    return {record.output: record for record in records if record is not None}, damaged


def _record_of(line: bytes) -> FeatureRecord | None:
    try:
        record = FeatureRecord(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    return record if all(isinstance(v, str) for v in vars(record).values()) else None


def append_record(path: Path, record: FeatureRecord) -> None:
    """Add a record to the file of a folder."""
    files.append_line(path, _line_of(record))


def write_records(path: Path, records: Iterable[FeatureRecord]) -> None:
    """Write the file of a folder anew."""
    files.write_text(path, "".join(f"{_line_of(record)}\n" for record in records))


def _line_of(record: FeatureRecord) -> str:
    # In ASCII, whatever bytes a name has.
    return json.dumps(vars(record))
