"""Measure by statistics of features whether a model learns or collapses (§3.1).

The loss does not show it, because it also falls when all features become one constant. The spread
of features over clips and tokens shows it, and so does the number of directions that they use.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_vjepa.monitoring.spectra import covariance_rank, is_constant, rows_of


@dataclass(frozen=True)
class FeatureStatistics:
    """Holds measures of the spread of features.

    Attributes:
        std: standard deviation of a channel, averaged over channels; 0 is complete collapse.
        effective_rank: exp of the entropy of the normalised eigenvalues of the covariance, between
            1 (one direction) and the width (all alike).
    """

    std: float
    effective_rank: float


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Measure the spread of features over all axes but the last.

    Args:
        features: `(..., dim)`, with at least two vectors.

    Returns:
        The statistics; both are NaN if a feature is not finite.

    Raises:
        ValueError: for fewer than two vectors.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.monitoring.statistics import feature_statistics
    >>> two_directions = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    >>> round(feature_statistics(two_directions).effective_rank, 2)
    2.0
    """
    vectors = np.asarray(features, dtype="float64").reshape(-1, features.shape[-1])
    if len(vectors) < 2:
        raise ValueError(f"`features` must hold at least 2 vectors. Received: {len(vectors)}")
    if not np.isfinite(vectors).all():
        return FeatureStatistics(np.nan, np.nan)
    rank = 1.0 if is_constant(vectors) else covariance_rank(vectors)
    return FeatureStatistics(channel_deviation(vectors), rank)


def channel_deviation(features: ArrayLike) -> float:
    """Measure how far samples lie apart: the deviation of each channel, averaged over channels.

    Args:
        features: `(samples, dim)`.

    Returns:
        0 at complete collapse; NaN if a feature is not finite.

    Raises:
        ValueError: unless there are two axes and at least two samples.
    """
    return float(rows_of(features).std(axis=0).mean())


def normalized_deviation(features: ArrayLike) -> float:
    """Measure how far the directions of features lie apart, whatever the features' length.

    Args:
        features: `(samples, dim)`.

    Returns:
        About 1 if directions are spread evenly; 0 at complete collapse, also if all are zero.

    Raises:
        ValueError: unless there are two axes and at least two samples.
    """
    rows = unit_length(rows_of(features))
    return channel_deviation(rows) * float(np.sqrt(rows.shape[1]))


def mean_cosine(features: ArrayLike) -> float:
    """Measure how alike samples are, by the mean cosine between two different samples.

    Args:
        features: `(samples, dim)`.

    Returns:
        1 if all have the same direction, about 0 if they have nothing in common; NaN if a feature
        is not finite, or a sample is all zero.

    Raises:
        ValueError: unless there are two axes and at least two samples.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.monitoring.statistics import mean_cosine
    >>> mean_cosine(np.array([[1.0, 0.0], [0.0, 2.0]]))
    0.0
    """
    rows = rows_of(features)
    if not np.isfinite(rows).all() or not rows.any(axis=1).all():
        return np.nan
    rows = unit_length(rows)
    return float((np.square(rows.sum(axis=0)).sum() - len(rows)) / (len(rows) * (len(rows) - 1)))


def same_video_retrieval(features: ArrayLike, videos: ArrayLike) -> float:
    """Count how often the nearest of the other clips, by the cosine, shows the same video.

    The mean of all clips is subtracted first, as `evaluation.nearest_neighbors` does.

    Args:
        features: `(clips, dim)`.
        videos: `(clips,)`, the video of each clip; two or more clips of each video.

    Returns:
        The share of clips; NaN for a constant, for which all clips are equally near, and if a
        feature is not finite.

    Raises:
        ValueError: for other axes, or a video with a single clip.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.monitoring.statistics import same_video_retrieval
    >>> clips = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> same_video_retrieval(clips, [0, 0, 1, 1])
    1.0
    """
    rows, names = rows_of(features), np.asarray(videos)
    if names.shape != rows.shape[:1] or np.unique(names, return_counts=True)[1].min() < 2:
        raise ValueError(
            "`videos` must be (clips,), with at least 2 clips of each. Received: "
            f"{names.tolist()[:20]} for {len(rows)} clips"
        )
    if not np.isfinite(rows).all() or is_constant(rows):
        return np.nan
    rows = unit_length(rows - rows.mean(axis=0))
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    return float((names[similarity.argmax(axis=1)] == names).mean())


def unit_length(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide each row by its length; zeros stay zeros.

    Args:
        rows: `(samples, dim)`.
    """
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo("float64").tiny)
