"""Losses over logits: smoothed cross-entropy, the confidence penalty, and what a student learns from a teacher.

All take labels as class indices `[...]` or `[..., 1]`, or as one-hot or soft targets `[..., num_classes]`, and logits;
probabilities are refused unless `from_logits=False` names them. A class that is not allowed may have the logit −∞: it
adds 0 · log 0 = 0. Logits and results are float32 unless `dtype` says otherwise.

Rows of weight 0, masked rows and those of `ignore_class` may hold anything. A mean is taken over the whole batch, also
where `tf.distribute` splits it over replicas.
"""

import ast
import contextlib
import functools
import hashlib
import importlib
import inspect
import math
import numbers
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

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

Convention = Literal["all", "others"]

# From so many classes on, compiling value and gradient by themselves pays on a CPU.
_LARGE_VOCABULARY = 4096
# A mean of logits of up to this size errs by less than what α = 0.1 times it may cost, 1e-5.
_SMALL_OFFSET = 64.0
_MEANS = ("sum_over_batch_size", "mean", "mean_with_sample_weight")
_trace = threading.local()


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
        Smoothed targets `[..., num_classes]`. Inside a compiled step, a row that is no distribution becomes NaN.

    Raises:
        ValueError: If `alpha` is outside [0, 1), the prior is not a distribution over the classes, or targets are class
            indices or rows that do not sum to 1.

    Example:
        >>> smooth_labels([[0.0, 1.0, 0.0, 0.0]], 0.2)  # 0.05, 0.85, 0.05, 0.05
        >>> smooth_labels([[0.0, 1.0, 0.0, 0.0]], 0.15, convention="others")  # 0.05, 0.85, 0.05, 0.05

    Reference: Müller, Kornblith, Hinton (2019), section 1.1.
    """
    smoothing = _Smoothing(alpha, convention, prior)
    shape = tuple(np.shape(targets))
    rows = ops.convert_to_tensor(targets)
    floating = keras.backend.is_float_dtype(rows.dtype)
    if not shape or shape[-1] == 1 or (len(shape) == 1 and not floating):
        raise ValueError(
            f"Expected one-hot or soft targets [..., num_classes]; received {rows.dtype} of shape {shape}, which look "
            "like class indices. Pass keras.ops.one_hot(indices, num_classes), or a single row as floats."
        )
    rows = rows if floating else ops.cast(rows, keras.backend.floatx())
    batch = rows if len(shape) > 1 else ops.expand_dims(rows, 0)
    have_columns(batch, batch)
    refuse_labels(batch, batch)
    labels = read_labels(batch, batch)
    smoothed = smoothing.of_targets(labels.targets) + ops.expand_dims(labels.fault, -1)
    return smoothed if len(shape) > 1 else ops.squeeze(smoothed, 0)


def reduce_weighted(
    values: Any, weights: Any = None, mask: Any = None, reduction: str | None = "sum_over_batch_size"
) -> Any:
    """Reduce losses as Keras does, with one denominator for the whole batch, and deaf to what does not count.

    With weights w and mask m (1 where not given), over all positions of the batch,

    - `"sum_over_batch_size"` or `"mean"`: Σ m w ℓ / Σ m,
    - `"mean_with_sample_weight"`: Σ m w ℓ / Σ m w,
    - `"sum"`: Σ m w ℓ,
    - `None` or `"none"`: m w ℓ for each position;

    a mean over nothing is 0, and ℓ may be anything where m w = 0. Within a replica of `tf.distribute` both sums of a
    mean run over all R replicas. Each replica gets 1/R of the mean, as Keras expects, and the gradient of its own
    share, so that the replicas' gradients add up to that of the mean. (Keras divides by each replica's own
    denominator, so that the mean depends on how pads are spread over the replicas.)

    Args:
        values: Losses `[...]`.
        weights: A number, `[N]`, `[N, 1]`, or one for each position.
        mask: Bool of such a shape, True where a position counts.
        reduction: As above.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> reduce_weighted([1.0, 2.0, 6.0], weights=[1.0, 0.0, 3.0])  # (1 + 18) / 3 = 6.3333
        >>> reduce_weighted([1.0, 2.0, 6.0], weights=[1.0, 0.0, 3.0], reduction="mean_with_sample_weight")  # 19/4
    """
    values = ops.convert_to_tensor(values)
    dtype = values.dtype
    # Sums in half precision overflow, and lose what is small beside them.
    values = ops.cast(values, keras.backend.result_type(dtype, "float32"))
    weights, mask = read_weights(weights, mask, values, values.dtype)
    counts = _that_count(weights, mask)
    if counts is not None:
        values = ops.where(counts, values, 0.0)
    if weights is not None:
        weights = weights if mask is None else ops.where(mask, weights, 0.0)
        values = values * weights
    if reduction in (None, "none"):
        return ops.cast(values, dtype)
    if reduction not in _MEANS:
        return ops.cast(ops.sum(values), dtype)
    if reduction == "mean_with_sample_weight" and weights is not None:
        denominator = ops.sum(weights)
    elif mask is not None:
        denominator = ops.sum(ops.cast(mask, values.dtype))
    else:
        denominator = ops.cast(ops.size(values), values.dtype)
    return ops.cast(_mean_over_replicas(ops.sum(values), denominator), dtype)


@contextlib.contextmanager
def recorded_denominators() -> Iterator[list[Any]]:
    """Collect the denominators of the means that `reduce_weighted` takes in this thread, scalars over all replicas.

    For gradient accumulation, where batches count by them.
    """
    before, _trace.denominators = getattr(_trace, "denominators", None), []
    try:
        yield _trace.denominators
    finally:
        _trace.denominators = before


class OverLogits(keras.losses.Loss):
    """What all losses here do with labels, logits and weights before and after `call`; a base for others.

    `call(y_true, y_pred)` gives the loss `[...]` of each row from labels of any kind and logits `[..., K]`.
    """

    from_logits = True
    ignore_class: int | None = None

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        with keras.name_scope(self.name):
            self._check_shapes(y_true, y_pred)
            mask, logits = keras_hooks.mask_of(y_pred), read_logits(y_pred, self.from_logits, self.dtype)
            rows = logits[..., 0]
            sample_weight, mask = read_weights(sample_weight, mask, rows, self.dtype)
            skipped = ignored(y_true, y_pred, self.ignore_class)
            if skipped is not None:
                kept = ops.logical_not(skipped)
                mask = kept if mask is None else ops.logical_and(mask, kept)
            counts = _that_count(sample_weight, mask)
            fault = self._refuse(y_true, logits, counts)
            if counts is not None:
                y_true, logits = self._without(y_true, logits, ops.expand_dims(counts, -1))
            values = self.call(y_true, logits) + fault
            return reduce_weighted(values, sample_weight, mask, self.reduction)

    def _check_shapes(self, y_true: Any, y_pred: Any) -> None:
        have_columns(y_true, y_pred)

    def _refuse(self, y_true: Any, logits: Any, counts: Any) -> Any:
        """Refuse values that can be seen; return NaN for probabilities inside a compiled step."""
        refuse_labels(y_true, logits, counts)
        return refuse_probabilities(logits, counts)

    def _without(self, y_true: Any, logits: Any, counts: Any) -> tuple[Any, Any]:
        """Empty the rows that do not count: 0 times the gradient of what they hold may be NaN."""
        if have_columns(y_true, logits):
            y_true = ops.convert_to_tensor(y_true)
            y_true = ops.where(counts, y_true, ops.zeros_like(y_true))
        return y_true, ops.where(counts, logits, 0.0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype}


@keras.saving.register_keras_serializable("ls_keras")
class SmoothedCrossentropy(OverLogits):
    """Cross-entropy between smoothed targets and the softmax of logits.

    For an integer label y and the prior q, with `"all"`:

        ℓ = logsumexp(z) − (1 − α) z_y − α Σ_k q_k z_k,    ∂ℓ/∂z = softmax(z) − (1 − α) e_y − α q

    A class masked by z_k = −∞ costs nothing where its target is 0 (α = 0, or q_k = 0), and +∞ where smoothing asks for
    mass on it. Integer labels never become a one-hot matrix of the logits' type. Only the gradient is an array of the
    logits' size: the softmax is taken again in the backward pass.

    Args:
        alpha: Smoothing α in [0, 1). 0 gives the plain cross-entropy.
        convention: `"all"` (paper) or `"others"` (tensor2tensor); see `smooth_labels`.
        prior: Distribution over the classes `[num_classes]`; `None` is uniform.
        ignore_class: Integer label, possibly negative, of positions that do not count (pads). The mean is then taken
            over the sum of the weights of the others (`reduction="mean_with_sample_weight"`).
        from_logits: False if the model ends in a softmax: log p is taken for the logits.
        name, reduction, dtype: As in `keras.losses.Loss`; see `reduce_weighted`.

    Raises:
        ValueError: If an argument is out of range, the labels' shape does not fit the logits, there is one logit only,
            predictions are seen to be probabilities (or, with `from_logits=False`, to be none), or labels are seen to
            be no classes or no distributions. Inside a compiled step, where values cannot be seen, all of these make
            the loss NaN.

    Example:
        >>> loss = SmoothedCrossentropy(alpha=0.1)
        >>> loss([2], [[0.0, 0.0, 0.0, 0.0]])  # ln 4 = 1.3863, whatever alpha
        >>> loss([0], [[2.0, 0.0]])  # 0.1269 + 0.05 * 2 = 0.2269
        >>> SmoothedCrossentropy(alpha=0.1, from_logits=False)([0], [[0.88079708, 0.11920292]])  # the same

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
        *,
        from_logits: bool = True,
    ) -> None:
        self.ignore_class = checked_ignore_class(ignore_class)
        if ignore_class is not None and reduction in _MEANS:
            reduction = "mean_with_sample_weight"
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.smoothing = _Smoothing(alpha, convention, prior)
        self.from_logits = bool(from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        skipped = ignored(y_true, y_pred, self.ignore_class)
        if skipped is not None:
            y_true = ops.reshape(ops.convert_to_tensor(y_true), ops.shape(skipped))
            y_true = ops.where(skipped, ops.zeros_like(y_true), y_true)
        labels = read_labels(y_true, y_pred)
        if labels.targets is not None:
            return crossentropy(self.smoothing.of_targets(labels.targets), ops.log_softmax(y_pred)) + labels.fault
        losses = self.smoothing.of_indices(labels.indices, y_pred, labels.fault)
        return losses if skipped is None else ops.where(skipped, 0.0, losses)

    def _without(self, y_true: Any, logits: Any, counts: Any) -> tuple[Any, Any]:
        # For indices the gradient of such a row is written as 0, which saves a copy of the logits.
        return super()._without(y_true, logits, counts) if have_columns(y_true, logits) else (y_true, logits)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.smoothing.alpha,
            "convention": self.smoothing.convention,
            "prior": None if self.smoothing.prior is None else self.smoothing.prior.tolist(),
            "ignore_class": self.ignore_class,
            "from_logits": self.from_logits,
        }


