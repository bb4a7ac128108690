"""What the paper's optimisation needs and Keras lacks."""

from collections.abc import Sequence
from typing import Any

from ls_keras import keras_hooks

import keras
from keras import ops


class SmoothedGradientDescent(keras.optimizers.Optimizer):
    """v ← s v + (1 − s) g; w ← w − rate v, with a fraction of the rate for the last layer (appendix A.5).

    Args:
        learning_rate: A number above 0, or a schedule.
        smoothing: s, in [0, 1).
        last_layer_rate: The rate of the layer named `logits` as a fraction of the others', above 0.

    Raises:
        ValueError: A number out of range.

    Example: from v = 0 and g = 1, the first step at rate 1 with s = 0.9 takes 0.1 off a weight.
    """

    def __init__(self, learning_rate: Any, smoothing: float = 0.9, last_layer_rate: float = 0.1) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"`gradient_smoothing` must be in [0, 1); received {smoothing}.")
        if not last_layer_rate > 0:
            raise ValueError(f"`last_layer_rate` must be above 0; received {last_layer_rate}.")
        super().__init__(learning_rate=learning_rate, name="smoothed_gradient_descent")
        self.smoothing, self.last_layer_rate = smoothing, last_layer_rate

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.smoothed = [self.add_variable_from_reference(v, "smoothed_gradient") for v in variables]
            self.fractions = [self.last_layer_rate if v.path.startswith("logits/") else 1.0 for v in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = keras_hooks.index_of(variable, self)
        smoothed, rate = self.smoothed[index], self.fractions[index] * ops.cast(learning_rate, variable.dtype)
        self.assign_add(smoothed, (1 - self.smoothing) * (gradient - smoothed))
        self.assign_sub(variable, rate * smoothed)

    def get_config(self) -> dict[str, Any]:
        own = {"smoothing": self.smoothing, "last_layer_rate": self.last_layer_rate}
        return {"learning_rate": super().get_config()["learning_rate"], **own}


def step_decay(learning_rate: float, drops: Sequence[int]) -> keras.optimizers.schedules.PiecewiseConstantDecay:
    """Return the schedule that divides a rate by 10 after each of these steps.

    Args:
        learning_rate: Before the first drop, above 0.
        drops: Steps above 0, ascending; none keeps the rate.

    Raises:
        ValueError: A number out of range, or steps out of order.

    Example:
        >>> schedule = step_decay(0.1, (400, 500))
        >>> [round(float(schedule(step)), 4) for step in (0, 401, 501)]
        [0.1, 0.01, 0.001]
    """
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be above 0; received {learning_rate}.")
    if list(drops) != sorted(set(drops)) or not all(drop > 0 for drop in drops):
        raise ValueError(f"`drops` must be steps above 0 in ascending order; received {drops}.")
    rates = [learning_rate / 10**drop for drop in range(len(drops) + 1)]
    if not drops:  # Keras needs a boundary
        drops, rates = (1,), rates * 2
    return keras.optimizers.schedules.PiecewiseConstantDecay(drops, rates)


@keras.saving.register_keras_serializable("ls_keras")
class WarmedDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises linearly, then falls by a factor at the end of each period.

        rate(s) = peak · (s + 1) / warmup                        for s < warmup
        rate(s) = peak · factor^⌊(s − warmup) / period⌋          from then on

    Args:
        peak: The highest rate, above 0.
        warmup: Steps until it is reached, 0 for none.
        factor: What is left of the rate after a period, in (0, 1].
        period: Steps between two falls, at least 1.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> rate = WarmedDecay(1.6, warmup=4, factor=0.5, period=3)
        >>> [round(float(rate(step)), 2) for step in (0, 3, 6, 7, 10)]
        [0.4, 1.6, 1.6, 0.8, 0.4]

    Reference: Goyal et al., 2017, section 2.2, https://arxiv.org/abs/1706.02677
    """

    def __init__(self, peak: float, *, warmup: int, factor: float, period: int) -> None:
        if not peak > 0:
            raise ValueError(f"`learning_rate` must be above 0; received {peak}.")
        if warmup < 0 or period < 1:
            raise ValueError(f"`warmup` must be at least 0 and `period` 1; received {warmup} and {period}.")
        if not 0 < factor <= 1:
            raise ValueError(f"The factor by which the rate falls must be in (0, 1]; received {factor}.")
        self.peak, self.warmup, self.factor, self.period = peak, warmup, factor, period

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        periods = ops.floor(ops.maximum(step - self.warmup, 0.0) / self.period)
        risen = ops.minimum((step + 1.0) / max(self.warmup, 1), 1.0)
        return self.peak * risen * ops.power(self.factor, periods)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "warmup": self.warmup, "factor": self.factor, "period": self.period}
