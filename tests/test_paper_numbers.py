"""The recipes against the paper: every number with its source, and what one step does to the weights."""

import contextlib
import dataclasses
from pathlib import Path
from types import SimpleNamespace

from ls_keras_recipes import cifar10_alexnet, cifar10_distillation, cifar100_resnet56, imagenet_inceptionv4, mnist_mlp

import keras
import numpy as np
import original_formats
import pytest
import tensorflow as tf
from scipy.special import softmax

# --- The paper's numbers. [A.1] to [A.5] are its appendices, [1.1] and [4] its sections.

ALEXNET = {
    "dataset": ("cifar10", "A.1"),
    "train_size": (None, "A.1: 40k of 50k, all that are not held out"),
    "held_out_size": (10_000, "A.1"),
    "scaling": ("standardize", "A.2 (cifar_image_augmentation); A.1 is silent, and teacher and student share images"),
    "split_seed": (None, "A.1, A.2: the training set, in the order of its files"),
    "label_noise": (0.0, "all labels are the data set's"),
    "alpha": (0.1, "Table 2"),
    "loss": (None, "1: smoothed cross-entropy"),
    "loss_multiplier": (3.0, "A.1"),
    "weight_decay": (0.04, "A.1"),
    "crop_padding": (4, "A.2 (cifar_image_augmentation)"),
    "flip": (True, "A.2"),
    "teacher": (None, "Table 2: labels alone"),
    "temperature": (1.0, "A.1: the first of the temperatures"),
    "learning_rate": (0.1, "A.1"),
    "drops": ((130_000, 260_000), "A.1: every 130k of 390k"),
    "batch_size": (128, "A.1"),
    "steps": (390_000, "A.1"),
}
RESNET = {
    "dataset": ("cifar100", "Table 2, Table 3"),
    "train_size": (None, "A.2: 40k of 50k, all that are not held out"),
    "held_out_size": (10_000, "A.2"),
    "scaling": ("standardize", "A.2 (cifar_image_augmentation)"),
    "split_seed": (None, "A.1, A.2: the training set, in the order of its files"),
    "label_noise": (0.0, "all labels are the data set's"),
    "alpha": (0.1, "Table 2"),
    "loss": (None, "1: smoothed cross-entropy"),
    "loss_multiplier": (3.0, "A.2"),
    "depth": (56, "A.2: 6 · 9 + 2"),
    "widths": ((16, 32, 64, 128), "tensor2tensor, models/resnet.py"),
    "weight_decay": (0.0001, "A.2"),
    "crop_padding": (4, "A.2 (cifar_image_augmentation)"),
    "flip": (True, "A.2"),
    "learning_rate": (0.1, "A.2"),
    "drops": ((32_000, 48_000), "A.2"),
    "momentum": (0.9, "A.2"),
    "clip_norm": (1.0, "A.2"),
    "batch_size": (128, "A.2"),
    "steps": (64_000, "A.2"),
}
MLP = {
    "dataset": ("mnist", "4, A.5"),
    "train_size": (None, "A.5, Hinton et al. 2015: all 60k"),
    "held_out_size": (0, "4: errors are those of the test set"),
    "scaling": ("unit", "silent"),
    "split_seed": (None, "A.1, A.2: the training set, in the order of its files"),
    "label_noise": (0.0, "all labels are the data set's"),
    "alpha": (0.1, "A.5"),
    "loss": (None, "1: smoothed cross-entropy"),
    "units": ((1200, 1200), "A.5"),
    "initial_stddev": (0.03, "A.5, read as σ: a variance of 0.03 gives logits of ±29"),
    "input_dropout": (0.0, "A.5: smoothing in place of dropout"),
    "dropout": (0.0, "A.5: smoothing in place of dropout"),
    "max_norm": (None, "A.5: smoothing in place of dropout"),
    "shift": (2, "A.5: 25 positions"),
    "teacher": (None, "A.5"),
    "match": ("logits", "A.5"),
    "beta": (0.6, "A.5"),
    "temperature": (1.0, "A.1"),
    "learning_rate": (1.0, "A.5"),
    "last_layer_rate": (0.1, "A.5"),
    "gradient_smoothing": (0.9, "A.5"),
    "batch_size": (100, "silent; Hinton et al. 2012"),
    "steps": (60_000, "A.5: 100 epochs of 60k in batches of 100"),
}
DROPOUT_MLP = MLP | {
    "alpha": (0.0, "4: hard targets"),
    "input_dropout": (0.2, "silent; Hinton et al. 2012"),
    "dropout": (0.5, "silent; Hinton et al. 2012"),
    "max_norm": (3.872983346207417, "silent; Hinton et al. 2012: at most 15 squared"),
}
STUDENT_MLP = MLP | {
    "alpha": (0.0, "A.5: hard targets beside the teacher's"),
    "units": ((800, 800), "A.5"),
    "shift": (0, "A.5: no augmentation"),
    "learning_rate": (0.1, "silent for students; at 1 the squared error diverges"),
}
INCEPTION = {
    "dataset": ("imagenet2012", "A.4"),
    "train_size": (None, "A.4: all that are not held out"),
    "held_out_size": (50_000, "A.4: about 50,000 to choose the step by"),
    "image_size": (299, "silent; slim, inception_v4.py"),
    "crop_area": ((0.05, 1.0), "silent; slim, inception_preprocessing.py"),
    "crop_aspect": ((0.75, 1.33), "silent; slim, inception_preprocessing.py"),
    "flip": (True, "silent; slim, inception_preprocessing.py"),
    "colour": ("fast", "silent; slim, inception_preprocessing.py"),
    "central_crop": (0.875, "silent; slim, inception_preprocessing.py"),
    "alpha": (0.1, "Table 2, Table 3"),
    "loss": (None, "1: smoothed cross-entropy"),
    "blocks": ((4, 7, 3), "A.4: Inception-v4"),
    "width": (1.0, "A.4: Inception-v4"),
    "auxiliary_weight": (0.4, "silent; slim, train_image_classifier.py"),
    "dropout": (0.2, "silent; slim, inception_v4.py keeps 0.8"),
    "batch_norm_scale": (True, "A.4"),
    "batch_norm_momentum": (0.9997, "silent; slim, inception_utils.py"),
    "weight_decay": (0.00008, "A.4"),
    "learning_rate": (1.6, "silent; Kornblith et al. 2019"),
    "warmup_epochs": (10.0, "silent; Kornblith et al. 2019"),
    "decay": (0.975, "silent; Kornblith et al. 2019"),
    "momentum": (0.9, "A.4"),
    "average": (0.9999, "A.4"),
    "batch_size": (256, "A.4: 4,096 = 16 · 256"),
    "accumulation": (16, "A.4: 4,096 = 16 · 256"),
    "steps": (800_000, "silent"),
}
DISTILLATION = {
    "networks": ("paper", "A.1, A.2"),
    "dataset": ("cifar10", "A.1"),
    "teacher": (None, "A.2: trained with hard targets"),
    "seeds": (5, "A.1"),
    "alphas": ((0.0, 0.15, 0.30, 0.45, 0.60, 0.75), "A.1, A.2"),
    "temperatures": ((1.0, 2.0, 3.0, 4.0, 8.0, 12.0, 16.0), "A.1"),
    "observe_every": (4_000, "A.2"),
}
# What a run writes and where, or which of equally good networks it trains.
BOOKKEEPING = {
    cifar10_alexnet: {"evaluate_every", "observe_every", "seed"},
    cifar100_resnet56: {"evaluate_every", "observe_every", "seed", "synchronized"},
    mnist_mlp: {"evaluate_every", "observe_every", "seed"},
    imagenet_inceptionv4: {"evaluate_every", "seed", "synchronized"},
    cifar10_distillation: set(),
}
SIZES = [
    (cifar10_alexnet, "paper", ALEXNET),
    (cifar100_resnet56, "paper", RESNET),
    (mnist_mlp, "paper", MLP),
    (mnist_mlp, "dropout", DROPOUT_MLP),
    (mnist_mlp, "student", STUDENT_MLP),
    (imagenet_inceptionv4, "paper", INCEPTION),
    (cifar10_distillation, "paper", DISTILLATION),
]


