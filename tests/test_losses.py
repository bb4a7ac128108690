import json
from types import SimpleNamespace

from ls_keras import distribution, losses
from ls_keras.losses import (
    ConfidencePenalty,
    DistillationLoss,
    LogitMatching,
    SmoothedCrossentropy,
    distillation_targets,
    smooth_labels,
)

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
    others = sum(q[j] for j in range(num_classes) if j != label)
    for k in range(num_classes):
        if convention == "all":
            row[k] = (1 - alpha) * (k == label) + alpha * q[k]
        else:
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


def step_of(num_classes):
    function = tf.function(lambda y, z: gradient_of(SmoothedCrossentropy(0.1, ignore_class=-1), y, z))
    return function.get_concrete_function(tf.TensorSpec((20,), "int32"), tf.TensorSpec((20, num_classes), "float32"))


def made_at_full_size(graph, num_classes):
    return [
        operation.type
        for operation in graph.get_operations()
        for tensor in operation.outputs
        if tensor.dtype.is_floating and tensor.shape.rank and tensor.shape.num_elements() == 20 * num_classes
    ]


def test_a_large_vocabulary_makes_no_array_of_the_logits_size_but_the_gradient():
    """Value and gradient are one compiled call each; what else is named moves nothing."""
    graph = step_of(5000).graph
    made = made_at_full_size(graph, 5000)
    assert made.count("StatefulPartitionedCall") + made.count("PartitionedCall") == 1
    # Fill is the gradient of an identity of the logits that nothing reads; it is pruned.
    moves = {"Placeholder", "Identity", "IdentityN", "Reshape", "Fill"}
    assert set(made) <= moves | {"StatefulPartitionedCall", "PartitionedCall"}
    assert all(
        compiled(operation) for operation in graph.get_operations() if operation.type.endswith("PartitionedCall")
    )


def compiled(call):
    return call.graph._get_function(call.get_attr("f").name).cached_definition.attr["_XlaMustCompile"].b


def test_integer_labels_never_become_one_hot():
    assert "OneHot" not in made_at_full_size(step_of(100).graph, 100)
    assert "OneHot" not in {operation.type for operation in step_of(100).graph.get_operations()}


# --- Masked classes


MASKED = np.array([[2.0, 1.0, -np.inf, 0.5], [0.0, 3.0, -np.inf, -1.0]], "float32")
WITHOUT = MASKED[:, [0, 1, 3]]


@pytest.mark.parametrize("mask", [-np.inf, -1e9])
@pytest.mark.parametrize("num_classes", [4, 5000])
@pytest.mark.parametrize("kind", ["index", "one-hot"])
def test_a_masked_class_costs_nothing_where_its_target_is_zero(mask, num_classes, kind):
    """Value and gradient are those of the classes that are left."""
    labels = np.array([0, 3])
    logits = np.full((2, num_classes), mask, "float32")
    logits[:, [0, 1, 3]] = WITHOUT
    y = labels if kind == "index" else np.eye(num_classes, dtype="float32")[labels]
    expected, gradient = reference([0, 2], WITHOUT, 0.0)
    value, received = loss_and_gradient(SmoothedCrossentropy(0.0, reduction="sum"), y, logits)
    assert value == pytest.approx(expected.sum(), rel=1e-6)
    np.testing.assert_allclose(received[:, [0, 1, 3]], gradient, atol=1e-6)
    assert np.all(received[:, 2] == 0)
    penalty = ConfidencePenalty(0.5, reduction="sum")
    value, received = loss_and_gradient(penalty, y, logits)
    less, rest = loss_and_gradient(penalty, np.array([0, 2]), WITHOUT)
    assert value == pytest.approx(less, rel=1e-6)
    np.testing.assert_allclose(received[:, [0, 1, 3]], rest, atol=1e-6)


@pytest.mark.parametrize("convention", ["all", "others"])
@pytest.mark.parametrize("kind", ["index", "one-hot"])
def test_a_prior_without_mass_on_a_masked_class_leaves_it_alone(convention, kind):
    prior, labels = [0.2, 0.3, 0.0, 0.5], np.array([0, 3])
    y = labels if kind == "index" else np.eye(4, dtype="float32")[labels]
    expected, gradient = reference([0, 2], WITHOUT, 0.3, convention, [0.2, 0.3, 0.5])
    value, received = loss_and_gradient(SmoothedCrossentropy(0.3, convention, prior, reduction="sum"), y, MASKED)
    assert value == pytest.approx(expected.sum(), rel=1e-6)
    np.testing.assert_allclose(received[:, [0, 1, 3]], gradient, atol=1e-6)
    assert np.all(received[:, 2] == 0)


