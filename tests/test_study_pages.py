"""What figures, tables and plans of a study take from its records: every curve from the arms that it names."""

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace

from ls_keras import distillation, experiment, plots, study
from ls_keras.study import distillation as students
from ls_keras.study import driver, records, representations
from ls_keras.study.records import Measured, Record
from ls_keras_recipes import cifar10_distillation as figure_5
from ls_keras_recipes import mnist_mlp, paper

import numpy as np
import pytest

CONFIG = paper.Config(all=True)
SEEDS, NUM_EXAMPLES = (3, 4, 5), 40
SPLITS = {"train": 80, "held_out": NUM_EXAMPLES, "test": 0}
WHERE = experiment.Where(quiet=True)


def number_of(arm, seed, quantity):
    """A number between 0 and 1 that no other arm, seed or quantity has."""
    return np.random.default_rng([seed, *map(ord, arm + quantity)]).uniform(0.2, 0.8)


def measured(config=CONFIG, arms=None):
    """Records in which every number says whose it is."""
    made = []
    for arm in arms or [arm.name for arm in paper.plan(config).arms]:
        for seed in SEEDS:
            generator = np.random.default_rng([seed, *map(ord, arm)])
            correct = (generator.random(NUM_EXAMPLES) < number_of(arm, seed, "accuracy")).astype(float)
            examples = {"accuracy": correct}
            for at in ("", " at temperature"):
                examples["overconfidence" + at] = number_of(arm, seed, "confidence" + at) - correct
                examples["nll" + at] = generator.exponential(size=NUM_EXAMPLES)
                examples["bias-reduced ece" + at] = generator.normal(size=NUM_EXAMPLES)
            values = {name: rows.mean() for name, rows in examples.items()}
            rest = ("ece", "ece at temperature", "temperature", *representations._REST)
            values |= {name: number_of(arm, seed, name) for name in (*rest, *MOMENTS)}
            facts = {"gamma": number_of(arm, SEEDS[0], "gamma")}
            steps = np.array([0.0, 10.0, 20.0])
            curves = {name: np.array([1, 2, 3]) * number_of(arm, seed, name) for name in INFORMATION}
            made.append(
                Record(arm, seed, "", {}, facts, values, examples, {"steps": steps, **curves}, panels(arm, seed))
            )
    data = {"name": "digits", "class_names": list("abcdefghij"), "observed": 60, "origin": "here", "splits": SPLITS}
    data |= {"split_seed": None, "label_noise": 0.0}
    return Measured("paper", {}, data, {}, tuple(made))


INFORMATION = ("information", "information_low", "information_high", "information_paper")
MOMENTS = (
    "information, start",
    "information, training accuracy 0.95",
    "information, training accuracy 0.999",
    "information, end",
    "steps to training accuracy 0.95",
    "steps to training accuracy 0.999",
)


def panels(arm, seed):
    arrays = {"classes 0": np.array([0, 1, 2]), "classes 1": np.array([4, 5, 9])}
    for row in (0, 1):
        for split in ("train", "held_out"):
            shift = number_of(arm, seed, f"{row} {split}")
            arrays[f"points {row} {split}"] = np.full((3, 2), shift)
            arrays[f"labels {row} {split}"] = np.arange(3)
            arrays[f"templates {row} {split}"] = np.eye(3)[:, :2] + shift
    return arrays


@pytest.fixture
def drawn(monkeypatch):
    """What each figure function was given, by its name."""
    given = {}
    for name in ("template_plane_figure", "reliability_figure", "distillation_figure", "information_figure"):

        def remember(*arguments, _name=name, **named):
            given[_name] = (arguments, named)
            return SimpleNamespace()

        monkeypatch.setattr(plots, name, remember)
    return given


def accuracies(found, arms):
    return np.array([[found.values(arm, "accuracy")[at] for at in range(len(SEEDS))] for arm in arms])


@pytest.mark.parametrize("distilled", [(0.1, 0.3, 0.6), (0.6, 0.1, 0.3)])
def test_figure_5_sets_each_kind_of_student_over_its_own_softness(drawn, distilled):
    found = measured()
    students.figure(found, (0.6, 0.0, 0.1), distilled)
    curves = drawn["distillation_figure"][1]
    assert curves["teacher"].gamma.tolist() == [0.0, 0.1, 0.6]
    teachers = accuracies(found, ["hard targets", "α = 0.1", "α = 0.6"])
    np.testing.assert_array_equal(curves["teacher"].accuracy, teachers)
    gamma = {a: found.facts(students.arm_name("soft", a), "gamma").mean() for a in distilled}
    order = sorted(distilled, key=gamma.get)
    names = {"baseline": "soft", "hard_teacher": "heated", "smoothed_teacher": "smoothed"}
    for curve, kind in names.items():
        arms = [students.arm_name(kind, alpha) for alpha in order]
        at = [gamma[alpha] for alpha in order]
        if kind == "soft":
            arms, at = [students.PLAIN, *arms], [0.0, *at]
        np.testing.assert_allclose(curves[curve].gamma, at)
        np.testing.assert_array_equal(curves[curve].accuracy, accuracies(found, arms))


