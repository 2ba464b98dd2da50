"""Time the decoder and V-JEPA 2's encoders beside plain PyTorch or transformers (App. C, F).

    KERAS_BACKEND=torch OMP_NUM_THREADS=1 keras-vjepa bench-plain --network decoder --batch-size 8

Ours and the plain one take turns, so that other work on the machine disturbs both, and their CPU
time is shown beside the time that passed. For the decoder, its convolutions, which fold time into
the batch, are then timed beside 3-D ones of the same backend.
"""

import functools
from collections.abc import Callable
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras
import numpy as np

from keras_vjepa import AdamW, FeatureDecoder, VJEPABackbone
from keras_vjepa.backend import distribution
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.layers.space_time import SpaceTimeConvolution
from keras_vjepa.models.diffusion_network import DiffusionNetwork
from keras_vjepa.tools.bench_finetune import in_turns, timing_options

SAMPLING_STEPS = 10
# The decoder of `keras-vjepa decode train` for the built-in videos.
DECODER = {
    "clip_shape": (8, 16, 16), "feature_dim": 96, "grid_shape": (4, 2, 2), "width": 16,
    "multipliers": (1, 2, 4), "num_blocks": 1, "attention_at": (4,), "head_dim": 32,
    "condition": "grid", "factorized": True, "groups": 8,
}  # fmt: skip
# An encoder that a processor can run.
ENCODER = {"image_size": 224, "num_frames": 8, "hidden_dim": 384, "num_layers": 6, "num_heads": 6}


def compare(
    name: str,
    ours: Callable[[], Any],
    plain: Callable[[], Any],
    count: int,
    other_name: str = "plain PyTorch",
) -> None:
    """Time two functions in turns, and print both and the other one's time as a share of ours."""
    own, other = (np.median(times, axis=0) for times in in_turns([ours, plain], count))
    for kind, one, plain_one in zip(("", " of CPU"), own, other, strict=True):
        print(
            f"{name:10s}keras_vjepa {one:.3f} s{kind}, {other_name} {plain_one:.3f} s{kind}: "
            f"{plain_one / one:.2f} times as fast",
            flush=True,
        )


def decoder_batch(network: DiffusionNetwork, count: int) -> dict[str, Any]:
    """Make a batch of noise for a decoder."""
    rng, shape = np.random.default_rng(0), (count, *network.clip_shape, 3)
    tokens = (count, network.num_tokens, network.feature_dim)
    return {
        "clips": rng.uniform(-1, 1, shape).astype("float32"),
        "noise": rng.normal(size=shape).astype("float32"),
        "timesteps": rng.integers(0, 1000, count).astype("int32"),
        "features": rng.normal(size=tokens).astype("float32"),
        "kinds": np.arange(count, dtype="int32") % 3,
    }


def bench_decoder(batch_size: int, steps: int, **changes: Any) -> None:
    """Compare a training step, and samples of `SAMPLING_STEPS` timesteps.

    Args:
        batch_size: clips of a step, and of a sample.
        steps: that are timed, of each.
        changes: arguments of the network in place of `DECODER`.
    """
    from keras_vjepa.tools import plain_torch_unet

    sizes: Any = {**DECODER, **changes}
    network = DiffusionNetwork(**sizes)
    decoder, plain = FeatureDecoder(network, average=0.995), plain_torch_unet.Training(network)
    decoder.compile(AdamW(2e-3, 0.0, clip_norm=1.0))
    batch = decoder_batch(network, batch_size)
    weights = sum(weight.numel() for weight in plain.network.parameters())
    print(f"U-Net of {network.count_params():,} and plain {weights:,} weights, batch {batch_size}")
    compare(
        "training",
        lambda: float(decoder.train_on_batch(batch)),
        lambda: plain.step(batch),
        steps,
    )
    compare(
        "sampling",
        lambda: decoder.sample(batch["features"], steps=SAMPLING_STEPS),
        lambda: plain.sample(batch["features"], SAMPLING_STEPS),
        steps,
    )


