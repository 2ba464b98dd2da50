"""Fetch presets from the Hugging Face Hub and from Kaggle, and recognise their names (App. C).

The packages `huggingface_hub` and `kagglehub`, which are optional, do the work: they keep a cache,
resume downloads, know revisions and work without a network.
"""

from pathlib import Path

from keras_vjepa.named_errors import one_line

HUGGING_FACE, KAGGLE = "hf://", "kaggle://"


def is_address(preset: str) -> bool:
    """Tell whether a name is that of a preset on a hub."""
    return preset.startswith((HUGGING_FACE, KAGGLE))


def preset_from_hub(preset: str, load_weights: bool) -> Path:
    """Fetch a preset from a hub, and return the folder of the local copy.

    Args:
        preset: `hf://user/repo`, `hf://user/repo@revision`, or
            `kaggle://user/model/framework/variation[/version]`.
        load_weights: False leaves weights out, if the hub's library can do so.

    Raises:
        ImportError: if the hub's library is not installed.
        ValueError: if the preset cannot be fetched.
    """
    fetch = _from_hugging_face if preset.startswith(HUGGING_FACE) else _from_kaggle
    try:
        return fetch(preset, load_weights)
    except ImportError:
        raise
    except Exception as error:  # each library has dozens of exceptions of its own
        raise ValueError(f"{preset} cannot be fetched: {one_line(error)}") from None


def _from_hugging_face(preset: str, load_weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ImportError(f"{preset} needs a package: pip install huggingface_hub") from None
    repository, _, revision = preset.removeprefix(HUGGING_FACE).partition("@")
    patterns = ["*.json", "*.h5", "*.safetensors"] if load_weights else ["*.json"]
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))


def _from_kaggle(preset: str, load_weights: bool) -> Path:
    try:
        import kagglehub
    except ImportError:
        raise ImportError(f"{preset} needs a package: pip install kagglehub") from None
    return Path(kagglehub.model_download(preset.removeprefix(KAGGLE)))
