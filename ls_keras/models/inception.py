"""Inception-v4 and Inception-v3: tables of what each block computes, and one builder that reads them."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from ls_keras.models.layers import (
    BatchNormalization,
    check_sizes,
    full_precision,
    initializer_seeds,
    weight_decay_regularizer,
)

import keras

# Sides below which the last block, or the 5×5 pooling of the auxiliary head, would get no pixel.
_LEAST_SIDE, _LEAST_SIDE_OF_AUXILIARY = 75, 107


class _Conv(NamedTuple):
    """Convolution without bias, batch normalization, ReLU."""

    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: Literal["same", "valid"] = "same"


class _Pool(NamedTuple):
    """Pooling over 3×3 pixels; pixels beyond the border do not count."""

    kind: Literal["average", "max"]
    stride: int
    padding: Literal["same", "valid"]


class _Mixed(NamedTuple):
    """Branches on one input, each a chain of steps, joined along the channels."""

    branches: tuple[tuple["_Step", ...], ...]


_Step = _Conv | _Pool | _Mixed


def _mixed(*branches: tuple[_Step, ...]) -> _Mixed:
    return _Mixed(branches)


def _conv(channels: int, height: int = 1, width: int = 1) -> _Conv:
    return _Conv(channels, (height, width))


def _valid(channels: int) -> _Conv:
    return _Conv(channels, (3, 3), padding="valid")


def _halving(channels: int) -> _Conv:
    return _Conv(channels, (3, 3), stride=2, padding="valid")


_AVERAGE = _Pool("average", 1, "same")
_MAX = _Pool("max", 2, "valid")


# --- Inception-v4: figures 3 to 9 of Szegedy et al. (2017). Comments: height, width and channels of a 299-pixel image.

_V4_A = _mixed(
    (_conv(96),),
    (_conv(64), _conv(96, 3, 3)),
    (_conv(64), _conv(96, 3, 3), _conv(96, 3, 3)),
    (_AVERAGE, _conv(96)),
)
_V4_B = _mixed(
    (_conv(384),),
    (_conv(192), _conv(224, 1, 7), _conv(256, 7, 1)),
    (_conv(192), _conv(192, 7, 1), _conv(224, 1, 7), _conv(224, 7, 1), _conv(256, 1, 7)),
    (_AVERAGE, _conv(128)),
)
_V4_C = _mixed(
    (_conv(256),),
    (_conv(384), _mixed((_conv(256, 1, 3),), (_conv(256, 3, 1),))),
    (_conv(384), _conv(448, 3, 1), _conv(512, 1, 3), _mixed((_conv(256, 1, 3),), (_conv(256, 3, 1),))),
    (_AVERAGE, _conv(256)),
)


def _v4(blocks: Sequence[int]) -> dict[str, _Step]:
    of_a, of_b, of_c = (
        [f"{kind}{number}" for number in range(1, count + 1)] for kind, count in zip("abc", blocks, strict=True)
    )
    return {
        "stem1": _halving(32),
        "stem2": _valid(32),
        "stem3": _conv(64, 3, 3),
        "stem4": _mixed((_MAX,), (_halving(96),)),
        "stem5": _mixed((_conv(64), _valid(96)), (_conv(64), _conv(64, 1, 7), _conv(64, 7, 1), _valid(96))),
        "stem6": _mixed((_halving(192),), (_MAX,)),  # 35·35·384
        **dict.fromkeys(of_a, _V4_A),
        "reduction_a": _mixed((_halving(384),), (_conv(192), _conv(224, 3, 3), _halving(256)), (_MAX,)),  # 17·17·1024
        **dict.fromkeys(of_b, _V4_B),
        "reduction_b": _mixed(
            (_conv(192), _halving(192)), (_conv(256), _conv(256, 1, 7), _conv(320, 7, 1), _halving(320)), (_MAX,)
        ),  # 8·8·1536
        **dict.fromkeys(of_c, _V4_C),
    }


# --- Inception-v3: Szegedy et al. (2016)


def _v3_a(pooled: int) -> _Mixed:
    return _mixed(
        (_conv(64),),
        (_conv(48), _conv(64, 5, 5)),
        (_conv(64), _conv(96, 3, 3), _conv(96, 3, 3)),
        (_AVERAGE, _conv(pooled)),
    )


def _v3_b(inner: int) -> _Mixed:
    return _mixed(
        (_conv(192),),
        (_conv(inner), _conv(inner, 1, 7), _conv(192, 7, 1)),
        (_conv(inner), _conv(inner, 7, 1), _conv(inner, 1, 7), _conv(inner, 7, 1), _conv(192, 1, 7)),
        (_AVERAGE, _conv(192)),
    )


_V3_C = _mixed(
    (_conv(320),),
    (_conv(384), _mixed((_conv(384, 1, 3),), (_conv(384, 3, 1),))),
    (_conv(448), _conv(384, 3, 3), _mixed((_conv(384, 1, 3),), (_conv(384, 3, 1),))),
    (_AVERAGE, _conv(192)),
)
# Both make 147·147·64 of 299·299.
_V3_FACTORIZED: dict[str, _Step] = {"stem1": _halving(32), "stem2": _valid(32), "stem3": _conv(64, 3, 3)}
_V3_WHOLE: dict[str, _Step] = {"stem1": _Conv(64, (7, 7), stride=2, padding="valid")}
_V3: dict[str, _Step] = {
    "stem4": _MAX,
    "stem5": _conv(80),
    "stem6": _valid(192),
    "stem7": _MAX,  # 35·35·192
    "a1": _v3_a(32),
    "a2": _v3_a(64),
    "a3": _v3_a(64),
    "reduction_a": _mixed((_halving(384),), (_conv(64), _conv(96, 3, 3), _halving(96)), (_MAX,)),  # 17·17·768
    "b1": _v3_b(128),
    "b2": _v3_b(160),
    "b3": _v3_b(160),
    "b4": _v3_b(192),
    "reduction_b": _mixed(
        (_conv(192), _halving(320)), (_conv(192), _conv(192, 1, 7), _conv(192, 7, 1), _halving(192)), (_MAX,)
    ),  # 8·8·1280
    "c1": _V3_C,
    "c2": _V3_C,  # 8·8·2048
}


# --- Builders


def inception_v4(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    blocks: Sequence[int] = (4, 7, 3),
    image_size: int | None = None,
    width: float = 1.0,
    auxiliary: bool = False,
    scale: bool = True,
    dropout: float = 0.2,
    weight_decay: float = 0.0,
    momentum: float = 0.9997,
    synchronized: bool = False,
    seed: int | None = None,
) -> keras.Model:
    """Build Inception-v4: a stem, 4 blocks A, 7 B and 3 C with a reduction between kinds, average pooling, logits.

    Every convolution is followed by batch normalization with ε = 0.001 and ReLU. A 299-pixel image leaves the stem
    with 35·35·384 values, reduction A with 17·17·1024, reduction B with 8·8·1536.

    Args:
        input_shape: (height, width, channels). Published: (299, 299, 3).
        num_classes: Number of logits, at least 2. slim counts 1,001, its class 0 being the background.
        blocks: How many blocks A, B and C, at least one of each.
        image_size: Side of the square that images are resized to first, by bilinear interpolation; None takes them as
            they are. What the first convolution sees must be at least 75 pixels high and wide; with the auxiliary head
            107.
        width: Factor on the number of channels of every layer, rounded, at least 1.
        auxiliary: Whether a second classifier stands on the last block B: 5×5 average pooling with stride 3, 1×1
            convolution to 128 channels, convolution over all that is left to 768, logits. See
            `auxiliary.WithAuxiliary`.
        scale: Whether batch normalization multiplies by γ. The paper's A.4: yes; slim: no.
        dropout: Fraction of penultimate activations dropped in training, in [0, 1). slim keeps 0.8.
        weight_decay: λ of the term ½·λ·‖w‖² on the kernels of convolutions and logits; not on γ, β and biases, as
            slim.
        momentum: Share of the moving mean and variance that stays after a step, in [0, 1). slim: 0.9997; a run of a
            few thousand steps needs less, since 0.9997^4000 = 0.30 of the initial 0 and 1 would be left.
        synchronized: Take batch statistics over all replicas of a `tf.distribute` strategy, not over each
            replica's share. Slower: Keras's code instead of the fused kernel.
        seed: Makes initial weights and dropout reproducible.

    Returns:
        An uncompiled functional `keras.Model` from [batch, height, width, channels] to float32 logits
        [batch, num_classes]; with the auxiliary head to {"logits": …, "auxiliary": …}, both of that shape. The average
        over pixels, 1,536·width, is named "penultimate", the last layer "logits".

    Raises:
        ValueError: For sizes that are not positive, an image too small, or a number out of its range.

    Example:
        >>> model = inception_v4((299, 299, 3), 1000)
        >>> sum(weight.numpy().size for weight in model.trainable_weights)
        42679816

    Reference: Szegedy, Ioffe, Vanhoucke and Alemi, 2017, https://arxiv.org/abs/1602.07261; TensorFlow models,
    slim/nets/inception_v4.py; the paper's A.4.
    """
    _check_options(input_shape, num_classes, image_size, width, auxiliary, dropout, momentum)
    if len(blocks) != 3 or min(blocks) < 1:
        raise ValueError(f"`blocks` must be three positive numbers, of blocks A, B and C; received {blocks}.")
    layers = _Layers(width, scale, weight_decay, momentum, synchronized, initializer_seeds(seed))
    inputs = keras.Input(tuple(input_shape), name="inputs")
    body = _body(layers, _resized(inputs, image_size), _v4(blocks))
    outputs = layers.head(body[f"c{blocks[2]}"], num_classes, dropout)
    if auxiliary:
        outputs = {"logits": outputs, "auxiliary": layers.auxiliary(body[f"b{blocks[1]}"], num_classes)}
    return keras.Model(inputs, outputs, name="inception_v4")


def inception_v3(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    factorized_stem: bool = True,
    batch_normalized_aux: bool = True,
    image_size: int | None = None,
    width: float = 1.0,
    auxiliary: bool = False,
    scale: bool = True,
    dropout: float = 0.2,
    weight_decay: float = 0.0,
    momentum: float = 0.9997,
    synchronized: bool = False,
    seed: int | None = None,
) -> keras.Model:
    """Build Inception-v3, or with both of its last two improvements off the "Inception-v2" of the paper's Table 1.

    Table 1 quotes Table 3 of Szegedy et al. (2016), whose rows add to their Inception-v2, one by one, RMSProp, label
    smoothing, a factorized first convolution and a normalized auxiliary head. That is not the "Inception-v2" of slim,
    which is the BN-Inception of 2015.

    Args:
        input_shape, num_classes, image_size, width, auxiliary, scale, dropout, weight_decay, momentum, synchronized,
            seed: As for `inception_v4`; the auxiliary head stands on block B4. Szegedy et al. have no scale.
        factorized_stem: Begin with three 3×3 convolutions (32 channels with stride 2, 32, 64), not with one of 7×7
            to 64 channels with stride 2.
        batch_normalized_aux: Normalize the layer of 768 units of the auxiliary head, not its 1×1 convolution alone.
            Without, that layer has a bias.

    Returns:
        As `inception_v4`; "penultimate" has 2,048·width values.

    Raises:
        ValueError: As `inception_v4`.

    Example:
        >>> model = inception_v3((299, 299, 3), 1000, auxiliary=True)
        >>> sum(weight.numpy().size for weight in model.trainable_weights)  # torchvision's inception_v3
        27161264

    Reference: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, 2016, https://arxiv.org/abs/1512.00567; TensorFlow models,
    slim/nets/inception_v3.py.
    """
    _check_options(input_shape, num_classes, image_size, width, auxiliary, dropout, momentum)
    layers = _Layers(width, scale, weight_decay, momentum, synchronized, initializer_seeds(seed))
    inputs = keras.Input(tuple(input_shape), name="inputs")
    body = _body(layers, _resized(inputs, image_size), (_V3_FACTORIZED if factorized_stem else _V3_WHOLE) | _V3)
    outputs = layers.head(body["c2"], num_classes, dropout)
    if auxiliary:
        outputs = {"logits": outputs, "auxiliary": layers.auxiliary(body["b4"], num_classes, batch_normalized_aux)}
    return keras.Model(inputs, outputs, name="inception_v3")


def _resized(x: keras.KerasTensor, side: int | None) -> keras.KerasTensor:
    # Not layers.Resizing, whose default training=True puts all later layers of a network in training mode, too, where
    # that is called without `training`.
    return x if side is None else keras.ops.image.resize(x, (side, side))


def _body(layers: "_Layers", x: keras.KerasTensor, steps: dict[str, _Step]) -> dict[str, keras.KerasTensor]:
    """Apply one step after the other; return what each of them gives."""
    outputs = {}
    for name, step in steps.items():
        outputs[name] = x = layers.step(x, step, name)
    return outputs


class _Layers(NamedTuple):
    """What all layers of a network have in common."""

    width: float
    scale: bool
    weight_decay: float
    momentum: float
    synchronized: bool
    seeds: Iterator[int | None]

    def step(self, x: keras.KerasTensor, step: _Step, name: str) -> keras.KerasTensor:
        if isinstance(step, _Conv):
            return self.conv(x, step, name)
        if isinstance(step, _Pool):
            pooling = keras.layers.AveragePooling2D if step.kind == "average" else keras.layers.MaxPooling2D
            return pooling(3, strides=step.stride, padding=step.padding, name=name)(x)
        ends = []
        for branch, steps in enumerate(step.branches, start=1):
            end = x
            for index, each in enumerate(steps, start=1):
                end = self.step(end, each, f"{name}_branch{branch}_{index}")
            ends.append(end)
        return keras.layers.Concatenate(name=name)(ends)

    def conv(self, x: keras.KerasTensor, conv: _Conv, name: str, *, normalized: bool = True) -> keras.KerasTensor:
        x = keras.layers.Conv2D(
            max(1, round(conv.channels * self.width)),
            conv.kernel,
            strides=conv.stride,
            padding=conv.padding,
            use_bias=not normalized,
            # slim's variance_scaling_initializer: variance 2 / fan_in
            kernel_initializer=keras.initializers.VarianceScaling(2.0, seed=next(self.seeds)),
            kernel_regularizer=weight_decay_regularizer(self.weight_decay),
            name=f"{name}_conv",
        )(x)
        if normalized:
            x = BatchNormalization(
                momentum=self.momentum,
                epsilon=1e-3,
                scale=self.scale,
                synchronized=self.synchronized,
                name=f"{name}_norm",
            )(x)
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    def head(self, x: keras.KerasTensor, num_classes: int, dropout: float) -> keras.KerasTensor:
        x = keras.layers.GlobalAveragePooling2D(dtype=full_precision(), name="penultimate")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=next(self.seeds), dtype=full_precision(), name="dropout")(x)
        return self.logits(x, num_classes, "logits")

    def auxiliary(self, x: keras.KerasTensor, num_classes: int, normalized: bool = True) -> keras.KerasTensor:
        x = keras.layers.AveragePooling2D(5, strides=3, name="auxiliary_pool")(x)
        x = self.conv(x, _conv(128), "auxiliary1")
        whole = _Conv(768, tuple(x.shape[1:3]), padding="valid")
        x = self.conv(x, whole, "auxiliary2", normalized=normalized)
        return self.logits(keras.layers.Flatten(name="auxiliary_flatten")(x), num_classes, "auxiliary")

    def logits(self, x: keras.KerasTensor, num_classes: int, name: str) -> keras.KerasTensor:
        return keras.layers.Dense(
            num_classes,
            kernel_initializer=keras.initializers.GlorotUniform(seed=next(self.seeds)),
            kernel_regularizer=weight_decay_regularizer(self.weight_decay),
            dtype=full_precision(),
            name=name,
        )(x)


def _check_options(
    input_shape: Sequence[int],
    num_classes: int,
    image_size: int | None,
    width: float,
    auxiliary: bool,
    dropout: float,
    momentum: float,
) -> None:
    check_sizes(input_shape, num_classes)
    sides = input_shape[:2] if image_size is None else (image_size, image_size)
    least = _LEAST_SIDE_OF_AUXILIARY if auxiliary else _LEAST_SIDE
    if min(sides) < least:
        head = " with the auxiliary head; without it, 75 are enough" if auxiliary else ""
        raise ValueError(
            f"Images must be at least {least} pixels high and wide{head}; received {tuple(sides)}. Give a greater "
            "`image_size`, to which they are resized."
        )
    if not width > 0:
        raise ValueError(f"`width` must be above 0, a factor on all numbers of channels; received {width}.")
    for name, value in (("dropout", dropout), ("momentum", momentum)):
        if not 0 <= value < 1:
            raise ValueError(f"`{name}` must lie in [0, 1); received {value}.")
