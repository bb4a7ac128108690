"""The API reference, built from docstrings: `pip install -e '.[docs]' && python docs/api.py`, then build/docs/."""

import argparse
import importlib
import warnings
from pathlib import Path

import ls_keras

import pdoc

# Beside what packages name in `__all__`, which pdoc follows.
FAMILIES = ("distillation", "identities", "information", "mnist", "page", "representations")
BESIDE = tuple(f"ls_keras.study.{name}" for name in FAMILIES)
# Whose names load on first use; pdoc sees only those that have been.
LAZY = ("ls_keras.analysis", "ls_keras.artifact", "ls_keras.experiment", "ls_keras.study")


def build(out: Path) -> None:
    """Write one page for each public module; a name that does not resolve is an error."""
    for module in map(importlib.import_module, LAZY):
        vars(module).update({name: getattr(module, name) for name in module.__all__})
    pdoc.render.configure(docformat="google", footer_text=f"ls_keras, {ls_keras.__doc__.splitlines()[0]}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("ls_keras", *BESIDE, output_directory=out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/docs"), help="folder that receives the pages")
    build(parser.parse_args().out)
