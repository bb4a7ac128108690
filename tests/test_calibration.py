import doctest
import math
import tracemalloc

from ls_keras.analysis import calibration

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize
from sklearn.calibration import calibration_curve

ERRORS = (
    calibration.expected_calibration_error,
    calibration.adaptive_calibration_error,
    calibration.debiased_calibration_error,
)


def sample(num_examples, num_classes, seed=0, gain=1.0):
    """Logits and labels drawn from their softmax, so T = gain is right in the limit."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.standard_normal((num_examples, num_classes))
    gumbel = generator.gumbel(size=logits.shape)
    return (gain * logits).astype(np.float32), (logits + gumbel).argmax(axis=1)


def two_class(confidences, correct):
    """Logits whose first class has the given probability, and labels right where asked."""
    confidences = np.asarray(confidences, float)
    return np.stack([scipy.special.logit(confidences), np.zeros(len(confidences))], 1), 1 - np.asarray(correct, int)


def loop_reliability(logits, labels, num_bins, temperature=1.0):
    """The definition, one example at a time."""
    count, right, total = [0] * num_bins, [0.0] * num_bins, [0.0] * num_bins
    for row, label in zip(logits.astype(float), labels, strict=True):
        exponentials = [math.exp((z - max(row)) / temperature) for z in row]
        confidence = max(exponentials) / math.fsum(exponentials)
        (m,) = [m for m in range(num_bins) if m / num_bins < confidence <= (m + 1) / num_bins]
        count[m] += 1
        right[m] += list(row).index(max(row)) == label
        total[m] += confidence
    ece = sum(abs(r - t) for r, t in zip(right, total, strict=True)) / len(labels)
    return count, right, total, ece


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("num_bins", [1, 7, 15])
def test_reliability_is_its_definition(num_bins, temperature):
    logits, labels = sample(300, 5, gain=1.5)
    diagram = calibration.reliability(logits, labels, num_bins=num_bins, temperature=temperature)
    count, right, total, ece = loop_reliability(logits, labels, num_bins, temperature)
    filled = np.array(count) > 0
    assert diagram.count.tolist() == count
    np.testing.assert_allclose((diagram.count * diagram.accuracy)[filled], np.array(right)[filled])
    np.testing.assert_allclose((diagram.count * diagram.confidence)[filled], np.array(total)[filled])
    assert np.isnan(diagram.accuracy[~filled]).all() and np.isnan(diagram.confidence[~filled]).all()
    assert diagram.ece == pytest.approx(ece, abs=1e-14)


def test_reliability_agrees_with_sklearn():
    # For two classes, label 1 is the event "the prediction is right" and its probability the confidence.
    logits, labels = sample(2000, 2)
    confidence, correct = calibration.top_label(logits, labels)
    diagram = calibration.reliability(logits, labels, num_bins=10)
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=10)
    filled = diagram.count > 0
    np.testing.assert_allclose(diagram.accuracy[filled], accuracy)
    np.testing.assert_allclose(diagram.confidence[filled], mean_confidence)


def test_edges_belong_to_the_lower_bin_and_one_to_the_last():
    # Probabilities 1/2 and 1 are exact: equal logits, and a gap at which exp underflows.
    logits = np.array([[0.0, 0.0], [2000.0, 0.0]], np.float32)
    diagram = calibration.reliability(logits, np.array([0, 0]), num_bins=2)
    assert diagram.count.tolist() == [1, 1]
    assert diagram.confidence.tolist() == [0.5, 1.0]
    assert diagram.edges.tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("num_bins", [3, 10, 15, 49])
def test_every_edge_belongs_to_the_lower_bin(num_bins):
    edges = np.arange(1, num_bins + 1) / num_bins
    assert calibration._equal_width_bins(edges, num_bins).tolist() == list(range(num_bins))
    assert calibration._equal_width_bins(np.nextafter(edges[:-1], 1), num_bins).tolist() == list(range(1, num_bins))


@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_a_confident_network_that_is_right_or_wrong(error):
    logits = np.tile([[1000.0, 0.0, 0.0]], (40, 1))
    assert error(logits, np.zeros(40, int)) == 0.0
    assert error(logits, np.ones(40, int)) == 1.0


@pytest.mark.parametrize("error", ERRORS)
def test_errors_do_not_depend_on_order_even_with_ties(error):
    logits, labels = sample(200, 4)
    logits = np.round(logits)  # many equal confidences
    order = np.random.default_rng(1).permutation(200)
    assert error(logits[order], labels[order]) == pytest.approx(error(logits, labels), abs=1e-15)


def test_adaptive_error_is_its_definition():
    logits, labels = sample(203, 6)
    confidence, correct = calibration.top_label(logits, labels)
    order = np.argsort(confidence)
    assert len(np.unique(confidence)) == 203
    runs = np.array_split(order, 15)
    expected = sum(len(run) / 203 * abs(correct[run].mean() - confidence[run].mean()) for run in runs)
    assert calibration.adaptive_calibration_error(logits, labels) == pytest.approx(expected, abs=1e-14)


def test_adaptive_error_with_more_bins_than_examples():
    logits, labels = sample(5, 3)
    confidence, correct = calibration.top_label(logits, labels)
    error = calibration.adaptive_calibration_error(logits, labels, num_bins=15)
    assert error == pytest.approx(np.abs(confidence - correct).mean())


def test_debiased_error_is_its_definition():
    logits, labels = sample(203, 6, gain=3.0)
    confidence, correct = calibration.top_label(logits, labels)
    square = 0.0
    for run in np.array_split(np.argsort(confidence), 15):
        accuracy = correct[run].mean()
        square += (
            len(run) / 203 * ((confidence[run].mean() - accuracy) ** 2 - accuracy * (1 - accuracy) / (len(run) - 1))
        )
    assert calibration.debiased_calibration_error(logits, labels) == pytest.approx(math.sqrt(square))


def test_debiased_square_is_right_on_average_where_the_plug_in_is_not():
    # One bin, confidence 0.8, accuracy 0.7: the squared error is 0.01.
    generator = np.random.default_rng(0)
    squares, plug_in = [], []
    for _ in range(2000):
        logits, labels = two_class(np.full(50, 0.8), generator.random(50) < 0.7)
        plug_in.append(calibration.expected_calibration_error(logits, labels, num_bins=1) ** 2)
        share = 1 - labels.mean()
        squares.append((0.8 - share) ** 2 - share * (1 - share) / 49)
        debiased = calibration.debiased_calibration_error(logits, labels, num_bins=1)
        assert debiased == pytest.approx(math.sqrt(max(squares[-1], 0.0)), abs=1e-12)
    assert np.mean(squares) == pytest.approx(0.01, abs=3 * np.std(squares) / math.sqrt(2000))
    assert np.mean(plug_in) > 0.013


def test_slope():
    # Bins at confidences .2, .6, 1 of three classes: weighted least squares by the normal equations.
    logits, labels = sample(3000, 10, gain=2.0)
    diagram = calibration.reliability(logits, labels)
    filled = diagram.count > 0
    slope, _ = np.polyfit(diagram.confidence[filled], diagram.accuracy[filled], 1, w=np.sqrt(diagram.count[filled]))
    assert diagram.slope == pytest.approx(slope)
    assert diagram.slope < 0.9  # over-confident by construction
    calibrated = calibration.reliability(*sample(40000, 10))
    assert calibrated.slope == pytest.approx(1.0, abs=0.05)
    assert np.isnan(calibration.reliability(logits, labels, num_bins=1).slope)


def test_likelihood_and_accuracy():
    logits, labels = sample(500, 7)
    expected = -scipy.special.log_softmax(logits.astype(float) / 1.7, axis=1)[np.arange(500), labels].mean()
    assert calibration.negative_log_likelihood(logits, labels, temperature=1.7) == pytest.approx(expected)
    assert calibration.accuracy(logits, labels) == np.mean(np.argmax(logits, axis=1) == labels)


def test_temperature_per_example():
    logits, labels = sample(50, 4)
    temperature = np.linspace(0.5, 3, 50)
    scaled = logits / temperature[:, None]
    for function in (*ERRORS, calibration.negative_log_likelihood):
        assert function(logits, labels, temperature=temperature) == pytest.approx(function(scaled, labels))


@settings(deadline=None, max_examples=50)
@given(
    logits=hnp.arrays(np.float32, (6, 4), elements=st.floats(-50, 50, width=32)),
    shift=st.floats(-1e3, 1e3),
    temperature=st.floats(0.05, 20),
)
def test_confidences(logits, shift, temperature):
    labels = np.zeros(6, int)
    confidence, _ = calibration.top_label(logits, labels, temperature=temperature)
    expected = scipy.special.softmax(logits.astype(float) / temperature, axis=1).max(axis=1)
    np.testing.assert_allclose(confidence, expected, rtol=1e-13)
    shifted, _ = calibration.top_label(logits.astype(float) + shift, labels, temperature=temperature)
    np.testing.assert_allclose(shifted, confidence, rtol=1e-9)
    assert ((confidence >= 0.25 - 1e-15) & (confidence <= 1)).all()


def test_chunks_do_not_show(monkeypatch):
    logits, labels = sample(101, 9)
    whole = [f(logits, labels) for f in (*ERRORS, calibration.negative_log_likelihood)]
    fit = calibration.fit_temperature(logits, labels)
    monkeypatch.setattr(calibration, "_CHUNK_SIZE", 63)  # seven rows
    np.testing.assert_allclose([f(logits, labels) for f in (*ERRORS, calibration.negative_log_likelihood)], whole)
    assert calibration.fit_temperature(logits, labels).temperature == pytest.approx(fit.temperature, rel=1e-9)


def test_memory_stays_flat():
    logits, labels = sample(20000, 200)
    tracemalloc.start()
    try:
        calibration.reliability(logits, labels)
        calibration.cross_fitted(logits, labels)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < logits.nbytes / 2


def test_bfloat16_logits():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    logits, labels = sample(100, 5)
    half = logits.astype(ml_dtypes.bfloat16)
    assert calibration.expected_calibration_error(half, labels) == calibration.expected_calibration_error(
        half.astype(np.float32), labels
    )


# Temperature


def nll(logits, labels, inverse):
    scores = inverse * logits.astype(float)
    return np.mean(scipy.special.logsumexp(scores, axis=1) - scores[np.arange(len(labels)), labels])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    num_examples=st.integers(2, 60),
    num_classes=st.integers(2, 6),
    log_gain=st.floats(-4, 4),
)
def test_fit_is_the_minimum(seed, num_examples, num_classes, log_gain):
    logits, labels = sample(num_examples, num_classes, seed, gain=math.exp(log_gain))
    fit = calibration.fit_temperature(logits, labels)
    assert fit.converged
    assert fit.nll_after <= fit.nll_before
    assert fit.nll_before == pytest.approx(nll(logits, labels, 1.0), rel=1e-9, abs=1e-12)
    assert fit.nll_after == pytest.approx(nll(logits, labels, 1 / fit.temperature), rel=1e-9, abs=1e-12)
    spread = math.sqrt(np.mean(logits.astype(float).var(axis=1)))
    grid = np.geomspace(1e-3, 1e3, 200) / spread
    assert fit.nll_after <= min(nll(logits, labels, inverse) for inverse in grid) + 1e-9
    if fit.boundary is None:
        best = optimize.minimize_scalar(
            lambda log: nll(logits, labels, math.exp(log)),
            bracket=(-math.log(fit.temperature) - 0.5, -math.log(fit.temperature) + 0.5),
            options={"xtol": 1e-10},
        )
        assert fit.nll_after == pytest.approx(best.fun, rel=1e-10, abs=1e-10)
        # A minimum is found by values to the root of the precision, where it is not flat.
        if nll(logits, labels, 1.1 / fit.temperature) - fit.nll_after > 1e-4:
            assert math.log(fit.temperature) == pytest.approx(-best.x, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), num_examples=st.integers(10, 200), log_factor=st.floats(-3, 3))
def test_fit_scales_with_the_logits(seed, num_examples, log_factor):
    logits, labels = sample(num_examples, 4, seed)
    logits = logits.astype(float)
    fit = calibration.fit_temperature(logits, labels)
    scaled = calibration.fit_temperature(math.exp(log_factor) * logits, labels)
    assert scaled.boundary == fit.boundary
    assert scaled.temperature == pytest.approx(math.exp(log_factor) * fit.temperature, rel=1e-6)


@pytest.mark.parametrize("gain", [0.5, 1.0, 1.9, 6.0])
def test_fit_recovers_the_temperature_of_its_sampling(gain):
    logits, labels = sample(30000, 10, gain=gain)
    fit = calibration.fit_temperature(logits, labels)
    assert fit.temperature == pytest.approx(gain, rel=0.02)
    assert fit.boundary is None
    assert calibration.expected_calibration_error(logits, labels, temperature=fit.temperature) < 0.02


def test_fit_of_two_classes_has_a_closed_form():
    for odds, right in ((9, 3), (3, 9), (100, 7)):
        logits = np.tile([math.log(odds), 0.0], (right + 1, 1))
        labels = np.array([0] * right + [1])
        fit = calibration.fit_temperature(logits, labels)
        assert fit.temperature == pytest.approx(math.log(odds) / math.log(right), rel=1e-8)


def test_fit_reports_the_ends_of_its_range():
    logits, _ = sample(400, 5)
    right = calibration.fit_temperature(logits, logits.argmax(axis=1))
    assert right.boundary == "lower" and right.converged and 0 < right.temperature < 0.1
    assert right.nll_after < 1e-3
    wrong = calibration.fit_temperature(logits, logits.argmin(axis=1))
    assert wrong.boundary == "upper" and wrong.converged and 100 < wrong.temperature < math.inf
    assert wrong.nll_after == pytest.approx(math.log(5), rel=0.01)


def test_fit_of_logits_that_say_nothing():
    fit = calibration.fit_temperature(np.full((10, 3), 4.0), np.arange(10) % 3)
    assert fit.temperature == 1.0 and fit.boundary is None and fit.converged
    assert fit.nll_after == pytest.approx(math.log(3))


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6])
def test_fit_of_extreme_logits(offset):
    logits, labels = sample(500, 5)
    fit = calibration.fit_temperature(logits.astype(float) * 1e5 + offset, labels)
    assert fit.temperature == pytest.approx(1e5 * calibration.fit_temperature(logits, labels).temperature, rel=1e-5)
    assert fit.converged


def test_fit_with_a_warm_start_is_the_same():
    logits, labels = sample(20000, 4, gain=2.0)
    logits[::5] *= 10  # the sample that starts the search has another temperature than the whole
    fit = calibration.fit_temperature(logits, labels)
    best = optimize.minimize_scalar(lambda t: nll(logits, labels, 1 / t), bounds=(0.5, 50), method="bounded")
    assert fit.temperature == pytest.approx(best.x, rel=1e-4)
    assert fit.nll_after <= best.fun + 1e-12


def test_genuine_logits_are_not_taken_for_probabilities():
    logits, labels = sample(100, 5)
    assert calibration.fit_temperature(np.abs(logits), labels).converged
    log_probabilities = scipy.special.log_softmax(logits.astype(float), axis=1)
    assert calibration.fit_temperature(log_probabilities, labels).temperature == pytest.approx(
        calibration.fit_temperature(logits, labels).temperature, rel=1e-6
    )
    one_odd = scipy.special.softmax(logits, axis=1)
    one_odd[50] = [1, 2, 3, 4, 5]
    calibration.fit_temperature(one_odd, labels)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("function", [calibration.fit_temperature, calibration.cross_fitted])
def test_probabilities_are_refused(function, dtype):
    logits, labels = sample(300, 50)
    with pytest.raises(ValueError, match="before the softmax"):
        function(scipy.special.softmax(logits, axis=1).astype(dtype), labels)


def test_cross_fitted_scores_each_half_with_the_other():
    logits, labels = sample(401, 5, gain=2.0)
    halves = calibration.cross_fitted(logits, labels, seed=3)
    assert sorted(np.bincount(halves.half)) == [200, 201]
    for half in (0, 1):
        mine, other = halves.half == half, halves.half != half
        assert halves.fits[half] == calibration.fit_temperature(logits[mine], labels[mine])
        assert (halves.temperature[other] == halves.fits[half].temperature).all()
    again = calibration.cross_fitted(logits, labels, seed=3)
    np.testing.assert_array_equal(again.half, halves.half)
    assert (calibration.cross_fitted(logits, labels, seed=4).half != halves.half).any()


# Bootstrap


def test_interval_covers_the_error_of_calibrated_and_over_confident_networks():
    generator = np.random.default_rng(0)
    for excess in (0.0, 0.1):
        covered = 0
        for seed in range(100):
            confidences = generator.uniform(0.6, 1.0, 300)
            logits, labels = two_class(confidences, generator.random(300) < confidences - excess)
            low, high = calibration.bootstrap_interval(logits, labels, num_bins=10, num_resamples=200, seed=seed)
            # In every bin the accuracy is lower than the confidence by `excess`.
            covered += low <= excess <= high
        assert covered >= 88  # 95 expected, standard deviation 2.2


def test_interval_is_deterministic_and_narrows():
    logits, labels = sample(4000, 5, gain=2.0)
    wide = calibration.bootstrap_interval(logits[:250], labels[:250], seed=1)
    assert wide == calibration.bootstrap_interval(logits[:250], labels[:250], seed=1)
    assert wide != calibration.bootstrap_interval(logits[:250], labels[:250], seed=2)
    narrow = calibration.bootstrap_interval(logits, labels)
    assert narrow.high - narrow.low < 0.4 * (wide.high - wide.low)
    assert narrow.low < calibration.expected_calibration_error(logits, labels) < narrow.high
    tighter = calibration.bootstrap_interval(logits, labels, level=0.5)
    assert narrow.low < tighter.low < tighter.high < narrow.high


def test_interval_of_one_bin_is_that_of_a_mean():
    # All at confidence .9: with one bin, ECE = |accuracy - .9|, whose scatter is binomial.
    logits, labels = two_class(np.full(2000, 0.9), np.arange(2000) < 1500)
    low, high = calibration.bootstrap_interval(logits, labels, num_bins=1, num_resamples=4000)
    half_width = 1.96 * math.sqrt(0.75 * 0.25 / 2000)
    assert low == pytest.approx(0.15 - half_width, abs=0.0015)
    assert high == pytest.approx(0.15 + half_width, abs=0.0015)


def test_interval_of_a_perfect_network():
    logits = np.tile([[1000.0, 0.0]], (20, 1))
    assert calibration.bootstrap_interval(logits, np.zeros(20, int)) == (0.0, 0.0)


# Bad input


GOOD = np.array([[1.0, -2.0, 0.0], [0.5, 0.0, 0.1]])


@pytest.mark.parametrize("function", [*ERRORS, calibration.accuracy, calibration.fit_temperature])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (GOOD, np.array([0, 3]), r"labels in \[0, 3\).*0 to 3"),
        (GOOD, np.array([-1, 0]), r"-1 to 0"),
        (GOOD, np.eye(3)[:2], r"argmax\(-1\)"),
        (GOOD, np.array([0.0, 1.0]), "float64"),
        (GOOD, np.array([[0], [1]]), r"shape \(2, 1\)"),
        (GOOD, np.array([0]), r"shape \(2,\)"),
        (GOOD[0], np.array([0, 1, 1]), r"got \(3,\)"),
        (GOOD[:, :1], np.array([0, 0]), "at least 2 classes"),
        (np.zeros((0, 3)), np.zeros(0, int), "no examples"),
        (np.array([[0.0, 1.0], [np.nan, 1.0], [np.inf, 0.0]]), np.zeros(3, int), "2 of 3 rows.*row 1"),
    ],
)
def test_bad_examples(function, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        function(logits, labels)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan, np.inf, np.array([1.0, 0.0]), np.ones(3)])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        calibration.expected_calibration_error(GOOD, np.array([0, 1]), temperature=temperature)


@pytest.mark.parametrize("num_bins", [0, -1, 2.5])
@pytest.mark.parametrize("function", [*ERRORS, calibration.bootstrap_interval])
def test_bad_bins(function, num_bins):
    with pytest.raises(ValueError, match="num_bins"):
        function(GOOD, np.array([0, 1]), num_bins=num_bins)


@pytest.mark.parametrize("arguments", [{"level": 1.0}, {"level": 0.0}, {"num_resamples": 1}])
def test_bad_interval(arguments):
    with pytest.raises(ValueError, match="level"):
        calibration.bootstrap_interval(GOOD, np.array([0, 1]), **arguments)


def test_cross_fitting_one_example():
    with pytest.raises(ValueError, match="at least 2"):
        calibration.cross_fitted(GOOD[:1], np.array([0]))


def test_docstring_examples():
    logits, labels = sample(50, 3)
    names = {**vars(calibration), "logits": logits, "labels": labels}
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(calibration, globs=names):
        if not test.name.endswith("cross_fitted"):  # its numbers are the reader's own
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries > 8
