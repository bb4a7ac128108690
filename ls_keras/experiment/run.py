"""One network: trained, evaluated, exported, or found finished."""

import contextlib
import dataclasses
import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ls_keras import distribution, files, keras_hooks, losses, workers
from ls_keras.analysis import Probe, calibration
from ls_keras.artifact.reading import digest
from ls_keras.artifact.writing import Endpoints, endpoints, write
from ls_keras.data import Dataset
from ls_keras.experiment import training
from ls_keras.experiment.command import signals
from ls_keras.experiment.folder import DAMAGE, Checkpoints, claimed, step_of, sweep
from ls_keras.experiment.plan import Config, Recipe, Where, check_whole, label, say
from ls_keras.experiment.training import CAUSES

import keras
import numpy as np
import tensorflow as tf
from scipy import special

# From here on float32 does not tell apart what differs by 1: probabilities of such logits mean nothing any more, and no
# step of less than 1 moves such weights.
_LARGEST = 2.0**24
# Bytes of a split that is kept in memory, as it is evaluated on.
_SMALL = 2**26


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """What a finished network makes of each example of a split, in the data's order.

    Attributes:
        correct: bool `[N]`, whether the largest logit is that of the label.
        confidence: float64 `[N]`, the largest probability, at temperature 1.
        nll: float64 `[N]`, −ln of the label's probability, in nats.
    """

    correct: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder and what `metrics.json` says."""

    folder: Path
    metrics: dict[str, Any]

    @property
    def saved_model(self) -> Path:
        """Return the folder of the exported SavedModel."""
        return self.folder / "saved_model"

    def history(self) -> dict[str, np.ndarray]:
        """Return the columns of `history.csv`, float64 `[rows]`, NaN where a row has no value."""
        table = np.genfromtxt(self.folder / "history.csv", delimiter=",", names=True, ndmin=1)
        return {name: table[name] for name in table.dtype.names}

    def examples(self, split: str) -> Examples:
        """Return what the network makes of each example of a split that it was evaluated on.

        Args:
            split: `held_out` or `test`.

        Returns:
            Arrays in the order of the data set's `labels(split)`.

        Raises:
            ValueError: The split was not evaluated, or `examples.npz` is damaged or was not written.
        """
        path = self.folder / "examples.npz"
        again = f"Remove {self.folder} to run again."
        if not path.exists():
            raise ValueError(f"{self.folder} has no examples.npz, as runs of older versions have none. {again}")
        try:
            with path.open("rb") as file, np.load(file) as stored:
                arrays = dict(stored)
        except DAMAGE as problem:
            raise ValueError(f"{path} is damaged ({problem}). {again}") from problem
        splits = sorted({name.rpartition("_")[0] for name in arrays})
        if split not in splits:
            raise ValueError(f"{path} has no examples of {split!r}; it has those of {', '.join(splits)}.")
        columns = {field.name: arrays.get(f"{split}_{field.name}") for field in dataclasses.fields(Examples)}
        if len({np.shape(column) for column in columns.values()}) != 1:
            raise ValueError(f"{path} is damaged (arrays of {split} are missing or differ in length). {again}")
        return Examples(**columns)


def run(recipe: Recipe, config: Config, size: str, where: Where, until: int | None = None) -> Run:
    """Train, evaluate and export one network, or return it if its folder says that it is done.

    An interrupted run goes on from its last checkpoint and, on one device, ends in the same bytes. SIGINT and SIGTERM
    write one at the next step (of several workers, the last evaluation's stays) and raise `Stopped`. TensorFlow
    has no switch back from deterministic operations, so they stay on in this process afterwards; so do the seeds
    that were set.

    Args:
        recipe: The kind of network. What its `observe` returns joins `history.csv` and TensorBoard, and with
            `where.snapshots` the network that it saw is kept in `snapshots/step-…/`.
        config: What to compute.
        size: The size that `config` started from; names the folder together with every field that differs.
        where: Folders, devices and precision.
        until: Step, one of those that are evaluated at, after which training pauses, with a checkpoint to go on from.

    Returns:
        The finished run; a paused one, which has a history and no metrics.

    Raises:
        ValueError: If the config, the data or the folder (of another config, of another number of replicas where that
            changes the result, or worked in by another process) do not fit, before any work.
        Stopped: By a signal; a KeyboardInterrupt.
        FloatingPointError: If training diverges: the loss or a weight stops being finite, or weights or logits end
            above 2²⁴, where float32 does not tell apart what differs by 1. No checkpoint is left, since from it every
            run would end the same way; `history.csv` shows where it began.
        OSError: If the folder cannot be written.
        workers.Gone: If another worker ends before its work is done.
    """
    recipe.checked(config, size)
    last = _last_step(config, until)
    observe = recipe.observe if getattr(config, "observe_every", 0) else None
    check_where(where, observed=observe is not None)
    folder = Path(where.workdir) / recipe.name / label(config, size, recipe.sizes)
    record = {
        "recipe": recipe.name,
        "size": size,
        "config": _plain(config),
        "loss_source": losses.source(getattr(config, "loss", None)),
        "precision": where.precision,
    }
    finished = _finished(folder, record)
    if finished:
        say(f"{folder}: finished before, reused", where)
        return finished
    strategy = distribution.strategy(where.strategy, where.wait_minutes)
    chief = distribution.is_chief(strategy)
    checkpoints = Checkpoints(folder, where.checkpoints)
    with contextlib.ExitStack() as stack:
        together = distribution.cluster(strategy)
        watch = stack.enter_context(workers.watched(together, lambda: _outcome(checkpoints, chief)))
        stack.enter_context(_settings(config.seed, where.precision))
        stack.enter_context(keras_hooks.forgotten_gradients())
        received = stack.enter_context(signals())
        data = recipe.load_data(config, where.data_dir)
        record |= {"data": json.loads(json.dumps(data.describe()))}
        if together:
            _require_one_run(strategy, together, record)
        program = _program(recipe, config, data, strategy, where)
        model = program.model
        record["replicas"] = strategy.num_replicas_in_sync if _depends_on_replicas(model) else None
        _require_same(folder, record)
        if chief:
            stack.enter_context(claimed(folder, {**record, **_surroundings(strategy)}, checkpoints))
            if finished := _finished(folder, record):  # by a process that has gone since the first look
                return finished
        say(
            f"{folder}: {config.steps:,} steps of {config.batch_size} on {data.num_train:,} training examples, "
            f"{distribution.describe(strategy)}",
            where,
        )
        started = time.perf_counter()
        # What cannot be exported is told before training.
        single, module = program.exported(recipe, config, data)
        splits = _evaluations(data, config.batch_size)
        observer = observe and training.Observer(observe, model, single, module, data, folder, where)
        validation = next(iter(splits.values()))
        training.fit(model, config, data, validation, checkpoints, chief, where, observer, received, last)
        metrics = {"steps": config.steps, **_evaluated(model, splits)} if last == config.steps else {}
        if watch:
            watch.stop()
        if chief and metrics:
            if single is not model:
                single.set_weights(distribution.counted_weights(model))
            _export(single, module, splits, config.steps, folder)
            metrics["seconds"] = round(time.perf_counter() - started, 1)
            files.replace(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
            # Not before: killed in between, the run would start again from nothing.
            checkpoints.remove()
        if program.key:
            _traced[:] = [program]
    say(f"{folder}: {_summary(metrics) or f'paused after step {last:,} of {config.steps:,}'}", where)
    return Run(folder, metrics)


def _summary(metrics: dict[str, Any]) -> str:
    return "; ".join(
        f"{split.replace('_', '-')}: " + ", ".join(f"{k} {v:.4f}" for k, v in each.items())
        for split, each in metrics.items()
        if isinstance(each, dict)
    )


@dataclasses.dataclass(eq=False)
class _Program:
    """A compiled model and what is exported of it, with what TensorFlow has traced of the former."""

    model: keras.Model
    alone: bool
    key: str = ""
    build: Callable[..., keras.Model] | None = None

    def exported(self, recipe: Recipe, config: Config, data: Dataset) -> tuple[keras.Model, Endpoints]:
        """Return the network that is exported: of several replicas one, beside averaged weights those that count."""
        single = self.model if self.alone else recipe.build_model(config, data)
        # Traced for each run: a SavedModel written twice from one trace lacks its custom gradients.
        return single, endpoints(single)


# The last one whose seed is in states alone; none while it trains, or after it failed.
_traced: list[_Program] = []


def _program(recipe: Recipe, config: Config, data: Dataset, strategy: tf.distribute.Strategy, where: Where) -> _Program:
    """Build a model or, where only the seed has changed since the last one, give that one its states."""
    before = _traced.pop() if _traced else None
    with strategy.scope():
        model = recipe.build_model(config, data)
        model.optimizer.build(model.trainable_variables)
        model.steps_per_execution = training.steps_per_execution(config.evaluate_every)
    alone = strategy.num_replicas_in_sync == 1 and not distribution.averages(model)
    program = _Program(model, alone and distribution.is_chief(strategy))
    if not (recipe.one_program and alone):
        return program
    content = {"recipe": recipe.name, "config": {**_plain(config), "seed": None}, "data": data.describe()}
    program.key = json.dumps([content, where.precision, where.strategy], sort_keys=True)
    program.build = recipe.build_model
    if before is None or before.key != program.key or before.build is not program.build:
        return program
    distribution.set_state(before.model, distribution.get_state(model))
    return before


def _last_step(config: Config, until: int | None) -> int:
    if until is None:
        return config.steps
    check_whole("until", until, 1)
    if until > config.steps or until % config.evaluate_every:
        raise ValueError(
            f"`until` must be a multiple of `evaluate_every` ({config.evaluate_every}) up to `steps` "
            f"({config.steps}); received {until}."
        )
    return until


def check_where(where: Where, *, observed: bool) -> None:
    """Refuse numbers out of range, and options that cannot act."""
    check_whole("checkpoints", where.checkpoints, 1)
    if not 0 <= where.checkpoint_minutes < math.inf:
        raise ValueError(f"`checkpoint_minutes` must be a time from 0 on; received {where.checkpoint_minutes}.")
    if not 0 <= where.wait_minutes < math.inf:
        raise ValueError(f"`wait_minutes` must be a time from 0 on; received {where.wait_minutes}.")
    if where.snapshots and not observed:
        raise ValueError("--snapshots cannot act where nothing is observed: give --observe-every, or leave it out.")


def _evaluations(data: Dataset, batch_size: int) -> dict[str, tf.data.Dataset]:
    """Return the splits that there are to evaluate on; small ones stay in memory, since each iterator takes 30 ms."""
    found = {}
    for split in ("held_out", "test"):
        if data.size(split):
            batches = data.evaluation(split, batch_size)
            found[split] = _in_memory(batches) if _bytes(batches) <= _SMALL else batches
    return found


def _in_memory(batches: tf.data.Dataset) -> tf.data.Dataset:
    # Not `cache()`: evaluation leaves iterators before their end, and under load TensorFlow has cut what others read.
    stacked = tf.nest.map_structure(lambda *parts: tf.stack(parts), *batches)
    return tf.data.Dataset.from_tensor_slices(stacked).with_options(batches.options())


def _bytes(batches: tf.data.Dataset) -> float:
    parts = tf.nest.flatten(batches.element_spec)
    if any(part.shape.num_elements() is None for part in parts) or batches.cardinality() < 0:
        return math.inf
    return int(batches.cardinality()) * sum(part.shape.num_elements() * part.dtype.size for part in parts)


def _evaluated(model: keras.Model, splits: dict[str, tf.data.Dataset]) -> dict[str, dict[str, float]]:
    found = {}
    for split, batches in splits.items():
        measured = model.evaluate(batches, verbose=0, return_dict=True)
        found[split] = {name: training.rounded(value) for name, value in measured.items() if name != "loss"}
    return found


def _export(
    network: keras.Model, module: Endpoints, splits: dict[str, tf.data.Dataset], steps: int, folder: Path
) -> None:
    """Write a trained network, and what it makes of each example."""
    training.require_finite(network, steps)
    _require_small("weight", [weight.numpy() for weight in network.trainable_weights], steps)
    examples = _examples(Probe(module), splits, steps)
    write(module, folder / "saved_model")
    with files.beside(folder / "examples.npz") as temporary:
        np.savez(temporary, **examples)


def _examples(probe: Probe, splits: dict[str, tf.data.Dataset], step: int) -> dict[str, np.ndarray]:
    """Return the arrays of `Examples` for each split."""
    arrays = {}
    for split, batches in splits.items():
        rows = []
        for part in probe.batches(batches):
            _require_small("logit", [part.logits], step)
            confidence, correct = calibration.top_label(part.logits, part.labels)
            own = part.logits[np.arange(len(part.labels)), part.labels]
            rows.append((correct, confidence, special.logsumexp(part.logits.astype(float), axis=1) - own))
        for name, columns in zip(("correct", "confidence", "nll"), zip(*rows, strict=True), strict=True):
            arrays[f"{split}_{name}"] = np.concatenate(columns)
    return arrays


def _require_small(what: str, arrays: list[np.ndarray], step: int) -> None:
    largest = max(np.abs(array).max(initial=0) for array in arrays)
    if not largest <= _LARGEST:
        raise FloatingPointError(
            f"The largest {what} is {largest:.2g} after {step} steps; above {_LARGEST:.2g} float32 does not tell apart "
            f"what differs by 1. {CAUSES}"
        )


@contextlib.contextmanager
def _settings(seed: int, precision: str) -> Iterator[None]:
    """Make everything below depend on the seed alone."""
    before = keras.config.dtype_policy()
    keras.backend.clear_session(free_memory=False)  # Python collects its garbage soon enough; at once takes 0.2 s
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _finished(folder: Path, record: dict[str, Any]) -> Run | None:
    """Return the run that `folder` holds if it is complete; refuse a folder that holds something else."""
    if not (folder / "config.json").exists():
        strange = [path.name for path in folder.glob("[!.]*")]
        if strange:
            raise ValueError(
                f"{folder} has no config.json but holds {', '.join(sorted(strange)[:3])}: it is no run's folder. "
                "Choose another --workdir, or move it away."
            )
        return None
    differing = _differing(*(map(_what, (_read_json(folder / "config.json"), record))))
    if differing:
        raise ValueError(
            f"{folder} holds another run: {', '.join(differing)}. Choose another --workdir, or remove that folder."
        )
    if not (folder / "metrics.json").exists():
        return None
    sweep(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of a run that was killed between the two
    return Run(folder, _read_json(folder / "metrics.json"))


def _what(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a run computes, by name, of its record."""
    fields = {name: _identity(value) for name, value in record.get("config", {}).items()}
    return {name: record.get(name) for name in ("recipe", "size", "precision", "loss_source")} | fields


def _differing(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{name} is {was.get(name)!r} there and {now.get(name)!r} here"
        for name in was | now
        if was.get(name) != now.get(name)
    ]


def _require_one_run(strategy: tf.distribute.Strategy, together: workers.Cluster, record: dict[str, Any]) -> None:
    """Refuse to train together with workers of another run, whose steps are others, or with other data."""
    here = _what(record) | {f"data, {name}": value for name, value in record["data"].items()}
    said = [json.loads(each) for each in distribution.exchange(strategy, json.dumps(here).encode())]
    for index, there in enumerate(said):
        differing = _differing(there, here)
        if index == together.index or not differing:
            continue
        raise ValueError(
            f"{together.name(index)} has begun another run than this one, {together.name(together.index)}: "
            f"{', '.join(differing)}. Give all workers the same command and the same data."
        )


def _outcome(checkpoints: Checkpoints, chief: bool) -> str:
    """Say where a run will go on once all workers are started again."""
    paths = checkpoints.paths()
    if not paths and not chief:  # whose folder need not be seen from here
        return "the run goes on from the chief's newest checkpoint"
    return f"the run goes on from step {step_of(paths[0]) if paths else 0}"


def _require_same(folder: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with other examples than a run began with, or on another number of replicas if that matters."""
    if not (folder / "config.json").exists():
        return
    before = _read_json(folder / "config.json")
    was, now = before.get("data", record["data"]), record["data"]
    differing = [f"{name} {was.get(name)!r} there and {now.get(name)!r} here" for name in was | now]
    differing = [text for name, text in zip(was | now, differing, strict=True) if was.get(name) != now.get(name)]
    if differing:
        raise ValueError(
            f"{folder} was begun with other data: {', '.join(differing)}. Bring them back, or remove that folder."
        )
    if before.get("replicas", record["replicas"]) != record["replicas"]:
        raise ValueError(
            f"{folder} was begun on {before['replicas']} replicas, and this is {record['replicas']}: batch "
            "normalisation and dropout, which each replica has for itself, would give another network. Choose that "
            "number of devices, another --workdir, or remove that folder."
        )


def _depends_on_replicas(model: keras.Model) -> bool:
    """Whether each replica has statistics or random numbers of its own."""
    if getattr(keras_hooks.losses_as_given(model), "seed_generator", None) is not None:
        return True
    for layer in model.layers:
        inner = isinstance(layer, keras.Model) and _depends_on_replicas(layer)
        if inner or not getattr(layer, "synchronized", True) or getattr(layer, "seed_generator", None) is not None:
            return True
    return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, received {content!r}")
    except ValueError as problem:
        raise ValueError(f"{path} is damaged ({problem}). Remove {path.parent} to run again.") from problem
    return content


def _plain(config: Any) -> dict[str, Any]:
    """Return the fields as JSON gives them back; of a SavedModel what it holds, too."""
    return json.loads(
        json.dumps(
            dataclasses.asdict(config),
            default=lambda path: {"path": str(path), "content": digest(path)},
        )
    )


def _identity(value: Any) -> Any:
    """Return what makes two fields of `config.json` the same: of a SavedModel its content, not its place."""
    return value["content"] or value["path"] if isinstance(value, dict) else value


def _surroundings(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    return {
        "revision": _revision(Path(__file__).parents[2]),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "devices": distribution.describe(strategy),
    }


def _revision(checkout: Path) -> str | None:
    # An installed package may lie within somebody else's repository.
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty"]
    try:
        git = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return git.stdout.strip() or None
