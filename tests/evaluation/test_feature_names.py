"""Names of features: they follow the path, fit every disk, and are never two files' at once."""

import os
from pathlib import PurePath

import pytest

from keras_vjepa.evaluation.feature_names import features_name, with_hash

pytestmark = pytest.mark.data


def length(name):
    return max(len(part.encode()) for part in name.split("/"))


def test_names_follow_the_path():
    assert features_name(PurePath("clip.mp4")) == "clip.mp4.npy"
    assert features_name(PurePath("x", "y z", "größe.mp4")) == "x/y z/größe.mp4.npy"
    assert features_name(PurePath("a" * 251)) == "a" * 251 + ".npy"


@pytest.mark.parametrize("letter", ["a", "ß", "語"])
def test_long_names_are_cut_and_stay_apart(letter):
    count = 252 // len(letter.encode())
    names = [letter * (count - 1) + end for end in ("b", "c")]
    names = [features_name(PurePath(name)) for name in names]
    assert len({*names}) == 2
    for name in names:
        assert length(name) <= 255 and name.startswith(letter * 70) and name.endswith(".npy")
    # This holds for folders too, and for a name that just fits until a hash is appended.
    folder = features_name(PurePath(letter * (count - 1), "a.mp4"))
    assert folder == letter * (count - 1) + "/a.mp4.npy"
    longest = features_name(PurePath("a" * 251))
    assert length(with_hash(longest, "/a")) == 255


def test_names_that_are_no_utf_8_are_escaped_and_stay_apart():
    names = [os.fsdecode(name) for name in (b"caf\xe9.mp4", b"caf%e9.mp4", b"caf\xe8.mp4")]
    outputs = [features_name(PurePath(name)) for name in names]
    assert len({*outputs}) == 3 and outputs[1] == "caf%e9.mp4.npy"
    for output in (outputs[0], features_name(PurePath(names[0], "a.mp4"))):
        assert output.startswith("caf%e9.mp4.") and output.encode() and output.endswith(".npy")
    assert features_name(PurePath(names[0])) == outputs[0]
    assert length(features_name(PurePath(os.fsdecode(b"\xe9" * 255)))) == 255


@pytest.mark.parametrize("folder", ["clip.mp4.npy", "settings.json", "sources.jsonl"])
def test_no_folder_lies_where_a_file_does(folder):
    name = features_name(PurePath(folder, "b.mp4"))
    assert name.startswith(f"{folder}.") and name.endswith("/b.mp4.npy")


def test_a_hash_keeps_files_of_one_name_apart():
    names = [with_hash("x/a.mp4.npy", source) for source in ("/1/x/a.mp4", "/2/x/a.mp4")]
    assert len({*names, "x/a.mp4.npy"}) == 3
    for name in names:
        assert name.startswith("x/a.mp4.") and name.endswith(".npy")
        assert len(name) == len("x/a.mp4.npy") + 9
