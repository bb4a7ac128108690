"""Sweeps: fields and values, how a search goes on after kills, which points can be told apart, and one whole."""

import csv
import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ls_keras import study, sweeps
from ls_keras.experiment import Where, many
from ls_keras.sweeps import driver, networks, oracles, space, tables
from ls_keras_recipes import cifar10_alexnet, mnist_mlp, named

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

RECIPE = mnist_mlp.RECIPE
GRID = {"alpha": "0,0.05,0.1", "learning_rate": "0.5,1"}


def of(over, **options):
    found = space.space(RECIPE, "smoke", over, **options)
    found.check()
    return found


# --- Fields and values


def test_a_command_lines_text_and_values_are_the_same_points():
    text = of({"alpha": "0,0.1", "units": "50x50,8", "scaling": "unit", "max_norm": "none,3"})
    values = of({"alpha": [0, 0.1], "units": [[50, 50], (8,)], "scaling": ("unit",), "max_norm": (None, 3)})
    assert text.points() == values.points()
    assert text.points()[-1] == {"alpha": 0.1, "units": (8,), "scaling": "unit", "max_norm": 3.0}
    assert len(text.points()) == 8
    assert text.varied == ["alpha", "units", "max_norm"]
    config = text.config(text.points()[0], seed=7)
    base = dataclasses.replace(RECIPE.sizes["smoke"], observe_every=0)
    assert config == dataclasses.replace(base, alpha=0.0, units=(50, 50), scaling="unit", max_norm=None, seed=7)


def test_numpys_numbers_are_numbers():
    found = of({"alpha": np.array([0.0, 0.1]), "batch_size": np.arange(50, 60, 5)})
    assert found.points()[0] == {"alpha": 0.0, "batch_size": 50}
    assert all(type(value) is kind for value, kind in zip(found.points()[0].values(), (float, int), strict=True))


def test_none_ranges_and_commas_are_read_where_the_field_has_them():
    found = of(
        {"loss": "none,ConfidencePenalty(beta=0.1),ConfidencePenalty(beta=0.2, from_logits=True)", "max_norm": "none"}
    )
    assert found.axes["loss"] == (None, "ConfidencePenalty(beta=0.1)", "ConfidencePenalty(beta=0.2, from_logits=True)")
    assert of({"teacher": "none"}).axes["teacher"] == (None,)
    assert space.space(RECIPE, "smoke", {"teacher": "gs://a/b"}).axes["teacher"] == (Path("gs://a/b"),)
    whole = space.space(RECIPE, "smoke", {"batch_size": "50:52", "alpha": "0,0.1"})
    assert whole.number == 6
    assert space.space(RECIPE, "smoke", {"batch_size": "50:52", "alpha": "0:0.1"}).number == np.inf


def test_students_have_the_fields_of_their_teachers_first():
    students = of({"match": "probabilities", "temperature": "1,2"}, teacher_over={"alpha": "0,0.1"})
    assert students.points()[1] == {"teacher.alpha": 0.0, "match": "probabilities", "temperature": 2.0}
    point = students.points()[-1]
    assert students.teacher_config(point, 3).alpha == 0.1
    assert students.teacher_config(point, 3).seed == 3
    own = students.config(point, 3, Path("there"))
    assert (own.teacher, own.temperature, own.alpha) == (Path("there"), 2.0, RECIPE.sizes["smoke"].alpha)
    other = space.space(
        mnist_mlp.RECIPE, "student", {}, {"alpha": "0,0.1"}, cifar10_alexnet.RECIPE, teacher_size="smoke"
    )
    assert other.teacher[0] is cifar10_alexnet.RECIPE


@pytest.mark.parametrize(
    ("over", "options", "message"),
    [
        ({"alhpa": "0"}, {}, "mnist_mlp: unknown field 'alhpa'.*Perhaps you meant 'alpha'"),
        ({"alpha": "0,much"}, {}, "`alpha` is float; received 'much'"),
        ({"alpha": (0, "0.1")}, {}, "`alpha` is float; received '0.1'"),
        ({"batch_size": "50.5"}, {}, "`batch_size` is int; received '50.5'"),
        ({"batch_size": (True,)}, {}, "`batch_size` is int; received True"),
        ({"scaling": "unti"}, {}, "'standardize' or 'unit'; received 'unti'"),
        ({"alpha": "0,0.1,0"}, {}, "`alpha` has 0 twice"),
        ({"alpha": (0, 0.0)}, {}, "`alpha` has 0 twice"),
        ({"alpha": ()}, {}, "`alpha` has no values"),
        ({"alpha": 0.1}, {}, "`alpha` takes a sequence of values"),
        ({"batch_size": b"ab"}, {}, "`batch_size` takes a sequence of values"),
        ({"scaling": [np.array(["unit"])]}, {}, "`scaling` is 'standardize' or 'unit'; received"),
        ({"alpha": sweeps.Between(0.1, 0.10000001)}, {}, "LOW < HIGH"),
        ({"alpha": sweeps.Between(0.1, 0.2, "yes")}, {}, "log=True or False"),
        (None, {}, "`over` takes values by field"),
        (["alpha"], {}, "`over` takes values by field"),
        ({3: "1"}, {}, "`over` takes values by field"),
        ({"alpha": "0"}, {"teacher_over": "alpha=0"}, "`teacher_over` takes values by field"),
        ({"alpha": "0"}, {"teacher_over": {}, "teacher_recipe": "mnist_mlp"}, "a recipe is an `experiment.Recipe`"),
        ({"alpha": "0,1.5"}, {}, r"The point alpha = 1.5 cannot be trained: .*`?alpha"),
        ({"learning_rate": "0"}, {}, "The point learning_rate = 0 cannot be trained.*above 0"),
        ({"alpha": "0.3:0.1"}, {}, "LOW < HIGH"),
        ({"alpha": "0:0.1:log"}, {}, "LOW > 0 with :log; received 0:0.1:log"),
        ({"alpha": "0:0.1:lin"}, {}, "takes LOW:HIGH or LOW:HIGH:log"),
        ({"units": sweeps.Between(1, 2)}, {}, "has no range: list its values"),
        ({"alpha": sweeps.Between(0, 2)}, {}, "The point alpha = 2 cannot be trained"),
        ({"seed": "0,1"}, {}, "`seed` is what --seeds counts"),
        ({"temperature": "1,2"}, {}, "The point temperature = 2 cannot be trained: .*cannot act without a --teacher"),
        ({}, {}, "nothing is swept"),
        ({"alpha": "0"}, {"teacher_size": "smoke"}, "give --teacher-over"),
        ({"teacher": "x"}, {"teacher_over": {"alpha": "0"}}, "`teacher` is what --teacher-over trains"),
        ({"alpha": "0.3"}, {"teacher_over": {"alpha": "0"}}, "--alpha cannot act with a --teacher"),
        ({"temperature": "2"}, {"teacher_over": {"alpha": "0"}}, "give --match probabilities"),
    ],
)
def test_what_cannot_be_meant_is_refused(over, options, message):
    with pytest.raises(ValueError, match=message):
        of(over, **options)


