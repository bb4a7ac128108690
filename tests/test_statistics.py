"""What lies between a network's arrays and a verdict, on arrays built by hand, against NumPy written out anew."""

import sys
from pathlib import Path
from types import SimpleNamespace

from ls_keras.analysis import intervals
from ls_keras.analysis.calibration import cross_fitted, top_label_contributions
from ls_keras.analysis.probe import Collected

import numpy as np
import pytest
from scipy import optimize, special

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import analyse
import distill
import paper

NUM_CLASSES, NUM_FEATURES = 10, 6


def collected(generator, num_examples, centres, sharpness=1.0):
    """A split whose logits know something of the labels, and whose activations are clusters of different widths."""
    labels = np.arange(num_examples) % NUM_CLASSES
    logits = generator.normal(size=(num_examples, NUM_CLASSES))
    logits[np.arange(num_examples), labels] += 1.5
    noise = generator.normal(size=(num_examples, NUM_FEATURES)) * (0.5 + 0.1 * labels[:, None])
    return Collected((centres[labels] + noise).astype("float32"), (sharpness * logits).astype("float32"), labels)


def network(seed=0, sharpness=3.0, num_held_out=150):
    """The network's three parts have nothing in common: whatever is taken from the wrong one shows."""
    generator = np.random.default_rng(seed)
    centres = 4 * generator.normal(size=(NUM_CLASSES, NUM_FEATURES))
    return analyse.Network(
        f"seed {seed}",
        generator.normal(size=(NUM_FEATURES, NUM_CLASSES)),
        generator.normal(size=NUM_CLASSES),
        collected(generator, 200, centres),
        collected(generator, num_held_out, centres, sharpness),
    )


def softmax(logits, temperature=1.0):
    return special.softmax(logits.astype(float) / np.reshape(temperature, (-1, 1)), axis=1)


def plug_in_ece(probabilities, labels, num_bins=15):
    """Guo et al. (2017), bin by bin."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for number in range(num_bins):
        inside = (confidence > number / num_bins) & (confidence <= (number + 1) / num_bins)
        total += abs(correct[inside].sum() - confidence[inside].sum())
    return total / len(labels)


def temperatures_of_the_other_half(logits, labels):
    """For each example the temperature that SciPy finds on the half without it."""
    half = cross_fitted(logits, labels).half

    def nll(temperature, rows):
        return -np.log(softmax(logits[rows], temperature)[np.arange(rows.sum()), labels[rows]]).mean()

    search = {"bounds": (0.1, 10.0), "method": "bounded", "options": {"xatol": 1e-9}}
    fitted = [optimize.minimize_scalar(nll, args=(half == part,), **search).x for part in (0, 1)]
    return np.where(half == 0, fitted[1], fitted[0])


def plane_numbers(net, part, reference):
    """Spread over the mean edge of the reference, variation of the centres' edges, and distance; mean over planes."""
    found = []
    for first in range(NUM_CLASSES):
        classes = [(first + step) % NUM_CLASSES for step in range(3)]
        templates = net.kernel[:, classes].T
        basis, _ = np.linalg.qr((templates[1:] - templates[0]).T)  # any basis: only distances are taken
        points = [part.penultimate[part.labels == label] @ basis for label in classes]
        centres = np.stack([cluster.mean(axis=0) for cluster in points])
        spread = np.sqrt(np.mean([((c - c.mean(0)) ** 2).sum(1).mean() for c in points]))

        def edges(corners):
            return [np.linalg.norm(corners[i] - corners[j]) for i, j in ((0, 1), (1, 2), (2, 0))]

        unit = np.mean(edges(centres if reference == "centres" else templates @ basis))
        distance = np.mean([np.linalg.norm(cluster, axis=1).mean() for cluster in points])
        found.append((spread / unit, np.std(edges(centres)) / np.mean(edges(centres)), distance))
    return np.mean(found, axis=0)


def continuum(logits, labels, similar, different):
    """How much the different class's logit, less the mean of the unrelated ones, varies within the similar classes."""
    logits = logits.astype(float)
    unrelated = [k for k in range(logits.shape[1]) if k not in (*similar, different)]
    own = [logits[labels == label] for label in similar]
    varies = [np.var(rows[:, different] - rows[:, unrelated].mean(axis=1)) for rows in own]
    return np.mean(varies) / np.mean([rows.var(axis=1).mean() for rows in own])


