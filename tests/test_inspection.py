"""What enters a model: bad data refused with a sentence, good data left alone, class weights against NumPy."""

import re

from ls_keras import distillation, distribution, inspection, losses
from ls_keras.losses import DistillationLoss, SmoothedCrossentropy, distillation_targets

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax

ROWS, BAD = 20, 13
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(ROWS, 4)).astype("float32")
Y = GENERATOR.integers(0, 3, ROWS)
SOFT = GENERATOR.dirichlet(np.ones(3), ROWS).astype("float32")
WEIGHTS = GENERATOR.uniform(0.5, 2, ROWS).astype("float32")
SAID = GENERATOR.normal(size=(ROWS, 3)).astype("float32")
PACKED = distillation_targets(Y, SAID).numpy()


def with_value(array, value, row=BAD):
    array = array.copy()
    array[row] = value
    return array


def classifier(loss=None, outputs=3, activation=None, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = distribution.Model(inputs, keras.layers.Dense(outputs, activation=activation)(inputs))
    model.compile(keras.optimizers.SGD(0.0), loss or SmoothedCrossentropy(0.1), **{"run_eagerly": True} | options)
    return model


def batches(*arrays, size=8):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


def as_arrays(model, x, *rest):
    return model.fit(x, *rest[:1], sample_weight=rest[1] if len(rest) > 1 else None, verbose=0)


def as_data_set(model, *arrays):
    return model.fit(batches(*arrays), verbose=0)


WHOLE = r"Labels must be whole numbers in \[0, 3\), the number of logits; received "
ROW_SUMS = "One-hot and soft labels must be rows of numbers from 0 on that sum to 1; received "
FAULTS = {
    "NaN": ((with_value(X, np.nan), Y), "Inputs must be finite numbers; received nan"),
    "infinity": ((with_value(X, -np.inf), Y), "Inputs must be finite numbers; received -inf"),
    "NaN of weight 0": ((with_value(X, np.nan), Y, with_value(WEIGHTS, 0)), "Inputs .* received nan"),
    "beyond float32": ((with_value(X.astype(float), 1e300), Y), r"Inputs .* received (1e\+300|inf)"),
    "class K": ((X, with_value(Y, 3)), WHOLE + "3"),
    "negative": ((X, with_value(Y, -1)), WHOLE + "-1"),
    "fraction": ((X, with_value(Y.astype("float32"), 0.7)), WHOLE + "0.7"),
    "no number": ((X, with_value(Y.astype("float32"), np.nan)), WHOLE + "nan"),
    "bytes": ((X, with_value(Y.astype("uint8"), 200)), WHOLE + "200"),
    "column": ((X, with_value(Y, 5)[:, None]), WHOLE + "5"),
    "half a row": ((X, with_value(SOFT, 0.5)), ROW_SUMS + "1.5"),
    "negative mass": ((X, with_value(SOFT, [-0.5, 1.0, 0.5])), ROW_SUMS + "-0.5"),
    "soft NaN": ((X, with_value(SOFT, np.nan)), ROW_SUMS + "nan"),
    "weight -1": ((X, Y, with_value(WEIGHTS, -1)), "Sample weights must be finite numbers from 0 on; received -1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_their_row(fault):
    data, message = FAULTS[fault]
    with pytest.raises(ValueError, match=rf"^{message}.* in row {BAD}\. ") as raised:
        as_arrays(classifier(), *data)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=rf"{message}.* in batch 1, row {BAD - 8}\. ") as raised:
        as_data_set(classifier(), *data)
    assert "\n" not in str(raised.value)


def test_large_arrays_are_gone_through_in_parts(monkeypatch):
    monkeypatch.setattr(inspection, "_VALUES_AT_A_TIME", 24)  # six rows of four values
    with pytest.raises(ValueError, match=f"received 3 in row {BAD}"):
        as_arrays(classifier(), X, with_value(Y, 3))
    model = classifier()
    expected = (OF_CLASSES[Y] * smoothed(model, np.eye(3)[Y])).mean()
    assert loss_of(model, X, Y, class_weight=CLASS_WEIGHT) == pytest.approx(expected, rel=1e-5)


def test_weights_that_are_not_finite_are_refused():
    for value in (np.nan, np.inf):
        for fit in (as_arrays, as_data_set):
            with pytest.raises(ValueError, match="Sample weights must be finite numbers"):
                fit(classifier(), X, Y, with_value(WEIGHTS, value))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array(["cat"] * ROWS), "Labels must be real numbers; received string"),
        (np.eye(4)[Y], r"received labels \(\w+, 4\) and logits \(None, 3\)"),
        (np.zeros((ROWS, 2), int), "Labels must have the logits' shape"),
    ],
)
@pytest.mark.parametrize("fit", [as_arrays, as_data_set])
def test_labels_of_the_wrong_kind_are_refused(fit, labels, message):
    with pytest.raises(ValueError, match=message):
        fit(classifier(), X, labels)


