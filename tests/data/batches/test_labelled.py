"""Labelled batches: shapes, order, every test sample exactly once, what cannot be read."""

from functools import partial

import cv2
import numpy as np
import pytest

from keras_vjepa.data.batches.clips import ClipSettings
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.batches.labelled import EvaluationBatches, LabelledBatches
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.reading.clip_indices import clip_frame_indices
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.video import read_frames
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.training import ImageProbeTransform, VideoProbeTransform
from keras_vjepa.data.transforms.views import center_view, three_views

pytestmark = pytest.mark.data

NUM_FRAMES = 12
NUM_VIDEOS = 7


@pytest.fixture
def samples(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(NUM_VIDEOS):
        fourcc = cv2.VideoWriter_fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(tmp_path / f"{i}.avi"), fourcc, 24, (40, 32))
        for frame in rng.integers(256, size=(NUM_FRAMES, 32, 40, 3), dtype=np.uint8):
            writer.write(frame)
        writer.release()
    return [Sample(str(tmp_path / f"{i}.avi"), i % 3) for i in range(NUM_VIDEOS)]


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(256, size=(30, 40, 3), dtype=np.uint8))
    return [Sample(str(tmp_path / f"{i}.png"), i) for i in range(3)]


def spoil(sample):
    with open(sample.path, "w") as file:
        file.write("no video")


def training(samples, **settings):
    defaults = {"num_classes": 3, "clip": ClipSettings(4, 2), "seed": 3}
    return LabelledBatches(samples, 4, VideoProbeTransform(16), **{**defaults, **settings})


def evaluation(samples, batch_size=4, views=1, **settings):
    transform = partial(center_view if views == 1 else three_views, crop_size=16)
    defaults = {"num_classes": 3, "clip": ClipSettings(4, 2), "seed": 3}
    return EvaluationBatches(samples, batch_size, transform, **{**defaults, **settings})


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("num_clips", "views", "shape"),
    [
        (1, 1, (4, 4, 16, 16, 3)),
        (2, 1, (4, 2, 4, 16, 16, 3)),
        (1, 3, (4, 1, 3, 4, 16, 16, 3)),
        (2, 3, (4, 2, 3, 4, 16, 16, 3)),
    ],
)
def test_shapes(samples, num_clips, views, shape):
    clip = ClipSettings(4, 2, num_clips, allow_clip_overlap=True)
    pipeline = evaluation(samples, views=views, clip=clip, with_frame_indices=True)
    for inputs, labels, weight in pipeline.stream():
        assert inputs["videos"].shape == shape and inputs["videos"].dtype == np.float32
        assert inputs["frame_indices"].shape == (4, num_clips, 4)
        assert [a.dtype.name for a in (inputs["frame_indices"], labels, weight)] == [
            "int32",
            "int32",
            "float32",
        ]
    if views == 1:
        videos, labels = training(samples, clip=clip).batch(0)
        assert videos.shape == shape and labels.shape == (4,) and labels.dtype == np.int32


def test_the_clips_are_the_segments_of_the_video(samples):
    settings = ClipSettings(3, 2, 2)
    pipeline = evaluation(samples, clip=settings, with_frame_indices=True)
    inputs, labels, _ = pipeline.batch(0)
    # A segment of 6 frames holds only one window of 6.
    expected = clip_frame_indices(NUM_FRAMES, 3, 2, 2)
    for row in range(4):
        np.testing.assert_array_equal(inputs["frame_indices"][row], expected)
        for clip in range(2):
            frames = read_frames(samples[row].path, expected[clip])
            np.testing.assert_array_equal(inputs["videos"][row, clip], center_view(frames, 16))
    assert labels.tolist() == [0, 1, 2, 0]


