"""The SavedModel, whole: its contract, how it is read, tried out, identified and exported.

An exported network answers to three functions, of which the first two may have axes of a sequence's positions, too:

    serve(x) -> logits [n, ..., K]
    probe(x) -> {"penultimate": [n, ..., d], "logits": [n, ..., K]}
    templates() -> {"kernel": [d, K], "bias": [K]}

with penultimate @ kernel + bias == logits. x is one tensor, or a dictionary of them by name. `reading` needs
TensorFlow alone, `writing` Keras too, so each loads on first use.
"""

import importlib
from typing import Any

_WRITING = ("Endpoints", "endpoints", "export")
_READING = ("Endpoint", "digest", "load", "reason")
__all__ = ["Endpoint", "Endpoints", "digest", "endpoints", "export", "load", "reason"]


def __getattr__(name: str) -> Any:
    for module, names in (("reading", _READING), ("writing", _WRITING)):
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
