"""Networks against written-out twins, closed forms and the numbers of the papers they come from."""

import subprocess
import sys
import textwrap

from ls_keras import models
from ls_keras.models import layers

import keras
import numpy as np
import pytest
import tensorflow as tf

PAPER_SIZE = {
    "mlp": (models.mlp, (28, 28, 1)),
    "alexnet": (models.alexnet, (32, 32, 3)),
    "resnet": (models.resnet, (32, 32, 3)),
}
SMALL = {
    "mlp": lambda **options: models.mlp((4, 4, 1), 3, units=(6, 5), **options),
    "alexnet": lambda **options: models.alexnet((8, 8, 1), 3, **options),
    "resnet": lambda **options: models.resnet((8, 8, 2), 3, depth=8, widths=(4, 6, 8, 10), **options),
}


@pytest.fixture
def mixed_bfloat16():
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def trainable_size(model):
    return sum(weight.numpy().size for weight in model.trainable_weights)


def gradients(model, x, y, training=True):
    with tf.GradientTape() as tape:
        logits = model(x, training=training)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
    return logits.numpy(), tape.gradient(loss, [weight.value for weight in model.trainable_weights])


def randomize(model, draw):
    """Move every weight off its initial value, so that no bias of 0 or gain of 1 can hide a mistake."""
    for weight in model.weights:
        noise = 0.1 * draw.standard_normal(weight.shape)
        weight.assign(np.abs(weight.numpy() + noise) if "variance" in weight.name else weight.numpy() + noise)


# Sizes


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: models.mlp((784,), 10), 2_395_210),
        (lambda: models.mlp((28, 28, 1), 10, units=(800, 800)), 1_276_810),
        (lambda: models.alexnet((32, 32, 3), 10), 1_756_426),
        (lambda: models.alexnet((24, 24, 3), 10), 1_068_298),
        (lambda: models.resnet((32, 32, 3), 10), 3_407_674),
        (lambda: models.resnet((32, 32, 3), 100), 3_419_284),
        (lambda: models.resnet((32, 32, 3), 100, widths=(16, 16, 32, 64)), 861_812),
        (lambda: models.resnet((32, 32, 3), 100, stem_kernel=7), 3_419_284 + 16 * 3 * (49 - 9)),
    ],
)
def test_number_of_parameters_is_the_published_one(build, expected):
    assert trainable_size(build()) == expected


@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (1, 1, 1), (7, 5, 2)])
@pytest.mark.parametrize("build", [models.alexnet, lambda *args: models.resnet(*args, depth=8)])
def test_image_networks_take_any_image(build, shape):
    assert build(shape, 4)(np.ones((2, *shape), "float32")).shape == (2, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.mlp((), 10), "`input_shape` must hold positive integers"),
        (lambda: models.mlp((0,), 10), "`input_shape` must hold positive integers"),
        (lambda: models.alexnet((None, None, 3), 10), "`input_shape` must hold positive integers"),
        (lambda: models.alexnet((28, 28), 10), "Add a channel axis"),
        (lambda: models.resnet((8, 8, 1), 1), "`num_classes` must be at least 2; received 1"),
        (lambda: models.resnet((8, 8, 1), 10, depth=55), "6n \\+ 2 .*received 55"),
        (lambda: models.resnet((8, 8, 1), 10, depth=2), "6n \\+ 2 .*received 2"),
        (lambda: models.resnet((8, 8, 1), 10, widths=(16, 32, 64)), "four positive numbers"),
        (lambda: models.resnet((8, 8, 1), 10, stem_kernel=4), "`stem_kernel` must be odd"),
        (lambda: models.resnet((8, 8, 1), 10, weight_decay=-1e-4), "`weight_decay` must be at least 0"),
        (lambda: models.mlp((4,), 10, units=()), "at least one hidden layer"),
        (lambda: models.mlp((4,), 10, dropout=1.0), "`dropout` must lie in"),
        (lambda: models.mlp((4,), 10, input_dropout=-0.1), "`input_dropout` must lie in"),
        (lambda: models.mlp((4,), 10, initial_stddev=0.0), "`initial_stddev` must be positive"),
        (lambda: models.mlp((4,), 10, max_norm=-1.0), "`max_norm` must be positive"),
    ],
)
def test_impossible_networks_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# Twins: the same network written out with NumPy or tf.nn, from the description and the weights alone


