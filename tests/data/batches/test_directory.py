"""A folder of classes becomes training and validation: split, order, files that cannot be read."""

import logging

import cv2
import keras
import numpy as np
import pytest

import keras_vjepa
from keras_vjepa import VJEPAVideoPreprocessor
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources.video_writing import write_motion_jpeg

# NumPy makes the batches. tests/test_readme.py tests that `fit` takes them on each backend.
pytestmark = pytest.mark.data

CLASSES = {"ball": 5, "cat": 5, "dog": 10}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Videos whose red says their class, and whose green their number."""
    root = tmp_path_factory.mktemp("classes")
    for label, (name, count) in enumerate(CLASSES.items()):
        for number in range(count):
            frames = np.zeros((4, 24, 32, 3), np.uint8)
            frames[..., 0], frames[..., 1] = 60 * label, 20 * number
            write_motion_jpeg(root / name / f"{number}.avi", frames, 24)
    return root


@pytest.fixture(scope="module")
def preprocessor():
    return VJEPAVideoPreprocessor(16, 2)


def read(videos, preprocessor, **options):
    return keras_vjepa.data.from_directory(videos, preprocessor, **options)


def paths(dataset):
    return [sample.path for sample in dataset.batches.samples]


def test_the_split_is_by_class_and_seed(videos, preprocessor, capsys):
    data = read(videos, preprocessor, validation_split=0.2)
    assert capsys.readouterr().out == ("20 files of 3 classes: 16 for training, 4 for validation\n")
    assert data.class_names == ["ball", "cat", "dog"]
    labels = [sample.label for sample in data.validation.batches.samples]
    assert labels == [0, 1, 2, 2]
    assert not {*paths(data.train)} & {*paths(data.validation)}
    again = read(str(videos), preprocessor, validation_split=0.2)
    other = read(videos, preprocessor, validation_split=0.2, seed=1)
    assert paths(again.validation) == paths(data.validation) != paths(other.validation)
    whole = read(videos, preprocessor)
    assert whole.validation is None and len(paths(whole.train)) == 20
    assert capsys.readouterr().out.splitlines()[-1] == "20 files of 3 classes"


def epoch_of(dataset):
    batches = list(dataset)
    dataset.on_epoch_end()
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def test_an_epoch_sees_each_file_in_an_order_of_its_own(videos, preprocessor):
    data = read(videos, preprocessor, batch_size=5)
    assert isinstance(data.train, keras.utils.PyDataset) and len(data.train) == 4
    (x, y), (_, second) = epoch_of(data.train), epoch_of(data.train)
    assert x.shape == (20, 2, 16, 16, 3) and x.dtype == np.float32 and y.dtype == np.int32
    assert sorted(y) == sorted(second) == sorted([0] * 5 + [1] * 5 + [2] * 10)
    assert y.tolist() != second.tolist()
    # Each video comes with its own label.
    red = x.mean(axis=(1, 2, 3))[:, 0]
    assert all(np.ptp(red[y == label]) < 0.3 for label in range(3))
    assert red[y == 0].mean() + 0.5 < red[y == 1].mean() < red[y == 2].mean() - 0.5
    again = epoch_of(read(videos, preprocessor, batch_size=5).train)
    np.testing.assert_array_equal(again[0], x)
    ordered = epoch_of(read(videos, preprocessor, shuffle=False).train)[1]
    assert ordered[:20].tolist() == [0] * 5 + [1] * 5 + [2] * 10


def test_batches_of_training_are_full_and_those_of_validation_whole(videos, preprocessor):
    data = read(videos, preprocessor, batch_size=3, validation_split=0.2)
    assert [len(y) for _, y in data.train] == [3] * 6
    assert [len(y) for _, y in data.validation] == [3, 1]
    few = read(videos, preprocessor, batch_size=64)
    assert [len(y) for _, y in few.train] == [20]


def test_files_that_cannot_be_read_are_named(videos, preprocessor, tmp_path, caplog):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for source in sorted((videos / name).iterdir())[:5]:
            (tmp_path / name / source.name).symlink_to(source)
    (tmp_path / "cat" / "3.avi").unlink()
    (tmp_path / "cat" / "3.avi").write_bytes(b"no video")
    options = {"batch_size": 4, "max_bad_share": 0.5}
    data = read(tmp_path, preprocessor, **options)
    x, y = epoch_of(data.train)
    assert len(y) == 16 and [*data.train.batches.bad_files] == [str(tmp_path / "cat" / "3.avi")]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("Skipped, another clip takes its place: Cannot read the video")
    caplog.clear()
    validation = preprocessor.dataset(data.train.batches.samples, 3, **options)
    assert [len(y) for _, y in validation] == [4, 4, 3, 3] and len(validation) == 4
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("Left out: Cannot read the video")
    # If all files of a batch are unreadable, the files of the next one take their places.
    alone = preprocessor.dataset(data.train.batches.samples, 3, batch_size=1, max_bad_share=0.5)
    assert [len(y) for _, y in alone] == [1] * 15
    with pytest.raises(TooManyBadFilesError, match="1 of 15 videos cannot be read, more than"):
        list(preprocessor.dataset(data.train.batches.samples, 3, max_bad_share=0.01))


def test_images_do_for_image_models_and_are_left_out_beside_videos(videos, tmp_path, caplog):
    for name in ("a", "b"):
        for number in range(3):
            path = tmp_path / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), np.full((20, 30, 3), 40 * number, np.uint8))
    images = VJEPAVideoPreprocessor(16, 1)
    data = read(tmp_path, images, batch_size=3)
    assert [x.shape for x, _ in data.train] == [(3, 1, 16, 16, 3)] * 2
    assert [x.shape for x, _ in read(tmp_path, VJEPAVideoPreprocessor(16, 2)).train] == [
        (6, 2, 16, 16, 3)
    ]
    assert not caplog.records
    for name in ("a", "b"):
        (tmp_path / name / "v.avi").symlink_to(videos / "cat" / "0.avi")
    (tmp_path / "b" / "notes.txt").touch()
    both = read(tmp_path, VJEPAVideoPreprocessor(16, 2))
    assert [path[-5:] for path in paths(both.train)] == ["v.avi"] * 2
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "1 file of other types: .txt (1)",
        "6 image(s) beside videos",
    ]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_labels_and_names_can_be_given(videos, preprocessor):
    given = read(videos / "cat", preprocessor, labels=[0, 1, 0, 1, 2])
    assert given.class_names == ["0", "1", "2"]
    assert [sample.label for sample in given.train.batches.samples] == [0, 1, 0, 1, 2]
    names = ["dog", "cat", "ball", "more"]
    named = read(videos, preprocessor, class_names=names)
    assert named.class_names == names
    assert [sample.label for sample in named.train.batches.samples][:6] == [2] * 5 + [1]


@pytest.mark.parametrize("num_clips,shape", [(1, (2, 16, 16, 3)), (2, (2, 2, 16, 16, 3))])
def test_training_may_be_augmented(videos, num_clips, shape):
    """Each epoch has clips of its own, which follow from the seed; validation is as it was."""
    preprocessor = VJEPAVideoPreprocessor(16, 2, frame_step=1, num_clips=num_clips)
    data = read(videos, preprocessor, validation_split=0.2, augment=True)
    plain = read(videos, preprocessor, validation_split=0.2)
    (x, y), (second, _) = epoch_of(data.train), epoch_of(data.train)
    assert x.shape == (16, *shape) and x.dtype == np.float32 and not np.array_equal(x, second)
    np.testing.assert_array_equal(y, epoch_of(plain.train)[1])
    again = read(videos, preprocessor, validation_split=0.2, augment=True)
    np.testing.assert_array_equal(epoch_of(again.train)[0], x)
    # Validation has an axis of views, which training does not have.
    for made, wanted in zip(epoch_of(data.validation), epoch_of(plain.validation), strict=True):
        np.testing.assert_array_equal(made, wanted)


def test_a_transform_of_ones_own_makes_the_clips(videos, preprocessor):
    def grey(frames, rng):
        assert frames.shape == (2, 24, 32, 3) and frames.dtype == np.uint8
        return np.full((2, 16, 16, 3), rng.random(), np.float32)

    x, _ = epoch_of(read(videos, preprocessor, augment=grey).train)
    assert len(np.unique(x[:20])) == 20 and np.ptp(x[0]) == 0


def test_images_are_augmented_too(tmp_path):
    picture = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), picture)
    for arguments, shape in (
        ({"num_frames": 1}, (1, 16, 16, 3)),
        ({"num_frames": 4, "image_frames": 2, "num_clips": 3}, (3, 2, 16, 16, 3)),
    ):
        data = read(tmp_path, VJEPAVideoPreprocessor(16, **arguments), augment=True)
        x, _ = epoch_of(data.train)
        assert x.shape == (2, *shape) and not np.array_equal(x[0], x[1])


def test_one_class_is_warned_of(videos, preprocessor, tmp_path, caplog):
    (tmp_path / "cat").mkdir()
    for source in (videos / "cat").iterdir():
        (tmp_path / "cat" / source.name).symlink_to(source)
    assert read(tmp_path, preprocessor).class_names == ["cat"]
    assert "All files are of one class, 'cat': there is nothing to tell apart" in caplog.text


def test_a_split_needs_two_files_of_a_class(videos, preprocessor, tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.avi").symlink_to(videos / name / "0.avi")
    with pytest.raises(ValueError, match="`validation_split` must be None where no class has two"):
        read(tmp_path, preprocessor, validation_split=0.5)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"augment": "yes"}, "`augment` must be True or False. Received: 'yes'"),
        ({"class_names": [*CLASSES, "cat"]}, "`class_names` must differ. Received twice: 'cat'"),
        ({"class_names": "cat"}, "`class_names` must be a list of names. Received: 'cat'"),
        ({"class_names": {*CLASSES}}, "`class_names` must be a list of names. Received: {"),
        (
            {"labels": [3] * 20, "class_names": ["a"]},
            "a name for each of the `labels` up to 3. Received: 1",
        ),
        ({"labels": None}, "`labels` must be 'inferred' or class numbers. Received: None"),
        ({"validation_split": 1.0}, r"`validation_split` must be in \(0, 1\). Received: 1.0"),
        ({"validation_split": 0.95}, "must leave a file of each class .*none of 5 in 'ball'"),
        ({"labels": "int"}, "`labels` must be 'inferred' or class numbers. Received: 'int'"),
        ({"labels": [0, 1]}, "a class number for each of 20 files .*Received: 2"),
        ({"labels": [-1] * 20}, r"`labels\[0\]` must be at least 0. Received: -1"),
        ({"class_names": ["cat"]}, "`class_names` must hold the name of every folder"),
        ({"batch_size": 0}, "`batch_size` must be at least 1. Received: 0"),
        ({"shuffle": 1}, "`shuffle` must be True or False. Received: 1"),
        ({"seed": -1}, "`seed` must be at least 0. Received: -1"),
    ],
)
def test_bad_arguments_are_named(videos, preprocessor, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(videos, preprocessor, **change)
    assert "\n" not in str(caught.value)


def test_folders_of_another_kind_are_named(preprocessor, tmp_path):
    with pytest.raises(ValueError, match="`preprocessor` must be a VJEPAVideoPreprocessor. Rec"):
        read(tmp_path, "preprocessor")
    with pytest.raises(FileNotFoundError, match="`directory` must be an existing folder"):
        read(tmp_path / "none", preprocessor)
    with pytest.raises(ValueError, match="`directory` must hold one folder for each class"):
        read(tmp_path, preprocessor)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="`directory` must hold videos or images"):
        read(tmp_path, preprocessor)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="give .*train, and read .*val with its `class_names`"):
        read(tmp_path, preprocessor)
    (tmp_path / "val" / "v.avi").touch()
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="must hold a file. Received: none in 'other'"):
        read(tmp_path, preprocessor)
