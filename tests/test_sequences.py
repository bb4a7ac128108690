"""Padded sequences with several inputs, through training, export, probe, metrics and calibration.

The oracle is the network written out in NumPy, and averages over the positions that count.
"""

import dataclasses
import json

from ls_keras import artifact, data, distribution, experiment, losses, metrics
from ls_keras.analysis import Probe, calibration
from ls_keras.experiment import run as running

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special
from tiny_recipe import Config

NUM_CLASSES, LENGTH, WIDTH = 7, 6, 5
SIZES = {"tied": Config(learning_rate=0.5, batch_size=16, steps=6), "dense": Config(batch_size=16, steps=6)}


class Sequences:
    """Tokens, each to be given the number of the token before it plus that of its sequence's kind."""

    name, num_classes, class_names = "sequences", NUM_CLASSES, tuple("abcdefg")

    @property
    def num_train(self):
        return self.size("train")

    def size(self, split):
        return {"train": 64, "held_out": 0, "test": 37}[split]

    def rows(self, split):
        generator = np.random.default_rng(len(split))
        tokens = generator.integers(0, NUM_CLASSES, (self.size(split), LENGTH)).astype("int32")
        kind = generator.integers(0, 2, self.size(split)).astype("int32")
        lengths = generator.integers(1, LENGTH + 1, self.size(split))
        labels = (np.roll(tokens, 1, axis=1) + kind[:, None]) % NUM_CLASSES
        weights = (np.arange(LENGTH) < lengths[:, None]).astype("float32")
        return {"tokens": tokens, "kind": kind}, np.where(weights > 0, labels, 0), weights

    def train(self, batch_size, *, seed, start_step=0):
        rows = tf.data.Dataset.from_tensor_slices(self.rows("train")).repeat()
        return rows.batch(batch_size, drop_remainder=True).skip(start_step)

    def evaluation(self, split, batch_size):
        x, labels, weights = self.rows(split)
        more = -len(labels) % batch_size
        rows = tf.nest.map_structure(lambda each: np.concatenate([each, each[-1:].repeat(more, axis=0)]), (x, labels))
        weights = np.concatenate([weights, np.zeros((more, LENGTH), "float32")])
        return tf.data.Dataset.from_tensor_slices((*rows, weights)).batch(batch_size, drop_remainder=True)

    def describe(self):
        return {"loader": "Sequences", "name": self.name}


def build_model(config, examples):
    inputs = {
        name: keras.Input(shape, dtype="int32", name=name) for name, shape in (("tokens", (LENGTH,)), ("kind", ()))
    }
    tied = keras.layers.ReversibleEmbedding(NUM_CLASSES, WIDTH, name="logits")
    embedded = tied if config.learning_rate == 0.5 else keras.layers.Embedding(NUM_CLASSES, WIDTH)
    kind = keras.layers.Embedding(2, WIDTH)(inputs["kind"])
    hidden = embedded(inputs["tokens"]) + keras.ops.expand_dims(kind, 1)
    penultimate = keras.layers.Dense(WIDTH, "tanh", name="penultimate")(hidden)
    if embedded is tied:
        logits = tied(penultimate, reverse=True)
    else:
        logits = keras.layers.Dense(NUM_CLASSES, name="logits")(penultimate)
    model = distribution.Model(inputs, logits)
    model.compile(
        keras.optimizers.SGD(config.learning_rate, momentum=0.9),
        losses.SmoothedCrossentropy(config.alpha),
        weighted_metrics=metrics.classification(),
    )
    return model


RECIPE = experiment.Recipe("sequences", SIZES, lambda _, __: Sequences(), build_model)


def train(config, size, workdir):
    where = experiment.Where(workdir=workdir, quiet=True)
    return RECIPE.run(config, size=size, where=where)


@pytest.fixture(scope="module", params=list(SIZES))
def run(request, tmp_path_factory):
    return train(SIZES[request.param], request.param, tmp_path_factory.mktemp("runs"))


