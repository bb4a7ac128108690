"""The functions of a SavedModel, or of a network in memory, called with whatever means what they take."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

# How lines begin that say where in a graph something failed, before the line that says what.
_PLACES = (
    "Graph execution error",
    "Detected at node",
    "<stack traces",
    "File ",
    "Node: ",
    "1 root",
    "2 root",
    "3 root",
)


def load(path: str | Path) -> Any:
    """Loads a SavedModel, or says what is wrong with its folder.

    Args:
        path: folder that holds `saved_model.pb`.

    Returns:
        What `tf.saved_model.load` returns.

    Raises:
        FileNotFoundError: No SavedModel in that folder.
        ValueError: It is damaged, incomplete or cannot be read.
    """
    program = Path(path) / "saved_model.pb"
    try:
        loaded = tf.saved_model.load(str(path)) if program.exists() else None
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as problem:  # a damaged program fails anywhere within TensorFlow, with any exception
        raise ValueError(
            f"The SavedModel at {path} is damaged, incomplete or cannot be read: {reason(problem)}. Export it again, "
            "or copy its whole folder, with variables/."
        ) from problem
    if loaded is None:
        raise FileNotFoundError(
            f"No SavedModel at {path}: expected the file {program}. Pass the folder that tf.saved_model.save wrote, "
            "for one of this package's runs its subfolder saved_model; a .keras file is to be exported first."
        )
    return loaded


class Endpoint:
    """A function of one batch of inputs, called with whatever means the same as what its signature takes.

    Floats are cast to the signature's precision, whole numbers to its type if they fit. A signature of a fixed batch
    size is given any number of rows in turn: copies of the last row fill the last batch, and what they give is
    dropped. A function without a signature gets its inputs as they are.

    Args:
        function: a `tf.function`, one of a loaded SavedModel's functions or signatures, or any other function of a
            tensor.
        name: what messages call it.
        network: what the function was loaded with, and lives as long as.

    Raises:
        ValueError: The function takes several inputs.

    Example:

    >>> square = tf.function(lambda x: x**2, input_signature=[tf.TensorSpec([2, 1])])
    >>> Endpoint(square, "square(x)")(np.array([[1.0], [2.0], [3.0]])).numpy().ravel()  # float64, three rows
    array([1., 4., 9.], dtype=float32)
    """

    def __init__(self, function: Callable[..., Any], name: str, network: Any = None) -> None:
        self.name, self._function, self._network = name, function, network
        self._traces = [_trace(source, *signature, name) for source, signature in _signatures(function)]

    @property
    def spec(self) -> tf.TensorSpec | None:
        """Shape and type of the inputs; None where the function does not say."""
        return self._traces[0].spec if self._traces else None

    def __call__(self, x: Any) -> Any:
        """Returns the function's outputs, with a row for each row of x.

        Args:
            x: array, tensor or nested lists, `[n, ...]`.

        Raises:
            ValueError: No signature takes such inputs, or the function fails on them.
        """
        x = self.fitted(x)
        try:
            return self._run(x)
        except tf.errors.ResourceExhaustedError:
            raise
        except (ValueError, TypeError, tf.errors.OpError) as problem:
            raise ValueError(f"{self.name} fails on inputs of {_kind(x)}: {reason(problem)}") from problem

    def fitted(self, x: Any) -> tf.Tensor:
        """Returns inputs as the function takes them, in whatever number of rows.

        Raises:
            ValueError: No signature takes such inputs.
        """
        try:
            if isinstance(x, np.ma.MaskedArray):
                raise TypeError("its mask would be lost; drop the masked rows")
            x = tf.convert_to_tensor(x)
        except (ValueError, TypeError, OverflowError) as problem:
            raise ValueError(
                f"{self.name} takes one array of inputs; received {type(x).__name__}: {reason(problem)}"
            ) from problem
        if not self._traces or self._trace_of(x):
            return x
        for trace in self._traces:
            if _same_rows(trace.spec.shape, x.shape) and _means_the_same(x, trace.spec.dtype):
                return tf.cast(x, trace.spec.dtype)
        takes = " or ".join(dict.fromkeys(_kind(trace.spec) for trace in self._traces))
        raise ValueError(f"{self.name} takes inputs of {takes}; received {_kind(x)}. {_advice(x, self.spec)}")

    def _trace_of(self, x: tf.Tensor) -> "_Trace | None":
        """The trace that takes x in one call or, without one, x in turn."""
        fitting = [trace for trace in self._traces if trace.spec.dtype == x.dtype]
        whole = [trace for trace in fitting if trace.spec.shape.is_compatible_with(x.shape)]
        return next(iter(whole + [trace for trace in fitting if _same_rows(trace.spec.shape, x.shape)]), None)

    def _run(self, x: tf.Tensor) -> Any:
        trace = self._trace_of(x)
        if trace is None:
            return self._function(x)
        size = trace.spec.shape[0] if trace.spec.shape.rank else None
        if size is None or size == x.shape[0]:
            return trace.call(self._function, x)
        rows = tf.shape(x)[0]
        filled = tf.concat([x, tf.repeat(x[-1:], -rows % size, axis=0)], axis=0)
        batches = tf.reshape(filled, tf.concat([[-1, size], tf.shape(x)[1:]], axis=0))
        outputs = tf.map_fn(
            lambda batch: trace.call(self._function, tf.ensure_shape(batch, [size, *x.shape[1:]])),
            batches,
            fn_output_signature=trace.output_specs(),
        )
        return tf.nest.map_structure(lambda y: tf.reshape(y, tf.concat([[-1], tf.shape(y)[2:]], 0))[:rows], outputs)


def function(network: Any, name: str) -> Callable[..., Any] | None:
    """Returns the function of that name or, without one, the signature; None if a network has neither."""
    found = getattr(network, name, None)
    return found if callable(found) else getattr(network, "signatures", {}).get(name)


def function_names(network: Any) -> list[str]:
    """Returns the names of the functions and signatures that a network has."""
    names = [name for name in dir(network) if hasattr(getattr(network, name, None), "get_concrete_function")]
    return sorted({name for name in names if not name.startswith("_")} | set(getattr(network, "signatures", ())))


def logits_of(outputs: Any, name: str) -> tf.Tensor:
    """Returns the logits among the outputs of a function: the one that is named so, or the only one.

    Args:
        outputs: a tensor, or a dictionary or list of them.
        name: what messages call the function.

    Raises:
        ValueError: There are several outputs, and none is named `logits`.
    """
    if isinstance(outputs, list | tuple):
        outputs = {f"number {index}": output for index, output in enumerate(outputs)}
    if not isinstance(outputs, dict):
        return outputs
    if "logits" not in outputs and len(outputs) != 1:
        named = ", ".join(f"{key} {_shape(tf.nest.flatten(output)[0])}" for key, output in outputs.items())
        raise ValueError(
            f"{name} returns {len(outputs)} outputs, {named}, and none is named `logits`. Export the logits alone, or "
            'a dictionary {"logits": …}.'
        )
    return outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))


def trial_inputs(shape: tuple[int, ...], dtype: tf.DType) -> tf.Tensor:
    """Returns inputs on which any network may be tried out.

    Args:
        shape: of the whole batch.
        dtype: floats are drawn from [0, 1), where logarithms, roots and pixels live; whole numbers are 0 and 1, which
            every vocabulary holds, and strings their digits.
    """
    noise = np.random.default_rng(0).random(shape)
    if dtype.is_floating:
        return tf.cast(noise, dtype)
    digits = tf.cast(noise < 1 / 2, tf.int32)
    return tf.strings.as_string(digits) if dtype == tf.string else tf.cast(digits, dtype)


def reason(problem: BaseException) -> str:
    """Returns an error's message in one line, without the places in TensorFlow's graph."""
    text = re.sub(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*?\]", "", str(problem))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(_PLACES)] or [type(problem).__name__]
    return told[0].rstrip(".")


class _Trace(NamedTuple):
    """What a function takes: one tensor, and the arguments among which it stands."""

    source: Callable[..., Any]
    spec: tf.TensorSpec
    arguments: tuple[tuple, dict]

    def call(self, function: Callable[..., Any], x: tf.Tensor) -> Any:
        leaves = [x if leaf is self.spec else leaf for leaf in tf.nest.flatten(self.arguments)]
        positional, named = tf.nest.pack_sequence_as(self.arguments, leaves)
        return function(*positional, **named)

    def output_specs(self) -> Any:
        traced = self.source if hasattr(self.source, "structured_outputs") else self.source.get_concrete_function()
        return tf.nest.map_structure(
            lambda output: tf.TensorSpec(output.shape, output.dtype), traced.structured_outputs
        )


def _trace(source: Callable[..., Any], positional: tuple, named: dict, name: str) -> _Trace:
    arguments = (tuple(positional), named)
    inputs = [leaf for leaf in tf.nest.flatten(arguments) if isinstance(leaf, tf.TypeSpec)]
    if len(inputs) != 1 or not isinstance(inputs[0], tf.TensorSpec):
        raise ValueError(
            f"{name} takes {len(inputs)} inputs ({', '.join(str(getattr(each, 'name', each)) for each in inputs)}); "
            "expected one tensor. Export a function of one input."
        )
    return _Trace(source, inputs[0], arguments)


def _signatures(function: Callable[..., Any]) -> list[tuple[Callable[..., Any], tuple[tuple, dict]]]:
    traces = getattr(function, "concrete_functions", None)  # of a restored function
    if traces is None and hasattr(function, "structured_input_signature"):
        traces = [function]
    if traces is not None:
        return [(trace, trace.structured_input_signature) for trace in traces]
    declared = getattr(function, "input_signature", None)
    return [] if declared is None else [(function, (declared, {}))]


def _same_rows(expected: tf.TensorShape, received: tf.TensorShape) -> bool:
    if expected.rank is None or received.rank is None:
        return True
    return expected.rank == received.rank > 0 and expected[1:].is_compatible_with(received[1:])


def _means_the_same(x: tf.Tensor, dtype: tf.DType) -> bool:
    if x.dtype == dtype or (x.dtype.is_floating and dtype.is_floating):
        return True
    if not (x.dtype.is_integer and dtype.is_integer):
        return False
    if dtype.size > x.dtype.size and dtype.is_unsigned <= x.dtype.is_unsigned:
        return True
    if not tf.executing_eagerly():
        return dtype in (tf.int32, tf.int64)
    values = x.numpy()
    return values.size == 0 or (dtype.min <= values.min() and values.max() <= dtype.max)


def _advice(x: tf.Tensor, spec: tf.TensorSpec) -> str:
    rank = spec.shape.rank
    if rank and x.shape.rank == rank - 1 and spec.shape[1:].is_compatible_with(x.shape):
        return "Of a single example, give x[None], a batch of one."
    if not _same_rows(spec.shape, x.shape):
        return "Are these inputs of the data set that the network was trained on?"
    if x.dtype.is_integer and spec.dtype.is_floating:
        return "Scale them as for training, for example x / 255, or cast whole numbers that are meant as they are."
    if x.dtype.is_integer and spec.dtype.is_integer:
        return f"Values must lie between {spec.dtype.min} and {spec.dtype.max}."
    return f"Give it {spec.dtype.name}, as for training."


def _kind(tensor: tf.Tensor | tf.TensorSpec) -> str:
    return f"shape {_shape(tensor)} and type {tensor.dtype.name}"


def _shape(tensor: tf.Tensor | tf.TensorSpec) -> str:
    if tensor.shape.rank is None:
        return "[…]"
    return f"[{', '.join('n' if size is None else str(size) for size in tensor.shape)}]"