def generated(x, y):
    yield from ((x[start : start + 8], y[start : start + 8]) for start in (0, 8))


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[8 * index :][:8], with_value(Y, 3)[8 * index :][:8]


WRONG = with_value(Y, 3)
ENTRIES = {
    "validation arrays": lambda model: model.fit(X, Y, validation_data=(X, WRONG), verbose=0),
    "validation set": lambda model: model.fit(X, Y, validation_data=batches(X, WRONG), verbose=0),
    "validation split": lambda model: model.fit(X, WRONG, validation_split=0.5, verbose=0),
    "evaluate arrays": lambda model: model.evaluate(X, WRONG, verbose=0),
    "evaluate set": lambda model: model.evaluate(batches(X, WRONG), verbose=0),
    "train_on_batch": lambda model: model.train_on_batch(X, WRONG),
    "test_on_batch": lambda model: model.test_on_batch(X, WRONG),
    "evaluate weights": lambda model: model.evaluate(X, WRONG, sample_weight=WEIGHTS, verbose=0),
    "generator": lambda model: model.fit(generated(X, WRONG), verbose=0),
    "PyDataset": lambda model: model.fit(Sequence(), verbose=0),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_way_in_is_watched(entry):
    with pytest.raises(ValueError, match=WHOLE + "3"):
        ENTRIES[entry](classifier())


def test_prediction_looks_at_inputs_alone():
    model, image = classifier(), with_value(X, np.nan)
    for x in (image, batches(image), batches(image, Y)):
        with pytest.raises(ValueError, match="Inputs must be finite numbers; received nan"):
            model.predict(x, verbose=0)
    assert model.predict(batches(X, Y - 7), verbose=0).shape == (ROWS, 3)


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), None),
        ("sparse_categorical_crossentropy", "softmax"),
        (keras.losses.sparse_categorical_crossentropy, "softmax"),
        (losses.ConfidencePenalty(), None),
    ],
)
def test_labels_of_other_crossentropies_are_looked_at_too(loss, activation):
    with pytest.raises(ValueError, match=WHOLE + "3"):
        classifier(loss, activation=activation).fit(X, WRONG, verbose=0)


def test_what_a_teacher_says_is_looked_at():
    for value, refused in ((np.nan, True), (np.inf, True), (-np.inf, False)):
        said = with_value(PACKED, value, row=(BAD, 2))
        for weights in (None, with_value(WEIGHTS, 0)):
            model = classifier(DistillationLoss(beta=0.5))
            if refused and weights is None:
                with pytest.raises(ValueError, match=rf"Logits of a teacher .*; received {value} in row {BAD}"):
                    model.fit(X, said, verbose=0)
            else:
                assert np.isfinite(model.fit(X, said, sample_weight=weights, verbose=0).history["loss"][0])
    with pytest.raises(ValueError, match=WHOLE + "3"):
        classifier(DistillationLoss()).fit(X, with_value(PACKED, 3, row=(BAD, 0)), verbose=0)