# --- The statistics of a network


@pytest.fixture(scope="module")
def net():
    return network()


@pytest.fixture(scope="module")
def measured(net):
    return analyse.statistics(net, (3, 7, 1))


def test_means_over_the_held_out_examples(net, measured):
    probabilities, labels = softmax(net.held_out.logits), net.held_out.labels
    correct = probabilities.argmax(axis=1) == labels
    assert measured.values["accuracy"] == pytest.approx(correct.mean())
    assert measured.values["overconfidence"] == pytest.approx(probabilities.max(axis=1).mean() - correct.mean())
    assert measured.values["overconfidence"] > 0.1  # the sharp network is over-confident, by the paper's sign
    nll = -np.log(probabilities[np.arange(len(labels)), labels])
    assert measured.values["nll"] == pytest.approx(nll.mean())
    np.testing.assert_allclose(measured.examples["nll"], nll)
    np.testing.assert_array_equal(measured.examples["accuracy"], correct)
    np.testing.assert_allclose(measured.examples["overconfidence"], probabilities.max(axis=1) - correct)


def test_a_blunt_network_is_under_confident():
    assert analyse.statistics(network(sharpness=0.3), (3, 7, 1)).values["overconfidence"] < -0.1


def test_values_are_the_means_of_their_examples(measured):
    for name in ("accuracy", "overconfidence", "nll", "nll at temperature"):
        assert measured.values[name] == pytest.approx(measured.examples[name].mean(), rel=1e-9), name
    assert {len(rows) for rows in measured.examples.values()} == {150}
    assert set(measured.examples) <= set(measured.values)


def test_temperature_is_fitted_on_the_other_half(net, measured):
    logits, labels = net.held_out.logits, net.held_out.labels
    other = temperatures_of_the_other_half(logits, labels)
    own = other.min() + other.max() - other
    assert measured.values["temperature"] == pytest.approx(np.unique(other.round(9)).mean(), rel=1e-6)
    assert measured.values["ece"] == pytest.approx(plug_in_ece(softmax(logits), labels))
    ece = measured.values["ece at temperature"]
    assert ece == pytest.approx(plug_in_ece(softmax(logits, other), labels), rel=1e-6)
    for wrong in (1.0, own, other.mean()):
        assert abs(ece - plug_in_ece(softmax(logits, wrong), labels)) > 1e-3
    nll = -np.log(softmax(logits, other)[np.arange(len(labels)), labels])
    np.testing.assert_allclose(measured.examples["nll at temperature"], nll, rtol=1e-6)


@pytest.mark.parametrize("at", ["", " at temperature"])
def test_bias_reduced_ece_comes_with_its_contributions(net, measured, at):
    logits, labels = net.held_out.logits, net.held_out.labels
    temperature = temperatures_of_the_other_half(logits, labels) if at else 1.0
    probabilities = softmax(logits, temperature)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    value, contributions = top_label_contributions(confidence, correct)
    assert measured.values["bias-reduced ece" + at] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(measured.examples["bias-reduced ece" + at], contributions, atol=1e-5)


def test_continuum_is_that_of_the_chosen_classes_in_training(net, measured):
    train, held_out = net.train, net.held_out
    assert measured.values["continuum"] == pytest.approx(continuum(train.logits, train.labels, (3, 7), 1), rel=1e-6)
    for wrong in (
        continuum(train.logits, train.labels, (3, 1), 7),
        continuum(train.logits, train.labels, (7, 1), 3),
        continuum(held_out.logits, held_out.labels, (3, 7), 1),
    ):
        assert abs(wrong - measured.values["continuum"]) > 1e-3


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("held-out", "held_out")])
def test_geometry_is_the_mean_over_all_planes(net, measured, split, part):
    to_centres, variation, distance = plane_numbers(net, getattr(net, part), "centres")
    to_templates = plane_numbers(net, getattr(net, part), "templates")[0]
    assert abs(to_centres - to_templates) > 0.01
    found = {name: measured.values[f"{name}, {split}"] for name in GEOMETRY}
    expected = dict(zip(GEOMETRY, (to_centres, to_templates, variation), strict=True))
    assert found == pytest.approx(expected, rel=1e-5)
    # The plane's own origin: the foot of the perpendicular from zero, from which `project` counts.
    assert measured.values[f"mean distance from the origin, {split}"] == pytest.approx(distance, rel=1e-5)


