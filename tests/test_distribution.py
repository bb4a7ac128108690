"""One device is the oracle: two replicas in one process and two processes must give the same numbers."""

import json
import re
import time

from ls_keras import distribution, losses

import keras
import multi_worker
import numpy as np
import pytest
import tensorflow as tf
from processes import free_addresses, read_results, start, start_workers
from scipy.special import log_softmax, softmax


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What multi_worker.py found on one device, on two, and on each of two workers."""
    folder = tmp_path_factory.mktemp("distribution")
    processes = start_workers("multi_worker.py", folder)
    processes |= {name: start("multi_worker.py", name, folder / f"{name}.json") for name in ("cpu", "mirrored")}
    return read_results(processes, folder)


def numbers(tree):
    return np.array([leaf for leaf in tf.nest.flatten(tree)], dtype="float64")


@pytest.mark.parametrize("variant", ["plain", "derived"])
@pytest.mark.parametrize("where", ["mirrored", "worker 0", "worker 1"])
def test_replicas_compute_what_one_device_computes(results, where, variant):
    expected, received = results["cpu"][variant], results[where][variant]
    assert set(expected) - set(received) == ({"state"} if where == "worker 1" else set())
    for part in received:
        np.testing.assert_allclose(numbers(received[part]), numbers(expected[part]), rtol=1e-5, atol=1e-5, err_msg=part)


@pytest.mark.parametrize("variant", ["accumulated", "averaged", "auxiliary"])
@pytest.mark.parametrize("where", ["mirrored", "worker 0", "worker 1"])
def test_what_is_unevenly_spread(results, where, variant):
    """Sequences with masked or ignored labels, weights, class weights; joined batches, averaged weights, two heads."""
    expected, received = results["cpu"][variant], results[where][variant]
    np.testing.assert_allclose(numbers(received), numbers(expected), rtol=1e-5, atol=1e-5)


def test_accumulated_batches_make_the_steps_of_the_joined_batch(results):
    accumulated, joined = (numbers(results["cpu"][name]["weights"]) for name in ("accumulated", "joined"))
    np.testing.assert_allclose(accumulated, joined, atol=1e-6)


def linear_step(kernel, x, y, weights, counts, alpha, by_weights):
    """Loss of a linear softmax classifier of positions and its kernel and bias after a step at rate 1, in float64."""
    y = np.where(counts, y, 0)
    logits = x @ np.array(kernel, float)
    target = (1 - alpha) * np.eye(3)[y] + alpha / 3
    weights = np.broadcast_to(weights, y.shape) * counts
    denominator = weights.sum() if by_weights else counts.sum()
    loss = -(weights[..., None] * target * log_softmax(logits, -1)).sum() / denominator
    slope = weights[..., None] * (softmax(logits, -1) - target) / denominator
    return loss, kernel - np.einsum("ntd,ntk->dk", x, slope), -slope.sum((0, 1))


@pytest.mark.parametrize("step", multi_worker.STEPS, ids=" ".join)
def test_a_step_of_two_replicas_is_the_closed_form(results, step):
    """One replica has five positions that count, the other fifteen more; weights of three shapes."""
    pads, loss, weighted = step
    x, y, *weights = (part[: multi_worker.BATCH] for part in multi_worker.padded_sequences(pads, loss, weighted))
    counts = multi_worker.sequences()[-1][: multi_worker.BATCH]
    assert not counts[:4].any()
    assert counts[4:].any()
    weights = (weights[0][:, None] if weighted == "[n]" else weights[0]) if weights else 1.0
    by_weights = loss == "keras, by weights" or (loss, pads) == ("ours", "ignored")
    kernel = keras.initializers.RandomNormal(stddev=0.5, seed=5)((4, 3)).numpy()
    expected = linear_step(kernel, x, y, weights, counts, 0.1 if loss == "ours" else 0.0, by_weights)
    received = results["mirrored"]["steps"][" ".join(step)]
    np.testing.assert_allclose(received["loss"], expected[0], rtol=1e-5)
    np.testing.assert_allclose(received["weights"][0], expected[1], atol=1e-6)
    np.testing.assert_allclose(received["weights"][1], expected[2], atol=1e-6)


def test_the_clipping_that_was_compared_was_active(results):
    assert results["cpu"]["gradient norm"] > 0.3


def test_evaluation_counts_each_example_once(results):
    """Accuracy and loss of the predictions, in NumPy; the padded rows are those of weight 0."""
    _, labels, weights = multi_worker.examples(21)
    for where in results:
        logits = np.array(results[where]["plain"]["predictions"])
        correct = logits.argmax(axis=1) == labels
        history, uneven = results[where]["plain"]["history"], results[where]["plain"]["uneven"]
        np.testing.assert_allclose(history["val_accuracy"][-1], correct.mean(), atol=1e-6)
        np.testing.assert_allclose(uneven["accuracy"], np.average(correct, weights=weights), atol=1e-6)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("activity", r"^re_lu.* adds to the loss, by an activity_regularizer or add_loss"),
        ("add_loss", "^adding.* adds to the loss"),
        ("reduction", "^A loss with reduction=None has a value for each row"),
        ("weights", "^nothing$"),
    ],
)
def test_replicas_refuse_what_each_would_make_of_its_own_rows(results, what, message):
    assert results["cpu"]["refused"][what][0] == "nothing"
    said, weight = results["mirrored"]["refused"][what]
    assert re.search(message, said), said
    assert weight == 0.0, "no step was made"


def test_one_chief_among_the_workers(results):
    assert {name: result["chief"] for name, result in results.items()} == {
        "cpu": True,
        "mirrored": True,
        "worker 0": True,
        "worker 1": False,
    }


def test_describe_names_devices_and_replicas(results):
    assert results["cpu"]["description"] == "1 replica, OneDeviceStrategy, here: CPU:0"
    assert results["mirrored"]["description"] == "2 replicas, MirroredStrategy, here: CPU:0 CPU:1"
    assert results["worker 0"]["description"].endswith("here: CPU:0 (worker 0, chief)")
    assert results["worker 1"]["description"].endswith("here: CPU:0 (worker 1)")


@pytest.mark.parametrize("rows", [8, 5, 1])
@pytest.mark.parametrize("workers", [1, 2])
def test_parts_of_a_batch_join_to_the_batch_as_predict_joins_them(workers, rows):
    """Keras joins the first replica of each worker, then the second of each."""
    replicas = 4
    dataset = tf.data.Dataset.range(2 * rows).batch(rows)
    by_worker = [
        list(distribution._parts(dataset, tf.distribute.InputContext(workers, worker, replicas)).as_numpy_iterator())
        for worker in range(workers)
    ]
    here = replicas // workers
    for step in range(2):
        parts = [by_worker[w][step * here + local] for local in range(here) for w in range(workers)]
        np.testing.assert_array_equal(np.concatenate(parts), step * rows + np.arange(rows))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_keep_static_shapes_and_endlessness():
    dataset = tf.data.Dataset.from_tensors((tf.zeros([8, 3]), tf.zeros([8]))).repeat()
    parts = distribution._parts(dataset, tf.distribute.InputContext(2, 1, 4))
    assert [spec.shape.as_list() for spec in parts.element_spec] == [[2, 3], [2]]
    assert parts.cardinality() == tf.data.INFINITE_CARDINALITY


def test_strategies_of_one_process(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    assert isinstance(distribution.strategy("cpu"), tf.distribute.OneDeviceStrategy)
    assert isinstance(distribution.strategy("mirrored"), tf.distribute.MirroredStrategy)
    automatic = distribution.strategy("auto")
    assert automatic.num_replicas_in_sync == max(1, len(tf.config.list_logical_devices("GPU")))
    assert distribution.is_chief(automatic)
    assert distribution.describe(automatic).startswith("1 replica, ") or automatic.num_replicas_in_sync > 1


def test_auto_does_not_wait_for_workers_where_there_is_one(monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    alone = {"cluster": {"worker": ["127.0.0.1:2222"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(alone))
    assert not isinstance(distribution.strategy("auto"), tf.distribute.MultiWorkerMirroredStrategy)


def test_unknown_strategy_is_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"'miror'.*auto, cpu, mirrored.*Perhaps you meant 'mirrored'"):
        distribution.strategy("miror")


def test_a_tpu_that_is_not_there_is_said_at_once(monkeypatch):
    began = time.monotonic()
    monkeypatch.delenv("TPU_NAME", raising=False)
    with pytest.raises(ValueError, match="none is attached to this machine, and the environment variable TPU_NAME"):
        distribution.strategy("tpu")
    (address,) = free_addresses(1)
    for name in (f"grpc://{address}", "grpc://no.such.host.invalid:8470", "grpc://localhost"):
        monkeypatch.setenv("TPU_NAME", name)
        with pytest.raises(ValueError, match=f"found no TPU {name} that answers .*Check TPU_NAME"):
            distribution.strategy("tpu")
    assert time.monotonic() - began < 60  # TensorFlow itself waits for minutes
    assert tf.config.list_logical_devices("CPU")


TWO = '{"cluster": {"worker": ["a:1", "b:2"]}, "task": '


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not set"),
        ("{'cluster': 1}", "not valid JSON"),
        ("[]", "'cluster' and 'task'"),
        ('{"cluster": {"worker": ["a:1", "b:2"]}}', "'cluster' and 'task'"),
        ('{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}', "list of 'host:port'"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', "list of 'host:port'"),
        ('{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}', "nothing else"),
        (TWO + '{"type": "worker", "index": 2}}', "not in 'cluster'"),
        (TWO + '{"type": "worker", "index": "0"}}', "not in 'cluster'"),
        (TWO + '{"type": "chief", "index": 0}}', "not in 'cluster'"),
    ],
)
def test_bad_tf_config_is_refused_with_an_example(monkeypatch, text, reason):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=rf"TF_CONFIG.*{reason}.*for example: TF_CONFIG='\{{"):
        distribution.strategy("multi-worker")


def replicated_model(steps_per_execution=1):
    """A model of two replicas as far as its checks of data go, which come before any work."""
    inputs = keras.Input((3,))
    model = distribution.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    model._distribute_strategy = type("TwoReplicas", (), {"num_replicas_in_sync": 2})()
    return model


def pairs(rows, batch_size, **options):
    return tf.data.Dataset.from_tensor_slices((np.zeros((rows, 3)), np.zeros((rows, 2)))).batch(batch_size, **options)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.zeros((4, 3)), {}, "tf.data.Dataset of global batches, received ndarray"),
        (pairs(6, 3, drop_remainder=True), {}, "batches of 3 rows for 2 replicas"),
        (pairs(6, 4), {}, "batches of varying rows for 2 replicas.*drop_remainder"),
        (pairs(4, 4, drop_remainder=True).repeat(), {}, "say how many steps"),
        (pairs(4, 4, drop_remainder=True).repeat(), {"steps_per_epoch": 3}, "multiple of steps_per_execution=2"),
    ],
)
def test_data_that_replicas_cannot_share_is_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        replicated_model(steps_per_execution=2).fit(data, verbose=0, **options)


def dropout_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.Dropout(0.5, seed=7)(inputs)
    x = keras.layers.BatchNormalization()(keras.layers.Dense(8)(x))
    model = distribution.Model(inputs, keras.layers.Dense(3)(keras.layers.Dropout(0.5, seed=8)(x)))
    model.compile(
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 4), momentum=0.9, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def test_training_resumes_bit_by_bit(tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(32, 4)).astype("float32"), generator.integers(0, 3, 32)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8, drop_remainder=True)

    straight = dropout_model()
    straight.fit(batches, verbose=0)

    first = dropout_model()
    first.fit(batches.take(2), verbose=0)
    np.savez(tmp_path / "state.npz", *distribution.get_state(first))
    second = dropout_model()
    with np.load(tmp_path / "state.npz") as saved:
        distribution.set_state(second, list(saved.values()))
    second.fit(batches.skip(2), verbose=0)

    state, resumed = distribution.get_state(straight), distribution.get_state(second)
    assert [array.tobytes() for array in state] == [array.tobytes() for array in resumed]
    assert any(
        array.tobytes() != after.tobytes() for array, after in zip(distribution.get_state(first), resumed, strict=True)
    )


def linear_model(loss=None, accumulated=None, rate=1.0, **optimizer):
    """Three logits of four features, on one device."""
    inputs = keras.Input((4,))
    kernel = keras.initializers.RandomNormal(seed=2)
    model = distribution.Model(inputs, keras.layers.Dense(3, kernel_initializer=kernel)(inputs))
    sgd = keras.optimizers.SGD(rate, gradient_accumulation_steps=accumulated, **optimizer)
    model.compile(sgd, loss or losses.SmoothedCrossentropy(0.1, ignore_class=-1), jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def ignored_examples(rows=24):
    """Weighted examples in batches of four, of which some have nothing that counts."""
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(rows, 4)).astype("float32"), generator.integers(0, 3, rows)
    y[4:8] = y[16:20] = y[9:12] = y[0] = -1
    return x, y, generator.uniform(0.5, 3, rows).astype("float32")


def batches_of(*arrays, size=4):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size, drop_remainder=True)


@pytest.mark.parametrize("joined", [2, 3])
def test_accumulation_is_the_closed_form_of_the_joined_batches(joined):
    x, y, weights = ignored_examples(8 * joined)
    model = linear_model(accumulated=joined)
    kernel, bias = model.get_weights()
    model.fit(batches_of(x, y, weights), verbose=0)
    for rows in (slice(4 * joined), slice(4 * joined, None)):
        features = np.column_stack([x[rows], np.ones(4 * joined)])[:, None]
        both = np.vstack([kernel, bias])
        shaped = (y[rows, None], weights[rows, None], (y[rows] != -1)[:, None])
        _, both, _ = linear_step(both, features, *shaped, 0.1, by_weights=True)
        kernel, bias = both[:-1], both[-1]
    np.testing.assert_allclose(model.get_weights()[0], kernel, atol=1e-6)
    np.testing.assert_allclose(model.get_weights()[1], bias, atol=1e-6)


def test_averages_move_once_for_each_of_the_joined_steps():
    """The same averages as of one batch that joins them; at the end of fit() they are the weights."""
    arrays = ignored_examples()
    options = {"use_ema": True, "ema_momentum": 0.9}
    joined, apart = linear_model(**options), linear_model(accumulated=3, **options)
    joined.fit(batches_of(*arrays, size=12), verbose=0)
    apart.fit(batches_of(*arrays), verbose=0)
    for one, two in zip(joined.get_weights(), apart.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    begun = linear_model(accumulated=3, **options)
    weights = begun.get_weights()
    begun.train_on_batch(*(part[:4] for part in arrays))
    for average, weight in zip(distribution.counted_weights(begun), weights, strict=True):
        np.testing.assert_array_equal(average, weight)


def test_accumulation_of_nothing_that_counts_leaves_the_penalty():
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(3, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.1))
    model = distribution.Model(inputs, layer(inputs))
    sgd = keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)
    model.compile(sgd, losses.SmoothedCrossentropy(ignore_class=-1), jit_compile=False)
    before = model.get_weights()[0]
    model.fit(batches_of(np.ones((8, 4), "float32"), np.full(8, -1)), verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], before * (1 - 2 * 0.1), rtol=1e-6)


def test_accumulation_resumes_bit_by_bit_in_the_middle_of_a_step():
    batches = batches_of(*ignored_examples())
    options = {"accumulated": 3, "momentum": 0.9, "global_clipnorm": 0.1}
    straight, first, second = (linear_model(**options) for _ in range(3))
    straight.fit(batches, verbose=0)
    first.fit(batches.take(2), verbose=0)
    distribution.set_state(second, distribution.get_state(first))
    second.fit(batches.skip(2), verbose=0)
    state, resumed = distribution.get_state(straight), distribution.get_state(second)
    assert [array.tobytes() for array in state] == [array.tobytes() for array in resumed]


@pytest.mark.parametrize(
    ("loss", "optimizer", "message"),
    [
        (losses.SmoothedCrossentropy(reduction="sum"), {"accumulated": 2}, "a mean over examples; received 0"),
        (lambda y, z: tf.reduce_mean(z), {"accumulated": 2}, "one number for a batch"),
        (
            None,
            {"accumulated": 2, "use_ema": True, "ema_overwrite_frequency": 2},
            "ema_overwrite_frequency does not go with gradient_accumulation_steps",
        ),
    ],
)
def test_what_cannot_be_accumulated_is_refused_before_training(loss, optimizer, message):
    x, y, _ = ignored_examples()
    with pytest.raises(ValueError, match=message):
        linear_model(loss, **optimizer).fit(batches_of(x, np.abs(y)), verbose=0)


def test_accumulation_of_two_losses_is_refused():
    inputs = keras.Input((4,))
    model = distribution.Model(inputs, [keras.layers.Dense(3)(inputs), keras.layers.Dense(2)(inputs)])
    model.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), ["mse", "mse"])
    with pytest.raises(ValueError, match="one loss that is a mean over examples; received 2"):
        model.fit(np.ones((8, 4)), [np.ones((8, 3)), np.ones((8, 2))], verbose=0)


@pytest.mark.parametrize(
    ("clipping", "expected"), [({"global_clipnorm": 0.1}, 0.1), ({"clipnorm": 0.1}, 0.1), ({"clipvalue": 0.3}, 0.3)]
)
def test_gradients_of_repeated_tokens_are_clipped_as_their_sum(clipping, expected):
    """Keras clips each third by itself: the step then is √3 × 0.1, or 3 × 0.3."""
    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(4, 1, embeddings_initializer="zeros")(inputs)
    model = distribution.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    model.compile(keras.optimizers.SGD(1.0, **clipping), "mse", jit_compile=False)
    model.fit(np.array([[1, 1, 1]]), np.array([[5.0]]), verbose=0)
    np.testing.assert_allclose(model.get_weights()[0][:, 0], [0, expected, 0, 0], rtol=1e-6)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="new in Keras 3.15")
def test_several_optimizers_are_refused_with_replicas_and_kept_without():
    optimizers = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD()))
    strategy = tf.distribute.get_strategy()
    distribution._check_optimizer(optimizers, strategy, replicated=False)
    with pytest.raises(ValueError, match="MultiOptimizer would sum gradients over replicas twice"):
        distribution._check_optimizer(optimizers, strategy, replicated=True)
    accumulating = keras.optimizers.OptimizerMap(keras.optimizers.SGD(gradient_accumulation_steps=2))
    inputs = keras.Input((4,))
    model = distribution.Model(inputs, keras.layers.Dense(3)(inputs))
    with pytest.raises(ValueError, match="not supported within a MultiOptimizer"):
        model.compile(keras.optimizers.MultiOptimizer(accumulating), losses.SmoothedCrossentropy())


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with NumPy 2.4
def test_an_accumulating_model_is_saved_in_the_middle_of_a_step(tmp_path):
    batches = batches_of(*ignored_examples())
    model = linear_model(accumulated=3)
    model.fit(batches.take(2), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(batches.skip(2), verbose=0)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_state_of_another_model_is_refused_and_nothing_changes():
    model = dropout_model()
    before = distribution.get_state(model)
    with pytest.raises(ValueError, match="does not belong to this model"):
        distribution.set_state(model, [array + 1 for array in before[:-1]])
    assert all((a == b).all() for a, b in zip(before, distribution.get_state(model), strict=True))


def test_state_needs_an_optimizer_that_is_built():
    inputs = keras.Input((3,))
    model = distribution.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match=r"optimizer\.build"):
        distribution.get_state(model)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras with NumPy 2.4
def test_model_keeps_the_layers_and_is_saved_like_any_other(tmp_path):
    inputs = keras.Input((3,))
    network = keras.Model(inputs, keras.layers.Dense(2, name="logits")(inputs), name="tiny")
    model = distribution.Model(network.input, network.output, name=network.name)
    model.compile("sgd", "mse")
    assert model.get_layer("logits") is network.get_layer("logits")
    x = np.ones((2, 3), "float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is distribution.Model
    np.testing.assert_array_equal(loaded(x), network(x))
