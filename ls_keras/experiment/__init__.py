"""How any recipe is run: from a frozen Config to a finished folder, and from a command line to both.

A run's folder holds `config.json`, `history.csv`, `tensorboard/`, `checkpoints/` (until it succeeds),
`saved_model/`, and `metrics.json`, which is written last: it means "done".
"""

import contextlib
import csv
import dataclasses
import difflib
import hashlib
import io
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol

from ls_keras import distribution, files
from ls_keras.analysis import Probe, calibration
from ls_keras.artifact.reading import digest, reason
from ls_keras.artifact.writing import Endpoints, endpoints, export, not_finite, tensorflow_writes, write
from ls_keras.data import Dataset
from ls_keras.experiment.folder import DAMAGE, Checkpoint, Checkpoints, claimed, sweep

import keras
import numpy as np
import tensorflow as tf
import tyro
from scipy import special
from tqdm import tqdm

__all__ = [
    "Config",
    "Examples",
    "Observe",
    "Run",
    "Train",
    "Where",
    "endpoints",
    "export",
    "label",
    "main",
    "messages",
    "run",
    "workers",
]

# How often, in steps, the running loss is read back from the device to be shown and checked.
_STEPS_PER_LOOK = 50
# A process takes about half a gigabyte.
_MOST_WORKERS = 8
# From here on float32 does not tell apart what differs by 1: probabilities of such logits mean nothing any more, and no
# step of less than 1 moves such weights.
_LARGEST = 2.0**24
# Bytes; file systems take 255, and what is written beside has a longer name.
_LONGEST_NAME = 200
# float32 holds a little more than 7 digits; the rest would be noise in tables.
_DIGITS = 7
_CAUSES = (
    "Training diverged. Usual causes: a learning rate that is too high (lower it, warm it up or clip gradients), "
    "labels outside [0, num_classes), or inputs that are not finite. No checkpoint is kept: the run starts at step 0."
)


class Config(Protocol):
    """The fields that `run` itself reads; a recipe's frozen dataclass has them and more."""

    seed: int
    batch_size: int
    steps: int
    evaluate_every: int


@dataclasses.dataclass(frozen=True)
class Where:
    """Where and how a recipe runs; nothing here changes what is computed beyond rounding."""

    workdir: Path = Path("saved_models")
    """folder that receives <recipe>/<size>…/ with everything the run writes"""
    data_dir: Path | None = None
    """folder with data files or a prepared TFDS directory, if they are not in their usual places"""
    strategy: distribution.StrategyName = "auto"
    """devices to train on; auto takes a TPU, the workers of TF_CONFIG, several GPUs, or the one device"""
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    """arithmetic of the hidden layers; logits, losses and weights stay float32"""
    checkpoints: int = 2
    """checkpoints that stay, for a newest one that was damaged"""
    checkpoint_minutes: float = 10.0
    """time after which a checkpoint is written between two evaluations, at each of which one is written anyway"""
    snapshots: bool = False
    """keep a SavedModel of every moment at which the network is observed, in snapshots/"""
    quiet: bool = False
    """print nothing but errors"""
    traceback: bool = False
    """show the Python traceback of an error instead of its message alone"""


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


class Stopped(KeyboardInterrupt):
    """A signal, SIGINT or SIGTERM, ended a run, after a checkpoint where it was training."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


Observe = Callable[[Probe, Dataset], dict[str, float]]
"""Measures a network during training: `observe(probe, data)` gives numbers by name."""

Train = Callable[..., list[Run]]
"""What `workers` gives: train(recipe's run, configs, size=…, what=…)."""


def main(description: str, sizes: Mapping[str, Config], run: Callable[..., Any]) -> None:
    """Run a recipe from the command line: `[SIZE] [--field value …] [--workdir …]`.

    Args:
        description: The recipe's docstring, shown by `--help`.
        sizes: Named configs; the first is the default.
        run: Called as `run(config, size=…, where=…)`.

    Raises:
        SystemExit: With the message of a bad argument, bad data or an unusable folder.
    """
    size, *arguments = _size_first(sys.argv[1:], sizes)
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("config", tyro.conf.OmitArgPrefixes[type(sizes[size])]),
            ("where", tyro.conf.OmitArgPrefixes[Where]),
        ],
        frozen=True,
    )
    names = "|".join(sizes)
    chosen = tyro.cli(
        command,
        prog=f"{Path(sys.argv[0]).name} [{names}]",
        description=f"{description}\nSizes: {', '.join(sizes)}; the defaults below are those of `{size}`.",
        default=command(config=sizes[size], where=Where()),
        args=arguments,
    )
    with messages(chosen.where.traceback):
        run(chosen.config, size=size, where=chosen.where)


