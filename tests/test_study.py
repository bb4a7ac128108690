"""Which networks a study trains, that it trains each once, and that its records survive kills, copies and damage."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

from ls_keras import distillation, experiment, study
from ls_keras.experiment import folder as folders
from ls_keras.study import driver, records
from ls_keras.study.records import Measured, Record
from ls_keras_recipes import cifar10_alexnet, cifar100_resnet56, mnist_mlp, paper
from ls_keras_recipes import cifar10_distillation as figure_5

import numpy as np
import pytest
import tiny_recipe

WHERE = experiment.Where(quiet=True)


# --- Who teaches whom, and how softly

LABELS = np.arange(12) % 4


def softness(gap, temperature=1.0):
    """γ of a teacher that puts the right one of four logits ahead by `gap`: 4/3 · 3/(e^(gap/T) + 3)."""
    return 4 / (np.exp(gap / temperature) + 3)


def done(name):
    return SimpleNamespace(saved_model=Path(name) / "saved_model")


@pytest.fixture
def gaps(monkeypatch):
    """Let a dictionary decide, by a teacher's folder, how far its right logits are ahead on the training set."""
    found = {}

    def logits(teacher, where):
        return found[teacher.saved_model.parent.name] * np.eye(4)[LABELS], LABELS

    monkeypatch.setattr(study.distillation, "train_logits", logits)
    return found


def arms_of(planned):
    return {arm.name: arm for arm in planned.arms}


PAIRS = paper.Config(networks="paper", seeds=3, distilled=(0.3, 0.6), student_units=(80, 60), all=True)


def test_fully_connected_teachers_have_every_alpha():
    arms = arms_of(paper.plan(PAIRS))
    names = {0.0: "hard targets", **{alpha: f"α = {alpha:g}" for alpha in (0.05, 0.1, 0.3, 0.6)}}
    for alpha, name in names.items():
        # A tenth of 60,000 steps; those of 0 and 0.1 are the ones whose information is compared.
        observed = {"observe_every": 6_000 if alpha in (0.0, 0.1) else 0}
        wanted = dataclasses.replace(mnist_mlp.Config(), alpha=alpha, seed=2, **observed)
        assert arms[name].make(2, WHERE) == (wanted, {"alpha": alpha})
        assert (arms[name].recipe, arms[name].size, arms[name].after) == (mnist_mlp.RECIPE, "paper", ())
    assert paper.plan(PAIRS).seeds == (0, 1, 2)
    assert paper.plan(dataclasses.replace(PAIRS, first_seed=5)).seeds == (5, 6, 7)


def without_teacher(config):
    """What acts in a network that learns from labels alone."""
    assert config.teacher is None
    fields = dataclasses.asdict(config)
    return {name: fields[name] for name in fields if name not in ("match", "beta", "temperature")}


def test_fully_connected_students_learn_at_equal_softness(gaps):
    arms = arms_of(paper.plan(PAIRS))
    gaps |= {"hard": 3.0, "0.3": 2.5, "0.6": 1.9}
    student = dataclasses.replace(mnist_mlp.Config(), alpha=0.0, units=(80, 60), evaluate_every=30_000, seed=4)
    taught = dataclasses.replace(student, match="probabilities", beta=1.0)
    plain, facts = arms["student, hard labels"].make(4, WHERE)
    assert (without_teacher(plain), facts) == (without_teacher(student), {"gamma": 0.0})
    for alpha in (0.3, 0.6):
        smoothed, hard, gamma = done(str(alpha)), done("hard"), softness(gaps[str(alpha)])
        names = [study.distillation.arm_name(kind, alpha) for kind in ("soft", "heated", "smoothed")]
        after = [arms[name].after for name in names]
        assert after == [(f"α = {alpha:g}",), ("hard targets", f"α = {alpha:g}"), (f"α = {alpha:g}",)]
        soft, heated, of_smoothed = (arms[name].make for name in names)
        config, facts = soft(4, WHERE, smoothed)
        assert facts["gamma"] == config.alpha == pytest.approx(gamma, abs=1e-4)
        assert without_teacher(config) == without_teacher(dataclasses.replace(student, alpha=config.alpha))
        config, facts = heated(4, WHERE, hard, smoothed)
        # γ(T) = 4/(e^(gap/T) + 3), so that T = gap / ln(4/γ − 3)
        assert config.temperature == facts["temperature"] == pytest.approx(3.0 / np.log(4 / gamma - 3), abs=2e-3)
        assert config == dataclasses.replace(taught, teacher=hard.saved_model, temperature=config.temperature)
        config, facts = of_smoothed(4, WHERE, smoothed)
        assert config == dataclasses.replace(taught, teacher=smoothed.saved_model, temperature=1.0)
        assert facts["gamma"] == pytest.approx(gamma, abs=1e-4)


