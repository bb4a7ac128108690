import json

from ls_keras.losses import ConfidencePenalty, SmoothedCrossentropy, smooth_labels

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

PRIOR = [0.1, 0.2, 0.3, 0.15, 0.25]


def reference_target(label, num_classes, alpha, convention, prior):
    """The smoothed one-hot row, written class by class from the definition."""
    q = np.full(num_classes, 1 / num_classes) if prior is None else np.asarray(prior)
    row = np.empty(num_classes)
    for k in range(num_classes):
        if convention == "all":
            row[k] = (1 - alpha) * (k == label) + alpha * q[k]
        else:
            others = sum(q[j] for j in range(num_classes) if j != label)
            row[k] = 1 - alpha if k == label else alpha * q[k] / others
    return row


def reference(labels, logits, alpha, convention="all", prior=None):
    """Loss and gradient per example in float64."""
    targets = np.stack([reference_target(y, logits.shape[-1], alpha, convention, prior) for y in labels])
    logits = logits.astype("float64")
    return -(targets * log_softmax(logits, -1)).sum(-1), softmax(logits, -1) - targets


def loss_and_gradient(loss, labels, logits):
    z = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(labels, z)
    return value.numpy(), tape.gradient(value, z).numpy()


@pytest.mark.parametrize("prior", [None, PRIOR])
@pytest.mark.parametrize("convention", ["all", "others"])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.75])
def test_integer_one_hot_and_soft_labels_follow_the_definition(alpha, convention, prior):
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3, size=(7, 5)).astype("float32")
    labels = generator.integers(0, 5, 7)
    expected, gradient = reference(labels, logits, alpha, convention, prior)
    loss = SmoothedCrossentropy(alpha, convention, prior, reduction="sum")
    for y in (labels, np.eye(5, dtype="float32")[labels], labels[:, None]):
        value, received = loss_and_gradient(loss, y, logits)
        np.testing.assert_allclose(value, expected.sum(), rtol=1e-6)
        np.testing.assert_allclose(received, gradient, atol=1e-6)
    soft = generator.dirichlet(np.ones(5), size=7)
    targets = soft @ np.stack([reference_target(k, 5, alpha, convention, prior) for k in range(5)])
    np.testing.assert_allclose(
        smooth_labels(soft, alpha, convention=convention, prior=prior), targets, rtol=1e-5, atol=1e-7
    )


def test_matches_keras_label_smoothing():
    generator = np.random.default_rng(1)
    logits, labels = generator.normal(size=(9, 4)).astype("float32"), generator.integers(0, 4, 9)
    stock = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    ours = SmoothedCrossentropy(0.2)(labels, logits)
    np.testing.assert_allclose(ours, stock(np.eye(4)[labels], logits), rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    num_classes=st.integers(2, 12),
    epsilon=st.floats(0, 0.6),
    offset=st.floats(-1000, 1000),
    seed=st.integers(0, 2**31),
)
def test_conventions_convert_and_shifting_logits_changes_nothing(num_classes, epsilon, offset, seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(3, num_classes)).astype("float32")
    labels = generator.integers(0, num_classes, 3)
    alpha = epsilon * num_classes / (num_classes - 1)
    if alpha < 1:
        others = SmoothedCrossentropy(epsilon, "others")(labels, logits)
        np.testing.assert_allclose(others, SmoothedCrossentropy(alpha)(labels, logits), rtol=1e-5, atol=1e-6)
    shifted = SmoothedCrossentropy(epsilon)(labels, logits + np.float32(offset))
    np.testing.assert_allclose(shifted, SmoothedCrossentropy(epsilon)(labels, logits), rtol=1e-3, atol=1e-3)


def test_extreme_logits_stay_finite():
    logits = np.array([[1e4, -1e4, 0.0], [-3e38, 3e38, 0.0]], "float32")[:1]
    value, gradient = loss_and_gradient(SmoothedCrossentropy(0.0), [1], logits)
    assert value == pytest.approx(2e4)
    np.testing.assert_allclose(gradient, [[1.0, -1.0, 0.0]], atol=1e-6)


