"""Name the files that hold the features of videos and images (§4.3, App. D).

The names follow the path below the folder that is listed: `a/clip.mp4` has its features in
`a/clip.mp4.npy`. A name that is too long or cannot be written is cut and escaped, and a hash keeps
it apart from others. Names depend only on the path, so that a run that continues finds them.
"""

import hashlib
import os
from pathlib import PurePath

# Two more files in that folder: what the features depend on, and which files they were made from.
SETTINGS_FILE, SOURCES_FILE = "settings.json", "sources.jsonl"

_ENDING = ".npy"
# The longest name that the usual file systems allow.
_MOST_BYTES = 255
_HASH_DIGITS = 8


def features_name(relative: PurePath) -> str:
    """Name the file of the features of a video or an image.

    Args:
        relative: path of the video or image below the folder that is listed.

    Returns:
        A path below the output folder, with slashes.

    Example:

    >>> from keras_vjepa.evaluation.feature_names import features_name
    >>> features_name(PurePath("a", "clip.mp4"))
    'a/clip.mp4.npy'
    >>> features_name(PurePath(os.fsdecode(b"caf\\xe9.mp4")))
    'caf%e9.mp4.def354ac.npy'
    """
    *folders, name = relative.parts
    return "/".join([*map(_folder_name, folders), _fitting(name, _ENDING)])


def with_hash(name: str, source: str) -> str:
    """Name the features of a file if another file's features already have the usual name.

    Args:
        name: the usual name, as `features_name` returns it.
        source: absolute path of the video or image.

    Example:

    >>> from keras_vjepa.evaluation.feature_names import with_hash
    >>> with_hash("a/clip.mp4.npy", "/videos/a/clip.mp4")
    'a/clip.mp4.658ae23c.npy'
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + _cut(last.removesuffix(_ENDING), f".{_hash_of(source)}{_ENDING}")


def _folder_name(name: str) -> str:
    # Without a hash, a folder `clip.mp4.npy` would have the path of the features of `clip.mp4`.
    if name.lower().endswith(_ENDING) or name.lower() in (SETTINGS_FILE, SOURCES_FILE):
        return _cut(name, f".{_hash_of(name)}")
    return _fitting(name, "")


def _fitting(name: str, ending: str) -> str:
    raw = os.fsencode(name)
    try:
        shown = raw.decode()
    except UnicodeDecodeError:
        shown = raw.decode("utf-8", "backslashreplace").replace("\\x", "%")
    if shown == name and len(raw) + len(ending) <= _MOST_BYTES:
        return name + ending
    return _cut(shown, f".{_hash_of(name)}{ending}")


def _cut(name: str, ending: str) -> str:
    raw = os.fsencode(name)
    # "ignore" drops a letter of several bytes if the cut goes through it.
    return raw[: _MOST_BYTES - len(ending)].decode("utf-8", "ignore") + ending


def _hash_of(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name)).hexdigest()[:_HASH_DIGITS]
