"""A run's folder: who works in it, the checkpoints that a run goes on from, and what a failed one leaves behind."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from ls_keras import files

import numpy as np

# What NumPy says of an .npz file of which bytes are missing or changed.
DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
# What the disk says when a folder that could be written no longer can.
_DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
# Seconds between signs of life, and without one until a run on another host counts as dead.
_HEARTBEAT, _DEAD = 20.0, 120.0
_LOCK = ".lock"


class Taken(ValueError):
    """Another process works in the folder."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        step: Steps done.
        history: Rows of `history.csv` so far.
        state: What `distribution.get_state` gave.
        metrics: The states of the metrics, if it was taken between two evaluations.
    """

    step: int
    history: list[dict[str, float]]
    state: list[np.ndarray]
    metrics: list[np.ndarray]

    def write(self, file: Path | IO[bytes]) -> None:
        """Write an .npz file, with a checksum of each array."""
        arrays = {f"state_{i:04d}": array for i, array in enumerate(self.state)}
        arrays |= {f"metrics_{i:04d}": array for i, array in enumerate(self.metrics)}
        np.savez(file, history=json.dumps(self.history), **arrays)

    @classmethod
    def read(cls, file: IO[bytes], step: int) -> Self:
        """Read what `write` wrote after so many steps; anything of `DAMAGE` may be raised."""
        with np.load(file) as arrays:
            state, metrics = (
                [arrays[name] for name in sorted(arrays.files) if name.startswith(kind)]
                for kind in ("state_", "metrics_")
            )
            return cls(step, json.loads(str(arrays["history"])), state, metrics)


class Checkpoints:
    """The last checkpoints of a run, each whole on the disk before an older one is removed.

    Args:
        folder: The run's folder.
        keep: How many stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder / "checkpoints", keep

    def paths(self) -> list[Path]:
        """Return the checkpoints, the newest first."""
        return sorted(self.folder.glob("step-*.npz"), reverse=True)

    def save(self, checkpoint: Checkpoint) -> None:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{checkpoint.step:09d}.npz"
        with files.beside(path) as temporary:
            checkpoint.write(temporary)
            _to_disk(temporary)
        _to_disk(self.folder)
        for old in self.paths()[self.keep :]:
            old.unlink()

    def latest(self) -> Checkpoint | None:
        """Return the newest checkpoint that can be read, with a warning if there are newer ones.

        Raises:
            ValueError: There are some, and all are damaged.
        """
        paths, damaged = self.paths(), []
        for path in paths:
            try:
                with path.open("rb") as file:
                    found = Checkpoint.read(file, step_of(path))
            except DAMAGE as problem:
                damaged.append(f"{path} is damaged ({problem})")
                continue
            if damaged:
                warnings.warn(f"{'; '.join(damaged)}: going on from {path.name} instead.", stacklevel=2)
            return found
        if damaged:
            raise ValueError(f"{'; '.join(damaged)}. Remove {self.folder}, and the run starts from step 0.")
        return None

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps in a checkpoint's name."""
    return int(checkpoint.stem.removeprefix("step-"))


@contextlib.contextmanager
def claimed(folder: Path, record: dict[str, Any], checkpoints: Checkpoints) -> Iterator[None]:
    """Work in a run's folder, alone; a run that fails before its first checkpoint leaves there what it found.

    Raises:
        Taken: Another process works there.
        OSError: The folder cannot be written, or no longer.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack = contextlib.ExitStack()
            stack.enter_context(locked(folder))
        with stack:
            found = set(folder.iterdir())
            try:
                sweep(folder)
                with writing(folder):
                    files.replace(folder / "config.json", json.dumps(record, indent=2) + "\n")
                yield
            except BaseException as problem:
                if isinstance(problem, FloatingPointError) and checkpoints.paths():
                    # From there every run would end the same way. The history stays, to see where it began.
                    checkpoints.remove()
                elif not checkpoints.paths():
                    for path in set(folder.iterdir()) - found:
                        _remove(path)
                if isinstance(problem, OSError) and problem.errno in _DISK_TROUBLE:
                    raise OSError(
                        f"{folder} can no longer be written ({problem.strerror}). Mend that and give the command "
                        "again: it goes on from the last checkpoint, if there was one."
                    ) from problem
                raise
    finally:
        for path in new:  # that hold nothing
            with contextlib.suppress(OSError):
                path.rmdir()


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder that no process works in.

    Of what a run writes alone: students of a finished network keep its answers in its folder, and may be writing now.
    Of those goes what dead ones of this host have left.
    """
    files.remove_abandoned(folder)
    names = ("config.json", "history.csv", "saved_model", "examples.npz", "metrics.json")
    for pattern in (*(f".{name}.*" for name in names), "checkpoints/.*", "snapshots/.*"):
        for path in folder.glob(pattern):
            _remove(path)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in a sentence which folder cannot be written."""
    try:
        yield
    except OSError as problem:
        raise OSError(
            f"{folder} cannot be written ({problem.strerror}). Mend that, or choose another --workdir."
        ) from problem


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock: the system gives it back however this process ends; a heartbeat tells other hosts.

    Raises:
        Taken: Another process holds it.
    """
    path = folder / _LOCK
    descriptor = _opened(path)
    try:
        _refuse_another_host(path)
        holder = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
        beating.start()
        try:
            yield
        finally:
            ended.set()
            beating.join()
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    """Open and lock the file, the one that has this name once it is locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError:
            raise Taken(_by_another(path)) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _refuse_another_host(path: Path) -> None:
    """A file system that does not lock between hosts leaves only the heartbeat to go by."""
    holder, silent = _holder(path), time.time() - path.stat().st_mtime
    if holder.get("host", socket.gethostname()) != socket.gethostname() and silent < _DEAD:
        raise Taken(
            f"{_by_another(path)} It gave a sign of life {silent:.0f} s ago; {_DEAD:.0f} s without one free it."
        )


def _by_another(path: Path) -> str:
    holder = _holder(path)
    said = ", ".join(f"{name} {value}" for name, value in holder.items()) or "not yet named"
    return f"{path.parent} is worked in by another run ({said}). Wait for it, or choose another --workdir."


def _holder(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # just created
        return {}


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(_HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
