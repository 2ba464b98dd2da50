"""Shards are read in place: every member as the file that it was, and what is wrong is named."""

import io
import json
import logging
import os
import random
import tarfile

import numpy as np
import pytest

from keras_vjepa import files
from keras_vjepa.data import Sample
from keras_vjepa.data.reading import tar_shards
from keras_vjepa.data.reading.errors import UnreadableImageError, UnreadableVideoError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.locating import media_at
from keras_vjepa.data.reading.media import NO_CONTENT
from keras_vjepa.data.reading.tar_shards import tar_members
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.data.sources.content_hashes import content_hash, content_hashes
from keras_vjepa.data.sources.listing import list_samples, listed_class_names
from keras_vjepa.data.sources.shards import expand_braces
from tests.data.reading.stamped import stamps, write_with_opencv
from tests.data.sources.test_listing import shown_frames

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_with_opencv(tmp_path_factory.mktemp("videos") / "a.avi", "MJPG", 12).read_bytes()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("decoder", ["opencv", "av"])
def test_a_member_is_the_file_that_it_was(tmp_path, video, decoder):
    if decoder == "av":
        pytest.importorskip("av")
    (tmp_path / "a.avi").write_bytes(video)
    path = f"{write_tar(tmp_path / 'x.tar', {'0.txt': 'text', 'b/a.avi': video})}/b/a.avi"
    with open_video(path, decoder) as member, open_video(tmp_path / "a.avi", decoder) as file:
        assert member.info == file.info
        np.testing.assert_array_equal(member.read([0, 11, 5]), file.read([0, 11, 5]))
    # It is read twice, because the second time uses the remembered places.
    with open_video(path, decoder) as member:
        assert stamps(member.read(range(12))) == [*range(12)]
    assert content_hash(path) == content_hash(tmp_path / "a.avi") != NO_CONTENT


def test_an_image_of_a_shard(tmp_path):
    import cv2

    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    content = cv2.imencode(".png", picture)[1].tobytes()
    shard = write_tar(tmp_path / "x.tar", {"a.png": content, "b.png": b"no image"})
    np.testing.assert_array_equal(read_image(f"{shard}/a.png"), picture[..., ::-1])
    assert media_at(f"{shard}/a.png").is_image
    with pytest.raises(UnreadableImageError, match=f"{shard}/b.png: "):
        read_image(f"{shard}/b.png")
    assert [s.path for s in list_samples(shard, "image")] == [f"{shard}/a.png", f"{shard}/b.png"]


def test_errors_name_the_member(tmp_path, video):
    shard = write_tar(tmp_path / "x.tar", {"a.avi": b"", "b.avi": b"text", "c.avi": video[:3000]})
    for name, reason in {
        "a.avi": "the file is empty",
        "b.avi": "no video is found in it, but text",
        "c.avi": "",
        "nowhere.avi": f"there is no such member in {shard}",
    }.items():
        with pytest.raises(UnreadableVideoError, match=f"{shard}/{name}: {reason}") as caught:
            with open_video(f"{shard}/{name}") as opened:
                opened.read([11])
        assert "/proc" not in str(caught.value) and "\n" not in str(caught.value)
    assert content_hash(f"{shard}/nowhere.avi") == NO_CONTENT
    # A folder with such a name may contain videos.
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "a.avi").write_bytes(video)
    assert open_video(tmp_path / "folder.tar/a.avi").num_frames == 12


def members_of(video, numbers):
    made = {}
    for number in numbers:
        made[f"v/{number:03d}.left.avi"] = video
        made[f"v/{number:03d}.cls"] = str(number % 3)
        made[f"v/{number:03d}.json"] = json.dumps({"label": "other", "style": f"s{number % 2}"})
    return {**made, "README": "text", "v/cover.jpg": b"x"}


