"""A trained network, read from its SavedModel without the code that trained it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

ENDPOINTS = ("serve", "probe", "templates")
# How far penultimate @ kernel + bias may lie from the logits, as a share of |penultimate| @ |kernel| + |bias|:
# products of TensorFloat-32 inputs (10 bits) err by up to 2^-10, of bfloat16 inputs (7 bits) by up to 2^-7.
_TOLERANCE = 2.0**-9
_BFLOAT16_TOLERANCE = 2.0**-6

_HOW_TO_EXPORT = """Give the exported tf.Module three tf.functions and write it with tf.saved_model.save:
    serve(x) -> logits [N, K]
    probe(x) -> {"penultimate": [N, d], "logits": [N, K]}
    templates() -> {"kernel": [d, K], "bias": [K]}
with penultimate @ kernel + bias == logits, as ls_keras.experiment.export does."""


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

    The SavedModel needs the endpoints `serve(x)`, `probe(x)` and `templates()`, as functions or as
    signatures. The template of class k is column k of the last layer's kernel, and

        penultimate @ kernel + bias == logits

    is checked on the first batch of `collect`: to 2^-9 of `|penultimate| @ |kernel| + |bias|` in float32 (as
    graphics processors may round to 10 bits) and to 2^-6 where activations or logits are bfloat16.

    Args:
        network: folder of the SavedModel, or an object with the three functions.

    Attributes:
        kernel: float `[d, K]`, a template per column.
        bias: float `[K]`.
        num_classes: K.

    Raises:
        FileNotFoundError: No SavedModel at `path`.
        ValueError: An endpoint is missing, or the templates are not a finite kernel and bias that fit.

    Example:

    >>> network = Probe("saved_models/mnist_mlp/digits/saved_model")
    >>> held_out = network.collect(data.evaluation("held_out", batch_size=500))
    >>> held_out.logits.shape, network.kernel.shape
    ((300, 10), (1200, 10))
    """

    def __init__(self, network: Any) -> None:
        if isinstance(network, str | Path):
            self.name, network = f"SavedModel at {network}", _loaded(Path(network))
        else:
            self.name = "network in memory"
        # Functions live as long as the object they were loaded with.
        self._network = network
        self._endpoints = {name: _endpoint(network, name) for name in ENDPOINTS}
        missing = [name for name, function in self._endpoints.items() if function is None]
        if missing:
            raise ValueError(
                f"The {self.name} has no endpoint {', '.join(missing)}; it has "
                f"{', '.join(_found(network)) or 'none at all'}. {_HOW_TO_EXPORT}"
            )
        self.kernel, self.bias = self._templates()
        self.num_classes = self.kernel.shape[1]

    def serve(self, x: Any) -> np.ndarray:
        """Returns the logits float32 `[N, K]` of a batch of inputs."""
        logits = self._endpoints["serve"](tf.convert_to_tensor(x))
        if isinstance(logits, dict):  # a signature's only output, under a name of its own
            (logits,) = logits.values()
        return _float32(logits)

    def probe(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns the penultimate activations `[N, d]` and the logits `[N, K]`, float32, of a batch."""
        outputs = self._endpoints["probe"](tf.convert_to_tensor(x))
        if not (isinstance(outputs, dict) and {"penultimate", "logits"} <= set(outputs)):
            raise ValueError(
                f"Expected probe(x) of the {self.name} to return a dict with penultimate and "
                f"logits; got {list(outputs) if isinstance(outputs, dict) else type(outputs).__name__}. "
                f"{_HOW_TO_EXPORT}"
            )
        return _float32(outputs["penultimate"]), _float32(outputs["logits"])

    def collect(self, dataset: tf.data.Dataset, limit: int | None = None) -> Collected:
        """Returns activations, logits and labels of every example of a data set.

        Args:
            dataset: batches `(x, labels)` or `(x, labels, weight)`; rows of weight 0 (padding) are dropped.
            limit: at most so many examples, the first ones; None for all. An endless data set needs it.

        Returns:
            A `Collected`: float32 arrays, in memory once, and one of them twice while batches are joined.

        Raises:
            ValueError: No example, an endless data set without a limit, labels that are not integers
                `[batch]` in [0, K), logits with NaN or infinity, or a network whose penultimate activations
                and templates do not give its logits.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"Expected limit to be at least 1, or None for every example; got {limit}.")
        if limit is None and dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError("The data set is endless. Pass limit=, or an evaluation split.")
        penultimate, logits, labels, num_examples = [], [], [], 0
        for batch in dataset:
            x, label, kept = _unpacked(batch, self.num_classes)
            activation, logit = self.probe(x)
            if not labels:
                self._check_contract(x, activation, logit)
            kept = kept if limit is None else kept[: limit - num_examples]
            penultimate.append(activation[kept])
            logits.append(logit[kept])
            labels.append(label[kept])
            num_examples += len(kept)
            if num_examples == limit:
                break
        if num_examples == 0:
            raise ValueError("The data set has no example of weight above 0. Check the split and the filters.")
        return Collected(_joined(penultimate), _finite(_joined(logits)), _joined(labels))

    def logit_differences(self, dataset: tf.data.Dataset, pair: tuple[int, int]) -> np.ndarray:
        """Returns the difference of two logits for repeated draws of the same examples.

        Args:
            dataset: batches `(x, index)`; every index, the example that x is an augmented draw of, occurs
                equally often, in any order.
            pair: two classes (a, b).

        Returns:
            float64 `[N, L]`: logit a less logit b, a row for each index in ascending order and a column for
            each of its L draws, as `information.mutual_information` takes them.

        Raises:
            ValueError: A class that does not exist, a pair of equal classes, indices that occur unequally
                often, or logits with NaN or infinity.
        """
        first, second = pair
        if first == second or not all(0 <= label < self.num_classes for label in pair):
            raise ValueError(f"Expected a pair of different classes in [0, {self.num_classes}); got {tuple(pair)}.")
        logits, indices = [], []
        for x, index in dataset:
            logits.append(self.serve(x)[:, [first, second]])
            indices.append(np.asarray(index))
        if not indices:
            raise ValueError("The data set of draws is empty. Check the indices and the number of draws.")
        logits, indices = _finite(_joined(logits)).astype(float), _joined(indices)
        examples, counts = np.unique(indices, return_counts=True)
        if counts.min() != counts.max():
            raise ValueError(
                f"Expected as many draws of each example; index {examples[counts.argmin()]} occurs "
                f"{counts.min()} times, index {examples[counts.argmax()]} {counts.max()} times."
            )
        order = np.argsort(indices, kind="stable")
        return (logits[:, 0] - logits[:, 1])[order].reshape(len(examples), -1)

    def _templates(self) -> tuple[np.ndarray, np.ndarray]:
        outputs = self._endpoints["templates"]()
        if not (isinstance(outputs, dict) and {"kernel", "bias"} <= set(outputs)):
            raise ValueError(
                f"Expected templates() of the {self.name} to return a dict with kernel and bias; "
                f"got {list(outputs) if isinstance(outputs, dict) else type(outputs).__name__}. "
                f"{_HOW_TO_EXPORT}"
            )
        kernel, bias = (_at_least_float32(outputs[name]) for name in ("kernel", "bias"))
        if kernel.ndim != 2 or bias.shape != kernel.shape[1:] or kernel.shape[1] < 2:
            raise ValueError(
                "Expected a kernel of shape [d, K] and a bias of shape [K], K at least 2; got "
                f"{kernel.shape} and {bias.shape} from the {self.name}. {_HOW_TO_EXPORT}"
            )
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise ValueError(f"The templates of {self.name} hold NaN or infinity: its training diverged.")
        return kernel, bias

    def _check_contract(self, x: tf.Tensor, penultimate: np.ndarray, logits: np.ndarray) -> None:
        num_features, num_classes = self.kernel.shape
        if penultimate.shape[1:] != (num_features,) or logits.shape[1:] != (num_classes,):
            raise ValueError(
                f"Expected penultimate [N, {num_features}] and logits [N, {num_classes}], as the kernel has "
                f"shape {self.kernel.shape}; got {penultimate.shape} and {logits.shape}. {_HOW_TO_EXPORT}"
            )
        finite = np.isfinite(logits).all(axis=1)  # the others are counted and refused later
        penultimate, logits = penultimate[finite].astype(float), logits[finite]
        expected = penultimate @ self.kernel + self.bias
        size = np.abs(penultimate) @ np.abs(self.kernel) + np.abs(self.bias)
        half = _survives_bfloat16(penultimate) or _survives_bfloat16(logits)
        allowed = _BFLOAT16_TOLERANCE if half else _TOLERANCE
        for name, values in (("probe", logits), ("serve", self.serve(x)[finite])):
            error = np.abs(values - expected) / np.maximum(size, np.finfo(np.float32).tiny)
            if error.max(initial=0.0) > allowed:
                raise ValueError(
                    f"The logits of {name}(x) are not penultimate @ kernel + bias in the SavedModel at "
                    f"{self.name}: they differ by {error.max():.2g} of the terms' size, {allowed:.2g} is "
                    "allowed. Export the input of the very last dense layer, that layer's kernel and bias, "
                    "and logits without softmax."
                )


