"""What the functions of `analysis` accept: anything else is refused by a sentence before it can become a number."""

import numbers
from typing import Any

import numpy as np


def real(values: Any, name: str) -> np.ndarray:
    """Return an array of integers or floating-point numbers (bfloat16 as well); refuse every other kind."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(
            f"Expected {name} without a mask, which would be lost here; received a masked array. Drop the masked rows."
        )
    try:
        array = np.asarray(values)
    except ValueError as problem:  # rows of different lengths
        raise ValueError(
            f"Expected {name} to be one array of real numbers; received a ragged list ({problem})."
        ) from None
    # NumPy knows bfloat16 and the 8-bit floats only as "void" types with a name.
    small_float = array.dtype.kind == "V" and array.dtype.name.startswith(("bfloat", "float"))
    if not (array.dtype.kind in "fiu" or small_float):
        raise ValueError(
            f"Expected {name} to be real numbers; received an array of dtype {array.dtype} and shape {array.shape}."
        )
    return array


def are_probabilities(logits: np.ndarray) -> bool:
    """Say whether rows `[N, K]` are probabilities or per cents: none is negative, and all sum to 1, or to 100.

    They do so to 1 %, as rounding to bfloat16 leaves them or, of at least 8 rows, to the K/200 of numbers with two
    decimals, though at most 10 %. Fewer rows may sum to 100 by chance.
    """
    few = len(logits) < 8
    tolerance = 1e-2 if few else min(max(1e-2, logits.shape[1] / 200), 0.1)
    rows = max(2**20 // logits.shape[1], 1)
    for total in (1.0,) if few else (1.0, 100.0):
        for start in range(0, len(logits), rows):
            chunk = logits[start : start + rows]
            with np.errstate(over="ignore", invalid="ignore"):  # of what is no probability
                sums = chunk.sum(axis=1, dtype=float)
                if not (chunk.min() >= 0 and np.all(np.abs(sums / total - 1) <= tolerance)):
                    break
        else:
            return True
    return False


def whole(value: Any, name: str, least: int) -> int:
    """Return a Python or NumPy integer of at least `least`; refuse True, 2.0 and "2"."""
    if isinstance(value, bool | np.bool) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"Expected {name} to be an integer of at least {least}; received {value!r}.")
    return int(value)


def number(value: Any, name: str, expected: str = "a finite number", least: float = -np.inf) -> float:
    """Return a finite real number of at least `least`; refuse True, "2" and NaN."""
    real_number = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool)
    if not real_number or not np.isfinite(value) or value < least:
        raise ValueError(f"Expected {name} to be {expected}; received {value!r}.")
    return float(value)


def level(value: Any) -> float:
    """Return a confidence level."""
    if not 0.0 < number(value, "level", "a number in (0, 1), such as 0.95") < 1.0:
        raise ValueError(f"Expected level to be a number in (0, 1), such as 0.95; received {value!r}.")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """Return True or False; refuse "False", which would count as true."""
    if not isinstance(value, bool | np.bool):
        raise ValueError(f"Expected {name} to be True or False; received {value!r}.")
    return bool(value)


def classes(values: Any, name: str, count: int, num_classes: int) -> tuple[int, ...]:
    """Return `count` different class indices in [0, num_classes)."""
    try:
        values = tuple(values)
    except TypeError:
        values = (values,)
    integers = all(isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool) for value in values)
    if not integers or len(values) != count or len(set(values)) != count or not _inside(values, num_classes):
        spelled = {1: "one class", 2: "two different classes", 3: "three different classes"}[count]
        raise ValueError(f"Expected {name} to be {spelled}, integers in [0, {num_classes}); received {values}.")
    return tuple(int(value) for value in values)


def labels(values: Any, num_examples: int, num_classes: int | None = None) -> np.ndarray:
    """Return the class index of each example, int64 `[N]`.

    Args:
        values: Integers `[N]` or `[N, 1]`; floats where each is a whole number; or one-hot rows `[N, K]`.
        num_examples: N.
        num_classes: K; None where the classes are not counted.
    """
    array = np.asarray(values)
    if isinstance(values, np.ma.MaskedArray) or (array.dtype.kind not in "fiu" and not _one_hot_bool(array)):
        raise ValueError(
            f"Expected integer labels [{num_examples}], one per example; received "
            f"{'a masked array' if isinstance(values, np.ma.MaskedArray) else f'dtype {array.dtype}'} of shape "
            f"{array.shape}. Turn names into class indices, and drop masked rows."
        )
    if array.shape == (num_examples, 1):
        array = array[:, 0]
    if array.ndim == 2 and len(array) == num_examples and num_classes in (None, array.shape[1]):
        return _of_one_hot(array)
    if array.shape != (num_examples,):
        raise ValueError(
            f"Expected labels of shape [{num_examples}], one per example (or one-hot "
            f"[{num_examples}, {'K' if num_classes is None else num_classes}]); received shape {array.shape}."
        )
    if array.dtype.kind == "f" and not np.all(array == np.floor(array)):
        wrong = array[~(array == np.floor(array))][0]
        raise ValueError(
            f"Expected class indices as labels; received {wrong}, which is no whole number. A probability is no label: "
            "round or threshold it first."
        )
    if array.dtype.kind == "f" and len(array) and array.max() >= 2 ** (np.finfo(array.dtype).nmant + 1):
        raise ValueError(
            f"Received labels of {2 ** (np.finfo(array.dtype).nmant + 1)} or more in {array.dtype}, which rounds them "
            "to other classes. Keep labels in integers."
        )
    if len(array) and (array.min() < 0 or array.max() >= (np.inf if num_classes is None else num_classes)):
        inside = "of at least 0" if num_classes is None else f"in [0, {num_classes}), one for each class"
        raise ValueError(
            f"Expected labels {inside}; received {array.min():.15g} to {array.max():.15g}. Drop padding, and check the "
            "labels' offset."
        )
    return array.astype(np.int64)


def _inside(values: tuple[int, ...], num_classes: int) -> bool:
    return all(0 <= value < num_classes for value in values)


def _one_hot_bool(array: np.ndarray) -> bool:
    return array.dtype.kind == "b" and array.ndim == 2


def _of_one_hot(array: np.ndarray) -> np.ndarray:
    one = array == 1
    if not (np.all(one | (array == 0)) and np.all(one.sum(axis=1) == 1)):
        raise ValueError(
            f"Expected labels of shape {array.shape} to be one-hot: a single 1 in each row, else 0. Soft labels have "
            "no class that is right or wrong; take their argmax(-1) if the largest is meant."
        )
    return one.argmax(axis=1)
