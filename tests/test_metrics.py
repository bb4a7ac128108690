import json

from ls_keras.metrics import ExpectedCalibrationError, NegativeLogLikelihood, classification

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, softmax


def loop_ece(probabilities, labels, weights, num_bins):
    """Expected calibration error by one Python loop over bins and examples."""
    confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
    total = 0.0
    for m in range(1, num_bins + 1):
        inside = [i for i in range(len(labels)) if (m - 1) / num_bins < confidence[i] <= m / num_bins]
        weight = sum(weights[i] for i in inside)
        if weight:
            accuracy = sum(weights[i] * correct[i] for i in inside) / weight
            mean = sum(weights[i] * confidence[i] for i in inside) / weight
            total += weight * abs(accuracy - mean)
    return total / sum(weights)


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_batches_weights_and_sequences_add_up_to_the_loop(num_bins):
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=2, size=(6, 5, 7)).astype("float32")
    labels, weights = generator.integers(0, 7, (6, 5)), generator.uniform(size=(6, 5)).astype("float32")
    ece, nll = ExpectedCalibrationError(num_bins), NegativeLogLikelihood()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        for metric in (ece, nll):
            metric.update_state(labels[rows], logits[rows], weights[rows])
    flat = labels.ravel(), weights.ravel().astype("float64")
    probabilities = softmax(logits.astype("float64"), -1).reshape(-1, 7)
    assert float(ece.result()) == pytest.approx(loop_ece(probabilities, *flat, num_bins), abs=1e-6)
    log_p = log_softmax(logits.astype("float64"), -1).reshape(-1, 7)
    expected = np.average(-log_p[np.arange(30), flat[0]], weights=flat[1])
    assert float(nll.result()) == pytest.approx(expected, rel=1e-6)


def test_confidence_one_is_in_the_last_bin_and_bins_are_closed_above():
    ece = ExpectedCalibrationError(num_bins=2)
    ece.update_state([0, 0], [[0.0, 0.0], [200.0, 0.0]])  # confidences exactly 1/2 and 1
    np.testing.assert_array_equal(ece.weight, [1, 1])


def test_one_hot_labels_and_row_weights_for_sequences():
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(3, 4, 5)).astype("float32"), generator.integers(0, 5, (3, 4))
    for metric in (ExpectedCalibrationError, NegativeLogLikelihood):
        by_index = metric()(labels, logits, np.array([1.0, 0.0, 2.0]))
        spread = np.repeat([[1.0], [0.0], [2.0]], 4, axis=1)
        assert float(metric()(np.eye(5)[labels], logits, spread)) == float(by_index)


def test_padding_rows_do_not_count_whatever_they_hold():
    logits = np.array([[0.0, 1.0], [np.nan, np.nan]], "float32")
    for metric in (ExpectedCalibrationError, NegativeLogLikelihood):
        alone = metric()([1], logits[:1])
        assert float(metric()([1, 0], logits, [1.0, 0.0])) == float(alone)


def test_nothing_seen_is_zero_and_reset_forgets():
    for metric in (ExpectedCalibrationError(), NegativeLogLikelihood()):
        assert float(metric.result()) == 0
        first = float(metric([0, 1], [[0.0, 3.0], [0.0, 1.0]]))
        assert first > 0
        metric.reset_state()
        assert float(metric.result()) == 0


def test_smoothing_never_moves_the_held_out_nll():
    """The compiled loss is smoothed, the reported NLL is not."""
    from ls_keras.losses import SmoothedCrossentropy

    x, y = np.random.default_rng(2).normal(size=(20, 4)), np.arange(20) % 3
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    results = []
    for alpha in (0.0, 0.5):
        model.compile(loss=SmoothedCrossentropy(alpha), weighted_metrics=classification())
        results.append(model.evaluate(x, y, verbose=0, return_dict=True))
    assert results[0]["nll"] == results[1]["nll"] == pytest.approx(results[0]["loss"], rel=1e-5)
    assert results[0]["loss"] != results[1]["loss"]


def test_config_survives_json():
    for metric in (ExpectedCalibrationError(7, name="a", dtype="float64"), NegativeLogLikelihood(name="b")):
        copy = keras.metrics.deserialize(json.loads(json.dumps(keras.metrics.serialize(metric))))
        assert copy.get_config() == metric.get_config()


@pytest.mark.parametrize("num_bins", [0, -1, 2.5])
def test_bad_bins_are_refused(num_bins):
    with pytest.raises(ValueError, match="positive integer"):
        ExpectedCalibrationError(num_bins)