@contextlib.contextmanager
def messages(traceback: bool = False) -> Iterator[None]:
    """Show errors as messages without their Python traceback, and nothing of TensorFlow's own warnings."""
    tf.get_logger().setLevel("ERROR")
    try:
        with _signals():
            yield
    except (ValueError, OSError, FloatingPointError, MemoryError, tf.errors.OpError) as problem:
        if traceback:
            raise
        text = str(problem)
        if isinstance(problem, MemoryError | tf.errors.ResourceExhaustedError):
            text = f"out of memory ({reason(problem)}). Lower --batch-size, or close other programs"
        elif isinstance(problem, tf.errors.OpError):
            text = f"TensorFlow failed: {reason(problem)}"
        sys.exit(f"error: {text} (--traceback shows where)")
    except KeyboardInterrupt as problem:
        if traceback:
            raise
        number = getattr(problem, "number", signal.SIGINT)
        said = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
        tqdm.write(
            f"\n{said}; what is finished stays, and the same command goes on from the last checkpoint", file=sys.stderr
        )
        sys.exit(128 + number)


class _Signals:
    """Signals to end: raised as `Stopped`, in training only once a checkpoint has been written."""

    def __init__(self) -> None:
        self.training, self.received = False, 0

    def __call__(self, number: int, frame: Any) -> None:
        # The second one does not wait.
        if not self.training or self.received:
            raise Stopped(number)
        self.received = number


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    signals = _Signals()
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
        before = {number: signal.signal(number, signals) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    config: Config,
    recipe: str,
    sizes: Mapping[str, Config],
    load_data: Callable[[Config, Path | None], Dataset],
    build_model: Callable[[Config, Dataset], keras.Model],
    *,
    size: str,
    where: Where | None = None,
    observe: Observe | None = None,
) -> Run:
    """Train, evaluate and export one network, or return it if its folder says that it is done.

    An interrupted run goes on from its last checkpoint and, on one device, ends in the same bytes. SIGINT and SIGTERM
    write one at the next step (of several workers, the last evaluation's stays) and raise `Stopped`. TensorFlow
    has no switch back from deterministic operations, so they stay on in this process afterwards; so do the seeds
    that were set.

    Args:
        config: What to compute.
        recipe: Name of the recipe, the first part of the folder.
        sizes: The recipe's named configs.
        load_data: Gives the data for a config; called with the config and `where.data_dir`.
        build_model: Gives a compiled `distribution.Model`; called inside the strategy's scope.
        size: The size that `config` started from; names the folder together with every field that differs.
        where: Folders, devices and precision.
        observe: Measures the network at step 0 and every `config.observe_every` steps, if that is not 0; what it
            returns joins `history.csv` and TensorBoard, and with `where.snapshots` the network that it saw is kept
            in `snapshots/step-…/`.

    Returns:
        The finished run.

    Raises:
        ValueError: If the config, the data or the folder (of another config, or worked in by another process) do not
            fit, before any work.
        Stopped: By a signal; a KeyboardInterrupt.
        FloatingPointError: If training diverges: the loss or a weight stops being finite, or weights or logits end
            above 2²⁴, where float32 does not tell apart what differs by 1. No checkpoint is left, since from it every
            run would end the same way; `history.csv` shows where it began.
        OSError: If the folder cannot be written.
    """
    where = where or Where()
    _check_config(config)
    _check_whole("checkpoints", where.checkpoints)
    if where.checkpoints < 1 or not 0 <= where.checkpoint_minutes < math.inf:
        raise ValueError(
            "At least 1 of the `checkpoints` must stay, and `checkpoint_minutes` be a time from 0 on; received "
            f"{where.checkpoints} and {where.checkpoint_minutes}."
        )
    if where.snapshots and not (observe and getattr(config, "observe_every", 0)):
        raise ValueError("--snapshots cannot act where nothing is observed: give --observe-every, or leave it out.")
    folder = Path(where.workdir) / recipe / label(config, size, sizes)
    record = {"recipe": recipe, "size": size, "config": _plain(config), "precision": where.precision}
    finished = _finished(folder, record)
    if finished:
        _say(f"{folder}: finished before, reused", where)
        return finished
    strategy = distribution.strategy(where.strategy)
    chief = distribution.is_chief(strategy)
    checkpoints = Checkpoints(folder, where.checkpoints)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_settings(config.seed, where.precision))
        stack.enter_context(distribution.forgotten_gradients())
        signals = stack.enter_context(_signals())
        data = load_data(config, where.data_dir)
        record["data"] = json.loads(json.dumps(data.describe()))
        _require_same_data(folder, record["data"])
        if chief:
            stack.enter_context(claimed(folder, {**record, **_surroundings(strategy)}, checkpoints))
            finished = _finished(folder, record)
            if finished:  # by a process that has gone since the first look
                return finished
        with strategy.scope():
            model = build_model(config, data)
            model.optimizer.build(model.trainable_variables)
            model.steps_per_execution = _steps_per_execution(config.evaluate_every)
        _say(
            f"{folder}: {config.steps:,} steps of {config.batch_size} on {data.num_train:,} training examples, "
            f"{distribution.describe(strategy)}",
            where,
        )
        started = time.perf_counter()
        single = build_model(config, data)
        module = endpoints(single)  # what cannot be exported is told before training
        if not getattr(config, "observe_every", 0):
            observe = None
        observer = observe and _Observer(observe, single, module, data, folder, where)
        _fit(model, config, data, checkpoints, chief, where, observer, signals)
        metrics = {"steps": config.steps, **_evaluated(model, data, config)}
        if chief:
            single.set_weights(distribution.counted_weights(model))
            _export(single, module, data, config, folder)
            metrics["seconds"] = round(time.perf_counter() - started, 1)
            files.replace(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
            # Not before: killed in between, the run would start again from nothing.
            checkpoints.remove()
    summary = "; ".join(
        f"{split.replace('_', '-')}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics[split].items())
        for split in _splits(data)
    )
    _say(f"{folder}: {summary}", where)
    return Run(folder, metrics)


def _splits(data: Dataset) -> list[str]:
    return [split for split in ("held_out", "test") if data.size(split)]


def _evaluated(model: keras.Model, data: Dataset, config: Config) -> dict[str, dict[str, float]]:
    found = {}
    for split in _splits(data):
        measured = model.evaluate(data.evaluation(split, config.batch_size), verbose=0, return_dict=True)
        found[split] = {name: _rounded(value) for name, value in measured.items() if name != "loss"}
    return found


def _export(network: keras.Model, module: Endpoints, data: Dataset, config: Config, folder: Path) -> None:
    """Write a trained network, and what it makes of each example."""
    _require_finite(network, config.steps)
    _require_small("weight", [weight.numpy() for weight in network.trainable_weights], config.steps)
    splits = {split: data.evaluation(split, config.batch_size) for split in _splits(data)}
    examples = _examples(Probe(module), splits, config.steps)
    write(module, folder / "saved_model")
    with files.beside(folder / "examples.npz") as temporary:
        np.savez(temporary, **examples)


@contextlib.contextmanager
def workers(where: Where) -> Iterator[Train]:
    """Train many small networks, as many at a time as there are cores, or one after the other on an accelerator.

    Gives `train(run, configs, *, size, what)`: it calls a recipe's `run` for each config and returns the finished
    runs in order. `what` names them in the progress bar.

    Example:
        >>> with workers(Where()) as train:
        ...     runs = train(mnist_mlp.run, [Config(seed=0), Config(seed=1)], size="digits", what="networks")
    """
    if where.strategy == "multi-worker" or len(json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})):
        raise ValueError(
            "Many networks are trained on one machine: run this without --strategy multi-worker and without TF_CONFIG, "
            "and give each machine other --seeds if there are several."
        )
    where = dataclasses.replace(where, quiet=True)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    alone = count == 1 or where.strategy not in ("auto", "cpu") or _has_accelerator()

    def place(config: Config) -> Where:
        # Of networks that are not observed there are no snapshots to keep.
        return dataclasses.replace(where, snapshots=where.snapshots and bool(getattr(config, "observe_every", 0)))

    def train(run: Callable[..., Run], configs: Sequence[Config], *, size: str, what: str) -> list[Run]:
        for config in configs:  # before the first of them is trained
            _check_config(config)
        bar = tqdm(total=len(configs), desc=what, unit="network", leave=False)
        with bar:
            if alone:
                return [_counted(run(config, size=size, where=place(config)), bar) for config in configs]
            waiting = [pool.submit(run, config, size=size, where=place(config)) for config in configs]
            for future in waiting:
                future.add_done_callback(lambda _: bar.update())
            return [future.result() for future in waiting]

    with contextlib.ExitStack() as stack:
        if not alone:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(min(count, _MOST_WORKERS), spawn, initializer=_begin_worker)
            # On an error the networks that wait are not begun.
            stack.callback(pool.shutdown, cancel_futures=True)
        try:
            yield train
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()  # by a signal, at which each writes a checkpoint
            raise


