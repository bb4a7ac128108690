"""A sweep from its question to its tables: alone on this machine, as chief of several, or as one of their workers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ls_keras import experiment, files, plots
from ls_keras.experiment import Job, Recipe, Where, check_whole, say, unknown
from ls_keras.experiment.folder import locked, writing
from ls_keras.study.driver import about, made
from ls_keras.sweeps import networks, space, tables
from ls_keras.sweeps.space import TEACHER, Between, Space, Task

import numpy as np
from tqdm import tqdm

if TYPE_CHECKING:  # a finished sweep is shown without TensorFlow
    from ls_keras.data import Dataset
    from ls_keras.sweeps.oracles import Ledger, Remote

FORMAT = "ls_keras sweep 1"
ALGORITHMS = ("grid", "random", "bayesian", "hyperband")
_LONGEST_NAME = 120
# KerasTuner's Hyperband keeps one of so many.
_FACTOR = 3
_TICK = 0.2
# Values of a field that are built before any training.
_MOST_BUILT = 10
# That KerasTuner and NumPy take.
_MOST_SEED = 2**31 - 2


@dataclass(frozen=True)
class Plan:
    """What is swept and how; two equal plans are one sweep.

    Attributes:
        space: Fields and values.
        seeds: Networks of each point.
        algorithm: One of `ALGORITHMS`.
        objective: One of `tables.OBJECTIVES`.
        trials: The most points, of random and Bayesian search.
        search_seed: Of what the search draws.
    """

    space: Space
    seeds: int = 5
    algorithm: str = "grid"
    objective: str = "nll"
    trials: int | None = None
    search_seed: int = 0

    def content(self, precision: str) -> dict[str, Any]:
        """Return the plan as JSON."""
        teacher = self.space.teacher
        return {
            "recipe": self.space.recipe.name,
            "size": self.space.size,
            "teacher": [teacher[0].name, teacher[1]] if teacher else None,
            "over": {field: _plain(values) for field, values in self.space.axes.items()},
            "seeds": self.seeds,
            "algorithm": self.algorithm,
            "objective": self.objective,
            "trials": self.trials,
            "search_seed": self.search_seed,
            "precision": precision,
        }

    def name(self, precision: str) -> str:
        """Return the folder's name: the size, the fields and a digest of everything."""
        fields = "".join(f"-{field}" for field in self.space.varied)
        digest = hashlib.sha256(json.dumps(self.content(precision), sort_keys=True).encode()).hexdigest()[:8]
        name = f"{self.space.size}{fields}"
        return f"{name.encode()[:_LONGEST_NAME].decode(errors='ignore')}-{self.algorithm}-{digest}"


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    Attributes:
        folder: Holds `records.json`, `table.csv`, `table.md`, `sweep.png` and `sweep.pdf`.
        rows: A row a point.
        objective: By which they were compared.
        varied: The fields that had more than one value.
    """

    folder: Path
    rows: list[tables.Row]
    objective: str
    varied: tuple[str, ...]

    @property
    def best(self) -> list[tables.Row]:
        """Return the best point, and then all that cannot be told from it."""
        whole = [row for row in tables.ranked(self.rows, self.objective) if row.estimates]
        return [row for row in whole if row.standing != "worse"]

    @property
    def failed(self) -> list[tables.Row]:
        """Return the points that could not be trained."""
        return [row for row in self.rows if row.standing == "failed"]

    def failures(self) -> str:
        """Say of each point that failed why."""
        return "\n".join(f"{space.describe(row.point)}: {row.reason}" for row in self.failed)

    def __str__(self) -> str:
        text = tables.to_text(self.rows, self.varied, self.objective)
        if not self.best:
            return text
        point = space.describe({field: self.best[0].point[field] for field in self.varied})
        text += f"\n\nchosen on held-out examples: {point}"
        if any(row.standing == "one seed" for row in self.rows):
            return f"{text}; one seed shows no interval, so that no other point can be told from it"
        alike = len(self.best) - 1
        if not alike:
            return f"{text}; it can be told from every other point"
        return f"{text}; {alike} other point{'s' * (alike > 1)} cannot be told from it"


def sweep(
    recipe: Recipe,
    *,
    over: Mapping[str, Any],
    seeds: int = 5,
    size: str | None = None,
    teacher_over: Mapping[str, Any] | None = None,
    teacher_recipe: Recipe | None = None,
    teacher_size: str | None = None,
    algorithm: str = "grid",
    objective: str = "nll",
    trials: int | None = None,
    search_seed: int = 0,
    name: str | None = None,
    where: Where | None = None,
) -> Swept | None:
    """Train a recipe's networks at many points, compare them on held-out examples, and write tables and a figure.

    Ended at any moment, the same call goes on; what is trained and measured stays. Where KerasTuner's variables
    KERASTUNER_TUNER_ID, KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT are set, the process is the chief of others,
    or one of its workers; all need the same arguments and one `where.workdir` that they share.

    Args:
        recipe: How networks are trained; fields that are not swept are those of `size`. What a size observes during
            training is left out: sweeps show the end.
        over: By field its values: a sequence, `Between(low, high, log=False)`, or text as a command line has it
            (`"0,0.05,0.1"`, `"0.01:1:log"`, `"50x50,100x100"` for widths). One value alone fixes the field.
        seeds: Networks of each point, at least 1; with one, points cannot be told apart.
        size: None is the recipe's first size.
        teacher_over: Fields of teachers, in the same form: for each point of theirs and each seed a teacher is
            trained, then its students, whose fields are `over`.
        teacher_recipe: How teachers are trained; None is `recipe`.
        teacher_size: The size they start from; None is `size`.
        algorithm: `grid` takes all points; `random` and `bayesian` as many as `trials`; `hyperband` trains many points
            a little and the better ones longer, by the evaluations of the recipe.
        objective: `nll` (of hard labels, never smoothed), `accuracy`, `ece` (bias-reduced) or `nll_at_temperature`, on
            held-out examples.
        trials: The most points of random and Bayesian search; None is 20.
        search_seed: Of what these draw.
        name: The folder's name below `<workdir>/sweep/<recipe>/`; None makes one from the plan.
        where: Folders, devices and precision.

    Returns:
        The finished sweep; None for a worker, whose chief has it.

    Raises:
        ValueError: A field that the recipe has not, values that it refuses, a point that is given twice, an objective
            that is not measured, nothing held out, or a folder that holds another sweep; before any training.
        ConnectionError: No chief answers a worker.
        OSError: A folder that cannot be written, or data that are missing.

    Example:
        >>> found = sweep(RECIPE, over={"alpha": (0, 0.05, 0.1)}, seeds=5, size="digits")
        >>> [dict(row.point) for row in found.best]
    """
    where = where or Where()
    swept = space.space(recipe, size, over, teacher_over, teacher_recipe, teacher_size)
    plan = _checked(Plan(swept, seeds, algorithm, objective, _trials(algorithm, trials), search_seed))
    folder = where.workdir / "sweep" / recipe.name / _named(name, plan, where)
    content = plan.content(where.precision)
    _require_same(folder, content)
    finished = _finished(plan, folder, where)
    if finished is not None:
        say(f"{folder}: finished before", where)
        return _publish(plan, finished, folder, where)
    experiment.check_alone(where)
    swept.check()
    from ls_keras.experiment.run import check_where  # noqa: PLC0415 (TensorFlow, in seconds)
    from ls_keras.sweeps import oracles  # noqa: PLC0415 (TensorFlow, in seconds)

    check_where(where, observed=False)
    role = oracles.role()
    if role is not None and not role.chief:
        _work_for_chief(plan, role, folder, where)
        return None
    data = _tried(plan, where)
    _require_same_data(folder, data)
    with writing(folder):
        (folder / "measured").mkdir(parents=True, exist_ok=True)
    with locked(folder):
        files.remove_abandoned(folder / "measured")
        with writing(folder):
            begun = {"format": FORMAT, **content, "data": data}
            files.replace(folder / "sweep.json", json.dumps(begun, indent=1) + "\n")
        new = oracles.oracle(
            swept,
            algorithm,
            trials=plan.trials,
            direction=tables.OBJECTIVES[objective],
            seed=search_seed,
            epochs=_evaluations(swept),
        )
        score = functools.partial(_score, plan, folder, where)
        with contextlib.closing(
            oracles.Ledger(new, folder / "trials.jsonl", score, swept, chief=role is not None)
        ) as ledger:
            before = sum(status == "COMPLETED" for _, status in ledger.tasks())
            say(_announced(plan, before, folder, role and role.address), where)
            if role is None:
                _work(plan, ledger, folder, where, "local", before)
            else:
                _lead(plan, ledger, role.address, where)
            tasks = [task for task, _ in ledger.tasks()]
        _write_records(plan, tasks, folder, where, data)
        return _publish(plan, tasks, folder, where)


def _trials(algorithm: str, trials: int | None) -> int | None:
    if algorithm in ("random", "bayesian"):
        return 20 if trials is None else trials
    if trials is not None:
        raise ValueError(f"trials cannot act with {algorithm} search, which takes the points that it needs.")
    return None


def _checked(plan: Plan) -> Plan:
    if plan.algorithm not in ALGORITHMS:
        raise ValueError(unknown("algorithm", str(plan.algorithm), dict.fromkeys(ALGORITHMS)))
    if plan.objective not in tuple(tables.OBJECTIVES):
        raise ValueError(unknown("objective", str(plan.objective), tables.OBJECTIVES))
    check_whole("seeds", plan.seeds, 1)
    check_whole("search_seed", plan.search_seed, 0)
    if plan.search_seed > _MOST_SEED:
        raise ValueError(f"`search_seed` must be at most {_MOST_SEED}; received {plan.search_seed}.")
    ranges = [field for field, values in plan.space.axes.items() if isinstance(values, Between)]
    if plan.algorithm == "grid" and ranges:
        raise ValueError(f"a grid needs values, not the range of {', '.join(ranges)}: list some, or search at random.")
    number = plan.space.number
    if plan.trials is not None:
        check_whole("trials", plan.trials, 1)
        if plan.trials >= number:
            raise ValueError(f"{plan.trials} trials are no fewer than the {number} points there are: sweep the grid.")
    if plan.algorithm == "hyperband":
        plan.space.check()
        _check_hyperband(plan, number)
    whole = {name: getattr(plan, name) for name in ("seeds", "trials", "search_seed")}
    return dataclasses.replace(plan, **{name: None if value is None else int(value) for name, value in whole.items()})


def _check_hyperband(plan: Plan, number: float) -> None:
    if plan.objective not in ("nll", "accuracy"):
        raise ValueError(
            "hyperband compares networks in training, where no temperature is fitted and ECE is not bias-reduced: take "
            "nll or accuracy."
        )
    swept = {"steps", "evaluate_every", "batch_size"} & set(plan.space.varied)
    if swept:
        raise ValueError(
            f"hyperband counts evaluations, of which {', '.join(sorted(swept))} would make others: fix it."
        )
    needed = _hyperband_points(_evaluations(plan.space))
    if number < needed:
        raise ValueError(
            f"hyperband draws {needed} points for {_evaluations(plan.space)} evaluations, and there are {number}: give "
            "more, or sweep the grid."
        )


def _hyperband_points(evaluations: int) -> int:
    """Return how many points all brackets begin with."""
    brackets, left = 0, float(evaluations)
    while left >= 1:
        left, brackets = left / _FACTOR, brackets + 1
    last = math.ceil(1 + math.log(evaluations, _FACTOR))
    return sum(math.ceil(last / (k + 1) * _FACTOR**k) for k in range(brackets))


def _evaluations(swept: Space) -> int:
    config = swept.config(_first_point(swept), 0)
    return config.steps // config.evaluate_every


def _tried(plan: Plan, where: Where) -> dict[str, Any]:
    """Load the data and build a network for each value, so that what no check refuses is told before any training."""
    swept = plan.space
    first = _first_point(swept)
    data = _load(plan, first, where)
    of_data = {*data.describe(), "dataset"}
    for field, values in swept.axes.items():
        every = (values.low, values.high) if isinstance(values, Between) else values
        for value in every if len(every) <= _MOST_BUILT or field in of_data else (every[0], every[-1]):
            point = {**first, field: value}
            recipe, config, own = swept.recipe, swept.config(point, 0), data
            if field in of_data:
                own = _load(plan, point, where)
                _require_same_examples(data, own, f"{field} = {space.shown(value)}")
            if field.startswith(TEACHER):
                recipe, config = swept.teacher[0], swept.teacher_config(point, 0)
                own = recipe.load_data(config, where.data_dir)
            try:
                recipe.build_model(config, own)
            except OSError:
                raise
            except Exception as problem:
                said = networks.explained(problem)
                raise ValueError(f"The point {space.describe(point)} cannot be trained: {said}") from problem
    return about(data)


def _require_same_examples(data: Dataset, other: Dataset, what: str) -> None:
    """Refuse to compare points on different examples; without labels that can be compared, sizes must do."""
    for split in ("held_out", "test"):
        same = data.size(split) == other.size(split)
        if same and hasattr(data, "labels"):
            same = np.array_equal(data.labels(split), other.labels(split))
        if not same:
            raise ValueError(
                f"With {what} the {split.replace('_', '-')} examples are others, and networks are compared on the same "
                "ones: fix this field, and sweep once for each of its values."
            )


def _first_point(swept: Space) -> dict[str, Any]:
    return {field: values.low if isinstance(values, Between) else values[0] for field, values in swept.axes.items()}


def _load(plan: Plan, point: space.Point, where: Where) -> Dataset:
    data = plan.space.recipe.load_data(plan.space.config(point, 0), where.data_dir)
    if not data.size("held_out"):
        raise ValueError(
            f"{plan.space.recipe.name} at {space.describe(point)} holds no training examples out to choose points on, "
            "and test examples are for the chosen point alone: give --over held_out_size=NUMBER."
        )
    return data


def _announced(plan: Plan, before: int, folder: Path, address: str | None) -> str:
    number = plan.trials if plan.trials is not None else "Hyperband's" if plan.algorithm == "hyperband" else None
    number = len(plan.space.points()) if number is None else number
    text = f"{number} points, {plan.seeds} seed{'s' * (plan.seeds > 1)} each, by held-out {plan.objective}: {before} "
    text += f"finished before; records go to {folder}"
    return text if address is None else f"{text}\nwaiting for workers at {address}: the same command, with other names"


class _Work:
    """The trials that this process does: jobs for its cores, and the end of each trial when its networks are there."""

    def __init__(self, plan: Plan, ledger: Ledger | Remote, folder: Path, where: Where, worker: str) -> None:
        self.plan, self.ledger, self.folder, self.where, self.worker = plan, ledger, folder, where, worker
        self.quiet = Where(**{**vars(where), "quiet": True})
        cores = experiment.side_by_side(where)
        # Of a list enough that no core waits for a teacher; a search that learns chooses as late as it can.
        self.most = cores if plan.algorithm in ("bayesian", "hyperband") else 4 * cores
        self.slots: dict[int, tuple[Any, set[int]]] = {}
        self.teachers: set[Any] = set()

    def jobs(self) -> Iterator[Job | None]:
        """Give jobs until the search is over."""
        while True:
            slot = next(k for k in range(self.most + 1) if k not in self.slots)
            if slot == self.most:
                yield None
                continue
            trial = self.ledger.create_trial(f"{self.worker}/{slot}")
            if trial.status == "STOPPED":
                return
            if trial.status == "IDLE":
                yield None
                continue
            task = self.ledger.task(trial)
            missing = {seed for seed in range(self.plan.seeds) if not _is_there(self.plan, task, seed, self)}
            self.slots[slot] = (trial, missing)
            if not missing:
                self._end(slot)
            for seed in sorted(missing):
                yield from self._network(slot, task, seed)

    def _network(self, slot: int, task: Task, seed: int) -> Iterator[Job]:
        after: tuple[Any, ...] = ()
        if self.plan.space.teacher is not None:
            teacher = ("teacher", str(self.plan.space.teacher_config(task.point, seed)))
            if teacher not in self.teachers:
                self.teachers.add(teacher)
                yield Job(teacher, functools.partial(networks.train_teacher, self.plan.space, task, seed, self.quiet))
            after = (teacher,)
        path = networks.path_of(self.folder, task, seed)
        call = functools.partial(networks.train, self.plan.space, task, seed, path, self.quiet)
        yield Job((slot, task.name, seed), call, after)

    def done(self, name: Any) -> None:
        """Take note that a job is done."""
        if name[0] == "teacher":
            return
        slot, _, seed = name
        self.slots[slot][1].discard(seed)
        if not self.slots[slot][1]:
            self._end(slot)

    def _end(self, slot: int) -> None:
        trial, _ = self.slots.pop(slot)
        self.ledger.end_trial(trial)


def _is_there(plan: Plan, task: Task, seed: int, work: _Work) -> bool:
    found = networks.read(
        networks.path_of(work.folder, task, seed), networks.plan_of(plan.space, task, seed, work.where)
    )
    return found is not None and not found.failed


def _work(
    plan: Plan, ledger: Ledger | Remote, folder: Path, where: Where, worker: str, before: int | None = None
) -> None:
    work = _Work(plan, ledger, folder, where, worker)
    total = None
    if before is not None and plan.algorithm != "hyperband":
        total = plan.seeds * ((plan.trials or len(plan.space.points())) - before)
        if plan.space.teacher is not None and not before and plan.algorithm == "grid":
            of_teachers = [len(values) for field, values in plan.space.axes.items() if field.startswith(TEACHER)]
            total += plan.seeds * math.prod(of_teachers)
    for name, _ in experiment.finish(work.jobs(), where, what="networks", total=total):
        work.done(name)


def _work_for_chief(plan: Plan, role: Any, folder: Path, where: Where) -> None:
    from ls_keras.sweeps import oracles  # noqa: PLC0415 (TensorFlow)

    say(f"{role.name}: asking the chief at {role.address} for points", where)
    with contextlib.closing(oracles.Remote(role, plan.space, where.wait_minutes)) as ledger:
        ledger.connect()
        if not (folder / "sweep.json").exists():
            raise ValueError(
                f"{folder / 'sweep.json'}, which the chief has written, is not to be seen from here: give all "
                "processes the same command and one --workdir that they share."
            )
        _require_same(folder, plan.content(where.precision))
        _require_same_data(folder, about(_load(plan, _first_point(plan.space), where)))
        _work(plan, ledger, folder, where, role.name)
    say(f"{role.name}: done; the chief has the tables", where)


def _lead(plan: Plan, ledger: Ledger, address: str, where: Where) -> None:
    from ls_keras.sweeps import oracles  # noqa: PLC0415 (TensorFlow)

    total = None if plan.algorithm == "hyperband" else plan.trials or len(plan.space.points())
    alive = 0
    with (
        oracles.serving(ledger, address),
        tqdm(total=total, desc="points", unit="point", leave=False, disable=where.quiet) as bar,
    ):
        while not ledger.over():
            ended = sum(status in ("COMPLETED", "FAILED") for _, status in ledger.tasks())
            before, alive = alive, ledger.workers()
            if (ended, alive) != (bar.n, before):
                bar.n = ended
                bar.set_postfix(workers=alive)
            if before and not alive and not ledger.over():
                say("no worker gives signs of life any more: begin some by the same command", where)
            time.sleep(_TICK)


def _score(plan: Plan, folder: Path, where: Where, task: Task) -> float | str:
    """Return the mean of the objective over a trial's networks, or why one of them could not be trained."""
    values = []
    for seed in range(plan.seeds):
        found = _measured(plan, task, seed, folder, where)
        if found.failed:
            return found.failed
        values.append(found.values["paused" if task.epochs else "held_out"][plan.objective])
    return sum(values) / len(values)


