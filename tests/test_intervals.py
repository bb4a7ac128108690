import doctest
import itertools
import math

from ls_keras.analysis import calibration, intervals

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats


def half_width(differences, level=0.95, values=None, step=0.0):
    """The formula of `crossed`, one number at a time: half the width, and what the outer end has more."""
    rows = differences.tolist()
    n, num_examples = len(rows), len(rows[0])
    seeds = [math.fsum(row) / num_examples for row in rows]
    examples = [math.fsum(column) / n for column in zip(*rows, strict=True)]
    mean = math.fsum(seeds) / n
    residual = math.fsum(
        (rows[s][i] - seeds[s] - examples[i] + mean) ** 2 for s in range(n) for i in range(num_examples)
    )
    spread = seeds if values is None else list(values)
    centre = math.fsum(spread) / n
    s = math.fsum((x - centre) ** 2 for x in spread) / (n - 1) / n
    e = math.fsum((x - mean) ** 2 for x in examples) / (num_examples - 1) / num_examples
    r = residual / ((n - 1) * (num_examples - 1)) / (n * num_examples)
    t, z = stats.t.ppf((1 + level) / 2, n - 1), stats.norm.ppf((1 + level) / 2)
    more = max(e - r, 4 * step**2)
    return math.sqrt(max(t**2 * s, z**2 * r) + z**2 * more), (
        math.sqrt(n * r + more) / 2 if values is not None else 0.0
    )


def some_differences(seed, n, num_examples, whole):
    generator = np.random.default_rng(seed)
    drawn = (
        generator.normal(size=num_examples) + generator.normal(size=(n, num_examples)) + generator.normal(size=(n, 1))
    )
    return np.clip(np.round(drawn / 2), -1, 1) if whole else drawn


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 6),
    num_examples=st.integers(2, 30),
    level=st.floats(0.5, 0.999),
    whole=st.booleans(),
    step=st.sampled_from([0.0, 0.01, 0.3]),
    with_values=st.booleans(),
)
def test_crossed_is_its_formula(seed, n, num_examples, level, whole, step, with_values):
    differences = some_differences(seed, n, num_examples, whole)
    values = np.random.default_rng(seed).normal(size=n) if with_values else None
    interval = intervals.crossed(differences, level=level, values=values, step=step)
    floor = max(step, 1 / num_examples) if whole else step
    half, out = half_width(differences, level, values, floor)
    centre = differences.mean() if values is None else values.mean()
    assert interval.estimate == pytest.approx(centre, abs=1e-12)
    assert interval.low == pytest.approx(centre - half - out * (centre < 0), rel=1e-9, abs=1e-9)
    assert interval.high == pytest.approx(centre + half + out * (centre > 0), rel=1e-9, abs=1e-9)
    assert (interval.level, interval.num_seeds, interval.num_examples) == (level, n, num_examples)
    assert interval.too_few_seeds == (n == 2)


def test_values_that_are_the_rows_means_change_nothing():
    differences = some_differences(0, 4, 30, whole=False)
    assert intervals.crossed(differences, values=differences.mean(axis=1)) == intervals.crossed(differences)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), factor=st.floats(1e-3, 1e3), heavy_tails=st.booleans())
def test_crossed_follows_units_signs_and_order(seed, factor, heavy_tails):
    differences = some_differences(seed, 4, 50, whole=False) ** 3
    interval = intervals.crossed(differences, heavy_tails=heavy_tails)
    scaled = intervals.crossed(-factor * differences, heavy_tails=heavy_tails)
    assert (scaled.low, scaled.high) == pytest.approx((-factor * interval.high, -factor * interval.low), rel=1e-9)
    generator = np.random.default_rng(seed)
    shuffled = intervals.crossed(
        differences[generator.permutation(4)][:, generator.permutation(50)], heavy_tails=heavy_tails
    )
    assert (shuffled.low, shuffled.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert interval.tail(0.1) + scaled.tail(-0.1 * factor) == pytest.approx(1.0, abs=1e-9)


def test_heavy_tails_shift_the_interval_by_johnsons_term():
    generator = np.random.default_rng(0)
    examples = -np.exp(generator.normal(size=5000))
    differences = examples + 0.1 * generator.normal(size=(5, 5000))
    plain, shifted = intervals.crossed(differences), intervals.crossed(differences, heavy_tails=True)
    z, means = stats.norm.ppf(0.975), differences.mean(axis=0)
    shift = (1 + 2 * z**2) / (6 * 5000) * np.mean((means - means.mean()) ** 3) / means.var()
    assert shift < 0
    # The exponential differs from it in the third order.
    assert shifted.low - plain.low == pytest.approx(shift, rel=0.15)
    assert shifted.high - plain.high == pytest.approx(shift, rel=0.15)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), heavy_tails=st.booleans())