def loss_of(model, *data, **fit):
    """Of the data as one batch, from arrays and from a data set."""
    weights = data[2] if len(data) > 2 else None
    arrays = model.fit(*data[:2], sample_weight=weights, batch_size=ROWS, shuffle=False, verbose=0, **fit)
    data_set = model.fit(batches(*data, size=ROWS), verbose=0, **fit)
    values = [each.history["loss"][0] for each in (arrays, data_set)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
    return values[0]


def smoothed(model, targets):
    """The loss of each row, in float64."""
    logits = X.astype(float) @ model.get_weights()[0] + model.get_weights()[1]
    return -((0.9 * targets + 0.1 / 3) * log_softmax(logits, -1)).sum(-1)


def test_rows_that_do_not_count_may_hold_any_label():
    without = with_value(WEIGHTS, 0)
    for labels in (with_value(Y, 9), with_value(Y.astype("float32"), np.nan)):
        model = classifier()
        expected = (without * smoothed(model, np.eye(3)[Y])).mean()
        assert loss_of(model, X, labels, without) == pytest.approx(expected, rel=1e-5)
    model = classifier()
    expected = (without * smoothed(model, SOFT)).mean()
    assert loss_of(model, X, with_value(SOFT, np.nan), without) == pytest.approx(expected, rel=1e-5)
    model = classifier(SmoothedCrossentropy(0.1, ignore_class=-1))
    expected = np.delete(smoothed(model, np.eye(3)[Y]), BAD).mean()
    assert loss_of(model, X, with_value(Y, -1)) == pytest.approx(expected, rel=1e-5)


def test_masked_positions_may_hold_any_label():
    inputs = keras.Input((ROWS, 4))
    model = distribution.Model(inputs, keras.layers.Dense(3)(keras.layers.Masking()(inputs)))
    model.compile(keras.optimizers.SGD(0.0), SmoothedCrossentropy(0.1), jit_compile=False)
    x = with_value(X, 0)[None]
    assert np.isfinite(model.fit(x, with_value(Y, 9)[None], verbose=0).history["loss"][0])
    assert np.isnan(model.fit(x, with_value(Y, 9, row=0)[None], verbose=0).history["loss"][0])


def test_regression_and_integer_inputs_are_left_alone():
    assert np.isfinite(classifier("mse").fit(X.astype("int32"), 10 * SOFT - 5, verbose=0).history["loss"][0])


def test_structures_of_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    together = keras.layers.Concatenate()([a, b])
    outputs = [keras.layers.Dense(3, name="p")(together), keras.layers.Dense(3, name="q")(together)]
    model = distribution.Model([a, b], outputs)
    model.compile("sgd", {"p": SmoothedCrossentropy(), "q": "mse"}, run_eagerly=True)
    for x, y in (([X, SAID], [Y, SAID]), ({"a": X, "b": SAID}, {"p": Y, "q": SAID})):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match=WHOLE + f"3 in row {BAD}"):
        model.fit({"a": X, "b": SAID}, {"p": WRONG, "q": SAID}, verbose=0)
    with pytest.raises(ValueError, match="Inputs must be finite"):
        model.fit(batches({"a": X, "b": with_value(SAID, np.nan)}, {"p": Y, "q": SAID}), verbose=0)


def test_weights_of_rows_belong_to_rows_where_there_are_as_many_positions():
    """Keras multiplies [n] with the last axis of [n, t], without a word where t = n."""
    inputs = keras.Input((2, 4))
    model = distribution.Model(inputs, keras.layers.Dense(3)(inputs))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, run_eagerly=True)
    x, y = X[:4].reshape(2, 2, 4), Y[:4].reshape(2, 2)
    logits = x.astype(float) @ model.get_weights()[0]
    rows = -np.take_along_axis(log_softmax(logits, -1), y[..., None], -1)[..., 0]
    for weights in (np.array([1.0, 3.0], "float32"), np.array([[1.0], [3.0]], "float32")):
        for fit in (as_arrays, as_data_set):
            received = fit(model, x, y, weights).history["loss"][0]
            assert received == pytest.approx((np.array([[1.0], [3.0]]) * rows).mean(), rel=1e-5)


