"""Timing features of a folder, with its reading."""

import re
import time

import numpy as np
import pytest

from keras_vjepa import VJEPABackbone, VJEPAVideoPreprocessor
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from keras_vjepa.tools import bench
from keras_vjepa.tools.bench_features import (
    features_again,
    features_of,
    look_through,
    print_features,
    steady_rate,
    windows_of,
)

pytestmark = pytest.mark.data


@pytest.fixture
def videos(tmp_path):
    """Two videos, of three and four windows of 2 frames, and a file that is none."""
    folder, rng = tmp_path / "videos", np.random.default_rng(0)
    folder.mkdir()
    for name, count in (("a.avi", 24), ("b.avi", 32)):
        frames = rng.integers(256, size=(count, 24, 24, 3), dtype=np.uint8)
        write_motion_jpeg(folder / name, frames, 24)
    (folder / "broken.avi").write_bytes(b"no video")
    return folder


def test_what_comes_first_is_not_timed():
    def slow_at_first():
        for number in range(6):
            time.sleep(0.3 if number < 2 else 0.01)
            yield number

    # With the first two, it would be less than 10.
    assert 10 < steady_rate(slow_at_first(), first=2) <= 100
    with pytest.raises(ValueError, match="more than 6. Received: 6"):
        steady_rate(range(6), first=6)


def test_each_is_of_the_same_windows(videos, capsys):
    backbone = VJEPABackbone(16, 2, patch_size=8, hidden_dim=12, num_layers=1, num_heads=1)
    found = look_through(str(videos), VJEPAVideoPreprocessor(16, 2), batch_size=2)
    assert "broken.avi" in capsys.readouterr().err
    # The seventh window fills no batch.
    assert (found.count, found.batch_size) == (6, 2)
    windows = np.stack([*windows_of(found)])
    np.testing.assert_array_equal(windows[:2], found.batch)
    together = np.concatenate([*features_of(backbone, found)])
    expected = np.asarray(backbone.predict_on_batch(windows)).mean(axis=1)
    np.testing.assert_allclose(together, expected, atol=1e-5)
    again = np.stack([*features_again(backbone, found)]).mean(axis=1)
    np.testing.assert_allclose(again, np.tile(expected[:2], (3, 1)), atol=1e-5)
    print_features(str(videos), backbone, batch_size=2, rounds=1)
    said = capsys.readouterr().out
    assert re.search(r"of 6: reading [\d.]+, model [\d.]+, together [\d.]+ = [\d.]+ of", said)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "nowhere"),
        ("empty", "hold videos"),
        ("videos", "three batches"),
        ("", "Received|no"),
    ],
)
def test_what_cannot_be_timed_is_refused(source, words, videos, monkeypatch, capsys):
    monkeypatch.chdir(videos.parent)
    (videos.parent / "empty").mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as ended:
        given = ["--size", "tiny", "--batch-size", "8", "--image-size", "32", "--num-frames", "2"]
        bench.main([f"--features={source}", *given], "bench")
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "--features" in said.splitlines()[-1]
    assert re.search(words, said.splitlines()[-1])
