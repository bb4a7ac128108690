"""A student that learns from a teacher, and how soft a teacher is.

A teacher is a SavedModel or a Keras model; distillation is a target, not a trainer. `Distiller` puts the teacher's
logits beside the labels, a loss of `ls_keras.losses` compares, and all the rest is Keras's. Where the student's
images are not augmented, `teacher_logits` asks the teacher once, and the answers travel with the training batches; so
does `teacher_logits_at_every_position` where they are moved and not mirrored.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ls_keras import distribution, files
from ls_keras.analysis import arguments
from ls_keras.artifact import reading
from ls_keras.data import Images
from ls_keras.losses import distillation_targets

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import brentq

# Inputs on which a teacher is tried out before training.
_TRIAL_ROWS = 8
# Values of a float64 block of probabilities: 32 MiB.
_CHUNK_SIZE = 2**22


@dataclass(frozen=True, eq=False)
class Teacher:
    """A trained network, as its students see it; made by `load_teacher`.

    Call it with a batch `[n, *input_shape]` of any size for float32 logits `[n, num_classes]`, in inference mode and
    without gradient. Its variables are nobody's: a model that holds it neither trains nor saves them.

    Attributes:
        name: The SavedModel's folder, or the Keras model's name.
        num_classes: K.
        input_shape: Shape of one example.
        path: The SavedModel's folder; None for a Keras model.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    path: Path | None
    _logits: Callable[[tf.Tensor], tf.Tensor] = field(repr=False)

    def __call__(self, x: Any) -> tf.Tensor:
        return tf.stop_gradient(tf.cast(self._logits(x), tf.float32))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the SavedModel's program or any of its weights, for caches.

        Raises:
            ValueError: The teacher is a Keras model in memory.
        """
        if self.path is None:
            raise ValueError(
                f"The teacher {self.name} is a Keras model in memory, which nothing on disk identifies: export it and "
                "load the SavedModel, or leave the cache out."
            )
        return reading.digest(self.path)


def load_teacher(teacher: str | Path | keras.Model, num_classes: int, input_shape: tuple[int, ...]) -> Teacher:
    """Load a teacher and try it out, so that one that does not fit is found before training.

    It may be loaded within a strategy's scope or outside of it, and be called in either.

    Args:
        teacher: Folder of a SavedModel with a function or signature `serve` (or, without one, the signature
            `serving_default`) from inputs to logits, as `artifact.export` and Keras's `Model.export` write it; or a
            Keras model that returns logits. Of several outputs it is the one named `logits`.
        num_classes: K, of the data and of the student.
        input_shape: Shape of one example, as the student receives it.

    Returns:
        The teacher.

    Raises:
        FileNotFoundError: No SavedModel in that folder.
        ValueError: It is damaged, has no such endpoint, does not take such inputs, has several outputs and none named
            `logits`, another number of classes, or returns probabilities.

    Example:
        >>> teacher = load_teacher("saved_models/mnist_mlp/digits/saved_model", 10, (8, 8, 1))
        >>> teacher(np.zeros((5, 8, 8, 1), "float32")).shape
        TensorShape([5, 10])
    """
    num_classes = arguments.whole(num_classes, "num_classes", 2)
    if not isinstance(input_shape, Sequence) or not all(isinstance(n, int | np.integer) for n in input_shape):
        raise ValueError(
            f"`input_shape` must be the shape of one example, as (32, 32, 3), without None; received {input_shape!r}."
        )
    input_shape, path = tuple(input_shape), None if isinstance(teacher, keras.Model) else Path(teacher)
    name, endpoint = (teacher.name, _of_model(teacher)) if path is None else (str(path), _serve(path))
    loaded = Teacher(name, num_classes, input_shape, path, lambda x: reading.logits_of(endpoint(x), endpoint.name))
    dtype = endpoint.spec.dtype if endpoint.spec else tf.float32
    try:
        outputs = endpoint(reading.trial_inputs((_TRIAL_ROWS, *input_shape), dtype))
    except ValueError as problem:
        raise ValueError(
            f"The teacher {name} does not take inputs of shape [n, {', '.join(map(str, input_shape))}], those of the "
            f"student. Choose a teacher of such inputs. {problem}"
        ) from problem
    logits = tf.cast(reading.logits_of(outputs, endpoint.name), tf.float32).numpy()
    if logits.shape != (_TRIAL_ROWS, num_classes):
        raise ValueError(
            f"The teacher {name} makes outputs of shape [n, {', '.join(map(str, logits.shape[1:]))}], expected "
            f"[n, {num_classes}]: one logit for each class of the data. Choose a teacher trained on the same data."
        )
    if not np.isfinite(logits.max(axis=1)).all():  # a class masked by −∞ is none of this
        raise ValueError(
            f"The teacher {name} returns NaN or infinity on inputs between 0 and 1: its training diverged."
        )
    if arguments.are_probabilities(logits):
        raise ValueError(
            f"The teacher {name} returns probabilities: no output is negative and all rows sum to 1. Export it without "
            "its softmax, or with the logarithm behind it."
        )
    return loaded


class Distiller(distribution.Model):
    """A student whose targets are the labels and what a teacher says of the same inputs.

    It is the student: layers, weights, `fit`, `evaluate`, `predict` and export are those of the network that it was
    made of. Compile it with a `losses.DistillationLoss` or `losses.LogitMatching`. In each step the teacher is asked
    about the very inputs, augmented as they are, that the student sees, unless the batch brings its logits along as
    `losses.distillation_targets`, of `teacher_logits` for example. Metrics see the labels alone. In validation the
    loss is the same as in training; the student's own cross-entropy is `metrics.NegativeLogLikelihood`.

    Args:
        inputs, outputs, name: The student, as for `keras.Model`; its outputs are logits `[n, num_classes]`.
        teacher: What `load_teacher` returned. It is neither trained nor saved with the student.

    Raises:
        ValueError: The student's input shape or number of classes is not the teacher's.
        NotImplementedError: By `save`, of the student with its teacher.

    Example:
        >>> teacher = load_teacher("saved_models/mnist_mlp/digits/saved_model", 10, (8, 8, 1))
        >>> network = models.mlp((8, 8, 1), 10, units=(100,))
        >>> student = Distiller(network.input, network.output, teacher=teacher)
        >>> student.compile("sgd", losses.DistillationLoss(temperature=4.0), weighted_metrics=["accuracy"])

    Reference: Hinton, Vinyals, Dean (2015), "Distilling the knowledge in a neural network".
    """

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None, *, teacher: Teacher) -> None:
        super().__init__(inputs, outputs, name=name)
        expected = ((None, *teacher.input_shape), (None, teacher.num_classes))
        received = (tuple(self.input_shape), tuple(self.output_shape))
        if received != expected:
            raise ValueError(
                f"The student maps {received[0]} to {received[1]}, its teacher {expected[0]} to {expected[1]}: both "
                "must take the same inputs and tell the same classes apart."
            )
        self.teacher = teacher

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        if not _is_packed(y, y_pred):
            y = distillation_targets(y, self.teacher(x))
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        labels = tf.cast(y[..., 0], tf.int32) if _is_packed(y, y_pred) else y
        return super().compute_metrics(x, labels, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError(
            "A Distiller is not saved with its teacher. Save the student: keras.Model(model.inputs, model.outputs) has "
            "the same layers."
        )


def teacher_logits(
    teacher: Teacher, data: Images, split: str = "train", *, cache: str | Path | None = None, batch_size: int = 128
) -> np.ndarray:
    """Ask a teacher about every example of a split, without augmentation, in the order of `data.labels(split)`.

    Args:
        teacher: What `load_teacher` returned.
        data: The data set.
        split: `train`, `held_out` or `test`.
        cache: File (.npz) that keeps the logits: read if it exists, else written. It names the teacher and the data
            that it holds, in order, by their fingerprints.
        batch_size: Examples that the teacher sees at a time.

    Returns:
        float32 `[N, K]`.

    Raises:
        ValueError: The file was made with another teacher, other examples or another order of them, or is damaged; or
            the teacher returns NaN or infinity.

    Example:
        >>> logits = teacher_logits(teacher, data, cache="saved_models/mnist_mlp/digits/train_logits.npz")
        >>> student_data = data.with_targets(losses.distillation_targets(data.labels("train"), logits))
    """
    batches = ((x, weights) for x, _, weights in data.evaluation(split, batch_size))
    shape = (data.size(split), teacher.num_classes)
    return _kept(cache, teacher, data, split, shape, lambda: _ask(teacher, batches, split))


def teacher_logits_at_every_position(
    teacher: Teacher, data: Images, *, cache: str | Path | None = None, batch_size: int = 128
) -> np.ndarray:
    """Ask a teacher about every training example at every place that augmentation moves it to.

    Students of images that are moved and not mirrored then learn what a teacher in the step would tell them, and it is
    asked once for all of them instead of at every step of each.

    Args:
        teacher: What `load_teacher` returned.
        data: The data set.
        cache: As in `teacher_logits`.
        batch_size: Images that the teacher sees at a time.

    Returns:
        float32 `[N, data.num_positions, K]`, for `data.with_targets`.

    Raises:
        ValueError: As `teacher_logits`, or training images are mirrored, too.
    """
    split = f"train at {data.num_positions} positions"
    batches = ((x, None) for x in data.at_every_position(batch_size))
    shape = (data.num_train, data.num_positions, teacher.num_classes)
    return _kept(cache, teacher, data, split, shape, lambda: _ask(teacher, batches, split).reshape(shape))


def equivalent_smoothing(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Measure how soft a teacher's targets are, as the label smoothing that is as soft on average.

        γ = E[Σ_k (1 − y_k) p_k(T)] K/(K − 1),    p(T) = softmax(logits / T)

    the mean probability of the wrong classes, scaled so that targets smoothed by α have γ = α. The expectation is over
    the training set; take `teacher_logits` of the examples as they are (the paper does not say whether augmented).

    Args:
        logits: The teacher's, `[N, K]`. A class at −∞ has probability 0.
        labels: Integers `[N]` or `[N, 1]`, floats that are whole numbers, or one-hot rows `[N, K]`.
        temperature: T > 0.

    Returns:
        γ, from 0 (always certain and right) through 1 (uniform) to K/(K − 1) (always certain and wrong).

    Raises:
        ValueError: Shapes, labels or temperature that do not fit, logits that are probabilities or hold NaN, +∞ or
            rows of −∞ alone.

    Example:
        >>> equivalent_smoothing(np.log([[0.91, 0.03, 0.03, 0.03]]), np.array([0]))  # 0.09 * 4/3 = 0.12

    Reference: Müller, Kornblith, Hinton (2019), section 4.
    """
    logits, labels = _checked(logits, labels)
    if not arguments.number(temperature, "temperature", "a finite number above 0") > 0:
        raise ValueError(f"`temperature` must be a finite number above 0; received {temperature}.")
    return _gamma(logits, labels, temperature)