def test_a_recipe_that_has_no_students_and_one_that_is_not_there():
    plain = dataclasses.replace(RECIPE, sizes={"smoke": dataclasses.make_dataclass("Plain", [("seed", int)])(0)})
    with pytest.raises(ValueError, match="its Config has no teacher"):
        space.space(plain, "smoke", {}, {"seed": "1"}, RECIPE)
    with pytest.raises(ValueError, match=r"unknown size 'smok'.*Perhaps you meant 'smoke'"):
        space.space(RECIPE, "smok", {})
    with pytest.raises(ValueError, match="There is no recipe 'mnist_mpl'"):
        named("mnist_mpl")


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["alpha"], "takes FIELD=VALUE"), (["=1"], "takes FIELD=VALUE"), (["a=1", "a=2"], "names 'a' twice")],
)
def test_options_of_another_form_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        sweeps.parse(texts, "--over")
    assert sweeps.parse(["batch-size=1,2"], "--over") == {"batch_size": "1,2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "gird"}, "unknown algorithm 'gird'.*'grid'"),
        ({"objective": "loss"}, "unknown objective 'loss'; known: nll, accuracy"),
        ({"objective": "acuracy"}, "Perhaps you meant 'accuracy'"),
        ({"seeds": 0}, "`seeds` must be at least 1; received 0"),
        ({"trials": 3}, "trials cannot act with grid search"),
        ({"algorithm": "random", "trials": 6}, "6 trials are no fewer than the 6 points there are"),
        ({"algorithm": "random", "trials": 0}, "`trials` must be at least 1"),
        ({"algorithm": "random", "over": {"batch_size": "50:51"}}, "20 trials are no fewer than the 2 points"),
        ({"algorithm": "random", "search_seed": 2**40}, "`search_seed` must be at most"),
        ({"algorithm": None}, "unknown algorithm 'None'"),
        ({"objective": ["nll"]}, "unknown objective"),
        ({"size": 3}, "unknown size '3'"),
        ({"name": 5}, "a sweep's name is that of one folder; received 5"),
        ({"algorithm": "hyperband", "objective": "ece"}, "ECE is not bias-reduced"),
        ({"algorithm": "hyperband", "over": {"alpha": "0,0.1", "steps": "4", "evaluate_every": "8"}}, "multiple of"),
        ({"algorithm": "hyperband", "over": {"alpha": "0,0.1", "evaluate_every": "0"}}, "at least 1"),
        ({"algorithm": "hyperband", "over": {**GRID, "evaluate_every": "6"}}, "draws 22 points for 10 .* there are 6"),
        ({"algorithm": "hyperband", "objective": "nll_at_temperature"}, "no temperature is fitted"),
        ({"over": {"alpha": "0:0.5"}}, "a grid needs values, not the range of alpha"),
        ({"over": {"steps": "30,60"}, "algorithm": "hyperband"}, "hyperband counts evaluations, of which steps"),
        ({"over": {"held_out_size": "100,0"}}, "held_out_size = 0 holds no training examples out"),
        ({"over": {"units": "8,0"}}, "The point units = 0 cannot be trained: `units` must name"),
        ({"over": {"alpha": "0", "dropout": "0,1"}}, "The point alpha = 0, dropout = 1 cannot be trained: `dropout`"),
        ({"teacher_over": {"dropout": "1"}, "over": {}}, "teacher.dropout = 1 cannot be trained: `dropout`"),
        ({"over": {"train_size": "9999"}}, "train_size"),
        ({"over": {"held_out_size": "100,90"}}, "With held_out_size = 90 the held-out examples are others"),
        ({"over": {"train_size": "200,150"}}, "With train_size = 150 the held-out examples are others"),
        ({"name": "../there"}, "a sweep's name is that of one folder; received '../there'"),
        ({"where": {"snapshots": True}}, "--snapshots cannot act"),
        ({"where": {"checkpoints": 0}}, "`checkpoints` must be at least 1"),
        ({"where": {"strategy": "multi-worker"}}, "on one machine"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_work(options, message, tmp_path):
    where = Where(workdir=tmp_path, quiet=True, **options.get("where", {}))
    arguments = {"over": GRID, "size": "smoke", **options, "where": where}
    with pytest.raises((ValueError, OSError), match=message):
        sweeps.sweep(RECIPE, **arguments)
    assert not list(tmp_path.iterdir())


def brackets(evaluations):
    """Count what KerasTuner's own oracle draws for the first round of every bracket."""
    found = oracles.oracle(of({"alpha": "0:0.5"}), "hyperband", trials=0, direction="min", seed=0, epochs=evaluations)
    with oracles._quiet():
        seen = 0
        for k in itertools.count():
            trial = found.create_trial(f"w{k}")
            if trial.status != "RUNNING":
                return seen
            seen += trial.hyperparameters.values["tuner/round"] == 0
            found.update_trial(trial.trial_id, {"objective": float(k)})
            trial.status = "COMPLETED"
            found.end_trial(trial)


@pytest.mark.parametrize("evaluations", [1, 2, 3, 5, 9, 10, 40])
def test_the_points_that_hyperband_draws_are_counted(evaluations):
    assert driver._hyperband_points(evaluations) == brackets(evaluations)


# --- A search goes on


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(oracles.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def objective(task):
    return (task.point["alpha"] - 0.07) ** 2 + (np.log(task.point["learning_rate"]) - 0.3) ** 2


def ledger(path, swept, algorithm="grid", score=objective, **options):
    new = oracles.oracle(swept, algorithm, trials=9, direction="min", seed=0, epochs=9)
    return oracles.Ledger(new, path, score, swept, **options)


def drive(path, swept, algorithm, cuts=()):
    """Do a whole search with one worker, which is killed after so many questions, its file cut within a line."""
    done, asked = [], 0
    book = ledger(path, swept, algorithm)
    while True:
        trial = book.create_trial("local/0")
        if trial.status == "STOPPED":
            book.close()
            return done
        task = book.task(trial)
        asked += 1
        if asked in cuts:
            book.close()
            with path.open("ab") as file:
                file.write(b'{"trial": "00')
            book = ledger(path, swept, algorithm)
            continue
        done.append((task.name, tuple(task.point.items()), task.epochs))
        book.end_trial(trial)


RANGES = {"alpha": "0:0.6", "learning_rate": "0.1:2:log"}


@pytest.mark.parametrize("algorithm", driver.ALGORITHMS)
def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(algorithm, tmp_path):
    swept = of(GRID if algorithm == "grid" else RANGES)
    undisturbed = drive(tmp_path / "one", swept, algorithm)
    assert drive(tmp_path / "two", swept, algorithm, cuts=(1, 4, 5, 9)) == undisturbed
    assert (tmp_path / "one").read_text() == (tmp_path / "two").read_text()
    assert len({name for name, *_ in undisturbed}) == len(undisturbed)
    if algorithm == "grid":
        assert [dict(point) for _, point, _ in undisturbed] == swept.points()
    elif algorithm != "hyperband":
        assert len(undisturbed) == 9
    # And what is over stays over.
    assert drive(tmp_path / "one", swept, algorithm) == []


def test_hyperband_trains_the_better_half_longer(tmp_path):
    done = drive(tmp_path / "file", of(RANGES), "hyperband")
    epochs = {}
    for _, point, each in done:
        epochs.setdefault(point, []).append(each)
    best = min(epochs, key=lambda point: objective(space.Task("", dict(point))))
    assert all(each == sorted(each) for each in epochs.values())
    assert epochs[best][-1] == 9
    assert len(epochs) == driver._hyperband_points(9) > sum(each[-1] == 9 for each in epochs.values()) > 1


def test_hyperband_throws_failed_points_out_and_goes_on(tmp_path):
    swept = of(RANGES)

    def score(task):
        return "diverged" if task.point["learning_rate"] > 0.7 else objective(task)

    book, done = ledger(tmp_path / "file", swept, "hyperband", score), []
    while (trial := book.create_trial("local/0")).status == "RUNNING":
        done.append(book.task(trial))
        book.end_trial(trial)
        if len(done) in (4, 11):  # killed, too
            book.close()
            book = ledger(tmp_path / "file", swept, "hyperband", score)
    book.close()
    failed = {tuple(task.point.items()) for task in done if score(task) == "diverged"}
    assert 4 < len(failed) < len(done) - 6
    assert sum(task.epochs == 9 for task in done) == sum(task.epochs == 9 for task in whole_hyperband(tmp_path, swept))
    assert not [task for task in done if tuple(task.point.items()) in failed and task.epochs == 3 and len(failed) < 5]


def whole_hyperband(tmp_path, swept):
    return [space.Task(name, dict(point), epochs) for name, point, epochs in drive(tmp_path / "b", swept, "hyperband")]


def test_what_was_measured_and_is_lost_is_open_again(tmp_path):
    swept, lost = of(GRID), set()

    def score(task):
        if task.name in lost:
            raise FileNotFoundError(task.name)
        return 1.0

    drive(tmp_path / "file", swept, "grid")
    lost |= {"0001", "0004"}
    book, again = ledger(tmp_path / "file", swept, score=score), []
    while (trial := book.create_trial("local/0")).status == "RUNNING":
        again.append(trial.trial_id)
        lost.discard(trial.trial_id)
        book.end_trial(trial)
    book.close()
    assert again == ["0001", "0004"]


def test_a_chief_that_was_begun_again_leaves_living_workers_their_trials(clock, tmp_path):
    book = ledger(tmp_path / "file", of(GRID), chief=True)
    held = book.create_trial("one/0")
    book.close()
    clock.now += 1000.0
    book = ledger(tmp_path / "file", of(GRID), chief=True)
    assert book.create_trial("two/0").trial_id != held.trial_id
    assert book.create_trial("one/0").trial_id == held.trial_id
    assert book.workers() == 2
    book.close()


def test_a_chief_stays_until_every_worker_was_told(clock, tmp_path):
    book = ledger(tmp_path / "file", of({"alpha": "0", "learning_rate": "1"}), chief=True)
    trial = book.create_trial("one/0")
    assert book.create_trial("two/0").status == "IDLE"
    book.end_trial(trial)
    assert book.create_trial("one/0").status == "STOPPED"
    assert not book.over(), "two has not heard of it"
    clock.now += oracles.DEAD + 1
    assert book.over()
    book.close()


def test_values_survive_kerastuners_messages():
    """KerasTuner sends numbers as float32; what comes out must name the same folders everywhere."""
    swept = of({"alpha": "0,0.1,0.3", "learning_rate": "0.01:1:log", "batch_size": "16:64"})
    found = oracles.oracle(swept, "random", trials=50, direction="min", seed=3, epochs=1)
    with oracles._quiet():
        for k in range(50):
            trial = found.create_trial(f"w{k}")
            here, there = (oracles._task(each, swept) for each in (trial, type(trial).from_proto(trial.to_proto())))
            assert here == there
            assert here.point["alpha"] in (0.0, 0.1, 0.3)
            assert isinstance(here.point["batch_size"], int)


class Together:
    """Three workers and a chief, any of whom may die; a worker that dies is followed by one of another name."""

    def __init__(self, monkeypatch, path):
        self.clock, self.path, self.swept = Clock(monkeypatch), path, of(GRID)
        self.holders, self.dead, self.number = {}, [], itertools.count(3)
        self.names = ["w0/0", "w1/0", "w2/0"]
        self.book = ledger(path, self.swept, chief=True)

    def ask(self, worker):
        if worker in self.holders:
            return "RUNNING"
        trial = self.book.create_trial(worker)
        if trial.status == "RUNNING":
            own = {other for other, held in self.holders.items() if held.trial_id == trial.trial_id}
            assert own <= {worker, *self.dead}, "one trial, two living workers"
            self.holders[worker] = trial
        return trial.status

    def end(self, worker):
        if worker in self.holders:
            self.book.end_trial(self.holders.pop(worker))

    def late_end(self, worker):
        if self.dead:  # one that was only slow
            self.book.end_trial(self.holders[self.dead[-1]])

    def die(self, worker):
        if worker in self.holders:
            self.dead.append(worker)
            self.names[self.names.index(worker)] = f"w{next(self.number)}/0"

    def beat(self, worker):
        if worker in self.holders:
            self.book.get_trial(self.holders[worker].trial_id)

    def wait(self, worker):
        self.clock.now += 25.0
        for name in self.names:
            self.beat(name)

    def chief(self, worker):
        self.book.close()
        self.book = ledger(self.path, self.swept, chief=True)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["ask", "end", "late_end", "die", "wait", "beat", "chief"]), max_size=60))
