"""Encoders side by side on the same clips."""

import keras
import numpy as np

from keras_vjepa import VJEPABackbone
from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.comparison import (
    EncoderComparison,
    LabelledClips,
    comparison_table,
    read_labelled_clips,
)
from tests.evaluation.support import small
from tests.support import slow_but_on


def clips(labels, level):
    """Videos of one brightness each, which is the label's."""
    videos = np.zeros((len(labels), 4, 32, 32, 3), "float32")
    videos[:] = level * labels.reshape(-1, 1, 1, 1, 1) / 11
    samples = [Sample(f"{level} {i}", int(label)) for i, label in enumerate(labels)]
    return LabelledClips(samples, videos, {})


@slow_but_on("torch")
def test_the_probes_rate_is_chosen_on_held_out_training_clips(small_encoder):
    rng = np.random.default_rng(0)
    labels = rng.permuted(np.tile([0, 11], 40))
    settings = small(learning_rates=(1e-9, 1e-2), epochs=6)
    train, test = clips(labels, 1.0), clips(labels[:20], 1.0)
    result = EncoderComparison(small_encoder, settings, train, test)(small_encoder)
    assert result.learning_rate == {"digit": 1e-2, "motion": 1e-2}
    assert result.accuracy == {"digit": 1.0, "motion": 1.0}
    # With these wrong labels, the learning rate that teaches nothing would be better if the test
    # set decided.
    wrong = LabelledClips([Sample(s.path, 11 - s.label) for s in test.samples], test.videos, {})
    result = EncoderComparison(small_encoder, settings, train, wrong)(small_encoder)
    assert result.learning_rate == {"digit": 1e-2, "motion": 1e-2}
    assert result.accuracy == {"digit": 0.0, "motion": 0.0}


@slow_but_on("torch")
def test_each_call_is_one_encoder_s(small_encoder, digit_videos):
    clip = ClipSettings(4, 4)
    train, test = (read_labelled_clips(part, clip, 32, 100) for part in digit_videos)
    assert train.videos.shape == (60, 4, 32, 32, 3) and not train.unreadable
    np.testing.assert_array_equal(test.single_frame().videos[:, 3], test.videos[:, 0])
    comparison = EncoderComparison(small_encoder, small(epochs=2), train, test)
    before = small_encoder.get_weights()
    found = comparison(small_encoder)
    keras.utils.set_random_seed(5)
    other = VJEPABackbone.from_config(small_encoder.get_config())
    assert comparison(other) != found
    still = comparison(small_encoder, single_frame=True)
    assert still.statistics != found.statistics
    assert comparison(small_encoder) == found
    for one, weights in zip(small_encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, weights)
    lines = comparison_table({"trained": found, "still": still}).splitlines()
    assert lines[0].split("  ")[0] == "frozen attentive probe, test accuracy"
    assert [line.split("  ")[0] for line in lines[1:]] == ["trained", "still"]
    assert f"{found.accuracy['motion']:.3f}" in lines[1]
    assert set(found.as_dict()) == {
        "digit_accuracy",
        "motion_accuracy",
        "digit_probe_learning_rate",
        "motion_probe_learning_rate",
        "feature_std",
        "effective_rank",
    }
