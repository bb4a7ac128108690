"""Layers and small pieces that more than one network shares."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops


def check_sizes(input_shape: Sequence[int], num_classes: int, *, image: bool = True) -> None:
    """Raise unless a network can be built for these inputs and classes.

    Args:
        input_shape: Shape of one example, without the batch axis.
        num_classes: Number of classes, at least 2.
        image: Whether the network needs (height, width, channels).

    Raises:
        ValueError: For a size that is not a positive integer, the wrong rank, or fewer than two classes.
    """
    shape = tuple(input_shape)
    if not shape or any(not isinstance(size, int | np.integer) or size < 1 for size in shape):
        raise ValueError(
            f"`input_shape` must hold positive integers, the shape of one example; received {input_shape}."
        )
    if image and len(shape) != 3:
        raise ValueError(
            f"`input_shape` must be (height, width, channels); received {input_shape}. "
            "Add a channel axis to grey images: (28, 28, 1)."
        )
    if num_classes < 2:
        raise ValueError(f"`num_classes` must be at least 2; received {num_classes}.")


def initializer_seeds(seed: int | None) -> Iterator[int | None]:
    """Yield one seed per initializer, all different, all determined by `seed`.

    Args:
        seed: An integer, or None to leave the choice to Keras (`keras.utils.set_random_seed`).

    Returns:
        An endless iterator of integers in [0, 2³¹), or of None.
    """
    source = random.Random(seed)
    while True:
        yield None if seed is None else source.randrange(2**31)


def weight_decay_regularizer(weight_decay: float) -> keras.regularizers.Regularizer | None:
    """Return weight decay as the literature writes it: a term ½·λ·‖w‖² in the loss, so that its gradient is λ·w.

    Args:
        weight_decay: λ ≥ 0. Zero gives no regularizer.

    Returns:
        `keras.regularizers.L2(λ/2)`, because Keras's `L2(c)` is c·‖w‖² without the half; or None.

    Raises:
        ValueError: If λ is negative.

    Example:
        >>> float(weight_decay_regularizer(0.1)(np.array([3.0, 4.0])))  # 0.1 · 25 / 2
        1.25
    """
    if weight_decay < 0:
        raise ValueError(f"`weight_decay` must be at least 0; received {weight_decay}.")
    return keras.regularizers.L2(weight_decay / 2) if weight_decay else None


def full_precision() -> str:
    """Return the dtype for the layers that must not be rounded under mixed precision: penultimate and logits.

    Returns:
        The dtype of the variables under the current policy: "float32" for `float32` and `mixed_bfloat16`,
        "float64" for `float64`.
    """
    return keras.config.dtype_policy().variable_dtype


@keras.saving.register_keras_serializable(package="ls_keras")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalization, computed by TensorFlow's fused kernel where there is one.

    The fused kernel reads and writes activations once, in their own dtype, and keeps statistics in float32;
    Keras's layer casts bfloat16 activations to float32 and passes over them several times. Arguments,
    variables, saved files and results are those of `keras.layers.BatchNormalization`:

        y = γ·(x − mean) / √(variance + ε) + β,        moving ← momentum·moving + (1 − momentum)·batch

    with the *population* variance (1/n) in both places. The kernel returns n/(n−1) times that for the moving
    average, which `tf.layers` and tensor2tensor kept; here it is undone, so that this layer, Keras's layer
    and its synchronized form agree (n = batch·height·width, so the factor is 1.0001 at n = 8,192).

    Under `tf.distribute` the moving averages are the mean over replicas after every step. Keras's layer lets
    them drift apart and saves those of the first replica.

    The fused kernel serves four-dimensional, channels-last activations of at most 32 bits under the
    TensorFlow backend. Everything else (other ranks, axes or backends, masks, `renorm`,
    `synchronized=True`, a layer without scale or centre, float64) is computed by Keras's own code.

    Args:
        Those of `keras.layers.BatchNormalization`.

    Example:
        >>> layer = BatchNormalization(momentum=0.9, epsilon=1e-5)
        >>> x = np.array([1.0, 3.0], "float32").reshape(2, 1, 1, 1)   # mean 2, population variance 1
        >>> np.round(layer(x, training=True), 3).ravel().tolist()
        [-1.0, 1.0]
        >>> np.round(layer.moving_mean, 3).tolist()                   # 0.9 · 0 + 0.1 · 2
        [0.2]

    Reference: Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167
    """

    def add_weight(self, *args: Any, **options: Any) -> keras.Variable:
        if str(options.get("name")).startswith("moving_"):
            options["aggregation"] = "mean"
        return super().add_weight(*args, **options)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if mask is None and self._has_fused_kernel(inputs):
            return self._fused(inputs, training=bool(training and self.trainable))
        return super().call(inputs, training=training, mask=mask)

    def _has_fused_kernel(self, inputs: Any) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and not (getattr(self, "renorm", False) or self.synchronized)  # renorm is new in Keras 3.15
            and keras.backend.standardize_dtype(inputs.dtype) in ("float16", "bfloat16", "float32")
        )

    def _fused(self, inputs: Any, *, training: bool) -> Any:
        # Imported here alone, because the networks must run without TensorFlow on Keras's other backends.
        import tensorflow as tf  # noqa: PLC0415

        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            tf.convert_to_tensor(self.gamma),
            tf.convert_to_tensor(self.beta),
            mean=None if training else tf.convert_to_tensor(self.moving_mean),
            variance=None if training else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], variance.dtype)
            self._move(self.moving_mean, mean)
            self._move(self.moving_variance, variance * (1 - 1 / count))
        return outputs

    def _move(self, average: keras.Variable, batch: Any) -> None:
        average.assign(average * self.momentum + batch * (1.0 - self.momentum))


