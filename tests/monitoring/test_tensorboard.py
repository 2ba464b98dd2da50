"""What TensorBoard is given, read back from its files."""

import struct
import sys

import cv2
import numpy as np
import pytest

from keras_vjepa.monitoring.tensorboard import TensorBoardWriter, check_tensorboard

pytestmark = pytest.mark.data


def events(folder):
    """All events of a folder; each lies between its length and a checksum, of 12 and 4 bytes."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            [length] = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def values(folder):
    return [(e.step, value) for e in events(folder) for value in e.summary.value]


@pytest.fixture
def writer(tmp_path):
    pytest.importorskip("tensorboardX")
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[..., 2] = 200  # red, as OpenCV orders colours
    cv2.imwrite(str(tmp_path / "masks.png"), picture)
    pictures = {"masks": tmp_path / "masks.png", "gone": tmp_path / "gone.png"}
    return TensorBoardWriter(tmp_path / "board", {"steps": 4, "data": "a|b"}, pictures)


def test_numbers_words_masks_and_the_config(writer, tmp_path):
    writer.write("steps", [])
    assert not (tmp_path / "board").exists()
    writer.write("monitor", [{"step": 0, "rank": 1.5, "loss": None, "words": "it learns"}])
    writer.write("steps", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "clipped": 1}])
    found = values(tmp_path / "board")
    numbers = {(step, v.tag): v.simple_value for step, v in found if v.HasField("simple_value")}
    assert numbers == {
        (0, "monitor/rank"): 1.5,
        (1, "steps/loss"): 0.5,
        (2, "steps/loss"): 0.25,
        (2, "steps/clipped"): 1.0,
    }
    texts = {v.tag: v.tensor.string_val[0].decode() for _, v in found if v.tensor.string_val}
    assert "| steps | `4` |" in texts["config/text_summary"]
    assert texts["monitor/words/text_summary"] == "it learns"
    [image] = [v for _, v in found if v.HasField("image")]
    decoded = cv2.imdecode(np.frombuffer(image.image.encoded_image_string, np.uint8), 1)
    assert image.tag == "masks" and decoded.shape == (4, 6, 3)
    assert (decoded == [0, 0, 200]).all()


def test_steps_that_a_run_goes_back_to_are_hidden(writer, tmp_path):
    again = TensorBoardWriter(tmp_path / "again", {}, {})
    again.write("steps", [{"step": 3, "loss": 1.0}])
    started = [e.step for e in events(tmp_path / "again") if e.HasField("session_log")]
    assert started == [3]


def test_without_the_package_it_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    check_tensorboard(False)
    with pytest.raises(ValueError, match=r"^`tensorboard` must be false without tensorboardX: pip"):
        check_tensorboard(True)
