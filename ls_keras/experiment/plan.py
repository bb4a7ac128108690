"""What a run is made of: the Config that says what, Where it happens, and the Recipe that ties them to code."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ls_keras import artifact

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:  # the rest of a recipe is imported before its --help is printed, and must not wait for TensorFlow
    from ls_keras.analysis import Probe
    from ls_keras.data import Dataset
    from ls_keras.distribution import Model
    from ls_keras.experiment.run import Run

# Bytes; file systems take 255, and what is written beside has a longer name.
_LONGEST_NAME = 200

Observe = Callable[["Probe", "Dataset"], dict[str, float]]
"""Measures a network during training: `observe(probe, data)` gives numbers by name."""


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
    strategy: Literal["auto", "cpu", "mirrored", "multi-worker", "tpu"] = "auto"
    """devices to train on; auto takes a TPU, the workers of TF_CONFIG, several GPUs, or the one device"""
    wait_minutes: float = 10.0
    """time that workers wait for each other at the start; one that dies later ends the others at once"""
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
class Recipe:
    """A kind of network and how it is trained, as a value: to be run, swept, studied and tested.

    Attributes:
        name: The first part of the folders of its runs.
        sizes: Named configs; the first is the default of the command line.
        load_data: Gives the data for a config; called with the config and `Where.data_dir`.
        build_model: Gives a compiled `distribution.Model`; called inside the strategy's scope.
        check: Refuses, before any work, what no library function would refuse; called with the config and the size's
            own.
        observe: Measures the network at step 0 and every `config.observe_every` steps, if that is not 0.
        one_program: Whether `build_model` puts `seed` into states alone (initial weights, generators of dropout), so
            that networks which differ in nothing else run the program that was traced for the first of them.
        description: The recipe's docstring, shown by `--help`.

    Example:
        >>> RECIPE = Recipe("mine", {"paper": Config()}, load_data, build_model, description=__doc__)
        >>> run = RECIPE.run(Config(alpha=0.0))
        >>> run.metrics["test"]["accuracy"]
    """

    name: str
    sizes: Mapping[str, Any]
    load_data: Callable[[Any, Path | None], Dataset]
    build_model: Callable[[Any, Any], Model]
    check: Callable[[Any, Any], None] | None = None
    observe: Observe | None = None
    description: str = ""
    one_program: bool = False

    def run(
        self, config: Config, *, size: str | None = None, where: Where | None = None, until: int | None = None
    ) -> Run:
        """Train, evaluate and export one network, or return it if it is finished: see `run.run`."""
        from ls_keras.experiment.run import run  # noqa: PLC0415 (TensorFlow)

        return run(self, config, size or next(iter(self.sizes)), where or Where(), until)

    def checked(self, config: Config, size: str) -> None:
        """Refuse a config that cannot be meant.

        Raises:
            ValueError: With what was received and what is expected.
        """
        if size not in self.sizes:
            raise ValueError(unknown("size", size, self.sizes))
        default = self.sizes[size]
        _check_config(config)
        _check_loss(config, default)
        if self.check is not None:
            self.check(config, default)

    def main(self) -> None:
        """Run the recipe from the command line: `[SIZE] [--field value …] [--workdir …]`."""
        from ls_keras.experiment.command import main  # noqa: PLC0415 (imports this module)

        main(self.description, self.sizes, self.run)


def label(config: Config, size: str, sizes: Mapping[str, Config]) -> str:
    """Return the folder's name: the size, then `-field=value` for each field that differs from it.

    A name of more than 200 bytes ends in a digest of what is cut off; `config.json` has every field.
    """
    if size not in sizes:
        raise ValueError(unknown("size", size, sizes))
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


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number, or one below the least."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"`{name}` must be a whole number; received {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; received {value}.")


def check_series(name: str, values: Sequence[float], *, below: float = 1.0, zero: bool = False) -> None:
    """Refuse a list of α or T that is empty, repeats itself or leaves the open interval (0, below)."""
    received = f"received {', '.join(map(str, values)) or 'none'}"
    if not values or not all(0 < value < below or (zero and value == 0) for value in values):
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0 and below {below:g}; {received}.")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must hold each number once; {received}.")


def say(text: str, where: Where) -> None:
    """Print a line, above a progress bar if there is one."""
    if not where.quiet:
        tqdm.write(text)


def unknown(what: str, received: str, known: Mapping[str, Any]) -> str:
    """Say which names there are, and which one may have been meant."""
    near = difflib.get_close_matches(received, known, n=1)
    hint = f" Perhaps you meant {near[0]!r}?" if near else ""
    return f"unknown {what} {received!r}; known: {', '.join(known)}.{hint}"


def _check_config(config: Config) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float | np.floating) and not math.isfinite(number):
                raise ValueError(f"`{field.name}` must be finite; received {value}.")
    for name in ("batch_size", "steps", "evaluate_every"):
        check_whole(name, getattr(config, name), 1)
    observe_every = getattr(config, "observe_every", 0)
    check_whole("observe_every", observe_every, 0)
    check_whole("seed", config.seed, 0)
    if config.seed >= 2**32:
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


def _check_loss(config: Config, default: Config) -> None:
    """Refuse an α or a loss that another option puts out of action."""
    loss, alpha, teacher = (getattr(config, name, None) for name in ("loss", "alpha", "teacher"))
    given = alpha != getattr(default, "alpha", None)
    if loss is not None and given:
        raise ValueError(f"--alpha cannot act with --loss {loss}, which replaces the smoothed loss: leave one out.")
    if loss is not None and teacher is not None:
        raise ValueError(f"--loss cannot act with a --teacher, whose student has a loss of its own: leave {loss} out.")
    if teacher is not None and given and alpha:
        raise ValueError(
            f"--alpha cannot act with a --teacher, beside whom its student learns from hard labels; received {alpha}. "
            "Leave one of the two out."
        )


def _in_a_name(value: Any) -> str:
    if isinstance(value, Path):
        return (artifact.digest(value) or value.name)[:8]
    text = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text.replace(os.sep, "_").replace(" ", "")
