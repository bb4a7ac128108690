"""Losses over logits: smoothed cross-entropy, the confidence penalty, and what a student learns from a teacher.

All take logits, never probabilities, and labels as class indices `[...]`, or as one-hot or soft targets
`[..., num_classes]`. Targets, logits and results are float32 unless `dtype` says otherwise.
"""

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

Convention = Literal["all", "others"]


def smooth_labels(
    targets: Any, alpha: float, *, convention: Convention = "all", prior: Sequence[float] | None = None
) -> Any:
    """Mix targets with a distribution that does not depend on the example.

    With the prior q (uniform, q_k = 1/K, unless given):

    - `"all"` (the paper, Keras, PyTorch, timm): y_k (1 − α) + α q_k; every class receives mass.
    - `"others"` (tensor2tensor, OpenNMT): the right class keeps 1 − α and the others share α in proportion to
      q; for a uniform prior that is α/(K − 1) each, so `"others"` with ε equals `"all"` with α = ε K/(K − 1).

    Args:
        targets: One-hot or soft targets `[..., num_classes]`, rows summing to 1. For soft targets `"others"` is
            the average, under the targets, of the smoothed one-hot rows.
        alpha: Mass that is moved, in [0, 1).
        convention: `"all"` or `"others"`.
        prior: A distribution over the classes, `[num_classes]`; `None` is uniform. The class frequencies give
            unigram smoothing.

    Returns:
        Smoothed targets `[..., num_classes]`.

    Raises:
        ValueError: If `alpha` is outside [0, 1), or the prior is not a distribution over the classes.

    Example:
        >>> smooth_labels([[0.0, 1.0, 0.0, 0.0]], 0.2)  # 0.05, 0.85, 0.05, 0.05
        >>> smooth_labels([[0.0, 1.0, 0.0, 0.0]], 0.15, convention="others")  # 0.05, 0.85, 0.05, 0.05

    Reference: Müller, Kornblith, Hinton (2019), section 1.1.
    """
    smoothing = _Smoothing(alpha, convention, prior)
    targets = ops.convert_to_tensor(targets)
    if not keras.backend.is_float_dtype(targets.dtype):
        targets = ops.cast(targets, keras.backend.floatx())
    return smoothing.of_targets(targets)


