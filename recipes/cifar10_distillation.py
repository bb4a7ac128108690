"""Distillation from ResNet-56 to AlexNet on CIFAR-10, Figures 5 and 6: smoothed teachers are better, teach worse.

    python recipes/cifar10_distillation.py                             # 6 teachers and 18 students, 5 seeds each
    python recipes/cifar10_distillation.py --teacher some/saved_model  # any hard-target teacher for the red curve
    python recipes/cifar10_distillation.py digits                      # two seeds, few points, tens of minutes

Four curves of held-out accuracy over the equivalent smoothing γ: the teachers; students trained with smoothing;
students of the hard-target teacher at several temperatures; students of the smoothed teachers at T = 1. Expected at
the paper's size: the third lies above the second, the fourth does not. Mutual information between examples and logits
is followed through the teachers' training: it rises, then falls, lower with smoothing. What is finished is reused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ls_keras import distillation, experiment, plots, report, study
from ls_keras_recipes.cifar10_alexnet import RECIPE as STUDENT
from ls_keras_recipes.cifar100_resnet56 import RECIPE as TEACHER

import numpy as np


@dataclass(frozen=True)
class Config:
    """What is trained; the defaults are the paper."""

    networks: str = "paper"
    """size of `cifar100_resnet56.py` (with --dataset cifar10) and of `cifar10_alexnet.py`"""
    dataset: str = "cifar10"
    """data set of teachers and students"""
    teacher: Path | None = None
    """SavedModel that takes the place of the hard-target teachers; None trains them"""
    seeds: int = 5
    """seeds of each point, the student's and its teacher's [A.1]"""
    alphas: tuple[float, ...] = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)
    """label smoothing factors of teachers and of students without a teacher [A.1, A.2]"""
    temperatures: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 8.0, 12.0, 16.0)
    """of the hard-target teacher [A.1]"""
    observe_every: int = 4_000
    """steps between estimates of the teachers' mutual information [A.2]"""


SIZES = {
    "paper": Config(),
    "fashion": Config(
        networks="fashion",
        dataset="fashion_mnist",
        seeds=2,
        alphas=(0.0, 0.3, 0.6),
        temperatures=(1.0, 4.0, 16.0),
        observe_every=500,
    ),
    "digits": Config(
        networks="digits",
        dataset="digits",
        seeds=2,
        alphas=(0.0, 0.3, 0.6),
        temperatures=(1.0, 4.0, 16.0),
        observe_every=60,
    ),
    "smoke": Config(
        networks="smoke", dataset="digits", seeds=1, alphas=(0.0, 0.3), temperatures=(4.0,), observe_every=2
    ),
}


@dataclass(frozen=True)
class Taught:
    """The config of a student of a ResNet, or of a SavedModel that was given."""

    config: Any
    temperature: float = 1.0

    def __call__(self, seed: int, where: experiment.Where, *before: Any) -> tuple[Any, dict[str, float]]:
        path = before[0].saved_model if before else self.config.teacher
        config = dataclasses.replace(self.config, seed=seed, teacher=path, temperature=self.temperature)
        images = STUDENT.load_data(config, where.data_dir)
        teacher = distillation.load_teacher(path, images.num_classes, images.input_shape)
        logits = distillation.teacher_logits(teacher, images)
        return config, {"gamma": distillation.equivalent_smoothing(logits, images.labels("train"), self.temperature)}


def plan(config: Config) -> study.Study:
    """Return the arms: teachers, and students of four kinds."""
    _check(config)
    teacher = dataclasses.replace(
        TEACHER.sizes[config.networks], dataset=config.dataset, observe_every=config.observe_every
    )
    student = dataclasses.replace(STUDENT.sizes[config.networks], dataset=config.dataset, alpha=0.0)
    given = dataclasses.replace(student, teacher=config.teacher)

    def smoothed(recipe: experiment.Recipe, base: Any, name: str, alpha: float) -> study.Arm:
        fixed = study.Fixed(dataclasses.replace(base, alpha=alpha), (("gamma", alpha),))
        return study.Arm(name, recipe, config.networks, fixed)

    alphas = [alpha for alpha in config.alphas if alpha or not config.teacher]
    arms = [smoothed(TEACHER, teacher, _teacher(alpha), alpha) for alpha in alphas]
    arms += [smoothed(STUDENT, student, f"student, α = {alpha:g}", alpha) for alpha in config.alphas]
    hard = () if config.teacher else (_teacher(0.0),)
    arms += [
        study.Arm(f"student of hard targets, T = {t:g}", STUDENT, config.networks, Taught(given, t), hard)
        for t in config.temperatures
    ]
    arms += [
        study.Arm(f"student of α = {a:g}", STUDENT, config.networks, Taught(student), (_teacher(a),))
        for a in config.alphas
        if a
    ]
    return study.Study("cifar10_distillation", config, tuple(arms), tuple(range(config.seeds)))


