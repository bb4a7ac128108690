"""Reading: a SavedModel or a network in memory, called with whatever means what its functions take."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

# How far penultimate @ kernel + bias may lie from the logits, as a share of |penultimate| @ |kernel| + |bias|:
# products of TensorFloat-32 inputs (10 bits) err by up to 2^-10, of bfloat16 inputs (7 bits) by up to 2^-7.
_TOLERANCE = 2.0**-9
_BFLOAT16_TOLERANCE = 2.0**-6
# Variables that Keras 3.15 numbers in the order of a set, each of which it also lists in order.
_UNORDERED = "_all_variables/"
# Attributes of operations that name or place things.
_NAMES = ("shared_name", "container", "debug_name", "config_proto", "config", "executor_type")

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
    """Load a SavedModel, or say what is wrong with its folder.

    Args:
        path: Folder that holds `saved_model.pb`.

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


def digest(path: str | Path) -> str | None:
    """Return sixteen hexadecimal digits that say what a SavedModel computes, wherever and whenever it was written.

    They change with any weight, constant, operation or input and output of its functions. Two trainings that end in
    the same numbers give the same digits, though the bytes of their files differ: TensorFlow numbers functions, and
    Keras variables, in the order of the day.

    Args:
        path: The SavedModel's folder.

    Returns:
        The digits, or None if there is no SavedModel.

    Raises:
        ValueError: It is damaged or incomplete.
    """
    path = Path(path)
    if not (path / "saved_model.pb").is_file():
        return None
    parts = []
    try:
        program = SavedModel.FromString((path / "saved_model.pb").read_bytes())
        for graph in program.meta_graphs:
            nodes = [*graph.graph_def.node]
            for function in graph.graph_def.library.function:
                nodes += function.node_def
            parts += map(_operation, nodes)
            for name, signature in graph.signature_def.items():
                for inputs_or_outputs in (signature.inputs, signature.outputs):
                    parts += [
                        f"{name} {key} {tensor.dtype} {[axis.size for axis in tensor.tensor_shape.dim]}".encode()
                        for key, tensor in inputs_or_outputs.items()
                    ]
        if (path / "variables").is_dir():
            variables = tf.train.load_checkpoint(str(path / "variables" / "variables"))
            for name, shape in variables.get_variable_to_shape_map().items():
                if not name.startswith(_UNORDERED) and name != "_CHECKPOINTABLE_OBJECT_GRAPH":
                    values = np.asarray(variables.get_tensor(name))
                    content = str(values.tolist()).encode() if values.dtype == object else values.tobytes()
                    parts.append(f"{name} {values.dtype} {shape} {hashlib.sha256(content).hexdigest()}".encode())
        for asset in sorted(each for each in (path / "assets").glob("*") if each.is_file()):
            parts.append(asset.name.encode() + asset.read_bytes())
    except (DecodeError, ValueError, tf.errors.OpError) as problem:
        raise ValueError(f"The SavedModel at {path} is damaged or incomplete: {reason(problem)}.") from problem
    return hashlib.sha256(b"\n".join(sorted(parts))).hexdigest()[:16]


def _operation(node: Any) -> bytes:
    """Return what an operation computes, without the names that differ from one writing to the next."""
    kept = [
        f"{name} {value}"
        for name, value in sorted(node.attr.items())
        if not name.startswith("_") and name not in _NAMES and value.WhichOneof("value") not in ("func", "tensor")
    ]
    constant = node.attr["value"].tensor if node.op == "Const" else None
    if constant is not None and constant.dtype != tf.string.as_datatype_enum:  # these hold names of variables
        kept.append(str(constant))
    return f"{node.op} {kept}".encode()