def test_ends_of_higher_levels_lie_further_out(seed, heavy_tails):
    # One example that outweighs all others: the skewness of the mean is as large as it can be.
    differences = some_differences(seed, 3, 20, whole=False)
    differences[:, 0] += 10.0 ** np.random.default_rng(seed).uniform(-1, 4)
    levels = (0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
    drawn = [intervals.crossed(differences, level=level, heavy_tails=heavy_tails) for level in levels]
    for inner, outer in itertools.pairwise(drawn):
        assert outer.low < inner.low < inner.high < outer.high


# p values


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 6), threshold=st.floats(-1, 1), heavy_tails=st.booleans())
def test_the_interval_at_the_tails_level_touches_the_threshold(seed, n, threshold, heavy_tails):
    differences = some_differences(seed, n, 15, whole=False)
    p = intervals.crossed(differences, heavy_tails=heavy_tails).tail(threshold)
    assume(1e-9 < p < 1 - 1e-9 and abs(p - 0.5) > 1e-3)
    touching = intervals.crossed(differences, level=abs(1 - 2 * p), heavy_tails=heavy_tails)
    assert (touching.low if p < 0.5 else touching.high) == pytest.approx(threshold, abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(st.floats(-5, 5), min_size=2, max_size=8), threshold=st.floats(-5, 5), level=st.floats(0.1, 0.99)
)
def test_over_seeds_is_students_test(values, threshold, level):
    assume(np.std(values) > 1e-3)
    interval = intervals.over_seeds(values, level=level)
    test = stats.ttest_1samp(values, threshold, alternative="greater")
    assert interval.tail(threshold) == pytest.approx(np.clip(test.pvalue, 1.28e-12, 1 - 1.28e-12), rel=1e-5, abs=2e-13)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)
    assert interval.num_seeds == len(values) and interval.num_examples == 0


def test_tails_have_ends():
    interval = intervals.over_seeds(np.arange(30.0))
    assert interval.tail(-1e9) == pytest.approx(1.28e-12, rel=1e-3)
    assert interval.tail(1e9) == pytest.approx(1 - 1.28e-12)
    assert interval.tail(14.5) == pytest.approx(0.5)


@settings(deadline=None, max_examples=100)
@given(
    p_values=st.lists(st.floats(0, 0.2) | st.sampled_from([0.0, 0.01, 0.0125, 1.0]), max_size=6),
    level=st.floats(0.01, 0.3),
)
def test_holm_rejects_what_every_intersection_rejects(p_values, level):
    # Closed testing: a claim survives if each set of claims that holds it has a Bonferroni rejection.
    survivors = intervals.holm(p_values, level)
    for i in range(len(p_values)):
        others = [j for j in range(len(p_values)) if j != i]
        sets = (s for size in range(len(p_values)) for s in itertools.combinations(others, size))
        assert survivors[i] == all(min(p_values[j] for j in (i, *s)) <= level / (len(s) + 1) for s in sets)


# Never a width of zero


@pytest.mark.parametrize("num_seeds", [2, 3, 10])
@pytest.mark.parametrize("step", [0.0, 1 / 600])
def test_seeds_that_agree_leave_no_zero_width(num_seeds, step):
    at_least = stats.norm.ppf(0.975) * 2 / 600
    for row in (np.zeros(600), np.ones(600), np.eye(600)[0], -np.eye(600)[7]):
        interval = intervals.crossed(np.tile(row, (num_seeds, 1)), step=step)
        assert interval.high - interval.estimate == pytest.approx(at_least)
        assert interval.low < interval.estimate < interval.high
    assert intervals.crossed(np.zeros((num_seeds, 600), int)).tail(0.0) == pytest.approx(0.5)
    # Four examples are too few to speak for one method, five are enough.
    four, five = (np.tile(np.arange(600) < number, (num_seeds, 1)).astype(int) for number in (4, 5))
    assert intervals.crossed(four - np.tile(np.arange(600) == 9, (num_seeds, 1))).low < 0 < intervals.crossed(five).low


