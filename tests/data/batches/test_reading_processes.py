"""Worker processes read what threads read; what ends one is named, and nothing is left of them."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from keras_vjepa.data import EvaluationBatches, LabelledBatches, Sample
from keras_vjepa.data.batches.fine_tuning import FineTuningBatches
from keras_vjepa.data.batches.reading_processes import WorkerProcessError
from keras_vjepa.data.sources.listing import list_samples
from tests.data.batches.stamped_sources import (
    NUM_FRAMES,
    as_it_is,
    batches_of,
    frames_of,
    samples_of,
    seen,
    write_sources,
)
from tests.data.reading.stamped import stamps

pytestmark = pytest.mark.data

IN_PROCESSES = {"use_multiprocessing": True, "num_workers": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    write_sources(root)
    (root / "frames" / "v05" / "1.png").unlink()  # a missing frame, which the log names
    (root / "folder" / "05.avi").write_bytes(b"RIFF" + bytes(200))
    return root


def darkest(frames, rng):
    """A transform with what is drawn in it."""
    return frames.astype("float32") * rng.random(dtype="float32")


class Rows:
    """A data set that is large, and counts how often it is sent."""

    def __init__(self):
        self.frames = [frames_of(video) for video in range(6)]
        self.times_sent = 0

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.frames[index]

    def __getstate__(self):
        self.times_sent += 1
        return self.__dict__


def test_batches_are_those_of_threads_from_every_source(root, caplog):
    rows = Rows()
    samples = list_samples(rows)
    for kind in ("folder", "frames", "shards"):
        samples += samples_of(root, kind)
    expected = batches_of(samples, max_bad_share=0.1)
    options = {"use_multiprocessing": True, "num_workers": 2, "max_bad_share": 0.1}
    found = batches_of(samples, **options)
    whole = [seen(batch) for batch in expected.stream(0, 20)]
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        assert [seen(batch) for batch in found.stream(0, 13)] == whole[:13]
        # A run that continues starts in the middle.
        assert [seen(batch) for batch in found.stream(13, 20)] == whole[13:]
    assert found.bad_files == expected.bad_files and len(found.bad_files) == 1
    # Log messages of a worker process appear here.
    assert "v05 lacks frames between others" in caplog.text
    assert rows.times_sent <= 4  # once for each process of both streams


def test_labelled_batches_are_those_of_threads(root):
    samples = [Sample(s.path, n % 2) for n, s in enumerate(samples_of(root, "folder"))][:4]
    kinds = {
        LabelledBatches: darkest,
        FineTuningBatches: darkest,
        EvaluationBatches: as_it_is,
    }
    for kind, transform in kinds.items():
        given = {"num_classes": 2, "seed": 1}
        expected = kind(samples, 4, transform, **given).batch(0)
        (found,) = kind(samples, 4, transform, **given, **IN_PROCESSES).stream(0, 1)
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)


def end_by(frames, rng):
    """Ends the process as a frame of video 3 is met."""
    if stamps(frames)[0] // NUM_FRAMES == 3:
        os.kill(os.getpid(), int(os.environ["TEST_ENDS_BY"]))
    return frames.astype("float32")


@pytest.fixture
def three(tmp_path):
    """Samples of which one ends the process that reads it."""
    return list_samples([frames_of(video) for video in range(4)])


def test_a_decoder_that_crashes_costs_a_file(three, monkeypatch):
    monkeypatch.setenv("TEST_ENDS_BY", str(int(signal.SIGSEGV)))
    batches = batches_of(three, transform=end_by, max_bad_share=0.5, **IN_PROCESSES)
    assert len(list(batches.stream(0, 2))) == 2
    assert [*batches.bad_files.values()] == [
        "Cannot read the video list[3]: the decoder crashed (SIGSEGV)"
    ]


def test_a_process_that_is_ended_is_one_error(three, monkeypatch):
    monkeypatch.setenv("TEST_ENDS_BY", str(int(signal.SIGKILL)))
    batches = batches_of(three, transform=end_by, **IN_PROCESSES)
    before = threading.active_count()
    with pytest.raises(WorkerProcessError, match=r"while it read list\[3\]: it got SIGKILL. Where"):
        list(batches.stream(0, 2))
    assert threading.active_count() <= before + 1
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no child process is left


def fails(frames, rng):
    raise KeyError("what a transform raises")


@pytest.mark.slow
def test_errors_are_those_of_threads(three):
    with pytest.raises(KeyError, match="what a transform raises"):
        list(batches_of(three, transform=fails, **IN_PROCESSES).stream(0, 1))


def test_what_cannot_be_sent_is_refused_in_a_line(three):
    with pytest.raises(
        ValueError, match="^The transform must be a function or class of .* leave `use_mult"
    ):
        list(batches_of(three, transform=lambda *_: 0, **IN_PROCESSES).stream(0, 1))
    rows = Rows()
    rows.lock = threading.Lock()
    with pytest.raises(
        ValueError, match="^The Rows must be a function or class .*pickle '_thread.lock'"
    ):
        list(batches_of(list_samples(rows), **IN_PROCESSES).stream(0, 1))
    sample = Sample("memory://a.mp4")
    with pytest.raises(ValueError, match="only this process knows. Received: memory://a.mp4"):
        list(batches_of([sample] * 4, **IN_PROCESSES).stream(0, 1))


PROGRAM = """
    import sys
    import numpy as np
    sys.argv[0] = "keras-vjepa"  # loads no backend
    from keras_vjepa.data import ClipBatches, list_samples

    class Rows(list):
        pass

    class Transform:
        def __call__(self, frames, rng):
            return frames.astype("float32")

    def main():
        rows = Rows(np.full((4, 32, 48, 3), n, "uint8") for n in range(4))
        batches = ClipBatches(
            list_samples(rows), 4, Transform(), lambda *_: {}, video_shape=(2, 32, 48, 3),
            use_multiprocessing=True, num_workers=1,
        )
        for batch in batches.stream(0, int(sys.argv[1])):
            print(sorted(batch["videos"].mean(axis=(1, 2, 3, 4)).tolist()), flush=True)
"""


def run(path, ending, steps):
    path.write_text(textwrap.dedent(PROGRAM) + ending)
    return subprocess.Popen(
        [sys.executable, path, str(steps)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def children(process):
    return {
        int(pid) for pid in os.listdir("/proc") if pid.isdigit() and _parent(pid) == process.pid
    }


def _parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes there")
def test_a_program_that_is_killed_leaves_none(tmp_path):
    process = run(tmp_path / "program.py", '\nif __name__ == "__main__":\n    main()\n', 10**6)
    assert process.stdout.readline() == b"[0.0, 1.0, 2.0, 3.0]\n"
    (child,) = children(process)
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while os.path.exists(f"/proc/{child}") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")


@pytest.mark.slow
def test_a_program_without_a_guard_is_told(tmp_path):
    _, errors = run(tmp_path / "program.py", "\nmain()\n", 1).communicate(timeout=120)
    assert b"under `if __name__ ==" in errors.splitlines()[-1]


@pytest.mark.slow
def test_what_was_typed_in_is_refused():
    done = subprocess.run(
        [sys.executable, "-", "1"],
        input=textwrap.dedent(PROGRAM) + "\nmain()\n",
        capture_output=True,
        text=True,
    )
    assert "must be defined in a file to be sent" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_without_shared_memory_all_goes_through_a_pipe(root, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    samples = samples_of(root, "shards")
    expected = seen(batches_of(samples).batch(0))
    (found,) = batches_of(samples, **IN_PROCESSES).stream(0, 1)
    assert seen(found) == expected
