"""Sweeps of any field of any recipe: which points to train, by KerasTuner, and which of them cannot be told apart.

Every network stands in a file of its own, and every decision of the search in one line of `trials.jsonl`: a sweep goes
on after any kill, and its seeds are never averaged away.
"""

import importlib
from typing import Any

_PLACES = {
    "driver": ("Swept", "sweep"),
    "space": ("Between", "parse"),
    "tables": ("Row",),
}
__all__ = ["Between", "Row", "Swept", "parse", "sweep"]


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
