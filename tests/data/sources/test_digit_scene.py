"""The built-in scenes: boxes hold the digits, motions are what the labels say, files are AVA's."""

import numpy as np
import pytest

from keras_vjepa.data.reading.video import open_video
from keras_vjepa.data.sources.ava_boxes import read_detected_boxes
from keras_vjepa.data.sources.detection_sets import check_detection_set, detection_set
from keras_vjepa.data.sources.digit_scene import SCENES, prepare_digit_scenes
from keras_vjepa.data.sources.digit_scene_rendering import (
    ACTIONS,
    SCENE_MOTIONS,
    DigitSceneConfig,
    render_scene,
)
from tests.data.sources.ava_layout import write_ava

pytestmark = pytest.mark.data

SMALL = DigitSceneConfig(num_training_videos=6, num_test_videos=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return prepare_digit_scenes(tmp_path_factory.mktemp("cache"), SMALL, progress=None)


def test_digits_stay_within_their_boxes():
    seen = set()
    for index in range(12):
        scene = render_scene("train", index)
        assert scene.frames.shape == (36, 128, 128, 3)
        assert 1 <= len(scene.digits) <= 4
        for second in (1, 2):
            outside = scene.frames[second * 12].astype(int).max(axis=-1)
            for digit in scene.digits:
                left, top, right, bottom = digit.box(second * 24)
                assert 0 <= left < right <= 128 and 0 <= top < bottom <= 128
                assert 24 <= digit.size <= 40
                assert outside[top:bottom, left:right].max() > 90
                outside[top:bottom, left:right] = 0
                seen.add(digit.motion)
            # Only noise is left.
            assert outside.max() < 20
    assert len(seen) >= 6


def test_a_motion_is_what_it_is_called():
    for index in range(12):
        for digit in render_scene("test", index).digits:
            down, right = digit.path[-1] - digit.path[0]
            name = SCENE_MOTIONS[digit.motion]
            expected = {"right": (0, 71), "left": (0, -71), "down": (71, 0), "up": (-71, 0)}
            if name in expected:
                assert (down, right) == expected[name]
            else:
                assert np.abs(digit.path - digit.path[0]).max() <= 24
            assert digit.actions == (1 + digit.digit, 11 + digit.motion)


def test_a_scene_is_a_function_of_its_number():
    one, again = render_scene("train", 3), render_scene("train", 3)
    np.testing.assert_array_equal(one.frames, again.frames)
    assert (render_scene("train", 4).frames != one.frames).any()
    assert (render_scene("train", 3, DigitSceneConfig(seed=1)).frames != one.frames).any()


def test_the_files_are_read_as_avas_are(files, monkeypatch):
    monkeypatch.setitem(SCENES, "digit_scene", SMALL)
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(files.folder.parent.parent))
    found = detection_set("digit_scene")
    assert len(found.train) == 12 and len(found.test["true"]) == 8
    assert found.actions == ACTIONS and found.evaluated == [*ACTIONS]
    scene = render_scene("test", 1)
    sample = found.test["true"][2]
    assert sample.key == ("test_00001", "0001")
    expected = [np.array(digit.box(24)) / 128 for digit in scene.digits]
    np.testing.assert_allclose(sample.boxes, expected, atol=1e-4)
    assert [tuple(n + 1 for n in one) for one in sample.actions] == [
        d.actions for d in scene.digits
    ]
    with open_video(sample.source) as video:
        frames = video.read([12])
    assert np.abs(frames[0].astype(int) - scene.frames[12]).mean() < 3
    listed = files.train.read_text().split()
    assert len(listed) == 6 and all((files.folder / name).is_file() for name in listed)


def test_detected_boxes_lie_near_the_true_ones(files):
    found = read_detected_boxes(files.detected)
    near = total = 0
    for index in range(4):
        scene = render_scene("test", index, SMALL)
        for second in (1, 2):
            boxes, _ = found.by_key_frame.get((f"test_{index:05d}", f"{second:04d}"), ([], []))
            true = [np.array(digit.box(second * 24)) / 128 for digit in scene.digits]
            total += len(boxes)
            near += sum(min(np.abs(t - box).max() for t in true) < 0.05 for box in boxes)
    assert 0.6 * total < near <= total


def test_the_official_layout(tmp_path):
    root = write_ava(tmp_path / "ava")
    found = detection_set(str(root), boxes=str(root / "detected_val.csv"))
    assert [*found.actions] == [1, 17, 80] and found.evaluated == [1, 17, 80]
    assert len(found.train) == 5 and len(found.test["true"]) == 2
    assert [len(sample.boxes) for sample in found.test["detected"]] == [2, 2]
    every = detection_set(str(root), actions="80")
    assert [*every.actions] == [1, 4, 17, 80] and every.evaluated == [1, 17, 80]
    assert "detected" not in every.test and every.first_second == 0.0
    with pytest.raises(FileNotFoundError, match="`data` must hold ava_action_list_"):
        detection_set(str(root / "videos"), videos=str(root / "videos"))
    for given, message in (
        ({"data": "nowhere"}, "`data` must be a folder in the layout of AVA, or digit_scene"),
        ({"data": str(root), "boxes": "nowhere.csv"}, "`boxes` must exist"),
        ({"data": "digit_scene", "actions": "80"}, "`actions` must be 60 with `data`=digit_scene"),
        ({"data": str(root), "kind": "image"}, "`kind` must be 'video' or 'frames'"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            check_detection_set(**given)


@pytest.mark.parametrize("change", [{"canvas_size": 100}, {"smallest": 41}, {"frame_step": 5}])
def test_numbers_that_do_not_fit(change):
    with pytest.raises(ValueError, match=f"`{[*change][0]}`|`fps`"):
        DigitSceneConfig(**change)
