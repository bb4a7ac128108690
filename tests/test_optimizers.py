"""What the paper's optimisation needs, by hand; each recipe's own steps are in test_paper_numbers.py."""

from ls_keras.optimizers import SmoothedGradientDescent, WarmedDecay, step_decay

import keras
import numpy as np
import pytest


def test_step_decay_divides_by_ten_after_each_drop():
    schedule = step_decay(0.1, (400, 500))
    rates = [float(schedule(step)) for step in (0, 400, 401, 500, 501, 10_000)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert float(again(401)) == float(schedule(401))


def test_without_drops_the_rate_stays():
    assert [float(step_decay(0.3, ())(step)) for step in (0, 1_000)] == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    ("rate", "drops", "message"),
    [
        (0.0, (), "`learning_rate` must be above 0"),
        (float("nan"), (3,), "`learning_rate` must be above 0"),
        (0.1, (2, 1), "in ascending order"),
        (0.1, (1, 1), "in ascending order"),
        (0.1, (0, 1), "`drops` must be steps above 0"),
        (0.1, (-2,), "`drops` must be steps above 0"),
    ],
)
def test_decays_out_of_range_are_refused(rate, drops, message):
    with pytest.raises(ValueError, match=message):
        step_decay(rate, drops)


def test_a_warmed_rate_rises_and_falls_by_periods():
    schedule = WarmedDecay(1.6, warmup=4, factor=0.5, period=3)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    for rate in (schedule, again):
        rates = [float(rate(step)) for step in range(12)]
        np.testing.assert_allclose(rates, [0.4, 0.8, 1.2, *[1.6] * 4, *[0.8] * 3, *[0.4] * 2], rtol=1e-6)
    constant = WarmedDecay(0.3, warmup=0, factor=1.0, period=1)
    assert [float(constant(step)) for step in (0, 1_000)] == pytest.approx([0.3, 0.3])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"peak": 0.0}, "`learning_rate` must be above 0; received 0.0"),
        ({"warmup": -1}, "`warmup` must be at least 0"),
        ({"period": 0}, "`period` 1; received 4 and 0"),
        ({"factor": 0.0}, r"must be in \(0, 1\]; received 0.0"),
        ({"factor": 1.1}, r"must be in \(0, 1\]; received 1.1"),
    ],
)
def test_warmed_rates_out_of_range_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        WarmedDecay(**{"peak": 1.0, "warmup": 4, "factor": 0.5, "period": 3, **changed})


def test_gradients_are_smoothed_and_the_last_layer_is_slower():
    inputs = keras.Input((1,))
    hidden = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="logits")(hidden))
    optimizer = SmoothedGradientDescent(step_decay(1.0, (1,)), smoothing=0.9, last_layer_rate=0.5)
    optimizer.build(model.trainable_variables)
    moved = []
    for _ in range(3):
        optimizer.apply([np.float32([[1.0]])] * 2)
        moved.append([float(variable.numpy()[0, 0]) for variable in model.trainable_variables])
    smoothed = np.array([0.1, 0.19, 0.271]) * [1, 1, 0.1]  # the rate falls after step 1
    np.testing.assert_allclose(moved, 1 - np.cumsum(smoothed)[:, None] * [1, 0.5], rtol=1e-6)
    again = SmoothedGradientDescent.from_config(optimizer.get_config())
    assert (again.smoothing, again.last_layer_rate) == (0.9, 0.5)


@pytest.mark.parametrize("options", [{"smoothing": 1.0}, {"smoothing": -0.1}, {"last_layer_rate": 0.0}])
def test_optimisers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        SmoothedGradientDescent(0.1, **options)