def test_figure_1_shows_the_first_seed_with_hard_targets_and_smoothed(drawn):
    representations.figures(measured(), 0.1, 0.05)
    (shown, names), named = drawn["template_plane_figure"]
    assert names == [["a", "b", "c"], ["e", "f", "j"]]
    assert "0.1" in named["pair_titles"][1]
    wanted = [
        number_of(arm, SEEDS[0], f"{row} {split}")
        for row in (0, 1)
        for arm in ("hard targets", "α = 0.1")
        for split in ("train", "held_out")
    ]
    assert [panel.points[0, 0] for panel in shown] == wanted
    assert [panel.templates[1, 0] for panel in shown] == wanted


def test_figure_2_has_hard_targets_at_both_temperatures_and_the_calibrated_alpha(drawn):
    found = measured()
    representations.figures(found, 0.1, 0.05)
    ((curves,), _) = drawn["reliability_figure"]
    rows = [("hard targets", ""), ("hard targets", " at temperature"), ("α = 0.05", "")]
    assert [curve.ece for curve in curves] == [found.values(arm, "ece" + at).mean() for arm, at in rows]
    for curve, (arm, at) in zip(curves, rows, strict=True):
        confidence = [number_of(arm, seed, "confidence" + at) for seed in SEEDS]
        filled = np.unique(np.ceil(np.array(confidence) * 15).astype(int) - 1)
        assert np.flatnonzero(curve.count).tolist() == filled.tolist()
        assert curve.count.sum() == len(SEEDS) * NUM_EXAMPLES


def test_figure_6_has_the_means_over_the_moments_that_all_seeds_have(drawn):
    found = measured()
    collapsed = found.of("α = 0.1")[1]  # was not observed at step 10
    collapsed.curves.update({name: curve[[0, 2]] for name, curve in collapsed.curves.items()})
    study.information.figure(found, ["hard targets", "α = 0.1"])
    ((curves, examples), _) = drawn["information_figure"]
    assert examples == 60
    assert [curve.name for curve in curves] == ["hard targets", "α = 0.1"]
    for curve, factors in zip(curves, ([1, 2, 3], [1, 3]), strict=True):
        means = {name: np.mean([number_of(curve.name, seed, name) for seed in SEEDS]) for name in INFORMATION}
        np.testing.assert_allclose(curve.estimate, np.array(factors) * means["information"])
        np.testing.assert_allclose(curve.paper, np.array(factors) * means["information_paper"])
        np.testing.assert_array_equal(curve.steps, [10.0 * (factor - 1) for factor in factors])
        assert (curve.lower <= curve.estimate).all() and (curve.estimate <= curve.upper).all()


def test_the_table_shows_gains_over_the_student_of_hard_labels():
    found = measured()
    rows = {row[0]: row for row in students.table(found, (0.0, 0.1), (0.1,), ("A.5: dropout teacher",)).rows}
    arm = students.arm_name("heated", 0.1)
    gain = (found.values(arm, "accuracy") - found.values(students.PLAIN, "accuracy")).mean()
    shown = float(rows[arm][-1].split(" ± ")[0].replace("−", "-"))
    assert shown == pytest.approx(gain, abs=0.06) and np.sign(shown) == np.sign(gain)
    for name, place in (("accuracy", 2), ("nll at temperature", 3)):
        value = float(rows[arm][place].split(" ± ")[0])
        assert value == pytest.approx(found.values(arm, name).mean(), abs=0.06)
    assert rows[students.PLAIN][-1] == rows["teacher, α = 0.1"][-1] == ""