@keras.saving.register_keras_serializable("ls_keras")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy between smoothed targets and the softmax of logits.

    For an integer label y and the prior q, with `"all"`:

        ℓ = logsumexp(z) − (1 − α) z_y − α Σ_k q_k z_k,    ∂ℓ/∂z = softmax(z) − (1 − α) e_y − α q

    Integer labels never become a one-hot matrix of the logits' type. The softmax is the one array of the logits'
    size that is made; the gradient is written into it.

    Args:
        alpha: Smoothing α in [0, 1). 0 gives the plain cross-entropy.
        convention: `"all"` (paper) or `"others"` (tensor2tensor); see `smooth_labels`.
        prior: Distribution over the classes `[num_classes]`; `None` is uniform.
        ignore_class: Integer label, possibly negative, of positions that do not count (pads). Their loss is 0
            and the mean is taken over the sum of the weights of the others.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If an argument is out of range, the labels' shape does not fit the logits, or labels given
            as a NumPy array or list are negative or not below `num_classes`. Inside a compiled step, where values
            cannot be read, such a label makes the loss NaN.

    Example:
        >>> loss = SmoothedCrossentropy(alpha=0.1)
        >>> loss([2], [[0.0, 0.0, 0.0, 0.0]])  # ln 4 = 1.3863, whatever alpha
        >>> loss([0], [[2.0, 0.0]])  # 0.1269 + 0.05 * 2 = 0.2269

    Reference: Szegedy et al. (2016); Müller, Kornblith, Hinton (2019), section 1.1.
    """

    def __init__(
        self,
        alpha: float = 0.1,
        convention: Convention = "all",
        prior: Sequence[float] | None = None,
        ignore_class: int | None = None,
        name: str = "smoothed_crossentropy",
        reduction: str | None = "sum_over_batch_size",
        dtype: str | None = None,
    ) -> None:
        if ignore_class is not None and reduction in ("sum_over_batch_size", "mean"):
            reduction = "mean_with_sample_weight"
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.smoothing = _Smoothing(alpha, convention, prior)
        self.ignore_class = ignore_class

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        _check_host_labels(y_true, y_pred, self.ignore_class)
        if self.ignore_class is not None:
            labels = _class_indices(y_true, y_pred)
            if labels is None:
                raise ValueError(
                    "`ignore_class` needs integer labels; received targets with one column per class, shape "
                    f"{tuple(y_true.shape)}. Give those positions a `sample_weight` of 0 instead."
                )
            counts = ops.cast(ops.not_equal(labels, self.ignore_class), self.dtype)
            sample_weight = counts if sample_weight is None else counts * ops.cast(sample_weight, self.dtype)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels = _class_indices(y_true, y_pred)
        if labels is None:
            targets = self.smoothing.of_targets(y_true)
            return -ops.sum(targets * ops.log_softmax(y_pred), axis=-1)
        if self.ignore_class is None:
            return self.smoothing.crossentropy(labels, y_pred)
        ignored = ops.equal(labels, self.ignore_class)
        losses = self.smoothing.crossentropy(ops.where(ignored, 0, labels), y_pred)
        return ops.where(ignored, 0.0, losses)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.smoothing.alpha,
            "convention": self.smoothing.convention,
            "prior": None if self.smoothing.prior is None else self.smoothing.prior.tolist(),
            "ignore_class": self.ignore_class,
            "dtype": self.dtype,
        }


@keras.saving.register_keras_serializable("ls_keras")
class ConfidencePenalty(keras.losses.Loss):
    """Cross-entropy minus a multiple of the prediction's entropy.

        ℓ = H(y, p) − β H(p) = H(y, p) + β KL(p‖u) − β ln K

    Label smoothing adds KL(u‖p) in the other direction, since up to constants
    (1 − α) H(y, p) + α H(u, p) = (1 − α) H(y, p) + α KL(u‖p).

    Args:
        beta: Weight β ≥ 0 of the entropy, in nats per nat.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If `beta` is negative or not finite, or labels do not fit the logits.

    Example:
        >>> ConfidencePenalty(beta=0.5)([1], [[0.0, 0.0]])  # 0.5 ln 2 = 0.3466

    Reference: Pereyra et al. (2017), "Regularizing neural networks by penalizing confident output distributions".
    """

    def __init__(
        self,
        beta: float = 0.1,
        name: str = "confidence_penalty",
        reduction: str | None = "sum_over_batch_size",
        dtype: str | None = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not 0 <= beta < float("inf"):
            raise ValueError(f"`beta` must be a finite number ≥ 0; received {beta}.")
        self.beta = float(beta)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        _check_host_labels(y_true, y_pred)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        log_probabilities = ops.log_softmax(y_pred)
        entropy = -ops.sum(ops.exp(log_probabilities) * log_probabilities, axis=-1)
        labels = _class_indices(y_true, y_pred)
        if labels is None:
            return -ops.sum(y_true * log_probabilities, axis=-1) - self.beta * entropy
        return _Smoothing(0.0).crossentropy(labels, y_pred) - self.beta * entropy

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "dtype": self.dtype}


def distillation_targets(labels: Any, teacher_logits: Any) -> Any:
    """Put a teacher's logits beside the labels, in one array: the target of the distillation losses.

    One array, as Keras gives the target of a model's one output to a loss; sample weights, masks and replicas then
    are as they are for any other target.

    Args:
        labels: Class indices `[...]` or `[..., 1]`, below 2²⁴.
        teacher_logits: Logits `[..., num_classes]`.

    Returns:
        float32 `[..., 1 + num_classes]` (float64 for float64 logits): the label, then the teacher's logits.

    Raises:
        ValueError: If the labels do not fit the logits, or are one-hot.

    Example:
        >>> distillation_targets([2, 0], [[0.0, 1.0, 5.0], [3.0, 0.0, 0.0]])  # [[2, 0, 1, 5], [0, 3, 0, 0]]
    """
    indices = _class_indices(labels, teacher_logits)
    if indices is None:
        raise ValueError(
            f"Labels must be class indices; received one column per class, shape {tuple(np.shape(labels))}. "
            "Take argmax(-1) of one-hot labels."
        )
    logits = ops.convert_to_tensor(teacher_logits)
    logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    return ops.concatenate([ops.expand_dims(ops.cast(indices, logits.dtype), -1), logits], axis=-1)


class _FromTeacher(keras.losses.Loss):
    """A loss of the student's logits `[..., K]` against `distillation_targets` `[..., 1 + K]`."""

    def __init__(self, beta: float, name: str, reduction: str | None, dtype: str | None) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not 0 <= beta <= 1:
            raise ValueError(f"`beta`, the teacher's share of the loss, must be in [0, 1]; received {beta}.")
        self.beta = float(beta)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        targets, logits = tuple(np.shape(y_true)), tuple(np.shape(y_pred))
        if len(targets) != len(logits) or not logits or targets[-1] != logits[-1] + 1:
            raise ValueError(
                f"{type(self).__name__} takes distillation_targets(labels, teacher_logits), of shape "
                f"[..., 1 + num_classes]; received targets {targets} and logits {logits}. A Distiller makes them "
                "from labels."
            )
        if isinstance(y_true, np.ndarray | list):
            _check_host_labels(np.asarray(y_true)[..., 0], y_pred)
        return super().__call__(ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred), sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        # At the ends of β the other term is left out, and 0 times what may not be finite with it.
        if self.beta == 0:
            return self._from_labels(y_true, y_pred)
        from_teacher = self.from_teacher(y_true[..., 1:], y_pred)
        if self.beta == 1:
            return from_teacher
        return (1 - self.beta) * self._from_labels(y_true, y_pred) + self.beta * from_teacher

    def from_teacher(self, teacher_logits: Any, logits: Any) -> Any:
        raise NotImplementedError

    def _from_labels(self, y_true: Any, y_pred: Any) -> Any:
        return _Smoothing(0.0).crossentropy(ops.cast(y_true[..., 0], "int32"), y_pred)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "dtype": self.dtype}


