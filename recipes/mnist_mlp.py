"""The fully connected MNIST teacher with label smoothing: 0.59 % test error (section 4 and appendix A.5).

    python recipes/mnist_mlp.py                      # the paper: 1200-1200 ReLU, α = 0.1, 100 epochs
    python recipes/mnist_mlp.py digits --alpha 0.0   # hard targets on scikit-learn's digits, seconds

Expected at the paper's size: a test accuracy of about 0.9941. Where the paper is silent (batch size, scaling,
biases) the values follow Hinton, Vinyals, Dean (2015) and are marked below.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ls_keras import data, distribution, experiment, losses, metrics, models

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Config:
    """What is trained; the defaults are the paper."""

    dataset: str = "mnist"
    """mnist, fashion_mnist or digits"""
    train_size: int | None = None
    """training examples; None is all that are left [A.5 trains on all 60,000]"""
    held_out_size: int = 0
    """examples held out of the training set; 0 reports the test set alone, as A.5 does"""
    scaling: Literal["standardize", "unit"] = "unit"
    """unit is pixels in [0, 1]; standardize gives each image mean 0 and deviation 1 [silent]"""
    alpha: float = 0.1
    """label smoothing α [A.5]; 0 is hard targets"""
    units: tuple[int, ...] = (1200, 1200)
    """widths of the hidden layers [A.5]"""
    initial_stddev: float = 0.03
    """σ of the Gaussian initial weights [A.5 says variance 0.03, which would give logits of ±29]"""
    input_dropout: float = 0.0
    """dropout rate of the pixels; 0.2 in the dropout teacher [Hinton et al. 2012]"""
    dropout: float = 0.0
    """dropout rate of the hidden layers; 0.5 in the dropout teacher [Hinton et al. 2012]"""
    max_norm: float | None = None
    """greatest incoming weight norm; √15 = 3.87 in the dropout teacher [Hinton et al. 2012]"""
    shift: int = 2
    """random shifts of up to this many pixels in x and y, all equiprobable [A.5: 25 positions]"""
    learning_rate: float = 1.0
    """at step 0; falls linearly to 0 at the last step [A.5]"""
    last_layer_rate: float = 0.1
    """the last layer's rate as a fraction of `learning_rate` [A.5]"""
    gradient_smoothing: float = 0.9
    """v ← s v + (1 − s) g, w ← w − rate v [A.5]"""
    batch_size: int = 100
    """examples per step, over all devices [silent; Hinton et al. 2012]"""
    steps: int = 60_000
    """optimisation steps [A.5: 100 epochs of 60,000]"""
    evaluate_every: int = 600
    """steps between evaluations and checkpoints"""
    seed: int = 0
    """of initial weights, order of examples, shifts and dropout"""


SIZES = {
    "paper": Config(),
    "fashion": Config(dataset="fashion_mnist", held_out_size=10_000, steps=10_000, evaluate_every=500),
    "digits": Config(
        dataset="digits",
        train_size=800,
        held_out_size=600,
        units=(200, 200),
        shift=1,
        batch_size=50,
        steps=2_400,
        evaluate_every=240,
    ),
    "smoke": Config(
        dataset="digits",
        train_size=200,
        held_out_size=100,
        units=(16, 16),
        batch_size=50,
        steps=4,
        evaluate_every=2,
    ),
}


def load_data(config: Config, data_dir: Path | None = None) -> data.Data:
    """Give scaled images, randomly shifted in training."""
    return data.load_images(
        config.dataset,
        train_size=config.train_size,
        held_out_size=config.held_out_size,
        scaling=config.scaling,
        shift=config.shift,
        data_dir=data_dir,
    )


def build_model(config: Config, images: data.Data) -> distribution.Model:
    """Compose and compile the network."""
    network = models.mlp(
        images.input_shape,
        images.num_classes,
        units=config.units,
        initial_stddev=config.initial_stddev,
        input_dropout=config.input_dropout,
        dropout=config.dropout,
        max_norm=config.max_norm,
        seed=config.seed,
    )
    model = distribution.Model(network.input, network.output)
    model.compile(
        optimizer=SmoothedGradientDescent(
            keras.optimizers.schedules.PolynomialDecay(config.learning_rate, config.steps, end_learning_rate=0.0),
            smoothing=config.gradient_smoothing,
            last_layer_rate=config.last_layer_rate,
        ),
        loss=losses.SmoothedCrossentropy(config.alpha),
        weighted_metrics=metrics.classification(),
    )
    return model


class SmoothedGradientDescent(keras.optimizers.Optimizer):
    """v ← s v + (1 − s) g; w ← w − rate v, with a fraction of the rate for the last layer (appendix A.5)."""

    def __init__(self, learning_rate: Any, smoothing: float = 0.9, last_layer_rate: float = 0.1) -> None:
        super().__init__(learning_rate=learning_rate, name="smoothed_gradient_descent")
        self.smoothing, self.last_layer_rate = smoothing, last_layer_rate

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            super().build(variables)
            self.smoothed = [self.add_variable_from_reference(v, "smoothed_gradient") for v in variables]
            self.fractions = [self.last_layer_rate if v.path.startswith("logits/") else 1.0 for v in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        smoothed, rate = self.smoothed[index], self.fractions[index] * tf.cast(learning_rate, variable.dtype)
        smoothed.assign_add((1 - self.smoothing) * (gradient - smoothed))
        variable.assign_sub(rate * smoothed)


def run(config: Config, *, size: str, where: experiment.Where | None = None) -> experiment.Run:
    """Train one network, or return it if it is finished."""
    return experiment.run(config, "mnist_mlp", SIZES, load_data, build_model, size=size, where=where)


if __name__ == "__main__":
    experiment.main(__doc__, SIZES, run)
