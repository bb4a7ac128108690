"""Streaming metrics over logits; every state is a sum, so batches and replicas add up.

Labels, predictions and weights mean what they mean to `ls_keras.losses`: class indices, one-hot or soft labels; logits,
or probabilities with `from_logits=False`; masked positions and those of `ignore_class` or weight 0 do not count.
"""

import math
import numbers
from typing import Any, NamedTuple

from ls_keras import keras_hooks
from ls_keras.targets import (
    checked_ignore_class,
    crossentropy,
    have_columns,
    ignored,
    num_classes,
    read_labels,
    read_logits,
    read_weights,
    refuse_labels,
    refuse_probabilities,
    seen,
)

import keras
import numpy as np
from keras import ops


class _Sums:
    """Running sums in two float32 numbers each, exact to about 48 bits on every backend.

    float64 would do on TensorFlow, but JAX makes float32 of it without a word, in which 2²⁴ + 1 = 2²⁴.
    """

    def __init__(self, metric: keras.metrics.Metric, shape: tuple[int, ...]) -> None:
        self.high, self.low = (
            metric.add_variable(shape, initializer="zeros", dtype="float32", name=name) for name in ("high", "low")
        )

    def add(self, amounts: Any) -> None:
        before = ops.convert_to_tensor(self.high)
        after = before + amounts
        added = after - before
        # Knuth's two-sum: what rounding took from `after`.
        self.low.assign_add((before - (after - added)) + (amounts - added))
        self.high.assign(after)

    def less(self, one: int, other: int) -> Any:
        """Return one column less another, without losing what lies in their low parts."""
        high, low = ops.convert_to_tensor(self.high), ops.convert_to_tensor(self.low)
        return (high[..., one] - high[..., other]) + (low[..., one] - low[..., other])

    def __call__(self) -> Any:
        return ops.convert_to_tensor(self.high) + ops.convert_to_tensor(self.low)


class _Rows(NamedTuple):
    """A batch in rows: those that do not count are empty and weigh 0.

    Attributes:
        log_probabilities: `[n, K]`.
        labels: int32 `[n]`; of one-hot and soft labels the largest.
        targets: `[n, K]`, or None for class indices.
        weights: `[n]`.
        fault: `[n]`, 0, or NaN where a label or a prediction is none.
    """

    log_probabilities: Any
    labels: Any
    targets: Any
    weights: Any
    fault: Any


class _OverLogits(keras.metrics.Metric):
    """A metric of logits `[..., num_classes]` and labels of any kind."""

    def __init__(self, name: str, dtype: str | None, ignore_class: int | None, from_logits: bool) -> None:
        super().__init__(name=name, dtype=dtype)
        self.ignore_class, self.from_logits = checked_ignore_class(ignore_class), bool(from_logits)

    def _read(self, y_true: Any, y_pred: Any, sample_weight: Any) -> _Rows:
        columns = have_columns(y_true, y_pred)
        mask, logits = keras_hooks.mask_of(y_pred), read_logits(y_pred, self.from_logits, "float32")
        position = logits[..., 0]
        weights, mask = read_weights(sample_weight, mask, position, "float32")
        weights = ops.ones_like(position) if weights is None else weights
        if mask is not None:
            weights = ops.where(mask, weights, 0.0)
        skipped = None if columns else ignored(y_true, y_pred, self.ignore_class)
        if skipped is not None:
            weights = ops.where(skipped, 0.0, weights)
        visible = seen(weights)
        if visible is not None and visible.min(initial=0) < 0:
            raise ValueError(f"Sample weights of a metric must not be negative; received {visible.min()}.")
        counts = ops.not_equal(weights, 0.0)
        refuse_labels(y_true, logits, counts)
        probabilities = refuse_probabilities(logits, counts)
        labels, size = read_labels(y_true, logits), num_classes(logits)
        logits = ops.where(ops.expand_dims(counts, -1), logits, 0.0)
        fault = ops.where(counts, labels.fault + probabilities, 0.0)
        fault = ops.where(weights < 0, float("nan"), fault)
        indices = ops.argmax(labels.targets, axis=-1) if columns else labels.indices
        return _Rows(
            ops.reshape(ops.log_softmax(logits), (-1, size)),
            ops.cast(ops.reshape(indices, (-1,)), "int32"),
            ops.reshape(labels.targets, (-1, size)) if columns else None,
            ops.reshape(weights, (-1,)),
            ops.reshape(fault, (-1,)),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "ignore_class": self.ignore_class,
            "from_logits": self.from_logits,
        }


class _Mean(_OverLogits):
    """A weighted mean over all rows seen of what `_values` gives for each."""

    def __init__(self, name: str, dtype: str | None, ignore_class: int | None, from_logits: bool) -> None:
        super().__init__(name, dtype, ignore_class, from_logits)
        self.sums = _Sums(self, (2,))  # of weighted values, and of weights

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        rows = self._read(y_true, y_pred, sample_weight)
        values = ops.where(ops.equal(rows.weights, 0.0), 0.0, self._values(rows)) + rows.fault
        self.sums.add(ops.stack([ops.sum(rows.weights * values), ops.sum(rows.weights)]))

    def _values(self, rows: _Rows) -> Any:
        raise NotImplementedError

    def result(self) -> Any:
        total, weight = ops.unstack(self.sums(), 2)
        return ops.divide_no_nan(total, weight)


