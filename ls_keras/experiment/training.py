"""The loop: Keras's `fit` from a checkpoint on, watched."""

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

from ls_keras import distribution, files
from ls_keras.analysis import Probe
from ls_keras.artifact.writing import Endpoints, endpoints, not_finite, tensorflow_writes, write
from ls_keras.data import Dataset
from ls_keras.experiment.command import Signals, Stopped
from ls_keras.experiment.folder import Checkpoint, Checkpoints
from ls_keras.experiment.plan import Config, Observe, Where, say

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

# How often, in steps, the running loss is read back from the device to be shown and checked.
_STEPS_PER_LOOK = 50
# float32 holds a little more than 7 digits; the rest would be noise in tables.
_DIGITS = 7
CAUSES = (
    "Training diverged. Usual causes: a learning rate that is too high (lower it, warm it up or clip gradients), "
    "labels outside [0, num_classes), or inputs that are not finite. No checkpoint is kept: the run starts at step 0."
)


class Observer:
    """Measures a copy of the network in training (itself, where one replica trains the weights that count)."""

    def __init__(
        self,
        observe: Observe,
        trained: keras.Model,
        copy: keras.Model,
        module: Endpoints,
        data: Dataset,
        folder: Path,
        where: Where,
    ) -> None:
        self.observe, self.trained, self.copy, self.endpoints = observe, trained, copy, module
        self.data, self.where = data, where
        self.snapshots = folder / "snapshots" if where.snapshots else None

    def __call__(self, weights: list[np.ndarray], step: int) -> dict[str, float]:
        if self.copy is not self.trained:
            self.copy.set_weights(weights)
        if self.snapshots:
            self.snapshots.mkdir(exist_ok=True)
            # From a trace of its own: what is written from one twice lacks custom gradients.
            write(endpoints(self.copy), self.snapshots / f"step-{step:06d}")
        try:
            seen = self.observe(Probe(self.endpoints), self.data)
        except ValueError as problem:  # a collapsed network has no plane or no information; its training goes on
            say(f"step {step:,}: not observed: {problem}", self.where)
            return {}
        return {name: rounded(value) for name, value in seen.items()}


def fit(
    model: keras.Model,
    config: Config,
    data: Dataset,
    validation: tf.data.Dataset,
    checkpoints: Checkpoints,
    chief: bool,
    where: Where,
    observer: Observer | None,
    signals: Signals,
    last: int,
) -> None:
    """Train a compiled model from its latest checkpoint, or from the start, to the `last` step that is wanted.

    Raises:
        Stopped: At a signal, once a checkpoint has been written.
        FloatingPointError: If the loss or a weight stops being finite.
    """
    saved, every = _latest(checkpoints, model.distribute_strategy), config.evaluate_every
    if saved:
        distribution.set_state(model, saved.state)
        if saved.metrics:
            distribution.metric_variables(model, next(iter(data.train(config.batch_size, seed=config.seed))))
        say(f"{checkpoints.folder.parent}: going on from step {saved.step:,}", where)
    done = saved.step if saved else 0
    watch = _Watch(checkpoints, config, saved, observer, signals, chief=chief, where=where)
    callbacks = [watch]
    if distribution.averages(model):
        callbacks.insert(0, keras.callbacks.SwapEMAWeights())  # validation, too, is of the weights that count
    signals.training = True
    try:
        while done < last:
            # What is left of an interval that was interrupted, by itself; then all others.
            left = -done % every
            model.fit(
                data.train(config.batch_size, seed=config.seed, start_step=done),
                steps_per_epoch=left or every,
                initial_epoch=done // every,
                epochs=done // every + 1 if left else last // every,
                validation_data=validation,
                callbacks=callbacks,
                verbose=0,
            )
            done = watch.step
            if done < last and distribution.averages(model):
                # Keras ends fit() with the averages in the weights' place.
                distribution.set_state(model, watch.state)
        if saved and saved.step == config.steps:
            distribution.finish_averaging(model)
    finally:
        signals.training = False
        watch.close()


def _latest(checkpoints: Checkpoints, strategy: tf.distribute.Strategy) -> Checkpoint | None:
    """Return the newest checkpoint, the chief's for all workers: others may not see its folder, or an older one."""
    found = checkpoints.latest() if distribution.is_chief(strategy) else None
    if distribution.cluster(strategy) is None:
        return found
    written = io.BytesIO()
    if found:
        found.write(written)
    message = b"%d\n" % found.step + written.getvalue() if found else b""
    step, _, arrays = distribution.exchange(strategy, message)[0].partition(b"\n")
    return Checkpoint.read(io.BytesIO(arrays), int(step)) if step else None


def require_finite(model: keras.Model, step: int) -> None:
    """Refuse weights that a finite loss hides: NaN inputs reach the first layer's gradient through max pooling."""
    wrong = not_finite(model)
    if wrong:
        raise FloatingPointError(
            f"{len(wrong)} of {len(model.weights)} weights hold NaN or infinity by step {step}, {wrong[0]} the first. "
            f"{CAUSES}"
        )


def steps_per_execution(interval: int) -> int:
    """Return how many steps run between two looks of Python: small networks spend half their time there."""
    return max(steps for steps in range(1, _STEPS_PER_LOOK + 1) if interval % steps == 0)


def rounded(value: Any) -> float:
    """Return a measured number as tables keep it."""
    return float(f"{float(value):.{_DIGITS}g}")


class _Watch(keras.callbacks.Callback):
    """Progress bar, history, TensorBoard, checkpoints, and an end to a diverging run or at a signal."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: Config,
        saved: Checkpoint | None,
        observer: Observer | None,
        signals: Signals,
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
        require_finite(self.model, self.step)
        self.state = distribution.get_state(self.model)
        row = {"step": self.step, **{name: rounded(value) for name, value in logs.items()}}
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
            raise FloatingPointError(f"The loss is {float(loss)} by step {step}. {CAUSES}")
