"""Confidence intervals that cover fresh seeds and fresh examples, and which of many verdicts chance would give.

A difference between two methods that is a mean over examples (accuracy, confidence, NLL, and by
`calibration.calibration_contributions` ECE) varies with the seeds that trained the networks and with the
examples that tested them. `crossed` covers both. An interval over seeds alone asks what other seeds would give
on these very examples: with no true effect on fresh examples it calls one method better in up to 31 cases of
100 where 2.5 are promised.
"""

import dataclasses
from typing import Any, NamedTuple

from ls_keras.analysis import arguments

import numpy as np
from scipy import optimize, special

# Quantiles of the normal distribution beyond this one (a tail of 1.3e-12) are not told apart.
_FARTHEST = 7.0
# The fourth power of what is larger is no float64.
_LARGEST = 1e75
_TOO_FEW_SEEDS = 3
# In standard deviations of one seed's value, how much values with little bias may still be drawn towards 0.
_SHRINKAGE = 0.5


class Variances(NamedTuple):
    """What an interval's width is made of: variances of the estimate, in squared units of the differences.

    Attributes:
        seeds: S, variance of the seeds' values over n.
        residual: R, mean square of what neither seed nor example explains, over n N.
        examples: The larger of E - R and 4 step², E the variance of the examples' means over N.
        skewness: Of the estimate, by the third moment of the examples' means; 0 unless tails are heavy.
        shrinkage: By how much the end away from 0 is moved out, in units of the differences; 0 for plain means.
    """

    seeds: float
    residual: float
    examples: float
    skewness: float
    shrinkage: float


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval, as `crossed` and `over_seeds` make it.

    Attributes:
        estimate: Mean over seeds.
        low: Lower end.
        high: Upper end.
        level: Probability in (0, 1) that such an interval holds the truth; (1 - level) / 2 is left on each side.
        num_seeds: n.
        num_examples: N; 0 for an interval over seeds alone.
        variances: Where the width comes from.
    """

    estimate: float
    low: float
    high: float
    level: float
    num_seeds: int
    num_examples: int
    variances: Variances = dataclasses.field(repr=False)

    @property
    def too_few_seeds(self) -> bool:
        """Whether there are only two seeds: the interval is valid, but 3 to 8 times as wide as one of five seeds."""
        return self.num_seeds < _TOO_FEW_SEEDS

    def tail(self, threshold: float) -> float:
        """Return the one-sided p value of "the truth lies above the threshold".

        It is the p at which the lower end of the interval of level 1 - 2p touches the threshold (the upper end,
        where p is above ½). So the interval of level 95 % lies above the threshold where p < 0.025. The p value of
        "below the threshold" is one less this. Values are kept within [1.3e-12, 1 - 1.3e-12].

        Args:
            threshold: A number, in the units of the estimate.

        Example: Mean 2, standard error 1/√3, so t = √12; with 2 degrees of freedom p = (1 - t / √(2 + t²)) / 2.

        >>> round(over_seeds([1.0, 2.0, 3.0]).tail(0.0), 6)
        0.03709
        """
        threshold = arguments.number(threshold, "threshold")

        def excess(z: float) -> float:
            return self._end(z) - threshold

        if excess(_FARTHEST) >= 0.0 or excess(-_FARTHEST) <= 0.0:
            return float(special.ndtr(-np.sign(excess(0.0)) * _FARTHEST))
        return float(special.ndtr(-optimize.brentq(excess, -_FARTHEST, _FARTHEST, xtol=1e-12)))

    def _end(self, z: float) -> float:
        return _end(self.estimate, self.variances, self.num_seeds, z)


def crossed(
    differences: np.ndarray,
    *,
    level: float = 0.95,
    values: np.ndarray | None = None,
    step: float = 0.0,
    heavy_tails: bool = False,
) -> Interval:
    """Return an interval for a mean difference over fresh seeds and fresh examples.

    From differences d `[n, N]` between two methods, paired by seed and by example, with S the variance of the seed
    means over n, E the variance of the example means over N, and R the mean square of the interaction over n N,

        half width² = max(t² S, z² R) + z² max(E - R, 4 step²)

    with t the quantile of Student's distribution of n - 1 degrees of freedom and z that of the normal one: seeds
    are few, examples are many. The second term takes the examples' own variance, without what the seeds' noise
    adds to it; its floor is the variance of four examples, for where few or none differ.

    With no true effect, n = 3, 5, 10 seeds, N = 400, 600, 10,000, and methods that differ on 0 to 5 % of the
    examples in every seed, `python benchmarks/intervals.py` measured that the interval lies above 0 in at most 2.7 % of
    the cases for accuracy and 3.0 % for confidence (2.5 % are promised; over seeds alone up to 28 and 31 %), and holds
    0 in at least 94 %.

    Where a few examples weigh heavily (NLL), the mean is skewed and normal quantiles are off. `heavy_tails` shifts
    both ends by Johnson's (1 + 2 z²) m₃ / (6 N s²), with s² the variance and m₃ the third central moment of the
    example means (to first order: an exponential in its place keeps ends of different levels in order). With
    examples of skewness -7.7 up to 3.8 % remained on the worse side, and 4.9 % without it: more than is promised.

    Args:
        differences: `[n, N]`, n at least 2 (3 to be of use: see `Interval.too_few_seeds`), N at least 2.
        level: Confidence level in (0, 1).
        values: `[n]`, each seed's difference, where it is no plain mean of its row: the bias-reduced ECE, of which
            the rows are contributions (`calibration.calibration_contributions`). Such values are drawn towards 0 in
            every seed alike, where one method's gaps are clear and the other's are noise. So where they differ from
            the rows' means, the end away from 0 is moved out by half a standard deviation of one seed's value,
            √(n R + max(E - R, 4 step²)) / 2. No difference that is there is overlooked for that.
        step: The least change of a seed's mean, 1/N for accuracy. Where all differences are whole numbers, as
            those of right and wrong answers are, it is at least 1/N whatever is passed.
        heavy_tails: For NLL.

    Returns:
        An `Interval`.

    Raises:
        ValueError: Not a finite `[n, N]` of real numbers with two seeds and two examples, values that do not fit, a
            level or step out of range, or differences that are all the same and no step.

    Example: Two seeds, four examples; S = 0, E = 1/24 and R = 1/12, so that the floor 4/16 rules.

    >>> interval = crossed(np.array([[1, 0, -1, 0], [0, 1, 0, -1]]))
    >>> round(interval.high**2 / 1.959964**2, 6), interval.too_few_seeds  # 1/12 + 4/16
    (0.333333, True)

    References: Graybill and Wang, 1980, "Confidence Intervals on Nonnegative Linear Combinations of Variances";
    Owen, 2007, "The Pigeonhole Bootstrap"; Johnson, 1978, "Modified t Tests and Confidence Intervals for
    Asymmetrical Populations".
    """
    level, heavy_tails = arguments.level(level), arguments.flag(heavy_tails, "heavy_tails")
    step = arguments.number(step, "step", "a finite number of at least 0", least=0.0)
    differences = _finite(differences, "differences")
    if differences.ndim != 2 or min(differences.shape) < 2:
        raise ValueError(
            f"Expected differences [seeds, examples], at least two of each; received shape {differences.shape}. One "
            "seed does not show how much seeds differ: train more."
        )
    num_seeds, num_examples = differences.shape
    seeds, examples = differences.mean(axis=1), differences.mean(axis=0)
    residual = differences - seeds[:, None] - (examples - examples.mean())
    means = seeds
    if values is not None:
        seeds = _finite(values, "values")
        if seeds.shape != (num_seeds,):
            raise ValueError(f"Expected values [{num_seeds}], one for each seed; received shape {seeds.shape}.")
    if np.all(differences == np.round(differences)):
        step = max(step, 1 / num_examples)
    own = np.vdot(residual, residual) / ((num_seeds - 1) * (num_examples - 1)) / (num_seeds * num_examples)
    more = max(examples.var(ddof=1) / num_examples - own, 4 * step**2)
    shrinkage = 0.0 if np.allclose(seeds, means) else _SHRINKAGE * np.sqrt(num_seeds * own + more)
    variances = Variances(seeds.var(ddof=1) / num_seeds, own, more, 0.0, shrinkage)
    if heavy_tails:
        total = max(variances.seeds, variances.residual) + variances.examples
        third = np.mean((examples - examples.mean()) ** 3) / num_examples**2
        variances = variances._replace(skewness=third / total**1.5 if total > 0.0 else 0.0)
    return _interval(seeds.mean(), variances, level, num_seeds, num_examples, np.abs(differences).max())


def over_seeds(values: np.ndarray, *, level: float = 0.95, step: float = 0.0) -> Interval:
    """Return Student's t interval over seeds, for a quantity that is no mean over examples.

    Mean ± √(t² s² / n + z² 4 step²), with s² the variance of the values. It says what fresh seeds would give on the
    same examples. For accuracy, confidence, NLL and ECE use `crossed`, which covers fresh examples as well.

    Args:
        values: `[n]`, one for each seed, n at least 2: differences, paired by seed, or values of one method.
        level: Confidence level in (0, 1).
        step: The least change of a value, where it moves in steps: seeds that agree by chance leave no zero width.

    Returns:
        An `Interval`, with `num_examples` 0.

    Raises:
        ValueError: Not finite real numbers `[n]`, a level or step out of range, or equal values without a step.

    Example: 2 ± 4.303 / √3.

    >>> interval = over_seeds([1.0, 2.0, 3.0])
    >>> round(interval.low, 3), interval.estimate, round(interval.high, 3)
    (-0.484, 2.0, 4.484)
    """
    level, step = arguments.level(level), arguments.number(step, "step", "a finite number of at least 0", least=0.0)
    values = _finite(values, "values")
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"Expected values [seeds] of at least two seeds; received shape {values.shape}. One seed does not show how "
            "much seeds differ: train more."
        )
    variances = Variances(values.var(ddof=1) / len(values), 0.0, 4 * step**2, 0.0, 0.0)
    return _interval(values.mean(), variances, level, len(values), 0, np.abs(values).max())


def holm(p_values: np.ndarray, level: float = 0.05) -> np.ndarray:
    """Return which of m tests survive Holm's correction for their number.

    The smallest p value is compared with level / m, the next with level / (m - 1) and so on; the first that is larger
    ends it. The probability that any test survives whose effect is not there is at most `level`, however the tests
    depend on each other.

    Args:
        p_values: `[m]` in [0, 1], such as `Interval.tail(0.0)`: one-sided, of what each claim asserts.
        level: The probability of one or more false survivors, in (0, 1). Twenty verdicts of 95 % intervals are tests
            at 0.025 a side.

    Returns:
        bool `[m]`, in the order given.

    Raises:
        ValueError: P values that are not `[m]` in [0, 1], or a level out of range.

    Example: 0.01 ≤ 0.05/3, but 0.03 > 0.05/2, so that 0.04 is not looked at.

    >>> holm([0.03, 0.01, 0.04])
    array([False,  True, False])

    Reference: Holm, 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    level = arguments.level(level)
    p_values = np.asarray(p_values, float) if np.size(p_values) == 0 else _finite(p_values, "p values")
    if p_values.ndim != 1 or np.any((p_values < 0.0) | (p_values > 1.0)):
        raise ValueError(f"Expected p values [tests] in [0, 1]; received {p_values}.")
    order = np.argsort(p_values, kind="stable")
    passed = p_values[order] <= level / np.arange(len(order), 0, -1)
    survives = np.empty(len(order), bool)
    survives[order] = np.logical_and.accumulate(passed)
    return survives