def test_whoever_dies_every_point_is_ended_once(tmp_path_factory, monkeypatch, events):
    """Brute force over orders of events; when the dust settles, all points are done, and none twice."""
    all_of_them = Together(monkeypatch, tmp_path_factory.mktemp("book") / "trials.jsonl")
    for k, event in enumerate(events):
        getattr(all_of_them, event)(all_of_them.names[k % 3])
    for name in all_of_them.names:
        all_of_them.end(name)
    for _ in range(100):
        if (status := all_of_them.ask("last/0")) == "STOPPED":
            break
        all_of_them.end("last/0")
        all_of_them.clock.now += oracles.DEAD / 4
    book = all_of_them.book
    assert status == "STOPPED"
    tasks = book.tasks()
    assert [status for _, status in tasks] == ["COMPLETED"] * 6
    assert [dict(task.point) for task, _ in tasks] == all_of_them.swept.points()
    book.close()
    lines = [json.loads(line) for line in all_of_them.path.read_text().splitlines()]
    for kind in ("values", "end"):
        assert sorted(line["trial"] for line in lines if kind in line) == [task.name for task, _ in tasks]


def test_a_silent_workers_point_goes_to_another_within_a_minute(clock, tmp_path):
    book = ledger(tmp_path / "file", of(GRID), chief=True)
    lost = book.create_trial("one/0")
    for _ in range(7):
        clock.now += oracles.HEARTBEAT - 1
        assert book.create_trial("two/0").trial_id == "0001"
        if clock.now <= 20:
            book.get_trial(lost.trial_id)
    assert 18 + oracles.DEAD < clock.now < 18 + 60
    assert book.create_trial("two/1").trial_id == lost.trial_id
    assert book.workers() == 1
    assert not book.over()
    book.close()


