"""The fully connected network of the MNIST experiments."""

from collections.abc import Sequence

from ls_keras.models.layers import check_sizes, full_precision, initializer_seeds

import keras


def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    units: Sequence[int] = (1200, 1200),
    initial_stddev: float | None = None,
    input_dropout: float = 0.0,
    dropout: float = 0.0,
    max_norm: float | None = None,
    seed: int | None = None,
) -> keras.Model:
    """Flatten the input, apply hidden ReLU layers, then a linear layer.

    Args:
        input_shape: Shape of one example, any rank.
        num_classes: Number of logits, at least 2.
        units: Units of each hidden layer. The paper: (1200, 1200) for teachers, (800, 800) for students.
        initial_stddev: Standard deviation σ of the Gaussian initial weights; biases start at 0. None gives
            Keras's default, Glorot uniform.
        input_dropout: Fraction of inputs dropped in training, in [0, 1).
        dropout: Fraction of hidden units dropped in training, in [0, 1).
        max_norm: After each update, the weights coming into a hidden unit are scaled down to at most this
            Euclidean norm. Hinton et al. (2012) bound the squared norm by 15: `max_norm=15**0.5`.
        seed: Makes initial weights and dropout reproducible.

    Returns:
        An uncompiled functional `keras.Model` from [batch, *input_shape] to float32 logits
        [batch, num_classes]; the last hidden layer is named "penultimate", the linear one "logits".

    Raises:
        ValueError: For sizes that are not positive, rates outside [0, 1), σ or norm that is not positive.

    Example:
        >>> mlp((28, 28, 1), 10).count_params()  # 784·1200 + 1200² + 1200·10, and 2,410 biases
        2395210

    Reference: Hinton, Vinyals and Dean, 2015, section 3, https://arxiv.org/abs/1503.02531; the paper's A.5.
    """
    check_sizes(input_shape, num_classes, image=False)
    _check_options(units, initial_stddev, input_dropout, dropout, max_norm)
    seeds = initializer_seeds(seed)

    def dense(width: int, *, name: str, activation: str | None = None, dtype: str | None = None) -> keras.Layer:
        draw = next(seeds)
        return keras.layers.Dense(
            width,
            activation=activation,
            kernel_initializer=(
                keras.initializers.GlorotUniform(seed=draw)
                if initial_stddev is None
                else keras.initializers.RandomNormal(stddev=initial_stddev, seed=draw)
            ),
            # axis 0 runs over the inputs of one unit
            kernel_constraint=keras.constraints.MaxNorm(max_norm, axis=0) if max_norm and activation else None,
            dtype=dtype,
            name=name,
        )

    inputs = keras.Input(tuple(input_shape), name="inputs")
    x = keras.layers.Flatten(name="flatten")(inputs)
    if input_dropout:
        x = keras.layers.Dropout(input_dropout, seed=next(seeds), name="input_dropout")(x)
    for index, width in enumerate(units, start=1):
        last = index == len(units)
        x = dense(
            width,
            activation="relu",
            dtype=full_precision() if last else None,
            name="penultimate" if last else f"hidden{index}",
        )(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=next(seeds), dtype=x.dtype, name=f"dropout{index}")(x)
    logits = dense(num_classes, dtype=full_precision(), name="logits")(x)
    return keras.Model(inputs, logits, name="mlp")


def _check_options(
    units: Sequence[int],
    initial_stddev: float | None,
    input_dropout: float,
    dropout: float,
    max_norm: float | None,
) -> None:
    if not units or any(width < 1 for width in units):
        raise ValueError(f"`units` must name at least one hidden layer, each of positive width; received {units}.")
    for name, rate in (("input_dropout", input_dropout), ("dropout", dropout)):
        if not 0 <= rate < 1:
            raise ValueError(f"`{name}` must lie in [0, 1), the fraction of units dropped; received {rate}.")
    for name, value in (("initial_stddev", initial_stddev), ("max_norm", max_norm)):
        if value is not None and value <= 0:
            raise ValueError(f"`{name}` must be positive, or None to leave it out; received {value}.")
