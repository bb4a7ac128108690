"""Each hook of keras_hooks.py: Keras still has the fault it mends, or it finds what Keras does not publish."""

import inspect
import re
from pathlib import Path

from ls_keras import keras_hooks

import keras
import numpy as np
import pytest
import tensorflow as tf
from processes import read_results, start, start_workers

# For each fault: what Keras makes of it, as numbers or the beginning of an error, and what is right. Numbers are the
# loss and the weight that stock_keras.trained returns.
FAULTS = {
    "several workers build from a batch reduced over devices": (
        "ValueError: Attempt to convert a value .PerReplica",
        [4.375, 2.5],
    ),
    "several workers reduce scalar logs along an axis": (
        "ValueError: Invalid reduction dimension 0 for input with 0 dimensions",
        [4.375, 2.5],
    ),
    "several replicas cannot make two steps per execution": (
        "(?s)InvalidArgumentError: .*You must feed a value for placeholder",
        [4.375, 2.5],
    ),
    # A half of 0.1 in each of two steps.
    "each replica's gradients are clipped, then summed": ([7.255, 0.2], [7.3763, 0.1]),
    "several replicas cannot accumulate gradients": ("(?s)RuntimeError: .*`merge_call` called", [7.5, 2.5]),
    "several replicas cannot overwrite weights by averages": ("(?s)RuntimeError: .*`merge_call` called", [4.375, 2.5]),
    # The mean of 1, 2, 3, 4 and 5, and of their mean over four and one.
    "joined batches count the same, whatever counts in them": ([16.25, 3.75], [16.25, 3.0]),
    # Weights 4.5, 12.5 and 20.5 after each two of six batches: 12.5 counts once more.
    "averages move after each batch of those that are joined": ([54.6667, 15.5], [54.6667, 14.5]),
    # The mean of 1, 2 and 3, and of their mean over two and one.
    "a replica divides by the denominator of its own rows": ([5.75, 2.25], [4.6667, 2.0]),
    "metrics have no states before the first batch": (
        ["loss/count", "loss/total"],
        ["accuracy/count", "accuracy/total", "loss/count", "loss/total"],
    ),
    "each `custom_gradient` is kept, and its graph, for ever": (True, False),
    "a second strategy of a process meets the first's sums": (
        "(?s)InvalidArgumentError: .*Shape mismatch in the collective instance",
        [2.0, 2.0, 2.0],
    ),
}


def table():
    """Rows of the table: names of hooks, and what they mend or read."""
    rows = [line.strip("| ").split(" | ") for line in keras_hooks.__doc__.splitlines() if line.startswith("| ")]
    return [(hooks.strip(), what.strip()) for hooks, what, _ in rows[1:]]


MENDING = [(hooks, what.removeprefix("mends: ")) for hooks, what in table() if what.startswith("mends: ")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hooks")
    processes = start_workers("stock_keras.py", folder)
    processes["mirrored"] = start("stock_keras.py", "mirrored", folder / "mirrored.json")
    found = read_results(processes, folder)
    assert found["worker 0"] == found["worker 1"]
    return found["worker 0"] | found["mirrored"]


@pytest.mark.parametrize(("hooks", "fault"), MENDING, ids=[fault for _, fault in MENDING])
def test_keras_still_has_what_a_hook_mends(results, hooks, fault):
    (known, right), (stock, mended) = FAULTS[fault], results[fault]
    assert mended == right
    assert stock != right, f"Keras has mended this: {fault}. Remove {hooks} from keras_hooks.py."
    same = re.match(known, stock) if isinstance(known, str) and isinstance(stock, str) else known == stock
    assert same, f"This fault of Keras is another than {hooks} was written for: {stock}"


def test_every_hook_is_in_the_table_and_has_a_test():
    named = {name for hooks, _ in table() for name in hooks.split(", ")}
    public = {
        name
        for name, member in vars(keras_hooks).items()
        if not name.startswith("_") and getattr(member, "__module__", None) == keras_hooks.__name__
    }
    assert named == public - {"is_replicated"}, "is_replicated is no hook: what it reads is published"
    assert set(FAULTS) == {fault for _, fault in MENDING}
    tests = Path(__file__).read_text(encoding="utf-8")
    reading = {name for hooks, what in table() if what.startswith("reads ") for name in hooks.split(", ")}
    assert [name for name in sorted(reading) if f"keras_hooks.{name}(" not in tests] == []


def dense_model(loss=None, **optimizer):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(inputs))
    model.compile(keras.optimizers.SGD(1.0, **optimizer), loss)
    return model


def test_the_loss_is_read_as_it_was_given():
    given = keras.losses.MeanSquaredError()
    assert keras_hooks.losses_as_given(dense_model(given)) is given
    assert keras_hooks.losses_as_given(dense_model({"logits": given})) == {"logits": given}
    assert keras_hooks.losses_as_given(dense_model()) is None
    inputs = keras.Input((3,))
    assert keras_hooks.losses_as_given(keras.Model(inputs, inputs)) is None


def test_layers_that_add_to_the_loss_are_not_those_with_penalties():
    inputs = keras.Input((3,))
    x = keras.layers.Dense(2, kernel_regularizer="l2")(inputs)
    adding = keras.layers.ReLU(activity_regularizer="l2")
    model = keras.Model(inputs, adding(x))
    model(np.ones((4, 3), "float32"))
    assert len(model.losses) == 2
    assert keras_hooks.layers_that_add_losses(model) == [adding]


