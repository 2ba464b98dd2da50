"""V-JEPA 2 against the transformers package: converted folders give its numbers."""

import json

import numpy as np
import pytest
import torch
from keras import ops

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from keras_vjepa.conversion import CheckpointError, convert, convert_backbone
from tests.conversion.oracle import transformers

# Weights pass through NumPy, which is the same on each backend. tests/test_files_of_before.py has a
# rotary model with weights and outputs that every backend must reproduce.
pytestmark = pytest.mark.data

TOLERANCE = 2e-5

# Heads of 24, 22 (of which 4 are not rotated) and 64 channels; other patches; an MLP ratio of
# 48/11.
CONFIGS = {
    "square": dict(
        hidden_size=48,
        num_attention_heads=2,
        num_hidden_layers=2,
        pred_hidden_size=32,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    ),
    "uneven": dict(
        hidden_size=44,
        num_attention_heads=2,
        num_hidden_layers=1,
        mlp_ratio=48 / 11,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        pred_mlp_ratio=2.0,
        pred_num_mask_tokens=3,
        layer_norm_eps=1e-5,
        num_pooler_layers=1,
    ),
    "small_patches": dict(
        hidden_size=64,
        num_attention_heads=1,
        num_hidden_layers=1,
        patch_size=8,
        tubelet_size=4,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=2,
        num_pooler_layers=0,
    ),
}


def oracle(config, name="VJEPA2Model", seed=0):
    """A model of that package with random weights, far from the small ones it starts with."""
    torch.manual_seed(seed)
    arguments = {"crop_size": 48, "frames_per_clip": 8, "num_labels": 5, **CONFIGS[config]}
    model = getattr(transformers, name)(transformers.VJEPA2Config(**arguments)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            is_scale = "norm" in path and path.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape) * 0.15 + float(is_scale))
    return model


class VJEPAPlain(VJEPABackbone):
    """A class whose presets have a file that no folder of that package becomes."""

    config_file = "plain.json"


def clips(*shape):
    return np.random.default_rng(0).normal(size=(2, *shape, 3)).astype("float32")


def channels_second(videos):
    return torch.tensor(videos.transpose(0, 1, 4, 2, 3))


def assert_close(actual, expected):
    expected = expected.detach().numpy()
    actual = ops.convert_to_numpy(actual)
    assert actual.shape == expected.shape
    assert np.abs(expected).max() > 0.5
    assert np.abs(actual - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_features_and_predictions(name, tmp_path):
    model = oracle(name)
    model.save_pretrained(tmp_path)
    pretrainer = convert(tmp_path)
    videos = clips(8, 48, 48)
    num_tokens = pretrainer.encoder.num_tokens
    order = np.argsort(np.random.default_rng(1).random((2, num_tokens)), axis=1)
    context, target = np.sort(order[:, :5], axis=1), order[:, 5:12]
    with torch.no_grad():
        expected = model(channels_second(videos), [torch.tensor(context)], [torch.tensor(target)])
    for encoder in (pretrainer.encoder, pretrainer.target_encoder):
        features = encoder(videos)
        assert_close(features, expected.last_hidden_state)
    picked = np.take_along_axis(ops.convert_to_numpy(features), context[:, :, None], axis=1)
    inputs = picked, context.astype("int32"), target.astype("int32")
    # If no mask is named, the transformers package uses the second mask token.
    predictions = pretrainer.predictor(*inputs, mask_index=1)
    assert_close(predictions, expected.predictor_output.last_hidden_state)
    of_the_first = ops.convert_to_numpy(pretrainer.predictor(*inputs))
    assert np.abs(of_the_first - ops.convert_to_numpy(predictions)).max() > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name, tmp_path):
    model = oracle(name, "VJEPA2ForVideoClassification")
    model.save_pretrained(tmp_path)
    classifier = convert(tmp_path)
    assert classifier.num_layers == 1 + model.config.num_pooler_layers
    videos = clips(8, 48, 48)
    with torch.no_grad():
        expected = model(channels_second(videos)).logits
    assert_close(classifier(videos), expected)