@pytest.mark.parametrize(("recipe", "size", "table"), SIZES, ids=lambda value: getattr(value, "__name__", None))
def test_every_field_is_the_papers(recipe, size, table):
    config = dataclasses.asdict(recipe.SIZES[size])
    for field in BOOKKEEPING[recipe]:
        del config[field]
    assert config == {field: value for field, (value, _) in table.items()}
    assert all(source for _, source in table.values())


@pytest.mark.parametrize("recipe", BOOKKEEPING, ids=lambda recipe: recipe.__name__)
def test_a_bare_command_is_the_paper(recipe):
    assert next(iter(recipe.SIZES.items())) == ("paper", recipe.Config())


@pytest.mark.parametrize(("recipe", "size", "table"), SIZES[:-2], ids=lambda value: getattr(value, "__name__", None))
def test_the_data_are_loaded_as_the_config_says(recipe, size, table, monkeypatch):
    asked = []
    monkeypatch.setattr("ls_keras.data.load_images", lambda *args, **options: asked.append((args, options)))
    recipe.load_data(recipe.SIZES[size])
    other = {"train_size": 7, "held_out_size": 5, "crop_padding": 1, "flip": False, "shift": 3}
    other |= {"split_seed": 4, "label_noise": 0.25}
    other = {field: value for field, value in other.items() if field in table}
    other["scaling"] = "unit" if table["scaling"][0] == "standardize" else "standardize"
    recipe.load_data(dataclasses.replace(recipe.SIZES[size], dataset="digits", **other), Path("here"))
    first = {field: table[field][0] for field in other}
    papers = ((table["dataset"][0],), first | {"data_dir": None})
    assert asked == [papers, (("digits",), other | {"data_dir": Path("here")})]