def test_a_teacher_that_knows_nothing_is_named(gaps):
    gaps |= {"hard": 3.0, "dull": -0.1}
    arm = arms_of(paper.plan(PAIRS))["student, smoothed labels, as soft as α = 0.3"]
    with pytest.raises(ValueError, match=r"teacher dull/saved_model has γ = 1\.\d+ on its training examples"):
        arm.make(0, WHERE, done("dull"))


def test_the_four_networks_of_a5_learn_from_their_own_teachers():
    arms = arms_of(paper.plan(PAIRS))
    end = {"evaluate_every": 30_000, "alpha": 0.0, "seed": 1}
    regularised = {**end, "input_dropout": 0.2, "dropout": 0.5, "max_norm": 15**0.5}
    assert arms["A.5: dropout teacher"].make(1, WHERE)[0] == dataclasses.replace(mnist_mlp.Config(), **regularised)
    student = dataclasses.replace(mnist_mlp.SIZES["student"], **end)
    for name, teacher in (("dropout", "A.5: dropout teacher"), ("smoothed", "α = 0.1")):
        arm = arms[f"A.5: student of the {name} teacher"]
        assert arm.after == (teacher,)
        config, _ = arm.make(1, WHERE, done(name))
        assert config == dataclasses.replace(student, teacher=done(name).saved_model)


def test_students_that_match_logits_learn_at_a_rate_of_their_own():
    config = dataclasses.replace(PAIRS, matching_rate=0.03)
    made = arms_of(paper.plan(config))["A.5: student of the smoothed teacher"].make
    assert made.config.learning_rate == pytest.approx(0.03)
    notes = [claim.note for claim in paper.claims(config) if claim.id == "C11b"]
    assert "at 0.03 of the teachers' rate" in notes[0]
    for without in ({"all": False}, {"distilled": ()}):
        with pytest.raises(ValueError, match=r"--matching-rate cannot act without the networks of A\.5"):
            paper.plan(dataclasses.replace(config, **without))


def test_any_recipe_and_data_can_be_studied():
    other = paper.Config(recipe="cifar100_resnet56", student="cifar10_alexnet", dataset="cifar10", networks="paper")
    arms = arms_of(paper.plan(dataclasses.replace(other, distilled=(0.3,))))
    config, _ = arms["α = 0.3"].make(0, WHERE)
    assert config == dataclasses.replace(cifar100_resnet56.Config(), alpha=0.3, dataset="cifar10")
    config = arms["student of smoothed targets, as soft as α = 0.3"].make.config
    assert config == dataclasses.replace(cifar10_alexnet.Config(), alpha=0.0, dataset="cifar10", evaluate_every=195_000)
    assert not [name for name in arms if name.startswith("A.5")]
    mine = paper.plan(paper.Config(recipe="tiny_recipe:RECIPE", networks="plain", distilled=()))
    assert {arm.recipe for arm in mine.arms} == {tiny_recipe.RECIPE}
    with pytest.raises(ValueError, match="There is no recipe 'nothing'"):
        paper.plan(paper.Config(recipe="nothing"))
    with pytest.raises(ValueError, match=r"is no experiment\.Recipe but dict"):
        paper.plan(paper.Config(recipe="tiny_recipe:SIZES"))


