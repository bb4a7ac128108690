"""What lies between a network's arrays and a verdict, on arrays built by hand, against NumPy written out anew."""

import dataclasses
import json
from types import SimpleNamespace

from ls_keras import experiment, study
from ls_keras.analysis import intervals
from ls_keras.analysis.calibration import cross_fitted, top_label_contributions
from ls_keras.analysis.probe import Collected
from ls_keras.experiment import many
from ls_keras.experiment import run as running
from ls_keras.study import Comparison, Measured, Record, Term, driver, measures
from ls_keras_recipes import paper

import numpy as np
import pytest
from scipy import optimize, special

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
    return study.Network(
        f"seed {seed}",
        generator.normal(size=(NUM_FEATURES, NUM_CLASSES)),
        generator.normal(size=NUM_CLASSES),
        collected(generator, 200, centres),
        collected(generator, num_held_out, centres, sharpness),
    )


def measured_by(net, chosen=(3, 7, 1)):
    """What a study keeps of a network."""
    values, examples = study.statistics(net.held_out.logits, net.held_out.labels)
    return Record(net.name, 0, "", values={**values, **study.shapes(net, chosen)}, examples=examples)


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
    return measured_by(net)


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
    assert measured_by(network(sharpness=0.3)).values["overconfidence"] < -0.1


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
    assert study.similar_classes(net) == (a, b, different)


# --- From statistics to intervals


def measured_of(**arms):
    """Records by arm, of the values and examples of each seed."""
    records = [
        Record(arm.replace("_", " "), seed, "", values=values, examples=examples)
        for arm, networks in arms.items()
        for seed, (values, examples) in enumerate(networks)
    ]
    return Measured("made up", {}, {"class_names": [], "name": "noise"}, {}, tuple(records))


def interval(measured, name, arm="first", other=None):
    return study.interval(measured, Comparison(Term(arm, name), other and Term(other, name)))


def test_a_crossed_interval_pairs_seeds_and_examples():
    first, second = (
        [({"x": rows.mean()}, {"x": rows}) for rows in np.random.default_rng(0).normal(size=(3, 50))] for _ in range(2)
    )
    shifted = [
        ({"x": values["x"] - shift}, {"x": rows["x"] - shift})
        for shift, (values, rows) in zip((0.1, 0.2, 0.3), second, strict=True)
    ]
    found = interval(measured_of(first=first, second=shifted), "x", other="second")
    # Only the seeds' shifts are left: Student's t over 0.1, 0.2, 0.3.
    assert found.estimate == pytest.approx(0.2)
    assert found.high - found.low == pytest.approx(2 * 4.302653 * 0.1 / np.sqrt(3), rel=1e-6)
    assert (found.num_seeds, found.num_examples) == (3, 50)


def test_an_ece_interval_stands_about_the_values_and_not_the_contributions():
    rows = np.random.default_rng(0).normal(size=(3, 50))
    networks = [({"bias-reduced ece": 5.0 + seed}, {"bias-reduced ece": rows[seed]}) for seed in (0, 1, 2)]
    assert interval(measured_of(first=networks), "bias-reduced ece").estimate == pytest.approx(6.0)


def test_one_fickle_example_of_accuracy_is_no_certainty():
    rows = np.zeros((5, 100))
    right = [({"accuracy": 0.01}, {"accuracy": each}) for each in rows + np.eye(1, 100)]
    wrong = [({"accuracy": 0.0}, {"accuracy": each}) for each in rows]
    found = interval(measured_of(first=right, second=wrong), "accuracy", other="second")
    assert found.low < 0 < found.high
    # The floor of four steps of 1/100, above the variance 0.01 × 0.99 / 99 / 100 of the one example.
    assert found.high - found.estimate == pytest.approx(1.959964 * 0.02, rel=1e-6)


def test_only_nll_has_heavy_tails():
    rows = np.random.default_rng(0).normal(size=(3, 50)) - 30 * np.eye(1, 50)
    found = [interval(measured_of(first=[({n: r.mean()}, {n: r}) for r in rows]), n) for n in ("nll", "x")]
    skewed, plain = (each.high + each.low - 2 * each.estimate for each in found)
    assert abs(plain) < 1e-9 and abs(skewed) > 0.05
    half_width = max(found[0].high - found[0].estimate, found[0].estimate - found[0].low)
    assert study.page.cell(found[0]) == set_with(found[0].estimate, half_width)


def set_with(value, half_width):
    """The half width to two digits, and the value to as many decimals."""
    half = f"{half_width:.2g}"
    decimals = len(half.partition(".")[2])
    return f"{value:.{decimals}f} ± {half}".replace("-", "−")