def test_imagenet_is_loaded_as_the_config_says(monkeypatch):
    asked = []
    monkeypatch.setattr("ls_keras.data.load_records", lambda *args, **options: asked.append((args, options)))
    other = {
        "held_out_size": 7,
        "image_size": 107,
        "crop_area": (0.5, 0.9),
        "crop_aspect": (1.0, 1.1),
        "flip": False,
        "colour": "full",
        "central_crop": 0.9,
    }
    imagenet_inceptionv4.load_data(imagenet_inceptionv4.SIZES["paper"])
    config = dataclasses.replace(imagenet_inceptionv4.SIZES["folder"], **other)
    imagenet_inceptionv4.load_data(config, Path("here"))
    papers = {field: INCEPTION[field][0] for field in other}
    assert asked == [
        (("imagenet2012",), papers | {"data_dir": None}),
        (("folder",), other | {"data_dir": Path("here")}),
    ]


# --- One step

SHAPE = (8, 8, 3)
# The numbers of a second network, all unlike the paper's: it shows that none is written anywhere but in its config.
OTHER_ALEXNET = {
    "alpha": 0.3,
    "loss_multiplier": 2.0,
    "weight_decay": 0.01,
    "learning_rate": 0.04,
    "drops": (10,),
}
OTHER_RESNET = {**OTHER_ALEXNET, "momentum": 0.6, "clip_norm": 0.5}
OTHER_MLP = {"beta": 0.3, "learning_rate": 0.4, "last_layer_rate": 0.3, "gradient_smoothing": 0.7, "steps": 40}


def save_linear_teacher(folder, shape, num_classes, seed):
    """Save a teacher with the logits x · kernel, and return the kernel [pixels, K]."""
    kernel = np.random.default_rng(seed).normal(size=(np.prod(shape), num_classes)) / np.sqrt(np.prod(shape))
    module = tf.Module()
    module.kernel = tf.Variable(kernel, dtype=tf.float32)
    module.serve = tf.function(
        lambda x: tf.reshape(x, [-1, kernel.shape[0]]) @ module.kernel,
        input_signature=[tf.TensorSpec([None, *shape], tf.float32)],
    )
    tf.saved_model.save(module, str(folder))
    return kernel


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The SavedModel of a linear teacher of 10 classes, and its kernel."""
    folder = tmp_path_factory.mktemp("teacher") / "saved_model"
    return folder, save_linear_teacher(folder, SHAPE, 10, seed=4)


def built(recipe, config, num_classes):
    """Return the recipe's compiled model, its parameters of one axis moved off their initial 0, 0.1 or 1."""
    model = recipe.build_model(config, SimpleNamespace(input_shape=SHAPE, num_classes=num_classes))
    model.run_eagerly = True  # the same operations, without the seconds that a graph of them takes to trace
    draw = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign(variable + 0.2 * draw.standard_normal(variable.shape))
    return model


def one_batch(num_classes, count=6):
    draw = np.random.default_rng(2)
    return draw.normal(size=(count, *SHAPE)).astype("float32"), draw.integers(0, num_classes, count)


@contextlib.contextmanager
def kept(model):
    """Put the draws of dropout and the moving statistics back to where they were."""
    state = [variable.numpy() for variable in model.non_trainable_variables]
    yield
    for variable, value in zip(model.non_trainable_variables, state, strict=True):
        variable.assign(value)


