"""When Does Label Smoothing Help? as a Keras 3 library.

Submodules load on first use, so that `import ls_keras` costs nothing and analysis needs no Keras.
"""

import importlib
import os
from typing import Any

# TensorFlow reads this once, when it is first imported: 2 keeps warnings about devices out of the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_SUBMODULES = (
    "analysis",
    "data",
    "distillation",
    "distribution",
    "experiment",
    "losses",
    "metrics",
    "models",
    "plots",
    "report",
)
__all__ = list(_SUBMODULES)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