def test_the_loss_of_one_more_output_is_without_penalties():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2, kernel_regularizer="l2")(inputs))
    model.compile("sgd", "mse")
    y, z, weights = tf.zeros((2, 2)), tf.constant([[1.0, 1.0], [2.0, 2.0]]), tf.constant([3.0, 1.0])
    assert float(keras_hooks.loss_of(model, y, z, weights)) == (3 * 1 + 4) / 2  # Keras divides by the rows


def test_averages_are_read_during_training():
    """After one step the average of a weight is what it is; after two, half of the way behind."""
    model = dense_model("mse", use_ema=True, ema_momentum=0.5)
    model.optimizer.build(model.trainable_variables)
    weights = []
    for _ in range(2):
        model.train_on_batch(np.ones((4, 3)), np.zeros((4, 2)))
        weights.append(model.get_weights())
    pairs = keras_hooks.moving_averages(model.optimizer)
    assert [weight.path for weight, _ in pairs] == ["logits/kernel", "logits/bias"]
    for (weight, average), before, now in zip(pairs, *weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), now)
        np.testing.assert_allclose(average.numpy(), (before + now) / 2, rtol=1e-6)


def test_an_optimizer_knows_its_strategy_and_the_place_of_a_variable():
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model = dense_model("mse")
    model.optimizer.build(model.trainable_variables)
    assert keras_hooks.strategy_of(model.optimizer) is strategy
    kernel, bias = model.trainable_variables
    # update_step gets variables of TensorFlow.
    assert [keras_hooks.index_of(each, model.optimizer) for each in (bias, kernel.value)] == [1, 0]


def test_layers_and_activations_leave_mask_and_logits_on_a_tensor():
    masked = keras.layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    np.testing.assert_array_equal(keras_hooks.mask_of(masked), [[True, False]])
    assert keras_hooks.mask_of(tf.ones(3)) is None
    assert keras_hooks.carries_logits(keras.activations.softmax(tf.ones((1, 2))))
    assert not keras_hooks.carries_logits(keras.activations.relu(tf.ones((1, 2))))


def test_calls_of_a_layer_in_a_functional_model():
    inputs, layer = keras.Input((3,)), keras.layers.Dense(3)
    first = layer(inputs)
    second = layer(first)
    assert [call.input_tensors[0] for call in keras_hooks.calls_of(layer)] == [inputs, first]
    made_by, call = keras_hooks.call_that_made(second)
    assert made_by is layer
    assert call.output_tensors[0] is second


def test_data_are_read_as_fit_slices_them():
    x, y = np.arange(6.0).reshape(3, 2), np.arange(3)
    adapter = keras_hooks.data_adapter(x, y, None, shuffle=False)
    assert keras_hooks.holds_arrays(adapter)
    assert not keras_hooks.holds_arrays(keras_hooks.data_adapter(tf.data.Dataset.range(3), None, None, shuffle=False))
    batch_x, batch_y = next(iter(adapter.get_tf_dataset()))
    np.testing.assert_array_equal(batch_x, x)
    np.testing.assert_array_equal(batch_y, y)
    read_x, read_y, weights = keras_hooks.arrays_of(adapter)
    assert read_x.array.shape == x.shape
    np.testing.assert_array_equal(keras_hooks.rows_of(read_x, 1, 3), x[1:])
    np.testing.assert_array_equal(keras_hooks.rows_of(read_y, 0, 2), y[:2])
    assert weights is None
    (train, *_), (validation, *_) = keras_hooks.split_arrays((x, y), 1 / 3)
    np.testing.assert_array_equal(np.concatenate([train, validation]), x)
    assert len(validation) == 1


def test_evaluate_is_told_that_fit_calls_it():
    told = []

    class Told(keras.Model):
        def evaluate(self, *args, **options):
            told.append(keras_hooks.evaluates_for_fit(options))
            return super().evaluate(*args, **options)

    inputs = keras.Input((3,))
    model = Told(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    x, y = np.ones((4, 3)), np.ones((4, 2))
    model.fit(x, y, validation_data=(x, y), verbose=0)
    model.evaluate(x, y, verbose=0)
    assert told == [True, False]


def test_slices_in_memory_are_told_from_what_is_computed():
    slices = tf.data.Dataset.from_tensor_slices(np.arange(3))
    assert keras_hooks.is_in_memory(slices)
    assert keras_hooks.is_in_memory(slices.with_options(tf.data.Options()))
    for other in (slices.map(lambda x: x), slices.batch(2), slices.cache(), tf.data.Dataset.range(3)):
        assert not keras_hooks.is_in_memory(other)


def test_the_default_strategy_is_told_from_others():
    assert keras_hooks.is_default_strategy(tf.distribute.get_strategy())
    assert not keras_hooks.is_default_strategy(tf.distribute.OneDeviceStrategy("/cpu:0"))


def test_a_hook_overrides_what_keras_calls():
    """A method that Keras no longer has is never called: nothing else would tell."""
    for name in ("_maybe_symbolic_build", "_make_function"):
        own, stock = (inspect.signature(getattr(each, name)) for each in (keras_hooks.ReplicatedModel, keras.Model))
        assert list(own.parameters) == list(stock.parameters)
