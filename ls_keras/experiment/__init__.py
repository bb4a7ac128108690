"""How any recipe is run: from a frozen Config to a finished folder, and from a command line to both.

A run's folder holds `config.json`, `history.csv`, `tensorboard/`, `checkpoints/` (until it succeeds),
`saved_model/`, and `metrics.json`, which is written last: it means "done".

Modules load on first use: what a command line needs to print its help comes without TensorFlow.
"""

import importlib
from typing import Any

_PLACES = {
    # How a network leaves its experiment; the artifact's own room has it.
    ".artifact.writing": ("endpoints", "export"),
    "plan": ("Config", "Observe", "Recipe", "Where", "check_series", "check_whole", "label", "say", "unknown"),
    "command": ("Stopped", "main", "messages", "program"),
    "run": ("Examples", "Run"),
    "many": ("Job", "check_alone", "finish", "side_by_side"),
}
__all__ = [
    "Config",
    "Examples",
    "Job",
    "Observe",
    "Recipe",
    "Run",
    "Stopped",
    "Where",
    "check_alone",
    "check_series",
    "check_whole",
    "endpoints",
    "export",
    "finish",
    "label",
    "main",
    "messages",
    "program",
    "say",
    "side_by_side",
    "unknown",
]


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
