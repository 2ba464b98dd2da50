"""Files that plain networks of PyTorch write give the numbers of these networks."""

import numpy as np
import pytest
from keras import ops

from keras_vjepa.conversion import convert
from keras_vjepa.layers.hiera_block import hiera_order
from keras_vjepa.models import (
    DINOv2Backbone,
    HieraBackbone,
    IJEPABackbone,
    MVDBackbone,
    OmniMAEBackbone,
    VideoMAEBackbone,
)
from tests.support import slow_but_on

torch = pytest.importorskip("torch")
pytestmark = slow_but_on("torch")

SMALL = {"num_layers": 2, "num_heads": 3, "hidden_dim": 48, "patch_size": 5}
HIERA = {"embed_dim": 6, "embed_heads": 2, "depths": (1, 2, 1, 1)}
# What a file does not tell: the sizes of clips that are no squares, or whose table is in no file.
RECTANGLE, FRAMES = {"image_size": (10, 15), "num_frames": 6}, {"num_frames": 9}
KINDS = {
    "videomae": (VideoMAEBackbone, RECTANGLE, {**SMALL, "mlp_dim": 53}, RECTANGLE),
    "mvd": (MVDBackbone, {"image_size": 15, "num_frames": 3}, {**SMALL, "tubelet_size": 1}, {}),
    "omnimae": (OmniMAEBackbone, {"image_size": 10} | FRAMES, SMALL | {"tubelet_size": 3}, FRAMES),
    "dinov2": (
        DINOv2Backbone,
        {"image_size": 15},
        {**SMALL, "num_register_tokens": 1, "activation": "swiglu", "mlp_dim": 24},
        {},
    ),
    "ijepa": (IJEPABackbone, {"image_size": 20}, SMALL, {}),
    "hiera": (
        HieraBackbone,
        {"image_size": (32, 64), "num_frames": 4},
        {**HIERA, "num_pools": 2},
        {"image_size": (32, 64), "num_pools": 2},
    ),
    "hiera images": (
        HieraBackbone,
        {"image_size": (64, 32), "num_frames": 1},
        {**HIERA, "final_norm": True},
        {"image_size": (64, 32)},
    ),
}


def in_spatial_order(tokens, backbone):
    """Undo the order in which Hiera's network has its tokens."""
    if not isinstance(backbone, HieraBackbone):
        return tokens
    ordered = np.empty_like(tokens)
    ordered[:, hiera_order(backbone.grid_shape, 3 - backbone.num_pools)] = tokens
    return ordered


QUICK = ("videomae", "hiera")
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in QUICK]


@pytest.mark.parametrize("kind", [*QUICK, *SLOW])
def test_a_file_of_a_plain_network(kind, tmp_path):
    from keras_vjepa.tools.plain_torch_rivals import plain_network

    torch.manual_seed(0)
    cls, sizes, arguments, told = KINDS[kind]
    backbone = cls(**sizes, **arguments)
    network = plain_network(backbone)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, 0.3)
        videos = np.random.default_rng(0).normal(size=(2, *backbone.video_shape)).astype("float32")
        inputs = torch.tensor(np.ascontiguousarray(np.moveaxis(videos, -1, 1)))
        expected = network(inputs[:, :, 0] if backbone.is_image_model else inputs).numpy()
    path, tensors = tmp_path / "official.pth", network.state_dict()
    if kind == "omnimae":
        middle = {"patch_embed.proj.": "patch_embed.proj.1."}
        tensors = {f"trunk.{_renamed(name, middle)}": t for name, t in tensors.items()}
    wrapped = {"target_encoder": tensors} if kind == "ijepa" else tensors
    torch.save(wrapped, path)
    heads = arguments.get("embed_heads", arguments.get("num_heads"))
    again = convert(path, family=kind.split()[0], num_heads=heads, **told)
    actual = ops.convert_to_numpy(again(videos))
    np.testing.assert_allclose(actual, in_spatial_order(expected, again), atol=5e-5)


def _renamed(name, starts):
    for start, other in starts.items():
        if name.startswith(start):
            return other + name.removeprefix(start)
    return name
