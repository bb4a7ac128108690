"""What Keras makes of what keras_hooks.py mends, beside what it makes of it with the hook.

Run by test_keras_hooks.py, as one process of two devices and as two workers: the first argument says which. To the
second it writes, for each fault as keras_hooks.py words it, the two results: numbers, or the error.
"""

import gc
import json
import sys
import weakref
from pathlib import Path

from ls_keras import distribution, keras_hooks

import keras
import numpy as np
import tensorflow as tf


class OnlyBuilds(keras_hooks.ReplicatedModel):
    _make_function = keras.Model._make_function


class OnlySteps(keras_hooks.ReplicatedModel):
    _maybe_symbolic_build = keras.Model._maybe_symbolic_build


def trained(model_class, strategy, weights=None, loss="mse", steps_per_execution=1, **options):
    """Loss and weight of y = w x after an epoch of batches of four: x is 1, y counts from 1, and w begins at 0."""
    rows = 4 if weights is None else len(weights)
    with strategy.scope():
        inputs = keras.Input((1,))
        model = model_class(inputs, keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")(inputs))
        optimizer = keras.optimizers.SGD(0.5, **options)
        model.compile(optimizer, loss, steps_per_execution=steps_per_execution, jit_compile=False)
    x, y = np.ones((rows, 1), "float32"), np.arange(1, rows + 1, dtype="float32")[:, None]
    arrays = (x, y) if weights is None else (x, y, np.array(weights, "float32"))
    data = tf.data.Dataset.from_tensor_slices(arrays).batch(4, drop_remainder=True).repeat()
    steps = 2 if weights is None else rows // 4
    history = model.fit(data, steps_per_epoch=steps, verbose=0, shuffle=False).history
    return [round(history["loss"][0], 4), round(float(model.get_weights()[0][0, 0]), 4)]


def result_of(*args, **options):
    try:
        return trained(*args, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def both(*args, stock=keras.Model, **options):
    return [result_of(each, *args, **options) for each in (stock, distribution.Model)]


def states_of_metrics(build):
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    if build:
        keras_hooks.build_metrics(model, (np.ones((4, 1)), np.ones(4, "int32")))
    return sorted(variable.path for variable in model.metrics_variables)


class Held:
    """Something that a gradient refers to."""


def kept_by_a_gradient(forget):
    """Whether TensorFlow keeps what a function used after that function is gone."""

    def traced(held):
        @tf.custom_gradient
        def same(x):
            return x, lambda slope: slope if held else None

        tf.function(same).get_concrete_function(tf.TensorSpec([]))

    held = Held()
    if forget:
        with keras_hooks.forgotten_gradients():
            traced(held)
    else:
        traced(held)
    reference = weakref.ref(held)
    del held
    gc.collect()
    return reference() is not None


def sum_of_a_second_strategy(renumber):
    """Three ones, each summed over two replicas, after a strategy before this one has summed two."""

    for length in (2, 3):
        if renumber:
            keras_hooks.use_new_collective_keys(tf.distribute.MirroredStrategy)
        try:
            result = sum_of_ones(length)
        except tf.errors.OpError as error:
            return f"{type(error).__name__}: {error}"
    return result


def sum_of_ones(length):
    strategy = tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])

    def ones():
        return tf.distribute.get_replica_context().all_reduce("SUM", tf.ones(length))

    summed = tf.function(lambda: strategy.experimental_local_results(strategy.run(ones)))
    return summed()[0].numpy().tolist()


def of_one_process():
    two = distribution.strategy("mirrored")
    one = distribution.strategy("cpu")
    mended = sum_of_a_second_strategy(renumber=True)
    by_weights = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    return {
        "several replicas cannot make two steps per execution": both(two, steps_per_execution=2),
        "each replica's gradients are clipped, then summed": both(two, global_clipnorm=0.1),
        "several replicas cannot accumulate gradients": both(two, gradient_accumulation_steps=2),
        "several replicas cannot overwrite weights by averages": both(
            two, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=1
        ),
        "joined batches count the same, whatever counts in them": both(
            one, [1, 1, 1, 1, 1, 0, 0, 0], by_weights, gradient_accumulation_steps=2
        ),
        "averages move after each batch of those that are joined": both(
            one, [1] * 24, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=2
        ),
        "a replica divides by the denominator of its own rows": both(two, [1, 1, 1, 0], by_weights),
        "metrics have no states before the first batch": [states_of_metrics(build) for build in (False, True)],
        "each `custom_gradient` is kept, and its graph, for ever": [kept_by_a_gradient(forget) for forget in (0, 1)],
        # The last, since after the fault no sum of this process succeeds.
        "a second strategy of a process meets the first's sums": [sum_of_a_second_strategy(renumber=False), mended],
    }


def of_two_workers():
    strategy = distribution.strategy("multi-worker")
    return {
        "several workers build from a batch reduced over devices": both(strategy, stock=OnlySteps),
        "several workers reduce scalar logs along an axis": both(strategy, stock=OnlyBuilds),
    }


def main(name, path):
    if name == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    results = of_one_process() if name == "mirrored" else of_two_workers()
    Path(path).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
