"""The linear probe on patches: masks are those of the videos, and what it reads off is right."""

import numpy as np
import pytest

from keras_vjepa import VJEPABackbone
from keras_vjepa.data.sources.digit_motion_rendering import (
    DigitMotionConfig,
    render_digit_masks,
    render_digit_motion,
)
from keras_vjepa.evaluation.dense_probe import DenseSamples, dense_probe, digit_samples, scores
from keras_vjepa.tools import dense_probe as command
from tests.support import slow_but_on

BLACK = DigitMotionConfig(background_strength=0, noise=0.0, num_frames=8)


@pytest.mark.data
@pytest.mark.parametrize("changes", [{}, {"frame_step": 4, "shrink": 2, "digit_size": 32}])
def test_masks_lie_on_the_digits(changes):
    config = DigitMotionConfig(**{**vars(BLACK), **changes})
    for index in range(3):
        frames = render_digit_motion("test", index, config).frames
        mask = render_digit_masks("test", index, config)
        assert mask.shape == frames.shape[:3] and 0.01 < mask.mean() < 0.2
        # On black without noise, what is bright is the digit, and the digit is bright.
        assert frames.max(-1)[mask].min() >= 50 and frames.max(-1)[~mask].max() <= 128
    assert not (mask == render_digit_masks("test", 1, config)).all()


@pytest.mark.data
def test_scores():
    wanted = np.array([[0, 0, 1, 1], [2, 2, 0, 0]])
    assert scores(wanted, wanted) == {"miou": 1.0, "digit_iou": 1.0, "accuracy": 1.0}
    found = np.array([[0, 1, 1, 2], [2, 2, 0, 0]])
    # Background 3/4, ones 1/3, twos 2/3; of digits 4 in both and 5 in either.
    assert scores(found, wanted)["miou"] == pytest.approx((3 / 4 + 1 / 3 + 2 / 3) / 3)
    assert scores(found, wanted)["digit_iou"] == pytest.approx(4 / 5)
    nothing = scores(0 * wanted, wanted)
    assert nothing == {"miou": pytest.approx(0.5 / 3), "digit_iou": 0.0, "accuracy": 0.5}


@slow_but_on("torch")
def test_what_a_patch_holds_is_read_off():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=(24, 4, 4))
    features = np.eye(3)[labels] + rng.normal(scale=0.1, size=(24, 4, 4, 3))
    pixels = labels.repeat(2, 1).repeat(2, 2)
    samples = DenseSamples(features.astype("float32"), pixels.astype("int32"))
    found = dense_probe(samples, samples, epochs=10, batch_size=12, learning_rate=0.3)
    assert found["accuracy"] > 0.9
    shuffled = DenseSamples(rng.permutation(samples.features), samples.labels)
    assert dense_probe(shuffled, samples, epochs=2)["accuracy"] < 0.6


@slow_but_on("torch")
def test_samples_of_an_encoder_and_of_its_levels():
    backbone = VJEPABackbone(
        (32, 48),
        4,
        patch_size=16,
        hidden_dim=12,
        num_layers=2,
        num_heads=1,
        position_embedding="rotary_pairs",
        level_layers=(0, 1),
        modalities=True,
    )
    samples = digit_samples(backbone, "train", 3, BLACK)
    assert samples.features.shape == (6, 2, 3, 12) and samples.labels.shape == (6, 32, 48)
    digit = render_digit_motion("train", 0, BLACK).digit
    assert set(np.unique(samples.labels[:2])) == {0, digit + 1}
    levels = digit_samples(backbone, "train", 3, BLACK, layers=(0, 1)).features
    np.testing.assert_allclose(levels[..., 12:], samples.features, atol=1e-5)
    with pytest.raises(ValueError, match="`num_frames` of the encoder must be at most 8"):
        digit_samples(
            VJEPABackbone(32, 16, 16, hidden_dim=12, num_layers=1, num_heads=1), "test", 1, BLACK
        )


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    given = ["vjepa_tiny_digits_pixels", "--num-videos", "4", "--num-test-videos", "2"]
    command.main([*given, "--seeds", "0", "1", "--epochs", "1", "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "| vjepa_tiny_digits_pixels |" in printed and printed.count("±") == 3
    assert (tmp_path / "out" / "table.md").read_text() == printed
    with pytest.raises(SystemExit):
        command.main(["nowhere"])
