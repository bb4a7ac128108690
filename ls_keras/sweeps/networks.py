"""One network of a sweep: trained, measured, and kept in a small file of its own that any process can read.

A file holds what tables and intervals need, so that networks may be removed to save room, and a sweep of thousands
writes as much for its last network as for its first.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ls_keras import artifact, files
from ls_keras.analysis import calibration
from ls_keras.experiment import Recipe, Run, Where
from ls_keras.experiment.folder import DAMAGE, Taken, writing
from ls_keras.study import driver, measures
from ls_keras.sweeps.space import Space, Task

import numpy as np

# Part of what a file was made by: another number, and networks are measured anew.
_MEASURES = 1
# Seconds until a network that another process trains is asked for again.
_ASK_EVERY = 2.0
_BATCH = 500
# What is kept of a split, in the names of `study.statistics`; ECE is the bias-reduced one, by which networks are
# compared.
QUANTITIES = {
    "nll": "nll",
    "accuracy": "accuracy",
    "ece": "bias-reduced ece",
    "nll_at_temperature": "nll at temperature",
    "ece_at_temperature": "bias-reduced ece at temperature",
}


@dataclasses.dataclass(frozen=True)
class Failed:
    """Why a network could not be trained."""

    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """What a network was measured by.

    Attributes:
        config: Its Config, as JSON.
        folder: Where it lies, below the working folder.
        seconds: Training time; NaN of a network that was paused.
        values: By split the quantities of `QUANTITIES`, on `held_out` also `temperature`; under `paused` what an
            evaluation within training gave.
        examples: By split and quantity its part for each example, float32 [N].
        teacher: Held-out accuracy and NLL of its teacher, if it has one.
        failed: The reason, if it could not be trained.
    """

    config: dict[str, Any]
    folder: str
    seconds: float
    values: dict[str, dict[str, float]]
    examples: dict[str, dict[str, np.ndarray]]
    teacher: dict[str, float]
    failed: str = ""


def path_of(folder: Path, task: Task, seed: int) -> Path:
    """Return the file of a network."""
    return folder / "measured" / f"{task.name}-seed={seed}.npz"


def plan_of(space: Space, task: Task, seed: int, where: Where) -> str:
    """Return a digest of all that a network is made by."""
    parts = [_MEASURES, space.recipe.name, space.size, _plain(space.config(task.point, seed)), where.precision]
    parts.append(task.epochs)
    if space.teacher is not None:
        recipe, size = space.teacher
        parts += [recipe.name, size, _plain(space.teacher_config(task.point, seed))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def train_teacher(space: Space, task: Task, seed: int, where: Where) -> Run | Failed:
    """Train the teacher of a point."""
    recipe, size = space.teacher
    return _trained(recipe, functools.partial(recipe.run, space.teacher_config(task.point, seed), size=size), where)


def train(space: Space, task: Task, seed: int, path: Path, where: Where, *teachers: Run | Failed) -> None:
    """Train and measure a network, and write its file."""
    plan = plan_of(space, task, seed, where)
    lost = next((teacher for teacher in teachers if isinstance(teacher, Failed)), None)
    if lost is not None:
        _write(path, plan, failed=f"its teacher failed: {lost.reason}")
        return
    teacher = teachers[0] if teachers else None
    config = space.config(task.point, seed, teacher and teacher.saved_model)
    until = task.epochs and min(task.epochs * config.evaluate_every, config.steps)
    run = _trained(space.recipe, functools.partial(space.recipe.run, config, size=space.size, until=until), where)
    if isinstance(run, Failed):
        _write(path, plan, failed=run.reason)
        return
    values, examples = _measured(space.recipe, config, run, where) if run.metrics else ({}, {})
    if until is not None:
        history = run.history()
        at = int(np.flatnonzero(history["step"] == until)[0])
        values["paused"] = {name: float(history[f"val_{name}"][at]) for name in ("nll", "accuracy", "ece")}
    _write(
        path,
        plan,
        config=json.loads((run.folder / "config.json").read_text(encoding="utf-8"))["config"],
        folder=f"{space.recipe.name}/{run.folder.name}",
        seconds=run.metrics.get("seconds"),
        values=values,
        examples=examples,
        teacher={name: teacher.metrics["held_out"][name] for name in ("accuracy", "nll")} if teacher else {},
    )


def read(path: Path, plan: str) -> Measured | None:
    """Read a network's file; None if there is none that was made by this plan, or only a damaged one."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            plain = json.loads(str(stored["plain"]))
            if plain.pop("plan") != plan:
                return None
            examples: dict[str, dict[str, np.ndarray]] = {}
            for name in stored.files:
                if name != "plain":
                    split, _, quantity = name.partition("|")
                    examples.setdefault(split, {})[quantity] = stored[name]
    except DAMAGE:
        return None
    return Measured(**plain, examples=examples)


def _trained(recipe: Recipe, run: Callable[..., Run], where: Where) -> Run | Failed:
    """Run, or wait for the process that trains this network now; but for a disk's, all failures are of the point."""
    while True:
        try:
            return run(where=where)
        except Taken:
            time.sleep(_ASK_EVERY)
        except OSError:
            raise
        except Exception as problem:
            return Failed(f"{recipe.name}: {explained(problem)}")


def explained(problem: Exception) -> str:
    """Return an error's sentence; of those that have none, their kind, too."""
    said = artifact.reason(problem)
    return said if isinstance(problem, ValueError | FloatingPointError) else f"{type(problem).__name__}: {said}"


def _measured(
    recipe: Recipe, config: Any, run: Run, where: Where
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]]]:
    """Measure a finished network: held-out examples with T fitted on one half for the other, the rest with all's T."""
    from ls_keras import analysis  # noqa: PLC0415 (TensorFlow)

    dataset = driver.data_of(recipe, config, run, where)
    probe = analysis.Probe(run.saved_model)
    values, examples, temperature = {}, {}, None
    for split in ("held_out", "test"):
        if not dataset.size(split):
            continue
        found = probe.collect(dataset.evaluation(split, _BATCH))
        numbers, rows = measures.statistics(found.logits, found.labels, temperature)
        values[split] = {name: numbers[own] for name, own in QUANTITIES.items()}
        examples[split] = {name: rows[own].astype(np.float32) for name, own in QUANTITIES.items()}
        if split == "held_out":
            temperature = calibration.fit_temperature(found.logits, found.labels).temperature
            values[split]["temperature"] = temperature
    return values, examples


def _write(path: Path, plan: str, **content: Any) -> None:
    empty = {field.name: {} for field in dataclasses.fields(Measured)}
    plain = {**empty, "folder": "", "seconds": None, "failed": "", **content, "plan": plan}
    arrays = {f"{split}|{name}": rows for split, each in plain.pop("examples").items() for name, rows in each.items()}
    with writing(path.parent), files.beside(path) as temporary:
        np.savez_compressed(temporary, plain=json.dumps(plain), **arrays)


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))
