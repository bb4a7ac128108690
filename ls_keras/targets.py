"""How labels, predictions and weights are read, by losses and metrics alike.

What cannot mean what it must is refused with a sentence: shapes and types always, values where they can be seen
(NumPy arrays, lists, eager tensors). Inside a compiled step, where no sentence can be raised, it becomes NaN.
"""

import math
import numbers
from typing import Any, NamedTuple

from ls_keras import keras_hooks

import keras
import numpy as np
from keras import ops

# A softmax rounded to bfloat16, of 8 bits, sums to 1 within 2⁻⁸; one of float32 within some 2⁻²⁴.
_LOOSE, _TIGHT = 2.0**-8, 1e-5
# Of K numbers rounded to two decimals, up to K/200 may be lost.
_LOSS_OF_TWO_DECIMALS, _LOOSEST = 1 / 200, 0.1
# Rows that are looked at for probabilities.
_SAMPLE = 8
# With so many free numbers, chance alone does not let every row sum to 1 within the loose bound.
_MUCH_EVIDENCE = 16
# One-hot and soft rows may be typed by hand: 0.333, 0.333, 0.333.
_TARGET_SUM = 2e-3
# Whole numbers from here on are rounded.
_FIRST_LOST = {"float16": 2**11, "bfloat16": 2**8}
# Operations of a layer without activation: what they make are logits.
_AFFINE = {"Add", "AddV2", "BiasAdd", "MatMul"}
# Operations that leave values as they are, between a softmax and the output of a model.
_PASSING = {"Cast", "Identity", "Reshape", "Squeeze", "StopGradient"}


class Labels(NamedTuple):
    """Labels as read beside logits `[..., K]`; of `indices` and `targets` one is None.

    Attributes:
        indices: Whole numbers `[...]`, 0 where a label is no class.
        targets: Distributions `[..., K]`.
        fault: `[...]`, 0, or NaN where a label is no class or a row no distribution.
    """

    indices: Any
    targets: Any
    fault: Any


def num_classes(logits: Any) -> Any:
    """Return K, the last axis of logits: an integer, or a scalar tensor where the shape leaves it open."""
    size = logits.shape[-1]
    return ops.shape(logits)[-1] if size is None else size


def have_columns(y_true: Any, y_pred: Any) -> bool:
    """Say whether labels have a column per class (one-hot or soft targets) or are class indices.

    Args:
        y_true: Class indices `[...]` or `[..., 1]`, or targets `[..., K]`.
        y_pred: Predictions `[..., K]`.

    Raises:
        ValueError: If the shapes do not fit, K is 1, or labels or predictions are not numbers.

    Example:
        >>> have_columns([2, 0], [[0.0, 1.0, 5.0], [3.0, 0.0, 0.0]])
        False
    """
    labels, predictions = tuple(np.shape(y_true)), tuple(np.shape(y_pred))
    for name, value in (("Labels", y_true), ("Predictions", y_pred)):
        if not _is_real(value):
            raise ValueError(f"{name} must be real numbers; received {_type(value)}.")
    if len(predictions) < 2:
        raise ValueError(f"Logits must have shape [..., num_classes] with a batch axis; received {predictions}.")
    if predictions[-1] == 1:
        raise ValueError(
            f"Predictions have one column, shape {predictions}, and the softmax of one logit is always 1. Give a "
            "binary classifier two logits, Dense(2)."
        )
    if len(labels) == len(predictions):
        if labels[-1] == predictions[-1] is not None:
            return True
        if labels[-1] != 1 and None in (labels[-1], predictions[-1]):
            raise ValueError(
                f"Labels {labels} beside logits {predictions}: indices, or one column per class? Leave the last axis "
                "of indices away, or give both a known number of classes."
            )
        labels = labels[:-1] if labels[-1] == 1 else labels
    if len(labels) != len(predictions) - 1 or not _agree(labels, predictions[:-1]):
        raise ValueError(
            f"Labels must have the logits' shape without the last axis (class indices) or with it (one-hot or "
            f"soft targets); received labels {tuple(np.shape(y_true))} and logits {predictions}."
        )
    return False