def matching_temperature(logits: np.ndarray, labels: np.ndarray, gamma: float) -> float:
    """Find the temperature at which a teacher is as soft as label smoothing by γ*: γ(T) = γ*.

    What an example adds to γ(T) rises with T, from 0 to its share of 1, if the teacher gets it right. So for a teacher
    without errors here γ(T) is monotone, and each γ* has its one T. What an example adds that the teacher gets wrong
    falls, until the mean logit under p(T) has come down to the label's; if that is above the plain mean, it rises from
    there. Together they start at γ(0⁺), the error rate times K/(K − 1), end at 1, and may meet γ* more than once on the
    way. The result is the warmest of these crossings, as far as a scale of temperatures in steps of 2 tells them apart:
    what is warmer is softer than γ*. Of a row with m classes above −∞ the last 1 becomes (1 − 1/m) K/(K − 1), if its
    label is one of them.

    Args:
        logits: The teacher's, `[N, K]`. A class at −∞ has probability 0.
        labels: Integers `[N]` or `[N, 1]`, floats that are whole numbers, or one-hot rows `[N, K]`.
        gamma: γ* in (0, 1).

    Returns:
        T, to a relative error of about 1e-12.

    Raises:
        ValueError: No temperature, in steps of 2, reaches γ*, or none above which all are softer: the message says
            what is reached. Or as in `equivalent_smoothing`.

    Example:
        One example of two classes, the right logit ahead by 2: γ(T) = 2 / (1 + exp(2/T)), so γ* = 0.5 is reached at
        T = 2 / ln 3 = 1.820478.

        >>> round(matching_temperature(np.array([[2.0, 0.0]]), np.array([0]), 0.5), 6)
        1.820478
    """
    logits, labels = _checked(logits, labels)
    if not 0 < arguments.number(gamma, "gamma", "a number in (0, 1)") < 1:
        raise ValueError(
            f"`gamma` must be in (0, 1); received {gamma}. γ is 0 for hard targets and 1 for uniform ones."
        )
    (narrowest, widest), num_classes = _gaps(logits), logits.shape[1]
    if np.isneginf(logits).any():
        softest = _gamma(np.where(np.isneginf(logits), -np.inf, 0.0), labels, 1.0)
        if softest <= gamma:
            raise ValueError(
                f"With these classes masked by −∞, γ(T) tends to {softest:.6g} at T → ∞, and nothing warmer is softer "
                f"than γ = {gamma}. Ask for less, or leave the masked classes out."
            )
        # A row of which no two unmasked logits are further apart than d has at least e^−d times its softness at T → ∞.
        narrow = np.log(softest / gamma)
    else:
        # A row of K logits of which none is further than this from another is at least as soft as γ, whatever its
        # label.
        narrow = np.log1p(num_classes * (1 - gamma) / gamma)
    # Twice that, so that rounding cannot lose the crossing.
    warmer = max(2 * widest / narrow, np.finfo(float).tiny)
    coldest = max(narrowest / 750, np.finfo(float).tiny)  # where exponentials of all gaps underflow
    colder, lowest = warmer / 2, np.inf
    while (reached := _gamma(logits, labels, colder)) >= gamma:
        lowest = min(lowest, reached)
        if colder < coldest:
            raise ValueError(
                f"No temperature, in steps of 2, makes the teacher as hard as γ = {gamma}: γ(T) comes down to "
                f"{lowest:.6g}, and tends to {reached:.6g}, the error rate times K/(K − 1), at T → 0. Ask for more, "
                "below 1."
            )
        colder, warmer = colder / 2, colder
    return brentq(lambda t: _gamma(logits, labels, t) - gamma, colder, warmer, xtol=1e-13 * colder, rtol=1e-13)