def test_rectangular_videos(tmp_path):
    """Both ways to count: that package's, in its own square grid, and the clip's own."""
    model, videos = oracle("square"), clips(4, 32, 64)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(channels_second(videos), skip_predictor=True).last_hidden_state
    assert_close(convert_backbone(tmp_path)(videos), expected)

    ids = torch.arange(2 * 2 * 4)
    for layer in model.encoder.layer:
        layer.attention.get_position_ids = lambda x, masks=None: (ids // 8, ids // 4 % 2, ids % 4)
    with torch.no_grad():
        in_its_own_grid = model(channels_second(videos), skip_predictor=True).last_hidden_state
    assert (in_its_own_grid - expected).abs().max() > 1e-2
    assert_close(convert_backbone(tmp_path, position_mode="fresh")(videos), in_its_own_grid)
    made_for_it = convert_backbone(tmp_path, image_size=(32, 64), num_frames=4)
    assert_close(made_for_it(videos), in_its_own_grid)


def test_masked_tokens_keep_their_positions(tmp_path):
    """With one block, a token's keys do not depend on which other tokens are there."""
    model, videos = oracle("small_patches"), clips(8, 48, 48)
    model.save_pretrained(tmp_path)
    indices = np.array([[3, 17, 40], [71, 2, 5]], "int32")
    ids = torch.tensor(indices)[:, None]
    attention = model.encoder.layer[0].attention
    attention.get_position_ids = lambda x, masks=None: (ids // 36, ids // 6 % 6, ids % 6)
    embed = model.encoder.embeddings.forward
    gather = torch.tensor(indices, dtype=torch.int64)[:, :, None].expand(-1, -1, 64)
    model.encoder.embeddings.forward = lambda pixels: torch.gather(embed(pixels), 1, gather)
    with torch.no_grad():
        expected = model.encoder(channels_second(videos)).last_hidden_state
    assert_close(convert_backbone(tmp_path)(videos, indices), expected)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shape", [(8, 48, 48), (4, 32, 64)], ids=["its_size", "another"])
def test_attention_and_hidden_states(name, shape, tmp_path):
    """Those of every block, raw and normed, and of the probe's query."""
    model = oracle(name, "VJEPA2ForVideoClassification")
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    of_the_query = []
    model.pooler.cross_attention_layer.cross_attn.register_forward_hook(
        lambda module, inputs, outputs: of_the_query.append(outputs[1][:, :, 0])
    )
    videos = clips(*shape)
    with torch.no_grad():
        found = model(channels_second(videos), output_attentions=True, output_hidden_states=True)
        normed = [model.vjepa2.encoder.layernorm(state) for state in found.hidden_states]
    classifier = convert(tmp_path)
    backbone, layers = classifier.backbone, range(-classifier.backbone.num_layers, 0)
    raw = [backbone.embed(videos), *backbone.intermediate_features(videos, layers, norm=False)]
    for actual, expected in zip(raw, found.hidden_states, strict=True):
        largest = expected.abs().max()  # values before the norm, between 11 and 30
        assert_close(actual / float(largest), expected / largest)
    for actual, expected in zip(
        backbone.intermediate_features(videos, layers), normed[1:], strict=True
    ):
        assert_close(actual, expected)
    weights = [*backbone.attention_weights(videos, layers), classifier.attention_weights(videos)]
    weights[-1] = weights[-1][:, 0]
    for actual, expected in zip(weights, [*found.attentions, *of_the_query], strict=True):
        assert tuple(actual.shape) == tuple(expected.shape)
        assert np.abs(ops.convert_to_numpy(actual) - expected.numpy()).max() <= TOLERANCE
        assert expected.max() - expected.min() > 100 * TOLERANCE


def test_attention_of_masked_tokens(tmp_path):
    """Positions of tokens that are left in, which that package knows in its predictor alone."""
    model, videos = oracle("uneven"), clips(8, 48, 48)
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    backbone = convert_backbone(tmp_path)
    indices = np.array([[3, 17, 30], [31, 2, 5]], "int32")
    tokens = torch.tensor(ops.convert_to_numpy(backbone.embed(videos, indices)))
    with torch.no_grad():
        layer = model.encoder.layer[0]
        outputs, expected = layer(tokens, torch.tensor(indices, dtype=torch.int64))
    [weights] = backbone.attention_weights(videos, [0], token_indices=indices)
    assert np.abs(ops.convert_to_numpy(weights) - expected.numpy()).max() <= TOLERANCE
    [raw] = backbone.intermediate_features(videos, [0], norm=False, token_indices=indices)
    largest = outputs.abs().max()
    assert_close(raw / float(largest), outputs / largest)


def test_weights_in_several_files_and_half_precision(tmp_path):
    model = oracle("uneven").to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    videos = clips(8, 48, 48)
    with torch.no_grad():
        expected = model.float()(channels_second(videos), skip_predictor=True).last_hidden_state
    assert_close(convert_backbone(tmp_path)(videos), expected)


def test_what_does_not_fit_is_named(tmp_path):
    model = oracle("uneven", "VJEPA2ForVideoClassification")

    def error(change=None, **config):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        if change is not None:
            change(state)
        model.save_pretrained(tmp_path, state_dict=state)
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
        with pytest.raises(CheckpointError) as caught:
            convert(tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    key = "vjepa2.encoder.layer.0.attention.key.bias"
    assert "`encoder` misses keys: encoder.layer.0.attention.key.bias" in error(
        lambda state: state.pop(key)
    )
    assert "`classifier` has unknown keys: pooler.extra" in error(
        lambda state: state.update({"pooler.extra": torch.zeros(2)})
    )
    assert "`encoder.encoder.layer.0.attention.key.bias` must have shape (44,)" in error(
        lambda state: state.update({key: torch.zeros(43)})
    )
    assert "misses keys: classifier.bias" in error(lambda state: state.pop("classifier.bias"))
    assert "`hidden_act` must be 'gelu'. Received: 'relu'" in error(hidden_act="relu")
    assert "`qkv_bias` must be true. Received: False" in error(qkv_bias=False)
    assert "must be of `model_type` vjepa2" in error(model_type="vit")
    odd = error(hidden_size=18)
    assert "`hidden_dim` must give each of `num_heads`=2 an even width for rotary positions" in odd
    assert "must be a multiple of `num_heads`=3" in error(num_attention_heads=3)
    assert "has no readable config.json" in str(
        pytest.raises(CheckpointError, convert, tmp_path / "..").value
    )


def test_damaged_folders_are_named(tmp_path):
    oracle("uneven").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        convert(tmp_path)
    weights.unlink()
    weights.with_name("pytorch_model.bin").write_bytes(whole)
    with pytest.raises(CheckpointError, match="hold model.safetensors, .*json, pytorch_model.bin"):
        convert(tmp_path)


def test_from_preset_takes_such_a_folder(tmp_path, monkeypatch):
    """Converted into the cache, and from there for every class."""
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    model = oracle("square")
    model.save_pretrained(tmp_path / "folder")
    backbone = VJEPABackbone.from_preset(tmp_path / "folder")
    videos = clips(8, 48, 48)
    expected = model.get_vision_features(channels_second(videos))
    assert_close(backbone(videos), expected)
    # Another size, once of the clips alone, and once as an argument, which transformers calls
    # `crop_size`.
    large = clips(4, 64, 64)
    assert_close(backbone(large), model.get_vision_features(channels_second(large)))
    made_for_it = transformers.VJEPA2Model.from_pretrained(tmp_path / "folder", crop_size=64)
    made_for_it = made_for_it.eval().get_vision_features(channels_second(large))
    assert_close(VJEPABackbone.from_preset(tmp_path / "folder", image_size=64)(large), made_for_it)
    converted = sorted((tmp_path / "cache" / "converted").iterdir())
    assert VJEPAPredictor.from_preset(tmp_path / "folder").num_layers == 1
    preprocessor = VJEPAVideoPreprocessor.from_preset(tmp_path / "folder")
    assert (preprocessor.image_size, preprocessor.num_frames) == (48, 8)
    # If something is missing, the message uses the user's name for the folder.
    for load, message in (
        (VJEPAVideoClassifier.from_preset, "`num_classes` must be given for a preset that holds"),
        (VJEPAPlain.from_preset, "a folder that holds plain.json, for VJEPAPlain"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message) as caught:
            load(tmp_path / "folder")
        assert str(caught.value).endswith(f"Received: {tmp_path / 'folder'}")
    assert sorted((tmp_path / "cache" / "converted").iterdir()) == converted
    # If the folder holds another model, a new preset is made.
    oracle("square", seed=1).save_pretrained(tmp_path / "folder")
    other = ops.convert_to_numpy(VJEPABackbone.from_preset(tmp_path / "folder")(videos))
    assert np.abs(other - expected.detach().numpy()).max() > 0.1
