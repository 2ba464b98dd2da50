"""Names of the files that hold the features of videos and images (§4.3, App. D).

They follow the path below the folder that is listed: `a/clip.mp4` has its features in
`a/clip.mp4.npy`. A name that cannot be kept so is cut and escaped, and a hash keeps it apart from
others; it follows from the path alone, so a run that goes on finds it.
"""

import hashlib
import os
from pathlib import PurePath

# In the same folder: what the features depend on, and the files that they are of.
SETTINGS_FILE, SOURCES_FILE = "settings.json", "sources.jsonl"

_ENDING = ".npy"
# What the usual file systems allow in a name.
_MOST_BYTES = 255
_HASH_DIGITS = 8


def features_name(relative: PurePath) -> str:
    """Name the file of the features of a video or an image.

    Args:
        relative: its path below the folder that is listed.

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
    """Name the features of a file whose usual name is another file's.

    Args:
        name: the usual name, of `features_name`.
        source: absolute path of the video or image.

    Example:

    >>> from keras_vjepa.evaluation.feature_names import with_hash
    >>> with_hash("a/clip.mp4.npy", "/videos/a/clip.mp4")
    'a/clip.mp4.658ae23c.npy'
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + _cut(last.removesuffix(_ENDING), f".{_hash_of(source)}{_ENDING}")


def _folder_name(name: str) -> str:
    # Or the folder `clip.mp4.npy` would lie where the features of the file `clip.mp4` do.
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
    # A letter of several bytes is not cut in two.
    return raw[: _MOST_BYTES - len(ending)].decode("utf-8", "ignore") + ending


def _hash_of(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name)).hexdigest()[:_HASH_DIGITS]