@pytest.mark.parametrize("convention", ["all", "others"])
@pytest.mark.parametrize("kind", ["index", "one-hot"])
def test_mass_on_a_masked_class_costs_infinity(convention, kind):
    for labels, alpha in (([0, 3], 0.1), ([2, 2], 0.0), ([2, 2], 0.1)):
        y = np.array(labels) if kind == "index" else np.eye(4, dtype="float32")[labels]
        value, gradient = loss_and_gradient(SmoothedCrossentropy(alpha, convention, reduction=None), y, MASKED)
        assert np.all(np.isposinf(value))
        assert np.all(np.isfinite(gradient))


def test_a_class_that_the_teacher_masks_costs_the_student_nothing():
    generator = np.random.default_rng(8)
    teacher, student = (generator.normal(size=(3, 4)).astype("float32") for _ in range(2))
    teacher[:, 2] = student[0, 2] = -np.inf
    packed = distillation_targets(np.array([0, 1, 3]), teacher)
    loss = DistillationLoss(beta=0.6, temperature=2.0, reduction=None)
    p = softmax(teacher.astype(float) / 2, -1)
    log_q = log_softmax(student.astype(float), -1)
    expected = -0.6 * (p[:, [0, 1, 3]] * log_q[:, [0, 1, 3]]).sum(-1) - 0.4 * log_q[[0, 1, 2], [0, 1, 3]]
    value, gradient = loss_and_gradient(loss, packed, student)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    hard = np.eye(4)[[0, 1, 3]]
    np.testing.assert_allclose(gradient, np.exp(log_q) - 0.6 * p - 0.4 * hard, atol=1e-6)


@pytest.mark.parametrize("over_classes", ["sum", "mean"])
@pytest.mark.parametrize("centred", [False, True])
def test_logit_matching_leaves_out_what_both_mask(over_classes, centred):
    generator = np.random.default_rng(9)
    teacher, student = (generator.normal(size=(2, 4)).astype("float32") for _ in range(2))
    teacher[:, 1] = student[:, 1] = -np.inf
    d = (student - np.where(np.isinf(teacher), 0, teacher))[:, [0, 2, 3]].astype(float)
    d = d - d.mean(-1, keepdims=True) * centred
    expected = 0.5 * getattr(np, over_classes)(d**2, axis=-1)
    loss = LogitMatching(1.0, over_classes, centred, reduction=None)
    value, gradient = loss_and_gradient(loss, distillation_targets([0, 0], teacher), student)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient[:, [0, 2, 3]], d / (3 if over_classes == "mean" else 1), atol=1e-6)
    assert np.all(gradient[:, 1] == 0)
    student[:, 1] = 0.0
    assert np.all(np.isposinf(loss(distillation_targets([0, 0], teacher), student)))


# --- Labels that are redrawn


@pytest.mark.parametrize("one_hot", [False, True])
def test_disturbed_labels_are_smoothed_labels_on_average(one_hot):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(50, 5)).astype("float32"), generator.integers(0, 5, 50)
    given = np.eye(5, dtype="float32")[labels] if one_hot else labels
    disturbed = losses.DisturbLabel(0.3, seed=1, reduction=None)
    draws = np.array([disturbed(given, logits) for _ in range(400)])
    log_p = log_softmax(logits.astype(float), axis=1)
    hard = -np.take_along_axis(log_p, labels[:, None], 1)[:, 0]
    # With probability 0.3 one of five: mean and variance of each row's loss in closed form.
    mean = 0.7 * hard - 0.3 * log_p.mean(1)
    variance = 0.7 * hard**2 + 0.3 * (log_p**2).mean(1) - mean**2
    assert np.abs((draws.mean(0) - mean) / np.sqrt(variance / 400)).max() < 4.5
    assert draws.var(0).sum() == pytest.approx(variance.sum(), rel=0.05)
    again = losses.DisturbLabel(0.3, seed=1, reduction=None)
    np.testing.assert_array_equal([again(given, logits) for _ in range(3)], draws[:3])


