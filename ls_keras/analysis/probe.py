"""A trained network, read from its SavedModel without the code that trained it."""

import dataclasses
import numbers
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ls_keras.analysis import arguments
from ls_keras.artifact import reading

import numpy as np
import tensorflow as tf

ENDPOINTS = ("serve", "probe", "templates")
# Rows that are run at a time, of arrays.
_ROWS = 256

_THIS_DATA = "Is this the data set that the network was trained on?"

_HOW_TO_EXPORT = """Give the exported tf.Module three tf.functions and write it with tf.saved_model.save:
    serve(x) -> logits [N, K]
    probe(x) -> {"penultimate": [N, d], "logits": [N, K]}
    templates() -> {"kernel": [d, K], "bias": [K]}
with penultimate @ kernel + bias == logits, as ls_keras.artifact.export does."""


@dataclasses.dataclass(frozen=True, eq=False)
class Collected:
    """What a network makes of a data set, one row per example, in the data set's order.

    Attributes:
        penultimate: float32 `[N, d]`, activations of the penultimate layer.
        logits: float32 `[N, K]`.
        labels: int64 `[N]`.
    """

    penultimate: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


class Probe:
    """Loads a SavedModel and returns its activations, logits and templates as NumPy arrays.

    Inputs are arrays `[n, ...]` of the shape and the kind of numbers that the network's signature has: floats of any
    precision for floats (whole numbers are refused there, for pixels up to 255 are not what was trained on), whole
    numbers that fit for whole numbers, strings for strings. Any number of rows goes through a signature of fixed batch
    size. NaN and infinity are refused, since some layers hide them: a maximum over pixels passes over NaN.

    The SavedModel needs the endpoints `serve(x)`, `probe(x)` and `templates()`, as functions or as
    signatures. The template of class k is column k of the last layer's kernel, and

        penultimate @ kernel + bias == logits

    is checked on the first batch of `collect`: to 2^-9 of `|penultimate| @ |kernel| + |bias|` in float32 (as
    graphics processors may round to 10 bits) and to 2^-6 where activations or logits are bfloat16.

    Args:
        network: Folder of the SavedModel, or an object with the three functions, as `artifact.endpoints(model)`
            makes it of a Keras model.

    Attributes:
        kernel: float `[d, K]`, a template per column.
        bias: float `[K]`.
        num_classes: K.

    Raises:
        FileNotFoundError: No SavedModel in that folder.
        ValueError: It is damaged, an endpoint is missing, or the templates are not a finite kernel and bias that fit.

    Example:

    >>> network = Probe("saved_models/mnist_mlp/digits/saved_model")
    >>> held_out = network.collect(data.evaluation("held_out", batch_size=500))
    >>> held_out.logits.shape, network.kernel.shape
    ((300, 10), (1200, 10))
    """

    def __init__(self, network: Any) -> None:
        if isinstance(network, str | Path):
            self.name, network = f"SavedModel at {network}", reading.load(network)
        else:
            self.name = "network in memory"
        found = {name: reading.function(network, name) for name in ENDPOINTS}
        missing = [name for name, function in found.items() if function is None]
        if missing and hasattr(network, "get_weights"):
            raise ValueError(
                f"Expected endpoints; received a Keras model, {getattr(network, 'name', 'without a name')}. Pass "
                "artifact.endpoints(model), or write it with artifact.export(model, path) and pass that path."
            )
        if missing:
            raise ValueError(
                f"The {self.name} has no endpoint {', '.join(missing)}; it has "
                f"{', '.join(reading.function_names(network)) or 'none at all'}. {_HOW_TO_EXPORT}"
            )
        self._serve, self._probe = (
            reading.Endpoint(found[name], f"{name}(x) of the {self.name}", network) for name in ("serve", "probe")
        )
        self.kernel, self.bias = self._checked_templates(found["templates"]())
        self.num_classes = self.kernel.shape[1]

    def serve(self, x: Any) -> np.ndarray:
        """Return the logits float32 `[n, K]` of a batch of inputs.

        Raises:
            ValueError: Inputs of another shape or kind than the network's, with NaN or infinity, or none.
        """
        return self._served(_finite_inputs(self._serve.fitted(x), self._serve.name))

    def probe(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the penultimate activations `[n, d]` and the logits `[n, K]`, float32; raise as `serve`."""
        return self._probed(_finite_inputs(self._probe.fitted(x), self._probe.name))

    def collect(self, dataset: tf.data.Dataset | tuple[Any, ...], limit: int | None = None) -> Collected:
        """Return activations, logits and labels of every example of a data set; see `batches`.

        Returns:
            A `Collected`: float32 arrays, in memory once, and one of them twice while batches are joined.
        """
        parts = list(self.batches(dataset, limit))
        columns = {name: [getattr(part, name) for part in parts] for name in ("penultimate", "logits", "labels")}
        del parts
        return Collected(**{name: _joined(blocks) for name, blocks in columns.items()})

    def batches(self, dataset: tf.data.Dataset | tuple[Any, ...], limit: int | None = None) -> Iterator[Collected]:
        """Yield activations, logits and labels of the examples of a data set, batch by batch.

        Args:
            dataset: A `tf.data.Dataset` of batches `(x, labels)` or `(x, labels, weight)`, or such a tuple of whole
                arrays; x may be a dictionary. Labels are class indices `[n]` or `[n, 1]`, also as floats, or one-hot
                rows `[n, K]`. Rows of weight 0 (padding) are dropped and may hold anything. A network of sequences has
                labels and weights `[n, ...]` for its positions, each an example of its own, in order.
            limit: At most so many examples, the first ones; None for all. An endless data set needs it.

        Raises:
            ValueError: No example, an endless data set without a limit, inputs as in `serve`, labels that name no
                class in [0, K) (soft ones do not), logits with NaN or infinity, or a network whose penultimate
                activations and templates do not give its logits.
        """
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, numbers.Integral) or limit < 1):
            received = repr(limit) if isinstance(limit, numbers.Number) else type(limit).__name__
            raise ValueError(
                f"Expected limit to be an integer of at least 1, or None for every example; received {received}. "
                "Arrays come as one tuple: collect((x, labels))."
            )
        num_examples, num_rows = 0, 0
        for batch in _batches(dataset, limit):
            x, labels, weight = _unpacked(batch)
            x = self._probe.fitted(x)
            if len(labels) != _num_rows(x):
                raise ValueError(
                    f"Expected a label for each example; received {_num_rows(x)} examples and {len(labels)} labels."
                )
            rows = np.flatnonzero(weight.reshape(len(labels), -1).any(axis=1))
            # Beyond the limit, inputs may hold anything, as they may where nothing counts.
            rows = rows if limit is None or weight.ndim > 1 else rows[: limit - num_examples]
            _finite_inputs(_rows_of(x, rows), self._probe.name, num_rows)
            activation, logit = self._probed(x)
            if not num_rows:
                self._check_contract(x, activation, logit)
            part = self._counted(activation, logit, labels, weight, None if limit is None else limit - num_examples)
            _finite(part.logits, num_examples)
            num_rows += len(rows)
            num_examples += len(part.labels)
            yield part
            if num_examples == limit:
                break
        if num_examples == 0:
            raise ValueError("The data set has no example of weight above 0. Check the split and the filters.")

    def logit_differences(self, dataset: tf.data.Dataset, pair: tuple[int, int]) -> np.ndarray:
        """Return the difference of two logits for repeated draws of the same examples.

        Args:
            dataset: Batches `(x, index)`; every index, the example that x is an augmented draw of, occurs
                equally often, in any order.
            pair: Two classes (a, b).

        Returns:
            float64 `[N, L]`: logit a less logit b, a row for each index in ascending order and a column for
            each of its L draws, as `information.mutual_information` takes them.

        Raises:
            ValueError: A class that does not exist, a pair of equal classes, indices that occur unequally
                often, or logits with NaN or infinity.
        """
        first, second = arguments.classes(pair, "pair", 2, self.num_classes)
        logits, indices = [], []
        for x, index in dataset:
            logits.append(self.serve(x)[..., [first, second]])
            indices.append(np.asarray(index))
        if not indices:
            raise ValueError("The data set of draws is empty. Check the indices and the number of draws.")
        logits, indices = _finite(_joined(logits)).astype(float), _joined(indices)
        if indices.dtype.kind not in "iu":
            raise ValueError(f"Expected the index of each draw's example as integers; received dtype {indices.dtype}.")
        examples, counts = np.unique(indices, return_counts=True)
        if counts.min() != counts.max():
            raise ValueError(
                f"Expected as many draws of each example; index {examples[counts.argmin()]} occurs "
                f"{counts.min()} times, index {examples[counts.argmax()]} {counts.max()} times."
            )
        order = np.argsort(indices, kind="stable")
        return (logits[:, 0] - logits[:, 1])[order].reshape(len(examples), -1)

    def _counted(
        self, activation: np.ndarray, logit: np.ndarray, labels: np.ndarray, weight: np.ndarray, most: int | None
    ) -> Collected:
        """Return the examples that count, at most so many; each position of a sequence is one."""
        positions = logit.shape[:-1]
        if labels.shape[: len(positions)] != positions or labels.ndim > len(positions) + 1:
            raise ValueError(
                f"Expected class indices of shape {list(positions)}, or one-hot rows; received labels of shape "
                f"{list(labels.shape)}. {_THIS_DATA}"
            )
        if weight.shape == (*positions, 1):
            weight = weight[..., 0]
        if weight.shape not in (positions, positions[:1]):
            raise ValueError(
                f"Expected a weight for each of {' x '.join(map(str, positions))} labels; received shape "
                f"{weight.shape}."
            )
        weight = np.broadcast_to(weight.reshape(weight.shape + (1,) * (len(positions) - weight.ndim)), positions)
        kept = np.flatnonzero(weight)[:most]
        activation, logit = (values.reshape(-1, values.shape[-1])[kept] for values in (activation, logit))
        labels = labels.reshape(-1, *labels.shape[len(positions) :])[kept]
        return Collected(activation, logit, self._labels(labels))

    def _labels(self, labels: np.ndarray) -> np.ndarray:
        try:
            return arguments.labels(labels, len(labels), self.num_classes)
        except ValueError as problem:
            raise ValueError(f"{problem} {_THIS_DATA}") from None

    def _served(self, x: tf.Tensor) -> np.ndarray:
        return self._rows(reading.logits_of(self._serve(x), self._serve.name), x, "serve")

    def _probed(self, x: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        outputs = self._probe(x)
        if not (isinstance(outputs, dict) and {"penultimate", "logits"} <= set(outputs)):
            raise ValueError(
                f"Expected probe(x) of the {self.name} to return a dict with penultimate and "
                f"logits; received {list(outputs) if isinstance(outputs, dict) else type(outputs).__name__}. "
                f"{_HOW_TO_EXPORT}"
            )
        return self._rows(outputs["penultimate"], x, "probe"), self._rows(outputs["logits"], x, "probe")

    def _rows(self, values: Any, x: tf.Tensor, name: str) -> np.ndarray:
        shape = tuple(getattr(values, "shape", ()))
        if shape[:1] != (_num_rows(x),):
            raise ValueError(
                f"Expected {name}(x) of the {self.name} to return a row for each of {_num_rows(x)} examples; received "
                f"shape {shape}. {_HOW_TO_EXPORT}"
            )
        return _float32(values)

    def _checked_templates(self, outputs: Any) -> tuple[np.ndarray, np.ndarray]:
        if not (isinstance(outputs, dict) and {"kernel", "bias"} <= set(outputs)):
            raise ValueError(
                f"Expected templates() of the {self.name} to return a dict with kernel and bias; "
                f"received {list(outputs) if isinstance(outputs, dict) else type(outputs).__name__}. "
                f"{_HOW_TO_EXPORT}"
            )
        kernel, bias = (_at_least_float32(outputs[name]) for name in ("kernel", "bias"))
        if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or kernel.shape[1] < 2:
            raise ValueError(
                "Expected a kernel of shape [d, K] and a bias of shape [K], K at least 2; received "
                f"{kernel.shape} and {bias.shape} from the {self.name}. {_HOW_TO_EXPORT}"
            )
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise ValueError(f"The templates of the {self.name} hold NaN or infinity: its training diverged.")
        return kernel, bias

    def _check_contract(self, x: Any, penultimate: np.ndarray, logits: np.ndarray) -> None:
        num_features, num_classes = self.kernel.shape
        if penultimate.shape != (*logits.shape[:-1], num_features) or logits.shape[-1] != num_classes:
            raise ValueError(
                f"Expected penultimate [N, {num_features}] and logits [N, {num_classes}], as the kernel has "
                f"shape {self.kernel.shape}; received {penultimate.shape} and {logits.shape}. {_HOW_TO_EXPORT}"
            )
        finite = np.isfinite(logits).all(axis=-1)  # the others are counted and refused later
        for name, values in (("probe", logits), ("serve", self._served(x))):
            difference = values.shape != logits.shape and f"they have shapes {values.shape} and {logits.shape}"
            difference = difference or reading.disagreement(penultimate[finite], values[finite], self.kernel, self.bias)
            if difference:
                raise ValueError(
                    f"The logits of {name}(x) are not penultimate @ kernel + bias in the {self.name}: {difference}. "
                    "Export the input of the very last dense layer, that layer's kernel and bias, and logits without "
                    "softmax."
                )


def _batches(dataset: Any, limit: int | None) -> Iterator[Any]:
    if isinstance(dataset, tuple) and len(dataset) in (2, 3):
        x, *rest = dataset
        x = {name: np.asarray(values) for name, values in x.items()} if isinstance(x, Mapping) else np.asarray(x)
        arrays = (x, *map(np.asarray, rest))
        shapes = [each.shape for each in tf.nest.flatten(arrays)]
        if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
            raise ValueError(
                "Expected arrays (x, labels) or (x, labels, weight) with a row for each example; received shapes "
                f"{', '.join(map(str, shapes))}."
            )
        starts = range(0, shapes[0][0], _ROWS)
        return (tf.nest.map_structure(lambda each: each[at : at + _ROWS], arrays) for at in starts)  # noqa: B023
    if not isinstance(dataset, Iterable):
        raise ValueError(
            "Expected a tf.data.Dataset of batches (x, labels), or a tuple of two arrays; received "
            f"{type(dataset).__name__}."
        )
    if limit is None and isinstance(dataset, tf.data.Dataset) and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The data set is endless. Pass limit=, or an evaluation split.")
    return iter(dataset)


def _unpacked(batch: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return inputs, labels and weights."""
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise ValueError(
            "Expected a data set of batches (x, labels) or (x, labels, weight); received "
            f"{f'{len(batch)} elements' if isinstance(batch, tuple) else type(batch).__name__} a batch."
        )
    x, labels, *weight = batch
    labels = np.asarray(labels)
    if labels.ndim == 0:
        raise ValueError("Expected a data set of batches; received single examples. Batch it: dataset.batch(100).")
    weight = np.asarray(weight[0]) if weight else np.ones(len(labels))
    if not (weight.dtype.kind in "biuf" and np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("Weights must be finite numbers from 0 on; received others. 0 leaves an example out.")
    if weight.shape[:1] != labels.shape[:1]:
        raise ValueError(f"Expected a weight for each of {len(labels)} labels; received shape {weight.shape}.")
    return x, labels, weight


def _num_rows(x: Any) -> int:
    return tf.nest.flatten(x)[0].shape[0]


def _rows_of(x: Any, rows: np.ndarray) -> Any:
    return tf.nest.map_structure(lambda values: tf.gather(values, rows), x)


def _finite_inputs(x: Any, name: str, num_before: int = 0) -> Any:
    for values in tf.nest.flatten(x):
        if not values.dtype.is_floating:
            continue
        finite = tf.reduce_all(tf.math.is_finite(values), axis=range(1, values.shape.rank)).numpy()
        if not finite.all():
            raise ValueError(
                f"The inputs hold NaN or infinity (as {values.dtype.name}): {np.sum(~finite)} of {len(finite)} "
                f"examples given to {name}, the first is example {num_before + finite.argmin()}. Mend or drop them: "
                "layers such as max pooling hide NaN, and what comes out looks like an answer."
            )
    return x


def _finite(logits: np.ndarray, num_before: int = 0) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=-1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(logits)} rows of logits hold NaN or infinity, the first is row {num_before + bad[0]}. "
            "Check the inputs, or that training did not diverge."
        )
    return logits


def _joined(blocks: list[np.ndarray]) -> np.ndarray:
    joined = np.concatenate(blocks)
    blocks.clear()
    return joined


def _float32(values: tf.Tensor) -> np.ndarray:
    return tf.cast(values, tf.float32).numpy()


def _at_least_float32(values: tf.Tensor) -> np.ndarray:
    return values.numpy() if values.dtype == tf.float64 else _float32(values)