def test_training_is_a_function_of_the_step(samples):
    expected = [training(samples).batch(step) for step in range(5)]
    for step, batch in enumerate(training(samples, num_workers=3).stream(stop=5)):
        assert_same(batch, expected[step])
    assert_same(next(training(samples).stream(start=3)), expected[3])
    parts = [training(samples, process_index=i, process_count=2).batch(2) for i in range(2)]
    assert_same([np.concatenate(pair) for pair in zip(*parts, strict=True)], expected[2])
    assert training(samples).steps_per_epoch == 2


def test_labels_stay_with_their_videos(tmp_path, samples):
    # All pixels of a video have the same grey level, ten times its label.
    greys = []
    for label in range(3):
        path = str(tmp_path / f"grey{label}.avi")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 24, (32, 32))
        for _ in range(4):
            writer.write(np.full((32, 32, 3), 80 * label, np.uint8))
        writer.release()
        greys.append(Sample(path, label))
    broken = Sample(str(tmp_path / "broken.avi"), 0)
    spoil(broken)
    transform = VideoProbeTransform(16, erasing=0.0, augmentation=None)
    pipeline = LabelledBatches(
        [*greys, broken], 4, transform, num_classes=3, max_bad_share=0.3, clip=ClipSettings(2, 1)
    )
    seen = []
    for videos, labels in pipeline.stream(stop=6):
        levels = (videos[:, 0, 0, 0, 0] * 0.229 + 0.485) * 255
        np.testing.assert_allclose(levels, 80 * labels, atol=3)
        seen += labels.tolist()
    assert list(pipeline.bad_files) == [broken.path] and set(seen) == {0, 1, 2}