def test_seeds_that_agree_by_rounding():
    interval = intervals.over_seeds([0.97, 0.97, 0.97], step=0.01)
    assert interval.high - interval.estimate == pytest.approx(stats.norm.ppf(0.975) * 0.02)
    for call in (
        lambda: intervals.over_seeds([0.97, 0.97, 0.97]),
        lambda: intervals.crossed(np.full((3, 40), 0.25)),
    ):
        with pytest.raises(ValueError, match="All 3 seeds gave the same number"):
            call()


# Simulations without a true difference; `benchmarks/intervals.py` has the full ones


def accuracy_differences(generator, num_seeds, num_examples, share):
    """On `share` of the examples the methods differ in every seed, on 3 % of the others in one; neither is better."""
    lasting = generator.choice([-1, 0, 1], p=[share / 2, 1 - share, share / 2], size=num_examples)
    fickle = generator.choice([-1, 0, 1], p=[0.015, 0.97, 0.015], size=(num_seeds, num_examples))
    return np.where(lasting != 0, lasting, fickle)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("num_seeds", [3, 10])
def test_accuracy_holds_as_often_as_promised(num_seeds, share):
    generator = np.random.default_rng(0)
    count, crossed, alone = 500, np.zeros(2), np.zeros(2)
    for _ in range(count):
        differences = accuracy_differences(generator, num_seeds, 400, share)
        interval, t = intervals.crossed(differences), intervals.over_seeds(differences.mean(axis=1), step=1e-9)
        crossed += interval.low > 0, interval.high < 0
        alone += t.low > 0, t.high < 0
    # Of 1,000 sides 25 are promised at most, with a standard deviation of 5.
    assert crossed.sum() <= 40
    if share == 0.05:
        assert alone.sum() > 80  # what an interval over seeds alone gives


def test_power_of_one_and_two_points():
    generator = np.random.default_rng(1)
    found = {}
    for effect in (0.01, 0.02):
        above = 0
        for _ in range(300):
            differences = accuracy_differences(generator, 5, 600, 0.02)
            differences[:, : generator.binomial(600, effect)] = 1
            above += intervals.crossed(differences).low > 0
        found[effect] = above / 300
    # With S = R = .03 / 3,000 and E - R = (.02 + effect) / 600 the half width is .0164 and .0183, the error .0077 and
    # .0088: by the normal law 20 % and 58 %.
    assert found[0.01] == pytest.approx(0.20, abs=0.07) and found[0.02] == pytest.approx(0.58, abs=0.09)


def test_likelihood_with_heavy_tails():
    generator = np.random.default_rng(2)
    count, plain, shifted = 1000, np.zeros(2), np.zeros(2)  # above 0, below 0
    for _ in range(count):
        examples = math.exp(0.5) - np.exp(generator.normal(size=400))  # skewness -6.2
        differences = examples + generator.normal(size=(10, 400))
        drawn = [intervals.crossed(differences, heavy_tails=heavy_tails) for heavy_tails in (False, True)]
        plain += drawn[0].low > 0, drawn[0].high < 0
        shifted += drawn[1].low > 0, drawn[1].high < 0
    assert plain.max() / count > 0.045
    assert shifted.max() / count <= 0.042  # .033 in the full simulation, with a standard deviation of .006


def test_two_calibrated_methods_have_no_difference_in_calibration_error():
    generator = np.random.default_rng(3)
    count, missed, plug_in = 120, 0, 0
    for _ in range(count):
        luck = generator.random(400)
        values, rows, plain = [], [], []
        methods = [generator.uniform(low, 1.0, 400) for low in (0.9, 0.4)]  # a sharp one and a blunt one
        for _ in range(3):
            fresh = np.where(generator.random(400) < 0.7, luck, generator.random(400))
            parts = [calibration.top_label_contributions(confidence, fresh < confidence) for confidence in methods]
            values.append(parts[0].value - parts[1].value)
            rows.append(parts[0].examples - parts[1].examples)
            plain.append([plug_in_error(confidence, fresh < confidence) for confidence in methods])
        interval = intervals.crossed(np.array(rows), values=np.array(values))
        missed += not interval.low <= 0 <= interval.high
        t = intervals.over_seeds(np.array(plain) @ [1, -1])
        plug_in += not t.low <= 0 <= t.high
    assert missed <= 6  # 5 % is promised and less is used
    assert plug_in > 40


def plug_in_error(confidence, correct):
    bins = np.minimum((confidence * 15).astype(int), 14)
    return np.abs(np.bincount(bins, weights=correct - confidence)).sum() / len(confidence)


