"""Every recipe by its real command at size `smoke`, and the paper's own networks on files in the original formats."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ls_keras import experiment

import numpy as np
import original_formats
import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/*.py"))
TRAINING = ("mnist_mlp", "cifar10_alexnet", "cifar100_resnet56")
# What replaces `smoke --workdir FOLDER`; a string names a recipe whose finished folder is needed first.
NEEDS = {"analyse": "mnist_mlp"}

sys.path.insert(0, str(ROOT / "recipes"))  # as Python does for a script


def arguments(name, folder):
    if name == "analyse":
        return [folder / "mnist_mlp" / "smoke", "--out", folder / "analysis"]
    return ["smoke", "--workdir", folder]


def command(name, folder):
    environment = {key: value for key, value in os.environ.items() if key not in ("TF_CONFIG", "TPU_NAME")}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *map(str, arguments(name, folder))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=280,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each recipe's command gives, by name: folder and process; two at a time, while other tests run."""
    names = sorted((path.stem for path in RECIPES), key=lambda name: (name in NEEDS, name))
    folders = {name: tmp_path_factory.mktemp(name) for name in names}
    jobs = {}

    def job(name):
        if name in NEEDS:
            folders[name] = folders[NEEDS[name]]
            jobs[NEEDS[name]].result()
        return folders[name], command(name, folders[name])

    with ThreadPoolExecutor(2) as pool:
        for name in names:
            jobs[name] = pool.submit(job, name)
        yield lambda name: jobs[name].result()


# --- The paper's networks


class Built:
    """Keeps the model that a recipe trains, and its weights before training."""

    def __init__(self, build_model):
        self.build_model, self.models, self.initial = build_model, [], []

    def __call__(self, config, images):
        self.models.append(self.build_model(config, images))
        self.initial.append([weight.numpy() for weight in self.models[-1].trainable_variables])
        return self.models[-1]


SERVE = """
import json, sys
sys.modules["ls_keras"] = sys.modules["keras"] = None  # an import of either fails
import numpy as np, tensorflow as tf
for name, path in json.load(sys.stdin).items():
    loaded = tf.saved_model.load(path + "/saved_model")
    x = np.load(path + "/x.npy")
    last, probed = loaded.templates(), loaded.probe(x)
    np.savez(path + "/served.npz", serve=loaded.serve(x), one=loaded.serve(x[:1]), **probed, **last)
"""


@pytest.fixture(scope="module")
def paper(results, tmp_path_factory):
    """The networks of the size `paper` after two steps: build, final weights, and answers of their SavedModels."""
    folder = tmp_path_factory.mktemp("paper")
    sets = {name: folder / "data" / name for name in TRAINING}
    original_formats.write_idx(
        sets["mnist_mlp"],
        train=original_formats.examples(60, (28, 28)),
        test=original_formats.examples(20, (28, 28), seed=1),
    )
    original_formats.write_cifar_binary(sets["cifar10_alexnet"], num_classes=10, num_train=60, num_test=10)
    original_formats.write_cifar_binary(sets["cifar100_resnet56"], num_classes=100, num_train=120, num_test=10)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in TRAINING:
            recipe = importlib.import_module(name)
            built = Built(recipe.build_model)
            patch.setattr(recipe, "build_model", built)
            default = recipe.SIZES["paper"]
            assert default == recipe.Config()
            held_out = min(default.held_out_size, 10)
            config = dataclasses.replace(default, batch_size=4, steps=2, evaluate_every=1, held_out_size=held_out)
            where = experiment.Where(workdir=folder, data_dir=sets[name], quiet=True)
            run = recipe.run(config, size="paper", where=where)
            x, *_ = next(iter(recipe.load_data(config, sets[name]).evaluation("test", 4)))
            np.save(run.folder / "x.npy", x)
            found[name] = (default, built, run)
    paths = json.dumps({name: str(run.folder) for name, (_, _, run) in found.items()})
    # Away from this checkout, and without its path.
    subprocess.run([sys.executable, "-I", "-c", SERVE], input=paths, text=True, check=True, cwd=folder, timeout=120)
    return found


@pytest.mark.parametrize("name", TRAINING)
def test_the_papers_network_trains_on_the_original_files(paper, name):
    default, built, run = paper[name]
    assert run.metrics["steps"] == 2
    assert default.steps >= 60_000
    assert np.isfinite([value for split in ("held_out", "test") for value in run.metrics.get(split, {}).values()]).all()
    trained, initial = built.models[0].trainable_variables, built.initial[0]
    assert len(trained) == len(initial)
    for variable, before in zip(trained, initial, strict=True):
        after = variable.numpy()
        assert np.isfinite(after).all(), variable.path
        assert (after != before).any(), f"{variable.path} was not trained"


