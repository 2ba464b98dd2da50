"""A second size of videos in `fit`, `evaluate` and `predict`; and data that say no size."""

import keras
import numpy as np
import pytest

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
)
from keras_vjepa.backend.step_functions import StepFunctions
from tests.support import slow_but_on

BACKEND = keras.config.backend()


class Counted(StepFunctions, keras.Model):
    """A model of any videos that counts how often its code is run."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.scale = self.add_weight(shape=(1,), initializer="ones")
        self.built, self.calls = True, 0

    def call(self, videos):
        self.calls += 1
        # A token grid needs the sizes as plain numbers.
        tokens = keras.ops.reshape(videos, (-1, int(np.prod(videos.shape[1:]))))
        return keras.ops.mean(tokens, axis=1, keepdims=True) * self.scale


def videos(num_frames, size=8, count=4):
    return np.ones((count, num_frames, size, size, 3), "float32")


def labels(count=4):
    return np.zeros((count, 1), "float32")


def counted():
    model = Counted()
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_sizes_take_turns_and_each_has_one_program(method):
    model = counted()
    given = () if method == "predict" else (labels(9),)
    for num_frames, size in ((2, 8), (3, 8), (2, 4)):
        # The last batch has one sample.
        getattr(model, method)(videos(num_frames, size, 9), *given, batch_size=4, verbose=0)
    first = model.calls
    for num_frames, size in ((3, 8), (2, 8), (2, 4)):
        getattr(model, method)(videos(num_frames, size, 9), *given, batch_size=4, verbose=0)
    # Sizes that were seen before need no new program, except that torch runs the code on every
    # batch. At first, JAX compiles one program for each number of samples, and Keras runs the code
    # once to see the loss.
    assert model.calls - first == (9 if BACKEND == "torch" else 0)
    assert first <= {"torch": 10, "jax": 7, "tensorflow": 6}[BACKEND]


def test_float16_weights_are_refused_by_fit_alone():
    model = Counted(dtype="float16")
    model.compile("sgd", "mse")
    assert np.isfinite(model.evaluate(videos(2), labels(), verbose=0))
    with pytest.raises(ValueError, match="`dtype` must be 'mixed_float16'.* for training") as error:
        model.fit(videos(2), labels(), verbose=0)
    assert "\n" not in str(error.value)


def test_the_same_numbers_as_one_size_at_a_time():
    together, alone = counted(), [counted(), counted()]
    for num_frames, model in zip((2, 3), alone, strict=True):
        x = videos(num_frames) * num_frames
        np.testing.assert_allclose(
            together.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
        )
        loss = together.evaluate(x, labels(), verbose=0)
        assert loss == pytest.approx(model.evaluate(x, labels(), verbose=0))
    assert loss == pytest.approx(9.0)


def datasets():
    """Batches of two sizes, from data sets of TensorFlow that know nothing, or no numbers."""
    tf = pytest.importorskip("tensorflow")

    def batches():
        for num_frames in (2, 3, 2):
            yield videos(num_frames, count=2), labels(2)

    any_rank = (tf.TensorSpec(None, "float32"), tf.TensorSpec(None, "float32"))
    no_numbers = (
        tf.TensorSpec((None, None, None, None, 3), "float32"),
        tf.TensorSpec((None, 1), "float32"),
    )
    return [
        tf.data.Dataset.from_generator(batches, output_signature=signature)
        for signature in (any_rank, no_numbers)
    ]


@slow_but_on("tensorflow")
@pytest.mark.skipif(BACKEND == "torch", reason="there the suite runs without TensorFlow")
def test_data_sets_without_shapes():
    for dataset in datasets():
        model = counted()
        model.fit(dataset, verbose=0)
        assert int(model.optimizer.iterations) == 3
        assert np.isfinite(model.evaluate(dataset, verbose=0))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere a program is of one size anyway")
def test_several_steps_in_one_call():
    """As `steps_per_execution` asks for: in one program where sizes are known, else one by one."""
    for dataset in datasets():
        model = Counted()
        model.compile("sgd", "mse", steps_per_execution=2)
        model.fit(dataset, verbose=0)
        assert int(model.optimizer.iterations) == 3
    model.fit(videos(2), labels(), batch_size=1, verbose=0)
    assert int(model.optimizer.iterations) == 7


def models():
    backbone = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2}
    rotary = VJEPABackbone(16, 2, 8, position_embedding="rotary", **{**backbone, "hidden_dim": 16})
    yield rotary, lambda n: videos(n, 16), (4, 4, 16), (4, 8, 16)
    classifier = VJEPAVideoClassifier(VJEPABackbone(16, 2, 8, **backbone), 3)
    yield classifier, lambda n: videos(n, 16), (4, 3), (4, 3)
    yield VJEPAProbe(3, 2), lambda n: np.ones((n, n, 8), "float32"), (2, 3), (4, 3)
    predictor = VJEPAPredictor(8, (2, 2, 2), 8, 1, 2)

    def tokens(n):
        indices = np.tile(np.arange(n, dtype="int32"), (4, 1))
        return {
            "context": np.ones((4, n, 8), "float32"),
            "context_indices": indices,
            "target_indices": indices,
        }

    yield predictor, tokens, (4, 2, 8), (4, 4, 8)


def test_our_models_take_two_sizes():
    for kind in (VJEPABackbone, VJEPAPredictor, VJEPAProbe, VJEPAVideoClassifier, VJEPAPretrainer):
        assert issubclass(kind, StepFunctions)


def test_a_program_of_sizes_that_are_not_known_works_or_is_refused():
    """As a user's functional model would be."""
    backbone = VJEPABackbone(16, 2, 8, hidden_dim=8, num_layers=1, num_heads=2)
    of_any_length = keras.Input((None, 16, 16, 3))
    tokens = backbone(of_any_length)
    assert tokens.shape == (None, None, 8)
    model = keras.Model(of_any_length, tokens)
    for num_frames in (2, 4):
        videos = np.ones((1, num_frames, 16, 16, 3), "float32")
        if keras.config.backend() == "tensorflow" and num_frames == 4:
            # TensorFlow makes its second program for any size.
            with pytest.raises(ValueError, match="`num_frames` of the videos must be a number"):
                model.predict(videos, verbose=0)
            continue
        expected = keras.ops.convert_to_numpy(backbone(videos))
        np.testing.assert_allclose(model.predict(videos, verbose=0), expected, atol=1e-6)
    with pytest.raises(ValueError, match="size of `videos` must be known .* Received shape"):
        VJEPAVideoClassifier(backbone, 3).features(of_any_length)


