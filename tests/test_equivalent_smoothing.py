"""How soft a teacher is, and at which temperature it is as soft as label smoothing."""

from ls_keras import distillation
from ls_keras.analysis.arguments import are_probabilities

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy.special import softmax


def naive_gamma(logits, labels, temperature):
    p = softmax(np.asarray(logits, float) / temperature, -1)
    return (1 - p[np.arange(len(p)), labels]).mean() * p.shape[1] / (p.shape[1] - 1)


def test_example_of_the_docstring():
    gamma = distillation.equivalent_smoothing(np.log([[0.91, 0.03, 0.03, 0.03]]), np.array([0]))
    assert gamma == pytest.approx(0.12)


@settings(deadline=None, max_examples=30)
@given(k=st.integers(2, 20), alpha=st.floats(1e-9, 1), seed=st.integers(0, 2**31))
def test_gamma_of_smoothed_targets_is_alpha(k, alpha, seed):
    labels = np.random.default_rng(seed).integers(0, k, 50)
    smoothed = (1 - alpha) * np.eye(k)[labels] + alpha / k
    assert distillation.equivalent_smoothing(np.log(smoothed), labels) == pytest.approx(alpha, rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(k=st.integers(2, 8), temperature=st.floats(0.05, 100), seed=st.integers(0, 2**31))
def test_gamma_follows_its_definition_in_parts_too(k, temperature, seed):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(scale=5, size=(30, k)).astype("float32"), generator.integers(0, k, 30)
    expected = naive_gamma(logits, labels, temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "_CHUNK_SIZE", 7 * k)
        assert distillation.equivalent_smoothing(logits, labels, temperature) == pytest.approx(expected, abs=1e-12)


def test_gamma_of_a_sure_teacher_keeps_its_digits():
    gamma = distillation.equivalent_smoothing(np.array([[100.0, 0.0]]), np.array([0]))
    assert gamma == pytest.approx(2 * np.exp(-100.0), rel=1e-12)
    assert distillation.equivalent_smoothing(np.array([[1e30, -1e30]]), np.array([1]), 1e-300) == 2.0


@settings(deadline=None, max_examples=50)
@given(k=st.integers(2, 6), n=st.integers(1, 8), seed=st.integers(0, 2**31), scale=st.floats(0.01, 100))
def test_gamma_rises_with_temperature_if_the_teacher_is_right(k, n, seed, scale):
    logits = np.random.default_rng(seed).normal(scale=scale, size=(n, k))
    gammas = [distillation.equivalent_smoothing(logits, logits.argmax(1), t) for t in 2.0 ** np.arange(-6, 20)]
    assert (np.diff(gammas) >= -1e-15).all()


@settings(deadline=None, max_examples=100)
@given(
    k=st.integers(2, 6),
    n=st.integers(1, 8),
    gamma=st.floats(0.001, 0.999),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 2**31),
)
@example(k=2, n=1, gamma=0.5, scale=1.0, seed=0)
def test_matching_temperature_is_the_warmest_crossing_or_none_is_there(k, n, gamma, scale, seed):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(scale=scale, size=(n, k)), generator.integers(0, k, n)
    assume(not are_probabilities(logits))  # a row of logits may sum to 1 by chance
    # At the first of these the widest row alone has the softness γ, so none of the warmer is harder than γ.
    scan = np.ptp(logits, axis=1).max() / np.log1p(k * (1 - gamma) / gamma) * 2.0 ** np.arange(10, -40, -1)
    gammas = np.array([naive_gamma(logits, labels, t) for t in scan])
    assert (gammas[:11] >= gamma - 1e-12).all()
    floor = (logits.argmax(1) != labels).mean() * k / (k - 1)
    try:
        temperature = distillation.matching_temperature(logits, labels, gamma)
    except ValueError as problem:
        assert "No temperature" in str(problem)
        assert floor >= gamma
        assert gammas.min() >= gamma - 1e-9
        return
    assert naive_gamma(logits, labels, temperature) == pytest.approx(gamma, abs=1e-9)
    assert (gammas[scan > temperature] >= gamma - 1e-12).all()


