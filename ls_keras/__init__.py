"""When Does Label Smoothing Help? as a Keras 3 library.

Submodules load when something of theirs is first used, so that `import ls_keras` costs nothing, a recipe prints its
`--help` without TensorFlow, and analysis needs no Keras.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# 3 leaves out device notices such as a missing CUDA driver; failures are raised as exceptions all the same.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_SUBMODULES = (
    "analysis",
    "artifact",
    "auxiliary",
    "data",
    "distillation",
    "distribution",
    "experiment",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "plots",
    "report",
    "study",
    "sweeps",
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


class _QuietTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Whoever imports TensorFlow after this package, and by whatever name, is spared its notices."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        with _quiet_start():
            self.loader.exec_module(module)


if "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, _QuietTensorFlow())


def __getattr__(name: str) -> Any:
    if name not in _SUBMODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    full = f"{__name__}.{name}"
    if full not in sys.modules:
        spec = importlib.util.find_spec(full)
        spec.loader = importlib.util.LazyLoader(spec.loader)
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    globals()[name] = sys.modules[full]
    return sys.modules[full]


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
