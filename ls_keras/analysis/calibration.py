"""Do predicted probabilities mean what they say? Calibration errors and temperature scaling from logits.

Functions take logits `[N, K]` of any real dtype, or with `from_logits=False` probabilities, whose logarithms
count; rows of probabilities are refused where logits are expected. A logit of -inf is a class that is not
allowed: its probability is 0. Labels are integers `[N]` or `[N, 1]` (3.0 counts as 3), or one-hot rows
`[N, K]`. Softmax is taken in float64, a few rows at a time, so that 50,000 x 1,000 float32 logits need no
second copy. The prediction of an example is its largest logit (the first one of a tie), its confidence is that
class's probability. `temperature` divides the logits: a positive number, or one per example `[N]`, as
`cross_fitted` returns.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from ls_keras.analysis import arguments

import numpy as np
from scipy import special, stats

# A chunk of this many float64 numbers (1 MiB) stays in a core's second-level cache.
_CHUNK_SIZE = 1 << 17
# Rows of a softmax sum to 1 to 1e-3 in float32 and float16 and to 4e-3 in bfloat16; logits that are non-negative
# and sum to 1 to a hundredth in every row do so by accident only where there is next to nothing to fit.
_SUM_TOLERANCE = 1e-3
_HALF_SUM_TOLERANCE = 1e-2
# exp(-700) is the last power that is no denormal number, which would be slow; beside the largest term's 1 it is 0.
_LEAST_EXPONENT = -700.0
# Logits whose squares are no float64 have lost the differences that a temperature is fitted to.
_LARGEST_LOGIT = 1e150
# Where the NLL has no minimum, T ends so many times beyond the logits' gaps, where it has its limit to six digits.
_TEMPERATURE_RANGE = 1e6
# The smallest inverse temperature, and the inverse of the largest.
_TINY = 1e-300
# A slope that is so small a share of the margins is 0 but for rounding.
_NEGLIGIBLE = 1e-12
_TOLERANCE = 1e-9
_MAX_PASSES = 200
_WARM_START_SIZE = 4096


class TopLabel(NamedTuple):
    """The predicted class's probability, and whether it is the label, for each example.

    Attributes:
        confidence: float64 `[N]`, in [1/K, 1].
        correct: bool `[N]`.
    """

    confidence: np.ndarray
    correct: np.ndarray


class Interval(NamedTuple):
    """An interval of confidence for one network's calibration error: `low <= high`."""

    low: float
    high: float


class Contributions(NamedTuple):
    """A network's ECE with little bias, and what each example contributes to its variation.

    Attributes:
        value: Estimate of the ECE; can be a little below 0.
        examples: float64 `[N]`; their variance over N is the estimate's.
    """

    value: float
    examples: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: bin m holds the examples with confidence in ((m-1)/M, m/M].

    Attributes:
        count: int64 `[M]`, examples in each bin.
        accuracy: float64 `[M]`, share of them that are right; NaN where the bin is empty.
        confidence: float64 `[M]`, their mean confidence; NaN where the bin is empty.
    """

    count: np.ndarray
    accuracy: np.ndarray
    confidence: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """The M + 1 edges of the bins, from 0 to 1."""
        num_bins = len(self.count)
        return np.arange(num_bins + 1) / num_bins

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over examples of |accuracy - confidence| of their bin."""
        gap = np.abs(self.accuracy - self.confidence)
        return float(np.sum(self.count * gap, where=self.count > 0) / self.count.sum())

    @property
    def slope(self) -> float:
        """Slope of accuracy on confidence, by least squares over the bins weighted by their counts.

        1 for a calibrated network, below 1 where confidence rises faster than accuracy. NaN unless two bins
        are filled.
        """
        filled = self.count > 0
        if filled.sum() < 2:
            return float("nan")
        weight, accuracy, confidence = self.count[filled], self.accuracy[filled], self.confidence[filled]
        centred = confidence - np.average(confidence, weights=weight)
        return float(np.sum(weight * centred * accuracy) / np.sum(weight * centred**2))


@dataclasses.dataclass(frozen=True)
class TemperatureFit:
    """The temperature with the smallest negative log-likelihood (NLL) on the examples it was fitted to.

    Attributes:
        temperature: Positive and finite.
        nll_before: Mean NLL at temperature 1, nats.
        nll_after: Mean NLL at `temperature`, nats; never above `nll_before`.
        converged: Whether the minimum was found (True as well where there is none, see `boundary`).
        boundary: None; `"lower"` where the NLL falls for ever as T goes to 0 (every label has the largest logit
            of its row); `"upper"` where it falls for ever as T goes to infinity (logits no better than chance).
            Such a temperature is no estimate but an end at which the NLL has come within 1e-6 nats of its limit:
            a millionth of the smallest gap between a row's largest logits, or a million times the mean margin by
            which labels' logits fall short of the largest; and never on the far side of T = 1.
    """

    temperature: float
    nll_before: float
    nll_after: float
    converged: bool
    boundary: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class CrossFitted:
    """Two temperatures, each fitted on one half of the examples and meant for the other.

    Attributes:
        fits: The fits on half 0 and on half 1.
        half: int `[N]`, the half that each example belongs to.
        temperature: float64 `[N]`, for each example the temperature fitted on the half without it.
    """

    fits: tuple[TemperatureFit, TemperatureFit]
    half: np.ndarray
    temperature: np.ndarray


