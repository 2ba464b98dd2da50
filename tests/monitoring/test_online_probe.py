"""The probe that is trained during a run: on which clips, what it changes, what it says."""

import keras
import numpy as np
import pytest

from keras_vjepa import data
from keras_vjepa.data.sources.samples import Sample, class_folders, list_class_folders
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.evaluation.comparison import LabelledClips
from keras_vjepa.monitoring.monitor import Monitor
from keras_vjepa.monitoring.online_probe import OnlineProbe, ProbedClips, probed_clips
from keras_vjepa.monitoring.tables import read_rows
from tests.monitoring.test_monitor import fit, held_out, make_pretrainer


def labelled(count, seed=0):
    """Clips whose class is seen by their brightness."""
    samples = [Sample(f"{i}.mp4", i % 2) for i in range(count)]
    noise = np.random.default_rng(seed).normal(size=(count, 8, 32, 32, 3))
    brightness = np.array([sample.label for sample in samples]).reshape(-1, 1, 1, 1, 1)
    return LabelledClips(samples, (0.1 * noise + brightness).astype("float32"), {})


CLIPS = ProbedClips({"label": 2}, labelled(64), labelled(16, 1))


@pytest.mark.slow
def test_a_run_with_a_probe_is_the_same_run(tmp_path):
    weights = []
    for clips in (None, CLIPS):
        pretrainer = make_pretrainer()
        folder = tmp_path / str(clips is None)
        folder.mkdir()
        monitor = Monitor(
            held_out(pretrainer), folder, every=1, probe_every=2, probe=clips and OnlineProbe(clips)
        )
        fit(pretrainer, 5, monitor)
        weights.append([*pretrainer.get_weights(), *pretrainer.optimizer.variables])
        rows = read_rows(folder / "monitor.jsonl")
        probed = [row["step"] for row in rows if "probe_label" in row]
        assert probed == ([] if clips is None else [0, 2, 4, 5])
    for one, other in zip(*map(list, weights), strict=True):
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (one, other)))
    assert all(row["clips_of_probe"] == 16 for row in rows if "probe_label" in row)
    assert "accuracy of a probe on 16 clips: label " in rows[0]["words"]
    assert "accuracy of a probe on 16 clips at step 2: label " in rows[3]["words"]


@pytest.mark.slow
def test_a_probe_reads_the_given_weights_and_survives_those_that_are_not_finite():
    pretrainer = make_pretrainer()
    encoder, online = pretrainer.target_encoder, OnlineProbe(CLIPS)
    weights = [np.array(w) for w in pretrainer.target_encoder.get_weights()]
    found = online(encoder, weights)
    assert found["probe_label"] > 0.9 and found["clips_of_probe"] == 16
    assert found == online(encoder, weights)
    # All features are the same, so that one class is named throughout.
    assert online(encoder, [0 * w for w in weights])["probe_label"] == 0.5
    assert np.isnan(online(encoder, [np.nan * w for w in weights])["probe_label"])
    assert online(encoder, weights) == found


@pytest.fixture
def folder(tmp_path):
    for i in range(11):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        frames = np.full((12, 40, 32, 3), 20 * i, np.uint8)
        write_motion_jpeg(tmp_path / str(i % 2) / f"{i}.avi", frames, 24)
    return tmp_path


def batches_of(samples):
    return data.ClipBatches(
        samples,
        batch_size=2,
        clip=data.ClipSettings(4, 1),
        video_shape=(4, 24, 32, 3),
        grid_shape=(2, 4, 4),
    )


@pytest.mark.data
def test_clips_to_train_on_and_to_test_on_have_no_video_in_common(folder):
    samples = data.list_samples(folder)
    found = probed_clips(str(folder), batches_of(samples), 6)
    paths = [{sample.path for sample in part.samples} for part in (found.train, found.test)]
    assert found.tasks == {"label": 2} and not paths[0] & paths[1]
    assert [len(one) for one in paths] == [6, 2]
    assert {sample.label for sample in found.test.samples} == {0, 1}
    assert found.train.videos.shape == (6, 4, 24, 32, 3)
    samples = list_class_folders(folder, class_folders(folder))
    again = probed_clips("elsewhere", batches_of(samples), 6)
    assert again.test.samples == found.test.samples
    one = [
        Sample(sample.path, None if i == 3 else sample.label) for i, sample in enumerate(samples)
    ]
    assert probed_clips("elsewhere", batches_of(one), 6) is None
    same = [Sample(sample.path, 1) for sample in samples]
    assert probed_clips("elsewhere", batches_of(same), 6) is None
    different = [Sample(sample.path, i) for i, sample in enumerate(samples)]
    assert probed_clips("elsewhere", batches_of(different), 6) is None
