import doctest
import math
import tracemalloc

from ls_keras.analysis import calibration

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import assume, given, settings
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
    for rows in (logits, logits.astype(float) + shift):  # what looks like probabilities is refused
        assume(rows.min() < 0 or not any(np.allclose(rows.sum(axis=1), whole, rtol=0.1) for whole in (1, 100)))
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
    turned = logits[::-1]  # whose smallest gap is not in the last rows
    right = calibration.fit_temperature(turned, turned.argmax(axis=1))
    monkeypatch.setattr(calibration, "_CHUNK_SIZE", 63)  # seven rows
    assert calibration.fit_temperature(turned, turned.argmax(axis=1)).temperature == right.temperature
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


def test_fit_says_where_there_is_no_minimum():
    logits, _ = sample(400, 5)
    logits = logits.astype(float)
    right = calibration.fit_temperature(logits, logits.argmax(axis=1))
    gaps = np.sort(logits, axis=1)[:, -1] - np.sort(logits, axis=1)[:, -2]
    assert right.boundary == "lower" and right.converged
    assert right.temperature == pytest.approx(gaps.min() / 1e6)
    assert right.nll_after == 0.0
    wrong = calibration.fit_temperature(logits, logits.argmin(axis=1))
    assert wrong.boundary == "upper" and wrong.converged
    assert wrong.temperature == pytest.approx(1e6 * np.mean(logits.max(axis=1) - logits.min(axis=1)))
    assert math.log(5) <= wrong.nll_after <= math.log(5) + 1e-6


def test_one_wrong_answer_is_enough_for_a_minimum():
    # Of gap 2 in 999 right answers and c in one wrong one: 999 of 2 / (1 + e^2b) equal c / (1 + e^-bc).
    for wrong in (2.0, 1e-6, 1e3):
        logits = np.array([[2.0, 0.0]] * 999 + [[0.0, wrong]])
        fit = calibration.fit_temperature(logits, np.zeros(1000, int))
        inverse = 1 / fit.temperature
        assert fit.boundary is None and fit.converged
        slope = wrong * scipy.special.expit(inverse * wrong) - 1998 * scipy.special.expit(-2 * inverse)
        assert abs(slope) < 1e-7 * wrong


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


@pytest.mark.parametrize("exponent", [-100, -30, -9, 9, 30, 100])
@pytest.mark.parametrize("num_examples", [300, 10_000])  # with and without a start from a sample
def test_fit_at_any_scale(num_examples, exponent):
    logits, labels = sample(num_examples, 4, gain=0.3)
    fit = calibration.fit_temperature(logits, labels)
    scaled = calibration.fit_temperature(logits.astype(float) * 10.0**exponent, labels)
    assert scaled.temperature == pytest.approx(10.0**exponent * fit.temperature, rel=1e-6)
    assert scaled.converged and scaled.boundary is None
    assert scaled.nll_after == pytest.approx(fit.nll_after, rel=1e-12)


def by_golden_section(logits, labels):
    """The best inverse temperature of all that a grid over 24 decades and a search about its best point find."""
    grid = np.linspace(-28, 28, 150)
    best = grid[np.argmin([nll(logits, labels, math.exp(x)) for x in grid])]
    found = optimize.minimize_scalar(
        lambda x: nll(logits, labels, math.exp(x)), bracket=(best - 0.4, best + 0.4), options={"xtol": 1e-12}
    )
    return math.exp(found.x), found.fun


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    size=st.floats(-6, 9),
    position=st.integers(0, 3),
    log_gain=st.floats(-3, 3),
    num_outliers=st.integers(1, 2),
)
def test_outliers_change_the_temperature_by_what_they_must(seed, size, position, log_gain, num_outliers):
    logits, labels = sample(60, 4, seed, gain=math.exp(log_gain))
    logits = logits.astype(float)
    for row in range(num_outliers):
        logits[row] = 10.0**size * np.random.default_rng(seed + row).normal(size=4)
        labels[row] = np.argsort(logits[row])[position]
    fit = calibration.fit_temperature(logits, labels)
    inverse, lowest = by_golden_section(logits, labels)
    assert fit.converged
    assert fit.nll_after <= lowest + (1e-6 if fit.boundary else 1e-9 * (1 + lowest))
    if fit.boundary is None and nll(logits, labels, 1.1 * inverse) - lowest > 1e-4:
        assert fit.temperature == pytest.approx(1 / inverse, rel=1e-4)


