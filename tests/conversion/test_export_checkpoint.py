"""The way back: what is exported is bit by bit what was converted, and its owners can read it."""

import numpy as np
import pytest
import torch

from keras_vjepa import (
    VJEPABackbone,
    VJEPAPredictor,
    VJEPAPretrainer,
    VJEPAProbe,
    VJEPAVideoClassifier,
)
from keras_vjepa.conversion import (
    CheckpointError,
    convert,
    convert_backbone,
    convert_classifier,
    convert_probe,
    export_checkpoint,
    export_hugging_face,
    export_probe,
)
from keras_vjepa.tools import export_checkpoint as export_command
from tests.conversion.oracle import transformers
from tests.conversion.test_hugging_face import channels_second, clips, oracle
from tests.support import GOLDEN

# Weights pass through NumPy, which is the same on each backend.
pytestmark = pytest.mark.data


def load(path):
    return torch.load(path, weights_only=True, map_location="cpu")


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("mmap", [False, True])
def test_the_authors_file(tiny_pretrainer, mmap, tmp_path):
    export_checkpoint(tiny_pretrainer, tmp_path / "tiny.pth.tar")
    actual = torch.load(tmp_path / "tiny.pth.tar", weights_only=True, mmap=mmap)
    expected = load(GOLDEN / "tiny.pth.tar")
    for network in ("encoder", "predictor", "target_encoder"):
        assert actual[network].keys() == expected[network].keys()
        for name, tensor in expected[network].items():
            assert torch.equal(actual[network][name], tensor), name
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pth.tar"]


def test_a_lone_encoder_is_written_once(tmp_path):
    backbone = VJEPABackbone(32, 4, hidden_dim=48, num_layers=1, num_heads=4)
    path = tmp_path / "encoder.pth.tar"
    export_checkpoint(backbone, path)
    assert path.stat().st_size < 4.5 * backbone.count_params() + 10_000
    for network in ("encoder", "target_encoder"):
        again = convert_backbone(path, network, num_heads=4)
        for found, wanted in zip(again.get_weights(), backbone.get_weights(), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["probe", "probe_depth2"])
def test_the_authors_probes(name, tmp_path):
    export_probe(convert_probe(GOLDEN / f"{name}.pth.tar", 4), tmp_path / "probe.pth.tar")
    actual = load(tmp_path / "probe.pth.tar")["classifier"]
    expected = load(GOLDEN / f"{name}.pth.tar")["classifier"]
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        # Nothing uses this tensor, so it is not kept.
        assert "xattn.proj" in key or torch.equal(actual[key], tensor), key


def test_a_vjepa2_model_goes_round_both_layouts(tmp_path):
    """transformers, ours, the authors' layout, ours, transformers: the same bits and numbers."""
    model = oracle("square")
    model.save_pretrained(tmp_path / "first")
    pretrainer = convert(tmp_path / "first")
    export_checkpoint(pretrainer, tmp_path / "second.pt")
    arguments = {"num_heads": 2, "predictor_num_heads": 2, "image_size": 48, "num_frames": 8}
    pretrainer = convert(tmp_path / "second.pt", **arguments)
    assert pretrainer.predictor.position_embedding == "rotary"
    export_hugging_face(pretrainer, tmp_path / "third")
    again, report = transformers.VJEPA2Model.from_pretrained(
        tmp_path / "third", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(again.state_dict(), model.state_dict())
    videos = channels_second(clips(8, 48, 48))
    with torch.no_grad():
        actual, expected = again.eval()(videos), model(videos)
    assert torch.equal(actual.last_hidden_state, expected.last_hidden_state)
    predictions = (out.predictor_output.last_hidden_state for out in (actual, expected))
    assert torch.equal(*predictions)


def test_a_classifier_of_transformers(tmp_path):
    model = oracle("uneven", "VJEPA2ForVideoClassification")
    model.save_pretrained(tmp_path / "first")
    classifier = convert(tmp_path / "first")
    export_hugging_face(classifier, tmp_path / "second")
    again, report = transformers.VJEPA2ForVideoClassification.from_pretrained(
        tmp_path / "second", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    videos = channels_second(clips(8, 48, 48))
    with torch.no_grad():
        assert torch.equal(again.eval()(videos).logits, model(videos).logits)
    restored = convert(tmp_path / "second")
    for found, wanted in zip(restored.get_weights(), classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)

    export_hugging_face(classifier.backbone, tmp_path / "backbone")
    features = transformers.VJEPA2Model.from_pretrained(tmp_path / "backbone").eval()
    with torch.no_grad():
        actual = features(videos, skip_predictor=True).last_hidden_state
        assert torch.equal(actual, model.vjepa2(videos, skip_predictor=True).last_hidden_state)


def test_a_vjepa2_probe(tmp_path):
    probe = VJEPAProbe(num_classes=3, num_heads=16, num_layers=4, self_attention="tokens")
    probe.build((None, None, 48))
    export_probe(probe, tmp_path / "probe.pt")
    again = convert_probe(tmp_path / "probe.pt")
    assert again.self_attention == "tokens"
    for found, wanted in zip(again.get_weights(), probe.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_what_a_layout_cannot_say_is_named(tmp_path):
    small = {"num_frames": 2, "hidden_dim": 24, "num_layers": 1, "num_heads": 2}

    def error(function, model):
        with pytest.raises(CheckpointError) as caught:
            function(model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    table = VJEPABackbone(16, **small)
    assert "`position_embedding` must be 'rotary'" in error(export_hugging_face, table)
    wide = VJEPABackbone((16, 32), position_embedding="rotary", **small)
    for function in (export_checkpoint, export_hugging_face):
        assert "`image_size` must be a square in that layout" in error(function, wide)
    other = VJEPABackbone(16, layer_norm_epsilon=1e-5, **small)
    assert "`layer_norm_epsilon` must be 1e-06" in error(export_checkpoint, other)
    pixels = VJEPAPredictor(24, (1, 1, 1), 12, 1, 2, output_dim=table.patch_dim)
    pixels = VJEPAPretrainer(table, pixels, target="pixels")
    assert "`output_dim` must be 24 in that layout" in error(export_checkpoint, pixels)
    probe = VJEPAProbe(num_classes=2, pooling="average")
    assert "`pooling` must be 'attentive'" in error(export_probe, probe)
    tuned = VJEPABackbone(16, position_embedding="rotary", **small)
    tuned = VJEPAVideoClassifier(tuned, num_classes=2, head="fine_tuning")
    assert "`head` must be 'probe' in that layout" in error(export_probe, tuned.probe)
    assert "`head` must be 'probe' in that layout" in error(export_hugging_face, tuned)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="`folder` must not exist"):
        export_hugging_face(wide, tmp_path / "there")


def test_command(tmp_path):
    def run(*arguments):
        export_command.main(list(map(str, arguments)))

    backbone = convert_backbone(GOLDEN / "tiny.pth.tar", num_heads=4)
    classifier = convert_classifier(backbone, GOLDEN / "probe.pth.tar")
    classifier.save_to_preset(tmp_path / "preset")
    with pytest.raises(SystemExit, match="^export_checkpoint.py: --probe must be given"):
        run(tmp_path / "preset", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(tmp_path / "preset", tmp_path / "out", "--probe", tmp_path / "probe")
    again = convert(tmp_path / "out", tmp_path / "probe", num_heads=4)
    for found, wanted in zip(again.get_weights(), classifier.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)
