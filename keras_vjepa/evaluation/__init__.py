"""Evaluate encoders by frozen features, probes on them, and their scores (§4.3, App. D.1)."""

from keras_vjepa.evaluation.comparison import (
    ComparedEncoder,
    EncoderComparison,
    LabelledClips,
    comparison_table,
    read_labelled_clips,
)
from keras_vjepa.evaluation.detection import DetectionScores, mean_average_precision
from keras_vjepa.evaluation.evaluator import Evaluator
from keras_vjepa.evaluation.feature_cache import cached_features
from keras_vjepa.evaluation.features import FeatureExtractor, features_in_memory
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.metrics import accuracies, confusion_matrix, top_k
from keras_vjepa.evaluation.readouts import nearest_neighbors, ridge_classifier
from keras_vjepa.evaluation.report import draw_confusion, mean_and_deviation, summary
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.evaluation.splits import Split, make_split
from keras_vjepa.evaluation.sweep import ProbeSweep
from keras_vjepa.evaluation.sweep_optimizer import SweepAdamW

__all__ = [
    "ComparedEncoder",
    "DetectionScores",
    "EncoderComparison",
    "Evaluator",
    "FeatureExtractor",
    "FrozenProbe",
    "LabelledClips",
    "ProbeSettings",
    "ProbeSweep",
    "Split",
    "SweepAdamW",
    "accuracies",
    "cached_features",
    "comparison_table",
    "confusion_matrix",
    "draw_confusion",
    "features_in_memory",
    "make_split",
    "mean_and_deviation",
    "mean_average_precision",
    "nearest_neighbors",
    "read_labelled_clips",
    "ridge_classifier",
    "summary",
    "top_k",
]
