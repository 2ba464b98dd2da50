"""Mean average precision of actions: AVA's evaluators' numbers, and its definition in loops."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from keras_vjepa.data.sources.ava_files import (
    ActionRows,
    read_actions,
    read_key_frames,
    read_label_map,
)
from keras_vjepa.evaluation.detection import RULES, mean_average_precision
from tests.support import GOLDEN, ROOT

pytestmark = pytest.mark.data

# All cases are used if the project's shared folder is beside the checkout, otherwise only the small
# ones.
SHARED = ROOT.parent / "shared" / "reference" / "parts" / "ava" / "map"
CASES = {p.name: p for folder in (GOLDEN / "detection" / "map", SHARED) for p in folder.glob("*")}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_authors_scripts(case, rule):
    folder = CASES[case]
    expected = json.loads((folder / "expected.json").read_text())[rule]
    names = read_label_map(folder / "labelmap.pbtxt")
    truth, found = (read_actions(folder / f"{n}.csv") for n in ("groundtruth", "detections"))
    path = folder / "excluded.csv"
    excluded = read_key_frames(path) if path.exists() else []
    if "error" in expected:
        with pytest.raises(ValueError, match="rows of two columns"):
            mean_average_precision(truth, found, names, excluded, rule)
        return
    scores = mean_average_precision(truth, found, names, excluded, rule)
    by_name = {names[number]: value for number, value in scores.by_action.items()}
    assert by_name.keys() == expected["ap_by_class"].keys()
    assert {n for n, v in by_name.items() if v is None} == {
        n for n, v in expected["ap_by_class"].items() if v is None
    }
    for name, value in expected["ap_by_class"].items():
        assert value is None or abs(by_name[name] - value) <= 1e-9
    assert abs(scores.mean - expected["mean_ap"]) <= 1e-9


def rows(key_frames, table):
    """Rows of `place, left, top, right, bottom, action, score`."""
    table = np.array(table, float).reshape(-1, 7)
    whole = table[:, 0].astype(int), table[:, 1:5], table[:, 5].astype(int), table[:, 6]
    return ActionRows(key_frames, *whole)


def random_rows(rng, count, num_keys=4, num_actions=2):
    corners = np.sort(rng.integers(0, 6, (count, 2, 2)), axis=1).reshape(count, 4) / 5
    corners[:, 2:] += 0.2
    scores = rng.permutation(count)[:, None] / count
    parts = (
        rng.integers(num_keys, size=(count, 1)),
        corners,
        rng.integers(num_actions, size=(count, 1)),
    )
    keys = [("abc", f"{902 + n:04d}") for n in range(num_keys)]
    return rows(keys, np.concatenate([*parts, scores], axis=1))


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def by_definition(truth, found, action):
    """Average precision, one detection after the other."""
    total = int(np.sum(truth.actions == action))
    taken, right = set(), []
    order = [i for i in np.argsort(-found.scores) if found.actions[i] == action]
    for i in order:
        same = (truth.places == found.places[i]) & (truth.actions == action)
        overlaps = {n: overlap(found.boxes[i], truth.boxes[n]) for n in np.flatnonzero(same)}
        best = max(overlaps, key=overlaps.get, default=None)
        right.append(best is not None and overlaps[best] >= 0.5 and best not in taken)
        taken |= {best} if right[-1] else set()
    precision = [sum(right[: n + 1]) / (n + 1) for n in range(len(right))]
    return sum(max(precision[n:]) for n in range(len(right)) if right[n]) / total


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    truth, found = random_rows(rng, 14), random_rows(rng, 60)
    scores = mean_average_precision(truth, found, [0, 1])
    for action in (0, 1):
        assert abs(scores.by_action[action] - by_definition(truth, found, action)) <= 1e-12
    assert scores.mean > 0


def test_order_of_equal_scores():
    """Over key frames the last comes first; within one the first is compared first."""
    keys = [("abc", "0902"), ("abc", "0903")]
    box, other = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    truth = rows(keys, [(0, *box, 1, 0)])
    right, wrong = (0, *box, 1, 0.5), (1, *other, 1, 0.5)
    assert mean_average_precision(truth, rows(keys, [right, wrong]), [1]).mean == 0.5
    assert mean_average_precision(truth, rows(keys, [wrong]), [1]).mean == 0.0
    swapped = rows(keys[::-1], [(0, *other, 1, 0.5), (1, *box, 1, 0.5)])
    assert mean_average_precision(truth, swapped, [1]).mean == 1.0


def test_every_tie_order_of_small_files_is_the_documented_one():
    keys = [("abc", f"{902 + n}") for n in range(4)]
    box, other = (0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)
    truth = rows(keys, [(n, *box, 1, 0) for n in range(4)])
    for right in itertools.product([True, False], repeat=4):
        found = rows(keys, [(n, *(box if r else other), 1, 0.5) for n, r in enumerate(right)])
        ranked = dataclasses.replace(found, scores=np.arange(4) / 4)
        scores = [mean_average_precision(truth, each, [1]).mean for each in (found, ranked)]
        assert scores[0] == scores[1]


def test_nothing_known_is_no_number():
    empty = rows([], [])
    assert math.isnan(
        mean_average_precision(empty, random_rows(np.random.default_rng(0), 5), [1]).mean
    )


@pytest.mark.parametrize(
    "text,message",
    [
        ("abc,0902,0.1,0.2,0.5", "rows.csv:2: A row must have 7 or 8 columns. Received: 5"),
        ("abc,0902,0.1,nan,0.5,0.9,1", "rows.csv:2: A number must stand there. Received: 'nan'"),
        ("abc,0902,0.1,0.2,0.5,0.9,run", "The action must be a whole number. Received: 'run'"),
        ("abc,-3,0.1,0.2,0.5,0.9,1", "The second must be at least 0. Received: '-3'"),
    ],
)
def test_rows_that_are_none_are_named(text, message, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"abc,0902,0.1,0.2,0.5,0.9,1\n{text}\n")
    with pytest.raises(ValueError) as refused:
        read_actions(path)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", ["", "item {\n}", "item { name: 'a' id: 1 }\nitem { name: 'b' id: 1 }"]
)
def test_label_maps_that_are_none_are_named(content, tmp_path):
    path = tmp_path / "list.pbtxt"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"^{path}.* must "):
        read_label_map(path)


def test_both_forms_of_label_maps(tmp_path):
    path = Path(tmp_path, "list.pbtxt")
    path.write_text(
        'label {\n  name: "bend"\n  label_id: 1\n  label_type: PERSON_MOVEMENT\n}\n'
        "item {\n  name: 'get up'\n  id: 6\n}\n"
    )
    assert read_label_map(path) == {1: "bend", 6: "get up"}


def test_what_a_rule_does_not_know():
    box = (0.1, 0.1, 0.5, 0.5)
    truth, halves = (rows([("abc", t)], [(0, *box, 1, 0.5)]) for t in ("902", "902.5"))
    with pytest.raises(ValueError, match="Seconds must be whole numbers for slowfast"):
        mean_average_precision(truth, halves, [1], rule="slowfast")
    assert mean_average_precision(halves, halves, [1], rule="listed_keyframes_2020").mean == 1.0
    with pytest.raises(ValueError, match="A box must have its left end before its right one"):
        mean_average_precision(rows([("abc", "902")], [(0, 0.5, 0.1, 0.1, 0.5, 1, 0)]), truth, [1])
    with pytest.raises(ValueError, match="`rule` must be "):
        mean_average_precision(truth, truth, [1], rule="coco")
