"""A folder of features: nothing stale, nothing lost, nothing of other settings."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from keras_vjepa.data.sources.content_hashes import content_hash
from keras_vjepa.evaluation.feature_folder import FeatureFolder
from keras_vjepa.evaluation.feature_settings import hash_of_settings

pytestmark = pytest.mark.data

SETTINGS = {"preset": "p", "model": "0" * 32, "backend": "none", "dtype": "float32", "stride": 8}


@pytest.fixture
def preset(tmp_path):
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "config.json").write_text("{}")
    return tmp_path / "preset"


@pytest.fixture
def videos(tmp_path):
    return make(tmp_path / "videos", {"a.mp4": "one", "inner/a.mp4": "two", "b.mp4": "three"})


def make(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def read(path):
    """In place of a model: what is known of a file that is open, and its bytes as features."""
    content = content_hash(path).hex()
    letters = np.frombuffer(path.read_bytes(), np.uint8).astype(np.float32)
    return content, 2, iter([letters[np.newaxis], letters[np.newaxis]])


def text_of(path):
    assert np.load(path).shape[0] == 2
    return np.load(path)[0].astype(np.uint8).tobytes().decode()


def extract(root, output, settings=SETTINGS):
    """A run; returns its plan and what was made."""
    output.mkdir(exist_ok=True)
    folder = FeatureFolder(output, settings, root.parent / "preset")
    plan = folder.plan(root, sorted(p for p in root.rglob("*") if not p.is_dir()))
    for path in plan.missing:
        folder.write(path, plan.outputs[path], *read(path))
    assert folder.problems(plan, {}) == []
    return plan, [plan.outputs[path] for path in plan.missing]


def contents(output):
    return {str(p.relative_to(output)): text_of(p) for p in sorted(output.rglob("*.npy"))}


ALL = {"a.mp4.npy": "one", "b.mp4.npy": "three", "inner/a.mp4.npy": "two"}


@pytest.fixture
def output(preset, videos, tmp_path):
    """A finished folder."""
    assert extract(videos, tmp_path / "out")[1] == [*ALL]
    assert contents(tmp_path / "out") == ALL
    return tmp_path / "out"


def lines(output):
    return [json.loads(line) for line in (output / "sources.jsonl").read_text().splitlines()]


def test_each_output_is_told_with_its_source(output, videos):
    found = {line["output"]: line["source"] for line in lines(output)}
    assert found == {name: str(videos / name.removesuffix(".npy")) for name in ALL}
    assert len({line["content"] for line in lines(output)}) == 3


def test_nothing_is_made_twice(output, videos, caplog):
    before = [p.stat().st_mtime_ns for p in sorted(output.rglob("*"))]
    assert extract(videos, output)[1] == [] and caplog.text == ""
    assert before == [p.stat().st_mtime_ns for p in sorted(output.rglob("*"))]


# --- Files that change ---------------------------------------------------------------------------


def test_features_of_a_replaced_file_are_made_anew(output, videos, caplog):
    """By another of the same name, size and time of change."""
    times = (videos / "a.mp4").stat().st_mtime_ns
    (videos / "a.mp4").write_text("eno")
    os.utime(videos / "a.mp4", ns=(times, times))
    # The outdated file is removed at once, even if the run then fails.
    FeatureFolder(output, SETTINGS, videos).plan(videos, [videos / "a.mp4"])
    assert not (output / "a.mp4.npy").exists()
    (output / "a.mp4.npy").write_bytes((output / "b.mp4.npy").read_bytes())
    plan, made = extract(videos, output)
    assert made == ["a.mp4.npy"] and contents(output) == {**ALL, "a.mp4.npy": "eno"}
    assert "1 file of features in" in caplog.text
    assert "of a file that was replaced since, made anew: a.mp4.npy" in caplog.text
    assert extract(videos, output)[1] == []


def test_a_file_that_cannot_be_read_now_keeps_its_features(output, videos):
    shutil.move(videos / "a.mp4", videos.parent)
    (videos / "a.mp4").symlink_to(videos / "nothing")
    plan = FeatureFolder(output, SETTINGS, videos).plan(videos, [videos / "a.mp4"])
    assert plan.missing == [videos / "a.mp4"] and contents(output) == ALL
    (videos / "a.mp4").unlink()
    shutil.move(videos.parent / "a.mp4", videos)
    assert extract(videos, output)[1] == []


def test_a_file_that_is_replaced_while_it_is_read_is_noticed_next_time(preset, videos, tmp_path):
    (tmp_path / "out").mkdir()
    folder = FeatureFolder(tmp_path / "out", SETTINGS, preset)
    plan = folder.plan(videos, [videos / "a.mp4"])
    before = read(videos / "a.mp4")
    (videos / "a.mp4").write_text("new")
    folder.write(videos / "a.mp4", plan.outputs[videos / "a.mp4"], *before)
    assert contents(tmp_path / "out") == {"a.mp4.npy": "one"}
    assert "a.mp4.npy" in extract(videos, tmp_path / "out")[1]
    assert contents(tmp_path / "out")["a.mp4.npy"] == "new"


def test_a_set_that_is_moved_or_copied_keeps_its_features(output, videos, tmp_path):
    for move in (shutil.copytree, os.rename):
        moved = tmp_path / f"moved by {move.__name__}"
        move(videos, moved)
        assert extract(moved, output)[1] == [] and contents(output) == ALL
        assert {line["source"] for line in lines(output)[-3:]} == {
            str(moved / name.removesuffix(".npy")) for name in ALL
        }


def test_features_of_a_removed_file_are_kept_and_told(output, videos, caplog):
    (videos / "b.mp4").unlink()
    assert extract(videos, output)[1] == [] and contents(output) == ALL
    assert "of a file that is not there any more, kept: b.mp4.npy" in caplog.text


# --- Files of one name ---------------------------------------------------------------------------


def test_files_of_one_name_from_two_folders_keep_both_outputs(output, videos, tmp_path, caplog):
    others = make(tmp_path / "others", {"a.mp4": "four", "c.mp4": "five"})
    _, made = extract(others, output)
    hashed = next(name for name in made if name.startswith("a.mp4."))
    assert made == [hashed, "c.mp4.npy"] and hashed != "a.mp4.npy"
    both = {**ALL, hashed: "four", "c.mp4.npy": "five"}
    assert contents(output) == both
    assert f"sources.jsonl lists both: {hashed}" in caplog.text
    caplog.clear()
    # They are found again, whichever folder comes first, and keep their names when they are
    # replaced.
    for root in (videos, others):
        assert extract(root, output)[1] == [] and contents(output) == both
    assert caplog.text == ""
    (others / "a.mp4").write_text("six")
    assert extract(others, output)[1] == [hashed]
    assert contents(output) == {**both, hashed: "six"}


def test_copies_do_not_take_each_other_s_place(output, videos, tmp_path):
    """The second has the features of the first, until one of the two changes."""
    others = make(tmp_path / "others", {"a.mp4": "one"})
    assert extract(others, output)[1] == []
    (videos / "a.mp4").write_text("new")
    made = extract(videos, output)[1]
    assert extract(others, output)[1] == []
    assert contents(output)["a.mp4.npy"] == "one" and contents(output)[made[0]] == "new"


def test_names_that_differ_in_case_are_kept_apart(preset, tmp_path):
    videos = make(tmp_path / "videos", {"A.mp4": "one", "a.mp4": "two"})
    made = extract(videos, tmp_path / "out")[1]
    assert sorted(contents(tmp_path / "out").values()) == ["one", "two"]
    assert len({name.casefold() for name in made}) == 2
    assert extract(videos, tmp_path / "out")[1] == []


@pytest.mark.parametrize("name", ["a" * 251 + ".mp4", os.fsdecode(b"caf\xe9.mp4"), "a\nb.mp4"])
def test_every_legal_name(preset, name, tmp_path, caplog):
    videos = make(tmp_path / "videos", {name: "one", "b.mp4": "two"})
    made = extract(videos, tmp_path / "out")[1]
    assert sorted(contents(tmp_path / "out").values()) == ["one", "two"] and len(made) == 2
    assert extract(videos, tmp_path / "out")[1] == []
    (videos / name).write_text("new")
    assert len(extract(videos, tmp_path / "out")[1]) == 1
    assert sorted(contents(tmp_path / "out").values()) == ["new", "two"]
    assert all(len(message.splitlines()) == 1 for message in caplog.messages)
    caplog.text.encode()


# --- Damage --------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [cut, flip, lambda path: path.write_bytes(b"")])
def test_damaged_features_are_named_and_made_anew(spoil, output, videos, caplog):
    spoil(output / "b.mp4.npy")
    plan, made = extract(videos, output)
    assert made == plan.damaged == ["b.mp4.npy"] and contents(output) == ALL
    assert "damaged, made anew: b.mp4.npy" in caplog.text


def test_features_that_are_spoiled_during_a_run_are_named_at_its_end(output, videos):
    folder = FeatureFolder(output, SETTINGS, videos)
    plan = folder.plan(videos, [videos / "a.mp4", videos / "b.mp4"])
    cut(output / "a.mp4.npy")
    (output / "b.mp4.npy").unlink()
    wrong = [str(output / "a.mp4.npy"), str(output / "b.mp4.npy")]
    assert folder.problems(plan, {}) == wrong
    assert folder.problems(plan, {videos / "b.mp4": "cannot be read"}) == wrong[:1]


@pytest.mark.parametrize("last", [1, 2, 40])
def test_records_that_were_cut_short(last, output, videos, caplog):
    path = output / "sources.jsonl"
    path.write_bytes(path.read_bytes()[:-last])
    assert extract(videos, output)[1] == ["inner/a.mp4.npy"] and contents(output) == ALL
    assert f"{path} is damaged in 1 line: it is repaired" in caplog.text
    assert "not in sources.jsonl, made anew: inner/a.mp4.npy" in caplog.text
    caplog.clear()
    assert len(lines(output)) == 3
    assert extract(videos, output)[1] == [] and caplog.text == ""


@pytest.mark.parametrize("line", ["", "[]", "{}", "[" * 10_000, '{"output": 3}', "\udcff"])
def test_a_damaged_record_harms_no_other(line, output, videos, caplog):
    path = output / "sources.jsonl"
    first, *rest = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([os.fsencode(line), *rest, b""]))
    assert extract(videos, output)[1] == ["a.mp4.npy"] and contents(output) == ALL
    assert "is damaged in 1 line" in caplog.text


@pytest.mark.parametrize("name", ["sources.jsonl", "settings.json"])
def test_a_pipe_is_not_waited_for(name, output, videos):
    (output / name).unlink()
    os.mkfifo(output / name)
    with pytest.raises(OSError, match=f"{name}"):
        extract(videos, output)


def test_lost_records(output, videos, caplog):
    (output / "sources.jsonl").unlink()
    assert extract(videos, output)[1] == [*ALL] and contents(output) == ALL
    assert "3 files of features in" in caplog.text and "not in sources.jsonl" in caplog.text


@pytest.mark.parametrize("text", ['{"preset": "p", "mod', "", "[]", "{}", None])
def test_damaged_settings_are_made_anew_where_the_records_agree(text, output, videos, caplog):
    path = output / "settings.json"
    before = path.read_text()
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match="the features there were made with other settings"):
        extract(videos, output, {**SETTINGS, "stride": 4})
    assert extract(videos, output)[1] == [] and path.read_text() == before
    assert f"{path} is damaged or missing: it is made anew." in caplog.text
    caplog.clear()
    path.write_text("")
    (output / "sources.jsonl").unlink()
    with pytest.raises(ValueError, match="must be another folder: .* nobody knows how") as error:
        extract(videos, output)
    assert str(error.value).count("\n") == 0 and contents(output) == ALL


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stride": 4}, "features with stride = 8. Received: 4"),
        ({"model": "12345678" * 4, "preset": "q"}, r"model = 0{8} \(p\). Received: 12345678 \(q\)"),
        ({"backend": "other", "stride": 1}, "backend = none, stride = 8. Received: other, 1"),
        # In another precision, the same weights have other values.
        ({"dtype": "float16", "model": "1" * 32}, "with dtype = float32. Received: float16"),
    ],
)
def test_features_of_other_settings_are_refused(changes, message, output, videos):
    before = [p.stat().st_mtime_ns for p in sorted(output.rglob("*"))]
    with pytest.raises(ValueError, match=f"^`--output` must be another folder: .*{message}$"):
        extract(videos, output, {**SETTINGS, **changes})
    assert before == [p.stat().st_mtime_ns for p in sorted(output.rglob("*"))]


def test_a_preset_may_be_moved(output, videos):
    assert extract(videos, output, {**SETTINGS, "preset": "elsewhere"})[1] == []


# --- Folders of an earlier version ---------------------------------------------------------------


@pytest.fixture
def of_before(output, preset):
    """The folder as an earlier version would have left it."""
    return as_before(output)


def as_before(output):
    (output / "sources.jsonl").unlink()
    kept = {name: SETTINGS[name] for name in ("preset", "dtype", "stride")}
    (output / "settings.json").write_text(json.dumps(kept))
    return output


def age(path: Path, seconds: float) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + int(seconds * 1e9)))


def test_features_of_an_earlier_version_are_taken_over(of_before, videos, caplog):
    age(of_before / "b.mp4.npy", -1000)
    cut(of_before / "inner/a.mp4.npy")
    with open(of_before / "inner/a.mp4.npy", "ab") as file:
        file.truncate(20)
    assert extract(videos, of_before)[1] == ["b.mp4.npy", "inner/a.mp4.npy"]
    [line] = [m for m in caplog.messages if "earlier version" in m]
    assert "1 file of features kept" in line and len(line.splitlines()) == 1
    assert contents(of_before) == ALL
    # From then on, it is like any other folder.
    caplog.clear()
    assert extract(videos, of_before)[1] == [] and caplog.text == ""
    assert {line["settings"] for line in lines(of_before)} == {hash_of_settings(SETTINGS)}
    with pytest.raises(ValueError, match="model = 00000000"):
        extract(videos, of_before, {**SETTINGS, "model": "1" * 32})


def test_an_earlier_version_s_name_that_is_no_utf_8(preset, tmp_path):
    name = os.fsdecode(b"caf\xe9.mp4")
    videos = make(tmp_path / "videos", {name: "one"})
    [made] = extract(videos, tmp_path / "out")[1]
    (tmp_path / "out" / made).rename(tmp_path / "out" / f"{name}.npy")
    as_before(tmp_path / "out")
    assert extract(videos, tmp_path / "out")[1] == []
    assert contents(tmp_path / "out") == {made: "one"}


@pytest.mark.parametrize(
    "changes, message",
    [({"preset": "q"}, "preset = p. Received: q"), ({"stride": 4}, "stride = 8. Received: 4")],
)
def test_an_earlier_version_with_other_settings(changes, message, of_before, videos):
    with pytest.raises(ValueError, match=message):
        extract(videos, of_before, {**SETTINGS, **changes})


def test_an_earlier_version_with_a_preset_that_has_changed_since(of_before, videos, preset):
    age(preset / "config.json", 1000)
    with pytest.raises(ValueError, match=f"an earlier version made .* {preset} has changed since"):
        extract(videos, of_before)


def test_a_run_that_is_killed_while_it_takes_features_over(of_before, videos):
    before = (of_before / "settings.json").read_text()
    extract(videos, of_before)
    (of_before / "settings.json").write_text(before)
    assert extract(videos, of_before)[1] == []
    assert json.loads((of_before / "settings.json").read_text()) == SETTINGS
