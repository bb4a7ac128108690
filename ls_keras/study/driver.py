"""One driver for all studies: check everything, say what comes, train and measure all in one pool, keep the records."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ls_keras import analysis, data, experiment
from ls_keras.experiment import Recipe, Where, label, say
from ls_keras.experiment.folder import Taken
from ls_keras.study import identities, measures
from ls_keras.study.records import Measured, Record, read, write

import numpy as np

if TYPE_CHECKING:  # what is measured already is judged without TensorFlow
    from ls_keras.data import Dataset
    from ls_keras.experiment import Job, Run

# Part of every plan: another number, and everything is measured anew.
_MEASURES = 2
# Examples on which identities are checked.
_EXACT = 1_000
# Seconds until a network that another study trains is asked for again.
_ASK_EVERY = 2.0
# Seconds between two writings of what was measured so far.
_KEEP_EVERY = 30.0


class Make(Protocol):
    """Gives the config of one network, and numbers to remember, from networks that are finished.

    A frozen dataclass, so that it can be sent to another process and is part of a plan.

    Attributes:
        config: What all of an arm's networks share, without seed and teacher; data are loaded and steps timed by it.
    """

    config: Any

    def __call__(self, seed: int, where: Where, *before: Done) -> tuple[Any, dict[str, float]]: ...


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A config that waits for nothing; each network has its own seed."""

    config: Any
    facts: tuple[tuple[str, float], ...] = ()

    def __call__(self, seed: int, where: Where, *before: Done) -> tuple[Any, dict[str, float]]:
        return dataclasses.replace(self.config, seed=seed), dict(self.facts)


@dataclasses.dataclass(frozen=True)
class Arm:
    """Networks that differ in their seed alone.

    Attributes:
        name: What pages call it.
        recipe: How they are trained.
        size: The size of the recipe that their config started from.
        make: Gives the config of each.
        after: Arms whose networks of the same seed `make` is given.
        shapes_by: The arm whose network of the same seed chooses the similar classes of claims C1 to C4; None for
            networks of which only outputs are measured.
        shown: Whether its first network is kept for Figure 1.
    """

    name: str
    recipe: Recipe
    size: str
    make: Make
    after: tuple[str, ...] = ()
    shapes_by: str | None = None
    shown: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms, and the seeds of each.

    Attributes:
        name: The first part of its folder.
        config: The Config that it was made from.
        arms: In the order of training; an arm comes after those that it waits for.
        seeds: One network of each arm for each.
    """

    name: str
    config: Any
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Done:
    """A finished and measured network."""

    saved_model: Path
    classes: tuple[int, int, int] | None
    record: Record
    data: dict[str, Any]


def run(study: Study, folder: Path, where: Where) -> Measured:
    """Train and measure what is missing, and keep the records in a folder.

    What was measured before by the same plan is not trained again, whether or not its network still lies there; what
    is measured is kept at least twice a minute, also when a signal or an error ends it.

    Args:
        study: What to train.
        folder: Receives `measured.json` and `measured.npz`.
        where: Folders and devices.

    Returns:
        The records of all networks.

    Raises:
        ValueError: A config that cannot be meant, before any work; a folder that holds another study.
        OSError: Data that are neither here nor to be downloaded, before any work.
    """
    _check_names(study)
    kept = _kept(study, folder)
    plans = {(arm.name, seed): _plan(study, arm, seed, where) for arm in study.arms for seed in study.seeds}
    have = {(record.arm, record.seed): record for record in (kept.records if kept else ())}
    have = {name: record for name, record in have.items() if plans.get(name) == record.plan}
    if len(have) == len(plans):
        return dataclasses.replace(kept, records=tuple(have[name] for name in plans))
    wanted = _needed(study, have)
    _check(wanted)
    _bring_data(wanted, where)
    jobs = _jobs(study, wanted, plans, where)
    say(
        f"{len(plans)} networks: {len(have)} measured before, {len(jobs)} to train or to find finished; records go to "
        f"{folder}",
        where,
    )
    about_data = kept.data if kept else {}
    written = time.monotonic()
    try:
        for name, done in experiment.finish(jobs, where, what="networks"):
            _require_same_data(about_data, done.data)
            have[name], about_data = done.record, done.data
            if time.monotonic() - written > _KEEP_EVERY:
                write(_measured(study, about_data, plans, have), folder)
                written = time.monotonic()
    finally:
        if have and about_data:
            write(_measured(study, about_data, plans, have), folder)
    return _measured(study, about_data, plans, have)


def _require_same_data(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to pair examples of two data sets."""
    if before and before.get("fingerprint") != now.get("fingerprint"):
        raise ValueError(
            f"Networks of one study must see the same examples: {before['name']} from {before['origin']} and from "
            f"{now['origin']} differ. Name the files of those that are measured with --data-dir, or choose another "
            "--workdir."
        )


