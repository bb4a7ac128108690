"""What an exported network has learned: SavedModels and NumPy arrays in, NumPy arrays and numbers out.

`Probe` reads a SavedModel; `calibration`, `geometry` and `information` judge what it returns, and `intervals` says
how far to trust a difference. Nothing here knows Keras, and only `Probe` needs TensorFlow, so each part loads on
first use.
"""

import importlib
from typing import Any

__all__ = ["Probe", "calibration", "geometry", "information", "intervals", "probe"]


def __getattr__(name: str) -> Any:
    if name == "Probe":
        return importlib.import_module(f"{__name__}.probe").Probe
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
