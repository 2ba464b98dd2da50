"""Check that a run continues with the files that it began with (App. C, 90,000 steps).

The run's description holds the names of the files. A hash of the content of each is kept in
`input_files.npz`, beside the checkpoints, so a folder may be moved, copied or touched.
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
    """Raise unless the files are those that a run began with, as far as its folder says.

    Args:
        workdir: the folder of the run.
        samples: the samples that it is trained on now, in the same order as at its start; empty if
            they are not known.

    Raises:
        ValueError: if the number of files is another, or the content of a file has changed.
    """
    known = _read(workdir) if samples else None
    if known is not None:
        _check(workdir, samples, known, content_hashes([sample.source for sample in samples]))


def knows_input_files(workdir: Path) -> bool:
    """Tell whether a run's folder holds hashes of the files that the run began with."""
    return _read(workdir) is not None


def keep_input_files(workdir: Path, samples: Sequence[Named], goes_on: bool) -> None:
    """Record hashes of the files when a run begins; compare the files with them when it continues.

    If a run continues and its folder has no record, or a damaged one, the files are taken as they
    are, and the log says so.

    Args:
        workdir: the folder of the run.
        samples: the samples that it is trained on, in their order.
        goes_on: whether steps of the run have been done.

    Raises:
        ValueError: for files that `check_input_files` refuses.
        OSError: if the record cannot be written.
    """
    found = content_hashes([sample.source for sample in samples])
    known = _read(workdir) if goes_on else None
    if known is not None:
        _check(workdir, samples, known, found)
        return
    if goes_on:
        _LOG.warning(
            "Nothing says what was in the files when this run began. %s is written now, for the "
            "files as they are.",
            workdir / _FILE,
        )
    with files.unfinished_file(workdir / _FILE) as unfinished:
        np.savez(unfinished, hashes=found)


def _read(workdir: Path) -> Hashes | None:
    """Return the hashes in a folder; None if there are none or they cannot be read."""
    path = workdir / _FILE
    if not path.is_file():
        return None
    try:
        # First, the sizes that the archive claims are compared with its bytes.
        open_archive(path)[0].close()
        with np.load(path, allow_pickle=False) as stored:
            hashes = np.asarray(stored["hashes"])
    except Exception:  # A damaged zip file may raise any error.
        hashes = np.zeros(0)
    if hashes.dtype != np.uint8 or hashes.ndim != 2 or hashes.shape[1] != HASH_BYTES:
        _LOG.warning(
            "It is not known whether the files have changed, because this record is damaged: %s",
            path,
        )
        return None
    return hashes


def _check(workdir: Path, samples: Sequence[Named], known: Hashes, found: Hashes) -> None:
    remedy = (
        "Put them back, take another --workdir, or remove "
        f"{workdir / _FILE} to continue with the files as they are."
    )
    if len(known) != len(found):
        raise ValueError(
            f"{workdir} holds a run that began with {len(known):,} files. Received: "
            f"{len(found):,}. {remedy}"
        )
    # A hash of zeros means that the file cannot be read; the error is raised when it is read.
    changed = np.flatnonzero((known != found).any(axis=1) & found.any(axis=1))
    if len(changed):
        raise ValueError(
            f"{workdir} holds a run whose data has changed since it began. Received: other content "
            f"in {len(changed):,} of {len(found):,} files, {samples[changed[0]].path} among them. "
            f"{remedy}"
        )