def _finite(values: Any, name: str) -> np.ndarray:
    array = arguments.real(values, name).astype(float)
    if not np.isfinite(array).all():
        raise ValueError(
            f"Expected finite {name}; {np.count_nonzero(~np.isfinite(array))} of {array.size} are NaN or infinite. "
            "Leave out a network that diverged, with the one it is paired with."
        )
    if np.abs(array).max(initial=0.0) > _LARGEST:
        raise ValueError(f"Expected {name} within {_LARGEST:g}, whose powers are float64 numbers; received others.")
    return array


def _interval(
    estimate: float, variances: Variances, level: float, num_seeds: int, num_examples: int, largest: float
) -> Interval:
    # What rounding leaves of equal numbers is no variation.
    if np.sqrt(sum(variances[:3])) <= 4 * np.finfo(float).eps * largest:
        raise ValueError(
            f"All {num_seeds} seeds gave the same number, {estimate:g}, in every place: nothing shows how much it "
            "varies. Are they one network? For a quantity that moves in steps pass step=."
        )
    estimate, variances = float(estimate), Variances(*map(float, variances))
    z = special.ndtri((1 + level) / 2)
    low, high = (_end(estimate, variances, num_seeds, side * z) for side in (1, -1))
    return Interval(estimate, low, high, level, num_seeds, num_examples, variances)


def _end(estimate: float, variances: Variances, num_seeds: int, z: float) -> float:
    """Return the lower end of the interval that leaves the normal tail beyond z below it; for z < 0 the upper one."""
    t = -special.stdtrit(num_seeds - 1, special.ndtr(-abs(z)))
    half = np.sqrt(max(t**2 * variances.seeds, z**2 * variances.residual) + z**2 * variances.examples)
    end = estimate - np.sign(z) * half
    if estimate * z <= 0.0:  # the end away from 0
        end -= np.sign(z) * variances.shrinkage
    if variances.skewness != 0.0:
        error, rate = np.sqrt(max(variances.seeds, variances.residual) + variances.examples), 2 * variances.skewness / 3
        # The bracket is skewness (1 + 2 z²) / 6, and less where that would turn the ends' order.
        end += error * (z + np.expm1(-rate * (z - variances.skewness / 6)) / rate)
    return float(end)
