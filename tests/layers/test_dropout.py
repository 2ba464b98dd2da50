"""Channels that are left out: their share, their scale, and what several replicas draw."""

from types import SimpleNamespace

import keras
import numpy as np
from keras import ops

from keras_vjepa.backend import collectives
from keras_vjepa.layers.dropout import drop_channels


def dropped(shape, rate=0.25):
    seed = keras.random.SeedGenerator(7)
    return ops.convert_to_numpy(drop_channels(ops.ones(shape), rate, seed))


def test_a_share_is_left_out_and_the_rest_scaled_up():
    found = dropped((50, 2, 40))
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.75], rtol=1e-6)
    assert abs((found == 0).mean() - 0.25) < 0.03
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_array_equal(dropped((3, 4), rate=0.0), np.ones((3, 4)))


def test_replicas_draw_what_one_alone_does(monkeypatch):
    alone, parts = dropped((6, 8)), []
    for rank in (0, 1):
        world = SimpleNamespace(get_world_size=lambda: 2, get_rank=lambda rank=rank: rank)
        monkeypatch.setattr(collectives, "joined_torch_processes", lambda world=world: world)
        parts.append(dropped((3, 8)))
    np.testing.assert_array_equal(np.concatenate(parts), alone)
