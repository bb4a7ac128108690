"""What may enter a model: data are looked at on the host, where a sentence can still be said.

Inside a compiled step nothing can be refused, and much would pass: max pooling takes NaN for the lowest number, ReLU
that for 0, and a network of both trains on images of NaN to a loss of ln K. Read in Keras 3.15.1.
"""

import contextlib
import functools
import math
import numbers
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ls_keras import keras_hooks, losses, targets

import keras
import numpy as np
import tensorflow as tf

# Losses whose labels are classes of the model's last axis.
_FROM_TEACHER = (losses.DistillationLoss, losses.LogitMatching)
_CROSSENTROPIES = (
    losses.OverLogits,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
)
_CROSSENTROPY_FUNCTIONS = (keras.losses.sparse_categorical_crossentropy, keras.losses.categorical_crossentropy)
# Data sets in memory that are remembered to have been looked at, the last ones.
_KEPT = 4
# Numbers of an array that are looked at in one go: 16 MiB.
_VALUES_AT_A_TIME = 2**22


class _Fault(NamedTuple):
    """What may be wrong with a batch: where it is, bool `[n, ...]`, the values there, a rule and what to do."""

    wrong: tf.Tensor
    values: tf.Tensor
    rule: str
    remedy: str


class _Classified(NamedTuple):
    """An output of a model that is read by classes: its loss and shape, and whether it carries a mask."""

    loss: Any
    logits: tf.TensorSpec
    masked: bool