@slow_but_on("torch")
def test_models_predict_two_sizes():
    for model, inputs, first, second in models():
        if isinstance(model, VJEPAPredictor):
            # Keras' `predict` passes only one argument.
            found = [model(**inputs(n)) for n in (2, 4)]
        else:
            found = [model.predict(inputs(n), verbose=0) for n in (2, 4)]
        assert [tuple(outputs.shape) for outputs in found] == [first, second]


def test_lora_takes_effect_without_compiling_again():
    """TensorFlow's programs keep the weights that a model had when they were made."""
    backbone = VJEPABackbone(8, 2, 4, hidden_dim=12, num_layers=1, num_heads=2)
    model = VJEPAVideoClassifier(backbone, num_classes=3)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    clips = np.random.default_rng(0).normal(size=(4, 2, 8, 8, 3)).astype("float32")
    classes = np.arange(4) % 3

    def found():
        loss = model.evaluate(clips, classes, verbose=0)
        return model.predict(clips, verbose=0), np.ravel(loss)[0]

    _, before = found()
    backbone.enable_lora(2)
    for block in backbone.blocks:
        kernel = block.attention.query_key_value.lora_kernel_b
        kernel.assign(np.full(kernel.shape, 3.0))
    logits, loss = found()
    expected = keras.ops.convert_to_numpy(model(clips))
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(loss, model.loss(classes, expected), atol=1e-5)
    assert abs(loss - before) > 1e-5
