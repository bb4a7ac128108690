"""The private names of Keras and TensorFlow that this library leans on: here, and nowhere else.

A hook that mends has a test in tests/test_keras_hooks.py that shows the fault in Keras as it is. On the day that Keras
has mended it, that test fails and says which hook can go. A hook that reads stands for what Keras does not publish;
its test says what is to be found there. A private name may change with any release: hence the upper bounds in
pyproject.toml, to be raised once these tests have passed with the next one.

| hook                                 | what it mends, or reads                                        | read in      |
|--------------------------------------|----------------------------------------------------------------|--------------|
| ReplicatedModel                      | mends: several workers build from a batch reduced over devices | Keras 3.15.1 |
| ReplicatedModel                      | mends: several workers reduce scalar logs along an axis        | Keras 3.15.1 |
| ReplicatedModel                      | mends: several replicas cannot make two steps per execution    | Keras 3.15.1 |
| leave_sums_to_caller                 | mends: each replica's gradients are clipped, then summed       | Keras 3.15.1 |
| let_replicas_step_alone, steps_alone | mends: several replicas cannot accumulate gradients            | Keras 3.15.1 |
| let_replicas_step_alone, steps_alone | mends: several replicas cannot overwrite weights by averages   | Keras 3.15.1 |
| accumulators, small_batches          | mends: joined batches count the same, whatever counts in them  | Keras 3.15.1 |
| average_whole_steps                  | mends: averages move after each batch of those that are joined | Keras 3.15.1 |
| wrap_losses                          | mends: a replica divides by the denominator of its own rows    | Keras 3.15.1 |
| build_metrics                        | mends: metrics have no states before the first batch           | Keras 3.15.1 |
| forgotten_gradients                  | mends: each `custom_gradient` is kept, and its graph, for ever | TF 2.21.0    |
| use_new_collective_keys              | mends: a second strategy of a process meets the first's sums   | TF 2.21.0    |
| losses_as_given                      | reads the loss as `compile` got it                             | Keras 3.15.1 |
| loss_of                              | reads the loss of `compile` for one more output                | Keras 3.15.1 |
| layers_that_add_losses               | reads who adds to the loss, penalties on weights left out      | Keras 3.15.1 |
| moving_averages                      | reads the averages of `use_ema` before the end of `fit`        | Keras 3.15.1 |
| strategy_of                          | reads the strategy that an optimizer was made in               | Keras 3.15.1 |
| index_of                             | reads the place of a variable, or of a replica's copy of it    | Keras 3.15.1 |
| mask_of, carries_logits              | reads what layers and activations leave on a tensor            | Keras 3.15.1 |
| calls_of, call_that_made             | reads the graph of a functional model                          | Keras 3.15.1 |
| data_adapter, holds_arrays           | reads which kinds of data `fit` takes                          | Keras 3.15.1 |
| arrays_of, rows_of, split_arrays     | reads arrays as `fit` slices them, pandas and sparse ones too  | Keras 3.15.1 |
| evaluates_for_fit                    | reads whether `evaluate` is called by `fit`                    | Keras 3.15.1 |
| is_in_memory                         | reads whether a data set is nothing but slices of tensors      | TF 2.21.0    |
| is_default_strategy                  | reads whether TensorFlow places operations by itself           | TF 2.21.0    |

TensorFlow is imported within functions: losses and metrics, which read masks here, also run on JAX.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.trainers.data_adapters import ArrayDataAdapter, get_data_adapter
from keras.src.trainers.data_adapters.array_slicing import convert_to_sliceable, train_validation_split

# Far more than the groups of devices that one strategy sums over.
_KEYS_OF_A_STRATEGY = 1000


def is_replicated(model: keras.Model) -> bool:
    """Say whether a model trains on several replicas or by the rules of several workers."""
    import tensorflow as tf  # noqa: PLC0415

    strategy = model.distribute_strategy
    several_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return several_workers or strategy.num_replicas_in_sync > 1


class ReplicatedModel(keras.Model):
    """A `keras.Model` whose `fit` and `evaluate` run on several replicas and workers.

    Without several it is a `keras.Model`. See https://github.com/keras-team/keras/issues/20585.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        import tensorflow as tf  # noqa: PLC0415

        if iterator is not None and is_replicated(self):
            spec = iterator.data_adapter.get_tf_dataset().element_spec
            data_batch = tf.nest.map_structure(_spec_of_one_replica, spec)
        super()._maybe_symbolic_build(None if data_batch is not None else iterator, data_batch)

    def _make_function(self, step_function: Any) -> Any:
        import tensorflow as tf  # noqa: PLC0415

        if not is_replicated(self):
            return super()._make_function(step_function)
        strategy = self.distribute_strategy

        def one_step(batch: Any) -> Any:
            logs = strategy.run(step_function, args=(batch,))
            return tf.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), logs)

        def one_more_step(count: Any, logs: Any, iterator: Any) -> Any:
            batch = iterator.get_next_as_optional()
            logs = tf.cond(batch.has_value(), lambda: one_step(batch.get_value()), lambda: logs)
            return count + 1, logs

        @tf.autograph.experimental.do_not_convert
        def execution(iterator: Any) -> Any:
            if not isinstance(iterator, tf.distribute.DistributedIterator):
                raise ValueError("With several replicas, train and test on a tf.data.Dataset, not on one batch.")
            logs = one_step(iterator.get_next())
            if self.steps_per_execution > 1:
                _, logs = tf.while_loop(
                    lambda count, _: count < self.steps_per_execution,
                    lambda count, logs: one_more_step(count, logs, iterator),
                    (tf.constant(1), logs),
                )
            return logs

        return execution if self.run_eagerly else tf.function(execution, reduce_retracing=True)


