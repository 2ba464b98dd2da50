"""Tokens that a clip does not have are named; they would be another sample's."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from tests.support import random_batch

VIDEOS = np.random.default_rng(0).normal(size=(2, 4, 16, 16, 3)).astype("float32")
FIRST = np.array([[0, 1], [2, 7]], "int32")


def backbone(position_embedding="rotary"):
    return VJEPABackbone(16, 4, 8, 2, 16, 1, 2, position_embedding=position_embedding)


def predictor():
    return VJEPAPredictor(16, (2, 2, 2), 8, 1, 2, num_mask_tokens=1)


@pytest.mark.parametrize(
    "numbers,received",
    [
        ([[0, 8], [0, 1]], "8"),
        ([[0, 1], [0, -1]], "-1"),
        ([[0.0, 1.0], [0.0, 1.0]], "'float"),
        ([[True, False], [False, True]], "'bool'"),
    ],
)
def test_a_number_that_is_no_tokens_is_named(numbers, received):
    message = f"`token_indices` must be numbers of tokens, from 0 to 7. Received: {received}"
    encoder, numbers = backbone(), np.array(numbers)
    calls = (
        lambda: encoder(VIDEOS, numbers),
        lambda: encoder(VIDEOS, numbers, np.ones((2, 2), bool)),
        lambda: encoder(videos=VIDEOS, token_indices=numbers),
        lambda: encoder(VIDEOS, token_indices=ops.convert_to_tensor(numbers)),
        lambda: encoder.attention_weights(VIDEOS, token_indices=numbers),
        lambda: encoder.intermediate_features(VIDEOS, [0], token_indices=numbers),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["context_indices", "target_indices"])
def test_a_predictor_names_them(place):
    given = {
        "context": np.zeros((2, 2, 16), "float32"),
        "context_indices": FIRST,
        "target_indices": FIRST,
    }
    model = predictor()
    assert model(given).shape == (2, 2, 16)
    given[place] = FIRST + 1
    message = f"`{place}` must be numbers of tokens, from 0 to 7. Received: 8"
    with pytest.raises(ValueError, match=message):
        model(given)
    with pytest.raises(ValueError, match=message):
        model(**given)


def test_a_pretrainer_names_them_in_what_is_in_memory():
    """-1 is padding there."""
    model = VJEPAPretrainer(backbone("sincos"), predictor())
    model.compile(AdamW(1e-3))
    batch = random_batch(0, model)
    batch["target_indices_0"][1, -1] = -1
    assert np.isfinite(ops.convert_to_numpy(model(batch))).all()
    for number in (-2, 8):
        batch["target_indices_0"][1, -1] = number
        message = f"`target_indices_0` must be .*from -1 to 7. Received: {number}"
        for gesture in (model, model.fit, model.evaluate, model.train_on_batch):
            with pytest.raises(ValueError, match=message):
                gesture(batch)


def test_what_has_no_numbers_yet_is_let_through():
    encoder = backbone()
    inputs = keras.Input((4, 16, 16, 3)), keras.Input((2,), dtype="int32")
    model = keras.Model(inputs, encoder(*inputs))
    expected = ops.convert_to_numpy(encoder(VIDEOS, FIRST))
    np.testing.assert_allclose(model.predict([VIDEOS, FIRST], verbose=0), expected, atol=1e-6)
