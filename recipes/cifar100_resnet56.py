"""ResNet-56 on CIFAR-100, second rows of Figure 1 and Table 2, Figure 2 and Table 3.

    python recipes/cifar100_resnet56.py                     # the paper's α = 0.1: 72.7 ± 0.3 % held-out accuracy
    python recipes/cifar100_resnet56.py --alpha 0.0         # hard targets: 72.1 ± 0.3 %, ECE 0.150
    python recipes/cifar100_resnet56.py --alpha 0.05        # the calibrated network of Table 3: ECE 0.024
    python recipes/cifar100_resnet56.py --dataset cifar10   # the teacher of the distillation experiments
    python recipes/cifar100_resnet56.py digits              # minutes, without a download

Accuracies are those of the 10,000 images held out of the training set (appendix A.2). The network is
tensor2tensor's, twice as wide as He et al.'s; `--widths 16 16 32 64` gives theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ls_keras import data, distribution, experiment, losses, metrics, models, optimizers
from ls_keras.study import observe


@dataclass(frozen=True)
class Config:
    """What is trained; the defaults are the paper."""

    dataset: str = "cifar100"
    """cifar100, cifar10, fashion_mnist or digits"""
    train_size: int | None = None
    """training examples; None is all that are not held out [A.2: 40,000]"""
    held_out_size: int = 10_000
    """examples held out of the training set [A.2]"""
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
    """factor of the cross-entropy, not of the weight decay [A.2]"""
    depth: int = 56
    """6 n + 2 layers, n blocks in each of three groups [A.2: n = 9]"""
    widths: tuple[int, int, int, int] = (16, 32, 64, 128)
    """channels of the stem and the three groups [tensor2tensor]"""
    weight_decay: float = 1e-4
    """λ in ½ λ ‖w‖² of all kernels and of the normalisation's scale and offset [A.2; tensor2tensor]"""
    synchronized: bool = False
    """normalise over the batch of all devices instead of each one's own"""
    crop_padding: int = 4
    """pixels of zeros around an image before a random crop [A.2]"""
    flip: bool = True
    """flip left and right with probability ½ [A.2]"""
    learning_rate: float = 0.1
    """before the first drop [A.2]"""
    drops: tuple[int, ...] = (32_000, 48_000)
    """steps after which the rate is divided by 10 [A.2]"""
    momentum: float = 0.9
    """of Nesterov's accelerated gradient [A.2]"""
    clip_norm: float = 1.0
    """greatest global norm of the gradient of the whole loss [A.2; global as in tensor2tensor]"""
    batch_size: int = 128
    """examples per step, over all devices [A.2]"""
    steps: int = 64_000
    """optimisation steps [A.2]"""
    evaluate_every: int = 1_000
    """steps between evaluations and checkpoints"""
    observe_every: int = 0
    """steps between measurements of mutual information, tightness, γ and ECE [A.2: 4,000]; 0 for none"""
    seed: int = 0
    """of initial weights, order of examples and augmentation"""


SIZES = {
    "paper": Config(),
    "fashion": Config(dataset="fashion_mnist", depth=20, drops=(2_000, 3_000), steps=4_000, evaluate_every=500),
    # Teachers for the students of mnist_mlp's size of this name: the same images, scaled and moved in the same way.
    "fashion-2000": Config(
        dataset="fashion_mnist",
        train_size=2_000,
        scaling="unit",
        depth=8,
        widths=(16, 16, 32, 64),
        crop_padding=2,
        flip=False,
        drops=(3_000, 4_000),
        batch_size=64,
        steps=5_000,
        evaluate_every=500,
        observe_every=500,
    ),
    "digits": Config(
        dataset="digits",
        train_size=800,
        held_out_size=600,
        depth=8,
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
        depth=8,
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

    network = models.resnet(
        images.input_shape,
        images.num_classes,
        depth=config.depth,
        widths=config.widths,
        weight_decay=config.weight_decay,
        synchronized=config.synchronized,
        seed=config.seed,
    )
    model = distribution.Model(network.input, network.output)
    model.compile(
        optimizer=keras.optimizers.SGD(
            optimizers.step_decay(config.learning_rate, config.drops),
            momentum=config.momentum,
            nesterov=True,
            global_clipnorm=config.clip_norm,
        ),
        loss=losses.chosen(config),
        loss_weights=config.loss_multiplier,
        weighted_metrics=metrics.classification(),
    )
    return model


def check(config: Config, default: Config) -> None:
    """Refuse, before any work, numbers out of range and options that cannot act."""
    losses.chosen(config)
    optimizers.step_decay(config.learning_rate, config.drops)
    for name in ("loss_multiplier", "clip_norm"):
        if not getattr(config, name) > 0:
            raise ValueError(f"`{name}` must be above 0; received {getattr(config, name)}.")
    if not 0 <= config.momentum < 1:
        raise ValueError(f"`momentum` must be in [0, 1); received {config.momentum}.")
    if config.drops != default.drops and config.drops and config.drops[-1] >= config.steps:
        raise ValueError(f"`drops` must come before the last of the {config.steps} steps; received {config.drops}.")


RECIPE = experiment.Recipe(
    "cifar100_resnet56", SIZES, load_data, build_model, check, observe, __doc__, one_program=True
)

if __name__ == "__main__":
    RECIPE.main()