@keras.saving.register_keras_serializable("ls_keras")
class ConfidencePenalty(OverLogits):
    """Cross-entropy minus a multiple of the prediction's entropy.

        ℓ = H(y, p) − β H(p) = H(y, p) + β KL(p‖u) − β ln K

    Label smoothing adds KL(u‖p) in the other direction, since up to constants
    (1 − α) H(y, p) + α H(u, p) = (1 − α) H(y, p) + α KL(u‖p).

    Args:
        beta: Weight β ≥ 0 of the entropy, in nats per nat.
        from_logits: False if the model ends in a softmax: log p is taken for the logits.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If `beta` is negative or not finite; of labels and predictions as `SmoothedCrossentropy`.

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
        *,
        from_logits: bool = True,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.beta = _number("beta", beta)
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"`beta` must be a finite number ≥ 0; received {beta}.")
        self.from_logits = bool(from_logits)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        log_probabilities = ops.log_softmax(y_pred)
        entropy = crossentropy(ops.exp(log_probabilities), log_probabilities)
        labels = read_labels(y_true, y_pred)
        if labels.targets is not None:
            hard = crossentropy(labels.targets, log_probabilities) + labels.fault
        else:
            hard = _Smoothing(0.0).of_indices(labels.indices, y_pred, labels.fault)
        return hard - self.beta * entropy

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta, "from_logits": self.from_logits}


@keras.saving.register_keras_serializable("ls_keras")
class DisturbLabel(OverLogits):
    """Cross-entropy with labels of which each is redrawn, at every call, with probability α.

        ℓ = H(y', p),   y' = y with probability 1 − α, else uniform over the K classes

    In expectation over the draws this is label smoothing, (1 − α) H(y, p) + α H(u, p); a step sees one draw. It draws
    in evaluation, too: compare networks by a metric that is never disturbed. `distribution.get_state` has the state of
    its generator, so that a run goes on with the draws that it would have had. As in dropout, every replica makes the
    same draws for the rows that it has. A label may be redrawn into a class masked by z_k = −∞, which costs +∞.

    Args:
        alpha: α in [0, 1).
        seed: Of the draws; None takes one at random.
        from_logits: False if the model ends in a softmax: log p is taken for the logits.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Raises:
        ValueError: If `alpha` is out of range; of labels and predictions as `SmoothedCrossentropy`.

    Example:
        >>> DisturbLabel(alpha=0.0)([0], [[2.0, 0.0]])  # ln(1 + e⁻²) = 0.1269
        >>> values = [DisturbLabel(0.5, seed=s)([0], [[2.0, 0.0]]) for s in range(1000)]
        >>> sum(values) / 1000  # near 0.1269 + 0.25 · 2 = 0.6269

    Reference: Xie et al. (2016), "DisturbLabel: Regularizing CNN on the Loss Layer".
    """

    def __init__(
        self,
        alpha: float = 0.1,
        seed: int | None = None,
        name: str = "disturb_label",
        reduction: str | None = "sum_over_batch_size",
        dtype: str | None = None,
        *,
        from_logits: bool = True,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.alpha, self.seed, self.from_logits = _Smoothing(alpha).alpha, seed, bool(from_logits)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels, num_classes = read_labels(y_true, y_pred), y_pred.shape[-1]
        rows = ops.shape(y_pred)[:-1]
        redrawn = keras.random.uniform(rows, seed=self.seed_generator) < self.alpha
        drawn = keras.random.randint(rows, 0, num_classes, seed=self.seed_generator)
        if labels.targets is not None:
            other = ops.one_hot(drawn, num_classes, dtype=labels.targets.dtype)
            targets = ops.where(ops.expand_dims(redrawn, -1), other, labels.targets)
            return crossentropy(targets, ops.log_softmax(y_pred)) + labels.fault
        indices = ops.where(redrawn, ops.cast(drawn, labels.indices.dtype), labels.indices)
        return _Smoothing(0.0).of_indices(indices, y_pred, labels.fault)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "alpha": self.alpha, "seed": self.seed, "from_logits": self.from_logits}


def distillation_targets(labels: Any, teacher_logits: Any) -> Any:
    """Put a teacher's logits beside the labels, in one array: the target of the distillation losses.

    One array, as Keras gives the target of a model's one output to a loss; sample weights, masks and replicas then
    are as they are for any other target.

    Args:
        labels: Class indices `[...]` or `[..., 1]`, below 2²⁴, or one-hot rows `[..., num_classes]`.
        teacher_logits: Logits `[..., num_classes]`.

    Returns:
        float32 `[..., 1 + num_classes]` (float64 for float64 logits): the label, then the teacher's logits. Inside a
        compiled step a label that is no class is NaN.

    Raises:
        ValueError: If the labels do not fit the logits or are soft targets, or the teacher's values are seen to be
            probabilities.

    Example:
        >>> distillation_targets([2, 0], [[0.0, 1.0, 5.0], [3.0, 0.0, 0.0]])  # [[2, 0, 1, 5], [0, 3, 0, 0]]
    """
    columns = have_columns(labels, teacher_logits)
    refuse_labels(labels, teacher_logits)
    logits = ops.convert_to_tensor(teacher_logits)
    logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
    if seen(logits) is not None:  # inside a compiled step, the loss looks
        refuse_probabilities(logits)
    read = read_labels(labels, logits)
    if columns:
        hard = ops.max(read.targets, axis=-1, initial=0.0) >= 1
        if seen(hard) is not None and not seen(hard).all():
            raise ValueError(
                "Labels beside a teacher's logits must be class indices or one-hot rows; received soft targets. Mix "
                "them into the loss of their own, or take argmax(-1)."
            )
        label = ops.where(hard, ops.cast(ops.argmax(read.targets, axis=-1), logits.dtype), float("nan"))
    else:
        label = ops.cast(read.indices, logits.dtype)
    return ops.concatenate([ops.expand_dims(label + read.fault, -1), logits], axis=-1)


def get(text: str, *, seed: int | None = None) -> keras.losses.Loss:
    """Make a loss from what a command line says: a call of a class of this module, or of anybody's.

    Args:
        text: `Name(argument=value, …)` with values as Python writes them; `package.module:Name(…)` for a loss of
            another module.
        seed: For a loss that takes one, unless the text names another.

    Returns:
        The loss.

    Raises:
        ValueError: No such call, no such class, or arguments that it does not take.

    Example:
        >>> get("ConfidencePenalty(beta=0.1)").beta
        0.1
        >>> get("keras.losses:CategoricalFocalCrossentropy(from_logits=True)").name
        'categorical_focal_crossentropy'
    """
    before, bracket, arguments = text.partition("(")  # in which dictionaries have colons, too
    module, _, name = before.rpartition(":")
    call = name + bracket + arguments
    try:
        node = ast.parse(call.strip(), mode="eval").body
        node = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        name, arguments = node.func.id, {each.arg: ast.literal_eval(each.value) for each in node.keywords}
        positional = [ast.literal_eval(value) for value in node.args]
    except (SyntaxError, AttributeError, ValueError) as problem:
        raise ValueError(
            f"A loss must be written as Name(argument=value), as SmoothedCrossentropy(alpha=0.1); received {text!r}."
        ) from problem
    try:
        kind = getattr(importlib.import_module(module or __name__), name)
    except (ImportError, AttributeError, TypeError) as problem:  # TypeError: a relative name
        known = [each for each, value in globals().items() if isinstance(value, type) and _is_public_loss(value)]
        raise ValueError(
            f"There is no loss {name} in {module or __name__}, which has {', '.join(known)}; received {text!r}. Write "
            "module:Name(…) for one of your own."
            if not module
            else f"There is no loss {name} in {module}; received {text!r} ({problem})."
        ) from problem
    if not (isinstance(kind, type) and issubclass(kind, keras.losses.Loss)):
        raise ValueError(f"A loss must be a subclass of keras.losses.Loss; received {text!r}.")
    try:
        if seed is not None and "seed" in inspect.signature(kind).parameters:
            arguments = {"seed": seed, **arguments}
        return kind(*positional, **arguments)
    except TypeError as problem:
        raise ValueError(f"{name} does not take these arguments ({problem}); received {text!r}.") from problem


def source(text: str | None) -> str | None:
    """Return a digest of the code of anybody's own loss, so that a run knows it from an edited one; else None."""
    if text is None or ":" not in text.partition("(")[0]:
        return None
    code = inspect.getsource(type(get(text)))
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def chosen(config: Any) -> keras.losses.Loss:
    """Return a recipe's loss: smoothed by `config.alpha`, or what `config.loss` puts in its place.

    Raises:
        ValueError: As `get`, or for a loss that needs a teacher.
    """
    if config.loss is None:
        return SmoothedCrossentropy(config.alpha)
    loss = get(config.loss, seed=config.seed)
    if isinstance(loss, _FromTeacher):
        raise ValueError(f"--loss {config.loss} learns from a teacher's logits: give --teacher instead.")
    return loss


class _FromTeacher(OverLogits):
    """A loss of the student's logits `[..., K]` against `distillation_targets` `[..., 1 + K]`."""

    def __init__(self, beta: float, name: str, reduction: str | None, dtype: str | None) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.beta = _number("beta", beta)
        if not 0 <= self.beta <= 1:
            raise ValueError(f"`beta`, the teacher's share of the loss, must be in [0, 1]; received {beta}.")

    def _check_shapes(self, y_true: Any, y_pred: Any) -> None:
        targets, logits = tuple(np.shape(y_true)), tuple(np.shape(y_pred))
        known = logits and targets and None not in (targets[-1], logits[-1])
        if not known or len(targets) != len(logits) or targets[-1] != logits[-1] + 1:
            raise ValueError(
                f"{type(self).__name__} takes distillation_targets(labels, teacher_logits), of shape "
                f"[..., 1 + num_classes]; received targets {targets} and logits {logits}. A Distiller makes them "
                "from labels."
            )
        if logits[-1] == 1:
            raise ValueError(
                "The student and its teacher have one logit, and the softmax of one logit is always 1. Give a binary "
                "classifier two logits, Dense(2)."
            )

    def _refuse(self, y_true: Any, logits: Any, counts: Any) -> Any:
        y_true = ops.convert_to_tensor(y_true)
        if self.beta < 1:
            refuse_labels(y_true[..., 0], logits, counts)
        return refuse_probabilities(logits, counts) + ops.cast(
            refuse_probabilities(y_true[..., 1:], counts), logits.dtype
        )

    def _without(self, y_true: Any, logits: Any, counts: Any) -> tuple[Any, Any]:
        return ops.where(counts, ops.convert_to_tensor(y_true), 0.0), ops.where(counts, logits, 0.0)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_true = ops.convert_to_tensor(y_true)
        losses = 0.0
        # A term of weight 0 is left out: it may be infinite, and 0 · ∞ would make the loss NaN.
        if self.beta < 1:
            labels = read_labels(y_true[..., 0], y_pred)
            hard = _Smoothing(0.0).of_indices(labels.indices, y_pred, labels.fault)
            losses = (1 - self.beta) * hard
        if self.beta > 0:
            losses = losses + self.beta * self.from_teacher(ops.cast(y_true[..., 1:], y_pred.dtype), y_pred)
        return losses

    def from_teacher(self, teacher_logits: Any, logits: Any) -> Any:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "beta": self.beta}


