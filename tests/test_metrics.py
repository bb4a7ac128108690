import json

from ls_keras.metrics import Accuracy, ExpectedCalibrationError, NegativeLogLikelihood, classification

import keras
import numpy as np
import pytest
import tensorflow as tf
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
    np.testing.assert_array_equal(ece.sums()[:, 0], [1, 1])


def test_one_hot_labels_and_row_weights_for_sequences():
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(3, 4, 5)).astype("float32"), generator.integers(0, 5, (3, 4))
    for metric in (ExpectedCalibrationError, NegativeLogLikelihood):
        by_index = metric()(labels, logits, np.array([1.0, 0.0, 2.0]))
        spread = np.repeat([[1.0], [0.0], [2.0]], 4, axis=1)
        assert float(metric()(np.eye(5)[labels], logits, spread)) == float(by_index)


def test_padding_rows_do_not_count_whatever_they_hold():
    logits = np.array([[0.0, 2.0], [np.nan, np.nan]], "float32")
    for metric in (Accuracy, ExpectedCalibrationError, NegativeLogLikelihood):
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
    for metric in (
        ExpectedCalibrationError(7, name="a", dtype="float64", ignore_class=0),
        NegativeLogLikelihood(name="b", from_logits=False),
        Accuracy(name="c", ignore_class=None),
    ):
        copy = keras.metrics.deserialize(json.loads(json.dumps(keras.metrics.serialize(metric))))
        assert copy.get_config() == metric.get_config()


@pytest.mark.parametrize("num_bins", [0, -1, 2.5, 2.0, "15", True, float("nan")])
def test_bad_bins_are_refused(num_bins):
    with pytest.raises(ValueError, match="positive integer"):
        ExpectedCalibrationError(num_bins)


