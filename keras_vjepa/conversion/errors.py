"""What is wrong with weights from elsewhere, in one line that names the file (App. D.1)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from keras_vjepa import files, named_errors
from keras_vjepa.arguments import shown

_MOST_LISTED = 8


class CheckpointError(ValueError):
    """Raised for a checkpoint that cannot be read or does not fit; one line."""


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Have whatever a block raises become a `CheckpointError` of one line that names the file.

    Args:
        path: the file or folder that is read in the block.

    Raises:
        CheckpointError: if the block raises anything.
    """
    with named_errors.named(path, CheckpointError):
        yield


def listed(names: Iterable[object]) -> str:
    """Write names that a file gives, on one line; of many only the first, and how many more."""
    names = list(names)
    found = [shown(name)[1:-1] if isinstance(name, str) else shown(name) for name in names]
    more = f" and {len(names) - _MOST_LISTED:,} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(found[:_MOST_LISTED]) + more


def check_file(path: Path) -> None:
    """Check that there is a plain file: to open a pipe would wait for ever.

    Raises:
        CheckpointError: if there is not.
    """
    kind = files.kind_of(path)
    if kind is None:
        raise CheckpointError(f"no such file: {path}")
    if kind != "file":
        raise CheckpointError(f"{path} must be a file. Received: a {kind}")


def check_weights(described: str, asked_for: int, num_bytes: int) -> None:
    """Check that a file has the weights of the model that it describes, before it is made.

    Nothing is stored in less than a byte for each weight, so what is made is at most four times as
    large as the file, whatever the file says. What else does not fit is named when it is loaded.

    Args:
        described: what the file describes.
        asked_for: how many weights that has.
        num_bytes: how many bytes there are.

    Raises:
        CheckpointError: if there are fewer bytes than weights.
    """
    if asked_for > num_bytes:
        raise CheckpointError(
            f"it describes {described} of {asked_for:,} weights, and holds {num_bytes:,} bytes"
        )
