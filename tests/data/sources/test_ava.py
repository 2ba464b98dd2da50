"""Key frames of AVA: persons with several actions, exclusions, detected boxes, what is missing."""

import json
import logging

import numpy as np
import pytest

from keras_vjepa.data.sources.ava import (
    annotated_key_frames,
    detected_key_frames,
    split_boxes,
    video_files,
)
from keras_vjepa.data.sources.ava_boxes import read_detected_boxes
from keras_vjepa.data.sources.ava_files import read_actions, read_key_frames, read_label_map
from tests.data.sources.ava_layout import PEOPLE, VIDEOS, write_ava, write_rows

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_ava(tmp_path_factory.mktemp("ava"))


@pytest.fixture
def known(root):
    folder = root / "annotations"
    return {
        "rows": read_actions(folder / "ava_train_v2.2.csv"),
        "videos": video_files(root / "videos"),
        "actions": [*read_label_map(folder / "ava_action_list_v2.2_for_activitynet_2019.pbtxt")],
        "excluded": read_key_frames(folder / "ava_train_excluded_timestamps_v2.2.csv"),
    }


def test_rows_of_one_box_are_one_person(known):
    samples = annotated_key_frames(**known)
    keys = [sample.key for sample in samples]
    # One second of the first video is excluded, and the second person's action is not evaluated.
    expected = [(VIDEOS[0], "0001"), (VIDEOS[0], "0002")]
    expected += [(VIDEOS[1], f"000{n}") for n in (1, 2, 3)]
    assert keys == expected
    two = samples[1]
    np.testing.assert_allclose(two.boxes, [PEOPLE[0][0], PEOPLE[2][0]])
    # The numbers are places among the actions 1, 17 and 80; action 2 is not evaluated.
    assert two.actions == ((0, 1), (0, 2))
    assert two.second == 2.0 and two.source.endswith(f"{VIDEOS[0]}.avi")
    assert len({sample.path for sample in samples}) == len(samples)


def test_an_excluded_second_may_be_written_otherwise(known):
    known["excluded"] = [(VIDEOS[0], "3"), (VIDEOS[1], "02")]
    keys = [sample.key for sample in annotated_key_frames(**known)]
    assert (VIDEOS[0], "0003") not in keys and (VIDEOS[1], "0002") not in keys


def test_both_forms_of_detected_boxes_are_the_same(root, known):
    for form in ("csv", "json"):
        detected = read_detected_boxes(root / f"detected_train.{form}")
        samples = detected_key_frames(detected, known["videos"], VIDEOS, known["excluded"])
        assert [len(sample.boxes) for sample in samples] == [2, 2, 2, 2, 1]
        np.testing.assert_allclose(samples[0].shares(64, 96), [PEOPLE[0][0], PEOPLE[1][0]])
        assert samples[0].scores.tolist() == [0.95, 0.85]
    everything = detected_key_frames(detected, known["videos"], VIDEOS[:1], least_score=0.0)
    assert [len(sample.boxes) for sample in everything] == [2, 3, 1]
    with pytest.raises(ValueError, match="`boxes` must hold boxes of the videos that are tested"):
        detected_key_frames(detected, known["videos"], VIDEOS[:1], least_score=0.99)


def test_missing_videos_are_named_counted_and_bounded(known, caplog):
    del known["videos"][VIDEOS[1]]
    with pytest.raises(ValueError, match=f"none for 1 of 2, more than .*: {VIDEOS[1]}"):
        annotated_key_frames(**known)
    with caplog.at_level(logging.WARNING):
        samples = annotated_key_frames(**known, max_bad_share=0.5)
    assert {sample.key[0] for sample in samples} == {VIDEOS[0]}
    assert "1 video is missing, with 3 key frames, which are left out" in caplog.text


def test_boxes_beyond_the_frame_are_named_cut_and_bounded(known, tmp_path, caplog):
    path = tmp_path / "rows.csv"
    rows = [(VIDEOS[0], 902, -0.2, 0.1, 0.5, 1.3, 1, 0), (VIDEOS[0], 903, 1.1, 0.1, 1.5, 0.5, 1, 0)]
    rows += [(VIDEOS[0], 904 + n, 0.1, 0.1, 0.5, 0.5, 1, 0) for n in range(38)]
    write_rows(path, rows)
    known["rows"] = read_actions(path)
    with caplog.at_level(logging.WARNING):
        samples = annotated_key_frames(**known)
    assert len(samples) == 39 and samples[0].boxes.tolist() == [[0.0, 0.1, 0.5, 1.0]]
    said = caplog.text
    assert f"1 box reaching beyond the frame, cut at its borders: {VIDEOS[0]},902" in said
    assert f"1 box outside of the frame, left out: {VIDEOS[0]},903" in said
    known["rows"].boxes[:] *= 100
    with pytest.raises(ValueError, match="Boxes must be shares of the frame, from 0 to 1"):
        annotated_key_frames(**known)


def test_detected_boxes_outside_of_the_frame_are_left_out(known, tmp_path, caplog):
    path = tmp_path / "detected.csv"
    rows = [(VIDEOS[0], 902, 1.1, 0.1, 1.5, 0.5, "", 0.9), (VIDEOS[0], 903, 1.1, 0, 2, 1, "", 0.1)]
    write_rows(path, [*rows, (VIDEOS[0], 904, 0.1, 0.1, 0.5, 0.5, "", 0.9)])
    detected = read_detected_boxes(path)
    with caplog.at_level(logging.WARNING):
        [sample] = detected_key_frames(detected, known["videos"], VIDEOS, max_bad_share=0.5)
    assert sample.boxes.tolist() == [[0.1, 0.1, 0.5, 0.5]]
    assert f"1 box outside of the frame, left out: {VIDEOS[0]},0902" in caplog.text
    with pytest.raises(ValueError, match="Boxes must be shares of the frame, .* 1 of 2 with"):
        detected_key_frames(detected, known["videos"], VIDEOS)


def test_more_boxes_than_there_is_room(known):
    samples = annotated_key_frames(**known)
    parts = split_boxes(samples, 1)
    assert len(parts) == sum(len(sample.boxes) for sample in samples)
    assert parts[1].actions == samples[1].actions[:1] and parts[2].actions == samples[1].actions[1:]


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.csv", "abc,0902,0.1,0.2,0.5,0.9,1,0.9\n", "A row must be `video,second,left,top"),
        ("a.csv", "abc,0902,0.5,0.2,0.1,0.9,,0.9\n", "A box must have a width, a height and a"),
        ("a.csv", "", "must hold detected boxes. Received: none"),
        ("a.json", "{}", "must hold a JSON list"),
        ("a.json", json.dumps([{"image_id": 7, "bbox": [0, 0, 1, 1], "score": 1}]), "entry 0: `im"),
        ("a.json", json.dumps([{"image_id": "a,1", "bbox": [0, 0, 1], "score": 1}]), "`bbox` must"),
    ],
)
def test_boxes_that_are_none_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as refused:
        read_detected_boxes(tmp_path / name)
    said = str(refused.value)
    assert message in said and str(tmp_path / name) in said and "\n" not in said
