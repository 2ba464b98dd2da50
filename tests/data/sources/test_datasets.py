"""Data sets of other libraries: each row is one sample, read when it is needed and named if bad."""

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from keras_vjepa.data import ClipBatches, Sample
from keras_vjepa.data.batches.clips import ClipSettings, read_clips
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.media import NO_CONTENT
from keras_vjepa.data.reading.video import open_video, video_info
from keras_vjepa.data.sources.content_hashes import content_hash
from keras_vjepa.data.sources.listing import list_samples, listed_class_names
from tests.data.reading.stamped import stamped_frame, stamps, write_with_opencv
from tests.data.sources.test_listing import shown_frames

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Videos of different lengths."""
    folder = tmp_path_factory.mktemp("videos")
    return [
        str(write_with_opencv(folder / f"{i}.avi", "MJPG", num_frames))
        for i, num_frames in enumerate((12, 15, 18))
    ]


class Rows:
    """As torch's Dataset and grain's MapDataset are."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        if isinstance(row, Exception):
            raise row
        return row


def kinds_of_rows(paths):
    contents = [Path(path).read_bytes() for path in paths]
    labels = [np.int64(2), 0, 1]
    return {
        "bytes": [*zip(contents, labels, strict=True)],
        "dictionaries": [
            {"video": {"path": path, "bytes": content}, "label": label}
            for path, content, label in zip(paths, contents, labels, strict=True)
        ],
        "paths in dictionaries": [
            {"clip": {"path": path, "bytes": None}, "label": label}
            for path, label in zip(paths, labels, strict=True)
        ],
    }


@pytest.mark.parametrize("kind", ["bytes", "dictionaries", "paths in dictionaries"])
def test_rows_that_hold_files(paths, kind):
    rows = kinds_of_rows(paths)[kind]
    samples = list_samples(Rows(rows))
    assert samples == [Sample(f"Rows[{i}]", label) for i, label in enumerate((2, 0, 1))]
    for sample, path in zip(samples, paths, strict=True):
        assert video_info(sample.source) == video_info(path)
        assert content_hash(sample.source) == content_hash(path) != NO_CONTENT
    assert {name for name, _ in shown_frames(samples, 3)} == {s.path for s in samples}
    assert [s.label for s in list_samples(Rows(rows), label_column="")] == [None] * 3


def test_paths_are_files(paths):
    assert list_samples(paths) == [Sample(path) for path in paths]
    labelled = [*zip(map(Path, paths), ("yoga", "archery", "yoga"), strict=True)]
    assert list_samples(labelled) == [Sample(paths[0], 1), Sample(paths[1], 0), Sample(paths[2], 1)]
    assert listed_class_names(labelled) == ["archery", "yoga"]


def videos():
    return [np.stack([stamped_frame(i) for i in range(first, first + 9)]) for first in (0, 20, 40)]


@pytest.mark.parametrize(
    "change",
    [
        lambda video: video,
        lambda video: np.moveaxis(video, -1, 1) / 255,
        lambda video: [*video],
        lambda video: {"frames": video},
    ],
    ids=["frames", "floats, channels first", "pictures", "dictionary"],
)
def test_rows_that_hold_frames(change):
    data = Rows([change(video) for video in videos()])
    samples = list_samples(data, fps=10)
    assert [s.path for s in samples] == ["Rows[0]", "Rows[1]", "Rows[2]"]
    with open_video(samples[1].source) as video:
        assert (video.num_frames, video.fps) == (9, 10)
        assert stamps(video.read([8, 0, 3])) == [28, 20, 23]
    seen = dict(shown_frames(samples, 3))
    assert {name: min(numbers) // 20 for name, numbers in seen.items()} == {
        f"Rows[{i}]": i for i in range(3)
    }
    # There is no hash, because hashing all videos would decode them.
    assert content_hash(samples[0].source) == NO_CONTENT


def test_rows_of_one_name_are_not_taken_for_each_other():
    short, long = (Rows([video]) for video in (videos()[0][:4], videos()[1]))
    for data, count in ((short, 4), (long, 9), (short, 4)):
        (sample,) = list_samples(data)
        assert open_video(sample.source).num_frames == count