@pytest.mark.parametrize(("held_out", "expected"), [(90, "held_out"), (0, "test")])
def test_what_is_never_seen_in_training_is_the_held_out_examples_if_there_are_any(held_out, expected):
    assert measures.held_out(Labelled(held_out=held_out)) == expected


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
    seen = study.observe(probe, data)
    assert seen["tightness"] == pytest.approx(plane_numbers(net, net.train, "centres")[0], rel=1e-5)
    wrong = 1 - softmax(net.train.logits)[np.arange(200), net.train.labels]
    assert seen["gamma"] == pytest.approx(wrong.mean() * NUM_CLASSES / (NUM_CLASSES - 1))
    right = [
        row.tolist().index(max(row)) == label for row, label in zip(net.train.logits, net.train.labels, strict=True)
    ]
    assert seen["train_accuracy"] == pytest.approx(sum(right) / len(right)) and 0 < sum(right) < len(right)
    assert seen["held_out_ece"] == pytest.approx(plug_in_ece(softmax(net.held_out.logits), net.held_out.labels))


def test_information_is_between_up_to_300_examples_of_two_classes_and_its_bound_from_fresh_draws():
    data, probe = Labelled(), Known(network())
    seen = study.observe(probe, data)
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
    assert set(study.observe(Known(network()), data)) == {"tightness", "gamma", "held_out_ece", "train_accuracy"}
    assert not data.asked


def test_the_test_set_stands_in_where_nothing_is_held_out():
    net = network()
    seen = study.observe(Known(net), Labelled(held_out=0, augmented=False))
    assert seen["held_out_ece"] == pytest.approx(plug_in_ece(softmax(net.train.logits), net.train.labels))


def test_curves_keep_the_observed_steps_alone():
    rows = {"step": [0, 10, 20, 30], "loss": [np.nan, 2, 1, 0]}
    for add, name in enumerate(("tightness", "information", "information_low", "information_high", "train_accuracy")):
        rows[name] = [1 + add, np.nan, 11 + add, np.nan]
    history = {name: np.array(row, float) for name, row in rows.items()}
    seen = driver._curves(SimpleNamespace(history=lambda: history))
    assert {name: row.tolist() for name, row in seen.items()} == {
        "steps": [0, 20],
        "tightness": [1, 11],
        "information": [2, 12],
        "information_low": [3, 13],
        "information_high": [4, 14],
        "train_accuracy": [5, 15],
    }
    assert driver._curves(SimpleNamespace(history=lambda: {"step": history["step"], "loss": history["loss"]})) == {}


def test_information_is_compared_at_moments_that_its_values_do_not_choose():
    steps = np.arange(0, 100, 10)
    values = np.array([1.0, 9, 9, 9, 4, 5, 6, 9, 9, 2])
    # Falls below .95 again after it was first reached.
    accuracy = np.array([0.1, 0.6, 0.94, 0.949, 0.95, 0.94, 0.99, 0.998, 0.999, 1.0])
    assert measures.information_at(steps, values, accuracy) == {
        "information, start": 1,
        "steps to training accuracy 0.95": 40,
        "information, training accuracy 0.95": 4,
        "information, fall from training accuracy 0.95": 4 - 2,
        "steps to training accuracy 0.999": 80,
        "information, training accuracy 0.999": 9,
        "information, fall from training accuracy 0.999": 9 - 2,
        "information, end": 2,
    }


def test_what_was_never_learnt_has_no_moment():
    found = measures.information_at(np.array([0.0, 10, 20]), np.array([0.5, 2, 1]), np.array([0.1, 0.97, 0.98]))
    assert found["information, fall from training accuracy 0.95"] == 1.0
    without = {name for name, value in found.items() if np.isnan(value)}
    assert without == {
        "steps to training accuracy 0.999",
        "information, training accuracy 0.999",
        "information, fall from training accuracy 0.999",
    }


# --- Figures


@pytest.mark.parametrize("fitted", [False, True])
def test_a_reliability_curve_pools_the_networks_each_at_its_own_temperature(fitted):
    nets = [network(seed, sharpness) for seed, sharpness in ((0, 3.0), (1, 0.5))]
    probabilities = []
    for net in nets:
        logits, labels = net.held_out.logits, net.held_out.labels
        probabilities.append(softmax(logits, temperatures_of_the_other_half(logits, labels) if fitted else 1.0))
    networks = [(record.values, record.examples) for record in map(measured_by, nets)]
    at = " at temperature" if fitted else ""
    curve = study.representations.reliability_curve(measured_of(both=networks), "both", "name", at=at)
    assert curve.name == "name"
    # The legend's number is the one of the tables: the mean of the networks' own.
    eces = [plug_in_ece(rows, net.held_out.labels) for rows, net in zip(probabilities, nets, strict=True)]
    assert curve.ece == pytest.approx(np.mean(eces), abs=1e-5)
    labels = np.concatenate([net.held_out.labels for net in nets])
    top = np.concatenate(probabilities)
    right = top.argmax(1) == labels
    inside = (top.max(1) > 14 / 15) & (top.max(1) <= 1)
    assert (curve.count[14], curve.count.sum()) == (inside.sum(), 300)
    assert curve.accuracy[14] == pytest.approx(right[inside].mean())