def test_figure_5_of_the_cifar_recipe_sets_each_curve_from_its_own_arms(drawn):
    config = figure_5.Config(seeds=3, alphas=(0.0, 0.3), temperatures=(4.0, 1.0), observe_every=1_000)
    arms = [arm.name for arm in figure_5.plan(config).arms]
    found = measured(arms=arms)
    page = figure_5.content(config, found)
    curves = drawn["distillation_figure"][1]
    names = {
        "teacher": ["teacher, α = 0", "teacher, α = 0.3"],
        "baseline": ["student, α = 0", "student, α = 0.3"],
        "hard_teacher": ["student of hard targets, T = 4", "student of hard targets, T = 1"],
        "smoothed_teacher": ["student of α = 0.3"],
    }
    for curve, own in names.items():
        order = sorted(own, key=lambda arm: found.facts(arm, "gamma").mean())
        np.testing.assert_allclose(curves[curve].gamma, [found.facts(arm, "gamma").mean() for arm in order])
        np.testing.assert_array_equal(curves[curve].accuracy, accuracies(found, order))
    every = [arm for own in list(names.values())[1:] for arm in own]  # students alone are compared
    best = max(found.values(arm, "accuracy").mean() for arm in every)
    assert f"{100 * best:.1f} % held-out accuracy" in page.findings[0] and f"among {len(every)}" in page.findings[0]


# --- Plans

ARM = study.Arm("a", mnist_mlp.RECIPE, "smoke", study.Fixed(mnist_mlp.SIZES["smoke"]), shapes_by="a", shown=True)
LAST = study.Arm("b", mnist_mlp.RECIPE, "smoke", study.Fixed(mnist_mlp.SIZES["smoke"]), ("a",))


def digest(arm=ARM, last=LAST, where=WHERE, seeds=(0, 1), seed=0):
    planned = study.Study("s", paper.Config(), (arm, last), seeds)
    return driver._plan(planned, last, seed, where), driver._plan(planned, arm, seed, where)


@pytest.mark.parametrize(
    "change",
    [
        {"last": dataclasses.replace(LAST, size="digits")},
        {"last": dataclasses.replace(LAST, recipe=dataclasses.replace(mnist_mlp.RECIPE, name="other"))},
        {"last": dataclasses.replace(LAST, make=study.Fixed(mnist_mlp.SIZES["digits"]))},
        {"last": dataclasses.replace(LAST, make=students.Student(mnist_mlp.SIZES["smoke"], "soft"))},
        {"last": dataclasses.replace(LAST, shapes_by="a")},
        {"arm": dataclasses.replace(ARM, make=study.Fixed(mnist_mlp.SIZES["digits"]))},  # that it waits for
        {"where": dataclasses.replace(WHERE, precision="mixed_bfloat16")},
        {"seed": 1},
    ],
)
def test_another_network_has_another_plan(change):
    assert digest(**change)[0] != digest()[0]


def test_only_the_first_network_of_a_shown_arm_is_kept_for_figure_1():
    assert digest(seeds=(5, 0))[1] != digest()[1]  # seed 0, once the second and once the first
    assert digest(arm=dataclasses.replace(ARM, shown=False))[1] != digest()[1]
    planned = paper.plan(paper.SIZES["smoke"])
    jobs = driver._jobs(planned, [(arm, seed) for arm in planned.arms for seed in (0, 1)], AnyPlan(), WHERE)
    assert {job.name[1] for job in jobs if job.call.keywords["first"]} == {0}


class AnyPlan(dict):
    def __missing__(self, name):
        return "plan"


def test_where_a_network_is_trained_is_no_part_of_its_plan():
    assert digest(where=dataclasses.replace(WHERE, workdir=Path("elsewhere"), quiet=False)) == digest()


# --- The softness of real teachers


def test_train_logits_are_the_teachers_on_its_training_examples(tmp_path):
    config = dataclasses.replace(mnist_mlp.SIZES["smoke"], steps=2, evaluate_every=1, observe_every=0)
    run = mnist_mlp.RECIPE.run(config, size="smoke", where=dataclasses.replace(WHERE, workdir=tmp_path))
    logits, labels = students.train_logits(SimpleNamespace(saved_model=run.saved_model), WHERE)
    images = mnist_mlp.load_data(config)
    teacher = distillation.load_teacher(run.saved_model, images.num_classes, images.input_shape)
    np.testing.assert_array_equal(labels, images.labels("train"))
    np.testing.assert_allclose(logits, teacher(images.images("train") / np.float32(255)), atol=1e-5)


# --- Several machines, several sizes