def _networks(plan: Plan, task: Task, folder: Path, where: Where) -> dict[int, networks.Measured]:
    return {seed: _measured(plan, task, seed, folder, where) for seed in range(plan.seeds)}


def _measured(plan: Plan, task: Task, seed: int, folder: Path, where: Where) -> networks.Measured:
    path = networks.path_of(folder, task, seed)
    found = networks.read(path, networks.plan_of(plan.space, task, seed, where))
    if found is None:
        raise FileNotFoundError(
            f"{path} is not there, is damaged, or was made by another version: give the same command again, and all "
            "processes one --workdir that they share."
        )
    return found


def _found(plan: Plan, tasks: list[Task], folder: Path, where: Where) -> list[tuple[str, Any, Any, str]]:
    """Return each point with its networks; of a point that Hyperband went on with, the last."""
    last = {json.dumps(_plain(dict(task.point))): task for task in tasks}
    found = []
    for task in last.values():
        own = _networks(plan, task, folder, where)
        reason = _reasons(own)
        if not reason and any("held_out" not in each.values for each in own.values()):
            reason = f"paused after {task.epochs} evaluations"
        found.append((task.name, task.point, own, reason))
    return found


def _reasons(own: Mapping[int, networks.Measured]) -> str:
    """Say why networks of a point failed, each reason once."""
    seeds: dict[str, list[str]] = {}
    for seed, each in own.items():
        if each.failed:
            seeds.setdefault(each.failed, []).append(str(seed))
    return "; ".join(f"seed{'s' * (len(who) > 1)} {', '.join(who)}: {reason}" for reason, who in seeds.items())