@keras.saving.register_keras_serializable("ls_keras")
class ExpectedCalibrationError(_OverLogits):
    """Expected calibration error of the top-label confidence, over all batches seen.

        ECE = Σ_m (n_m / n) |accuracy_m − confidence_m|

    Confidences fall into equal-width bins ((m−1)/M, m/M]; a confidence of exactly 1 is in the last bin. The
    state is three sums per bin (weights, correct weights, confidences), never a mean of per-batch values.

    Args:
        num_bins: Number of bins M.
        ignore_class: Class index of positions that do not count (pads); None if every label is a class.
        from_logits: False if the model ends in a softmax.
        name: Metric name.
        dtype: As in `keras.metrics.Metric`; the sums are kept to 48 bits all the same.

    Raises:
        ValueError: If `num_bins` is not a positive integer; of labels, predictions and weights as the losses.

    Example:
        >>> ece = ExpectedCalibrationError()
        >>> ece([0, 0], [[0.0, 0.0], [0.0, 100.0]])  # |1 − 0.5| / 2 + |0 − 1| / 2 = 0.75

    Reference: Guo et al. (2017), "On calibration of modern neural networks".
    """

    def __init__(
        self,
        num_bins: int = 15,
        name: str = "ece",
        dtype: str | None = None,
        *,
        ignore_class: int | None = -1,
        from_logits: bool = True,
    ) -> None:
        super().__init__(name, dtype, ignore_class, from_logits)
        if isinstance(num_bins, bool) or not isinstance(num_bins, numbers.Integral) or num_bins < 1:
            raise ValueError(f"`num_bins` must be a positive integer; received {num_bins!r}.")
        self.num_bins = int(num_bins)
        self.sums = _Sums(self, (self.num_bins, 3))  # of weights, of right answers' weights, of confidences

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        rows = self._read(y_true, y_pred, sample_weight)
        confidence = ops.exp(ops.max(rows.log_probabilities, axis=-1, initial=-math.inf))
        edges = np.arange(1, self.num_bins, dtype=np.float64) / self.num_bins
        bins = ops.searchsorted(ops.convert_to_tensor(edges, "float32"), confidence, side="left")
        weights = rows.weights
        values = ops.stack([weights, weights * _is_correct(rows), weights * confidence + rows.fault], axis=-1)
        self.sums.add(ops.segment_sum(values, bins, num_segments=self.num_bins))

    def result(self) -> Any:
        return ops.divide_no_nan(ops.sum(ops.absolute(self.sums.less(1, 2))), ops.sum(self.sums()[:, 0]))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_bins": self.num_bins}


@keras.saving.register_keras_serializable("ls_keras")
class Accuracy(_Mean):
    """Share of the rows whose largest logit is that of the label (the first one of a tie).

    Keras's accuracies each take labels of one kind and silently compare the wrong axes of another.

    Args:
        ignore_class: Class index of positions that do not count (pads); None if every label is a class.
        from_logits: False if the model ends in a softmax.
        name: Metric name.
        dtype: As in `keras.metrics.Metric`; the sums are kept to 48 bits all the same.

    Raises:
        ValueError: Of labels, predictions and weights as the losses.

    Example:
        >>> Accuracy()([1, 0], [[0.0, 2.0], [0.0, 2.0]])
        0.5
    """

    def __init__(
        self,
        name: str = "accuracy",
        dtype: str | None = None,
        *,
        ignore_class: int | None = -1,
        from_logits: bool = True,
    ) -> None:
        super().__init__(name, dtype, ignore_class, from_logits)

    def _values(self, rows: _Rows) -> Any:
        return _is_correct(rows)


@keras.saving.register_keras_serializable("ls_keras")
class NegativeLogLikelihood(_Mean):
    """Mean −log p(label) in nats, never smoothed, whatever loss the model was compiled with.

    Of soft labels it is the mean under the label, −Σ_k t_k log p_k: in all cases what `SmoothedCrossentropy(alpha=0)`
    gives.

    Args:
        ignore_class: Class index of positions that do not count (pads); None if every label is a class.
        from_logits: False if the model ends in a softmax.
        name: Metric name.
        dtype: As in `keras.metrics.Metric`; the sums are kept to 48 bits all the same.

    Raises:
        ValueError: Of labels, predictions and weights as the losses.

    Example:
        >>> NegativeLogLikelihood()([1], [[0.0, 0.0, 0.0]])  # ln 3 = 1.0986
    """

    def __init__(
        self,
        name: str = "nll",
        dtype: str | None = None,
        *,
        ignore_class: int | None = -1,
        from_logits: bool = True,
    ) -> None:
        super().__init__(name, dtype, ignore_class, from_logits)

    def _values(self, rows: _Rows) -> Any:
        if rows.targets is not None:
            return crossentropy(rows.targets, rows.log_probabilities)
        return -ops.take_along_axis(rows.log_probabilities, ops.expand_dims(rows.labels, -1), axis=-1)[:, 0]


def classification(
    num_bins: int = 15, *, ignore_class: int | None = -1, from_logits: bool = True
) -> list[keras.metrics.Metric]:
    """Return what every classifier here is watched by: accuracy, unsmoothed NLL (nats) and ECE.

    Give them to `compile(weighted_metrics=...)`: held-out batches are padded with rows of weight 0.

    Args:
        num_bins: Bins of the ECE.
        ignore_class: Class index of positions that do not count, as in the loss.
        from_logits: False if the model ends in a softmax.
    """
    options = {"ignore_class": ignore_class, "from_logits": from_logits}
    return [Accuracy(**options), NegativeLogLikelihood(**options), ExpectedCalibrationError(num_bins, **options)]


def _is_correct(rows: _Rows) -> Any:
    predicted = ops.cast(ops.argmax(rows.log_probabilities, axis=-1), "int32")
    return ops.cast(ops.equal(predicted, rows.labels), "float32")
