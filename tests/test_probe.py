import subprocess
import sys

from ls_keras.analysis import Probe

import numpy as np
import pytest
import tensorflow as tf

NUM_FEATURES, NUM_CLASSES, SIDE = 6, 4, 3


class Exported(tf.Module):
    """A network of two dense layers with the three endpoints; arguments break one part of the contract."""

    def __init__(self, dtype=tf.float32, bias_shift=0.0, serve_softmax=False, seed=0):
        super().__init__()
        generator = np.random.default_rng(seed)
        self.hidden = tf.Variable(generator.normal(size=(SIDE * SIDE, NUM_FEATURES)), dtype=dtype)
        self.kernel = tf.Variable(generator.normal(size=(NUM_FEATURES, NUM_CLASSES)), dtype=tf.float32)
        self.bias = tf.Variable(generator.normal(size=NUM_CLASSES), dtype=tf.float32)
        self.dtype, self.bias_shift, self.serve_softmax = dtype, bias_shift, serve_softmax

    def outputs(self, x):
        x = tf.cast(tf.reshape(x, [-1, SIDE * SIDE]), self.dtype)
        penultimate = tf.nn.relu(x @ self.hidden)
        logits = penultimate @ tf.cast(self.kernel, self.dtype) + tf.cast(self.bias, self.dtype)
        return {"penultimate": penultimate, "logits": tf.cast(logits, tf.float32)}

    @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE], tf.float32)])
    def serve(self, x):
        logits = self.outputs(x)["logits"]
        return tf.nn.softmax(logits) if self.serve_softmax else logits

    @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE], tf.float32)])
    def probe(self, x):
        return self.outputs(x)

    @tf.function(input_signature=[])
    def templates(self):
        return {"kernel": self.kernel, "bias": self.bias + self.bias_shift}


@pytest.fixture(scope="module")
def exported():
    return Exported()


@pytest.fixture(scope="module")
def path(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    tf.saved_model.save(exported, str(path))
    return path


@pytest.fixture(scope="module")
def examples():
    generator = np.random.default_rng(1)
    x = generator.normal(size=(23, SIDE, SIDE)).astype(np.float32)
    return x, generator.integers(NUM_CLASSES, size=23)


def numpy_network(exported, x):
    penultimate = np.maximum(x.reshape(len(x), -1).astype(float) @ exported.hidden.numpy(), 0)
    return penultimate, penultimate @ exported.kernel.numpy() + exported.bias.numpy()


def test_collect_returns_every_example_in_order(exported, path, examples):
    network = Probe(path)
    x, labels = examples
    collected = network.collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(5))
    penultimate, logits = numpy_network(exported, x)
    np.testing.assert_allclose(collected.penultimate, penultimate, atol=1e-5)
    np.testing.assert_allclose(collected.logits, logits, atol=1e-5)
    np.testing.assert_array_equal(collected.labels, labels)
    assert collected.penultimate.dtype == collected.logits.dtype == np.float32
    assert collected.labels.dtype == np.int64
    np.testing.assert_array_equal(network.kernel, exported.kernel.numpy())
    np.testing.assert_array_equal(network.bias, exported.bias.numpy())
    assert network.num_classes == NUM_CLASSES
    np.testing.assert_allclose(network.serve(x), logits, atol=1e-5)
    np.testing.assert_allclose(network.probe(x)[0], penultimate, atol=1e-5)


