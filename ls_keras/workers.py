"""The workers of a run: that they meet at its start, that none stays when one has gone, and who it was.

A worker answers at its address: before TensorFlow's server does, a plain socket. So the wait for the others is in
Python, where a signal can end it; TensorFlow would wait for an hour, deaf. In training TensorFlow itself notices when a
worker dies, and raises within seconds; a thread that looks after the others ends this process where it does not.
"""

import contextlib
import dataclasses
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from tqdm import tqdm

# Seconds between looks at the others, and until an address that says nothing counts as silent.
_LOOK, _SILENT = 1.0, 2.0
# Seconds until somebody is told who is waited for, and between repetitions.
_FIRST_WORD, _NEXT_WORD = 5.0, 60.0
# Seconds for TensorFlow to notice that a worker has gone: it takes up to 15. Its server may take some to start.
_GRACE = 45.0
# Seconds in which the port of a process that was killed closes: its memory goes first.
_CLOSING = 10.0
# What TensorFlow says of a collective operation in which a worker is missing.
_ABORTED = "Collective ops is aborted"
# Whose TensorFlow runs in this process.
_met: set["Cluster"] = set()


class Gone(RuntimeError):
    """Another worker has gone, and this one cannot go on without it."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """All workers of a run.

    Attributes:
        addresses: `host:port` of each, the chief's first.
        index: Which of them this process is.
    """

    addresses: tuple[str, ...]
    index: int

    def name(self, index: int) -> str:
        """Name a worker as its user knows it."""
        return f"worker {index} of {len(self.addresses)} ({self.addresses[index]})"

    def absent(self) -> list[int]:
        """Return those of the others that do not answer now."""
        return [
            index
            for index, address in enumerate(self.addresses)
            if index != self.index and not _answers(*_host_and_port(address))
        ]


def meet(cluster: Cluster, seconds: float) -> None:
    """Wait until all workers answer.

    Args:
        cluster: The workers.
        seconds: How long to wait at most.

    Raises:
        ValueError: Some did not come in time, or another process has this worker's port.
    """
    if cluster in _met:  # TensorFlow's server has the port
        return
    began, said = time.monotonic(), -_NEXT_WORD
    with _listening(cluster) as drain:
        while absent := cluster.absent():
            waited = time.monotonic() - began
            names = ", ".join(map(cluster.name, absent))
            if waited >= seconds:
                raise ValueError(
                    f"{names} did not answer within {seconds / 60:g} minutes. Check that the same command runs there, "
                    "that TF_CONFIG gives all workers the same addresses, and that no firewall is between them; "
                    "--wait-minutes sets the limit."
                )
            if waited >= _FIRST_WORD and waited - said >= _NEXT_WORD:
                tqdm.write(f"waiting for {names} …", file=sys.stderr)
                said = waited
            drain()
            time.sleep(min(_LOOK, max(seconds - waited, 0)))
    _met.add(cluster)


class Watch:
    """Looks after the other workers until it is stopped; see `watched`."""

    def __init__(self, cluster: Cluster, outcome: Callable[[], str], grace: float) -> None:
        self.cluster, self.outcome, self.grace = cluster, outcome, grace
        self.stopped = threading.Event()

    def stop(self) -> None:
        """Let the others go: there is no more to do together."""
        self.stopped.set()

    def sentence(self, gone: Sequence[int]) -> str:
        """Say who has gone, and what to do."""
        names = ", ".join(map(self.cluster.name, gone))
        said = f"{names} {'has' if len(gone) == 1 else 'have'} gone" if gone else "another worker no longer answers"
        return f"{said}: restart all workers with the same command; {self.outcome()}"

    def look(self) -> None:
        """End this process once a worker has been away for so long that TensorFlow ought to have noticed."""
        away: dict[int, float] = {}
        while not self.stopped.wait(_LOOK):
            now = time.monotonic()
            away = {index: away.get(index, now) for index in self.cluster.absent()}
            gone = [index for index, since in away.items() if now - since >= self.grace]
            if gone and not self.stopped.is_set():
                tqdm.write(f"\nerror: {self.sentence(gone)}", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)  # the main thread waits in TensorFlow, where no exception reaches it


@contextlib.contextmanager
def watched(cluster: Cluster | None, outcome: Callable[[], str], grace: float = _GRACE) -> Iterator[Watch | None]:
    """Work together: a worker that goes ends the others.

    Args:
        cluster: The workers, or None where there is one alone.
        outcome: Says what a restart will come to, asked when one has gone.
        grace: Seconds until this process is ended, where TensorFlow does not notice.

    Yields:
        What looks after the others; None where there are none.

    Raises:
        Gone: With one sentence, in place of TensorFlow's.
    """
    if cluster is None:
        yield None
        return
    watch = Watch(cluster, outcome, grace)
    threading.Thread(target=watch.look, daemon=True).start()
    try:
        yield watch
    except tf.errors.OpError as problem:
        gone = _gone_soon(cluster) if _ABORTED in str(problem) else cluster.absent()
        if watch.stopped.is_set() or not (gone or _ABORTED in str(problem)):
            raise
        raise Gone(watch.sentence(gone)) from problem
    finally:
        watch.stop()


def _gone_soon(cluster: Cluster) -> list[int]:
    """Return who is absent, or soon will be; nobody if one has frozen, whose port stays open."""
    end = time.monotonic() + _CLOSING
    while not (gone := cluster.absent()) and time.monotonic() < end:
        time.sleep(_LOOK)
    return gone


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator[Callable[[], None]]:
    """Answer at this worker's address; what is yielded forgets who has called, of whom only so many can wait."""
    address = cluster.addresses[cluster.index]
    _, port = _host_and_port(address)
    two = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if two else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=two)
    except OSError as problem:
        if problem.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ValueError(
            f"{cluster.name(cluster.index)} is this one, and its port {port} cannot be opened ({problem.strerror}): "
            "another worker runs here with the same index, or one of an earlier run has not ended. End that, or "
            "give another port in the TF_CONFIG of all."
        ) from None

    def drain() -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                listener.accept()[0].close()

    with listener:
        listener.setblocking(False)
        yield drain


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_SILENT).close()
    except OSError:  # nobody listens, or no such host
        return False
    return True
