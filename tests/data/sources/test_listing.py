"""One entrance lists whatever videos are kept in."""

import os

import numpy as np
import pytest

from keras_vjepa.data import ClipBatches, Sample
from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.reading.video import video_info
from keras_vjepa.data.sources.ava_files import csv_rows
from keras_vjepa.data.sources.listing import list_samples, listed_class_names
from keras_vjepa.data.sources.official_lists import (
    howto100m_videos,
    kinetics_videos,
    something_something_videos,
)
from keras_vjepa.data.sources.samples import class_folders, list_class_folders
from tests.data.reading.stamped import stamps
from tests.data.reading.test_frame_folder import write_frames

pytestmark = pytest.mark.data


def shown_frames(samples, steps, **options):
    """The numbers that the frames of each clip show, by the names of the samples."""

    def transform(frames, rng):
        seen.append(stamps(frames))
        return frames[:, ::8, ::8].astype("float32")

    batches = ClipBatches(
        samples, 2, transform, lambda *_: {}, video_shape=(2, 8, 12, 3), num_workers=1, **options
    )
    found = []
    for step in range(steps):
        seen: list[list[int]] = []
        batches.batch(step)
        found += zip(batches.paths(step), seen, strict=True)
    assert batches.bad_files == {}
    return found


def test_folders_of_frames(tmp_path):
    for place, name in enumerate(("b/x", "a/y", "a/z/deep")):
        write_frames(tmp_path / name, range(100 * place, 100 * place + 12))
    samples = list_samples(tmp_path, kind="frames", fps=12)
    names = [str(tmp_path / name) for name in ("a/y", "a/z/deep", "b/x")]
    assert samples == [Sample(name) for name in names]
    assert samples[0].source == FrameFolder(names[0], 12)
    assert video_info(samples[0].source).fps == 12
    # A single folder of frames can be listed too.
    assert list_samples(names[0], kind="frames") == samples[:1]
    # Every clip comes from the folder that the batches name.
    first = dict(zip(names, (100, 200, 0), strict=True))
    for path, numbers in shown_frames(samples, 3):
        assert [number // 100 * 100 for number in numbers] == 2 * [first[path]]
    labelled = list_class_folders(tmp_path, kind="frames")
    assert class_folders(tmp_path) == ["a", "b"]
    assert [sample.label for sample in labelled] == [0, 0, 1]
    with pytest.raises(ValueError, match="`fps` must be in"):
        list_samples(tmp_path, kind="frames", fps=0)
    with pytest.raises(ValueError, match="No folders of frames in"):
        list_samples((tmp_path / "a/empty").mkdir() or tmp_path / "a/empty", kind="frames")


def test_a_list_may_name_folders_of_frames(tmp_path):
    for name in ("one", "two 2"):
        write_frames(tmp_path / "frames" / name, range(12))
    (tmp_path / "train.csv").write_text("frames/one 3\n'frames/two 2' 1\n")
    samples = list_samples(tmp_path / "train.csv", fps=24)
    assert [sample.label for sample in samples] == [3, 1]
    assert [video_info(sample.source).fps for sample in samples] == [24, 24]
    assert len(shown_frames(samples, 1)) == 2


def test_lists_of_videomae(tmp_path):
    for name in ("one", "two 2"):
        write_frames(tmp_path / name, range(1, 13))
    write_frames(tmp_path / "single", [1])
    source = tmp_path / "train.csv"
    source.write_text("one 12 3\ntwo 2 12 0\n")
    assert [s.label for s in list_samples(source)] == [3, 0]
    source.write_text("one 1 12\ntwo 2 1 12\n")
    assert list_samples(source) == [Sample(str(tmp_path / name)) for name in ("one", "two 2")]
    source.write_text("/v/a b.mp4 0 -1\n/v/c.mp4 0 -1\n")
    assert list_samples(source) == [Sample("/v/a b.mp4"), Sample("/v/c.mp4")]
    for row in ("one 11 3", "one 2 11", "one 12 -1", "single 1 1"):
        source.write_text(f"{row}\n")
        with pytest.raises(ValueError, match="train.csv:1: A row of a folder must be"):
            list_samples(source)


def test_images_beside_videos(tmp_path):
    write_frames(tmp_path, [5, 9], "{}.png")
    (tmp_path / "a.mp4").touch()
    assert [s.path for s in list_samples(tmp_path, "any")] == [
        str(tmp_path / name) for name in ("5.png", "9.png", "a.mp4")
    ]

    def transform(frames, rng):
        return frames.astype("float32")

    images, shape = list_samples(tmp_path, "image"), (4, 64, 96, 3)
    batches = ClipBatches(images, 2, transform, lambda *_: {}, video_shape=shape)
    videos = batches.batch(0)["videos"]
    assert videos.shape == (2, 4, 64, 96, 3)
    assert all(np.array_equal(videos[:, 0], videos[:, i]) for i in range(4))
    assert {*stamps(videos[:, 0])} == {5, 9}


def test_the_other_kind_is_named_where_a_folder_holds_it(tmp_path):
    write_frames(tmp_path / "a", [1, 2])
    with pytest.raises(ValueError, match='holds images: `kind` must be "frames" if each folder'):
        list_samples(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.mp4").touch()
    for kind in ("image", "frames"):
        with pytest.raises(ValueError, match='It holds videos: `kind` must be "video"'):
            list_samples(tmp_path / "b", kind)


@pytest.mark.parametrize(
    "ending", [".csv", ".txt", ".npy", ".tsv", ".jsonl", ".parquet", ".tar", ".json", ".mp4", ""]
)
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path, ending):
    """Nor is a device read, which may have no end."""
    os.mkfifo(tmp_path / f"pipe{ending}")
    os.symlink("/dev/zero", tmp_path / f"zero{ending}")
    for name, kind in (("pipe", "pipe"), ("zero", "device")):
        source = tmp_path / f"{name}{ending}"
        for listed in (list_samples, listed_class_names):
            with pytest.raises(ValueError, match=f"{source}, which is a {kind}: write what it"):
                listed(source)


def test_a_published_list_or_its_labels_may_be_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "s.json").write_text('[{"id": "1", "template": "Holding [something]"}]')
    with pytest.raises(OSError, match="which is a pipe"):
        list_samples(tmp_path / "s.json", videos=tmp_path, label_names=tmp_path / "pipe")
    for read in (kinetics_videos, howto100m_videos, something_something_videos, csv_rows):
        with pytest.raises(OSError, match="which is a pipe"):
            list(read(tmp_path / "pipe"))


def test_no_name_is_not_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="must be a folder, a list or shards. Received: no name"):
        list_samples("")


def test_one_file_is_a_source(tmp_path):
    for name, kind in (("a.MP4", "video"), ("a.png", "image"), ("a.png", "any")):
        (tmp_path / name).touch()
        assert list_samples(tmp_path / name, kind) == [Sample(str(tmp_path / name))]
    for kind in ("video", "frames"):
        with pytest.raises(ValueError, match="`source` must be a folder"):
            list_samples(tmp_path / "a.png", kind)
