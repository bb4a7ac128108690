"""The losses of distillation against closed forms in NumPy, their gradients, and what they refuse."""

import json

from ls_keras.losses import DistillationLoss, LogitMatching, distillation_targets

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax
from toy_distillation import reference

LOSSES = [
    (DistillationLoss(), {"beta": 1.0}),
    (DistillationLoss(beta=0.3, temperature=4.0), {"beta": 0.3, "temperature": 4.0}),
    (
        DistillationLoss(0.6, 4.0, 4.0, scale_by_temperature_squared=True),
        {"beta": 0.6, "temperature": 4.0, "student_temperature": 4.0, "factor": 16.0},
    ),
    (DistillationLoss(beta=0.0), {"beta": 0.0}),
    (LogitMatching(), {"beta": 0.6}),
    (LogitMatching(beta=1.0, over_classes="mean"), {"beta": 1.0, "factor": 1 / 5}),
    (LogitMatching(beta=0.25, centred=True), {"beta": 0.25, "centred": True}),
]


@pytest.mark.parametrize(("loss", "options"), LOSSES)
@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_losses_and_gradients_follow_the_definitions(loss, options, shape):
    generator = np.random.default_rng(0)
    v, z = generator.normal(scale=3, size=(2, *shape, 5)).astype("float32")
    labels = generator.integers(0, 5, shape)
    expected, gradient = reference(type(loss), labels, v, z, **options)
    z = tf.constant(z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(distillation_targets(labels, v), z)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(tape.gradient(value, z), gradient / np.prod(shape), atol=1e-5)
    weights = generator.uniform(size=shape).astype("float32")
    weighted = loss(distillation_targets(labels, v), z, sample_weight=weights)
    np.testing.assert_allclose(weighted, (weights * expected).mean(), rtol=1e-5)


def test_examples_of_the_docstrings():
    even = distillation_targets([0], [[0.0, 0.0]])
    assert float(DistillationLoss()(even, [[2.0, 0.0]])) == pytest.approx(1.1269, abs=5e-5)
    assert float(DistillationLoss(beta=0.5)([[0.0, 0.0, 0.0]], [[2.0, 0.0]])) == pytest.approx(0.6269, abs=5e-5)
    targets = distillation_targets([0], [[1.0, -1.0]])
    assert float(LogitMatching(beta=0.5)(targets, [[0.0, 0.0]])) == pytest.approx(0.8466, abs=5e-5)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_teachers_part_is_divergence_and_entropy_at_the_temperature(shifted, squared):
    v, z = np.random.default_rng(11).normal(scale=3, size=(2, 16, 5)).astype("float32")
    z = v + 5 if shifted else z
    log_t, log_p = (log_softmax(logits.astype(float) / 3, -1) for logits in (v, z))
    divergence, entropy = (np.exp(log_t) * (log_t - log_p)).sum(-1).mean(), -(np.exp(log_t) * log_t).sum(-1).mean()
    value = DistillationLoss(1.0, 3.0, 3.0, squared)(distillation_targets(np.arange(16) % 5, v), z)
    assert float(value) == pytest.approx((9 if squared else 1) * (divergence + entropy), rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(beta=st.floats(0, 1), warm=st.floats(0.3, 20), student=st.floats(0.3, 20), seed=st.integers(0, 2**31))
def test_gradients_equal_finite_differences(beta, warm, student, seed):
    generator = np.random.default_rng(seed)
    v, z = generator.normal(scale=2, size=(2, 3, 4))
    targets = distillation_targets(generator.integers(0, 4, 3), v)
    direction, step = generator.normal(size=z.shape), 1e-5
    for loss in (
        DistillationLoss(beta, warm, student, True, reduction="sum", dtype="float64"),
        LogitMatching(beta, centred=True, reduction="sum", dtype="float64"),
    ):
        x = tf.constant(z)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(targets, x)
        slope = float((loss(targets, z + step * direction) - loss(targets, z - step * direction)) / (2 * step))
        along = float(tf.reduce_sum(tape.gradient(value, x) * direction))
        assert along == pytest.approx(slope, rel=1e-5, abs=1e-6 * warm**2)


def test_hot_distillation_is_matching_centred_logits():
    """With T² and T → ∞ on both sides the gradient is (z − v)/K of centred logits (Hinton et al. 2015, eq. 4)."""
    generator = np.random.default_rng(1)
    v, z = generator.normal(size=(2, 4, 6))
    targets = distillation_targets([0, 1, 2, 3], v)
    gradients = []
    for loss in (
        DistillationLoss(1.0, 1e4, 1e4, True, dtype="float64"),
        LogitMatching(1.0, "mean", centred=True, dtype="float64"),
    ):
        x = tf.constant(z)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(targets, x)
        gradients.append(tape.gradient(value, x))
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-4)


def test_masked_positions_do_not_count():
    inputs = keras.Input((4, 2))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Masking()(inputs)))
    generator = np.random.default_rng(2)
    x, v, labels = generator.normal(size=(2, 4, 2)), generator.normal(size=(2, 4, 3)), generator.integers(0, 3, (2, 4))
    x[0, 2:] = x[1, 1] = 0
    kept = x.any(-1)
    z = model(x)
    expected, _ = reference(DistillationLoss, labels[kept], v[kept], z.numpy()[kept], 0.4, 2.0)
    loss = DistillationLoss(0.4, 2.0)(distillation_targets(labels, v), z)
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_extreme_logits_stay_finite_and_labels_out_of_range_do_not_pass(beta):
    targets = distillation_targets([1, 0], [[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
    logits = tf.constant([[-1e4, 1e4, 0.0], [-1e4, 1e4, 0.0]])
    for loss in (DistillationLoss(beta, reduction=None), LogitMatching(beta, reduction=None)):
        assert np.isfinite(loss(targets, logits)).all()
        wrong = tf.concat([[[3.0], [-1.0]], targets[:, 1:]], axis=1)
        # The labels have no part in the loss where the teacher has all of it.
        assert np.isnan(tf.function(loss)(wrong, logits)).all() == (beta < 1)
        for seen in (wrong, wrong.numpy()) if beta < 1 else ():
            with pytest.raises(ValueError, match=r"Labels must be whole numbers in \[0, 3\)"):
                loss(seen, logits)


@pytest.mark.parametrize(
    "loss",
    [
        DistillationLoss(0.3, 4.0, 2.0, True, reduction="sum", dtype="float64"),
        LogitMatching(0.7, "mean", True, name="mine", reduction=None, dtype="float64"),
    ],
)
def test_losses_survive_json(loss):
    copy = keras.losses.deserialize(json.loads(json.dumps(keras.losses.serialize(loss))))
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    assert copy.dtype == loss.dtype == "float64"
    generator = np.random.default_rng(3)
    targets, z = distillation_targets([1, 2], generator.normal(size=(2, 4))), generator.normal(size=(2, 4))
    np.testing.assert_array_equal(copy(targets, z), loss(targets, z))


def test_targets_keep_labels_and_precision():
    v = np.random.default_rng(0).normal(size=(2, 4))
    packed = distillation_targets(np.array([[3], [2]]), v)
    assert packed.dtype == "float64"
    np.testing.assert_array_equal(packed, np.column_stack([[3, 2], v]))
    assert distillation_targets([3, 2], v.astype("float16")).dtype == "float32"
    many = np.zeros((1, 5000), "float32")
    assert int(distillation_targets([4999], many)[0, 0]) == 4999
    np.testing.assert_array_equal(distillation_targets(np.eye(4)[[3, 2]], v), packed)
    with pytest.raises(ValueError, match="received soft targets"):
        distillation_targets(np.full((2, 4), 0.25), v)
    with pytest.raises(ValueError, match="without the last axis"):
        distillation_targets([1, 2, 3], v)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DistillationLoss(beta=1.1), r"`beta`.*\[0, 1\]; received 1.1"),
        (lambda: DistillationLoss(beta=-0.1), "received -0.1"),
        (lambda: LogitMatching(beta=float("nan")), "received nan"),
        (lambda: DistillationLoss(temperature=0.0), "`temperature` must be a finite number above 0; received 0.0"),
        (lambda: DistillationLoss(temperature=-2.0), "received -2.0"),
        (lambda: DistillationLoss(student_temperature=float("inf")), "`student_temperature`.*received inf"),
        (lambda: LogitMatching(over_classes="max"), "received 'max'"),
        (lambda: DistillationLoss()(np.array([0, 1]), np.zeros((2, 3))), "Distiller makes them"),
        (lambda: LogitMatching()(np.zeros((2, 3)), np.zeros((2, 3))), r"targets \(2, 3\) and logits \(2, 3\)"),
    ],
)
def test_bad_arguments_and_targets_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
