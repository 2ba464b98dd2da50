"""Upload a preset to the Hugging Face Hub or to Kaggle, with a page that describes it (App. C).

The hubs' own packages, which are optional, do the uploading. Only files of the preset are sent.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras

from keras_vjepa import files
from keras_vjepa.named_errors import one_line
from keras_vjepa.presets.hubs import HUGGING_FACE, KAGGLE
from keras_vjepa.presets.integrity import METADATA_FILE, damage
from keras_vjepa.presets.model_card import licence_of, model_card
from keras_vjepa.presets.preset import (
    MODEL_FILES,
    PREPROCESSOR_FILE,
    PresetName,
    check_claims,
    check_preset,
)

CARD_FILE = "README.md"

_PRESET_FILES = {*MODEL_FILES, PREPROCESSOR_FILE}
# A name that begins and ends with a letter or digit.
_WORD = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_ADDRESSES = {
    HUGGING_FACE: (re.compile(rf"{_WORD}/{_WORD}", re.ASCII), "hf://user/repo"),
    KAGGLE: (
        re.compile(rf"{_WORD}/{_WORD}/{_WORD}/{_WORD}", re.ASCII),
        "kaggle://user/model/framework/variation",
    ),
}
_LOG = logging.getLogger(__name__)


def upload_preset(address: str, folder: PresetName, licence: str | None = None) -> list[str]:
    """Upload a preset to a hub, from where everybody can load it with `from_preset`.

    The whole folder is checked first. Files that are not part of the preset are not uploaded, and
    the log names them. A repository or model that does not exist is made: public on the Hugging
    Face Hub, private on Kaggle. To have it otherwise, make it yourself beforehand. On the Hugging
    Face Hub, the page is written only if there is none, and files of another preset that was there
    are removed.

    Args:
        address: `hf://user/repo`, or `kaggle://user/model/framework/variation`.
        folder: a folder that `save_to_preset` wrote.
        licence: licence of the weights, as the hub calls it; None for the one that the preset
            states.

    Returns:
        Names of the files that were uploaded.

    Raises:
        FileNotFoundError: if the folder is no preset.
        ImportError: if the hub's package is not installed.
        ValueError: if `address` is no address of a hub, the preset is damaged, nobody is logged in,
            or the hub refuses.

    Example:

    ```python
    backbone.save_to_preset("mine")
    keras_vjepa.upload_preset("hf://me/vjepa_mine", "mine", licence="CC BY-NC 4.0")
    same = keras_vjepa.VJEPABackbone.from_preset("hf://me/vjepa_mine")
    ```
    """
    scheme, name = _parsed(address)
    folder = Path(folder).expanduser()
    paths = check_uploadable(folder)
    skipped = sorted({path.name for path in folder.iterdir()} - {path.name for path in paths})
    card = model_card(folder, address, licence)
    send = _to_hugging_face if scheme == HUGGING_FACE else _to_kaggle
    with _one_line(address):
        sent = send(name, paths, card, licence_of(folder, licence))
    if skipped:
        _LOG.warning("No part of the preset, and not uploaded: %s", ", ".join(skipped))
    return sent


def check_uploadable(folder: Path) -> list[Path]:
    """Check that a folder is a complete preset.

    Returns:
        The files of the preset, without others in the folder.

    Raises:
        FileNotFoundError: if the folder is no preset.
        ValueError: if a file is missing, damaged or does not fit the others.
    """
    check_preset(folder, "folder")
    configs = sorted(path for path in folder.glob("*.json") if path.name in MODEL_FILES)
    configs = [path for path in configs if path.name != METADATA_FILE]
    if not folder.is_dir() or not configs or not (folder / METADATA_FILE).is_file():
        raise FileNotFoundError(
            f"`folder` must be the folder of a preset, as save_to_preset writes it. Received: "
            f"{folder}"
        )
    problem = damage(folder)
    if problem is not None:
        raise ValueError(f"`folder` must be a whole preset. Received one in which {problem}")
    for path in configs:
        check_claims(folder, path.name, keras.Model)
    return sorted(path for path in folder.iterdir() if path.name in _PRESET_FILES)


def _parsed(address: str) -> tuple[str, str]:
    """Split an address into the hub and the name on it."""
    for scheme, (pattern, form) in _ADDRESSES.items():
        if address.startswith(scheme):
            name = address.removeprefix(scheme)
            if pattern.fullmatch(name) and ".." not in name and "--" not in name:
                return scheme, name
            raise ValueError(f"`address` must be {form}. Received: {address!r}")
    forms = " or ".join(form for _, form in _ADDRESSES.values())
    raise ValueError(f"`address` must be {forms}. Received: {address!r}")


@contextmanager
def _one_line(address: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # each library has dozens of exceptions of its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        remedy = ""
        if status in (401, 403):
            remedy = "; log in as somebody who may write there (hf auth login)"
        raise ValueError(f"{address} cannot be written: {one_line(error)}{remedy}") from None


def _to_hugging_face(
    repository: str, paths: list[Path], card: str, licence: str | None
) -> list[str]:
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError(
            f"{HUGGING_FACE}{repository} needs a package: pip install huggingface_hub"
        ) from None
    if huggingface_hub.get_token() is None:
        raise ValueError("nobody is logged in: hf auth login, or the environment variable HF_TOKEN")
    hub: Any = huggingface_hub.HfApi()
    hub.create_repo(repository, exist_ok=True)
    there = set(hub.list_repo_files(repository))
    contents: dict[str, Any] = {path.name: str(path) for path in paths}
    if CARD_FILE not in there:
        contents[CARD_FILE] = card.encode()
    else:
        _LOG.warning("%s has a page already, which stays as it is.", repository)
    operations: list[Any] = [
        huggingface_hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in contents.items()
    ]
    left = sorted((there & _PRESET_FILES) - contents.keys())
    operations += [huggingface_hub.CommitOperationDelete(path_in_repo=name) for name in left]
    if left:
        _LOG.warning("Of the preset that was there, these are removed: %s", ", ".join(left))
    hub.create_commit(repository, operations, commit_message="Upload a preset of keras_vjepa")
    return list(contents)


def _to_kaggle(name: str, paths: list[Path], card: str, licence: str | None) -> list[str]:
    try:
        import kagglehub
    except ImportError:
        raise ImportError(f"{KAGGLE}{name} needs a package: pip install kagglehub") from None
    try:
        kagglehub.whoami()
    except Exception as error:
        raise ValueError(
            f"nobody is logged in: kagglehub.login(), or the environment variable KAGGLE_API_TOKEN "
            f"({one_line(error)})"
        ) from None
    # That package uploads everything in a folder, so that the files are copied into one of their
    # own.
    with files.scratch_folder(files.cache_folder()) as scratch:
        for path in paths:
            files.copy(path.resolve(), scratch / path.name)
        (scratch / CARD_FILE).write_text(card, "utf-8")
        kagglehub.model_upload(name, str(scratch), license_name=licence)
    return [*(path.name for path in paths), CARD_FILE]
