"""When Does Label Smoothing Help? as a Keras 3 library.

Submodules load on first use, so that `import ls_keras` costs nothing and analysis needs no Keras.
"""

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

# 3 leaves out device notices such as a missing CUDA driver; failures are raised as exceptions all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_SUBMODULES = (
    "analysis",
    "artifact",
    "data",
    "distillation",
    "distribution",
    "experiment",
    "losses",
    "metrics",
    "models",
    "plots",
    "report",
    "verdicts",
)
__all__ = list(_SUBMODULES)


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Hold back descriptor 2: TensorFlow writes notices to it on import, before its log level applies."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        with _quiet_start():
            return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