def bench_folding(batch_size: int, steps: int, **changes: Any) -> None:
    """Compare convolutions that fold time into the batch with 3-D ones of the same sizes.

    Args:
        batch_size: clips of a training step of four such layers.
        steps: that are timed, of each.
        changes: sizes of the network in place of `DECODER`.
    """
    sizes: Any = {**DECODER, **changes}
    width, shape = sizes["width"], (*sizes["clip_shape"], sizes["width"])
    kernels = ((1, 3, 3), (3, 1, 1))
    folded = [SpaceTimeConvolution(width, factorized=True) for _ in range(4)]
    whole = [keras.layers.Conv3D(width, size, padding="same") for _ in range(4) for size in kernels]
    clips = np.random.default_rng(0).normal(size=(batch_size, *shape)).astype("float32")
    models = [keras.Sequential([keras.Input(shape), *layers]) for layers in (folded, whole)]
    for model in models:
        model.compile("sgd", "mse")
    ours, other = (functools.partial(model.train_on_batch, clips, clips) for model in models)
    compare("folding", ours, other, steps, "3-D convolutions")


def bench_encoder(batch_size: int, steps: int, **changes: Any) -> None:
    """Compare the features of videos.

    Args:
        batch_size: clips at a time.
        steps: that are timed, of each.
        changes: sizes of the encoder in place of `ENCODER`.
    """
    from keras_vjepa.tools import plain_torch_vjepa21

    sizes: Any = {**ENCODER, **changes}
    levels = tuple(range(sizes["num_layers"]))
    encoder = VJEPABackbone(
        **sizes, position_embedding="rotary_pairs", position_reach=15, level_layers=levels[-4:],
        modalities=True,
    )  # fmt: skip
    encoder.trainable = False
    plain = plain_torch_vjepa21.Encoder(encoder)
    videos = np.random.default_rng(0).normal(size=(batch_size, *encoder.video_shape))
    videos = videos.astype("float32")
    print(f"V-JEPA 2.1, {sizes['num_layers']} blocks, {sizes['hidden_dim']} wide, {videos.shape}")
    compare(
        "features",
        lambda: np.asarray(encoder.predict_on_batch(videos)),
        lambda: plain.features(videos),
        steps,
    )


def bench_beside_transformers(batch_size: int, steps: int, **changes: Any) -> None:
    """Compare the features of V-JEPA 2 with the same model in the transformers package.

    Args:
        batch_size: clips at a time.
        steps: that are timed, of each.
        changes: sizes of the encoder in place of `ENCODER`.
    """
    from keras_vjepa.tools.plain_torch_rivals import transformers_features

    encoder = VJEPABackbone(**{**ENCODER, **changes}, position_embedding="rotary")
    encoder.trainable = False
    videos = np.random.default_rng(0).normal(size=(batch_size, *encoder.video_shape))
    videos = videos.astype("float32")
    theirs = transformers_features(encoder, videos)
    if theirs is None:
        return
    print(f"V-JEPA 2, {encoder.num_layers} blocks, {encoder.hidden_dim} wide, {videos.shape}")
    compare(
        "features",
        lambda: np.asarray(encoder.predict_on_batch(videos)),
        theirs,
        steps,
        "transformers",
    )


RUNS = {
    "decoder": (bench_decoder, bench_folding),
    "vjepa2": (bench_beside_transformers,),
    "vjepa21": (bench_encoder,),
}


def main(arguments: list[str] | None = None, program: str = "bench_plain.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("--network", default="decoder", choices=[*RUNS], help="what is timed")
    options = timing_options(parser, arguments, batch_size=8, has_dtype=False)
    print(distribution.setup())
    with parser.failing(ImportError):  # without torch, which is optional
        for run in RUNS[options.network]:
            run(options.batch_size, options.steps)


if __name__ == "__main__":
    main()
