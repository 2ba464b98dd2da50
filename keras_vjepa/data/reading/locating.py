"""Find what a path leads to: a file, here or elsewhere, a folder of frames, a member (§3.4).

This is the one place that knows what a path can mean.
"""

import os
from pathlib import Path

from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.reading.kinds import has_image_extension
from keras_vjepa.data.reading.media import File, Media
from keras_vjepa.data.reading.remote import ADDRESS, RemoteFile
from keras_vjepa.data.reading.tar_shards import tar_member_at


def media_at(source: str | Path | Media) -> Media:
    """Find what a path leads to.

    Args:
        source: a path, or media, which are returned as they are.

    Returns:
        For a folder, a video of the pictures in it; for a path that leads into a tar file, a member
        of it; for an address such as `gs://bucket/a.mp4`, a file that is fetched; for any other
        path a file, which may be missing.

    Example:

    >>> media_at("videos/a.mp4")
    File(name='videos/a.mp4')
    """
    if isinstance(source, Media):
        return source
    path = os.fspath(source)
    member = tar_member_at(path)
    if member is not None:
        return member
    if ADDRESS.match(path):
        return RemoteFile(path)
    return FrameFolder(path) if _is_folder(path) else File(path)


def is_image(source: str | Path | Media) -> bool:
    """Tell whether something is an image; for a path, its extension says so.

    Args:
        source: as `media_at` takes it.
    """
    return source.is_image if isinstance(source, Media) else has_image_extension(str(source))


def name_of(source: str | Path | Media) -> str:
    """Return the name in messages of something that `media_at` takes."""
    return source.name if isinstance(source, Media) else str(source)


def media_is_there(path: str) -> bool:
    """Tell whether there is anything at a path; only reading tells if it is a whole video."""
    try:
        return os.path.exists(path) or any(media_at(path).status())
    except ValueError:  # no system has such a name
        return False


def _is_folder(path: str) -> bool:
    try:
        return os.path.isdir(path)
    except ValueError:  # no system has such a name
        return False
