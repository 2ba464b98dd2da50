"""Is it learning or collapsing: statistics of features (§3.1).

The loss cannot tell: it falls when all features become one constant. The spread of the features
over clips and tokens, and the number of directions that they use, can.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FeatureStatistics:
    """Spread of features.

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
        The statistics; NaN if a feature is not finite.

    Raises:
        ValueError: for fewer vectors.

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
    centered = vectors - vectors.mean(axis=0)
    variances = np.linalg.eigvalsh(centered.T @ centered / len(vectors)).clip(min=0.0)
    share = variances / max(variances.sum(), np.finfo("float64").tiny)
    share = share[share > 0]
    entropy = -float(np.sum(share * np.log(share)))
    return FeatureStatistics(float(centered.std(axis=0).mean()), float(np.exp(entropy)))
