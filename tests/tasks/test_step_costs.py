"""What a step costs beside its arithmetic: programs, numbers that are waited for, and copies.

Of fine-tuning, detection, and a decoder's training and sampling; test_pretrainer.py has those of
pretraining. Counts are the same on each machine, whatever else it does, as seconds are not.
"""

import keras
import numpy as np
import pytest

from keras_vjepa import FeatureDecoder, VJEPAActionDetector, VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.models.diffusion_network import DiffusionNetwork
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import WarmupCosine
from tests.support import programs_made, slow_but_on, waits_of_a_step, watched_by_torch

STEPS = 6


def backbone(**arguments):
    sizes = {"patch_size": 8, "hidden_dim": 8, "num_layers": 2, "num_heads": 2}
    return VJEPABackbone(16, 4, **sizes, **arguments)


def fine_tuned(**arguments):
    """A classifier as `finetune` makes it, and its batches with soft targets."""
    encoder = backbone(drop_path_rate=0.2)
    model = VJEPAVideoClassifier(
        encoder, 3, head="fine_tuning", head_dropout=0.3, trainable_backbone=True, **arguments
    )
    rate = WarmupCosine(1e-4, 1e-3, 1e-5, 2, 20)
    model.compile(
        AdamW(rate, 0.05, layer_decay=0.75),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        metrics=["accuracy"],
    )

    def batches():
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            targets = rng.dirichlet(np.ones(3), size=2).astype("float32")
            yield rng.normal(size=(2, 4, 16, 16, 3)).astype("float32"), targets

    return model, batches


def detecting():
    """A detector as `detect` makes it, and its batches, whose clips have some boxes each."""
    model = VJEPAActionDetector(backbone(), 5, layers=[0, 1], trainable_backbone=True)
    model.compile(AdamW(1e-3, 0.05))

    def batches():
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            corner = rng.uniform(0, 8, (2, 3, 2))
            boxes = np.concatenate([corner, corner + rng.uniform(2, 8, (2, 3, 2))], axis=-1)
            inputs = {
                "videos": rng.normal(size=(2, 4, 16, 16, 3)).astype("float32"),
                "boxes": boxes.astype("float32"),
            }
            targets = rng.integers(0, 2, (2, 3, 5)).astype("float32")
            yield inputs, targets, rng.integers(0, 2, (2, 3)).astype("float32")

    return model, batches


def decoding(prediction_type="residual"):
    """A decoder as `decode train` makes it, and its batches."""
    network = DiffusionNetwork((2, 4, 4), 6, (2, 1, 2), 8, (1, 2), 1, (), condition="grid",
                               factorized=True, groups=4)  # fmt: skip
    model = FeatureDecoder(network, average=0.9, prediction_type=prediction_type)
    model.compile(AdamW(1e-3, 0.0, clip_norm=1.0))

    def batches():
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            inputs = {
                name: rng.normal(size=(2, 2, 4, 4, 3)).astype("float32")
                for name in ("clips", "noise")
            }
            inputs["timesteps"] = rng.integers(0, 1000, 2).astype("int32")
            inputs["features"] = rng.normal(size=(2, 4, 6)).astype("float32")
            inputs["kinds"] = rng.integers(0, 3, 2).astype("int32")
            yield (inputs,)

    return model, batches


MAKERS = pytest.mark.parametrize("make", [fine_tuned, detecting, decoding])
ON_TORCH = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="elsewhere a step is one program"
)


def epochs_of(batches):
    """Arguments of `fit` for two epochs of two batches and, at the end, one of a single sample."""
    first, second, third = (batch for batch, _ in zip(batches(), range(3), strict=False))
    whole = keras.tree.map_structure(
        lambda a, b, c: np.concatenate([a, b, c[:1]]), first, second, third
    )
    given = dict(zip(("x", "y", "sample_weight"), whole, strict=False))
    return {**given, "batch_size": 2, "epochs": 2, "shuffle": False, "verbose": 0}


@slow_but_on("torch")
@MAKERS
def test_a_step_is_compiled_once_for_each_size_of_batches(make):
    model, batches = make()
    traces, by_epoch, compute = [], [], model.compute_loss
    model.compute_loss = lambda *args, **kwargs: traces.append(1) or compute(*args, **kwargs)
    count = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: by_epoch.append(len(traces)))
    model.fit(**epochs_of(batches), callbacks=[count])
    if keras.config.backend() == "torch":
        # On torch the code runs in each step.
        assert 3 <= by_epoch[0] <= 4 and by_epoch[1] == by_epoch[0] + 3
        return
    # It runs once for the shapes, and for each program: JAX has one for each number of samples,
    # TensorFlow one for any.
    programs = {"jax": 2, "tensorflow": 1}[keras.config.backend()]
    assert programs <= by_epoch[0] <= programs + 1
    assert by_epoch[1] == by_epoch[0]
    # The same holds for batches that are given one by one, and nothing small is compiled either.
    model.train_on_batch(*next(batches()))
    with programs_made() as made:
        for batch in batches():
            model.train_on_batch(*batch)
    assert made == []


