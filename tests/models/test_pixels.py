"""Pixels that no preprocessor made are refused, or warned of once, in the same words everywhere."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAPredictor, VJEPAPretrainer, VJEPAVideoClassifier
from keras_vjepa.backend.batch_sources import looked_into
from keras_vjepa.backend.host_values import sample_of
from keras_vjepa.models.pixels import check_pixels
from tests.support import compiled

ARGUMENTS = {"hidden_dim": 8, "num_layers": 1, "num_heads": 1}
REMEDY = r"pass it through the preprocessor \(`VJEPAVideoPreprocessor`\)"
CLIPS = np.random.default_rng(0).normal(size=(2, 2, 16, 16, 3)).astype("float32")


def backbone(num_frames=2):
    return VJEPABackbone(16, num_frames, **ARGUMENTS)


def pretrainer():
    encoder = backbone()
    predictor = VJEPAPredictor(8, encoder.position_axes, 8, 1, 1, num_mask_tokens=1)
    model = VJEPAPretrainer(encoder, predictor)
    model.compile()
    return model


def batch(videos):
    indices = np.zeros((2, 1), "int32")
    return {"videos": videos, "context_indices_0": indices, "target_indices_0": indices}


MODELS = {
    "backbone": (backbone, lambda videos: videos),
    "image model": (lambda: backbone(1), lambda videos: videos[:, 0]),
    "classifier": (lambda: VJEPAVideoClassifier(backbone(), 3), lambda videos: videos),
    "pretrainer": (pretrainer, batch),
}


@pytest.fixture(scope="module", params=MODELS)
def model_and_inputs(request):
    make, inputs = MODELS[request.param]
    return make(), inputs


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool"])
def test_integers_are_refused_in_one_line(model_and_inputs, kind):
    model, inputs = model_and_inputs
    pixels = CLIPS.astype(kind)
    message = rf"^`videos` must be normalised floats: {REMEDY}. Received: {kind} of shape \(2, "
    for use in (model, model.predict, model.predict_on_batch):
        with pytest.raises(ValueError, match=message) as caught:
            use(inputs(pixels))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="Received: int32|Received: bool|Received: uint8"):
        model(inputs(ops.cast(ops.convert_to_tensor(pixels), kind.replace("64", "32"))))


def test_far_floats_are_warned_of_once(model_and_inputs):
    model, inputs = model_and_inputs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.check_inputs(inputs(CLIPS))
    words = rf"`videos` should be normalised floats, .*{REMEDY}. Received: values as far as 200"
    with pytest.warns(UserWarning, match=words):
        model.check_inputs(inputs(ops.convert_to_tensor(np.full_like(CLIPS, 200))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.check_inputs(inputs(np.full_like(CLIPS, -200)))


@pytest.mark.parametrize("make", [backbone, lambda: VJEPAVideoClassifier(backbone(), 3)])
def test_a_call_warns_once_for_all_its_parts(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()(np.full_like(CLIPS, 200))
    assert sum("`videos` should be normalised" in str(one.message) for one in caught) == 1


@pytest.fixture(scope="module")
def classifier():
    model = VJEPAVideoClassifier(backbone(), 3)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize(
    "given", ["x.mp4", ["x.mp4"], [["x.mp4"]], np.array(["x.mp4"]), None, list(CLIPS)]
)
def test_what_is_no_array_is_refused_in_one_line(classifier, given):
    for use in (classifier, classifier.predict, classifier.backbone, classifier.backbone.predict):
        with pytest.raises(ValueError, match="`videos` must be normalised floats: ") as caught:
            use(given)
        assert "\n" not in str(caught.value)


def test_pixels_given_by_name_are_checked():
    with pytest.raises(ValueError, match="`videos` must be normalised floats: .*uint8"):
        backbone()(videos=CLIPS.astype("uint8"))


def test_fit_warns_where_arrays_enter(classifier):
    with pytest.warns(UserWarning, match="Received: values as far as 100 from 0"):
        classifier.fit(CLIPS * 0 + 100, np.zeros(2, "int32"), verbose=0)


class Batches(keras.utils.PyDataset):
    """Good ones, then one that is not."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        videos = CLIPS if index < 2 else CLIPS.astype("uint8")
        return videos, np.zeros(2, "int32")


def generated(dataset):
    yield from (dataset[index] for index in range(len(dataset)))


@pytest.mark.parametrize(
    "make", [Batches, lambda: Batches(workers=2), lambda: generated(Batches())]
)
def test_batches_are_checked_one_by_one(classifier, make):
    message = "`videos` must be normalised floats: .*Received: uint8"
    with pytest.raises(ValueError, match=message) as caught:
        classifier.fit(make(), steps_per_epoch=3, verbose=0, shuffle=False)
    assert "\n" not in str(caught.value)
    assert classifier.refusal is None


