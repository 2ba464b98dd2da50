"""`fit` and `evaluate` take our batches from every kind of source that Keras knows."""

from functools import partial

import cv2
import keras
import numpy as np
import pytest

from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.labelled import EvaluationBatches, LabelledBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.training import VideoProbeTransform
from keras_vjepa.data.transforms.views import center_view
from tests.support import slow_but_on

STEPS = 6


class StepDataset(keras.utils.PyDataset):
    """Random access by step is all that Keras asks for."""

    def __init__(self, batches, num_steps, **arguments):
        super().__init__(**arguments)
        self.batches, self.num_steps = batches, num_steps

    def __len__(self):
        return self.num_steps

    def __getitem__(self, step):
        return self.batches.batch(step)


def generator(batches, num_steps):
    return batches.stream(stop=num_steps)


def py_dataset(batches, num_steps):
    return StepDataset(batches, num_steps, workers=2, use_multiprocessing=False)


class Steps:
    """What torch asks of a data set."""

    def __init__(self, batches, num_steps):
        self.batches, self.num_steps = batches, num_steps

    def __len__(self):
        return self.num_steps

    def __getitem__(self, step):
        return self.batches.batch(step)


def data_loader(batches, num_steps):
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(Steps(batches, num_steps), batch_size=None)


def data_loader_with_processes(batches, num_steps):
    torch = pytest.importorskip("torch")
    # If a process has threads of JAX or TensorFlow, workers that are forked from it may wait for
    # ever.
    start = "fork" if keras.config.backend() == "torch" else "spawn"
    return torch.utils.data.DataLoader(
        Steps(batches, num_steps),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
        # Keras reads a first batch and starts again. The workers are started only once.
        persistent_workers=True,
    )


def tf_data(batches, num_steps):
    tf = pytest.importorskip("tensorflow")
    example = batches.batch(0)
    signature = tuple(tf.TensorSpec(array.shape, array.dtype) for array in example)
    dataset = tf.data.Dataset.from_generator(
        lambda: batches.stream(stop=num_steps), output_signature=signature
    )
    return dataset.apply(tf.data.experimental.assert_cardinality(num_steps))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    samples = []
    for i in range(6):
        path = str(folder / f"{i}.avi")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 24, (24, 16))
        for _ in range(6):
            # Videos of class 1 are brighter.
            writer.write(np.full((16, 24, 3), 60 + 20 * i + 60 * (i % 2), np.uint8))
        writer.release()
        samples.append(Sample(path, i % 2))
    return samples


def classifier():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(2, name="logits")]
    )
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return model


@pytest.mark.parametrize(
    "source",
    [
        generator,
        py_dataset,
        data_loader,
        pytest.param(data_loader_with_processes, marks=slow_but_on("torch")),
        # On torch the suite runs without TensorFlow, except for tests that run only once.
        pytest.param(tf_data, marks=pytest.mark.data if keras.config.backend() == "torch" else ()),
    ],
)
def test_fit_and_evaluate(samples, source, monkeypatch):
    # Spawned workers import Keras, and do not need a backend that takes long to start.
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    clip = ClipSettings(2, 2)
    train = LabelledBatches(samples, 4, VideoProbeTransform(8), num_classes=2, clip=clip)
    model = classifier()
    # Without this, Keras would build the model on the first batch of a PyDataset, and train from
    # the second one on.
    model.test_on_batch(*train.batch(0))
    history = model.fit(
        source(train, STEPS), steps_per_epoch=STEPS, epochs=1, shuffle=False, verbose=0
    )
    assert int(model.optimizer.iterations) == STEPS and np.isfinite(history.history["loss"][0])

    # The numbers are those of training batch by batch, with the same clips in the same order.
    manual = classifier()
    losses = [manual.train_on_batch(*train.batch(step)) for step in range(STEPS)]
    assert len(losses) == STEPS
    for fitted, expected in zip(model.get_weights(), manual.get_weights(), strict=True):
        np.testing.assert_allclose(fitted, expected, atol=1e-6)

    # Six samples in batches of four leave two rows without weight.
    test = EvaluationBatches(
        samples, 4, partial(center_view, crop_size=8), num_classes=2, clip=clip
    )
    scores = model.evaluate(
        source(test, test.num_steps), steps=test.num_steps, verbose=0, return_dict=True
    )
    batches = list(test.stream())
    correct = [
        weight * (model.predict_on_batch(videos).argmax(axis=-1) == labels)
        for videos, labels, weight in batches
    ]
    assert scores["accuracy"] == pytest.approx(np.sum(correct) / test.num_counted)
