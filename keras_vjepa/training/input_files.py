"""The files that a run is trained on: they are the same when it goes on (App. C, 90,000 steps).

The names are in the run's description. What is in them is kept here, in `input_files.npz` beside
the checkpoints: a hash of the content of each, so a folder may be moved, copied or touched.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vjepa import files
from keras_vjepa.data.sources.content_hashes import HASH_BYTES, Hashes, content_hashes
from keras_vjepa.training.batches import Named
from keras_vjepa.zip_archives import open_archive

_FILE = "input_files.npz"

_LOG = logging.getLogger(__name__)


def check_input_files(workdir: Path, samples: Sequence[Named]) -> None:
    """Raise unless the files are those that a run began with, as far as its folder knows.

    Args:
        workdir: of the run.
        samples: what it is trained on now, in the order of before; none if that is not known.

    Raises:
        ValueError: if there are others, or if there is another content in a file.
    """
    known = _read(workdir) if samples else None
    if known is not None:
        _check(workdir, samples, known, content_hashes([sample.source for sample in samples]))


def knows_input_files(workdir: Path) -> bool:
    """Tell whether a folder says what was in the files of its run, wherever these lie now."""
    return _read(workdir) is not None


def keep_input_files(workdir: Path, samples: Sequence[Named], goes_on: bool) -> None:
    """Keep what is in the files of a run that begins; check it if the run goes on.

    A run that began before this was kept, or whose record is damaged, goes on with the files as
    they are, and the log says so.

    Args:
        workdir: of the run.
        samples: what it is trained on, in their order.
        goes_on: whether steps of it have been done.

    Raises:
        ValueError: as `check_input_files` does.
        OSError: if the record cannot be written.
    """
    found = content_hashes([sample.source for sample in samples])
    known = _read(workdir) if goes_on else None
    if known is not None:
        _check(workdir, samples, known, found)
        return
    if goes_on:
        _LOG.warning(
            "%s does not say what was in the files that this run began with. From here on it "
            "does, for the files as they are.",
            workdir / _FILE,
        )
    with files.unfinished_file(workdir / _FILE) as unfinished:
        np.savez(unfinished, hashes=found)


def _read(workdir: Path) -> Hashes | None:
    """The hashes that a folder holds, None if there are none or they cannot be read."""
    path = workdir / _FILE
    if not path.is_file():
        return None
    try:
        # What a file claims is compared with its bytes first.
        open_archive(path)[0].close()
        with np.load(path, allow_pickle=False) as stored:
            hashes = np.asarray(stored["hashes"])
    except Exception:  # A zip file cut short or changed raises anything.
        hashes = np.zeros(0)
    if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != HASH_BYTES:
        _LOG.warning("Damaged, so what this run was trained on is not compared: %s", path)
        return None
    return hashes


def _check(workdir: Path, samples: Sequence[Named], known: Hashes, found: Hashes) -> None:
    remedy = (
        "Put them back, take another --workdir, or remove "
        f"{workdir / _FILE} to go on with the files as they are."
    )
    if len(known) != len(found):
        raise ValueError(
            f"{workdir} holds a run on {len(known):,} files. Received: {len(found):,}. {remedy}"
        )
    # Reading names a file that is not there any more.
    changed = np.flatnonzero((known != found).any(axis=1) & found.any(axis=1))
    if len(changed):
        raise ValueError(
            f"{workdir} holds a run on files with another content. Received: {len(changed):,} of "
            f"{len(found):,} that have changed since, {samples[changed[0]].path} among them. "
            f"{remedy}"
        )