def test_the_last_worker_waits_for_what_others_may_leave(clock, tmp_path):
    book = ledger(tmp_path / "file", of({"alpha": "0,0.1", "learning_rate": "1"}), chief=True)
    book.create_trial("one/0")
    book.end_trial(book.create_trial("two/0"))
    assert book.create_trial("two/0").status == "IDLE"
    clock.now += oracles.DEAD + 1
    assert book.create_trial("two/0").trial_id == "0000"
    book.end_trial(book.create_trial("two/0"))
    assert book.create_trial("two/0").status == "STOPPED"
    assert book.over()
    book.close()


def test_failed_trials_are_tried_again_by_the_next_command(tmp_path):
    swept = of(GRID)
    book = ledger(tmp_path / "file", swept, score=lambda task: "broken" if task.point["alpha"] == 0.05 else 1.0)
    while (trial := book.create_trial("local/0")).status == "RUNNING":
        book.end_trial(trial)
    assert [status for _, status in book.tasks()].count("FAILED") == 2
    book.close()
    assert '"reason": "broken"' in (tmp_path / "file").read_text()
    book, again = ledger(tmp_path / "file", swept), []
    while (trial := book.create_trial("local/0")).status == "RUNNING":
        again.append(dict(book.task(trial).point))
        book.end_trial(trial)
    assert again == [{"alpha": 0.05, "learning_rate": 0.5}, {"alpha": 0.05, "learning_rate": 1.0}]
    assert [status for _, status in book.tasks()] == ["COMPLETED"] * 6
    book.close()


