"""A run shows its first step, which tells how long all of them take, and then every so many."""

import pytest

from keras_vjepa.training.loss_log import LossLog

pytestmark = pytest.mark.data


@pytest.mark.parametrize(("done", "expected"), [(0, [1, 20, 40, 50]), (25, [26, 40, 50])])
def test_the_steps_that_are_shown(done, expected, capsys):
    log = LossLog(50, every=20, losses=[1.0] * done)
    for batch in range(50 - done):
        log.on_train_batch_end(batch, {"step_loss": 1.0, "finite": 1.0})
    shown = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert [int(line.split("step ")[1].split("/")[0]) for line in shown] == expected