@keras.saving.register_keras_serializable("ls_keras")
class DistillationLoss(_FromTeacher):
    """Cross-entropy with the labels, mixed with the cross-entropy with a teacher's softened predictions.

    For the label y, the student's logits z and the teacher's v, with p(T) = softmax(z / T), pᵗ(T) = softmax(v / T):

        ℓ = (1 − β) H(y, p(1)) + β c H(pᵗ(T), p(Tₛ)),    ∂ℓ/∂z = (1 − β) (p(1) − e_y) + β c (p(Tₛ) − pᵗ(T)) / Tₛ

    c is 1, or T². It is a cross-entropy, not a divergence: a student that equals its teacher is at the entropy of
    pᵗ(T), and the gradient there is 0.

    Args:
        beta: The teacher's share β in [0, 1]; 1 in the paper's CIFAR-10 students.
        temperature: The teacher's temperature T > 0.
        student_temperature: The student's temperature Tₛ > 0 in the second term. 1 is the paper's [A.1]; the same as
            `temperature` is Hinton et al.'s.
        scale_by_temperature_squared: Whether c = T². With T on both sides the second term's gradient falls as 1/T²;
            this takes it back to the size of the first term's.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If an argument is out of range, or targets are not those of `distillation_targets`.

    Example:
        >>> even = distillation_targets([0], [[0.0, 0.0]])
        >>> DistillationLoss()(even, [[2.0, 0.0]])  # (0.1269 + 2.1269) / 2 = 1.1269
        >>> DistillationLoss(beta=0.5)(even, [[2.0, 0.0]])  # (0.1269 + 1.1269) / 2 = 0.6269

    Reference: Hinton, Vinyals, Dean (2015); Müller, Kornblith, Hinton (2019), section 4.
    """

    def __init__(
        self,
        beta: float = 1.0,
        temperature: float = 1.0,
        student_temperature: float = 1.0,
        scale_by_temperature_squared: bool = False,
        name: str = "distillation",
        reduction: str | None = "sum_over_batch_size",
        dtype: str | None = None,
    ) -> None:
        super().__init__(beta, name, reduction, dtype)
        for argument, value in (("temperature", temperature), ("student_temperature", student_temperature)):
            if not 0 < value < float("inf"):
                raise ValueError(f"`{argument}` must be a finite number above 0; received {value}.")
        self.temperature, self.student_temperature = float(temperature), float(student_temperature)
        self.scale_by_temperature_squared = bool(scale_by_temperature_squared)

    def from_teacher(self, teacher_logits: Any, logits: Any) -> Any:
        target = ops.softmax(teacher_logits / self.temperature, axis=-1)
        loss = -ops.sum(target * ops.log_softmax(logits / self.student_temperature, axis=-1), axis=-1)
        return self.temperature**2 * loss if self.scale_by_temperature_squared else loss

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "student_temperature": self.student_temperature,
            "scale_by_temperature_squared": self.scale_by_temperature_squared,
        }


