"""Whether it learns (§3.1, App. C)."""

from keras_vjepa.monitoring.feature_log import FeatureLog
from keras_vjepa.monitoring.loss_curve import LossCurve, damaged_curve
from keras_vjepa.monitoring.statistics import FeatureStatistics, feature_statistics

__all__ = ["FeatureLog", "FeatureStatistics", "LossCurve", "damaged_curve", "feature_statistics"]