def by_hand(run, x):
    """Penultimate activations and logits from the variables of the SavedModel."""
    saved = tf.saved_model.load(str(run.saved_model))
    weights = [variable.numpy() for variable in saved.variables]
    embedding, kind = (next(w for w in weights if w.shape == shape) for shape in ((NUM_CLASSES, WIDTH), (2, WIDTH)))
    kernel = next(w for w in weights if w.shape == (WIDTH, WIDTH))
    bias = next(w for w in weights if w.shape == (WIDTH,))
    penultimate = np.tanh((embedding[x["tokens"]] + kind[x["kind"]][:, None]) @ kernel + bias)
    last = [w for w in weights if w.shape in ((WIDTH, NUM_CLASSES), (NUM_CLASSES,))]
    return penultimate, penultimate @ embedding.T if not last else penultimate @ last[0] + last[1]


def test_what_is_collected_is_every_position_that_counts(run):
    x, labels, weights = Sequences().rows("test")
    penultimate, logits = by_hand(run, x)
    probe = Probe(run.saved_model)
    np.testing.assert_allclose(probe.serve(x), logits, rtol=1e-4, atol=1e-5)
    kept = weights > 0
    for examples in (Sequences().evaluation("test", 16), (x, labels, weights), (x, labels[..., None], weights)):
        collected = probe.collect(examples)
        np.testing.assert_allclose(collected.penultimate, penultimate[kept], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(collected.logits, logits[kept], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(collected.labels, labels[kept])
    np.testing.assert_array_equal(probe.collect((x, labels, weights), limit=9).labels, labels[kept][:9])
    np.testing.assert_array_equal(probe.collect((x, labels)).labels, labels.ravel())
    of_rows = probe.collect((x, labels, (x["kind"] == 0).astype(float)))
    np.testing.assert_array_equal(of_rows.labels, labels[x["kind"] == 0].ravel())


def test_metrics_and_calibration_are_means_over_positions(run):
    collected = Probe(run.saved_model).collect(Sequences().evaluation("test", 16))
    logits, labels = collected.logits.astype(float), collected.labels
    nll = special.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    measured, examples = run.metrics["test"], run.examples("test")
    assert len(labels) == Sequences().rows("test")[2].sum() == len(examples.nll)
    np.testing.assert_allclose(measured["accuracy"], np.mean(logits.argmax(1) == labels), rtol=1e-6)
    np.testing.assert_allclose(measured["nll"], nll.mean(), rtol=1e-5)
    np.testing.assert_allclose(examples.nll, nll, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(measured["ece"], calibration.expected_calibration_error(logits, labels), atol=1e-6)


def test_the_run_says_what_its_data_were_and_another_data_set_does_not_go_on_with_it(run, tmp_path, monkeypatch):
    stored = json.loads((run.folder / "config.json").read_text())
    assert stored["data"] == Sequences().describe()
    with pytest.raises(ValueError, match=r"sequences was made by Sequences, which is none of ls_keras\.data"):
        data.rebuild(stored["data"])
    config = SIZES["dense"]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_examples", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, "dense", tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Sequences, "describe", lambda self: {"loader": "Sequences", "name": "others"})
    with pytest.raises(ValueError, match="was begun with other data: name 'sequences' there and 'others' here"):
        train(config, "dense", tmp_path)


def test_inputs_by_name_are_checked_by_name(run):
    probe, (x, labels, _) = Probe(run.saved_model), Sequences().rows("test")
    for wrong, message in (
        ({"tokens": x["tokens"]}, "Name the inputs kind, tokens"),
        (x["tokens"], "Name the inputs kind, tokens"),
        ({**x, "kind": x["kind"][:3]}, "as many rows of each input"),
        ({**x, "tokens": x["tokens"][:, :3]}, r"tokens: shape \[37, 3\]"),
        ({**x, "kind": x["kind"] / 2}, "Give it int32"),
    ):
        with pytest.raises(ValueError, match=message):
            probe.serve(wrong)
    with pytest.raises(ValueError, match=r"class indices of shape \[37, 6\]"):
        probe.collect((x, labels[:, 0]))
    with pytest.raises(ValueError, match="weight for each of 37 x 6 labels"):
        probe.collect((x, labels, np.ones((37, 2))))


def test_a_soft_cap_behind_tied_embeddings_is_not_described_by_them(tmp_path):
    tokens = keras.Input((LENGTH,), dtype="int32")
    tied = keras.layers.ReversibleEmbedding(NUM_CLASSES, WIDTH, name="logits", logit_soft_cap=0.01)
    penultimate = keras.layers.Dense(WIDTH, name="penultimate")(tied(tokens))
    with pytest.raises(ValueError, match=r"is not penultimate @ kernel \+ bias"):
        artifact.export(keras.Model(tokens, tied(penultimate, reverse=True)), tmp_path / "model")


def test_a_mean_over_tokens_that_are_no_pads_is_exported(tmp_path):
    """It has no value where all are pads, which is nothing that a network is tried out on."""
    tokens = keras.Input((LENGTH,), dtype="int32")
    mean = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(NUM_CLASSES, WIDTH, mask_zero=True)(tokens))
    penultimate = keras.layers.Dense(WIDTH, name="penultimate")(mean)
    model = keras.Model(tokens, keras.layers.Dense(3, name="logits")(penultimate))
    artifact.export(model, tmp_path / "model")
    x = Sequences().rows("test")[0]["tokens"] % (NUM_CLASSES - 1) + 1
    np.testing.assert_allclose(Probe(tmp_path / "model").serve(x), model(x), rtol=1e-5, atol=1e-6)


# --- Identity


def test_equal_trainings_have_one_digest_and_another_seed_another(run, tmp_path):
    config, size = (SIZES["tied"], "tied") if "tied" in run.folder.name else (SIZES["dense"], "dense")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])  # other layers, made before
    again = train(config, size, tmp_path)
    other = train(dataclasses.replace(config, seed=1), size, tmp_path)
    digests = [artifact.digest(each.saved_model) for each in (run, again, other)]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 16


