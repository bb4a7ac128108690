"""Who may import whom, what an import may cost, the order of names in a recipe, a wheel, and one dialect for all."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "ls_keras").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("[!_]*.py"))

# Parts of ls_keras that each part may import, and which of the heavy libraries.
OURS = {
    "__init__": set(),
    "files": set(),
    "keras_hooks": set(),
    "targets": {"keras_hooks"},
    "losses": {"keras_hooks", "targets"},
    "metrics": {"keras_hooks", "targets"},
    "models": set(),
    "artifact": {"files", "keras_hooks"},
    "auxiliary": {"distribution", "keras_hooks"},
    "distillation": {"analysis", "artifact", "data", "distribution", "files", "losses"},
    "data": {"files"},
    "optimizers": {"keras_hooks"},
    "inspection": {"keras_hooks", "losses", "targets"},
    "distribution": {"inspection", "keras_hooks", "losses", "workers"},
    # analysis observes
    "experiment": {"analysis", "artifact", "data", "distribution", "files", "keras_hooks", "losses", "workers"},
    "analysis": {"artifact"},
    "plots": {"files"},
    "verdicts": {"analysis"},  # intervals
    "report": {"files", "plots", "verdicts"},
    "study": {"analysis", "data", "distillation", "experiment", "files", "losses", "plots", "report", "verdicts"},
    "sweeps": {"analysis", "artifact", "data", "experiment", "files", "plots", "study"},
    "workers": set(),
}
HEAVY = {
    "__init__": set(),
    "files": set(),
    "keras_hooks": {"keras"},
    "targets": {"keras"},
    "losses": {"keras"},
    "metrics": {"keras"},
    "models": {"keras"},
    "artifact": {"keras", "tensorflow"},
    "auxiliary": {"keras"},
    "distillation": {"keras", "tensorflow"},  # a teacher is a SavedModel
    "data": {"tensorflow"},
    "optimizers": {"keras"},
    "inspection": {"keras", "tensorflow"},
    "distribution": {"keras", "tensorflow"},
    "experiment": {"keras", "tensorflow"},
    "analysis": {"tensorflow"},
    "plots": {"matplotlib"},
    "verdicts": set(),
    "report": {"matplotlib"},
    "study": {"tensorflow"},
    "sweeps": {"keras_tuner", "matplotlib"},
    "workers": {"tensorflow"},
}
# Behind one branch in one place: a faster way, or a library that one data set needs.
IN_FUNCTIONS = {
    "data": {"tensorflow_datasets"},
    "keras_hooks": {"tensorflow"},
    "losses": {"tensorflow"},
    "models": {"tensorflow"},
    "sweeps": {"tensorflow"},
}
LIBRARIES = {"keras", "tensorflow", "matplotlib", "keras_tuner", "tensorflow_datasets", "keras_hub", "torch", "jax"}
# The one module that may use what Keras and TensorFlow do not publish, and the one that speaks KerasTuner's messages.
FENCE = ROOT / "ls_keras" / "keras_hooks.py"
SPEAKER = ROOT / "ls_keras" / "sweeps" / "oracles.py"
# Published, for all their underscore.
PUBLISHED = {"_asdict", "_exit", "_fields", "_replace"}
# A summary says what to do, as in "Return the share of …".
THIRD_PERSON = re.compile(
    "(Return|Raise|Compute|Yield|Make|Build|Say|Find|Estimate|Choose|Refuse|Give|Take|Load|Read|Write|Check)(s|es)\\b"
)


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


def assigned(tree):
    """Classes, functions and constants of a module, in their order."""
    return [
        getattr(node, "name", None) or node.targets[0].id
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Assign)
    ]


def has_a_network(path):
    return "RECIPE" in assigned(tree_of(path))


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
    assert not {name for name in everywhere if name.startswith(("ls_keras_recipes", "recipes"))}
    assert libraries(imports(at_module_level(tree))) <= HEAVY[part]
    assert libraries(everywhere) <= HEAVY[part] | IN_FUNCTIONS.get(part, set())


def is_private(name):
    return name.isidentifier() and name.startswith("_") and not name.endswith("_") and name not in PUBLISHED


def private_attributes(tree):
    """Names of private attributes that are used, and whether of `self`, its class or its parents."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr, ast.unparse(node.value) in ("self", "cls", "super()")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            yield from ((name, False) for name in private_words(node))


def private_words(tree):
    strings = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {each for each in strings if is_private(each)}


