"""Which point comes next: KerasTuner's oracles, made to survive kills, and its chief and workers, made to lose some.

KerasTuner keeps an oracle's state in several files, written one after the other and in place: a kill leaves some that
do not fit, its grid search cannot go on from any [keras-tuner#1055], and a worker that dies keeps its trial for ever.
An oracle is a function of its seed and of what it was told. So a `Ledger` writes that down, one line at a time, and
tells it to a new oracle again. This is the one module that uses what KerasTuner does not publish: its messages.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ls_keras.sweeps.space import Between, Point, Space, Task, rounded

import grpc
import keras_tuner
from keras_tuner.engine.trial import Trial, TrialStatus
from keras_tuner.src import protos
from keras_tuner.src.distribute.oracle_chief import OracleServicer

# Seconds between a worker's signs of life, and without one until its trials go to others.
HEARTBEAT, DEAD = 10.0, 40.0
# Of a trial of Hyperband: how many evaluations it is trained for.
_EPOCHS = "tuner/epochs"
# What every oracle minimises or maximises, and that of a point that failed, where Hyperband must throw it out.
_OBJECTIVE = "objective"
_WORST = 1e30
_HIGHEST_PORT = 65_535


class _Told:
    """An oracle that keeps nothing on the disk: a ledger does."""

    def save(self) -> None:
        """Write nothing."""

    def _save_trial(self, trial: Trial) -> None:
        """Write nothing."""


class _Grid(_Told, keras_tuner.Oracle):
    """All points in their order; KerasTuner's own cannot go on after it was ended."""

    def __init__(self, points: Sequence[Point], **options: Any) -> None:
        super().__init__(**options)
        self.points = points

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if len(self.trials) == len(self.points):
            return {"status": TrialStatus.STOPPED}
        return {"status": TrialStatus.RUNNING, "values": self.points[len(self.trials)]}


class _Random(_Told, keras_tuner.oracles.RandomSearchOracle):
    pass


class _Bayesian(_Told, keras_tuner.oracles.BayesianOptimizationOracle):
    pass


class _Hyperband(_Told, keras_tuner.oracles.HyperbandOracle):
    pass


def oracle(space: Space, algorithm: str, *, trials: int, direction: str, seed: int, epochs: int) -> keras_tuner.Oracle:
    """Return a new oracle.

    Listed values are given to it by their position, since numbers travel as float32 in KerasTuner's messages.

    Args:
        space: What is swept.
        algorithm: `grid`, `random`, `bayesian` or `hyperband`.
        trials: The most points, of random and Bayesian search.
        direction: `min` or `max`.
        seed: Of what is drawn.
        epochs: Evaluations of a whole training, for Hyperband.
    """
    hyperparameters = keras_tuner.HyperParameters()
    for field, values in space.axes.items():
        if isinstance(values, Between):
            kind = hyperparameters.Int if isinstance(values.low, int) else hyperparameters.Float
            kind(field, values.low, values.high, sampling="log" if values.log else "linear")
        else:
            hyperparameters.Choice(field, list(range(len(values))))
    options = {
        "objective": keras_tuner.Objective(_OBJECTIVE, direction),
        "hyperparameters": hyperparameters,
        "seed": seed + 1,  # KerasTuner draws one in the place of 0
        "max_consecutive_failed_trials": 2**31,  # each failure is told at the end
    }
    if algorithm == "grid":
        positions = [range(len(values)) for values in space.axes.values()]
        found = _Grid(_product(list(space.axes), positions), **options)
    elif algorithm == "hyperband":
        found = _Hyperband(max_epochs=epochs, **options)
    else:
        kind = {"random": _Random, "bayesian": _Bayesian}[algorithm]
        found = kind(max_trials=trials, **options)
    found.verbose = 0
    return found


def _product(fields: list[str], positions: list[range]) -> list[dict[str, int]]:
    points: list[dict[str, int]] = [{}]
    for field, each in zip(fields, positions, strict=True):
        points = [{**point, field: k} for point in points for k in each]
    return points


def _task(trial: Trial, space: Space) -> Task:
    point = {}
    for field, values in space.axes.items():
        given = trial.hyperparameters.values[field]
        point[field] = rounded(given) if isinstance(values, Between) else values[int(given)]
    return Task(trial.trial_id, point, trial.hyperparameters.values.get(_EPOCHS))