def _spec_of_one_replica(spec: Any) -> Any:
    if type(spec).__name__ == "NoneTensorSpec":  # which TensorFlow publishes since 2.21
        return None
    return getattr(spec, "_value_specs", (spec,))[0]


def leave_sums_to_caller(optimizer: keras.optimizers.Optimizer) -> None:
    """Let `apply` take gradients that are summed over replicas already, so that it clips their sum."""
    optimizer._all_reduce_sum_gradients = lambda pairs: pairs


class _Replica(threading.local):
    """Whether this thread, which traces one replica, is within an optimizer's step."""

    steps_alone = False


_replica = _Replica()


@contextlib.contextmanager
def steps_alone() -> Iterator[None]:
    """Let each replica step by itself, on its own copies of the variables.

    From the sum of the gradients all make the same step. By default they meet for it, which TensorFlow cannot do in a
    branch, and Keras accumulates gradients and overwrites weights by their average in one.
    """
    _replica.steps_alone = True
    try:
        yield
    finally:
        _replica.steps_alone = False


def let_replicas_step_alone(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer's strategy heed `steps_alone`."""
    extended = optimizer._distribution_strategy.extended
    extended._use_merge_call = lambda: not _replica.steps_alone and type(extended)._use_merge_call(extended)


def accumulators(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the sums of gradients that `gradient_accumulation_steps` keeps, one for each weight."""
    return optimizer._accumulated_gradients


def small_batches(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Return the number of batches seen, where `iterations` counts the steps made of several."""
    return optimizer._iterations


def average_whole_steps(optimizer: keras.optimizers.Optimizer) -> None:
    """Move the averages of `use_ema` after the last of the batches that are joined to a step.

    Within the first step they are the weights, as Keras lets the first move make them.
    """

    def move(weights: Any) -> None:
        ends = (optimizer._iterations + 1) % optimizer.gradient_accumulation_steps == 0
        first = optimizer._iterations < optimizer.gradient_accumulation_steps
        kind = type(optimizer)
        keras.ops.cond(
            keras.ops.logical_or(ends, first),
            lambda: kind._update_model_variables_moving_average(optimizer, weights),
            lambda: None,
        )

    optimizer._update_model_variables_moving_average = move


def wrap_losses(model: keras.Model, wrap: Callable[[keras.losses.Loss], keras.losses.Loss]) -> None:
    """Replace each loss of `compile`, once Keras has made it of names and functions, by what `wrap` makes of it."""
    compiled = model._compile_loss
    if compiled is None:
        return
    build = compiled.build

    def build_wrapped(y_true: Any, y_pred: Any) -> None:
        build(y_true, y_pred)
        compiled._flat_losses = [each._replace(loss=wrap(each.loss)) for each in compiled._flat_losses]

    compiled.build = build_wrapped


def build_metrics(model: keras.Model, batch: Any) -> None:
    """Make the states of a compiled model's metrics for batches like this one."""
    model._symbolic_build(data_batch=batch)


@contextlib.contextmanager
def forgotten_gradients() -> Iterator[None]:
    """Forget at the end the gradients of what was traced within.

    Functions traced within can still be called then, but no longer be differentiated.
    """
    from tensorflow.python.framework.ops import gradient_registry  # noqa: PLC0415

    registry = gradient_registry._registry
    before = set(registry)
    try:
        yield
    finally:
        for name in set(registry) - before:
            del registry[name]


def use_new_collective_keys(strategy_class: type) -> None:
    """Let the next strategy of a class number its sums over replicas as no strategy before it has.

    TensorFlow knows a sum by its number and keeps the shape that it had: a second network of other shapes, or one that
    is traced in another order because the first was stopped, would be a "Shape mismatch in the collective instance".
    """
    strategy_class._collective_key_base += _KEYS_OF_A_STRATEGY


def losses_as_given(model: keras.Model) -> Any:
    """Return the loss as `compile` got it: one, or a structure of them, or None."""
    return getattr(getattr(model, "_compile_loss", None), "_user_loss", None)


def loss_of(model: keras.Model, y: Any, y_pred: Any, sample_weight: Any) -> Any:
    """Return the loss that a model was compiled with, of predictions of one more output, without penalties."""
    return model._compile_loss(y, y_pred, sample_weight)


def layers_that_add_losses(model: keras.Model) -> list[keras.Layer]:
    """Return the layers that added to the loss, by `add_loss` or an activity regularizer, when last called."""
    return [layer for layer in model._flatten_layers() if layer._get_own_losses()]


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[tuple[Any, Any]]:
    """Return pairs of a weight and its average, of an optimizer with `use_ema`."""
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))