def top_label(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    temperature: float | np.ndarray = 1.0,
    from_logits: bool = True,
) -> TopLabel:
    """Return the confidence of each prediction and whether it is right.

    The confidence is `1 / sum_k exp((z_k - max z) / T)` in float64.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        temperature: Positive number, or `[N]` of them.
        from_logits: False where `logits` are probabilities.

    Returns:
        `TopLabel(confidence [N], correct [N])`.

    Raises:
        ValueError: Logits that are not a non-empty `[N, K]` of real numbers, that hold NaN, +inf or a row of -inf
            alone, or that are probabilities (with `from_logits=False`: that are none); labels that do not fit
            them; or a temperature that is not positive and finite.

    Example:

    >>> top_label(np.log([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0]))
    TopLabel(confidence=array([0.75, 0.75]), correct=array([ True, False]))
    """
    examples = _checked(logits, labels, from_logits)
    inverse = _inverse(temperature, len(examples.labels))
    confidence, correct = np.empty(len(inverse)), np.empty(len(inverse), bool)
    for rows, shifted in examples.chunks():
        correct[rows] = shifted.argmax(axis=1) == examples.labels[rows]
        _scale(shifted, inverse[rows, None])
        confidence[rows] = 1.0 / np.exp(shifted, out=shifted).sum(axis=1)
    return TopLabel(confidence, correct)


def accuracy(logits: np.ndarray, labels: np.ndarray, *, from_logits: bool = True) -> float:
    """Return the share of examples whose largest logit is that of the label.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        from_logits: False where `logits` are probabilities.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As `top_label`.

    Example:

    >>> accuracy(np.array([[2.0, 1.0], [2.0, 1.0]]), np.array([0, 1]))
    0.5
    """
    examples = _checked(logits, labels, from_logits)
    return float(np.mean(examples.logits.argmax(axis=1) == examples.labels))


def negative_log_likelihood(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    temperature: float | np.ndarray = 1.0,
    from_logits: bool = True,
) -> float:
    """Return the mean over examples of `logsumexp(z / T) - z_label / T`, in nats.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        temperature: Positive number, or `[N]` of them.
        from_logits: False where `logits` are probabilities.

    Returns:
        The mean negative log-likelihood of the labels (never smoothed); infinity where a label's probability is 0.

    Raises:
        ValueError: As `top_label`.

    Example:

    >>> negative_log_likelihood(np.zeros((3, 4)), np.array([0, 1, 3]))  # ln 4
    1.3862943611198906
    """
    examples = _checked(logits, labels, from_logits)
    inverse = _inverse(temperature, len(examples.labels))
    total = 0.0
    for rows, shifted in examples.chunks():
        _scale(shifted, inverse[rows, None])
        total -= np.take_along_axis(shifted, examples.labels[rows, None], axis=1).sum()
        total += np.log(np.exp(shifted, out=shifted).sum(axis=1)).sum()
    return float(total / len(inverse))


def reliability(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    num_bins: int = 15,
    temperature: float | np.ndarray = 1.0,
    from_logits: bool = True,
) -> Reliability:
    """Return accuracy and mean confidence in bins of equal width, as drawn in a reliability diagram.

    Bin m of M holds confidences in ((m-1)/M, m/M], so confidence 1 falls into the last one. The arrays
    always have `num_bins` entries.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        num_bins: M; 15 as in Guo et al., 2017.
        temperature: Positive number, or `[N]` of them.
        from_logits: False where `logits` are probabilities.

    Returns:
        A `Reliability` with `count`, `accuracy`, `confidence`, and the properties `ece`, `slope`, `edges`.

    Raises:
        ValueError: As `top_label`, and for `num_bins` below 1.

    Example: Two examples at confidence 3/4, one of them right.

    >>> diagram = reliability(np.log([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0]), num_bins=4)
    >>> diagram.count, diagram.accuracy.round(6), diagram.confidence.round(6)
    (array([0, 0, 2, 0]), array([nan, nan, 0.5, nan]), array([ nan,  nan, 0.75,  nan]))

    Reference: Guo et al., 2017, "On Calibration of Modern Neural Networks".
    """
    top = top_label(logits, labels, temperature=temperature, from_logits=from_logits)
    return top_label_reliability(*top, num_bins=num_bins)


def top_label_reliability(confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = 15) -> Reliability:
    """Return the diagram of `reliability` from top labels, as records of a study keep them.

    Args:
        confidence: `[N]` in [0, 1], of the predicted classes, as `top_label` returns them.
        correct: `[N]`, whether each prediction is right: bool, or 0 and 1.
        num_bins: M; 15 as in Guo et al., 2017.

    Returns:
        A `Reliability`.

    Raises:
        ValueError: Arrays that are not what is said above, or `num_bins` below 1.

    Example:

    >>> top_label_reliability(np.array([0.75, 0.75]), np.array([True, False]), num_bins=4).accuracy
    array([nan, nan, 0.5, nan])
    """
    num_bins = arguments.whole(num_bins, "num_bins", 1)
    confidence, correct = _checked_top_labels(confidence, correct)
    count, right, total = _bin_sums(_equal_width_bins(confidence, num_bins), confidence, correct, num_bins)
    empty = np.where(count > 0, 1.0, np.nan)
    divisor = np.maximum(count, 1) * empty
    return Reliability(count, right / divisor, total / divisor)