def _loaded(path: Path) -> Any:
    if not (path / "saved_model.pb").is_file():
        raise FileNotFoundError(
            f"No SavedModel at {path}: expected the file {path / 'saved_model.pb'}. Pass the folder that "
            "tf.saved_model.save wrote, for one of this package's runs its subfolder saved_model."
        )
    return tf.saved_model.load(str(path))


def _endpoint(loaded: Any, name: str) -> Callable | None:
    function = getattr(loaded, name, None)
    if callable(function):
        return function
    signature = getattr(loaded, "signatures", {}).get(name)
    if signature is None:
        return None
    inputs = list(signature.structured_input_signature[1])
    return lambda *arguments: signature(**dict(zip(inputs, arguments, strict=True)))


def _found(loaded: Any) -> list[str]:
    functions = [name for name in dir(loaded) if hasattr(getattr(loaded, name), "get_concrete_function")]
    return sorted({name for name in functions if not name.startswith("_")} | set(getattr(loaded, "signatures", ())))


def _unpacked(batch: Any, num_classes: int) -> tuple[tf.Tensor, np.ndarray, np.ndarray]:
    """Returns inputs, labels and the positions of the rows that count."""
    if not isinstance(batch, tuple) or len(batch) not in (2, 3):
        raise ValueError(
            "Expected a data set of batches (x, labels) or (x, labels, weight); got "
            f"{f'{len(batch)} elements' if isinstance(batch, tuple) else type(batch).__name__} a batch."
        )
    x, labels, *weight = batch
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"Expected integer labels of shape [batch]; got shape {labels.shape} and dtype {labels.dtype}. "
            "Batch the data set, and turn one-hot labels into integers with argmax(-1)."
        )
    kept = np.flatnonzero(weight[0]) if weight else np.arange(len(labels))
    outside = (labels[kept] < 0) | (labels[kept] >= num_classes)
    if outside.any():
        raise ValueError(
            f"Expected labels in [0, {num_classes}), the network's classes; got {labels[kept][outside][0]}. "
            "Is this the data set that the network was trained on?"
        )
    return x, labels.astype(np.int64), kept


def _finite(logits: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(logits)} rows of logits hold NaN or infinity, the first is row {bad[0]}. "
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


def _survives_bfloat16(values: np.ndarray) -> bool:
    # bfloat16 is the upper half of a float32.
    return not (values.astype(np.float32).view(np.uint32) & 0xFFFF).any()
