"""A folder in the official layout of AVA v2.2, with small videos that show their numbers."""

import json
from pathlib import Path

from tests.data.reading.stamped import write_with_opencv

ACTIONS = {1: "bend", 4: "dance", 17: "ride", 80: "watch"}
VIDEOS = ("-5KQ66BBWC4", "1j20qq1JyX4", "Ov0za6Xb1LM")
# The people in each key frame, each with a box and actions.
PEOPLE = (
    ((0.1, 0.1, 0.4, 0.9), (1, 17)),
    ((0.5, 0.2, 0.8, 0.95), (4,)),
    ((0.3, 0.05, 0.9, 0.6), (80, 2, 1)),
)


def write_rows(path, rows):
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))


def write_ava(root: Path, seconds=(1, 2, 3)) -> Path:
    """Write annotations, lists of actions, detected boxes in both forms, and videos of 4 s."""
    annotations, videos = root / "annotations", root / "videos"
    annotations.mkdir(parents=True)
    videos.mkdir()
    for split, names in (("train", VIDEOS[:2]), ("val", VIDEOS[2:])):
        rows, detected, entries = [], [], []
        for name in names:
            write_with_opencv(videos / f"{name}.avi", "MJPG", num_frames=120)
            for second in seconds:
                for person, (box, actions) in enumerate(PEOPLE[: 1 + second % 3]):
                    rows += [(name, f"{second:04d}", *box, a, person) for a in actions]
                    score = (0.95, 0.85, 0.5)[person]
                    detected.append((name, f"{second:04d}", *box, "", score))
                    left, top, right, bottom = (
                        x * y for x, y in zip(box, (96, 64) * 2, strict=True)
                    )
                    bbox = [left, top, right - left, bottom - top]
                    image = f"{name},{second:04d}"
                    entries.append({"image_id": image, "bbox": bbox, "score": score})
        write_rows(annotations / f"ava_{split}_v2.2.csv", rows)
        excluded = [(names[0], "0003")]
        write_rows(annotations / f"ava_{split}_excluded_timestamps_v2.2.csv", excluded)
        write_rows(root / f"detected_{split}.csv", detected)
        (root / f"detected_{split}.json").write_text(json.dumps(entries))
    for name, form in (
        ("_for_activitynet_2019", 'item {{\n  name: "{}"\n  id: {}\n}}\n'),
        ("", 'label {{\n  name: "{}"\n  label_id: {}\n  label_type: X\n}}\n'),
    ):
        path = annotations / f"ava_action_list_v2.2{name}.pbtxt"
        known = {n: a for n, a in ACTIONS.items() if not name or n != 4}
        path.write_text("".join(form.format(a, n) for n, a in known.items()))
    return root