def expected_calibration_error(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    num_bins: int = 15,
    temperature: float | np.ndarray = 1.0,
    from_logits: bool = True,
) -> float:
    """Return the expected calibration error, ECE = sum_m (n_m / N) |accuracy_m - confidence_m|.

    The bins are those of `reliability`. This plug-in value is biased upward: even of a calibrated network,
    accuracies scatter about confidences, and absolute values do not cancel. See
    `debiased_calibration_error`, and `calibration_interval` for how far to trust it.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        num_bins: M; 15 as in Guo et al., 2017.
        temperature: Positive number, or `[N]` of them.
        from_logits: False where `logits` are probabilities.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As `top_label`, and for `num_bins` below 1.

    Example:

    >>> round(expected_calibration_error(np.log([[0.75, 0.25], [0.25, 0.75]]), np.array([0, 0])), 6)
    0.25

    Reference: Guo et al., 2017, "On Calibration of Modern Neural Networks".
    """
    return reliability(logits, labels, num_bins=num_bins, temperature=temperature, from_logits=from_logits).ece


def adaptive_calibration_error(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    num_bins: int = 15,
    temperature: float | np.ndarray = 1.0,
    from_logits: bool = True,
) -> float:
    """Return the calibration error of the top label over bins of equal mass instead of equal width.

    Confidences are sorted and cut into `num_bins` runs whose sizes differ by one at most; equal confidences
    share a bin, so the order of the examples does not matter. Then as in `expected_calibration_error`.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        num_bins: Number of bins.
        temperature: Positive number, or `[N]` of them.
        from_logits: False where `logits` are probabilities.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As `top_label`, and for `num_bins` below 1.

    Example: Two bins, {1/2} and {1}, both examples right.

    >>> adaptive_calibration_error(np.array([[0.0, 0.0], [99.0, 0.0]]), np.array([0, 0]), num_bins=2)
    0.25

    Reference: Nguyen and O'Connor, 2015, "Posterior calibration and exploratory analysis for natural
    language processing models".
    """
    num_bins = arguments.whole(num_bins, "num_bins", 1)
    confidence, correct = top_label(logits, labels, temperature=temperature, from_logits=from_logits)
    bins = _equal_mass_bins(confidence, num_bins)
    _, right, total = _bin_sums(bins, confidence, correct, num_bins)
    return float(np.abs(right - total).sum() / len(confidence))


def debiased_calibration_error(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    num_bins: int = 15,
    temperature: float | np.ndarray = 1.0,
    from_logits: bool = True,
) -> float:
    """Return the debiased root-mean-square calibration error of the top label.

    The square of the L2 calibration error, less what chance alone would put there, over bins of equal mass:

        CE^2 = sum_m (n_m / N) [(confidence_m - accuracy_m)^2 - accuracy_m (1 - accuracy_m) / (n_m - 1)]

    and the root of it, or 0 where it is negative. Bins of fewer than two examples count as 0. This is
    another quantity than ECE, which averages absolute values: compare it with itself only.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        num_bins: Number of bins.
        temperature: Positive number, or `[N]` of them.
        from_logits: False where `logits` are probabilities.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As `top_label`, and for `num_bins` below 1.

    Example: Four examples at confidence 1, one wrong: 1/16 - (3/16) / 3 = 0.

    >>> debiased_calibration_error(np.tile([99.0, 0.0], (4, 1)), np.array([0, 0, 0, 1]), num_bins=1)
    0.0

    Reference: Kumar, Liang and Ma, 2019, "Verified Uncertainty Calibration".
    """
    num_bins = arguments.whole(num_bins, "num_bins", 1)
    confidence, correct = top_label(logits, labels, temperature=temperature, from_logits=from_logits)
    bins = _equal_mass_bins(confidence, num_bins)
    count, right, total = _bin_sums(bins, confidence, correct, num_bins)
    count, right, total = (array[count > 1] for array in (count, right, total))
    share = right / count
    squares = (total / count - share) ** 2 - share * (1 - share) / (count - 1)
    return float(np.sqrt(max(np.sum(count * squares) / len(confidence), 0.0)))


def calibration_interval(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    num_bins: int = 15,
    temperature: float | np.ndarray = 1.0,
    level: float = 0.95,
    norm: Literal["l1", "l2"] = "l1",
    from_logits: bool = True,
) -> Interval:
    """Return a confidence interval for the calibration error of one network over fresh examples.

    That of `top_label_interval`, which says how it is made and how often it holds the truth.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        num_bins: M, of `reliability`.
        temperature: Positive number, or `[N]` of them; the interval does not know that it was fitted.
        level: Confidence level in (0, 1).
        norm: `"l1"` for the ECE, `"l2"` for the root-mean-square error.
        from_logits: False where `logits` are probabilities.

    Returns:
        `Interval(low, high)`, within [0, 1].

    Raises:
        ValueError: As `top_label`, and for `num_bins`, `level` or `norm` out of range.

    Example: 100 examples at confidence 3/4, of which 60 are right.

    >>> logits = np.log(np.tile([0.75, 0.25], (100, 1)))
    >>> low, high = calibration_interval(logits, np.repeat([0, 1], [60, 40]))
    >>> low < 0.15 < high
    True
    """
    top = top_label(logits, labels, temperature=temperature, from_logits=from_logits)
    return top_label_interval(*top, num_bins=num_bins, level=level, norm=norm)


