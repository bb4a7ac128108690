"""A recipe for tests of `ls_keras.experiment`: a small network with dropout on handwritten digits."""

from dataclasses import dataclass

from ls_keras import data, distribution, experiment, losses, metrics, models

import keras


@dataclass(frozen=True)
class Config:
    """What is trained."""

    alpha: float = 0.1
    """label smoothing"""
    units: tuple[int, ...] = (16, 12)
    """widths of the hidden layers"""
    dropout: float = 0.3
    """rate of the hidden layers"""
    learning_rate: float = 0.1
    """of gradient descent with momentum 0.9"""
    batch_size: int = 20
    """examples per step"""
    steps: int = 12
    """optimisation steps"""
    evaluate_every: int = 3
    """steps between checkpoints"""
    seed: int = 0
    """of everything random"""


SIZES = {"small": Config(), "plain": Config(dropout=0.0)}


def load_data(config, data_dir=None):
    return data.load_images("digits", train_size=130, held_out_size=90, scaling="unit", shift=1, data_dir=data_dir)


def build_model(config, images):
    network = models.mlp(
        images.input_shape, images.num_classes, units=config.units, dropout=config.dropout, seed=config.seed
    )
    model = distribution.Model(network.input, network.output)
    model.compile(
        keras.optimizers.SGD(config.learning_rate, momentum=0.9),
        losses.SmoothedCrossentropy(config.alpha),
        weighted_metrics=metrics.classification(),
    )
    return model


def check(config, default):
    losses.SmoothedCrossentropy(config.alpha)


RECIPE = experiment.Recipe("tiny", SIZES, load_data, build_model, check, description=__doc__)

if __name__ == "__main__":
    RECIPE.main()