def read_labels(y_true: Any, y_pred: Any) -> Labels:
    """Read labels of any kind beside predictions `[..., K]`.

    Class indices are read as they come, before any cast, so that no precision of a loss can change them.

    Args:
        y_true: Class indices `[...]` or `[..., 1]`, of any type that holds whole numbers, or one-hot or soft targets
            `[..., K]` whose rows sum to 1.
        y_pred: Predictions `[..., K]`, whose type targets and `fault` take.

    Raises:
        ValueError: As `have_columns`, or if labels are in a half precision that cannot hold every class.
    """
    columns = have_columns(y_true, y_pred)
    y_true, dtype = ops.convert_to_tensor(y_true), y_pred.dtype
    floating = keras.backend.is_float_dtype(y_true.dtype)
    if columns:
        targets = y_true if floating else ops.cast(y_true, dtype)
        return Labels(None, ops.cast(targets, dtype), _nan_unless(_are_distributions(targets, _TARGET_SUM), dtype))
    if len(y_true.shape) == len(y_pred.shape):
        y_true = ops.squeeze(y_true, -1)
    _check_half(y_true, y_pred)
    labels = y_true if floating else _widened(y_true)
    valid = ops.logical_and(labels >= 0, labels < ops.cast(num_classes(y_pred), labels.dtype))
    if floating:
        valid = ops.logical_and(valid, ops.equal(labels, ops.floor(labels)))
    labels = ops.where(valid, labels, ops.zeros_like(labels))
    return Labels(ops.cast(labels, "int32") if floating else labels, None, _nan_unless(valid, dtype))


def read_logits(y_pred: Any, from_logits: bool, dtype: str) -> Any:
    """Return logits `[..., K]`: the predictions, or the logarithms of the probabilities that they are.

    A softmax that the graph shows is undone exactly; a probability of 0 becomes −∞.

    Args:
        y_pred: Predictions `[..., K]`.
        from_logits: What they are.
        dtype: Type of the result.

    Raises:
        ValueError: If predictions come out of a softmax or sigmoid and `from_logits` is True, or are seen to be no
            probabilities and it is False.
    """
    kind, before = _made_by(y_pred)
    if from_logits:
        if kind or keras_hooks.carries_logits(y_pred):
            made = kind.lower() if kind else "softmax or sigmoid"
            raise ValueError(_probabilities_received(f"the output of a {made}"))
        return ops.cast(ops.convert_to_tensor(y_pred), dtype)
    if kind == "Softmax":
        return ops.cast(before, dtype)
    probabilities = ops.cast(ops.convert_to_tensor(y_pred), dtype)
    rows = _are_distributions(probabilities, _LOOSE)
    if seen(ops.all(rows)) is not None and not bool(ops.all(rows)):
        raise ValueError(
            "Expected probabilities, as from_logits=False says; received rows that hold negative numbers or do not sum "
            "to 1. Pass the output of a softmax, or leave from_logits=False away."
        )
    positive = probabilities > 0
    logs = ops.where(positive, ops.log(ops.where(positive, probabilities, 1.0)), -float("inf"))
    return logs + ops.expand_dims(_nan_unless(rows, dtype), -1)


def refuse_probabilities(logits: Any, counts: Any = None) -> Any:
    """Refuse logits whose rows are probabilities or, inside a compiled step, return NaN for them and else 0.

    The first rows that count, up to eight, tell: a look at all would cost as much as the loss. None are looked at where
    the graph shows a sum or a product with a kernel.

    Args:
        logits: `[..., K]`.
        counts: Whether a row counts, bool `[...]`; None if all do.

    Raises:
        ValueError: If their values can be seen.
    """
    if getattr(_origin(logits), "type", None) in _AFFINE:
        return ops.zeros((), logits.dtype)
    size = num_classes(logits)
    flat = ops.reshape(logits, (-1, size))
    total = ops.shape(flat)[0]
    kept = ops.ones((total,), "bool") if counts is None else ops.reshape(counts, (-1,))
    first = ops.min(ops.where(kept, ops.arange(total, dtype="int32"), total), initial=total)
    sample = ops.minimum(first + ops.arange(_SAMPLE, dtype="int32")[:total], total - 1)
    sampled = ops.take(kept, sample, axis=0)
    rows = ops.sum(ops.cast(sampled, "int32"))
    rounded = ops.cast(size, "float32") * _LOSS_OF_TWO_DECIMALS
    loose = ops.where(rows >= _SAMPLE, ops.minimum(ops.maximum(rounded, _LOOSE), _LOOSEST), _LOOSE)
    bound = ops.where(rows * (size - 1) >= _MUCH_EVIDENCE, loose, _TIGHT)
    alike = _are_distributions(ops.take(flat, sample, axis=0), bound)
    found = ops.logical_and(rows >= 1, ops.all(ops.logical_or(alike, ops.logical_not(sampled))))
    visible = seen(found)
    if visible is not None and visible:
        raise ValueError(_probabilities_received("rows that are non-negative and sum to 1, as probabilities do"))
    # A single row of few logits sums to 1 by chance once in thousands of steps; that must not end a training.
    enough = ops.logical_or(rows >= 2, ops.convert_to_tensor(size >= 8))
    return ops.cast(ops.where(ops.logical_and(found, enough), float("nan"), 0.0), logits.dtype)