# Its former name, under which it was made by resampling and covered 73 to 99 % at a level of 95 %.
bootstrap_interval = calibration_interval


def top_label_interval(
    confidence: np.ndarray,
    correct: np.ndarray,
    *,
    num_bins: int = 15,
    level: float = 0.95,
    norm: Literal["l1", "l2"] = "l1",
) -> Interval:
    """Return a confidence interval for the binned calibration error of one network, from its top labels.

    Bin m has the true gap γ_m = P(bin m) (accuracy_m - confidence_m), the measured one g_m, and the latter's standard
    error s_m, with variances by Agresti and Coull's rule, so that bins without mistakes have one too.

    - `"l1"`, the ECE Σ|γ_m|: measured absolute values are too large where γ is near 0, by an amount that depends on γ
      and cannot be estimated away. The centre is Σ|g_m| 1(|g_m| > s_m) - 0.19 Σ s_m. Whatever γ is, its standard
      deviation is at most σ = 1.11 √(Σ s_m²), and where it is so large its bias is about B = 0.265 Σ s_m up or down;
      the half width is the `level` quantile of |N(B, σ²)|. An ECE is no less than the overall gap between accuracy
      and confidence, so the upper end is no lower than that of Clopper and Pearson's interval for the latter: it
      matters where a network makes a handful of mistakes.
    - `"l2"`, the root-mean-square error √(Σ γ_m² / P(bin m)): all values that a test by the debiased square accepts,
      whose variance depends on the value tested.

    `python benchmarks/intervals.py` measured how often they hold the true value at level 0.95, over networks that are
    calibrated, off by .05 throughout, by .2 in one bin, by .1 in the last and by .04 up and down in turn, at N = 600,
    2,000 and 10,000 and 10 and 15 bins: ECE in 96 to
    100 % of the cases (mean 98.8 %), root-mean-square error in 94.5 to 100 % (mean 97.8 %).

    Args:
        confidence: `[N]` in [0, 1], of the predicted classes, as `top_label` returns them.
        correct: `[N]`, whether each prediction is right: bool, or 0 and 1.
        num_bins: M, of `reliability`.
        level: Confidence level in (0, 1).
        norm: `"l1"` for the ECE, `"l2"` for the root-mean-square error.

    Returns:
        `Interval(low, high)`, within [0, 1].

    Raises:
        ValueError: Arrays that are not what is said above, or `num_bins`, `level` or `norm` out of range.

    Example: One bin that is off by 0.15, with variance v = a (1 - a) / 100 and a = 62/104. The ends θ of the second
    satisfy 0.15² - v - θ² = ± 1.96 √(2 v² + 4 v θ²).

    >>> confidence, correct = np.full(100, 0.75), np.arange(100) < 60
    >>> [round(end, 4) for end in top_label_interval(confidence, correct)]
    [0.031, 0.2528]
    >>> [round(end, 4) for end in top_label_interval(confidence, correct, norm="l2")]
    [0.0705, 0.2687]

    References: Armstrong and Kolesár, 2020, "Simple and Honest Confidence Intervals in Nonparametric Regression";
    Agresti and Coull, 1998, "Approximate Is Better than 'Exact' for Interval Estimation of Binomial Proportions".
    """
    num_bins, level = arguments.whole(num_bins, "num_bins", 1), arguments.level(level)
    if norm not in ("l1", "l2"):
        raise ValueError(f"Expected norm to be 'l1' (ECE) or 'l2' (root-mean-square error); received {norm!r}.")
    confidence, correct = _checked_top_labels(confidence, correct)
    count, right, total = _bin_sums(_equal_width_bins(confidence, num_bins), confidence, correct, num_bins)
    count, right, total = (array[count > 0] for array in (count, right, total))
    num_examples = len(confidence)
    gap, mass, share = (right - total) / num_examples, count / num_examples, (right + 2) / (count + 4)
    variance = mass * share * (1 - share) / num_examples + (1 - mass) * gap**2 / count
    if norm == "l1":
        low, high = _absolute_ends(gap, variance, level)
        high = max(high, _largest_overall_gap(confidence.mean(), right.sum(), num_examples, level))
    else:
        low, high = _mean_square_ends(gap, variance, mass, level)
    return Interval(float(max(low, 0.0)), float(min(high, 1.0)))


def calibration_contributions(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    num_bins: int = 15,
    temperature: float | np.ndarray = 1.0,
    from_logits: bool = True,
) -> Contributions:
    """Return a network's ECE with little bias, and the contributions that tell how far to trust a difference of two.

    As `top_label_contributions`, from logits.

    Args:
        logits: `[N, K]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        num_bins: M, of `reliability`.
        temperature: Positive number, or `[N]` of them.
        from_logits: False where `logits` are probabilities.

    Returns:
        `Contributions(value, examples [N])`.

    Raises:
        ValueError: As `top_label`, and for `num_bins` below 1.

    Example: The difference in ECE of two methods, of which each seed gave the logits `a[i]` and `b[i]`.

    >>> first, second = ([calibration_contributions(logits, labels) for logits in method] for method in (a, b))
    >>> interval = intervals.crossed(
    ...     np.array([x.examples - y.examples for x, y in zip(first, second)]),
    ...     values=[x.value - y.value for x, y in zip(first, second)],
    ... )
    """
    top = top_label(logits, labels, temperature=temperature, from_logits=from_logits)
    return top_label_contributions(*top, num_bins=num_bins)


