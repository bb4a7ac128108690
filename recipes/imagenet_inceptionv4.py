"""Inception-v4 on ImageNet, rows 3 and 4 of Figure 1, Tables 2 and 3 (appendix A.4).

    python recipes/imagenet_inceptionv4.py --data-dir /data   # the paper's α = 0.1: 80.9 % top-1, ECE 0.035
    python recipes/imagenet_inceptionv4.py --data-dir /data --alpha 0.0     # hard targets: 80.9 %, ECE 0.071
    python recipes/imagenet_inceptionv4.py --data-dir /data --batch-size 4096 --accumulation 1 --steps 50000
    python recipes/imagenet_inceptionv4.py folder --data-dir flowers        # any folder of images, CLASS/*.jpg
    python recipes/imagenet_inceptionv4.py fashion                          # a quarter of the width, 75 pixels

Accuracies are those of ILSVRC's validation set, the split `test`. The paper chooses the step by the accuracy on about
50,000 held-out training images and trains again on all of them: `history.csv` of the first run says which step, and
`--held-out-size 0 --steps STEP` is the second. One run alone reports its last step. What the paper is silent about
follows Kornblith et al. (2019), as far as remembered, and TensorFlow's slim; both are marked below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ls_keras import auxiliary, data, distribution, experiment, losses, metrics, models, optimizers

IN_FILES = ("imagenet2012", "folder")


@dataclass(frozen=True)
class Config:
    """What is trained; the defaults are the paper."""

    dataset: str = "imagenet2012"
    """imagenet2012, folder (--data-dir with CLASS/*.jpg, or train/ and val/ of these), fashion_mnist or digits"""
    train_size: int | None = None
    """training examples of data in memory; None is all that are not held out, as of images in files"""
    held_out_size: int = 50_000
    """images held out of the training set [A.4: about 50,000]"""
    image_size: int = 299
    """side of the images that the network sees, in pixels [slim]"""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """least and greatest part of the area in a training crop [silent; slim]"""
    crop_aspect: tuple[float, float] = (0.75, 1.33)
    """least and greatest width ÷ height of a training crop [silent; slim]"""
    flip: bool = True
    """flip left and right with probability ½ [silent; slim]"""
    colour: Literal["none", "fast", "full"] = "fast"
    """random brightness and saturation; full adds hue and contrast [silent; slim]"""
    central_crop: float = 0.875
    """part of each side that is seen in evaluation [silent; slim]"""
    alpha: float = 0.1
    """label smoothing α [Tables 2 and 3]; 0 is hard targets"""
    loss: str | None = None
    """replaces the smoothed cross-entropy, for example "ConfidencePenalty(beta=0.1)"; see `ls_keras.losses`"""
    blocks: tuple[int, int, int] = (4, 7, 3)
    """numbers of blocks A, B and C [A.4: Inception-v4]"""
    width: float = 1.0
    """factor on the number of channels of every layer [A.4: Inception-v4]"""
    auxiliary_weight: float = 0.4
    """weight of the auxiliary head's loss, 0 for no head [silent; slim]"""
    dropout: float = 0.2
    """share of penultimate activations dropped [silent; slim keeps 0.8]"""
    batch_norm_scale: bool = True
    """batch normalisation multiplies by γ [A.4]"""
    batch_norm_momentum: float = 0.9997
    """share of the moving statistics that stays after a batch [silent; slim]"""
    synchronized: bool = False
    """normalise over the batch of all devices instead of each one's own"""
    weight_decay: float = 8e-5
    """λ in ½ λ ‖w‖² of all kernels [A.4; kernels alone as in slim]"""
    learning_rate: float = 1.6
    """highest rate, for 4,096 images to an update [silent; Kornblith et al.]"""
    warmup_epochs: float = 10.0
    """epochs in which the rate rises linearly to its highest [silent; Kornblith et al.]"""
    decay: float = 0.975
    """factor of the rate after each further epoch [silent; Kornblith et al.]"""
    momentum: float = 0.9
    """of Nesterov's accelerated gradient [A.4]"""
    average: float = 0.9999
    """momentum of the average of the weights, one move to an update; evaluated and exported [A.4]"""
    batch_size: int = 256
    """examples at a time, over all devices; what batch normalisation sees [A.4: 4,096 to an update]"""
    accumulation: int = 16
    """batches whose gradients make an update [A.4: 16 · 256 = 4,096]"""
    steps: int = 800_000
    """batches [silent; 50,000 updates, 166 epochs, in which the rate falls to 2 % of its highest]"""
    evaluate_every: int = 16_000
    """batches between evaluations and checkpoints"""
    seed: int = 0
    """of initial weights, order of examples, augmentation and dropout"""


SIZES = {
    "paper": Config(),
    # The full network; a shorter memory of weights and statistics, for fewer updates.
    "folder": Config(
        dataset="folder",
        held_out_size=500,
        batch_norm_momentum=0.99,
        learning_rate=0.05,
        average=0.999,
        batch_size=32,
        accumulation=1,
        steps=30_000,
        evaluate_every=1_000,
    ),
    "fashion": Config(
        dataset="fashion_mnist",
        held_out_size=10_000,
        image_size=75,
        width=0.25,
        auxiliary_weight=0.0,
        batch_norm_momentum=0.99,
        learning_rate=0.1,
        warmup_epochs=0.5,
        decay=0.6,
        average=0.99,
        batch_size=128,
        accumulation=1,
        steps=3_000,
        evaluate_every=500,
    ),
    "smoke": Config(
        dataset="digits",
        train_size=200,
        held_out_size=100,
        image_size=75,
        blocks=(1, 1, 1),
        width=1 / 8,
        auxiliary_weight=0.0,
        flip=False,
        batch_norm_momentum=0.9,
        learning_rate=0.05,
        average=0.5,
        batch_size=8,
        accumulation=2,
        steps=4,
        evaluate_every=2,
    ),
}


def load_data(config: Config, data_dir: Path | None = None) -> data.Images | data.Records:
    """Give crops of images in files in [−1, 1]; or whole, standardised images in memory."""
    if config.dataset not in IN_FILES:
        return data.load_images(
            config.dataset,
            train_size=config.train_size,
            held_out_size=config.held_out_size,
            flip=config.flip,
            data_dir=data_dir,
        )
    return data.load_records(
        config.dataset,
        held_out_size=config.held_out_size,
        image_size=config.image_size,
        crop_area=config.crop_area,
        crop_aspect=config.crop_aspect,
        flip=config.flip,
        colour=config.colour,
        central_crop=config.central_crop,
        data_dir=data_dir,
    )


def build_model(config: Config, images: data.Images | data.Records) -> distribution.Model:
    """Compose and compile the network."""
    import keras

    network = models.inception_v4(
        images.input_shape,
        images.num_classes,
        image_size=None if config.dataset in IN_FILES else config.image_size,
        blocks=config.blocks,
        width=config.width,
        auxiliary=config.auxiliary_weight > 0,
        scale=config.batch_norm_scale,
        dropout=config.dropout,
        weight_decay=config.weight_decay,
        momentum=config.batch_norm_momentum,
        synchronized=config.synchronized,
        seed=config.seed,
    )
    model = distribution.Model(network.input, network.output)
    if config.auxiliary_weight > 0:
        model = auxiliary.WithAuxiliary(network.input, network.output, weight=config.auxiliary_weight)
    epoch = images.num_train / (config.batch_size * config.accumulation)
    top_five = [keras.metrics.SparseTopKCategoricalAccuracy(5, name="top5_accuracy")] * (images.num_classes > 5)
    model.compile(
        optimizer=keras.optimizers.SGD(
            optimizers.WarmedDecay(
                config.learning_rate,
                warmup=round(config.warmup_epochs * epoch),
                factor=config.decay,
                period=max(round(epoch), 1),
            ),
            momentum=config.momentum,
            nesterov=True,
            use_ema=True,
            ema_momentum=config.average,
            gradient_accumulation_steps=config.accumulation if config.accumulation > 1 else None,
        ),
        loss=losses.chosen(config),
        weighted_metrics=[*metrics.classification(), *top_five],
    )
    return model


def check(config: Config, default: Config) -> None:
    """Refuse, before any work, numbers out of range and options that cannot act."""
    losses.chosen(config)
    optimizers.WarmedDecay(config.learning_rate, warmup=0, factor=config.decay, period=1)
    experiment.check_whole("accumulation", config.accumulation, 1)
    if config.steps % config.accumulation:
        raise ValueError(
            f"`steps` must be a multiple of `accumulation`, or the last batches would move nothing; received "
            f"{config.steps} and {config.accumulation}."
        )
    for name in ("momentum", "average"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be in [0, 1); received {getattr(config, name)}.")
    for name in ("warmup_epochs", "auxiliary_weight", "weight_decay"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"`{name}` must be at least 0; received {getattr(config, name)}.")
    idle = ("train_size",) if config.dataset in IN_FILES else ("crop_area", "crop_aspect", "colour", "central_crop")
    given = [f"--{name.replace('_', '-')}" for name in idle if getattr(config, name) != getattr(default, name)]
    if given:
        raise ValueError(f"{', '.join(given)} cannot act on the data set {config.dataset}: leave it out.")


RECIPE = experiment.Recipe("imagenet_inceptionv4", SIZES, load_data, build_model, check, description=__doc__)

if __name__ == "__main__":
    RECIPE.main()