def label(config: Config, size: str, sizes: Mapping[str, Config]) -> str:
    """Return the folder's name: the size, then `-field=value` for each field that differs from it.

    A name of more than 200 bytes ends in a digest of what is cut off; `config.json` has every field.
    """
    if size not in sizes:
        raise ValueError(_unknown("size", size, sizes))
    changed = [
        f"-{field.name}={_in_a_name(getattr(config, field.name))}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(sizes[size], field.name)
    ]
    name = size + "".join(sorted(changed, key=lambda part: part.startswith("-seed=")))
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    kept = name.encode()[: _LONGEST_NAME - 17].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


class _Observer:
    """Measures a copy of the network in training, as the SavedModel of that moment would be measured."""

    def __init__(
        self, observe: Observe, copy: keras.Model, module: Endpoints, data: Dataset, folder: Path, where: Where
    ) -> None:
        self.observe, self.copy, self.endpoints, self.data, self.where = observe, copy, module, data, where
        self.snapshots = folder / "snapshots" if where.snapshots else None

    def __call__(self, weights: list[np.ndarray], step: int) -> dict[str, float]:
        self.copy.set_weights(weights)
        if self.snapshots:
            self.snapshots.mkdir(exist_ok=True)
            write(self.endpoints, self.snapshots / f"step-{step:06d}")
        try:
            seen = self.observe(Probe(self.endpoints), self.data)
        except ValueError as problem:  # a collapsed network has no plane or no information; its training goes on
            _say(f"step {step:,}: not observed: {problem}", self.where)
            return {}
        return {name: _rounded(value) for name, value in seen.items()}