def test_images(paths):
    pictures = [np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8) for i in range(2)]
    encoded = [cv2.imencode(".png", one[..., ::-1])[1].tobytes() for one in pictures]
    for data in (
        Rows([*zip(pictures, (0, 1), strict=True)]),
        Rows([{"image": e} for e in encoded]),
    ):
        samples = list_samples(data)
        for sample, picture in zip(samples, pictures, strict=True):
            np.testing.assert_array_equal(read_image(sample.source), picture)
            clips = read_clips(sample.source, ClipSettings(4), lambda f: f * 1.0, None)
            assert clips.videos.shape == (4, 20, 30, 3)


def test_bad_rows_are_named(paths, caplog):
    content = Path(paths[0]).read_bytes()
    rows = [content, b"", b"text", RuntimeError("no\nmore"), 3, content[:2000], {"a": 1}] + 9 * [
        content
    ]
    samples = list_samples(Rows(rows))
    for index, reason in {
        1: "the file is empty",
        2: "no video is found in it, but text",
        3: "RuntimeError: no",
        4: "the row holds neither bytes nor a path",
        6: "the row holds neither bytes nor a path",
    }.items():
        with pytest.raises(UnreadableVideoError, match=rf"Rows\[{index}\]: {reason}") as caught:
            open_video(samples[index].source)
        assert "\n" not in str(caught.value)
        assert (content_hash(samples[index].source) == NO_CONTENT) == (index > 2)
    options = {"video_shape": (2, 64, 96, 3), "max_bad_share": 0.5}
    batches = ClipBatches(samples, 16, lambda f, rng: f * 1.0, lambda *_: {}, **options)
    with caplog.at_level(logging.WARNING):
        assert batches.batch(0)["videos"].shape == (16, 2, 64, 96, 3)
    assert {f"Rows[{i}]" for i in (1, 2, 3, 4, 6)} <= batches.bad_files.keys()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"train": [1]}, "must be one data set, such as that of 'train' in it. Received: a dict"),
        (iter([1]), "a data set with a length and rows by their number. Received: a list_iterator"),
        ([], r"`len\(source\)` must be at least 1"),
        ([3], "a row of list must be a video. Received: 3"),
        ([{"a": 1, "b": 2}], "`path_column` must be a column of `source`, which has 'a', 'b'"),
        ([np.zeros((3, 4, 5, 3), int)], "a row of list must be uint8"),
        ([["a", 3, 4]], "a row of list must be a video"),
        ([{"path": "a.mp4"}, {"bytes": b""}], r"list\[1\] must hold a path, as the first row does"),
        ([{"path": "a.mp4"}, {"path": None}], r"list\[1\] must hold a path, as the first row does"),
        (["a.mp4", b"content"], r"list\[1\] must hold a path, as the first row does"),
        ([("a.mp4", np.array([0, 1]))], r"list\[0\]: The label must be a whole number"),
        ([("a.mp4", 2**40)], r"list\[0\]: The label must be a whole number"),
    ],
)
def test_what_is_no_data_set(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        list_samples(source)
    assert "\n" not in str(caught.value)


def test_torch(paths):
    torch = pytest.importorskip("torch")
    frames = torch.tensor(np.moveaxis(np.stack(videos()), -1, 2))
    data = torch.utils.data.TensorDataset(frames, torch.tensor([1, 0, 2]))
    samples = list_samples(data)
    assert [s.label for s in samples] == [1, 0, 2]
    with open_video(samples[2].source) as video:
        assert stamps(video.read([0, 8])) == [40, 48]


def test_hugging_face(paths):
    """The feature decodes with torchcodec, which is not needed."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"video": datasets.Video(), "label": datasets.ClassLabel(names=["b", "a"])}
    )
    rows = {"video": [{"path": None, "bytes": Path(p).read_bytes()} for p in paths[:2]] +
            [{"path": paths[2], "bytes": None}], "label": [0, 1, 0]}  # fmt: skip
    data = datasets.Dataset.from_dict(rows, features=features)
    samples = list_samples(data)
    assert [s.label for s in samples] == [0, 1, 0]
    assert listed_class_names(data) == ["b", "a"]
    assert [video_info(s.source).num_frames for s in samples] == [12, 15, 18]
    assert len(shown_frames(samples, 3)) == 6
    with pytest.raises(ValueError, match="must be one data set, such as that of 'train'"):
        list_samples(datasets.DatasetDict({"train": data}))
    with pytest.raises(ValueError, match="`path_column` must be a column"):
        list_samples(data.rename_column("video", "x"))
    assert len(list_samples(data.rename_column("video", "x"), path_column="x")) == 3
