"""Where training runs: the strategy of this machine or cluster, and a model whose `fit` works under all of them.

Batches are global everywhere: a data set yields the batches of one training step, whatever the number of
replicas, and `Model` gives each replica its rows. One device and many then compute the same numbers.

Two machines train together when the same command starts on each, with one environment variable. On the first::

    export TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:12345", "10.0.0.2:12345"]},
                       "task": {"type": "worker", "index": 0}}'
    python recipes/cifar100_resnet56.py --strategy multi-worker --workdir results

and on the second the same with `"index": 1`. Worker 0 is the chief; it alone writes, and tells the others where its
checkpoint goes on. Every worker must see the same data and make the same calls of `fit` and `evaluate`: each of them
is a meeting point. Workers wait for each other for some minutes, and a recipe's end when one of them dies; started
again, all go on from the chief's checkpoint. Two workers on one machine need two ports.
"""

import difflib
import functools
import json
import os
import socket
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from ls_keras import keras_hooks, losses, workers
from ls_keras.inspection import Inspector, faults_as_sentences

import keras
import numpy as np
import tensorflow as tf

StrategyName = Literal["auto", "cpu", "mirrored", "multi-worker", "tpu"]

# Seconds for a TPU to answer.
_TPU_TIMEOUT = 10.0

_TF_CONFIG_EXAMPLE = (
    '{"cluster": {"worker": ["10.0.0.1:12345", "10.0.0.2:12345"]}, "task": {"type": "worker", "index": 0}}'
)


def strategy(name: StrategyName = "auto", wait_minutes: float = 10.0) -> tf.distribute.Strategy:
    """Choose where to train.

    Call it once, before anything else of TensorFlow: workers find each other and TPUs are initialised here.

    Args:
        name: `"auto"` takes a TPU if `TPU_NAME` is set or one is attached, several workers if `TF_CONFIG` names
            more than one, all GPUs if there are several, and else what TensorFlow does by itself. `"cpu"` uses
            one CPU even beside a GPU. `"mirrored"` uses all GPUs or, without one, all logical CPUs.
            `"multi-worker"` uses the workers in `TF_CONFIG`. `"tpu"` uses the TPU in `TPU_NAME`, or the local one.
        wait_minutes: how long workers wait for each other; who is waited for is said on the way.

    Returns:
        The strategy. Build and compile the model within `strategy.scope()`.

    Raises:
        ValueError: if the name is unknown, if `TF_CONFIG` is needed and missing, or malformed, if a worker that it
            names does not come, or if there is no TPU where `"tpu"` asks for one.

    Example:
        >>> strategy("cpu").num_replicas_in_sync
        1
    """
    known = get_args(StrategyName)
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Perhaps you meant {near[0]!r}." if near else ""
        raise ValueError(f"Unknown strategy {name!r}: expected one of {', '.join(known)}.{hint}")
    if name == "auto":
        name = _best_available()
    if name == "cpu":
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    if name == "mirrored":
        # Without arguments MirroredStrategy sees one CPU only, however many logical ones there are.
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        keras_hooks.use_new_collective_keys(tf.distribute.MirroredStrategy)
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi-worker":
        return _multi_worker_strategy(wait_minutes)
    if name == "tpu":
        return _tpu_strategy()
    return tf.distribute.get_strategy()