def test_a_book_that_is_damaged_or_of_another_search_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text('{"trial": "0000", "work\n{"trial": "0001"}\n')
    with pytest.raises(ValueError, match="is damaged"):
        ledger(path, of(GRID))
    for line in ("{}", '{"trial": "0000"}', "[]", '{"trial": "0000", "end": "COMPLETED", "score": 1.0}'):
        path.write_text(line + "\n")
        with pytest.raises(ValueError, match="is damaged"):
            ledger(path, of(GRID))
    path.write_text('{"trial": "0007", "worker": "a", "values": {"alpha": 0, "learning_rate": 0}}\n')
    with pytest.raises(ValueError, match=r"does not fit .*Choose another --name"):
        ledger(path, of(GRID))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"KERASTUNER_TUNER_ID": "chief"}, "KERASTUNER_ORACLE_IP, KERASTUNER_ORACLE_PORT is missing"),
        ({"KERASTUNER_TUNER_ID": "a", "KERASTUNER_ORACLE_IP": "h", "KERASTUNER_ORACLE_PORT": "x"}, "PORT is 'x'"),
        ({"KERASTUNER_TUNER_ID": "a", "KERASTUNER_ORACLE_IP": "h", "KERASTUNER_ORACLE_PORT": "99999"}, "'99999'"),
        ({"KERASTUNER_TUNER_ID": "a", "KERASTUNER_ORACLE_IP": "h", "KERASTUNER_ORACLE_PORT": "0"}, "'0'"),
        ({"KERASTUNER_TUNER_ID": "a/b", "KERASTUNER_ORACLE_IP": "h", "KERASTUNER_ORACLE_PORT": "1"}, "without '/'"),
    ],
)
def test_variables_that_do_not_say_who_this_is(variables, message, monkeypatch):
    assert oracles.role() is None
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        oracles.role()


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_chief_that_cannot_be_reached_and_one_whose_port_is_taken(tmp_path, monkeypatch, port):
    for name, value in (("TUNER_ID", "one"), ("ORACLE_IP", "127.0.0.1"), ("ORACLE_PORT", str(port))):
        monkeypatch.setenv(f"KERASTUNER_{name}", value)
    where = Where(workdir=tmp_path, quiet=True, wait_minutes=0.01)
    with pytest.raises(ConnectionError, match=f"No chief answers at 127.0.0.1:{port} within 0.01 minutes"):
        sweeps.sweep(RECIPE, over=GRID, size="smoke", where=where)
    assert not list(tmp_path.iterdir())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with (
            pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{port}"),
            oracles.serving(None, f"127.0.0.1:{port}"),
        ):
            pass


# --- What can be told apart


def measured(nll, correct=None, failed=""):
    """Make a network's record of what each held-out example adds."""
    nll = np.asarray(nll, np.float32)
    correct = np.ones_like(nll) if correct is None else np.asarray(correct, np.float32)
    rows = {name: correct if name == "accuracy" else nll for name in networks.QUANTITIES}
    values = {name: float(row.mean()) for name, row in rows.items()}
    held_out = {**values, "temperature": 1.5}
    splits = {"held_out": held_out, "test": values}
    return networks.Measured({}, "there", 1.0, splits, {"held_out": rows, "test": rows}, {}, failed)


def found_of(means, generator, seeds=5, examples=200):
    """Draw points with seed and example effects, by their true means."""
    example = generator.normal(size=examples)
    return [
        (
            str(k),
            {"alpha": float(k)},
            {
                seed: measured(9 + mean + example + generator.normal(0, 0.1) + generator.normal(0, 0.5, examples))
                for seed in range(seeds)
            },
            "",
        )
        for k, mean in enumerate(means)
    ]


def test_the_best_of_equal_points_is_among_the_best_in_95_of_100_sweeps():
    generator = np.random.default_rng(0)
    missed, number = 0, 300
    for _ in range(number):
        rows = tables.rows(found_of([0.0] * 8, generator), "nll")
        missed += rows[3].standing == "worse"  # each of equal ones is the best
    # Binomial(300, 0.05) lies above 25 in 1 of 400 cases.
    assert missed <= 25


