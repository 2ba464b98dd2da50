"""The settings of an evaluation: every argument can be set, and does what it says."""

import inspect

import numpy as np
import pytest

from keras_vjepa import VJEPAProbe, VJEPAVideoClassifier
from keras_vjepa.configuration import Part, options, replace
from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.labelled import ClipPlaces
from keras_vjepa.data.reading.limits import ReadingLimits
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.augmentation import AutoAugment, RandAugment
from keras_vjepa.data.transforms.training import ImageProbeTransform, VideoProbeTransform
from keras_vjepa.data.transforms.views import center_view
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.sweep_optimizer import SweepAdamW
from keras_vjepa.evaluation.views import (
    StandingStill,
    clip_settings,
    evaluation_clips,
    evaluation_transform,
    training_clips,
    training_transform,
)

# Constructor arguments that are not options, and what determines them.
SUPPLIED = {
    "backbone": "the encoder that is evaluated",
    "num_classes": "the tasks",
    "class_names": "numbers will do",
    "preprocessor": "the transforms",
    "trainable_backbone": "False: the evaluation is one of a frozen encoder",
    "head": "a probe; another head is an option of `finetune`, as the next two",
    "head_dropout": "that head's",
    "encoder_norm": "that head's",
    "networks": "the probes",
    "candidates": "learning rates and weight decays",
    "frames": "the video",
    "crop_size": "the image size",
    "augmentation": "the operations",
}
CONSTRUCTORS = {
    "classifier": (VJEPAVideoClassifier, VJEPAProbe),
    "clip": (ClipSettings,),
    "limits": (ReadingLimits,),
    "view": (center_view,),
    "transform": (VideoProbeTransform, ImageProbeTransform),
    "operations": (RandAugment, AutoAugment),
    "optimizer": (SweepAdamW,),
}


def test_every_argument_of_every_constructor_can_be_set():
    known = options(ProbeSettings())
    reachable = {(option.field, option.argument) for option in known.values()}
    # One option sets both.
    reachable.add(("clip", "num_clips"))
    # Training and testing use the mean and deviation of the view.
    reachable |= {("transform", "mean"), ("transform", "std")}
    for field, constructors in CONSTRUCTORS.items():
        for constructor in constructors:
            for name, parameter in inspect.signature(constructor).parameters.items():
                if parameter.kind is not parameter.VAR_KEYWORD and name not in SUPPLIED:
                    assert (field, name) in reachable, f"{constructor.__name__}({name})"
    parts = {f for f in vars(ProbeSettings()) if isinstance(getattr(ProbeSettings(), f), Part)}
    assert parts == set(CONSTRUCTORS)


def test_every_option_is_described():
    for option in options(ProbeSettings()).values():
        assert len(option.description) > 10, option.name


def test_options_reach_the_objects(small_encoder):
    settings = replace(
        ProbeSettings(),
        image_size=(32, 48),
        num_clips=2,
        num_frames=4,
        temporal_stride=3,
        allow_clip_overlap=False,
        pooling="average",
        augment=True,
        motion_shift=True,
        random_resize_scale=(0.5, 1.0),
        augment_magnitude=3.0,
        max_file_seconds=7.0,
    )
    samples = [Sample("a.mp4", 0)]
    for batches in (
        evaluation_clips(settings, samples, 1, 1),
        training_clips(settings, samples, ClipPlaces(samples, 0), 0),
    ):
        assert batches.limits == ReadingLimits(max_file_seconds=7.0)
    assert clip_settings(settings) == ClipSettings(4, 3, 2, False)
    transform = training_transform(settings)
    assert transform == VideoProbeTransform(
        (32, 48), scale=(0.5, 1.0), motion_shift=True, augmentation=RandAugment(magnitude=3.0)
    )
    classifier = settings.classifier.make(backbone=small_encoder, num_classes=3)
    assert (classifier.num_clips, classifier.pooling) == (2, "average")
    optimizer = replace(settings, beta_2=0.9, clip_norm=None).optimizer.make(
        networks=[classifier.trainable_variables], candidates=[(0.1, 0.2)]
    )
    assert (optimizer.beta_2, optimizer.clip_norm) == (0.9, None)


def test_images_have_their_own_transform():
    settings = replace(ProbeSettings(), image_size=32, images=True, augment=True)
    assert training_transform(settings) == ImageProbeTransform(32)
    plain = training_transform(replace(settings, auto_augment=False, erasing=0.0))
    assert plain == ImageProbeTransform(32, erasing=0.0, augmentation=None)


def test_views():
    settings = replace(ProbeSettings(), image_size=32)
    frames = np.random.default_rng(0).integers(256, size=(4, 40, 60, 3), dtype=np.uint8)
    assert evaluation_transform(settings, 3)(frames).shape == (3, 4, 32, 32, 3)
    view = evaluation_transform(settings, 1)(frames)
    np.testing.assert_array_equal(view, center_view(frames, 32))
    whole = evaluation_transform(replace(settings, short_side=32), 1)(frames)
    np.testing.assert_array_equal(whole, center_view(frames, 32, 32))
    assert np.abs(whole - view).max() > 0.1
    wide = evaluation_transform(replace(settings, image_size=(16, 32)), 1)(frames)
    assert wide.shape == (4, 16, 32, 3)
    # Without augmentation, a training clip is the central view.
    plain = training_transform(settings)(frames, np.random.default_rng(0))
    np.testing.assert_array_equal(plain, view)
    moving = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones_like(frames)
    single = StandingStill(lambda frames: frames)(moving)
    assert single.shape == moving.shape and not single.any() and moving.any()
    with pytest.raises(ValueError, match="`num_views` must be 1 or 3. Received: 2"):
        evaluation_transform(settings, 2)
    with pytest.raises(ValueError, match="`image_size` must be given, or come from an encoder"):
        evaluation_transform(ProbeSettings(), 1)


def test_candidates_are_all_pairs():
    settings = replace(ProbeSettings(), learning_rates=(1.0, 2.0), weight_decays=(3.0, 4.0))
    assert settings.candidates == ((1.0, 3.0), (1.0, 4.0), (2.0, 3.0), (2.0, 4.0))
