"""Inception networks against published sizes, Keras's own Inception-v3, and a twin in tf.nn; their auxiliary head."""

import re

from ls_keras import auxiliary, losses, models
from ls_keras.analysis import Probe
from ls_keras.artifact.writing import endpoints

import keras
import numpy as np
import pytest
import tensorflow as tf


def size(weights):
    return sum(int(np.prod(weight.shape)) for weight in weights)


def of_layers(model, *, without=()):
    layers = [layer for layer in model.layers if not layer.name.startswith(without)] if without else model.layers
    return [weight for layer in layers for weight in layer.trainable_weights]


@pytest.fixture
def draw():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def v4():
    return models.inception_v4((299, 299, 3), 1000, auxiliary=True)


# --- Sizes


def test_inception_v4_has_the_published_number_of_parameters(v4):
    """timm lists 42.68 million of them; the auxiliary head and the scale count 3,359,464 and 31,584."""
    whole = of_layers(v4)
    alone = of_layers(v4, without=("auxiliary",))
    assert size(whole) == size(v4.trainable_weights) == 46_039_280
    assert size(alone) == 42_679_816
    assert size(weight for weight in alone if weight.name != "gamma") == 42_648_232


def test_inception_v4_has_the_published_stages(v4):
    """Figure 9 of Szegedy et al. (2017), but for its reduction B, which figure 3 makes of 1,536 channels."""
    for name, shape in {
        "stem3": (147, 147, 64),
        "stem4": (73, 73, 160),
        "stem5": (71, 71, 192),
        "stem6": (35, 35, 384),
        "a4": (35, 35, 384),
        "reduction_a": (17, 17, 1024),
        "b7": (17, 17, 1024),
        "reduction_b": (8, 8, 1536),
        "c3": (8, 8, 1536),
        "penultimate": (1536,),
    }.items():
        layer = next(layer for layer in v4.layers if layer.name in (name, f"{name}_relu"))
        assert layer.output.shape[1:] == shape, name
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in v4.output.items()} == {
        name: ((None, 1000), "float32") for name in ("logits", "auxiliary")
    }
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in v4.layers) == 149 + 2
    assert v4.get_layer("dropout").rate == pytest.approx(1 - 0.8)  # slim's dropout_keep_prob


def test_inception_v3_has_torchvisions_number_of_parameters():
    """https://docs.pytorch.org/vision/main/models/generated/torchvision.models.inception_v3.html: 27,161,264."""
    model = models.inception_v3((299, 299, 3), 1000, auxiliary=True)
    assert size(model.trainable_weights) == 27_161_264
    stages = {"stem7": (35, 35, 192), "a3": (35, 35, 288), "b4": (17, 17, 768), "c2": (8, 8, 2048)}
    assert {name: model.get_layer(name).output.shape[1:] for name in stages} == stages


def test_inception_v3_is_kerass_own(draw):
    theirs = keras.applications.InceptionV3(weights=None, input_shape=(75, 75, 3), classifier_activation=None)
    ours = models.inception_v3((75, 75, 3), 1000, scale=False, dropout=0.0)
    assert size(ours.trainable_weights) == 23_817_352  # https://keras.io/api/applications/inceptionv3
    weights = [
        0.5 + draw.random(w.shape, "float32") if "moving" in w.name else w.numpy() + 0.01 * ("beta" in w.name)
        for w in theirs.weights
    ]
    theirs.set_weights(weights)
    assert [w.shape for w in ours.weights] == [w.shape for w in theirs.weights]
    ours.set_weights(weights)
    x = draw.standard_normal((2, 75, 75, 3)).astype("float32")
    expected = theirs(x).numpy()
    np.testing.assert_allclose(ours(x), expected, atol=1e-4 * np.abs(expected).max())


def test_inception_v2_of_table_1_lacks_two_improvements():
    """A 7×7 convolution in place of three of 3×3, and a bias in place of a normalized layer of 768."""
    options = {"width": 1 / 16, "auxiliary": True}
    newer = models.inception_v3((107, 107, 3), 5, **options)
    older = models.inception_v3((107, 107, 3), 5, factorized_stem=False, batch_normalized_aux=False, **options)
    assert older.get_layer("stem4").output.shape == newer.get_layer("stem4").output.shape
    added, removed = (
        {w.path: tuple(w.shape) for w in one.trainable_weights if w.path not in {each.path for each in other.weights}}
        for one, other in ((older, newer), (newer, older))
    )
    assert added == {"auxiliary2_conv/bias": (48,)}
    assert {path.partition("_")[0] for path in removed} == {"stem2", "stem3", "auxiliary2"}
    assert older.get_layer("stem1_conv").kernel.shape == (7, 7, 3, 4)