@keras.saving.register_keras_serializable("ls_keras")
class LogitMatching(_FromTeacher):
    """Cross-entropy with the labels, mixed with half the squared error of the logits.

        ℓ = (1 − β) H(y, p) + β ½ Σ_k (z_k − v_k)²,    ∂ℓ/∂z = (1 − β) (p − e_y) + β (z − v)

    Args:
        beta: The teacher's share β in [0, 1]; 0.6 in the paper's MNIST student.
        over_classes: `"sum"` of the squares, or their `"mean"`, which weighs the teacher K times less.
        centred: Whether the mean over the classes is first taken from the student's and the teacher's logits: then
            an offset common to all logits, which changes no prediction, is not learnt. The paper does not say.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If an argument is out of range, or targets are not those of `distillation_targets`.

    Example:
        >>> targets = distillation_targets([0], [[1.0, -1.0]])
        >>> LogitMatching(beta=0.5)(targets, [[0.0, 0.0]])  # 0.5 ln 2 + 0.5 * 1 = 0.8466

    Reference: Müller, Kornblith, Hinton (2019), appendix A.5; Hinton, Vinyals, Dean (2015), section 2.1.
    """

    def __init__(
        self,
        beta: float = 0.6,
        over_classes: Literal["sum", "mean"] = "sum",
        centred: bool = False,
        name: str = "logit_matching",
        reduction: str | None = "sum_over_batch_size",
        dtype: str | None = None,
    ) -> None:
        super().__init__(beta, name, reduction, dtype)
        if over_classes not in ("sum", "mean"):
            raise ValueError(f'`over_classes` must be "sum" (½ Σ of A.5) or "mean"; received {over_classes!r}.')
        self.over_classes, self.centred = over_classes, bool(centred)

    def from_teacher(self, teacher_logits: Any, logits: Any) -> Any:
        difference = logits - teacher_logits
        if self.centred:
            difference = difference - ops.mean(difference, axis=-1, keepdims=True)
        squares = ops.square(difference)
        return 0.5 * (ops.sum if self.over_classes == "sum" else ops.mean)(squares, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "over_classes": self.over_classes, "centred": self.centred}


class _Smoothing:
    """The mix of a target with a prior, and its cross-entropy for integer labels.

    In both conventions a label y becomes a_y e_y + c_y q: c = α and a = 1 − α for `"all"`;
    c_y = α/(1 − q_y) and a_y = 1 − α − c_y q_y for `"others"`.
    """

    def __init__(self, alpha: float, convention: Convention = "all", prior: Sequence[float] | None = None) -> None:
        if not 0 <= alpha < 1:
            raise ValueError(f"`alpha` must be in [0, 1); received {alpha}. Use 0.1 for 10 % smoothing.")
        if convention not in ("all", "others"):
            raise ValueError(
                f'`convention` must be "all" (α/K to every class, the paper) or "others" (α/(K−1) to the wrong '
                f"ones, tensor2tensor); received {convention!r}."
            )
        self.alpha = float(alpha)
        self.convention = convention
        self.prior = None if prior is None else _checked_prior(prior, convention)

    def of_targets(self, targets: Any) -> Any:
        on, mass = self._coefficients(targets.shape[-1], targets.dtype)
        if self.convention == "all":
            return on * targets + mass * self._prior(targets.shape[-1], targets.dtype)
        spread = ops.sum(targets * mass, axis=-1, keepdims=True)
        return on * targets + spread * self._prior(targets.shape[-1], targets.dtype)

    def crossentropy(self, labels: Any, logits: Any) -> Any:
        """Return the loss `[...]` of integer labels `[...]` under logits `[..., K]`, with its own gradient."""
        num_classes = logits.shape[-1]
        on, mass = self._coefficients(num_classes, logits.dtype)
        prior = self._prior(num_classes, logits.dtype)
        valid = ops.logical_and(labels >= 0, labels < num_classes)
        index = ops.expand_dims(ops.where(valid, labels, 0), -1)
        if self.convention == "others" and self.prior is not None:
            on, mass = ops.take(on, index), ops.take(mass, index)
        poison = ops.cast(ops.where(valid, 0.0, float("nan")), logits.dtype)
        on = on + ops.expand_dims(poison, -1)

        @ops.custom_gradient
        def of_logits(z: Any) -> tuple[Any, Any]:
            # One softmax serves both passes. Its largest value is at least 1/K, so its logarithm is safe.
            probabilities = ops.softmax(z, axis=-1)
            top = ops.max(z, axis=-1, keepdims=True)
            log_top = ops.log(ops.max(probabilities, axis=-1, keepdims=True))
            z_prior = ops.mean(z, -1, keepdims=True) if self.prior is None else _weighted_sum(z, prior)
            loss = on * (top - _pick(z, index)) + mass * (top - z_prior) - log_top

            def gradient(*upstream: Any) -> Any:
                g = upstream[-1]
                return _add_at(probabilities * g - (mass * g) * prior, index, -on * g)

            return loss, gradient

        return ops.squeeze(of_logits(logits), -1)

    def _prior(self, num_classes: int, dtype: str) -> Any:
        if self.prior is None:
            return 1.0 / num_classes
        if len(self.prior) != num_classes:
            raise ValueError(f"`prior` has {len(self.prior)} classes, but the logits have {num_classes}.")
        return ops.cast(self.prior, dtype)

    def _coefficients(self, num_classes: int, dtype: str) -> tuple[Any, Any]:
        if self.convention == "all":
            return 1.0 - self.alpha, self.alpha
        prior = self._prior(num_classes, dtype)
        mass = self.alpha / (1.0 - prior)
        return 1.0 - self.alpha - mass * prior, mass


