"""Many jobs: in order, each with what it waits for, on the cores or GPUs that there are."""

import functools
import math
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from ls_keras import experiment
from ls_keras.experiment import Job, Stopped, Where, many
from ls_keras.experiment.command import signals

import pytest
import tensorflow as tf

QUIET = Where(quiet=True)
NUMBERS = [
    Job("seven", functools.partial(int, 7)),
    Job("two", functools.partial(int, 2)),
    Job("five", operator.sub, ("seven", "two")),
    Job("minus five", operator.sub, ("two", "seven")),
    Job("ten", operator.sub, ("five", "minus five")),
]
VALUES = {"seven": 7, "two": 2, "five": 5, "minus five": -5, "ten": 10}


@pytest.fixture(params=[1, 2])
def cores(request, monkeypatch):
    for variable in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(many, "_places", lambda where: [{"CUDA_VISIBLE_DEVICES": ""}] * request.param)
    return request.param


def test_results_go_to_the_jobs_that_wait_for_them_in_the_order_they_name(cores):
    found = list(experiment.finish(NUMBERS, QUIET, what="numbers"))
    assert dict(found) == VALUES
    names = [name for name, _ in found]
    assert sorted(names) == sorted(VALUES)
    for job in NUMBERS:
        assert all(names.index(before) < names.index(job.name) for before in job.after)
    if cores == 1:
        assert names == list(VALUES)


def later(seconds, value):
    time.sleep(seconds)
    return value


def test_what_finishes_after_an_error_elsewhere_is_kept(monkeypatch):
    monkeypatch.setattr(many, "_places", lambda where: [{"CUDA_VISIBLE_DEVICES": ""}] * 2)
    jobs = [Job("long", functools.partial(later, 3, 7)), Job("wrong", functools.partial(math.sqrt, -1))]
    kept = []
    with pytest.raises(ValueError, match="math domain"):
        for pair in experiment.finish(jobs, QUIET, what="numbers"):
            kept.append(pair)
    assert kept == [("long", 7)]


def test_a_process_that_is_ended_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr(many, "_places", lambda where: [{"CUDA_VISIBLE_DEVICES": ""}] * 2)
    with pytest.raises(OSError, match="ended from outside"):
        list(experiment.finish([Job("gone", functools.partial(os._exit, 1))], QUIET, what="numbers"))


def test_an_error_ends_all_and_what_waits_is_not_begun(cores, tmp_path):
    jobs = [
        Job("first", functools.partial(int, 1)),
        Job("wrong", functools.partial(math.sqrt, -1)),
        Job("after", functools.partial(touch, tmp_path / "begun"), ("wrong",)),
    ]
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        list(experiment.finish(jobs, QUIET, what="numbers"))
    assert not list(tmp_path.iterdir())


def touch(path, *_):
    path.touch()


def test_no_more_jobs_lie_ready_than_can_soon_begin_and_earlier_ones_come_first():
    begun, ready = [], []

    def work(name, *before):
        begun.append(name)
        time.sleep(0.01)
        return name

    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments):
            future = super().submit(*arguments)
            ready.append(future)
            assert sum(not each.done() for each in ready) <= 3
            return future

    jobs = [Job(name, functools.partial(work, name)) for name in range(6)]
    jobs += [Job(name, functools.partial(work, name), (name - 6,)) for name in range(6, 12)]
    with Pool(2) as pool:
        assert dict(many._as_they_can(jobs, pool, 2)) == {name: name for name in range(12)}
    assert set(begun[:2]) == {0, 1}
    assert all(begun.index(name) > begun.index(name - 6) for name in range(6, 12))


@pytest.mark.parametrize("cores", [1], indirect=True)
def test_jobs_that_wait_for_what_does_not_come_before_are_refused_before_work(cores, tmp_path):
    begin = Job("first", functools.partial(touch, tmp_path / "begun"))
    for after in (("nobody",), ("second",), ("third",)):
        jobs = [begin, Job("second", operator.neg, after), Job("third", functools.partial(int, 3))]
        with pytest.raises(ValueError, match=r"The job second waits for .*, of which not all come before it"):
            list(experiment.finish(jobs, QUIET, what="numbers"))
    assert not list(tmp_path.iterdir())