# --- Wiring


def twin_inception_v4(x, weights, width):
    """Figures 3 to 9 in tf.nn, batch statistics and all; `weights` in the order of this text."""
    weights = iter(weights)

    def conv(x, channels, height=1, wide=1, stride=1, padding="SAME"):
        kernel, gamma, beta = (next(weights) for _ in range(3))
        assert kernel.shape == (height, wide, x.shape[-1], max(1, round(width * channels)))
        x = tf.nn.conv2d(x, kernel, stride, padding)
        mean, variance = tf.nn.moments(x, (0, 1, 2))
        return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3))

    def average(x):
        return tf.nn.avg_pool2d(x, 3, 1, "SAME")

    def largest(x):
        return tf.nn.max_pool2d(x, 3, 2, "VALID")

    def block_a(x):
        one = conv(x, 96)
        two = conv(conv(x, 64), 96, 3, 3)
        three = conv(conv(conv(x, 64), 96, 3, 3), 96, 3, 3)
        return tf.concat([one, two, three, conv(average(x), 96)], -1)

    def block_b(x):
        one = conv(x, 384)
        two = conv(conv(conv(x, 192), 224, 1, 7), 256, 7, 1)
        three = conv(conv(conv(x, 192), 192, 7, 1), 224, 1, 7)
        three = conv(conv(three, 224, 7, 1), 256, 1, 7)
        return tf.concat([one, two, three, conv(average(x), 128)], -1)

    def block_c(x):
        one = conv(x, 256)
        two = conv(x, 384)
        two = tf.concat([conv(two, 256, 1, 3), conv(two, 256, 3, 1)], -1)
        three = conv(conv(conv(x, 384), 448, 3, 1), 512, 1, 3)
        three = tf.concat([conv(three, 256, 1, 3), conv(three, 256, 3, 1)], -1)
        return tf.concat([one, two, three, conv(average(x), 256)], -1)

    x = conv(conv(conv(x, 32, 3, 3, 2, "VALID"), 32, 3, 3, 1, "VALID"), 64, 3, 3)
    x = tf.concat([largest(x), conv(x, 96, 3, 3, 2, "VALID")], -1)
    one = conv(conv(x, 64), 96, 3, 3, 1, "VALID")
    x = tf.concat([one, conv(conv(conv(conv(x, 64), 64, 1, 7), 64, 7, 1), 96, 3, 3, 1, "VALID")], -1)
    x = tf.concat([conv(x, 192, 3, 3, 2, "VALID"), largest(x)], -1)
    for _ in range(4):
        x = block_a(x)
    one = conv(x, 384, 3, 3, 2, "VALID")
    x = tf.concat([one, conv(conv(conv(x, 192), 224, 3, 3), 256, 3, 3, 2, "VALID"), largest(x)], -1)
    for _ in range(7):
        x = block_b(x)
    before = x
    one = conv(conv(x, 192), 192, 3, 3, 2, "VALID")
    two = conv(conv(conv(conv(x, 256), 256, 1, 7), 320, 7, 1), 320, 3, 3, 2, "VALID")
    x = tf.concat([one, two, largest(x)], -1)
    for _ in range(3):
        x = block_c(x)
    logits = tf.reduce_mean(x, (1, 2)) @ next(weights) + next(weights)
    x = conv(tf.nn.avg_pool2d(before, 5, 3, "VALID"), 128)
    x = conv(x, 768, *x.shape[1:3], 1, "VALID")
    return logits, x[:, 0, 0] @ next(weights) + next(weights)


STAGES = ("stem", "a", "reduction_a", "b", "reduction_b", "c", "logits", "auxiliary")


def place(path):
    """Where the twin uses a weight: stage, block, branches and steps; a convolution before its normalization."""
    stage = re.match("[a-z]+(_[ab](?=_))?", path)[0]
    layer, _, name = path.partition("/")
    kinds = ("kernel", "bias", "gamma", "beta")
    numbers = [int(number) for number in re.findall(r"\d+", layer)]
    # Of "auxiliary" the head comes last.
    return STAGES.index(stage), numbers or [99], kinds.index(name)


