import shutil
import subprocess
import sys

from ls_keras import distillation
from ls_keras.analysis import Probe

import keras
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
    penultimate = np.maximum(x.reshape(len(x), SIDE * SIDE).astype(float) @ exported.hidden.numpy(), 0)
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
    np.testing.assert_array_equal(network.serve(x.astype(float)), functions.serve(x))
    with pytest.raises(ValueError, match=r"\[n, 3, 3\] and type float32; received shape \[23, 3, 3\] and type uint8"):
        network.serve(x.astype(np.uint8))
    collected = network.collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(5))
    np.testing.assert_allclose(collected.logits, functions.serve(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(network.kernel, functions.kernel)


def test_keras_model_exported_by_keras(tmp_path, examples):
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
        "ours = {name for name in ours if not name.startswith('ls_keras.analysis')}\n"
        "assert ours == {'ls_keras.artifact', 'ls_keras.artifact.reading'}, ours\n"
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
        with pytest.raises(ValueError, match=r"two different classes, integers in \[0, 4\)"):
            network.logit_differences(dataset, pair)
    with pytest.raises(ValueError, match=f"index {index[-1]} occurs 6 times"):
        network.logit_differences(dataset.unbatch().take(20).batch(4), (0, 1))
    with pytest.raises(ValueError, match="empty"):
        network.logit_differences(dataset.take(0), (0, 1))


# Whatever means what the network takes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "list"])
def test_floats_of_any_precision_are_cast(exported, path, examples, dtype):
    x, labels = examples
    x = x.astype(np.float16).astype(float) if dtype != "bfloat16" else np.round(x * 4) / 4
    _, logits = numpy_network(exported, x)
    given = x.tolist() if dtype == "list" else tf.cast(x, dtype) if dtype == "bfloat16" else x.astype(dtype)
    network = Probe(path)
    np.testing.assert_allclose(network.serve(given), logits, atol=1e-5)
    np.testing.assert_allclose(network.probe(given)[1], logits, atol=1e-5)
    if dtype != "list":
        collected = network.collect(tf.data.Dataset.from_tensor_slices((given, labels)).batch(5))
        np.testing.assert_allclose(collected.logits, logits, atol=1e-5)


@pytest.mark.parametrize(
    "of", [np.copy, lambda y: y[:, None], lambda y: y.astype(float), lambda y: np.eye(4)[y], lambda y: np.eye(4)[y] > 0]
)
def test_arrays_with_labels_of_any_kind(path, examples, of):
    x, labels = examples
    whole = Probe(path).collect(tf.data.Dataset.from_tensors((x, labels)))
    weights = np.arange(23) % 2
    collected = Probe(path).collect((x, of(labels), weights[:, None]))
    np.testing.assert_array_equal(collected.labels, labels[weights > 0])
    np.testing.assert_allclose(collected.logits, whole.logits[weights > 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(Probe(path).collect((x, of(labels)), limit=7).labels, labels[:7])


def test_arrays_are_run_a_part_at_a_time(exported, path):
    x = np.random.default_rng(5).normal(size=(700, SIDE, SIDE)).astype(np.float32)
    collected = Probe(path).collect((x, np.arange(700) % NUM_CLASSES))
    np.testing.assert_allclose(collected.logits, numpy_network(exported, x)[1], atol=1e-5)
    np.testing.assert_array_equal(collected.labels, np.arange(700) % NUM_CLASSES)


class Fixed(Exported):
    """A network that takes four rows at a time, and looks at which they are."""

    @tf.function(input_signature=[tf.TensorSpec([4, SIDE, SIDE], tf.float32)])
    def serve(self, x):
        return self.outputs(x)["logits"]

    @tf.function(input_signature=[tf.TensorSpec([4, SIDE, SIDE], tf.float32)])
    def probe(self, x):
        return self.outputs(x)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 8, 23])
def test_any_number_of_rows_through_a_fixed_batch_size(tmp_path_factory, examples, rows):
    module = Fixed()
    folder = tmp_path_factory.mktemp("fixed")
    tf.saved_model.save(module, str(folder))
    x, labels = examples[0][:rows], examples[1][:rows]
    penultimate, logits = numpy_network(module, x)
    for network in (Probe(folder), Probe(module)):
        np.testing.assert_allclose(network.serve(x), logits, atol=1e-5)
        np.testing.assert_allclose(network.probe(x)[0], penultimate, atol=1e-5)
        if rows:
            collected = network.collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(3))
            np.testing.assert_allclose(collected.logits, logits, atol=1e-5)


class Typed(tf.Module):
    """Class k for a k among the inputs, as strings or whole numbers: kernel and penultimate are the identity."""

    def __init__(self, dtype):
        super().__init__()
        names = tf.constant(["a", "b", "c"]) if dtype == tf.string else tf.range(3)
        signature = [tf.TensorSpec([None, 2], dtype)]

        def penultimate(x):
            return tf.reduce_sum(tf.cast(x[..., None] == tf.cast(names, dtype), tf.float32), axis=1)

        self.serve = tf.function(penultimate, input_signature=signature)
        self.probe = tf.function(
            lambda x: {"penultimate": penultimate(x), "logits": penultimate(x)}, input_signature=signature
        )
        self.templates = tf.function(lambda: {"kernel": tf.eye(3), "bias": tf.zeros(3)}, input_signature=[])


@pytest.mark.parametrize(
    ("dtype", "x"),
    [
        (tf.string, np.array([["a", "c"], ["b", "b"]])),
        (tf.string, [[b"a", b"c"], [b"b", b"b"]]),
        (tf.uint8, np.array([[0, 2], [1, 1]])),
        (tf.int32, np.array([[0, 2], [1, 1]], np.uint64)),
        (tf.int64, np.array([[0, 2], [1, 1]], np.int8)),
    ],
)
def test_strings_and_whole_numbers_that_fit(dtype, x):
    network = Probe(Typed(dtype))
    np.testing.assert_array_equal(network.serve(x), [[1, 0, 1], [0, 2, 0]])
    np.testing.assert_array_equal(network.collect((x, [0, 1])).labels, [0, 1])


# Bad input


@pytest.mark.parametrize(
    ("dtype", "x", "message"),
    [
        (tf.uint8, [[0, 256]], r"received shape \[1, 2\] and type int32\. Values must lie between 0 and 255"),
        (tf.uint8, [[-1, 0]], "between 0 and 255"),
        (tf.int32, [[2**40, 0]], "between -2147483648 and 2147483647"),
        (tf.int32, [[0.0, 1.0]], r"shape \[n, 2\] and type int32; received .* type float32"),
        (tf.string, [[0, 1]], "type string; received .* type int32"),
        (tf.string, ["a", "b"], r"single example, give x\[None\]"),
    ],
)
def test_numbers_that_do_not_fit_the_signature(dtype, x, message):
    with pytest.raises(ValueError, match=message):
        Probe(Typed(dtype)).serve(x)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda x: (x * 9).astype(np.uint8), r"\[n, 3, 3\] and type float32; received .*uint8\. Scale them as for"),
        (lambda x: (x * 9).astype(int), r"x / 255"),
        (lambda x: x > 0, "type bool"),
        (lambda x: x.astype(str), "type string"),
        (lambda x: x[0], r"single example, give x\[None\]"),
        (lambda x: x[..., None], r"received shape \[23, 3, 3, 1\]"),
        (lambda x: x[:, :2], r"received shape \[23, 2, 3\] .*inputs of the data set"),
        (lambda x: [[1.0], [2.0, 3.0]], "received list"),
        (lambda x: {"x": x, "y": x}, r"received x: shape .*; y: shape .*(one dictionary|one array)"),
        (lambda x: np.ma.masked_array(x, x > 0), "mask would be lost"),
        (lambda x: np.where(x == x[7], np.nan, x), "NaN or infinity .*1 of 23 examples .*first is example 7"),
        (lambda x: np.where(x == x.max(), -np.inf, x), "NaN or infinity"),
        (lambda x: x * 1e300, r"NaN or infinity \(as float32\): 23 of 23"),
    ],
)
@pytest.mark.parametrize("kind", ["SavedModel", "memory"])
def test_inputs_of_another_kind_are_named_with_the_signature(exported, path, examples, kind, of, message):
    network = Probe(exported if kind == "memory" else path)
    for call in (network.serve, network.probe):
        with pytest.raises(ValueError, match=message):
            call(of(examples[0].astype(float)))