def test_what_a_study_sets_holds_for_all_its_networks():
    given = {"train_size": 300, "split_seed": 7, "label_noise": 0.2, "steps": 480}
    planned = paper.plan(paper.Config(all=True, **given))
    assert len(planned.arms) > 10
    for arm in planned.arms:
        assert {name: getattr(arm.make.config, name) for name in given} == given, arm.name
    plain = paper.plan(paper.Config(all=True)).arms[0].make.config
    assert (plain.train_size, plain.split_seed, plain.label_noise, plain.steps) == (800, None, 0.0, 2_400)
    with pytest.raises(ValueError, match="--train-size, --label-noise cannot act: the Config of tiny has no such"):
        paper.plan(
            paper.Config(
                recipe="tiny_recipe:RECIPE", networks="plain", distilled=(), train_size=5, label_noise=0.1, steps=9
            )
        )


def test_what_is_followed_is_followed_as_often_as_its_size_says():
    arms = arms_of(paper.plan(paper.SIZES["fashion-2000"]))
    assert arms["hard targets"].make.config.observe_every == arms["α = 0.1"].make.config.observe_every == 600
    assert arms["α = 0.3"].make.config.observe_every == 0


def test_a_bare_study_leaves_out_what_takes_as_long_again():
    bare, whole = (paper.Config(all=all_) for all_ in (False, True))
    names, all_names = ([arm.name for arm in paper.plan(config).arms] for config in (bare, whole))
    assert set(names) < set(all_names) and len(names) == 5 + 1 + 3
    left_out = {claim.id: claim.note for claim in paper.claims(bare) if not claim.comparisons}
    assert set(left_out) == {"C7", "C11"} and "--all" in left_out["C11"]
    ids = {claim.id for claim in paper.claims(whole)}
    assert {claim.id for claim in paper.claims(bare)} - {"C11"} == ids - {"C11a", "C11b", "C11c", "C11d"}


def test_what_cannot_be_judged_says_why():
    claims = {claim.id: claim for claim in paper.claims(dataclasses.replace(paper.SIZES["resnet"]))}
    assert {name for name, claim in claims.items() if not claim.comparisons} == {"C7", "C9", "C10"}
    assert all(claim.note for claim in claims.values() if not claim.comparisons)


FEW = figure_5.Config(seeds=3, alphas=(0.0, 0.3, 0.6), temperatures=(1.0, 4.0), observe_every=1_000)


def test_the_arms_of_figure_5():
    arms = arms_of(figure_5.plan(FEW))
    assert len(arms) == 3 + 3 + 2 + 2
    for alpha in FEW.alphas:
        config, facts = arms[f"teacher, α = {alpha:g}"].make(1, WHERE)
        assert facts == {"gamma": alpha}
        assert config == dataclasses.replace(
            cifar100_resnet56.Config(), dataset="cifar10", alpha=alpha, seed=1, observe_every=1_000
        )
        config, _ = arms[f"student, α = {alpha:g}"].make(1, WHERE)
        assert config == dataclasses.replace(cifar10_alexnet.Config(), dataset="cifar10", alpha=alpha, seed=1)
    assert arms["student of hard targets, T = 4"].after == ("teacher, α = 0",)
    assert arms["student of α = 0.3"].after == ("teacher, α = 0.3",)
    assert {arm.recipe.name for arm in arms.values() if arm.name.startswith("student")} == {"cifar10_alexnet"}


@pytest.mark.parametrize("given", [None, Path("given")])
def test_students_of_figure_5_learn_from_their_own_teacher(given, monkeypatch):
    images = SimpleNamespace(labels=lambda split: {"train": LABELS}[split], num_classes=4, input_shape=(4, 4, 1))
    ahead = {Path("mine/saved_model"): 3.0, Path("given"): 5.0}
    monkeypatch.setattr(figure_5, "STUDENT", SimpleNamespace(load_data=lambda *_: images, sizes=cifar10_alexnet.SIZES))
    monkeypatch.setattr(distillation, "load_teacher", lambda path, *_: path)
    monkeypatch.setattr(distillation, "teacher_logits", lambda path, *_: ahead[path] * np.eye(4)[LABELS])
    arms = arms_of(figure_5.plan(dataclasses.replace(FEW, teacher=given)))
    arm = arms["student of hard targets, T = 4"]
    before = [done("mine")] if arm.after else []
    config, facts = arm.make(2, WHERE, *before)
    path = given or Path("mine/saved_model")
    student = dataclasses.replace(cifar10_alexnet.Config(), dataset="cifar10", alpha=0.0)
    assert config == dataclasses.replace(student, teacher=path, temperature=4.0, seed=2)
    assert facts["gamma"] == pytest.approx(softness(ahead[path], 4.0))
    assert ("teacher, α = 0" in arms) == (given is None)