def test_what_is_clearly_worse_is_told_apart_and_numbers_are_numpys():
    generator = np.random.default_rng(1)
    found = found_of([0.5, 0.0, 0.01, 2.0], generator)
    found.append(("4", {"alpha": 4.0}, {0: measured([1.0], failed="broken")}, "seed 0: broken"))
    found.append(("5", {"alpha": 5.0}, {0: measured([1.0] * 200)}, "paused after 3 evaluations"))
    rows = tables.rows(found, "nll")
    assert rows[3].standing == "worse"
    assert {rows[1].standing, rows[2].standing} == {"best", "like the best"}
    assert [row.standing for row in rows[4:]] == ["failed", "paused"]
    values = np.array([network.examples["held_out"]["nll"].mean() for network in found[1][2].values()])
    assert rows[1].estimates["held_out"]["nll"].mean == pytest.approx(values.mean(), abs=1e-6)
    assert rows[1].temperature == 1.5
    text = list(csv.DictReader(tables.to_csv(rows).splitlines()))
    assert [line["standing"] for line in text] == [row.standing for row in rows]
    assert float(text[1]["held_out_nll"]) == pytest.approx(values.mean(), abs=1e-6)
    assert float(text[1]["held_out_nll_low"]) < values.mean() < float(text[1]["held_out_nll_high"])
    assert text[4]["reason"] == "seed 0: broken"
    assert text[4]["held_out_nll"] == ""
    swept = driver.Swept(Path("there"), rows, "nll", ("alpha",))
    assert [row.trial for row in swept.best] == [row.trial for row in tables.ranked(rows, "nll")[:2]]
    assert [row.trial for row in swept.failed] == ["4"]
    assert swept.failures() == "alpha = 4: seed 0: broken"
    assert str(swept).splitlines()[1].split()[1] == "best"
    assert str(swept).endswith("; 1 other point cannot be told from it")
    assert f"chosen on held-out examples: alpha = {swept.best[0].point['alpha']:g};" in str(swept)
    alone = driver.Swept(Path("there"), tables.rows(found[1:2] + found[3:4], "nll"), "nll", ("alpha",))
    assert str(alone).endswith("alpha = 1; it can be told from every other point")


def test_accuracy_is_better_where_it_is_higher_and_ends_at_1():
    rng = np.random.default_rng(2)
    many, few = ({seed: measured(np.ones(300), rng.random(300) < share) for seed in range(5)} for share in (0.995, 0.6))
    rows = tables.rows([("0", {"a": 0}, few, ""), ("1", {"a": 1}, many, "")], "accuracy")
    assert [row.standing for row in rows] == ["worse", "best"]
    assert rows[1].estimates["held_out"]["accuracy"].high <= 1.0
    assert tables.ranked(rows, "accuracy")[0] is rows[1]


@pytest.mark.parametrize("objective", ["nll", "accuracy", "ece"])
def test_intervals_and_standings_are_those_of_a_study(objective):
    """The way of `study.interval`, from records: another implementation of which rows and options mean what."""
    generator = np.random.default_rng(4)
    names = {"nll": "nll", "accuracy": "accuracy", "ece": "bias-reduced ece"}
    found, records = [], []
    for k, sharpness in enumerate((2.0, 2.2)):
        own = {}
        for seed in range(4):
            labels = np.random.default_rng(9).integers(0, 5, 300)
            logits = generator.normal(size=(300, 5)) + sharpness * np.eye(5)[labels]
            numbers, rows = study.statistics(logits, labels)
            values = {name: numbers[theirs] for name, theirs in networks.QUANTITIES.items()} | {"temperature": 1.0}
            examples = {name: rows[theirs] for name, theirs in networks.QUANTITIES.items()}
            own[seed] = networks.Measured({}, "", 1.0, {"held_out": values}, {"held_out": examples}, {})
            records.append(study.Record(str(k), seed, "", values=numbers, examples=rows))
        found.append((str(k), {"a": k}, own, ""))
    measured = study.Measured("s", {}, {}, {}, tuple(records))
    rows = tables.rows(found, objective)
    for row, arm in zip(rows, "01", strict=True):
        theirs = study.interval(measured, study.Comparison(study.Term(arm, names[objective])))
        mine = row.estimates["held_out"][objective]
        assert (mine.mean, mine.low, mine.high) == pytest.approx((theirs.estimate, theirs.low, theirs.high), rel=1e-9)
    terms = [study.Term(arm, names[objective]) for arm in "01"]
    paired = study.interval(measured, study.Comparison(*terms))
    difference = tables._interval(found[0][2], "held_out", objective, 0.95, found[1][2])
    assert (difference.low, difference.high) == pytest.approx((paired.low, paired.high), rel=1e-9)


def test_one_seed_tells_nothing_apart():
    rows = tables.rows([(str(k), {"a": k}, {0: measured([k + 1.0, k + 2.0])}, "") for k in range(2)], "nll")
    assert [row.standing for row in rows] == ["best", "one seed"]
    assert np.isnan(rows[0].estimates["test"]["nll"].low)
    text = str(driver.Swept(Path("there"), rows, "nll", ("a",)))
    assert "[" not in text
    assert "chosen on held-out examples: a = 0; one seed shows no interval" in text


