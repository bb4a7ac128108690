"""A run that nothing disturbed is the oracle for those that were killed, distributed or short of disk space."""

import csv
import dataclasses
import gc
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import typing
from contextlib import contextmanager
from pathlib import Path

from ls_keras import artifact, distribution, experiment, files, losses, metrics
from ls_keras.analysis import Probe
from ls_keras.experiment import run as running
from ls_keras.experiment import training
from ls_keras.experiment.folder import Checkpoints

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_recipe
from scipy import special

ROOT = Path(__file__).parents[1]
CONFIG = tiny_recipe.Config()
PLAIN = tiny_recipe.SIZES["plain"]  # without dropout, whose masks depend on the number of replicas

REPLICAS = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from ls_keras.experiment import Where
import tiny_recipe
where = Where(workdir=sys.argv[1], strategy="mirrored")
tiny_recipe.RECIPE.run(tiny_recipe.SIZES["plain"], size="plain", where=where)
"""
KILLED = """
import os, signal, sys
import numpy as np
from ls_keras.experiment import Where
import tiny_recipe
real, checkpoints = np.savez, []
def killed(path, *arrays, **named):
    checkpoints.append(path)
    if len(checkpoints) == 3:
        path.write_bytes(b"half of a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
    real(path, *arrays, **named)
np.savez = killed
tiny_recipe.RECIPE.run(tiny_recipe.Config(), where=Where(workdir=sys.argv[1]))
"""


def run(workdir, config=CONFIG, *, size="small", quiet=True, recipe=tiny_recipe.RECIPE, **where):
    return recipe.run(config, size=size, where=experiment.Where(workdir=workdir, quiet=quiet, **where))


def recipe_with(**parts):
    return dataclasses.replace(tiny_recipe.RECIPE, **parts)


def everything_in(folder):
    """Contents of a run's files, by path; times and TensorFlow's random names are left out."""
    contents = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith("tensorboard") and "saved_model" not in name:
            contents[name] = path.read_bytes()
    metrics = json.loads(contents.pop("metrics.json"))
    assert metrics.pop("seconds") >= 0
    loaded = tf.saved_model.load(str(folder / "saved_model"))
    return contents | {"metrics": metrics, "variables": [variable.numpy().tobytes() for variable in loaded.variables]}


def history(folder):
    with (folder / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def history_array(folder):
    return np.array([list(row.values()) for row in history(folder)])


def start(*command, **environment):
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("TF_CONFIG", "TPU_NAME")},
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "CUDA_VISIBLE_DEVICES": "-1",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Runs in processes of their own, each with a workdir, all at work while the first tests run here."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
    started = {
        f"worker {index}": start(
            ROOT / "tests" / "tiny_recipe.py", "plain", "--strategy", "multi-worker",
            "--workdir", folder / f"worker {index}",
            TF_CONFIG=json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}),
        )
        for index in range(2)
    }  # fmt: skip
    started |= {name: start("-c", code, folder / name) for name, code in (("killed", KILLED), ("mirrored", REPLICAS))}

    def finished(name, status=0):
        output = started[name].communicate(timeout=3000)[0].decode()
        assert started[name].returncode == status, output[-4000:]
        return folder / name

    yield finished
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def undisturbed(processes, tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"))


@contextmanager
def failing_writes(limit):
    """Let the system refuse files longer than `limit` bytes, to Python and to TensorFlow, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# --- What a finished folder holds


def test_a_finished_folder_holds_the_record_and_nothing_temporary(undisturbed):
    assert undisturbed.folder.parts[-2:] == ("tiny", "small")
    names = {"config.json", "examples.npz", "history.csv", "metrics.json", "saved_model", "tensorboard"}
    assert {path.name for path in undisturbed.folder.iterdir()} == names
    record = json.loads((undisturbed.folder / "config.json").read_text())
    assert record["config"] == {**dataclasses.asdict(CONFIG), "units": [16, 12]}
    assert (record["recipe"], record["size"], record["precision"]) == ("tiny", "small", "float32")
    assert record["versions"]["keras"] == keras.__version__
    assert record["devices"].startswith("1 replica")
    assert record["replicas"] == 1, "each replica draws its own dropout"


def test_history_and_metrics_have_a_row_and_a_split_each(undisturbed):
    rows = history(undisturbed.folder)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert set(rows[0]) == {"step"} | {f"{p}{m}" for p in ("", "val_") for m in ("loss", "accuracy", "nll", "ece")}
    text = (undisturbed.folder / "history.csv").read_text()
    assert max(len(value.lstrip("0.").replace(".", "")) for value in text.replace("\n", ",").split(",")[9:-1]) <= 7
    assert undisturbed.metrics == json.loads((undisturbed.folder / "metrics.json").read_text())
    assert undisturbed.metrics["steps"] == 12
    assert set(undisturbed.metrics["test"]) == {"accuracy", "nll", "ece"}
    assert undisturbed.metrics["held_out"]["nll"] == rows[-1]["val_nll"]


@pytest.mark.parametrize("split", ["held_out", "test"])
def test_metrics_are_those_of_the_exported_network(undisturbed, split):
    """Accuracy and NLL by NumPy and SciPy from the SavedModel's logits."""
    images = tiny_recipe.load_data(CONFIG)
    collected = Probe(undisturbed.saved_model).collect(images.evaluation(split, 64))
    assert len(collected.labels) == len(images.labels(split))
    nll = -special.log_softmax(collected.logits, axis=1)[np.arange(len(collected.labels)), collected.labels].mean()
    np.testing.assert_allclose(undisturbed.metrics[split]["nll"], nll, rtol=1e-5)
    accuracy = np.mean(collected.logits.argmax(axis=1) == collected.labels)
    np.testing.assert_allclose(undisturbed.metrics[split]["accuracy"], accuracy, atol=1e-6)


@pytest.mark.parametrize("split", ["held_out", "test"])
def test_each_example_is_kept_in_the_order_of_the_data(undisturbed, split):
    """Against SciPy's log-softmax of the SavedModel's logits, image by image."""
    images = tiny_recipe.load_data(CONFIG)
    loaded = tf.saved_model.load(str(undisturbed.saved_model))
    logits = loaded.serve(images.images(split) / np.float32(255)).numpy().astype(float)
    log_p, labels = special.log_softmax(logits, axis=1), images.labels(split)
    examples = undisturbed.examples(split)
    np.testing.assert_array_equal(examples.correct, logits.argmax(axis=1) == labels)
    np.testing.assert_allclose(examples.confidence, np.exp(log_p.max(axis=1)), rtol=1e-5)
    np.testing.assert_allclose(examples.nll, -log_p[np.arange(len(labels)), labels], rtol=1e-5)
    assert (examples.correct.dtype, examples.confidence.dtype, examples.nll.dtype) == (bool, float, float)
    metrics = undisturbed.metrics[split]
    assert examples.correct.mean() == pytest.approx(metrics["accuracy"], abs=1e-6)
    assert examples.nll.mean() == pytest.approx(metrics["nll"], rel=1e-5)


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def without_a_column(path):
    with np.load(path) as stored:
        arrays = {name: array for name, array in stored.items() if name != "test_nll"}
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "has no examples.npz, as runs of older versions"),
        (cut, "examples.npz is damaged"),
        (changed, "examples.npz is damaged"),
        (without_a_column, "examples.npz is damaged .*of test are missing"),
        (lambda path: path.write_bytes(b""), "examples.npz is damaged"),
    ],
)
def test_examples_that_cannot_be_read_are_refused(undisturbed, tmp_path, damage, message):
    copy = experiment.Run(tmp_path / "copy", undisturbed.metrics)
    shutil.copytree(undisturbed.folder, copy.folder)
    damage(copy.folder / "examples.npz")
    with pytest.raises(ValueError, match=rf"{message}.*Remove .*copy to run again"):
        copy.examples("test")