@pytest.mark.skipif(keras.config.backend() != "jax", reason="only JAX can forbid copies")
@pytest.mark.slow
@MAKERS
def test_a_step_on_jax_copies_its_batch_alone(make):
    import jax

    model, batches = make()
    model.fit(batches(), steps_per_epoch=2, verbose=0)
    step = model.train_function

    def guarded(state, iterator):
        # The batch is copied here, beforehand.
        on_device = [keras.tree.map_structure(jax.numpy.asarray, next(iterator))]
        with jax.transfer_guard("disallow"):
            return step(state, iter(on_device))

    model.train_function = guarded
    model.fit(batches(), steps_per_epoch=STEPS, verbose=0)
    # The guard does see a copy.
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="host-to-device"):
        jax.jit(jax.numpy.sum)(np.ones(3))


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="it looks at TensorFlow's graph")
@pytest.mark.slow
@MAKERS
def test_a_step_on_tensorflow_asks_python_for_nothing(make):
    import tensorflow as tf

    model, batches = make()
    model.prepare_step()
    data = keras.tree.map_structure(tf.convert_to_tensor, next(batches()))
    graph = tf.function(model.train_step, autograph=False).get_concrete_function(data).graph
    kinds = {operation.type for operation in graph.get_operations()}
    kinds |= {node.op for function in graph.as_graph_def().library.function
              for node in function.node_def}  # fmt: skip
    assert len(kinds) > 20 and not [kind for kind in kinds if "PyFunc" in kind]


@ON_TORCH
@MAKERS
def test_a_step_neither_waits_nor_copies_from_the_host(make, monkeypatch):
    """Of its own accord: Keras' random numbers and losses do."""
    model, batches = make()
    model.fit(batches(), steps_per_epoch=STEPS, verbose=0)
    waits = waits_of_a_step(model, next(batches()), monkeypatch)
    assert [wait for wait in waits if " by keras_vjepa/" in wait] == []
    # These are a loss, a metric, and two draws, each of which copies a number and reads one back.
    assert len(waits) <= (0 if make is decoding else 7)


@ON_TORCH
@MAKERS
def test_a_step_copies_the_bytes_of_its_batch_once(make, monkeypatch):
    model, batches = make()
    batch = next(batches())
    model.train_on_batch(*batch)
    with watched_by_torch(monkeypatch) as waits:
        model.train_on_batch(*batch)
    copied = sorted(int(wait.split()[0]) for wait in waits if "bytes are copied" in wait)
    wanted = sorted(array.nbytes for array in keras.tree.flatten(batch))
    # What comes beside the batch are single numbers, of Keras' draws and metrics.
    assert [n for n in copied if n > 16] == [n for n in wanted if n > 16], waits
    # The loss is what `train_on_batch` returns, with one number for each metric.
    read = [wait for wait in waits if "bytes are read" in wait]
    assert sum(int(wait.split()[0]) for wait in read) <= 16


@ON_TORCH
@pytest.mark.parametrize(
    "prediction_type", ["residual", pytest.param("noise", marks=pytest.mark.slow)]
)
def test_sampling_waits_at_its_ends_alone(prediction_type, monkeypatch):
    """However many timesteps it goes through, and however it is guided."""
    decoder, batches = decoding(prediction_type)
    features = next(batches())[0]["features"]
    counts = []
    decoder.sample(features, steps=1)
    for arguments in ({"steps": 1}, {"steps": 3}, {"steps": 2, "guidance": 2.0}):
        with watched_by_torch(monkeypatch) as waits:
            decoder.sample(features, **arguments)
        counts.append(waits)
    assert counts[1] == counts[0] == counts[2]
    # The features and the noise go to the device, and the clips come back.
    assert len(counts[0]) <= 3


@ON_TORCH
def test_a_step_that_asks_for_a_number_is_found(monkeypatch):
    model, batches = fine_tuned()
    model.fit(batches(), steps_per_epoch=STEPS, verbose=0)
    compute = model.compute_loss
    model.compute_loss = lambda *args, **kwargs: float(loss := compute(*args, **kwargs)) * 0 + loss
    waits = waits_of_a_step(model, next(batches()), monkeypatch)
    assert "a number is asked for by tests/tasks/test_step_costs.py" in waits