def _serve(path: Path) -> reading.Endpoint:
    """Return the SavedModel's function from inputs to logits."""
    # A strategy's scope holds for the thread that entered it. Loaded within it, a function could be called by its
    # replicas alone, and every variable would be mirrored.
    with ThreadPoolExecutor(max_workers=1) as outside:
        network = outside.submit(reading.load, path).result()
    function = reading.function(network, "serve") or reading.function(network, "serving_default")
    if function is None:
        raise ValueError(
            f"The SavedModel at {path} has no endpoint `serve`, and no signature `serving_default`; it has "
            f"{', '.join(reading.function_names(network)) or 'none at all'}. Export it with artifact.export or "
            "keras.Model.export."
        )
    return reading.Endpoint(function, f"The teacher {path}", network)


def _of_model(model: keras.Model) -> reading.Endpoint:
    """Return the Keras model as a function of its input, several outputs by name."""
    inputs = getattr(model, "inputs", None) or ()
    signature = [tf.TensorSpec(x.shape, x.dtype) for x in inputs] if len(inputs) == 1 else None

    @tf.function(input_signature=signature, autograph=False)
    def outputs(x: tf.Tensor) -> Any:
        names = getattr(model, "input", None)
        values = model(dict.fromkeys(names, x) if isinstance(names, dict) else x, training=False)
        return dict(zip(model.output_names, values, strict=True)) if isinstance(values, list | tuple) else values

    return reading.Endpoint(outputs, f"The teacher {model.name}")


