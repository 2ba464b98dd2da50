"""Augmentation against Pillow, and the draws of both policies."""

from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from keras_vjepa.data.transforms.augmentation import (
    IMAGENET_POLICY,
    AutoAugment,
    RandAugment,
    increasing_argument,
    original_argument,
)
from keras_vjepa.data.transforms.operations import OPERATIONS, Operation, apply_operations

pytestmark = pytest.mark.data

SIGMAS = 5
FILL = (10, 128, 250)


def pillow_affine(image, *matrix):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
    )


def pillow_solarize_add(image, argument):
    return image.point([min(255, i + argument) if i < 128 else i for i in range(256)] * 3)


PILLOW = {
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "rotate": lambda image, a: image.rotate(a, Image.Resampling.BICUBIC, fillcolor=FILL),
    "posterize": lambda image, a: ImageOps.posterize(image, a),
    "solarize": lambda image, a: ImageOps.solarize(image, a),
    "solarize_add": pillow_solarize_add,
    "color": lambda image, a: ImageEnhance.Color(image).enhance(a),
    "contrast": lambda image, a: ImageEnhance.Contrast(image).enhance(a),
    "brightness": lambda image, a: ImageEnhance.Brightness(image).enhance(a),
    "sharpness": lambda image, a: ImageEnhance.Sharpness(image).enhance(a),
    "shear_x": lambda image, a: pillow_affine(image, 1, a, 0, 0, 1, 0),
    "shear_y": lambda image, a: pillow_affine(image, 1, 0, 0, a, 1, 0),
    "translate_x": lambda image, a: pillow_affine(image, 1, 0, a * image.width, 0, 1, 0),
    "translate_y": lambda image, a: pillow_affine(image, 1, 0, 0, 0, 1, a * image.height),
}


def noise(*shape, low=20, high=200):
    return np.random.default_rng(0).integers(low, high, (*shape, 3), dtype=np.uint8)


def smooth(num_frames, height, width):
    frames = noise(num_frames, 9, 12, low=0, high=256)
    resized = [cv2.resize(f, (width, height), interpolation=cv2.INTER_CUBIC) for f in frames]
    return np.stack(resized)


def differences(name, frames, magnitudes=(0.0, 3.3, 5.0, 7.4, 9.0)):
    for magnitude in magnitudes:
        for sign in (1, -1):
            argument = increasing_argument(name, magnitude, sign)
            ours = apply_operations(frames, [Operation(name, argument)], FILL)
            assert ours.shape == frames.shape and ours.dtype == np.uint8
            theirs = [np.asarray(PILLOW[name](Image.fromarray(f), argument)) for f in frames]
            yield np.abs(ours.astype(int) - np.stack(theirs))


def test_every_operation_is_compared():
    assert PILLOW.keys() == OPERATIONS.keys() and len(OPERATIONS) == 15


EXACT = (
    "auto_contrast equalize invert posterize solarize solarize_add contrast brightness sharpness"
)


@pytest.mark.parametrize("name", EXACT.split())
def test_pillows_pixels(name):
    for frames in (noise(3, 61, 47), smooth(2, 64, 80)):
        for difference in differences(name, frames):
            assert difference.max() == 0