def loader(videos, labels):
    """What the users of an engine have as a source of batches; JAX' have torch's."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((videos, labels)).batch(1)
    torch_data = pytest.importorskip("torch.utils.data")
    return torch_data.DataLoader([*zip(videos, labels, strict=True)], batch_size=1)


@pytest.mark.parametrize("make", [loader, lambda *data: iter([*loader(*data)])])
@pytest.mark.parametrize(
    "videos,labels,message",
    [
        (CLIPS.astype("uint8"), [0, 0], "`videos` must be normalised floats: .*Received: uint8"),
        (CLIPS, [2, 3], r"`y` must hold class numbers in \[0, `num_classes`=3\). Received: 3 at"),
        (CLIPS[:, :1], [0, 0], "`num_frames` must be a multiple of `tubelet_size`=2. Received: 1"),
    ],
)
def test_batches_of_loaders_are_checked(classifier, make, videos, labels, message):
    for use in (classifier.fit, classifier.evaluate):
        with pytest.raises(ValueError, match=f"^{message}") as caught:
            use(make(videos, labels), verbose=0)
        assert "\n" not in str(caught.value)


def test_loaders_are_passed_on_as_they_are(classifier):
    """In their order, as often as they are asked for, and with their length."""
    data = loader(CLIPS, [0, 2])
    checked = looked_into(data, (seen := []).append)
    assert checked is not data and len(checked) == 2
    for _ in range(2):
        assert [np.asarray(y).tolist() for _, y in checked] == [[0], [2]]
    assert [y.tolist() for _, y in seen] == [[0], [2]] * 2
    np.testing.assert_array_equal(np.concatenate([x for x, _ in seen[:2]]), CLIPS)
    far = pytest.warns(UserWarning, match="Received: values as far as 100 from 0")
    classifier.warned_of_pixels = False
    with far:
        classifier.fit(loader(CLIPS * 0 + 100, [0, 0]), verbose=0)


def test_numbers_that_are_none_are_warned_of(classifier):
    classifier.warned_of_pixels = False
    with pytest.warns(UserWarning, match="normalised floats, .*Received: NaN"):
        classifier.predict(CLIPS * np.nan, verbose=0)


def test_no_videos_are_refused(classifier):
    for use in (classifier.predict, lambda x, **options: classifier.fit(x, [], **options)):
        with pytest.raises(ValueError, match="`x` must hold at least one video. Received: none"):
            use(CLIPS[:0], verbose=0)


@pytest.mark.parametrize(
    "shape,message",
    [
        ((2, 2, 16, 17, 3), "`width` must be a multiple of `patch_size`=16. Received: 17"),
        ((2, 2, 3, 16, 16), r"Received shape: \(.*, 2, 3, 16, 16\); move the axis of the channels"),
        ((2, 2, 16, 16, 1), r"`videos` must be \(batch, frames, height, width, 3 channels\)"),
        ((2, 16, 3), "`videos` must be .* Received( shape:|) "),
    ],
)
def test_shapes_are_refused_before_a_model_runs(classifier, shape, message):
    """In one line; within a layer Keras would add many."""
    videos = np.zeros(shape, "float32")
    for use in (classifier, classifier.predict, classifier.backbone, classifier.backbone.predict):
        with pytest.raises(ValueError, match=message) as caught:
            use(videos)
        assert "\n" not in str(caught.value)


def test_lists_in_a_batch_are_taken(classifier):
    batch = [CLIPS, [0, 2]]
    assert "loss" in classifier.fit(iter([batch]), verbose=0).history


def test_datasets_keep_what_they_are(classifier):
    """Number of batches and epochs pass through the check."""
    seen = []

    class Counted(Batches):
        def __len__(self):
            return 2

        def on_epoch_end(self):
            seen.append("end")

    steps = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: seen.append(step))
    classifier.fit(Counted(), epochs=2, verbose=0, callbacks=[steps])
    assert [one for one in seen if one != "end"] == [0, 1, 0, 1] and seen.count("end") >= 2


class Unprintable(np.ndarray):
    """To write a batch as text takes as long as a small step."""

    def __repr__(self):
        raise AssertionError


def test_pixels_that_are_right_are_not_written_as_text():
    check_pixels(CLIPS.view(Unprintable))


def test_few_pixels_are_looked_at():
    videos = np.broadcast_to(np.float32(0), (64, 16, 224, 224, 3))
    assert sample_of(videos).size <= 4 * 16 * 14 * 14 * 3


def test_a_constant_of_a_compiled_program_is_taken():
    """A tensor with values, whose parts have none while the program is made."""
    # The weights are fixed, because with some random ones the difference exceeds rounding.
    keras.utils.set_random_seed(0)
    model, clips = backbone(), ops.convert_to_tensor(CLIPS)
    outputs = compiled(lambda: model(clips))()
    np.testing.assert_allclose(
        ops.convert_to_numpy(outputs), ops.convert_to_numpy(model(clips)), atol=1e-6
    )
