"""Distil on one device and on two; write to the second argument how far weights moved, and where they came to.

The first argument is the SavedModel of a teacher. Run by test_distiller.py in a process of its own, since
TensorFlow fixes its devices once a process.
"""

import json
import sys
from pathlib import Path

from ls_keras import distillation, distribution, losses

import keras
import numpy as np
import tensorflow as tf
from multi_worker import padded_batches, training_batches


def dense(seed):
    inputs = keras.Input((5,))
    kernel = keras.initializers.RandomNormal(seed=seed)
    return keras.Model(inputs, keras.layers.Dense(3, kernel_initializer=kernel, kernel_regularizer="l2")(inputs))


def distance(before, after):
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(before, after, strict=True))))


def ours(strategy, teacher):
    """Loss, validation loss and weights after four steps."""
    with strategy.scope():
        network = dense(1)
        teacher = distillation.load_teacher(teacher or dense(2), 3, (5,))
        model = distillation.Distiller(network.input, network.output, teacher=teacher)
        model.compile(
            keras.optimizers.SGD(0.5),
            losses.DistillationLoss(beta=0.7, temperature=2.0),
            weighted_metrics=["accuracy"],
            steps_per_execution=2,
            jit_compile=False,
        )
        model.optimizer.build(model.trainable_variables)
    before = model.get_weights()
    fit = {"validation_data": padded_batches(), "class_weight": {0: 2.0, 2: 0.5}}
    history = model.fit(training_batches(), steps_per_epoch=4, verbose=0, **fit).history
    state = [array.tolist() for array in distribution.get_state(model)]
    return {"history": history, "state": state, "moved": distance(before, model.get_weights())}


def main(teacher, path):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    result = {}
    for name in ("cpu", "mirrored"):
        strategy = distribution.strategy(name)
        result[name] = {"SavedModel": ours(strategy, teacher), "Keras model": ours(strategy, None)}
    Path(path).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