@pytest.mark.parametrize("process_count, batch_size", [(1, 4), (2, 4), (3, 6), (4, 8)])
def test_every_test_sample_exactly_once_on_any_number_of_processes(
    samples, process_count, batch_size
):
    alone = evaluation(samples, 1)
    expected = [alone.batch(i) for i in range(NUM_VIDEOS)]
    found, num_steps = [], set()
    for index in range(process_count):
        pipeline = evaluation(samples, batch_size, process_index=index, process_count=process_count)
        num_steps.add(pipeline.num_steps)
        assert pipeline.num_counted == NUM_VIDEOS
        batches = list(pipeline.stream())
        assert len(batches) == pipeline.num_steps
        for step, (videos, labels, weight) in enumerate(batches):
            assert videos.shape == (batch_size // process_count, 4, 16, 16, 3)
            positions = step * batch_size + index * len(labels) + np.arange(len(labels))
            np.testing.assert_array_equal(weight, (positions < NUM_VIDEOS).astype(np.float32))
            assert not videos[weight == 0].any() and not labels[weight == 0].any()
            found += [
                (p, video, label)
                for p, video, label in zip(positions, videos, labels, strict=True)
                if p < NUM_VIDEOS
            ]
    assert len(num_steps) == 1
    assert sorted(position for position, _, _ in found) == list(range(NUM_VIDEOS))
    for position, video, label in found:
        np.testing.assert_array_equal(video, expected[position][0][0])
        assert label == samples[position].label


@pytest.mark.parametrize("skip", [False, True])
def test_counts_of_any_number_of_processes_add_up(samples, skip):
    """One accuracy, whatever the number of processes, with a file that cannot be read."""
    spoil(samples[5])
    # The predictions of a model, which is right for samples 0, 3 and 4, and would be right for 5.
    answers = dict(zip(range(NUM_VIDEOS), [0, 2, 0, 0, 1, 2, 1], strict=True))
    accuracies = []
    for process_count in (1, 2, 3):
        correct, unreadable = 0.0, set()
        for index in range(process_count):
            pipeline = evaluation(
                samples,
                6,
                process_index=index,
                process_count=process_count,
                max_bad_share=0.2,
                skip_unreadable=skip,
            )
            for step, (_, labels, weight) in enumerate(pipeline.stream()):
                # Rows that only fill a batch get correct predictions too.
                rows = [answers.get(p, 0) for p in pipeline._positions(step)]
                correct += (weight * (np.array(rows) == labels)).sum()
            unreadable |= set(pipeline.bad_files)
        counted = NUM_VIDEOS - (len(unreadable) if skip else 0)
        accuracies.append(correct / counted)
    assert accuracies == [3 / (6 if skip else 7)] * 3


def test_evaluation_is_deterministic_and_continues(samples):
    clip = ClipSettings(2, 2)
    whole = list(evaluation(samples, 2, clip=clip).stream())
    for step, batch in enumerate(evaluation(samples, 2, clip=clip).stream(start=2), start=2):
        assert_same(batch, whole[step])
    other = evaluation(samples, 2, clip=clip, seed=4).batch(0)
    assert np.abs(other[0] - whole[0][0]).max() > 0


def test_an_unreadable_test_video_counts_as_wrong_unless_asked(samples, caplog):
    spoil(samples[5])
    for skip, counted, verdict in ((False, 7, "Counted as wrong"), (True, 6, "Not counted")):
        caplog.clear()
        pipeline = evaluation(samples, max_bad_share=0.2, skip_unreadable=skip)
        batches = list(pipeline.stream())
        assert [weight.tolist() for _, _, weight in batches] == [[1, 1, 1, 1], [1, 0, 1, 0]]
        assert list(pipeline.bad_files) == [samples[5].path]
        assert pipeline.num_counted == counted
        assert f"{verdict}: Cannot read the video {samples[5].path}" in caplog.text
    with pytest.raises(TooManyBadFilesError, match="1 of 7 videos cannot be read"):
        list(evaluation(samples).stream())


def test_more_clips_than_frames(samples):
    clip = ClipSettings(4, 2, NUM_FRAMES + 1, allow_clip_overlap=True)
    pipeline = evaluation(samples, 1, clip=clip, max_bad_share=1.0)
    videos, _, weight = pipeline.batch(0)
    # No file could be read, but the shape is still right.
    assert videos.shape == (1, NUM_FRAMES + 1, 4, 16, 16, 3) and weight.tolist() == [0]
    [reason] = pipeline.bad_files.values()
    assert reason.endswith("12 frames are not enough for 13 clips")


def test_images_are_repeated(images):
    transform = partial(center_view, crop_size=16, antialias=True)
    pipeline = EvaluationBatches(images, 2, transform, num_classes=3, with_frame_indices=True)
    inputs, labels, weight = pipeline.batch(0)
    assert inputs["videos"].shape == (2, 16, 16, 16, 3) and not inputs["frame_indices"].any()
    expected = center_view(read_image(images[1].path)[None], 16, antialias=True)
    np.testing.assert_array_equal(inputs["videos"][1], expected.repeat(16, axis=0))
    assert pipeline.batch(1)[2].tolist() == [1, 0]
    clip = ClipSettings(2)
    train = LabelledBatches(images, 3, ImageProbeTransform(16), num_classes=3, clip=clip)
    videos, labels = train.batch(0)
    assert videos.shape == (3, 2, 16, 16, 3) and sorted(labels) == [0, 1, 2]
    np.testing.assert_array_equal(videos[:, 0], videos[:, 1])
    several = ClipSettings(2, num_clips=2)
    with pytest.raises(ValueError, match="`num_clips` must be 1 for images, such as .*png"):
        LabelledBatches(images, 3, ImageProbeTransform(16), num_classes=3, clip=several).batch(0)


def test_bad_input_is_named(samples):
    with pytest.raises(ValueError, match="Missing: 3"):
        training(samples, num_classes=4)
    training(samples, num_classes=4, allow_absent_classes=True)
    for make in (training, evaluation):
        with pytest.raises(ValueError, match=r"`label` must be in \[0, `num_classes`=2\)"):
            make(samples, num_classes=2)
        with pytest.raises(ValueError, match="Every sample must have a `label`"):
            make([Sample("a.mp4")])
    with pytest.raises(ValueError, match="`num_clips` must be 1 in pretraining. Received: 2"):
        ClipBatches(samples, 4, VideoProbeTransform(16), masks=None, clip=ClipSettings(4, 2, 2))