def test_an_iterator_is_asked_when_a_process_is_free_and_again_where_it_had_nothing(cores, monkeypatch):
    monkeypatch.setattr(many, "_ASK_EVERY", 0.01)
    asked, done = [], []

    def jobs():
        for number in range(6):
            asked.append(number)
            assert number - len(done) <= cores + 1, "one more than there are processes lies ready"
            yield Job(number, functools.partial(int, number))
            yield None
            if number == 3:  # what only comes once the rest is done
                while len(done) < 4:
                    yield None

    for name, result in experiment.finish(jobs(), QUIET, what="numbers", total=6):
        assert name == result
        done.append(name)
    assert sorted(done) == asked == list(range(6))


def test_no_process_is_begun_where_there_is_nothing_to_do(cores):
    assert list(experiment.finish([], QUIET, what="numbers")) == []
    assert list(experiment.finish(iter([None, None]), QUIET, what="numbers")) == []


def until_a_signal():
    with signals():
        time.sleep(600)


def end_the_parent():
    os.kill(os.getppid(), signal.SIGTERM)


def test_a_signal_ends_who_works_and_who_waits_for_work(monkeypatch):
    """Who waits holds the lock of the queue that the other one would ask next."""
    monkeypatch.setattr(many, "_places", lambda where: [{"CUDA_VISIBLE_DEVICES": ""}] * 2)
    jobs = [Job("long", until_a_signal), Job("short", functools.partial(int, 1)), Job("end", end_the_parent)]
    with signals(), pytest.raises(Stopped):
        list(experiment.finish(jobs, QUIET, what="numbers"))
    assert not multiprocessing.active_children()


def test_several_workers_would_each_do_everything(monkeypatch):
    with pytest.raises(ValueError, match="without --strategy multi-worker and without TF_CONFIG"):
        list(experiment.finish(NUMBERS, Where(strategy="multi-worker"), what="numbers"))
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["here:1", "there:1"]}}')
    with pytest.raises(ValueError, match="without --strategy multi-worker and without TF_CONFIG"):
        list(experiment.finish(NUMBERS, QUIET, what="numbers"))


@pytest.mark.parametrize(
    ("kinds", "strategy", "visible", "expected"),
    [
        (("GPU", "GPU"), "auto", None, ["0", "1"]),
        (("GPU", "GPU"), "auto", "3,5", ["3", "5"]),
        (("GPU", "GPU"), "auto", "GPU-a,GPU-b", ["GPU-a", "GPU-b"]),
        (("GPU",), "auto", None, ["0"]),
        (("GPU", "GPU"), "cpu", None, ["", "", ""]),
        ((), "auto", None, ["", "", ""]),
        ((), "auto", "", ["", "", ""]),
        (("GPU", "GPU"), "mirrored", None, [None]),
        (("TPU",), "auto", None, [None]),
        (("TPU",), "tpu", None, [None]),
    ],
)
def test_each_gpu_or_core_has_a_process(monkeypatch, kinds, strategy, visible, expected):
    devices = [SimpleNamespace(device_type=kind) for kind in ("CPU", *kinds)]
    monkeypatch.setattr(
        tf.config,
        "list_physical_devices",
        lambda kind=None: [device for device in devices if kind in (None, device.device_type)],
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 4}, raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in many._places(Where(strategy=strategy))] == expected


def test_no_more_processes_begin_than_memory_holds(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert len(many._places(Where(strategy="cpu"))) == 8


PLACES = """
import functools, os
from ls_keras.experiment import Job, Where, many
if __name__ == "__main__":
    many._places = lambda where: [{"CUDA_VISIBLE_DEVICES": name} for name in ("3", "5")]
    jobs = [Job(n, functools.partial(os.getenv, "CUDA_VISIBLE_DEVICES")) for n in range(8)]
    print(sorted({seen for _, seen in many.finish(jobs, Where(quiet=True), what="places")}))
"""


def test_processes_see_their_own_gpu_alone(tmp_path):
    """Either may be quick enough to do all; nobody sees both."""
    (tmp_path / "places.py").write_text(PLACES)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    seen = subprocess.run(
        [sys.executable, str(tmp_path / "places.py")], capture_output=True, text=True, env=environment, check=True
    ).stdout
    assert seen.strip() in ("['3']", "['5']", "['3', '5']")
