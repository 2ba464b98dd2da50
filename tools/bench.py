"""Time one training step, and compare it with this machine's own matrix products (App. C).

    KERAS_BACKEND=jax python tools/bench.py --size base --batch-size 2

It prints, for the paper's masks at 224 pixels: compile time, step time, the processor's own seconds
of a step, clips/s, peak memory (of the accelerator if there is one, else of the process), and
useful FLOP/s as a share of the peak of large matrix products of the same type, measured in the same
process. `--remat` computes all blocks again in the backward pass, and `--remat-layers` the layers
of these names, as a `keras.RematScope` does: `mlp` stands for the MLPs of all blocks. With
`--attention`, it times the ways to compute attention instead; with `--eager-einsum`, it trains with
the plainest of them, not compiled; with `--no-padding`, it leaves the key masks out. With
`--precision`, it compares features for random weights and a random clip with those in float32. With
`--growth`, it times steps of many sizes of clip and batch, each in a process of its own, and prints
how time grows with the FLOPs and memory with the tokens. With `--scaling`, it times steps on 1, 2,
4 and more devices, `--batch-size` clips on each, and compares weights after some steps with those
of one device. With `--features` and a folder of videos, it times reading them, the model, and both
together, `--steps` times each. Several devices or processes work together as in the recipe, for
example under `torchrun`. This is not a test, because machines differ.
"""

import argparse
import contextlib
import itertools
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras
import numpy as np
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from keras_vjepa.arguments import MOST_LONG, check_choice, check_whole
from keras_vjepa.backend import attention as attention_module
from keras_vjepa.backend import device, distribution
from keras_vjepa.backend.keras_internals import layers_of
from keras_vjepa.backend.token_ops import linear
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.evaluation.pretraining_cost import Transformer, vjepa_attention_flops, vjepa_flops
from keras_vjepa.layers.rematerialization import MLP
from keras_vjepa.models.backbone import SIZES
from keras_vjepa.models.dimensions import token_grid
from keras_vjepa.monitoring.step_log import memory_in_use
from keras_vjepa.tools.bench_features import print_features
from keras_vjepa.tools.bench_growth import StepCost, print_growth
from keras_vjepa.tools.bench_scaling import check_devices, machine, print_scaling
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.run_state import Checkpoints, copy_training_state

# Mean token counts of the reference at 224 pixels and a batch of 24 per device, for short-range and
# long-range masks (official-behaviour §6).
CONTEXT_TOKENS = (368, 104)
TARGET_TOKENS = (752, 1104)
TOKENS = 1568
PATCH = {"patch_size": 16, "tubelet_size": 2}

_CLIPS = {"size", "batch_size", "image_size", "num_frames"}
_STEPS = {"size", "steps", "dtype", "remat", "remat_layers", "processor"}
# What is measured instead of a training step, with the options that change it.
_INSTEAD = {
    "attention": {"size", "batch_size", "steps", "dtype"},
    "precision": _CLIPS,
    "features": _CLIPS | {"steps", "dtype"},
    "growth": _STEPS,
    "scaling": _STEPS | _CLIPS | {"devices"},
}


def training_flops(encoder: VJEPABackbone, predictor: VJEPAPredictor) -> float:
    """Count the FLOPs of one clip's training step: 2 per multiply-add, backward twice forward."""
    tokens = int(np.prod(encoder.grid_shape))
    values = int(np.prod(encoder.tubelet_embedding.kernel.shape)) // encoder.hidden_dim
    parts = Transformer.of(encoder), Transformer.of(predictor)
    return vjepa_flops(*parts, values, tokens, _mask_tokens(tokens))


def attention_flops(encoder: VJEPABackbone, predictor: VJEPAPredictor) -> float:
    """Count those of `training_flops` that are of attention itself."""
    tokens = int(np.prod(encoder.grid_shape))
    parts = Transformer.of(encoder), Transformer.of(predictor)
    return vjepa_attention_flops(*parts, tokens, _mask_tokens(tokens))


def matmul_peak(repeats: int = 8) -> float:
    """Measure the best FLOP/s of large matrix products of the models' type on this device."""
    size, products = (8192, 16) if device.has_accelerator() else (2048, 1)
    x = np.random.default_rng(0).normal(size=(size, size)).astype("float32")
    x = ops.cast(ops.convert_to_tensor(x), keras.config.dtype_policy().compute_dtype)

    def seconds() -> float:
        start = time.perf_counter()
        outputs = [linear(x, x, None) for _ in range(products)]
        _wait_for(outputs[-1][0, 0])
        return time.perf_counter() - start

    return products * 2 * size**3 / min(seconds() for _ in range(repeats))


def _wait_for(scalar: Any) -> None:
    # When the number is on the host, every backend has finished computing it.
    float(ops.convert_to_numpy(ops.cast(scalar, "float32")))


