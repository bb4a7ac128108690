"""The paper's experiments, one file each; installed as `ls_keras_recipes`, with the command `ls-keras`."""

from __future__ import annotations

import ast
import difflib
import importlib
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ls_keras.experiment import Recipe


def main() -> None:
    """Run a recipe by its name: `ls-keras RECIPE [SIZE] [--field value …]`.

    Raises:
        SystemExit: With the recipe's exit code, or with the names of the recipes where there is no such one.
    """
    recipes = {path.stem: path for path in sorted(Path(__file__).parent.glob("[!_]*.py"))}
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: ls-keras RECIPE [SIZE] [--field value …]; ls-keras RECIPE --help says more\n")
        for name, path in recipes.items():
            print(f"  {name:<22}{ast.get_docstring(ast.parse(path.read_text('utf-8'))).splitlines()[0]}")
        sys.exit(0)
    name = sys.argv[1]
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=1)
        hint = f" Perhaps you meant {near[0]!r}?" if near else ""
        sys.exit(f"error: unknown recipe {name!r}; known: {', '.join(recipes)}.{hint}")
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    sys.path.insert(0, "")  # for recipes and losses of one's own, as where Python runs a module
    runpy.run_module(f"ls_keras_recipes.{name}", run_name="__main__", alter_sys=True)


def named(name: str) -> Recipe:
    """Return a recipe: one of this folder by its name, any other one as `module:NAME`.

    Raises:
        ValueError: There is none.
    """
    from ls_keras import experiment

    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module if attribute else f"{__name__}.{module}"), attribute or "RECIPE")
    except (ImportError, AttributeError) as problem:
        raise ValueError(
            f"There is no recipe {name!r} ({problem}): name a file of recipes/ that has a RECIPE, or module:NAME."
        ) from problem
    if not isinstance(found, experiment.Recipe):
        raise ValueError(f"{name!r} is no experiment.Recipe but {type(found).__name__}.")
    return found