CLASS_WEIGHT = {0: 2, np.int64(2): 0.25}
OF_CLASSES = np.array([2.0, 1.0, 0.25])
KINDS = {
    "indices": Y,
    "floats": Y.astype("float64"),
    "column": Y[:, None].astype("uint8"),
    "one-hot": np.eye(3, dtype="int32")[Y],
}


@pytest.mark.parametrize("kind", KINDS)
def test_class_weights_multiply_sample_weights_of_any_labels(kind):
    model = classifier()
    rows = OF_CLASSES[Y] * smoothed(model, np.eye(3)[Y])
    assert loss_of(model, X, KINDS[kind], class_weight=CLASS_WEIGHT) == pytest.approx(rows.mean(), rel=1e-5)
    received = loss_of(classifier(), X, KINDS[kind], WEIGHTS, class_weight=CLASS_WEIGHT)
    assert received == pytest.approx((WEIGHTS * rows).mean(), rel=1e-5)


def test_class_weights_go_by_the_label_beside_what_a_teacher_says():
    """Keras takes the largest column of such a target for the class."""
    model = classifier(DistillationLoss(beta=0.5))
    logits = X.astype(float) @ model.get_weights()[0]
    log_p = log_softmax(logits, -1)
    said = np.exp(log_softmax(SAID.astype(float), -1))
    rows = -0.5 * log_p[np.arange(ROWS), Y] - 0.5 * (said * log_p).sum(-1)
    expected = (OF_CLASSES[Y] * rows).mean()
    assert loss_of(model, X, PACKED, class_weight=CLASS_WEIGHT) == pytest.approx(expected, rel=1e-5)
    received = classifier(DistillationLoss(beta=0.5)).train_on_batch(X, PACKED, class_weight=CLASS_WEIGHT)
    assert received == pytest.approx(expected, rel=1e-5)


def test_class_weights_are_the_same_whether_a_teacher_is_asked_or_quoted():
    inputs = keras.Input((4,))
    network = keras.Model(inputs, keras.layers.Dense(3, kernel_initializer="ones", bias_initializer="ones")(inputs))
    teacher = distillation.load_teacher(classifier(), 3, (4,))
    student = distillation.Distiller(network.input, network.output, teacher=teacher)
    student.compile(keras.optimizers.SGD(0.0), DistillationLoss(beta=0.5), run_eagerly=True)
    said = teacher(X).numpy()
    # The student says log 1/3 of everything, so that each row costs as much as its weight times log 3.
    expected = (WEIGHTS * OF_CLASSES[Y]).mean() * np.log(3)
    for labels in (Y, distillation_targets(Y, said).numpy()):
        assert loss_of(student, X, labels, WEIGHTS, class_weight=CLASS_WEIGHT) == pytest.approx(expected, rel=1e-5)


def test_class_weights_of_positions_and_what_is_ignored():
    """Keras takes labels [n, t] for one-hot rows of t classes."""
    inputs = keras.Input((ROWS, 4))
    model = distribution.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile(keras.optimizers.SGD(0.0), SmoothedCrossentropy(0.1, ignore_class=-1), run_eagerly=True)
    y = with_value(Y, -1)
    weights = OF_CLASSES[Y] * (y != -1)
    expected = (weights * smoothed(model, np.eye(3)[Y])).sum() / weights.sum()
    for x in (X[None], X[None].astype(float)):
        received = model.fit(x, y[None], class_weight=CLASS_WEIGHT, verbose=0).history["loss"][0]
        assert received == pytest.approx(expected, rel=1e-5)