class Inspector:
    """Looks at data on their way into a model: refuses what it cannot learn from, gives class weights to rows.

    Args:
        model: The model, compiled unless only inputs are looked at.
        class_weight: As for `fit`.
        only_inputs: Whether labels and weights are left alone, as `predict` leaves them.
    """

    def __init__(
        self, model: keras.Model, class_weight: dict[int, float] | None = None, *, only_inputs: bool = False
    ) -> None:
        self.names = None if only_inputs else model.output_names if hasattr(model, "outputs") else []
        self.outputs = _classified(model) if self.names else []
        self.class_weights = None if class_weight is None else _checked_class_weights(class_weight, self.outputs)
        # Traced once for all data sets of one kind: tracing takes longer than looking at a small one.
        self._look = tf.function(self._look_at_batch, autograph=False)
        self._seen: list[tf.data.Dataset] = []

    def look_at(self, x: Any, y: Any = None, weights: Any = None, shuffle: bool | str = False) -> tuple[Any, Any, Any]:
        """Return data of any kind that Keras takes: arrays looked at, all others to be looked at as batches come."""
        if isinstance(x, tf.distribute.DistributedDataset):
            if self.class_weights is not None:
                raise ValueError("class_weight needs a tf.data.Dataset of global batches; received one distributed.")
            return x, y, weights
        if isinstance(x, tf.data.Dataset):
            return self._watch(x), y, weights
        kinds = {
            "U" if isinstance(each, str) else getattr(getattr(each, "dtype", None), "kind", "")
            for each in keras.tree.flatten(y)
        }
        if kinds & set("USO"):
            what = "Python objects" if "O" in kinds else "strings"
            raise ValueError(
                f"Labels must be real numbers; received {what}. Number the classes from 0, in an array of integers "
                "(`labels.astype(int)`, where they are numbers)."
            )
        adapter = keras_hooks.data_adapter(x, y, weights, shuffle)
        if keras_hooks.holds_arrays(adapter):
            return x, y, self._read(adapter, weights)
        batches = adapter.get_tf_dataset
        adapter.get_tf_dataset = lambda: self._watch(batches())
        return adapter, None, None

    def _watch(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        if dataset in self._seen:
            return dataset
        watched = dataset.enumerate().map(self._look)
        if not keras_hooks.is_in_memory(dataset) or watched.element_spec != dataset.element_spec or self.class_weights:
            return watched
        with faults_as_sentences():  # as arrays, once; a map would be made ready for each evaluation anew
            for _ in watched:
                pass
        self._seen = [dataset, *self._seen[: _KEPT - 1]]
        return dataset

    def _look_at_batch(self, number: tf.Tensor, batch: Any) -> Any:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        self._refuse(x, y, weights, ("batch", number))
        spread = self._spread(y, weights)
        return batch if spread is weights else (x, y, spread)

    def _read(self, adapter: Any, weights: Any) -> Any:
        with np.errstate(over="ignore"):  # of float64, to the infinity that is refused
            arrays = keras_hooks.arrays_of(adapter)
        shape = next(each for each in keras.tree.flatten(arrays) if each is not None).array.shape
        step = max(_VALUES_AT_A_TIME // max(math.prod(shape[1:]), 1), 1)
        spread = []
        for start in range(0, shape[0], step):
            x, y, part = keras.tree.map_structure(functools.partial(_rows, start=start, stop=start + step), arrays)
            self._refuse(x, y, part, ("array", start))
            found = self._spread(y, part)
            spread += [] if found is part else [found]
        return np.concatenate(spread) if spread else weights

    def _refuse(self, x: Any, y: Any, weights: Any, place: Sequence[Any]) -> None:
        faults = [_not_finite(values) for values in tf.nest.flatten(x, expand_composites=True) if _is_float(values)]
        if self.names is not None:
            faults += [_not_weights(values) for values in tf.nest.flatten(weights) if values is not None]
        for output, labels, weight in self._by_class(y, weights):
            faults += _not_classes(output, labels, weight)
        if faults:
            _stop_at(faults, place)

    def _by_class(self, y: Any, weights: Any) -> list[tuple[_Classified, tf.Tensor, tf.Tensor | None]]:
        if y is None or not self.outputs:
            return []
        together = zip(self.outputs, _by_output(y, self.names), _by_output(weights, self.names), strict=False)
        return [each for each in together if each[0] is not None and each[1] is not None and each[1].shape.rank]

    def _spread(self, y: Any, weights: Any) -> Any:
        """Return weights of shape `[...]`, one for each label and times that of its class."""
        by_class = self._by_class(y, weights)
        if self.class_weights is not None and not by_class:
            raise ValueError("class_weight needs labels of a known rank; received none. Give the data set's shapes.")
        if len(self.outputs) != 1 or not by_class:
            return weights
        ((output, labels, weight),) = by_class
        labels, _ = _unpacked(output, labels)
        rank = len(output.logits.shape) - 1
        if self.class_weights is None and (weight is None or weight.shape.rank is None or weight.shape.rank >= rank):
            return weights
        # Weights [n] too of labels [n, t], where Keras's own losses multiply the last axis by them.
        read = targets.read_labels(labels, output.logits)
        spread, _ = targets.read_weights(weight, None, read.fault, keras.config.floatx())
        if self.class_weights is None:
            return spread
        indices = tf.argmax(read.targets, -1) if read.indices is None else read.indices
        of_classes = tf.gather(tf.constant(self.class_weights, keras.config.floatx()), indices)
        return of_classes if spread is None else spread * of_classes


def _classified(model: keras.Model) -> list[_Classified | None]:
    """For each output, how it is read by classes; None where its loss is no cross-entropy over known classes."""
    named = _by_output(keras_hooks.losses_as_given(model), model.output_names)
    found = []
    for loss, output in zip(named, keras.tree.flatten(model.outputs), strict=False):
        if isinstance(loss, str) and loss.lower() not in ("ce", "crossentropy"):
            loss = keras.losses.get(loss)  # noqa: PLW2901 (a name and what it stands for)
        by_class = isinstance(loss, _CROSSENTROPIES) or loss in _CROSSENTROPY_FUNCTIONS
        logits = tf.TensorSpec(output.shape, "float32")
        masked = keras_hooks.mask_of(output) is not None
        found.append(_Classified(loss, logits, masked) if by_class and output.shape[-1] else None)
    return found


def _by_output(structure: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(structure, dict):
        return [structure.get(name) for name in names]
    return list(structure) if isinstance(structure, list | tuple) else [structure] * len(names)


def _checked_class_weights(class_weight: dict[int, float], outputs: Sequence[_Classified | None]) -> list[float]:
    """The weight of each class, 1 where none is given."""
    if len(outputs) != 1 or outputs[0] is None:
        raise ValueError(
            "class_weight needs a model with one output, and a cross-entropy over its classes as loss. Use "
            "sample_weight for others."
        )
    count = outputs[0].logits.shape[-1]
    if not isinstance(class_weight, dict):
        raise ValueError(
            f"class_weight must map classes to weights, as {{0: 1.0, 1: 5.0}}; received {type(class_weight).__name__}."
        )
    for index, weight in class_weight.items():
        if isinstance(index, bool) or not isinstance(index, numbers.Integral) or not 0 <= index < count:
            raise ValueError(f"class_weight must name classes in [0, {count}); received {index!r}.")
        if not isinstance(weight, numbers.Real) or not 0 <= weight < math.inf:
            raise ValueError(f"class_weight must be finite numbers from 0 on; received {weight!r} for class {index}.")
    return [float(class_weight.get(index, 1.0)) for index in range(count)]


def _rows(array: Any, start: int, stop: int) -> Any:
    if array is None:
        return None
    part = keras_hooks.rows_of(array, start, stop)
    return part if tf.is_tensor(part) else tf.convert_to_tensor(part)


def _is_float(values: Any) -> bool:
    return values is not None and values.dtype.is_floating


def _as_floatx(values: tf.Tensor) -> tf.Tensor:
    """As Keras casts it: float64 may overflow."""
    half = values.dtype in (tf.float16, tf.bfloat16)
    return values if half else tf.cast(values, keras.config.floatx())


def _unpacked(output: _Classified, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Take labels and a teacher's logits apart, where `losses.distillation_targets` put them together."""
    if not isinstance(output.loss, _FROM_TEACHER) or labels.shape.rank != len(output.logits.shape):
        return labels, None
    packed = labels.shape[-1] == output.logits.shape[-1] + 1
    return (labels[..., 0], labels[..., 1:]) if packed else (labels, None)


def _not_finite(values: tf.Tensor) -> _Fault:
    remedy = (
        "The loss would not show it: max pooling, for one, takes NaN for the lowest number, and ReLU that for 0. Mend "
        "or remove such rows, also those of weight 0, which batch normalisation sees."
    )
    return _Fault(~tf.math.is_finite(_as_floatx(values)), values, "Inputs must be finite numbers", remedy)


def _not_weights(values: tf.Tensor) -> _Fault:
    values = _as_floatx(values)
    rule = "Sample weights must be finite numbers from 0 on"
    return _Fault(~(tf.math.is_finite(values) & (values >= 0)), values, rule, "0 leaves a row out.")


def _not_classes(output: _Classified, labels: tf.Tensor, weights: tf.Tensor | None) -> list[_Fault]:
    """What may be wrong with labels, or with what a teacher says beside them, in rows that count."""
    loss, logits, masked = output
    size, ignore_class = logits.shape[-1], getattr(loss, "ignore_class", None)
    labels, said = _unpacked(output, labels)
    if targets.have_columns(labels, logits):
        read = targets.read_labels(labels, logits)
        least, total = tf.reduce_min(read.targets, -1), tf.reduce_sum(read.targets, -1)
        wrong, values = tf.math.is_nan(read.fault), tf.where(least < 0, least, total)
        rule = "One-hot and soft labels must be rows of numbers from 0 on that sum to 1"
        remedy = "Divide each row by its sum, or pass class indices."
    else:
        values = labels[..., 0] if labels.shape.rank == len(logits.shape) else labels
        values = values if values.dtype.is_floating else tf.cast(values, tf.int64)
        wrong = ~((values >= 0) & (values < size) & (values == tf.floor(values) if _is_float(values) else True))
        wrong = wrong if ignore_class is None else wrong & (values != ignore_class)
        rule = f"Labels must be whole numbers in [0, {size}), the number of logits"
        remedy = "Number the classes from 0, or name pads with `ignore_class`."
    # What a mask leaves out is not known here: there the loss is NaN if a label that counts is no class.
    faults = [] if masked else [_Fault(wrong, values, rule, remedy)]
    if said is not None:
        wrong = tf.math.is_nan(said) | (said == math.inf)
        rule = "Logits of a teacher must be finite, or -inf for classes that it leaves out"
        faults.append(_Fault(wrong, said, rule, "Ask a teacher whose training converged."))
    if weights is None:
        return faults
    spread, _ = targets.read_weights(weights, None, values, keras.config.floatx())
    counts = (spread != 0, spread[..., tf.newaxis] != 0)
    return [each._replace(wrong=each.wrong & counts[each.values is said]) for each in faults]


def _stop_at(faults: Sequence[_Fault], place: Sequence[Any]) -> None:
    """Stop where there are faults: with a ValueError or, in an input pipeline, for `faults_as_sentences`."""

    def stop() -> tf.Operation:
        pieces = ["<<", *place]
        for fault in faults:
            wrong = tf.reshape(fault.wrong, [-1])
            first = tf.argmax(wrong)
            row = first // (tf.size(wrong, tf.int64) // tf.shape(fault.wrong, tf.int64)[0])
            pieces += [wrong[first], fault.rule, tf.reshape(fault.values, [-1])[first], row, fault.remedy]
        if tf.executing_eagerly():
            raise ValueError(_sentence([each.numpy() if tf.is_tensor(each) else each for each in pieces[1:]]))
        return tf.debugging.Assert(False, [*pieces, ">>"])

    tf.cond(tf.reduce_any([tf.reduce_any(fault.wrong) for fault in faults]), stop, tf.no_op)


def _sentence(pieces: Sequence[Any]) -> str:
    """Say the first of the faults that `_stop_at` put together."""
    kind, number, *rest = pieces
    faults = [rest[start : start + 5] for start in range(0, len(rest), 5)]
    rule, value, row, remedy = next(said for found, *said in faults if int(found))
    place = f"row {int(number) + int(row)}" if kind == "array" else f"batch {number}, row {row}"
    return f"{rule}; received {value!s} in {place}. {remedy}"


@contextlib.contextmanager
def faults_as_sentences() -> Iterator[None]:
    """Raise as a ValueError what `_stop_at` found in an input pipeline, or a data set said between <! and !>."""
    try:
        yield
    except tf.errors.InvalidArgumentError as problem:
        if said := re.search(r"\[<!\] \[(.*)\] \[!>\]", problem.message):
            raise ValueError(said[1]) from None
        pieces = re.search(r"\[<<\] \[(.*)\] \[>>\]", problem.message)
        if pieces is None:
            raise
        raise ValueError(_sentence(pieces[1].split("] ["))) from None