def test_examples_of_another_split_are_refused(undisturbed):
    with pytest.raises(ValueError, match="no examples of 'train'; it has those of held_out, test"):
        undisturbed.examples("train")


def test_tensorboard_shows_the_history(undisturbed):
    (events,) = (undisturbed.folder / "tensorboard").iterdir()
    seen = {}
    for record in tf.data.TFRecordDataset(str(events)).as_numpy_iterator():
        event = tf.compat.v1.Event.FromString(record)
        for value in event.summary.value:
            seen[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    for row in history(undisturbed.folder):
        for name, value in row.items():
            assert seen.pop((int(row["step"]), name)) == pytest.approx(value, rel=1e-6)
    assert not seen


def test_a_finished_folder_is_reused(undisturbed, capsys):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.folder.rglob("*")}
    again = run(undisturbed.folder.parents[1], quiet=False, recipe=recipe_with(load_data=None))
    assert again == undisturbed
    assert capsys.readouterr().out == f"{undisturbed.folder}: finished before, reused\n"
    assert {path: path.stat().st_mtime_ns for path in undisturbed.folder.rglob("*")} == before


# --- The same again, whatever happens


def test_a_second_run_gives_the_same_bytes_whatever_ran_before(undisturbed, tmp_path, capsys):
    keras.layers.Dense(3)(np.ones((2, 2)))
    tf.random.normal([3])
    assert everything_in(run(tmp_path).folder) == everything_in(undisturbed.folder)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_run_killed_while_it_wrote_a_checkpoint_ends_in_the_same_bytes(undisturbed, processes, capsys):
    workdir = processes("killed", status=-signal.SIGKILL)
    folder = workdir / "tiny" / "small"
    with np.load(folder / "checkpoints" / "step-000000006.npz") as checkpoint:
        assert [row["step"] for row in json.loads(str(checkpoint["history"]))] == [3, 6]
    assert not (folder / "metrics.json").exists()
    assert list((folder / "checkpoints").glob(".*")), "half a checkpoint, swept below"
    resumed = run(workdir, quiet=False)
    assert f"{folder}: going on from step 6" in capsys.readouterr().out
    assert everything_in(resumed.folder) == everything_in(undisturbed.folder)


def interrupt_at(monkeypatch, checkpoint):
    """Press control-C as a checkpoint begins."""
    real, begun = np.savez, []

    def savez(*args, **kwargs):
        begun.append(args)
        if len(begun) == checkpoint:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(np, "savez", savez)


def test_a_run_that_pauses_goes_on_to_the_same_end(undisturbed, tmp_path, capsys):
    folder = tmp_path / "tiny" / "small"
    where = experiment.Where(workdir=tmp_path)
    for until in (3, 3, 9):  # given again, there is nothing to do
        paused = tiny_recipe.RECIPE.run(CONFIG, size="small", where=where, until=until)
        assert paused.metrics == {}
        assert list(paused.history()["step"]) == list(range(3, until + 1, 3))
        assert capsys.readouterr().out.endswith(f"{folder}: paused after step {until} of 12\n")
        assert not (folder / "metrics.json").exists()
    tiny_recipe.RECIPE.run(CONFIG, size="small", where=where, until=12)
    assert everything_in(folder) == everything_in(undisturbed.folder)
    assert tiny_recipe.RECIPE.run(CONFIG, size="small", where=where, until=3).metrics, "finished is finished"


