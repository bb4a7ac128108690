"""What may be a teacher, what is refused as one, and its cached logits."""

import dataclasses
import shutil

from ls_keras import artifact, distillation

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_distillation import SHAPE, K, logits_of, one_batch, toy_data, toy_teacher


def test_any_savedmodel_of_logits_is_a_teacher(teacher_model, tmp_path):
    x, _, _ = one_batch()
    expected = logits_of(teacher_model, x.astype(float))
    teacher_model.export(tmp_path / "keras", verbose=False)

    class WithSignature(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, *SHAPE], name="pixels")])
        def predict(self, pixels):
            return {"scores": teacher_model(pixels, training=False)}

    module = WithSignature()
    module.network = teacher_model
    tf.saved_model.save(module, str(tmp_path / "signature"), signatures={"serving_default": module.predict})
    for source in (teacher_model, tmp_path / "keras", str(tmp_path / "signature")):
        np.testing.assert_allclose(distillation.load_teacher(source, K, SHAPE)(x), expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_gives_no_gradient(teacher, teacher_model):
    x = tf.constant(one_batch()[0])
    for each in (teacher, distillation.load_teacher(teacher_model, K, SHAPE)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = each(x)
        assert tape.gradient(value, x) is None


def with_softmax(activation="softmax", classes=K, bias=0.0):
    inputs = keras.Input(SHAPE)
    bias = keras.initializers.Constant(bias)
    layer = keras.layers.Dense(classes, activation=activation, bias_initializer=bias)
    return keras.Model(inputs, layer(keras.layers.Flatten()(inputs)), name="other")


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (with_softmax, SHAPE, "other returns probabilities"),
        (lambda: with_softmax(None, classes=5), SHAPE, r"shape \[n, 5\], expected \[n, 3\]"),
        (lambda: with_softmax(None), (2, 3, 1), r"does not take inputs of shape \[n, 2, 3, 1\]"),
        (lambda: with_softmax(None, bias=float("nan")), SHAPE, "NaN or infinity"),
    ],
)
@pytest.mark.parametrize("exported", [False, True])
def test_a_teacher_that_does_not_fit_is_refused(exported, make, shape, message, tmp_path):
    source = make()
    if exported:
        source.export(tmp_path / "other", verbose=False)
        source = tmp_path / "other"
    with pytest.raises(ValueError, match=message):
        distillation.load_teacher(source, K, shape)


def test_a_folder_without_a_teacher_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"saved_model\.pb"):
        distillation.load_teacher(tmp_path, K, SHAPE)
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"no endpoint `serve`.*none at all"):
        distillation.load_teacher(tmp_path / "empty", K, SHAPE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((K, (None,)), "shape of one example, .* without None"),
        ((K, 4), "shape of one example"),
        ((str(K), SHAPE), "num_classes to be an integer"),
    ],
)
def test_the_shapes_of_a_teacher_are_numbers(teacher_folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        distillation.load_teacher(teacher_folder, *arguments)


# Cached logits.


def test_logits_are_in_the_order_of_the_labels_and_read_back(teacher, teacher_model, tmp_path):
    data, cache = toy_data(), tmp_path / "new" / "logits.npz"
    images = tf.image.per_image_standardization(data.images("train")).numpy()
    expected = logits_of(teacher_model, images.astype(float))
    written = distillation.teacher_logits(teacher, data, cache=cache, batch_size=8)
    assert written.shape == (20, K)
    assert written.dtype == "float32"
    np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-5)
    assert [path.name for path in cache.parent.iterdir()] == ["logits.npz"]
    silent = dataclasses.replace(teacher, _logits=lambda x: pytest.fail("the teacher was asked again"))
    np.testing.assert_array_equal(distillation.teacher_logits(silent, data, cache=cache), written)
    assert len(distillation.teacher_logits(teacher, data, "held_out")) == 14


def test_cached_logits_of_something_else_are_refused(teacher, teacher_folder, teacher_model, tmp_path):
    data, cache = toy_data(), tmp_path / "logits.npz"
    distillation.teacher_logits(teacher, data, cache=cache)
    again = distillation.load_teacher(teacher_folder, K, SHAPE)
    distillation.teacher_logits(again, toy_data(), cache=cache)

    artifact.export(toy_teacher(seed=8), tmp_path / "other")
    other = distillation.load_teacher(tmp_path / "other", K, SHAPE)
    with pytest.raises(ValueError, match=f"teacher {teacher.fingerprint} and not {other.fingerprint}"):
        distillation.teacher_logits(other, data, cache=cache)
    with pytest.raises(ValueError, match=r"of data .* and not .*their order"):
        distillation.teacher_logits(teacher, toy_data(order=np.arange(20)[::-1]), cache=cache)
    with pytest.raises(ValueError, match="split train and not held_out"):
        distillation.teacher_logits(teacher, data, "held_out", cache=cache)
    with pytest.raises(ValueError, match="split train and not train at 9 positions"):
        distillation.teacher_logits_at_every_position(teacher, dataclasses.replace(data, max_shift=1), cache=cache)
    with pytest.raises(ValueError, match="Keras model in memory"):
        distillation.teacher_logits(distillation.load_teacher(teacher_model, K, SHAPE), data, cache=tmp_path / "new")


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_a_damaged_cache_is_refused(teacher, tmp_path, content):
    data, cache = toy_data(), tmp_path / "logits.npz"
    distillation.teacher_logits(teacher, data, cache=cache)
    cache.write_bytes(cache.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ValueError, match="is damaged"):
        distillation.teacher_logits(teacher, data, cache=cache)


def test_logits_that_are_not_finite_are_refused(teacher):
    broken = dataclasses.replace(teacher, _logits=lambda x: tf.fill([x.shape[0], K], float("nan")))
    with pytest.raises(ValueError, match="NaN or infinity for 20 of 20 examples of train, number 0"):
        distillation.teacher_logits(broken, toy_data())


def test_the_fingerprint_is_of_the_network_and_not_of_its_place(teacher_folder, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "copy")
    prints = [distillation.load_teacher(folder, K, SHAPE).fingerprint for folder in (teacher_folder, tmp_path / "copy")]
    assert prints[0] == prints[1]
    assert len(prints[0]) == 16
