"""The README: code runs as it stands, commands parse, what it names is there; CITATION.cff is valid."""

import contextlib
import importlib
import io
import re
import shlex
import sys
import tomllib
from pathlib import Path

import ls_keras_recipes
from ls_keras import experiment, sweeps
from ls_keras.sweeps import space

import pytest
import tyro
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# In a block of commands, or between backticks; without their comments.
WORDS = [
    shlex.split(line, comments=True)
    for line in [
        *(line for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()),
        *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)),
    ]
    if re.match(r"([A-Z]+=\S+ )?(ls-keras|python|pip) ", line)
]
COMMANDS = [each[1:] if "=" in each[0] else each for words in WORDS for each in [words] if "&&" not in words]
COMMANDS += [
    part.split() for words in WORDS if "&&" in words for part in " ".join(words).split(" && ") if part != "pytest"
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The file `mine.py` that the README speaks of: its own loss, and a recipe."""
    (own_loss,) = (block for block in PYTHON if "class MaxSup" in block)
    text = own_loss.partition("\n\n\nmodel.compile")[0]
    (tmp_path / "mine.py").write_text(
        f"from ls_keras import losses\nfrom ls_keras_recipes.cifar10_alexnet import RECIPE\n{text}\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine", None)


def recipe_of(words):
    """Return the recipe that a command runs, and its arguments; None for other programs."""
    if words[0] == "ls-keras":
        return words[1], words[2:]
    if words[0] == "python" and words[1].startswith("recipes/"):
        return words[1].removeprefix("recipes/").removesuffix(".py"), words[2:]
    return None


# KerasTuner asks for a thread's name, and Keras writes HDF5 files, in ways that are about to be given up.
@pytest.mark.filterwarnings("ignore:(currentThread|getName|__array__ implementation):DeprecationWarning")
def test_code_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    assert len(PYTHON) == 5
    printed = io.StringIO()
    for number, block in enumerate(PYTHON):
        with contextlib.redirect_stdout(printed):
            exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert names["run"].metrics["held_out"]["accuracy"] > 0.5
    assert names["held_out"].logits.shape == (600, 10)
    assert names["points"].shape == (600, 2)
    assert {trial.status for trial in names["tuner"].oracle.trials.values()} == {"COMPLETED"}
    assert 0 <= names["tuner"].get_best_hyperparameters()[0].values["alpha"] <= 0.3
    assert names["model"].evaluate(names["digits"].evaluation("held_out", 100), verbose=0, return_dict=True)
    (verdict,) = names["verdicts"]
    assert verdict.id == "M1" and verdict.id in printed.getvalue()
    assert (tmp_path / "saved_models" / "mine" / "measured.json").exists()


def test_the_loss_of_the_example_is_its_formula():
    from ls_keras import losses

    import keras
    import numpy as np

    (block,) = (block for block in PYTHON if "class MaxSup" in block)
    names = {"losses": losses, "__name__": "readme"}
    exec(block.partition("\n\n\nmodel.compile")[0], names)
    logits, labels = np.random.default_rng(0).normal(size=(6, 5)).astype("float32"), np.arange(6) % 5
    gap = logits.max(axis=1) - logits.mean(axis=1)
    hard = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(6), labels]
    found = names["MaxSup"](0.3)(labels, keras.ops.convert_to_tensor(logits))
    assert float(found) == pytest.approx(np.mean(hard + 0.3 * gap), rel=1e-6)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("words", [words for words in COMMANDS if recipe_of(words)], ids=" ".join)
def test_a_recipes_command_is_taken_and_passes_its_checks(words, monkeypatch):
    """All but the work: the command line is read, the config checked, a study planned."""
    name, arguments = recipe_of(words)
    assert (ROOT / "recipes" / f"{name}.py").exists()
    module = importlib.import_module(f"ls_keras_recipes.{name}")
    if name == "analyse":
        assert tyro.cli(module.Config, args=[each.replace("RUN", "run") for each in arguments]).networks
        return
    if name == "sweep":
        words = {"RECIPE": "mnist_mlp", "SIZE": "digits", "FIELD=VALUES": "alpha=0"}
        given = tyro.cli(module.Command, args=[words.get(each, each) for each in arguments]).config
        over, teachers = (sweeps.parse(texts, "--over") for texts in (given.over, given.teacher_over))
        space.space(ls_keras_recipes.named(given.recipe), given.size, over, teachers or None).check()
        return
    recipe, seen = getattr(module, "RECIPE", None), []

    def check(config, *, size, where):
        seen.append(recipe.checked(config, size) if recipe else module.plan(config))

    monkeypatch.setattr(sys, "argv", [name, *arguments])
    experiment.main("", recipe.sizes if recipe else module.SIZES, check)
    assert len(seen) == 1


@pytest.mark.parametrize("words", [words for words in COMMANDS if not recipe_of(words)], ids=" ".join)
def test_other_commands_name_what_is_there(words):
    if words[0] == "python":
        assert (ROOT / words[1]).exists()
    else:
        assert words[:3] == ["pip", "install", "-e"]
        extras = re.findall(r"\[(.*)\]", words[3])
        assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_there_are_commands_of_every_recipe():
    recipes = {path.stem for path in (ROOT / "recipes").glob("[!_]*.py")}
    assert {recipe_of(words)[0] for words in COMMANDS if recipe_of(words)} == recipes
    assert set(PROJECT["scripts"]) == {"ls-keras"}


def test_numbers_and_folders_are_those_of_the_recipe():
    import dataclasses

    from ls_keras_recipes import paper

    config = paper.Config()
    assert f"trains {len(paper.plan(config).arms) * config.seeds} small networks" in TEXT
    second = experiment.label(dataclasses.replace(config, first_seed=config.seeds), "digits", paper.SIZES)
    assert f"--first-seed {config.seeds} --workdir there`" in TEXT and f"--join there/paper/{second}`" in TEXT


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", re.sub(r"<!--.*?-->", "", TEXT, flags=re.DOTALL))
    assert targets
    headings = {re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-") for line in TEXT.splitlines()}
    for target in targets:
        assert target[1:] in headings if target.startswith("#") else (ROOT / target).exists(), target


def test_the_citation_has_what_the_format_asks_for():
    """https://github.com/citation-file-format/citation-file-format, schema guide of 1.2.0."""
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(content)
    assert (content["cff-version"], content["type"]) == ("1.2.0", "software")
    assert (str(content["version"]), content["license"]) == (PROJECT["version"], PROJECT["license"])
    assert content["authors"] == [{"name": "The ls_keras authors"}]
    (paper,) = content["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert [author["family-names"] for author in paper["authors"]] == ["Müller", "Kornblith", "Hinton"]
    assert (paper["year"], paper["url"]) == (2019, "https://arxiv.org/abs/1906.02629")


def test_types_and_templates_are_shipped():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for file in data["package-data"]["ls_keras"]:
        assert (ROOT / "ls_keras" / file).exists()
    assert {"py.typed", "report.html.jinja"} <= set(data["package-data"]["ls_keras"])
    folders = {path.parent for path in (ROOT / "ls_keras").rglob("*.py")} - {ROOT / "ls_keras"}
    assert {f"ls_keras.{folder.name}" for folder in folders} | {"ls_keras", "ls_keras_recipes"} == set(data["packages"])
