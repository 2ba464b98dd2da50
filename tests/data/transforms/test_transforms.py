"""Clip transforms against outputs of the authors' transforms, and their random choices."""

import json

import numpy as np
import pytest
from PIL import Image

from keras_vjepa.data.transforms.crops import (
    PIXEL_MEAN,
    PIXEL_STD,
    moving_boxes,
    normalize,
    random_erasing,
    random_resized_crop_box,
    resized_crop,
)
from keras_vjepa.data.transforms.training import (
    ImageProbeTransform,
    PretrainTransform,
    VideoProbeTransform,
)
from keras_vjepa.data.transforms.views import center_view, resize_short_side, three_views
from tests.support import GOLDEN

pytestmark = pytest.mark.data

RECORDS = json.loads((GOLDEN / "augment.json").read_text())
CROP_SIZE = RECORDS["crop_size"]
SIGMAS = 5


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "augment.npz") as stored:
        return dict(stored)


def channels_last(clip: np.ndarray) -> np.ndarray:
    return np.moveaxis(clip, -4, -1)


def random_frames(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_constants():
    assert list(PIXEL_MEAN) == RECORDS["mean"]
    assert list(PIXEL_STD) == RECORDS["std"]


@pytest.mark.parametrize("record", RECORDS["train"], ids=lambda record: record["output"])
def test_pretraining_transform(arrays, record):
    clip = PretrainTransform(CROP_SIZE).apply(
        arrays[record["input"]], record["crop_top_left_height_width"], record["flip"]
    )
    assert clip.dtype == np.float32
    # Measured difference: 3.0e-6.
    np.testing.assert_allclose(clip, channels_last(arrays[record["output"]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "record", RECORDS["train_motion_shift"], ids=lambda record: record["output"]
)
def test_pretraining_transform_with_moving_crop(arrays, record):
    frames = arrays[record["input"]]
    boxes = moving_boxes(record["first_box"], record["last_box"], len(frames))
    clip = PretrainTransform(CROP_SIZE).apply(frames, boxes, record["flip"])
    # Measured difference: 2.1e-6.
    np.testing.assert_allclose(clip, channels_last(arrays[record["output"]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("record", RECORDS["eval_center"], ids=lambda record: record["output"])
def test_center_view(arrays, record):
    frames, expected = arrays[record["input"]], channels_last(arrays[record["output"]])
    # Measured difference: 5e-7. One grey level would be 0.017, so OpenCV's 8-bit resize is
    # reproduced exactly.
    for short_side in (record["short_side"], None):
        clip = center_view(frames, CROP_SIZE, short_side)
        np.testing.assert_allclose(clip, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("record", RECORDS["eval_views"], ids=lambda record: record["output"])
def test_three_views(arrays, record):
    clips = three_views(arrays[record["input"]], CROP_SIZE)
    expected = np.stack([channels_last(view) for view in arrays[record["output"]]])
    # Measured difference: 5e-7.
    np.testing.assert_allclose(clips, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("record", RECORDS["image_eval"], ids=lambda record: record["output"])
def test_image_view(arrays, record):
    name, frame = record["input"].rstrip("]").split("[")
    frames = arrays[name][int(frame)][None]
    expected = channels_last(arrays[record["output"]][:, None])
    # Measured difference: 5e-7. Pillow's antialiased 8-bit resize is reproduced exactly.
    for short_side in (record["short_side"], None):
        view = center_view(frames, CROP_SIZE, short_side, antialias=True)
        np.testing.assert_allclose(view, expected, atol=1e-5, rtol=0)


def test_one_frame_and_square_views():
    frames = random_frames(1, 40, 40)
    views = three_views(frames, 40)
    np.testing.assert_array_equal(views[0], views[2])
    np.testing.assert_array_equal(views[0], normalize(frames))
    assert center_view(frames, 28).shape == (1, 28, 28, 3)
    assert resize_short_side(random_frames(1, 3, 9), 1).shape == (1, 1, 3, 3)


@pytest.mark.parametrize(
    "record", RECORDS["crop_statistics"], ids=lambda r: f"{r['height']}x{r['width']}"
)
def test_crop_distribution(record):
    height, width = record["height"], record["width"]
    rng = np.random.default_rng(0)
    count = 10_000
    boxes = np.array(
        [
            random_resized_crop_box(height, width, record["scale"], record["ratio"], rng)
            for _ in range(count)
        ]
    )
    top, left, crop_height, crop_width = boxes.T
    assert (top >= 0).all() and (top + crop_height <= height).all()
    assert (left >= 0).all() and (left + crop_width <= width).all()

    areas = crop_height * crop_width / (height * width)
    aspects = crop_width / crop_height
    both_sizes = np.sqrt(1 / count + 1 / record["n"])
    assert abs(areas.mean() - record["area_mean"]) < SIGMAS * areas.std() * both_sizes
    aspect_error = SIGMAS * aspects.std() * both_sizes
    assert abs(aspects.mean() - record["aspect_w_over_h_mean"]) < aspect_error
    squares = (areas - record["area_mean"]) ** 2
    assert abs(squares.mean() - record["area_std"] ** 2) < SIGMAS * squares.std() * both_sizes
    for values, name in ((areas, "area_percentiles"), (aspects, "aspect_percentiles")):
        for percent in (5, 25, 50, 75, 95):
            # The stored percentiles are rounded to five decimals.
            below = np.mean(values < record[name][str(percent)] - 1e-5)
            up_to = np.mean(values <= record[name][str(percent)] + 1e-5)
            error = SIGMAS * both_sizes * np.sqrt(percent / 100 * (1 - percent / 100))
            assert below - error <= percent / 100 <= up_to + error, (name, percent)
    full = np.mean(crop_height == height)
    error = SIGMAS * both_sizes * np.sqrt(max(full * (1 - full), 1 / count))
    assert abs(full - record["full_height_fraction"]) < error


def test_crop_positions_are_uniform_up_to_the_border():
    rng = np.random.default_rng(0)
    boxes = [random_resized_crop_box(10, 9, (0.7, 0.7), (1.0, 1.0), rng) for _ in range(3000)]
    # The side is sqrt(0.7 * 10 * 9) = 7.94 pixels, rounded.
    assert {box[2:] for box in boxes} == {(8, 8)}
    corners, counts = np.unique([box[:2] for box in boxes], axis=0, return_counts=True)
    assert corners.tolist() == [[top, left] for top in range(3) for left in range(2)]
    assert np.abs(counts - 500).max() < SIGMAS * np.sqrt(500)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 400, (0, 132, 100, 135)), (400, 100, (133, 0, 133, 100)), (1, 500, (0, 249, 1, 1))],
)
def test_crop_fallback_is_central(height, width, expected):
    rng = np.random.default_rng(0)
    assert random_resized_crop_box(height, width, (1.0, 1.0), (0.75, 1.35), rng) == expected


def test_transform_is_a_function_of_the_generator():
    frames = random_frames(4, 48, 64)
    transform = PretrainTransform((24, 32), motion_shift=True, erasing=0.5)
    first, again, other = (transform(frames, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 24, 32, 3) and first.flags.c_contiguous
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_frames_share_the_crop_and_the_flip():
    frames = random_frames(1, 48, 64).repeat(5, axis=0)
    clip = PretrainTransform(32)(frames, np.random.default_rng(0))
    np.testing.assert_array_equal(clip, clip[:1].repeat(5, axis=0))


def test_flip_probability():
    flips = {
        probability: np.mean(
            [
                PretrainTransform(8, horizontal_flip=probability).draw(1, 8, 8, rng)[1]
                for rng in map(np.random.default_rng, range(400))
            ]
        )
        for probability in (0.0, 0.5, 1.0)
    }
    assert flips[0.0] == 0 and flips[1.0] == 1
    assert abs(flips[0.5] - 0.5) < SIGMAS * 0.5 / np.sqrt(400)


def test_flip_mirrors_the_same_crop():
    frames = random_frames(2, 20, 30)
    straight = resized_crop(frames, (3, 4, 12, 17), 8)
    np.testing.assert_array_equal(
        resized_crop(frames, (3, 4, 12, 17), 8, normalized=True), normalize(straight)
    )
    mirrored = resized_crop(frames, (3, 4, 12, 17), 8, flip=True)
    np.testing.assert_allclose(mirrored, straight[:, :, ::-1], atol=1e-4)


def test_moving_boxes_keep_whole_pixels():
    assert moving_boxes((0, 0, 1, 1), (3, 0, 4, 1), 16)[:, 0].tolist() == [
        *[0] * 5, *[1] * 5, *[2] * 5, 3
    ]  # fmt: skip
    assert moving_boxes((1, 2, 3, 4), (5, 6, 7, 8), 1).tolist() == [[1, 2, 3, 4]]


def test_erasing_fills_one_box_with_fresh_noise():
    areas, heights_over_widths = [], []
    for seed in range(200):
        clip = np.zeros((2, 64, 80, 3), np.float32)
        random_erasing(clip, np.random.default_rng(seed))
        erased = (clip != 0).any(axis=-1)
        np.testing.assert_array_equal(erased[0], erased[1])
        rows, columns = np.flatnonzero(erased[0].any(axis=1)), np.flatnonzero(erased[0].any(axis=0))
        assert erased[0].sum() == len(rows) * len(columns) > 0
        noise = clip[:, erased[0]]
        assert not np.array_equal(noise[0], noise[1])
        assert abs(noise.mean()) < 5 / np.sqrt(noise.size) and 0.8 < noise.std() < 1.2
        areas.append(erased[0].mean())
        heights_over_widths.append(len(rows) / len(columns))
    assert 0.018 < min(areas) and max(areas) < 0.345
    assert 0.25 < min(heights_over_widths) < 0.6 and 1.8 < max(heights_over_widths) < 4


def test_erasing_probability_of_the_transform():
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    rng = np.random.default_rng(0)
    transform = PretrainTransform(16, erasing=0.25)
    erased = np.mean([len(np.unique(transform(frames, rng))) > 3 for _ in range(400)])
    assert abs(erased - 0.25) < SIGMAS * np.sqrt(0.25 * 0.75 / 400)


def test_video_probe_transform_augments_the_frames_before_the_crop():
    def halve(frames, rng):
        calls.append(frames.shape)
        return frames // 2

    calls = []
    frames = random_frames(4, 48, 64)
    settings = {"erasing": 0.0, "augmentation": halve}
    clip = VideoProbeTransform(16, **settings)(frames, np.random.default_rng(0))
    boxes, flip = VideoProbeTransform(16).draw(4, 48, 64, np.random.default_rng(0))
    np.testing.assert_array_equal(clip, PretrainTransform(16).apply(frames // 2, boxes, flip))
    assert calls == [frames.shape] and not flip


def test_video_probe_transform_follows_the_authors_code():
    transform = VideoProbeTransform(16)
    draws = [transform.draw(1, 100, 100, np.random.default_rng(seed)) for seed in range(300)]
    areas = [boxes[0, 2] * boxes[0, 3] / 1e4 for boxes, _ in draws]
    assert 0.06 < min(areas) < 0.1 and not any(flip for _, flip in draws)
    frames = random_frames(2, 24, 24)
    clips = [transform(frames, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])
    # In about a quarter of the clips, erased pixels exceed the range of normalised grey levels.
    rng = np.random.default_rng(0)
    erased = np.mean([transform(frames, rng).max() > 2.641 for _ in range(300)])
    assert abs(erased - 0.25) < SIGMAS * np.sqrt(0.25 * 0.75 / 300)


def test_image_probe_transform():
    image = random_frames(1, 60, 80)
    plain = ImageProbeTransform(
        32,
        scale=(1.0, 1.0),
        ratio=(4 / 3, 4 / 3),
        horizontal_flip=1.0,
        erasing=0,
        augmentation=None,
    )
    expected = np.asarray(
        Image.fromarray(image[0])
        .resize((32, 32), Image.Resampling.BICUBIC)
        .transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    )
    crop = plain(image, np.random.default_rng(0))
    np.testing.assert_array_equal(crop[0], normalize(expected))
    # All frames of a clip are changed in the same way, by AutoAugment too.
    clip = ImageProbeTransform((24, 32), erasing=0.0)(image.repeat(3, 0), np.random.default_rng(5))
    assert clip.shape == (3, 24, 32, 3)
    np.testing.assert_array_equal(clip, clip[:1].repeat(3, axis=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PretrainTransform(0), "`crop_size` must be at least 1. Received: 0"),
        (
            lambda: PretrainTransform(8, scale=(0.5, 1.5)),
            "`scale` must be a (low, high) range in (0, 1]. Received: (0.5, 1.5)",
        ),
        (
            lambda: PretrainTransform(8, ratio=(0.0, 1.0)),
            "`ratio` must be a (low, high) range in [0.01, 100]. Received: (0.0, 1.0)",
        ),
        (
            lambda: PretrainTransform(8, horizontal_flip=1.5),
            "`horizontal_flip` must be in [0, 1]. Received: 1.5",
        ),
        (
            lambda: ImageProbeTransform(8, erasing=-0.5),
            "`erasing` must be in [0, 1]. Received: -0.5",
        ),
        (
            lambda: PretrainTransform(8)(np.zeros((2, 3, 4, 4), np.uint8), np.random.default_rng()),
            "`frames` must be uint8 of shape (time, height, width, 3). "
            "Received: uint8 of shape (2, 3, 4, 4)",
        ),
        (
            lambda: three_views(np.zeros((2, 4, 4, 3), np.float32), 4),  # type: ignore[arg-type]
            "`frames` must be uint8 of shape (time, height, width, 3). "
            "Received: float32 of shape (2, 4, 4, 3)",
        ),
        (
            lambda: resized_crop(np.zeros((1, 4, 4, 3), np.uint8), (1, 0, 4, 4), 2),
            "`boxes` (top, left, height, width) must lie inside the frames of height x width 4x4. "
            "Received: [[1, 0, 4, 4]]",
        ),
        (
            lambda: center_view(np.zeros((1, 4, 4, 3), np.uint8), 5, short_side=4),
            "`crop_size` must be in [1, `short_side`=4]. Received: 5",
        ),
        (
            lambda: resize_short_side(np.zeros((1, 4, 4, 3), np.uint8), 0),
            "`short_side` must be at least 1. Received: 0",
        ),
    ],
)
def test_errors_are_one_line_that_teaches(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message