@pytest.mark.parametrize(
    ("until", "message"), [(4, "multiple of `evaluate_every`"), (15, "up to `steps`"), (0, "at least 1")]
)
def test_a_run_pauses_where_it_is_evaluated(until, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny_recipe.RECIPE.run(CONFIG, size="small", where=experiment.Where(workdir=tmp_path), until=until)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_keeps_its_checkpoint_and_says_so(undisturbed, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, 4)
    with pytest.raises(SystemExit) as ended, experiment.messages():
        run(tmp_path)
    assert ended.value.code == 130
    assert re.search("interrupted; .* goes on from the last checkpoint", capsys.readouterr().err)
    left = {path.name for path in (tmp_path / "tiny" / "small" / "checkpoints").iterdir()}
    assert left == {"step-000000006.npz", "step-000000009.npz"}
    assert everything_in(run(tmp_path).folder) == everything_in(undisturbed.folder)


@pytest.mark.parametrize("place", ["checkpoint", "saved_model"])
def test_a_full_disk_leaves_no_half_files_and_the_run_goes_on_later(undisturbed, tmp_path, place):
    sizes = {
        "checkpoint": (undisturbed.folder / "config.json").stat().st_size,
        "saved_model": (undisturbed.saved_model / "saved_model.pb").stat().st_size,
    }
    # The largest file by then is larger than the limit, all before are smaller.
    limit = {"checkpoint": 2 * sizes["checkpoint"], "saved_model": sizes["saved_model"] // 2}[place]
    expected = {"checkpoint": "can no longer be written .File too large", "saved_model": "saved_model cannot be writ"}
    with pytest.raises(OSError, match=expected[place]), failing_writes(limit):
        run(tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and "tensorboard" not in str(path)}
    # A run without a checkpoint is none; one with all checkpoints only lacks its end.
    kept = {"config.json", "history.csv", "step-000000009.npz", "step-000000012.npz"}
    assert left == {"checkpoint": set(), "saved_model": kept}[place]
    assert everything_in(run(tmp_path).folder) == everything_in(undisturbed.folder)


@pytest.fixture(scope="module")
def plain(processes, tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain"), PLAIN, size="plain")


@pytest.mark.parametrize("name", ["mirrored", "worker 0"])
def test_two_replicas_and_two_workers_run_as_one_device(plain, processes, name):
    folder = processes(name) / "tiny" / "plain"
    np.testing.assert_allclose(history_array(folder), history_array(plain.folder), rtol=1e-5, atol=1e-5)
    record = json.loads((folder / "config.json").read_text())
    assert record["devices"].startswith("2 replicas")
    assert record["replicas"] is None, "with any number of them the network is the same"
    ours, theirs = (Probe(path / "saved_model") for path in (plain.folder, folder))
    np.testing.assert_allclose(theirs.kernel, ours.kernel, rtol=1e-4, atol=1e-6)
    x = tiny_recipe.load_data(PLAIN).images("test")[:7] / np.float32(255)
    np.testing.assert_allclose(theirs.serve(x), ours.serve(x), rtol=1e-4, atol=1e-5)


def test_the_chief_alone_writes(processes):
    assert not processes("worker 1").exists()


def test_mixed_precision_trains_exports_and_leaves_the_policy_alone(plain, tmp_path):
    before = keras.config.dtype_policy()
    mixed = run(tmp_path, PLAIN, size="plain", precision="mixed_bfloat16")
    assert keras.config.dtype_policy() == before
    assert json.loads((mixed.folder / "config.json").read_text())["precision"] == "mixed_bfloat16"
    probe = Probe(mixed.saved_model)
    images = tiny_recipe.load_data(PLAIN)
    collected = probe.collect(images.evaluation("test", 100))  # checks the affine contract
    assert collected.logits.dtype == probe.kernel.dtype == np.float32
    # bfloat16 keeps 8 bits, so the losses agree to about 2^-8 per step and are not equal.
    np.testing.assert_allclose(history_array(mixed.folder)[:, -1], history_array(plain.folder)[:, -1], rtol=0.02)
    assert history(mixed.folder) != history(plain.folder)
    with pytest.raises(ValueError, match="precision is 'mixed_bfloat16' there and 'float32' here"):
        run(tmp_path, PLAIN, size="plain")


# --- What is refused


def test_a_folder_with_another_config_is_refused_by_the_field_that_differs(undisturbed, tmp_path):
    folder = tmp_path / "tiny" / "small"
    folder.mkdir(parents=True)
    record = json.loads((undisturbed.folder / "config.json").read_text())
    record["config"]["alpha"] = 0.3
    record["config"]["forgotten"] = 1
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"another run: alpha is 0\.3 there and 0\.1 here, forgotten is 1 there.*None"):
        run(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"config.json"}


@pytest.mark.parametrize("content", ['{"recipe": "ti', "[]", "\xff"])
@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_a_damaged_record_is_named(undisturbed, tmp_path, name, content):
    folder = tmp_path / "tiny" / "small"
    folder.mkdir(parents=True)
    shutil.copy(undisturbed.folder / "config.json", folder)
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name} is damaged .*Remove .*small to run again"):
        run(tmp_path)


def test_a_damaged_checkpoint_is_named_and_kept(undisturbed, tmp_path):
    folder = tmp_path / "tiny" / "small"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(undisturbed.folder / "config.json", folder)
    (folder / "checkpoints" / "step-000000003.npz").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ValueError, match=r"step-000000003\.npz is damaged .*Remove .* the run starts from step 0"):
        run(tmp_path)
    assert (folder / "checkpoints" / "step-000000003.npz").exists()


