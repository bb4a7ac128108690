"""Claims C8 to C10: teachers improve with smoothing, and teach worse (section 4, Figure 5)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ls_keras import data, distillation, plots, report
from ls_keras.experiment import Recipe, Where
from ls_keras.study.claims import Claim, Comparison, Term, interval
from ls_keras.study.driver import Arm, Done, Fixed
from ls_keras.study.page import cell
from ls_keras.study.records import Measured
from ls_keras.study.representations import HARD, name_of

import numpy as np

PLAIN = "student, hard labels"
_KINDS = {
    "soft": "student, smoothed labels",
    "heated": "student of hard targets",
    "smoothed": "student of smoothed targets",
}
_OUTCOMES = (("accuracy", "held-out accuracy", 1), ("nll at temperature", "held-out NLL at the fitted T, nats", -1))


@dataclasses.dataclass(frozen=True)
class Student:
    """The config of a student that learns from targets as soft as those of a smoothed teacher.

    γ is the smoothed teacher's at T = 1. The hard-target teacher is heated until it is as soft, and students without a
    teacher learn from labels smoothed by α = γ; all else is equal [A.1: β = 1, the student's temperature 1].

    Attributes:
        config: All that students share, learning from their targets alone.
        kind: `soft` learns from smoothed labels, `heated` from the hard-target teacher, `smoothed` from the smoothed.
    """

    config: Any
    kind: str

    def __call__(self, seed: int, where: Where, *before: Done) -> tuple[Any, dict[str, float]]:
        *hard, smoothed = before
        logits, labels = train_logits(smoothed, where)
        gamma = round(distillation.equivalent_smoothing(logits, labels), 4)
        if gamma >= 1:
            raise ValueError(
                f"The teacher {smoothed.saved_model} has γ = {gamma} on its training examples, as one that knows "
                "nothing of them: no labels can be smoothed so far. Train it longer, or leave its α out of `distilled`."
            )
        config = dataclasses.replace(self.config, seed=seed)
        if self.kind == "soft":
            return dataclasses.replace(config, alpha=gamma), {"gamma": gamma}
        if self.kind == "smoothed":
            return dataclasses.replace(config, teacher=smoothed.saved_model), {"gamma": gamma, "temperature": 1.0}
        temperature = round(distillation.matching_temperature(*train_logits(hard[0], where), gamma), 4)
        config = dataclasses.replace(config, teacher=hard[0].saved_model, temperature=temperature)
        return config, {"gamma": gamma, "temperature": temperature}


def train_logits(done: Done, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Return what a finished network makes of its training examples, and their labels; kept beside it."""
    return _train_logits(done.saved_model, where.data_dir)


@functools.lru_cache(maxsize=16)
def _train_logits(saved_model: Path, data_dir: Path | None) -> tuple[np.ndarray, np.ndarray]:
    folder = saved_model.parent
    images = data.rebuild(json.loads((folder / "config.json").read_text(encoding="utf-8"))["data"], data_dir)
    teacher = distillation.load_teacher(saved_model, images.num_classes, images.input_shape)
    cache = folder / f"logits-{images.fingerprint}.npz"
    return distillation.teacher_logits(teacher, images, cache=cache), images.labels("train")


def arm_name(kind: str, alpha: float) -> str:
    """Return the name of the students of a kind at the softness of the teacher with α."""
    return f"{_KINDS[kind]}, as soft as α = {alpha:g}"


def arms(recipe: Recipe, size: str, plain: Any, taught: Any, distilled: Sequence[float]) -> tuple[Arm, ...]:
    """Return students of three kinds at each softness, and one that learns from hard labels.

    Args:
        recipe: How students are trained; its Config has `alpha`, `teacher` and `temperature`.
        size: What their configs started from.
        plain: The config of students without a teacher.
        taught: That of students with one, who learn from its softmax alone.
        distilled: α of the teachers.
    """
    plain, taught = (dataclasses.replace(config, alpha=0.0) for config in (plain, taught))
    students = [Arm(PLAIN, recipe, size, Fixed(plain, (("gamma", 0.0),)))]
    for alpha in distilled:
        teacher = name_of(alpha)
        students += [
            Arm(arm_name("soft", alpha), recipe, size, Student(plain, "soft"), (teacher,)),
            Arm(arm_name("heated", alpha), recipe, size, Student(taught, "heated"), (HARD, teacher)),
            Arm(arm_name("smoothed", alpha), recipe, size, Student(taught, "smoothed"), (teacher,)),
        ]
    return tuple(students)


def teacher_claims(alphas: Sequence[float], best_alpha: float) -> list[Claim]:
    """Return C8, along the curve up to the best α, by accuracy and by NLL."""
    up = [alpha for alpha in sorted(set(alphas)) if alpha <= best_alpha]
    found = []
    for letters, (quantity, measure, sign) in zip(("ab", "cd"), _OUTCOMES, strict=True):
        by = "accuracy" if sign > 0 else "NLL"

        def gain(low: float, high: float, at: str, quantity: str = quantity, sign: int = sign) -> Comparison:
            terms = [Term(name_of(alpha), quantity) for alpha in (high, low)][::sign]
            return Comparison(*terms, at=at)

        found += [
            Claim(
                f"C8{letters[0]}",
                f"Teachers with smoothing up to α = {best_alpha:g} are better than with hard targets, by {by}.",
                f"{measure}, {' − '.join(['smoothing', 'hard targets'][::sign])}",
                tuple(gain(0.0, alpha, name_of(alpha)) for alpha in up if alpha),
            ),
            Claim(
                f"C8{letters[1]}",
                f"Teachers improve with every step of α up to {best_alpha:g}, by {by}.",
                f"{measure}, {' − '.join(['larger α', 'next smaller α'][::sign])}",
                tuple(gain(low, high, f"α = {low:g} to {high:g}") for low, high in itertools.pairwise(up)),
            ),
        ]
    return found


def claims(distilled: Sequence[float], accuracy_margin: float, nll_margin: float) -> list[Claim]:
    """Return C9 and C10, at each softness and by accuracy and by NLL."""
    found = []
    for letter, (quantity, measure, sign) in zip("ab", _OUTCOMES, strict=True):
        by = "accuracy" if sign > 0 else "NLL"
        margin = accuracy_margin if sign > 0 else nll_margin

        def versus(better: str, worse: str, quantity: str = quantity, sign: int = sign) -> tuple[Comparison, ...]:
            pairs = [(arm_name(better, alpha), arm_name(worse, alpha), alpha) for alpha in distilled]
            return tuple(
                Comparison(
                    Term((one, other)[sign < 0], quantity), Term((other, one)[sign < 0], quantity), f"γ of α = {a:g}"
                )
                for one, other, a in pairs
            )

        order = "first − second" if sign > 0 else "second − first"
        found += [
            Claim(
                f"C9{letter}",
                f"Students of hard-target teachers beat students that learn from smoothed labels, by {by}.",
                f"{measure}; student of the heated hard-target teacher and of smoothed labels, {order}, at equal γ",
                versus("heated", "soft"),
            ),
            Claim(
                f"C10{'ad'[sign < 0]}",
                f"Students of smoothed teachers are no better than students that learn from smoothed labels, by {by}.",
                f"{measure}; student of smoothed labels and of the smoothed teacher, {order}, at equal γ",
                versus("soft", "smoothed"),
                margin=margin,
                paper="no better, and sometimes worse",
            ),
            Claim(
                f"C10{'be'[sign < 0]}",
                f"Students of smoothed teachers are sometimes worse than with smoothed labels, by {by}.",
                f"{measure}; student of smoothed labels and of the smoothed teacher, {order}, at equal γ",
                versus("soft", "smoothed"),
                somewhere=True,
            ),
            Claim(
                f"C10{'cf'[sign < 0]}",
                f"A hard-target teacher makes better students than a smoothed one, by {by}.",
                f"{measure}; student of the heated hard-target teacher and of the smoothed one, {order}, at equal γ",
                versus("heated", "smoothed"),
            ),
        ]
    return sorted(found, key=lambda claim: (int(claim.id[1:-1]), claim.id))


def not_run(reason: str) -> list[Claim]:
    """Return C9 and C10 as not judged, with the reason."""
    return [
        Claim("C9", "Students of hard-target teachers beat smoothed labels.", "accuracy at equal γ", (), note=reason),
        Claim("C10", "Students of smoothed teachers do not.", "accuracy at equal γ", (), note=reason),
    ]


def figure(measured: Measured, alphas: Sequence[float], distilled: Sequence[float]) -> report.Illustration:
    """Draw Figure 5."""
    softness = np.array([measured.facts(arm_name("soft", alpha), "gamma").mean() for alpha in distilled])
    order = np.argsort(softness)

    def curve(name: str, names: Sequence[str], gamma: np.ndarray) -> plots.SeedCurve:
        return plots.SeedCurve(name, gamma, np.stack([measured.values(each, "accuracy") for each in names]))

    def students(kind: str) -> tuple[list[str], np.ndarray]:
        return [arm_name(kind, distilled[row]) for row in order], softness[order]

    soft, at = students("soft")
    teachers = sorted(set(alphas))
    return report.Illustration(
        plots.distillation_figure(
            teacher=curve("teacher", [name_of(alpha) for alpha in teachers], np.array(teachers)),
            baseline=curve("student, smoothed labels", [PLAIN, *soft], np.array([0.0, *at])),
            hard_teacher=curve("student of the hard-target teacher", *students("heated")),
            smoothed_teacher=curve("student of the smoothed teacher", *students("smoothed")),
        ),
        f"Mean, least and greatest held-out accuracy over {len(measured.seeds(PLAIN))} seeds; students of one column "
        "learn from equally soft targets, and at γ = 0 from hard labels.",
        "Accuracy over equivalent smoothing, four curves.",
        paper="Figure 5",
    )


def table(
    measured: Measured, alphas: Sequence[float], distilled: Sequence[float], more: Sequence[str] = ()
) -> report.Table:
    """Set each network's accuracy and NLL, and how much distillation gained over hard labels."""
    rows = [[f"teacher, {name_of(a)}", f"{a:.3f}", *_both(measured, name_of(a)), ""] for a in sorted(set(alphas))]
    for arm in (PLAIN, *(arm_name(kind, alpha) for kind in _KINDS for alpha in distilled)):
        gamma = f"{measured.facts(arm, 'gamma').mean():.3f}"
        gain = (
            "" if arm == PLAIN else cell(interval(measured, Comparison(Term(arm, "accuracy"), Term(PLAIN, "accuracy"))))
        )
        rows.append([arm, gamma, *_both(measured, arm), gain])
    rows += [[arm, "", *_both(measured, arm), ""] for arm in more]
    return report.Table(
        "Held-out accuracy and NLL at the fitted T (nats): mean and 95 % interval over "
        f"{len(measured.seeds(HARD))} seeds and the examples; on the right, accuracy gained over the student of hard "
        "labels.",
        ["network", "γ", "accuracy", "NLL", "− hard labels"],
        rows,
    )


def findings(measured: Measured, distilled: Sequence[float]) -> list[str]:
    """Say in a sentence whether any kind of student beat hard labels, and by how much."""
    quantity = "nll at temperature"
    gains = {
        arm: interval(measured, Comparison(Term(PLAIN, quantity), Term(arm, quantity)))
        for arm in (arm_name(kind, alpha) for kind in _KINDS for alpha in distilled)
    }
    best = max(gains, key=lambda arm: gains[arm].estimate)
    gain, plain = gains[best], float(measured.values(PLAIN, quantity).mean())
    better = gain.estimate > 0
    low, high = (gain.low, gain.high) if better else (-gain.high, -gain.low)
    sure = "" if low > 0 else ", which may be chance"
    difference = f"{abs(gain.estimate):.3f} [{low:.3f}, {high:.3f}] nats{sure}".replace("-", "−")
    lead = f"Of {len(gains)} kinds of students, judged by held-out NLL at the fitted T,"
    if better:
        return [f"{lead} “{best}” beat hard labels ({plain:.3f}) most, on the examples that chose it: by {difference}."]
    return [f"{lead} none beat hard labels ({plain:.3f}); the nearest, “{best}”, was worse by {difference}."]


def _both(measured: Measured, arm: str) -> list[str]:
    return [cell(interval(measured, Comparison(Term(arm, quantity)))) for quantity, _, _ in _OUTCOMES]