class _Watch(keras.callbacks.Callback):
    """Progress bar, history, TensorBoard, checkpoints, and an end to a diverging run or at a signal."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: Config,
        saved: Checkpoint | None,
        observer: _Observer | None,
        signals: _Signals,
        *,
        chief: bool,
        where: Where,
    ) -> None:
        super().__init__()
        self.checkpoints, self.config, self.observer, self.signals = checkpoints, config, observer, signals
        self.folder = checkpoints.folder.parent
        self.saved, self.history = saved, saved.history if saved else []
        self.start = self.step = saved.step if saved else 0
        self.chief, self.minutes, self.written = chief, where.checkpoint_minutes, time.monotonic()
        with tensorflow_writes(self.folder / "tensorboard"):
            self.events = tf.summary.create_file_writer(str(self.folder / "tensorboard")) if self.chief else None
        self.bar = tqdm(
            total=config.steps,
            initial=self.step,
            unit="step",
            leave=False,
            disable=not chief or where.quiet,
            desc=self.folder.name,
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self.chief and self.observer and not self.history:
            self.history.append({"step": 0, **self.observer(distribution.counted_weights(self.model), 0)})
            self._log(self.history[-1])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.start = self.step
        if self.saved and self.saved.metrics:  # Keras has just reset what was counted since the last evaluation
            for variable, value in zip(distribution.metric_variables(self.model), self.saved.metrics, strict=True):
                variable.assign(value)
        self.saved = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step = self.start + batch + 1
        self.bar.update(step - self.step)
        if step // _STEPS_PER_LOOK > self.step // _STEPS_PER_LOOK:
            self._check(logs["loss"], step)
            self.bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)
        self.step = step
        # Several workers keep their metrics in parts, which all would have to read together.
        alone = not isinstance(self.model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)
        between = step % self.config.evaluate_every != 0
        late = time.monotonic() - self.written > 60 * self.minutes
        if alone and between and (late or self.signals.received):
            self._check(logs["loss"], step)
            metrics = [variable.numpy() for variable in distribution.metric_variables(self.model)]
            self._save(metrics, distribution.get_state(self.model))
        if self.signals.received and (between or not alone):
            raise Stopped(self.signals.received)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check(logs["loss"], self.step)
        self._check(logs["val_loss"], self.step)
        _require_finite(self.model, self.step)
        self.state = distribution.get_state(self.model)
        row = {"step": self.step, **{name: _rounded(value) for name, value in logs.items()}}
        self.history.append(row)
        if not self.chief:
            return
        if self.observer and self.step % self.config.observe_every == 0:
            row |= self.observer(distribution.counted_weights(self.model), self.step)
        self._log(row)
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.history for name in row)
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(self.history)
        files.replace(self.folder / "history.csv", text.getvalue())
        self._save([], self.state)
        if self.signals.received:
            raise Stopped(self.signals.received)

    def _save(self, metrics: list[np.ndarray], state: list[np.ndarray]) -> None:
        self.checkpoints.save(Checkpoint(self.step, self.history, state, metrics))
        self.written = time.monotonic()

    def _log(self, row: dict[str, float]) -> None:
        with tensorflow_writes(self.folder / "tensorboard"), self.events.as_default(step=row["step"]):
            for name, value in row.items():
                tf.summary.scalar(name, value)
            self.events.flush()

    def close(self) -> None:
        self.bar.close()
        if self.events is not None:
            self.events.close()

    def _check(self, loss: Any, step: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"The loss is {float(loss)} by step {step}. {_CAUSES}")


def _fit(
    model: keras.Model,
    config: Config,
    data: Dataset,
    checkpoints: Checkpoints,
    chief: bool,
    where: Where,
    observer: _Observer | None,
    signals: _Signals,
) -> None:
    saved, every = checkpoints.latest(), config.evaluate_every
    if saved:
        distribution.set_state(model, saved.state)
        if saved.metrics:
            distribution.metric_variables(model, next(iter(data.train(config.batch_size, seed=config.seed))))
        _say(f"{checkpoints.folder.parent}: going on from step {saved.step:,}", where)
    done = saved.step if saved else 0
    watch = _Watch(checkpoints, config, saved, observer, signals, chief=chief, where=where)
    callbacks = [watch]
    if distribution.averages(model):
        callbacks.insert(0, keras.callbacks.SwapEMAWeights())  # validation, too, is of the weights that count
    split = "held_out" if data.size("held_out") else "test"
    signals.training = True
    try:
        while done < config.steps:
            # What is left of an interval that was interrupted, by itself; then all others.
            left = -done % every
            model.fit(
                data.train(config.batch_size, seed=config.seed, start_step=done),
                steps_per_epoch=left or every,
                initial_epoch=done // every,
                epochs=done // every + 1 if left else config.steps // every,
                validation_data=data.evaluation(split, config.batch_size),
                callbacks=callbacks,
                verbose=0,
            )
            done = watch.step
            if done < config.steps and distribution.averages(model):
                # Keras ends fit() with the averages in the weights' place.
                distribution.set_state(model, watch.state)
        if saved and saved.step == config.steps:
            distribution.finish_averaging(model)
    finally:
        signals.training = False
        watch.close()


def _require_finite(model: keras.Model, step: int) -> None:
    """Refuse weights that a finite loss hides: NaN inputs reach the first layer's gradient through max pooling."""
    wrong = not_finite(model)
    if wrong:
        raise FloatingPointError(
            f"{len(wrong)} of {len(model.weights)} weights hold NaN or infinity by step {step}, {wrong[0]} the first. "
            f"{_CAUSES}"
        )


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
            f"what differs by 1. {_CAUSES}"
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
    was, now = (
        {"recipe": each.get("recipe"), "size": each.get("size"), "precision": each.get("precision")}
        | {name: _identity(value) for name, value in each.get("config", {}).items()}
        for each in (_read_json(folder / "config.json"), record)
    )
    differing = [
        f"{name} is {was.get(name)!r} there and {now.get(name)!r} here"
        for name in was | now
        if was.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(
            f"{folder} holds another run: {', '.join(differing)}. Choose another --workdir, or remove that folder."
        )
    if not (folder / "metrics.json").exists():
        return None
    sweep(folder)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of a run that was killed between the two
    return Run(folder, _read_json(folder / "metrics.json"))


def _require_same_data(folder: Path, now: dict[str, Any]) -> None:
    """Refuse to go on with other examples than a run began with: a file may have been replaced meanwhile."""
    was = _read_json(folder / "config.json").get("data", now) if (folder / "config.json").exists() else now
    differing = [f"{name} {was.get(name)!r} there and {now.get(name)!r} here" for name in was | now]
    differing = [text for name, text in zip(was | now, differing, strict=True) if was.get(name) != now.get(name)]
    if differing:
        raise ValueError(
            f"{folder} was begun with other data: {', '.join(differing)}. Bring them back, or remove that folder."
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected an object, received {content!r}")
    except ValueError as problem:
        raise ValueError(f"{path} is damaged ({problem}). Remove {path.parent} to run again.") from problem
    return content


def _steps_per_execution(interval: int) -> int:
    """Return how many steps run between two looks of Python: small networks spend half their time there."""
    return max(steps for steps in range(1, _STEPS_PER_LOOK + 1) if interval % steps == 0)


def _check_config(config: Config) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float | np.floating) and not math.isfinite(number):
                raise ValueError(f"`{field.name}` must be finite; received {value}.")
    observe_every = getattr(config, "observe_every", 0)
    for name, value, least in (
        ("batch_size", config.batch_size, 1),
        ("steps", config.steps, 1),
        ("evaluate_every", config.evaluate_every, 1),
        ("observe_every", observe_every, 0),
    ):
        _check_whole(name, value)
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}; received {value}.")
    _check_whole("seed", config.seed)
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"`seed` must be between 0 and 2³² − 1; received {config.seed}.")
    if config.steps % config.evaluate_every:
        raise ValueError(
            f"`steps` must be a multiple of `evaluate_every`; received {config.steps} and {config.evaluate_every}."
        )
    if observe_every % config.evaluate_every:
        raise ValueError(
            f"`observe_every` must be 0 or a multiple of `evaluate_every` ({config.evaluate_every}); received "
            f"{observe_every}."
        )


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"`{name}` must be a whole number; received {value!r}.")


def _size_first(arguments: list[str], sizes: Mapping[str, Any]) -> list[str]:
    if not arguments or arguments[0].startswith("-"):
        return [next(iter(sizes)), *arguments]
    if arguments[0] not in sizes:
        sys.exit("error: " + _unknown("size", arguments[0], sizes))
    return arguments


def _unknown(what: str, received: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(received, known, n=1)
    hint = f" Perhaps you meant {near[0]!r}?" if near else ""
    return f"unknown {what} {received!r}; known: {', '.join(known)}.{hint}"


def _has_accelerator() -> bool:
    return any(device.device_type != "CPU" for device in tf.config.list_physical_devices())


def _counted(finished: Run, bar: tqdm) -> Run:
    bar.update()
    return finished


def _begin_worker() -> None:
    # Interrupted from the keyboard, workers end without a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tf.get_logger().setLevel("ERROR")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _end_with_parent() -> None:
    """End this process when the one that began it has ended, however that was: the queue between them would not."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _say(text: str, where: Where) -> None:
    if not where.quiet:
        tqdm.write(text)


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


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{_DIGITS}g}")


def _in_a_name(value: Any) -> str:
    if isinstance(value, Path):
        return (digest(value) or value.name)[:8]
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text.replace(os.sep, "_").replace(" ", "")


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