def twin_batch_norm(x, gamma, beta):
    mean, variance = tf.nn.moments(x, (0, 1, 2))
    return (x - mean) / tf.sqrt(variance + 1e-5) * gamma + beta


def twin_resnet(x, weights, blocks, widths):
    """tensor2tensor's network in training mode; `weights` are taken in the order in which they are used."""
    weights = iter(weights)

    def conv(x, stride):
        kernel = next(weights)
        before = (kernel.shape[0] - 1) // 2
        return tf.nn.conv2d(tf.pad(x, [[0, 0], [before] * 2, [before] * 2, [0, 0]]), kernel, stride, "VALID")

    def norm(x):
        return twin_batch_norm(x, next(weights), next(weights))

    x = tf.nn.relu(norm(conv(x, 1)))
    for group in range(len(widths) - 1):
        for block in range(blocks):
            stride = 2 if block == 0 and group > 0 else 1
            shortcut = x
            x = tf.nn.relu(norm(x))
            if block == 0:
                shortcut = norm(conv(x, stride))
            x = conv(tf.nn.relu(norm(conv(x, stride))), 1) + shortcut
    return tf.reduce_mean(x, (1, 2)) @ next(weights) + next(weights)


def twin_alexnet(x, weights):
    kernels = iter(weights)

    def lrn(x):
        return tf.nn.local_response_normalization(x, 4, bias=1.0, alpha=0.001 / 9.0, beta=0.75)

    def conv(x):
        return tf.nn.relu(tf.nn.conv2d(x, next(kernels), 1, "SAME") + next(kernels))

    x = lrn(tf.nn.max_pool2d(conv(x), 3, 2, "SAME"))
    x = tf.nn.max_pool2d(lrn(conv(x)), 3, 2, "SAME")
    x = tf.reshape(x, (x.shape[0], -1))
    for _ in range(2):
        x = tf.nn.relu(x @ next(kernels) + next(kernels))
    return x @ next(kernels) + next(kernels)


def use_order(model):
    """Trainable values in the order of the layers' first use, which is the order of `model.layers`."""
    return [weight.numpy() for layer in model.layers for weight in layer.trainable_weights]


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("stem_kernel", [3, 7])
def test_resnet_is_tensor2tensors(blocks, stem_kernel, draw):
    widths = (4, 6, 8, 10)
    model = models.resnet((9, 8, 2), 3, depth=6 * blocks + 2, widths=widths, stem_kernel=stem_kernel)
    randomize(model, draw)
    x = draw.standard_normal((5, 9, 8, 2)).astype("float32")
    # Keras lists the layers of a graph by depth, so the short way of a block may come before the long one
    names = [layer.name for layer in model.layers if layer.trainable_weights]
    used = sorted(names, key=block_order)
    weights = [weight.numpy() for name in used for weight in model.get_layer(name).trainable_weights]
    np.testing.assert_allclose(model(x, training=True), twin_resnet(x, weights, blocks, widths), atol=2e-5)


def block_order(name):
    steps = ("norm1", "shortcut_conv", "shortcut_norm", "conv1", "norm2", "conv2")
    if name.startswith("group"):
        group, block, step = name.split("_", 2)
        return (1, group, block, steps.index(step))
    return {"stem_conv": (0, "", "", 0), "stem_norm": (0, "", "", 1), "logits": (2, "", "", 0)}[name]


@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 10, 3)])
def test_alexnet_is_the_tutorials(shape, draw):
    model = models.alexnet(shape, 5)
    randomize(model, draw)
    x = 5 * draw.standard_normal((4, *shape)).astype("float32")
    np.testing.assert_allclose(model(x), twin_alexnet(x, use_order(model)), rtol=1e-4, atol=1e-4)


