"""MNIST teachers and students, fully connected (section 4, appendix A.5): a better teacher, a worse student.

    python recipes/mnist_mlp.py                                        # smoothed teacher, 0.59 % test error
    python recipes/mnist_mlp.py dropout                                # hard targets and dropout, 0.67 %
    python recipes/mnist_mlp.py student --teacher saved_models/mnist_mlp/paper/saved_model      # 0.91 %
    python recipes/mnist_mlp.py student --teacher saved_models/mnist_mlp/dropout/saved_model    # 0.74 %
    python recipes/mnist_mlp.py digits --alpha 0.0                     # scikit-learn's digits, seconds

The percentages are the paper's test errors. Where it is silent (batch size, scaling, biases, dropout rates) the
values follow Hinton et al. (2012, 2015) and are marked below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ls_keras import data, distillation, distribution, experiment, losses, metrics, models, optimizers
from ls_keras.study import observe

import numpy as np


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
    split_seed: int | None = None
    """shuffles the images before they are split; None keeps the order of the files, as the paper does"""
    label_noise: float = 0.0
    """fraction of training labels replaced by a random other class, the same in all networks [0 in the paper]"""
    alpha: float = 0.1
    """label smoothing α [A.5]; 0 is hard targets"""
    loss: str | None = None
    """replaces the smoothed cross-entropy, for example "ConfidencePenalty(beta=0.1)"; see `ls_keras.losses`"""
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
    teacher: Path | None = None
    """SavedModel that is distilled; None learns from the labels alone"""
    match: Literal["logits", "probabilities"] = "logits"
    """½ squared error of the logits [A.5], or the cross-entropy with the teacher's softmax [A.1]"""
    beta: float = 0.6
    """the teacher's share β of the loss [A.5]"""
    temperature: float = 1.0
    """of the teacher's softmax; the student's is 1 [A.1]"""
    learning_rate: float = 1.0
    """at step 0; falls linearly to 0 at the last step [A.5 for teachers; silent for students, `student` has 0.1]"""
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
    observe_every: int = 0
    """steps between measurements of mutual information, tightness, γ and ECE; 0 for none"""
    seed: int = 0
    """of initial weights, order of examples, shifts and dropout"""


SIZES = {
    "paper": Config(),
    "dropout": Config(alpha=0.0, input_dropout=0.2, dropout=0.5, max_norm=15**0.5),
    # The rate is silent; at 1 the squared error of an unsmoothed teacher's logits kills every unit within an epoch.
    "student": Config(alpha=0.0, units=(800, 800), shift=0, learning_rate=0.1),
    "fashion": Config(
        dataset="fashion_mnist", held_out_size=10_000, steps=10_000, evaluate_every=500, observe_every=1_000
    ),
    # Few enough real images that networks become over-confident, in minutes (results/README.md).
    "fashion-4000": Config(
        dataset="fashion_mnist",
        train_size=4_000,
        held_out_size=10_000,
        units=(400, 400),
        shift=0,
        steps=2_000,
        evaluate_every=500,
    ),
    # Few enough, and trained long enough, that smoothing erases what the network knows of its examples.
    "fashion-2000": Config(
        dataset="fashion_mnist",
        train_size=2_000,
        held_out_size=10_000,
        units=(200, 200),
        steps=24_000,
        evaluate_every=600,
        observe_every=600,
    ),
    "digits": Config(
        dataset="digits",
        train_size=800,
        held_out_size=600,
        units=(200, 200),
        shift=1,
        batch_size=50,
        steps=2_400,
        evaluate_every=240,
        observe_every=240,
    ),
    "smoke": Config(
        dataset="digits",
        train_size=200,
        held_out_size=100,
        units=(32, 32),
        initial_stddev=0.1,
        shift=1,
        batch_size=50,
        steps=60,
        evaluate_every=30,
        observe_every=30,
    ),
}


def load_data(config: Config, data_dir: Path | None = None) -> data.Images:
    """Give scaled images, randomly shifted in training, with a teacher's answers at every position."""
    images = data.load_images(
        config.dataset,
        train_size=config.train_size,
        held_out_size=config.held_out_size,
        scaling=config.scaling,
        shift=config.shift,
        data_dir=data_dir,
        split_seed=config.split_seed,
        label_noise=config.label_noise,
    )
    if config.teacher is None:
        return images
    teacher = distillation.load_teacher(config.teacher, images.num_classes, images.input_shape)
    if not images.augmented:
        cache = Path(config.teacher).parent / f"logits-{images.fingerprint}.npz"
        logits = distillation.teacher_logits(teacher, images, cache=cache)
        return images.with_targets(losses.distillation_targets(images.labels("train"), logits))
    cache = Path(config.teacher).parent / f"logits-{images.fingerprint}-shift={config.shift}.npz"
    logits = distillation.teacher_logits_at_every_position(teacher, images, cache=cache)
    labels = np.repeat(images.labels("train")[:, None], images.num_positions, axis=1)
    return images.with_targets(losses.distillation_targets(labels, logits))


def build_model(config: Config, images: data.Images) -> distribution.Model:
    """Compose and compile the network."""
    import keras

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
    if config.teacher is not None:
        teacher = distillation.load_teacher(config.teacher, images.num_classes, images.input_shape)
        model = distillation.Distiller(network.input, network.output, teacher=teacher)
    rate = keras.optimizers.schedules.PolynomialDecay(config.learning_rate, config.steps, end_learning_rate=0.0)
    model.compile(
        optimizer=optimizers.SmoothedGradientDescent(rate, config.gradient_smoothing, config.last_layer_rate),
        loss=_loss(config),
        weighted_metrics=metrics.classification(),
    )
    return model


def check(config: Config, default: Config) -> None:
    """Refuse, before any work, numbers out of range and options that cannot act."""
    _loss(config)
    optimizers.SmoothedGradientDescent(config.learning_rate, config.gradient_smoothing, config.last_layer_rate)
    if not config.learning_rate > 0:
        raise ValueError(f"`learning_rate` must be above 0; received {config.learning_rate}.")
    given = {name for name in ("match", "beta", "temperature") if getattr(config, name) != getattr(default, name)}
    if config.teacher is None and given:
        raise ValueError(f"{', '.join(f'--{name}' for name in sorted(given))} cannot act without a --teacher.")
    if config.teacher is not None and config.match == "logits" and "temperature" in given:
        raise ValueError(
            "--temperature cannot act where the student matches the teacher's logits: give --match probabilities, too."
        )
    if config.teacher is not None and config.beta == 0:
        raise ValueError("With --beta 0 the --teacher cannot act: give it a share of the loss, or leave it out.")


def _loss(config: Config) -> Any:
    if config.teacher is None:
        return losses.chosen(config)
    if config.match == "logits":
        return losses.LogitMatching(config.beta)
    return losses.DistillationLoss(config.beta, config.temperature)


RECIPE = experiment.Recipe("mnist_mlp", SIZES, load_data, build_model, check, observe, __doc__, one_program=True)

if __name__ == "__main__":
    RECIPE.main()