GEOMETRY = ("spread over distance of centres", "spread over distance of templates", "variation of edges")


def test_similar_classes_are_those_of_the_class_means(net):
    means = np.stack([net.train.penultimate[net.train.labels == k].mean(axis=0) for k in range(NUM_CLASSES)])
    centred = means - means.mean(axis=0)
    cosines = centred @ centred.T / np.outer(*[np.linalg.norm(centred, axis=1)] * 2)
    pairs = [(i, j) for i in range(NUM_CLASSES) for j in range(i)]
    b, a = max(pairs, key=lambda pair: cosines[pair])
    different = min(set(range(NUM_CLASSES)) - {a, b}, key=lambda k: cosines[k, a] + cosines[k, b])
    assert analyse.similar_classes(net) == (a, b, different)


# --- From statistics to intervals


def test_a_crossed_interval_pairs_seeds_and_examples():
    first, second = (
        [analyse.Statistics({"x": rows.mean()}, {"x": rows}) for rows in np.random.default_rng(0).normal(size=(3, 50))]
        for _ in range(2)
    )
    for shift, each in zip((0.1, 0.2, 0.3), second, strict=True):
        each.values["x"] -= shift
        each.examples["x"] = each.examples["x"] - shift
    interval = analyse.crossed(first, "x", second)
    # Only the seeds' shifts are left: Student's t over 0.1, 0.2, 0.3.
    assert interval.estimate == pytest.approx(0.2)
    assert interval.high - interval.low == pytest.approx(2 * 4.302653 * 0.1 / np.sqrt(3), rel=1e-6)
    assert (interval.num_seeds, interval.num_examples) == (3, 50)


def test_an_ece_interval_stands_about_the_values_and_not_the_contributions():
    rows = np.random.default_rng(0).normal(size=(3, 50))
    measured = [
        analyse.Statistics({"bias-reduced ece": 5.0 + seed}, {"bias-reduced ece": rows[seed]}) for seed in (0, 1, 2)
    ]
    assert analyse.crossed(measured, "bias-reduced ece").estimate == pytest.approx(6.0)


def test_one_fickle_example_of_accuracy_is_no_certainty():
    rows = np.zeros((5, 100))
    right = [analyse.Statistics({"accuracy": 0.01}, {"accuracy": each}) for each in rows + np.eye(1, 100)]
    wrong = [analyse.Statistics({"accuracy": 0.0}, {"accuracy": each}) for each in rows]
    interval = analyse.crossed(right, "accuracy", wrong)
    assert interval.low < 0 < interval.high
    # The floor of four steps of 1/100, above the variance 0.01 × 0.99 / 99 / 100 of the one example.
    assert interval.high - interval.estimate == pytest.approx(1.959964 * 0.02, rel=1e-6)


def test_only_nll_has_heavy_tails():
    rows = np.random.default_rng(0).normal(size=(3, 50)) - 30 * np.eye(1, 50)
    intervals = [analyse.crossed([analyse.Statistics({n: r.mean()}, {n: r}) for r in rows], n) for n in ("nll", "x")]
    skewed, plain = (each.high + each.low - 2 * each.estimate for each in intervals)
    assert abs(plain) < 1e-9 and abs(skewed) > 0.05
    half_width = max(intervals[0].high - intervals[0].estimate, intervals[0].estimate - intervals[0].low)
    assert analyse.interval_text(intervals[0]) == f"−{-intervals[0].estimate:.4g} ± {half_width:.2g}"


@pytest.mark.parametrize(("splits", "expected"), [(("held_out", "test"), "held_out"), (("test",), "test")])
def test_right_answers_are_those_of_the_held_out_examples_if_there_are_any(splits, expected):
    run = SimpleNamespace(
        metrics={split: {"accuracy": 0.5} for split in splits},
        examples=lambda split: SimpleNamespace(correct=split, confidence=None, nll=None),
    )
    assert analyse.correct(run) == expected


# --- What is observed in training


class Name(tuple):
    """What stands for a data set, whole and in memory."""

    def take(self, batches):
        return self

    def cache(self):
        return self


