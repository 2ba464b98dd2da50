"""The loss of a run as a table and a picture."""

import cv2
import numpy as np
import pytest

from keras_vjepa.monitoring import LossCurve
from keras_vjepa.monitoring.curves import draw_loss

pytestmark = pytest.mark.data


def test_a_checkpoint_writes_table_and_picture(tmp_path):
    curve = LossCurve(tmp_path)
    curve.on_checkpoint([0.5])
    curve.on_checkpoint([0.5, 0.1234567891, 0.25])
    assert (tmp_path / "loss.csv").read_text() == "step,loss\n1,0.5\n2,0.123456789\n3,0.25\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.csv", "loss.png"]


def test_the_curve_falls_where_the_loss_does(tmp_path):
    draw_loss(np.linspace(2.0, 1.0, 5000).tolist(), tmp_path / "a.png")
    picture = cv2.imread(str(tmp_path / "a.png"))
    # Only the curve is neither grey nor white.
    coloured = np.ptp(picture.astype(int), axis=2) > 60
    rows, columns = np.nonzero(coloured)
    assert np.corrcoef(rows, columns)[0, 1] > 0.99
    assert np.ptp(columns) > 0.8 * picture.shape[1] and np.ptp(rows) > 0.5 * picture.shape[0]
    draw_loss([0.5], tmp_path / "one.png")
    assert cv2.imread(str(tmp_path / "one.png")).shape == picture.shape