# --- One driver


def tiny(**changes):
    base = dataclasses.replace(tiny_recipe.SIZES["plain"], steps=4, evaluate_every=2)
    arms = [
        study.Arm(
            name, tiny_recipe.RECIPE, "plain", study.Fixed(dataclasses.replace(base, alpha=alpha), (("a", alpha),))
        )
        for name, alpha in (("hard targets", 0.0), ("soft", 0.1))
    ]
    made = study.Study("tiny", tiny_recipe.Config(), tuple(arms), (0, 1))
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study of four small networks, trained for real, one after the other."""
    folder = tmp_path_factory.mktemp("tiny")
    where = experiment.Where(workdir=folder / "networks", quiet=True, strategy="mirrored")
    return folder, where, study.run(tiny(), folder / "study", where)


def test_records_are_what_the_networks_say(finished):
    _, where, measured = finished
    assert {(record.arm, record.seed) for record in measured.records} == {
        (arm, seed) for arm in ("hard targets", "soft") for seed in (0, 1)
    }
    for record in measured.records:
        place = where.workdir / record.folder
        run = experiment.Run(place, json.loads((place / "metrics.json").read_text()))
        assert record.config["alpha"] == record.facts["a"] == {"soft": 0.1}.get(record.arm, 0.0)
        assert record.values["accuracy"] == pytest.approx(run.metrics["held_out"]["accuracy"])
        assert record.values["nll"] == pytest.approx(run.metrics["held_out"]["nll"], rel=1e-5)
        np.testing.assert_array_equal(record.examples["accuracy"], run.examples("held_out").correct)
    assert measured.data["name"] == "digits" and measured.data["splits"]["held_out"] == 90


def test_a_study_given_again_trains_and_measures_nothing(finished, monkeypatch):
    folder, where, measured = finished
    monkeypatch.setattr(experiment, "finish", refuse)
    again = study.run(tiny(), folder / "study", where)
    assert_same(again, measured)


def refuse(*_, **__):
    raise AssertionError("work began")


def assert_same(one, other):
    for first, second in zip(one.records, other.records, strict=True):
        mine, yours = (dataclasses.asdict(record) for record in (first, second))
        for kind in ("examples", "curves", "arrays"):
            arrays = mine.pop(kind), yours.pop(kind)
            assert arrays[0].keys() == arrays[1].keys()
            for name in arrays[0]:
                np.testing.assert_array_equal(arrays[0][name], arrays[1][name])
        assert repr(mine) == repr(yours)  # NaN, too


def test_what_lies_in_records_needs_no_network(finished, tmp_path, monkeypatch):
    folder, where, measured = finished
    shutil.copytree(folder / "study", tmp_path / "study")
    monkeypatch.setattr(experiment, "finish", refuse)
    again = study.run(tiny(), tmp_path / "study", dataclasses.replace(where, workdir=tmp_path / "none"))
    assert_same(again, measured)


def test_only_what_is_new_is_trained(finished, tmp_path, monkeypatch):
    folder, where, _ = finished
    shutil.copytree(folder / "study", tmp_path / "study")
    asked = []

    def remember(jobs, *_, **__):
        asked.extend(job.name for job in jobs)
        return iter(())

    monkeypatch.setattr(experiment, "finish", remember)
    more = study.run(tiny(seeds=(0, 1, 2)), tmp_path / "study", where)
    assert asked == [("hard targets", 2), ("soft", 2)]
    assert len(more.records) == 4
    longer = dataclasses.replace(tiny_recipe.SIZES["plain"], steps=8, evaluate_every=2)
    soft = study.Arm("soft", tiny_recipe.RECIPE, "plain", study.Fixed(longer))
    asked.clear()
    study.run(tiny(arms=(tiny().arms[0], soft)), tmp_path / "study", where)
    assert asked == [("soft", 0), ("soft", 1)]


def test_what_a_student_waits_for_is_trained_before_it(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(experiment, "finish", lambda jobs, *_, **__: asked.extend(jobs) or iter(()))
    config = dataclasses.replace(paper.SIZES["smoke"], seeds=2)
    study.run(paper.plan(config), tmp_path, dataclasses.replace(WHERE, workdir=tmp_path))
    known = set()
    for job in asked:
        assert set(job.after) <= known, job.name
        known.add(job.name)
    after = {job.name: job.after for job in asked}
    assert after["hard targets", 1] == ()
    assert after["α = 0.1", 1] == (("hard targets", 1),)  # which chooses the classes of C4
    assert after["student of hard targets, as soft as α = 0.1", 0] == (("hard targets", 0), ("α = 0.1", 0))
    assert len(asked) == 2 * (3 + 1 + 3 + 3)


def test_a_study_that_is_ended_keeps_what_was_measured(finished, tmp_path, monkeypatch):
    _, where, measured = finished
    real = experiment.finish

    def two_then_ended(jobs, *arguments, **options):
        for number, pair in enumerate(real(jobs, *arguments, **options)):
            if number == 2:
                raise KeyboardInterrupt
            yield pair

    monkeypatch.setattr(experiment, "finish", two_then_ended)
    with pytest.raises(KeyboardInterrupt):
        study.run(tiny(), tmp_path / "study", where)
    assert len(study.read(tmp_path / "study").records) == 2
    monkeypatch.setattr(experiment, "finish", real)
    assert_same(study.run(tiny(), tmp_path / "study", where), measured)


def test_a_network_that_another_study_trains_is_waited_for(finished, tmp_path, monkeypatch):
    _, where, measured = finished
    run, refused = experiment.Recipe.run, []

    def taken_once(recipe, config, **options):
        if not refused:
            refused.append(config)
            raise folders.Taken("another run")
        return run(recipe, config, **options)

    monkeypatch.setattr(experiment.Recipe, "run", taken_once)
    monkeypatch.setattr(driver, "_ASK_EVERY", 0.0)
    assert_same(study.run(tiny(), tmp_path / "study", where), measured)
    assert len(refused) == 1


def test_what_is_measured_is_not_planned_again(finished, tmp_path):
    place, where, _ = finished
    assert [missing for _, missing, _ in study.networks(tiny(), place / "study", where)] == [0, 0]
    nowhere = dataclasses.replace(where, workdir=tmp_path)
    assert [missing for _, missing, _ in study.networks(tiny(), place / "study", nowhere)] == [0, 0]
    assert [missing for _, missing, _ in study.networks(tiny(), tmp_path, nowhere)] == [2, 2]


def test_the_config_of_an_arm_is_checked_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr(experiment, "finish", refuse)
    wrong = dataclasses.replace(tiny_recipe.SIZES["plain"], steps=5)
    arm = study.Arm("wrong", tiny_recipe.RECIPE, "plain", study.Fixed(wrong))
    with pytest.raises(ValueError, match="multiple of `evaluate_every`"):
        study.run(tiny(arms=(tiny().arms[0], arm)), tmp_path, WHERE)
    with pytest.raises(ValueError, match="Every arm needs a name of its own"):
        study.run(tiny(arms=(arm, arm)), tmp_path, WHERE)
    assert not list(tmp_path.iterdir())


# --- Records


def made_up(seeds=(0, 1), value=0.5, study_name="paper"):
    made = tuple(
        Record(
            "hard targets",
            seed,
            f"plan {value}",
            {"alpha": 0.0},
            {"alpha": 0.0},
            {"accuracy": value, "slope": float("nan")},
            {"accuracy": np.linspace(0, 1, 5)},
            {"steps": np.array([0.0, 10.0]), "information": np.array([0.5, float("nan")])},
            {"points 0 train": np.ones((3, 2))},
            1.5,
            "mnist_mlp/digits",
        )
        for seed in seeds
    )
    return Measured(study_name, {"seeds": 2}, {"name": "digits", "origin": "here"}, {"Versions": "…"}, made)


def test_records_survive_the_disk(tmp_path):
    records.write(made_up(), tmp_path / "new")
    assert_same(study.read(tmp_path / "new"), made_up())
    assert_same(study.read(tmp_path / "new" / "measured.json"), made_up())
    assert json.loads((tmp_path / "new" / "measured.json").read_text())["format"] == "ls_keras study 1"


def test_records_of_other_seeds_are_judged_together():
    moved = dataclasses.replace(made_up((2, 3)), data={"name": "digits", "origin": "another machine"})
    joined = made_up().joined([moved, made_up((0,))])
    assert joined.seeds("hard targets") == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="Seed 0 of 'hard targets' was measured twice"):
        made_up().joined([made_up((0,), value=0.6)])
    with pytest.raises(ValueError, match="two studies cannot be judged together: study is paper and other"):
        made_up().joined([made_up((2,), study_name="other")])
    wider = made_up((2,))
    for record in wider.records:
        record.config["units"] = [16, 16]
    with pytest.raises(ValueError, match="'hard targets' differs in units"):
        made_up().joined([wider])
    other = dataclasses.replace(made_up((2,)), data={"name": "mnist"})
    with pytest.raises(ValueError, match="data is"):
        made_up().joined([other])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda json_, npz: json_.write_text("[]"), "no record of a study, or damaged"),
        (lambda json_, npz: json_.write_text(json_.read_text()[:100]), "no record of a study, or damaged"),
        (
            lambda json_, npz: json_.write_text(json_.read_text().replace("study 1", "study 9")),
            "format 'ls_keras study 9', and this version",
        ),
        (lambda json_, npz: json_.write_text(json_.read_text().replace("1.5", '"x"')), "is damaged"),
        (lambda json_, npz: npz.unlink(), "lacks its measured.npz: bring it back"),
        (lambda json_, npz: npz.write_bytes(npz.read_bytes()[:-9]), "was written with another measured.npz"),
    ],
)
def test_damaged_records_are_refused_with_a_sentence(change, message, tmp_path):
    records.write(made_up(), tmp_path)
    change(tmp_path / "measured.json", tmp_path / "measured.npz")
    with pytest.raises(ValueError, match=message):
        study.read(tmp_path)


def test_networks_that_saw_other_examples_are_not_paired(finished, tmp_path, monkeypatch):
    _, where, measured = finished
    records.write(dataclasses.replace(measured, data={**measured.data, "fingerprint": "another"}), tmp_path / "study")
    with pytest.raises(ValueError, match="must see the same examples"):
        study.run(tiny(seeds=(0, 1, 2)), tmp_path / "study", where)


def test_a_recipe_that_cannot_learn_from_a_teacher_is_refused_before_its_teachers_are_trained():
    with pytest.raises(ValueError, match="Networks of tiny cannot be students: its Config has no teacher"):
        paper.plan(paper.Config(recipe="tiny_recipe:RECIPE", networks="plain"))


def test_another_studys_folder_is_refused(tmp_path):
    records.write(made_up(study_name="other"), tmp_path)
    with pytest.raises(ValueError, match="holds the study 'other' and not 'tiny'"):
        study.run(tiny(), tmp_path, WHERE)


# --- Before anything is trained


def test_the_plan_says_what_is_missing_and_for_how_long(tmp_path, capsys, monkeypatch):
    where = dataclasses.replace(WHERE, workdir=tmp_path, data_dir=tmp_path)
    config = dataclasses.replace(paper.SIZES["resnet"], plan=True, networks="smoke", dataset="cifar100", seeds=3)
    monkeypatch.setattr(experiment, "finish", refuse)
    assert paper.run(config, size="smoke", where=where) == []
    text = capsys.readouterr().out
    assert "missing here: " in text and "cifar100" in text
    (line,) = (line for line in text.splitlines() if line.strip().startswith("hard targets"))
    assert line.split()[2] == "3"
    assert not list(tmp_path.iterdir())