class Exported(tf.Module):
    """A function that can be saved in versions that differ in one thing."""

    def __init__(self, weight=1.0, constant=2.0, call=tf.nn.relu, shape=(None, 3)):
        super().__init__()
        self.weight = tf.Variable([weight, 1.0])
        self.serve = tf.function(
            lambda x: call(x * tf.reduce_sum(self.weight) - constant), input_signature=[tf.TensorSpec(shape)]
        )


def test_the_digest_changes_with_each_thing_that_a_network_computes(tmp_path):
    digests = []
    changes = ({}, {"weight": 1.5}, {"constant": 3.0}, {"call": tf.nn.tanh}, {"shape": (4, 3)})
    for number, changed in enumerate(changes):
        tf.saved_model.save(Exported(**changed), str(tmp_path / str(number)))
        digests.append(artifact.digest(tmp_path / str(number)))
    assert len(set(digests)) == len(changes)
    tf.saved_model.save(Exported(), str(tmp_path / "again"))
    assert artifact.digest(tmp_path / "again") == digests[0]
    assert artifact.digest(tmp_path) is None


def test_a_damaged_network_has_no_digest(tmp_path):
    tf.saved_model.save(Exported(), str(tmp_path / "model"))
    (values,) = (tmp_path / "model" / "variables").glob("variables.data*")
    values.write_bytes(bytes([values.read_bytes()[0] ^ 1]) + values.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"is damaged or incomplete: .*Checksum"):
        artifact.digest(tmp_path / "model")
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"half")
    with pytest.raises(ValueError, match="is damaged or incomplete"):
        artifact.digest(tmp_path / "model")