def test_a_disturbed_loss_comes_back_from_its_config():
    loss = losses.DisturbLabel(0.3, seed=5, from_logits=False)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    probabilities, labels = np.full((4, 2), 0.5, "float32"), np.zeros(4, int)
    assert float(again(labels, probabilities)) == pytest.approx(np.log(2))


def test_labels_that_are_never_redrawn_give_the_crossentropy():
    assert float(losses.DisturbLabel(0.0)([0], [[2.0, 0.0]])) == pytest.approx(np.log1p(np.exp(-2)))
    with pytest.raises(ValueError, match="alpha"):
        losses.DisturbLabel(1.0)


def test_the_state_of_its_draws_is_part_of_a_models_state():
    inputs = keras.Input((3,))
    model = distribution.Model(inputs, keras.layers.Dense(5)(inputs))
    model.compile("sgd", losses.get("DisturbLabel(alpha=0.5)", seed=7))
    model.optimizer.build(model.trainable_variables)
    before = distribution.get_state(model)
    x, y = np.ones((4, 3), "float32"), np.arange(4)
    first = model.train_on_batch(x, y)
    assert model.train_on_batch(x, y) != first
    distribution.set_state(model, before)
    model.reset_metrics()
    assert model.train_on_batch(x, y) == first
    assert losses.get("DisturbLabel(alpha=0.5, seed=3)", seed=7).seed == 3


# --- Rows that do not count


def losses_over_labels():
    return {
        "smoothed": (SmoothedCrossentropy(0.1), lambda y: y),
        "smoothed, one-hot": (SmoothedCrossentropy(0.1), lambda y: np.eye(5, dtype="float32")[y]),
        "smoothed, others": (SmoothedCrossentropy(0.1, "others", PRIOR), lambda y: y),
        "penalty": (ConfidencePenalty(0.5), lambda y: y),
        "disturbed": (losses.DisturbLabel(0.0), lambda y: y),
        "distillation": (DistillationLoss(0.5), packed),
        "matching": (LogitMatching(0.5), packed),
    }


def packed(y):
    teacher = np.random.default_rng(1).normal(size=(*np.shape(y), 5)).astype("float32")
    return np.concatenate([np.asarray(y, "float32")[..., None], teacher], -1)


@pytest.mark.parametrize("name", losses_over_labels())
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_of_weight_zero_may_hold_anything(name, compiled):
    loss, of_labels = losses_over_labels()[name]
    generator = np.random.default_rng(10)
    z, y = generator.normal(size=(4, 5)).astype("float32"), of_labels(np.array([0, 1, 2, 3]))
    weights = np.array([1.0, 0.0, 2.0, 0.0], "float32")
    clean, gradient = gradient_of(lambda y, z: loss(y, z, weights), y, tf.constant(z))
    z[1], z[3] = np.nan, [np.inf, -np.inf, 1, 2, 3]
    y = np.array(y)
    y[1] = -7 if y.ndim == 1 else np.nan
    step = lambda y, z: gradient_of(lambda y, z: loss(y, z, tf.constant(weights)), y, z)  # noqa: E731
    value, received = (tf.function(step) if compiled else step)(tf.constant(y), tf.constant(z))
    assert float(value) == pytest.approx(float(clean), rel=1e-6)
    np.testing.assert_allclose(received, gradient, atol=1e-7)
    assert np.all(received[1::2] == 0)