def top_label_contributions(confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = 15) -> Contributions:
    """Return a network's ECE with little bias, and what each example contributes to its variation.

    With g_m the measured gap of bin m, Σ (correct - confidence) / N over its examples, and s_m its standard error,

        value = Σ_m |g_m| 1(|g_m| > s_m) - 0.18 Σ_m s_m 1(|g_m| < 2 s_m)
        contribution = sign(g_m) (2 - erf(|g_m| / (s_m √2))) (correct - confidence), m the example's bin

    The plug-in ECE Σ|g_m| of a sharp network has another bias than that of a blunt one, so that it tells two calibrated
    networks apart where there is nothing to tell. The value's bias is between -0.28 s_m and 0.32 s_m in each bin, and
    none where the gap is large. Pass differences of contributions and of values to `intervals.crossed`.

    `python benchmarks/intervals.py` measured that they hold the true difference in 91 to 100 % of the cases at level
    0.95, and 0 in 93 to 100 % where there is none. The weakest are ten seeds of networks that are off by as much, one
    sharp and one blunt, with 10,000 examples: one of the two is called worse in 6 % instead of 2.5 %.

    Args:
        confidence: `[N]` in [0, 1], of the predicted classes, as `top_label` returns them.
        correct: `[N]`, whether each prediction is right: bool, or 0 and 1.
        num_bins: M, of `reliability`.

    Returns:
        `Contributions(value, examples [N])`.

    Raises:
        ValueError: Arrays that are not what is said above, or `num_bins` below 1.

    Example: One bin, g = -0.5 and s = 0.5 / √100, so that |g| lies far above s.

    >>> value, examples = top_label_contributions(np.ones(100), np.arange(100) < 50)
    >>> value, np.unique(examples)
    (0.5, array([-0.,  1.]))
    """
    num_bins = arguments.whole(num_bins, "num_bins", 1)
    confidence, correct = _checked_top_labels(confidence, correct)
    bins, gap = _equal_width_bins(confidence, num_bins), correct - confidence
    mean, square = (np.bincount(bins, weights=part, minlength=num_bins) / len(gap) for part in (gap, gap**2))
    error = np.sqrt(np.maximum(square - mean**2, 0.0) / len(gap))
    size = np.abs(mean)
    # A bin whose examples are all alike has no error: its gap counts once where there is one.
    ratio = np.divide(size, error, out=np.full(num_bins, np.inf), where=error > 0)
    weight = np.sign(mean) * (2 - special.erf(ratio / np.sqrt(2)))
    value = size[size > error].sum() - 0.18 * error[size < 2 * error].sum()
    return Contributions(float(value), weight[bins] * gap)


def fit_temperature(logits: np.ndarray, labels: np.ndarray, *, from_logits: bool = True) -> TemperatureFit:
    """Find the temperature that minimises the negative log-likelihood of the labels.

    In the inverse temperature b = 1/T the mean NLL is convex, with slope `mean(E_p[z] - z_label)` and
    curvature `mean(Var_p[z])` under p = softmax(b z). Its minimum is found by Newton's method inside a
    bracket, to nine digits: a start from 4,096 examples, then a few passes over all. Nothing is assumed about the
    logits' scale: a class masked by -1e9 or -inf changes nothing, one row of huge logits changes what it must, and
    multiplying all logits by c multiplies T by c. Logits that are equal within each example keep T = 1: no
    temperature matters.

    Score the temperature on other examples than these: see `cross_fitted`.

    Args:
        logits: `[N, K]`, before any softmax.
        labels: Integers `[N]` in [0, K), or one-hot.
        from_logits: False where `logits` are probabilities.

    Returns:
        A `TemperatureFit`; look at `boundary` before using the temperature of a small set.

    Raises:
        ValueError: As `top_label`; a label whose probability is 0 at every temperature; or logits beyond 1e150,
            whose squares overflow.

    Example: Logits of odds 9 to 1 that are right in 3 of 4 cases want odds 3 to 1, so T = ln 9 / ln 3.

    >>> fit = fit_temperature(np.tile([np.log(9.0), 0.0], (4, 1)), np.array([0, 0, 0, 1]))
    >>> round(fit.temperature, 6), round(fit.nll_after, 6)  # the entropy of 3/4, 1/4
    (2.0, 0.562335)

    Reference: Guo et al., 2017, "On Calibration of Modern Neural Networks".
    """
    examples = _checked(logits, labels, from_logits)
    _check_range(examples)
    return _fit(examples, np.arange(len(examples.labels)))


