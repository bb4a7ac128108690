"""How much a logit difference tells about which training example it came from (the paper's section 4)."""

import dataclasses
import itertools

from ls_keras.analysis import arguments

import numpy as np
from numpy.polynomial import chebyshev

# Neglected terms of the mixture amount to less than this share of its density.
_NEGLECTED = 1e-12
# Pairs of a point and a mean that are held in memory at a time.
_NUM_PAIRS = 1 << 18
# In a cell half a standard deviation wide, 16 Chebyshev nodes give the mixture's density to eight digits as
# long as no mean that matters is further away than 12 standard deviations; this distance to the nearest mean
# ensures that for up to a million of them.
_CELL = 0.5
_NUM_NODES = 16
_FAR = 8.0
_LARGEST = 1e150


@dataclasses.dataclass(frozen=True)
class MutualInformation:
    """Estimates of I(X; Y) in nats, X the example's index (uniform on N) and Y its logit difference.

    Attributes:
        same_draws: The paper's estimate, from the draws that the means and the variance were fitted to;
            biased upward by about ½ ln(L / (L - 1)).
        corrected: `same_draws` less that bias; nearly unbiased, except near ln N, where it is too low.
        lower_bound: From fresh draws, in expectation at most the true information, whatever the
            distribution of Y; None without fresh draws.
    """

    same_draws: float
    corrected: float
    lower_bound: float | None


def mutual_information(draws: np.ndarray, fresh: np.ndarray | None = None) -> MutualInformation:
    """Estimate the information between training examples and their logit difference under augmentation.

    Each example x gives L draws y_{x,l} of a logit difference, one for each augmentation of its input. With
    Y | x ~ N(mu_x, sigma²), where mu_x is the mean of the draws of x and sigma² is shared,

        I = ln N + mean_{x,s} [ -(y_{x,s} - mu_x)² / 2 sigma² - ln sum_{x'} exp(-(y_{x,s} - mu_{x'})² / 2 sigma²) ]

    It lies between 0 (the logits say nothing) and ln N (they identify the example); two tight clusters of
    equal size give ln 2, the class alone. Multiplying all logits by a number changes nothing.

    Erratum: The paper prints `+(y - mu)²` for both squares (they are negative), a sum over x in front (it is a
    mean), ln sum_x p(y|x) for ln (1/N) sum_x p(y|x), and one index x for the sums inside and outside the
    logarithm. As printed the value is meaningless (about minus a million for two clusters).

    - `same_draws`: the sum runs over the L draws themselves, and sigma² = mean_{x,l} (y_{x,l} - mu_x)², as in
      the paper. The draws are closer to their own mean than to the true one, which adds ½ ln(L / (L - 1)): 0.112
      at the paper's L = 5, so that two clusters read 0.80 instead of 0.69.
    - `corrected` = `same_draws` - ½ ln(L / (L - 1)).
    - `lower_bound`: the sum runs over S fresh draws, and sigma² = sum (y - mu_x)² / (N (L - 1)) · (1 + 1/L), the
      variance of a fresh draw about mu_x (Barber and Agakov's bound).

    The mixture is summed over the means that matter only, and interpolated where many draws crowd: the cost
    grows as N, up to a logarithm, and the result is that of the full double sum to about 1e-8.

    Args:
        draws: `[N, L]`, L at least 2 (5 in the paper, 20 or more for narrow brackets).
        fresh: `[N, S]`, other draws of the same examples in the same order; None for no lower bound.

    Returns:
        A `MutualInformation`, in nats.

    Raises:
        ValueError: Wrong shapes, L below 2, NaN or infinity, or draws that never differ within an example.

    Example: Two clusters of 300 examples, so ln 2 = 0.693.

    >>> noise = np.random.default_rng(0).normal(size=(600, 100))
    >>> centres = np.repeat([-50.0, 50.0], 300)[:, None]
    >>> estimate = mutual_information(centres + noise[:, :50], centres + noise[:, 50:])
    >>> round(estimate.same_draws, 2), round(estimate.corrected, 2), round(estimate.lower_bound, 2)
    (0.7, 0.69, 0.68)

    References: Müller, Kornblith and Hinton, 2019, "When Does Label Smoothing Help?", section 4; Barber and
    Agakov, 2003, "The IM Algorithm".
    """
    draws = arguments.real(draws, "draws").astype(float)
    if draws.ndim != 2 or draws.shape[0] < 1 or draws.shape[1] < 2:
        raise ValueError(f"Expected draws [N, L], at least 2 of each example; received shape {draws.shape}.")
    if fresh is not None:
        fresh = arguments.real(fresh, "fresh draws").astype(float)
        if fresh.ndim != 2 or len(fresh) != len(draws) or fresh.shape[1] < 1:
            raise ValueError(
                f"Expected fresh draws of the same {len(draws)} examples, [{len(draws)}, S]; received shape "
                f"{fresh.shape}."
            )
    for name, values in (("draws", draws), ("fresh draws", fresh)):
        if values is not None and not np.isfinite(values).all():
            raise ValueError(f"The {name} hold NaN or infinity: the network's logits are not finite.")
        if values is not None and np.abs(values).max() > _LARGEST:
            raise ValueError(f"The {name} go beyond {_LARGEST:g}, and their squares overflow: the network diverged.")
    num_draws = draws.shape[1]
    means = draws.mean(axis=1)
    variance = np.mean((draws - means[:, None]) ** 2)
    # What rounding leaves of equal draws is no noise.
    if variance <= (4 * np.finfo(float).eps * np.abs(draws).max()) ** 2:
        raise ValueError(
            "The draws never differ within an example, so there is no noise to measure information against. "
            "Draw augmented inputs, with another random state each time."
        )
    same_draws = _estimate(draws, means, variance)
    lower_bound = None
    if fresh is not None:
        lower_bound = _estimate(fresh, means, variance * (num_draws + 1) / (num_draws - 1))
    bias = 0.5 * np.log(num_draws / (num_draws - 1))
    return MutualInformation(same_draws, float(same_draws - bias), lower_bound)


