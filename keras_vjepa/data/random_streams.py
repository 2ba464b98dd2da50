"""Random numbers as a function of a seed and a key, whatever is drawn beside them (App. C)."""

import numpy as np


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for each key, independent of all others of this seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
