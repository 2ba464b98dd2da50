"""A SavedModel and models of other packages as backbones."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPAVideoClassifier
from keras_vjepa.models import SavedModelBackbone, as_token_encoder

on_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="a SavedModel needs TensorFlow"
)


def clips(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def write_saved_model(folder):
    """Write one that maps clips of 4 x 32 x 32 to a map of 2 x 4 x 4 with 12 channels."""
    import tensorflow

    weights = tensorflow.Variable(clips(8 * 8 * 2 * 3, 12))

    def encode(x):
        x = tensorflow.reshape(x, (-1, 2, 2, 4, 8, 4, 8, 3))
        x = tensorflow.transpose(x, (0, 1, 3, 5, 2, 4, 6, 7))
        return {"out": tensorflow.reshape(x, (-1, 2, 4, 4, 8 * 8 * 2 * 3)) @ weights}

    module = tensorflow.Module()
    module.weights = weights
    shape = tensorflow.TensorSpec((None, 4, 32, 32, 3), tensorflow.float32)
    module.encode = tensorflow.function(encode, input_signature=[shape])
    tensorflow.saved_model.save(module, str(folder), signatures=module.encode)
    return lambda x: encode(x)["out"].numpy()


@pytest.mark.slow
@on_tensorflow
def test_a_saved_model_is_a_frozen_backbone(tmp_path):
    expected = write_saved_model(tmp_path / "saved")
    backbone = SavedModelBackbone(tmp_path / "saved", 32, 4)
    videos = clips(3, 4, 32, 32, 3)
    assert (backbone.hidden_dim, backbone.is_image_model) == (12, False)
    tokens = ops.convert_to_numpy(backbone(videos))
    np.testing.assert_allclose(tokens, expected(videos).reshape(3, 32, 12), atol=1e-5)
    classifier = VJEPAVideoClassifier(backbone, 3, num_heads=2)
    before = [np.array(v) for v in backbone.weights]
    classifier.compile()
    classifier.fit(videos, np.array([0, 1, 2]), epochs=1, verbose=0)
    assert all(map(np.array_equal, before, backbone.get_weights()))
    classifier.save_to_preset(tmp_path / "preset")
    again = VJEPAVideoClassifier.from_preset(tmp_path / "preset")
    np.testing.assert_array_equal(classifier(videos), again(videos))
    for arguments, message in (
        ({"folder": tmp_path / "none"}, "`folder` must hold a SavedModel"),
        ({"folder": tmp_path / "saved", "endpoint": "other"}, "with the function `other`"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            SavedModelBackbone(image_size=32, num_frames=4, **arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@on_tensorflow
def test_a_model_of_tf_keras(tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    layers = [tf_keras.layers.Input((32, 32, 3)), tf_keras.layers.Conv2D(6, 8, 8)]
    model = tf_keras.Sequential(layers)
    model.export(str(tmp_path / "saved"))
    backbone = SavedModelBackbone(tmp_path / "saved", 32, endpoint="serve")
    videos = clips(2, 3, 32, 32, 3)
    tokens = ops.convert_to_numpy(as_token_encoder(backbone).clip_tokens(videos))
    expected = np.array(model(videos.reshape(6, 32, 32, 3))).reshape(2, 48, 6)
    np.testing.assert_allclose(tokens, expected, atol=1e-5)


@pytest.mark.slow
@on_tensorflow
def test_video_swin_of_keras_cv():
    models = pytest.importorskip("keras_cv.models")
    backbone = models.VideoSwinBackbone(
        input_shape=(8, 64, 64, 3), embed_dim=24, depths=[1, 1], num_heads=[2, 2],
        window_size=[2, 4, 4], include_rescaling=False,
    )  # fmt: skip
    videos = clips(1, 8, 64, 64, 3)
    encoder = as_token_encoder(backbone)
    assert (encoder.num_frames, encoder.image_size, encoder.hidden_dim) == (8, 64, 48)
    tokens = ops.convert_to_numpy(encoder.clip_tokens(videos))
    np.testing.assert_array_equal(tokens, np.array(backbone(videos)).reshape(1, 256, 48))
    assert tuple(VJEPAVideoClassifier(backbone, 3, num_heads=2)(videos).shape) == (1, 3)


@pytest.mark.skipif(keras.config.backend() == "tensorflow", reason="it is TensorFlow")
def test_without_tensorflow_it_is_refused_in_a_line(tmp_path):
    with pytest.raises(ValueError, match="a SavedModel needs TensorFlow as Keras' backend"):
        SavedModelBackbone(tmp_path)


@pytest.mark.parametrize("frames", [False, True])
def test_maps_become_tokens(frames):
    """As of convolutional networks, or of a Swin."""
    if frames:
        layers = [keras.Input((4, 16, 16, 3)), keras.layers.Reshape((2, 4, 4, 96))]
        layers.append(keras.layers.Dense(5))
    else:
        layers = [keras.Input((16, 16, 3)), keras.layers.AveragePooling2D(4)]
        layers.append(keras.layers.Dense(5))
    backbone, videos = keras.Sequential(layers), clips(2, 4, 16, 16, 3)
    tokens = ops.convert_to_numpy(as_token_encoder(backbone).clip_tokens(videos))
    inputs = videos if frames else videos.reshape(8, 16, 16, 3)
    expected = ops.convert_to_numpy(backbone(inputs)).reshape(2, -1, 5)
    np.testing.assert_allclose(tokens, expected, atol=1e-6)
