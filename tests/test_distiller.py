"""The Distiller: its steps against closed forms in NumPy, and what becomes of its teacher and of its student."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from ls_keras import artifact, distillation, distribution, metrics
from ls_keras.losses import DistillationLoss, LogitMatching, distillation_targets

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax
from toy_distillation import SHAPE, K, logits_of, one_batch, reference, toy_data, toy_teacher

SCRIPT = Path(__file__).with_name("two_replicas.py")


@pytest.fixture(scope="module", autouse=True)
def two_replicas(tmp_path_factory):
    """The script, started before the first test, since it takes as long as all the others."""
    folder = tmp_path_factory.mktemp("replicas")
    inputs = keras.Input((5,))
    x = keras.layers.Dense(4, name="penultimate")(keras.layers.BatchNormalization()(inputs))
    artifact.export(keras.Model(inputs, keras.layers.Dense(3, name="logits")(x)), folder / "teacher")
    environment = {key: value for key, value in os.environ.items() if key not in ("TF_CONFIG", "TPU_NAME")}
    environment |= {"PYTHONPATH": str(SCRIPT.parents[1]), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, str(SCRIPT), str(folder / "teacher"), str(folder / "result.json")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield process, folder
    process.kill()
    process.wait()


def dense_student(teacher, loss, penalty=0.0, learning_rate=1.0, name=None, **options):
    inputs = keras.Input(SHAPE)
    kernel = keras.initializers.RandomNormal(seed=1)
    layer = keras.layers.Dense(
        K, name="logits", kernel_initializer=kernel, kernel_regularizer=keras.regularizers.L2(penalty)
    )
    model = distillation.Distiller(inputs, layer(keras.layers.Flatten()(inputs)), name, teacher=teacher)
    options = {"weighted_metrics": metrics.classification(), "jit_compile": False} | options
    model.compile(keras.optimizers.SGD(learning_rate), loss, **options)
    model.optimizer.build(model.trainable_variables)
    return model


def test_one_step_moves_the_student_by_the_closed_form(teacher, teacher_model):
    """ΔW = −(Σ wᵢ xᵢ gᵢᵀ / n + 2 λ W): with labels, weights, a penalty and a teacher that keeps still."""
    x, y, weights = one_batch()
    flat, v = x.reshape(len(x), -1).astype(float), logits_of(teacher_model, x.astype(float))
    for jit_compile in (False, True):
        model = dense_student(teacher, DistillationLoss(0.7, 2.0), penalty=0.05, jit_compile=jit_compile)
        kernel, bias = model.get_weights()
        losses, gradient = reference(DistillationLoss, y, v, flat @ kernel + bias, 0.7, 2.0)
        logs = model.train_on_batch(x, y, weights, return_dict=True)
        after = model.get_weights()
        slope = (weights[:, None] * gradient).T @ flat / len(x)
        np.testing.assert_allclose(after[0] - kernel, -(slope.T + 2 * 0.05 * kernel), atol=1e-6)
        np.testing.assert_allclose(after[1] - bias, -(weights[:, None] * gradient).mean(0), atol=1e-6)
        assert logs["loss"] == pytest.approx((weights * losses).mean() + 0.05 * (kernel**2).sum(), rel=1e-5)


def test_evaluation_loss_is_the_same_and_metrics_see_the_labels(teacher, teacher_model):
    data = toy_data()
    model = dense_student(teacher, LogitMatching(0.6), penalty=0.05)
    kernel, bias = model.get_weights()
    (x, y, weights), *rest = data.evaluation("held_out", 16)
    assert not rest
    x, y, weights = x.numpy(), y.numpy(), weights.numpy()
    z = x.reshape(16, -1) @ kernel + bias
    expected, _ = reference(LogitMatching, y, logits_of(teacher_model, x), z, 0.6)
    logs = model.evaluate(data.evaluation("held_out", 16), verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx((weights * expected).mean() + 0.05 * (kernel**2).sum(), rel=1e-5)
    kept = weights > 0
    assert kept.sum() == 14  # of 16 rows
    assert logs["accuracy"] == pytest.approx((z.argmax(1) == y)[kept].mean())
    assert logs["nll"] == pytest.approx(-log_softmax(z, -1)[np.arange(16), y][kept].mean(), rel=1e-5)


def test_the_teacher_sees_the_augmented_images_of_the_student(teacher, teacher_model):
    data = toy_data(augmented=True)
    model = dense_student(teacher, DistillationLoss(0.5, 3.0), learning_rate=0.0)
    kernel, bias = model.get_weights()
    losses = []
    for x, y in data.train(8, seed=5).take(4).as_numpy_iterator():
        z = x.reshape(8, -1) @ kernel + bias
        losses.append(reference(DistillationLoss, y, logits_of(teacher_model, x), z, 0.5, 3.0)[0].mean())
    history = model.fit(data.train(8, seed=5), steps_per_epoch=4, verbose=0).history
    assert history["loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("shift", [0, 1])
def test_cached_logits_train_the_same_student(teacher, tmp_path, shift):
    data = dataclasses.replace(toy_data(), max_shift=shift)
    ask = distillation.teacher_logits_at_every_position if shift else distillation.teacher_logits
    logits = ask(teacher, data, cache=tmp_path / "logits.npz", batch_size=7)
    labels = np.tile(data.labels("train")[:, None], (1, 9)) if shift else data.labels("train")
    cached = data.with_targets(distillation_targets(labels, logits))
    silent = dataclasses.replace(teacher, _logits=lambda x: pytest.fail("the teacher was asked in training"))
    results = []
    for source, asked in ((data, teacher), (cached, silent)):
        model = dense_student(asked, DistillationLoss(0.5, 2.0), learning_rate=0.1, steps_per_execution=2)
        history = model.fit(source.train(8, seed=0), steps_per_epoch=4, epochs=2, verbose=0).history
        results.append([*history.values(), *distribution.get_state(model)])
    for asked, read in zip(*results, strict=True):
        np.testing.assert_allclose(asked, read, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True], ids=["asked", "packed"])
def test_class_weights_go_by_the_label(teacher, teacher_model, packed):
    x, y, weights = one_batch(12)
    model = dense_student(teacher, DistillationLoss(0.5, 2.0), learning_rate=0.0)
    kernel, bias = model.get_weights()
    v = logits_of(teacher_model, x)
    rows, _ = reference(DistillationLoss, y, v, x.reshape(len(x), -1) @ kernel + bias, 0.5, 2.0)
    rows *= np.array([1.0, 5.0, 0.5])[y]
    targets = distillation_targets(y, v.astype("float32")).numpy() if packed else y
    fit = {"class_weight": {1: 5.0, 2: 0.5}, "batch_size": len(x), "verbose": 0}
    history = model.fit(x, targets, **fit).history
    assert history["loss"][0] == pytest.approx(rows.mean(), rel=1e-5)
    history = model.fit(x, targets, sample_weight=weights, **fit).history
    assert history["loss"][0] == pytest.approx((weights * rows).mean(), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["asked", "packed"])
def test_labels_of_no_class_and_images_of_nan_are_refused(teacher, packed):
    x, y, _ = one_batch()
    model = dense_student(teacher, DistillationLoss(0.5))
    for value in (K, 0.7):
        wrong = np.where(np.arange(len(y)) == 4, value, y).astype("float32")
        targets = np.column_stack([wrong, np.zeros((len(y), K), "float32")]) if packed else wrong
        with pytest.raises(
            ValueError, match=rf"whole numbers in \[0, 3\), the number of logits; received {value}.* in row 4"
        ):
            model.fit(x, targets, verbose=0)
    x[2] = np.nan
    with pytest.raises(ValueError, match="Inputs must be finite numbers; received nan in row 2"):
        model.fit(x, y, verbose=0)


def test_a_penalty_adds_itself(teacher):
    x, y, _ = one_batch()
    with_penalty, without = (dense_student(teacher, DistillationLoss(), penalty) for penalty in (100.0, 0.0))
    kernel, _ = without.get_weights()
    difference = with_penalty.compute_loss(x, y, with_penalty(x)) - without.compute_loss(x, y, without(x))
    assert float(difference) == pytest.approx(100 * (kernel**2).sum(), rel=1e-5)


def test_a_batch_of_weights_0_has_loss_0(teacher):
    x, y, weights = one_batch()
    model = dense_student(teacher, DistillationLoss())
    assert float(model.compute_loss(x, y, model(x), sample_weight=0 * weights)) == 0


def test_evaluation_leaves_the_students_moving_averages_alone(teacher):
    x, y, _ = one_batch()
    inputs = keras.Input(SHAPE)
    normalised = keras.layers.BatchNormalization()(keras.layers.Flatten()(inputs))
    model = distillation.Distiller(inputs, keras.layers.Dense(K)(normalised), teacher=teacher)
    model.compile("sgd", DistillationLoss(), jit_compile=False)
    before = model.get_weights()
    model.evaluate(x, y, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_student_of_probabilities_is_refused(teacher):
    x, y, _ = one_batch()
    inputs = keras.Input(SHAPE)
    outputs = keras.layers.Dense(K, activation="softmax")(keras.layers.Flatten()(inputs))
    model = distillation.Distiller(inputs, outputs, teacher=teacher)
    model.compile("sgd", DistillationLoss(), jit_compile=False)
    with pytest.raises(ValueError, match="received the output of a softmax"):
        model.fit(x, y, verbose=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with NumPy 2.4
@pytest.mark.parametrize("kind", ["SavedModel", "Keras model"])
def test_the_teacher_is_neither_trained_nor_saved(kind, teacher_folder, tmp_path):
    original = toy_teacher()
    before = original.get_weights()
    teacher = distillation.load_teacher(teacher_folder if kind == "SavedModel" else original, K, SHAPE)
    model = dense_student(teacher, DistillationLoss())
    assert [v.path for v in model.variables] == ["logits/kernel", "logits/bias"]
    assert len(distribution.get_state(model)) == 2 + 2  # and the optimizer's step and rate
    assert [layer.name for layer in model.layers[-1:]] == ["logits"]
    x, y, _ = one_batch()
    said = teacher(x).numpy()
    model.fit(x, y, verbose=0, shuffle=False)
    model.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(teacher(x), said)
    for a, b in zip(original.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.save_weights(tmp_path / "student.weights.h5")
    student = keras.Model(model.inputs, model.outputs)
    weights = student.get_weights()
    student.set_weights([w * 0 for w in weights])
    keras.Model(model.inputs, model.outputs).load_weights(tmp_path / "student.weights.h5")
    for a, b in zip(student.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(NotImplementedError, match="Save the student"):
        model.save(tmp_path / "student.keras")


def test_the_student_is_exported_without_its_teacher(teacher, tmp_path):
    inputs = keras.Input(SHAPE)
    x = keras.layers.Dense(4, activation="relu", name="penultimate")(keras.layers.Flatten()(inputs))
    model = distillation.Distiller(inputs, keras.layers.Dense(K, name="logits")(x), teacher=teacher)
    artifact.export(model, tmp_path / "saved_model")
    loaded = tf.saved_model.load(str(tmp_path / "saved_model"))
    assert len(loaded.variables) == 4
    x, _, _ = one_batch()
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5)


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 0.02), ("mixed_float16", 0.002)])
def test_mixed_precision_leaves_targets_in_float32(policy, tolerance, teacher_folder):
    x, y, _ = one_batch()
    teacher = distillation.load_teacher(teacher_folder, K, SHAPE)
    expected = dense_student(teacher, DistillationLoss(0.5)).train_on_batch(x, y)[0]
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = dense_student(teacher, DistillationLoss(0.5))
        received = model.train_on_batch(x, y)[0]
    finally:
        keras.config.set_dtype_policy(before)
    assert model.compute_dtype != "float32"
    assert received == pytest.approx(expected, rel=tolerance)


def test_a_student_of_another_shape_is_refused(teacher):
    inputs = keras.Input(SHAPE)
    outputs = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    with pytest.raises(ValueError, match=r"to \(None, 4\), its teacher \(None, 2, 2, 1\) to \(None, 3\)"):
        distillation.Distiller(inputs, outputs, teacher=teacher)
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match=r"The student maps \(None, 4\)"):
        distillation.Distiller(inputs, keras.layers.Dense(3)(inputs), teacher=teacher)


@pytest.fixture(scope="module")
def replicas(two_replicas):
    """What two_replicas.py found on one device and on two."""
    process, folder = two_replicas
    assert process.wait(timeout=3000) == 0, (folder / "log").read_text()[-4000:]
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("kind", ["SavedModel", "Keras model"])
def test_two_replicas_learn_what_one_learns(replicas, kind):
    one, two = (tf.nest.flatten(replicas[name][kind]) for name in ("cpu", "mirrored"))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert replicas["cpu"][kind]["moved"] > 0.1


def test_a_student_comes_to_agree_with_its_teacher():
    """Four classes of points, β = 1: a student of 10 epochs is nearly as accurate as the classifier it learns from."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(2)
    centres = generator.normal(size=(4, 8))
    labels = generator.integers(0, 4, 512)
    x = (centres[labels] + 0.5 * generator.normal(size=(512, 8))).astype("float32")

    def linear():
        inputs = keras.Input((8,))
        return keras.Model(
            inputs, keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotUniform(3))(inputs)
        )

    def accuracy(model):
        return float((model.predict(x, verbose=0).argmax(1) == labels).mean())

    teacher, network = linear(), linear()
    # Logits of the nearest centre: −‖x − c‖² / (2 · 0.5²) up to what is common to all classes.
    teacher.set_weights([4 * centres.T, -2 * (centres**2).sum(1)])
    model = distillation.Distiller(network.input, network.output, teacher=distillation.load_teacher(teacher, 4, (8,)))
    model.compile(keras.optimizers.Adam(0.03), DistillationLoss(), jit_compile=False)
    model.fit(x, labels, batch_size=64, epochs=10, verbose=0)
    assert accuracy(network) > accuracy(teacher) - 0.05