def test_mlp_is_matrix_products(draw):
    model = models.mlp((2, 3), 4, units=(5, 6, 7), dropout=0.5, input_dropout=0.2)
    randomize(model, draw)
    x = draw.standard_normal((3, 2, 3)).astype("float32")
    h = x.reshape(3, -1)
    *hidden, kernel, bias = use_order(model)
    for w, b in zip(hidden[::2], hidden[1::2], strict=True):
        h = np.maximum(h @ w + b, 0)
    np.testing.assert_allclose(model(x, training=False), h @ kernel + bias, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_penultimate_times_templates_in_float32(name, draw, mixed_bfloat16):
    model = SMALL[name]()
    randomize(model, draw)
    assert [layer.name for layer in model.layers[-2:]] == ["penultimate", "logits"]
    probe = keras.Model(model.input, [model.get_layer("penultimate").output, model.output])
    penultimate, logits = (t.numpy() for t in probe(draw.standard_normal((5, *model.input_shape[1:]))))
    assert penultimate.dtype == logits.dtype == np.float32
    assert model.get_layer("flatten" if name == "mlp" else model.layers[1].name).compute_dtype == "bfloat16"
    kernel, bias = model.get_layer("logits").get_weights()
    np.testing.assert_allclose(logits, penultimate @ kernel + bias, atol=1e-5)


# Initial weights


def truncated_stddev(stddev):
    return stddev * 0.87962566  # of a Gaussian cut at 2σ: √(1 − 4φ(2)/(2Φ(2) − 1))


def expected_stddevs():
    resnet = models.resnet((32, 32, 3), 10, seed=1)
    alexnet = models.alexnet((32, 32, 3), 10, seed=1)
    mlp = models.mlp((784,), 10, initial_stddev=0.03, seed=1)
    cases = [(mlp, name, 0.03, np.inf) for name in ("hidden1", "penultimate", "logits")]
    for name, stddev in (
        ("conv1", 0.05),
        ("conv2", 0.05),
        ("local3", 0.04),
        ("penultimate", 0.04),
        ("logits", 1 / 192),
    ):
        cases.append((alexnet, name, truncated_stddev(stddev), 2 * stddev))
    for layer in resnet.layers:
        if isinstance(layer, keras.layers.Conv2D):  # variance 1/fan_in after the cut
            cases.append((resnet, layer.name, np.prod(layer.kernel.shape[:3]) ** -0.5, np.inf))
    cases.append((resnet, "logits", np.sqrt(2 / ((128 + 10) / 2)), np.inf))
    return cases


def test_initial_weights_have_the_published_spread():
    for model, name, stddev, bound in expected_stddevs():
        kernel = model.get_layer(name).kernel.numpy()
        # the standard error of a standard deviation is at most σ/√(2n), and five of it is never by chance
        assert abs(kernel.std() / stddev - 1) < 5 / np.sqrt(2 * kernel.size), (model.name, name)
        assert np.abs(kernel).max() <= bound * (1 + 1e-6), (model.name, name)


def test_initial_biases_are_the_tutorials():
    model = models.alexnet((8, 8, 1), 10)
    biases = {layer.name: layer.bias.numpy() for layer in model.layers if getattr(layer, "use_bias", False)}
    for name, value in {"conv1": 0, "conv2": 0.1, "local3": 0.1, "penultimate": 0.1, "logits": 0}.items():
        np.testing.assert_array_equal(biases.pop(name), np.float32(value))
    assert not biases


@pytest.mark.parametrize("name", SMALL)
def test_seed_decides_the_initial_weights(name):
    first, again, other = (SMALL[name](seed=seed) for seed in (3, 3, 4))
    kernels = [weight.numpy() for weight in first.weights if weight.name == "kernel"]
    for one, two in zip(kernels, (w.numpy() for w in again.weights if w.name == "kernel"), strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(kernels, (w.numpy() for w in other.weights if w.name == "kernel"), strict=True):
        assert not np.isclose(one, two).any(axis=-1).all()
    scaled = [np.sort((kernel / kernel.std()).ravel())[:3].round(4).tolist() for kernel in kernels]
    assert len({tuple(values) for values in scaled}) == len(kernels)  # no two layers share a seed


def test_without_a_seed_keras_decides():
    def kernel():
        keras.utils.set_random_seed(5)
        return SMALL["resnet"]().get_layer("stem_conv").kernel.numpy()

    np.testing.assert_array_equal(kernel(), kernel())
    assert not np.array_equal(
        SMALL["resnet"]().get_layer("stem_conv").kernel, SMALL["resnet"]().get_layer("stem_conv").kernel
    )


# Penalties and constraints


def test_resnet_decays_all_but_the_logits_bias(draw):
    model = SMALL["resnet"](weight_decay=0.1)
    randomize(model, draw)
    decayed = [weight for weight in model.trainable_weights if weight is not model.get_layer("logits").bias]
    expected = sum(0.05 * np.sum(np.square(weight.numpy(), dtype="float64")) for weight in decayed)
    assert len(model.losses) == len(decayed)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)


def test_alexnet_decays_its_two_local_layers():
    model = SMALL["alexnet"](weight_decay=0.04)
    kernels = [model.get_layer(name).kernel.numpy() for name in ("local3", "penultimate")]
    expected = sum(0.02 * np.sum(np.square(kernel, dtype="float64")) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-5)
    assert not SMALL["alexnet"]().losses


def test_max_norm_bounds_what_comes_into_each_hidden_unit(draw):
    model = models.mlp((20,), 3, units=(8, 8), initial_stddev=2.0, max_norm=15**0.5)
    x, y = draw.standard_normal((16, 20)).astype("float32"), draw.integers(3, size=16)
    before = model.get_layer("logits").kernel.numpy()
    model.compile(keras.optimizers.SGD(1e-6), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(x, y)
    for name in ("hidden1", "penultimate"):
        norms = np.linalg.norm(model.get_layer(name).kernel, axis=0)
        assert norms.max() == pytest.approx(15**0.5, rel=1e-4)
    np.testing.assert_allclose(model.get_layer("logits").kernel, before, atol=1e-3)


def test_dropout_drops_its_share_in_training_only():
    model = models.mlp((100,), 2, units=(400,), input_dropout=0.2, dropout=0.5, seed=0)
    names = ("input_dropout", "penultimate", "dropout1")
    probe = keras.Model(model.input, [model.get_layer(name).output for name in names])
    x = np.random.default_rng(0).uniform(1, 2, (200, 100)).astype("float32")
    inputs, before, after = (t.numpy() for t in probe(x, training=True))
    # five standard errors of 20,000 draws, and of about 40,000
    assert np.mean(inputs == 0) == pytest.approx(0.2, abs=0.015)
    assert np.mean(after[before > 0] == 0) == pytest.approx(0.5, abs=0.0125)
    np.testing.assert_allclose(inputs[inputs > 0], (x / 0.8)[inputs > 0], rtol=1e-6)
    inputs, before, after = (t.numpy() for t in probe(x, training=False))
    np.testing.assert_array_equal(inputs, x)
    np.testing.assert_array_equal(after, before)


# Training


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_finite_gradient(name, draw):
    model = SMALL[name]()
    randomize(model, draw)
    x = draw.standard_normal((16, *model.input_shape[1:])).astype("float32")
    _, values = gradients(model, x, draw.integers(3, size=16))
    for weight, gradient in zip(model.trainable_weights, values, strict=True):
        assert np.isfinite(gradient).all() and np.any(gradient), weight.path


@pytest.mark.parametrize("name", PAPER_SIZE)
def test_paper_size_network_trains(name, draw, mixed_bfloat16):
    build, shape = PAPER_SIZE[name]
    model = build(shape, 10, seed=0)
    before = model.get_weights()
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=True)
    x, y = draw.standard_normal((4, *shape)).astype("float32"), np.arange(4)
    losses = [model.train_on_batch(x, y) for _ in range(2)]
    assert np.isfinite(losses).all()
    for weight, old in zip(model.weights, before, strict=True):
        assert weight.dtype == "float32" and np.isfinite(weight.numpy()).all(), weight.path
        assert not np.array_equal(weight.numpy(), old), weight.path


# Batch normalization


def stock_twin(layer):
    twin = keras.layers.BatchNormalization.from_config(layer.get_config())
    twin.build((None, None, None, layer.gamma.shape[0]))
    twin.set_weights(layer.get_weights())
    return twin


def batch_norm(draw, channels=5, **options):
    layer = layers.BatchNormalization(momentum=0.9, epsilon=1e-3, **options)
    layer.build((None, None, None, channels))
    randomize(layer, draw)
    return layer


def test_batch_normalization_is_its_formula(draw):
    layer = batch_norm(draw)
    gamma, beta, mean, variance = (weight.astype("float64") for weight in layer.get_weights())
    x = 3 + 2 * draw.standard_normal((4, 3, 2, 5))
    m, v = x.mean((0, 1, 2)), x.var((0, 1, 2))  # population variance

    outputs = layer(x.astype("float32"), training=True)
    np.testing.assert_allclose(outputs, (x - m) / np.sqrt(v + 1e-3) * gamma + beta, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.9 * mean + 0.1 * m, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 * variance + 0.1 * v, rtol=1e-5)

    m, v = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    for options in ({"training": False}, {}):
        outputs = layer(x.astype("float32"), **options)
        np.testing.assert_allclose(outputs, (x - m) / np.sqrt(v + 1e-3) * gamma + beta, atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, m)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_batch_normalization_has_keras_gradient(training, graph, draw):
    layer = batch_norm(draw)
    twin = stock_twin(layer)
    x, upstream = draw.standard_normal((2, 6, 4, 4, 5)).astype("float32")

    def run(layer):
        def backward(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(layer(x, training=training) * upstream)
            return tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])

        return (tf.function(backward) if graph else backward)(tf.constant(x))

    for ours, keras_own in zip(run(layer), run(twin), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-4, atol=1e-4)
    for ours, keras_own in zip(layer.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=1e-5, atol=1e-6)