@pytest.mark.parametrize("name", TRAINING)
def test_the_papers_network_is_served_without_this_package(paper, name):
    _, built, run = paper[name]
    x = np.load(run.folder / "x.npy")
    served = np.load(run.folder / "served.npz")
    expected = built.models[0](x, training=False).numpy()
    np.testing.assert_array_equal(served["serve"], served["logits"])
    np.testing.assert_allclose(served["logits"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(served["one"], expected[:1], rtol=1e-4, atol=1e-5)
    product = served["penultimate"] @ served["kernel"] + served["bias"]
    np.testing.assert_allclose(product, served["logits"], rtol=1e-4, atol=1e-5)
    assert served["kernel"].shape == (served["penultimate"].shape[1], expected.shape[1])


@pytest.mark.parametrize(
    ("name", "size", "teacher", "fields"),
    [
        ("mnist_mlp", "dropout", None, {}),
        ("mnist_mlp", "student", "mnist_mlp", {}),
        # The ResNet-56 above knows 100 classes.
        ("cifar10_alexnet", "paper", "cifar100_resnet56", {"dataset": "cifar100", "alpha": 0.0, "temperature": 4.0}),
    ],
)
def test_the_papers_teachers_and_students_take_real_steps(paper, name, size, teacher, fields):
    recipe = importlib.import_module(name)
    default = recipe.SIZES[size]
    folder = paper[name][2].folder.parents[1]
    config = dataclasses.replace(
        default, batch_size=4, steps=2, evaluate_every=1, held_out_size=min(default.held_out_size, 10), **fields
    )
    if teacher:
        config = dataclasses.replace(config, teacher=paper[teacher][2].saved_model)
    where = experiment.Where(workdir=folder, data_dir=folder / "data" / (teacher or name), quiet=True)
    run = recipe.run(config, size=size, where=where)
    assert run.history()["step"].tolist() == [1, 2]
    assert np.isfinite(run.history()["loss"]).all()


# --- The command line


def test_there_are_recipes_and_each_paper_network_is_one():
    assert {*TRAINING, "analyse", "paper"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_and_shows_nothing_but_progress(results, path):
    folder, process = results(path.stem)
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.strip()
    lines = (re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]", process.stderr))
    assert [line for line in lines if line and not re.search(r"\d+%\|.*\| \d+/\d+ \[", line)] == []
    if path.stem in TRAINING:
        assert (folder / path.stem / "smoke" / "metrics.json").exists()
        assert f"{folder / path.stem / 'smoke'}: held-out: accuracy" in process.stdout
    else:
        (report,) = folder.rglob("report.html")
        assert report.stat().st_size > 10_000
    assert not [entry.name for entry in folder.rglob(".*")]


@pytest.mark.parametrize("name", TRAINING)
def test_a_recipe_given_again_reuses_what_is_finished(results, name, capsys):
    folder, _ = results(name)
    recipe = importlib.import_module(name)
    again = recipe.run(recipe.SIZES["smoke"], size="smoke", where=experiment.Where(workdir=folder))
    assert capsys.readouterr().out == f"{folder / name / 'smoke'}: finished before, reused\n"
    assert again.metrics == json.loads((folder / name / "smoke" / "metrics.json").read_text())


def test_the_main_job_given_again_trains_nothing_and_says_the_same(results, capsys):
    folder, first = results("paper")
    finished = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    assert len(finished) > 1
    recipe = importlib.import_module("paper")
    recipe.run(recipe.SIZES["smoke"], size="smoke", where=experiment.Where(workdir=folder))
    assert capsys.readouterr().out == first.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")} == finished


def run_main(name, monkeypatch, *arguments):
    """What the command would do, without its seven seconds of start-up."""
    recipe = importlib.import_module(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        experiment.main(recipe.__doc__, recipe.SIZES, recipe.run)
    return recipe, end.value.code


@pytest.mark.parametrize("name", TRAINING)
def test_help_shows_the_claim_the_sizes_and_the_source_of_each_field(name, monkeypatch, capsys):
    recipe, status = run_main(name, monkeypatch, "--help")
    assert status == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert " ".join(recipe.__doc__.split("\n")[0].split()) in shown
    assert f"Sizes: {', '.join(recipe.SIZES)}" in shown
    for field in dataclasses.fields(recipe.Config):
        assert f"--{field.name.replace('_', '-')}" in shown
    assert shown.count("[A.") >= 5


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["smoke", "--alhpa", "0.2"], "(?s)alhpa.*Perhaps you meant.*--alpha"),
        (["smok"], "unknown size 'smok'.*Perhaps you meant 'smoke'"),
        (["smoke", "--dataset", "digit"], "(?s)digit"),
        (["smoke", "--alpha", "1.5"], r"alpha.*1\.5"),
        (["smoke", "--strategy", "mirorred"], "(?s)mirrored"),
        (["smoke", "--steps", "3"], "multiple of `evaluate_every`"),
        (["paper", "--data-dir", "/nowhere"], "(?s)--data-dir"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(name, changed, message, tmp_path, monkeypatch, capsys):
    if changed[-1] == "/nowhere":  # an empty folder, and no network either
        monkeypatch.setattr("ls_keras.data.sources._refuse_unreachable", refuse)
        changed = [*changed[:-1], str(tmp_path / "data")]
        (tmp_path / "data").mkdir()
    workdir = tmp_path / "new" / "workdir"
    _, status = run_main(name, monkeypatch, *changed, *([] if changed == ["smok"] else ["--workdir", workdir]))
    text = capsys.readouterr().err if isinstance(status, int) else status
    assert status != 0
    assert re.search(message, text)
    assert not (tmp_path / "new").exists()


def refuse(url):
    raise ConnectionError(f"no answer from {url}")
