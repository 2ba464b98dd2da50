"""Attention weights as arrays: of blocks, and of the probe's query, beside what is computed else.

tests/conversion/test_hugging_face.py compares them with another package's.
"""

import numpy as np
import pytest
from keras import ops

from keras_vjepa import AttentivePooler, VJEPAProbe, VJEPAVideoClassifier
from keras_vjepa.backend.token_ops import merge_heads, split_heads
from tests.models.test_models import numpy, small_backbone, videos
from tests.support import compiled


@pytest.mark.parametrize("position_embedding", ["sincos", "rotary"])
def test_they_are_what_the_block_weighs_values_with(position_embedding):
    """With a mask: what they make of the values is what the backend's own attention gives."""
    backbone, clips = small_backbone(position_embedding=position_embedding), videos(2, 4, 32, 32, 3)
    indices = np.array([[0, 3, 5, 6], [1, 2, 4, 7]], "int32")
    mask = np.array([[True, True, True, False], [True, True, False, False]])

    def found(clips, indices, mask):
        weights = backbone.attention_weights(clips, [-1, 0], None, indices, mask)
        [inputs] = backbone.intermediate_features(clips, [0], False, indices, mask)
        block, rotations = backbone.blocks[1], backbone.rotations(clips, indices)
        packed = block.attention.query_key_value(block.attention_norm(inputs))
        value = ops.transpose(split_heads(packed, 2)[2], (0, 2, 1, 3))
        pooled = merge_heads(ops.transpose(ops.matmul(weights[0], value), (0, 2, 1, 3)))
        expected = block.attention_branch(inputs, ops.convert_to_tensor(mask), rotations)
        return *weights, block.attention.output_projection(pooled), expected

    last, first, actual, expected = map(numpy, compiled(found)(clips, indices, mask))
    assert last.shape == first.shape == (2, 2, 4, 4)
    np.testing.assert_allclose(last.sum(-1), 1, atol=1e-6)
    assert last[0, :, :, 3].max() == first[1, :, :, 2:].max() == 0
    np.testing.assert_allclose(actual, expected, atol=2e-6)


@pytest.mark.data  # it tests blocks and tokens, and not their values
def test_some_queries_and_blocks_alone(monkeypatch):
    backbone, clips = small_backbone(), videos(1, 4, 32, 32, 3)
    [all_of_them] = backbone.attention_weights(clips)
    attention = backbone.blocks[0].attention
    monkeypatch.setattr(type(attention), "_heads", counting(type(attention)._heads, calls := []))
    [some] = backbone.attention_weights(clips, [-1], queries=[6, -8])
    assert calls == ["block_0", "block_1"]  # the last block computes weights only
    np.testing.assert_allclose(numpy(some), numpy(all_of_them)[:, :, [6, 0]], atol=1e-6)
    assert backbone.attention_weights(clips, []) == []
    with pytest.raises(ValueError, match="`layers` must be between -2 and 1. Received: .2."):
        backbone.attention_weights(clips, [2])
    with pytest.raises(ValueError, match="`layers` must be a list of whole numbers. Received: -1"):
        backbone.attention_weights(clips, -1)
    with pytest.raises(ValueError, match="`layers` must be a whole number. Received: 0.5"):
        backbone.attention_weights(clips, [0.5])
    with pytest.raises(ValueError, match="`queries` must be between -8 and 7. Received: .0, 8."):
        backbone.attention_weights(clips, queries=[0, 8])
    with pytest.raises(ValueError, match="`videos` must be normalised floats"):
        backbone.attention_weights(clips.astype("uint8"))


def counting(function, calls):
    def heads(layer, *arguments):
        calls.append(layer.path.split("/")[-2])
        return function(layer, *arguments)

    return heads


@pytest.mark.parametrize("self_attention", ["query", "tokens"])
def test_the_query_of_a_probe(self_attention):
    pooler = AttentivePooler(2, num_layers=2, self_attention=self_attention)
    tokens = videos(3, 5, 8)
    pooler.build(tokens.shape)

    def found(tokens):
        seen = pooler.blocks[0](tokens) if self_attention == "tokens" else tokens
        normed, query = pooler.tokens_norm(seen), pooler.query(ops.convert_to_tensor(query_token))
        return pooler.attention_weights(tokens), normed, query

    query_token = numpy(pooler.query_token)
    weights, normed, query = map(numpy, compiled(found)(tokens))
    assert weights.shape == (3, 2, 5)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    # Queries, keys and softmax are computed as the paper writes them.
    keys = normed @ numpy(pooler.key_value.kernel)[:, :8] + numpy(pooler.key_value.bias)[:8]
    keys, query = keys.reshape(3, 5, 2, 4), query.reshape(2, 4)
    logits = np.einsum("bnhc,hc->bhn", keys, query) / 2
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_a_classifier_of_several_predictions():
    backbone = small_backbone(num_layers=1)
    classifier = VJEPAVideoClassifier(backbone, num_classes=3, num_clips=2, num_views=3)
    clips = videos(1, 2, 3, 4, 32, 32, 3)

    def found(clips):
        of_its_probe = classifier.probe.attention_weights(classifier.features(clips)[0])
        return classifier.attention_weights(clips), of_its_probe

    weights, expected = map(numpy, compiled(found)(clips))
    assert weights.shape == (1, 3, 2, 16)
    np.testing.assert_allclose(weights[0], expected, atol=1e-6)


@pytest.mark.data
def test_average_pooling_has_none():
    probe = VJEPAProbe(num_classes=3, pooling="average")
    probe.build((None, None, 8))
    with pytest.raises(ValueError, match="`pooling` must be 'attentive'. Received: 'average'"):
        probe.attention_weights(videos(3, 5, 8))