def test_inputs_with_nan_are_refused_by_their_place_unless_they_are_padding(path, examples):
    x, labels = examples
    x = np.where(np.arange(23)[:, None, None] == 12, np.float32(np.nan), x)
    network, weights = Probe(path), np.arange(23) != 12
    with pytest.raises(ValueError, match=r"1 of 5 examples .*first is example 12"):
        network.collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(5))
    assert len(network.collect((x, labels, weights)).labels) == 22
    assert len(network.collect((x, labels), limit=12).labels) == 12
    with pytest.raises(ValueError, match="inputs hold NaN"):
        network.logit_differences(tf.data.Dataset.from_tensors((x, np.zeros(23, int))), (0, 1))


def test_nan_that_max_pooling_hides_is_refused():
    """Which is why they are: of NaN images such a network makes its biases, with probabilities that look like any."""
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Flatten()(keras.layers.ReLU()(keras.layers.MaxPooling2D(4)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    images = np.full((2, 4, 4, 1), np.nan, np.float32)
    np.testing.assert_array_equal(model.predict(images, verbose=0), np.zeros((2, 3)))
    module = tf.Module()
    module.serve = tf.function(lambda x: model(x, training=False), input_signature=[tf.TensorSpec([None, 4, 4, 1])])
    module.probe = tf.function(
        lambda x: {"penultimate": x[:, 0, 0], "logits": module.serve(x)}, input_signature=module.serve.input_signature
    )
    module.templates = tf.function(lambda: {"kernel": tf.ones((1, 3)), "bias": tf.zeros(3)}, input_signature=[])
    with pytest.raises(ValueError, match=r"2 of 2 examples .*max pooling hide NaN"):
        Probe(module).serve(images)


def test_a_failure_within_the_network_is_one_sentence(capfd):
    module = Typed(tf.int32)
    table = tf.eye(2)
    module.serve = tf.function(
        lambda x: tf.gather(table, x[:, 0]), input_signature=[tf.TensorSpec([None, 2], tf.int32)]
    )
    with pytest.raises(
        ValueError, match=r"^serve\(x\) of the network in memory fails on inputs of .*7 is not in"
    ) as told:
        Probe(module).serve([[7, 0]])
    assert "\n" not in str(told.value)
    assert "{{" not in str(told.value)


def test_several_inputs_and_outputs_are_named(tmp_path):
    module = Exported()
    specs = [tf.TensorSpec([None, SIDE, SIDE], name=name) for name in ("left", "right")]
    module.serve = tf.function(lambda left, right: left + right, input_signature=specs)
    with pytest.raises(ValueError, match=r"serve\(x\) of .* takes 2 inputs \(left, right\)"):
        Probe(module)
    module.serve = tf.function(
        lambda x: {"a": x[:, 0], "b": x[:, 1]}, input_signature=[tf.TensorSpec([None, SIDE, SIDE])]
    )
    with pytest.raises(ValueError, match=r"returns 2 outputs, a \[2, 3\], b \[2, 3\], and none is named `logits`"):
        Probe(module).serve(np.zeros((2, SIDE, SIDE)))
    module.serve = tf.function(
        lambda x: {"a": x[:, 0], "logits": x[:, 1]}, input_signature=[tf.TensorSpec([None, SIDE, SIDE])]
    )
    np.testing.assert_array_equal(Probe(module).serve(np.ones((2, SIDE, SIDE))), np.ones((2, SIDE)))


def test_a_keras_model_is_told_what_to_pass():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)], name="net")
    with pytest.raises(ValueError, match=r"a Keras model, net\. Pass artifact\.endpoints\(model\), or .*export\("):
        Probe(model)
    with pytest.raises(ValueError, match="network in memory has no endpoint serve, probe, templates; it has none at"):
        Probe(object())