@keras.saving.register_keras_serializable("ls_keras")
class DistillationLoss(_FromTeacher):
    """Cross-entropy with the labels, mixed with the cross-entropy with a teacher's softened predictions.

    For the label y, the student's logits z and the teacher's v, with p(T) = softmax(z / T), pᵗ(T) = softmax(v / T):

        ℓ = (1 − β) H(y, p(1)) + β c H(pᵗ(T), p(Tₛ)),    ∂ℓ/∂z = (1 − β) (p(1) − e_y) + β c (p(Tₛ) − pᵗ(T)) / Tₛ

    c is 1, or T². It is a cross-entropy, not a divergence: a student that equals its teacher is at the entropy of
    pᵗ(T), and the gradient there is 0. A class that the teacher masks by −∞ costs nothing.

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
        self.temperature = _number("temperature", temperature)
        self.student_temperature = _number("student_temperature", student_temperature)
        for argument in ("temperature", "student_temperature"):
            if not 0 < getattr(self, argument) < math.inf:
                raise ValueError(f"`{argument}` must be a finite number above 0; received {getattr(self, argument)}.")
        self.scale_by_temperature_squared = bool(scale_by_temperature_squared)

    def from_teacher(self, teacher_logits: Any, logits: Any) -> Any:
        target = ops.softmax(teacher_logits / self.temperature, axis=-1)
        loss = crossentropy(target, ops.log_softmax(logits / self.student_temperature, axis=-1))
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

    A class that both mask by −∞ does not count, in sums and means; one that only one masks makes the loss infinite.

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
        own, its = ops.equal(logits, -math.inf), ops.equal(teacher_logits, -math.inf)
        masked, apart = ops.logical_and(own, its), ops.any(ops.logical_xor(own, its), axis=-1)
        number = ops.sum(ops.cast(ops.logical_not(masked), logits.dtype), axis=-1, keepdims=True)
        difference = ops.where(masked, 0.0, logits) - ops.where(masked, 0.0, teacher_logits)
        if self.centred:
            difference = ops.where(masked, 0.0, difference - ops.sum(difference, axis=-1, keepdims=True) / number)
        squares = ops.where(apart, math.inf, 0.5 * ops.sum(ops.square(difference), axis=-1))
        return squares if self.over_classes == "sum" else squares / number[..., 0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "over_classes": self.over_classes, "centred": self.centred}


class _Smoothing:
    """The mix of a target with a prior, and its cross-entropy for integer labels.

    In both conventions a label y becomes a_y e_y + c_y q: c = α and a = 1 − α for `"all"`;
    c_y = α/(1 − q_y) and a_y = 1 − α − c_y q_y for `"others"`. So a_y + c_y = 1.
    """

    def __init__(self, alpha: float, convention: Convention = "all", prior: Sequence[float] | None = None) -> None:
        self.alpha = _number("alpha", alpha)
        if not 0 <= self.alpha < 1:
            raise ValueError(f"`alpha` must be in [0, 1); received {alpha}. Use 0.1 for 10 % smoothing.")
        if convention not in ("all", "others"):
            raise ValueError(
                f'`convention` must be "all" (α/K to every class, the paper) or "others" (α/(K−1) to the wrong '
                f"ones, tensor2tensor); received {convention!r}."
            )
        self.convention = convention
        self.prior = None if prior is None else _checked_prior(prior, convention)

    def of_targets(self, targets: Any) -> Any:
        size = num_classes(targets)
        on, mass = self._coefficients(size, targets.dtype)
        if self.convention == "all":
            return on * targets + mass * self._prior(size, targets.dtype)
        spread = ops.sum(targets * mass, axis=-1, keepdims=True)
        return on * targets + spread * self._prior(size, targets.dtype)

    def of_indices(self, labels: Any, logits: Any, fault: Any) -> Any:
        """Return the loss `[...]` of integer labels `[...]` under logits `[..., K]`, with its own gradient."""
        size, index = num_classes(logits), ops.expand_dims(labels, -1)
        on, mass = self._coefficients(size, logits.dtype)
        if self.convention == "others" and self.prior is not None:
            on, mass = ops.take(on, index), ops.take(mass, index)
        on = on + ops.expand_dims(fault, -1)
        mass = None if self.alpha == 0 else ops.convert_to_tensor(mass, logits.dtype)
        prior = None if self.prior is None else self._prior(size, logits.dtype)
        pieces = _pieces(logits)

        @ops.custom_gradient
        def of_logits(z: Any) -> tuple[Any, Any]:
            loss, top, total = _value(z, index, on, mass, prior, pieces)

            def gradient(*upstream: Any) -> Any:
                return pieces.slope(z, index, top, total, upstream[-1], on, mass, prior)

            return loss, gradient

        return ops.squeeze(of_logits(logits), -1)

    def _prior(self, size: Any, dtype: str) -> Any:
        if self.prior is None:
            return 1.0 / ops.cast(size, dtype)
        if isinstance(size, int) and len(self.prior) != size:
            raise ValueError(f"`prior` has {len(self.prior)} classes, but the logits have {size}.")
        return ops.convert_to_tensor(self.prior, dtype)

    def _coefficients(self, size: Any, dtype: str) -> tuple[Any, Any]:
        if self.convention == "all":
            return 1.0 - self.alpha, self.alpha
        prior = self._prior(size, dtype)
        mass = self.alpha / (1.0 - prior)
        return 1.0 - self.alpha - mass * prior, mass


def _value(z: Any, index: Any, on: Any, mass: Any, prior: Any, pieces: "_Pieces") -> tuple[Any, Any, Any]:
    """Return the losses `[..., 1]`, and the largest logit z* and Σ_k exp(z_k − z*), from which p comes again.

    All is taken relative to z*, so that an offset common to all logits costs no digits.
    """
    # Without `initial`, Keras refuses an empty batch.
    top = ops.max(z, axis=-1, keepdims=True, initial=-math.inf)
    total = pieces.sum_of_exponentials(z, top)
    own = _pick(z, index) - top
    loss = ops.log(total) - on * own
    if mass is not None and prior is None:
        loss = loss - mass * pieces.mean_below(z, top)
    elif mass is not None:
        loss = loss - mass * ops.sum(prior * ops.where(prior > 0, z - top, 0.0), axis=-1, keepdims=True)
    # A label of probability 0 costs +∞, where the terms of "others" may be ∞ − ∞.
    return ops.where(ops.equal(own, -math.inf), on - on + math.inf, loss), top, total


def _sum_of_exponentials(z: Any, top: Any) -> Any:
    return ops.sum(ops.exp(z - top), axis=-1, keepdims=True)


def _mean_below(z: Any, top: Any) -> Any:
    return ops.mean(z - top, axis=-1, keepdims=True)


def _mean_below_in_one_pass(z: Any, top: Any) -> Any:
    """Do as `_mean_below`, without an array of differences where logits are too small for an offset to cost digits."""

    def of_small() -> Any:
        return ops.mean(z, axis=-1, keepdims=True) - top

    return ops.cond(ops.all(ops.abs(top) <= _SMALL_OFFSET), of_small, lambda: _mean_below(z, top))


def _slope(z: Any, index: Any, top: Any, total: Any, upstream: Any, on: Any, mass: Any, prior: Any) -> Any:
    """Return upstream · (p − a e_y − c q), and 0 for rows that the loss does not depend on, whatever they hold."""
    slope = (upstream / total) * ops.exp(z - top)
    if mass is not None:
        share = 1.0 / ops.cast(num_classes(z), z.dtype) if prior is None else prior
        slope = slope - (upstream * mass) * share
    here = ops.equal(ops.arange(num_classes(z), dtype=index.dtype), index)
    slope = ops.where(here, slope - upstream * on, slope)
    return ops.where(ops.equal(upstream, 0.0), 0.0, slope)


class _Pieces(NamedTuple):
    """The parts of the cross-entropy that touch every logit."""

    sum_of_exponentials: Callable = _sum_of_exponentials
    mean_below: Callable = _mean_below
    slope: Callable = _slope


def _pieces(logits: Any) -> _Pieces:
    """Return the parts, those with exponentials compiled where the vocabulary is large and the graph is not compiled.

    On a CPU, Keras does not compile training steps; each operation would then be a pass over memory. On an accelerator
    it compiles the whole step.
    """
    if keras.backend.backend() == "tensorflow" and (logits.shape[-1] or 0) >= _LARGE_VOCABULARY:
        import tensorflow as tf  # noqa: PLC0415 (other backends run without it)

        if all(device.device_type == "CPU" for device in tf.config.list_physical_devices()):
            return _Pieces(_compiled(_sum_of_exponentials), _mean_below_in_one_pass, _compiled(_slope))
    return _Pieces()


@functools.cache
def _compiled(function: Callable) -> Callable:
    import tensorflow as tf  # noqa: PLC0415 (other backends run without it)

    return tf.function(function, jit_compile=True, autograph=False, reduce_retracing=True)


def _pick(values: Any, index: Any) -> Any:
    """Return `values [..., K]` at `index [..., 1]`."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # noqa: PLC0415 (other backends run without it)

        # Keras 3.15 copies the whole array here, by a broadcast to its own shape.
        return tf.gather(values, index, batch_dims=len(values.shape) - 1)
    return ops.take_along_axis(values, index, axis=-1)