def test_frozen_batch_normalization_stands_still(draw):
    layer = batch_norm(draw)
    twin = stock_twin(layer)
    layer.trainable = twin.trainable = False
    before = layer.get_weights()
    x = draw.standard_normal((4, 3, 3, 5)).astype("float32")
    np.testing.assert_allclose(layer(x, training=True), twin(x, training=True), atol=1e-5)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_bfloat16_activations_keep_float32_statistics(draw, mixed_bfloat16):
    layer = batch_norm(draw)
    x = tf.cast(20 + draw.standard_normal((64, 8, 8, 5)), "bfloat16")
    exact = tf.cast(x, "float64").numpy()
    gamma, beta, mean, variance = layer.get_weights()
    outputs = layer(x, training=True)
    assert outputs.dtype == "bfloat16"
    m, v = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(
        tf.cast(outputs, "float64"), (exact - m) / np.sqrt(v + 1e-3) * gamma + beta, rtol=2**-8, atol=1e-4
    )
    np.testing.assert_allclose(layer.moving_mean, 0.9 * mean + 0.1 * m, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 * variance + 0.1 * v, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "shape", "masked"),
    [
        ({}, (6, 5), False),
        ({}, (6, 3, 5), False),
        ({}, (6, 3, 3, 5), True),
        ({"axis": 1}, (6, 5, 3, 3), False),
        ({"scale": False}, (6, 3, 3, 5), False),
        ({"synchronized": True}, (6, 3, 3, 5), False),
    ],
)
def test_what_the_kernel_cannot_do_is_left_to_keras(options, shape, masked, draw):
    layer = layers.BatchNormalization(**options)
    twin = keras.layers.BatchNormalization(**options)
    x = draw.standard_normal(shape).astype("float32")
    mask = draw.random(shape[:-1]) < 0.5 if masked else None
    np.testing.assert_array_equal(layer(x, training=True, mask=mask), twin(x, training=True, mask=mask))
    for ours, keras_own in zip(layer.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, keras_own)