def make_pretrainer(
    size: str, padding: bool, remat: bool = False, image_size: int = 224, num_frames: int = 16
) -> VJEPAPretrainer:
    """Make a pretrainer with an encoder of a named size and random weights."""
    encoder = VJEPABackbone.from_size(
        size, remat=remat, image_size=image_size, num_frames=num_frames
    )
    predictor = VJEPAPredictor(
        encoder.hidden_dim,
        encoder.position_axes,
        num_heads=encoder.num_heads,
        remat=remat,
        name="predictor",
    )
    return VJEPAPretrainer(encoder, predictor, padding=padding)


def make_batch(
    batch_size: int, seed: int = 0, image_size: int = 224, num_frames: int = 16
) -> dict[str, np.ndarray]:
    """Make a batch of noise, with as many tokens as the reference's masks have on average.

    For clips of another size than the paper's, the masks keep their shares of the tokens.
    """
    rng = np.random.default_rng(seed)
    shape = (batch_size, num_frames, image_size, image_size, 3)
    batch = {"videos": rng.normal(size=shape).astype("float32")}
    tokens = math.prod(token_grid({**PATCH, "image_size": image_size, "num_frames": num_frames}))
    order = np.argsort(rng.random((batch_size, tokens)), axis=1).astype("int32")
    for i, (context, target) in enumerate(_mask_tokens(tokens)):
        batch[f"context_indices_{i}"] = np.sort(order[:, :context], axis=1)
        batch[f"target_indices_{i}"] = np.sort(order[:, -target:], axis=1)
    return batch


def _mask_tokens(tokens: int) -> list[tuple[int, int]]:
    pairs = zip(CONTEXT_TOKENS, TARGET_TOKENS, strict=True)
    return [(round(a * tokens / TOKENS), round(b * tokens / TOKENS)) for a, b in pairs]


class _StepTimes(keras.callbacks.Callback):
    """Records when steps end: each of the first `warm_up` steps, then the last of every `block`.

    Within a block, nothing waits for the device, as in a run of the recipe.
    """

    def __init__(self, warm_up: int = 2, block: int = 1) -> None:
        super().__init__()
        self.warm_up = warm_up
        self.block = block
        self.done = 0
        self.ends: list[float] = []
        self.processor_ends: list[float] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.ends = self.ends or [time.perf_counter()]
        self.processor_ends = self.processor_ends or [time.process_time()]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.done += 1
        if self.done <= self.warm_up or (self.done - self.warm_up) % self.block == 0:
            _wait_for(logs["loss"])
            self.ends.append(time.perf_counter())
            self.processor_ends.append(time.process_time())

    @property
    def first(self) -> float:
        return self.ends[1] - self.ends[0]

    @property
    def steps(self) -> np.ndarray:
        """Return the mean seconds of a step in each block."""
        return np.diff(self.ends)[self.warm_up :] / self.block

    @property
    def processor_steps(self) -> np.ndarray:
        """Return the same in the processor's own seconds, which other work hardly changes."""
        return np.diff(self.processor_ends)[self.warm_up :] / self.block


def _asked_for(arguments: argparse.Namespace) -> VJEPAPretrainer:
    """Make the pretrainer of a command line."""
    names = arguments.remat_layers
    # A scope of Keras costs time by itself.
    scope: Any = contextlib.nullcontext()
    if names:
        scope = keras.RematScope("list_of_layers", layer_names=names)
    with scope:
        pretrainer = make_pretrainer(
            arguments.size,
            not arguments.no_padding,
            arguments.remat,
            arguments.image_size,
            arguments.num_frames,
        )
    _check_names(pretrainer, names or ())
    return pretrainer


def _check_names(pretrainer: VJEPAPretrainer, names: Sequence[str]) -> None:
    """Refuse a name that no layer has, which a scope of Keras would pass over."""
    networks: list[keras.layers.Layer] = [pretrainer.encoder, pretrainer.predictor]
    known, found = {MLP}, networks
    while found:
        known |= {layer.name for layer in found}
        found = [part for layer in found for part in layers_of(layer)]
    for name in names:
        check_choice(sorted(known), remat_layers=name)