def test_matching_temperature_of_one_example():
    logits, labels = np.array([[2.0, 0.0]]), np.array([0])
    for gamma in (1e-12, 0.1, 0.5, 0.999999):
        expected = 2 / np.log(2 / gamma - 1)
        assert distillation.matching_temperature(logits, labels, gamma) == pytest.approx(expected, rel=1e-8)


def test_gamma_may_dip_and_then_the_warmest_crossing_is_taken():
    """Two right by 10, one wrong by 0.1: γ falls from 2/3 to 1/3 near T = 0.1 … 1, then rises to 1."""
    logits, labels = np.array([[10.0, 0.0], [10.0, 0.0], [0.1, 0.0]]), np.array([0, 0, 1])
    gammas = [distillation.equivalent_smoothing(logits, labels, t) for t in (0.001, 1.0, 100.0)]
    assert gammas[0] == pytest.approx(2 / 3)
    assert gammas[1] < 0.4 < gammas[2]
    temperature = distillation.matching_temperature(logits, labels, 0.5)
    assert temperature > 1
    assert distillation.equivalent_smoothing(logits, labels, temperature) == pytest.approx(0.5, abs=1e-9)
    with pytest.raises(ValueError, match=r"as hard as γ = 0.3: γ\(T\) comes down to 0.3.*0.666667"):
        distillation.matching_temperature(logits, labels, 0.3)


def test_what_no_temperature_reaches_is_refused():
    logits = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]])
    with pytest.raises(ValueError, match=r"γ = 0.6: .*comes down to 0\.666667.*Ask for more, below 1"):
        distillation.matching_temperature(logits, np.array([0, 2]), 0.6)
    with pytest.raises(ValueError, match="comes down to 1"):
        distillation.matching_temperature(np.full((2, 3), 7.0), np.array([0, 2]), 0.6)
    for gamma in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"\(0, 1\); received {gamma}"):
            distillation.matching_temperature(logits, np.array([0, 1]), gamma)


@pytest.mark.parametrize(
    ("logits", "labels", "temperature", "message"),
    [
        (np.zeros((2, 3)), [0, 1], 0.0, "`temperature` must be a finite number above 0"),
        (np.zeros((2, 3)), [0, 1], float("nan"), "received nan"),
        (np.zeros(3), [0], 1.0, r"shape \(3,\)"),
        (np.zeros((2, 1)), [0, 0], 1.0, "K ≥ 2"),
        (np.zeros((2, 3)), [0, 1, 2], 1.0, r"labels of shape \[2\].*received shape \(3,\)"),
        (np.zeros((2, 3)), [0.0, 0.7], 1.0, "received 0.7, which is no whole number"),
        (np.zeros((2, 3)), ["0", "1"], 1.0, "received dtype"),
        (np.zeros((2, 3)), [0, 3], 1.0, r"\[0, 3\).*received 0 to 3"),
        (np.full((2, 3), np.nan), [0, 1], 1.0, "NaN or infinity"),
        (softmax(np.random.default_rng(0).normal(size=(5, 3)), -1), [0, 1, 2, 0, 1], 1.0, "as probabilities do"),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused(logits, labels, temperature, message):
    with pytest.raises(ValueError, match=message):
        distillation.equivalent_smoothing(logits, np.array(labels), temperature)


@pytest.mark.parametrize("temperature", ["2", np.ones(2), True])
def test_a_temperature_is_one_number(temperature):
    with pytest.raises(ValueError, match="Expected temperature to be a finite number above 0"):
        distillation.equivalent_smoothing(np.zeros((2, 3)), np.array([0, 1]), temperature)
    with pytest.raises(ValueError, match=r"Expected gamma to be a number in \(0, 1\)"):
        distillation.matching_temperature(np.zeros((2, 3)), np.array([0, 1]), temperature)