def test_padding_is_dropped(path, examples):
    x, labels = examples
    weight = np.ones(23, np.float32)
    weight[[0, 7, 20, 21, 22]] = 0
    padded = np.where(weight[:, None, None] == 0, np.float32(np.nan), x)  # padding may hold anything
    padded_labels = np.where(weight == 0, -1, labels)
    network = Probe(path)
    whole = network.collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(4))
    kept = network.collect(tf.data.Dataset.from_tensor_slices((padded, padded_labels, weight)).batch(4))
    for name in ("penultimate", "logits", "labels"):
        np.testing.assert_allclose(getattr(kept, name), getattr(whole, name)[weight > 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("limit", [1, 4, 9, 23, 100])
def test_limit(path, examples, limit):
    x, labels = examples
    collected = Probe(path).collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(4), limit=limit)
    np.testing.assert_array_equal(collected.labels, labels[:limit])
    assert len(collected.logits) == len(collected.penultimate) == min(limit, 23)


def test_endless_data_needs_a_limit(path, examples):
    dataset = tf.data.Dataset.from_tensor_slices(examples).batch(4).repeat()
    network = Probe(path)
    assert len(network.collect(dataset, limit=50).labels) == 50
    with pytest.raises(ValueError, match="endless"):
        network.collect(dataset)


def test_signatures_alone_are_enough(exported, path, examples, tmp_path):
    bare = tf.Module()
    bare.variables_ = [exported.hidden, exported.kernel, exported.bias]
    image = tf.TensorSpec([None, SIDE, SIDE], tf.float32)
    signatures = {
        "serve": tf.function(lambda image: {"scores": exported.serve(image)}).get_concrete_function(image),
        "probe": exported.probe.get_concrete_function(),
        "templates": exported.templates.get_concrete_function(),
    }
    tf.saved_model.save(bare, str(tmp_path / "model"), signatures=signatures)
    network, functions = Probe(tmp_path / "model"), Probe(path)
    x, labels = examples
    np.testing.assert_array_equal(network.serve(x), functions.serve(x))
    collected = network.collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(5))
    np.testing.assert_allclose(collected.logits, functions.serve(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(network.kernel, functions.kernel)


def test_keras_model_exported_by_keras(tmp_path, examples):
    import keras

    inputs = keras.Input((SIDE, SIDE))
    x = keras.layers.Dense(NUM_FEATURES, activation="relu", name="penultimate")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(NUM_CLASSES, name="logits")(x))
    both = keras.Model(inputs, {"penultimate": x, "logits": model.output})
    last = model.get_layer("logits")
    archive = keras.export.ExportArchive()
    archive.track(model)
    spec = [tf.TensorSpec([None, SIDE, SIDE], tf.float32)]
    archive.add_endpoint("serve", lambda x: model(x, training=False), spec)
    archive.add_endpoint("probe", lambda x: both(x, training=False), spec)
    archive.add_endpoint("templates", lambda: {"kernel": last.kernel.value, "bias": last.bias.value}, [])
    archive.write_out(str(tmp_path / "model"), verbose=False)
    images, labels = examples
    collected = Probe(tmp_path / "model").collect(tf.data.Dataset.from_tensors((images, labels)))
    np.testing.assert_allclose(collected.logits, model(images), rtol=1e-5, atol=1e-6)


def test_bfloat16_networks_are_accepted(tmp_path, examples):
    tf.saved_model.save(Exported(dtype=tf.bfloat16), str(tmp_path / "model"))
    collected = Probe(tmp_path / "model").collect(tf.data.Dataset.from_tensors(examples))
    assert collected.penultimate.dtype == np.float32


def test_arrays_need_no_tensorflow_and_probes_no_training_code(path):
    code = (
        "import sys; from ls_keras.analysis import calibration, geometry, information\n"
        "assert 'tensorflow' not in sys.modules\n"
        f"from ls_keras.analysis import Probe; Probe({str(path)!r})\n"
        "ours = {name for name in sys.modules if name.startswith('ls_keras.')}\n"
        "assert all(name.startswith('ls_keras.analysis') for name in ours), ours\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_logit_differences(exported, path, examples):
    x, _ = examples
    index = np.random.default_rng(2).permutation(np.repeat([5, 3, 9], 7))
    draws = x[:21]
    dataset = tf.data.Dataset.from_tensor_slices((draws, index)).batch(4)
    differences = Probe(path).logit_differences(dataset, (2, 0))
    _, logits = numpy_network(exported, draws)
    expected = [[row[2] - row[0] for row, i in zip(logits, index, strict=True) if i == at] for at in (3, 5, 9)]
    np.testing.assert_allclose(differences, expected, atol=1e-5)
    assert differences.dtype == np.float64
    network = Probe(path)
    for pair in ((0, 0), (0, 4), (-1, 2)):
        with pytest.raises(ValueError, match=r"different classes in \[0, 4\)"):
            network.logit_differences(dataset, pair)
    with pytest.raises(ValueError, match=f"index {index[-1]} occurs 6 times"):
        network.logit_differences(dataset.unbatch().take(20).batch(4), (0, 1))
    with pytest.raises(ValueError, match="empty"):
        network.logit_differences(dataset.take(0), (0, 1))


# Bad input


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"saved_model\.pb"):
        Probe(tmp_path)


def test_missing_endpoints_are_named(tmp_path):
    module = tf.Module()
    module.serve = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None, 2])])
    module.features = tf.function(lambda x: x, input_signature=[tf.TensorSpec([None, 2])])
    tf.saved_model.save(module, str(tmp_path / "model"))
    with pytest.raises(
        ValueError, match=r"no endpoint probe, templates; it has features, serve.*\n?.*tf.saved_model.save"
    ):
        Probe(tmp_path / "model")