def own_private_names(tree):
    """Private names that a module defines: methods, attributes of classes, and what is assigned to `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_the_fence_is_the_only_way_to_what_keras_does_not_publish():
    fence = tree_of(FENCE)
    fenced = {name for name, _ in private_attributes(fence)} | private_words(fence)
    assert {"_compile_loss", "_keras_mask", "_make_function", "_use_cached_eval_dataset"} <= fenced
    for path in {*MODULES, *RECIPES} - {FENCE}:
        tree = tree_of(path)
        inner = {name for name in imports(ast.walk(tree)) if name.startswith(("keras.src", "tensorflow.python"))}
        defined = set(own_private_names(tree))
        foreign = {name for name, own in private_attributes(tree) if not own or name not in defined}
        if path != SPEAKER:
            inner |= {name for name in imports(ast.walk(tree)) if name.startswith("keras_tuner.src")}
        found = inner | foreign | (fenced & (defined | private_words(tree)))
        assert found == set(), f"{path.name}: put it behind a function of {FENCE.name}"


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


HELP = """
import json, runpy, sys
sys.modules["tensorflow"] = sys.modules["keras"] = None  # an import of either fails
path = "%s"
sys.argv = [path, "--help"]
shown = sys.stdout = __import__("io").StringIO()
try:
    runpy.run_path(path, run_name="__main__")
except SystemExit as end:
    code = end.code
sys.stdout = sys.__stdout__
print(json.dumps([code, shown.getvalue(), sorted({m.partition(".")[0] for m in sys.modules})]))
"""


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_help_needs_neither_tensorflow_nor_keras(path):
    code, shown, loaded = run_python(HELP % path)
    assert code == 0
    first = ast.get_docstring(tree_of(path)).splitlines()[0]
    assert " ".join(first.split())[:60] in " ".join(shown.replace("│", " ").split())
    assert not {"matplotlib", "tensorflow_datasets", "keras_hub", "keras_tuner"} & set(loaded)


def test_a_look_at_the_library_loads_nothing():
    """Names are there before their modules are."""
    code = """
import json, sys
import ls_keras
from ls_keras import analysis, artifact, data, distillation, distribution, experiment, losses, metrics, models
from ls_keras import optimizers, plots, report, study, sweeps, verdicts
from ls_keras.experiment import Config, Recipe, Where
assert set(ls_keras.__all__) <= set(dir(ls_keras))
assert set(experiment.__all__) <= set(dir(experiment)) and set(study.__all__) <= set(dir(study))
assert set(sweeps.__all__) <= set(dir(sweeps))
print(json.dumps(sorted({m.partition(".")[0] for m in sys.modules})))
"""
    assert not LIBRARIES & set(run_python(code))


def test_every_promised_name_is_there():
    import ls_keras

    for module in (ls_keras.experiment, ls_keras.study, ls_keras.sweeps, ls_keras.artifact, ls_keras):
        for name in module.__all__:
            assert getattr(module, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018


def raised(tree):
    """Messages of the exceptions that are raised, as they are written."""
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
    return [ast.unparse(argument) for call in calls for argument in call.args]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_docstrings_and_messages_speak_one_dialect(path):
    tree = tree_of(path)
    summaries = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert not [text.splitlines()[0] for text in summaries if THIRD_PERSON.match(text)]
    assert not [text for text in raised(tree) if re.search(r"\b[Gg]ot\b", text)], "say what was received"


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_a_recipe_defines_its_names_in_order(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree).count("python recipes/") >= 1, "the docstring shows a command"
    defined = assigned(tree)
    if has_a_network(path):
        expected = ["Config", "SIZES", "load_data", "build_model", "check", "RECIPE"]
        assert "run" not in defined and "main" not in defined, "a RECIPE has its own"
    else:
        order = ("Config", "SIZES", "plan", "claims", "content", "run")
        expected = [name for name in order if name in defined]
        assert {"Config", "run"} <= set(expected)
    assert [name for name in defined if name in expected] == expected
    assert isinstance(tree.body[-1], ast.If), "the last lines are: if __name__ == '__main__'"


def test_there_are_recipes_of_both_kinds():
    kinds = [has_a_network(path) for path in RECIPES]
    assert sum(kinds) >= 3
    assert len(kinds) - sum(kinds) >= 3


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
    others = {name for name in used if name.startswith("ls_keras_recipes")}
    assert {name for name in others if name.rpartition(".")[2] != "RECIPE"} <= {"ls_keras_recipes.named"}, (
        "values alone"
    )
    assert {name.partition(".")[0] for name in used}.isdisjoint(other.stem for other in RECIPES)


# --- What is installed


def test_the_packages_that_are_installed_are_those_there_are():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed = project["tool"]["setuptools"]
    inside = {path.parent for path in MODULES}
    found = {".".join(path.relative_to(ROOT).parts) for path in inside}
    assert all((path / "__init__.py").exists() for path in inside)
    assert sorted(installed["packages"]) == sorted({*found, "ls_keras_recipes"})
    assert installed["package-dir"] == {"ls_keras_recipes": "recipes"}
    data = {path.name for path in (ROOT / "ls_keras").rglob("*") if path.is_file() and ".py" not in path.suffix}
    assert data == set(installed["package-data"]["ls_keras"]), "the template of the page, and nothing else"
    assert project["project"]["scripts"] == {"ls-keras": "ls_keras_recipes:main"}