def bench_training(
    arguments: argparse.Namespace,
    parallel: distribution.DataParallel,
    pretrainer: VJEPAPretrainer,
) -> None:
    """Time training steps, and print the results."""
    if arguments.eager_einsum:
        attention_module._PREFERRED_ON_CPU.clear()
        attention_module.fused_attention = attention_module.plain_attention
    pretrainer.compile(AdamW(1e-4), run_eagerly=arguments.eager_einsum)
    # On a CPU, the host cannot work ahead of the device, so that each step is timed by itself.
    block = 10 if device.has_accelerator() else 1
    # On a GPU, torch records the third step, which therefore takes longer.
    times = _StepTimes(warm_up=3 if device.has_accelerator() else 2, block=block)
    num_steps = times.warm_up + arguments.steps * block
    batch = make_batch(
        arguments.batch_size, image_size=arguments.image_size, num_frames=arguments.num_frames
    )
    data = parallel.feed(itertools.repeat(batch, num_steps))
    peak = matmul_peak()
    pretrainer.fit(data, steps_per_epoch=num_steps, verbose=0, shuffle=False, callbacks=[times])
    if not parallel.is_first:
        return
    step = float(np.median(times.steps))
    peak = max(peak, matmul_peak())
    flops = arguments.batch_size * training_flops(pretrainer.encoder, pretrainer.predictor)
    memory = memory_in_use() or 0
    if arguments.json:
        tokens = arguments.batch_size * int(np.prod(pretrainer.encoder.grid_shape))
        steps = times.processor_steps if arguments.processor else times.steps
        attention = arguments.batch_size * attention_flops(pretrainer.encoder, pretrainer.predictor)
        cost = StepCost(float(steps.min()), memory, flops, tokens, attention)
        print(json.dumps(asdict(cost)))
        return
    print(
        f"{parallel}; {arguments.size}, batch {arguments.batch_size} a process: "
        f"compile {times.first - step:6.1f} s, step {step:7.3f} s "
        f"({times.steps.min():.3f} to {times.steps.max():.3f}; "
        f"{np.median(times.processor_steps):.3f} s of the processor), "
        f"{parallel.process_count * arguments.batch_size / step:6.3f} clips/s, "
        f"{memory / 2**30:5.1f} GiB, "
        f"{flops / step / 1e9:6.1f} of {peak / 1e9:6.1f} GFLOP/s = {flops / step / peak:.0%}"
    )
    if arguments.checkpoint:
        bench_checkpoint(pretrainer)


def bench_checkpoint(pretrainer: VJEPAPretrainer) -> None:
    """Time how long training waits for a checkpoint, and how long the writing takes in all."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder)
        # The first copy also allocates memory, so that it is not timed.
        state = copy_training_state(pretrainer)
        start = time.perf_counter()
        state = copy_training_state(pretrainer, state)
        checkpoints.save(1, state, {})
        held_up = time.perf_counter() - start
        checkpoints.wait()
        written = time.perf_counter() - start
    size = sum(array.nbytes for array in state.values()) / 2**30
    print(f"checkpoint: {size:.2f} GiB, training waits {held_up:.3f} s, written in {written:.3f} s")


def bench_attention(arguments: argparse.Namespace) -> None:
    """Time a training step of each way to compute attention."""
    size = SIZES[arguments.size]
    shape = (arguments.batch_size, TOKENS, size.num_heads, size.hidden_dim // size.num_heads)
    packed = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    for function in (
        attention_module.fused_attention,
        attention_module.plain_attention,
        attention_module.attention_by_head,
    ):
        layer = _AttentionLayer(packed, function)
        times = _StepTimes()
        model = keras.Sequential([layer])
        model.compile(keras.optimizers.SGD(1e-3), loss=lambda y, p: ops.mean(ops.square(p)))
        x, y = np.zeros((1, 1), "float32"), np.zeros((1, 1), "float32")
        for _ in range(arguments.steps + times.warm_up):
            model.fit(x, y, verbose=0, callbacks=[times])
        print(f"{function.__name__:20s} {np.median(times.steps) * 1e3:7.0f} ms")


def bench_precision(arguments: argparse.Namespace) -> None:
    """Compare the features of each precision with those of float32, and time them."""
    clip = {"image_size": arguments.image_size, "num_frames": arguments.num_frames}
    reference = VJEPABackbone.from_size(arguments.size, **clip, dtype="float32")
    shape = (arguments.batch_size, *reference.video_shape)
    video = np.random.default_rng(0).normal(size=shape).astype("float32")
    weights = reference.get_weights()

    def features(model: VJEPABackbone) -> np.ndarray:
        return model.predict_on_batch(video).astype("float32")

    expected = features(reference)
    for precision in ("float32", "bfloat16", "mixed_bfloat16", "int8"):
        name = "float32" if precision == "int8" else precision
        model = VJEPABackbone.from_size(arguments.size, **clip, dtype=name)
        model.set_weights(weights)
        if precision == "int8":
            model.quantize("int8")
        actual = features(model)
        start = time.perf_counter()
        features(model)
        seconds = time.perf_counter() - start
        norms = np.linalg.norm(actual, axis=-1) * np.linalg.norm(expected, axis=-1)
        cosines = np.sum(actual * expected, axis=-1) / norms
        print(
            f"{precision:14s} {seconds:7.3f} s, cosine to float32: "
            f"mean {cosines.mean():.6f}, least of a token {cosines.min():.6f}"
        )


class _AttentionLayer(keras.layers.Layer):
    def __init__(self, packed: np.ndarray, function: attention_module.Attention) -> None:
        super().__init__()
        self.function = function
        self.packed = self.add_weight(shape=packed.shape)
        self.packed.assign(packed)

    def call(self, inputs: Any) -> Any:
        outputs = self.function(self.packed[0], self.packed[1], self.packed[2], None)
        return ops.mean(outputs, axis=(1, 2, 3))[:1, None] + 0.0 * inputs


def _common_arguments(options: argparse.Namespace) -> list[str]:
    """Write the options that all lines of a table share."""
    given = ["--size", options.size, "--steps", str(options.steps), "--dtype", options.dtype]
    if options.remat_layers:
        given += ["--remat-layers", *options.remat_layers]
    return given + ["--processor"] * options.processor + ["--remat"] * options.remat


def _parser(program: str) -> OneLineParser:
    """Make the parser of the command."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="base", choices=list(SIZES), help="of the encoder")
    parser.add_argument("--batch-size", type=int, default=1, help="clips of a process")
    parser.add_argument(
        "--steps", type=int, default=5, help="that are timed; on accelerators take tens"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "mixed_bfloat16"],
        help="precision",
    )
    parser.add_argument("--image-size", type=int, default=224, help="pixels of a side")
    parser.add_argument("--num-frames", type=int, default=16, help="frames of a clip")
    parser.add_argument("--remat", action="store_true", help="activations computed twice")
    parser.add_argument(
        "--remat-layers", nargs="+", metavar="NAME", help="computed twice (default: none)"
    )
    parser.add_argument("--no-padding", action="store_true", help="no key masks")
    parser.add_argument("--eager-einsum", action="store_true", help="the baseline: not compiled")
    parser.add_argument("--checkpoint", action="store_true", help="time a checkpoint too")
    parser.add_argument("--attention", action="store_true", help="time attention alone")
    parser.add_argument("--precision", action="store_true", help="features in other types")
    parser.add_argument(
        "--features", metavar="VIDEOS", help="read this folder for features (default: none)"
    )
    parser.add_argument("--growth", action="store_true", help="a table by size of clip and batch")
    parser.add_argument(
        "--processor", action="store_true", help="growth in the processor's seconds"
    )
    parser.add_argument("--scaling", action="store_true", help="a table by number of devices")
    parser.add_argument(
        "--devices",
        type=int,
        help="the most of that table (default: all accelerators, or 2 processes without one)",
    )
    parser.add_argument("--json", action="store_true", help="numbers only")
    return parser


