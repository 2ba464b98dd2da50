"""Time the rivals' encoders beside plain PyTorch and transformers (Tables 5 and 6; App. D.1).

    KERAS_BACKEND=torch keras-vjepa bench-rivals --size small --pairs 5

Each encoder is timed without gradients, in turn with the same network in plain PyTorch, and with
that of the transformers package, where this is installed and has the family. The ratio of a pair is
the other's time by ours, so that more than 1 means that this package is faster. Times are of the
processor, all cores together, which other processes on the machine disturb less.

The plain networks follow the descriptions of the official ones, with modules and their fused
attention. Their parameters are called as in the official files (but for CLIP's), so that a
`state_dict` is such a file: tests compare numbers. Positions that are learned are random.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from keras_vjepa.arguments import MOST_LONG, check_whole
from keras_vjepa.backend import engine
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.conversion import export_hugging_face
from keras_vjepa.conversion.errors import CheckpointError
from keras_vjepa.models import VJEPABackbone
from keras_vjepa.models import backbone as vjepa
from keras_vjepa.models.families import (
    DINOv2Backbone,
    HieraBackbone,
    IJEPABackbone,
    MVDBackbone,
    OmniMAEBackbone,
    OpenCLIPBackbone,
    RivalBackbone,
    VideoMAEBackbone,
    VideoMAEv2Backbone,
    VisionBackbone,
)
from keras_vjepa.tools.bench_finetune import in_turns
from keras_vjepa.tools.plain_torch_hiera import Hiera
from keras_vjepa.tools.plain_torch_vision import Vision

FAMILIES: dict[str, Any] = {
    "videomae": VideoMAEBackbone,
    "videomaev2": VideoMAEv2Backbone,
    "mvd": MVDBackbone,
    "omnimae": OmniMAEBackbone,
    "hiera": HieraBackbone,
    "hiera_images": HieraBackbone,
    "dinov2": DINOv2Backbone,
    "ijepa": IJEPABackbone,
    "openclip": OpenCLIPBackbone,
}


def plain_network(of: RivalBackbone) -> nn.Module:
    """Make the plain network with the architecture of a backbone, with random weights.

    Args:
        of: the backbone; it is not changed.
    """
    return (Vision(of) if isinstance(of, VisionBackbone) else Hiera(of)).eval()


def encoder_of(family: str, size: str) -> RivalBackbone:
    """Make a family's encoder with random weights, of a size that is one for all ViTs.

    Args:
        family: one of `FAMILIES`; Hiera's is always its base.
        size: a name of V-JEPA's sizes.
    """
    if family.startswith("hiera"):
        frames = 1 if family == "hiera_images" else 16
        made = HieraBackbone.from_size("base", num_frames=frames, final_norm=frames == 1)
    else:
        dims = vjepa.SIZES[size]
        own = {"hidden_dim": dims.hidden_dim, "num_layers": dims.num_layers}
        more = {"projection_dim": dims.hidden_dim} if family == "openclip" else {}
        made = FAMILIES[family](num_heads=dims.num_heads, **own, **more)
    encoder: RivalBackbone = made
    return encoder


def transformers_network(of: RivalBackbone | VJEPABackbone, folder: Path) -> nn.Module | None:
    """Make the network of the transformers package with a backbone's weights.

    Args:
        of: the backbone.
        folder: for its files; must not exist.

    Returns:
        None where that package is not installed or lacks the model.
    """
    try:
        import transformers
        from transformers import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        export_hugging_face(of, folder)
        name = json.loads((folder / "config.json").read_text())["architectures"][0]
        network: nn.Module = getattr(transformers, name).from_pretrained(folder).eval()
    except (ImportError, RuntimeError, CheckpointError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"{type(of).__name__} is not compared with transformers: {reason}", flush=True)
        return None
    return network


def transformers_features(of: VJEPABackbone, videos: np.ndarray) -> Callable[[], Any] | None:
    """Make a function that computes a V-JEPA 2's features by the transformers package.

    Args:
        of: the encoder.
        videos: its input.

    Returns:
        None where that package is not installed or lacks the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        network = transformers_network(of, Path(folder) / "encoder")
    moved = torch.from_numpy(np.moveaxis(videos, -1, 2).copy())

    def features() -> Any:
        with torch.no_grad():
            return network(moved, skip_predictor=True)  # type: ignore[misc]

    return None if network is None else features


def compare(family: str, size: str, batch_size: int, pairs: int) -> list[str]:
    """Time an encoder and its counterparts, and write a line for each of these."""
    encoder = encoder_of(family, size)
    shape = (batch_size, *encoder.video_shape[encoder.is_image_model :])
    ours = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype("float32"))
    theirs = ours.movedim(-1, 1).contiguous()
    plain = plain_network(encoder)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: encoder(ours),
        "plain PyTorch": lambda: plain(theirs),
    }
    with tempfile.TemporaryDirectory() as folder:
        other = transformers_network(encoder, Path(folder) / "encoder")
    if other is not None:
        moved = theirs if encoder.is_image_model else theirs.movedim(1, 2).contiguous()
        calls["transformers"] = lambda: other(moved)
    with torch.no_grad():
        times = in_turns([*calls.values()], pairs)
    # Of each call, the second number is the processor's.
    seconds = {name: [one[1] for one in own] for name, own in zip(calls, times, strict=True)}
    own, lines = seconds.pop("ours"), []
    for name, found in seconds.items():
        ratios = sorted(np.divide(found, own).tolist())
        lines.append(
            f"{family:13s} {name:14s} {np.median(own):7.3f} s, {np.median(found):7.3f} s, ratio "
            f"{np.median(ratios):5.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )
    return lines


def main(arguments: list[str] | None = None, program: str = "plain_torch_rivals.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--families", nargs="+", default=[*FAMILIES], choices=[*FAMILIES], help="(default: all)"
    )
    sizes = ("tiny", "small", "base", "large")
    parser.add_argument("--size", default="small", choices=sizes, help="of all ViTs")
    parser.add_argument("--batch-size", type=int, default=1, help="clips or images")
    parser.add_argument("--pairs", type=int, default=5, help="times that each is timed")
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(1, MOST_LONG, batch_size=options.batch_size, pairs=options.pairs)
        if engine.name() != "torch":
            raise ValueError(f"`KERAS_BACKEND` must be torch. Received: {engine.name()}")
    print("family        beside            ours,    theirs, ratio of pairs: median (range)")
    for family in options.families:
        for line in compare(family, options.size, options.batch_size, options.pairs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