def gradients(model, x, of_logits):
    """Backpropagate a loss that is given by its gradient with respect to the logits [n, K]."""
    variables = [variable.value for variable in model.trainable_variables]
    with kept(model), tf.GradientTape() as tape:
        logits = model(x, training=True)
    upstream = tf.constant(of_logits(logits.numpy().astype(float)), tf.float32)
    return [gradient.numpy().astype(float) for gradient in tape.gradient(logits, variables, upstream)]


def smoothed(labels, alpha, num_classes):
    """Targets (1 − α) y + α/K [1.1], an example in each row."""
    return (1 - alpha) * np.eye(num_classes)[labels] + alpha / num_classes


def crossentropy(target):
    """∂/∂z of the mean over examples of −Σ_k t_k ln p_k: (p − t)/N."""
    return lambda z: (softmax(z, axis=1) - target) / len(z)


def settle(model, x, target):
    """Move the last bias so that examples that are all the same have p = t: their cross-entropy has no gradient."""
    with kept(model):
        logits = model(x, training=True).numpy()
    bias = model.get_layer("logits").bias
    bias.assign(bias + np.log(target[0]) - logits[0])


def check_steps(model, x, labels, *, of_logits, decay, rates, move):
    """Take a step at each iteration in `rates`, and compare what it does to each weight with a twin in NumPy.

    Args:
        of_logits: The gradient of the loss with respect to the logits, from the logits.
        decay: λ by the path of each decayed variable, whose gradient it adds λ·w to.
        rates: The learning rate by iteration.
        move: Weights after the step, from their paths, weights, gradients of the whole loss, and the rate.
    """
    variables = model.trainable_variables
    paths = [variable.path for variable in variables]
    assert set(decay) <= set(paths)
    for iteration, rate in rates.items():
        before = [variable.numpy().astype(float) for variable in variables]
        data = gradients(model, x, of_logits)
        total = [g + decay.get(path, 0.0) * w for path, w, g in zip(paths, before, data, strict=True)]
        expected = move(paths, before, total, rate)
        model.optimizer.iterations.assign(iteration)
        model.train_on_batch(x, labels)
        for path, variable, start, end in zip(paths, variables, before, expected, strict=True):
            # float32 rounds weights to 1 in 2²⁴, probabilities to 1e-7, sums of products to some 1e-6 of the greatest.
            rounding = 2.0**-22 * np.abs(end).max() + 1e-6 * rate + 1e-5 * np.abs(end - start).max()
            np.testing.assert_allclose(
                variable.numpy() - start, end - start, 1e-4, rounding, err_msg=f"{path}, step {iteration}"
            )


def stepwise(learning_rate, drops):
    """Rates on both sides of each drop, whose own step has the rate before it, as `tf.train.piecewise_constant` has."""
    rates = {0: learning_rate}
    for count, drop in enumerate(drops):
        rates |= {drop: learning_rate / 10**count, drop + 1: learning_rate / 10 ** (count + 1)}
    return rates


def descend(paths, weights, gradients, rate):
    return [w - rate * g for w, g in zip(weights, gradients, strict=True)]


class NesterovStep:
    """v ← m v − rate g, w ← w + m v − rate g, where g is scaled down to a global norm of at most `clip_norm`.

    The velocity is one of weights, as Sutskever et al. (2013) and Keras write it. TensorFlow 1 kept one of gradients:
    the same, but for the ten steps or so after a drop.
    """

    def __init__(self, momentum, clip_norm):
        self.momentum, self.clip_norm = momentum, clip_norm
        self.velocity, self.norms = None, []

    def __call__(self, paths, weights, gradients, rate):
        self.norms.append(np.sqrt(sum(np.sum(g**2) for g in gradients)))
        moves = [-rate * min(1, self.clip_norm / self.norms[-1]) * g for g in gradients]
        velocity = self.velocity or [np.zeros_like(w) for w in weights]
        self.velocity = [self.momentum * v + move for v, move in zip(velocity, moves, strict=True)]
        return [w + self.momentum * v + move for w, v, move in zip(weights, self.velocity, moves, strict=True)]