def test_the_panels_show_train_and_held_out_in_the_order_of_the_classes(net):
    classes = (4, 0, 8)
    panels = [study.panel(net, split, classes) for split in ("train", "held_out")]
    axes = np.linalg.qr(net.kernel[:, [0, 8]] - net.kernel[:, [4]])[0]
    for panel, part in zip(panels, (net.train, net.held_out), strict=True):
        assert np.bincount(panel["labels"]).tolist() == [(part.labels == label).sum() for label in classes]
        for at, label in enumerate(classes):
            # Distances between points of the plane do not depend on its axes.
            shown, own = panel["points"][panel["labels"] == at], part.penultimate[part.labels == label] @ axes
            np.testing.assert_allclose(
                np.linalg.norm(shown - shown[0], axis=1), np.linalg.norm(own - own[0], axis=1), atol=1e-5
            )


# --- The main job's glue

CONFIG = dataclasses.replace(paper.SIZES["smoke"], distilled=())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The study `paper` where networks are built by hand: what it measures, and each network by (α, seed)."""
    nets, folder = {}, tmp_path_factory.mktemp("found")

    def run(recipe, config, size, where, until=None):
        name = f"{config.alpha}-{config.seed}"
        (folder / name).mkdir()
        (folder / name / "history.csv").write_text("step,loss\n1,2\n")
        (folder / name / "config.json").write_text(json.dumps({"config": {"alpha": config.alpha}}))
        return experiment.Run(folder / name, {"seconds": 1.0})

    def collect(path, name, data, limit=None):
        alpha, seed = path.parent.name.split("-")
        key = float(alpha), int(seed)
        nets[key] = network(seed=10 + key[1] + round(100 * key[0]), sharpness=3.0 - 10 * key[0], num_held_out=300)
        return nets[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "_places", lambda where: [{}])
        patch.setattr(running, "run", run)
        patch.setattr(driver.analysis, "Probe", lambda path: path, raising=False)
        patch.setattr(measures, "collect", collect)
        planned = paper.plan(CONFIG)
        return study.run(planned, folder / "study", experiment.Where(quiet=True)), nets


def test_the_main_jobs_estimates_are_those_of_its_networks(found):
    measured, nets = found
    claims = [claim for claim in paper.claims(CONFIG) if int(claim.id[1:].rstrip("abcd")) < 7]
    verdicts, _ = study.judge(claims, measured)
    estimates = {(verdict.id, each.at): each.estimate for verdict in verdicts for each in verdict.settings}
    train = {key: (net.train.logits, net.train.labels) for key, net in nets.items()}
    chosen = {seed: study.similar_classes(nets[0.0, seed]) for seed in (0, 1)}
    for seed in (0, 1):  # the hard-target network of the same seed chooses
        assert chosen[seed] not in {study.similar_classes(nets[key]) for key in nets if key != (0.0, seed)}
    planes = {key: plane_numbers(net, net.train, "centres") for key, net in nets.items()}
    held_out = {key: plane_numbers(net, net.held_out, "centres") for key, net in nets.items()}
    accuracy = {key: np.mean(net.held_out.logits.argmax(1) == net.held_out.labels) for key, net in nets.items()}
    confidence = {key: softmax(net.held_out.logits).max(1).mean() for key, net in nets.items()}
    values = {key: measured_by(net).values for key, net in nets.items()}
    ece = {key: each["bias-reduced ece"] for key, each in values.items()}
    scaled = {key: each["bias-reduced ece at temperature"] for key, each in values.items()}

    def mean(difference):
        return np.mean([difference(seed) for seed in (0, 1)])

    for alpha in (0.05, 0.1):
        at, a = f"α = {alpha:g}", alpha
        expected = mean(
            lambda s, a=a: (
                continuum(*train[0.0, s], chosen[s][:2], chosen[s][2])
                - continuum(*train[a, s], chosen[s][:2], chosen[s][2])
            )
        )
        assert estimates["C4", at] == pytest.approx(expected, rel=1e-5)
        tighter = mean(lambda s, a=a: planes[0.0, s][0] - planes[a, s][0])
        assert estimates["C1a", at] == pytest.approx(tighter, rel=1e-4)
        tighter = mean(lambda s, a=a: held_out[0.0, s][0] - held_out[a, s][0])
        assert estimates["C1b", at] == pytest.approx(tighter, rel=1e-4)
        assert estimates["C2", at] == pytest.approx(mean(lambda s, a=a: planes[0.0, s][1] - planes[a, s][1]), rel=1e-4)
        smaller = mean(lambda s, a=a: 1 - planes[a, s][2] / planes[0.0, s][2])
        assert estimates["C3", at] == pytest.approx(smaller, rel=1e-4)
        assert estimates["C5", at] == pytest.approx(mean(lambda s, a=a: accuracy[a, s] - accuracy[0.0, s]))
        assert estimates["C6c", at] == pytest.approx(mean(lambda s, a=a: ece[0.0, s] - ece[a, s]))
        assert estimates["C6d", at] == pytest.approx(mean(lambda s, a=a: scaled[0.0, s] - ece[a, s]))
    assert estimates["C6a", ""] == pytest.approx(mean(lambda s: confidence[0.0, s] - accuracy[0.0, s]))
    assert estimates["C6b", ""] == pytest.approx(mean(lambda s: ece[0.0, s] - scaled[0.0, s]))


def test_the_tables_keep_the_two_kinds_of_interval_apart(found):
    measured, nets = found
    _, over_examples, over_seeds = study.representations.tables(measured, (0.0, 0.05, 0.1), 0.05)
    assert "seeds and the examples" in over_examples.caption and "Student's t" in over_seeds.caption
    cells = {row[0]: row[1:] for table in (over_examples, over_seeds) for row in table.rows}
    assert list(over_examples.header) == list(over_seeds.header) == ["quantity", "hard targets", "α = 0.05", "α = 0.1"]
    assert {row[0] for row in over_examples.rows} == {
        "accuracy",
        "confidence − accuracy",
        "NLL",
        "NLL at the fitted T",
        "bias-reduced ECE",
        "bias-reduced ECE at the fitted T",
    }
    for column, alpha in enumerate((0.0, 0.05, 0.1)):
        accuracy = np.mean([nets[alpha, s].held_out.logits.argmax(1) == nets[alpha, s].held_out.labels for s in (0, 1)])
        shown = cells["accuracy"][column].split(" ± ")[0]
        assert shown == f"{accuracy:.{len(shown.partition('.')[2])}f}"
    ece = [plug_in_ece(softmax(nets[0.1, s].held_out.logits), nets[0.1, s].held_out.labels) for s in (0, 1)]
    assert cells["ECE"][-1] == set_with(np.mean(ece), 12.7062 * np.std(ece, ddof=1) / np.sqrt(2))


def test_a_quantity_that_is_not_defined_leaves_the_page_whole():
    assert [study.page.number(values) for values in ((np.nan, 1.0), (2.0, 2.0), (-3.0,))] == ["nan", "2", "−3"]


def test_distilled_accuracies_are_set_with_both_kinds_of_chance():
    generator = np.random.default_rng(0)
    teacher, plain, student = generator.integers(0, 2, (3, 3, 50)).astype(float)
    arms = {"hard targets": teacher, "A.5: dropout teacher": teacher, study.distillation.PLAIN: plain}
    arms |= {study.distillation.arm_name(kind, 0.3): student for kind in ("soft", "heated", "smoothed")}
    records = [
        Record(
            arm,
            seed,
            "",
            facts={"gamma": 0.25 if "as soft" in arm else 0.0},
            values=dict.fromkeys(("accuracy", "nll at temperature"), row.mean()),
            examples=dict.fromkeys(("accuracy", "nll at temperature"), row),
        )
        for arm, rows in arms.items()
        for seed, row in enumerate(rows)
    ]
    measured = Measured("made up", {}, {}, {}, tuple(records))
    table = study.distillation.table(measured, (0.0,), (0.3,), ("A.5: dropout teacher",))
    rows = {row[0]: row[1:] for row in table.rows}
    own, gain = intervals.crossed(student, step=1 / 50), intervals.crossed(student - plain, step=1 / 50)
    gamma, accuracy, _, gained = rows["student of hard targets, as soft as α = 0.3"]
    assert (gamma, accuracy) == ("0.250", set_with(own.estimate, own.high - own.estimate))
    assert gained == set_with(gain.estimate, gain.high - gain.estimate)
    assert list(rows) == [
        "teacher, hard targets",
        study.distillation.PLAIN,
        "student, smoothed labels, as soft as α = 0.3",
        "student of hard targets, as soft as α = 0.3",
        "student of smoothed targets, as soft as α = 0.3",
        "A.5: dropout teacher",
    ]