def test_the_checkpoint_before_a_damaged_one_is_gone_on_from(undisturbed, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.undo()
    newest = tmp_path / "tiny" / "small" / "checkpoints" / "step-000000009.npz"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-000000009\.npz is damaged .*going on from step-000000006\.npz instead"):
        again = run(tmp_path)
    assert everything_in(again.folder) == everything_in(undisturbed.folder)


@pytest.mark.parametrize("size", ["small", "plain"])
def test_another_number_of_replicas_goes_on_only_where_it_changes_nothing(tmp_path, monkeypatch, size):
    """The checkpoint is one of 8 replicas as far as its record says."""
    config = tiny_recipe.SIZES[size]
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, config, size=size)
    monkeypatch.undo()
    folder = tmp_path / "tiny" / size
    record = json.loads((folder / "config.json").read_text())
    if size == "plain":
        (folder / "config.json").write_text(json.dumps(record | {"devices": "8 replicas"}))
        assert run(tmp_path, config, size=size).metrics
        return
    (folder / "config.json").write_text(json.dumps(record | {"replicas": 8}))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"small was begun on 8 replicas, and this is 1: .*dropout.*another --workdir"):
        run(tmp_path, config, size=size)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "config.json").write_text(json.dumps({name: record[name] for name in record if name != "replicas"}))
    assert run(tmp_path, config, size=size).metrics  # of a version that did not say


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([keras.layers.Dense(2)], False),
        ([keras.layers.Dropout(0.5)], True),
        ([keras.layers.BatchNormalization()], True),
        ([keras.layers.BatchNormalization(synchronized=True)], False),
        ([keras.Sequential([keras.layers.Dense(2), keras.layers.GaussianNoise(0.1)])], True),
        ([keras.Sequential([keras.layers.Dense(2)]), keras.layers.ReLU()], False),
    ],
)
def test_replicas_matter_to_layers_with_statistics_or_draws_of_their_own(layers, expected):
    model = keras.Sequential([keras.Input((3,)), *layers])
    assert running._depends_on_replicas(model) is expected


# --- Signals


def averaging(config, images):
    model = tiny_recipe.build_model(config, images)
    optimizer = keras.optimizers.SGD(config.learning_rate, momentum=0.9, use_ema=True, ema_momentum=0.8)
    model.compile(optimizer, losses.SmoothedCrossentropy(config.alpha), weighted_metrics=metrics.classification())
    return model