@pytest.mark.parametrize("fields", [1, 2, 3])
def test_figures_show_every_point_hollow_where_it_is_worse(fields):
    generator = np.random.default_rng(3)
    names = ["alpha", "learning_rate", "units"][:fields]
    points = [dict(zip(names, values, strict=True)) for values in itertools.product([0.0, 0.1], repeat=fields)]
    drawn = found_of(np.linspace(0, 3, len(points)), generator)
    rows = tables.rows([(t, point, n, r) for (t, _, n, r), point in zip(drawn, points, strict=True)], "nll")
    figure = tables.figure(rows, dict.fromkeys(names, (0.0, 0.1)), names, "nll")
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(marks) == len(points)
    values = axes.lines and [
        float(np.ravel(line.get_xdata() if fields == 3 else line.get_ydata())[0]) for line in marks
    ]
    assert sorted(values) == pytest.approx(sorted(row.estimates["held_out"]["nll"].mean for row in rows))
    hollow = [line.get_markerfacecolor() == "white" for line in marks]
    assert sum(hollow) == sum(row.standing == "worse" for row in rows) > 0


# --- One whole


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Train here, where TensorFlow is loaded; the recipe's own command trains on every core."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(many, "_places", lambda where: [{}])
        yield


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return Where(workdir=tmp_path_factory.mktemp("sweep"), quiet=True)


FEW = {"alpha": "0,0.1", "learning_rate": "1,1e30", "steps": "30"}


@pytest.fixture(scope="module")
def swept(where):
    return sweeps.sweep(RECIPE, over=FEW, seeds=2, size="smoke", name="few", where=where)


def test_numbers_are_those_that_the_runs_report(swept, where):
    """A run evaluates by Keras, in batches; a sweep by NumPy, from logits that its SavedModel gives."""
    stored = json.loads((swept.folder / "records.json").read_text())
    good = [record for record in stored["networks"] if not record["failed"]]
    assert {(record["point"]["alpha"], record["seed"]) for record in good} == {(0.0, 0), (0.0, 1), (0.1, 0), (0.1, 1)}
    for record in good:
        metrics = json.loads((where.workdir / record["folder"] / "metrics.json").read_text())
        for split in ("held_out", "test"):
            for name in ("nll", "accuracy"):
                assert record["values"][split][name] == pytest.approx(metrics[split][name], rel=1e-5)
        assert record["config"]["alpha"] == record["point"]["alpha"]
        assert record["config"]["seed"] == record["seed"]
    for row in swept.rows[::2]:
        own = [r["values"]["test"]["nll"] for r in good if r["point"]["alpha"] == row.point["alpha"]]
        assert row.estimates["test"]["nll"].mean == pytest.approx(np.mean(own))
    assert stored["sweep"]["recipe"] == "mnist_mlp"
    assert "tensorflow" in stored["made"]["Versions"]


def test_a_point_that_diverges_fails_alone_and_says_why(swept):
    assert [row.standing for row in swept.rows].count("failed") == 2
    assert all(row.point["learning_rate"] == 1e30 for row in swept.failed)
    assert "seeds 0, 1: mnist_mlp: The loss is nan" in swept.failures()
    assert {path.name for path in swept.folder.iterdir()} == {
        *("measured", "records.json", "sweep.json", "sweep.pdf", "sweep.png", "table.csv", "table.md", "trials.jsonl")
    }


def test_what_is_measured_is_not_trained_again_even_if_networks_were_removed(swept, where, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in where.workdir.rglob("metrics.json")}
    monkeypatch.setattr(networks, "train", None)
    good = {**FEW, "learning_rate": "1"}
    with pytest.raises(TypeError):  # nothing of the kind was swept
        sweeps.sweep(RECIPE, over=good, seeds=2, size="smoke", name="good", where=where)
    monkeypatch.undo()
    first = sweeps.sweep(RECIPE, over=good, seeds=2, size="smoke", name="good", where=where)
    assert {path: path.stat().st_mtime_ns for path in where.workdir.rglob("metrics.json")} == before
    for path in before:
        path.unlink()
    monkeypatch.setattr(networks, "train", None)
    again = sweeps.sweep(RECIPE, over=good, seeds=2, size="smoke", name="good", where=where)
    assert tables.to_csv(again.rows) == tables.to_csv(first.rows)


def test_what_is_lost_of_a_sweep_is_made_again(where):
    over = {"alpha": "0,0.1", "steps": "30"}
    options = {"over": over, "seeds": 2, "size": "smoke", "name": "lost", "where": where}
    first = sweeps.sweep(RECIPE, **options)
    for harm in (lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:100])):
        harm(first.folder / "measured" / "0001-seed=1.npz")
        (first.folder / "records.json").write_text('{"networks": [{}]}')
        again = sweeps.sweep(RECIPE, **options)
        assert tables.to_csv(again.rows) == tables.to_csv(first.rows)
        assert len(json.loads((first.folder / "records.json").read_text())["networks"]) == 4


def test_a_point_that_no_exception_was_foreseen_for_fails_alone(where):
    def build_model(config, images):
        if (config.alpha, config.learning_rate) == (0.1, 1.0):
            raise KeyError("this pair")
        return RECIPE.build_model(config, images)

    picky = dataclasses.replace(RECIPE, name="picky", build_model=build_model)
    over = {"alpha": "0,0.1", "learning_rate": "0.5,1", "steps": "30"}
    found = sweeps.sweep(picky, over=over, seeds=1, size="smoke", where=where)
    assert [row.standing for row in found.rows].count("failed") == 1
    assert "picky: KeyError: 'this pair'" in found.failures()
    assert (
        "- failed: alpha = 0.1, learning_rate = 1, steps = 30: seed 0: picky" in (found.folder / "table.md").read_text()
    )
    with pytest.raises(ValueError, match=r"The point alpha = 0.1, learning_rate = 1.* cannot be trained: KeyError"):
        sweeps.sweep(picky, over={"alpha": "0.1", "learning_rate": "1"}, seeds=1, size="smoke", where=where)