@pytest.fixture
def float64():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.usefixtures("float64")  # 150 normalizations of a small batch make much of float32's rounding
def test_inception_v4_is_the_twin(draw):
    small = models.inception_v4((107, 107, 3), 5, width=1 / 32, auxiliary=True, seed=3)
    weights = {w.path: w for w in small.trainable_weights}
    for weight in weights.values():
        weight.assign(weight + 0.1 * draw.standard_normal(weight.shape))
    x = draw.standard_normal((3, 107, 107, 3)).astype("float32").astype("float64")  # inputs are float32 all the same
    # The generator of dropout stands between the last layers: evaluate by batch statistics without it.
    stages = {"logits": small.get_layer("penultimate").output, "auxiliary": small.output["auxiliary"]}
    outputs = keras.Model(small.input, stages)(x, training=True)
    logits = outputs["logits"] @ small.get_layer("logits").kernel + small.get_layer("logits").bias
    expected = twin_inception_v4(x, [weights[path].numpy() for path in sorted(weights, key=place)], 1 / 32)
    for ours, twin in zip((logits, outputs["auxiliary"]), expected, strict=True):
        np.testing.assert_allclose(ours, twin, atol=1e-9)


@pytest.mark.parametrize("build", [models.inception_v4, models.inception_v3])
def test_the_smallest_image_and_options_that_act(build):
    model = build((75, 75, 1), 2, width=1 / 32, scale=False, dropout=0.0, weight_decay=0.1, momentum=0.5, seed=1)
    again = build((75, 75, 1), 2, width=1 / 32, scale=False, dropout=0.0, weight_decay=0.1, momentum=0.5, seed=1)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(norm.momentum, norm.epsilon, norm.gamma) for norm in norms} == {(0.5, 1e-3, None)}
    kernels = [weight.numpy() for weight in model.trainable_weights if weight.name == "kernel"]
    assert len(model.losses) == len(kernels) == len(norms) + 1
    assert float(sum(model.losses)) == pytest.approx(sum(0.05 * np.sum(k.astype("float64") ** 2) for k in kernels))
    assert [layer.name for layer in model.layers[-2:]] == ["penultimate", "logits"]


def test_small_images_are_resized_first(draw):
    x = draw.random((2, 28, 28, 1), "float32")
    options = {"blocks": (1, 1, 1), "width": 1 / 32, "seed": 1}
    resized = models.inception_v4((28, 28, 1), 3, image_size=75, **options)
    whole = models.inception_v4((75, 75, 1), 3, **options)
    np.testing.assert_allclose(resized(x), whole(tf.image.resize(x, (75, 75))), atol=1e-5)


def test_kernels_start_with_variance_two_over_fan_in():
    model = models.inception_v4((75, 75, 3), 10, width=0.25, seed=0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = layer.kernel.numpy()
            assert kernel.std() == pytest.approx(
                np.sqrt(2 / np.prod(kernel.shape[:3])), rel=5 / np.sqrt(2 * kernel.size)
            )
    assert len({layer.kernel.numpy().tobytes() for layer in model.layers if hasattr(layer, "kernel")}) == 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_shape": (74, 99, 3)}, r"at least 75 pixels high and wide; received \(74, 99\)"),
        ({"image_size": 74}, r"received \(74, 74\). Give a greater `image_size`"),
        ({"input_shape": (106, 299, 3), "auxiliary": True}, "at least 107 .*; without it, 75 are enough"),
        ({"input_shape": (299, 299)}, "must be \\(height, width, channels\\)"),
        ({"num_classes": 1}, "`num_classes` must be at least 2"),
        ({"width": 0.0}, "`width` must be above 0.*received 0.0"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\); received 1.0"),
        ({"momentum": -0.1}, r"`momentum` must lie in \[0, 1\); received -0.1"),
        ({"weight_decay": -1.0}, "`weight_decay` must be at least 0"),
    ],
)
@pytest.mark.parametrize("build", [models.inception_v4, models.inception_v3])
def test_impossible_networks_are_refused(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"input_shape": (75, 75, 3), "num_classes": 5, **options})


# --- The auxiliary head


