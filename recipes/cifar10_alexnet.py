"""AlexNet on CIFAR-10, first row of Figure 1 and of Table 2: 86.8 ± 0.2 % (α = 0), 86.7 ± 0.3 % (α = 0.1).

    python recipes/cifar10_alexnet.py                # the paper, α = 0.1
    python recipes/cifar10_alexnet.py --alpha 0.0    # hard targets
    python recipes/cifar10_alexnet.py --teacher saved_models/…/saved_model --temperature 4.0
    python recipes/cifar10_alexnet.py digits         # a minute, without a download

Accuracies are those of the 10,000 images held out of the training set (appendix A.1). The input pipeline, on
which the paper is silent, is that of its ResNet, so that one image can go through teacher and student.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ls_keras import data, distillation, distribution, experiment, losses, metrics, models, optimizers
from ls_keras.study import observe


@dataclass(frozen=True)
class Config:
    """What is trained; the defaults are the paper."""

    dataset: str = "cifar10"
    """cifar10, cifar100, fashion_mnist or digits"""
    train_size: int | None = None
    """training examples; None is all that are not held out [A.1: 40,000]"""
    held_out_size: int = 10_000
    """examples held out of the training set [A.1]"""
    scaling: Literal["standardize", "unit"] = "standardize"
    """standardize gives each image, once cropped, mean 0 and deviation 1; unit is pixels in [0, 1] [A.2]"""
    split_seed: int | None = None
    """shuffles the images before they are split; None keeps the order of the files, as the paper does"""
    label_noise: float = 0.0
    """fraction of training labels replaced by a random other class, the same in all networks [0 in the paper]"""
    alpha: float = 0.1
    """label smoothing α [Table 2]; 0 is hard targets"""
    loss: str | None = None
    """replaces the smoothed cross-entropy, for example "ConfidencePenalty(beta=0.1)"; see `ls_keras.losses`"""
    loss_multiplier: float = 3.0
    """factor of the cross-entropy, not of the weight decay [A.1]"""
    weight_decay: float = 0.04
    """λ in ½ λ ‖w‖² of the two decayed dense layers [A.1; the tutorial has 0.004]"""
    crop_padding: int = 4
    """pixels of zeros around an image before a random crop [A.2]"""
    flip: bool = True
    """flip left and right with probability ½ [A.2]"""
    teacher: Path | None = None
    """SavedModel that is distilled, fully by its targets (β = 1) [A.1]; None learns from the labels alone"""
    temperature: float = 1.0
    """of the teacher's softmax; the student's is 1 [A.1]"""
    learning_rate: float = 0.1
    """before the first drop [A.1]"""
    drops: tuple[int, ...] = (130_000, 260_000)
    """steps after which the rate is divided by 10 [A.1]"""
    batch_size: int = 128
    """examples per step, over all devices [A.1]"""
    steps: int = 390_000
    """optimisation steps [A.1]"""
    evaluate_every: int = 1_000
    """steps between evaluations and checkpoints"""
    observe_every: int = 0
    """steps between measurements of mutual information, tightness, γ and ECE; 0 for none"""
    seed: int = 0
    """of initial weights, order of examples and augmentation"""


SIZES = {
    "paper": Config(),
    "fashion": Config(
        dataset="fashion_mnist", drops=(4_000, 8_000), steps=12_000, evaluate_every=500, weight_decay=0.004
    ),
    "digits": Config(
        dataset="digits",
        train_size=800,
        held_out_size=600,
        weight_decay=0.004,
        crop_padding=1,
        flip=False,
        drops=(400, 500),
        batch_size=50,
        steps=600,
        evaluate_every=60,
    ),
    "smoke": Config(
        dataset="digits",
        train_size=200,
        held_out_size=100,
        crop_padding=1,
        batch_size=16,
        steps=4,
        evaluate_every=2,
    ),
}


def load_data(config: Config, data_dir: Path | None = None) -> data.Images:
    """Give scaled images, randomly cropped and flipped in training."""
    return data.load_images(
        config.dataset,
        train_size=config.train_size,
        held_out_size=config.held_out_size,
        scaling=config.scaling,
        crop_padding=config.crop_padding,
        flip=config.flip,
        data_dir=data_dir,
        split_seed=config.split_seed,
        label_noise=config.label_noise,
    )


def build_model(config: Config, images: data.Images) -> distribution.Model:
    """Compose and compile the network."""
    import keras

    network = models.alexnet(images.input_shape, images.num_classes, weight_decay=config.weight_decay, seed=config.seed)
    model = distribution.Model(network.input, network.output)
    if config.teacher is not None:
        teacher = distillation.load_teacher(config.teacher, images.num_classes, images.input_shape)
        model = distillation.Distiller(network.input, network.output, teacher=teacher)
    model.compile(
        optimizer=keras.optimizers.SGD(optimizers.step_decay(config.learning_rate, config.drops)),
        loss=_loss(config),
        loss_weights=config.loss_multiplier,
        weighted_metrics=metrics.classification(),
    )
    return model


def check(config: Config, default: Config) -> None:
    """Refuse, before any work, numbers out of range and options that cannot act."""
    _loss(config)
    optimizers.step_decay(config.learning_rate, config.drops)
    if not config.loss_multiplier > 0:
        raise ValueError(f"`loss_multiplier` must be above 0; received {config.loss_multiplier}.")
    if config.drops != default.drops and config.drops and config.drops[-1] >= config.steps:
        raise ValueError(f"`drops` must come before the last of the {config.steps} steps; received {config.drops}.")
    if config.teacher is None and config.temperature != default.temperature:
        raise ValueError("--temperature cannot act without a --teacher.")


def _loss(config: Config) -> Any:
    if config.teacher is None:
        return losses.chosen(config)
    return losses.DistillationLoss(beta=1.0, temperature=config.temperature)


RECIPE = experiment.Recipe("cifar10_alexnet", SIZES, load_data, build_model, check, observe, __doc__, one_program=True)

if __name__ == "__main__":
    RECIPE.main()