def _that_count(weights: Any, mask: Any) -> Any:
    """Return which positions have a weight other than 0 and are not masked, bool `[...]`; None for all."""
    if weights is None:
        return mask
    weighty = ops.not_equal(weights, 0.0)
    return weighty if mask is None else ops.logical_and(weighty, mask)


def _mean_over_replicas(total: Any, denominator: Any) -> Any:
    """Return total / denominator, both summed over the replicas of `tf.distribute`; see `reduce_weighted`."""
    sums = _over_replicas([total, denominator])
    whole, denominator = sums or (total, denominator)
    if getattr(_trace, "denominators", None) is not None:
        _trace.denominators.append(denominator)
    mean = ops.divide_no_nan(total, denominator)
    # The value is that of the whole batch, the gradient this replica's part of it.
    return mean if sums is None else mean + ops.stop_gradient(ops.divide_no_nan(whole, denominator) - mean)


def _over_replicas(local: list[Any]) -> list[Any] | None:
    """Return the mean of the first and the sum of the second number over the replicas; None where there is one."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf  # noqa: PLC0415 (other backends run without it)

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return None
    total, denominator = context.all_reduce("SUM", [tf.stop_gradient(value) for value in local])
    return [total / context.num_replicas_in_sync, denominator]


def _is_public_loss(kind: type) -> bool:
    return issubclass(kind, OverLogits) and kind is not OverLogits and not kind.__name__.startswith("_")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise ValueError(f"`{name}` must be a real number; received {value!r}.")
    return float(value)


def _checked_prior(prior: Sequence[float], convention: Convention) -> np.ndarray:
    values = np.asarray(prior)
    values = values.astype("float64") if values.dtype.kind in "iuf" else np.full((), np.nan)
    if values.ndim != 1 or not np.all(values >= 0) or abs(values.sum() - 1) > 1e-5:
        raise ValueError(
            "`prior` must be one non-negative number per class, summing to 1; received shape "
            f"{values.shape} with sum {values.sum():.6g}. Divide class counts by their total."
        )
    if convention == "others" and values.max() >= 1:
        raise ValueError('`prior` has all its mass on one class, which leaves convention="others" no other.')
    return values
