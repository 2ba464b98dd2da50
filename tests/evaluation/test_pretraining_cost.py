"""What a training step costs is counted as published: V-JEPA's and masked autoencoders'."""

import pytest

from keras_vjepa.evaluation.pretraining_cost import (
    VIDEOMAE,
    VIDEOMAEV2_GIANT,
    MaskedAutoencoder,
    Transformer,
    vjepa_flops,
)

pytestmark = pytest.mark.data


def test_a_transformer_by_hand():
    """One token of width 2, one block: 4 * 2 * 2 and 2 * 2 * 3 products, and 2 * 2 of attention."""
    assert Transformer(2, 1, 3).flops(1) == 2 * (16 + 12) + 4 * 2
    # Attention alone grows with the square of the tokens.
    assert Transformer(2, 5, 3).flops(3) == 5 * (3 * 56 + 9 * 8)


def test_steps_by_hand():
    encoder, narrow = Transformer(2, 1, 3), Transformer(1, 1, 4)
    one = vjepa_flops(encoder, narrow, 5, 4, [(1, 2)])
    projections = 2 * 1 * 2 * 3
    expected = encoder.flops(4) + 3 * (encoder.flops(1) + narrow.flops(3) + projections)
    assert one == expected + (4 + 2) * 2 * 5 * 2
    pixels = MaskedAutoencoder(encoder, narrow, 1, patch_values=5, visible=1, reconstructed=2)
    expected = 3 * (encoder.flops(1) + narrow.flops(3) + 2 * 2 * 1 + 2 * 2 * 1 * 5)
    assert pixels.flops == expected + 2 * 2 * 5 * 2


def test_published_sizes():
    large = VIDEOMAE["large"]
    assert large.visible + large.reconstructed == 1568 and large.decoder.num_layers == 12
    assert VIDEOMAE["base"].decoder.num_layers == 4
    # A tenth of the tokens is visible, so that V-JEPA's step, with all of them, costs more.
    masks = [(368, 752), (104, 1104)]
    of_vjepa = vjepa_flops(large.encoder, Transformer(384, 12, 1536), 1536, 1568, masks)
    assert 2.5 < of_vjepa / large.flops < 3.5
    assert VIDEOMAEV2_GIANT.visible + VIDEOMAEV2_GIANT.reconstructed == 1232
