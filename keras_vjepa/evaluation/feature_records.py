"""Record in `sources.jsonl`, a line each, which file features were made from (§4.3, App. D).

    {"output": "a/clip.mp4.npy", "source": "/videos/a/clip.mp4", "content": hash of the source,
     "features": hash of the output, "settings": hash of the settings}

A line is added when features are written; if two lines have the same output, the later one counts.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from keras_vjepa import files


@dataclasses.dataclass(frozen=True)
class FeatureRecord:
    """Holds what is known of the features of one file.

    Attributes:
        output: the file of the features, below the output folder, with slashes.
        source: absolute path of the video or image.
        content: hash of the content of the video or image.
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
        OSError: if the path exists and cannot be read, or is no regular file, such as a pipe, which
            would be read for ever.
    """
    kind = files.kind_of(path)
    if kind is None:
        return {}, 0
    if kind != "file":
        raise OSError(f"{path} must be a file. Received: a {kind}. Remove it")
    # Only a line that was cut short can follow the last line break.
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
    """Add a record to the end of a folder's file of records."""
    files.append_line(path, _line_of(record))


def write_records(path: Path, records: Iterable[FeatureRecord]) -> None:
    """Replace a folder's file of records by one with these records."""
    files.write_text(path, "".join(f"{_line_of(record)}\n" for record in records))


def _line_of(record: FeatureRecord) -> str:
    # `json.dumps` escapes everything that is not ASCII, so that names of any bytes can be written.
    return json.dumps(vars(record))
