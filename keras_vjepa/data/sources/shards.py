"""List shards: tar files of samples, as WebDataset and video2dataset write them (§3.4, App. D).

Consecutive members that have the same name up to the first dot are a sample there: `a/17.mp4`,
`a/17.cls` and `a/17.json`. Every video or image among them is a sample here, with the label in the
`cls` or in a field of the `json`. Shards are named one by one, by braces
(`train-{000000..000099}.tar`), by the folder in which they lie, or by an index that `wids` wrote.
"""

import itertools
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_vjepa.arguments import counted, shown
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.kinds import extension
from keras_vjepa.data.reading.locating import media_at
from keras_vjepa.data.reading.media import Content, EncodedMedia
from keras_vjepa.data.reading.remote import ADDRESS, RemoteFile
from keras_vjepa.data.reading.tar_shards import tar_members
from keras_vjepa.data.sources.folders import EXTENSIONS, Kind, visible_files
from keras_vjepa.data.sources.rows import Row, as_label
from keras_vjepa.files import kind_of

_LOG = logging.getLogger(__name__)

_RANGE = re.compile(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?")
_MOST_SHARDS, _MOST_DIGITS, _MOST_BRACES = 2**20, 18, 64
_WIDS = "wids-shard-index-v1"
# Larger members are not read as labels. A label, or the description of a video, has a few
# kilobytes.
_MOST_BYTES = 2**24


def is_shards(source: str | Path) -> bool:
    """Tell whether something names tar files: by its ending, or as an index by its content."""
    name = os.fspath(source)
    if extension(name) == ".tar":
        return not os.path.isdir(source)
    return name.endswith(".json") and _index_of(Path(name)) is not None


def is_folder_of_shards(source: str | Path, kind: Kind) -> bool:
    """Tell whether a folder, with the folders in it, holds tar files and no file of a kind."""
    found = False
    for entry in visible_files(source) if os.path.isdir(source) else ():
        if extension(entry.name) in EXTENSIONS[kind]:
            return False
        found = found or extension(entry.name) == ".tar"
    return found


def expand_braces(text: str) -> list[str]:
    """List the names that a name with braces expands to.

    Args:
        text: a name with any number of `{first..last}`, whose numbers have the same number of
            digits, of `{first..last..step}`, or of `{one,other}`, in which there may be others.

    Raises:
        ValueError: if a range is of no number, or the names are more than a million.

    Example:

    >>> expand_braces("{train-{08..10},val}.tar")[1:]
    ['train-09.tar', 'train-10.tar', 'val.tar']
    """
    if text.count("{") > _MOST_BRACES:
        raise _too_many(text)
    names, end = [""], 0
    for first, last in _outermost_braces(text):
        choices = _choices(text, text[first + 1 : last])
        if len(names) * len(choices) > _MOST_SHARDS:
            raise _too_many(text)
        before = text[end:first]
        names = [f"{name}{before}{choice}" for name in names for choice in choices]
        end = last + 1
    return [name + text[end:] for name in names]


def _outermost_braces(text: str) -> list[tuple[int, int]]:
    """Find the places of each brace that is within no other, and of the one that closes it."""
    opened: list[int] = []
    pairs: list[tuple[int, int]] = []
    for place, letter in enumerate(text):
        if letter == "{":
            opened.append(place)
        elif letter == "}" and opened:
            first = opened.pop()
            # What is between them was found before.
            pairs = [*(pair for pair in pairs if pair[1] < first), (first, place)]
    return pairs


def _choices(text: str, inside: str) -> list[str]:
    """List what may stand in the place of braces."""
    numbers = _RANGE.fullmatch(inside)
    if numbers:
        return _numbers_of(text, numbers)
    depth, parts = 0, [""]
    for letter in inside:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    names: list[str] = []
    for part in parts:
        names += expand_braces(part)
        if len(names) > _MOST_SHARDS:
            raise _too_many(text)
    return names


def _numbers_of(text: str, numbers: re.Match[str]) -> list[str]:
    """List the numbers of a range within braces, with as many digits as its first one."""
    if max(map(len, numbers.groups(""))) > _MOST_DIGITS:
        raise _too_many(text)
    first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)
    if first > last or not step:
        raise ValueError(f"{text} must have ranges from a number to a larger one.")
    if (last - first) // step >= _MOST_SHARDS:
        raise _too_many(text)
    return [f"{number:0{len(numbers[1])}}" for number in range(first, last + 1, step)]


def _too_many(text: str) -> ValueError:
    return ValueError(
        f"The braces of {printable(text)} must stand for at most {_MOST_SHARDS:,} names. Name the "
        "folder of the shards, or several runs of numbers."
    )


