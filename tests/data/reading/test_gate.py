"""Whatever goes wrong with a file becomes the error that names it, within its time."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time

import cv2
import pytest

from keras_vjepa.data.reading import gate
from keras_vjepa.data.reading.errors import UnreadableImageError, UnreadableVideoError, printable
from keras_vjepa.data.reading.gate import check_file, check_time, through_gate
from keras_vjepa.data.reading.limits import ReadingLimits

pytestmark = pytest.mark.data


def failing(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (cv2.error("OpenCV(5.0) bad size\nsecond line"), "error: OpenCV(5.0) bad size"),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad"), "UnicodeDecodeError: "),
        (AttributeError("thread_count"), "AttributeError: thread_count"),
        (MemoryError(), "there is not enough memory for it"),
        (ValueError("it is far too long"), "it is far too long"),
        (ValueError(), "ValueError"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (StopIteration(), "StopIteration"),
        (RecursionError("deep"), "RecursionError: deep"),
    ],
)
def test_any_error_names_the_file_in_one_line(error, reason):
    with pytest.raises(UnreadableImageError) as caught:
        through_gate("a.jpg", UnreadableImageError, 9.0, failing(error))
    message = str(caught.value)
    assert message.startswith(f"Cannot read the image a.jpg: {reason}") and "\n" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message
    # The next call works as usual.
    assert through_gate("a.jpg", UnreadableImageError, 9.0, lambda: 5) == 5


def test_what_was_named_before_stays_as_it_is():
    named = UnreadableVideoError("b.mp4", "why")
    with pytest.raises(UnreadableVideoError) as caught:
        through_gate("a.jpg", UnreadableImageError, 9.0, failing(named))
    assert caught.value is named


def test_what_is_no_error_of_the_file_passes():
    with pytest.raises(KeyboardInterrupt):
        through_gate("a.jpg", UnreadableImageError, 9.0, failing(KeyboardInterrupt()))


def test_a_hang_ends_at_the_limit(monkeypatch):
    monkeypatch.setattr(gate, "_GRACE_SECONDS", 0.0)
    release = threading.Event()
    start = time.monotonic()
    with pytest.raises(UnreadableVideoError, match="a.mp4: it takes longer than 0.1 seconds"):
        through_gate("a.mp4", UnreadableVideoError, 0.1, release.wait)
    assert time.monotonic() - start < 5
    # The thread is not used for anything else, and ends when its call returns.
    stuck = [t for t in threading.enumerate() if t.name == "reads-files" and t._is_left]
    assert len(stuck) == 1
    others = [through_gate("a", UnreadableVideoError, 9.0, threading.current_thread) for _ in "ab"]
    assert stuck[0] not in others
    release.set()
    stuck[0].join(timeout=5)
    assert not stuck[0].is_alive()


def test_a_loop_over_parts_of_a_file_ends_at_the_limit():
    def loop():
        while True:
            check_time()

    with pytest.raises(UnreadableVideoError, match="it takes longer than 0.05 seconds"):
        through_gate("a.mp4", UnreadableVideoError, 0.05, loop)
    check_time()  # there is no limit outside of a read


def test_an_interrupt_while_waiting_leaves_the_work_alone():
    release = threading.Event()
    main = threading.main_thread().ident
    # A shell starts background processes without a handler for this signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            through_gate("a.mp4", UnreadableVideoError, 9.0, release.wait)
    finally:
        signal.signal(signal.SIGINT, before)
        release.set()
    assert through_gate("a.mp4", UnreadableVideoError, 9.0, lambda: 5) == 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    through_gate("a.mp4", UnreadableVideoError, 9.0, lambda: 5)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = through_gate("a.mp4", UnreadableVideoError, 9.0, lambda: 7)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


AT_THE_END = """
import sys
sys.argv = ["keras-vjepa"]  # as in a command, nothing is loaded that is not needed
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.gate import through_gate

def windows():
    try:
        yield through_gate("a.mp4", UnreadableVideoError, 60.0, lambda: "opened")
    finally:
        print(through_gate("a.mp4", UnreadableVideoError, 60.0, lambda: "closed"))

kept = windows()
print(next(kept))
"""


def test_a_file_that_python_frees_when_it_ends():
    """Such as after Ctrl-C, when windows are left of a video; nothing waits for a thread then."""
    command = [sys.executable, "-c", AT_THE_END]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.split() == ["opened", "closed"]


def test_only_regular_files_with_something_in_them(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"abc")
    assert check_file(file) == 3
    file.write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        for path, reason in (
            (file, "the file is empty"),
            (tmp_path, "it is a folder"),
            (tmp_path / "none.mp4", "no such file"),
            (file / "below.mp4", "no such file"),
            (tmp_path / "pipe.mp4", "not a regular file"),
            (tmp_path / "s", "not a regular file"),
            ("/dev/zero", "not a regular file"),
            ("a\0.mp4", "no such file: there can be none"),
            ("a\ud800.mp4", "no such file: there can be none"),
            ("a" * 5000, "name too long"),
        ):
            with pytest.raises(ValueError, match=reason):
                check_file(path)


def test_names_are_shown_in_one_line():
    assert printable("kätzchen 猫.mp4") == "kätzchen 猫.mp4"
    assert printable(os.fsdecode(b"caf\xe9\n.mp4")) == "caf\\xe9\\n.mp4"
    assert printable("\ud800") == "\\ud800"
    error = UnreadableVideoError(os.fsdecode(b"\xe9"), "why")
    assert str(error) == "Cannot read the video \\xe9: why"


@pytest.mark.parametrize(
    "limits",
    [{"max_file_seconds": 0}, {"max_frame_pixels": -1}, {"max_file_seconds": float("nan")}],
)
def test_limits_are_positive(limits):
    (name,) = limits
    with pytest.raises(ValueError, match=f"`{name}` must be positive and finite. Received: "):
        ReadingLimits(**limits)


def test_sizes_of_frames():
    limits = ReadingLimits(max_frame_pixels=1000)
    limits.check_size(20, 50)
    limits.check_size(1, 100)
    for size, reason in (((20, 51), "51x20 pixels"), ((0, 5), "no size"), ((101, 1), "as long as")):
        with pytest.raises(ValueError, match=reason):
            limits.check_size(*size)