def test_a_folder_that_holds_another_sweep_is_refused(swept, where):
    with pytest.raises(ValueError, match=r"few holds another sweep: seeds is 2 there and 3 here. Choose"):
        sweeps.sweep(RECIPE, over=FEW, seeds=3, size="smoke", name="few", where=where)
    whole = (swept.folder / "sweep.json").read_text()
    (swept.folder / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep.json is damaged"):
        sweeps.sweep(RECIPE, over=FEW, seeds=2, size="smoke", name="few", where=where)
    (swept.folder / "sweep.json").write_text(whole)


def test_networks_that_saw_other_examples_are_not_compared(swept, where, monkeypatch):
    stored = json.loads((swept.folder / "sweep.json").read_text())
    stored["data"]["fingerprint"] = "0" * 16
    (swept.folder / "sweep.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=r"few was begun with other data: digits from .*--data-dir"):
        sweeps.sweep(RECIPE, over=FEW, seeds=2, size="smoke", name="few", where=where)


def test_students_learn_from_the_teacher_of_their_point_and_seed(where):
    over = {"match": "probabilities", "temperature": "1,2", "steps": "30"}
    teachers = {"alpha": "0,0.1", "steps": "30"}
    found = sweeps.sweep(RECIPE, over=over, teacher_over=teachers, seeds=1, size="smoke", where=where)
    assert [row.point["teacher.alpha"] for row in found.rows] == [0.0, 0.0, 0.1, 0.1]
    stored = json.loads((found.folder / "records.json").read_text())["networks"]
    by_alpha = {}
    for record in stored:
        config = json.loads((Path(record["config"]["teacher"]["path"]).parent / "config.json").read_text())["config"]
        assert (config["alpha"], config["seed"]) == (record["point"]["teacher.alpha"], record["seed"])
        metrics = json.loads((Path(record["config"]["teacher"]["path"]).parent / "metrics.json").read_text())
        assert record["teacher"] == {name: metrics["held_out"][name] for name in ("accuracy", "nll")}
        by_alpha.setdefault(config["alpha"], set()).add(record["config"]["teacher"]["path"])
    assert [len(paths) for paths in by_alpha.values()] == [1, 1], "one teacher for each α and seed"


def test_hyperband_pauses_networks_and_goes_on_with_the_best(tmp_path):
    over = {"learning_rate": "0.01:2:log", "steps": "12", "evaluate_every": "4"}
    where = Where(workdir=tmp_path, quiet=True)
    found = sweeps.sweep(RECIPE, over=over, seeds=1, size="smoke", algorithm="hyperband", where=where)
    paused = [row for row in found.rows if row.standing == "paused"]
    assert len(found.rows) == driver._hyperband_points(3)
    assert 0 < len(paused) < len(found.rows)
    assert paused[0].reason == "paused after 1 evaluations"
    assert found.best[0].estimates["test"]["nll"].mean > 0
    finished = {path.parent.name for path in tmp_path.glob("mnist_mlp/*/metrics.json")}
    assert len(finished) == len(found.rows) - len(paused)
    assert len(list(tmp_path.glob("mnist_mlp/*/checkpoints"))) == len(paused)


TOGETHER = """
import sys
from ls_keras.sweeps import oracles
oracles.HEARTBEAT, oracles.DEAD = 0.3, 2.0
from ls_keras import sweeps
from ls_keras.experiment import Where, many
from ls_keras_recipes.mnist_mlp import RECIPE
from pathlib import Path
over = {"alpha": "0,0.05,0.1,0.2", "learning_rate": "0.25,0.5,1", "steps": "4", "evaluate_every": "2"}
where = Where(workdir=Path(sys.argv[1]), quiet=True, strategy="mirrored")  # one after the other, in this process
found = sweeps.sweep(RECIPE, over=over, seeds=1, size="smoke", name="together", where=where)
print(found is None or len(found.rows))
"""


def test_a_chief_and_workers_of_whom_one_is_killed_do_every_point_once(tmp_path, port):
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": str(port)}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", TOGETHER, tmp_path],
            env={**os.environ, **address, "KERASTUNER_TUNER_ID": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("chief", "one", "two")
    }
    book = tmp_path / "sweep" / "mnist_mlp" / "together" / "trials.jsonl"
    while not (book.exists() and '"worker": "two/' in book.read_text()):
        assert running["chief"].poll() is running["two"].poll() is None
        time.sleep(0.05)
    lost = running.pop("two")
    lost.send_signal(signal.SIGKILL)
    lost.communicate()
    said = {name: process.communicate() for name, process in running.items()}
    assert [process.returncode for process in running.values()] == [0, 0], said
    assert {name: out.strip() for name, (out, _) in said.items()} == {"chief": "12", "one": "True"}
    lines = [json.loads(line) for line in book.read_text().splitlines()]
    assert sorted(line["trial"] for line in lines if "end" in line) == [f"{k:04d}" for k in range(12)]
    assert len(json.loads((book.parent / "records.json").read_text())["networks"]) == 12
