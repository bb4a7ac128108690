"""How any recipe is run: from a frozen Config to a finished folder, and from a command line to both.

A run's folder holds `config.json`, `history.csv`, `tensorboard/`, `checkpoints/` (until it succeeds),
`saved_model/`, and `metrics.json`, which is written last: it means "done".
"""

import contextlib
import csv
import dataclasses
import difflib
import errno
import io
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from ls_keras import distribution
from ls_keras.data import Data

import keras
import numpy as np
import tensorflow as tf
import tyro
from tqdm import tqdm

# How often, in steps, the running loss is read back from the device to be shown and checked.
_STEPS_PER_LOOK = 50


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
    quiet: bool = False
    """print nothing but errors"""
    traceback: bool = False
    """show the Python traceback of an error instead of its message alone"""


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder and what `metrics.json` says."""

    folder: Path
    metrics: dict[str, Any]

    @property
    def saved_model(self) -> Path:
        """Return the folder of the exported SavedModel."""
        return self.folder / "saved_model"


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
    """End the process with an error's message alone, unless its Python traceback is asked for."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as problem:
        if traceback:
            raise
        sys.exit(f"error: {problem}\n(--traceback shows where)")


def run(
    config: Config,
    recipe: str,
    sizes: Mapping[str, Config],
    load_data: Callable[[Config, Path | None], Data],
    build_model: Callable[[Config, Data], keras.Model],
    *,
    size: str,
    where: Where | None = None,
) -> Run:
    """Train, evaluate and export one network, or return it if its folder says that it is done.

    An interrupted run goes on from its last checkpoint and, on one device, ends in the same bytes.

    Args:
        config: What to compute.
        recipe: Name of the recipe, the first part of the folder.
        sizes: The recipe's named configs.
        load_data: Gives the data for a config; called with the config and `where.data_dir`.
        build_model: Gives a compiled `distribution.Model`; called inside the strategy's scope.
        size: The size that `config` started from; names the folder together with every field that differs.
        where: Folders, devices and precision.

    Returns:
        The finished run.

    Raises:
        ValueError: If the config, the data or the folder (of another config) do not fit, before any work.
        FloatingPointError: If the loss stops being finite.
        OSError: If the folder cannot be written.
    """
    where = where or Where()
    say = _silent if where.quiet else tqdm.write
    _check_steps(config)
    folder = where.workdir / recipe / label(config, size, sizes)
    record = {"recipe": recipe, "size": size, "config": _plain(config), "precision": where.precision}
    finished = _finished(folder, record)
    if finished:
        say(f"{folder}: finished before, reused")
        return finished
    strategy = distribution.strategy(where.strategy)
    chief = distribution.is_chief(strategy)
    with _claimed(folder, {**record, **_surroundings(strategy)}, chief), _settings(config.seed, where.precision):
        data = load_data(config, where.data_dir)
        with strategy.scope():
            model = build_model(config, data)
            model.optimizer.build(model.trainable_variables)
            model.steps_per_execution = _steps_per_execution(config.evaluate_every)
        say(
            f"{folder}: {config.steps:,} steps of {config.batch_size} on {data.num_train:,} training examples, "
            f"{distribution.describe(strategy)}"
        )
        started = time.perf_counter()
        _fit(model, config, data, folder, chief, say)
        splits = {s: data.evaluation(s, config.batch_size) for s in ("held_out", "test") if len(data.labels(s))}
        metrics = {s: model.evaluate(d, verbose=0, return_dict=True) for s, d in splits.items()}
        metrics = {s: {k: v for k, v in m.items() if k != "loss"} for s, m in metrics.items()}
        metrics = {"steps": config.steps, "seconds": round(time.perf_counter() - started, 1), **metrics}
        if chief:
            single = build_model(config, data)
            single.set_weights(model.get_weights())
            export(single, folder / "saved_model")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            write(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    summary = "; ".join(
        f"{split.replace('_', '-')}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics[split].items())
        for split in splits
    )
    say(f"{folder}: {summary}")
    return Run(folder, metrics)


def label(config: Config, size: str, sizes: Mapping[str, Config]) -> str:
    """Return the folder's name: the size, then `-field=value` for each field that differs from it."""
    if size not in sizes:
        raise ValueError(_unknown("size", size, sizes))
    changed = [
        f"-{field.name}={_in_a_name(getattr(config, field.name))}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(sizes[size], field.name)
    ]
    return size + "".join(sorted(changed, key=lambda part: part.startswith("-seed=")))


def export(model: keras.Model, path: Path) -> None:
    """Write a SavedModel with the endpoints that `analysis.Probe` reads.

    `serve(x)` gives logits `[n, K]`; `probe(x)` gives `{"penultimate": [n, d], "logits": [n, K]}`;
    `templates()` gives the last layer, `{"kernel": [d, K], "bias": [K]}`. All are float32, in inference
    mode, and penultimate @ kernel + bias == logits.

    Args:
        model: Any Keras model with one input and the layers `penultimate` and, after it, `logits` (Dense).
        path: Folder to write; it appears only when complete.

    Raises:
        ValueError: If the model lacks these layers or its logits are not an affine map of `penultimate`.
    """
    names = {layer.name for layer in model.layers}
    if not {"penultimate", "logits"} <= names:
        raise ValueError(
            "To be exported, a model needs a layer named `penultimate` and a Dense layer named `logits`; "
            f"received layers {sorted(names)}."
        )
    logits = model.get_layer("logits")
    penultimate = model.get_layer("penultimate").output
    both = keras.Model(model.inputs, {"penultimate": penultimate, "logits": logits.output})

    def probe(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.cast(value, tf.float32) for name, value in both(x, training=False).items()}

    def templates() -> dict[str, tf.Tensor]:
        bias = logits.bias if logits.use_bias else tf.zeros(logits.units)
        return {"kernel": tf.convert_to_tensor(logits.kernel), "bias": tf.convert_to_tensor(bias)}

    _check_affine(probe, templates, model.inputs[0].shape)
    signature = [tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype, name="x")]
    archive = keras.export.ExportArchive()
    archive.track(both)
    archive.add_endpoint("serve", lambda x: probe(x)["logits"], input_signature=signature)
    archive.add_endpoint("probe", probe, input_signature=signature)
    archive.add_endpoint("templates", templates, input_signature=[])
    with _beside(path) as temporary:
        archive.write_out(str(temporary), verbose=False)


