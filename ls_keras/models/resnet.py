"""Pre-activation residual networks for small images, in tensor2tensor's variant."""

from collections.abc import Sequence

from ls_keras.models.layers import (
    BatchNormalization,
    check_sizes,
    full_precision,
    initializer_seeds,
    weight_decay_regularizer,
)

import keras


def resnet(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    depth: int = 56,
    widths: Sequence[int] = (16, 32, 64, 128),
    stem_kernel: int = 3,
    weight_decay: float = 0.0,
    synchronized: bool = False,
    seed: int | None = None,
) -> keras.Model:
    """Build a pre-activation ResNet of three groups of (depth − 2)/6 blocks, two 3×3 convolutions in each block.

    A block is BN-ReLU-conv-BN-ReLU-conv plus its shortcut. It differs from He et al. (2016) where
    tensor2tensor, which the paper used, does: groups are twice as wide; the first block of every group has
    a 1×1 convolution with BN on its shortcut; nothing stands between the last sum and the average pooling,
    so that penultimate activations can be negative.

    Args:
        input_shape: (height, width, channels), any size.
        num_classes: Number of logits, at least 2.
        depth: Number of layers with weights, 6n + 2 for n blocks in a group: 8, 14, 20, …; the paper: 56.
        widths: Channels of the stem and of the three groups. He et al.: (16, 16, 32, 64).
        stem_kernel: Side of the first convolution, odd. The paper: 3; tensor2tensor's default: 7.
        weight_decay: λ of the term ½·λ·‖w‖² on convolution kernels, the logits kernel, and γ and β of batch
            normalization: everything but the logits bias, as tensor2tensor.
        synchronized: Take batch statistics over all replicas of a `tf.distribute` strategy, not over each
            replica's share. Slower: Keras's code instead of the fused kernel.
        seed: Makes the initial weights reproducible.

    Returns:
        An uncompiled functional `keras.Model` from [batch, height, width, channels] to float32 logits
        [batch, num_classes]. The average over pixels is named "penultimate", the last layer "logits".

    Raises:
        ValueError: For a depth that is not 6n + 2, widths that are not four positive numbers, an even stem
            kernel, a negative weight decay, or sizes that are not positive.

    Example:
        >>> model = resnet((32, 32, 3), 100)
        >>> sum(weight.numpy().size for weight in model.trainable_weights)
        3419284

    Reference: He et al., 2016, https://arxiv.org/abs/1603.05027; tensor2tensor, models/resnet.py; the paper's A.2.
    """
    check_sizes(input_shape, num_classes)
    _check_options(depth, widths, stem_kernel)
    decay = weight_decay_regularizer(weight_decay)
    seeds = initializer_seeds(seed)

    def conv(x: keras.KerasTensor, width: int, kernel: int, stride: int, name: str) -> keras.KerasTensor:
        if stride > 1 and kernel > 1:
            # (k−1)/2 pixels on every side: "same" would pad an even image on its right and bottom only
            x = keras.layers.ZeroPadding2D((kernel - 1) // 2, name=f"{name}_pad")(x)
        return keras.layers.Conv2D(
            width,
            kernel,
            strides=stride,
            padding="same" if stride == 1 else "valid",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(seed=next(seeds)),
            kernel_regularizer=decay,
            name=name,
        )(x)

    def norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return BatchNormalization(
            momentum=0.9,
            epsilon=1e-5,
            gamma_regularizer=decay,
            beta_regularizer=decay,
            synchronized=synchronized,
            name=name,
        )(x)

    def norm_relu(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return keras.layers.ReLU(name=f"{name}_relu")(norm(x, name))

    def block(x: keras.KerasTensor, width: int, stride: int, first: bool, name: str) -> keras.KerasTensor:
        shortcut = x
        x = norm_relu(x, f"{name}_norm1")
        if first:
            shortcut = conv(x, width, 1, stride, f"{name}_shortcut_conv")
            shortcut = norm(shortcut, f"{name}_shortcut_norm")
        x = conv(x, width, 3, stride, f"{name}_conv1")
        x = norm_relu(x, f"{name}_norm2")
        x = conv(x, width, 3, 1, f"{name}_conv2")
        return keras.layers.Add(name=f"{name}_add")([x, shortcut])

    inputs = keras.Input(tuple(input_shape), name="inputs")
    x = conv(inputs, widths[0], stem_kernel, 1, "stem_conv")
    x = norm_relu(x, "stem_norm")
    for group, width in enumerate(widths[1:], start=1):
        for index in range(1, (depth - 2) // 6 + 1):
            first = index == 1
            x = block(x, width, 2 if first and group > 1 else 1, first, f"group{group}_block{index}")
    x = keras.layers.GlobalAveragePooling2D(dtype=full_precision(), name="penultimate")(x)
    logits = keras.layers.Dense(
        num_classes,
        # tensor2tensor's "normal_unit_scaling" with gain 2: variance 2 / ((fan_in + fan_out) / 2)
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_avg", seed=next(seeds)),
        kernel_regularizer=decay,
        dtype=full_precision(),
        name="logits",
    )(x)
    return keras.Model(inputs, logits, name=f"resnet{depth}")


def _check_options(depth: int, widths: Sequence[int], stem_kernel: int) -> None:
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"`depth` must be 6n + 2 with n ≥ 1 (8, 14, 20, 26, 32, 44, 56, …); received {depth}.")
    if len(widths) != 4 or any(width < 1 for width in widths):
        raise ValueError(f"`widths` must be four positive numbers, of the stem and of three groups; received {widths}.")
    if stem_kernel < 1 or stem_kernel % 2 == 0:
        raise ValueError(f"`stem_kernel` must be odd and positive; received {stem_kernel}.")
