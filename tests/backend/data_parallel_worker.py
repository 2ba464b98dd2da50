"""One process of a data-parallel run; `test_distribution.py` starts it, alone or several.

    python -m tests.backend.data_parallel_worker OUTPUT.npz '{"virtual_devices": 4}'

Trains a tiny pretrainer for 5 steps on the same global batches however many processes there are,
and writes everything that it then holds. With "classifier" it trains one too, with "evaluation",
the command line of a frozen one, it makes that; with "dying_process" it then goes on until that one
dies.
"""

import json
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_vjepa import (
    AdamW,
    CosineSchedule,
    LinearSchedule,
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAVideoClassifier,
)
from keras_vjepa.backend import attention as attention_module
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.recipes import pretrain, probe
from tests.support import random_batch

STEPS, BATCH_SIZE = 5, 8


def make_pretrainer(remat=False, accumulation_steps=1, seed=0):
    """Clipping bites, weight decay and momentum move; 16 wide, so that 4 devices divide it."""
    keras.utils.set_random_seed(seed)
    sizes = {"num_layers": 2, "num_heads": 2, "remat": remat}
    encoder = VJEPABackbone(16, 4, patch_size=8, hidden_dim=16, name="encoder", **sizes)
    predictor = VJEPAPredictor(
        16, encoder.position_axes, 8, num_mask_tokens=1, name="predictor", **sizes
    )
    pretrainer = VJEPAPretrainer(encoder, predictor, momentum=LinearSchedule(0.9, 1.0, 10.0))
    pretrainer.compile(
        AdamW(1e-3, CosineSchedule(0.04, 0.4, 10), epsilon=1e-6, clip_norm=0.01, clip_after=2),
        accumulation_steps,
    )
    return pretrainer


def global_batches(pretrainer):
    return [random_batch(step, pretrainer, BATCH_SIZE) for step in range(STEPS)]


class Losses(keras.callbacks.Callback):
    """Keeps what is logged; after the second step the process that was told to dies or stalls."""

    def __init__(self, dies=False):
        super().__init__()
        self.dies, self.logged = dies, []

    def on_train_batch_end(self, batch, logs=None):
        self.logged.append([float(np.squeeze(logs[name])) for name in ("loss", "step_loss")])
        if self.dies and batch == 1:
            os._exit(17)


def train(parallel, pretrainer, dies=False):
    """The losses of 5 steps."""
    index, count = parallel.process_index, parallel.process_count
    part = slice(index * BATCH_SIZE // count, (index + 1) * BATCH_SIZE // count)
    batches = (
        {name: value[part] for name, value in batch.items()} for batch in global_batches(pretrainer)
    )
    log = Losses(dies)
    pretrainer.fit(
        parallel.feed(batches), steps_per_epoch=STEPS, shuffle=False, verbose=0, callbacks=[log]
    )
    return np.array(log.logged)


def state(pretrainer):
    """Weights, target encoder and optimizer state by name, without the biases of the keys.

    Those have no gradient; Adam makes steps of rounding noise out of that.
    """
    variables = [*pretrainer.variables, *pretrainer.optimizer.variables]
    named = {}
    for variable, value in zip(variables, collectives.values(variables), strict=True):
        named[variable.path] = value = value.copy()
        if "query_key_value" in variable.path and value.ndim == 1:
            value[len(value) // 3 : 2 * len(value) // 3] = 0
    return named


def share_held(pretrainer):
    """Share of all values, the optimizer's included, that a device of JAX holds."""
    arrays = [v.value for v in [*pretrainer.variables, *pretrainer.optimizer.variables]]
    return sum(a.addressable_shards[0].data.size for a in arrays) / sum(a.size for a in arrays)


def train_classifier(parallel, seed=0):
    """Weights and losses of a probe that a user trains with an optimizer of Keras' own."""
    keras.utils.set_random_seed(seed)
    backbone = VJEPABackbone(16, 4, patch_size=8, hidden_dim=16, num_layers=1, num_heads=2)
    classifier = VJEPAVideoClassifier(backbone, num_classes=3, trainable_backbone=True)
    # A step of SGD is as long as the gradient, so half a gradient or two of them would show.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.SGD(0.1), loss)
    index, count = parallel.process_index, parallel.process_count
    part = slice(index * BATCH_SIZE // count, (index + 1) * BATCH_SIZE // count)
    rng = np.random.default_rng(0)
    videos = rng.normal(size=(STEPS, BATCH_SIZE, 4, 16, 16, 3)).astype("float32")
    labels = rng.integers(3, size=(STEPS, BATCH_SIZE))
    batches = ((videos[step, part], labels[step, part]) for step in range(STEPS))
    history = classifier.fit(
        parallel.feed(batches), steps_per_epoch=STEPS, shuffle=False, verbose=0
    ).history
    return history["loss"], [np.asarray(array) for array in classifier.get_weights()]


def virtual_devices(number):
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        [cpu] = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * number
        )


def read_options():
    """As recipes do before they join the others; JAX must not have used its devices then."""
    pretrain.parse_arguments(["--steps", "40"])
    config, workdir = probe.parse_arguments([])
    probe.check(config, workdir)


def main():
    output, options = sys.argv[1], json.loads(sys.argv[2])
    distribution.HEARTBEAT_TIMEOUT = options.pop("heartbeat", distribution.HEARTBEAT_TIMEOUT)
    # On torch, several sums are started within a backward pass, as with a larger model.
    collectives._NUMBERS_AT_A_TIME = 500
    virtual_devices(options.pop("virtual_devices", 1))
    read_options()
    parallel = distribution.setup(options.pop("shard_parameters", False))
    print(parallel, flush=True)
    if options.pop("by_head", False):
        attention_module._MIN_LOGITS_FOR_LOOP = 0
    dying, evaluation, classifies = (
        options.pop(name, None) for name in ("dying_process", "evaluation", "classifier")
    )
    print(f"drawn: {float(keras.random.uniform(())):.9f}")
    # All processes get the weights of the first one; on JAX they must have made the same.
    seed = 0 if keras.config.backend() == "jax" else parallel.process_index
    pretrainer = make_pretrainer(**options, seed=seed)
    start = time.perf_counter()
    losses = train(parallel, pretrainer)
    if keras.config.backend() == "jax":
        print(f"share held: {share_held(pretrainer):.3f}")
    seconds = time.perf_counter() - start
    values = {f"state:{path}": value for path, value in state(pretrainer).items()}
    if parallel.is_first:
        np.savez(output, losses=losses, seconds=seconds, **values)
    if classifies:
        losses, weights = train_classifier(parallel, seed)
        if parallel.is_first:
            values = {f"state:{i}": weight for i, weight in enumerate(weights)}
            np.savez(Path(output).with_name("classifier.npz"), losses=losses, **values)
    if evaluation is not None:
        # The first run must not release the processes, because they stay together for what follows.
        distribution.DataParallel.release = lambda self: None
        probe.run(*probe.parse_arguments(evaluation))
    if dying is not None:
        train(parallel, pretrainer, dies=parallel.process_index == dying)
        Path(output).with_name("finished").touch()


if __name__ == "__main__":
    main()
