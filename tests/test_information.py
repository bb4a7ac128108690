import doctest
import math
import time

from ls_keras.analysis import information

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp


def brute_force(draws, fresh=None):
    """The double sum of the definition."""
    num_examples, num_draws = draws.shape
    means = draws.mean(axis=1)
    if fresh is None:
        points, variance = draws, np.mean((draws - means[:, None]) ** 2)
    else:
        points = fresh
        variance = np.sum((draws - means[:, None]) ** 2) / (num_examples * (num_draws - 1)) * (1 + 1 / num_draws)
    own = -((points - means[:, None]) ** 2) / 2 / variance
    mixture = logsumexp(-((points[..., None] - means) ** 2) / 2 / variance, axis=-1)
    return math.log(num_examples) + np.mean(own - mixture)


def truth(means, num_samples=50_000):
    """I(X; mean of X + noise) for standard normal noise, by Monte Carlo: h(Y) - h(noise)."""
    generator = np.random.default_rng(9)
    y = means[generator.integers(len(means), size=num_samples)] + generator.normal(size=num_samples)
    log_density = [
        logsumexp(-((block[:, None] - means) ** 2) / 2, axis=1) - math.log(len(means) * math.sqrt(2 * math.pi))
        for block in np.array_split(y, 50)
    ]
    return -np.mean(np.concatenate(log_density)) - 0.5 * math.log(2 * math.pi * math.e)


def means_of(kind, num_examples, generator):
    return {
        "identical": np.zeros(num_examples),
        "two clusters": np.where(np.arange(num_examples) % 2, 50.0, -50.0),
        "overlapping": np.where(np.arange(num_examples) % 2, 1.5, -1.5),
        "spread 1": generator.normal(size=num_examples),
        "spread 20": 20 * generator.normal(size=num_examples),
        "spread 2000": 2000 * generator.normal(size=num_examples),
        "separated": 40.0 * np.arange(num_examples),
        "far clusters": 1e7 * (np.arange(num_examples) % 3),
    }[kind]


KINDS = [
    "identical", "two clusters", "overlapping", "spread 1", "spread 20", "spread 2000", "separated", "far clusters",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_examples", "num_draws"), [(1, 2), (7, 2), (300, 12)])
def test_value_is_the_double_sum(kind, num_examples, num_draws):
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(num_examples, 2 * num_draws))
    values = means_of(kind, num_examples, generator)[:, None] + noise
    draws, fresh = values[:, :num_draws], values[:, num_draws:]
    estimate = information.mutual_information(draws, fresh)
    assert estimate.same_draws == pytest.approx(brute_force(draws), abs=1e-9)
    assert estimate.lower_bound == pytest.approx(brute_force(draws, fresh), abs=1e-9)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("num_means", [3, 200, 2000])
def test_log_mixture_at_every_point(num_means, heavy):
    # Points far from every mean included, and crowds of them, where the values are interpolated.
    generator = np.random.default_rng(1)
    means = np.sort(generator.standard_t(1.5, num_means) * 3 if heavy else generator.normal(size=num_means))
    points = np.concatenate(
        [generator.normal(size=3000), np.linspace(-40, 40, 3001), [1e4, -1e6], 10 + np.arange(60) / 1000]
    )
    expected = np.concatenate(
        [logsumexp(-((block[:, None] - means) ** 2) / 2, axis=1) for block in np.array_split(points, 20)]
    )
    np.testing.assert_allclose(information._log_mixture(points, means), expected, rtol=1e-9, atol=2e-8)


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    num_examples=st.integers(1, 60),
    num_draws=st.integers(2, 8),
    spread=st.floats(0, 100),
    factor=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
)
def test_rescaling_and_shifting_change_nothing(seed, num_examples, num_draws, spread, factor, shift):
    generator = np.random.default_rng(seed)
    draws = spread * generator.normal(size=(num_examples, 1)) + generator.normal(size=(num_examples, num_draws))
    estimate = information.mutual_information(draws).same_draws
    assert estimate == pytest.approx(brute_force(draws), abs=1e-8)
    assert estimate <= math.log(num_examples) + 1e-9
    changed = information.mutual_information(-factor * draws + shift).same_draws
    assert changed == pytest.approx(estimate, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "anchor"), [("identical", 0.0), ("two clusters", math.log(2)), ("separated", math.log(600))]
)
def test_anchors(kind, anchor):
    generator = np.random.default_rng(2)
    values = means_of(kind, 600, generator)[:, None] + generator.normal(size=(600, 100))
    estimate = information.mutual_information(values[:, :50], values[:, 50:])
    assert estimate.same_draws == pytest.approx(anchor, abs=0.02)
    assert estimate.corrected == pytest.approx(anchor, abs=0.02)
    assert estimate.lower_bound == pytest.approx(anchor, abs=0.02)