@pytest.mark.parametrize("name", losses_over_labels())
@pytest.mark.parametrize("shape", [(), (2,), (2, 1), (2, 3), (2, 3, 1)])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum", None])
def test_weights_of_any_shape_weigh_each_position(name, shape, reduction):
    loss, of_labels = losses_over_labels()[name]
    generator = np.random.default_rng(11)
    z, y = generator.normal(size=(2, 3, 5)).astype("float32"), of_labels(generator.integers(0, 5, (2, 3)))
    weights = generator.uniform(0.5, 2, shape).astype("float32")
    each = np.array(
        [[float(loss(y[i : i + 1, j : j + 1], z[i : i + 1, j : j + 1])) for j in range(3)] for i in range(2)]
    )
    full = np.broadcast_to(
        weights[..., 0] if len(shape) == 3 else weights.reshape(shape + (1,) * (2 - len(shape))), (2, 3)
    )
    expected = {
        "sum_over_batch_size": (full * each).sum() / 6,
        "mean_with_sample_weight": (full * each).sum() / full.sum(),
        "sum": (full * each).sum(),
        None: full * each,
    }[reduction]
    loss.reduction = reduction
    np.testing.assert_allclose(loss(y, z, weights), expected, rtol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_keras_masks_mean_what_they_mean_to_keras(weighted):
    generator = np.random.default_rng(12)
    z, y = tf.constant(generator.normal(size=(2, 4, 3)).astype("float32")), generator.integers(0, 3, (2, 4))
    z._keras_mask = tf.constant([[True, True, False, False], [True, False, True, True]])
    weights = generator.uniform(0.5, 2, (2, 4)).astype("float32") if weighted else None
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(SmoothedCrossentropy(0.0)(y, z, weights), stock(y, z, weights), rtol=1e-6)
    stock = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    ours = SmoothedCrossentropy(0.0, reduction="mean_with_sample_weight")
    np.testing.assert_allclose(ours(y, z, weights), stock(y, z, weights), rtol=1e-6)


def test_pads_masks_and_weights_together():
    generator = np.random.default_rng(13)
    z, y = generator.normal(size=(2, 4, 3)).astype("float32"), np.array([[0, 1, 2, -1], [-1, 2, 0, 1]])
    mask = np.array([[True, True, False, True], [True, True, True, True]])
    weights = generator.uniform(0.5, 2, (2, 4)).astype("float32")
    weights[1, 3] = 0
    kept = (y >= 0) & mask
    expected = np.average(reference(y[kept], z[kept], 0.1)[0], weights=weights[kept])
    tensor = tf.constant(z)
    tensor._keras_mask = tf.constant(mask)
    for ignore in (-1, np.int64(-1)):
        value = SmoothedCrossentropy(0.1, ignore_class=ignore)(y, tensor, weights)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_nothing_that_counts_is_zero_with_no_gradient():
    z = tf.constant(np.random.default_rng(14).normal(size=(2, 3)).astype("float32"))
    for loss, y, weights in (
        (SmoothedCrossentropy(0.1, ignore_class=-1), [-1, -1], None),
        (SmoothedCrossentropy(0.1, reduction="mean_with_sample_weight"), [0, 1], [0.0, 0.0]),
        (ConfidencePenalty(0.1), [0, 1], [0.0, 0.0]),
    ):
        value, gradient = gradient_of(lambda y, z, f=loss, w=weights: f(y, z, w), y, z)
        assert float(value) == 0
        assert np.all(gradient == 0)
    for loss in (SmoothedCrossentropy(0.1), ConfidencePenalty(0.1)):
        assert float(loss(np.zeros(0, int), np.zeros((0, 3), "float32"))) == 0


# --- Probabilities


def network(*layers):
    return keras.Sequential([keras.Input((6,)), *layers])


@pytest.mark.parametrize(
    "head",
    [
        lambda: [keras.layers.Dense(4, activation="softmax")],
        lambda: [keras.layers.Dense(4), keras.layers.Softmax()],
        lambda: [keras.layers.Dense(4), keras.layers.Activation("softmax", dtype="float16")],
        lambda: [keras.layers.Dense(8, activation="softmax"), keras.layers.Reshape((8,))],
        lambda: [keras.layers.Dense(4, activation="sigmoid")],
    ],
)
@pytest.mark.parametrize("make", [SmoothedCrossentropy, ConfidencePenalty])
def test_a_softmax_head_is_refused_when_the_step_is_built(head, make):
    model = network(*head())
    model.compile("sgd", make())
    with pytest.raises(ValueError, match=r"output of a (softmax|sigmoid).*from_logits=False"):
        model.fit(np.ones((4, 6), "float32"), np.arange(4) % 4, verbose=0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_what_an_activation_of_keras_returns_is_refused_with_its_values_in_sight(activation):
    model = network(keras.layers.Dense(4, activation=activation))
    with pytest.raises(ValueError, match="output of a softmax or sigmoid"):
        SmoothedCrossentropy(0.1)([0], model(np.ones((1, 6), "float32")))


def test_a_softmax_head_trains_to_the_same_weights_by_name():
    x, y = np.random.default_rng(15).normal(size=(12, 6)).astype("float32"), np.arange(12) % 4
    trained = []
    for activation in (None, "softmax"):
        keras.utils.set_random_seed(0)
        model = network(keras.layers.Dense(4, activation=activation))
        model.compile(keras.optimizers.SGD(0.5), SmoothedCrossentropy(0.1, from_logits=activation is None))
        trained.append((model.fit(x, y, verbose=0, epochs=3).history["loss"], model.get_weights()[0]))
    np.testing.assert_allclose(trained[0][0], trained[1][0], rtol=1e-5)
    np.testing.assert_allclose(trained[0][1], trained[1][1], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_probabilities_are_refused_in_sight_and_nan_out_of_sight(dtype, rows):
    p = tf.nn.softmax(np.random.default_rng(16).normal(size=(rows, 10)).astype("float32") * 3)
    p, y = tf.cast(tf.cast(p, dtype), "float32"), tf.range(rows) % 10
    if dtype != "float32" and rows == 1:
        return  # ten numbers that sum to 1 to within 0.4 % are no evidence
    for loss in (SmoothedCrossentropy(0.1), ConfidencePenalty(0.1)):
        with pytest.raises(ValueError, match="non-negative and sum to 1"):
            loss(y, p)
        assert np.isnan(tf.function(loss)(y, p))
        assert np.isnan(tf.function(loss, jit_compile=True)(y, p))
        # What does not count says nothing about the others.
        junk = tf.concat([tf.fill((1, 10), -5.0), p], 0)
        weights = tf.concat([[0.0], tf.ones(rows)], 0)
        assert np.isnan(tf.function(loss)(tf.concat([[0], y], 0), junk, weights))


def test_a_batch_with_one_row_of_logits_is_of_logits():
    z = softmax(np.random.default_rng(17).normal(size=(9, 4)), -1).astype("float32")
    z[6] = [2.0, -1.0, 0.0, 0.0]
    y = np.arange(9) % 4
    expected = reference(y, z, 0.1)[0].mean()
    assert float(SmoothedCrossentropy(0.1)(y, z)) == pytest.approx(expected, rel=1e-6)
    assert float(tf.function(SmoothedCrossentropy(0.1))(y, z)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [SmoothedCrossentropy, ConfidencePenalty])
def test_probabilities_by_name_are_their_logarithms(make):
    z = np.random.default_rng(18).normal(size=(5, 4)).astype("float32")
    y, p = np.arange(5) % 4, softmax(z, -1)
    expected = float(make()(y, z))
    assert float(make(from_logits=False)(y, p)) == pytest.approx(expected, rel=1e-6)
    assert float(tf.function(make(from_logits=False))(y, p)) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="Expected probabilities"):
        make(from_logits=False)(y, z)
    assert np.isnan(tf.function(make(from_logits=False))(y, z))


def test_a_probability_of_exactly_zero_has_a_gradient():
    p = np.array([[0.7, 0.3, 0.0]], "float32")
    value, gradient = loss_and_gradient(SmoothedCrossentropy(0.0, from_logits=False), [0], p)
    assert value == pytest.approx(-np.log(0.7), rel=1e-6)
    assert np.all(np.isfinite(gradient))


def test_teacher_probabilities_are_refused():
    p = softmax(np.random.default_rng(19).normal(size=(6, 4)), -1).astype("float32")
    z, y = np.random.default_rng(20).normal(size=(6, 4)).astype("float32"), np.arange(6) % 4
    with pytest.raises(ValueError, match="non-negative and sum to 1"):
        distillation_targets(y, p)
    packed = np.concatenate([y[:, None], p], -1).astype("float32")
    with pytest.raises(ValueError, match="non-negative and sum to 1"):
        DistillationLoss()(packed, z)
    assert np.isnan(tf.function(DistillationLoss())(packed, z))
    with pytest.raises(ValueError, match="non-negative and sum to 1"):
        DistillationLoss()(np.concatenate([y[:, None], z], -1).astype("float32"), p)


# --- Labels


@pytest.mark.parametrize("kind", ["int8", "uint8", "int64", "float32", "float64", "float16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_labels_of_any_type_that_holds_whole_numbers(kind, compiled):
    z = np.random.default_rng(21).normal(size=(3, 300)).astype("float32")
    y = np.array([0, 5, 99])
    loss = SmoothedCrossentropy(0.1)
    expected = reference(y, z, 0.1)[0].mean()
    value = (tf.function(loss) if compiled else loss)(tf.constant(y.astype(kind)), tf.constant(z))
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("y", "rule"),
    [
        ([0.7, 0.0], "whole numbers"),
        ([np.nan, 0.0], "whole numbers"),
        ([2.0**40, 0.0], "whole numbers"),
        ([[0.5, 0.4, 0.0], [1, 0, 0]], "sum to 1"),
        ([[1.5, -0.5, 0.0], [1, 0, 0]], "sum to 1"),
        ([[1, 1, 0], [1, 0, 0]], "sum to 1"),
    ],
)
def test_what_is_no_label_is_refused_in_sight_and_nan_out_of_sight(y, rule):
    z, y = np.random.default_rng(22).normal(size=(2, 3)).astype("float32"), np.array(y)
    for loss in (SmoothedCrossentropy(0.1), ConfidencePenalty(0.1)):
        for labels in (y, y.tolist(), tf.constant(y)):
            with pytest.raises(ValueError, match=rf"{rule}.*received 1 outside"):
                loss(labels, z)
        assert np.isnan(tf.function(loss)(tf.constant(y), z))


def test_a_label_of_two_to_the_32_is_not_class_0():
    z = np.zeros((2, 3), "float32")
    labels = tf.constant([2**32, 0], "int64")
    with pytest.raises(ValueError, match="first being 4294967296"):
        SmoothedCrossentropy(0.1)(labels, z)
    np.testing.assert_array_equal(
        np.isnan(tf.function(SmoothedCrossentropy(0.1, reduction=None))(labels, z)), [True, False]
    )


@pytest.mark.parametrize("y", [["a", "b"], [None, 1], [1j, 0]])
def test_labels_that_are_no_numbers_are_refused(y):
    with pytest.raises(ValueError, match="Labels must be real numbers"):
        SmoothedCrossentropy(0.1)(np.array(y), np.ones((2, 3), "float32"))


def test_half_precision_cannot_name_every_class():
    z = np.zeros((1, 4096), "float32")
    z[0, 2049] = 20.0
    labels = np.array([2049])
    expected = np.log1p(4095 * np.exp(-20.0))
    for dtype in ("float16", "bfloat16"):
        assert float(SmoothedCrossentropy(0.0, dtype=dtype)(labels, z)) == pytest.approx(expected, abs=1e-4)
        with pytest.raises(ValueError, match=f"in {dtype} are rounded from"):
            SmoothedCrossentropy(0.0)(tf.cast(labels, dtype), z)


def test_one_hot_labels_beside_a_teacher_are_read_and_soft_ones_refused():
    v, y = np.random.default_rng(23).normal(size=(2, 3)).astype("float32"), np.array([2, 0])
    one_hot = np.eye(3, dtype="float32")[y]
    np.testing.assert_array_equal(distillation_targets(one_hot, v), distillation_targets(y, v))
    with pytest.raises(ValueError, match="soft targets"):
        distillation_targets(0.9 * one_hot + 0.1 / 3, v)
    made = tf.function(distillation_targets)(tf.constant(0.9 * one_hot + 0.1 / 3), tf.constant(v))
    assert np.all(np.isnan(made[:, 0]))
    np.testing.assert_array_equal(made[:, 1:], v)


@pytest.mark.parametrize("targets", [[2, 0, 1], [0, 1, 0], np.array([[2, 0, 1]]), [[0.5, 0.4]], [[1.0]], [[1.5, -0.5]]])
def test_smooth_labels_takes_distributions_alone(targets):
    with pytest.raises(ValueError, match="received"):
        smooth_labels(targets, 0.1)


def test_smooth_labels_of_one_row_and_inside_a_pipeline():
    row = smooth_labels(tf.one_hot(1, 4), 0.2)
    np.testing.assert_allclose(row, [0.05, 0.85, 0.05, 0.05], rtol=1e-6)
    data = tf.data.Dataset.from_tensor_slices(tf.one_hot([1, 3], 4)).map(lambda y: smooth_labels(y, 0.2))
    np.testing.assert_allclose(np.stack(list(data))[1], [0.05, 0.05, 0.05, 0.85], rtol=1e-6)
    bad = tf.data.Dataset.from_tensor_slices([[1.0, 1.0]]).map(lambda y: smooth_labels(y, 0.2))
    assert np.all(np.isnan(next(iter(bad))))


# --- Shapes and precision


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("convention", ["all", "others"])
@pytest.mark.parametrize("num_classes", [1000, 5000])
def test_a_common_offset_changes_nothing(offset, convention, num_classes):
    generator = np.random.default_rng(24)
    logits = (generator.normal(size=(4, num_classes)) + offset).astype("float32")
    labels = generator.integers(0, num_classes, 4)
    expected, gradient = reference(labels, logits, 0.1, convention)
    value, received = loss_and_gradient(SmoothedCrossentropy(0.1, convention, reduction="sum"), labels, logits)
    assert float(value) == pytest.approx(expected.sum(), rel=1e-6)
    np.testing.assert_allclose(received, gradient, atol=1e-6)


@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("convention", ["all", "others"])
def test_a_number_of_classes_that_the_shape_leaves_open(convention, with_prior):
    signature = [tf.TensorSpec([None], tf.int32), tf.TensorSpec([None, None], tf.float32)]
    z, y = np.random.default_rng(25).normal(size=(2, 5)).astype("float32"), np.array([0, 4], "int32")
    for loss in (SmoothedCrossentropy(0.2, convention, PRIOR if with_prior else None), ConfidencePenalty(0.2)):
        step = tf.function(lambda y, z, f=loss: gradient_of(f, y, z), input_signature=signature)
        value, gradient = step(y, z)
        expected, slope = gradient_of(loss, y, tf.constant(z))
        assert float(value) == pytest.approx(float(expected), rel=1e-6)
        np.testing.assert_allclose(gradient, slope, atol=1e-7)
        assert float(step(np.zeros(0, "int32"), np.zeros((0, 5), "float32"))[0]) == 0
    with pytest.raises(ValueError, match="indices, or one column per class"):
        tf.function(SmoothedCrossentropy(0.1)).get_concrete_function(
            tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None, None], tf.float32)
        )


def test_one_logit_is_refused():
    for loss in (SmoothedCrossentropy(0.1), ConfidencePenalty(0.1)):
        with pytest.raises(ValueError, match="softmax of one logit is always 1"):
            loss([0, 1], np.zeros((2, 1), "float32"))
    with pytest.raises(ValueError, match="softmax of one logit is always 1"):
        DistillationLoss()(np.zeros((2, 2), "float32"), np.zeros((2, 1), "float32"))


def test_a_mean_in_half_precision_does_not_overflow():
    z = np.zeros((3000, 2), "float16")
    z[:, 0] = 100
    value = SmoothedCrossentropy(0.0, dtype="float16")(np.ones(3000, int), z)
    assert float(value) == pytest.approx(100)


@pytest.mark.parametrize("make", [SmoothedCrossentropy, ConfidencePenalty, DistillationLoss, LogitMatching])
@pytest.mark.parametrize("wrong", ["0.1", None, True, [0.1], 0.1j, float("nan"), -0.1, float("inf")])
def test_a_share_that_is_no_number_is_refused(make, wrong):
    with pytest.raises(ValueError, match="received"):
        make(wrong)


def test_nan_logits_that_count_make_the_loss_nan():
    z = np.array([[0.0, 2.0], [np.nan, 1.0]], "float32")
    for loss in (SmoothedCrossentropy(0.1), ConfidencePenalty(0.1)):
        assert np.isnan(loss([0, 1], z))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int64"])
def test_class_indices_of_every_integer_type(dtype):
    labels = np.array([0, 1, 1, 0])
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    expected = SmoothedCrossentropy(0.1)(labels, logits)
    compiled = tf.function(SmoothedCrossentropy(0.1))
    assert float(SmoothedCrossentropy(0.1)(labels.astype(dtype), logits)) == float(expected)
    np.testing.assert_allclose(compiled(tf.constant(labels.astype(dtype)), tf.constant(logits)), expected, rtol=1e-6)


@pytest.mark.parametrize("num_classes", [3, 10])
def test_probabilities_with_two_decimals_are_no_logits(num_classes):
    logits = np.random.default_rng(0).normal(size=(64, num_classes))
    rounded = softmax(logits, axis=1).round(2).astype("float32")
    loss = SmoothedCrossentropy(0.1)
    with pytest.raises(ValueError, match="as probabilities do"):
        loss(np.zeros(64, int), rounded)
    assert np.isnan(tf.function(loss)(tf.zeros(64, tf.int32), tf.constant(rounded)))


# --- Losses by name


class Focussed(keras.losses.Loss):
    """Somebody's own loss."""

    def __init__(self, weights=None, power=2):
        super().__init__()
        if power < 0:
            raise ValueError(f"`power` must be at least 0; received {power}.")
        self.weights, self.power = weights, power


@pytest.mark.parametrize(
    ("text", "kind", "attributes"),
    [
        ("SmoothedCrossentropy(alpha=0.3)", SmoothedCrossentropy, {"alpha": 0.3}),
        ("SmoothedCrossentropy(0.3, convention='others')", SmoothedCrossentropy, {"convention": "others"}),
        (" ConfidencePenalty( beta = 0.1 ) ", ConfidencePenalty, {"beta": 0.1}),
        ("keras.losses:SparseCategoricalCrossentropy(from_logits=True)", keras.losses.Loss, {}),
        ("test_losses:Focussed", None, {"weights": None, "power": 2}),
        ("ConfidencePenalty", ConfidencePenalty, {"beta": 0.1}),
        ("test_losses:Focussed()", None, {"weights": None}),
        ("test_losses:Focussed({0: 2.0, 3: -1}, power=1)", None, {"weights": {0: 2.0, 3: -1}, "power": 1}),
    ],
)
def test_a_loss_is_made_from_what_a_command_line_says(text, kind, attributes):
    loss = losses.get(text)
    assert isinstance(loss, kind or keras.losses.Loss)
    assert type(loss).__name__ in text
    config = loss.get_config() if kind is not None else vars(loss)
    assert {name: config[name] for name in attributes} == attributes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be written as Name"),
        ("SmoothedCrossentropy(alpha=", "must be written as Name"),
        ("SmoothedCrossentropy(alpha=0.1); import os", "must be written as Name"),
        ("SmoothedCrossentropy(alpha=float('0.1'))", "must be written as Name"),
        ("keras.losses.Loss()", "must be written as Name"),
        ("0.1", "must be written as Name"),
        ("SmoothedCrossentropie(0.1)", "no loss SmoothedCrossentropie in ls_keras.losses, which has .*Confidence"),
        ("keras.losses:Nothing()", r"no loss Nothing in keras\.losses; received"),
        ("no.such.module:Loss()", r"no loss Loss in no\.such\.module; received .*No module named"),
        (".losses:Loss()", "no loss Loss in .losses; received"),
        ("keras:Model()", r"a subclass of keras\.losses\.Loss; received 'keras:Model"),
        ("smooth_labels([[0.0]], 0.1)", r"a subclass of keras\.losses\.Loss; received"),
        ("builtins:print('work')", r"a subclass of keras\.losses\.Loss; received"),
        ("SmoothedCrossentropy(beta=0.1)", "SmoothedCrossentropy does not take these arguments .*beta"),
        ("ConfidencePenalty(**{'beta': 0.1})", "ConfidencePenalty does not take these arguments"),
        ("SmoothedCrossentropy(alpha=1.5)", "alpha.*1.5"),
        ("test_losses:Focussed(power=-1)", "`power` must be at least 0"),
    ],
)
def test_what_makes_no_loss_is_refused(text, message, capsys):
    with pytest.raises(ValueError, match=message):
        losses.get(text)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["DistillationLoss(beta=0.5)", "LogitMatching"])
