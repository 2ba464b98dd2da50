"""Draw random numbers that depend on a seed and a key, and on no other draws (App. C)."""

import numpy as np


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Return a generator for a key, independent of those of all other keys of this seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