class SmoothedStep:
    """v ← s v + (1 − s) g, w ← w − rate v, slower in the last layer, then hidden units' norms are bounded [A.5]."""

    def __init__(self, smoothing, last_layer_rate, max_norm):
        self.smoothing, self.last_layer_rate, self.max_norm = smoothing, last_layer_rate, max_norm
        self.smoothed = None

    def __call__(self, paths, weights, gradients, rate):
        smoothed = self.smoothed or [np.zeros_like(w) for w in weights]
        share = 1 - self.smoothing
        self.smoothed = [self.smoothing * v + share * g for v, g in zip(smoothed, gradients, strict=True)]
        return [self._moved(*each, rate) for each in zip(paths, weights, self.smoothed, strict=True)]

    def _moved(self, path, weight, smoothed, rate):
        layer, _, kind = path.partition("/")
        weight = weight - rate * (self.last_layer_rate if layer == "logits" else 1.0) * smoothed
        if self.max_norm is None or layer == "logits" or kind == "bias":
            return weight
        return weight * np.minimum(1, self.max_norm / np.linalg.norm(weight, axis=0))


def values(table, changed):
    """The numbers that a network is to be trained with."""
    return SimpleNamespace(**{field: value for field, (value, _) in table.items()} | changed)


@pytest.mark.parametrize("changed", [{}, OTHER_ALEXNET], ids=["paper", "other"])
def test_a_step_of_alexnet(changed):
    """Both fully connected layers that the tutorial calls local decay, their kernels alone."""
    n = values(ALEXNET, changed)
    model = built(cifar10_alexnet, dataclasses.replace(cifar10_alexnet.SIZES["paper"], **changed), 10)
    decay = dict.fromkeys(("local3/kernel", "penultimate/kernel"), n.weight_decay)
    check_classifier(model, 10, n, decay=decay, rates=stepwise(n.learning_rate, n.drops), move=descend)


@pytest.mark.parametrize("changed", [{}, OTHER_RESNET], ids=["paper", "other"])
def test_a_step_of_resnet(changed):
    """Everything but the bias of the logits decays, batch normalization too [tensor2tensor]."""
    n = values(RESNET, changed)
    config = dataclasses.replace(cifar100_resnet56.SIZES["paper"], depth=8, **changed)
    model = built(cifar100_resnet56, config, 100)
    decay = {v.path: n.weight_decay for v in model.trainable_variables if v.path != "logits/bias"}
    step = NesterovStep(n.momentum, n.clip_norm)
    check_classifier(model, 100, n, decay=decay, rates=stepwise(n.learning_rate, n.drops), move=step)
    assert step.norms[0] < n.clip_norm < step.norms[1]  # decay alone is not clipped


def check_classifier(model, num_classes, n, **twin):
    """Check a step that decays the weights and does nothing else, and then steps on mixed examples."""
    x, labels = one_batch(num_classes)
    same, label = np.repeat(x[:1], len(x), axis=0), np.repeat(labels[:1], len(x))
    goal = smoothed(label, n.alpha, num_classes)
    settle(model, same, goal)
    first = dict.fromkeys([0], n.learning_rate)
    for images, of_these, target, rates in (
        (same, label, goal, first),
        (x, labels, smoothed(labels, n.alpha, num_classes), twin.pop("rates")),
    ):
        gradient = crossentropy(target)
        check_steps(
            model, images, of_these, of_logits=lambda z, g=gradient: n.loss_multiplier * g(z), rates=rates, **twin
        )


OTHER_INCEPTION = {
    "alpha": 0.3,
    "batch_norm_scale": False,
    "batch_norm_momentum": 0.9,
    "dropout": 0.3,
    "weight_decay": 0.01,
    "learning_rate": 0.2,
    "warmup_epochs": 2.0,
    "decay": 0.5,
    "momentum": 0.6,
    "average": 0.7,
    "batch_size": 8,
    "accumulation": 4,
}