def signalled_at(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal after a step of its training."""
    real = training._Watch.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        if self.start + batch + 1 == step:
            os.kill(os.getpid(), number)
        real(self, batch, logs)

    monkeypatch.setattr(training._Watch, "on_train_batch_end", on_train_batch_end)


@pytest.mark.parametrize(
    ("build", "step", "number"),
    [
        (tiny_recipe.build_model, 1, signal.SIGTERM),
        (tiny_recipe.build_model, 5, signal.SIGINT),
        (tiny_recipe.build_model, 6, signal.SIGTERM),
        (averaging, 5, signal.SIGTERM),
    ],
)
def test_a_signal_ends_a_run_at_its_step_and_the_bytes_are_the_same(tmp_path, monkeypatch, capsys, build, step, number):
    recipe = recipe_with(build_model=build)
    monkeypatch.setattr(training, "_STEPS_PER_LOOK", 1)
    undisturbed, before = run(tmp_path / "undisturbed", recipe=recipe), signal.getsignal(number)
    with monkeypatch.context() as patch:
        signalled_at(patch, step, number)
        with pytest.raises(SystemExit) as ended, experiment.messages():
            run(tmp_path / "ended", recipe=recipe)
    assert ended.value.code == 128 + number
    said = capsys.readouterr().err.strip().splitlines()
    assert [line for line in said if "goes on from the last checkpoint" in line] == said[-1:]
    newest = max((tmp_path / "ended" / "tiny" / "small" / "checkpoints").iterdir())
    assert newest.name == f"step-{step:09d}.npz"
    assert signal.getsignal(number) is before
    again = run(tmp_path / "ended", quiet=False, recipe=recipe)
    assert f"going on from step {step}" in capsys.readouterr().out
    assert everything_in(again.folder) == everything_in(undisturbed.folder)


def test_checkpoints_are_written_by_the_clock_too(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_STEPS_PER_LOOK", 1)
    saved, real = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, each: (saved.append(each.step), real(self, each)))
    again = run(tmp_path, checkpoint_minutes=0.0, checkpoints=1)
    assert saved == list(range(1, 13))
    assert everything_in(again.folder) == everything_in(undisturbed.folder)


def test_the_averages_are_what_is_exported_after_the_last_step_too(tmp_path, monkeypatch):
    recipe = recipe_with(build_model=averaging)
    undisturbed = run(tmp_path / "undisturbed", recipe=recipe)
    with monkeypatch.context() as patch:
        patch.setattr(running, "_evaluated", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "ended", recipe=recipe)
    assert everything_in(run(tmp_path / "ended", recipe=recipe).folder) == everything_in(undisturbed.folder)
    last = history(undisturbed.folder)[-1]
    assert last["val_nll"] == pytest.approx(undisturbed.metrics["held_out"]["nll"], rel=1e-6)


def interrupt(*_):
    raise KeyboardInterrupt


# --- Who works in a folder


def test_a_second_run_leaves_the_first_ones_folder_alone(undisturbed, tmp_path, monkeypatch):
    """Another process began meanwhile: its files stay, whatever becomes of this one."""
    said, real = [], training.fit

    def fit(*arguments):
        if not said:
            said.append("")
            with pytest.raises(ValueError, match=f"another run .host .*, process {os.getpid()}, since 20") as problem:
                run(tmp_path)
            said[0] = str(problem.value)
        real(*arguments)

    monkeypatch.setattr(training, "fit", fit)
    again = run(tmp_path)
    assert said[0].startswith(str(again.folder))
    assert everything_in(again.folder) == everything_in(undisturbed.folder)


@pytest.mark.parametrize(
    ("host", "silent", "free"), [("elsewhere", 5, False), ("elsewhere", 600, True), (None, 5, True)]
)
def test_a_dead_lock_is_taken_over(tmp_path, host, silent, free):
    """Of this host at once, of another one when its heartbeat has stopped."""
    folder = tmp_path / "tiny" / "small"
    folder.mkdir(parents=True)
    lock = folder / ".lock"
    lock.write_text(json.dumps({"host": host or socket.gethostname(), "process": 1, "since": "yesterday"}))
    os.utime(lock, times=(time.time() - silent,) * 2)
    if free:
        assert run(tmp_path).metrics
        assert not lock.exists()
    else:
        with pytest.raises(ValueError, match=r"another run .host elsewhere.* sign of life \d+ s ago"):
            run(tmp_path)
        assert lock.exists()


def test_what_a_kill_after_the_end_left_is_swept(undisturbed, tmp_path):
    shutil.copytree(undisturbed.folder, tmp_path / "tiny" / "small")
    folder = tmp_path / "tiny" / "small"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-000000012.npz").write_bytes(b"")
    (folder / ".metrics.json.abcd").mkdir()
    (folder / ".logits-0123.npz.abcd").mkdir()  # a student of this network, writing now
    assert everything_in(run(tmp_path).folder) == everything_in(undisturbed.folder)
    assert not (folder / ".metrics.json.abcd").exists()
    assert (folder / ".logits-0123.npz.abcd").exists()


def test_a_process_that_runs_many_networks_keeps_no_graph_of_those_before(tmp_path):
    def graphs():
        keras.backend.clear_session()
        return sum(isinstance(each, tf.Graph) for each in gc.get_objects())

    counts = []
    for seed in range(3):
        run(tmp_path, dataclasses.replace(CONFIG, seed=seed, steps=3))
        counts.append(graphs())
    assert counts[1] == counts[2]


WORKERS = """
import functools, os, sys, time
from pathlib import Path
from ls_keras import experiment
def endless(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(600)
if __name__ == "__main__":
    os.sched_getaffinity = lambda _: {0, 1}
    jobs = [experiment.Job(number, functools.partial(endless, Path(sys.argv[1]))) for number in range(2)]
    list(experiment.finish(jobs, experiment.Where(), what="networks"))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path, number):
    (tmp_path / "pool.py").write_text(WORKERS)
    parent = start(tmp_path / "pool.py", tmp_path / "pids")
    (tmp_path / "pids").mkdir()
    wait(lambda: len(list((tmp_path / "pids").iterdir())) == 2, parent)
    workers = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    parent.send_signal(number)
    parent.communicate(timeout=600)
    wait(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def wait(until, process=None):
    """Until something is so, however busy the machine is; a process that ends before is a failure."""
    while not until():
        assert process is None or process.poll() is None, process.communicate()[0].decode()
        time.sleep(0.05)


def test_a_folder_with_other_files_is_neither_filled_nor_emptied(tmp_path):
    (tmp_path / "tiny" / "small").mkdir(parents=True)
    (tmp_path / "tiny" / "small" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"no config\.json but holds thesis\.tex"):
        run(tmp_path)
    assert (tmp_path / "tiny" / "small" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("part", "problem"),
    [("load_data", FileNotFoundError("no images")), ("build_model", ValueError("no such depth"))],
)
def test_a_run_that_fails_early_leaves_nothing_behind(tmp_path, part, problem):
    def fail(*args):
        raise problem

    (tmp_path / "kept").mkdir()
    for workdir in (tmp_path / "new" / "newer", tmp_path / "kept"):
        with pytest.raises(type(problem), match=str(problem)):
            run(workdir, recipe=recipe_with(**{part: fail}))
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


@pytest.mark.parametrize("evaluate_every", [3, 1])
def test_a_diverging_run_stops_with_causes_and_leaves_nothing(tmp_path, evaluate_every):
    """After one step the training loss is still that of the initial weights: then held-out data tell."""
    config = dataclasses.replace(CONFIG, learning_rate=1e30, evaluate_every=evaluate_every)
    with pytest.raises(FloatingPointError, match=rf"loss is (nan|inf) by step {evaluate_every}\..*learning rate"):
        run(tmp_path, config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"steps": 2, "evaluate_every": 1},
            r"largest (weight|logit) is \S*e\+\d\d after 2 steps.*Training diverged.*rate",
        ),
        ({}, "largest (weight|logit) is .* after 12 steps"),
    ],
)
def test_a_run_that_ends_diverged_says_so_and_starts_anew(tmp_path, changes, message):
    """Its loss is finite throughout, and its logits overflow or not, by what they are asked."""
    config = dataclasses.replace(CONFIG, learning_rate=1e3, **changes)
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, config)
    (folder,) = (tmp_path / "tiny").iterdir()
    assert {path.name for path in folder.iterdir()} == {"config.json", "history.csv", "tensorboard"}
    assert all(np.isfinite(row["loss"]) for row in history(folder))
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, config)
    assert history(folder)[0]["step"] == config.evaluate_every