@keras.saving.register_keras_serializable(package="ls_keras")
class LocalResponseNormalization(keras.layers.Layer):
    """Divide each activation by a power of the energy in the neighbouring channels.

        y_c = x_c · (bias + α · Σ_{|j−c| ≤ radius} x_j²)^(−3/4)

    The sum is not divided by the number of channels in the window, as in `tf.nn.local_response_normalization`
    (PyTorch's `LocalResponseNorm` divides). It is taken as a product with a band matrix, which is several
    times faster than TensorFlow's kernel on a CPU, and the gradient is written out, so that only x and one
    more tensor are kept for the backward pass.

    Under `mixed_bfloat16` the factor carries 8 significant bits like every activation there: with the tutorial's
    α, an energy below 35 leaves x as it is.

    Args:
        depth_radius: Channels on either side that count, besides the channel itself.
        bias: Added to the scaled energy; positive.
        alpha: Scale of the energy.
        **kwargs: `name`, `dtype` and `trainable`, for `keras.layers.Layer`.

    Shapes:
        Any, with the channels last; the output has the input's shape.

    Example:
        >>> layer = LocalResponseNormalization(depth_radius=1, bias=1.0, alpha=1.0)
        >>> np.round(layer(np.array([[1.0, 2.0, 0.0]], "float32")), 4).tolist()   # 6^-¾, 2·6^-¾, 0
        [[0.2609, 0.5217, 0.0]]

    Reference: Krizhevsky, Sutskever and Hinton, 2012, section 3.3.
    """

    def __init__(self, *, depth_radius: int = 4, bias: float = 1.0, alpha: float = 0.001 / 9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth_radius = depth_radius
        self.bias = bias
        self.alpha = alpha

    def build(self, input_shape: Sequence[int]) -> None:
        channel = np.arange(input_shape[-1])
        self._window = np.abs(channel[:, None] - channel) <= self.depth_radius

    def call(self, inputs: Any) -> Any:
        window = ops.cast(self._window, inputs.dtype)  # symmetric: it also carries the gradient back

        @ops.custom_gradient
        def normalize(x: Any) -> Any:
            root = ops.rsqrt(self.bias + self.alpha * ops.matmul(ops.square(x), window))  # energy^-1/2
            scale = root * ops.sqrt(root)  # energy^-3/4

            def gradient(*args: Any, upstream: Any = None) -> Any:
                upstream = args[0] if upstream is None else upstream
                scaled = upstream * scale
                spread = ops.matmul(scaled * x * ops.square(root), window)
                return scaled - (1.5 * self.alpha) * x * spread

            return x * scale, gradient

        return normalize(inputs)

    def get_config(self) -> dict[str, Any]:
        config = {"depth_radius": self.depth_radius, "bias": self.bias, "alpha": self.alpha}
        return {**super().get_config(), **config}