def disagreement(penultimate: np.ndarray, logits: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> str | None:
    """Return by how much logits `[..., K]` are not penultimate `[..., d]` @ kernel + bias; None where they are.

    Allowed are 2^-9 of `|penultimate| @ |kernel| + |bias|` in float32, as graphics processors may round to 10 bits, and
    2^-6 where activations or logits are bfloat16.
    """
    penultimate, logits = (values.reshape(-1, values.shape[-1]) for values in (penultimate.astype(float), logits))
    size = np.abs(penultimate) @ np.abs(kernel) + np.abs(bias)
    half = _survives_bfloat16(penultimate) or _survives_bfloat16(logits)
    allowed = _BFLOAT16_TOLERANCE if half else _TOLERANCE
    error = np.abs(logits - (penultimate @ kernel + bias)) / np.maximum(size, np.finfo(np.float32).tiny)
    if (error <= allowed).all():  # NaN is no agreement
        return None
    return f"they differ by {error.max():.2g} of the terms' size, {allowed:.2g} is allowed"


def _survives_bfloat16(values: np.ndarray) -> bool:
    # bfloat16 is the upper half of a float32.
    return not (values.astype(np.float32).view(np.uint32) & 0xFFFF).any()


class Endpoint:
    """A function of one batch of inputs, called with whatever means the same as what its signature takes.

    Inputs are one array `[n, ...]` or, of a function of several, a dictionary of such arrays by name. Floats are cast
    to the signature's precision, whole numbers to its type if they fit. A signature of a fixed batch size is given any
    number of rows in turn: copies of the last row fill the last batch, and what they give is dropped. A function
    without a signature gets its inputs as they are.

    Args:
        function: A `tf.function`, one of a loaded SavedModel's functions or signatures, or any other function of a
            tensor or a dictionary of them.
        name: What messages call it.
        network: What the function was loaded with, and lives as long as.

    Raises:
        ValueError: The function takes several inputs that are not in one dictionary or have no names.

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
        """Shape and type of the one input; None where the function does not say, or takes several."""
        specs = list(self._traces[0].specs.values()) if self._traces else []
        return specs[0] if len(specs) == 1 else None

    def __call__(self, x: Any) -> Any:
        """Return the function's outputs, with a row for each row of x.

        Args:
            x: Array, tensor or nested lists, `[n, ...]`, or a dictionary of them.

        Raises:
            ValueError: No signature takes such inputs, or the function fails on them.
        """
        x = self.fitted(x)
        try:
            return self._run(x)
        except tf.errors.ResourceExhaustedError:
            raise
        except (ValueError, TypeError, tf.errors.OpError) as problem:
            raise ValueError(f"{self.name} fails on inputs of {_kind(_by_name(x))}: {reason(problem)}") from problem

    def fitted(self, x: Any) -> Any:
        """Return inputs as the function takes them, in whatever number of rows: a tensor, or several by name.

        Raises:
            ValueError: No signature takes such inputs.
        """
        tensors = {name: self._tensor(values) for name, values in _by_name(x).items()}
        lengths = {str(each.shape[0]) for each in tensors.values() if each.shape.rank}
        if len(lengths - {"None"}) > 1:
            raise ValueError(f"{self.name} takes as many rows of each input; received {_kind(tensors)}.")
        if self._traces and not self._trace_of(tensors):
            tensors = self._cast(tensors)
        return tensors if isinstance(x, Mapping) else tensors[""]

    def _tensor(self, values: Any) -> tf.Tensor:
        try:
            if isinstance(values, np.ma.MaskedArray):
                raise TypeError("its mask would be lost; drop the masked rows")
            return tf.convert_to_tensor(values)
        except (ValueError, TypeError, OverflowError) as problem:
            raise ValueError(
                f"{self.name} takes one array of inputs; received {type(values).__name__}: {reason(problem)}"
            ) from problem

    def _cast(self, tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for trace in self._traces:
            pairs = trace.paired(tensors)
            if pairs and all(_same_rows(spec.shape, x.shape) and _means_the_same(x, spec.dtype) for x, spec in pairs):
                cast = [tf.cast(x, spec.dtype) for x, spec in pairs]
                return dict(zip(tensors, cast, strict=True))
        takes = " or ".join(dict.fromkeys(_kind(trace.specs) for trace in self._traces))
        raise ValueError(
            f"{self.name} takes inputs of {takes}; received {_kind(tensors)}. {_advice(self._traces[0], tensors)}"
        )

    def _trace_of(self, tensors: dict[str, tf.Tensor]) -> "_Trace | None":
        """Return the trace that takes inputs in one call or, without one, in turn."""
        fitting = []
        for trace in self._traces:
            pairs = trace.paired(tensors)
            if pairs and all(spec.dtype == x.dtype for x, spec in pairs):
                fitting.append((trace, pairs))
        for takes in (
            lambda spec, x: spec.shape.is_compatible_with(x.shape),
            lambda s, x: _same_rows(s.shape, x.shape),
        ):
            for trace, pairs in fitting:
                if all(takes(spec, x) for x, spec in pairs):
                    return trace
        return None

    def _run(self, x: Any) -> Any:
        tensors = _by_name(x)
        trace = self._trace_of(tensors)
        if trace is None:
            return self._function(x)
        first = next(iter(tensors.values()))
        size = trace.batch_size()
        if size is None or size == first.shape[0]:
            return trace.call(self._function, tensors)
        rows = tf.shape(first)[0]

        def in_batches(values: tf.Tensor) -> tf.Tensor:
            filled = tf.concat([values, tf.repeat(values[-1:], -rows % size, axis=0)], axis=0)
            return tf.reshape(filled, tf.concat([[-1, size], tf.shape(values)[1:]], axis=0))

        def of_batch(batch: dict[str, tf.Tensor]) -> Any:
            fixed = {name: tf.ensure_shape(each, [size, *tensors[name].shape[1:]]) for name, each in batch.items()}
            return trace.call(self._function, fixed)

        batches = {name: in_batches(values) for name, values in tensors.items()}
        outputs = tf.map_fn(of_batch, batches, fn_output_signature=trace.output_specs())
        return tf.nest.map_structure(lambda y: tf.reshape(y, tf.concat([[-1], tf.shape(y)[2:]], 0))[:rows], outputs)


def function(network: Any, name: str) -> Callable[..., Any] | None:
    """Return the function of that name or, without one, the signature; None if a network has neither."""
    found = getattr(network, name, None)
    return found if callable(found) else getattr(network, "signatures", {}).get(name)


def function_names(network: Any) -> list[str]:
    """Return the names of the functions and signatures that a network has."""
    names = [name for name in dir(network) if hasattr(getattr(network, name, None), "get_concrete_function")]
    return sorted({name for name in names if not name.startswith("_")} | set(getattr(network, "signatures", ())))


def logits_of(outputs: Any, name: str) -> tf.Tensor:
    """Return the logits among the outputs of a function: the one that is named so, or the only one.

    Args:
        outputs: A tensor, or a dictionary or list of them.
        name: What messages call the function.

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
    """Return inputs on which any network may be tried out.

    Args:
        shape: Of the whole batch.
        dtype: Floats are drawn from [0, 1), where logarithms, roots and pixels live; whole numbers are 0 and 1, which
            every vocabulary holds, and strings their digits. The first of a row is 1: a row of pads alone has no mean.
    """
    noise = np.random.default_rng(0).random(shape)
    if dtype.is_floating:
        return tf.cast(noise, dtype)
    if len(shape) > 1:
        noise[..., 0] = 0.0
    digits = tf.cast(noise < 1 / 2, tf.int32)
    return tf.strings.as_string(digits) if dtype == tf.string else tf.cast(digits, dtype)


def reason(problem: BaseException) -> str:
    """Return an error's message in one line, without the places in TensorFlow's graph."""
    text = re.sub(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*?\]", "", str(problem))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(_PLACES)] or [type(problem).__name__]
    return told[0].rstrip(".")


class _Trace(NamedTuple):
    """What a function takes: one tensor or several by name ("" of the one without), among constant arguments."""

    source: Callable[..., Any]
    specs: dict[str, tf.TensorSpec]
    arguments: tuple[tuple, dict]

    def paired(self, tensors: dict[str, tf.Tensor]) -> list[tuple[tf.Tensor, tf.TensorSpec]] | None:
        """Return each tensor with its specification; None where they are called by other names."""
        if len(tensors) == len(self.specs) == 1 and "" in (*tensors, *self.specs):
            return [*zip(tensors.values(), self.specs.values(), strict=True)]
        if set(tensors) != set(self.specs):
            return None
        return [(x, self.specs[name]) for name, x in tensors.items()]

    def batch_size(self) -> int | None:
        return next((spec.shape[0] for spec in self.specs.values() if spec.shape.rank and spec.shape[0]), None)

    def call(self, function: Callable[..., Any], tensors: dict[str, tf.Tensor]) -> Any:
        inputs = iter(tensors.values() if len(tensors) == 1 else [tensors[name] for name in self.specs])
        leaves = [next(inputs) if isinstance(leaf, tf.TypeSpec) else leaf for leaf in tf.nest.flatten(self.arguments)]
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
    # Structures are flattened in the order of their sorted names.
    holders = [each for each in (*positional, named) if isinstance(each, Mapping) and tf.nest.flatten(each)]
    names = sorted(holders[0]) if len(holders) == 1 else [""]
    if len(names) != len(inputs) or not all(isinstance(each, tf.TensorSpec) for each in inputs):
        raise ValueError(
            f"{name} takes {len(inputs)} inputs ({', '.join(str(getattr(each, 'name', each)) for each in inputs)}); "
            "expected one tensor, or one dictionary of tensors. Export a function of one input."
        )
    return _Trace(source, dict(zip(names, inputs, strict=True)), arguments)


def _by_name(x: Any) -> dict[str, Any]:
    return dict(x) if isinstance(x, Mapping) else {"": x}


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


def _advice(trace: _Trace, tensors: dict[str, tf.Tensor]) -> str:
    pairs = trace.paired(tensors)
    if pairs is None:
        names = ", ".join(filter(None, trace.specs))
        return f"Name the inputs {names}, in one dictionary." if names else "Give one array."
    x, spec = next((x, s) for x, s in pairs if not (_same_rows(s.shape, x.shape) and _means_the_same(x, s.dtype)))
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


def _kind(tensors: Mapping[str, tf.Tensor | tf.TensorSpec]) -> str:
    named = ((f"{name}: " if name and len(tensors) > 1 else "", each) for name, each in tensors.items())
    return "; ".join(f"{name}shape {_shape(each)} and type {each.dtype.name}" for name, each in named)


def _shape(tensor: tf.Tensor | tf.TensorSpec) -> str:
    if tensor.shape.rank is None:
        return "[…]"
    return f"[{', '.join('n' if size is None else str(size) for size in tensor.shape)}]"
