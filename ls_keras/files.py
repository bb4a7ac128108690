"""Files and folders that are whole or absent: written beside their place, then renamed into it."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path


def replace(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file so that a reader never meets half of it; what was there before stays until then.

    Args:
        path: The file, in a folder that exists.
        content: Everything it shall hold: text (as UTF-8) or bytes.

    Raises:
        FileNotFoundError: If the folder does not exist.
        OSError: If the file cannot be written; nothing is left behind.
    """
    with beside(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def beside(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write a file or folder at, which takes the place of `path` if no exception is raised.

    Only a process that is killed leaves something behind: a folder whose name starts with a dot and tells which
    process of which host it was, for `remove_abandoned`.

    Args:
        path: The file or folder, in a folder that exists.

    Yields:
        A path of the same name on the same file system.

    Raises:
        FileNotFoundError: If the folder that shall hold `path` does not exist.
        OSError: If that folder cannot be written.

    Example:
        >>> with beside("arrays.npz") as temporary:
        ...     np.savez(temporary, x)
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(path.parent)!r} of {path.name!r} does not exist; create it first.")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.{_host()}-{os.getpid()}-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        if path.is_dir():  # cannot be renamed over
            path.replace(Path(folder) / f"{path.name}.old")
        temporary.replace(path)


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Remove what processes of this host that are dead by now were writing into a folder, while others may write.

    Args:
        folder: Where `beside` was told to write.
    """
    for path in Path(folder).glob(".*"):
        writer = re.fullmatch(rf"\..+\.{_host()}-(\d+)-[^-]+", path.name)
        if writer and not _lives(int(writer[1])):
            shutil.rmtree(path, ignore_errors=True)


def _host() -> str:
    """Return a short name of this host: its own may be longer than a file's name can take."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True