def networks(study: Study, folder: Path, where: Where) -> list[tuple[Arm, int, float]]:
    """Return each arm, how many of its networks are neither measured nor finished, and the seconds of one that is."""
    kept, found = _kept(study, folder), []
    have = {(record.arm, record.seed): record for record in (kept.records if kept else ())}
    for arm in study.arms:
        parent = where.workdir / arm.recipe.name
        seconds, missing = [], 0
        for seed in study.seeds:
            record = have.get((arm.name, seed))
            if record is not None and record.plan == _plan(study, arm, seed, where):
                seconds.append(record.seconds)
                continue
            metrics = None
            if not arm.after:
                config, _ = arm.make(seed, where)
                metrics = parent / label(config, arm.size, arm.recipe.sizes) / "metrics.json"
            if metrics and metrics.exists():
                seconds.append(json.loads(metrics.read_text()).get("seconds", math.nan))
            else:
                missing += 1
        found.append((arm, missing, float(np.mean(seconds)) if seconds else math.nan))
    return found


def _check_names(study: Study) -> None:
    names = [arm.name for arm in study.arms]
    if len(set(names)) < len(names):
        raise ValueError(f"Every arm needs a name of its own; received {', '.join(names)}.")


def _check(wanted: Sequence[tuple[Arm, int]]) -> None:
    for arm in {arm.name: arm for arm, _ in wanted}.values():
        if not arm.after:
            arm.recipe.checked(arm.make.config, arm.size)


def _bring_data(wanted: Sequence[tuple[Arm, int]], where: Where) -> None:
    """Load all data once, so that the networks' processes do not download at the same time what is missing."""
    seen = set()
    for arm, _ in wanted:
        name = arm.recipe.name, getattr(arm.make.config, "dataset", None)
        if name not in seen:
            arm.recipe.load_data(arm.make.config, where.data_dir)
            seen.add(name)


def _kept(study: Study, folder: Path) -> Measured | None:
    if not (folder / "measured.json").exists():
        return None
    kept = read(folder)
    if kept.study != study.name:
        raise ValueError(f"{folder} holds the study {kept.study!r} and not {study.name!r}: choose another --workdir.")
    return kept


def _needed(study: Study, have: dict[Any, Record]) -> list[tuple[Arm, int]]:
    """Return the networks that were not measured, and those that these wait for."""
    arms = {arm.name: arm for arm in study.arms}
    wanted = {(arm.name, seed) for arm in study.arms for seed in study.seeds} - have.keys()
    waiting = list(wanted)
    while waiting:
        name, seed = waiting.pop()
        for before in _before(arms[name]):
            if (before, seed) not in wanted:
                wanted.add((before, seed))
                waiting.append((before, seed))
    return [(arm, seed) for arm in study.arms for seed in study.seeds if (arm.name, seed) in wanted]


def _before(arm: Arm) -> tuple[str, ...]:
    chooser = arm.shapes_by
    return (*arm.after, *([chooser] if chooser not in (None, arm.name, *arm.after) else []))


def _jobs(study: Study, wanted: Sequence[tuple[Arm, int]], plans: dict[Any, str], where: Where) -> list[Job]:
    quiet = dataclasses.replace(where, quiet=True)
    return [
        experiment.Job(
            (arm.name, seed),
            functools.partial(
                _train_and_measure, arm, seed, plans[arm.name, seed], quiet, first=seed == study.seeds[0]
            ),
            tuple((name, seed) for name in _before(arm)),
        )
        for arm, seed in wanted
    ]


