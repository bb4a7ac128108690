"""Streaming metrics over logits; every state is a sum, so batches and replicas add up."""

from typing import Any

import keras
from keras import ops


class _OverLogits(keras.metrics.Metric):
    """A metric of logits `[..., num_classes]` and class indices `[...]` or one-hot targets."""

    def _flatten(self, y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Return labels `[n]`, log-probabilities `[n, num_classes]` and weights `[n]`."""
        y_true, logits = ops.convert_to_tensor(y_true), ops.cast(y_pred, "float32")
        num_classes = logits.shape[-1]
        if len(y_true.shape) == len(logits.shape) and y_true.shape[-1] == num_classes:
            y_true = ops.argmax(y_true, axis=-1)
        log_probabilities = ops.log_softmax(ops.reshape(logits, (-1, num_classes)))
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        if sample_weight is None:
            weights = ops.ones_like(log_probabilities[:, 0])
        else:
            weights = ops.cast(sample_weight, "float32")
            if len(weights.shape) == len(logits.shape) - 2:
                weights = ops.expand_dims(weights, -1)
            weights = ops.reshape(ops.broadcast_to(weights, ops.shape(logits)[:-1]), (-1,))
        return labels, log_probabilities, weights


@keras.saving.register_keras_serializable("ls_keras")
class ExpectedCalibrationError(_OverLogits):
    """Expected calibration error of the top-label confidence, over all batches seen.

        ECE = Σ_m (n_m / n) |accuracy_m − confidence_m|

    Confidences fall into equal-width bins ((m−1)/M, m/M]; a confidence of exactly 1 is in the last bin. The
    state is three sums per bin in double precision (weights, correct weights, confidences), never a mean of
    per-batch values.

    Args:
        num_bins: Number of bins M.
        name: Metric name.
        dtype: As in `keras.metrics.Metric`; the sums are double precision all the same.

    Raises:
        ValueError: If `num_bins` is not a positive integer.

    Example:
        >>> ece = ExpectedCalibrationError()
        >>> ece([0, 0], [[0.0, 0.0], [0.0, 100.0]])  # |1 − 0.5| / 2 + |0 − 1| / 2 = 0.75

    Reference: Guo et al. (2017), "On calibration of modern neural networks".
    """

    def __init__(self, num_bins: int = 15, name: str = "ece", dtype: str | None = None) -> None:
        super().__init__(name=name, dtype=dtype)
        if num_bins < 1 or num_bins != int(num_bins):
            raise ValueError(f"`num_bins` must be a positive integer; received {num_bins}.")
        self.num_bins = int(num_bins)
        shape = (self.num_bins,)
        self.weight = self.add_variable(shape, initializer="zeros", dtype="float64", name="weight")
        self.correct = self.add_variable(shape, initializer="zeros", dtype="float64", name="correct")
        self.confidence = self.add_variable(shape, initializer="zeros", dtype="float64", name="confidence")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        labels, log_probabilities, weights = self._flatten(y_true, y_pred, sample_weight)
        confidence = ops.exp(ops.max(log_probabilities, axis=-1))
        correct = ops.cast(ops.equal(ops.cast(ops.argmax(log_probabilities, axis=-1), "int32"), labels), "float32")
        bins = ops.cast(ops.ceil(ops.cast(confidence, "float64") * self.num_bins), "int32") - 1
        bins = ops.clip(bins, 0, self.num_bins - 1)
        # A row of weight 0 is padding: it must not count even if its logits are not finite.
        confidence, weights = ops.where(weights > 0, confidence, 0.0), ops.cast(weights, "float64")
        for variable, values in (
            (self.weight, weights),
            (self.correct, weights * ops.cast(correct, "float64")),
            (self.confidence, weights * ops.cast(confidence, "float64")),
        ):
            variable.assign_add(ops.segment_sum(values, bins, num_segments=self.num_bins))

    def result(self) -> Any:
        gap = ops.sum(ops.absolute(self.correct - self.confidence))
        return ops.cast(ops.divide_no_nan(gap, ops.sum(self.weight)), "float32")

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "num_bins": self.num_bins}


@keras.saving.register_keras_serializable("ls_keras")
class NegativeLogLikelihood(_OverLogits):
    """Mean −log p(label) in nats, never smoothed, whatever loss the model was compiled with.

    Args:
        name: Metric name.
        dtype: As in `keras.metrics.Metric`; the sums are double precision all the same.

    Example:
        >>> NegativeLogLikelihood()([1], [[0.0, 0.0, 0.0]])  # ln 3 = 1.0986
    """

    def __init__(self, name: str = "nll", dtype: str | None = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.total = self.add_variable((), initializer="zeros", dtype="float64", name="total")
        self.weight = self.add_variable((), initializer="zeros", dtype="float64", name="weight")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        labels, log_probabilities, weights = self._flatten(y_true, y_pred, sample_weight)
        picked = ops.take_along_axis(log_probabilities, ops.expand_dims(labels, -1), axis=-1)
        nll = ops.cast(ops.where(weights > 0, -ops.squeeze(picked, -1), 0.0), "float64")
        weights = ops.cast(weights, "float64")
        self.total.assign_add(ops.sum(weights * nll))
        self.weight.assign_add(ops.sum(weights))

    def result(self) -> Any:
        return ops.cast(ops.divide_no_nan(self.total, self.weight), "float32")

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


def classification(num_bins: int = 15) -> list[keras.metrics.Metric]:
    """Return what every classifier here is watched by: accuracy, unsmoothed NLL (nats) and ECE.

    Give them to `compile(weighted_metrics=...)`: held-out batches are padded with rows of weight 0.
    """
    return [
        keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        NegativeLogLikelihood(),
        ExpectedCalibrationError(num_bins),
    ]
