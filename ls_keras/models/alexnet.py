"""The paper's "AlexNet": the CIFAR network of the TensorFlow tutorial."""

from collections.abc import Sequence

from ls_keras.models.layers import (
    LocalResponseNormalization,
    check_sizes,
    full_precision,
    initializer_seeds,
    weight_decay_regularizer,
)

import keras


def alexnet(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    weight_decay: float = 0.0,
    seed: int | None = None,
) -> keras.Model:
    """Build two convolutions with overlapping pooling and local response normalization, two dense layers, logits.

    conv1 → max-pool → LRN → conv2 → LRN → max-pool → local3 (384) → local4 (192) → logits. The second
    normalization comes before its pooling, as in the tutorial; "local" layers are fully connected.

    Args:
        input_shape: (height, width, channels), any size. The tutorial: (24, 24, 3); the paper, likely:
            (32, 32, 3).
        num_classes: Number of logits, at least 2.
        weight_decay: λ of the term ½·λ·‖w‖² on the kernels of local3 and local4, the two layers that the
            tutorial decays (there 0.004; the paper says 0.04).
        seed: Makes the initial weights reproducible.

    Returns:
        An uncompiled functional `keras.Model` from [batch, height, width, channels] to float32 logits
        [batch, num_classes]. local4, after its ReLU, is named "penultimate", the last layer "logits".

    Raises:
        ValueError: For sizes that are not positive or a negative weight decay.

    Example:
        >>> alexnet((24, 24, 3), 10).count_params()
        1068298

    Reference: TensorFlow tutorials, image/cifar10/cifar10.py; the paper's A.1.
    """
    check_sizes(input_shape, num_classes)
    decay = weight_decay_regularizer(weight_decay)
    seeds = initializer_seeds(seed)

    def truncated_normal(stddev: float) -> keras.Initializer:
        return keras.initializers.TruncatedNormal(stddev=stddev, seed=next(seeds))

    def conv(name: str, bias: float) -> keras.Layer:
        return keras.layers.Conv2D(
            64,
            kernel_size=5,
            padding="same",
            activation="relu",
            kernel_initializer=truncated_normal(0.05),
            bias_initializer=keras.initializers.Constant(bias),
            name=name,
        )

    def dense(name: str, units: int, dtype: str | None = None) -> keras.Layer:
        return keras.layers.Dense(
            units,
            activation="relu",
            kernel_initializer=truncated_normal(0.04),
            bias_initializer=keras.initializers.Constant(0.1),
            kernel_regularizer=decay,
            dtype=dtype,
            name=name,
        )

    def pool(name: str) -> keras.Layer:
        return keras.layers.MaxPooling2D(pool_size=3, strides=2, padding="same", name=name)

    inputs = keras.Input(tuple(input_shape), name="inputs")
    x = conv("conv1", bias=0.0)(inputs)
    x = pool("pool1")(x)
    x = LocalResponseNormalization(name="norm1")(x)
    x = conv("conv2", bias=0.1)(x)
    x = LocalResponseNormalization(name="norm2")(x)
    x = pool("pool2")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = dense("local3", 384)(x)
    x = dense("penultimate", 192, dtype=full_precision())(x)
    logits = keras.layers.Dense(
        num_classes,
        kernel_initializer=truncated_normal(1 / 192),
        dtype=full_precision(),
        name="logits",
    )(x)
    return keras.Model(inputs, logits, name="alexnet")
