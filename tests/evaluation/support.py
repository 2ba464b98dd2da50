"""Settings and comparisons shared by the tests of evaluations."""

from typing import Any

import numpy as np

from keras_vjepa.configuration import replace
from keras_vjepa.evaluation.settings import ProbeSettings

# Settings for the fixtures `digit_videos` and `small_encoder`.
SMALL = {
    "tasks": ("digit", "motion"),
    "num_classes": (10, 10),
    "image_size": 32,
    "num_frames": 4,
    "temporal_stride": 4,
    "short_side": 32,
    "batch_size": 8,
    "epochs": 1,
    "learning_rates": (3e-3,),
    "feature_batch_size": 8,
    "readouts": True,
}


def small(**changes: Any) -> ProbeSettings:
    return replace(ProbeSettings(), **{**SMALL, **changes})


def weights_of(sweep: Any) -> list[np.ndarray]:
    return [array for network in sweep.probes for array in network.get_weights()]


def assert_close(left: Any, right: Any, tolerance: float) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def everything(features: Any) -> np.ndarray:
    return np.concatenate([np.asarray(shard) for shard in features.shards])
