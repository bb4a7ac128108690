"""From a command line to a run: arguments, signals, and errors as sentences."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ls_keras import artifact
from ls_keras.experiment.plan import Config, Where, unknown

import tyro
from tqdm import tqdm

# What most people set first, of the options that a command has.
_FIRST = {
    "alpha": "how much to smooth",
    "teacher": "a SavedModel to distil",
    "seeds": "networks of each kind",
    "seed": "another repetition",
    "data_dir": "where data files are",
    "workdir": "where results go",
}
_MOST_FIRST = 5


class Stopped(KeyboardInterrupt):
    """A signal, SIGINT or SIGTERM, ended a run, after a checkpoint where it was training."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


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
        prog=f"{program()} [{names}]",
        description=f"{description}\n{_first(sizes[size])}\nSizes: {', '.join(sizes)}; the defaults below are those "
        f"of `{size}`.",
        default=command(config=sizes[size], where=Where()),
        args=arguments,
    )
    if not chosen.where.quiet and sys.stderr.isatty():
        # TensorFlow takes longer to load than a reader waits; what comes next takes this line.
        sys.stderr.write("starting …\r")
        sys.stderr.flush()
    with messages(chosen.where.traceback):
        run(chosen.config, size=size, where=chosen.where)


@contextlib.contextmanager
def messages(traceback: bool = False) -> Iterator[None]:
    """Show errors as messages without their Python traceback, and nothing of TensorFlow's own warnings."""
    logging.getLogger("tensorflow").setLevel("ERROR")
    try:
        with signals():
            yield
    except (ValueError, OSError, FloatingPointError, MemoryError, *_of_tensorflow()) as problem:
        if traceback:
            raise
        sys.exit(f"error: {_sentence(problem)} (--traceback shows where)")
    except RuntimeError as problem:
        workers = sys.modules.get("ls_keras.workers")
        if traceback or not workers or not isinstance(problem, workers.Gone):
            raise
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt as problem:
        if traceback:
            raise
        number = getattr(problem, "number", signal.SIGINT)
        said = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
        tqdm.write(
            f"\n{said}; what is finished stays, and the same command goes on from the last checkpoint", file=sys.stderr
        )
        sys.exit(128 + number)


class Signals:
    """Signals to end: raised as `Stopped`, in training only once a checkpoint has been written."""

    def __init__(self) -> None:
        self.training, self.received = False, 0

    def __call__(self, number: int, frame: Any) -> None:
        # The second one does not wait.
        if not self.training or self.received:
            raise Stopped(number)
        self.received = number


@contextlib.contextmanager
def signals() -> Iterator[Signals]:
    """Take SIGINT and SIGTERM, where this is the main thread: as `Stopped`, in training after a checkpoint."""
    received = Signals()
    before = {}
    if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
        before = {number: signal.signal(number, received) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _of_tensorflow() -> tuple[type[Exception], ...]:
    """Return TensorFlow's errors, if it was loaded: stored results are shown without it."""
    tensorflow = sys.modules.get("tensorflow")
    return (tensorflow.errors.OpError,) if tensorflow else ()


def _sentence(problem: BaseException) -> str:
    kinds = _of_tensorflow()
    if isinstance(problem, MemoryError) or type(problem).__name__ == "ResourceExhaustedError":
        return f"out of memory ({artifact.reason(problem)}). Lower --batch-size, or close other programs"
    return f"TensorFlow failed: {artifact.reason(problem)}" if isinstance(problem, kinds) else str(problem)


def _size_first(arguments: list[str], sizes: Mapping[str, Any]) -> list[str]:
    if not arguments or arguments[0].startswith("-"):
        return [next(iter(sizes)), *arguments]
    if arguments[0] not in sizes:
        sys.exit("error: " + unknown("size", arguments[0], sizes))
    return arguments


def program() -> str:
    """Return what was typed to run this: `ls-keras NAME`, or `python` and a file."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return f"ls-keras {module.name.rpartition('.')[2]}" if module else f"python {sys.argv[0]}"


def _first(config: Config) -> str:
    known = {field.name for kind in (type(config), Where) for field in dataclasses.fields(kind)}
    names = [name for name in _FIRST if name in known][:_MOST_FIRST]
    return "First: " + ", ".join(f"--{name.replace('_', '-')} ({_FIRST[name]})" for name in names) + "."