def _is_packed(y: Any, y_pred: Any) -> bool:
    return len(y.shape) == len(y_pred.shape) and y.shape[-1] == y_pred.shape[-1] + 1


def _kept(
    cache: str | Path | None,
    teacher: Teacher,
    data: Images,
    split: str,
    shape: tuple[int, ...],
    ask: Callable[[], np.ndarray],
) -> np.ndarray:
    """Return logits from a file, if there is one, or as they are asked for, and keep these."""
    if cache is None:
        return ask()
    cache = Path(cache)
    origin = {"teacher": teacher.fingerprint, "data": data.fingerprint, "split": split}
    if cache.exists():
        return _read_cache(cache, origin, shape)
    logits = ask()
    cache.parent.mkdir(parents=True, exist_ok=True)
    files.remove_abandoned(cache.parent)
    with files.beside(cache) as temporary, temporary.open("wb") as file:
        np.savez(file, logits=logits, **origin)
    return logits


def _ask(teacher: Teacher, batches: Iterable[tuple[Any, Any]], split: str) -> np.ndarray:
    """Return a teacher's logits [rows, K], without rows of weight 0; weights None are all 1."""
    answers = [(teacher(x).numpy(), weights) for x, weights in batches]
    logits = np.concatenate([rows if weights is None else rows[weights.numpy() > 0] for rows, weights in answers])
    wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"The teacher {teacher.name} returns NaN or infinity for {len(wrong)} of {len(logits)} examples of "
            f"{split}, number {wrong[0]} the first. Its training diverged, or these inputs are not scaled as its own."
        )
    return logits