def test_nan_weights_behind_a_finite_loss_end_the_run(tmp_path, monkeypatch):
    """The first kernel is NaN after a step; max pooling passes over NaN, ReLU makes 0 of what is left: ln 10."""
    losses = []

    class Spoiling(keras.layers.Layer):
        def call(self, x):
            return tf.custom_gradient(lambda x: (tf.identity(x), lambda upstream: upstream * float("nan")))(x)

    def build_model(config, images):
        inputs = keras.Input(images.input_shape)
        x = Spoiling()(keras.layers.Conv2D(2, 3, name="first")(inputs))
        x = keras.layers.Flatten()(keras.layers.ReLU()(keras.layers.MaxPooling2D(2)(x)))
        x = keras.layers.Dense(4, activation="relu", name="penultimate")(x)
        model = distribution.Model(inputs, keras.layers.Dense(10, name="logits")(x))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        return model

    def check(self, loss, step):
        losses.append(float(loss))

    monkeypatch.setattr(training._Watch, "_check", check)
    with pytest.raises(
        FloatingPointError, match=r"weights hold NaN or infinity by step 3, first/kernel the first\. Train"
    ):
        run(tmp_path, recipe=recipe_with(build_model=build_model))
    assert np.isfinite(losses).all()
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/below/tiny/small cannot be written \(Not a directory\).*--workdir"):
        run(tmp_path / "file" / "below")

    def read_only(path, content):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(files, "replace", read_only)
    with pytest.raises(OSError, match=r"small cannot be written \(Read-only file system\)"):
        run(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 10}, "`steps` must be a multiple of `evaluate_every`; received 10 and 3"),
        ({"steps": 0}, "`steps` must be at least 1; received 0"),
        ({"batch_size": -1}, "`batch_size` must be at least 1; received -1"),
        ({"evaluate_every": 0}, "`evaluate_every` must be at least 1; received 0"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": float("nan")}, "`alpha` must be finite; received nan"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be finite; received inf"),
        ({"units": (8, float("nan"))}, r"`units` must be finite; received \(8, nan\)"),
        ({"steps": 12.0}, "`steps` must be a whole number; received 12.0"),
        ({"steps": float("nan")}, "`steps` must be finite; received nan"),
        ({"batch_size": True}, "`batch_size` must be a whole number; received True"),
        ({"seed": -1}, "`seed` must be at least 0; received -1"),
        ({"seed": 2**32}, "`seed` must be between 0 and .*; received 4294967296"),
        ({"seed": 0.5}, r"`seed` must be a whole number; received 0\.5"),
    ],
)
def test_bad_configs_are_refused_and_leave_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, dataclasses.replace(CONFIG, **changes))
    assert not list(tmp_path.iterdir())


def test_unknown_sizes_are_refused_with_a_guess(tmp_path):
    with pytest.raises(ValueError, match=r"unknown size 'smal'; known: small, plain\. Perhaps you meant 'small'\?"):
        run(tmp_path, size="smal")


def test_a_recipe_checks_its_config_before_it_looks_at_folders_or_data(tmp_path):
    def check(config, default):
        if config.dropout != default.dropout:
            raise ValueError("not with this dropout")

    recipe = recipe_with(check=check, load_data=None, build_model=None)
    changed = dataclasses.replace(CONFIG, dropout=0.5)
    for refused in (lambda: recipe.checked(changed, "small"), lambda: run(tmp_path, changed, recipe=recipe)):
        with pytest.raises(ValueError, match="not with this dropout"):
            refused()
    recipe.checked(PLAIN, "plain")
    with pytest.raises(ValueError, match="unknown size 'smal'"):
        recipe.checked(CONFIG, "smal")
    assert not list(tmp_path.iterdir())


def test_a_recipes_first_size_is_the_default(undisturbed):
    where = experiment.Where(workdir=undisturbed.folder.parents[1], quiet=True)
    assert tiny_recipe.RECIPE.run(CONFIG, where=where) == undisturbed


def test_the_strategies_of_the_command_line_are_those_there_are():
    """Where is read before --help is printed, without TensorFlow, so that it names them itself."""
    choices = typing.get_args(typing.get_type_hints(experiment.Where)["strategy"])
    assert choices == typing.get_args(distribution.StrategyName)


def test_messages_end_the_process_with_one_line():
    with pytest.raises(SystemExit, match=r"^error: too large \(--traceback shows where\)$"), experiment.messages():
        raise ValueError("too large")
    with pytest.raises(SystemExit, match=r"^error: out of memory \(3 GB\)\. Lower --batch-size"), experiment.messages():
        raise MemoryError("3 GB")
    with pytest.raises(SystemExit, match=r"^error: out of memory \(OOM when allocating\)"), experiment.messages():
        raise tf.errors.ResourceExhaustedError(None, None, "{{function_node f}} OOM when allocating\n\t [[{{node x}}]]")
    with pytest.raises(SystemExit, match=r"^error: TensorFlow failed: .* 7 is not in \[0, 2\) "), experiment.messages():
        tf.function(lambda i: tf.gather(tf.eye(2), i))(tf.constant([7]))
    with pytest.raises(ValueError, match="too large"), experiment.messages(traceback=True):
        raise ValueError("too large")


