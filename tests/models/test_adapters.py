"""Backbones of every origin behind one protocol; those that offer too little are refused."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
from keras_vjepa.models import adapters
from keras_vjepa.models.adapters import (
    DeclaredBackbone,
    TokenEncoder,
    as_token_encoder,
    register_adapter,
)


def numpy(x):
    return ops.convert_to_numpy(x)


def clips(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 16, 16, 3)).astype("float32")


def vjepa(num_frames=4, **arguments):
    keras.utils.set_random_seed(0)
    return VJEPABackbone(16, num_frames, 8, hidden_dim=24, num_layers=1, num_heads=2, **arguments)


def functional(shape, named=False, dim=10):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape, name="pixels")
    tokens = keras.layers.Dense(dim)(keras.layers.Reshape((-1, 48 * 8))(inputs))
    return keras.Model({"pixels": inputs} if named else inputs, tokens)


class Patches(keras.Model):
    """A subclassed model: nothing is known of it but what it says."""

    def __init__(self, **declared):
        super().__init__()
        self.dense = keras.layers.Dense(6)
        for name, value in declared.items():
            setattr(self, name, value)

    def call(self, inputs):
        return self.dense(ops.reshape(inputs, (ops.shape(inputs)[0], -1, 48)))


def facts(encoder):
    return [getattr(encoder, name) for name in TokenEncoder.__annotations__]


@pytest.mark.parametrize("num_frames", [4, 1])
def test_our_backbone_offers_everything_itself(num_frames):
    backbone = vjepa(num_frames)
    encoder = as_token_encoder(backbone)
    assert encoder is backbone
    assert facts(encoder) == [24, 2, num_frames == 1, num_frames, 2, 16]
    videos = clips(2, 4)
    found = numpy(encoder.clip_tokens(videos))
    if num_frames == 1:
        assert found.shape == (2, 16, 24)
        np.testing.assert_allclose(found[1, 4:8], numpy(backbone(videos[1:, 1]))[0], atol=1e-5)
    else:
        np.testing.assert_allclose(found, numpy(backbone(videos)), atol=1e-6)


@pytest.mark.filterwarnings("error:The structure of `inputs`")
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("frames", [None, 4])
def test_functional_models_are_read_off_their_shapes(frames, named):
    backbone = functional((16, 16, 3) if frames is None else (frames, 16, 16, 3), named)
    encoder = as_token_encoder(backbone)
    assert facts(encoder) == [10, None, frames is None, frames or 1, None, 16]
    videos = clips(2, 4)
    call = lambda x: numpy(backbone({"pixels": x} if named else x))  # noqa: E731
    expected = call(videos.reshape(8, 16, 16, 3)).reshape(2, 8, 10) if not frames else call(videos)
    np.testing.assert_allclose(numpy(encoder.clip_tokens(videos)), expected, atol=1e-6)


def test_what_a_model_says_counts_before_its_shapes():
    backbone = functional((None, None, None, 3))
    assert facts(as_token_encoder(backbone)) == [10, None, False, None, None, None]
    backbone.num_frames, backbone.num_heads, backbone.tubelet_size = 8, 5, 4
    backbone.image_size = (16, 32)
    assert facts(as_token_encoder(backbone)) == [10, 5, False, 8, 4, (16, 32)]
    with pytest.raises(ValueError, match="videos for a backbone without a `num_frames`"):
        VJEPAVideoClassifier(functional((None, 16, 16, 3)), 3, num_heads=5)(clips(2))


def test_sequential_models():
    layers = [keras.Input((4, 16, 16, 3)), keras.layers.Reshape((8, -1)), keras.layers.Dense(7)]
    encoder = as_token_encoder(keras.Sequential(layers))
    assert facts(encoder) == [7, None, False, 4, None, 16]
    assert numpy(encoder.clip_tokens(clips(2, 4))).shape == (2, 8, 7)


def test_other_models_say_what_they_are():
    backbone = Patches(hidden_dim=6, is_image_model=True, num_heads=3)
    encoder = as_token_encoder(backbone)
    assert facts(encoder) == [6, 3, True, 1, None, None]
    videos = clips(2, 3)
    expected = numpy(backbone(videos.reshape(6, 16, 16, 3))).reshape(2, 48, 6)
    np.testing.assert_allclose(numpy(encoder.clip_tokens(videos)), expected, atol=1e-6)
    classifier = VJEPAVideoClassifier(backbone, 5)
    assert tuple(classifier(videos).shape) == (2, 5)
    # Before, this was refused by an AttributeError from the inside.
    video_model = Patches(hidden_dim=6, is_image_model=False, num_heads=3)
    assert tuple(VJEPAVideoClassifier(video_model, 5)(videos).shape) == (2, 5)


def test_tubelets_that_a_backbone_declares_get_frame_positions():
    backbone = functional((4, 16, 16, 3), dim=10)
    backbone.tubelet_size = 2
    classifier = VJEPAVideoClassifier(backbone, 3, num_heads=5, max_frames=9)
    indices = np.array([[0, 1, 2, 3], [5, 6, 7, 8]], "int32")
    features = numpy(classifier.features(clips(2, 4), indices))[:, 0]
    rows = numpy(classifier.frame_table)[indices[:, ::2]]
    expected = numpy(backbone(clips(2, 4))) + np.repeat(rows, 4, axis=1)
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Patches, "`hidden_dim` and `is_image_model`, or an adapter .*: a Patches without"),
        (lambda: Patches(hidden_dim=6), "have the attribute `is_image_model`, or an adapter"),
        (lambda: functional((16, 48)), r"must take \(batch, frames, .*shape: \(None, 16, 48\)"),
        (
            lambda: keras.Model([x := keras.Input((8, 3), name="a"), keras.Input((4,))], x),
            "`backbone` must have one input. Received one with: a, ",
        ),
    ],
)
def test_backbones_that_offer_too_little_are_refused(make, message):
    backbone = make()
    for refuse in (as_token_encoder, lambda b: VJEPAVideoClassifier(b, 3, num_heads=1)):
        with pytest.raises(ValueError, match=message) as caught:
            refuse(backbone)
        assert len(str(caught.value).splitlines()) == 1


def test_a_further_kind_is_one_class(monkeypatch):
    """A model with another name for its width, and a token that stands for no place."""
    monkeypatch.setattr(adapters, "_ADAPTERS", list(adapters._ADAPTERS))

    class WithClassToken(Patches):
        width = 6

        def call(self, inputs):
            tokens = super().call(inputs)
            return {"all": ops.concatenate([tokens[:, :1], tokens], axis=1)}

    @register_adapter
    class WithoutClassToken(DeclaredBackbone):
        @staticmethod
        def fits(backbone):
            return isinstance(backbone, WithClassToken)

        def facts(self):
            return {"hidden_dim": self.backbone.width, "is_image_model": True, "num_heads": 2}

        def encode(self, inputs, training):
            return self.backbone(inputs, training=training)["all"][:, 1:]

    backbone = WithClassToken()
    assert type(as_token_encoder(backbone)) is WithoutClassToken
    assert as_token_encoder(vjepa()).hidden_dim == 24
    classifier = VJEPAVideoClassifier(backbone, 5)
    features = numpy(classifier.features(clips(2, 3)))
    expected = numpy(Patches.call(backbone, clips(2, 3))).reshape(2, 1, 48, 6)
    np.testing.assert_allclose(features, expected, atol=1e-6)
