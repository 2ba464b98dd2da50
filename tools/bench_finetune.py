"""Time a fine-tuning step, and the same step in plain PyTorch (App. D.3, Table 12).

    KERAS_BACKEND=torch keras-vjepa bench-finetune --size base --steps 5

A step trains encoder and head with stochastic depth, soft labels, and AdamW with a rate for each
layer. The two steps take turns, so that other work on the machine disturbs both; the seconds of the
processor in brackets are this process's own, which such work hardly changes. Then the optimizer is
timed alone, with a rate for each layer and with one for all. The plain step runs on the device that
torch has.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras
import numpy as np
from keras import ops

from keras_vjepa import AdamW, VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.arguments import MOST_LONG, check_whole
from keras_vjepa.backend import distribution
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.batches.mixing import mixed_targets
from keras_vjepa.models.backbone import SIZES

CLASSES = 400
RATES = RATE, WEIGHT_DECAY, LAYER_DECAY, DROP_PATH = 1e-4, 0.05, 0.75, 0.1
_WARM_UP = 2
# The seconds that pass in each call, and those of the processor.
Times = list[tuple[float, float]]


def make_classifier(size: str, layer_decay: float | None = LAYER_DECAY) -> VJEPAVideoClassifier:
    """Make a classifier with an encoder of a named size, compiled for fine-tuning."""
    backbone = VJEPABackbone.from_size(size, drop_path_rate=DROP_PATH)
    classifier = VJEPAVideoClassifier(
        backbone, num_classes=CLASSES, head="fine_tuning", trainable_backbone=True
    )
    optimizer: Any = AdamW(RATE, WEIGHT_DECAY, layer_decay=layer_decay)
    classifier.compile(optimizer, "categorical_crossentropy")
    optimizer.build(classifier.trainable_variables)
    return classifier


def make_plain(size: str, dtype: str = "float32") -> Any:
    """Make the same in plain PyTorch, which is imported only here, since it may be missing."""
    from keras_vjepa.tools import plain_torch_step

    sizes = SIZES[size]
    encoder = plain_torch_step.Encoder(sizes.hidden_dim, sizes.num_layers, sizes.num_heads)
    return plain_torch_step.FineTuning(encoder, CLASSES, RATES, dtype != "float32")


def make_batch(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Make a batch of noise with soft labels."""
    rng = np.random.default_rng(0)
    videos = rng.normal(size=(batch_size, 16, 224, 224, 3)).astype("float32")
    return videos, mixed_targets(rng.integers(CLASSES, size=batch_size), CLASSES, 0.7, 0.1)


def in_turns(
    functions: Sequence[Callable[[], Any]], count: int, warm_up: int = _WARM_UP
) -> list[Times]:
    """Time functions that are called in turns, `count` times each, after `warm_up` turns."""
    times: list[Times] = [[] for _ in functions]
    for turn in range(warm_up + count):
        for own, function in zip(times, functions, strict=True):
            start = time.perf_counter(), time.process_time()
            function()
            if turn >= warm_up:
                own.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return times


def _said(name: str, times: Times) -> str:
    passed, of_processor = np.median(times, axis=0)
    least, most = min(times)[0], max(times)[0]
    return f"{name} {passed:7.3f} s ({least:.3f} to {most:.3f}) [{of_processor:.3f}]"


def _ratio(times: Times, others: Times) -> str:
    passed, of_processor = np.median(times, axis=0) / np.median(others, axis=0)
    return f"ratio {passed:.3f} [{of_processor:.3f}]"


def bench_step(options: Any) -> None:
    """Print the time of a step, ours and plain, and their ratio."""
    videos, targets = make_batch(options.batch_size)
    classifier = make_classifier(options.size)
    plain = make_plain(options.size, options.dtype)
    own, other = in_turns(
        [
            lambda: float(classifier.train_on_batch(videos, targets)),
            lambda: plain.step(videos, targets),
        ],
        options.steps,
    )
    print(f"{options.size}, batch {options.batch_size}, {options.dtype}; {distribution.setup()}")
    print(_said("keras_vjepa: step", own))
    print(_said(f"plain PyTorch on {plain.device}: step", other))
    print(_ratio(own, other))


def bench_optimizer(options: Any) -> None:
    """Print the time of an update alone, with a rate for each layer and with one for all."""
    updates = []
    for layer_decay in (LAYER_DECAY, None):
        classifier = make_classifier(options.size, layer_decay)
        variables = classifier.trainable_variables
        gradients = [ops.ones(v.shape, v.dtype) * 1e-3 for v in variables]

        updates.append(functools.partial(_update, classifier.optimizer, gradients, variables[-1]))
    by_layer, alike = in_turns(updates, options.steps)
    print(_said("update with a rate for each layer", by_layer))
    print(_said("update with one rate", alike))
    print(_ratio(by_layer, alike))


def _update(optimizer: Any, gradients: list[Any], last: Any) -> None:
    optimizer.apply(gradients)
    # When the number is on the host, every backend has finished computing it.
    float(ops.convert_to_numpy(ops.sum(last)))


def timing_options(
    parser: OneLineParser,
    arguments: list[str] | None,
    batch_size: int = 1,
    steps: int = 5,
    has_dtype: bool = True,
) -> argparse.Namespace:
    """Add what programs that time steps have in common to a parser, and read a command line.

    Args:
        parser: the parser, with the program's own arguments.
        arguments: the command line; None for that of the process.
        batch_size: default of the batch size.
        steps: default of the number of steps.
        has_dtype: whether the precision can be chosen.
    """
    parser.add_argument("--batch-size", type=int, default=batch_size, help="clips")
    parser.add_argument("--steps", type=int, default=steps, help="that are timed, of each")
    if has_dtype:
        parser.add_argument(
            "--dtype", default="float32", choices=["float32", "mixed_bfloat16"], help="precision"
        )
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(1, MOST_LONG, batch_size=options.batch_size, steps=options.steps)
    return options


def main(arguments: list[str] | None = None, program: str = "bench_finetune.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("--size", default="base", choices=list(SIZES), help="of the encoder")
    options = timing_options(parser, arguments)
    keras.config.set_dtype_policy(options.dtype)
    with parser.failing(ImportError):  # without torch, which is optional
        bench_step(options)
        bench_optimizer(options)


if __name__ == "__main__":
    main()