def test_fit_takes_few_passes(monkeypatch):
    taken, moments = [], calibration._moments

    def counted(*args):
        taken[-1] += 1
        return moments(*args)

    monkeypatch.setattr(calibration, "_moments", counted)
    generator = np.random.default_rng(0)
    for _ in range(400):  # each example on a scale of its own, over eight decades
        num_examples, num_classes = generator.integers(2, 40), generator.integers(2, 7)
        logits = generator.normal(size=(num_examples, num_classes)) * 10.0 ** generator.uniform(
            -4, 4, (num_examples, 1)
        )
        labels = (logits * generator.choice([0.05, 1, 5]) + generator.gumbel(size=logits.shape)).argmax(axis=1)
        taken.append(0)
        assert calibration.fit_temperature(logits, labels).converged
    assert max(taken) <= 40  # bisection takes 30 for nine digits alone
    # One wrong answer by a hair: Newton's steps are all alike, and alone they take 200 passes to reach b = 115.
    taken.append(0)
    logits = np.array([[2.0, 0.0]] * 50 + [[0.0, 1e-100]])
    assert 1 / calibration.fit_temperature(logits, np.zeros(51, int)).temperature > 100
    assert taken[-1] <= 30
    taken.append(0)
    calibration.fit_temperature(*sample(500, 10, gain=2.0))
    assert taken[-1] <= 9


@pytest.mark.parametrize("exponent", [200, 300])
@pytest.mark.parametrize("function", [calibration.fit_temperature, calibration.cross_fitted])
def test_logits_that_overflow_are_refused(function, exponent):
    logits, labels = sample(100, 4)
    with pytest.raises(ValueError, match=r"within 1e\+150"):
        function(logits.astype(float) * 10.0**exponent, labels)
    with pytest.raises(ValueError, match=r"within 1e\+150"):  # every answer right
        function(logits.astype(float) * 10.0**exponent, logits.argmax(axis=1))


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


# Probabilities


FROM_EXAMPLES = {
    "top label": lambda *args, **rest: calibration.top_label(*args, **rest).confidence,
    "accuracy": calibration.accuracy,
    "nll": calibration.negative_log_likelihood,
    "reliability": lambda *args, **rest: calibration.reliability(*args, **rest).accuracy,
    "ece": calibration.expected_calibration_error,
    "adaptive": calibration.adaptive_calibration_error,
    "debiased": calibration.debiased_calibration_error,
    "interval": calibration.calibration_interval,
    "contributions": lambda *args, **rest: calibration.calibration_contributions(*args, **rest).examples,
    "temperature": lambda *args, **rest: calibration.fit_temperature(*args, **rest).temperature,
    "cross-fitted": lambda *args, **rest: calibration.cross_fitted(*args, **rest).temperature,
}


def bfloat16():
    return pytest.importorskip("ml_dtypes").bfloat16


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, "bfloat16"])
@pytest.mark.parametrize("name", FROM_EXAMPLES)
def test_probabilities_are_taken_by_name_or_refused(name, dtype):
    dtype = bfloat16() if dtype == "bfloat16" else dtype
    function = FROM_EXAMPLES[name]
    logits, labels = sample(300, 50)
    probabilities = scipy.special.softmax(logits.astype(float), axis=1).astype(dtype)
    with pytest.raises(ValueError, match="from_logits=False"):
        function(probabilities, labels)
    if probabilities.dtype == bfloat16():  # as a float32 output of a network that computes in bfloat16
        with pytest.raises(ValueError, match="from_logits=False"):
            function(probabilities.astype(np.float32), labels)
    with np.errstate(divide="ignore"):
        expected = function(np.log(probabilities.astype(float)), labels)
    np.testing.assert_allclose(function(probabilities, labels, from_logits=False), expected, rtol=1e-6)
    if dtype == np.float64:
        np.testing.assert_allclose(expected, function(logits, labels), rtol=1e-6)