def _multi_worker_strategy(wait_minutes: float) -> tf.distribute.Strategy:
    together = _cluster_in_tf_config()
    workers.meet(together, 60 * wait_minutes)
    keras_hooks.use_new_collective_keys(tf.distribute.MultiWorkerMirroredStrategy)
    # Between two looks one may have gone again.
    with workers.watched(together, lambda: "no step was made"):
        return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu_strategy() -> tf.distribute.Strategy:
    name = os.environ.get("TPU_NAME")
    if not name and not tf.config.list_physical_devices("TPU"):
        raise ValueError(
            "The strategy 'tpu' needs a TPU: none is attached to this machine, and the environment variable TPU_NAME "
            "is not set. Set it to the TPU's name or address, grpc://HOST:PORT, or choose the strategy 'auto'."
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name or "local")
        if "://" in resolver.master():
            # TensorFlow itself would wait for minutes.
            host, _, port = resolver.master().partition("://")[2].rpartition(":")
            socket.create_connection((host, int(port)), timeout=_TPU_TIMEOUT).close()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as problem:
        raise ValueError(
            f"The strategy 'tpu' found no TPU {name or 'local'} that answers ({problem}). Check TPU_NAME, that the TPU "
            "runs, and that this machine may reach it; or choose the strategy 'auto'."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def _best_available() -> str:
    if os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"):
        return "tpu"
    if os.environ.get("TF_CONFIG") and len(_cluster_in_tf_config().addresses) > 1:
        return "multi-worker"
    return "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "default"


def _cluster_in_tf_config() -> workers.Cluster:
    """All workers, the chief first, from a `TF_CONFIG` that has been checked."""

    def fault(reason: str) -> ValueError:
        return ValueError(
            f"The environment variable TF_CONFIG {reason}. Expected on the first of two workers, for example: "
            f"TF_CONFIG='{_TF_CONFIG_EXAMPLE}'"
        )

    text = os.environ.get("TF_CONFIG")
    if not text:
        raise fault("is not set, and the strategy 'multi-worker' needs it")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise fault(f"is not valid JSON ({error}): received {text!r}") from None
    cluster, task = (config.get(key) if isinstance(config, dict) else None for key in ("cluster", "task"))
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise fault(f"must be an object with 'cluster' and 'task': received {text!r}")
    if not set(cluster) <= {"chief", "worker"}:
        raise fault(f"may name chief and worker in 'cluster', nothing else: received {', '.join(cluster)}")
    for addresses in cluster.values():
        if not isinstance(addresses, list) or not all(_is_address(each) for each in addresses):
            raise fault(f"must give the addresses as a list of 'host:port': received {addresses!r}")
    members = cluster.get(task.get("type"), [])
    if not isinstance(task.get("index"), int) or not 0 <= task["index"] < len(members):
        raise fault(f"has a 'task' that is not in 'cluster': received {task!r} and {cluster!r}")
    chiefs = cluster.get("chief", [])
    index = task["index"] + (len(chiefs) if task["type"] == "worker" else 0)
    return workers.Cluster((*chiefs, *cluster.get("worker", [])), index)


def _is_address(text: Any) -> bool:
    host, _, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    return bool(host) and port.isdigit()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Say whether this process is the one that writes files.

    Args:
        strategy: what `strategy(name)` returned.

    Returns:
        True except on the workers of a multi-worker strategy that are not its chief.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    resolver = strategy.cluster_resolver
    return resolver.task_type in (None, "", "chief") or (
        resolver.task_id == 0 and "chief" not in resolver.cluster_spec().jobs
    )


def cluster(strategy: tf.distribute.Strategy) -> workers.Cluster | None:
    """Return the workers that train together, or None where one process trains alone.

    Args:
        strategy: what `strategy(name)` returned.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return None
    together = _cluster_in_tf_config()
    return together if len(together.addresses) > 1 else None


def exchange(strategy: tf.distribute.Strategy, message: bytes) -> list[bytes]:
    """Give each worker what all of them say; every worker must call it.

    Args:
        strategy: what `strategy("multi-worker")` returned.
        message: what this worker says.

    Returns:
        The messages, the chief's first.

    Example:
        >>> exchange(strategy, b"from the chief" if is_chief(strategy) else b"")[0]
    """
    together = _cluster_in_tf_config()
    lengths = _summed_over_workers(strategy, np.array([len(message)]), together.index, len(together.addresses))
    ends = np.cumsum(-(-lengths // 8))  # in words of 8 bytes
    if not ends[-1]:  # TensorFlow crashes on a sum of nothing
        return [b""] * len(lengths)
    words = np.frombuffer(message.ljust(-(-len(message) // 8) * 8, b"\0"), "int64")
    said = _summed_over_workers(strategy, words, int(ends[together.index]) - len(words), int(ends[-1]))
    starts = [0, *ends[:-1]]
    return [said[a:b].tobytes()[:length] for a, b, length in zip(starts, ends, lengths, strict=True)]


def _summed_over_workers(strategy: tf.distribute.Strategy, part: np.ndarray, start: int, length: int) -> np.ndarray:
    """Put the parts that workers have into one row: a sum of rows that are 0 but for the part of one replica."""
    mine = iter([part])

    def of_replica(_: tf.distribute.experimental.ValueContext) -> tf.Tensor:
        row = np.zeros(length, "int64")
        row[start : start + len(part)] = next(mine, 0)
        return tf.constant(row)

    rows = strategy.experimental_distribute_values_from_function(of_replica)
    return strategy.reduce("SUM", rows, axis=None).numpy()


def describe(strategy: tf.distribute.Strategy) -> str:
    """Say in one line what runs where.

    Args:
        strategy: what `strategy(name)` returned.

    Returns:
        For example `"2 replicas, MirroredStrategy, here: CPU:0 CPU:1"`.
    """
    count = strategy.num_replicas_in_sync
    # The default strategy names no device: TensorFlow places each operation, on the accelerator if there is one.
    if keras_hooks.is_default_strategy(strategy):
        devices = [d.name for d in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]
    else:
        devices = strategy.extended.worker_devices
    here = " ".join(str(device).rpartition("device:")[2].lstrip("/").upper() for device in devices)
    line = f"{count} replica{'s' if count > 1 else ''}, {type(strategy).__name__}, here: {here}"
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        resolver = strategy.cluster_resolver
        line += f" ({resolver.task_type} {resolver.task_id}{', chief' if is_chief(strategy) else ''})"
    return line


def _require_a_loss_of_the_whole_batch(model: keras.Model) -> None:
    """Refuse what several replicas would compute of their own rows alone, once the model has been called."""
    adding = [layer.name for layer in keras_hooks.layers_that_add_losses(model)]
    if adding:
        raise ValueError(
            f"{', '.join(adding)} adds to the loss, by an activity_regularizer or add_loss, and several replicas would "
            "each add what their own rows give: a sum or a mean, which nothing here can tell. Train on one device, or "
            "put that term into the loss."
        )
    given = keras.tree.flatten(keras_hooks.losses_as_given(model))
    if any(getattr(loss, "reduction", "mean") in (None, "none") for loss in given):
        raise ValueError(
            "A loss with reduction=None has a value for each row, and with several replicas no one value to train by. "
            "Leave reduction away."
        )


@keras.saving.register_keras_serializable("ls_keras")
class Model(keras_hooks.ReplicatedModel):
    """A `keras.Model` that computes the same numbers on one device, on several, and on several workers.

    Its numbers are those of the whole batch, however that is cut. With more than one replica:

    - `fit` and `evaluate` run under `MultiWorkerMirroredStrategy`. Keras fails there twice: it builds the model
      from a batch reduced across devices (here: from the data set's `element_spec`), and it reduces scalar logs
      along an axis they do not have. See https://github.com/keras-team/keras/issues/20585.
    - Each replica gets its own rows of each global batch, in order. Keras shards whole batches among workers, so
      that two workers train on other batches than one process would.
    - A weighted or masked mean of losses has one denominator for all replicas, for Keras's losses too. Keras divides
      by each replica's own, so that its loss depends on how pads are spread over them.
    - Gradients are summed over replicas before the optimizer sees them. Keras clips those of each replica (and, in
      float16, looks for overflow in those of the first), but a sum of clipped gradients is not the clipped sum. For
      the same reason, on one device too, an embedding's gradient is summed over repeated tokens before it is clipped.
    - `steps_per_execution` may exceed 1, where Keras fails with "You must feed a value for placeholder"; so it does
      with `ema_overwrite_frequency` and with `gradient_accumulation_steps`, which work here.

    On one device or several, an optimizer with `gradient_accumulation_steps=k` makes the step of one batch made of
    the k batches joined: each counts by its denominator, not by 1/k as in Keras. If fit() ends within such a group,
    the next fit() goes on with it. Averages of the weights (`use_ema`) move once for each step. Layers still see one
    batch at a time: batch normalisation normalises by its rows and dropout draws a mask for it, as if the small batches
    were all there is. What is not a mean of the one loss counts by the same denominators: constant penalties on weights
    come out right, activity penalties and `add_loss` only where pads are spread evenly.

    Data are looked at on their way in. NaN or infinity in inputs, also in rows of weight 0, for batch normalisation
    sees them, sample weights below 0, and, where the loss is a cross-entropy of ours or Keras's, labels that are no
    classes are refused: arrays before any work, data sets when the batch comes. Labels of rows of weight 0, of
    `ignore_class` and under a Keras mask may be anything. `class_weight` multiplies sample weights, for labels of any
    kind and each position of a sequence; for targets from a teacher it goes by the label.

    What a layer adds to the loss of its own batch (`activity_regularizer`, `add_loss`) may be a sum or a mean, and a
    loss with `reduction=None` has one value for each row: of several replicas, both are refused by `fit`.

    Two things still depend on the number of replicas. `keras.layers.BatchNormalization` normalises by the rows of
    one replica, and each replica keeps moving statistics of its own, of which the first one's are saved; with
    `synchronized=True` both come from the whole batch. All replicas draw the same dropout masks, each for its own
    rows, so that with dropout two replicas train as well as one, but not to the same weights.

    Raises:
        ValueError: By `compile`, of an optimizer that cannot give these numbers; by `fit`, `evaluate` and `predict`,
            of data as above, and by `fit` of a loss without such a mean.

    Example:
        >>> with strategy("mirrored").scope():
        ...     network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="logits")])
        ...     model = Model(network.input, network.output)
        >>> model.get_layer("logits") is network.get_layer("logits")
        True

    Reference: `tf.distribute.MultiWorkerMirroredStrategy`,
    https://www.tensorflow.org/tutorials/distribute/multi_worker_with_keras
    """

    @property
    def _is_replicated(self) -> bool:
        return keras_hooks.is_replicated(self)

    @property
    def _accumulates(self) -> bool:
        return bool(self.optimizer and _inner(self.optimizer).gradient_accumulation_steps)

    _inspector: Inspector | None = None

    def _inspect(self, class_weight: dict[int, float] | None = None) -> Inspector:
        if class_weight is not None:
            return Inspector(self, class_weight)
        self._inspector = self._inspector or Inspector(self)
        return self._inspector

    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        self._inspector = None  # it knows the loss
        if self.optimizer is not None:
            _check_optimizer(self.optimizer, self.distribute_strategy, self._is_replicated)
            _step_of_the_whole_batch(self.optimizer, self._is_replicated, lambda: self._denominator)
        if self._is_replicated or self._accumulates:
            keras_hooks.wrap_losses(self, _with_whole_mean)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Keras compiles no model whose compile() is its own.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        if self._is_replicated:
            _require_a_loss_of_the_whole_batch(self)
        if not (training and self._accumulates):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        with losses.recorded_denominators() as denominators:
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if len(denominators) != 1:
            raise ValueError(
                "gradient_accumulation_steps weighs batches by the denominator of the loss, and needs one loss that "
                f"is a mean over examples; received {len(denominators)} such. Compile with one loss for one output and "
                "its default reduction, or without accumulation."
            )
        self._denominator = denominators[0]
        return loss

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *args: Any,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        # Keras warns that it does not shuffle a data set or generator, unless told so.
        kwargs.setdefault("shuffle", not isinstance(x, tf.data.Dataset | types.GeneratorType))
        if self._is_replicated:
            _, steps = _batches_and_steps(x, steps_per_epoch, self.distribute_strategy)
            _require_whole_steps(x, steps, self)
        if validation_split and validation_data is None:
            # Before class weights, which validation does not have.
            (x, y, sample_weight), validation_data = keras_hooks.split_arrays((x, y, sample_weight), validation_split)
        x, y, sample_weight = self._inspect(class_weight).look_at(x, y, sample_weight, kwargs["shuffle"])
        if validation_data is not None:
            validation = keras.utils.unpack_x_y_sample_weight(validation_data)
            validation_data = keras.utils.pack_x_y_sample_weight(*self._inspect().look_at(*validation))
        if self._is_replicated:
            if steps_per_epoch is None:
                # The parts have no length that Keras could count epochs by: it takes steps from data without end.
                x, steps_per_epoch = x.repeat(), steps
            x = _distribute(x, self.distribute_strategy)
            if validation_data is not None:
                validation_data, validation_steps = self._for_evaluation(validation_data, validation_steps)
        with faults_as_sentences():
            return super().fit(
                x,
                y,
                *args,
                sample_weight=sample_weight,
                validation_data=validation_data,
                steps_per_epoch=steps_per_epoch,
                validation_steps=validation_steps,
                **kwargs,
            )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        *args: Any,
        sample_weight: Any = None,
        steps: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if not keras_hooks.evaluates_for_fit(kwargs):  # fit() has looked at its validation data
            x, y, sample_weight = self._inspect().look_at(x, y, sample_weight)
        if self._is_replicated:
            x, steps = self._for_evaluation(x, steps)
        with faults_as_sentences():
            return super().evaluate(x, y, *args, sample_weight=sample_weight, steps=steps, **kwargs)

    def predict(self, x: Any, *args: Any, steps: int | None = None, **kwargs: Any) -> Any:
        x, _, _ = Inspector(self, only_inputs=True).look_at(x)
        if self._is_replicated:
            x, steps = self._for_evaluation(x, steps)
        with faults_as_sentences():
            return super().predict(x, *args, steps=steps, **kwargs)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        x, y, sample_weight = self._inspect(class_weight).look_at(x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        x, y, sample_weight = self._inspect().look_at(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, return_dict=return_dict)

    def _for_evaluation(self, data: Any, steps: int | None) -> tuple[tf.distribute.DistributedDataset, int | None]:
        if isinstance(data, tf.distribute.DistributedDataset):  # fit() hands its validation data on
            return data, steps
        dataset, steps = _batches_and_steps(data, steps, self.distribute_strategy)
        # What is not there cannot be counted when steps_per_execution does not divide the steps.
        return _distribute(dataset.take(steps), self.distribute_strategy), steps


def _batches_and_steps(data: Any, steps: int | None, strategy: tf.distribute.Strategy) -> tuple[Any, int]:
    if not isinstance(data, tf.data.Dataset):
        raise ValueError(
            f"With {strategy.num_replicas_in_sync} replicas the data must be a tf.data.Dataset of global batches, "
            f"received {type(data).__name__}. Use tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)."
        )
    if steps is None:
        steps = int(data.cardinality())
    if steps < 1:
        raise ValueError("The data set is empty, endless or of unknown length: say how many steps to take.")
    return data, steps


def _require_whole_steps(dataset: tf.data.Dataset, steps: int, model: Model) -> None:
    # The mean of the replicas' mean losses is the mean over the batch only if all have as many rows.
    batch_size = tf.nest.flatten(dataset.element_spec)[0].shape[0]
    count = model.distribute_strategy.num_replicas_in_sync
    if batch_size is None or batch_size % count:
        raise ValueError(
            f"fit() received batches of {batch_size or 'varying'} rows for {count} replicas, expected a fixed "
            f"number that {count} divides. Change the batch size, or batch with drop_remainder=True."
        )
    if steps % model.steps_per_execution:
        raise ValueError(
            f"fit() received steps_per_epoch={steps}, expected a multiple of "
            f"steps_per_execution={model.steps_per_execution}. Change one of them."
        )


def _distribute(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> tf.distribute.DistributedDataset:
    return strategy.distribute_datasets_from_function(lambda context: _parts(dataset, context))


def _parts(dataset: tf.data.Dataset, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """The rows of this worker's replicas out of each batch, one replica after the other."""
    count = context.num_replicas_in_sync
    # predict() joins the first replica of each worker, then the second of each, and so on.
    here = range(context.input_pipeline_id, count, context.num_input_pipelines)

    def rows(batch: Any, replica: int) -> Any:
        def cut(tensor: tf.Tensor) -> tf.Tensor:
            total = tensor.shape[0] or tf.shape(tensor)[0]
            return tensor[replica * total // count : (replica + 1) * total // count]

        return tf.nest.map_structure(cut, batch)

    def split(*batch: Any) -> tf.data.Dataset:
        batch = batch if len(batch) > 1 else batch[0]
        parts = [tf.data.Dataset.from_tensors(rows(batch, replica)) for replica in here]
        return functools.reduce(tf.data.Dataset.concatenate, parts)

    parts = dataset.flat_map(split)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        # Known to be endless, it saves the workers a vote before each step on whether there is more.
        parts = parts.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return parts.prefetch(len(here))


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that makes the steps: under mixed_float16, Keras wraps it in one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _check_optimizer(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy, replicated: bool) -> None:
    inner = _inner(optimizer)
    if replicated and hasattr(inner, "optimizers"):
        raise ValueError("A MultiOptimizer would sum gradients over replicas twice. Use one optimizer for all weights.")
    if any(each.gradient_accumulation_steps for each in getattr(inner, "optimizers", ())):
        raise ValueError("gradient_accumulation_steps is not supported within a MultiOptimizer. Use one optimizer.")
    if replicated and keras_hooks.strategy_of(inner) is not strategy:
        raise ValueError("The optimizer is not of the model's strategy: compile within strategy.scope().")
    if inner.gradient_accumulation_steps and inner.ema_overwrite_frequency:
        raise ValueError(
            "ema_overwrite_frequency does not go with gradient_accumulation_steps: Keras overwrites weights after each "
            "of the small batches, not after each step. Leave one of them away."
        )


def _step_of_the_whole_batch(
    optimizer: keras.optimizers.Optimizer, replicated: bool, denominator: Callable[[], tf.Tensor]
) -> None:
    """Give the optimizer the gradient of the whole batch, over replicas and joined batches, at each step."""
    inner = _inner(optimizer)
    if inner.gradient_accumulation_steps and not hasattr(inner, "accumulated_weight"):
        with keras_hooks.strategy_of(inner).scope():
            inner.accumulated_weight = inner.add_variable((), name="accumulated_weight")

    def step(gradients: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        if inner.gradient_accumulation_steps:
            gradients = _weighed(inner, gradients, trainable_variables, denominator())
        with keras_hooks.steps_alone():
            type(inner).apply(inner, gradients, trainable_variables)

    def whole_step(gradients: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        gradients = _summed(gradients) if replicated else gradients
        if inner.clipnorm or inner.global_clipnorm or inner.clipvalue:
            # Keras clips the parts that rows of an embedding get from each token that is repeated, not their sum.
            gradients = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in gradients]
        if optimizer is inner:
            step(gradients, trainable_variables)
        else:
            type(optimizer).apply(optimizer, gradients, trainable_variables)

    inner.apply = step
    optimizer.apply = whole_step
    if inner.gradient_accumulation_steps:
        keras_hooks.average_whole_steps(inner)
    if replicated:
        keras_hooks.leave_sums_to_caller(inner)
        keras_hooks.let_replicas_step_alone(inner)


def _summed(gradients: Sequence[Any]) -> list[Any]:
    present = [gradient for gradient in gradients if gradient is not None]
    summed = iter(tf.distribute.get_replica_context().all_reduce("SUM", present))
    return [None if gradient is None else next(summed) for gradient in gradients]


def _weighed(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[Any],
    trainable_variables: Sequence[Any] | None,
    denominator: tf.Tensor,
) -> list[Any]:
    """Let Keras's mean Σ g / k of k batches' gradients become Σ d g / Σ d, with the denominators d of their losses.

    The accumulators hold k times the mean so far, in which the next gradient has the share d / Σ d.
    """
    if not optimizer.built:
        optimizer.build(trainable_variables)
    steps, total = optimizer.gradient_accumulation_steps, optimizer.accumulated_weight
    denominator = tf.cast(denominator, total.dtype)
    total.assign(tf.where(keras_hooks.small_batches(optimizer) % steps == 0, 0.0, total) + denominator)
    # Where nothing has counted yet, the last gradient, of penalties alone, is as good as any.
    share = tf.where(total > 0, tf.math.divide_no_nan(denominator, total.value), 1.0)
    for accumulator in keras_hooks.accumulators(optimizer):
        accumulator.assign(tf.cast(1 - share, accumulator.dtype) * accumulator)
    return [
        None if gradient is None else tf.cast(steps * share, gradient.dtype) * tf.convert_to_tensor(gradient)
        for gradient in gradients
    ]


def _with_whole_mean(loss: keras.losses.Loss) -> keras.losses.Loss:
    return _WholeMean(loss) if _is_plain_mean(loss) else loss


def _is_plain_mean(loss: Any) -> bool:
    own = type(loss).__call__ is not keras.losses.Loss.__call__  # as losses of ours, which do it themselves
    return not own and loss.reduction in ("sum_over_batch_size", "mean", "mean_with_sample_weight")


class _WholeMean(keras.losses.Loss):
    """A loss of Keras's or a user's, whose mean is taken over all replicas."""

    def __init__(self, loss: keras.losses.Loss) -> None:
        super().__init__(loss.name, loss.reduction, loss.dtype)
        self.loss = loss

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        masks = [keras_hooks.mask_of(y_pred)]
        y_true, y_pred = (
            keras.tree.map_structure(lambda value: keras.ops.convert_to_tensor(value, self.dtype), each)
            for each in (y_true, y_pred)
        )
        values = self.loss.call(y_true, y_pred)
        if len(values.shape) == 0:
            raise ValueError(
                f"The loss {self.name} returns one number for a batch, of which no mean over replicas or accumulated "
                "batches can be taken. Return one number for each example."
            )
        masks = [mask for mask in (*masks, keras_hooks.mask_of(values)) if mask is not None]
        mask = functools.reduce(tf.logical_and, masks) if masks else None
        return losses.reduce_weighted(values, sample_weight, mask, self.reduction)


def metric_variables(model: keras.Model, batch: Any = None) -> list[keras.Variable]:
    """Return the states of a compiled model's metrics, its loss among them, in a fixed order.

    Keras makes most of them when the first batch comes; with that batch (x, labels), they are made now. Of several
    replicas `fit` itself makes them before its first epoch.
    """
    if batch is not None and not (isinstance(model, Model) and keras_hooks.is_replicated(model)):
        keras_hooks.build_metrics(model, batch)
    return [variable for metric in model.metrics for variable in metric.variables]


def averages(model: keras.Model) -> bool:
    """Say whether a model's optimizer keeps moving averages of the weights, which are what counts in the end."""
    return bool(model.optimizer and _inner(model.optimizer).use_ema)


def counted_weights(model: keras.Model) -> list[np.ndarray]:
    """Return the weights that count, as `get_weights` does: where the optimizer averages them, the averages.

    During training, Keras's `use_ema=True` keeps averages beside the weights and puts them in their place only at the
    end of `fit`. What is observed, exported or evaluated earlier is to be read here.

    Example:
        >>> network.set_weights(counted_weights(model))  # a copy of the model as it would be at the end of fit()
    """
    averaged = {}
    if averages(model) and model.optimizer.built:
        optimizer = _inner(model.optimizer)
        averaged = {id(weight): average for weight, average in keras_hooks.moving_averages(optimizer)}
    return [np.array(averaged.get(id(weight), weight).numpy()) for weight in model.weights]


def finish_averaging(model: keras.Model) -> None:
    """Put averages in the weights' place, as the end of `fit` does; nothing where there are none."""
    if averages(model):
        model.optimizer.finalize_variable_values(model.trainable_variables)


def get_state(model: keras.Model) -> list[np.ndarray]:
    """Read everything that training changes, to save it.

    Weights, moving statistics, the states of random generators and the optimizer's variables; metrics are left
    out, since each epoch starts them anew. All are kept in full on each worker, so that the chief may read alone.

    Args:
        model: a built and compiled model.

    Returns:
        One array per variable, in a fixed order.

    Raises:
        ValueError: if the optimizer has no variables yet.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model.compile("sgd")
        >>> model.optimizer.build(model.trainable_variables)
        >>> [array.shape for array in get_state(model)]  # kernel, bias, iterations, learning rate
        [(4, 3), (3,), (), ()]
    """
    return [np.array(variable.numpy()) for variable in _state_variables(model)]


def set_state(model: keras.Model, arrays: Sequence[np.ndarray]) -> None:
    """Restore what `get_state` read, into a model of the same structure; every worker must do so.

    Args:
        model: a built and compiled model.
        arrays: what `get_state` returned.

    Raises:
        ValueError: if number or shapes of the arrays differ from the model's; nothing is changed then.
    """
    variables = _state_variables(model)
    expected = [tuple(variable.shape) for variable in variables]
    received = [np.shape(array) for array in arrays]
    if received != expected:
        raise ValueError(
            f"The state does not belong to this model and optimizer: received {len(received)} arrays of shapes "
            f"{received}, expected {len(expected)} of shapes {expected}. Build them as they were when it was saved."
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _state_variables(model: keras.Model) -> list[keras.Variable]:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        raise ValueError(
            "The model's optimizer has no variables yet: call model.compile(...) and then "
            "model.optimizer.build(model.trainable_variables) within the strategy's scope."
        )
    drawing = (getattr(loss, "seed_generator", None) for loss in keras.tree.flatten(keras_hooks.losses_as_given(model)))
    return [*model.variables, *optimizer.variables, *(each.state for each in drawing if each is not None)]
