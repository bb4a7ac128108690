"""Every recipe by its real command at size `smoke`, and the paper's own networks on files in the original formats."""

import dataclasses
import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ls_keras_recipes
from ls_keras import experiment
from ls_keras.analysis import Probe
from ls_keras.experiment import many, training
from ls_keras.experiment import run as running
from ls_keras.study import driver

import numpy as np
import original_formats
import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/[!_]*.py"))
TRAINING = tuple(path.stem for path in RECIPES if "\nRECIPE = " in path.read_text(encoding="utf-8"))
# What replaces `smoke --workdir FOLDER`; a string names a recipe whose finished folder is needed first.
NEEDS = {"analyse": "mnist_mlp"}
# What makes an update of two batches.
SMALLER = {"imagenet_inceptionv4": {"accumulation": 2}}
# Seconds after which nothing is going to come any more, however busy the machine.
HANGS = 3_000
pytestmark = pytest.mark.timeout(2 * HANGS)


def named(name):
    return importlib.import_module(f"ls_keras_recipes.{name}")


def arguments(name, folder):
    if name == "analyse":
        return [folder / "mnist_mlp" / "smoke", "--out", folder / "analysis"]
    if name == "sweep":
        return ["mnist_mlp", "smoke", "--over", "alpha=0,0.1", "--seeds", "2", "--name", "it", "--workdir", folder]
    return ["smoke", "--workdir", folder]


CONSOLE = "import ls_keras_recipes; ls_keras_recipes.main()"
# Given as `ls-keras RECIPE`; the others as a file.
BY_NAME = {"cifar10_distillation", "cifar10_alexnet"}