def two_heads(weight=0.4, **optimizer):
    """A classifier on its inputs and, as auxiliary, another one on them; both decay."""
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, kernel_initializer=keras.initializers.RandomNormal(seed=1), name="penultimate")
    logits, aside = (
        keras.layers.Dense(
            2, kernel_initializer=keras.initializers.RandomNormal(seed=seed), kernel_regularizer="l2", name=name
        )
        for seed, name in ((2, "logits"), (3, "auxiliary"))
    )
    features = hidden(inputs)
    outputs = {"logits": logits(features), "auxiliary": aside(features)}
    model = auxiliary.WithAuxiliary(inputs, outputs, weight=weight)
    sgd = keras.optimizers.SGD(0.5, **optimizer)
    accuracy = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
    model.compile(sgd, losses.SmoothedCrossentropy(0.1), weighted_metrics=accuracy, jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def examples(rows=8):
    draw = np.random.default_rng(5)
    return draw.standard_normal((rows, 3)).astype("float32"), np.arange(rows) % 2, draw.uniform(0.5, 2, rows)


def smoothed_loss(logits, labels, weights, alpha=0.1):
    logs = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
    rows = -(1 - alpha) * logs[np.arange(len(labels)), labels] - alpha * logs.mean(-1)
    return np.mean(weights * rows)  # as Keras: by the number of rows


def test_the_auxiliary_loss_counts_with_its_weight_in_training_alone():
    model = two_heads(weight=0.4)
    x, y, weights = examples()
    values = {name: value.numpy().astype("float64") for name, value in model(x).items()}
    main, aside = (smoothed_loss(values[name], y, weights) for name in ("logits", "auxiliary"))
    penalty = sum(0.01 * np.sum(np.square(model.get_layer(name).kernel)) for name in ("logits", "auxiliary"))
    evaluated = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    right = values["logits"].argmax(-1) == y
    assert evaluated == pytest.approx({"loss": main + penalty, "accuracy": np.sum(weights * right) / np.sum(weights)})
    logs = model.train_on_batch(x, y, weights, return_dict=True)
    assert logs["loss"] == pytest.approx(main + 0.4 * aside + penalty)
    assert set(logs) == {"loss", "accuracy"}


def test_the_auxiliary_loss_is_accumulated_like_the_other():
    x, y, weights = examples()
    joined, apart = two_heads(), two_heads(gradient_accumulation_steps=2)
    for model, size in ((joined, 8), (apart, 4)):
        model.fit(tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(size, drop_remainder=True), verbose=0)
    for one, two in zip(joined.get_weights(), apart.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_what_is_exported_knows_nothing_of_the_auxiliary_head():
    model = two_heads()
    x, _, _ = examples()
    module = endpoints(model)
    assert set(module.probe(x)) == {"penultimate", "logits"}
    assert not [weight.path for weight in module.network.weights if "auxiliary" in weight.path]
    np.testing.assert_allclose(module.serve(x), model(x)["logits"], atol=1e-6)
    assert Probe(module).num_classes == 2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # TensorFlow with NumPy 2
def test_a_saved_model_keeps_its_auxiliary_head(tmp_path):
    model = two_heads(weight=0.3)
    x, y, weights = examples()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.train_on_batch(x, y, weights) == pytest.approx(model.train_on_batch(x, y, weights))


@pytest.mark.parametrize(
    ("outputs", "weight", "message"),
    [
        (lambda x: x, 0.4, r"needs the outputs {'logits': …, 'auxiliary': …}; received \w*Tensor"),
        (lambda x: {"logits": x, "other": x}, 0.4, "received \\['logits', 'other'\\]"),
        (lambda x: {"logits": x, "auxiliary": x}, 0.0, "must be above 0; received 0.0"),
    ],
)
def test_other_networks_are_refused(outputs, weight, message):
    inputs = keras.Input((3,))
    with pytest.raises(ValueError, match=message):
        auxiliary.WithAuxiliary(inputs, outputs(keras.layers.Dense(2)(inputs)), weight=weight)


def test_inception_with_its_auxiliary_head_trains_every_weight(draw):
    small = models.inception_v4(
        (107, 107, 3), 5, blocks=(1, 2, 1), width=1 / 8, auxiliary=True, momentum=0.9, dropout=0.0, seed=3
    )
    model = auxiliary.WithAuxiliary(small.input, small.output, weight=0.4)
    model.compile(keras.optimizers.SGD(0.1), losses.SmoothedCrossentropy(0.1), run_eagerly=True)
    before = model.get_weights()
    x = draw.standard_normal((8, 107, 107, 3)).astype("float32")
    assert np.isfinite(model.train_on_batch(x, np.arange(8) % 5))
    for weight, old in zip(model.weights, before, strict=True):
        value = weight.numpy()
        assert np.isfinite(value).all(), weight.path
        assert weight.dtype != "float32" or not np.array_equal(value, old), weight.path