# --- Names


@pytest.mark.parametrize(
    ("changes", "size", "expected"),
    [
        ({}, "small", "small"),
        ({"seed": 3, "alpha": 0.0}, "small", "small-alpha=0.0-seed=3"),
        ({"units": (8, 4)}, "small", "small-units=8x4"),
        ({"dropout": 0.0}, "plain", "plain"),
        ({}, "plain", "plain-dropout=0.3"),
    ],
)
def test_folders_are_named_by_size_and_differing_fields_seed_last(changes, size, expected):
    assert experiment.label(dataclasses.replace(CONFIG, **changes), size, tiny_recipe.SIZES) == expected


def test_folder_names_stay_within_their_folder():
    @dataclasses.dataclass(frozen=True)
    class Named:
        file: str = "a"

    assert experiment.label(Named("../b c"), "small", {"small": Named()}) == "small-file=.._bc"


def test_the_revision_is_that_of_a_checkout_and_never_of_a_repository_around_it(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    revision = running._revision(tmp_path)
    assert len(revision) >= 7
    assert head.startswith(revision)
    (tmp_path / "site-packages").mkdir()
    assert running._revision(tmp_path / "site-packages") is None
    monkeypatch.setenv("PATH", "")
    assert running._revision(tmp_path) is None


# --- Export


def network(*, inputs=5, use_bias=True, activation=None, name="logits", between=None, dtype=None):
    keras.utils.set_random_seed(0)
    x = keras.Input((inputs,))
    penultimate = keras.layers.Dense(4, name="penultimate", dtype=dtype)(x)
    after = between(penultimate) if between else penultimate
    logits = keras.layers.Dense(3, activation=activation, use_bias=use_bias, name=name, dtype=dtype)(after)
    return keras.Model(x, logits)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "bfloat16", "float64"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_an_export_serves_any_batch_size_without_keras(tmp_path, use_bias, dtype):
    model = network(use_bias=use_bias, between=keras.layers.Dropout(0.5), dtype=dtype)
    artifact.export(model, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    probe = Probe(tmp_path / "model")
    tolerance = 1e-6 if dtype in ("float32", "float64") else 2**-6
    for rows in (1, 7):
        x = np.random.default_rng(rows).normal(size=(rows, 5)).astype("float32")
        penultimate, logits = probe.probe(x)
        np.testing.assert_array_equal(probe.serve(x), logits)
        np.testing.assert_allclose(logits, model(x), rtol=1e-6, atol=1e-6)
        terms = np.abs(penultimate) @ np.abs(probe.kernel) + np.abs(probe.bias)
        assert np.all(np.abs(penultimate @ probe.kernel + probe.bias - logits) <= tolerance * terms)
    if not use_bias:
        np.testing.assert_array_equal(probe.bias, np.zeros(3))


def test_an_export_replaces_an_older_one(tmp_path):
    for seed_of_bias in (1.0, 2.0):
        model = network()
        model.get_layer("logits").bias.assign([seed_of_bias] * 3)
        artifact.export(model, tmp_path / "model")
    np.testing.assert_array_equal(Probe(tmp_path / "model").bias, [2.0] * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def two_inputs():
    x, y = keras.Input((5,)), keras.Input((5,))
    penultimate = keras.layers.Add(name="penultimate")([x, y])
    return keras.Model([x, y], keras.layers.Dense(3, name="logits")(penultimate))


def with_weights(layer, weight, value):
    model = network()
    getattr(model.get_layer(layer), weight).assign(np.full(getattr(model.get_layer(layer), weight).shape, value))
    return model


def behind(layer, **options):
    model = network(**options)
    return keras.Model(model.input, layer(model.output))


class Temperature(keras.layers.Layer):
    """Divides by a weight, which is 1 until it is trained."""

    def build(self, shape):
        self.temperature = self.add_weight(shape=(), initializer="ones")

    def call(self, logits):
        return logits / self.temperature


class Halved(keras.Model):
    """A functional model with a `call` of its own."""

    def call(self, x, training=None):
        return super().call(x, training=training) / 2


def halved():
    model = network()
    return Halved(model.input, model.output)


def several(names=("features", "logits"), of=lambda logits: logits):
    model = network()
    outputs = [model.get_layer("penultimate").output, of(model.output)]
    return keras.Model(model.input, dict(zip(names, outputs, strict=True)) if names else outputs)


def called_twice():
    x = keras.Input((5,))
    penultimate, logits = keras.layers.Dense(4, name="penultimate"), keras.layers.Dense(3, name="logits")
    return keras.Model(x, keras.layers.Average()([logits(penultimate(x)), logits(penultimate(2 * x))]))


def called_elsewhere():
    penultimate, logits = keras.layers.Dense(4, name="penultimate"), keras.layers.Dense(3, name="logits")
    logits(penultimate(keras.Input((5,))))
    x = keras.Input((5,))
    return keras.Model(x, logits(penultimate(x)))


def beside_the_penultimate():
    x = keras.Input((5,))
    penultimate = keras.layers.Dense(4, name="penultimate")(x)
    hidden = keras.layers.Dense(4, name="hidden")(penultimate)
    return keras.Model(x, keras.layers.Dense(3, name="logits")(hidden))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: network(name="predictions"), r"Dense layer named `logits`; received .*predictions \(Dense\)"),
        (lambda: network(activation="relu"), "without activation.*with activation relu"),
        (lambda: network(activation="softmax"), "without activation"),
        (lambda: network(between=keras.layers.ReLU()), r"re_lu.* \(ReLU\) changes values.*directly on `penultimate`"),
        (lambda: network(between=keras.layers.Rescaling(1.001)), r"\(Rescaling\) changes.*directly on `penultimate`"),
        (lambda: network(between=keras.layers.BatchNormalization()), r"last layer with weights; received batch_norm"),
        (beside_the_penultimate, r"received hidden \(Dense\), logits \(Dense\)"),
        (lambda: with_weights("logits", "bias", np.inf), "weights must be finite.* 1 of 4, logits/bias.*diverged"),
        (lambda: with_weights("penultimate", "kernel", np.nan), "weights must be finite.*penultimate/kernel"),
        (lambda: with_weights("penultimate", "kernel", 1e38), r"NaN or infinity on inputs .*largest weight is 1e\+38"),
        (two_inputs, "with one input, or with a dictionary of inputs; received .*, with inputs keras_tensor"),
        (lambda: behind(keras.layers.Rescaling(0.4, name="temperature")), r"^temperature \(Rescaling\) changes values"),
        (lambda: behind(lambda logits: logits / 2.5), r"\(TrueDivide\) changes values"),
        (lambda: behind(lambda logits: 30 * keras.ops.tanh(logits / 30)), r"\(TrueDivide\) changes values"),
        (lambda: behind(keras.layers.Softmax(name="p")), r"^p \(Softmax\) changes values"),
        (lambda: behind(keras.layers.Activation("tanh")), r"\(Activation\) changes values"),
        (lambda: behind(keras.layers.Reshape((3, 1))), r"\(Reshape\) changes values"),
        (
            lambda: behind(Temperature(name="t")),
            r"last layer with weights; received logits \(Dense\), t \(Temperature\)",
        ),
        (halved, r"is not halved\(x\)"),
        (called_twice, "must be called once each"),
        (called_elsewhere, "must be called once each"),
        (lambda: several(("a", "b")), "several outputs, a, b, and none is named `logits`"),
        (lambda: several(of=lambda logits: logits / 2), r"\(TrueDivide\) changes values"),
    ],
)
def test_models_that_the_endpoints_do_not_describe_are_not_exported(tmp_path, build, message):
    with pytest.raises(ValueError, match=message):
        artifact.export(build(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def as_numbers(x):
    return keras.layers.Dense(4, name="penultimate")(keras.layers.Flatten()(x))


def of_inputs(shape, dtype="float32", *layers, **options):
    inputs = x = keras.Input(shape, dtype=dtype, **options)
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(as_numbers(x)))


GENERATOR = np.random.default_rng(0)
NOISE = GENERATOR.normal(size=(11, 5)).astype("float32")


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (lambda: behind(keras.layers.Dropout(0.5)), NOISE),
        (lambda: behind(keras.layers.Identity()), NOISE),
        (lambda: behind(keras.layers.Activation("linear", dtype="float16")), NOISE),
        (several, NOISE),
        (lambda: several(None), NOISE),
        (lambda: of_inputs(None, batch_shape=(1, 5)), NOISE),
        (lambda: of_inputs(None, batch_shape=(8, 5)), NOISE),
        (lambda: of_inputs((5,), "int32", keras.layers.Embedding(7, 3)), GENERATOR.integers(0, 7, (11, 5))),
        (lambda: of_inputs((2, 2), "uint8", keras.layers.Rescaling(1 / 255)), GENERATOR.integers(0, 256, (11, 2, 2))),
        (
            lambda: of_inputs(
                (2,), "string", keras.layers.StringLookup(vocabulary=["a", "b"]), keras.layers.Embedding(4, 3)
            ),
            np.array([["a", "b"], ["b", "?"]] * 5),
        ),
        (
            lambda: of_inputs(
                (None, None, 1), "float32", keras.layers.Conv2D(2, 33, 3), keras.layers.GlobalMaxPooling2D()
            ),
            GENERATOR.normal(size=(3, 40, 36, 1)).astype("float32"),
        ),
        (
            lambda: of_inputs((5,), "float32", keras.layers.Rescaling(1.0, -0.5), keras.layers.Activation("softplus")),
            NOISE,
        ),
    ],
)
def test_what_is_served_is_what_the_model_predicts(tmp_path, build, x):
    model = build()
    rows = model.inputs[0].shape[0] or len(x)
    whole = np.resize(x, (-(-len(x) // rows) * rows, *x.shape[1:]))
    parts = [model(tf.constant(whole[at : at + rows]), training=False) for at in range(0, len(whole), rows)]
    if len(model.outputs) > 1:
        parts = [part["logits"] if isinstance(part, dict) else part[1] for part in parts]
    expected = np.concatenate([part.numpy() for part in parts])[: len(x)].astype("float32")
    artifact.export(model, tmp_path / "model")
    for probe in (Probe(tmp_path / "model"), Probe(artifact.endpoints(model))):
        np.testing.assert_allclose(probe.serve(x), expected, rtol=1e-5, atol=1e-6)
        collected = probe.collect((x, np.arange(len(x)) % 3))
        np.testing.assert_allclose(collected.logits, expected, rtol=1e-5, atol=1e-6)


def test_a_run_says_what_it_trains_and_how_it_ended(tmp_path, capsys):
    result = run(tmp_path, dataclasses.replace(CONFIG, steps=1, evaluate_every=1), quiet=False)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{result.folder}: 1 steps of 20 on 130 training examples, 1 replica")
    assert last.startswith(f"{result.folder}: held-out: accuracy {result.metrics['held_out']['accuracy']:.4f}, ")
