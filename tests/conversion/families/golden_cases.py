"""The golden data of V-JEPA's rivals: which checkpoint makes which arrays, and how.

`tests/golden/rivals` has a few of the files; the rest are the project's `shared/reference`, beside
the repository, and tests of them are skipped where it is missing.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from keras_vjepa import VJEPAVideoClassifier
from keras_vjepa.conversion import convert
from tests.support import GOLDEN, ROOT

OWN = GOLDEN / "rivals"
SHARED = ROOT.parent / "shared" / "reference" / "baselines"
TOLERANCE, EPSILON_TOLERANCE = 5e-5, 3e-3


@dataclasses.dataclass(frozen=True)
class Case:
    """One checkpoint.

    Attributes:
        file: below the folder of golden data.
        family: None to have it found.
        arguments: what the file does not tell.
        inputs: names of inputs by what the names of their arrays begin with.
    """

    file: str
    family: str | None
    arguments: dict[str, Any]
    inputs: dict[str, str]

    @property
    def name(self) -> str:
        """Of the test."""
        return "-".join([self.file, *(str(v) for k, v in self.arguments.items() if k in _TOLD)])

    @property
    def folder(self) -> Path:
        """Where the file lies: in the repository, if it is there."""
        return OWN if (OWN / self.file).exists() else SHARED

    def model(self) -> Any:
        """Convert the file."""
        return convert(self.folder / self.file, family=self.family, **self.arguments)

    def arrays(self) -> Any:
        """Load inputs and outputs."""
        return np.load(self.folder / self.file.split("/")[0] / "golden.npz")


_TOLD = ("network", "activation", "image_size")
_FOUR = {"num_heads": 4}
_TUNED = {"num_heads": 2, "num_frames": 8}


def _videomae(family: str, size: int, rectangle: tuple[int, int]) -> Iterator[Case]:
    clips = {"clip": "clip", "epsilon": "epsilon_clip"}
    given = {**_FOUR, "image_size": size}
    yield Case(f"{family}/pretrained.pth", family, given, clips)
    given = {**_TUNED, "image_size": rectangle}
    yield Case(f"{family}/finetuned.pth", family, given, {"rect": "rect_clip"})


def _images(*names: str) -> dict[str, str]:
    return {name: f"{name}_image" for name in names}


CASES = (
    *_videomae("videomae", 12, (16, 24)),
    *_videomae("videomaev2", 21, (14, 21)),
    Case("mvd/checkpoint-399.pth", None, _FOUR, {"clip": "clip", "epsilon": "epsilon_clip"}),
    Case(
        "mvd/finetuned.pth",
        "mvd",
        {"num_heads": 2, "num_frames": 4, "image_size": 24},
        {"finetuned": "finetuned_clip"},
    ),
    Case(
        "omnimae/pretrain.torch",
        None,
        {**_FOUR, "num_frames": 8},
        {
            **{"clip": "clip", "epsilon": "epsilon_clip"},
            **{f"image_{side}": f"image_{side}_input" for side in (12, 16, 24)},
        },
    ),
    Case("omnimae/ssv2_ft.torch", None, _TUNED, {"finetuned": "finetuned_clip"}),
    Case("dinov2/mlp.pth", None, _FOUR, _images("mlp_35x35", "mlp_21x21", "mlp_28x49", "epsilon")),
    Case("dinov2/swiglu.pth", None, _FOUR, _images("swiglu_35x35", "swiglu_28x49")),
    Case("dinov2/swiglu_reg4.pth", None, _FOUR, _images("swiglu_reg4_35x35", "swiglu_reg4_28x49")),
    Case("ijepa/checkpoint.pth.tar", None, _FOUR, {"target": "image"}),
    Case(
        "ijepa/checkpoint.pth.tar",
        "ijepa",
        {**_FOUR, "network": "encoder"},
        {"encoder": "image", **_images("fresh", "epsilon")},
    ),
    Case(
        "ijepa/checkpoint.pth.tar",
        "ijepa",
        {**_FOUR, "network": "encoder", "image_size": 56},
        _images("fresh"),
    ),
    Case(
        "openclip/open_clip_pytorch_model.bin",
        None,
        _FOUR,
        {"": "image", **_images("resized_42x42", "resized_21x35", "epsilon")},
    ),
    Case(
        "openclip/open_clip_pytorch_model.bin",
        "openclip",
        {**_FOUR, "activation": "quick_gelu"},
        {"quickgelu": "image"},
    ),
)


def outputs(model: Any, inputs: np.ndarray) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What the golden data may have of an input, by the ends of their names.

    Args:
        model: a backbone, or a classifier of one.
        inputs: with the channels at the end.

    Returns:
        Functions, so that what is not there costs nothing.
    """
    backbone = getattr(model, "backbone", model)

    def block(number: int, norm: bool = False) -> Any:
        return backbone.intermediate_features(inputs, [number], norm, all_tokens=True)[0]

    yield "tokens", lambda: backbone.embed(inputs)
    yield "normed_tokens", lambda: backbone.input_norm(backbone.embed(inputs))
    yield "block_1", lambda: block(0)
    yield "last_block", lambda: block(-1)
    yield "features", lambda: backbone(inputs)
    yield "class_token", lambda: block(-1, norm=True)[:, 0]
    yield "register_tokens", lambda: block(-1, norm=True)[:, 1 : backbone.num_prefix_tokens]
    if isinstance(model, VJEPAVideoClassifier):
        yield "logits", lambda: model(inputs)
        tokens = backbone.clip_tokens(inputs, norm=False)
        yield "pooled", lambda: model.probe.norm(ops.mean(tokens, axis=1))
    elif backbone.facts.projects:
        yield "pooled", lambda: backbone.image_embeddings(inputs)


def differences(model: Any, arrays: Any, case: Case) -> dict[str, float]:
    """Compare all that the golden data have of a case."""
    found = {}
    for prefix, name in case.inputs.items():
        if name not in arrays:
            continue
        inputs = np.moveaxis(arrays[name], 1, -1)
        for ending, compute in outputs(model, inputs):
            full = f"{prefix}_{ending}" if prefix else ending
            if full in arrays:
                actual = ops.convert_to_numpy(compute())
                assert actual.shape == arrays[full].shape, full
                found[full] = float(np.abs(actual - arrays[full]).max())
    return found
