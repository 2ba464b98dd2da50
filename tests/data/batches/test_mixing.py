"""Mixup, CutMix and smoothed labels, against the field's."""

import json

import numpy as np
import pytest

from keras_vjepa.data.batches.mixing import (
    Mix,
    Mixing,
    cutmix_box,
    mixed_clips,
    mixed_targets,
    share_outside,
)
from tests.support import GOLDEN

pytestmark = pytest.mark.data

FINETUNE = GOLDEN / "finetune"


@pytest.mark.parametrize("case", json.loads((FINETUNE / "mixup_targets.json").read_text()))
def test_targets(case):
    targets = mixed_targets(case["labels"], case["classes"], case["lambda"], case["smoothing"])
    np.testing.assert_allclose(targets, case["targets"], atol=1e-7)


@pytest.mark.parametrize("case", json.loads((FINETUNE / "mixing.json").read_text()))
def test_clips(case):
    arrays = np.load(FINETUNE / "mixing.npz")
    name, share, box = case["name"], case["lambda_drawn"], None
    clips = np.moveaxis(arrays[f"{name}_input"], 1, -1)
    height, width = clips.shape[2:4]
    if case["cutmix"]:
        box = cutmix_box(height, width, share, tuple(case["box_centre_row_column"]))
        share = share_outside(box, height, width)
    assert abs(share - case["lambda_used_for_labels"]) < 1e-12
    expected = np.moveaxis(arrays[f"{name}_output"], 1, -1)
    np.testing.assert_allclose(mixed_clips(clips, Mix(share, box)), expected, atol=1e-6)


def test_what_is_drawn():
    drawn = [Mixing().draw(32, 48, np.random.default_rng(seed)) for seed in range(400)]
    cuts = [mix for mix in drawn if mix.box is not None]
    assert 150 < len(cuts) < 250
    assert all(0 <= mix.share <= 1 for mix in drawn)
    # Beta(0.8, 0.8) has a mean of 1/2, and is wider than Beta(1, 1).
    shares = [mix.share for mix in drawn if mix.box is None]
    assert abs(np.mean(shares) - 0.5) < 0.06 and np.std(shares) > 0.28
    assert Mixing().draw(32, 48, np.random.default_rng(3)) == drawn[3]
    off = Mixing(mixup=0.0, cutmix=0.0)
    assert not off.mixes and off.draw(32, 48, np.random.default_rng(0)) == Mix()
    some = [Mixing(probability=0.25).draw(8, 8, np.random.default_rng(i)) for i in range(400)]
    assert 60 < sum(mix != Mix() for mix in some) < 140
    only = Mixing(mixup=0.0)
    assert all(only.draw(8, 8, np.random.default_rng(i)).box is not None for i in range(9))


def test_an_odd_batch_is_refused():
    videos = np.zeros((3, 2, 8, 8, 3), "float32")
    with pytest.raises(ValueError, match="`batch_size` must give an even number of clips, mixed"):
        Mixing()(videos, [0, 1, 2], 3, np.random.default_rng(0))
    _, targets = Mixing(0.0, 0.0)(videos, [0, 1, 2], 3, np.random.default_rng(0))
    assert targets.argmax(1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="`mixup` must be"):
        Mixing(mixup=-1.0)
    for label in (-1, 3, 0.5):
        with pytest.raises(ValueError, match=rf"`labels` must be in \[0, 3\), .* {label}"):
            mixed_targets([0, label], 3, 0.5, 0.1)