class Labelled:
    """Data whose splits and draws are names, which the probe below knows."""

    num_classes = NUM_CLASSES

    def __init__(self, augmented=True, held_out=90):
        self.augmented, self.asked = augmented, []
        self.sizes = {"train": 4_000, "held_out": held_out, "test": 50}

    def size(self, split):
        return self.sizes[split]

    def labels(self, split):
        return np.random.default_rng(0).permutation(self.sizes[split]) % NUM_CLASSES

    def evaluation(self, split, batch_size):
        return Name((split,))

    def draws(self, rows, number, *, seed, batch_size):
        self.asked.append((rows, number, seed))
        return Name((number, seed))


class Known:
    """A probe that answers with the arrays of the name that it is given."""

    def __init__(self, net):
        self.kernel, self.bias, self.net, self.pairs = net.kernel, net.bias, net, []
        generator = np.random.default_rng(5)
        means = generator.normal(size=(60, 1)) * 3
        self.drawn = {number: means + generator.normal(size=(60, number)) for number in (20, 5)}

    def collect(self, dataset, limit=None):
        assert limit == 10_000
        return {"train": self.net.train, "held_out": self.net.held_out, "test": self.net.train}[dataset[0]]

    def logit_differences(self, dataset, pair):
        self.pairs.append(pair)
        return self.drawn[dataset[0]]


def information(draws, means, variance):
    """The double sum of section 4, in its correct form."""
    squares = (draws[:, :, None] - means) ** 2 / (2 * variance)
    own = np.take_along_axis(squares, np.arange(len(means))[:, None, None], axis=2)[:, :, 0]
    return np.log(len(means)) + np.mean(-own - special.logsumexp(-squares, axis=2))


def test_what_is_observed_of_a_network():
    net, data = network(), Labelled()
    probe = Known(net)
    seen = analyse.observe(probe, data)
    assert seen["tightness"] == pytest.approx(plane_numbers(net, net.train, "centres")[0], rel=1e-5)
    wrong = 1 - softmax(net.train.logits)[np.arange(200), net.train.labels]
    assert seen["gamma"] == pytest.approx(wrong.mean() * NUM_CLASSES / (NUM_CLASSES - 1))
    assert seen["held_out_ece"] == pytest.approx(plug_in_ece(softmax(net.held_out.logits), net.held_out.labels))


def test_information_is_between_up_to_300_examples_of_two_classes_and_its_bound_from_fresh_draws():
    data, probe = Labelled(), Known(network())
    seen = analyse.observe(probe, data)
    assert probe.pairs == [(0, 5), (0, 5)]
    labels = data.labels("train")
    chosen = np.concatenate([np.flatnonzero(labels == 0)[:300], np.flatnonzero(labels == 5)[:300]])
    (rows, number, seed), (fresh_rows, fresh_number, fresh_seed) = data.asked
    np.testing.assert_array_equal(rows, chosen)
    np.testing.assert_array_equal(fresh_rows, chosen)
    assert (number, fresh_number) == (20, 5) and seed != fresh_seed
    draws, fresh = probe.drawn[20], probe.drawn[5]
    means = draws.mean(axis=1)
    variance = np.mean((draws - means[:, None]) ** 2)
    same = information(draws, means, variance)
    assert seen["information_high"] == pytest.approx(same, abs=1e-6)
    assert seen["information"] == pytest.approx(same - 0.5 * np.log(20 / 19), abs=1e-6)
    assert seen["information_low"] == pytest.approx(information(fresh, means, variance * 21 / 19), abs=1e-6)
    first = draws[:, :5]
    own = np.mean((first - first.mean(axis=1, keepdims=True)) ** 2)
    assert seen["information_paper"] == pytest.approx(information(first, first.mean(axis=1), own), abs=1e-6)


def test_nothing_is_drawn_without_augmentation():
    data = Labelled(augmented=False)
    assert set(analyse.observe(Known(network()), data)) == {"tightness", "gamma", "held_out_ece"}
    assert not data.asked


def test_the_test_set_stands_in_where_nothing_is_held_out():
    net = network()
    seen = analyse.observe(Known(net), Labelled(held_out=0, augmented=False))
    assert seen["held_out_ece"] == pytest.approx(plug_in_ece(softmax(net.train.logits), net.train.labels))