def _estimate(draws: np.ndarray, means: np.ndarray, variance: float) -> float:
    # Shifted before division, so that a large common offset costs no digits.
    offset, deviation = np.median(means), np.sqrt(variance)
    draws, means = (draws - offset) / deviation, (means - offset) / deviation
    own = np.mean((draws - means[:, None]) ** 2) / 2
    return float(np.log(len(means)) - own - np.mean(_log_mixture(draws.ravel(), np.sort(means))))


def _log_mixture(points: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return ln sum_j exp(-(points - means_j)² / 2) for sorted means."""
    cells, cell, counts = np.unique(np.floor(points / _CELL), return_inverse=True, return_counts=True)
    centres = (cells + 0.5) * _CELL
    crowded = (counts > _NUM_NODES) & (_distance(centres, means) <= _FAR)
    values = np.empty_like(points)
    alone = ~crowded[cell]
    values[alone] = _log_sums(points[alone], means)
    together = np.flatnonzero(~alone)
    if len(together):
        row = (np.cumsum(crowded) - 1)[cell[together]]
        values[together] = _interpolated(points[together], row, centres[crowded], means)
    return values


def _interpolated(points: np.ndarray, row: np.ndarray, centres: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return `_log_mixture` at points in the cells about centres[row], from its values at Chebyshev nodes.

    About a centre c the mixture is exp(-(t - c)² / 2) times a sum of slow exponentials in t; a polynomial
    through that sum is as exact as its terms, which are all positive.
    """
    half = _CELL / 2
    nodes = chebyshev.chebpts1(_NUM_NODES)
    at_nodes = centres[:, None] + half * nodes
    log_slow = _log_sums(at_nodes.ravel(), means).reshape(at_nodes.shape) + (half * nodes) ** 2 / 2
    peak = log_slow.max(axis=1, keepdims=True)
    to_coefficients = np.linalg.inv(chebyshev.chebvander(nodes, _NUM_NODES - 1))
    coefficients = np.exp(log_slow - peak) @ to_coefficients.T
    values = np.empty_like(points)
    size = _NUM_PAIRS // _NUM_NODES
    for block in (slice(start, start + size) for start in range(0, len(points), size)):
        shift = points[block] - centres[row[block]]
        slow = np.vecdot(chebyshev.chebvander(shift / half, _NUM_NODES - 1), coefficients[row[block]])
        values[block] = np.log(slow) + peak[row[block], 0] - shift**2 / 2
    return values


def _log_sums(points: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return ln sum_j exp(-(points - means_j)² / 2), leaving out means that are too far to matter."""
    distance = _distance(points, means)
    reach = np.sqrt(distance**2 + 2 * np.log(len(means) / _NEGLECTED))
    first = np.searchsorted(means, points - reach)
    counts = np.searchsorted(means, points + reach, side="right") - first
    ends = np.cumsum(counts)
    values = np.empty_like(points)
    if len(points) == 0:
        return values
    cuts = np.unique(np.searchsorted(ends, np.arange(_NUM_PAIRS, ends[-1], _NUM_PAIRS)))
    for begin, end in itertools.pairwise([0, *cuts[cuts > 0], len(points)]):
        number = counts[begin:end]
        starts = np.cumsum(number) - number
        mean = np.arange(number.sum()) + np.repeat(first[begin:end] - starts, number)
        squares = (np.repeat(points[begin:end], number) - means[mean]) ** 2
        nearest = distance[begin:end] ** 2
        terms = np.exp((np.repeat(nearest, number) - squares) / 2)
        values[begin:end] = np.log(np.add.reduceat(terms, starts)) - nearest / 2
    return values


def _distance(points: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the distance of each point to the nearest of the sorted means."""
    above = np.searchsorted(means, points)
    left, right = means[np.maximum(above - 1, 0)], means[np.minimum(above, len(means) - 1)]
    return np.minimum(np.abs(points - left), np.abs(points - right))