METRICS = {
    "accuracy": (Accuracy, lambda p, t: (p.argmax(-1) == t.argmax(-1)).astype(float)),
    "nll": (NegativeLogLikelihood, lambda p, t: -(t * np.log(p)).sum(-1)),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("compiled", [False, True])
def test_integer_one_hot_and_soft_labels_give_the_mean_of_each_row(metric, compiled):
    make, of_rows = METRICS[metric]
    generator = np.random.default_rng(3)
    logits, labels = generator.normal(size=(3, 4)).astype("float32"), generator.integers(0, 4, 3)
    hard, soft = np.eye(4, dtype="float32")[labels], generator.dirichlet(np.ones(4), 3).astype("float32")
    p = softmax(logits.astype("float64"), -1)
    for y, targets in (
        (labels, hard),
        (labels[:, None], hard),
        (labels.astype("float32"), hard),
        (labels.astype("uint8"), hard),
        (hard, hard),
        (hard.astype("int32"), hard),
        (soft, soft),
    ):
        expected = of_rows(p, targets).mean()
        assert measured(make(), y, logits, compiled=compiled) == pytest.approx(expected, rel=1e-6)


def measured(metric, y, z, weights=None, compiled=False):
    """What a metric gives for one batch, with its values in sight or inside a compiled step."""
    update = tf.function(metric.update_state) if compiled else metric.update_state
    if compiled:
        y, z = tf.constant(y), tf.constant(z)
        weights = None if weights is None else tf.constant(weights)
    update(y, z, weights)
    return float(metric.result())


KERAS = {
    "accuracy": (Accuracy, keras.metrics.SparseCategoricalAccuracy),
    "nll": (NegativeLogLikelihood, lambda: keras.metrics.SparseCategoricalCrossentropy(from_logits=True)),
}


@pytest.mark.parametrize("metric", KERAS)
@pytest.mark.parametrize("shape", [(), (2,), (2, 1), (2, 5), (2, 5, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_and_masks_of_any_shape_count_as_in_keras(metric, shape, masked):
    generator = np.random.default_rng(4)
    logits = tf.constant(generator.normal(size=(2, 5, 3)).astype("float32"))
    labels = generator.integers(0, 3, (2, 5))
    weights = generator.uniform(0.5, 2.0, shape).astype("float32")
    ours, theirs = (make() for make in KERAS[metric])
    if masked:
        mask = generator.random((2, 5)) < 0.5
        logits._keras_mask = tf.constant(mask)
    ours.update_state(labels, logits, weights)
    # Keras does not squeeze [2, 5, 1], and of a mask beside weights of another shape it makes an error.
    full = np.broadcast_to(
        weights.reshape(shape + (1,) * (2 - len(shape))) if len(shape) < 3 else weights[..., 0], (2, 5)
    )
    theirs.update_state(labels, tf.constant(logits.numpy()), full * mask if masked else full)
    assert float(ours.result()) == pytest.approx(float(theirs.result()), rel=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_ignored_masked_and_weightless_positions_never_count(compiled):
    generator = np.random.default_rng(5)
    z, y = generator.normal(size=(2, 4, 3)).astype("float32"), np.array([[0, 1, 2, -1], [1, 2, -1, -1]])
    weights = np.array([[1.0, 2.0, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0]], "float32")
    kept = (y >= 0) & (weights > 0)
    z[~kept] = np.nan
    y[0, 2] = 77  # weight 0: it may hold anything
    alone = [metric(y[kept], z[kept], weights[kept]) for metric in classification()]
    for metric, expected in zip(classification(), alone, strict=True):
        assert measured(metric, y, z, weights, compiled) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "nll", "ece"])
def test_what_is_no_label_makes_a_compiled_metric_nan(name):
    z = np.random.default_rng(6).normal(size=(4, 3)).astype("float32")
    for y in ([0, 1, 2, 3], [0, 1, 2, -2], [0.0, 1.0, 0.7, 2.0], [[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.4, 0.4, 0.4]]):
        (metric,) = [metric for metric in classification() if metric.name == name]
        assert np.isnan(measured(metric, np.array(y), z, compiled=True))
        with pytest.raises(ValueError, match="received 1 outside"):
            measured(metric, np.array(y), z)


@pytest.mark.parametrize("name", ["accuracy", "nll", "ece"])
def test_probabilities_are_named_or_refused(name):
    z = np.random.default_rng(7).normal(size=(6, 4)).astype("float32")
    y = np.arange(6) % 4
    p = softmax(z, -1)
    by_name = {metric.name: metric for metric in classification(from_logits=False)}[name]
    plain = {metric.name: metric for metric in classification()}[name]
    expected = measured(plain, y, z)
    assert measured(by_name, y, p) == pytest.approx(expected, rel=1e-5)
    plain.reset_state()
    with pytest.raises(ValueError, match="from_logits=False"):
        measured(plain, y, p)
    assert np.isnan(measured(plain, y, p, compiled=True))
    with pytest.raises(ValueError, match="Expected probabilities"):
        measured(by_name, y, z)


def test_a_softmax_head_is_refused_by_metrics_when_the_step_is_built():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(loss=loss, weighted_metrics=classification())
    with pytest.raises(ValueError, match="output of a softmax"):
        model.evaluate(np.ones((2, 4)), np.array([0, 1]), verbose=0)
    model.compile(loss=loss, weighted_metrics=classification(from_logits=False))
    assert np.isfinite(
        list(model.evaluate(np.ones((2, 4)), np.array([0, 1]), verbose=0, return_dict=True).values())
    ).all()


def test_masked_classes_and_empty_batches():
    z = np.array([[2.0, 1.0, -np.inf], [0.0, 3.0, -np.inf]], "float32")
    accuracy, nll, ece = classification()
    for metric in (accuracy, nll, ece):
        metric.update_state(np.array([0, 0]), z)
        metric.update_state(np.zeros(0, int), np.zeros((0, 3), "float32"))
    p = softmax(z, -1)
    assert float(accuracy.result()) == 0.5
    assert float(nll.result()) == pytest.approx(-np.log(p[:, 0]).mean(), rel=1e-6)
    assert float(ece.result()) == pytest.approx(loop_ece(p, np.array([0, 0]), np.ones(2), 15), abs=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_sums_hold_more_than_float32_can(compiled):
    """2²⁴ + 1 = 2²⁴ in float32; 40 rows after 2²⁴ of them must still count."""
    z = np.log(np.array([[0.75, 0.25]] * 4, "float32"))
    heavy = np.full(4, 2.0**22, "float32")
    nll, ece = NegativeLogLikelihood(), ExpectedCalibrationError()
    for metric, expected in (
        (nll, (2**24 * -np.log(0.75) + 40 * -np.log(0.25)) / (2**24 + 40)),
        (ece, abs(2**24 / (2**24 + 40) - 0.75)),
    ):
        update = tf.function(metric.update_state) if compiled else metric.update_state
        update(tf.zeros(4, "int32"), tf.constant(z), tf.constant(heavy))
        for _ in range(40):
            update(tf.ones(1, "int32"), tf.constant(z[:1]), tf.ones(1))
        column = (..., 0) if metric is ece else 1
        high, low = (part.numpy().astype("float64")[column] for part in (metric.sums.high, metric.sums.low))
        assert np.sum(high + low) == 2**24 + 40
        assert float(metric.result()) == pytest.approx(expected, rel=3e-7)


def test_negative_weights_and_a_wrong_ignore_class_are_refused():
    with pytest.raises(ValueError, match=r"must not be negative; received -1\.0"):
        Accuracy()([0], [[0.0, 2.0]], [-1.0])
    for wrong in (True, 0.5, "-1"):
        with pytest.raises(ValueError, match="`ignore_class` must be a whole number"):
            classification(ignore_class=wrong)
    with pytest.raises(ValueError, match="Sample weights must have shape"):
        Accuracy()([0, 1], [[0.0, 2.0], [0.0, 3.0]], [1.0, 1.0, 1.0])


def test_negative_weights_in_a_compiled_step_make_no_number():
    for metric in classification():
        tf.function(metric.update_state)(np.arange(8) % 3, tf.random.normal((8, 3)), -tf.ones(8))
        assert np.isnan(metric.result())