def test_information_through_training_keeps_the_observed_steps_of_each_seed():
    def history(offset):
        rows = {"step": [0, 10, 20, 30]}
        for add, name in enumerate(("information", "information_low", "information_high")):
            rows[name] = [offset + add, np.nan, offset + add + 10, np.nan]
        return SimpleNamespace(history=lambda: {name: np.array(row, float) for name, row in rows.items()})

    seen = analyse.information_through_training([history(1.0), history(5.0)])
    assert seen["steps"].tolist() == [0, 20]
    assert seen["information"].tolist() == [[1, 11], [5, 15]]
    assert seen["information_low"].tolist() == [[2, 12], [6, 16]]
    assert seen["information_high"].tolist() == [[3, 13], [7, 17]]


# --- Figures


@pytest.mark.parametrize("fitted", [False, True])
def test_a_reliability_curve_pools_the_networks_each_at_its_own_temperature(fitted):
    nets = [network(seed, sharpness) for seed, sharpness in ((0, 3.0), (1, 0.5))]
    labels = np.concatenate([net.held_out.labels for net in nets])
    probabilities = np.concatenate(
        [
            softmax(
                net.held_out.logits,
                temperatures_of_the_other_half(net.held_out.logits, net.held_out.labels) if fitted else 1.0,
            )
            for net in nets
        ]
    )
    curve = analyse.reliability_curve("both", nets, fitted=fitted)
    assert curve.ece == pytest.approx(plug_in_ece(probabilities, labels), abs=1e-5)
    assert curve.count.sum() == 300


def test_the_panels_show_train_and_held_out_in_the_order_of_the_classes(net):
    classes = (4, 0, 8)
    panels = analyse.plane_panels(net, classes)
    axes = np.linalg.qr(net.kernel[:, [0, 8]] - net.kernel[:, [4]])[0]
    for panel, part in zip(panels, (net.train, net.held_out), strict=True):
        assert np.bincount(panel.labels).tolist() == [(part.labels == label).sum() for label in classes]
        for at, label in enumerate(classes):
            # Distances between points of the plane do not depend on its axes.
            shown, own = panel.points[panel.labels == at], part.penultimate[part.labels == label] @ axes
            np.testing.assert_allclose(
                np.linalg.norm(shown - shown[0], axis=1), np.linalg.norm(own - own[0], axis=1), atol=1e-5
            )


# --- The main job's glue


@pytest.fixture
def found(monkeypatch, tmp_path):
    """`paper.find` where networks are built by hand: what it finds, and each network by (α, seed)."""
    nets = {}

    def train(run, configs, *, size, what):
        return [SimpleNamespace(saved_model=(config.alpha, config.seed)) for config in configs]

    def load(path, name, data, limit=None):
        alpha, seed = path
        nets[path] = network(seed=10 + seed + round(100 * alpha), sharpness=3.0 - 10 * alpha, num_held_out=300)
        return nets[path]

    monkeypatch.setattr(analyse, "load", load)
    where = SimpleNamespace(data_dir=None)
    return paper.find(paper.SIZES["smoke"], where, train), nets