def test_chunks_of_probabilities_alone_do_not_make_probabilities(monkeypatch):
    monkeypatch.setattr(calibration, "_CHUNK_SIZE", 20)
    logits, labels = sample(300, 5)
    logits[:299] = scipy.special.softmax(logits[:299], axis=1)
    assert calibration.negative_log_likelihood(logits, labels) == pytest.approx(nll(logits, labels, 1.0))


def test_a_probability_of_zero_is_a_masked_class():
    probabilities, labels = np.array([[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]), np.array([0, 0])
    confidence, correct = calibration.top_label(probabilities, labels, from_logits=False)
    assert confidence == pytest.approx([0.5, 0.75]) and correct.tolist() == [True, False]
    assert calibration.negative_log_likelihood(probabilities, labels, from_logits=False) == pytest.approx(
        (math.log(2) + math.log(4)) / 2
    )
    with pytest.raises(ValueError, match=r"1 of 2 examples have probability 0.*row 1"):
        calibration.fit_temperature(probabilities, np.array([0, 2]), from_logits=False)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.array([[0.5, 0.4], [0.5, 0.5]]), "1 of 2 rows.*row 0"),
        (np.array([[0.5, 0.5], [1.5, -0.5]]), "1 of 2 rows.*row 1"),
        (np.array([[0.5, 0.5], [np.nan, 0.5]]), "1 of 2 rows.*row 1"),
        (np.array([[np.inf, 0.5], [0.5, 0.5]]), "1 of 2 rows.*row 0"),
        (np.array([[0.5, 0.5], [np.inf, -np.inf]]), "1 of 2 rows.*row 1"),
        (np.array([[0.502, 0.5], [0.5, 0.5]]), "within 0.001"),
        (np.array([[1.0, 3.0], [0.5, 0.5]]), "from_logits"),
    ],
)
@pytest.mark.parametrize("name", FROM_EXAMPLES)
def test_what_is_no_probability_is_refused(name, bad, message):
    with pytest.raises(ValueError, match=message):
        FROM_EXAMPLES[name](bad, np.array([0, 0]), from_logits=False)


@pytest.mark.parametrize("name", FROM_EXAMPLES)
def test_from_logits_is_true_or_false(name):
    with pytest.raises(ValueError, match="from_logits to be True or False; received 'False'"):
        FROM_EXAMPLES[name](*sample(10, 3), from_logits="False")


# Masked classes


@pytest.mark.parametrize("mask", [-np.inf, -1e9, np.finfo(np.float32).min, np.finfo(float).min])
@pytest.mark.parametrize("name", FROM_EXAMPLES)
def test_a_masked_class_changes_nothing(name, mask):
    logits, labels = sample(200, 4, gain=0.2)
    logits = logits.astype(float)
    masked = np.insert(logits, 2, mask, axis=1)
    expected = FROM_EXAMPLES[name](logits, labels)
    np.testing.assert_allclose(FROM_EXAMPLES[name](masked, labels + (labels >= 2)), expected, rtol=1e-9)
    # Another class in each row, so that columns are no help.
    wide, at = np.insert(logits, 4, mask, axis=1), np.random.default_rng(1).integers(5, size=200)
    order = (np.arange(5) + at[:, None]) % 5
    turned = np.take_along_axis(wide, order, axis=1)
    np.testing.assert_allclose(FROM_EXAMPLES[name](turned, (labels - at) % 5), expected, rtol=1e-9)
    if name not in ("accuracy", "temperature", "cross-fitted"):
        twice = np.insert(masked, 0, mask, axis=1)
        cold = FROM_EXAMPLES[name](twice, labels + (labels >= 2) + 1, temperature=0.2)
        np.testing.assert_allclose(cold, FROM_EXAMPLES[name](logits, labels, temperature=0.2), rtol=1e-9)


def test_a_label_that_is_masked():
    logits = np.array([[0.0, 1.0, -np.inf], [0.0, 1.0, 0.0]])
    labels = np.array([2, 1])
    assert calibration.negative_log_likelihood(logits, labels) == np.inf
    assert calibration.top_label(logits, labels).correct.tolist() == [False, True]
    for function in (calibration.fit_temperature, calibration.cross_fitted):
        with pytest.raises(ValueError, match="1 of 2 examples have probability 0"):
            function(logits, labels)


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