def write(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it, so that it is either complete or not there.

    Args:
        path: The file.
        content: Text (UTF-8) or bytes.

    Raises:
        OSError: If the folder cannot be written; what was there before stays.
    """
    with _beside(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


class _Watch(keras.callbacks.Callback):
    """Progress bar, history, TensorBoard, checkpoints, and an end to a diverging run."""

    def __init__(
        self, folder: Path, config: Config, history: list[dict[str, float]], chief: bool, *, show: bool
    ) -> None:
        super().__init__()
        self.folder, self.history, self.interval = folder, history, config.evaluate_every
        self.step = len(history) * self.interval
        self.chief = chief
        self.events = tf.summary.create_file_writer(str(folder / "tensorboard")) if self.chief else None
        self.bar = tqdm(
            total=config.steps,
            initial=self.step,
            unit="step",
            leave=False,
            disable=not show,
            desc=folder.name,
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step = len(self.history) * self.interval + batch + 1
        self.bar.update(step - self.step)
        if step // _STEPS_PER_LOOK > self.step // _STEPS_PER_LOOK:
            self._check_loss(float(logs["loss"]), step)
            self.bar.set_postfix(loss=f"{float(logs['loss']):.4f}", refresh=False)
        self.step = step

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check_loss(float(logs["loss"]), self.step)
        self.history.append({"step": self.step, **{name: float(value) for name, value in logs.items()}})
        state = distribution.get_state(self.model)
        if not self.chief:
            return
        with self.events.as_default(step=self.step):
            for name, value in self.history[-1].items():
                tf.summary.scalar(name, value)
        self.events.flush()
        text = io.StringIO()
        table = csv.DictWriter(text, self.history[0])
        table.writeheader()
        table.writerows(self.history)
        write(self.folder / "history.csv", text.getvalue())
        buffer = io.BytesIO()
        np.savez(buffer, *state, history=json.dumps(self.history))
        write(self.folder / "checkpoints" / "last.npz", buffer.getvalue())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.close()

    def close(self) -> None:
        self.bar.close()
        if self.events is not None:
            self.events.close()

    def _check_loss(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss} by step {step}. Usual causes: a learning rate that is too high (lower it or "
                "clip gradients), labels outside [0, num_classes), or inputs that are not finite. The last "
                f"checkpoint, if there is one, is in {self.folder / 'checkpoints'}."
            )


def _fit(model: keras.Model, config: Config, data: Data, folder: Path, chief: bool, say: Callable[[str], None]) -> None:
    checkpoint = folder / "checkpoints" / "last.npz"
    history: list[dict[str, float]] = []
    if checkpoint.exists():
        with np.load(checkpoint) as arrays:
            history = json.loads(str(arrays["history"]))
            distribution.set_state(model, [arrays[f"arr_{i}"] for i in range(len(arrays.files) - 1)])
        say(f"{folder}: going on from step {history[-1]['step']:,}")
    if len(history) * config.evaluate_every >= config.steps:
        return
    watch = _Watch(folder, config, history, chief, show=chief and say is not _silent)
    split = "held_out" if len(data.labels("held_out")) else "test"
    try:
        model.fit(
            data.train(config.batch_size, seed=config.seed, start_step=len(history) * config.evaluate_every),
            steps_per_epoch=config.evaluate_every,
            initial_epoch=len(history),
            epochs=config.steps // config.evaluate_every,
            validation_data=data.evaluation(split, config.batch_size),
            callbacks=[watch],
            verbose=0,
        )
    finally:
        watch.close()


@contextlib.contextmanager
def _settings(seed: int, precision: str) -> Iterator[None]:
    """Make everything below depend on the seed alone."""
    before = keras.config.dtype_policy()
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _finished(folder: Path, record: dict[str, Any]) -> Run | None:
    """Return the run that `folder` holds if it is complete; refuse a folder that holds another one."""
    if not (folder / "config.json").exists():
        return None
    found = json.loads((folder / "config.json").read_text())
    differing = {
        name: (found.get(group, {}).get(name), value)
        for group in ("config",)
        for name, value in record[group].items()
        if found.get(group, {}).get(name) != value
    }
    differing |= {name: (found.get(name), record[name]) for name in ("recipe", "size", "precision")
                  if found.get(name) != record[name]}  # fmt: skip
    if differing:
        listed = ", ".join(f"{name} is {was!r} there and {now!r} here" for name, (was, now) in differing.items())
        raise ValueError(f"{folder} holds another run: {listed}. Choose another --workdir, or remove that folder.")
    if not (folder / "metrics.json").exists():
        return None
    return Run(folder, json.loads((folder / "metrics.json").read_text()))


@contextlib.contextmanager
def _claimed(folder: Path, record: dict[str, Any], chief: bool) -> Iterator[None]:
    """Open a run's folder; remove it again if the run fails before its first checkpoint."""
    if chief:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / "config.json", json.dumps(record, indent=2) + "\n")
        except OSError as problem:
            raise OSError(
                problem.errno, f"{folder} cannot be written ({problem.strerror}). Choose another --workdir"
            ) from problem
    try:
        yield
    except BaseException as problem:
        if chief and not (folder / "checkpoints").exists():
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC,
                f"The disk that holds {folder} is full; free some space and run the command again",
            ) from problem
        raise


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; rename it to `path` on success, remove it otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)