def _read_cache(cache: Path, origin: dict[str, str], shape: tuple[int, ...]) -> np.ndarray:
    try:
        with cache.open("rb") as file, np.load(file) as stored:
            found = {name: str(stored[name]) for name in origin}
            logits = stored["logits"]
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as problem:
        raise ValueError(
            f"{cache} is damaged, or no file of teacher logits ({problem}). Remove it, or name another file."
        ) from problem
    differing = [f"{name} {found[name]} and not {wanted}" for name, wanted in origin.items() if found[name] != wanted]
    if differing or logits.shape != shape:
        raise ValueError(
            f"{cache} does not hold the logits that are wanted: it is of {', '.join(differing) or logits.shape} "
            "(fingerprints; that of data changes with the examples, their order and scaling). Name another file, or "
            "remove this one to have it made anew."
        )
    return logits


def _checked(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits = arguments.real(logits, "logits")
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise ValueError(f"Expected logits [N, K] with N ≥ 1 and K ≥ 2; received shape {logits.shape}.")
    labels = arguments.labels(labels, *logits.shape)
    wrong = np.flatnonzero(~np.isfinite(logits.max(axis=1)))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} of {len(logits)} rows of logits hold NaN or infinity, or −∞ alone, the first is row "
            f"{wrong[0]}. Only masked classes may be at −∞. Check that the teacher's training did not diverge."
        )
    if arguments.are_probabilities(logits):
        raise ValueError(
            "Expected logits; received rows that are non-negative and sum to 1, as probabilities do. Pass the values "
            "before the softmax, or the logarithm of these."
        )
    return logits, labels


def _below_top(logits: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield logits less the row's largest, in double precision, some rows at a time."""
    rows = max(_CHUNK_SIZE // logits.shape[1], 1)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        chunk = logits[part].astype(float)
        with np.errstate(over="ignore"):  # to −∞, where the probability is 0 anyway
            chunk = chunk - chunk.max(axis=1, keepdims=True)
        yield part, chunk


def _gamma(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    total = 0.0
    for part, below in _below_top(logits):
        with np.errstate(over="ignore"):  # of the division, to −∞
            powers = np.exp(below / temperature)
        wrong = powers.copy()
        wrong[np.arange(len(wrong)), labels[part]] = 0.0  # 1 − p_y would lose small values
        total += float((wrong.sum(axis=1) / powers.sum(axis=1)).sum())
    num_examples, num_classes = logits.shape
    return total / num_examples * num_classes / (num_classes - 1)


def _gaps(logits: np.ndarray) -> tuple[float, float]:
    """Return the smallest gap below a row's largest logit, infinite without one, and the widest row's finite range."""
    narrowest, widest = np.inf, 0.0
    for _, below in _below_top(logits):
        narrowest = min(narrowest, np.min(-below, where=below < 0, initial=np.inf))
        widest = max(widest, np.max(-below, where=below > -np.inf, initial=0.0))
    return narrowest, widest