def content(config: Config, measured: study.Measured) -> study.page.Content:
    """Draw Figures 5 and 6, from records alone."""
    teachers = [_teacher(alpha) for alpha in config.alphas if alpha or not config.teacher]
    kinds = {
        "teacher": teachers,
        "student, label smoothing": [f"student, α = {alpha:g}" for alpha in config.alphas],
        "student of the hard-target teacher": [f"student of hard targets, T = {t:g}" for t in config.temperatures],
        "student of smoothed teachers": [f"student of α = {alpha:g}" for alpha in config.alphas if alpha],
    }
    curves = [_over_gamma(measured, name, arms) for name, arms in kinds.items()]
    names = ("teacher", "baseline", "hard_teacher", "smoothed_teacher")
    figure = plots.distillation_figure(**dict(zip(names, curves, strict=True)))
    rows = [
        [curve.name, f"{at:.3f}", f"{values.mean():.4f}", f"{values.min():.4f} to {values.max():.4f}"]
        for curve in curves
        for at, values in zip(curve.gamma, curve.accuracy, strict=True)
    ]
    illustration = report.Illustration(
        figure,
        f"Mean, least and greatest held-out accuracy over {config.seeds} seeds, over γ on the training set.",
        "Accuracy over equivalent smoothing, four curves.",
        paper="Figure 5",
    )
    table = report.Table("Held-out accuracy over seeds.", ["curve", "γ", "mean", "least to greatest"], rows)
    figures = {"figure_5": illustration, "figure_6": study.information.figure(measured, teachers[:_MOST_CURVES])}
    return study.page.Content([_best(curves)], figures, [table])


def run(config: Config, *, size: str, where: experiment.Where | None = None) -> study.Measured:
    """Train what is missing and draw Figures 5 and 6."""
    where = where or experiment.Where()
    planned = plan(config)
    out = where.workdir / "cifar10_distillation" / experiment.label(config, size, SIZES)
    study.page.check_folder(out)
    if config.teacher:
        images = STUDENT.load_data(STUDENT.sizes[config.networks], where.data_dir)
        distillation.load_teacher(config.teacher, images.num_classes, images.input_shape)
    measured = study.run(planned, out, where)
    study.page.publish(
        out,
        content(config, measured),
        title=f"Distillation on {measured.data['name']}",
        lead="Held-out accuracy of teachers and students over the equivalent smoothing γ of the student's targets.",
        made=study.page.made_how(measured.data, **measured.made),
        quiet=where.quiet,
    )
    return measured


# As many as a figure can tell apart.
_MOST_CURVES = 6


def _teacher(alpha: float) -> str:
    return f"teacher, α = {alpha:g}"


def _over_gamma(measured: study.Measured, name: str, arms: Sequence[str]) -> plots.SeedCurve:
    gamma = np.array([measured.facts(arm, "gamma").mean() for arm in arms])
    accuracy = np.stack([measured.values(arm, "accuracy") for arm in arms])
    order = np.argsort(gamma)
    return plots.SeedCurve(name, gamma[order], accuracy[order])


def _best(curves: Sequence[plots.SeedCurve]) -> str:
    students = [(curve.accuracy.mean(axis=1).max(), curve) for curve in curves[1:]]
    best, curve = max(students, key=lambda pair: pair[0])
    plain = curves[1].accuracy[0].mean()
    return (
        f"The best students are “{curve.name}”: {100 * best:.1f} % held-out accuracy at the best point, chosen among "
        f"{sum(map(len, (each.gamma for _, each in students)))}, against {100 * plain:.1f} % with hard labels."
    )


def _check(config: Config) -> None:
    if config.networks not in SIZES or config.seeds < 1:
        raise ValueError(
            f"networks must be one of {', '.join(SIZES)} and seeds at least 1; received {config.networks!r} and "
            f"{config.seeds}."
        )
    experiment.check_series("temperatures", config.temperatures, below=math.inf)
    experiment.check_series("alphas", config.alphas, zero=True)
    if 0.0 not in config.alphas or len(config.alphas) < 2:
        raise ValueError(f"alphas must hold 0 and at least one other; received {config.alphas}.")
    teacher = TEACHER.sizes[config.networks]
    if not 0 < config.observe_every <= teacher.steps or config.observe_every % teacher.evaluate_every:
        raise ValueError(
            f"observe_every must be a multiple of {teacher.evaluate_every} up to {teacher.steps}, the steps of the "
            f"{config.networks} networks; received {config.observe_every}."
        )


if __name__ == "__main__":
    experiment.main(__doc__, SIZES, run)