@pytest.mark.parametrize("changed", [{}, OTHER_INCEPTION], ids=["paper", "other"])
def test_inception_is_trained_by_the_numbers_of_its_config(changed):
    """What its parts do with them is theirs to test: an epoch has ⌊n / (batch · accumulation)⌉ updates."""
    n = values(INCEPTION, changed)
    config = dataclasses.replace(imagenet_inceptionv4.SIZES["paper"], width=1 / 32, image_size=107, **changed)
    images = SimpleNamespace(input_shape=(107, 107, 3), num_classes=10, num_train=409_600)
    model = imagenet_inceptionv4.build_model(config, images)
    optimizer = model.optimizer
    assert (optimizer.momentum, optimizer.nesterov, optimizer.use_ema) == (n.momentum, True, True)
    assert (optimizer.ema_momentum, optimizer.gradient_accumulation_steps) == (n.average, n.accumulation)
    epoch = 409_600 // (n.batch_size * n.accumulation)
    top = round(n.warmup_epochs * epoch)
    rates = {0: n.learning_rate / top, top - 1: n.learning_rate, top + epoch - 1: n.learning_rate}
    rates[top + epoch] = n.decay * n.learning_rate
    rates[top + 2 * epoch] = n.decay**2 * n.learning_rate
    schedule = optimizer.get_config()["learning_rate"]
    schedule = keras.optimizers.schedules.deserialize(schedule)
    assert {step: float(schedule(step)) for step in rates} == pytest.approx(rates)
    assert (model.weight, model.get_layer("dropout").rate) == (n.auxiliary_weight, n.dropout)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(norm.momentum, norm.scale) for norm in norms} == {(n.batch_norm_momentum, n.batch_norm_scale)}
    kernels = [weight.numpy().astype(float) for weight in model.trainable_variables if weight.name == "kernel"]
    penalty = sum(0.5 * n.weight_decay * np.sum(kernel**2) for kernel in kernels)
    assert float(sum(model.losses)) == pytest.approx(penalty)
    labels, logits = np.array([3, 1]), np.random.default_rng(0).normal(size=(2, 10)).astype("float32")
    target, logs = smoothed(labels, n.alpha, 10), np.log(softmax(logits, axis=1))
    total = model.compute_loss(None, labels, {"logits": logits, "auxiliary": 2 * logits}, training=False)
    assert float(total) == pytest.approx(penalty - np.mean(np.sum(target * logs, axis=1)))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_step_of_the_distilled_alexnet(temperature, teacher):
    """β = 1: the labels do not count, and T softens the teacher's targets alone [4, A.1]."""
    n = values(ALEXNET, {})
    folder, kernel = teacher
    config = dataclasses.replace(cifar10_alexnet.SIZES["paper"], teacher=folder, temperature=temperature)
    x, labels = one_batch(10)
    gradient = crossentropy(softmax(x.reshape(len(x), -1) @ kernel / temperature, axis=1))
    check_steps(
        built(cifar10_alexnet, config, 10),
        x,
        labels,
        of_logits=lambda z: n.loss_multiplier * gradient(z),
        decay=dict.fromkeys(("local3/kernel", "penultimate/kernel"), n.weight_decay),
        rates={0: n.learning_rate, 130_001: n.learning_rate / 10},
        move=descend,
    )