def _weighted_sum(values: Any, weights: Any) -> Any:
    return ops.matmul(values, ops.expand_dims(weights, -1))


def _pick(values: Any, index: Any) -> Any:
    """Return `values [..., K]` at `index [..., 1]`."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415 (other backends run without it)

        # Keras 3.15 copies the whole array here, by a broadcast to its own shape.
        return tf.gather(values, index, batch_dims=len(values.shape) - 1)
    return ops.take_along_axis(values, index, axis=-1)


def _add_at(values: Any, index: Any, amount: Any) -> Any:
    """Add `amount [..., 1]` to `values [..., K]` at `index [..., 1]`.

    A scatter would copy the values, which doubles the memory of a large vocabulary and is slower compiled.
    """
    here = ops.equal(ops.arange(values.shape[-1], dtype=index.dtype), index)
    return ops.where(here, _pick(values, index) + amount, values)


def _class_indices(y_true: Any, y_pred: Any) -> Any:
    """Integer labels `[...]`, or `None` if `y_true` has a column per class."""
    labels, logits = tuple(np.shape(y_true)), tuple(np.shape(y_pred))
    if len(logits) < 2:
        raise ValueError(f"Logits must have shape [..., num_classes] with a batch axis; received {logits}.")
    if len(labels) == len(logits) and labels[-1] == logits[-1] and logits[-1] != 1:
        return None
    if len(labels) == len(logits) and labels[-1] == 1:
        y_true = ops.squeeze(y_true, -1)
        labels = labels[:-1]
    if len(labels) != len(logits) - 1 or any(
        None not in (a, b) and a != b for a, b in zip(labels, logits[:-1], strict=True)
    ):
        raise ValueError(
            f"Labels must have the logits' shape without the last axis (class indices) or with it (one-hot or "
            f"soft targets); received labels {labels} and logits {logits}."
        )
    return ops.cast(y_true, "int32")


def _check_host_labels(y_true: Any, y_pred: Any, ignore_class: int | None = None) -> None:
    if not isinstance(y_true, np.ndarray | list | tuple):
        return
    labels, num_classes = np.asarray(y_true), np.shape(y_pred)[-1]
    if labels.ndim == np.ndim(y_pred) and labels.shape[-1] == num_classes:
        return
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_class)]
    if wrong.size:
        raise ValueError(
            f"Labels must be in [0, {num_classes}), the number of logits; received {wrong.size} outside, the "
            f"first being {wrong[0]}. Number the classes from 0, or name pads with `ignore_class`."
        )


def _checked_prior(prior: Sequence[float], convention: Convention) -> np.ndarray:
    values = np.asarray(prior, "float64")
    if values.ndim != 1 or not np.all(values >= 0) or abs(values.sum() - 1) > 1e-5:
        raise ValueError(
            "`prior` must be one non-negative number per class, summing to 1; received shape "
            f"{values.shape} with sum {values.sum():.6g}. Divide class counts by their total."
        )
    if convention == "others" and values.max() >= 1:
        raise ValueError('`prior` has all its mass on one class, which leaves convention="others" no other.')
    return values