# Intervals


def reference_intervals(confidence, correct, num_bins):
    """Both intervals at level .95, bin by bin; the ends of the second by bisection of its test."""
    num_examples = len(confidence)
    edges = np.arange(1, num_bins) / num_bins
    gaps, variances, masses = [], [], []
    for m in range(num_bins):
        inside = np.searchsorted(edges, confidence) == m
        if n := inside.sum():
            gap = (correct[inside].sum() - confidence[inside].sum()) / num_examples
            a = (correct[inside].sum() + 2) / (n + 4)
            gaps.append(gap)
            variances.append(n * a * (1 - a) / num_examples**2 + (1 - n / num_examples) * gap**2 / n)
            masses.append(n / num_examples)
    gaps, variances, masses = map(np.array, (gaps, variances, masses))
    errors = np.sqrt(variances)
    centre = sum(abs(g) for g, s in zip(gaps, errors, strict=True) if abs(g) > s) - 0.19 * sum(errors)
    deviation, bias = 1.11 * math.sqrt(sum(variances)), 0.265 * sum(errors)
    half = optimize.brentq(
        lambda x: scipy.stats.norm.cdf((x - bias) / deviation) - scipy.stats.norm.cdf((-x - bias) / deviation) - 0.95,
        0,
        10,
    )
    wrong = num_examples - correct.sum()
    overall = 1 - scipy.stats.binomtest(int(wrong), num_examples).proportion_ci(0.95).high
    overall = max(
        confidence.mean() - overall,
        1 - scipy.stats.binomtest(int(wrong), num_examples).proportion_ci().low - confidence.mean(),
    )
    absolute = (max(centre - half, 0), max(centre + half, overall))

    square = sum((gaps**2 - variances) / masses)
    slope = 4 * sum((gaps / masses) ** 2 * variances) / sum(gaps**2 / masses)

    def accepted(theta):
        noise = math.sqrt(2 * sum((variances / masses) ** 2) + slope * theta**2)
        return abs(square - theta**2) <= 1.959963984540054 * noise

    grid = np.linspace(0, 0.3, 30_001)
    inside = grid[[accepted(theta) for theta in grid]]
    return absolute, (inside[0], inside[-1])


@pytest.mark.parametrize("num_bins", [1, 15])
@pytest.mark.parametrize("excess", [0.0, 0.07])
def test_intervals_are_their_definitions(excess, num_bins):
    generator = np.random.default_rng(1)
    confidence = generator.uniform(0.5, 1, 400)
    correct = generator.random(400) < confidence - excess
    absolute, square = reference_intervals(confidence, correct, num_bins)
    assert calibration.top_label_interval(confidence, correct, num_bins=num_bins) == pytest.approx(absolute, abs=1e-9)
    assert calibration.top_label_interval(confidence, correct, num_bins=num_bins, norm="l2") == pytest.approx(
        square, abs=2e-5
    )


def test_the_constants_of_the_estimates():
    # x ~ N(m, 1): |x| 1(|x| > 1) - 0.19 misses |m| by .265 to .3 at most either way, with a deviation of at most 1.11;
    # with 0.18 for |x| < 2 alone by -.28 to .32, and by nothing where m is large.
    x, width = np.linspace(-12, 20, 40_001, retstep=True)
    means = np.linspace(0, 8, 161)
    density = scipy.stats.norm.pdf(x - means[:, None]) * width
    value = np.abs(x) * (np.abs(x) > 1) - 0.19
    first, second = density @ value, density @ value**2
    deviation = np.sqrt(second - first**2)
    assert deviation.max() == pytest.approx(1.11, abs=0.005)
    assert abs(first - means).max() < 0.3
    assert abs(first - means)[deviation.argmax()] == pytest.approx(0.265, abs=0.01)
    bias = density @ (np.abs(x) * (np.abs(x) > 1) - 0.18 * (np.abs(x) < 2)) - means
    assert bias.min() > -0.28 and bias.max() < 0.32
    assert abs(bias[means > 4.5]).max() < 0.002