def _check_together(options: argparse.Namespace, parser: OneLineParser) -> None:
    """Refuse an option that changes nothing in what is measured.

    Raises:
        ValueError: that names both options.
    """
    given = [name for name, value in vars(options).items() if value != parser.get_default(name)]
    for kind in _INSTEAD.keys() & given:
        for name in given:
            if name not in {kind, *_INSTEAD[kind]}:
                raise ValueError(f"`{name}` changes nothing in `{kind}`: leave one of them out")


def main(arguments: list[str] | None = None, program: str = "bench.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = _parser(program)
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(1, MOST_LONG, batch_size=options.batch_size, steps=options.steps)
        clip = {"image_size": options.image_size, "num_frames": options.num_frames}
        check_whole(1, MOST_LONG, **clip)
        check_whole(2, MOST_LONG, optional=True, devices=options.devices)
        if options.devices and not options.scaling:
            raise ValueError(f"`devices` needs `scaling`. Received: {options.devices} alone")
        token_grid({**PATCH, **clip})
        _check_together(options, parser)
    keras.config.set_dtype_policy(options.dtype)
    if options.attention:
        bench_attention(options)
    elif options.precision:
        bench_precision(options)
    elif options.features is not None:
        with parser.refusing():
            backbone = VJEPABackbone.from_size(options.size, **clip)
            print_features(options.features, backbone, options.batch_size, options.steps)
    elif options.growth:
        with parser.failing(RuntimeError):
            print_growth(_common_arguments(options))
    elif options.scaling:
        sizes = ["--image-size", str(options.image_size), "--num-frames", str(options.num_frames)]
        with parser.failing(RuntimeError), parser.refusing():
            found = machine()
            most = check_devices(options.devices, found)
            print_scaling(_common_arguments(options) + sizes, options.batch_size, found, most)
    else:
        parallel = distribution.setup()
        with parser.refusing():
            pretrainer = _asked_for(options)
        bench_training(options, parallel, pretrainer)


if __name__ == "__main__":
    main()
