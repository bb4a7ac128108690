"""Claims as data: which networks to train, what to measure of each, and what the measurements say.

    arms  →  train and measure all, in one pool  →  measured.json  →  verdicts, figures, tables  →  one page

An `Arm` is a kind of network, trained with several seeds. A `Claim` is a sentence and comparisons of quantities that
the arms were measured by. Judging reads records alone, never networks: a stored study is judged again in a second.
A family of claims gives its arms, its claims, its figures and its tables.
"""

import importlib
from typing import Any

_PLACES = {
    "measures": ("Network", "collect", "observe", "panel", "shapes", "similar_classes", "statistics"),
    "records": ("Measured", "Record", "read", "write"),
    "claims": ("Claim", "Comparison", "Term", "interval", "judge"),
    "driver": ("Arm", "Fixed", "Study", "about", "made", "networks", "run"),
    "plan": ("planned",),
}
_FAMILIES = ("distillation", "identities", "information", "mnist", "page", "representations")
__all__ = [
    "Arm",
    "Claim",
    "Comparison",
    "Fixed",
    "Measured",
    "Network",
    "Record",
    "Study",
    "Term",
    "about",
    "collect",
    "interval",
    "judge",
    "made",
    "networks",
    "observe",
    "panel",
    "planned",
    "read",
    "run",
    "shapes",
    "similar_classes",
    "statistics",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _FAMILIES:
        return importlib.import_module(f"{__name__}.{name}")
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_FAMILIES})