def test_a_loss_that_needs_a_teacher_is_no_loss_of_the_command_line(name):
    with pytest.raises(ValueError, match=r"learns from a teacher's logits: give --teacher instead"):
        losses.chosen(SimpleNamespace(alpha=0.1, seed=0, loss=name))


def test_a_recipes_loss_is_smoothed_unless_another_is_named():
    assert losses.chosen(SimpleNamespace(alpha=0.3, loss=None)).get_config()["alpha"] == 0.3
    assert losses.chosen(SimpleNamespace(alpha=0.3, seed=4, loss="DisturbLabel(alpha=0.1)")).seed == 4
    assert (
        losses.chosen(SimpleNamespace(alpha=0.3, seed=4, loss="ConfidencePenalty(beta=0.1)")).get_config()["beta"]
        == 0.1
    )


def test_a_loss_of_ones_own_is_known_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    code = "from ls_keras import losses\n\n\nclass Mine(losses.ConfidencePenalty):\n    scale = {}\n"
    found = []
    for name, scale in (("mine_one", 1), ("mine_two", 2), ("mine_three", 1)):
        (tmp_path / f"{name}.py").write_text(code.format(scale))
        found.append(losses.source(f"{name}:Mine(beta=0.1)"))
    assert found[0] == found[2] != found[1]
    assert losses.source("ConfidencePenalty(beta=0.1)") is losses.source(None) is None
