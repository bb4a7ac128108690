"""Contenders of a benchmark, each in a process of its own, that take turns.

TensorFlow and PyTorch do not always bear each other in one process. One step at a time, in turn, whatever else the
machine does hits all alike, so that ratios within one run are honest. Import neither library in a module that uses
this one: every process begins by importing it.
"""

import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REST = 0.25  # seconds in which the threads of the process before stop looking for work
WARM_UP = 2

Contender = tuple[Callable[..., tuple[Callable[[], Any], Any]], dict]
"""A function, and its options, that returns a step and what the process says of itself before the first turn."""


class Worker:
    """A contender in a process that waits for its turn."""

    def __init__(self, name: str, contender: Contender):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *contender), daemon=True)
        self.process.start()
        theirs.close()  # so that its end is seen here

    def answer(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(f"{self.name}: its process ended with exit code {self.process.exitcode}") from None

    def take_turn(self) -> float:
        time.sleep(REST)
        self.connection.send(True)
        return self.answer()


def work(connection, make, options) -> None:
    """In a process of its own: make the contender, then time a step whenever asked."""
    step, said = make(**options)
    for _ in range(WARM_UP):
        step()
    connection.send(said)
    while connection.recv():
        step()  # brings its own weights and kernels back into the caches
        start = time.perf_counter()
        step()
        connection.send(time.perf_counter() - start)


def measure(contenders: dict[str, Contender], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return each contender's seconds, and what it said of itself."""
    workers = []
    try:
        for name, contender in contenders.items():
            workers.append(Worker(name, contender))
        said = {worker.name: worker.answer() for worker in workers}
        rounds = [[worker.take_turn() for worker in workers] for _ in range(repeats)]
    finally:
        for worker in workers:
            worker.process.terminate()
    return {worker.name: list(times) for worker, times in zip(workers, zip(*rounds, strict=True), strict=True)}, said


def machine() -> str:
    """Return the processor's name and number of cores."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or 'unknown processor'}, {os.cpu_count()} cores"