@pytest.mark.parametrize("name", ["color", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_pillows_pixels_within_a_grey_level(name):
    for frames in (noise(3, 61, 47), smooth(2, 64, 80)):
        for difference in differences(name, frames):
            # 0.2 % of the values were measured to differ.
            assert difference.max() <= 1 and np.mean(difference > 0) < 0.01


def test_rotation():
    # Differences of 0.36 on average and 2 at most were measured. OpenCV rounds, Pillow truncates,
    # and their kernels differ.
    for difference in differences("rotate", smooth(2, 128, 170)):
        assert difference.mean() < 0.6 and difference.max() <= 4
    # The area that comes into view is the same to the pixel, for other shapes too.
    for height, width in ((61, 47), (20, 50)):
        white = np.full((1, height, width, 3), 255, np.uint8)
        for difference in differences("rotate", white):
            assert difference.max() == 0


@pytest.mark.parametrize("name", ["auto_contrast", "equalize", "contrast", "sharpness", "shear_x"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 9), (1, 9, 2)])
def test_tiny_and_flat_frames(name, shape):
    for frames in (np.full((*shape, 3), 77, np.uint8), noise(*shape)):
        for difference in differences(name, frames):
            assert difference.max() <= 1


def test_two_levels_and_few_pixels():
    # Pillow does not change a frame if nearly all of its pixels have the same level.
    frames = np.zeros((1, 20, 20, 3), np.uint8)
    frames[0, :3] = 255
    for name in ("equalize", "auto_contrast"):
        for difference in differences(name, frames):
            assert difference.max() == 0


def test_frames_are_measured_one_by_one_and_not_changed():
    frames = np.stack([noise(1, 30, 40)[0], noise(1, 30, 40, low=90, high=100)[0]])
    before = frames.copy()
    for name in OPERATIONS:
        operation = [Operation(name, increasing_argument(name, 7.0, 1))]
        together = apply_operations(frames, operation)
        apart = [apply_operations(frames[i : i + 1], operation)[0] for i in range(2)]
        np.testing.assert_array_equal(together, np.stack(apart), err_msg=name)
        np.testing.assert_array_equal(frames, before, err_msg=name)


def test_arguments():
    increasing = {
        name: sorted(increasing_argument(name, 7.0, sign) for sign in (1, -1))
        for name in OPERATIONS
    }
    assert increasing == {
        "auto_contrast": [0, 0],
        "equalize": [0, 0],
        "invert": [0, 0],
        "rotate": [-21, 21],
        "posterize": [2, 2],
        "solarize": [77, 77],
        "solarize_add": [77, 77],
        "color": pytest.approx([0.37, 1.63]),
        "contrast": pytest.approx([0.37, 1.63]),
        "brightness": pytest.approx([0.37, 1.63]),
        "sharpness": pytest.approx([0.37, 1.63]),
        "shear_x": pytest.approx([-0.21, 0.21]),
        "shear_y": pytest.approx([-0.21, 0.21]),
        "translate_x": pytest.approx([-0.315, 0.315]),
        "translate_y": pytest.approx([-0.315, 0.315]),
    }
    original = {
        ("posterize", 8): 7,
        ("posterize", 5): 6,
        ("rotate", 9): -27,
        ("solarize", 5): 128,
        ("color", 0): 0.1,
        ("contrast", 8): 1.54,
        ("sharpness", 7): 1.36,
        ("shear_x", 5): -0.15,
        ("invert", 4): 0,
    }
    for (name, magnitude), argument in original.items():
        assert original_argument(name, magnitude, -1) == pytest.approx(argument)


def test_draws_of_rand_augment():
    rng = np.random.default_rng(0)
    clips = 3000
    drawn = [RandAugment().draw(rng) for _ in range(clips)]
    lengths = np.array([len(operations) for operations in drawn])
    assert lengths.max() == 4 and abs(lengths.mean() - 2) < SIGMAS / np.sqrt(clips)
    names = Counter(operation.name for operations in drawn for operation in operations)
    assert names.keys() == OPERATIONS.keys()
    for count in names.values():
        assert abs(count - 2 * clips / 15) < SIGMAS * np.sqrt(2 * clips / 15)
    # Operations are drawn with replacement, so a clip may have the same one twice.
    assert any(len({o.name for o in operations}) < len(operations) for operations in drawn)
    angles = [o.argument for operations in drawn for o in operations if o.name == "rotate"]
    sizes = np.abs(angles)
    assert abs(np.mean(np.sign(angles))) < SIGMAS / np.sqrt(len(angles))
    assert abs(sizes.mean() - 21) < SIGMAS * 1.5 / np.sqrt(len(angles))
    assert 1.3 < sizes.std() < 1.7


def test_magnitudes_are_clipped():
    wild = RandAugment(num_operations=1, magnitude=10.0, magnitude_std=50.0, probability=1.0)
    rng = np.random.default_rng(0)
    drawn = [wild.draw(rng)[0] for _ in range(500)]
    angles = {round(abs(o.argument), 6) for o in drawn if o.name == "rotate"}
    assert {0.0, 30.0} < angles and max(angles) == 30
    assert all(0 <= o.argument <= 4 for o in drawn if o.name == "posterize")


def test_draws_of_auto_augment():
    assert len(IMAGENET_POLICY) == 25
    assert {name for sub_policy in IMAGENET_POLICY for name, _, _ in sub_policy} < OPERATIONS.keys()
    rng = np.random.default_rng(0)
    count = 5000
    drawn = Counter(o.name for _ in range(count) for o in AutoAugment().draw(rng))
    expected: Counter[str] = Counter()
    for sub_policy in IMAGENET_POLICY:
        for name, probability, _ in sub_policy:
            expected[name] += count / 25 * probability
    assert drawn.keys() == expected.keys()
    for name, mean in expected.items():
        assert abs(drawn[name] - mean) < SIGMAS * np.sqrt(2 * mean), name


@pytest.mark.parametrize("augment", [RandAugment(), AutoAugment()], ids=["rand", "auto"])
def test_all_frames_get_the_same_and_the_generator_decides(augment):
    frames = noise(1, 40, 56).repeat(3, axis=0)
    results = [augment(frames, np.random.default_rng(seed)) for seed in range(12)]
    for seed, result in enumerate(results):
        np.testing.assert_array_equal(result, result[:1].repeat(3, axis=0))
        np.testing.assert_array_equal(result, augment(frames, np.random.default_rng(seed)))
    assert sum(not np.array_equal(result, frames) for result in results) > 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RandAugment(num_operations=-1),
            "`num_operations` must be at least 0. Received: -1",
        ),
        (lambda: RandAugment(magnitude=11), "`magnitude` must be in [0, 10]. Received: 11"),
        (
            lambda: RandAugment(magnitude_std=-1),
            "`magnitude_std` must be at least 0. Received: -1",
        ),
        (lambda: RandAugment(probability=2), "`probability` must be in [0, 1]. Received: 2"),
        (
            lambda: apply_operations(noise(1, 2, 2), [Operation("blur")]),
            f"`name` of an operation must be one of {', '.join(OPERATIONS)}. Received: 'blur'",
        ),
    ],
)
def test_errors_are_one_line_that_teaches(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
