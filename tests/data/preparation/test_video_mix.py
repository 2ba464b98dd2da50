"""From lists in their official layouts to a batch: what is held out, merged, counted and drawn."""

import contextlib
import csv
import json

import pytest

from keras_vjepa.data import ClipBatches
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.official_lists import (
    howto100m_videos,
    kinetics_videos,
    something_something_videos,
)
from keras_vjepa.tools import videomix
from tests.data.reading.stamped import write_with_opencv

pytestmark = pytest.mark.data

# As in the published lists, some ids begin with "-", and some differ only in the case of a letter.
IDS = {name: f"{name}-_kNp9Zq"[:11] for name in ("both", "Both", "val4", "val6", "test", "only")}
IDS |= {name: f"-{name}0aBcDeFg"[:11] for name in ("four", "six1", "sev1", "how1", "gone")}


def kinetics(path, names, split="train", start=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        columns = ["label", "youtube_id", "time_start", "time_end", "split", "is_cc"]
        writer.writerow(columns[1:-1] if split == "test" else columns)
        for name in names:
            row = ["playing (guitar)", IDS[name], start, start + 10, split, 0]
            writer.writerow(row[1:-1] if split == "test" else row)
    return path


def videos(folder, *stems):
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        write_with_opencv(folder / f"{stem}.avi", "MJPG", num_frames=8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("official")
    kinetics(root / "k400/train.csv", ["four", "both", "both", "val6", "gone"])
    kinetics(root / "k400/validate.csv", ["val4"], "validate")
    kinetics(root / "k400/test.csv", ["test"], "test")
    videos(root / "k400/videos/x", IDS["four"], f"{IDS['both']}_000003_000013", IDS["val6"])
    kinetics(root / "k600/train.csv", ["both", "six1", "val4", "Both", "gone"])
    kinetics(root / "k600/validate.csv", ["val6"], "validate")
    names = [f"{IDS[name]}_000003_000013" for name in ("six1", "both", "val4", "Both", "gone")]
    videos(root / "k600", *names)
    kinetics(root / "k700/train.csv", ["sev1", "test"])
    videos(root / "k700", *(f"{IDS[name]}_000003_000013" for name in ("sev1", "test")))
    entries = [{"id": str(n), "label": "a", "template": "Holding [something]"} for n in range(4)]
    (root / "ssv2").mkdir()
    (root / "ssv2/train.json").write_text(json.dumps(entries))
    (root / "ssv2/validation.json").write_text(json.dumps(entries[3:]))
    videos(root / "ssv2", *"0123")
    rows = [f"{IDS[name]},{task},1,Food,Meat" for name, task in
            (("how1", 1), ("how1", 2), ("val4", 1), ("sev1", 3), ("only", 3))]  # fmt: skip
    header = "video_id,task_id,rank,category_1,category_2"
    text = "\n".join([header, *rows, "#NAME?,1,2,x,y"])
    (root / "howto").mkdir()
    (root / "howto/HowTo100M_v1.csv").write_text(text)
    videos(root / "howto", *(IDS[name] for name in ("how1", "val4", "sev1")))
    return root


def options(root, *names):
    given = {
        "k400": ["train.csv", "--k400-videos", "videos", "--k400-held-out", "validate.csv"],
        "k600": ["train.csv", "--k600-held-out", "validate.csv"],
        "k700": ["train.csv"],
        "ssv2": ["train.json", "--ssv2-held-out", "validation.json"],
        "howto100m": ["HowTo100M_v1.csv"],
    }
    found = []
    for name in names or given:
        folder = root / ("howto" if name == "howto100m" else name)
        found += [f"--{name}"]
        found += [text if text.startswith("--") else str(folder / text) for text in given[name]]
    return found


def run(root, output, *arguments, names=()):
    return videomix.main([*options(root, *names), "--output", str(output), *arguments])


def drawn(output, name="videomix2m"):
    return [(s.path.split("/")[-1], s.label) for s in list_samples(output / f"{name}.csv")]


def test_the_whole_mix(root, tmp_path, capsys):
    assert run(root, tmp_path / "mix") == 0
    said = capsys.readouterr()
    assert drawn(tmp_path / "mix") == [
        (f"{IDS['four']}.avi", 0),
        (f"{IDS['both']}_000003_000013.avi", 0),
        (f"{IDS['six1']}_000003_000013.avi", 1),
        (f"{IDS['Both']}_000003_000013.avi", 1),  # not the same video as "both"
        (f"{IDS['gone']}_000003_000013.avi", 1),  # a video that K400's folder lacks
        (f"{IDS['sev1']}_000003_000013.avi", 2),
        (f"{IDS['test']}_000003_000013.avi", 2),
        *((f"{number}.avi", 3) for number in range(3)),
        (f"{IDS['how1']}.avi", 4),
    ]
    counts = json.loads((tmp_path / "mix/videomix2m.json").read_text())
    assert counts["videos"] == 11 and counts["held_out_ids"] == {"k400": 1, "k600": 1, "ssv2": 1}
    left_out = {name: source["left_out"] for name, source in counts["sources"].items()}
    assert left_out == {
        "k400": {"listed before": 1, "held out by k600": 1, "no file": 1},
        "k600": {"already in k400": 1, "held out by k400": 1},
        "k700": {},
        "ssv2": {"held out by ssv2": 1},
        "howto100m": {
            **{"listed before": 1, "held out by k400": 1, "already in k700": 1},
            **{"no file": 1, "no id of a video": 1},
        },
    }
    for source in counts["sources"].values():
        assert source["listed"] == source["kept"] + sum(source["left_out"].values())
    assert len((tmp_path / "mix/left_out.csv").read_text().splitlines()) == 1 + 11
    assert "ssv2 (label 3): 4 listed, 1 held out by ssv2; 3 kept" in said.out
    assert said.err == (
        "--k700-held-out is not given: videos of that validation set may be in the mix.\n"
    )


def test_test_sets_are_held_out_if_they_are_given(root, tmp_path, capsys):
    more = str(root / "k400/test.csv")
    assert run(root, tmp_path / "mix", "--k700-held-out", more) == 0
    assert (f"{IDS['test']}_000003_000013.avi", 2) not in drawn(tmp_path / "mix")


def test_subsets_and_shares(root, tmp_path, capsys):
    assert run(root, tmp_path / "a", "--subset", "k710_ssv2") == 0
    assert {label for _, label in drawn(tmp_path / "a", "k710_ssv2")} == {0, 1, 2, 3}
    assert "--howto100m has no effect with --subset k710_ssv2." in capsys.readouterr().err
    for seed in "001":
        assert run(root, tmp_path / f"b{seed}", "--share", "0.5", "--seed", seed) == 0
    assert len(drawn(tmp_path / "b0")) == 6 and drawn(tmp_path / "b0") != drawn(tmp_path / "b1")
    counts = json.loads((tmp_path / "b0/videomix2m.json").read_text())
    assert sum(source["drawn"] for source in counts["sources"].values()) == 6


def test_from_official_lists_to_a_batch(root, tmp_path, capsys):
    assert run(root, tmp_path / "mix", "--weights", "ssv2=2", "howto100m=0") == 0
    [command] = [line for line in capsys.readouterr().out.splitlines() if "pretrain" in line]
    assert command.endswith(
        f"--data {tmp_path}/mix/videomix2m.csv --label_weights 1.0,1.0,1.0,2.0,0.0"
    )
    batches = ClipBatches(
        list_samples(tmp_path / "mix/videomix2m.csv"),
        13,
        video_shape=(2, 32, 32, 3),
        grid_shape=(1, 4, 4),
        label_weights=(1.0, 1.0, 1.0, 2.0, 0.0),
    )
    names = [path.split("/")[-1] for path in batches.paths(0)]
    kinetics_files = [name for name, label in drawn(tmp_path / "mix") if label < 3]
    assert sorted(names) == sorted([*kinetics_files, *2 * ["0.avi", "1.avi", "2.avi"]])
    assert batches.batch(0)["videos"].shape == (13, 2, 32, 32, 3) and not batches.bad_files


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "At least one list must be given of --k400, --k600, --k700, --ssv2, --howto100m."),
        (["--k400", "gone.csv"], "--k400 must be there. Received: gone.csv"),
        (["--k400-videos", "."], "--k400 must be given with --k400-videos. Received: none"),
        (["--k400", "a.csv", "--weights", "k4=1"], "--weights must be SOURCE=WEIGHT, of k400"),
        (["--k400", "a.csv", "--weights", "k400=-1"], "--weights must be in [0, 1000]"),
        (["--k400", "a.csv", "--weights", "ssv2=1"], "--weights must be of sources in the mix."),
        (["--k400", "a.csv", "--share", "0"], "--share must be in (0, 1]. Received: 0"),
        (["--k400", "a.csv", "--subset", "k710", "--k600", "b"], "--k600 must be there."),
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").touch()
    with pytest.raises(SystemExit) as ended:
        videomix.main([*arguments, "--output", "mix"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and message in said
    assert not (tmp_path / "mix").exists()


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (kinetics_videos, "a.mp4 3\n", "must have a column `youtube_id`"),
        (kinetics_videos, "youtube_id,time_start,time_end\na,b,c\n", ":2: `time_start` and"),
        (kinetics_videos, "youtube_id,time_start,time_end\n,1,2\n", ":2: `youtube_id` must not"),
        (kinetics_videos, "youtube_id,time_start,time_end\n", "Received: a header alone"),
        (howto100m_videos, "youtube_id\na\n", "must have a column `video_id`"),
        (something_something_videos, "[", "is not a JSON file"),
        (something_something_videos, "{}", "must hold a JSON list"),
        (something_something_videos, '[{"label": 1}]', "must have an `id`"),
    ],
)
def test_a_list_of_another_kind_is_named(reader, text, message, tmp_path):
    (tmp_path / "list").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        list(reader(tmp_path / "list"))
    assert str(tmp_path / "list") in str(error.value)


def test_nothing_left_says_why(root, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    given = ["--ssv2", str(root / "ssv2/train.json"), "--ssv2-videos", str(tmp_path / "empty")]
    assert videomix.main([*given, "--output", str(tmp_path / "mix")]) == 2
    assert "No video is left of ssv2: 4 no file" in capsys.readouterr().err


def test_classes_of_kinetics_are_merged_by_name(tmp_path, capsys):
    classes = {"k400": ["yoga", "dying hair"], "k600": ["dyeing hair", "archery", "yoga"]}
    for name, labels in classes.items():
        rows = [f"{label},{name}-{i:06d},0,9,train" for i, label in enumerate(labels)]
        text = "\n".join(["label,youtube_id,time_start,time_end,split", *rows])
        videos(tmp_path / name, *(f"{name}-{i:06d}" for i in range(len(labels) - (name == "k600"))))
        (tmp_path / name / "train.csv").write_text(text)
    lists = [f"--{name}={tmp_path / name / 'train.csv'}" for name in classes]
    output = tmp_path / "mix"
    same = ["--same-class", "dying hair = dyeing hair"]
    assert videomix.main([*lists, "--output", str(output), *same]) == 0
    said = capsys.readouterr().out
    assert "Classes of Kinetics: k400 2, k600 3; 3 by name, 2 of them in every list" in said
    with open(output / "kinetics_classes.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["number", "class", "k400", "k600"],
            ["0", "archery", "", "0"],
            ["1", "dyeing hair", "0", "1"],
            ["2", "yoga", "1", "2"],
        ]
    assert [label for _, label in drawn(output, "kinetics")] == [2, 1, 1, 0]
    assert [label for _, label in drawn(output)] == [0, 0, 1, 1]
    assert videomix.main([*lists, "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "4 by name, 1 of them in every list" in said
    for pair, message in (
        ("yoga", "--same-class must be NAME=OTHER. Received: yoga"),
        ("yoga=judo", "--same-class must name classes of the lists. Received: 'judo'"),
        ("archery=yoga", "--same-class must join classes of different lists"),
    ):
        with contextlib.suppress(SystemExit):
            assert videomix.main([*lists, "--output", str(output), "--same-class", pair]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