def _publish(plan: Plan, tasks: list[Task], folder: Path, where: Where) -> Swept:
    """Write tables and figure from what networks left."""
    varied = tuple(plan.space.varied) or tuple(plan.space.axes)
    rows = tables.rows(_found(plan, tasks, folder, where), plan.objective)
    swept = Swept(folder, rows, plan.objective, varied)
    title = f"# {plan.space.recipe.name} {plan.space.size}: {', '.join(varied)}"
    fixed = [f for f in plan.space.axes if f not in varied]
    if fixed:
        title += f"\n\nFixed: {space.describe({f: plan.space.axes[f][0] for f in fixed})}."
    with writing(folder):
        files.replace(folder / "table.csv", tables.to_csv(rows))
        files.replace(folder / "table.md", tables.to_markdown(rows, varied, plan.objective, title))
        drawn = tables.figure(rows, plan.space.axes, varied, plan.objective)
        for ending in ("png", "pdf"):
            (folder / f"sweep.{ending}").unlink(missing_ok=True)
            if drawn is not None:
                plots.save(drawn, folder / f"sweep.{ending}")
    return swept


def _write_records(plan: Plan, tasks: list[Task], folder: Path, where: Where, data: dict[str, Any]) -> None:
    """Write every network's numbers, last of all: it means that the sweep is done."""
    records = []
    for task in tasks:
        for seed, each in _networks(plan, task, folder, where).items():
            records.append(
                {
                    "trial": task.name,
                    "epochs": task.epochs,
                    "point": _plain(dict(task.point)),
                    "seed": seed,
                    "failed": each.failed or None,
                    "folder": each.folder,
                    "seconds": each.seconds,
                    "teacher": each.teacher or None,
                    "values": each.values,
                    "config": each.config,
                }
            )
    content = {
        "format": FORMAT,
        "sweep": plan.content(where.precision),
        "data": data,
        "made": made(),
        "networks": records,
    }
    with writing(folder):
        files.replace(folder / "records.json", json.dumps(content, indent=1, default=str) + "\n")