def test_float64_is_left_to_keras(draw, float64):
    layer = batch_norm(draw)
    x = draw.standard_normal((4, 3, 3, 5))
    outputs = layer(x, training=True)
    assert outputs.dtype == "float64"
    np.testing.assert_allclose(outputs, stock_twin(layer)(x, training=True), rtol=1e-12)


# Local response normalization


def lrn_loop(x, radius, bias, alpha):
    y = np.empty_like(x)
    for *where, c in np.ndindex(*x.shape):
        window = x[(*where, slice(max(0, c - radius), c + radius + 1))]
        y[(*where, c)] = x[(*where, c)] / (bias + alpha * sum(v * v for v in window)) ** 0.75
    return y


@pytest.mark.parametrize(("channels", "radius"), [(64, 4), (3, 4), (1, 4), (6, 0), (7, 1)])
def test_local_response_normalization_is_its_formula(channels, radius, draw):
    x = 3 * draw.standard_normal((2, 3, 2, channels))
    layer = layers.LocalResponseNormalization(depth_radius=radius, bias=1.5, alpha=0.3)
    np.testing.assert_allclose(layer(x.astype("float32")), lrn_loop(x, radius, 1.5, 0.3), rtol=1e-5)


@pytest.mark.parametrize("graph", [True, False])
def test_local_response_normalization_is_tensorflows(graph, draw):
    x, upstream = (10 * draw.standard_normal((2, 3, 4, 4, 16))).astype("float32")
    layer = layers.LocalResponseNormalization(alpha=0.05)

    def backward(normalize):
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = normalize(x)
            return y, tape.gradient(y, x, upstream)

        return (tf.function(run) if graph else run)(tf.constant(x))

    theirs = backward(lambda x: tf.nn.local_response_normalization(x, 4, 1.0, 0.05, 0.75))
    for ours, expected in zip(backward(layer), theirs, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_local_response_normalization_gradient_is_the_difference_quotient(draw, float64):
    layer = layers.LocalResponseNormalization(depth_radius=2, alpha=0.7)
    theory, numeric = tf.test.compute_gradient(layer, [tf.constant(draw.standard_normal((2, 1, 1, 6)))])
    np.testing.assert_allclose(theory[0], numeric[0], atol=1e-6)  # quotient over 2⁻⁹, error O(2⁻²⁰)


# One network on both paths, on disk, and on two replicas


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["alexnet", "resnet"])
def test_keras_ops_alone_give_the_same_network(name, training, draw, monkeypatch):
    model = SMALL[name]()
    randomize(model, draw)
    start = model.get_weights()
    x = draw.standard_normal((8, *model.input_shape[1:])).astype("float32")
    y = draw.integers(3, size=8)
    logits, fast = gradients(model, x, y, training)
    moved = model.get_weights()
    model.set_weights(start)
    monkeypatch.setattr(layers.BatchNormalization, "_has_fused_kernel", lambda self, inputs: False)
    plain_logits, plain = gradients(model, x, y, training)
    np.testing.assert_allclose(logits, plain_logits, atol=2e-5)
    for one, two in zip([*fast, *moved], [*plain, *model.get_weights()], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # TensorFlow with NumPy 2
@pytest.mark.parametrize("name", SMALL)
def test_saved_network_is_the_same(name, draw, tmp_path):
    model = SMALL[name](weight_decay=0.1) if name != "mlp" else SMALL[name](max_norm=2.0)
    randomize(model, draw)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = draw.standard_normal((4, *model.input_shape[1:])).astype("float32")
    np.testing.assert_array_equal(model(x), loaded(x))
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    assert float(sum(loaded.losses)) == float(sum(model.losses))


TWO_REPLICAS = """
    from ls_keras.models import layers, resnet
    import keras, numpy as np, tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((16, 8, 8, 2)).astype("float32"), draw.integers(3, size=16)
    alone, mirrored = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert mirrored.num_replicas_in_sync == 2

    def step(strategy, build, **options):
        with strategy.scope():
            model = build()
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False, **options)
        model.fit(tf.data.Dataset.from_tensors((x, y)), shuffle=False, verbose=0)
        return model

    def small_resnet():
        sizes = {"depth": 8, "widths": (4, 6, 8, 10)}
        return resnet((8, 8, 2), 3, **sizes, synchronized=True, weight_decay=0.1, seed=0)

    # Synchronized: two replicas do what one does with the whole batch
    one, two = step(alone, small_resnet, run_eagerly=True), step(mirrored, small_resnet)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)

    # Not synchronized: each replica normalizes its half, and the moving averages are the mean over replicas
    def one_layer():
        norm = layers.BatchNormalization(momentum=0.9)
        return keras.Sequential([norm, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])

    norm = step(mirrored, one_layer).layers[0]
    halves = x.reshape(2, -1, 2)
    np.testing.assert_allclose(norm.moving_mean, 0.1 * halves.mean(1).mean(0), atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, 0.9 + 0.1 * halves.var(1).mean(0), atol=1e-6)
    assert abs(halves.mean(1)[0] - halves.mean(1)[1]).max() > 0.01  # else the first replica's would pass too
"""


def test_two_replicas_train_together():
    # A process of its own: logical devices can only be made before TensorFlow starts
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_REPLICAS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
