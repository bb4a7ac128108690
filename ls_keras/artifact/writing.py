"""Exporting: what of a Keras model the contract describes, checked by trying it out, and written whole."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ls_keras import files, keras_hooks
from ls_keras.artifact import reading

import keras
import numpy as np
import tensorflow as tf

# Rows on which a network is tried out before it is exported, and sizes that free axes take, until one runs.
_TRIAL_ROWS = 8
_TRIAL_SIZES = (32, 299)


@dataclasses.dataclass(frozen=True)
class Endpoints:
    """What an exported network answers to; see `export`."""

    network: keras.Model
    serve: Callable[[tf.Tensor], tf.Tensor]
    probe: Callable[[tf.Tensor], dict[str, tf.Tensor]]
    templates: Callable[[], dict[str, tf.Tensor]]


class _Head(NamedTuple):
    """Where a model's logits come from: its inputs, tensors on the way to the output, and the last two layers."""

    inputs: keras.KerasTensor | dict[str, keras.KerasTensor]
    before: keras.KerasTensor
    scores: keras.KerasTensor
    output: keras.KerasTensor
    penultimate: keras.Layer
    logits: keras.Layer

    def templates(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Return kernel `[d, K]` and bias `[K]`, float32."""
        layer, bias = self.logits, None
        if isinstance(layer, keras.layers.ReversibleEmbedding):
            kernel = tf.transpose(layer.embeddings) if layer.tie_weights else layer.reverse_embeddings
        else:
            kernel, bias = layer.kernel, layer.bias
        kernel = tf.cast(kernel, tf.float32)
        return kernel, tf.zeros(kernel.shape[1]) if bias is None else tf.cast(bias, tf.float32)


def export(model: keras.Model, path: Path) -> None:
    """Write a SavedModel with the endpoints that `analysis.Probe` reads, of a model that they describe whole.

    `serve(x)` gives logits `[n, K]`; `probe(x)` gives `{"penultimate": [n, d], "logits": [n, K]}`;
    `templates()` gives the last layer, `{"kernel": [d, K], "bias": [K]}`. All are float32, in inference
    mode, and penultimate @ kernel + bias == logits == model(x). Of a network of sequences, penultimate activations and
    logits have the axes of its positions, too. x is a dictionary where the model's `input` is one.

    Args:
        model: Any Keras model with one input, or several in a dictionary, and the layers `penultimate` and, after it,
            `logits`, whose output is the model's or, of several, the one named `logits`. `logits` is a Dense layer, or
            a `keras.layers.ReversibleEmbedding` called with `reverse=True`, tied to the inputs or not. Between and
            behind them may stand what changes no value in inference mode, such as dropout. A fixed batch size stays
            one, and `Probe` fills it.
        path: Folder to write, in a folder that exists; it appears only when complete.

    Raises:
        ValueError: If the model lacks these layers, returns something else than penultimate @ kernel + bias on inputs
            that it is tried out on, or holds NaN. Nothing is written.
        OSError: If the folder cannot be written.
    """
    write(endpoints(model), Path(path))


def endpoints(model: keras.Model) -> Endpoints:
    """Return the functions that `export` writes, for `analysis.Probe` to read without a SavedModel.

    They see the model's weights as they are when called.

    Raises:
        ValueError: As `export`.

    Example:
        >>> network = models.mlp((8, 8, 1), 10)
        >>> Probe(endpoints(network)).num_classes
        10
    """
    head = _head(model)
    _check_weights(model)
    _check_values(model, head)
    both = keras.Model(head.inputs, {"penultimate": head.penultimate.output, "logits": head.output})
    signature = [_specification(head.inputs)]

    @tf.function(input_signature=signature, autograph=False)
    def probe(x: Any) -> dict[str, tf.Tensor]:
        return {name: tf.cast(value, tf.float32) for name, value in both(x, training=False).items()}

    @tf.function(input_signature=signature, autograph=False)
    def serve(x: Any) -> tf.Tensor:
        return probe(x)["logits"]

    @tf.function(input_signature=[], autograph=False)
    def templates() -> dict[str, tf.Tensor]:
        return dict(zip(("kernel", "bias"), head.templates(), strict=True))

    return Endpoints(both, serve, probe, templates)


def _specification(inputs: keras.KerasTensor | dict[str, keras.KerasTensor]) -> Any:
    if isinstance(inputs, dict):
        return {name: tf.TensorSpec(x.shape, x.dtype, name=name) for name, x in inputs.items()}
    return tf.TensorSpec(inputs.shape, inputs.dtype, name="x")


def write(module: Endpoints, path: Path) -> None:
    """Write a SavedModel of what `endpoints` gave, with the weights that the model has now, or raise OSError."""
    archive = keras.export.ExportArchive()
    archive.track(module.network)
    for name in ("serve", "probe", "templates"):
        function = getattr(module, name)
        archive.add_endpoint(name, function, input_signature=function.input_signature)
    with files.beside(path) as temporary, tensorflow_writes(path):
        archive.write_out(str(temporary), verbose=False)


@contextlib.contextmanager
def tensorflow_writes(path: Path) -> Iterator[None]:
    """Say of a full disk what Python would say."""
    try:
        yield
    except tf.errors.OpError as problem:
        reason = " ".join(problem.message.rpartition("}} ")[2].split())
        raise OSError(f"{path} cannot be written: {reason}") from problem


def _head(model: keras.Model) -> _Head:
    """Find the last layers of a model to be exported."""
    layers = {layer.name: layer for layer in model.layers}
    if not {"penultimate", "logits"} <= set(layers) or not isinstance(
        layers["logits"], keras.layers.Dense | keras.layers.ReversibleEmbedding
    ):
        raise ValueError(
            "To be exported, a model needs a layer named `penultimate` and a Dense layer named `logits`; received "
            + ", ".join(map(_named, layers.values()))
        )
    listed, named = getattr(model, "inputs", None) or (), getattr(model, "input", None)
    if len(listed) != 1 and not isinstance(named, dict):
        names = f", with inputs {', '.join(x.name for x in listed)}" if listed else ""
        raise ValueError(
            f"To be exported, a model must be functional with one input, or with a dictionary of inputs; received "
            f"{model.name}{names}."
        )
    inputs = named if isinstance(named, dict) else listed[0]
    output = _output(model)
    penultimate, logits = layers["penultimate"], layers["logits"]
    operations = keras.Model(inputs, output).operations
    if penultimate not in operations or logits not in operations:
        raise ValueError(f"The output of {model.name} does not depend on both `penultimate` and `logits`.")
    # By depth: what follows `penultimate` stands between it and the output. What embeds the inputs, too, stands there.
    weighty = [each for each in operations[operations.index(penultimate) + 1 :] if getattr(each, "weights", None)]
    tied = isinstance(logits, keras.layers.ReversibleEmbedding)
    activation = getattr(logits, "activation", keras.activations.linear)
    if weighty != ([] if tied and logits not in weighty else [logits]) or activation is not keras.activations.linear:
        raise ValueError(
            "`logits` must be a Dense layer without activation directly on `penultimate`, and the last layer with "
            f"weights; received {', '.join(map(_named, weighty))} with activation {activation.__name__}."
        )
    if len(keras_hooks.calls_of(penultimate)) == 1 and (call := _call_before(output, logits)):
        return _Head(inputs, call.input_tensors[0], call.output_tensors[0], output, penultimate, logits)
    raise ValueError(
        f"`penultimate` and `logits` of {model.name} must be called once each, on what comes from its input."
    )


def _call_before(output: keras.KerasTensor, layer: keras.Layer) -> Any:
    """Return the only call of a layer; of one that embeds the inputs too, the one that the output comes from."""
    calls = keras_hooks.calls_of(layer)
    while isinstance(layer, keras.layers.ReversibleEmbedding):
        operation, call = keras_hooks.call_that_made(output)
        if operation is layer or len(call.input_tensors) != 1:
            return call if operation is layer else None
        (output,) = call.input_tensors
    return calls[0] if len(calls) == 1 else None


def _output(model: keras.Model) -> keras.KerasTensor:
    if len(model.outputs) == 1:
        return model.outputs[0]
    outputs = (
        model.output if isinstance(model.output, dict) else dict(zip(model.output_names, model.outputs, strict=True))
    )
    if "logits" not in outputs:
        raise ValueError(
            f"{model.name} has several outputs, {', '.join(outputs)}, and none is named `logits`. Export "
            "keras.Model(model.input, outputs) with the logits alone."
        )
    return outputs["logits"]


def _named(operation: Any) -> str:
    return f"{operation.name} ({type(operation).__name__})"


def not_finite(model: keras.Model) -> list[str]:
    """Return the paths of the weights that hold NaN or infinity."""
    weights = zip(model.weights, model.get_weights(), strict=True)
    return [weight.path for weight, value in weights if not np.isfinite(value).all()]


def _check_weights(model: keras.Model) -> None:
    wrong = not_finite(model)
    if wrong:
        raise ValueError(
            f"All weights must be finite; NaN or infinity is in {len(wrong)} of {len(model.weights)}, "
            f"{', '.join(wrong[:3])} among them: training diverged."
        )


def _check_values(model: keras.Model, head: _Head) -> None:
    """Try a model out: what it returns must be penultimate @ kernel + bias."""
    penultimate, logits = head.penultimate, head.logits
    try:
        stages = keras.Model(head.inputs, [penultimate.output, head.before, head.scores, head.output])
    except ValueError as problem:
        raise ValueError(
            f"`penultimate` and `logits` of {model.name} must be called once each, on what comes from its input."
        ) from problem
    inputs, (features, last, scores, returned) = _tried(stages, head.inputs)
    for before, after, between in (
        (features, last, _between(stages, penultimate, None if logits not in stages.operations else logits)),
        (scores, returned, _between(stages, logits, None)),
    ):
        _check_unchanged(inputs, head.inputs, before, after, between)
    called = keras.tree.flatten(model(inputs, training=False))
    called = called[[each is head.output for each in model.outputs].index(True)]
    features, returned, called = (np.array(tf.cast(value, tf.float64)) for value in (features, returned, called))
    if not (np.isfinite(features).all() and np.isfinite(returned).all()):
        largest = max(np.abs(value).max(initial=0) for value in model.get_weights())
        raise ValueError(
            f"{model.name} returns NaN or infinity on inputs between 0 and 1; its largest weight is {largest:.2g}. "
            "Its training diverged, or it is not defined there."
        )
    kernel, bias = (value.numpy() for value in head.templates())
    for scores, whose in ((returned, "penultimate @ kernel + bias"), (called, f"{model.name}(x)")):
        difference = reading.disagreement(features, scores, kernel, bias)
        if difference:
            raise ValueError(
                f"What the layers of {model.name} return is not {whose} ({difference}): `logits` must be a Dense layer "
                "without activation directly on `penultimate`, and what it returns the model's output, the same at "
                "every call."
            )


def _between(model: keras.Model, first: keras.Layer, last: keras.Layer | None) -> list[Any]:
    operations = model.operations
    return operations[operations.index(first) + 1 : None if last is None else operations.index(last)]


def _tried(model: keras.Model, x: Any, size: int = _TRIAL_SIZES[0]) -> tuple[Any, list[tf.Tensor]]:
    """Return inputs that a model runs on, and what it makes of them."""
    shapes = keras.tree.map_structure(
        lambda each: keras.KerasTensor(
            (each.shape[0] or _TRIAL_ROWS, *(n or size for n in each.shape[1:])), each.dtype
        ),
        x,
    )
    inputs = keras.tree.map_structure(lambda each: reading.trial_inputs(each.shape, tf.as_dtype(each.dtype)), shapes)
    free = any(None in each.shape[1:] for each in keras.tree.flatten(x))
    try:
        if free:
            # A kernel larger than its image is refused here; TensorFlow's CPU kernels may return what memory held.
            model.compute_output_spec(shapes)
        return inputs, model(inputs, training=False)
    except (ValueError, TypeError, tf.errors.OpError) as problem:
        if free and size != _TRIAL_SIZES[-1]:
            return _tried(model, x, _TRIAL_SIZES[-1])
        tried = ", ".join(f"shape {each.shape} and type {each.dtype}" for each in keras.tree.flatten(shapes))
        raise ValueError(
            f"The model fails on inputs of {tried}, on which it was tried out: {reading.reason(problem)}"
        ) from problem


def _check_unchanged(inputs: Any, x: Any, before: tf.Tensor, after: tf.Tensor, operations: list[Any]) -> None:
    if _same(before, after):
        return
    changing = [each for each in operations if not _same(before, keras.Model(x, each.output)(inputs, training=False))]
    raise ValueError(
        f"{', '.join(map(_named, changing[:1])) or 'The graph'} changes values behind `penultimate`: `logits` must be "
        "a Dense layer without activation directly on `penultimate`, and what it returns the model's output. Export "
        "the model without that layer; analysis.calibration.fit_temperature finds the temperature of its logits."
    )


def _same(one: tf.Tensor, other: tf.Tensor) -> bool:
    """Say whether two tensors hold the same values, but for the rounding of a cast."""
    if getattr(other, "shape", None) != one.shape or not (one.dtype.is_floating and other.dtype.is_floating):
        return False
    lower = min(one.dtype, other.dtype, key=lambda dtype: dtype.size)
    return np.array_equal(tf.cast(one, lower), tf.cast(other, lower), equal_nan=True)