def linearly(learning_rate, steps):
    return {step: learning_rate * (1 - step / steps) for step in (0, steps // 2, steps * 9 // 10, steps)}


@pytest.mark.parametrize(
    ("size", "table", "changed"),
    [("paper", MLP, {}), ("dropout", DROPOUT_MLP, {}), ("paper", MLP, {"alpha": 0.3, "max_norm": 2.0, **OTHER_MLP})],
    ids=["paper", "dropout", "other"],
)
def test_a_step_of_the_mnist_teachers(size, table, changed):
    n = values(table, changed)
    model = built(mnist_mlp, dataclasses.replace(mnist_mlp.SIZES[size], units=(90, 70), **changed), 10)
    draw = np.random.default_rng(3)
    for variable in model.trainable_variables:
        if variable.name == "kernel":  # of all norms below and above the bound
            variable.assign(variable * draw.uniform(1, 40, variable.shape[1]))
    x, labels = one_batch(10)
    check_steps(
        model,
        0.1 * x,
        labels,
        of_logits=crossentropy(smoothed(labels, n.alpha, 10)),
        decay={},
        rates=linearly(n.learning_rate, n.steps),
        move=SmoothedStep(n.gradient_smoothing, n.last_layer_rate, n.max_norm),
    )


@pytest.mark.parametrize(
    ("match", "changed"),
    [("logits", {}), ("logits", OTHER_MLP), ("probabilities", {**OTHER_MLP, "temperature": 4.0})],
    ids=["paper", "other", "probabilities"],
)
def test_a_step_of_the_mnist_student(match, changed, teacher):
    """0.4 cross-entropy with the labels, 0.6 half the squared distance from the teacher's logits [A.5].

    Or the cross-entropy with the teacher's softened probabilities in place of the distance [4].
    """
    n = values(STUDENT_MLP, changed)
    folder, kernel = teacher
    config = dataclasses.replace(mnist_mlp.SIZES["student"], teacher=folder, match=match, units=(90, 70), **changed)
    x, labels = one_batch(10)
    goal, hard = x.reshape(len(x), -1) @ kernel, crossentropy(smoothed(labels, 0.0, 10))
    soft = crossentropy(softmax(goal / n.temperature, axis=1))
    if match == "logits":
        soft = lambda z: (z - goal) / len(z)  # noqa: E731
    check_steps(
        built(mnist_mlp, config, 10),
        x,
        labels,
        of_logits=lambda z: (1 - n.beta) * hard(z) + n.beta * soft(z),
        decay={},
        rates=linearly(n.learning_rate, n.steps),
        move=SmoothedStep(n.gradient_smoothing, n.last_layer_rate, None),
    )


# --- The networks


@pytest.mark.parametrize(("size", "table"), [("paper", MLP), ("dropout", DROPOUT_MLP), ("student", STUDENT_MLP)])
def test_the_mnist_networks_start_and_drop_out_as_the_config_says(size, table):
    for changed in ({}, {"units": (300, 200, 100), "initial_stddev": 0.2, "input_dropout": 0.1, "dropout": 0.3}):
        n = values(table, changed)
        config = dataclasses.replace(mnist_mlp.SIZES[size], **changed)
        model = mnist_mlp.build_model(config, SimpleNamespace(input_shape=(28, 28, 1), num_classes=10))
        dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
        assert [layer.units for layer in dense] == [*n.units, 10]
        for layer in dense:
            kernel = layer.kernel.numpy() / n.initial_stddev
            # A Gaussian has variance 1 and fourth moment 3, found with variances 2/size and 96/size.
            assert np.mean(kernel**2) == pytest.approx(1, abs=5 * np.sqrt(2 / kernel.size))
            assert np.mean(kernel**4) == pytest.approx(3, abs=5 * np.sqrt(96 / kernel.size))
            np.testing.assert_array_equal(layer.bias, 0)
        rates = [layer.rate if isinstance(layer, keras.layers.Dropout) else "dense" for layer in model.layers[2:]]
        expected = [n.input_dropout, *["dense", n.dropout] * len(n.units), "dense"]
        assert rates == [rate for rate in expected if rate]


@pytest.mark.parametrize(
    ("changed", "widths", "size"),
    [
        ({}, [16, *[32] * 19, *[64] * 19, *[128] * 19], 3_419_284),  # nine blocks and a shortcut in each group
        ({"depth": 14, "widths": (2, 3, 4, 5)}, [2, *[3] * 5, *[4] * 5, *[5] * 5], None),
    ],
)
def test_resnet_has_the_papers_blocks_and_tensor2tensors_widths(changed, widths, size):
    config = dataclasses.replace(cifar100_resnet56.SIZES["paper"], **changed)
    model = cifar100_resnet56.build_model(config, SimpleNamespace(input_shape=(32, 32, 3), num_classes=100))
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == widths
    assert {layer.kernel_size for layer in convolutions if "shortcut" not in layer.name} == {(3, 3)}  # [A.2]
    assert size in (None, sum(weight.numpy().size for weight in model.trainable_variables))


def test_an_mnist_students_batches_bring_its_teachers_logits(tmp_path):
    original_formats.write_idx(
        tmp_path / "mnist",
        train=original_formats.examples(40, (28, 28)),
        test=original_formats.examples(10, (28, 28), seed=1),
    )
    kernel = save_linear_teacher(tmp_path / "run" / "saved_model", (28, 28, 1), 10, seed=5)
    config = dataclasses.replace(mnist_mlp.SIZES["student"], teacher=tmp_path / "run" / "saved_model")
    images = mnist_mlp.load_data(config, tmp_path / "mnist")
    assert (images.num_train, len(images.labels("held_out"))) == (40, 0)
    x, targets = next(iter(images.train(16, seed=0)))
    np.testing.assert_allclose(targets[:, 1:], x.numpy().reshape(16, -1) @ kernel, rtol=1e-4, atol=1e-5)
    rows = {image.tobytes(): label for image, label in zip(images.images("train"), images.labels("train"), strict=True)}
    shown = [rows[np.round(255 * image).astype(np.uint8).tobytes()] for image in x.numpy()]
    np.testing.assert_array_equal(targets[:, 0], shown)