def shards_of(source: str | Path) -> list[str]:
    """List the tar files that something names.

    Args:
        source: a tar file, a name with braces, a folder, or an index that `wids` wrote.

    Raises:
        FileNotFoundError: if one of them does not exist.
    """
    path = Path(source)
    if os.path.isdir(path):
        return sorted(one.path for one in visible_files(path) if extension(one.name) == ".tar")
    index = _index_of(path) if path.suffix == ".json" else None
    if index is not None:
        urls = [one["url"] for one in index]
        shards = [url if ADDRESS.match(url) else str(path.parent / url) for url in urls]
    else:
        name = os.fspath(source)
        shards = [name] if os.path.exists(name) else expand_braces(name)
    missing = [shard for shard in shards if not any(media_at(shard).status())]
    if missing:
        raise FileNotFoundError(
            f"`source` must name shards that exist. Received: {source}, of which "
            f"{counted(len(missing), 'shard')} of {len(shards):,} "
            f"{'is' if len(missing) == 1 else 'are'} missing, {printable(missing[0])} first"
            f"{_why_missing(missing[0])}"
        )
    return shards


def _why_missing(shard: str) -> str:
    """Say why a shard at an address cannot be read; one on a disk is not there."""
    media = media_at(shard)
    if not isinstance(media, RemoteFile):
        return ""
    try:
        media.info()
    except (OSError, ValueError) as error:
        return f": {' '.join(str(error).split())}"
    return ""


def shard_rows(source: str | Path, kind: Kind, label_field: str) -> list[Row]:
    """List the videos or images in shards; the log says what is left out.

    Args:
        source: as `shards_of` takes it.
        kind: what to look for.
        label_field: field of the `json` that holds a number or a name; it is read where there is no
            `cls`. Empty for no labels.

    Raises:
        FileNotFoundError: if a shard does not exist.
        ValueError: for folders of frames, or labels that cannot be read.
    """
    if kind == "frames":
        raise ValueError(f'`kind` must be "video", "image" or "any" for shards, such as {source}.')
    rows: list[Row] = []
    others: Counter[str] = Counter()
    for shard in shards_of(source):
        try:
            found = tar_members(shard)
        except (OSError, ValueError) as error:
            _LOG.warning("Left out: %s: %s", printable(shard), error)
            continue
        if found.problem:
            _LOG.warning("%s: %s", printable(shard), found.problem)
        rows += _rows_of_shard(shard, found.places, kind, label_field, others)
    if others:
        types = ", ".join(f"{name or 'none'} ({count:,})" for name, count in others.most_common(5))
        _LOG.warning("Left out of %s: members of other types: %s", printable(str(source)), types)
    return rows


def _rows_of_shard(
    shard: str,
    places: dict[str, tuple[int, int]],
    kind: Kind,
    label_field: str,
    others: Counter[str],
) -> Iterator[Row]:
    media = media_at(shard)
    assert isinstance(media, EncodedMedia)
    with media.content() as content:
        for _, group in itertools.groupby(places, _key):
            members = [name for name in group if not _is_hidden(name)]
            fitting = [name for name in members if extension(name) in EXTENSIONS[kind]]
            label = None
            if fitting and label_field:
                label = _label_of(content, shard, members, places, label_field)
            for name in fitting:
                yield Row(f"{shard}/{name}", label, f"{shard}/{name}")
            rest = [extension(name) for name in members if name not in fitting]
            others.update(end for end in rest if end not in _BESIDE or not fitting)


# Extensions of members that describe a sample.
_BESIDE = {".cls", ".json", ".txt"}


def _is_hidden(name: str) -> bool:
    """Tell whether a member would be passed over in a folder, as the "._a.mp4" of macOS."""
    return any(part[:1] == "." and part not in (".", "..") for part in name.split("/"))


def _key(name: str) -> str:
    """Return what the members of one sample have in common: the name up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _label_of(
    content: Content,
    shard: str,
    members: list[str],
    places: dict[str, tuple[int, int]],
    label_field: str,
) -> int | str | None:
    for ending in (".cls", ".json"):
        for name in members:
            if extension(name) != ending:
                continue
            where = f"{shard}/{name}"
            start, size = places[name]
            if size > _MOST_BYTES:
                raise ValueError(f"{where}: It must have at most {_MOST_BYTES:,} bytes.")
            try:
                text = content.read_at(start, size).decode()
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: It must be UTF-8 text. {error}") from error
            if ending == ".cls":
                return as_label(text.strip(), where)
            known = _json(text, where)
            if label_field in known:
                return as_label(known[label_field], where)
    return None


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        known = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: It must be JSON. {shown(str(error))}") from error
    return known if isinstance(known, dict) else {}


def _index_of(path: Path) -> list[dict[str, Any]] | None:
    """Read the shards in an index that `wids` wrote; None if it is another file."""
    if kind_of(path) != "file":
        return None
    try:
        with open(path, encoding="utf-8") as file:
            if _WIDS not in file.read(4096):
                return None
            file.seek(0)
            index = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    shards = index.get("shardlist") if isinstance(index, dict) else None
    if not isinstance(shards, list) or not all(
        isinstance(one, dict) and isinstance(one.get("url"), str) for one in shards
    ):
        raise ValueError(f"{path} must have a `shardlist` of shards with a `url` each.")
    return shards
