"""Watch whether a model learns or collapses (§3.1, App. C)."""

from keras_vjepa.monitoring.loss_curve import LossCurve, damaged_curve
from keras_vjepa.monitoring.monitor import CollapseError, Monitor
from keras_vjepa.monitoring.spectra import (
    alpha_req,
    covariance_rank,
    lidar,
    power_law_exponent,
    rank_me,
)
from keras_vjepa.monitoring.statistics import (
    FeatureStatistics,
    channel_deviation,
    feature_statistics,
    mean_cosine,
    normalized_deviation,
    same_video_retrieval,
)
from keras_vjepa.monitoring.step_log import StepLog

__all__ = [
    "CollapseError",
    "FeatureStatistics",
    "LossCurve",
    "Monitor",
    "StepLog",
    "alpha_req",
    "channel_deviation",
    "covariance_rank",
    "damaged_curve",
    "feature_statistics",
    "lidar",
    "mean_cosine",
    "normalized_deviation",
    "power_law_exponent",
    "rank_me",
    "same_video_retrieval",
]