@pytest.mark.parametrize(
    ("broken", "message"),
    [({"bias_shift": 1.0}, r"probe\(x\)"), ({"serve_softmax": True}, r"serve\(x\).*without softmax")],
)
def test_broken_contract(tmp_path, examples, broken, message):
    tf.saved_model.save(Exported(**broken), str(tmp_path / "model"))
    network = Probe(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        network.collect(tf.data.Dataset.from_tensors(examples))


def test_wrong_shapes_of_the_contract(tmp_path, examples):
    module = Exported()
    module.kernel = tf.Variable(tf.zeros((NUM_FEATURES, NUM_CLASSES)))
    wrong = tf.Module()
    wrong.parts = module
    wrong.serve, wrong.probe = module.serve, module.probe
    wrong.templates = tf.function(lambda: {"kernel": tf.zeros((5, 4)), "bias": tf.zeros(4)}, input_signature=[])
    tf.saved_model.save(wrong, str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"penultimate \[N, 5\]"):
        Probe(tmp_path / "model").collect(tf.data.Dataset.from_tensors(examples))


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (lambda: {"kernel": tf.zeros((5, 4))}, r"got \['kernel'\]"),
        (lambda: {"kernel": tf.zeros((5, 4)), "bias": tf.zeros(3)}, r"\(5, 4\) and \(3,\)"),
        (lambda: {"kernel": tf.fill((5, 4), float("nan")), "bias": tf.zeros(4)}, "diverged"),
    ],
)
def test_bad_templates(tmp_path, templates, message):
    module = Exported()
    module.templates = tf.function(templates, input_signature=[])
    tf.saved_model.save(module, str(tmp_path / "model"))
    with pytest.raises(ValueError, match=message):
        Probe(tmp_path / "model")


def test_logits_that_are_not_finite_are_counted(path, examples):
    x, labels = examples
    x = x.copy()
    x[[6, 11, 13]] = np.nan
    with pytest.raises(ValueError, match=r"3 of 23 rows.*first is row 6"):
        Probe(path).collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y + 1), r"\[0, 4\).*got 4"),
        (lambda x, y: (x, -y - 1), r"\[0, 4\).*got -"),
        (lambda x, y: (x, np.eye(4)[y]), r"argmax\(-1\)"),
        (lambda x, y: (x, y.astype(np.float32)), "dtype float32"),
        (lambda x, y: x, r"\(x, labels\)"),
        (lambda x, y: (x, y, y, y), "4 elements"),
        (lambda x, y: (x, y, np.zeros(23)), "no example"),
    ],
)
def test_bad_data(path, examples, change, message):
    with pytest.raises(ValueError, match=message):
        Probe(path).collect(tf.data.Dataset.from_tensor_slices(change(*examples)).batch(4))


def test_bad_limit(path, examples):
    with pytest.raises(ValueError, match="limit"):
        Probe(path).collect(tf.data.Dataset.from_tensors(examples), limit=0)
