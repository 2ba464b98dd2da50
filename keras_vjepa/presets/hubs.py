"""Presets on the Hugging Face Hub and on Kaggle: their names, and fetching them (App. C).

Left to `huggingface_hub` and `kagglehub`, each an extra: they keep a cache, resume, know revisions
and work without network.
"""

from pathlib import Path

from keras_vjepa.named_errors import one_line

HUGGING_FACE, KAGGLE = "hf://", "kaggle://"


def is_address(preset: str) -> bool:
    """Whether this names a preset on a hub."""
    return preset.startswith((HUGGING_FACE, KAGGLE))


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
    fetch = _from_hugging_face if preset.startswith(HUGGING_FACE) else _from_kaggle
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
    repository, _, revision = preset.removeprefix(HUGGING_FACE).partition("@")
    patterns = ["*.json", "*.h5", "*.safetensors"] if load_weights else ["*.json"]
    return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))


def _from_kaggle(preset: str, load_weights: bool) -> Path:
    try:
        import kagglehub
    except ImportError:
        raise ImportError(f"{preset} needs a package: pip install kagglehub") from None
    return Path(kagglehub.model_download(preset.removeprefix(KAGGLE)))