def without_variables(folder):
    shutil.rmtree(folder / "variables")


def shortened(folder):
    (data,) = (folder / "variables").glob("variables.data*")
    data.write_bytes(data.read_bytes()[:60])


def overwritten(folder):
    (data,) = (folder / "variables").glob("variables.data*")
    data.write_bytes(bytes(len(data.read_bytes())))


def a_folder(folder):
    (folder / "saved_model.pb").unlink()
    (folder / "saved_model.pb").mkdir()


DAMAGES = [
    lambda folder: (folder / "saved_model.pb").write_bytes(b""),
    lambda folder: (folder / "saved_model.pb").write_bytes(b"hello" * 100),
    lambda folder: (folder / "saved_model.pb").write_bytes((folder / "saved_model.pb").read_bytes()[:3000]),
    lambda folder: (folder / "variables" / "variables.index").write_bytes(b"short"),
    without_variables,
    shortened,
    overwritten,
    a_folder,
]


@pytest.mark.parametrize("load", [Probe, lambda folder: distillation.load_teacher(folder, NUM_CLASSES, (SIDE, SIDE))])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_savedmodel_is_a_sentence(path, tmp_path, load, damage):
    shutil.copytree(path, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(ValueError, match=rf"^The SavedModel at {tmp_path / 'copy'} is damaged, incomplete or") as told:
        load(tmp_path / "copy")
    assert "\n" not in str(told.value)
    assert "SavedModel at SavedModel at" not in str(told.value)


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
    with pytest.raises(ValueError, match=message) as told:
        network.collect(tf.data.Dataset.from_tensors(examples))
    assert str(told.value).count(f"SavedModel at {tmp_path / 'model'}") == 1
    assert "SavedModel at SavedModel at" not in str(told.value)


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
        (lambda: {"kernel": tf.zeros((5, 4))}, r"received \['kernel'\]"),
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


def test_logits_that_are_not_finite_are_counted(tmp_path, examples):
    """Of a network that cannot stand an input above 2, whose logarithm has no value."""
    x, labels = np.clip(examples[0], -2, 2), examples[1]
    module = Exported()
    image = [tf.TensorSpec([None, SIDE, SIDE])]
    module.serve = tf.function(lambda x: module.outputs(tf.math.log(3 - x))["logits"], input_signature=image)
    module.probe = tf.function(lambda x: module.outputs(tf.math.log(3 - x)), input_signature=image)
    x[[6, 11, 13]] = 4.0
    tf.saved_model.save(module, str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"1 of 5 rows of logits hold NaN.*first is row 6"):
        Probe(tmp_path / "model").collect(tf.data.Dataset.from_tensor_slices((x, labels)).batch(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y + 1), r"\[0, 4\).*received . to 4.*data set that the network was trained on"),
        (lambda x, y: (x, -y - 1), r"\[0, 4\).*received -4"),
        (lambda x, y: (x, np.full((23, 4), 0.25)), "one-hot.*Soft labels"),
        (lambda x, y: (x, y + 0.5), "no whole number"),
        (lambda x, y: (x, y.astype(str)), "Turn names into class indices"),
        (lambda x, y: (x, np.eye(5)[y]), r"one-hot \[4, 4\]"),
        (lambda x, y: x, r"\(x, labels\)"),
        (lambda x, y: (x, y, y, y), "4 elements"),
        (lambda x, y: (x, y, np.zeros(23)), "no example"),
        (lambda x, y: (x, y, np.ones((23, 2))), r"weight for each of 4 labels; received shape \(4, 2\)"),
    ],
)
def test_bad_data(path, examples, change, message):
    with pytest.raises(ValueError, match=message):
        Probe(path).collect(tf.data.Dataset.from_tensor_slices(change(*examples)).batch(4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda x, y: (x, y[:4]), r"a row for each example; received shapes \(23, 3, 3\), \(4,\)"),
        (lambda x, y: (x, 1), r"a row for each example"),
        (lambda x, y: None, "received NoneType"),
        (lambda x, y: x, "received ndarray a batch"),
        (lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)), r"single examples\. Batch it"),
        (lambda x, y: tf.data.Dataset.from_tensor_slices((x, np.eye(4)[y])), r"single example, give x\[None\]"),
    ],
)
def test_what_is_no_data_set_of_batches(path, examples, data, message):
    with pytest.raises(ValueError, match=message):
        Probe(path).collect(data(*examples))


