"""Files from elsewhere: the authors' checkpoints, and presets on the hubs (App. C, App. D.1).

Downloading is left to libraries. `huggingface_hub` and `kagglehub`, each an extra, keep a cache,
resume, know revisions and work without network. The authors' files lie on a plain web server, from
which Keras' own `get_file` takes them: it notices a short answer and needs no package beside Keras,
but it does not resume. What is done here is the part that it leaves: SHA-256, and that there is
never half a file under its final name.
"""

import hashlib
import os
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras

from keras_vjepa import files
from keras_vjepa.named_errors import one_line

TRUST_VARIABLE = "KERAS_VJEPA_TRUST_ON_FIRST_USE"
_HUGGING_FACE, _KAGGLE = "hf://", "kaggle://"


# --- A file on a web server ----------------------------------------------------------------------


@dataclass(frozen=True)
class RemoteFile:
    """A file on a web server.

    Attributes:
        address: where it is.
        sha256: its hash, or None while it is not yet known.
    """

    address: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.address.rsplit("/", 1)[-1]

    @property
    def _trusted(self) -> Path:
        """Where the hash of the first download is kept, in the layout of `sha256sum`."""
        readable = self.address.split("://", 1)[-1].replace("/", "_")
        return files.cache_folder() / "trusted" / f"{readable}.sha256"

    def known_sha256(self) -> str | None:
        """The hash that the file must have: the stated one, else that of the first download."""
        if self.sha256 is None and self._trusted.is_file():
            return self._trusted.read_text().split()[0]
        return self.sha256

    def trust(self, sha256: str) -> None:
        """Keep the hash of the first download, unless there is one."""
        files.write_text(self._trusted, f"{sha256}  {self.address}\n", existing="keep")


@contextmanager
def downloaded(file: RemoteFile, trust_on_first_use: bool = False) -> Iterator[Path]:
    """Download a file for as long as the context lasts.

    Its hash is checked. Where none is known, that of this download is kept when the context ends
    well, so a file that turned out to be useless is not trusted.

    Args:
        file: what to download.
        trust_on_first_use: accept a file whose hash is not known.

    Yields:
        Path of the complete file, which is removed afterwards.

    Raises:
        ValueError: if it cannot be downloaded, has another hash than it must, or its hash is not
            known and may not be trusted.
    """
    known = file.known_sha256()
    trusted = trust_on_first_use or os.environ.get(TRUST_VARIABLE, "0") not in ("", "0")
    if known is None and not trusted:
        raise ValueError(
            f"The SHA-256 of {file.address} is not yet known, so nothing says that what is "
            "downloaded is the authors' file. To accept it once and pin its hash, pass "
            f"`trust_on_first_use=True` or set {TRUST_VARIABLE}=1."
        )
    # The system's temporary folder may be too small for it.
    with files.scratch_folder(files.cache_folder()) as folder:
        path = _fetch(file, folder)
        with open(path, "rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        if known is not None and sha256 != known:
            origin = "this package" if file.sha256 else str(file._trusted)
            raise ValueError(
                f"{file.address} must have the SHA-256 {known}, according to {origin}. "
                f"Received: {sha256}. The file was removed."
            )
        yield path
        if known is None:
            file.trust(sha256)


def _fetch(file: RemoteFile, folder: Path) -> Path:
    try:
        path = keras.utils.get_file(
            file.name, file.address, cache_dir=str(folder), cache_subdir=str(folder)
        )
    except Exception as error:  # `get_file` raises nothing more exact.
        # Without the errors below it, which are pages that end in the same words.
        raise ValueError(
            f"{file.address} cannot be downloaded, and nothing was kept: {_reason(error)}. "
            f"Try again, or fetch it yourself: curl -C - -O {file.address}, and then "
            "keras-vjepa convert."
        ) from None
    return Path(path)


def _reason(error: Exception) -> str:
    """What the network said, where `get_file` has packed it into words of its own."""
    cause = error.__context__
    if isinstance(cause, urllib.error.HTTPError):
        return f"the server answers {cause.code}, {cause.reason}"
    if isinstance(cause, urllib.error.URLError):
        return f"no connection ({cause.reason})"
    return one_line(error).rstrip(".")


# --- Hubs ----------------------------------------------------------------------------------------


def is_address(preset: str) -> bool:
    """Whether this names a preset on a hub."""
    return preset.startswith((_HUGGING_FACE, _KAGGLE))


def preset_from_hub(preset: str, load_weights: bool) -> Path:
    """The local copy of a preset on a hub.

    Args:
        preset: `hf://user/repo`, `hf://user/repo@revision`, or
            `kaggle://user/model/framework/variation[/version]`.
        load_weights: False leaves weights out, where the hub's library can.

    Raises:
        ImportError: if the hub's library is not installed.
        ValueError: if the preset cannot be fetched.
    """
    fetch = _from_hugging_face if preset.startswith(_HUGGING_FACE) else _from_kaggle
    try:
        return fetch(preset, load_weights)
    except ImportError:
        raise
    except Exception as error:  # Each library has dozens of its own.
        raise ValueError(f"{preset} cannot be fetched: {one_line(error)}") from None


def _from_hugging_face(preset: str, load_weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(f"{preset} needs a package: pip install huggingface_hub") from None
    repository, _, revision = preset.removeprefix(_HUGGING_FACE).partition("@")
    patterns = ["*.json", "*.h5", "*.safetensors"] if load_weights else ["*.json"]
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))


def _from_kaggle(preset: str, load_weights: bool) -> Path:
    try:
        import kagglehub
    except ImportError:
        raise ImportError(f"{preset} needs a package: pip install kagglehub") from None
    return Path(kagglehub.model_download(preset.removeprefix(_KAGGLE)))
