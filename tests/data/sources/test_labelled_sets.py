"""Sources of labelled data: lists, class folders, the published annotations."""

from pathlib import Path

import pytest

from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion_rendering import SETS, MovingBackgroundConfig
from keras_vjepa.data.sources.samples import Sample

pytestmark = pytest.mark.data


def test_sources_of_data(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "cow"):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            (tmp_path / "set" / split / name / "1.jpg").touch()
        (tmp_path / f"{split}.csv").write_text(f"/videos/{split}.mp4 4\n")
        rows = "label,youtube_id,time_start,time_end\n" + "b,x,0,10\na,y,0,10\n"
        (tmp_path / f"kinetics_{split}.csv").write_text(rows)
        (tmp_path / f"ssv2_{split}.json").write_text('[{"id": "7", "template": "Do [it]"}]')
    (tmp_path / "labels.json").write_text('{"Do it": "5"}')
    folder = str(tmp_path)
    read = labelled_sets.train_and_test
    train, test = read(f"{folder}/set", kind="image")
    assert [s.label for s in train] == [0, 1] and "val" in test[0].path
    train, test = read(f"{folder}/train.csv", f"{folder}/val.csv")
    assert (train[0].label, test[0].path) == (4, "/videos/val.mp4")
    train, _ = read(f"{folder}/kinetics_train.csv", f"{folder}/kinetics_val.csv", "/videos")
    assert [s.label for s in train] == [1, 0]
    train, _ = read(
        f"{folder}/ssv2_train.json", f"{folder}/ssv2_val.json", "/v", f"{folder}/labels.json"
    )
    assert train == [Sample("/v/7.webm", 5)]
    names = labelled_sets.class_names
    assert names(f"{folder}/set", kind="image") == ["cat", "cow"]
    assert names(f"{folder}/kinetics_train.csv") == ["a", "b"]
    assert names(f"{folder}/train.csv") is None
    # First one number lacks a name, then none does.
    labels = f"{folder}/labels.json"
    assert names(f"{folder}/ssv2_train.json", label_names=labels) is None
    (tmp_path / "labels.json").write_text('{"Do it": "1", "Rest": "0"}')
    assert names(f"{folder}/ssv2_train.json", label_names=labels) == ["Rest", "Do it"]
    assert names("digit_motion")[37] == "3 shake vertically"
    with pytest.raises(ValueError, match="`test_data` must be given"):
        read(f"{folder}/train.csv")
    with pytest.raises(ValueError, match="`videos` must be given"):
        read(f"{folder}/kinetics_train.csv", f"{folder}/kinetics_val.csv")


def test_a_fifth_of_each_class_is_held_out_where_nothing_is_given_for_testing(tmp_path, caplog):
    counts = {"cat": 10, "cow": 5, "elk": 1}
    for name, count in counts.items():
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.mp4").touch()
    train, test = labelled_sets.train_and_test(str(tmp_path))
    assert [[s.label for s in part].count(0) for part in (train, test)] == [8, 2]
    assert [[s.label for s in part].count(1) for part in (train, test)] == [4, 1]
    # A class with a single video keeps it for training, because otherwise nothing would be left.
    assert [s.label for s in test].count(2) == 0 and len(train) + len(test) == 16
    assert not {s.path for s in train} & {s.path for s in test}
    assert caplog.messages == [
        f"No test data is given: of {tmp_path}, 13 samples of 3 classes train, and 3 are held out "
        "to test"
    ]
    assert labelled_sets.train_and_test(str(tmp_path)) == (train, test)


def test_a_folder_of_images_is_told_from_one_of_videos(tmp_path):
    (tmp_path / "cat").mkdir()
    assert not labelled_sets.holds_only_images(str(tmp_path))
    (tmp_path / "cat" / "1.jpg").touch()
    assert labelled_sets.holds_only_images(str(tmp_path))
    (tmp_path / "cat" / "1.mp4").touch()
    assert not labelled_sets.holds_only_images(str(tmp_path))
    assert not labelled_sets.holds_only_images(str(tmp_path / "nothing"))


def test_a_quoted_header_of_kinetics(tmp_path):
    """As tools write it that quote all columns."""
    header, row = '"label","youtube_id","time_start","time_end"', '"b","x","0","10"'
    (tmp_path / "a.csv").write_text(f"{header}\n{row}\n")
    path = str(tmp_path / "a.csv")
    train, _ = labelled_sets.train_and_test(path, path, "/videos")
    assert train == [Sample("/videos/x_000000_000010.mp4", 0)]


def test_what_is_not_used_or_does_not_go_together_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.mp4").touch()
    (tmp_path / "a.csv").write_text("1.mp4 0\n")
    (tmp_path / "k.csv").write_text("label,youtube_id,time_start,time_end\nb,x,0,10\n")
    folder, rows, kinetics = (str(tmp_path / name) for name in ("", "a.csv", "k.csv"))
    for data, test_data, videos, label_names, name in (
        (rows, rows, "/v", "", "videos"),
        (folder, folder, "/v", "", "videos"),
        (rows, rows, "", "/l.json", "label_names"),
        (kinetics, kinetics, "/v", "/l.json", "label_names"),
        (folder, rows, "", "", "test_data"),
        (rows, folder, "", "", "test_data"),
    ):
        with pytest.raises(ValueError, match=f"^`{name}` must be "):
            labelled_sets.train_and_test(data, test_data, videos, label_names)
    with pytest.raises(ValueError, match="^`data` must hold one folder for each class"):
        labelled_sets.train_and_test(str(tmp_path / "cat"))


def test_only_the_videos_that_are_asked_for_are_rendered(tmp_path, monkeypatch, capsys):
    whole = MovingBackgroundConfig(
        canvas_size=16, digit_size=8, num_frames=6, num_training_videos=5, num_test_videos=3
    )
    monkeypatch.setitem(SETS, "small", whole)
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "cache"))
    part = labelled_sets.first_of_built_in("small", 2, 9)
    assert "5 of 5 videos rendered" in capsys.readouterr().err
    monkeypatch.setenv("KERAS_VJEPA_CACHE", str(tmp_path / "other"))
    train, test = labelled_sets.train_and_test("small")
    assert "8 of 8 videos rendered" in capsys.readouterr().err
    for found, expected in zip(part, (train[:2], test), strict=True):
        assert [one.label for one in found] == [one.label for one in expected]
        assert [Path(one.path).name for one in found] == [Path(one.path).name for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert Path(one.path).read_bytes() == Path(other.path).read_bytes()
    # A set that is there is taken.
    assert labelled_sets.first_of_built_in("small", 2, 9) == (train[:2], test)
    assert "rendered" not in capsys.readouterr().err