def test_bad_limit(path, examples):
    with pytest.raises(ValueError, match="limit"):
        Probe(path).collect(tf.data.Dataset.from_tensors(examples), limit=0)


def test_arguments_of_a_probe(path, examples):
    (x, labels), network = examples, Probe(path)
    for limit, message in (
        (labels, r"received ndarray\. Arrays come as one tuple"),
        (2.5, "received 2.5"),
        (True, "received True"),
    ):
        with pytest.raises(ValueError, match="Expected limit to be an integer of at least 1.*" + message):
            network.collect((x, labels), limit)
    draws = tf.data.Dataset.from_tensor_slices((x[:4], [0, 0, 1, 1])).batch(2)
    for pair in ((0.5, 1), "01", (0, 1, 2), (True, 2)):
        with pytest.raises(ValueError, match="Expected pair to be two different classes"):
            network.logit_differences(draws, pair)
    with pytest.raises(ValueError, match="index of each draw's example as integers; received dtype float"):
        network.logit_differences(draws.map(lambda x, index: (x, tf.cast(index, tf.float32))), (0, 1))
    for weight in (np.nan, -1.0, np.inf):
        with pytest.raises(ValueError, match="Weights must be finite numbers from 0 on"):
            network.collect((x, labels, np.where(labels == 0, weight, 1.0)))
