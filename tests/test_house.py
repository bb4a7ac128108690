"""Who may import whom, what an import may cost, and the order of names in a recipe."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "ls_keras").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))

# Parts of ls_keras that each part may import, and which of the heavy libraries.
OURS = {
    "__init__": set(),
    "files": set(),
    "targets": set(),
    "losses": {"targets"},
    "metrics": {"targets"},
    "models": set(),
    "artifact": {"files"},
    "distillation": {"analysis", "artifact", "data", "distribution", "files", "losses"},
    "data": {"files"},
    "inspection": {"losses", "targets"},
    "distribution": {"inspection", "losses"},
    "experiment": {"analysis", "artifact", "data", "distribution", "files"},  # analysis observes
    "analysis": {"artifact"},
    "plots": {"files"},
    "verdicts": {"analysis"},  # intervals
    "report": {"analysis", "files", "plots"},  # analysis for intervals and Holm's correction
}
HEAVY = {
    "__init__": set(),
    "files": set(),
    "targets": {"keras"},
    "losses": {"keras"},
    "metrics": {"keras"},
    "models": {"keras"},
    "artifact": {"keras", "tensorflow"},
    "distillation": {"keras", "tensorflow"},  # a teacher is a SavedModel
    "data": {"tensorflow"},
    "inspection": {"keras", "tensorflow"},
    "distribution": {"keras", "tensorflow"},
    "experiment": {"keras", "tensorflow"},
    "analysis": {"tensorflow"},
    "plots": {"matplotlib"},
    "verdicts": set(),
    "report": {"matplotlib"},
}
# Behind one branch in one place: a faster way, or a library that one data set needs.
IN_FUNCTIONS = {
    "data": {"tensorflow_datasets"},
    "losses": {"tensorflow"},
    "models": {"tensorflow"},
}
LIBRARIES = {"keras", "tensorflow", "matplotlib", "keras_tuner", "tensorflow_datasets", "keras_hub", "torch", "jax"}
# Recipes that train nothing themselves: why they need no model of their own.
NO_NETWORK = {
    "analyse": "takes SavedModels from any recipe",
    "distill": "trains the networks of other recipes",
    "paper": "trains the networks of mnist_mlp",
}


def part_of(path):
    relative = path.relative_to(ROOT / "ls_keras")
    return relative.parts[0].removesuffix(".py")


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(nodes):
    """Dotted names that are imported; `from a import b` gives a.b, for b may be a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import relative to its package hides who imports whom"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_module_level(tree):
    inside = {id(n) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for n in ast.walk(node)}
    return [node for node in ast.walk(tree) if id(node) not in inside]


def libraries(names):
    return {name.partition(".")[0] for name in names} & LIBRARIES


def name_of(path):
    return path.stem if path.parent.name == "recipes" else str(path.relative_to(ROOT / "ls_keras"))


def test_every_part_is_in_the_tables_and_none_is_named_utils():
    parts = {part_of(path) for path in MODULES}
    assert len(MODULES) > 10
    assert set(OURS) == set(HEAVY) >= parts, "a new part says here what it may import"
    assert not [path for path in MODULES + RECIPES if "util" in path.stem or "common" in path.stem]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_parts_import_only_what_they_may(path):
    part, tree = part_of(path), tree_of(path)
    everywhere = set(imports(ast.walk(tree)))
    # `import ls_keras` alone loads none of its parts: it quiets TensorFlow.
    ours = {name.split(".")[1] for name in everywhere if name.startswith("ls_keras.")}
    assert ours - {part} <= OURS[part]
    assert libraries(imports(at_module_level(tree))) <= HEAVY[part]
    assert libraries(everywhere) <= HEAVY[part] | IN_FUNCTIONS.get(part, set())


def run_python(code):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


LOADED = """
import importlib, json, sys
loaded = {}
for name in %s:
    importlib.import_module(name)
    loaded[name] = sorted({m.partition(".")[0] for m in sys.modules})
print(json.dumps(loaded))
"""


def test_imports_load_no_library_that_they_do_not_need():
    """Each entry holds what all imports up to it have loaded."""
    light = ["ls_keras", "ls_keras.files", "ls_keras.analysis", "ls_keras.plots", "ls_keras.report"]
    rest = sorted({part_of(path) for path in MODULES} - {"__init__", "files", "analysis", "plots", "report"})
    loaded = run_python(LOADED % [*light, "ls_keras.analysis.probe", *(f"ls_keras.{part}" for part in rest)])
    assert set(loaded["ls_keras.analysis"]) & (LIBRARIES | {"numpy", "scipy"}) == set()
    assert set(loaded["ls_keras.report"]) & LIBRARIES == {"matplotlib"}
    # Keras 3.15 itself imports matplotlib and scikit-learn where they are installed, and TensorFlow imports Keras.
    for name, libraries_then in loaded.items():
        assert set(libraries_then) & {"keras_tuner", "tensorflow_datasets", "keras_hub", "torch", "jax"} == set(), name


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_defines_its_names_in_order(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree).count("python recipes/") >= 1, "the docstring shows a command"
    defined = [
        getattr(node, "name", None) or node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign)
    ]
    if path.stem in NO_NETWORK:
        expected = [name for name in ("Config", "SIZES", "load_data", "run") if name in defined]
        assert {"Config", "run"} <= set(expected)
    else:
        expected = ["Config", "SIZES", "load_data", "build_model", "run"]
    assert [name for name in defined if name in expected] == expected
    assert isinstance(tree.body[-1], ast.If), "the last lines are: if __name__ == '__main__'"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipes_config_is_frozen_with_defaults_and_a_line_on_each_field(path):
    (config,) = (node for node in tree_of(path).body if isinstance(node, ast.ClassDef) and node.name == "Config")
    (decorator,) = config.decorator_list
    assert ast.unparse(decorator).removeprefix("dataclasses.") == "dataclass(frozen=True)"
    assert ast.get_docstring(config)
    fields = [(node, after) for node, after in zip(config.body, [*config.body[1:], None], strict=True)]
    for field, after in fields:
        if not isinstance(field, ast.AnnAssign):
            continue
        documented = isinstance(after, ast.Expr) and isinstance(getattr(after.value, "value", None), str)
        assert documented, f"{field.target.id} has no docstring"
        assert len(after.value.value.splitlines()) == 1
        positional = "Positional" in ast.unparse(field.annotation)
        assert field.value is not None or positional, f"{field.target.id} has no default"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_use_the_library_and_each_other_only(path):
    used = set(imports(ast.walk(tree_of(path))))
    private = {name for name in used if name.startswith("ls_keras.") and name.rpartition(".")[2].startswith("_")}
    assert private == set()
    assert {name for name in used if name.startswith(("tests", "benchmarks"))} == set()