def command(name, folder):
    environment = {key: value for key, value in os.environ.items() if key not in ("TF_CONFIG", "TPU_NAME")}
    environment["PYTHONPATH"] = str(ROOT)
    recipe = ["-c", CONSOLE, name] if name in BY_NAME else [ROOT / "recipes" / f"{name}.py"]
    return subprocess.run(
        [sys.executable, *recipe, *map(str, arguments(name, folder))],
        cwd=folder,  # anywhere else
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=HANGS,
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
    original_formats.write_imagenet(sets["imagenet_inceptionv4"], *original_formats.imagenet_tars(num_val=4))
    found = {}
    for name in TRAINING:
        recipe = named(name).RECIPE
        built = Built(recipe.build_model)
        default = recipe.sizes["paper"]
        assert default == named(name).Config()
        held_out = min(default.held_out_size, 10)
        config = dataclasses.replace(
            default, batch_size=4, steps=2, evaluate_every=1, held_out_size=held_out, **SMALLER.get(name, {})
        )
        where = experiment.Where(workdir=folder, data_dir=sets[name], quiet=True)
        run = dataclasses.replace(recipe, build_model=built).run(config, size="paper", where=where)
        x, *_ = next(iter(recipe.load_data(config, sets[name]).evaluation("test", 4)))
        np.save(run.folder / "x.npy", x)
        found[name] = (default, built, run)
    paths = json.dumps({name: str(run.folder) for name, (_, _, run) in found.items()})
    # Away from this checkout, and without its path.
    subprocess.run([sys.executable, "-I", "-c", SERVE], input=paths, text=True, check=True, cwd=folder, timeout=HANGS)
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
    expected = built.models[0](x, training=False)
    expected = (expected["logits"] if isinstance(expected, dict) else expected).numpy()
    np.testing.assert_array_equal(served["serve"], served["logits"])
    # By the largest logit, which is huge: after two steps moving statistics are not settled.
    near = {"rtol": 1e-4, "atol": 1e-5 * max(1.0, np.abs(expected).max())}
    np.testing.assert_allclose(served["logits"], expected, **near)
    np.testing.assert_allclose(served["one"], expected[:1], **near)
    product = served["penultimate"] @ served["kernel"] + served["bias"]
    np.testing.assert_allclose(product, served["logits"], **near)
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
    recipe = named(name)
    default = recipe.SIZES[size]
    folder = paper[name][2].folder.parents[1]
    config = dataclasses.replace(
        default, batch_size=4, steps=2, evaluate_every=1, held_out_size=min(default.held_out_size, 10), **fields
    )
    if teacher:
        config = dataclasses.replace(config, teacher=paper[teacher][2].saved_model)
    where = experiment.Where(workdir=folder, data_dir=folder / "data" / (teacher or name), quiet=True)
    run = recipe.RECIPE.run(config, size=size, where=where)
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
    progress = re.compile(r"\d+%\|.*\| \d+/\d+ \[|^loading TensorFlow …$")
    assert [line for line in lines if line and not progress.search(line)] == []
    if path.stem in TRAINING:
        assert (folder / path.stem / "smoke" / "metrics.json").exists()
        assert f"{folder / path.stem / 'smoke'}: held-out: accuracy" in process.stdout
    else:
        (page,) = folder.rglob("sweep.png" if path.stem == "sweep" else "report.html")
        assert page.stat().st_size > 10_000
    assert not [entry.name for entry in folder.rglob(".*")]


@pytest.mark.parametrize("name", TRAINING)
def test_a_recipe_given_again_reuses_what_is_finished(results, name, capsys):
    folder, _ = results(name)
    recipe = named(name)
    again = recipe.RECIPE.run(recipe.SIZES["smoke"], size="smoke", where=experiment.Where(workdir=folder))
    assert capsys.readouterr().out == f"{folder / name / 'smoke'}: finished before, reused\n"
    assert again.metrics == json.loads((folder / name / "smoke" / "metrics.json").read_text())


def test_the_main_job_given_again_trains_nothing_and_says_the_same(results, capsys):
    folder, first = results("paper")
    finished = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")}
    assert len(finished) > 1
    recipe = named("paper")
    recipe.run(recipe.SIZES["smoke"], size="smoke", where=experiment.Where(workdir=folder))
    begun, _, said = first.stdout.partition("\n")
    number = len(finished)
    said_first = f"{number} networks: 0 measured before, {number} to train or to find finished; records go to {folder}"
    assert begun.startswith(said_first)
    assert capsys.readouterr().out == said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.json")} == finished


def test_the_main_job_judges_what_was_measured_without_its_networks(results, tmp_path, capsys):
    folder, first = results("paper")
    shutil.copytree(folder / "paper", tmp_path / "paper")
    recipe = named("paper")
    recipe.run(recipe.SIZES["smoke"], size="smoke", where=experiment.Where(workdir=tmp_path))
    said = first.stdout.partition("\n")[2]
    assert capsys.readouterr().out == said.replace(str(folder), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["paper"]
    verdicts = [path.read_text() for path in (folder / "paper", tmp_path / "paper") for path in path.rglob("verd*")]
    assert verdicts[0] == verdicts[1]


# --- The console command


def console(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ls-keras", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    for module in [name for name in sys.modules if name.startswith("ls_keras_recipes.")]:
        monkeypatch.delitem(sys.modules, module)  # as in a process of its own
    with pytest.raises(SystemExit) as end:
        ls_keras_recipes.main()
    return end.value.code


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_console_command_lists_every_recipe(arguments, monkeypatch, capsys):
    assert console(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    for path in RECIPES:
        first = path.read_text("utf-8").splitlines()[0].removeprefix('"""')
        assert re.search(rf"^  {path.stem} +{re.escape(first)}$", shown, re.MULTILINE)
    assert "__init__" not in shown


@pytest.mark.parametrize("wrong", ["mnist_mpl", "mnist_mlp.py", "mnist-mlp"])
def test_the_console_command_refuses_an_unknown_recipe_with_a_guess(wrong, monkeypatch):
    said = console(monkeypatch, wrong, "smoke")
    assert re.fullmatch(f"error: unknown recipe '{wrong}'; known: .*\\. Perhaps you meant 'mnist_mlp'\\?", said)
    assert all(path.stem in said for path in RECIPES)


def test_the_console_command_gives_a_recipe_its_arguments(monkeypatch, capsys):
    assert console(monkeypatch, "mnist_mlp", "smok").startswith("error: unknown size 'smok'")
    assert console(monkeypatch, "paper", "smoke", "--help") == 0
    assert "--calibrated-alpha" in capsys.readouterr().out


def main_of(recipe):
    """What the last lines of a recipe do."""
    if hasattr(recipe, "RECIPE"):
        recipe.RECIPE.main()
    else:
        experiment.main(recipe.__doc__, recipe.SIZES, recipe.run)


def run_of(recipe):
    return recipe.RECIPE.run if hasattr(recipe, "RECIPE") else recipe.run


def run_main(name, monkeypatch, *arguments):
    """What the command would do, without its seven seconds of start-up."""
    recipe = named(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    for variable in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit) as end:
        main_of(recipe)
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


LOSS = [
    ("smoke --loss ConfidencePenalty(beta=0.1) --alpha 0.2", r"--alpha cannot act with --loss ConfidencePenalty"),
    ("smoke --loss Nothing()", "no loss Nothing in ls_keras.losses, which has .*ConfidencePenalty"),
    ("smoke --loss ConfidencePenalty(gamma=0.1)", "ConfidencePenalty does not take these arguments"),
    ("smoke --loss ConfidencePenalty(beta=-1)", "beta.*-1"),
    ("smoke --loss keras:Model()", "must be a subclass of keras.losses.Loss"),
    ("smoke --loss 0.1", "must be written as Name"),
]
CIFAR = [
    *LOSS,
    ("smoke --learning-rate 0", "`learning_rate` must be above 0"),
    ("smoke --learning-rate nan", "`learning_rate` must be"),
    ("smoke --learning-rate inf", "`learning_rate` must be"),
    ("smoke --batch-size -1", "`batch_size` must be"),
    ("smoke --held-out-size 5000", "5000 do not fit"),
    ("smoke --workdir {file}", "cannot be written"),
    ("smoke --loss-multiplier 0", "`loss_multiplier` must be above 0"),
    ("smoke --loss-multiplier -3", "`loss_multiplier` must be above 0"),
    ("smoke --loss-multiplier nan", "`loss_multiplier` must be"),
    ("smoke --weight-decay -0.1", "`weight_decay` must be at least 0"),
    ("smoke --weight-decay nan", "weight_decay` must be"),
    ("smoke --crop-padding -1", "`crop_padding` must be a whole number"),
    ("smoke --crop-padding 8", "must be smaller than the images"),
    ("smoke --drops 2 1", "`drops` must be steps above 0 in ascending order"),
    ("smoke --drops 1 1", "`drops` must be steps above 0 in ascending order"),
    ("smoke --drops 0 1", "`drops` must be steps above 0 in ascending order"),
    ("smoke --drops -2", "`drops` must be steps above 0 in ascending order"),
    ("smoke --drops 2 4", "`drops` must come before the last of the 4 steps"),
    ("smoke --drops 5000", "`drops` must come before the last of the 4 steps"),
]
SERIES = [
    ("smoke --seeds 0", "seeds"),
    ("smoke --seeds -1", "seeds"),
    ("smoke --strategy multi-worker", "without --strategy multi-worker"),
    ("smoke --strategy tpu", "needs a TPU"),
    ("smoke --workdir {file}", "is a file"),
    ("smoke --workdir {file}/deeper", "is a file"),
]
REFUSED = {
    "mnist_mlp": [
        *LOSS,
        ("smoke --checkpoints 0", "`checkpoints` must be at least 1; received 0"),
        ("smoke --checkpoint-minutes nan", "a time from 0 on; received nan"),
        ("smoke --observe-every 0 --snapshots", "--snapshots cannot act where nothing is observed"),
        ("smoke --steps 0", "`steps` must be"),
        ("smoke --steps -60", "`steps` must be"),
        ("smoke --batch-size 0", "`batch_size` must be"),
        ("smoke --evaluate-every 0", "`evaluate_every` must be"),
        ("smoke --seed -1", "`seed` must be"),
        ("smoke --alpha nan", "`alpha` must be"),
        ("smoke --alpha -0.1", r"`alpha` must be in \[0, 1\)"),
        ("smoke --alpha 1", r"`alpha` must be in \[0, 1\)"),
        ("smoke --learning-rate 0", "`learning_rate` must be above 0"),
        ("smoke --learning-rate -1", "`learning_rate` must be above 0"),
        ("smoke --learning-rate nan", "`learning_rate` must be"),
        ("smoke --learning-rate inf", "`learning_rate` must be"),
        ("smoke --train-size 0", "`train_size` must be a whole number of at least 1"),
        ("smoke --train-size -5", "`train_size` must be a whole number of at least 1"),
        ("smoke --train-size 5", "have no example"),
        ("smoke --held-out-size -1", "`held_out_size` must be a whole number of at least 0"),
        ("smoke --held-out-size 5000", "5000 do not fit"),
        ("smoke --workdir {file}", "cannot be written"),
        ("smoke --workdir {file}/deeper", "cannot be written"),
        ("smoke --strategy multi-worker", "TF_CONFIG is not set"),
        ("smoke --strategy tpu", "needs a TPU"),
        ("smoke --dataset minst", "Perhaps you meant 'mnist'"),
        ("smoke --units", "`units` must name at least one hidden layer"),
        ("smoke --units 32 0", "each of positive width"),
        ("smoke --units -3", "each of positive width"),
        ("smoke --initial-stddev 0", "`initial_stddev` must be positive"),
        ("smoke --initial-stddev -0.1", "`initial_stddev` must be positive"),
        ("smoke --initial-stddev nan", "initial_stddev` must be"),
        ("smoke --dropout 1", r"`dropout` must lie in \[0, 1\)"),
        ("smoke --dropout -0.1", r"`dropout` must lie in \[0, 1\)"),
        ("smoke --input-dropout 1", r"`input_dropout` must lie in \[0, 1\)"),
        ("smoke --input-dropout nan", "input_dropout"),
        ("smoke --max-norm 0", "`max_norm` must be positive"),
        ("smoke --max-norm -1", "`max_norm` must be positive"),
        ("smoke --max-norm inf", "max_norm` must be"),
        ("smoke --shift -1", "`shift` must be a whole number"),
        ("smoke --shift 8", "must be smaller than the images"),
        ("smoke --last-layer-rate 0", "`last_layer_rate` must be above 0"),
        ("smoke --last-layer-rate -0.1", "`last_layer_rate` must be above 0"),
        ("smoke --gradient-smoothing 1", r"`gradient_smoothing` must be in \[0, 1\)"),
        ("smoke --gradient-smoothing -0.9", r"`gradient_smoothing` must be in \[0, 1\)"),
        ("smoke --gradient-smoothing nan", "`gradient_smoothing` must be"),
        ("smoke --observe-every -30", "`observe_every` must be"),
        ("smoke --observe-every 45", "`observe_every` must be"),
        ("smoke --beta 0.5", "--beta cannot act without a --teacher"),
        ("smoke --temperature 4", "--temperature cannot act without a --teacher"),
        ("smoke --match probabilities", "--match cannot act without a --teacher"),
        ("smoke --match probabilities --beta 1", "--beta, --match cannot act without"),
        ("smoke --teacher {teacher} --loss ConfidencePenalty(beta=0.1)", "--loss cannot act with a --teacher"),
        ("smoke --teacher {teacher} --alpha 0.2", "--alpha cannot act with a --teacher"),
        ("student --teacher {teacher} --alpha 0.1", "--alpha cannot act with a --teacher"),
        ("smoke --teacher {teacher} --temperature 4", "give --match probabilities"),
        ("smoke --teacher {teacher} --beta 0", "--teacher cannot act"),
        ("smoke --teacher {teacher} --beta 1.5 --shift 0", r"share of the loss, must be in \[0, 1\]"),
        ("smoke --teacher {teacher} --beta nan --shift 0", "beta"),
        ("smoke --teacher {teacher} --match probabilities --temperature 0", "`temperature` must be"),
        ("smoke --teacher {teacher} --match probabilities --temperature -1", "`temperature` must be"),
        ("smoke --teacher {teacher} --match probabilities --temperature inf", "`temperature` must be"),
        ("smoke --teacher {nowhere}", "No SavedModel at"),
        ("smoke --teacher {broken}", "damaged"),
        ("smoke --teacher {broken} --shift 0", "damaged"),
        ("smoke --teacher {unfinished}", "damaged"),
        ("smoke --teacher {short}", "damaged"),
        ("smoke --teacher {file}", "No SavedModel at"),
    ],
    "cifar10_alexnet": [
        *CIFAR,
        ("smoke --temperature 4", "--temperature cannot act without a --teacher"),
        ("smoke --teacher {teacher} --loss ConfidencePenalty()", "--loss cannot act with a --teacher"),
        ("smoke --teacher {teacher} --alpha 0.2", "--alpha cannot act with a --teacher"),
        ("smoke --teacher {teacher} --temperature -4", "`temperature` must be"),
        ("smoke --teacher {teacher} --temperature nan", "temperature` must be"),
        ("smoke --teacher {nowhere}", "No SavedModel at"),
        ("smoke --teacher {broken}", "damaged"),
    ],
    "cifar100_resnet56": [
        *CIFAR,
        ("smoke --depth 9", "`depth` must be 6n"),
        ("smoke --depth 2", "`depth` must be 6n"),
        ("smoke --widths 16 32 64 0", "`widths` must be four positive"),
        ("smoke --widths 16 32 64 -1", "`widths` must be four positive"),
        ("smoke --momentum 1", r"`momentum` must be in \[0, 1\)"),
        ("smoke --momentum -0.9", r"`momentum` must be in \[0, 1\)"),
        ("smoke --clip-norm 0", "`clip_norm` must be above 0"),
        ("smoke --clip-norm -1", "`clip_norm` must be above 0"),
        ("smoke --clip-norm nan", "`clip_norm` must be"),
        ("smoke --observe-every 3", "`observe_every` must be"),
    ],
    "imagenet_inceptionv4": [
        *LOSS,
        ("smoke --width 0", "`width` must be above 0"),
        ("smoke --blocks 4 7 0", r"`blocks` must be three positive numbers, .*; received \(4, 7, 0\)"),
        ("smoke --width nan", "`width` must be finite"),
        ("smoke --image-size 74", r"at least 75 pixels high and wide; received \(74, 74\)"),
        ("smoke --auxiliary-weight 0.4", "at least 107 pixels .*with the auxiliary head"),
        ("smoke --auxiliary-weight -0.4", "`auxiliary_weight` must be at least 0; received -0.4"),
        ("smoke --dropout 1", r"`dropout` must lie in \[0, 1\)"),
        ("smoke --batch-norm-momentum 1", r"`momentum` must lie in \[0, 1\)"),
        ("smoke --weight-decay -1", "`weight_decay` must be at least 0"),
        ("smoke --learning-rate 0", "`learning_rate` must be above 0"),
        ("smoke --decay 1.1", r"falls must be in \(0, 1\]; received 1.1"),
        ("smoke --warmup-epochs -1", "`warmup_epochs` must be at least 0"),
        ("smoke --momentum 1", r"`momentum` must be in \[0, 1\)"),
        ("smoke --average 1", r"`average` must be in \[0, 1\)"),
        ("smoke --accumulation 0", "`accumulation` must be at least 1"),
        ("smoke --accumulation 3", "multiple of `accumulation`.*received 4 and 3"),
        ("smoke --colour full --central-crop 1", "--colour, --central-crop cannot act on the data set digits"),
        ("paper --train-size 5", "--train-size cannot act on the data set imagenet2012"),
        ("folder", "An image folder has no usual place: name it with --data-dir"),
        ("folder --data-dir {nowhere}", "nowhere is no folder"),
        ("paper --data-dir {nowhere} --crop-area 0 1", "`crop_area` must be two ascending numbers above 0"),
        ("paper --data-dir {nowhere} --held-out-size -1", "`held_out_size` must be a whole number"),
    ],
    "cifar10_distillation": [
        *SERIES,
        ("smoke --networks smok", "networks must be one of"),
        ("smoke --dataset digit", "Perhaps you meant 'digits'"),
        ("smoke --alphas", "alphas must be at least 0 and below 1; received none"),
        ("smoke --alphas 0", "alphas must hold 0 and at least one other"),
        ("smoke --alphas 0.1 0.2", "alphas must hold 0"),
        ("smoke --alphas 0 1.5 0.3", "alphas must be at least 0 and below 1; received 0.0, 1.5, 0.3"),
        ("smoke --alphas 0 0.3 -0.1", "alphas must be at least 0 and below 1"),
        ("smoke --alphas 0 0.3 nan", "alphas must be at least 0 and below 1"),
        ("smoke --alphas 0 0.3 0.3", "alphas must hold each number once"),
        ("smoke --alphas 0 0 0.3", "alphas must hold each number once"),
        ("smoke --temperatures", "temperatures must be above 0 and below inf; received none"),
        ("smoke --temperatures 1 0", "temperatures must be above 0"),
        ("smoke --temperatures 1 -4", "temperatures must be above 0"),
        ("smoke --temperatures inf", "temperatures must be above 0"),
        ("smoke --temperatures nan", "temperatures must be above 0"),
        ("smoke --temperatures 4 1 4", "temperatures must hold each number once"),
        ("smoke --observe-every 0", "observe_every must be a multiple of 2 up to 4"),
        ("smoke --observe-every -2", "observe_every must be a multiple of 2 up to 4"),
        ("smoke --observe-every 3", "observe_every must be a multiple of 2 up to 4"),
        ("smoke --observe-every 8", "observe_every must be a multiple of 2 up to 4"),
        ("smoke --teacher {nowhere}", "No SavedModel at"),
        ("smoke --teacher {broken}", "damaged"),
    ],
    "paper": [
        *SERIES,
        ("smoke --seeds 1", "at least 2 seeds"),
        ("smoke --first-seed -1", "`first_seed` must be at least 0; received -1"),
        ("smoke --networks smok", "unknown size 'smok'.*Perhaps you meant 'smoke'"),
        ("smoke --recipe mnist", "no recipe 'mnist' .*name a file of recipes/ that has a RECIPE, or module:NAME"),
        ("smoke --recipe analyse", "no recipe 'analyse' .*that has a RECIPE"),
        ("smoke --recipe json:dumps", "'json:dumps' is no experiment.Recipe but function"),
        ("smoke --student cifar10", "no recipe 'cifar10'"),
        ("smoke --dataset digit", "Perhaps you meant 'digits'"),
        ("smoke --alpha 1", "alpha must be above 0 and below 1"),
        ("smoke --alpha nan", "alpha must be above 0 and below 1"),
        ("smoke --best-alpha 1.5", "best_alpha must be above 0 and below 1"),
        ("smoke --best-alpha 0", "best_alpha must be above 0 and below 1"),
        ("smoke --best-alpha 0.3", r"best_alpha; 0\.3 is missing"),
        ("smoke --distilled 0.1 1.5 0.3", "distilled must be above 0 and below 1"),
        ("smoke --distilled 0 0.3", "distilled must be above 0 and below 1"),
        ("smoke --distilled 0.1 0.1", "distilled must hold each number once"),
        ("smoke --student-units", "student_units must be positive"),
        ("smoke --student-units 8 0", "student_units must be positive"),
        ("smoke --nll-margin 0", "nll_margin must be above 0"),
        ("smoke --join {nowhere}", "nowhere"),
        ("smoke --alphas", "alphas must be at least 0 and below 1; received none"),
        ("smoke --alphas 0 0.05 1.5 0.1", "alphas must be at least 0 and below 1; received 0.0, 0.05, 1.5, 0.1"),
        ("smoke --alphas 0 0.05 0.1 nan", "alphas must be at least 0 and below 1"),
        ("smoke --alphas 0 0.05 0.1 -0.3", "alphas must be at least 0 and below 1"),
        ("smoke --alphas 0 0.05 0.1 0.05", "alphas must hold each number once"),
        ("smoke --alphas 0.05 0.1", r"alphas must hold 0, alpha, calibrated_alpha and best_alpha; 0\.0 is missing"),
        ("smoke --alphas 0 0.1", r"calibrated_alpha and best_alpha; 0\.05 is missing"),
        ("smoke --alpha 0", "alpha must be above 0"),
        ("smoke --alpha 0.2", r"calibrated_alpha and best_alpha; 0\.2 is missing"),
        ("smoke --calibrated-alpha 0", "calibrated_alpha must be above 0"),
        ("smoke --accuracy-margin -0.01", "accuracy_margin must be above 0"),
        ("smoke --accuracy-margin 0", "accuracy_margin must be above 0"),
        ("smoke --accuracy-margin 1", "accuracy_margin must be above 0 and below 1"),
        ("smoke --ece-margin nan", "ece_margin must be above 0"),
    ],
    "sweep": [
        ("", "RECIPE"),
        ("mnist_mpl", "There is no recipe 'mnist_mpl'"),
        ("mnist_mlp smok --over alpha=0", "unknown size 'smok'"),
        ("mnist_mlp smoke", "nothing is swept"),
        ("mnist_mlp smoke --over alhpa=0,0.1", "Perhaps you meant 'alpha'"),
        ("mnist_mlp smoke --over alpha", "--over takes FIELD=VALUE"),
        ("mnist_mlp smoke --over alpha=0 --over alpha=0.1", "--over names 'alpha' twice"),
        ("mnist_mlp smoke --over alpha=0,0", "`alpha` has 0 twice"),
        ("mnist_mlp smoke --over alpha=0,1", "The point alpha = 1 cannot be trained"),
        ("mnist_mlp smoke --over units=0", "The point units = 0 cannot be trained"),
        ("mnist_mlp smoke --over alpha=0,0.1 --seeds 0", "`seeds` must be at least 1"),
        ("mnist_mlp smoke --over alpha=0,0.1 --objective loss", "unknown objective 'loss'"),
        ("mnist_mlp smoke --over alpha=0,0.1 --algorithm genetic", "genetic"),
        ("mnist_mlp smoke --over alpha=0,0.1 --trials 3", "trials cannot act with grid search"),
        ("mnist_mlp smoke --over temperature=1,2", "cannot act without a --teacher"),
        ("mnist_mlp smoke --over alpha=0,0.1 --over held_out_size=0", "holds no training examples out"),
        ("mnist_mlp smoke --over alpha=0,0.1 --workdir {file}", "cannot be written"),
        ("mnist_mlp smoke --over alpha=0,0.1 --strategy multi-worker", "on one machine"),
        ("cifar100_resnet56 smoke --teacher-over alpha=0", "its Config has no teacher"),
    ],
    "analyse": [
        ("", "networks"),
        ("{nowhere}", "No SavedModel at"),
        ("{file}", "No SavedModel at"),
        ("{broken}", "damaged"),
        ("{unfinished}", "damaged"),
        ("{short}", "damaged"),
        ("{run} {run}", "networks must be different ones"),
        ("{run} {run}/saved_model", "networks must be different ones"),
        ("{run} {run}/../{run.name}", "networks must be different ones"),
        ("1 2 3 4 5 6 7", "received 7 networks: give one to 6"),
        ("{run} --classes 0 0 1", "classes must be three different ones"),
        ("{run} --classes 0 1 10", "classes must be from 0 to 9, those of digits"),
        ("{run} --classes -1 0 1", "classes must be from 0 to 9"),
        ("{run} --limit 0", "limit must be at least 1"),
        ("{run} --limit -1", "limit must be at least 1"),
        ("{run} --limit 3", "The first 3 training examples show 3 of the 10 classes"),
        ("{run} --out {file}", "is a file"),
        ("{run} --out {file}/deeper", "is a file"),
        ("{run} --dataset mnist", "dataset mnist and not digits"),
        ("{run} --scaling standardize", "scaling standardize and not unit"),
        ("{run} --train-size 300 --held-out-size 50", "train_size 300 and not 200, held_out_size 50 and not 100"),
        ("{run}/saved_model --dataset mnist", "dataset mnist and not digits"),
        ("{alone}", "give --dataset and --scaling"),
        ("{alone} --dataset digits --scaling unit", "give train_size and held_out_size"),
        ("{alone} --dataset digits --scaling unit --train-size 0 --held-out-size 9", "at least 1; received 0"),
        ("{alone} --dataset digits --scaling unit --train-size 90 --held-out-size -9", "at least 0; received -9"),
        (
            "{run} {alone} --dataset digits --scaling unit --train-size 200 --held-out-size 99",
            "held_out_size 99 and not",
        ),
    ],
}
CASES = [(name, *case) for name, cases in REFUSED.items() for case in cases]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What commands may name: a file, a folder that does not exist, SavedModels whole and damaged, a finished run."""
    folder = tmp_path_factory.mktemp("places")
    mnist_mlp = named("mnist_mlp")
    config = dataclasses.replace(mnist_mlp.SIZES["smoke"], steps=2, evaluate_every=1, observe_every=0)
    run = mnist_mlp.RECIPE.run(config, size="smoke", where=experiment.Where(workdir=folder, quiet=True)).folder
    (folder / "file").write_text("text")
    for name in ("broken", "unfinished", "short", "alone/saved_model"):
        shutil.copytree(run / "saved_model", folder / name)
    cut_in_half(folder / "broken" / "saved_model.pb")
    (folder / "unfinished" / "variables" / "variables.index").unlink()
    cut_in_half(next((folder / "short").rglob("*.data-*")))
    names = ("file", "nowhere", "broken", "unfinished", "short", "alone")
    return {"teacher": run / "saved_model", "run": run, **{name: folder / name for name in names}}


def cut_in_half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(("name", "words", "message"), CASES, ids=[f"{name} {words}" for name, words, _ in CASES])
def test_a_command_that_cannot_be_meant_is_refused_before_work(
    name, words, message, places, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(training, "fit", began)
    monkeypatch.setattr(many, "_side_by_side", began)
    monkeypatch.setattr(Probe, "collect", began)
    monkeypatch.chdir(tmp_path)
    before = {path for place in places.values() for path in place.parent.rglob("*")}
    given = [word.format(**places) for word in words.split()]
    if name in ("analyse", "sweep"):
        option = "--out" if name == "analyse" else "--workdir"
        status = run_script(name, monkeypatch, *given, *([] if option in given else [option, tmp_path / "new" / "out"]))
    else:
        here = [] if "--workdir" in given else ["--workdir", tmp_path / "new" / "workdir"]
        _, status = run_main(name, monkeypatch, *given, *here)
    text = capsys.readouterr().err if isinstance(status, int) else status
    assert status not in (0, None)
    assert re.search(message, text), text
    assert "Traceback" not in text
    assert isinstance(status, int) or status.count("\n") == 0, "one sentence or a few, in one line"
    assert not list(tmp_path.iterdir())
    assert {path for place in places.values() for path in place.parent.rglob("*")} == before


def run_script(name, monkeypatch, *arguments):
    """What the command would do whose recipe reads its own command line."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
    return end.value.code


def began(*_, **__):
    raise AssertionError("the command was taken, and work began")


@pytest.mark.parametrize("name", [path.stem for path in RECIPES if path.stem not in ("analyse", "sweep")])
def test_every_size_passes_the_checks_of_its_own_recipe(name, tmp_path, monkeypatch):
    """Work begins: for every size, and with options that are as the size has them."""
    recipe = named(name)
    monkeypatch.setattr(running, "_settings", began)
    monkeypatch.setattr(many, "_one_by_one", began)
    monkeypatch.setattr(many, "_side_by_side", began)
    monkeypatch.setattr(driver, "_bring_data", began)
    for size, config in recipe.SIZES.items():
        with pytest.raises(AssertionError, match="work began"):
            run_of(recipe)(config, size=size, where=experiment.Where(workdir=tmp_path / "new"))


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("mnist_mlp", "smoke", {"teacher": Path("some"), "alpha": 0.0}),
        ("mnist_mlp", "smoke", {"teacher": Path("some")}),  # α is the size's own: nobody gave it
        ("mnist_mlp", "student", {"teacher": Path("some"), "match": "probabilities", "temperature": 4.0, "beta": 1.0}),
        ("cifar10_alexnet", "smoke", {"teacher": Path("some"), "temperature": 4.0}),
        ("cifar10_alexnet", "paper", {"steps": 10, "evaluate_every": 10}),  # the size's own drops
        ("cifar10_alexnet", "paper", {"drops": ()}),
        ("cifar100_resnet56", "smoke", {"drops": (3,), "momentum": 0.0}),
        ("mnist_mlp", "smoke", {"loss": "ConfidencePenalty(beta=0.3)"}),
        ("cifar10_alexnet", "smoke", {"loss": "keras.losses:SparseCategoricalCrossentropy(from_logits=True)"}),
        ("paper", "smoke", {"distilled": (0.3, 0.1), "best_alpha": 0.3}),
        ("paper", "smoke", {"distilled": ()}),
        ("paper", "smoke", {"recipe": "cifar100_resnet56", "student": "cifar10_alexnet", "student_units": None}),
        ("paper", "smoke", {"recipe": "tiny_recipe:RECIPE", "networks": "plain", "distilled": ()}),
        ("paper", "smoke", {"alphas": (0.1, 0.0, 0.05), "accuracy_margin": 0.5}),
    ],
)
def test_what_can_act_is_taken(name, size, fields, tmp_path, monkeypatch):
    recipe = named(name)
    monkeypatch.setattr(running, "_settings", began)
    monkeypatch.setattr(many, "_one_by_one", began)
    monkeypatch.setattr(many, "_side_by_side", began)
    monkeypatch.setattr(driver, "_bring_data", began)
    config = dataclasses.replace(recipe.SIZES[size], **fields)
    with pytest.raises(AssertionError, match="work began"):
        run_of(recipe)(config, size=size, where=experiment.Where(workdir=tmp_path))


def refuse(url):
    raise ConnectionError(f"no answer from {url}")