def test_labels_and_what_is_left_out(tmp_path, video, caplog):
    for shard in range(3):
        numbers = range(4 * shard, 4 * shard + 4)
        write_tar(tmp_path / "set" / f"t-{shard:02d}.tar", members_of(video, numbers))
    source = str(tmp_path / "set" / "t-{00..02}.tar")
    with caplog.at_level(logging.WARNING):
        samples = list_samples(source)
    assert caplog.messages == [f"Left out of {source}: members of other types: none (3), .jpg (3)"]
    first = f"{tmp_path}/set/t-00.tar/v/000.left.avi"
    assert samples[0] == Sample(first, 0) and len(samples) == 12
    assert [sample.label for sample in samples] == [number % 3 for number in range(12)]
    assert list_samples(tmp_path / "set") == samples  # the folder that holds the shards
    assert [s.label for s in list_samples(source, label_column="")] == 12 * [None]
    seen = shown_frames(samples, 6)
    assert {path for path, _ in seen} == {sample.path for sample in samples}
    assert all(max(numbers) < 12 for _, numbers in seen)


def test_a_folder_of_folders_of_shards(tmp_path, video, caplog):
    for name in ("val/0.tar", "train/a/1.tar", "train/0.tar"):
        write_tar(tmp_path / "set" / name, {"v.avi": video, "v.cls": "1"})
    (tmp_path / "set" / ".old").mkdir()
    write_tar(tmp_path / "set" / ".old" / "2.tar", {"v.avi": video})
    paths = [
        f"{tmp_path}/set/{name}/v.avi" for name in ("train/0.tar", "train/a/1.tar", "val/0.tar")
    ]
    assert list_samples(tmp_path / "set") == [Sample(path, 1) for path in paths]
    # With a video among them it is a folder of videos, and the log counts the shards.
    (tmp_path / "set" / "train" / "a" / "b.avi").write_bytes(video)
    assert [s.path for s in list_samples(tmp_path / "set")] == [f"{tmp_path}/set/train/a/b.avi"]
    assert "3 files of other types: .tar (3)" in caplog.text


def test_labels_that_lie_apart_are_named_and_hidden_members_passed_over(tmp_path, video, caplog):
    members = {"a.avi": video, "b/b.avi": video, "._a.avi": b"x", "b/.c/d.avi": b"x"}
    shard = write_tar(tmp_path / "x.tar", members | {"a.cls": "1", "b/b.cls": "2"})
    assert list_samples(shard) == [Sample(f"{shard}/{name}") for name in ("a.avi", "b/b.avi")]
    assert caplog.messages == [f"Left out of {shard}: members of other types: .cls (2)"]


def test_a_folder_that_is_called_as_a_shard(tmp_path, video):
    (tmp_path / "x.tar").mkdir()
    (tmp_path / "x.tar" / "a.avi").write_bytes(video)
    (sample,) = list_samples(tmp_path / "x.tar")
    assert open_video(sample.source).num_frames == 12


def test_names_of_classes_in_json(tmp_path, video):
    members = {f"{i}.{end}": content for i in range(3) for end, content in
               (("avi", video), ("json", json.dumps({"style": f"s{2 - i}"})))}  # fmt: skip
    shard = write_tar(tmp_path / "x.tar", members)
    assert listed_class_names(shard, label_column="style") == ["s0", "s1", "s2"]
    assert [s.label for s in list_samples(shard, label_column="style")] == [2, 1, 0]
    names = ["s2", "s1", "s0"]
    assert [s.label for s in list_samples(shard, "video", names, label_column="style")] == [0, 1, 2]
    assert [s.label for s in list_samples(shard)] == 3 * [None]
    broken = write_tar(tmp_path / "y.tar", {"0.avi": video, "0.json": "{"})
    with pytest.raises(ValueError, match=f"{broken}/0.json: It must be JSON"):
        list_samples(broken)
    broken = write_tar(tmp_path / "z.tar", {"0.avi": video, "0.cls": "-1"})
    odd = write_tar(tmp_path / "y.tar", {"0.avi": video, "0.cls": b"caf\xe9"})
    with pytest.raises(ValueError, match=f"{odd}/0.cls: It must be UTF-8 text"):
        list_samples(odd)
    with pytest.raises(ValueError, match=f"{broken}/0.cls: The label must be"):
        list_samples(broken)