def test_validation_has_no_class_weights():
    model = classifier()
    history = model.fit(X, Y, validation_split=0.25, class_weight=CLASS_WEIGHT, batch_size=ROWS, verbose=0).history
    rows = smoothed(model, np.eye(3)[Y])
    assert history["loss"][0] == pytest.approx((OF_CLASSES[Y] * rows)[:15].mean(), rel=1e-5)
    assert history["val_loss"][0] == pytest.approx(rows[15:].mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({3: 1.0}, r"classes in \[0, 3\); received 3"),
        ({-1: 1.0}, "received -1"),
        ({"cat": 1.0}, "received 'cat'"),
        ({0.5: 1.0}, "received 0.5"),
        ({True: 1.0}, "received True"),
        ({0: -1.0}, "finite numbers from 0 on; received -1.0 for class 0"),
        ({0: np.nan}, "received nan for class 0"),
        ({0: "much"}, "received 'much' for class 0"),
        ([1.0, 2.0, 3.0], "must map classes to weights, as {0: 1.0, 1: 5.0}; received list"),
    ],
)
def test_class_weights_that_name_no_class_or_no_weight_are_refused(class_weight, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        classifier().fit(X, Y, class_weight=class_weight, verbose=0)


def test_class_weights_where_classes_are_not_known_are_refused():
    with pytest.raises(ValueError, match="class_weight needs a model with one output, and a cross-entropy"):
        classifier("mse").fit(X, SOFT, class_weight={0: 1.0}, verbose=0)
    unknown = tf.data.Dataset.from_generator(lambda: iter([(X, Y)]), output_types=(tf.float32, tf.int64))
    with pytest.raises(ValueError, match="class_weight needs labels of a known rank"):
        classifier().fit(unknown, class_weight={0: 1.0}, verbose=0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "loss", [SmoothedCrossentropy(), losses.ConfidencePenalty(), DistillationLoss(), losses.LogitMatching()]
)
def test_a_network_that_ends_in_probabilities_is_refused_before_training(loss, activation):
    targets = PACKED if isinstance(loss, DistillationLoss | losses.LogitMatching) else Y
    with pytest.raises(ValueError, match=f"received the output of a {activation}"):
        classifier(loss, activation=activation, run_eagerly=False, jit_compile=False).fit(X, targets, verbose=0)


def test_images_of_nan_would_train_to_the_loss_of_chance():
    """What the refusal is for: the largest of NaNs is the lowest number, and its ReLU is 0."""
    pooled = tf.nn.max_pool2d(tf.fill([1, 2, 2, 1], np.float32(np.nan)), 2, 2, "VALID")
    assert float(tf.nn.relu(pooled)[0, 0, 0, 0]) == 0.0
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.ReLU()(keras.layers.MaxPooling2D()(keras.layers.Conv2D(2, 3, padding="same")(inputs)))
    network = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(x)))
    network.compile("sgd", SmoothedCrossentropy(0.1), jit_compile=False)
    images = np.full((8, 4, 4, 1), np.nan, "float32")
    assert network.train_on_batch(images, np.arange(8) % 5) == pytest.approx(np.log(5))
    model = distribution.Model(network.input, network.output)
    model.compile("sgd", SmoothedCrossentropy(0.1))
    with pytest.raises(ValueError, match=re.escape("Inputs must be finite numbers; received nan in row 0.")):
        model.fit(images, np.arange(8) % 5, verbose=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2, 0], dtype=object), "received Python objects"),
        (list("abca"), "received strings"),
        (np.array(list("abca")), "received strings"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(labels, message):
    inputs = keras.Input((5,))
    model = distribution.Model(inputs, keras.layers.Dense(3)(inputs))
    model.compile("sgd", losses.SmoothedCrossentropy(0.1))
    with pytest.raises(ValueError, match="Labels must be real numbers; " + message):
        model.fit(np.zeros((4, 5)), labels, verbose=0)