def _steps_per_execution(interval: int) -> int:
    """Return how many steps run between two looks of Python: small networks spend half their time there."""
    return max(steps for steps in range(1, _STEPS_PER_LOOK + 1) if interval % steps == 0)


def _check_affine(probe: Callable, templates: Callable, input_shape: tuple[int | None, ...]) -> None:
    # Two examples of noise tell whether anything stands between the two layers.
    x = np.random.default_rng(0).normal(size=(2, *input_shape[1:])).astype("float32")
    outputs, last = probe(tf.constant(x)), templates()
    expected = outputs["penultimate"] @ last["kernel"] + last["bias"]
    error = float(tf.reduce_max(tf.abs(expected - outputs["logits"])))
    scale = float(tf.reduce_max(tf.abs(outputs["logits"]))) + 1.0
    if not error <= 1e-3 * scale:
        raise ValueError(
            "The logits are not penultimate @ kernel + bias (they differ by "
            f"{error:.3g}): `logits` must be a Dense layer without activation directly on `penultimate`."
        )


def _check_steps(config: Config) -> None:
    for name in ("batch_size", "steps", "evaluate_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1; received {getattr(config, name)}.")
    if config.steps % config.evaluate_every:
        raise ValueError(
            f"`steps` must be a multiple of `evaluate_every`; received {config.steps} and {config.evaluate_every}."
        )


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


def _silent(text: str) -> None:
    pass


def _plain(config: Any) -> dict[str, Any]:
    """Return the fields as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _in_a_name(value: Any) -> str:
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text.replace(os.sep, "_").replace(" ", "")


def _surroundings(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "revision": git.stdout.strip() or None,
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "devices": distribution.describe(strategy),
    }