def test_an_index_of_wids(tmp_path, video):
    shards = [write_tar(tmp_path / f"{i}.tar", {f"{i}.avi": video}) for i in range(2)]
    index = {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [{"url": shard.name, "nsamples": 1} for shard in shards],
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    samples = list_samples(tmp_path / "index.json")
    assert [s.path for s in samples] == [f"{shard}/{i}.avi" for i, shard in enumerate(shards)]
    os.remove(shards[1])
    with pytest.raises(FileNotFoundError, match=r"1 shard of 2 is missing, .*1.tar first"):
        list_samples(tmp_path / "index.json")


def test_braces():
    assert expand_braces("a-{8..11}.tar") == ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{b,a}/{00..01}") == ["b/00", "b/01", "a/00", "a/01"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    assert expand_braces("a-{08..13..2}.tar") == ["a-08.tar", "a-10.tar", "a-12.tar"]
    assert expand_braces("a{b{1..2},c}d{e,}") == ["ab1de", "ab1d", "ab2de", "ab2d", "acde", "acd"]
    assert expand_braces("{a{b,c}}}") == ["ab}", "ac}"] and expand_braces("{a") == ["{a"]
    for wrong in ("{3..1}.tar", "{1..3..0}.tar"):
        with pytest.raises(ValueError, match="ranges from a number to a larger one"):
            expand_braces(wrong)


@pytest.mark.parametrize(
    "name",
    [
        "{0..9999}-{0..9999}.tar",
        "{0..1048576}.tar",
        "{a,{0..1048575}}.tar",
        "{1.." + 30 * "9" + "}.tar",
        5000 * "{" + 5000 * "}" + ".tar",
    ],
)
def test_more_names_than_there_is_room_for_are_refused_and_not_cut(name):
    with pytest.raises(ValueError, match="must stand for at most 1,048,576 names") as caught:
        list_samples(name)
    assert "\n" not in str(caught.value)


def test_a_name_longer_than_systems_have_is_missing():
    for ending in ("", ".tar", ".csv"):
        with pytest.raises(FileNotFoundError, match="`source` must"):
            list_samples(5000 * "a" + ending)


def test_links_and_what_is_no_file_in_a_shard(tmp_path, video, caplog):
    with tarfile.open(tmp_path / "x.TAR", "w") as tar:
        info = tarfile.TarInfo("v/a.avi")
        info.size = len(video)
        tar.addfile(info, io.BytesIO(video))
        for name, kind, target in (
            ("v/soft.avi", tarfile.SYMTYPE, "../v/a.avi"),
            ("hard.avi", tarfile.LNKTYPE, "v/a.avi"),
            ("folder", tarfile.DIRTYPE, ""),
            ("pipe.avi", tarfile.FIFOTYPE, ""),
            ("lost.avi", tarfile.SYMTYPE, "nowhere.avi"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    samples = list_samples(tmp_path)  # upper-case extensions work for files and folders
    assert samples == list_samples(tmp_path / "x.TAR")
    names = [os.path.relpath(sample.path, tmp_path / "x.TAR") for sample in samples]
    assert names == ["v/a.avi", "v/soft.avi", "hard.avi"]
    assert len({content_hash(sample.path) for sample in samples} - {NO_CONTENT}) == 1
    assert f"{tmp_path}/x.TAR: pipe.avi in it is no file, and not read" in caplog.messages


def test_missing_shards_are_counted(tmp_path, video):
    write_tar(tmp_path / "0.tar", {"a.avi": video})
    with pytest.raises(FileNotFoundError, match="2 shards of 3 are missing, .*1.tar first"):
        list_samples(f"{tmp_path}/{{0..2}}.tar")
    with pytest.raises(ValueError, match="`kind` must be .* for shards"):
        list_samples(tmp_path / "0.tar", kind="frames")


# --- Damage --------------------------------------------------------------------------------------


def test_a_cut_shard_keeps_what_is_whole(tmp_path, video, caplog):
    shard = write_tar(tmp_path / "x.tar", {f"{i}.avi": video for i in range(3)})
    content = shard.read_bytes()
    starts = [start for start, _ in tar_members(str(shard)).places.values()]
    end = -(-(starts[2] + len(video)) // 512) * 512
    for cut, count, problem in (
        (starts[2] + 100, 2, "truncated: .* bytes of its last member are missing"),
        (starts[2] - 512, 2, "truncated: the mark of its end is missing"),
        (starts[2] - 200, 2, "truncated"),
        (end + 600, 3, ""),
    ):
        shard.write_bytes(content[:cut])
        caplog.clear()
        assert len(list_samples(shard)) == count, cut
        assert bool(problem) == bool(caplog.messages)
        if problem:
            assert tar_members(str(shard)).problem
            assert problem.split(":")[0] in caplog.text and str(shard) in caplog.text
    # Damage in the middle hides everything after it.
    header = starts[1] - 512
    shard.write_bytes(content[:header] + b"\xff" * 512 + content[header + 512 :])
    assert len(list_samples(shard)) == 1
    assert f"damaged at byte {header:,}" in caplog.text


def test_what_is_no_tar_is_left_out_and_named(tmp_path, video, caplog):
    good = write_tar(tmp_path / "0.tar", {"a.avi": video})
    (tmp_path / "1.tar").write_bytes(b"\x1f\x8b" + bytes(1000))
    (tmp_path / "2.tar").write_bytes(video)
    (tmp_path / "3.tar").touch()
    assert [s.path for s in list_samples(f"{tmp_path}/{{0..3}}.tar")] == [f"{good}/a.avi"]
    for number, reason in ((1, "compressed"), (2, "no tar file"), (3, "empty")):
        assert any(f"{number}.tar" in m and reason in m for m in caplog.messages), reason
    with pytest.raises(ValueError, match="No videos in"):
        list_samples(tmp_path / "2.tar")


def test_damaged_headers_never_hang_or_crash(tmp_path, video):
    members = {f"{i}.avi": video[:700] for i in range(3)}
    shard = write_tar(tmp_path / "x.tar", members)
    content, generator = shard.read_bytes(), random.Random(0)
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(generator.choice([1, 8, 64])):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        shard.write_bytes(changed[: generator.choice([len(changed), generator.randrange(9000)])])
        try:
            found = tar_members(str(shard))
        except ValueError:
            continue
        assert all(
            0 <= start and start + size <= len(changed) for start, size in found.places.values()
        )


# --- Identity ------------------------------------------------------------------------------------


def test_a_shard_that_is_replaced_is_another(tmp_path, video):
    shard = write_tar(tmp_path / "x.tar", {"a.avi": video, "b.avi": video})
    paths = [f"{shard}/a.avi", f"{shard}/b.avi"]
    before = content_hashes(paths)
    longer = write_with_opencv(tmp_path / "b.avi", "MJPG", 20).read_bytes()
    write_tar(shard, {"a.avi": video, "0.txt": "text", "b.avi": longer})
    assert (content_hashes(paths) == before).all(axis=1).tolist() == [True, False]
    assert open_video(paths[1]).num_frames == 20


def test_members_of_large_shards_are_kept(tmp_path, video, monkeypatch):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(tar_shards, "_KEPT_FROM", 2)
    shard = write_tar(tmp_path / "x.tar", {"ä.avi": video, "b.avi": video})
    found = tar_members(str(shard))
    (kept,) = (tmp_path / "cache" / "tar_members").iterdir()
    monkeypatch.setattr(tar_shards, "_gone_through", None)
    assert tar_members(str(shard)) == found
    monkeypatch.undo()
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path / "cache"))
    kept.write_bytes(b"damaged")
    assert tar_members(str(shard)) == found


def test_few_places_are_held(tmp_path, video, monkeypatch):
    monkeypatch.setattr(tar_shards, "_MOST_MEMBERS", 1)
    shards = [write_tar(tmp_path / f"{i}.tar", {f"{i}.avi": video}) for i in range(3)]
    for _ in range(2):
        for number, shard in enumerate(shards):
            assert open_video(f"{shard}/{number}.avi").num_frames == 12
    assert len(tar_shards._remembered) == 1