def cross_fitted(logits: np.ndarray, labels: np.ndarray, *, seed: int = 0, from_logits: bool = True) -> CrossFitted:
    """Fit a temperature on each half of the examples, for scoring the other half.

    So every example is scored by a temperature that has not seen it: pass the result's `temperature` to any
    function of this module, with all logits and labels.

    Args:
        logits: `[N, K]`, before any softmax, N at least 2.
        labels: Integers `[N]` in [0, K), or one-hot.
        seed: Of the shuffle that halves the examples; half 0 has the odd one.
        from_logits: False where `logits` are probabilities.

    Returns:
        A `CrossFitted` with `fits`, `half` `[N]` and `temperature` `[N]`.

    Raises:
        ValueError: As `fit_temperature`, and for fewer than 2 examples or a seed that is no integer of at least 0.

    Example:

    >>> halves = cross_fitted(logits, labels)
    >>> expected_calibration_error(logits, labels, temperature=halves.temperature)
    """
    seed, examples = arguments.whole(seed, "seed", 0), _checked(logits, labels, from_logits)
    num_examples = len(examples.labels)
    if num_examples < 2:
        raise ValueError("Two halves need at least 2 examples; received 1. Pass the whole held-out set.")
    _check_range(examples)
    half = np.ones(num_examples, int)
    half[np.random.default_rng(seed).permutation(num_examples)[: (num_examples + 1) // 2]] = 0
    fits = tuple(_fit(examples, np.flatnonzero(half == part)) for part in (0, 1))
    temperatures = np.array([fit.temperature for fit in fits])
    return CrossFitted(fits, half, temperatures[1 - half])


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
    """Logits, or probabilities, `[N, K]` and class indices `[N]` that have been checked."""

    logits: np.ndarray
    labels: np.ndarray
    from_logits: bool

    def chunks(self, rows: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield positions in `rows` and a reused float64 buffer of those rows less their largest logit."""
        num_rows, size = len(self.labels) if rows is None else len(rows), _chunk_rows(self.logits.shape[1])
        buffer = np.empty((min(size, num_rows), self.logits.shape[1]))
        for start in range(0, num_rows, size):
            at = slice(start, min(start + size, num_rows))
            chunk = self.logits[at] if rows is None else self.logits[rows[at]]
            shifted = buffer[: len(chunk)]
            shifted[:] = chunk
            largest = chunk.max(axis=1).astype(float)
            # A probability of 0 has the logarithm -inf; so has a masked logit near the least float64 less a large one.
            with np.errstate(divide="ignore", over="ignore"):
                if not self.from_logits:
                    np.log(shifted, out=shifted)
                    largest = np.log(largest)
                shifted -= largest[:, None]
            yield at, shifted


def _checked(logits: np.ndarray, labels: np.ndarray, from_logits: bool) -> _Examples:
    from_logits = arguments.flag(from_logits, "from_logits")
    logits = arguments.real(logits, "logits" if from_logits else "probabilities")
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"Expected logits of shape [examples, classes] with at least 2 classes; received {logits.shape}. "
            "Flatten leading axes; give a binary classifier's score a second column of zeros."
        )
    if len(logits) == 0:
        raise ValueError("Received no examples: logits have shape [0, classes]. Check the split and the limit.")
    labels = arguments.labels(labels, *logits.shape)
    if not from_logits:
        _check_probabilities(logits)
        return _Examples(logits, labels, from_logits)
    largest = np.concatenate([chunk.max(axis=1) for chunk in _row_chunks(logits)])  # NaN, if the row holds one
    bad = np.flatnonzero(~np.isfinite(largest))
    if len(bad):
        raise ValueError(
            f"Expected finite logits, or -inf for a masked class beside a finite one; {len(bad)} of {len(logits)} rows "
            f"hold NaN, +infinity or -infinity alone, the first is row {bad[0]}. Drop those rows, or mend the network "
            "that made them."
        )
    if arguments.are_probabilities(logits):
        raise ValueError(
            "Expected logits; received rows that are non-negative and sum to 1 (or 100), as probabilities do. Pass "
            "from_logits=False with rows that sum to 1, or the values before the softmax."
        )
    return _Examples(logits, labels, from_logits)


def _check_range(examples: _Examples) -> None:
    """Refuse what no temperature can be fitted to."""
    own = np.take_along_axis(examples.logits, examples.labels[:, None], axis=1)[:, 0].astype(float)
    impossible = np.flatnonzero(own == (-np.inf if examples.from_logits else 0.0))
    if len(impossible):
        raise ValueError(
            f"The labels of {len(impossible)} of {len(own)} examples have probability 0, at every temperature; the "
            f"first is row {impossible[0]}. Drop them, or mend the mask that excludes their classes."
        )
    # Only float64 reaches so far. A masked class may: its probability is 0 and its logit counts for nothing.
    if examples.logits.dtype.itemsize >= 8:
        largest = np.concatenate([np.abs(chunk.max(axis=1)) for chunk in _row_chunks(examples.logits)])
        if max(largest.max(), np.abs(own).max()) > _LARGEST_LOGIT:
            raise ValueError(
                f"Expected logits within {_LARGEST_LOGIT:g}, whose squares are float64 numbers; received "
                f"{max(largest.max(), np.abs(own).max()):g}. Did the network diverge?"
            )


def _check_probabilities(probabilities: np.ndarray) -> None:
    tolerance = _SUM_TOLERANCE if probabilities.dtype.itemsize > 2 else _HALF_SUM_TOLERANCE
    bad = np.flatnonzero(~np.concatenate([_sum_to_one(chunk, tolerance) for chunk in _row_chunks(probabilities)]))
    if len(bad):
        raise ValueError(
            f"Expected probabilities, as from_logits=False says: rows that are non-negative and sum to 1 within "
            f"{tolerance:g}; {len(bad)} of {len(probabilities)} rows are not, the first is row {bad[0]}. Pass logits "
            "without from_logits, or divide the rows by their sums."
        )


def _sum_to_one(chunk: np.ndarray, tolerance: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # of what is no probability
        return (chunk.min(axis=1) >= 0) & (np.abs(chunk.sum(axis=1, dtype=float) - 1) <= tolerance)


def _row_chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    size = _chunk_rows(array.shape[1])
    return (array[start : start + size] for start in range(0, len(array), size))


def _chunk_rows(num_classes: int) -> int:
    return max(_CHUNK_SIZE // num_classes, 1)


def _inverse(temperature: float | np.ndarray, num_examples: int) -> np.ndarray:
    temperature = arguments.real(temperature, "temperature").astype(float)
    if temperature.shape not in ((), (num_examples,)):
        raise ValueError(
            f"Expected one temperature, or one for each of {num_examples} examples; received shape {temperature.shape}."
        )
    if not (np.isfinite(temperature).all() and (temperature >= _TINY).all()):
        raise ValueError(f"Expected a positive, finite temperature; received {temperature}.")
    return np.broadcast_to(1.0 / temperature, num_examples)


def _scale(shifted: np.ndarray, inverse: float | np.ndarray) -> None:
    with np.errstate(over="ignore"):  # a masked logit near the least float64 becomes -inf, and means the same
        np.multiply(shifted, inverse, out=shifted)


def _checked_top_labels(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidence = arguments.real(confidence, "confidence").astype(float)
    correct = np.asarray(correct)
    if confidence.ndim != 1 or len(confidence) == 0 or correct.shape != confidence.shape:
        raise ValueError(
            "Expected the confidence [N] and correctness [N] of at least one example; received shapes "
            f"{confidence.shape} and {correct.shape}."
        )
    if not np.all((confidence >= 0) & (confidence <= 1)):
        raise ValueError(
            f"Expected confidences in [0, 1]; received {confidence.min():g} to {confidence.max():g}. Pass the "
            "probability of the predicted class, as top_label returns it."
        )
    if correct.dtype != bool and not np.all(
        (arguments.real(correct, "correct") == 0) | (arguments.real(correct, "correct") == 1)
    ):
        raise ValueError(
            f"Expected correct to hold True and False, or 1 and 0; received dtype {correct.dtype} and other values. "
            "Pass whether each prediction is the label, not the labels."
        )
    return confidence, correct.astype(bool)


def _equal_width_bins(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    return np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, side="left")


def _equal_mass_bins(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    ends = np.cumsum([len(run) for run in np.array_split(confidence, num_bins)])[:-1]
    edges = np.sort(confidence)[ends[ends > 0] - 1]
    return np.searchsorted(edges, confidence, side="left")


def _bin_sums(
    bins: np.ndarray, confidence: np.ndarray, correct: np.ndarray, num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.bincount(bins, minlength=num_bins),
        np.bincount(bins, weights=correct, minlength=num_bins),
        np.bincount(bins, weights=confidence, minlength=num_bins),
    )


def _absolute_ends(gap: np.ndarray, variance: np.ndarray, level: float) -> tuple[float, float]:
    error = np.sqrt(variance)
    centre = np.abs(gap)[np.abs(gap) > error].sum() - 0.19 * error.sum()
    deviation, bias = 1.11 * np.sqrt(variance.sum()), 0.265 * error.sum()
    half = deviation * np.sqrt(stats.ncx2.ppf(level, 1, (bias / deviation) ** 2))
    return centre - half, centre + half


def _largest_overall_gap(confidence: float, num_right: float, num_examples: int, level: float) -> float:
    tail, num_wrong = (1 - level) / 2, num_examples - num_right
    lowest = special.betaincinv(num_right, num_wrong + 1, tail) if num_right else 0.0
    highest = special.betaincinv(num_right + 1, num_wrong, 1 - tail) if num_wrong else 1.0
    return max(confidence - lowest, highest - confidence)


def _mean_square_ends(gap: np.ndarray, variance: np.ndarray, mass: np.ndarray, level: float) -> tuple[float, float]:
    """Return the ends of those θ that satisfy |T - θ²| ≤ z √(2 Σ (variance / mass)² + slope θ²).

    T is the debiased square of the error, and slope θ² what the gaps themselves add to its variance.
    """
    z = special.ndtri((1 + level) / 2)
    square = np.sum((gap**2 - variance) / mass)
    noise = 2 * np.sum((variance / mass) ** 2)
    own = np.sum(gap**2 / mass)
    slope = 4 * np.sum((gap / mass) ** 2 * variance) / own if own > 0.0 else 0.0
    middle = square + z**2 * slope / 2
    root = np.sqrt(max(middle**2 - square**2 + z**2 * noise, 0.0))
    return np.sqrt(max(middle - root, 0.0)), np.sqrt(max(middle + root, 0.0))


class _Minimum(NamedTuple):
    inverse: float
    nll: float
    converged: bool


class _Moments(NamedTuple):
    """Mean NLL at an inverse temperature b, its first and second derivative in ln b (but for b times the slope).

    The margin of an example is how far its label's logit lies below the largest; 0 if it is the largest.
    """

    nll: float
    slope: float
    curvature: float
    mean_margin: float
    largest_margin: float


def _moments(examples: _Examples, rows: np.ndarray, inverse: float) -> _Moments:
    nll = slope = curvature = total_margin = largest_margin = 0.0
    labels = examples.labels[rows]
    scratch = np.empty((min(_chunk_rows(examples.logits.shape[1]), len(rows)), examples.logits.shape[1]))
    for at, shifted in examples.chunks(rows):
        margin = -np.take_along_axis(shifted, labels[at, None], axis=1)[:, 0]
        # In units of T nothing overflows, whatever the logits' scale; and 0 probability times -inf is 0.
        _scale(shifted, inverse)
        np.maximum(shifted, _LEAST_EXPONENT, out=shifted)
        weight = np.exp(shifted, out=scratch[: len(shifted)])
        total = weight.sum(axis=1)
        mean = np.vecdot(weight, shifted) / total
        weight *= shifted
        square = np.vecdot(weight, shifted) / total
        nll += np.sum(np.log(total) + inverse * margin)
        slope += np.sum(mean + inverse * margin)
        curvature += np.sum(np.maximum(square - mean**2, 0.0))
        total_margin += margin.sum()
        largest_margin = max(largest_margin, margin.max())
    return _Moments(*(total / len(rows) for total in (nll, slope, curvature, total_margin)), largest_margin)


def _fit(examples: _Examples, rows: np.ndarray) -> TemperatureFit:
    moments = functools.cache(functools.partial(_moments, examples, rows))
    before, boundary = moments(1.0), None
    if before.largest_margin == 0.0:
        gap = _smallest_gap(examples, rows)
        boundary = "lower" if gap < np.inf else None
        best = _at(moments, max(1.0, _TEMPERATURE_RANGE / max(gap, _TINY)))
    else:
        start = _start(examples, rows)
        least = -_NEGLIGIBLE * before.mean_margin
        # Convex: if it falls at the start, it falls at 0.
        if moments(start).slope >= least * start and _uniform_slope(examples, rows) >= least:
            boundary = "upper"
            best = _at(moments, min(1.0, 1.0 / (_TEMPERATURE_RANGE * max(before.mean_margin, _TINY))))
        else:
            best = _minimise(moments, start)
    if best.nll > before.nll:  # by rounding alone
        best = best._replace(inverse=1.0, nll=before.nll)
    return TemperatureFit(float(1.0 / best.inverse), float(before.nll), float(best.nll), best.converged, boundary)


def _start(examples: _Examples, rows: np.ndarray) -> float:
    """Return an inverse temperature to start from: of many examples, a little below that of some."""
    if len(rows) < 2 * _WARM_START_SIZE:
        return 1.0
    return 0.98 / _fit(examples, rows[:: len(rows) // _WARM_START_SIZE]).temperature


def _at(moments: Callable[[float], _Moments], inverse: float) -> _Minimum:
    return _Minimum(inverse, moments(inverse).nll, True)


def _minimise(moments: Callable[[float], _Moments], start: float) -> _Minimum:
    """Minimise a convex function that falls at 0 and rises at infinity, by Newton's method.

    A step that leaves the bracket of the minimum, or is not half as long (in ln b) as the last, gives way to the
    bracket's middle, or while one side is open to a search by factors 4, 16, 256, ...
    """
    left, right, factor, last = 0.0, np.inf, 4.0, np.inf
    inverse = start
    for _ in range(_MAX_PASSES):
        now = moments(inverse)
        left, right = (inverse, right) if now.slope < 0.0 else (left, inverse)
        rounding = np.finfo(float).eps * inverse * now.mean_margin
        if abs(now.slope) <= max(_TOLERANCE * now.curvature, rounding) or right - left <= _TOLERANCE * inverse:
            return _Minimum(inverse, now.nll, True)
        change = -now.slope / now.curvature if now.curvature > _TINY * abs(now.slope) else np.inf
        new = inverse * (1.0 + change)
        if not (left < new < right and abs(np.log1p(change)) <= last / 2):
            if right == np.inf:
                new, factor = inverse * factor, min(factor**2, _LARGEST_LOGIT)
            elif left == 0.0:
                new, factor = inverse / factor, min(factor**2, _LARGEST_LOGIT)
            else:
                new = np.sqrt(left) * np.sqrt(right)
        new = min(max(new, _TINY), 1.0 / _TINY)
        inverse, last = new, abs(np.log(new / inverse))
    return _Minimum(inverse, now.nll, False)


def _uniform_slope(examples: _Examples, rows: np.ndarray) -> float:
    """Return the slope of the mean NLL in b at b = 0, where every class that is not masked is as likely."""
    slope = 0.0
    for at, shifted in examples.chunks(rows):
        slope -= np.take_along_axis(shifted, examples.labels[rows[at], None], axis=1).sum()
        with np.errstate(over="ignore"):  # of masked logits near the least float64: the sum is as good as -inf
            mean = shifted.mean(axis=1)
            for row in np.flatnonzero(np.isinf(mean)):
                mean[row] = shifted[row, np.isfinite(shifted[row])].mean()
            slope += mean.sum()
    return slope / len(rows)


def _smallest_gap(examples: _Examples, rows: np.ndarray) -> float:
    """Return the least distance of a row's largest logit to the next lower one; infinity where there is none."""
    gap = np.inf
    for _, shifted in examples.chunks(rows):
        shifted[shifted == 0.0] = -np.inf
        gap = min(gap, -shifted.max())
    return gap
