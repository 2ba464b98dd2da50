"""Say in one line, with the file's name, what is wrong with foreign weights (App. D.1)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_vjepa import files, named_errors
from keras_vjepa.arguments import shown
from keras_vjepa.presets.recognition import is_version_21

_MOST_LISTED = 8


class CheckpointError(ValueError):
    """Says in one line that a checkpoint cannot be read or does not fit."""


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Turn every error of a block into a `CheckpointError` of one line that names the file.

    Args:
        path: the file or folder that is read in the block.

    Raises:
        CheckpointError: if the block raises anything.
    """
    try:
        with named_errors.named(path, CheckpointError):
            yield
    except CheckpointError as error:
        if "V-JEPA 2.1" in str(error) or not is_version_21(Path(path)):
            raise
        kind = "with files of V-JEPA 2.1" if Path(path).is_dir() else "a V-JEPA 2.1 file"
        raise CheckpointError(f"{error} ({kind})") from error


def listed(names: Iterable[object]) -> str:
    """Write names from a file on one line; of many, only the first and the number of others."""
    names = list(names)
    found = [shown(name)[1:-1] if isinstance(name, str) else shown(name) for name in names]
    more = f" and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(found[:_MOST_LISTED]) + more


def check_file(path: Path) -> None:
    """Check that a path is a plain file, since opening a pipe would wait for ever.

    Raises:
        CheckpointError: if it is not.
    """
    kind = files.kind_of(path)
    if kind is None:
        raise CheckpointError(f"no such file: {path}")
    if kind != "file":
        raise CheckpointError(f"{path} must be a file. Received: a {kind}")


def check_weights(described: str, asked_for: int, num_bytes: int) -> None:
    """Check that a file is large enough for the model that it describes, before that is made.

    Every weight takes at least a byte in a file. The model is therefore at most four times as large
    as the file, whatever the file says. Other errors are found when the weights are loaded.

    Args:
        described: the model that the file describes, in words.
        asked_for: number of weights of that model.
        num_bytes: number of bytes of the file.

    Raises:
        CheckpointError: if there are fewer bytes than weights.
    """
    if asked_for > num_bytes:
        raise CheckpointError(
            f"it describes {described} of {asked_for:,} weights, and holds {num_bytes:,} bytes"
        )
