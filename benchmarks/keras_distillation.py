"""Where `keras.distillation` fails, as a table: its number, the right one from a closed form, and ours.

    python benchmarks/keras_distillation.py

Each number is measured anew with the Keras that is installed; where its number is the right one, this Keras has mended
the failure. Two logical CPUs stand for two devices. It takes about a quarter of a minute.
"""

from ls_keras import distillation, distribution
from ls_keras.losses import DistillationLoss, distillation_targets

import keras
import numpy as np
import tensorflow as tf
from scipy.special import log_softmax

FEATURES, CLASSES, TEMPERATURE = 4, 3, 3.0


# The loss itself, of logits alone


def logits(count=16, classes=5):
    return np.random.default_rng(11).normal(scale=3, size=(2, count, classes)).astype("float32")


def divergence_and_entropy(teacher, student):
    """KL(p_teacher‖p_student) and the entropy of p_teacher at the temperature, in float64."""
    log_t, log_p = (log_softmax(z.astype(float) / TEMPERATURE, -1) for z in (teacher, student))
    return (np.exp(log_t) * (log_t - log_p)).sum(-1).mean(), -(np.exp(log_t) * log_t).sum(-1).mean()


def our_loss(teacher, student, squared):
    loss = DistillationLoss(1.0, TEMPERATURE, TEMPERATURE, squared)
    return float(loss(distillation_targets(np.zeros(len(teacher), int), teacher), student))


def stock_loss(teacher, student, **options):
    return float(keras.distillation.LogitsDistillation(TEMPERATURE, **options).compute_loss(teacher, student))


def divergence(teacher, student):
    found, entropy = divergence_and_entropy(teacher, student)
    factor = TEMPERATURE**2
    return stock_loss(teacher, student), factor * found, our_loss(teacher, student, True) - factor * entropy


def crossentropy(loss):
    teacher, student = logits()
    right = sum(divergence_and_entropy(teacher, student))
    return stock_loss(teacher, student, loss=loss), right, our_loss(teacher, student, False)


# Steps, of linear networks


def linear(seed, penalty=0.0, features=FEATURES, classes=CLASSES):
    inputs = keras.Input((features,))
    kernel = keras.initializers.GlorotUniform(seed=seed)
    layer = keras.layers.Dense(classes, kernel_initializer=kernel, kernel_regularizer=keras.regularizers.L2(penalty))
    return keras.Model(inputs, layer(inputs))


def normalised():
    inputs = keras.Input((FEATURES,))
    x = keras.layers.BatchNormalization(name="normalised")(keras.layers.Identity(name="features")(inputs))
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def batch(count=6):
    generator = np.random.default_rng(3)
    return generator.normal(size=(count, FEATURES)).astype("float32"), generator.integers(0, CLASSES, count)


def our_distiller(student, teacher, optimizer="sgd"):
    teacher = distillation.load_teacher(teacher, student.output_shape[-1], student.input_shape[1:])
    model = distillation.Distiller(student.input, student.output, teacher=teacher)
    model.compile(optimizer, DistillationLoss(), jit_compile=False)
    return model


def stock_distiller(student, teacher, optimizer="sgd", part=None, loss=None, share=0.0):
    part = part or keras.distillation.LogitsDistillation(1.0, loss=keras.losses.KLDivergence())
    model = keras.distillation.Distiller(teacher, student, part, student_loss_weight=share)
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=False)
    return model


def penalty():
    x, y = batch()

    def added(distiller):
        models = [distiller(linear(1, strength), linear(2)) for strength in (100.0, 0.0)]
        return float(np.subtract(*[model.compute_loss(x, y, model(x)) for model in models]))

    right = 100 * float((linear(1).get_weights()[0] ** 2).sum())
    return added(stock_distiller), right, added(our_distiller)


def weightless():
    (x, y), weights = batch(), np.zeros(6, "float32")

    def loss(distiller):
        model = distiller(linear(1), linear(2))
        return float(model.compute_loss(x, y, model(x), sample_weight=weights))

    return loss(stock_distiller), 0.0, loss(our_distiller)


def moved_by_evaluation():
    x, y = batch()

    def moved(distiller, **options):
        student = normalised()
        model, layer = distiller(student, normalised(), **options), student.get_layer("normalised")
        before = [w.copy() for w in layer.get_weights()]
        model.evaluate(x, y, verbose=0)
        return max(float(np.abs(a - b).max()) for a, b in zip(layer.get_weights(), before, strict=True))

    features = keras.distillation.FeatureDistillation(teacher_layer_name="features", student_layer_name="features")
    return moved(stock_distiller, part=features), 0.0, moved(our_distiller)


def replicas():
    x, y = batch()
    data = tf.data.Dataset.from_tensors((x, y))

    def crossentropy(y, logits):
        return keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)

    # One strategy for both: TensorFlow takes the reductions of a second one for those of the first.
    one, two = (distribution.strategy(name) for name in ("cpu", "mirrored"))

    def moved(distiller, strategy, **options):
        with strategy.scope():
            student = linear(1)
            model = distiller(student, linear(2), **options)
        before = student.get_weights()[0]
        model.fit(data, verbose=0, shuffle=False)
        return float(np.linalg.norm(student.get_weights()[0] - before))

    def ratio(distiller, **options):
        return moved(distiller, two, **options) / moved(distiller, one, **options)

    return ratio(stock_distiller, loss=crossentropy, share=1.0), 1.0, ratio(our_distiller)


def accuracy():
    """Four classes of points, of which the teacher knows the centres; ten epochs of the teacher's part alone."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(2)
    centres, labels = generator.normal(size=(4, 8)), generator.integers(0, 4, 512)
    x = (centres[labels] + 0.5 * generator.normal(size=(512, 8))).astype("float32")

    def share_right(model):
        return float((model.predict(x, verbose=0).argmax(1) == labels).mean())

    def learned(distiller, **options):
        student = linear(3, features=8, classes=4)
        model = distiller(student, teacher, keras.optimizers.Adam(0.03), **options)
        model.fit(x, labels, batch_size=64, epochs=10, verbose=0)
        return share_right(student)

    teacher = linear(2, features=8, classes=4)
    # Logits of the nearest centre: -|x - c|² / (2 · 0.5²) up to what is common to all classes.
    teacher.set_weights([4 * centres.T, -2 * (centres**2).sum(1)])
    stock = learned(stock_distiller, part=keras.distillation.LogitsDistillation(1.0))
    return stock, share_right(teacher), learned(our_distiller)


def failures():
    teacher, student = logits()
    from_logits = keras.losses.CategoricalCrossentropy(from_logits=True)
    return {
        "KL divergence, T = 3, by default": divergence(teacher, student),
        "KL divergence, student's logits = teacher's + 5": divergence(teacher, teacher + 5),
        "cross-entropy, T = 3, loss by its name": crossentropy("categorical_crossentropy"),
        "cross-entropy, T = 3, loss with from_logits": crossentropy(from_logits),
        "what a penalty of 100 |w|² adds to the loss": penalty(),
        "loss of a batch whose weights are all 0": weightless(),
        "how far `evaluate` moves moving averages": moved_by_evaluation(),
        "a step on two devices / on one": replicas(),
        "accuracy after ten epochs (right: the teacher's)": accuracy(),
    }


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    print(f"Keras {keras.__version__}\n{'':50}{'stock Keras':>12}{'right':>12}{'ours':>12}")
    for name, numbers in failures().items():
        print(f"{name:50}" + "".join(f"{number:12.4f}" for number in numbers))


if __name__ == "__main__":
    main()