def test_sequences_with_pads_equal_the_loss_without_them():
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(2, 4, 6)).astype("float32")
    labels = np.array([[1, 5, 0, 0], [2, 3, 4, 0]])
    labels[labels == 0] = -1
    kept = labels >= 0
    expected, _ = reference(labels[kept], logits[kept], 0.1)
    loss = SmoothedCrossentropy(0.1, ignore_class=-1)
    value, gradient = loss_and_gradient(loss, labels, logits)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-6)
    assert np.all(gradient[~kept] == 0)
    weights = generator.uniform(size=(2, 4)).astype("float32")
    np.testing.assert_allclose(loss(labels, logits, weights), np.average(expected, weights=weights[kept]), rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        SmoothedCrossentropy(0.2, "others", PRIOR, reduction="sum", dtype="float64"),
        SmoothedCrossentropy(0.3, ignore_class=0, name="mine"),
        ConfidencePenalty(0.25, reduction=None, dtype="float64"),
    ],
)
def test_config_survives_json(loss):
    copy = keras.losses.deserialize(json.loads(json.dumps(keras.losses.serialize(loss))))
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    assert copy.dtype == loss.dtype
    logits = np.random.default_rng(3).normal(size=(4, 5))
    np.testing.assert_array_equal(copy([1, 2, 3, 4], logits), loss([1, 2, 3, 4], logits))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_computes_in_its_dtype_whatever_the_logits(dtype):
    logits = np.random.default_rng(4).normal(size=(4, 5)).astype("float16")
    value = SmoothedCrossentropy(0.1, dtype=dtype, reduction="sum")([0, 1, 2, 3], logits)
    assert value.dtype == dtype
    expected, _ = reference([0, 1, 2, 3], logits, 0.1)
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-6 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_label_out_of_range_gives_nan_inside_a_step(compiled):
    step = tf.function(SmoothedCrossentropy(0.1, reduction=None), jit_compile=compiled)
    losses = step(tf.constant([0, 3, -1]), tf.zeros((3, 3)))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.0}, r"\[0, 1\); received 1.0"),
        ({"alpha": -0.1}, r"\[0, 1\); received -0.1"),
        ({"alpha": float("nan")}, "received nan"),
        ({"convention": "paper"}, "received 'paper'"),
        ({"prior": [0.5, 0.4]}, "sum 0.9"),
        ({"prior": [1.5, -0.5]}, "non-negative"),
        ({"prior": [[0.5, 0.5]]}, "one non-negative number per class"),
        ({"prior": [float("nan"), 1.0]}, "non-negative"),
        ({"prior": [0.0, 1.0], "convention": "others"}, "no other"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SmoothedCrossentropy(**arguments)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3, 0], "received 1 outside, the first being 3"),
        ([-1, 0], "the first being -1"),
        ([0, 1, 2], "shape without the last axis"),
        ([[0, 1], [1, 0]], "shape without the last axis"),
        (0, "shape without the last axis"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        SmoothedCrossentropy(0.1)(labels, np.zeros((2, 3), "float32"))


def test_a_prior_of_another_length_and_pads_with_one_hot_are_refused():
    with pytest.raises(ValueError, match="5 classes, but the logits have 3"):
        SmoothedCrossentropy(0.1, prior=PRIOR)([0], np.zeros((1, 3)))
    with pytest.raises(ValueError, match="needs integer labels"):
        SmoothedCrossentropy(0.1, ignore_class=0)(np.eye(3), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="finite number"):
        ConfidencePenalty(-1.0)


def test_c13_smoothing_is_the_confidence_penalty_with_the_divergence_reversed():
    """(1−α)H(y,p) + α KL(u‖p) + α ln K = smoothed loss; H(y,p) + β KL(p‖u) − β ln K = confidence penalty."""
    generator = np.random.default_rng(5)
    logits, labels, k = generator.normal(scale=2, size=(8, 6)), generator.integers(0, 6, 8), 6
    log_p = log_softmax(logits, -1)
    p, u = np.exp(log_p), np.full(k, 1 / k)
    hard = -log_p[np.arange(8), labels]
    kl_up = (u * (np.log(u) - log_p)).sum(-1)
    kl_pu = (p * (log_p - np.log(u))).sum(-1)
    smoothed = SmoothedCrossentropy(0.3, reduction=None, dtype="float64")(labels, logits)
    penalised = ConfidencePenalty(0.3, reduction=None, dtype="float64")(labels, logits)
    np.testing.assert_allclose(smoothed, 0.7 * hard + 0.3 * (kl_up + np.log(k)), rtol=1e-12)
    np.testing.assert_allclose(penalised, hard + 0.3 * (kl_pu - np.log(k)), rtol=1e-12)
    one_hot = ConfidencePenalty(0.3, reduction=None, dtype="float64")(np.eye(6)[labels], logits)
    np.testing.assert_allclose(one_hot, penalised, rtol=1e-12)


def test_c13_disturblabel_is_smoothing_in_expectation():
    """With probability α the label is redrawn among all K classes; the exact mean over the redraw is the loss."""
    generator = np.random.default_rng(6)
    logits, alpha, label = generator.normal(size=(1, 5)), 0.2, 3
    hard = SmoothedCrossentropy(0.0, reduction=None, dtype="float64")
    per_class = np.array([float(hard([k], logits)[0]) for k in range(5)])
    expectation = (1 - alpha) * per_class[label] + alpha * per_class.mean()
    smoothed = SmoothedCrossentropy(alpha, dtype="float64")([label], logits)
    np.testing.assert_allclose(smoothed, expectation, rtol=1e-12)


def test_optimal_logit_gap():
    """At the minimum the right logit leads by ln(1 + K(1−α)/α) and the loss is the targets' entropy."""
    k, alpha = 10, 0.1
    gap = np.log(1 + k * (1 - alpha) / alpha)
    logits = np.zeros((1, k), "float32")
    logits[0, 4] = gap
    value, gradient = loss_and_gradient(SmoothedCrossentropy(alpha), [4], logits)
    assert value == pytest.approx(0.5003, abs=5e-5)  # entropy of (0.91, 9 × 0.01)
    np.testing.assert_allclose(gradient, np.zeros((1, k)), atol=1e-6)


def gradient_of(loss, labels, logits):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    return value, tape.gradient(value, logits)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("convention", "with_prior"), [("all", False), ("all", True), ("others", True)])
def test_a_large_vocabulary_in_sequences_follows_the_definition(convention, with_prior, compiled):
    generator = np.random.default_rng(7)
    logits, labels = generator.normal(size=(2, 3, 1500)).astype("float32"), generator.integers(0, 1500, (2, 3))
    prior = generator.dirichlet(np.ones(1500)) if with_prior else None
    expected, gradient = reference(labels.ravel(), logits.reshape(6, 1500), 0.1, convention, prior)
    loss = SmoothedCrossentropy(0.1, convention, prior, reduction="sum")
    step = tf.function(lambda y, z: gradient_of(loss, y, z), jit_compile=compiled)
    value, received = step(tf.constant(labels), tf.constant(logits))
    np.testing.assert_allclose(value, expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(received, gradient.reshape(2, 3, 1500), atol=1e-6)


def test_integer_labels_never_become_one_hot():
    """Floating arrays of the logits' size: softmax and gradient, which the runtime puts in one buffer."""
    step = tf.function(lambda y, z: gradient_of(SmoothedCrossentropy(0.1), y, z)).get_concrete_function(
        tf.TensorSpec((8,), "int32"), tf.TensorSpec((8, 2000), "float32")
    )
    made = {
        operation.type
        for operation in step.graph.get_operations()
        for tensor in operation.outputs
        if tensor.dtype.is_floating and tensor.shape.rank and tensor.shape.num_elements() == 16000
    }
    # Fill is the gradient of an identity of the logits that nothing reads; it is pruned.
    assert made == {"Placeholder", "Softmax", "Mul", "Sub", "SelectV2", "Identity", "IdentityN", "Fill"}
