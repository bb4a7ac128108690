"""Verdicts of the main job on made-up measurements whose truth is known, for and against each claim."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import distill
import paper
from analyse import Statistics

SEEDS = np.arange(5)
NUM_EXAMPLES = 400
FAVOURS_SMOOTHING_WHEN_LOWER = (
    "spread over distance of centres, train",
    "spread over distance of centres, held-out",
    "variation of edges, train",
    "mean distance from the origin, train",
    "continuum",
)
OVER_EXAMPLES = {"C5", "C6a", "C6b", "C6c", "C6d", "C8", "C9", "C10a", "C10b", "C11a", "C11b"}
HELD_OUT = SimpleNamespace(logits=2 * np.eye(4), labels=np.arange(4))
NETWORKS = {0.0: [SimpleNamespace(held_out=HELD_OUT)]}


def statistics(values: dict[str, float], means: dict[str, float]) -> Statistics:
    """Of a network whose examples differ far more than networks do, but in the same way in all of them."""
    generator = np.random.default_rng(0)
    examples = {}
    for name, mean in means.items():
        noise = generator.normal(size=NUM_EXAMPLES)
        examples[name] = mean + noise - noise.mean()
    return Statistics(values | means, examples)


def measurements(better: bool) -> dict[float, list[Statistics]]:
    """Numbers per α and seed; seeds differ far more than networks do, so only pairing can tell."""
    sign = -1 if better else 1
    measured = {}
    for alpha in (0.0, 0.05, 0.1):
        gain = 0.0 if alpha == 0 else 0.1
        measured[alpha] = [
            statistics(
                {name: 2.0 + seed + sign * gain * (1 + 0.01 * seed) for name in FAVOURS_SMOOTHING_WHEN_LOWER},
                {
                    "accuracy": 0.5 + 0.05 * seed - sign * gain * 0.3,
                    "overconfidence": -sign * (0.3 + 0.001 * seed),
                    "bias-reduced ece": 2.0 + seed + sign * gain * (1 + 0.01 * seed),
                    "bias-reduced ece at temperature": 2.0 + seed + sign * 0.1 * (1 + 0.01 * seed),
                },
            )
            for seed in SEEDS
        ]
    # The same noise in ECE at T = 1 and at the fitted T: the same examples.
    for each in (each for networks in measured.values() for each in networks):
        ece, scaled = "bias-reduced ece", "bias-reduced ece at temperature"
        each.examples[scaled] = each.examples[ece] + each.values[scaled] - each.values[ece]
    return measured


def outcomes(verdicts) -> dict[str, str]:
    return {verdict.id: verdict.outcome for verdict in verdicts}


@pytest.mark.parametrize(("better", "expected"), [(True, "holds"), (False, "does not hold")])
def test_representations_and_calibration(better, expected):
    generator = np.random.default_rng(0)
    held_out = SimpleNamespace(logits=generator.normal(size=(20, 4)), labels=generator.integers(0, 4, 20))
    networks = {0.0: [SimpleNamespace(held_out=held_out)]}
    verdicts = paper.judge(paper.Config(), networks, measurements(better))
    found = outcomes(verdicts)
    for claim in ("C1a", "C1b", "C2", "C3", "C4", "C5", "C6a", "C6b", "C6c"):
        assert found[claim] == expected, claim
    assert found["C7"] == "not run"
    assert found["C13a"] == found["C13b"] == "holds"
    assert {v.id: v.num_examples for v in verdicts if v.num_seeds} == {
        v.id: NUM_EXAMPLES if v.id in OVER_EXAMPLES else 0 for v in verdicts if v.num_seeds
    }


def test_estimates_are_differences_of_what_they_name():
    verdicts = {v.id: v for v in paper.judge(paper.Config(), NETWORKS, measurements(better=True))}
    weighted = 0.1 * (1 + 0.01 * SEEDS.mean())
    assert verdicts["C5"].estimate == pytest.approx(0.03)
    assert verdicts["C6a"].estimate == pytest.approx(0.3 + 0.001 * SEEDS.mean())
    assert verdicts["C6b"].estimate == verdicts["C6c"].estimate == pytest.approx(weighted)
    assert verdicts["C3"].estimate == pytest.approx(np.mean(0.1 * (1 + 0.01 * SEEDS) / (2 + SEEDS)))


def test_a_shuffled_seed_undoes_the_pairing():
    measured = measurements(better=True)
    measured[0.1] = measured[0.1][::-1]
    found = outcomes(paper.judge(paper.Config(), NETWORKS, measured))
    assert found["C1a"] == found["C4"] == "undecided"


def test_shuffled_examples_undo_the_pairing():
    measured = measurements(better=True)
    for alpha in (0.05, 0.1):
        for each in measured[alpha]:
            each.examples.update({name: rows[::-1] for name, rows in each.examples.items()})
    found = outcomes(paper.judge(paper.Config(), NETWORKS, measured))
    assert found["C5"] == found["C6c"] == found["C6d"] == "undecided"
    assert found["C6b"] == "holds"  # within the hard-target networks


def test_similar_calibration_is_judged_by_its_margin():
    for gap, expected in ((0.005, "holds"), (0.02, "does not hold")):
        measured = measurements(better=True)
        for hard, smoothed in zip(measured[0.0], measured[0.05], strict=True):
            worse = gap + 1e-4 * hard.values["bias-reduced ece"]
            for kind in ("values", "examples"):
                ece = getattr(hard, kind)["bias-reduced ece at temperature"] + worse
                getattr(smoothed, kind)["bias-reduced ece"] = ece
        found = outcomes(paper.judge(paper.Config(), NETWORKS, measured))
        assert found["C6d"] == expected


def rows(level):
    """Shares of right answers [seed] as examples [seed, example] that are worth the same in every network."""
    noise = np.random.default_rng(0).normal(size=NUM_EXAMPLES)
    return np.asarray(level)[..., None] + noise - noise.mean()


@pytest.mark.parametrize(("sign", "expected"), [(1, "holds"), (-1, "does not hold")])
def test_distillation(sign, expected):
    level = 0.5 + 0.05 * SEEDS
    step = sign * (0.02 + 0.001 * SEEDS)
    by_alpha = {0.0: rows(level), 0.6: rows(level + step)}
    students = {"smoothed": level - step, "smoothing": level, "hard": level + step}
    students = {kind: rows(np.stack([values, values + 0.01])) for kind, values in students.items()}
    pairs = {
        "dropout": rows(level),
        "smoothed": rows(level + step),
        "student of dropout": rows(level + step),
        "student of smoothed": rows(level),
    }
    verdicts = distill.judge_distillation(distill.Config(), by_alpha, students, pairs)
    assert outcomes(verdicts) == dict.fromkeys(("C8", "C9", "C10a", "C10b", "C11a", "C11b"), expected)
    assert {(verdict.num_seeds, verdict.num_examples) for verdict in verdicts} == {(5, NUM_EXAMPLES)}


def test_a_few_examples_that_every_seed_gets_right_decide_nothing():
    """Three of 400: every seed gives a difference of exactly 0.0075, so that over seeds alone all claims would hold."""
    worse = np.zeros((5, NUM_EXAMPLES))
    better = worse.copy()
    better[:, :3] = 1.0
    students = {"smoothed": worse, "smoothing": better, "hard": better + better}
    pairs = {"dropout": worse, "smoothed": better, "student of dropout": better, "student of smoothed": worse}
    found = outcomes(
        distill.judge_distillation(
            distill.Config(), {0.0: worse, 0.6: better}, {kind: r[None] for kind, r in students.items()}, pairs
        )
    )
    assert set(found.values()) == {"undecided"}


def information(start, middle, end):
    offset = 0.2 * SEEDS[:, None]
    curve = np.interp(np.arange(10), [0, 4.5, 9], [start, middle, end]) * (1 + 0.01 * SEEDS[:, None]) + offset
    return {"steps": np.arange(10) * 100.0, "information": curve}


def test_information_that_rises_falls_and_ends_lower():
    hard, smoothed = information(0.0, 2.0, 1.9), information(0.0, 2.0, 0.8)
    verdicts = distill.judge_information(distill.Config(), hard, smoothed)
    assert set(outcomes(verdicts).values()) == {"holds"}
    assert {verdict.num_examples for verdict in verdicts} == {0}


def test_information_that_only_rises_refutes_the_fall():
    hard, smoothed = information(0.0, 1.0, 1.2), information(0.0, 1.5, 2.5)
    found = outcomes(distill.judge_information(distill.Config(), hard, smoothed))
    assert found["C12a"] == "holds"
    assert found["C12b"] == found["C12c"] == found["C12d"] == "does not hold"


def test_every_folder_of_the_main_job_has_a_short_name(tmp_path):
    """File systems allow 255 bytes; a student's name holds its teacher's content, not its path."""
    import dataclasses

    from ls_keras import experiment

    import mnist_mlp

    teacher = tmp_path / ("a" * 100) / ("b" * 100) / "saved_model"
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(teacher))
    config = dataclasses.replace(
        distill.alone(mnist_mlp.SIZES["digits"]),
        alpha=0.1234,
        units=(133, 133),
        shift=0,
        learning_rate=0.1,
        teacher=teacher,
        temperature=12.3456,
        match="probabilities",
        beta=1.0,
        seed=4,
    )
    name = experiment.label(config, "digits", mnist_mlp.SIZES)
    assert len(name.encode()) <= 200
    wide = dataclasses.replace(config, units=tuple(range(1000, 1040)))
    names = [experiment.label(each, "digits", mnist_mlp.SIZES) for each in (wide, dataclasses.replace(wide, seed=5))]
    assert len(set(names)) == 2
    assert max(len(each.encode()) for each in names) <= 200
    module.weight.assign(2.0)
    tf.saved_model.save(module, str(teacher))
    assert experiment.label(config, "digits", mnist_mlp.SIZES) != name