def strategy_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """Return the strategy in whose scope an optimizer was made."""
    return optimizer._distribution_strategy


def index_of(variable: Any, optimizer: keras.optimizers.Optimizer) -> int:
    """Return the place among an optimizer's variables of one that `update_step` gets, which may be a replica's copy."""
    return optimizer._get_variable_index(variable)


def mask_of(tensor: Any) -> Any:
    """Return the mask that Keras's layers carry along with a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def carries_logits(tensor: Any) -> bool:
    """Say whether a tensor comes from a softmax or sigmoid of Keras, which leaves on it what it was made of."""
    return hasattr(tensor, "_keras_logits")


def calls_of(operation: keras.Operation) -> list[Any]:
    """Return the calls of a layer or operation on symbolic tensors, with `input_tensors` and `output_tensors`."""
    return operation._inbound_nodes


def call_that_made(tensor: keras.KerasTensor) -> tuple[keras.Operation, Any]:
    """Return the layer or operation that a symbolic tensor comes from, and its call."""
    operation, index, _ = tensor._keras_history
    return operation, calls_of(operation)[index]


def data_adapter(x: Any, y: Any, weights: Any, shuffle: bool | str) -> Any:
    """Return what `fit` makes of its data, which it also takes as `x`; `get_tf_dataset()` gives the batches."""
    return get_data_adapter(x, y, weights, shuffle=shuffle)


def holds_arrays(adapter: Any) -> bool:
    """Say whether data are arrays in memory."""
    return isinstance(adapter, ArrayDataAdapter)


def arrays_of(adapter: Any) -> Any:
    """Return the arrays of x, y and weights, to be read by `rows_of`; each has its own as `array`."""
    return convert_to_sliceable(keras.utils.unpack_x_y_sample_weight(adapter._inputs))


def rows_of(array: Any, start: int, stop: int) -> Any:
    """Return rows of one of `arrays_of`, as a tensor or as what makes one."""
    return array.convert_to_tf_dataset_compatible(array[start:stop])


def split_arrays(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """Split arrays as `fit` does: the last of the rows are for validation."""
    return train_validation_split(arrays, validation_split)


def evaluates_for_fit(options: dict[str, Any]) -> bool:
    """Say, by the keyword arguments of `evaluate`, whether `fit` calls it."""
    return bool(options.get("_use_cached_eval_dataset"))


def is_default_strategy(strategy: Any) -> bool:
    """Say whether a strategy is the one that is there without any."""
    return type(strategy).__name__ == "_DefaultDistributionStrategy"


def is_in_memory(dataset: Any) -> bool:
    """Say whether a `tf.data.Dataset` is nothing but slices of tensors, and so gives the same ones every time."""
    import tensorflow as tf  # noqa: PLC0415

    while type(dataset).__name__ == "_OptionsDataset":
        (dataset,) = dataset._inputs()
    return isinstance(dataset, type(tf.data.Dataset.from_tensor_slices([0])))
