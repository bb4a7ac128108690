"""A data set, a teacher and a batch for the tests of distillation, and in NumPy what should come of them."""

from ls_keras.data import Images
from ls_keras.losses import DistillationLoss

import keras
import numpy as np
from scipy.special import log_softmax, softmax

SHAPE, K = (2, 2, 1), 3


def toy_data(num_train=20, order=None, augmented=False):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (num_train + 14, *SHAPE), dtype=np.uint8)
    labels = generator.integers(0, K, num_train + 14).astype(np.int32)
    if order is not None:
        images[:num_train], labels[:num_train] = images[:num_train][order], labels[:num_train][order]
    arrays = {"train": (images[:num_train], labels[:num_train]), "held_out": (images[num_train:], labels[num_train:])}
    return Images("toy", SHAPE, K, ("a", "b", "c"), "here", "standardize", int(augmented), augmented, arrays)


def toy_teacher(seed=7):
    """A network with all that must keep still in a teacher: moving statistics and dropout."""
    inputs = keras.Input(SHAPE)
    x = keras.layers.BatchNormalization()(keras.layers.Flatten()(inputs))
    x = keras.layers.Dense(5, activation="relu", name="penultimate")(keras.layers.Dropout(0.5)(x))
    model = keras.Model(inputs, keras.layers.Dense(K, name="logits")(x), name="teacher")
    generator = np.random.default_rng(seed)
    model.set_weights([generator.uniform(0.5, 1.5, w.shape) * np.sign(w + 0.1) for w in model.get_weights()])
    return model


def logits_of(model, images):
    """The teacher's logits by hand: moving statistics, no dropout."""
    weights = {w.path.partition("/")[2]: w.numpy().astype(float) for w in model.layers[2].weights}
    kernel, bias, last, offset = (w.astype(float) for w in model.get_weights()[-4:])
    x = (images.reshape(len(images), -1) - weights["moving_mean"]) / np.sqrt(weights["moving_variance"] + 1e-3)
    x = weights["gamma"] * x + weights["beta"]
    return np.maximum(x @ kernel + bias, 0) @ last + offset


def one_batch(count=6):
    generator = np.random.default_rng(3)
    x = generator.normal(size=(count, *SHAPE)).astype("float32")
    return x, generator.integers(0, K, count).astype("int32"), generator.uniform(0, 2, count).astype("float32")


def reference(kind, labels, v, z, beta, temperature=1.0, student_temperature=1.0, factor=1.0, centred=False):
    """Loss and gradient per example in float64, from the definitions."""
    v, z = v.astype(float), z.astype(float)
    y = np.eye(z.shape[-1])[labels]
    hard, hard_gradient = -(y * log_softmax(z, -1)).sum(-1), softmax(z, -1) - y
    if kind is DistillationLoss:
        target, log_p = softmax(v / temperature, -1), log_softmax(z / student_temperature, -1)
        soft = -factor * (target * log_p).sum(-1)
        gradient = factor * (np.exp(log_p) - target) / student_temperature
    else:
        d = z - v
        d = d - d.mean(-1, keepdims=True) if centred else d
        soft, gradient = factor * 0.5 * (d**2).sum(-1), factor * d
    return (1 - beta) * hard + beta * soft, (1 - beta) * hard_gradient + beta * gradient