def test_seeds_measured_elsewhere_are_judged_beside_those_measured_here(monkeypatch, tmp_path):
    here, there = measured(), measured()
    there = dataclasses.replace(there, records=tuple(dataclasses.replace(r, seed=r.seed + 10) for r in there.records))
    records.write(there, tmp_path / "there")
    monkeypatch.setattr(study, "run", lambda planned, out, where: here)
    monkeypatch.setattr(study.identities, "judge", lambda arrays: [])
    seen = {}
    monkeypatch.setattr(study.page, "judged", lambda out, claims, found, *_, **__: seen.update(out=out, found=found))
    config = dataclasses.replace(CONFIG, join=(tmp_path / "there",))
    paper._run(config, "digits", dataclasses.replace(WHERE, workdir=tmp_path))
    assert seen["found"].seeds("α = 0.1") == [3, 4, 5, 13, 14, 15]
    assert seen["out"].name == "digits-all=True"


def test_records_that_are_not_whole_are_refused_before_anything_is_trained(monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("work began")

    there = measured()
    monkeypatch.setattr(study, "run", refuse)
    short = dataclasses.replace(there, records=there.records[:-1])
    for found, message in (
        (short, "'A.5: student of the smoothed teacher' has 3, 4:"),
        (measured(paper.Config()), "'student, smoothed labels, as soft as α = 0.3' has none"),
    ):
        records.write(found, tmp_path / "there")
        config = dataclasses.replace(CONFIG, join=(tmp_path / "there",))
        with pytest.raises(ValueError, match=message):
            paper.run(config, size="digits", where=dataclasses.replace(WHERE, workdir=tmp_path))


def killed_at(step, real):
    """The function, and a kill in place of its call number `step`."""
    calls = itertools.count()

    def call(*arguments):
        if next(calls) == step:
            raise KeyboardInterrupt
        return real(*arguments)

    return call


def test_a_kill_between_the_two_files_leaves_a_pair_that_fits(monkeypatch, tmp_path):
    old = measured()
    new = dataclasses.replace(old, records=old.records[:3])
    records.write(old, tmp_path)
    before = (tmp_path / "measured.npz").read_bytes()
    for step in (0, 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(records.files, "replace", killed_at(step, records.files.replace))
            records.write(new, tmp_path)
        assert len(study.read(tmp_path).records) == len(old.records)
    records.write(new, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measured.json", "measured.npz"]
    # Killed before the last step: what is new under its other name, beside what was there.
    (tmp_path / "measured.npz").rename(tmp_path / "measured.next.npz")
    (tmp_path / "measured.npz").write_bytes(before)
    assert len(study.read(tmp_path).records) == 3


def test_options_hold_for_every_size_that_follows_or_are_refused():
    config = dataclasses.replace(paper.SIZES["paper"], seeds=3, first_seed=7, accuracy_margin=0.02)
    configs = paper._configs(config, "paper")
    assert list(configs) == ["paper", "alexnet", "resnet", "distillation"]
    for each in configs.values():
        assert (each.seeds, each.first_seed, each.accuracy_margin) == (3, 7, 0.02)
        assert paper.plan(each).seeds == (7, 8, 9)
    assert configs["resnet"].alphas == (0.0, 0.05, 0.1)
    with pytest.raises(
        ValueError, match=r"--dataset can be meant for one study alone, and paper is followed by alexnet"
    ):
        paper._configs(dataclasses.replace(config, dataset="digits"), "paper")
    with pytest.raises(ValueError, match=r"unknown size 'alexnets'.*Perhaps you meant 'alexnet'"):
        paper._configs(dataclasses.replace(config, also=("alexnets",)), "paper")
    assert list(paper._configs(dataclasses.replace(config, dataset="digits", also=()), "paper")) == ["paper"]


def test_information_is_set_at_its_moments_for_both_arms():
    found = measured()
    found.of("α = 0.1")[0].values[MOMENTS[2]] = np.nan
    table = study.information.table(found, ["hard targets", "α = 0.1"])
    assert [row[0] for row in table.rows] == list(MOMENTS)
    for row in table.rows:
        for arm, text in zip(("hard targets", "α = 0.1"), row[1:], strict=True):
            mean = np.mean(found.values(arm, row[0]))
            assert text == "nan" if np.isnan(mean) else float(text.split(" ± ")[0]) == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "said", "unsaid"),
    [
        ({}, ["by other writers"], ["shuffled", "wrong"]),
        ({"split_seed": 3}, ["shuffled by seed 3 before they were split"], ["other writers"]),
        ({"label_noise": 0.2}, ["20 % of the training labels are wrong", "by other writers"], []),
        ({"name": "fashion_mnist", "label_noise": 0.2}, ["20 % of the training labels"], ["writers"]),
    ],
)
def test_a_page_says_how_its_data_were_split_and_spoilt(changes, said, unsaid):
    text = study.page.made_how({**measured().data, **changes})["Data"]
    assert all(part in text for part in said) and not any(part in text for part in unsaid)