def test_the_main_jobs_estimates_are_those_of_its_networks(found):
    findings, nets = found
    estimates = {verdict.id: verdict.estimate for verdict in findings.verdicts}
    chosen = analyse.similar_classes(nets[0.0, 0])
    others = {analyse.similar_classes(nets[key]) for key in nets if key != (0.0, 0)}
    assert chosen not in others
    train = {key: (net.train.logits, net.train.labels) for key, net in nets.items()}
    expected = np.mean(
        [
            continuum(*train[0.0, s], chosen[:2], chosen[2]) - continuum(*train[0.1, s], chosen[:2], chosen[2])
            for s in (0, 1)
        ]
    )
    assert estimates["C4"] == pytest.approx(expected, rel=1e-5)
    planes = {key: plane_numbers(net, net.train, "centres") for key, net in nets.items()}
    held_out = {key: plane_numbers(net, net.held_out, "centres") for key, net in nets.items()}
    assert estimates["C1a"] == pytest.approx(np.mean([planes[0.0, s][0] - planes[0.1, s][0] for s in (0, 1)]), rel=1e-4)
    assert estimates["C1b"] == pytest.approx(
        np.mean([held_out[0.0, s][0] - held_out[0.1, s][0] for s in (0, 1)]), rel=1e-4
    )
    assert estimates["C2"] == pytest.approx(np.mean([planes[0.0, s][1] - planes[0.1, s][1] for s in (0, 1)]), rel=1e-4)
    assert estimates["C3"] == pytest.approx(
        np.mean([1 - planes[0.1, s][2] / planes[0.0, s][2] for s in (0, 1)]), rel=1e-4
    )
    accuracy = {key: np.mean(net.held_out.logits.argmax(1) == net.held_out.labels) for key, net in nets.items()}
    confidence = {key: softmax(net.held_out.logits).max(1).mean() for key, net in nets.items()}
    assert estimates["C5"] == pytest.approx(np.mean([accuracy[0.1, s] - accuracy[0.0, s] for s in (0, 1)]))
    assert estimates["C6a"] == pytest.approx(np.mean([confidence[0.0, s] - accuracy[0.0, s] for s in (0, 1)]))
    values = {key: analyse.statistics(net, chosen).values for key, net in nets.items()}
    ece = {key: each["bias-reduced ece"] for key, each in values.items()}
    scaled = {key: each["bias-reduced ece at temperature"] for key, each in values.items()}
    assert estimates["C6b"] == pytest.approx(np.mean([ece[0.0, s] - scaled[0.0, s] for s in (0, 1)]))
    assert estimates["C6c"] == pytest.approx(np.mean([ece[0.0, s] - ece[0.05, s] for s in (0, 1)]))
    assert estimates["C6d"] == pytest.approx(np.mean([scaled[0.0, s] - ece[0.05, s] for s in (0, 1)]))


def test_the_tables_keep_the_two_kinds_of_interval_apart(found):
    findings, nets = found
    over_examples, over_seeds = findings.tables
    assert "seeds and the examples" in over_examples.caption and "Student's t" in over_seeds.caption
    cells = {row[0]: row[1:] for table in findings.tables for row in table.rows}
    assert list(over_examples.header) == list(over_seeds.header) == ["quantity", "hard targets", "α = 0.05", "α = 0.1"]
    assert {row[0] for row in over_examples.rows} == {
        "accuracy",
        "overconfidence",
        "nll",
        "nll at temperature",
        "bias-reduced ece",
        "bias-reduced ece at temperature",
    }
    accuracy = [
        np.mean([net.held_out.logits.argmax(1) == net.held_out.labels for (a, _), net in nets.items() if a == alpha])
        for alpha in (0.0, 0.05, 0.1)
    ]
    assert [cell.split(" ± ")[0] for cell in cells["accuracy"]] == [f"{value:.4g}" for value in accuracy]
    ece = [plug_in_ece(softmax(nets[0.1, s].held_out.logits), nets[0.1, s].held_out.labels) for s in (0, 1)]
    half_width = 12.7062 * np.std(ece, ddof=1) / np.sqrt(2)
    assert cells["ece"][-1] == f"{np.mean(ece):.4g} ± {half_width:.2g}"


def test_a_quantity_that_is_not_defined_leaves_the_page_whole():
    measured = {
        alpha: [analyse.Statistics({"slope": value}, {}) for value in values]
        for alpha, values in {0.0: (np.nan, 1.0), 0.1: (2.0, 2.0)}.items()
    }
    _, table = paper.tables(paper.SIZES["smoke"], measured)
    assert table.rows == [["slope", "nan", "2"]]


def test_distilled_accuracies_are_set_with_both_kinds_of_chance():
    generator = np.random.default_rng(0)
    teachers = {0.0: generator.integers(0, 2, (3, 50)).astype(float)}
    students = {"hard": generator.integers(0, 2, (1, 3, 50)).astype(float)}
    table = distill.accuracy_table(
        distill.Config(seeds=3, distilled=(0.3,)), teachers, students, np.full((1, 3), 0.25), {"dropout": teachers[0.0]}
    )
    interval = intervals.crossed(students["hard"][0])
    assert table.rows[1] == [
        "student, hard-target teacher",
        "0.250",
        f"{students['hard'].mean():.4g} ± {interval.high - interval.estimate:.2g}",
    ]
    assert [row[0] for row in table.rows] == ["teacher, α = 0", "student, hard-target teacher", "A.5: dropout"]
