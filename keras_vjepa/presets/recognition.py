"""Recognise a file of V-JEPA 2.1, so that a refusal can name it (vjepa21 §6)."""

from contextlib import suppress
from pathlib import Path

from keras_vjepa import files

# Prefixes of names of tensors that only this model has.
OWN_TENSORS = (
    "norms_block.",
    "patch_embed_img.",
    "img_mod_embed",
    "video_mod_embed",
    "predictor_proj_context.",
)
# Prefixes of the names of its files. A file of torch begins with its index, which is not
# compressed, so that even a damaged one shows the names of its tensors.
_NAME = "vjepa2_1"
_LOOKED_AT = 2**23
# Endings of files of weights, and how many of them are looked at in a folder.
_WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
_MOST_FILES = 8


def is_version_21(path: Path) -> bool:
    """Tell whether a file is one of V-JEPA 2.1, by its name or its first bytes, even if damaged.

    Args:
        path: any path; a file that cannot be read is not one. A folder is one if it holds one.
    """
    if path.name.startswith(_NAME):
        return True
    kind = files.kind_of(path)
    if kind == "folder":
        with suppress(OSError):
            own = sorted(one for one in path.iterdir() if one.suffix in _WEIGHTS)
            return any(is_version_21(one) for one in own[:_MOST_FILES] if not one.is_dir())
    if kind != "file":
        return False
    start = b""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(_LOOKED_AT)
    return any(own.encode() in start for own in OWN_TENSORS)
