"""Models in the package: whole, small, described, and as good as their cards say."""

import socket

import keras
import numpy as np
import pytest

import keras_vjepa
from keras_vjepa import VJEPABackbone, VJEPAPretrainer, VJEPAVideoClassifier
from keras_vjepa.data.sources.digit_motion_rendering import MOTIONS, SETS, render_digit_motion
from keras_vjepa.presets.integrity import damage
from keras_vjepa.presets.shipped import SHIPPED, entries

NAMES = dict(entries())
CLASSIFIERS = [name for name in NAMES if name in VJEPAVideoClassifier.presets]
VIDEOS = 100


@pytest.mark.data
def test_each_is_whole_and_all_are_small():
    assert NAMES and sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 10 * 2**20
    for name, entry in NAMES.items():
        assert damage(entry.path) is None, name


@pytest.mark.data
def test_each_is_described_as_the_others_are():
    of_the_authors = keras_vjepa.list_presets()["vjepa_large_patch16_224"]
    for name in NAMES:
        described = keras_vjepa.list_presets()[name]
        assert of_the_authors.keys() <= described.keys() and described["files"] == []
        assert described["licence"] == "Apache-2.0" and described["command"][0]
    assert any(name in VJEPAPretrainer.presets for name in NAMES) and CLASSIFIERS


@pytest.mark.data
@pytest.mark.parametrize("name", VJEPABackbone.presets.keys() & NAMES.keys())
def test_a_backbone_has_what_its_card_says(name):
    described = keras_vjepa.list_presets()[name]
    backbone = VJEPABackbone.from_preset(name)
    assert [*backbone.video_shape] == described["input"]
    counts = [np.prod(weight.shape) for weight in backbone.trainable_variables]
    assert sum(counts) == described["parameters"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_as_good_as_its_card_says(name, monkeypatch):
    """Without a network, on frames that no file has changed."""
    monkeypatch.setattr(socket, "socket", None)
    model = VJEPAVideoClassifier.from_preset(name)
    assert model.class_names == [*MOTIONS]
    videos = [render_digit_motion("test", i, SETS["digit_motion_black"]) for i in range(VIDEOS)]
    clips = model.preprocessor([video.frames for video in videos])
    found = np.asarray(model.predict(clips, batch_size=50, verbose=0)).argmax(axis=-1)
    share = np.mean(found == [video.motion for video in videos])
    [stated] = keras_vjepa.list_presets()[name]["scores"].values()
    # The tolerance is two standard errors for this number of videos.
    assert abs(share - stated / 100) < 0.08, (share, stated)
    [(best, _)] = model.classify(videos[0].frames, top=1)
    assert best == MOTIONS[found[0]]
    keras.backend.clear_session()
