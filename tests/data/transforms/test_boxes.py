"""Boxes follow the pixels that they are drawn around, through every crop, flip and view."""

import numpy as np
import pytest

from keras_vjepa.data.transforms.boxes import BoxTransform, BoxView, jittered

pytestmark = pytest.mark.data

HEIGHT, WIDTH = 90, 160


def frames_with(box):
    """Two black frames with a white box."""
    frames = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    left, top, right, bottom = np.round(np.array(box) * [WIDTH, HEIGHT, WIDTH, HEIGHT]).astype(int)
    frames[:, top:bottom, left:right] = 255
    return frames


def seen(clip):
    """The box around what is white in a clip."""
    rows, columns = np.nonzero(clip[0, ..., 0] > 0)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("seed", range(20))
def test_a_box_stays_around_its_pixels(seed):
    box = (0.25, 0.2, 0.5, 0.8)
    transform = BoxTransform(48, short_side=(48, 72))
    clip, boxes, inside = transform(frames_with(box), np.array([box]), np.random.default_rng(seed))
    assert clip.shape == (2, 48, 48, 3)
    if inside[0]:
        assert np.abs(boxes[0] - seen(clip)).max() <= 1.0
    else:
        assert (clip < 0).all()


def test_flips_and_scales_are_drawn():
    box = (0.25, 0.2, 0.5, 0.8)
    transform = BoxTransform(48, short_side=(48, 72))
    found = [
        transform(frames_with(box), np.array([box]), np.random.default_rng(seed))[1][0]
        for seed in range(30)
    ]
    heights = [bottom - top for _, top, _, bottom in found]
    assert max(heights) > 1.2 * min(heights)
    never = BoxTransform(48, (48, 48), horizontal_flip=0)
    always = BoxTransform(48, (48, 48), horizontal_flip=1)
    pair = [
        t(frames_with(box), np.array([box]), np.random.default_rng(3))[1][0]
        for t in (never, always)
    ]
    np.testing.assert_allclose(pair[0][[0, 2]], 48 - pair[1][[2, 0]], atol=1e-4)


def test_a_box_outside_of_the_crop_is_told():
    boxes = np.array([(0.0, 0.0, 0.1, 1.0), (0.9, 0.0, 1.0, 1.0), (0.3, 0.0, 0.7, 1.0)])
    transform = BoxTransform(45, short_side=(90, 90))
    counts = np.zeros(3)
    for seed in range(40):
        _, found, inside = transform(frames_with(boxes[0]), boxes, np.random.default_rng(seed))
        assert (found >= 0).all() and (found <= 45).all()
        assert ((found[:, 2] > found[:, 0]) >= inside).all()
        counts += inside
    assert 0 < counts[0] < 40 and 0 < counts[1] < 40 and counts[2] > counts[0]


def test_the_whole_frame_is_viewed():
    box = (0.25, 0.2, 0.5, 0.8)
    clip, boxes = BoxView(60, multiple=16)(frames_with(box), np.array([box]))
    # The frame has 60 x 106 pixels and is padded to whole patches.
    assert clip.shape == (2, 64, 112, 3)
    assert (clip[:, 60:] == 0).all() and (clip[:, :, 106:] == 0).all()
    assert np.abs(boxes[0] - seen(clip[:, :60, :106])).max() <= 1.0
    _, larger = BoxView(60, extension=(0.2, 0.1))(frames_with(box), np.array([box]))
    width, height = boxes[0, 2:] - boxes[0, :2]
    grown = boxes[0] + np.array([-width * 0.1, -height * 0.05, width * 0.1, height * 0.05])
    np.testing.assert_allclose(larger[0], grown, atol=1e-4)
    _, cut = BoxView(60, extension=(9.0, 9.0))(frames_with(box), np.array([box]))
    assert cut[0].tolist() == [0, 0, 106, 60]


def test_the_whole_frame_fits_in_a_size():
    """And boxes stay where they are in the frame, for wide and for tall sizes."""
    box = (0.25, 0.2, 0.5, 0.8)
    for size, (height, width) in (((64, 64), (36, 64)), ((40, 96), (40, 71)), ((96, 16), (9, 16))):
        clip, boxes = BoxView(8, fits_in=size)(frames_with(box), np.array([box]))
        assert clip.shape == (2, *size, 3)
        assert (clip[:, height:] == 0).all() and (clip[:, :, width:] == 0).all()
        np.testing.assert_allclose(boxes[0] / [width, height, width, height], box, atol=1e-6)
        assert np.abs(boxes[0] - seen(clip[:, :height, :width])).max() <= 1.0


def test_jitter_moves_each_edge_by_itself():
    boxes = np.tile([0.2, 0.2, 0.6, 0.4], (4000, 1))
    moved = jittered(boxes, (0.2, 0.1), np.random.default_rng(0)) - boxes
    outwards = moved * [-1, -1, 1, 1] / [0.4, 0.2, 0.4, 0.2]
    for column, most in enumerate((0.2, 0.1, 0.2, 0.1)):
        assert outwards[:, column].max() == pytest.approx(most, rel=0.02)
        assert outwards[:, column].min() == pytest.approx(-most / 2, rel=0.02)
    assert np.abs(np.corrcoef(outwards.T) - np.eye(4)).max() < 0.1
    assert (jittered(boxes, (0.0, 0.0), np.random.default_rng(0)) == boxes).all()


def test_numbers_out_of_range_are_named():
    with pytest.raises(ValueError, match="`short_side` must be at least `crop_size`=64"):
        BoxTransform(64, short_side=(32, 64))
    with pytest.raises(ValueError, match="`jitter` must be in"):
        BoxTransform(64, jitter=(0.6, 0.1))
    with pytest.raises(ValueError, match="`extension` must be in"):
        BoxView(64, extension=(-0.1, 0.1))