def _plan(study: Study, arm: Arm, seed: int, where: Where) -> str:
    """Return a digest of all that a network and its measurements depend on."""
    arms = {each.name: each for each in study.arms}
    parts = {
        "measures": _MEASURES,
        "recipe": arm.recipe.name,
        "size": arm.size,
        "make": [type(arm.make).__name__, _plain(arm.make)],
        "seed": seed,
        "precision": where.precision,
        "shapes": arm.shapes_by is not None,
        "shown": arm.shown and seed == study.seeds[0],
        "before": [_plan(study, arms[name], seed, where) for name in _before(arm)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _plain(make: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(make), default=str))


def _train_and_measure(arm: Arm, seed: int, plan: str, where: Where, *before: Done, first: bool) -> Done:
    config, facts = arm.make(seed, where, *before[: len(arm.after)])
    own = dataclasses.replace(where, snapshots=where.snapshots and bool(getattr(config, "observe_every", 0)))
    finished = _run(arm, config, own)
    dataset = data_of(arm.recipe, config, finished, where)
    chooser = None
    if arm.shapes_by not in (None, arm.name):
        chooser = before[-1] if arm.shapes_by not in arm.after else before[arm.after.index(arm.shapes_by)]
    record, classes = _measured_network(
        arm, seed, plan, finished, dataset, facts, chooser and chooser.classes, first=first
    )
    return Done(finished.saved_model, classes, record, about(dataset))


def _run(arm: Arm, config: Any, where: Where) -> Run:
    """Train a network, or wait for the other study that trains it now."""
    while True:
        try:
            return arm.recipe.run(config, size=arm.size, where=where)
        except Taken:
            time.sleep(_ASK_EVERY)


def _measured_network(
    arm: Arm,
    seed: int,
    plan: str,
    finished: Run,
    dataset: Dataset,
    facts: dict[str, float],
    classes: tuple[int, int, int] | None,
    *,
    first: bool,
) -> tuple[Record, tuple[int, int, int] | None]:
    probe = analysis.Probe(finished.saved_model)
    arrays: dict[str, np.ndarray] = {}
    if arm.shapes_by is None:
        held_out = probe.collect(dataset.evaluation(measures.held_out(dataset), 500))
        values, examples = measures.statistics(held_out.logits, held_out.labels)
    else:
        network = measures.collect(probe, arm.name, dataset, measures.MOST_OBSERVED)
        classes = classes or measures.similar_classes(network)
        values, examples = measures.statistics(network.held_out.logits, network.held_out.labels)
        values |= measures.shapes(network, classes)
        if arm.shown and first:
            arrays = _panels(network, classes)
    curves = _curves(finished)
    if "information" in curves:
        values |= measures.information_at(curves["steps"], curves["information"], curves["train_accuracy"])
    content = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    record = Record(
        arm.name,
        seed,
        plan,
        content["config"],
        facts,
        values,
        examples,
        curves,
        arrays,
        finished.metrics.get("seconds", math.nan),
        f"{arm.recipe.name}/{finished.folder.name}",
    )
    return record, classes


def _panels(network: measures.Network, chosen: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Return what Figure 1 shows of a network, in rows of the first three classes and of the chosen ones."""
    arrays = identities.errors(network.held_out.logits[:_EXACT], network.held_out.labels[:_EXACT])
    for row, classes in enumerate(((0, 1, 2), chosen)):
        arrays[f"classes {row}"] = np.array(classes)
        for split in ("train", "held_out"):
            for name, array in measures.panel(network, split, classes).items():
                arrays[f"{name} {row} {split}"] = array
    return arrays


def _curves(finished: Run) -> dict[str, np.ndarray]:
    history = finished.history()
    if "tightness" not in history:
        return {}
    observed = ("gamma", "held_out_ece", "tightness", "train_accuracy")
    names = [name for name in history if name in observed or name.startswith("information")]
    seen = ~np.isnan([history[name] for name in names]).any(axis=0)
    return {"steps": history["step"][seen], **{name: history[name][seen] for name in names}}


def data_of(recipe: Recipe, config: Any, finished: Run, where: Where) -> Dataset:
    """Return the data that a finished network was trained on, from memory if it is asked for again."""
    described = json.loads((finished.folder / "config.json").read_text(encoding="utf-8")).get("data", {})
    with contextlib.suppress(ValueError):  # of another loader
        return _rebuilt(json.dumps(described), where.data_dir)
    return recipe.load_data(config, where.data_dir)


@functools.lru_cache(maxsize=2)
def _rebuilt(described: str, data_dir: Path | None) -> Dataset:
    return data.rebuild(json.loads(described), data_dir)


def about(dataset: Dataset) -> dict[str, Any]:
    """Return what a page says of data."""
    options = getattr(dataset, "options", {})
    return {
        "name": dataset.name,
        "class_names": list(dataset.class_names),
        "splits": {split: dataset.size(split) for split in ("train", "held_out", "test")},
        "fingerprint": str(getattr(dataset, "fingerprint", "")),
        "observed": _observed(dataset),
        "origin": str(getattr(dataset, "origin", "")),
        "split_seed": options.get("split_seed"),
        "label_noise": options.get("label_noise", 0.0),
    }


def _observed(dataset: Dataset) -> int:
    """Return the number of examples that mutual information is about."""
    if not hasattr(dataset, "labels"):
        return 0
    labels = dataset.labels("train")
    return sum(min(measures.OBSERVED_EXAMPLES, int((labels == each).sum())) for each in measures.OBSERVED_PAIR)


def _measured(study: Study, about_data: dict[str, Any], plans: dict[Any, str], have: dict[Any, Record]) -> Measured:
    config = json.loads(json.dumps(dataclasses.asdict(study.config), default=str))
    return Measured(study.name, config, about_data, made(), tuple(have[name] for name in plans if name in have))


def made() -> dict[str, str]:
    """Return versions and machine."""
    versions = {name: sys.modules[name].__version__ for name in ("tensorflow", "keras", "numpy") if name in sys.modules}
    return {
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }
