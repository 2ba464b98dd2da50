"""The decoder and V-JEPA 2.1's encoder beside plain PyTorch: the same sizes, and their ratios."""

import re

import keras
import numpy as np
import pytest

from keras_vjepa.models.diffusion_network import DiffusionNetwork
from keras_vjepa.tools import bench_plain

SMALL = {"clip_shape": (2, 8, 8), "feature_dim": 6, "grid_shape": (2, 2, 2), "width": 8,
         "multipliers": (1, 2), "attention_at": (8,), "groups": 4}  # fmt: skip


@pytest.mark.slow
def test_ratios_of_both_networks(capsys):
    pytest.importorskip("torch")
    bench_plain.bench_decoder(2, 1, **SMALL)
    bench_plain.bench_folding(2, 1, **SMALL)
    sizes = {"image_size": 32, "num_frames": 4, "hidden_dim": 24, "num_layers": 4, "num_heads": 2}
    bench_plain.bench_encoder(1, 1, **sizes)
    lines = capsys.readouterr().out.splitlines()
    ours, plain = re.match(r"U-Net of ([\d,]+) and plain ([\d,]+) weights", lines[0]).groups()
    assert ours == plain
    compared = [line.split()[0] for line in lines if line.endswith("times as fast")]
    names = ("training", "sampling", "folding", "features")
    assert compared == [name for name in names for _ in range(2)]


@pytest.mark.slow
def test_the_ratio_beside_transformers(capsys):
    pytest.importorskip("tests.conversion.oracle")
    sizes = {"image_size": 32, "num_frames": 4, "hidden_dim": 24, "num_layers": 1, "num_heads": 2}
    bench_plain.bench_beside_transformers(1, 1, **sizes)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "V-JEPA 2, 1 blocks, 24 wide, (1, 4, 32, 32, 3)"
    assert len(lines) == 2 and all(re.search("transformers .* times as fast$", x) for x in lines)


@pytest.mark.slow
def test_the_plain_encoder_computes_the_same_as_ours():
    pytest.importorskip("torch")
    from keras_vjepa import VJEPABackbone
    from keras_vjepa.conversion.authors import encoder_entries
    from keras_vjepa.conversion.entries import foreign_tensors
    from keras_vjepa.tools.plain_torch_vjepa21 import Encoder

    keras.utils.set_random_seed(0)
    encoder = VJEPABackbone(
        48, 4, 16, 2, 24, 2, 2, position_embedding="rotary_pairs", position_reach=15,
        level_layers=(0, 1), modalities=True,
    )  # fmt: skip
    plain = Encoder(encoder)
    given = [np.asarray(one.read()) for one in foreign_tensors(encoder_entries(encoder)).values()]
    for weight in plain.parameters():
        at = next(i for i, one in enumerate(given) if one.shape == tuple(weight.shape))
        weight.data[...] = weight.new_tensor(given.pop(at))
    videos = np.random.default_rng(0).normal(size=(2, 4, 48, 48, 3)).astype("float32")
    found, wanted = plain.features(videos), encoder.predict_on_batch(videos)
    np.testing.assert_allclose(found, np.asarray(wanted), atol=1e-4)


@pytest.mark.data
def test_the_networks_are_those_of_the_command(capsys):
    assert DiffusionNetwork.number_of_weights(**bench_plain.DECODER) > 1e6
    with pytest.raises(SystemExit):
        bench_plain.main(["--network", "resnet"])
    assert "--network" in capsys.readouterr().err
