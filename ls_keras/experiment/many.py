"""Many small networks: as many at a time as there are cores or GPUs, each begun when what it needs is there."""

import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ls_keras.experiment.plan import Where

import tensorflow as tf
from tqdm import tqdm

_ENDED = OSError(
    "A process that trained networks was ended from outside, as systems do when memory runs out. Close other programs "
    "and give the command again: what is finished stays."
)
# A process takes about half a gigabyte.
_MOST_WORKERS = 8
# Seconds after which who had no job is asked again.
_ASK_EVERY = 0.5


@dataclasses.dataclass(frozen=True)
class Job:
    """A piece of work for one process.

    Attributes:
        name: By which others wait for it.
        call: What is done: called with what `after` gave; it and its result can be pickled.
        after: Names of the jobs whose results it takes, in this order.
    """

    name: Hashable
    call: Callable[..., Any]
    after: tuple[Hashable, ...] = ()


def finish(
    jobs: Iterable[Job | None], where: Where, *, what: str, total: int | None = None
) -> Iterator[tuple[Hashable, Any]]:
    """Do all jobs, on every core or GPU of this machine, under one progress bar.

    Small networks train fastest one to a core or a GPU; on one accelerator, or under a strategy that takes several
    devices for each, one follows the other. A job begins once those are finished that it waits for, earlier ones first.

    Args:
        jobs: The work; a job comes after those that it waits for. An iterator is asked for the next one when a process
            has nothing to do, after what has finished was yielded, and gives None where there is none for now.
        where: The strategy decides.
        what: Names the work in the progress bar.
        total: How many jobs an iterator will give, for the bar.

    Yields:
        The name and result of each job, as they finish.

    Raises:
        ValueError: With several workers, of which each would do everything, or a job that waits for none of these.
        Exception: What a job raises; those that wait are then not begun.

    Example:
        >>> jobs = [Job(seed, functools.partial(RECIPE.run, Config(seed=seed))) for seed in range(5)]
        >>> runs = dict(finish(jobs, Where(), what="networks"))
    """
    check_alone(where)
    ordered = _in_order(jobs)
    if isinstance(jobs, Sequence):  # is refused before work
        ordered, total = list(ordered), len(jobs)
    places = _places(where)
    bar = tqdm(total=total, desc=what, unit="network", leave=False, disable=where.quiet)
    with bar:
        for pair in _one_by_one(ordered) if len(places) < 2 else _side_by_side(ordered, places):
            bar.update()
            yield pair


def check_alone(where: Where) -> None:
    """Refuse several workers of one strategy, of which each would do everything."""
    if where.strategy == "multi-worker" or len(json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})):
        raise ValueError(
            "Many networks are trained on one machine: run this without --strategy multi-worker and without TF_CONFIG, "
            "and give each machine other --seeds if there are several."
        )


def side_by_side(where: Where) -> int:
    """Return how many jobs `finish` does at a time."""
    return len(_places(where))


def _in_order(jobs: Iterable[Job | None]) -> Iterator[Job | None]:
    known: set[Hashable] = set()
    for job in jobs:
        if job is not None:
            if not set(job.after) <= known:
                raise ValueError(f"The job {job.name} waits for {job.after}, of which not all come before it.")
            known.add(job.name)
        yield job


def _one_by_one(jobs: Iterable[Job | None]) -> Iterator[tuple[Hashable, Any]]:
    results: dict[Hashable, Any] = {}
    # That functions are traced again for each network is no news.
    logger = tf.get_logger()
    before = logger.level
    for job in jobs:
        if job is None:
            time.sleep(_ASK_EVERY)
            continue
        logger.setLevel("ERROR")
        try:
            results[job.name] = job.call(*(results[name] for name in job.after))
        finally:
            logger.setLevel(before)
        yield job.name, results[job.name]


def _side_by_side(jobs: Iterable[Job | None], places: Sequence[dict[str, str]]) -> Iterator[tuple[Hashable, Any]]:
    spawn = multiprocessing.get_context("spawn")
    free = spawn.SimpleQueue()
    for place in places:
        free.put(place)
    with contextlib.ExitStack() as stack:
        pool = ProcessPoolExecutor(len(places), spawn, initializer=_begin_worker, initargs=(free,))
        # On an error the jobs that wait are not begun.
        stack.callback(pool.shutdown, cancel_futures=True)
        try:
            yield from _as_they_can(jobs, pool, len(places))
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()  # by a signal, at which each writes a checkpoint
            raise


def _as_they_can(jobs: Iterable[Job | None], pool: ProcessPoolExecutor, number: int) -> Iterator[tuple[Hashable, Any]]:
    queue, results, running, failed = _Queue(jobs), {}, {}, None
    while running or (failed is None and not queue.empty):
        # One more than there are processes lies ready; the rest is chosen when what it waits for may be there.
        while failed is None and len(running) <= number and (job := queue.next(results)) is not None:
            running[pool.submit(_in_worker, job.call, *(results[name] for name in job.after))] = job
        if not running:
            time.sleep(0.0 if queue.empty else _ASK_EVERY)
        done: set[Future] = wait(running, _ASK_EVERY if queue.asked else None, FIRST_COMPLETED).done
        for future in done:
            name = running.pop(future).name
            problem = future.exception()
            if problem is not None:
                failed = failed or (_ENDED if isinstance(problem, BrokenProcessPool) else problem)
                continue
            results[name] = future.result()
            yield name, results[name]
    if failed is not None:
        raise failed


def _in_worker(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except KeyboardInterrupt:
        # By a signal that ends all: one that waited for work was killed with the lock of the queue in its hands.
        os._exit(1)


class _Queue:
    """Jobs, drawn when they are needed.

    Attributes:
        empty: Whether all were taken.
        asked: Whether there was none when last asked, but may be later.
    """

    def __init__(self, jobs: Iterable[Job | None]) -> None:
        self._coming, self._waiting, self._ended = iter(jobs), [], False
        self.asked = False

    @property
    def empty(self) -> bool:
        return self._ended and not self._waiting

    def next(self, results: dict[Hashable, Any]) -> Job | None:
        """Take the first job whose results are there; None if there is none now."""
        for job in self._waiting:
            if results.keys() >= set(job.after):
                self._waiting.remove(job)
                return job
        self.asked = False
        for job in self._coming:
            if job is None:
                self.asked = True
                return None
            if results.keys() >= set(job.after):
                return job
            self._waiting.append(job)
        self._ended = True
        return None


def _places(where: Where) -> list[dict[str, str]]:
    """Return the environment of each process that can work beside the others."""
    if where.strategy not in ("auto", "cpu"):
        return [{}]
    kinds = {device.device_type for device in tf.config.list_physical_devices()} - {"CPU"}
    if where.strategy == "cpu" or not kinds:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return [{"CUDA_VISIBLE_DEVICES": ""}] * min(count, _MOST_WORKERS)
    if kinds != {"GPU"}:
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(tf.config.list_physical_devices("GPU"))
    names = visible.split(",")[:count] if visible else map(str, range(count))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names]


def _begin_worker(free: Any) -> None:
    place = free.get()
    os.environ.update(place)  # TensorFlow looks for GPUs when it is first asked
    # Interrupted from the keyboard, workers end without a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tf.get_logger().setLevel("ERROR")
    if not place["CUDA_VISIBLE_DEVICES"]:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)


def _end_with_parent() -> None:
    """End this process when the one that began it has ended, however that was: the queue between them would not."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