class Ledger:
    """An oracle, and the file that makes it again: who got which trial, and how each ended.

    Args:
        new: A new oracle.
        path: The file.
        score: Called with a task: its objective, or the reason why it failed; a FileNotFoundError says that what was
            measured of it is lost.
        space: What is swept.
        chief: Whether other processes do the work: then a trial whose worker is silent goes to another one.
    """

    def __init__(
        self,
        new: keras_tuner.Oracle,
        path: Path,
        score: Callable[[Task], float | str],
        space: Space,
        *,
        chief: bool = False,
    ) -> None:
        self.oracle, self.score, self.space, self.chief = new, score, space, chief
        self._lock = threading.RLock()
        # When each running trial's worker was last heard of.
        self._heard: dict[str, float] = {}
        # When each worker that was not told to stop was last heard of.
        self._asked: dict[str, float] = {}
        self._stopped = False
        with _quiet():
            self._replay(_read(path), path)
        self._file = path.open("ab")

    def _replay(self, events: list[dict[str, Any]], path: Path) -> None:
        """Tell a new oracle all that was told to the last one.

        What had not ended, has failed or is lost is open again; under Hyperband a failure counted, and is not.
        """
        holders = {}
        for event in events:
            name = event["trial"]
            if "end" not in event:
                trial = self.oracle.create_trial(name)
                if trial.trial_id != name or trial.status != TrialStatus.RUNNING:
                    raise ValueError(
                        f"{path} does not fit this version of KerasTuner (trial {name} is "
                        f"{trial.trial_id}, {trial.status}). Choose another --name; what is trained stays."
                    )
                trial.hyperparameters.values = event["values"]
                holders[name] = event["worker"]
            elif event["end"] == TrialStatus.COMPLETED or isinstance(self.oracle, _Hyperband):
                self._end(self.oracle.trials[name], event["score"] if "score" in event else event["reason"])
                if self._is_lost(self.oracle.trials[name]):
                    self.oracle.trials[name].status = TrialStatus.RUNNING
                    self.oracle.end_order.remove(name)
                    self.oracle.ongoing_trials[name] = self.oracle.trials[name]
                else:
                    del holders[name]
        for name in holders:
            del self.oracle.ongoing_trials[name]
        for name, worker in holders.items():
            # A worker that lives still has its trial: the chief alone was begun again.
            self._heard[name] = time.monotonic() if self.chief else -math.inf
            self.oracle.ongoing_trials[worker if worker not in self.oracle.ongoing_trials else name] = (
                self.oracle.trials[name]
            )

    def create_trial(self, worker: str) -> Trial:
        """Return the trial of a worker: the one it has, one that its worker left, or a new one."""
        with self._lock, _quiet():
            self._asked[worker.partition("/")[0]] = time.monotonic()
            ongoing = self.oracle.ongoing_trials
            if worker not in ongoing:
                left = next((other for other, trial in ongoing.items() if self._left(trial)), None)
                if left is not None:
                    ongoing[worker] = ongoing.pop(left)
            known = worker in ongoing
            trial = self.oracle.create_trial(worker)
            if trial.status == TrialStatus.RUNNING:
                self._heard[trial.trial_id] = time.monotonic() if self.chief else math.inf
                if not known:
                    values = trial.hyperparameters.values
                    self._write({"trial": trial.trial_id, "worker": worker, "values": values})
            elif trial.status == TrialStatus.STOPPED and ongoing:
                trial.status = TrialStatus.IDLE  # somebody may be needed to do another's
            elif trial.status == TrialStatus.STOPPED:
                self._stopped = True
                del self._asked[worker.partition("/")[0]]
            return trial

    def end_trial(self, trial: Trial) -> None:
        """Score a trial by what its networks left; one that another worker has ended is no news."""
        with self._lock, _quiet():
            own = self.oracle.trials[trial.trial_id]
            if all(own is not running for running in self.oracle.ongoing_trials.values()):
                return
            score = self.score(_task(own, self.space))
            self._end(own, score)
            failed = isinstance(score, str)
            event = {"trial": own.trial_id, "end": TrialStatus.FAILED if failed else TrialStatus.COMPLETED}
            self._write(event | ({"reason": score} if failed else {"score": score}))

    def get_trial(self, name: str) -> Trial:
        """Return a trial; a worker asks for its own to say that it lives."""
        with self._lock:
            self._heard[name] = time.monotonic()
            for worker, trial in self.oracle.ongoing_trials.items():
                if trial.trial_id == name:
                    self._asked[worker.partition("/")[0]] = time.monotonic()
            return self.oracle.trials[name]

    def get_space(self) -> keras_tuner.HyperParameters:
        """Return KerasTuner's own description; a worker asks for it to see whether the chief is there."""
        return self.oracle.get_space()

    def task(self, trial: Trial) -> Task:
        """Return what a trial asks for."""
        return _task(trial, self.space)

    def tasks(self) -> list[tuple[Task, str]]:
        """Return all trials so far, and how they stand."""
        with self._lock:
            return [(_task(trial, self.space), trial.status) for trial in self.oracle.trials.values()]

    def over(self) -> bool:
        """Whether all is done and no worker is left that has not been told."""
        return self._stopped and not self.workers()

    def workers(self) -> int:
        """Return how many workers gave a sign of life lately."""
        with self._lock:
            now = time.monotonic()
            return sum(now - asked < DEAD for asked in self._asked.values())

    def close(self) -> None:
        self._file.close()

    def _is_lost(self, trial: Trial) -> bool:
        try:
            self.score(_task(trial, self.space))
        except FileNotFoundError:
            return True
        return False

    def _end(self, trial: Trial, score: float | str) -> None:
        if isinstance(score, str) and isinstance(self.oracle, _Hyperband):
            # It promotes nothing while some of a round have no score.
            trial.message, score = score, _WORST if self.oracle.objective.direction == "min" else -_WORST
        if isinstance(score, str):
            trial.status, trial.message = TrialStatus.FAILED, score
        else:
            self.oracle.update_trial(trial.trial_id, {_OBJECTIVE: score})
            trial.status = TrialStatus.COMPLETED
        self.oracle.end_trial(trial)

    def _left(self, trial: Trial) -> bool:
        return time.monotonic() - self._heard[trial.trial_id] > DEAD

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps(event).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _read(path: Path) -> list[dict[str, Any]]:
    """Read whole lines; a kill may have cut the last one, which is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    try:
        events = [json.loads(line) for line in whole.splitlines()]
        begun = {event["trial"] for event in events if event.keys() >= {"trial", "worker", "values"}}
        if any(event["trial"] not in begun for event in events):
            raise ValueError("a trial that nobody began")
        return events
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(f"{path} is damaged ({problem}). Choose another --name; what is trained stays.") from problem


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # KerasTuner asks for the thread's name in a way that Python is about to give up.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@dataclass(frozen=True)
class Role:
    """What KerasTuner's environment variables make of this process.

    Attributes:
        name: KERASTUNER_TUNER_ID.
        address: The chief's, with its port.
    """

    name: str
    address: str

    @property
    def chief(self) -> bool:
        return "chief" in self.name


def role() -> Role | None:
    """Return this process's part among several, or None where it is alone.

    Raises:
        ValueError: Some of the variables are missing.
    """
    names = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
    values = [os.environ.get(name, "") for name in names]
    if not any(values):
        return None
    missing = [name for name, value in zip(names, values, strict=True) if not value]
    if missing or not values[2].isdecimal() or not 1 <= int(values[2]) <= _HIGHEST_PORT:
        wrong = f"{', '.join(missing)} is missing" if missing else f"{names[2]} is {values[2]!r}"
        raise ValueError(
            f"several processes sweep together when all have {', '.join(names)} (chief, or a name of its own; the "
            f"chief's address; its port): {wrong}."
        )
    if "/" in values[0]:
        raise ValueError(f"{names[0]} must be a name without '/'; received {values[0]!r}.")
    return Role(values[0], f"{values[1]}:{values[2]}")


@contextlib.contextmanager
def serving(ledger: Ledger, address: str) -> Iterator[None]:
    """Answer workers.

    Raises:
        OSError: The address cannot be listened at.
    """
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=[("grpc.so_reuseport", 0)])
    protos.get_service_grpc().add_OracleServicer_to_server(OracleServicer(ledger), server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as problem:
        raise OSError(
            f"The chief cannot listen at {address}: is KERASTUNER_ORACLE_IP an address of this machine, and is "
            "KERASTUNER_ORACLE_PORT free?"
        ) from problem
    server.start()
    try:
        yield
    finally:
        server.stop(grace=1.0).wait()


class Remote:
    """A worker's way to the chief's ledger, and the signs of life that keep its trials.

    Args:
        role: Who this is.
        space: What is swept.
        minutes: Time to wait for an answer.
    """

    def __init__(self, role: Role, space: Space, minutes: float) -> None:
        self.role, self.space, self.minutes = role, space, minutes
        self._channel = grpc.insecure_channel(role.address)
        self._stub = protos.get_service_grpc().OracleStub(self._channel)
        self._running: set[str] = set()
        self._closed = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def connect(self) -> None:
        """Wait for the chief.

        Raises:
            ConnectionError: It cannot be reached.
        """
        self._ask(self._stub.GetSpace, protos.get_service().GetSpaceRequest())

    def create_trial(self, worker: str) -> Trial:
        request = protos.get_service().CreateTrialRequest(tuner_id=worker)
        trial = Trial.from_proto(self._ask(self._stub.CreateTrial, request).trial)
        if trial.status == TrialStatus.RUNNING:
            self._running.add(trial.trial_id)
        return trial

    def end_trial(self, trial: Trial) -> None:
        self._ask(self._stub.EndTrial, protos.get_service().EndTrialRequest(trial=trial.to_proto()))
        self._running.discard(trial.trial_id)

    def task(self, trial: Trial) -> Task:
        return _task(trial, self.space)

    def close(self) -> None:
        self._closed.set()
        self._channel.close()

    def _ask(self, call: Callable[..., Any], request: Any) -> Any:
        try:
            return call(request, wait_for_ready=True, timeout=60 * self.minutes)
        except grpc.RpcError as problem:
            if problem.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE):
                raise ConnectionError(
                    f"No chief answers at {self.role.address} within {self.minutes:g} minutes (--wait-minutes). Give "
                    "the same command with KERASTUNER_TUNER_ID=chief; what is trained stays."
                ) from problem
            raise OSError(f"The chief at {self.role.address} failed: {problem.details()}") from problem

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT):
            for name in tuple(self._running):
                with contextlib.suppress(grpc.RpcError, ValueError):  # the next question tells
                    self._stub.GetTrial(protos.get_service().GetTrialRequest(trial_id=name), timeout=HEARTBEAT)