def refuse_labels(y_true: Any, y_pred: Any, counts: Any = None) -> None:
    """Refuse labels that are no classes or rows that are no distributions, where their values can be seen.

    Args:
        y_true, y_pred: As for `read_labels`.
        counts: Whether a row counts, bool `[...]`; None if all do. The others may hold anything.

    Raises:
        ValueError: With the number of such labels and the first of them.
    """
    labels, kept = seen(y_true), None if counts is None else seen(counts)
    size = np.shape(y_pred)[-1]
    if labels is None or size is None or (counts is not None and kept is None):
        return
    labels = labels.astype(np.float64) if labels.dtype.kind not in "iub" else labels
    if have_columns(y_true, y_pred):
        wrong = ~((labels.min(-1, initial=0) >= 0) & (np.abs(labels.sum(-1, dtype=np.float64) - 1) <= _TARGET_SUM))
        rule = "One-hot and soft labels must be rows of non-negative numbers that sum to 1"
        remedy = "Divide each row by its sum, or pass class indices."
    else:
        labels = labels[..., 0] if labels.ndim == np.ndim(y_pred) else labels
        wrong = ~((labels >= 0) & (labels < size) & (labels == np.floor(labels)))
        rule = f"Labels must be whole numbers in [0, {size}), the number of logits"
        remedy = "Number the classes from 0, or name pads with `ignore_class`."
    wrong &= True if kept is None else np.broadcast_to(kept, wrong.shape)
    if wrong.any():
        raise ValueError(f"{rule}; received {wrong.sum()} outside, the first being {labels[wrong][0]}. {remedy}")


def read_weights(sample_weight: Any, mask: Any, shape_of: Any, dtype: str) -> tuple[Any, Any]:
    """Bring sample weights and a mask to the shape `[...]` of the positions that they belong to.

    Args:
        sample_weight: A number, `[N]`, `[N, 1]`, or one for each position `[N, T]`; None weighs all by 1.
        mask: Bool of such a shape, True where a position counts; None if all do.
        shape_of: A tensor `[...]`, one value for each position.
        dtype: Type of the weights.

    Returns:
        Weights `[...]` and mask, bool `[...]`; each None if not given.

    Raises:
        ValueError: If a shape does not fit, or weights are seen to be NaN or infinite.
    """
    weights = seen(sample_weight)
    if weights is not None and (weights.dtype.kind not in "iufbV" or not np.isfinite(weights.astype(np.float64)).all()):
        raise ValueError("Sample weights must be finite numbers; received NaN, infinity or no numbers at all.")
    if sample_weight is not None:
        sample_weight = _spread(ops.cast(ops.convert_to_tensor(sample_weight), dtype), shape_of, "Sample weights")
    if mask is not None:
        mask = _spread(ops.cast(ops.convert_to_tensor(mask), "bool"), shape_of, "The mask")
    return sample_weight, mask


def ignored(y_true: Any, y_pred: Any, ignore_class: int | None) -> Any:
    """Return where class indices are `ignore_class`, bool `[...]`; None if there is no such class.

    Raises:
        ValueError: If labels have a column per class, where no index can be ignored.
    """
    if ignore_class is None:
        return None
    if have_columns(y_true, y_pred):
        raise ValueError(
            "`ignore_class` needs integer labels; received targets with one column per class, shape "
            f"{tuple(np.shape(y_true))}. Give those positions a `sample_weight` of 0 instead."
        )
    labels = ops.convert_to_tensor(y_true)
    labels = ops.squeeze(labels, -1) if len(labels.shape) == len(np.shape(y_pred)) else labels
    labels = labels if keras.backend.is_float_dtype(labels.dtype) else _widened(labels)
    return ops.equal(labels, ops.cast(ignore_class, labels.dtype))


