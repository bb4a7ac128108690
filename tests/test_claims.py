"""Verdicts of the main job on made-up measurements whose truth is known, for and against each claim."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
import distill
import paper

SEEDS = np.arange(5)
FAVOURS_SMOOTHING_WHEN_LOWER = (
    "spread over distance of centres, train",
    "spread over distance of centres, held-out",
    "variation of edges, train",
    "mean absolute coordinate, train",
    "continuum",
    "ece",
)


def measurements(better: bool) -> dict[float, list[dict[str, float]]]:
    """Numbers per α and seed; seeds differ far more than networks do, so only pairing can tell."""
    sign = -1 if better else 1
    measured = {}
    for alpha in (0.0, 0.05, 0.1):
        gain = 0.0 if alpha == 0 else 0.1
        measured[alpha] = [
            {name: 2.0 + seed + sign * gain * (1 + 0.01 * seed) for name in FAVOURS_SMOOTHING_WHEN_LOWER}
            | {
                "accuracy": 0.5 + 0.05 * seed - sign * gain * 0.3,
                "overconfidence": -sign * (0.02 + 0.001 * seed),
                "ece at temperature": 2.0 + seed + sign * 0.1 * (1 + 0.01 * seed),
            }
            for seed in SEEDS
        ]
    return measured


def outcomes(verdicts) -> dict[str, str]:
    return {verdict.id: verdict.outcome for verdict in verdicts}


@pytest.mark.parametrize(("better", "expected"), [(True, "holds"), (False, "does not hold")])
def test_representations_and_calibration(better, expected):
    generator = np.random.default_rng(0)
    held_out = SimpleNamespace(logits=generator.normal(size=(20, 4)), labels=generator.integers(0, 4, 20))
    networks = {0.0: [SimpleNamespace(held_out=held_out)]}
    found = outcomes(paper.judge(paper.Config(), networks, measurements(better)))
    for claim in ("C1a", "C1b", "C2", "C3", "C4", "C5", "C6a", "C6b", "C6c"):
        assert found[claim] == expected, claim
    assert found["C7"] == "not run"
    assert found["C13a"] == found["C13b"] == "holds"


def test_a_shuffled_seed_undoes_the_pairing():
    measured = measurements(better=True)
    measured[0.1] = measured[0.1][::-1]
    held_out = SimpleNamespace(logits=np.eye(4), labels=np.arange(4))
    found = outcomes(paper.judge(paper.Config(), {0.0: [SimpleNamespace(held_out=held_out)]}, measured))
    assert found["C1a"] == found["C4"] == "undecided"


def test_similar_calibration_is_judged_by_its_margin():
    held_out = SimpleNamespace(logits=np.eye(4), labels=np.arange(4))
    for gap, expected in ((0.005, "holds"), (0.02, "does not hold")):
        measured = measurements(better=True)
        for hard, smoothed in zip(measured[0.0], measured[0.05], strict=True):
            smoothed["ece"] = hard["ece at temperature"] + gap + 1e-4 * hard["ece"]
        found = outcomes(paper.judge(paper.Config(), {0.0: [SimpleNamespace(held_out=held_out)]}, measured))
        assert found["C6d"] == expected


@pytest.mark.parametrize(("sign", "expected"), [(1, "holds"), (-1, "does not hold")])
def test_distillation(sign, expected):
    level = 0.5 + 0.05 * SEEDS
    step = sign * (0.01 + 0.001 * SEEDS)
    by_alpha = {0.0: level, 0.6: level + step}
    students = {"smoothed": level - step, "smoothing": level, "hard": level + step}
    students = {kind: np.stack([values, values + 0.01]) for kind, values in students.items()}
    pairs = {
        "dropout": level,
        "smoothed": level + step,
        "student of dropout": level + step,
        "student of smoothed": level,
    }
    found = outcomes(distill.judge_distillation(distill.Config(), by_alpha, students, pairs))
    assert set(found) == {"C8", "C9", "C10a", "C10b", "C11a", "C11b"}
    assert set(found.values()) == {expected}


def information(start, middle, end):
    offset = 0.2 * SEEDS[:, None]
    curve = np.interp(np.arange(10), [0, 4.5, 9], [start, middle, end]) + offset * (1 + 0.01 * np.arange(10))
    return {"steps": np.arange(10) * 100.0, "information": curve}


def test_information_that_rises_falls_and_ends_lower():
    hard, smoothed = information(0.0, 2.0, 1.9), information(0.0, 2.0, 0.8)
    assert set(outcomes(distill.judge_information(distill.Config(), hard, smoothed)).values()) == {"holds"}


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
    (teacher / "variables").mkdir(parents=True)
    (teacher / "saved_model.pb").write_bytes(b"graph")
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
    (teacher / "saved_model.pb").write_bytes(b"another graph")
    assert experiment.label(config, "digits", mnist_mlp.SIZES) != name