def accuracy_of(kind, confidence, num_bins=15):
    """The accuracy at each confidence of a network that is off as asked."""
    m = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence)
    gap = {
        "calibrated": np.zeros(len(m)),
        "uniform": np.full(len(m), -0.05),
        "one bin": np.where(m == 10, -0.2, 0.0),
        "last bin": np.where(m == num_bins - 1, -0.1, 0.0),
        "alternating": np.where(m % 2, 0.04, -0.04),
    }
    return np.clip(confidence + gap[kind], 0, 1)


def true_errors(kind, num_bins=15):
    """ECE and root-mean-square error of `draw(kind)`: u^(1/3) has the distribution Beta(3, 1)."""
    confidence = ((np.arange(100_000) + 0.5) / 100_000) ** (1 / 3)
    m = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence)
    off = np.bincount(m, weights=accuracy_of(kind, confidence) - confidence, minlength=num_bins) / len(m)
    mass = np.bincount(m, minlength=num_bins) / len(m)
    return np.abs(off).sum(), math.sqrt(np.sum(off**2 / mass))


def draw(kind, num_examples, generator):
    confidence = generator.random(num_examples) ** (1 / 3)
    return confidence, generator.random(num_examples) < accuracy_of(kind, confidence)


@pytest.mark.parametrize("kind", ["calibrated", "uniform", "one bin", "last bin", "alternating"])
def test_intervals_hold_the_true_error(kind):
    generator = np.random.default_rng(0)
    covered, width, truth = np.zeros(2), 0.0, true_errors(kind)
    for _ in range(200):
        confidence, correct = draw(kind, 600, generator)
        ends = [calibration.top_label_interval(confidence, correct, norm=norm) for norm in ("l1", "l2")]
        covered += [low <= error <= high for (low, high), error in zip(ends, truth, strict=True)]
        width += (ends[0].high - ends[0].low) / 200
    assert covered.min() >= 186  # .95 would give 190, with a standard deviation of 3
    assert width < 0.11


def test_interval_of_a_handful_of_mistakes():
    # Sure throughout, wrong in one case of 100: an ECE of .01 that 600 examples show by 6 mistakes, or 2, or 1.
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = calibration.top_label_interval(np.ones(600), generator.random(600) < 0.99)
        covered += low <= 0.01 <= high
    assert covered >= 290  # without the overall gap 281


def test_interval_narrows_and_follows_its_level():
    logits, labels = sample(4000, 5, gain=2.0)
    wide, narrow = (calibration.calibration_interval(logits[:n], labels[:n]) for n in (250, 4000))
    assert narrow.high - narrow.low < 0.4 * (wide.high - wide.low)
    assert narrow.low < calibration.expected_calibration_error(logits, labels) < narrow.high
    tighter = calibration.calibration_interval(logits, labels, level=0.5)
    assert narrow.low < tighter.low < tighter.high < narrow.high
    hot = calibration.calibration_interval(logits, labels, temperature=2.0, norm="l2")
    assert hot == calibration.calibration_interval(logits / 2, labels, norm="l2")


def test_interval_of_a_perfect_network_is_not_empty():
    # No mistake in 20 leaves up to 17 % (Clopper and Pearson: 1 - .025^(1/20)).
    low, high = calibration.top_label_interval(np.ones(20), np.ones(20, bool))
    assert low == 0.0 and high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert calibration.top_label_interval(np.ones(20), np.zeros(20, bool)).high == 1.0


def test_contributions_are_their_definition():
    generator = np.random.default_rng(2)
    confidence = generator.uniform(0.3, 1, 500)
    correct = generator.random(500) < confidence**2
    value, expected = 0.0, np.empty(500)
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            terms = np.where(inside, correct - confidence, 0.0)
            g, s = terms.mean(), terms.std() / math.sqrt(500)
            value += (abs(g) if abs(g) > s else 0.0) - (0.18 * s if abs(g) < 2 * s else 0.0)
            expected[inside] = np.sign(g) * (2 - math.erf(abs(g) / s / math.sqrt(2))) * terms[inside]
    found = calibration.top_label_contributions(confidence, correct)
    assert found.value == pytest.approx(value)
    np.testing.assert_allclose(found.examples, expected, atol=1e-12)