def test_an_over_confident_methods_error_is_found():
    generator = np.random.default_rng(4)
    rows, values = [], []
    confidence = generator.uniform(0.6, 1.0, 4000)
    for _ in range(5):
        luck = generator.random(4000)
        worse = calibration.top_label_contributions(confidence, luck < confidence - 0.08)
        better = calibration.top_label_contributions(confidence, luck < confidence)
        rows.append(worse.examples - better.examples)
        values.append(worse.value - better.value)
    interval = intervals.crossed(np.array(rows), values=values)
    assert 0.03 < interval.low < 0.08 < interval.high < 0.12
    assert interval.estimate == pytest.approx(np.mean(values))


# Bad input


GOOD = np.array([[0.1, 0.2, 0.4], [0.3, -0.1, 0.2]])


@pytest.mark.parametrize(
    ("differences", "message"),
    [
        (GOOD[:1], r"at least two of each; received shape \(1, 3\).*train more"),
        (GOOD[:, :1], r"\(2, 1\)"),
        (GOOD[0], r"\(3,\)"),
        (GOOD[None], r"\(1, 2, 3\)"),
        (np.zeros((0, 5)), r"\(0, 5\)"),
        (0.1, r"shape \(\)"),
        (np.where(GOOD > 0.3, np.nan, GOOD), "1 of 6 are NaN"),
        (np.where(GOOD > 0.3, -np.inf, GOOD), "1 of 6 are NaN or infinite"),
        (GOOD.astype(str), "real numbers"),
        (GOOD.astype(object), "real numbers"),
        (GOOD.astype(complex), "real numbers"),
        (GOOD > 0, "real numbers"),
        (np.ma.masked_equal(GOOD, 0.1), "masked"),
    ],
)
def test_bad_differences(differences, message):
    with pytest.raises(ValueError, match=message):
        intervals.crossed(differences)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *[({"level": level}, "level") for level in (0.0, 1.0, 95, -0.5, "0.95", True, None, np.nan, [0.95], 0.9 + 0j)],
        *[({"step": step}, "step") for step in (-0.1, np.nan, np.inf, "0", True, None)],
        *[({"heavy_tails": flag}, "heavy_tails") for flag in ("no", 1, None, 0.0)],
        ({"values": [0.1]}, r"values \[2\]"),
        ({"values": [[0.1, 0.2]]}, r"values \[2\]"),
        ({"values": [0.1, np.nan]}, "finite values"),
        ({"values": ["a", "b"]}, "real numbers"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        intervals.crossed(GOOD, **arguments)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.1], r"at least two seeds; received shape \(1,\)"),
        ([], r"\(0,\)"),
        (GOOD, r"\(2, 3\)"),
        ([0.1, np.inf], "1 of 2 are NaN or infinite"),
        (["0.1", "0.2"], "real numbers"),
        ([True, False], "real numbers"),
    ],
)
def test_bad_values_over_seeds(values, message):
    with pytest.raises(ValueError, match=message):
        intervals.over_seeds(values)
    with pytest.raises(ValueError, match="level"):
        intervals.over_seeds([0.1, 0.2], level=95)
    with pytest.raises(ValueError, match="step"):
        intervals.over_seeds([0.1, 0.2], step=-1)


@pytest.mark.parametrize("threshold", ["0", True, None, np.nan, np.inf])
def test_bad_threshold(threshold):
    with pytest.raises(ValueError, match="threshold to be a finite number"):
        intervals.over_seeds([0.1, 0.2]).tail(threshold)


@pytest.mark.parametrize(
    ("p_values", "message"),
    [
        ([-0.1], r"\[0, 1\]"),
        ([1.1], r"\[0, 1\]"),
        ([[0.1]], "tests"),
        (0.1, "tests"),
        ([np.nan], "NaN"),
        (["0.1"], "real numbers"),
    ],
)
def test_bad_p_values(p_values, message):
    with pytest.raises(ValueError, match=message):
        intervals.holm(p_values)
    with pytest.raises(ValueError, match="level"):
        intervals.holm([0.1], level=5)


def test_docstring_examples():
    result = doctest.testmod(intervals)
    assert result.failed == 0 and result.attempted > 5


def test_what_overflows_has_no_interval():
    differences = np.random.default_rng(0).normal(size=(3, 20)) * 1e200
    with pytest.raises(ValueError, match=r"Expected differences within 1e\+75"):
        intervals.crossed(differences)