def _finished(plan: Plan, folder: Path, where: Where) -> list[Task] | None:
    """Return the trials of a sweep that is done, if all of its networks are there."""
    path = folder / "records.json"
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))["networks"]
        tasks = {record["trial"]: _stored_task(plan, record) for record in stored}
        failed = any(record["failed"] for record in stored)
        for task in tasks.values():
            _networks(plan, task, folder, where)
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, StopIteration):
        return None  # is made again
    return None if failed else list(tasks.values())


def _stored_task(plan: Plan, record: Mapping[str, Any]) -> Task:
    point = {
        field: value if isinstance(plan.space.axes[field], Between) else _listed(plan.space.axes[field], value)
        for field, value in record["point"].items()
    }
    return Task(record["trial"], point, record["epochs"])


def _listed(values: tuple[Any, ...], plain: Any) -> Any:
    return next(value for value in values if _plain(value) == plain)


def _named(name: str | None, plan: Plan, where: Where) -> str:
    if name is None:
        return plan.name(where.precision)
    if not isinstance(name, str) or not name.isprintable() or name in ("", ".", "..") or Path(name).name != name:
        raise ValueError(f"a sweep's name is that of one folder; received {name!r}.")
    return name


def _require_same_data(folder: Path, data: dict[str, Any]) -> None:
    """Refuse to compare networks that saw other examples."""
    path = folder / "sweep.json"
    before = json.loads(path.read_text(encoding="utf-8")).get("data", data) if path.exists() else data
    if before["fingerprint"] != data["fingerprint"]:
        raise ValueError(
            f"{folder} was begun with other data: {before['name']} from {before['origin']}, and here they are from "
            f"{data['origin']}. Bring them back by --data-dir, or choose another --name."
        )


def _require_same(folder: Path, content: dict[str, Any]) -> None:
    path = folder / "sweep.json"
    if not path.exists():
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{path} is damaged ({problem}): remove it, or choose another --name.") from problem
    differing = [
        f"{name} is {before.get(name)!r} there and {value!r} here"
        for name, value in content.items()
        if before.get(name) != value
    ]
    if differing:
        raise ValueError(f"{folder} holds another sweep: {'; '.join(differing)}. Choose another --name.")


def _plain(value: Any) -> Any:
    if isinstance(value, Between):
        return {"low": value.low, "high": value.high, "log": value.log}
    return json.loads(json.dumps(value, default=str))