def test_contributions_measure_the_values_scatter():
    generator = np.random.default_rng(3)
    drawn = [calibration.top_label_contributions(*draw("uniform", 2000, generator)) for _ in range(300)]
    scatter = np.std([value for value, _ in drawn])
    promised = np.mean([examples.std() for _, examples in drawn]) / math.sqrt(2000)
    assert promised == pytest.approx(scatter, rel=0.2)
    # The value's bias is at most .3 Σ s; 15 bins of standard errors around √(mass · .16 / 2,000) give Σ s = .03.
    assert np.mean([value for value, _ in drawn]) == pytest.approx(true_errors("uniform")[0], abs=0.01)


def test_contributions_of_bins_without_variation():
    value, examples = calibration.top_label_contributions(np.ones(4), np.zeros(4, bool))
    assert value == 1.0 and examples.tolist() == [1.0] * 4
    value, examples = calibration.top_label_contributions(np.ones(4), np.ones(4, bool))
    assert value == 0.0 and not examples.any()


# Bad input


GOOD = np.array([[1.0, -2.0, 0.0], [0.5, 0.0, 0.1]])


@pytest.mark.parametrize("function", [*ERRORS, calibration.accuracy, calibration.fit_temperature])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (GOOD, np.array([0, 3]), r"labels in \[0, 3\).*0 to 3"),
        (GOOD, np.array([-1, 0]), r"-1 to 0"),
        (GOOD, 0.9 * np.eye(3)[:2] + 0.1 / 3, r"argmax\(-1\)"),
        (GOOD, np.array([[1, 1, 0], [0, 1, 0]]), "one-hot"),
        (GOOD, np.zeros((2, 3), bool), "one-hot"),
        (GOOD, np.eye(2), r"one-hot \[2, 3\].*received shape \(2, 2\)"),
        (GOOD, np.array([0.7, 1.0]), "received 0.7, which is no whole number"),
        (GOOD, np.array([np.nan, 1.0]), "no whole number"),
        (np.zeros((1, 3000)), np.array([2049], np.float16), "2048 or more in float16"),
        (GOOD, np.array([np.inf, 1.0]), "rounds them"),
        (GOOD, np.array(["0", "1"]), "integer labels"),
        (GOOD, np.array([True, False]), "integer labels"),
        (GOOD, np.array([0, None]), "integer labels"),
        (GOOD, np.array([0, 1j]), "integer labels"),
        (GOOD, np.ma.masked_equal([0, 1], 1), "masked"),
        (GOOD, np.array([0]), r"shape \[2\].*received shape \(1,\)"),
        (GOOD.astype(str), np.array([0, 1]), "logits to be real numbers"),
        (GOOD.astype(object), np.array([0, 1]), "logits to be real numbers"),
        (GOOD.astype(complex), np.array([0, 1]), "logits to be real numbers"),
        (GOOD > 0, np.array([0, 1]), "logits to be real numbers"),
        (np.ma.masked_equal(GOOD, 0.0), np.array([0, 1]), "masked"),
        (GOOD[0], np.array([0, 1, 1]), r"received \(3,\)"),
        (GOOD[:, :1], np.array([0, 0]), "at least 2 classes"),
        (np.zeros((0, 3)), np.zeros(0, int), "no examples"),
        (np.array([[0.0, 1.0], [np.nan, 1.0], [np.inf, 0.0]]), np.zeros(3, int), "2 of 3 rows.*row 1"),
        (np.array([[0.0, 1.0], [-np.inf, -np.inf], [-np.inf, 0.0]]), np.ones(3, int), "1 of 3 rows.*row 1"),
        (np.array([[0.0, -np.inf], [np.inf, -np.inf], [np.nan, -np.inf]]), np.zeros(3, int), "2 of 3 rows.*row 1"),
    ],
)
def test_bad_examples(function, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        function(logits, labels)


@pytest.mark.parametrize("name", FROM_EXAMPLES)
def test_kinds_of_labels(name):
    logits, labels = sample(60, 5)
    expected = FROM_EXAMPLES[name](logits, labels)
    one_hot = np.eye(5)[labels]
    kinds = (labels[:, None], labels.tolist(), labels.astype(np.uint8), labels.astype(np.float32), one_hot, one_hot > 0)
    for same in kinds:
        np.testing.assert_array_equal(FROM_EXAMPLES[name](logits, same), expected)


@pytest.mark.parametrize(
    "temperature", [0.0, -1.0, 1e-310, np.nan, np.inf, np.array([1.0, 0.0]), np.ones(3), "1", True, 1j, None]
)
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature"):
        calibration.expected_calibration_error(GOOD, np.array([0, 1]), temperature=temperature)


@pytest.mark.parametrize("num_bins", [0, -1, 2.5, 2.0, "15", True, np.True_, None, np.nan, np.array([15]), [15], 1j])
@pytest.mark.parametrize("name", ["reliability", "ece", "adaptive", "debiased", "interval", "contributions"])
def test_bad_bins(name, num_bins):
    with pytest.raises(ValueError, match="num_bins to be an integer of at least 1"):
        FROM_EXAMPLES[name](GOOD, np.array([0, 1]), num_bins=num_bins)
    FROM_EXAMPLES[name](GOOD, np.array([0, 1]), num_bins=np.int8(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": 1.0}, "level"),
        ({"level": 0.0}, "level"),
        ({"level": 95}, "level"),
        ({"level": "0.95"}, "level"),
        ({"level": True}, "level"),
        ({"level": np.nan}, "level"),
        ({"norm": "L2"}, "norm"),
        ({"norm": 1}, "norm"),
    ],
)
def test_bad_interval(arguments, message):
    with pytest.raises(ValueError, match=f"Expected {message} to be"):
        calibration.calibration_interval(GOOD, np.array([0, 1]), **arguments)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", True, None])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed to be an integer of at least 0"):
        calibration.cross_fitted(*sample(10, 3), seed=seed)


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], "at least one example"),
        ([0.5], [True, False], r"\(1,\) and \(2,\)"),
        ([[0.5]], [[True]], r"\(1, 1\)"),
        ([1.5, 0.5], [True, False], r"\[0, 1\]; received 0.5 to 1.5"),
        ([-0.1, 0.5], [True, False], r"\[0, 1\]"),
        ([np.nan, 0.5], [True, False], r"\[0, 1\]"),
        (["0.5"], [True], "real numbers"),
        ([0.5, 0.5], [3, 1], "True and False"),
        ([0.5, 0.5], [0.7, 1], "True and False"),
        ([0.5], ["True"], "real numbers"),
    ],
)
@pytest.mark.parametrize("function", [calibration.top_label_interval, calibration.top_label_contributions])
def test_bad_top_labels(function, confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        function(np.array(confidence), np.array(correct))


def test_cross_fitting_one_example():
    with pytest.raises(ValueError, match="at least 2"):
        calibration.cross_fitted(GOOD[:1], np.array([0]))


def test_docstring_examples():
    logits, labels = sample(50, 3)
    names = {**vars(calibration), "logits": logits, "labels": labels}
    left_out = {"cross_fitted", "calibration_contributions"}  # whose numbers are the reader's own
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in finder.find(calibration, globs=names):
        if test.name.rpartition(".")[2] not in left_out:
            runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries > 8


@pytest.mark.parametrize(
    "made", [lambda p: p.round(2), lambda p: 100 * p, lambda p: (100 * p).round(), lambda p: p.round(4)]
)
@pytest.mark.parametrize("num_classes", [3, 5, 10])
def test_probabilities_as_files_hold_them_are_no_logits(made, num_classes):
    generator = np.random.default_rng(0)
    probabilities = scipy.special.softmax(3 * generator.normal(size=(200, num_classes)), axis=1)
    labels = generator.integers(0, num_classes, 200)
    with pytest.raises(ValueError, match="Expected logits; received rows that are non-negative and sum to 1"):
        calibration.expected_calibration_error(made(probabilities), labels)


def test_few_logits_may_sum_to_100():
    assert calibration.negative_log_likelihood(np.array([[100.0, 0.0]]), np.array([0])) == 0.0


def test_ragged_lists_are_named():
    with pytest.raises(ValueError, match="Expected logits to be one array of real numbers; received a ragged list"):
        calibration.expected_calibration_error([[1.0, 2.0], [1.0]], np.array([0, 1]))