@pytest.mark.parametrize("kind", ["overlapping", "spread 1", "spread 20"])
@pytest.mark.parametrize("num_draws", [5, 50])
def test_estimates_enclose_the_truth_of_gaussian_mixtures(kind, num_draws):
    generator = np.random.default_rng(3)
    means = means_of(kind, 600, generator)
    values = means[:, None] + generator.normal(size=(600, 2 * num_draws))
    estimate = information.mutual_information(values[:, :num_draws], values[:, num_draws:])
    expected = truth(means)
    bias = 0.5 * math.log(num_draws / (num_draws - 1))
    assert estimate.lower_bound - 0.02 < expected < estimate.same_draws + 0.02
    assert estimate.corrected == pytest.approx(expected, abs=0.03 + bias / 10)
    assert estimate.same_draws - estimate.corrected == pytest.approx(bias)


def test_gaussian_means_have_a_closed_form():
    # Many means of N(0, 9): Y is close to N(0, 10), and I to half the logarithm of 1 + 9.
    generator = np.random.default_rng(4)
    values = 3 * generator.normal(size=(20_000, 1)) + generator.normal(size=(20_000, 20))
    assert information.mutual_information(values).corrected == pytest.approx(0.5 * math.log(10), abs=0.01)


def test_bias_at_the_papers_five_draws():
    # paper_spec 6.3: two clusters, 300 each, read .809 with the draws the means were fitted to.
    generator = np.random.default_rng(5)
    centres = means_of("two clusters", 600, generator)[:, None]
    estimates = [information.mutual_information(centres + generator.normal(size=(600, 5))) for _ in range(8)]
    assert np.mean([estimate.same_draws for estimate in estimates]) == pytest.approx(0.805, abs=0.01)
    assert np.mean([estimate.corrected for estimate in estimates]) == pytest.approx(math.log(2), abs=0.01)
    assert estimates[0].lower_bound is None


def test_lower_bound_holds_when_noise_is_not_gaussian():
    # Laplace noise about two clusters far apart: still exactly one bit.
    generator = np.random.default_rng(6)
    values = means_of("two clusters", 2000, generator)[:, None] + generator.laplace(size=(2000, 40))
    estimate = information.mutual_information(values[:, :20], values[:, 20:])
    assert 0.6 < estimate.lower_bound < math.log(2) + 0.005


def test_cost_does_not_grow_as_the_square():
    # The full double sum over 20,000 examples of 5 draws takes 2e9 exponentials: minutes.
    generator = np.random.default_rng(7)
    for kind in ("identical", "spread 2000"):
        draws = means_of(kind, 20_000, generator)[:, None] + generator.normal(size=(20_000, 5))
        start = time.perf_counter()
        information.mutual_information(draws)
        assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("draws", "fresh", "message"),
    [
        (np.zeros((5, 1)), None, r"at least 2.*\(5, 1\)"),
        (np.zeros(5), None, r"\(5,\)"),
        (np.zeros((0, 5)), None, r"\(0, 5\)"),
        (np.array([[0.0, np.nan]]), None, "NaN or infinity"),
        (np.array([[0.0, np.inf]]), None, "NaN or infinity"),
        (np.array([[0.0, 1.0]]), np.array([[np.nan]]), "fresh draws hold NaN"),
        (np.array([[0.0, 1.0]]), np.zeros((2, 2)), "same 1 examples"),
        (np.array([[0.0, 1.0]]), np.zeros((1, 0)), r"\(1, 0\)"),
        (np.tile([[0.1], [0.2], [1e5]], (1, 7)), None, "never differ"),
        (np.zeros((3, 4)), None, "never differ"),
        (np.array([[True, False]]), None, "draws to be real numbers"),
        (np.array([["0", "1"]]), None, "draws to be real numbers"),
        (np.array([[0.0, 1j]]), None, "draws to be real numbers"),
        (np.array([[0.0, None]]), None, "draws to be real numbers"),
        (np.ma.masked_equal([[0.0, 1.0, 9.0]], 9.0), None, "masked"),
        (np.array([[0.0, 1.0]]), np.array([["0"]]), "fresh draws to be real numbers"),
        (np.array([[0.0, 1e200]]), None, "overflow"),
    ],
)
def test_bad_draws(draws, fresh, message):
    with pytest.raises(ValueError, match=message):
        information.mutual_information(draws, fresh)


def test_docstring_examples():
    result = doctest.testmod(information)
    assert result.failed == 0 and result.attempted > 3
