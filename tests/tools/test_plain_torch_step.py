"""The baseline of the benchmark does the same steps as the pretrainer."""

import re

import keras
import numpy as np
import pytest

from keras_vjepa import AdamW, VJEPABackbone, VJEPAPredictor, VJEPAPretrainer
from tests.support import random_batch

if keras.config.backend() != "torch":
    pytest.skip("the baseline is torch's", allow_module_level=True)

import torch

from keras_vjepa.tools import plain_torch_step


def state_of(model):
    """The model's variables under the baseline's names, in its order of axes."""
    state = {}
    for variable in model.variables:
        name = variable.path.split("/", 1)[1].replace("attention/", "").replace("/", ".")
        name = re.sub(r"^block_(\d+)", r"blocks.\1", name)
        name = re.sub(r"^mask_token_(\d+)", r"mask_tokens.\1", name)
        name = re.sub("(kernel|gamma)$", "weight", name).replace("beta", "bias")
        value = variable.value.detach().clone()
        if name == "position_table":
            value = value[None]
        elif value.ndim == 5:
            value = value.permute(4, 3, 0, 1, 2)
        elif value.ndim == 2:
            value = value.T
        state[name] = value
    return state


@pytest.mark.parametrize("measured", [False, True])
def test_three_steps_are_those_of_the_pretrainer(measured):
    encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=2, num_heads=2)
    predictor = VJEPAPredictor(24, encoder.position_axes, 12, 1, 2)
    plain_encoder = plain_torch_step.Encoder(24, 2, 2, encoder.num_tokens)
    plain_predictor = plain_torch_step.Predictor(24, 12, 1, 2, encoder.num_tokens)
    plain_encoder.load_state_dict(state_of(encoder))
    plain_predictor.load_state_dict(state_of(predictor))
    training = plain_torch_step.Training(plain_encoder, plain_predictor, False, measured)
    pretrainer = VJEPAPretrainer(encoder, predictor, momentum=0.998)
    pretrainer.compile(AdamW(1e-4, weight_decay=0.04))
    for seed in range(3):
        batch = random_batch(seed, pretrainer)
        loss = training.step(*plain_torch_step.host_batch(batch, pinned=False))
        history = pretrainer.fit(batch, batch_size=2, verbose=0).history
        assert loss == pytest.approx(history["loss"][0], abs=1e-6)
    for name, value in state_of(pretrainer.target_encoder).items():
        found = training.target_encoder.state_dict()[name]
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-6, err_msg=name)
    assert not training.target_encoder.norm.weight.requires_grad


def test_every_weight_is_measured():
    training = plain_torch_step.Training(
        plain_torch_step.Encoder(24, 1, 2, 8),
        plain_torch_step.Predictor(24, 12, 1, 2, 8),
        False,
        True,
    )
    videos, indices = torch.randn(1, 3, 4, 32, 32), torch.arange(8)[None]
    training.step(videos, [indices[:, :3]] * 2, [indices[:, 3:]] * 2)
    training.loss(videos, [indices[:, :3]] * 2, [indices[:, 3:]] * 2).backward()
    weights = training.weights()
    numbers = training.measure()
    assert len(numbers) == sum(weight.ndim > 1 for weight in weights) + 2 * len(weights)
    assert np.isfinite(numbers).all() and max(numbers) > 0