def checked_ignore_class(ignore_class: int | None) -> int | None:
    """Return `ignore_class` if it is a whole number or None, and refuse it with a ValueError otherwise."""
    if ignore_class is None:
        return None
    if isinstance(ignore_class, bool) or not isinstance(ignore_class, numbers.Integral):
        raise ValueError(f"`ignore_class` must be a whole number or None; received {ignore_class!r}.")
    return int(ignore_class)


def crossentropy(targets: Any, log_probabilities: Any) -> Any:
    """Return −Σ_k t_k ln p_k over the last axis, with 0 · ln 0 = 0."""
    return -ops.sum(targets * ops.where(ops.equal(targets, 0.0), 0.0, log_probabilities), axis=-1)


def seen(value: Any) -> np.ndarray | None:
    """Return an array, list or eager tensor as a NumPy array, and None for what has no values yet."""
    if value is None:
        return None
    try:
        return np.asarray(value)
    except (NotImplementedError, TypeError):  # symbolic tensors of TensorFlow; tracers of JAX
        return None


def _probabilities_received(what: str) -> str:
    return (
        f"Expected logits; received {what}. Leave the softmax away (a last layer without activation), or say "
        "from_logits=False."
    )


def _made_by(y_pred: Any) -> tuple[str | None, Any]:
    """Return whether TensorFlow's graph shows a `Softmax` or `Sigmoid` as what made a tensor, and its input."""
    operation = _origin(y_pred)
    if operation is None or operation.type not in ("Softmax", "Sigmoid"):
        return None, None
    before = operation.inputs[0]
    return operation.type, before if before.shape.rank == y_pred.shape.rank else ops.reshape(before, ops.shape(y_pred))


def _origin(tensor: Any) -> Any:
    """Return the operation of TensorFlow's graph that made a tensor's values; None without a graph."""
    operation = getattr(tensor, "op", None)
    while operation is not None and operation.type in _PASSING:
        operation = operation.inputs[0].op
    return operation


def _are_distributions(rows: Any, bound: Any) -> Any:
    rows = ops.cast(rows, "float32")
    # Without `initial`, Keras refuses an empty batch.
    return ops.logical_and(
        ops.min(rows, axis=-1, initial=math.inf) >= 0,
        ops.abs(ops.sum(rows, axis=-1) - 1.0) <= ops.cast(bound, "float32"),
    )


def _nan_unless(condition: Any, dtype: str) -> Any:
    return ops.cast(ops.where(condition, 0.0, float("nan")), dtype)


def _spread(value: Any, shape_of: Any, name: str) -> Any:
    shape, wanted = tuple(value.shape), tuple(shape_of.shape)
    fitted = shape[:-1] if len(shape) == len(wanted) + 1 and shape[-1] == 1 else shape
    if len(fitted) > len(wanted) or not _agree(fitted, wanted[: len(fitted)], broadcast=True):
        raise ValueError(f"{name} must have shape [N], [N, 1] or one value for each label, {wanted}; received {shape}.")
    if fitted is not shape:
        value = ops.squeeze(value, -1)
    for _ in range(len(wanted) - len(fitted) if fitted else 0):
        value = ops.expand_dims(value, -1)
    return ops.broadcast_to(value, ops.shape(shape_of))


def _agree(shape: tuple[int | None, ...], other: tuple[int | None, ...], *, broadcast: bool = False) -> bool:
    return all(a is None or b is None or a == b or (broadcast and a == 1) for a, b in zip(shape, other, strict=True))


def _check_half(labels: Any, y_pred: Any) -> None:
    first_lost = _FIRST_LOST.get(keras.backend.standardize_dtype(labels.dtype))
    if first_lost and (y_pred.shape[-1] or 0) > first_lost:
        raise ValueError(
            f"Class indices in {keras.backend.standardize_dtype(labels.dtype)} are rounded from {first_lost} on, and "
            f"there are {y_pred.shape[-1]} classes. Pass labels as integers."
        )


def _widened(labels: Any) -> Any:
    """Bring short integers, which a number of classes may not fit in, to 32 bits, and unsigned ones to signed."""
    dtype = keras.backend.standardize_dtype(labels.dtype)
    if dtype in ("bool", "int8", "uint8", "int16", "uint16"):
        return ops.cast(labels, "int32")
    return ops.cast(labels, "int64") if dtype in ("uint32", "uint64") else labels


def _is_real(value: Any) -> bool:
    return _type(value).startswith(("int", "uint", "float", "bfloat", "bool"))


def _type(value: Any) -> str:
    dtype = getattr(value, "dtype", None) or np.asarray(value).dtype
    return getattr(dtype, "name", str(dtype))
