"""Train and evaluate tiny networks in the way the first argument says; write what came out to the second.

Run by test_distribution.py in processes of its own, since TensorFlow fixes devices and workers once a process.
"""

import json
import sys
from pathlib import Path

from ls_keras import auxiliary, distribution, losses, metrics

import keras
import numpy as np
import tensorflow as tf

CLIP = 0.3
BATCH = 8
LENGTH = 5
JOINED = 3
CLASS_WEIGHT = {0: 0.5, 2: 3.0}
LOSSES = {
    "ours": lambda ignored: losses.SmoothedCrossentropy(0.1, ignore_class=ignored),
    "keras": lambda ignored: keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored),
    "keras, by weights": lambda ignored: keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=ignored, reduction="mean_with_sample_weight"
    ),
}
# How labels [n, t] are left out, the loss, and the shape of sample weights.
STEPS = [
    ("mask", "ours", "none"),
    ("mask", "ours", "[n]"),
    ("ignored", "ours", "[n, 1]"),
    ("ignored", "ours", "[n, t]"),
    ("mask", "keras", "[n, 1]"),
    ("ignored", "keras", "[n]"),
    ("mask", "keras, by weights", "[n, t]"),
    ("ignored", "keras, by weights", "none"),
]


class Doubled(distribution.Model):
    """Stands for a Distiller: a target of its own, the rest from Keras."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, (y + 1) % 3, 2 * y_pred, sample_weight, training)


def examples(count):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(count, 5)).astype("float32")
    y = generator.integers(0, 3, count).astype("int32")
    return x, y, generator.uniform(0.5, 2.0, count).astype("float32")


def training_batches():
    return tf.data.Dataset.from_tensor_slices(examples(40)).repeat().batch(BATCH, drop_remainder=True)


def padded_batches(rows=21):
    x, y, _ = examples(rows)
    pad = -rows % BATCH
    weight = np.concatenate([np.ones(rows, "float32"), np.zeros(pad, "float32")])
    x, y = np.pad(x, [(0, pad), (0, 0)]), np.pad(y, (0, pad))
    return tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(BATCH, drop_remainder=True)


def uneven_batches(rows=21):
    return tf.data.Dataset.from_tensor_slices(examples(rows)).batch(BATCH)


def sequences(rows=2 * JOINED * BATCH):
    """Inputs [n, t, 4], labels, weights [n, t], and where a position counts, unevenly over the halves of a batch."""
    generator = np.random.default_rng(4)
    x = generator.normal(size=(rows, LENGTH, 4)).astype("float32")
    lengths = generator.integers(0, LENGTH + 1, rows)
    lengths[:4], lengths[4:8], lengths[8:16] = 0, LENGTH, [1, 0, 0, 1, 5, 4, 5, 3]
    counts = np.arange(LENGTH) < lengths[:, None]
    weights = generator.uniform(0.2, 3.0, (rows, LENGTH)).astype("float32")
    return x, generator.integers(0, 3, (rows, LENGTH)).astype("int32"), weights, counts


def padded_sequences(pads, loss, weighted):
    x, y, weights, counts = sequences()
    x = np.where(counts[..., None], x, 0.0) if pads == "mask" else x
    # Under a mask ours may find anything; Keras stops at what is no class, counted or not.
    y = np.where(counts, y, -1 if pads == "ignored" else 7 if loss == "ours" else 0)
    shaped = {"[n]": weights[:, 0], "[n, 1]": weights[:, :1], "[n, t]": weights}
    return x, y, *([shaped[weighted]] if weighted in shaped else [])


def tagger(strategy, pads, loss, optimizer, hidden=0, **options):
    """Logits of each position: linear, or of a hidden layer."""
    with strategy.scope():
        keras.utils.set_random_seed(3)
        inputs = keras.Input((LENGTH, 4))
        x = keras.layers.Masking()(inputs) if pads == "mask" else inputs
        if hidden:
            x = keras.layers.Dense(hidden, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.01))(x)
        kernel = keras.initializers.RandomNormal(stddev=0.5, seed=5)
        model = distribution.Model(inputs, keras.layers.Dense(3, kernel_initializer=kernel)(x))
        model.compile(optimizer(), LOSSES[loss](-1 if pads == "ignored" else None), **options)
    return model


def tagged(strategy, pads, loss, weighted, optimizer, batch=BATCH, **fit):
    model = tagger(strategy, pads, loss, optimizer, hidden=6)
    batches = tf.data.Dataset.from_tensor_slices(padded_sequences(pads, loss, weighted)).batch(
        batch, drop_remainder=True
    )
    history = model.fit(batches, verbose=0, **fit).history
    return {"history": history, "weights": [array.tolist() for array in model.get_weights()]}


def sgd(**options):
    return lambda: keras.optimizers.SGD(0.5, momentum=0.9, global_clipnorm=0.05, **options)


def averaging():
    return keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)


def one_step(strategy, pads, loss, weighted):
    """Loss and weights of the linear tagger after a step of the first batch."""
    model = tagger(strategy, pads, loss, lambda: keras.optimizers.SGD(1.0), run_eagerly=True)
    batch = tf.data.Dataset.from_tensors(tuple(part[:BATCH] for part in padded_sequences(pads, loss, weighted)))
    loss = model.fit(batch, verbose=0).history["loss"]
    return {"loss": loss, "weights": [array.tolist() for array in model.get_weights()]}


def network():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    x = keras.layers.Dense(6, kernel_regularizer=keras.regularizers.L2(0.01))(inputs)
    x = keras.layers.BatchNormalization(synchronized=True)(x)
    x = keras.layers.ReLU(name="penultimate")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits", dtype="float32")(x))


def compiled(strategy, model_class=distribution.Model, steps_per_execution=1):
    with strategy.scope():
        plain = network()
        model = model_class(plain.input, plain.output)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, global_clipnorm=CLIP),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[
                keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
                metrics.ExpectedCalibrationError(name="ece"),
            ],
            steps_per_execution=steps_per_execution,
        )
        model.optimizer.build(model.trainable_variables)
    return model


def gradient_norm(model):
    x, y, weight = next(iter(training_batches()))
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True), weight)
    return float(tf.linalg.global_norm(tape.gradient(loss, model.trainable_variables)))


def trained(strategy, **options):
    model = compiled(strategy, **options)
    history = model.fit(
        training_batches(), steps_per_epoch=2, epochs=2, validation_data=padded_batches(), verbose=0
    ).history
    result = {"history": history}
    if distribution.is_chief(strategy):  # no other worker needs to take part in this
        result["state"] = [array.tolist() for array in distribution.get_state(model)]
    return model, result


def with_auxiliary(strategy):
    """What a network with a second head learns, in steps of two joined batches whose weights are spread unevenly."""
    keras.utils.set_random_seed(4)
    with strategy.scope():
        inputs = keras.Input((5,))
        x = keras.layers.Dense(6, "relu", kernel_regularizer="l2")(inputs)
        heads = {name: keras.layers.Dense(3, name=name)(x) for name in ("logits", "auxiliary")}
        model = auxiliary.WithAuxiliary(inputs, heads, weight=0.4)
        optimizer = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
        model.compile(optimizer, losses.SmoothedCrossentropy(0.1), weighted_metrics=["accuracy"])
    history = model.fit(training_batches(), steps_per_epoch=2, epochs=2, verbose=0).history
    return {"history": history, "weights": [array.tolist() for array in model.get_weights()]}


def evaluated(model):
    return {
        "uneven": model.evaluate(uneven_batches(), verbose=0, return_dict=True),
        # Read on all workers: these sums are kept in parts, one on each replica.
        "metric state": [variable.numpy().tolist() for each in model.metrics for variable in each.variables],
        "predictions": model.predict(uneven_batches(), verbose=0).tolist(),
    }


class Adding(keras.layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.mean(x**2))
        return x


def refused(strategy, layer, **options):
    """What fit says of a network of one layer, and its weights after that."""
    with strategy.scope():
        inputs = keras.Input((5,))
        network = keras.Sequential([inputs, layer(), keras.layers.Dense(3, kernel_initializer="zeros")])
        model = distribution.Model(network.inputs, network.outputs)
        model.compile(keras.optimizers.SGD(0.1), losses.SmoothedCrossentropy(0.1, **options))
    try:
        model.fit(training_batches().map(lambda x, y, w: (x, y)), steps_per_epoch=1, verbose=0)
    except ValueError as problem:
        return str(problem), float(abs(model.get_weights()[-2]).max())
    return "nothing", 0.0


PARTIAL = {
    "activity": (lambda: keras.layers.ReLU(activity_regularizer="l2"), {}),
    "add_loss": (Adding, {}),
    "reduction": (keras.layers.ReLU, {"reduction": None}),
    "weights": (lambda: keras.layers.Dense(5, kernel_regularizer="l2"), {}),
}


def main(name, path):
    if name == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = distribution.strategy(name)
    tf.config.experimental.enable_op_determinism()
    model, plain = trained(strategy)
    _, derived = trained(strategy, model_class=Doubled, steps_per_execution=2)
    weighted = {"class_weight": CLASS_WEIGHT, "epochs": 2}
    result = {
        "plain": plain | evaluated(model),
        "derived": derived,
        "accumulated": tagged(strategy, "mask", "ours", "[n, 1]", sgd(gradient_accumulation_steps=JOINED), **weighted),
        "averaged": tagged(strategy, "ignored", "keras, by weights", "[n, t]", averaging),
        "auxiliary": with_auxiliary(strategy),
        "chief": distribution.is_chief(strategy),
        "description": distribution.describe(strategy),
    }
    if name == "cpu":
        result["gradient norm"] = gradient_norm(compiled(strategy))
        result["joined"] = tagged(strategy, "mask", "ours", "[n, 1]", sgd(), batch=JOINED * BATCH, **weighted)
    if name != "multi-worker":
        result["refused"] = {what: refused(strategy, layer, **options) for what, (layer, options) in PARTIAL.items()}
    if name == "mirrored":
        result["steps"] = {" ".join(each): one_step(strategy, *each) for each in STEPS}
    Path(path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
