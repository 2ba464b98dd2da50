"""Measure how many directions features use, by four formulas from papers on collapse (§3.1).

Rows are samples, and all of them must be given at once. A rank is at most the number of rows, so
take many more rows than channels, or say how many there were.

None of the four should be read alone. For a constant, which is complete collapse, RankMe is 1,
LiDAR has its best value, and the other two do not exist. Read them together with
`channel_deviation`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

# RankMe adds its epsilon to shares, as meant for float32. LiDAR adds the other two to eigenvalues
# and to the variance within samples.
RANK_ME_EPSILON = 1e-7
LIDAR_EPSILON, LIDAR_VARIANCE = 1e-8, 1e-4
# The ranks that alpha-ReQ is fitted on, counted from 1.
FIRST_RANK, LAST_RANK = 11, 100


def rank_me(features: ArrayLike, epsilon: float = RANK_ME_EPSILON) -> float:
    """Count the directions of features, including that of their mean: RankMe.

    RankMe is exp of the entropy of the singular values divided by their sum (Garrido et al., 2022,
    arXiv 2210.02885). It can compare runs of one method, but not of different methods.

    Args:
        features: `(samples, dim)`.
        epsilon: added to each share.

    Returns:
        Between 1 and the smaller of both sizes; NaN if features are not finite or all zero.

    Raises:
        ValueError: unless there are two axes and at least two samples.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.monitoring.spectra import rank_me
    >>> round(rank_me(np.eye(4)), 3)
    4.0
    """
    rows = rows_of(features)
    if not np.isfinite(rows).all():
        return np.nan
    values = np.linalg.svd(rows, compute_uv=False)
    return _entropy_rank(values / values.sum() + epsilon) if values.sum() > 0 else np.nan


def covariance_spectrum(features: ArrayLike) -> NDArray[np.float64]:
    """Compute the eigenvalues of the covariance of features, the largest first.

    Args:
        features: `(samples, dim)`.

    Returns:
        `(dim,)`, none below 0. They are all 0 if features differ by no more than rounding, and all
        NaN if a feature is not finite.

    Raises:
        ValueError: unless there are two axes and at least two samples.
    """
    rows = rows_of(features)
    if not np.isfinite(rows).all():
        return np.full(rows.shape[1], np.nan)
    if is_constant(rows):
        return np.zeros(rows.shape[1])
    centered = rows - rows.mean(axis=0)
    return np.linalg.eigvalsh(centered.T @ centered / len(rows)).clip(min=0.0)[::-1]


def covariance_rank(features: ArrayLike) -> float:
    """Count the directions in which features differ: exp of the entropy of the covariance.

    Some call this RankMe, but it differs: features are centred, and the shares are shares of
    variances rather than of deviations, so that it is smaller whenever a spectrum falls.

    Args:
        features: `(samples, dim)`.

    Returns:
        Between 1 and the smaller of both sizes; NaN for a constant, which has no direction, and if
        a feature is not finite.

    Raises:
        ValueError: unless there are two axes and at least two samples.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.monitoring.spectra import covariance_rank
    >>> round(covariance_rank(np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])), 3)
    2.0
    """
    spectrum = covariance_spectrum(features)
    return _entropy_rank(spectrum / spectrum.sum()) if spectrum.sum() > 0 else np.nan


def lidar(
    features: ArrayLike, variance: float = LIDAR_VARIANCE, epsilon: float = LIDAR_EPSILON
) -> float:
    """Count the directions that tell samples apart, whatever view of each is seen: LiDAR.

    LiDAR is exp of the entropy of the eigenvalues of linear discriminant analysis, where each
    sample is a class (Thilak et al., 2023, arXiv 2312.04000). The views of a video are clips, crops
    or masks of it.

    Args:
        features: `(samples, views, dim)`, at least two samples and two views.
        variance: added to the variance within samples, in each direction.
        epsilon: added to each eigenvalue.

    Returns:
        Between 1 and the smaller of `dim` and the number of samples less 1; NaN if features are not
        finite. For a constant it is `dim`, so look at `is_constant` first.

    Raises:
        ValueError: for other axes, or a single sample or view.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.monitoring.spectra import lidar
    >>> same_in_both_views = np.stack([np.eye(4)] * 2, axis=1)
    >>> round(lidar(same_in_both_views), 3)
    3.0
    """
    views = np.asarray(features, "float64")
    if views.ndim != 3 or min(views.shape[:2]) < 2:
        raise ValueError(
            "`features` must be (samples, views, dim), with at least 2 samples of 2 views. "
            f"Received shape: {views.shape}"
        )
    if not np.isfinite(views).all():
        return np.nan
    samples, count, dim = views.shape
    means = views.mean(axis=1)
    between = np.cov(means, rowvar=False, ddof=1).reshape(dim, dim)
    deviations = (views - means[:, None]).reshape(-1, dim)
    within = deviations.T @ deviations / (samples * (count - 1)) + variance * np.eye(dim)
    values, vectors = np.linalg.eigh(within)
    whitening = vectors / np.sqrt(values) @ vectors.T
    found = np.linalg.eigvalsh(whitening @ between @ whitening).clip(min=0.0) + epsilon
    return _entropy_rank(found / found.sum())


def alpha_req(features: ArrayLike) -> float:
    """Measure how fast the variances of features fall from direction to direction: alpha-ReQ.

    Args:
        features: `(samples, dim)`.

    Returns:
        The `power_law_exponent` of the spectrum of their covariance. Near 1 is good; more means few
        directions, less means noise (Agrawal et al., 2022).

    Raises:
        ValueError: unless there are two axes and at least two samples.
    """
    return power_law_exponent(covariance_spectrum(features))


def power_law_exponent(
    eigenvalues: ArrayLike, first: int = FIRST_RANK, last: int = LAST_RANK
) -> float:
    """Fit rank^-alpha to eigenvalues, with a weight of 1 / rank for each.

    Args:
        eigenvalues: the largest first.
        first: first rank that is fitted, counted from 1.
        last: last rank that is fitted; eigenvalues of 0 are left out.

    Returns:
        alpha; NaN if there are fewer than two eigenvalues to fit.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.monitoring.spectra import power_law_exponent
    >>> round(power_law_exponent(1 / np.arange(1, 200) ** 2), 3)
    2.0
    """
    values = np.asarray(eigenvalues, "float64")
    ranks = np.arange(1, len(values) + 1)
    # Eigenvalues this small are rounding errors of directions that features do not have.
    above = values > values.max(initial=0.0) * len(values) * np.finfo("float64").eps
    fitted = (ranks >= first) & (ranks <= last) & above
    if fitted.sum() < 2:
        return np.nan
    x, y, weights = np.log(ranks[fitted]), np.log(values[fitted]), 1 / ranks[fitted]
    x, y = x - np.average(x, weights=weights), y - np.average(y, weights=weights)
    return -float(np.sum(weights * x * y) / np.sum(weights * x * x))


def is_constant(rows: NDArray[np.float64]) -> bool:
    """Tell whether samples differ by no more than the rounding of float32: complete collapse.

    Args:
        rows: `(samples, dim)`.
    """
    deviation = rows.std(axis=0).max(initial=0.0)
    return bool(deviation <= 4 * np.finfo("float32").eps * np.abs(rows).max(initial=0.0))


def rows_of(features: ArrayLike) -> NDArray[np.float64]:
    """Convert features to float64 rows, one for each sample.

    Args:
        features: `(samples, dim)`.

    Raises:
        ValueError: for other axes, or fewer than two samples.
    """
    rows = np.asarray(features, "float64")
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(
            f"`features` must be (samples, dim), with at least 2 samples. Received: {rows.shape}"
        )
    return rows


def _entropy_rank(shares: NDArray[np.float64]) -> float:
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))
