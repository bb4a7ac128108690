"""Distillation from ResNet-56 to AlexNet on CIFAR-10, Figures 5 and 6: smoothed teachers are better, teach worse.

    python recipes/cifar10_distillation.py                             # 6 teachers and 18 students, 5 seeds each
    python recipes/cifar10_distillation.py --teacher some/saved_model  # any hard-target teacher for the red curve
    python recipes/cifar10_distillation.py digits                      # two seeds, few points, tens of minutes

Four curves of held-out accuracy over the equivalent smoothing γ: the teachers; students trained with smoothing;
students of the hard-target teacher at several temperatures; students of the smoothed teachers at T = 1. Expected at
the paper's size: the third lies above the second, the fourth does not. Mutual information between examples and logits
is followed through the teachers' training: it rises, then falls, lower with smoothing. What is finished is reused.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from ls_keras import distillation, experiment, plots, report
from ls_keras.data import Images

import analyse
import cifar10_alexnet
import cifar100_resnet56
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


Point = tuple[float, int]
"""α or T, and the seed"""


def load_data(config: Config, data_dir: Path | None = None) -> Images:
    """Give the data that teachers and students share."""
    return cifar10_alexnet.load_data(_student(config), data_dir)


def build_model(config: Config, images: Images) -> distillation.Distiller:
    """Compose a student as the runs below do, for one who wants it alone."""
    return cifar10_alexnet.build_model(dataclasses.replace(_student(config), teacher=config.teacher), images)


def run(config: Config, *, size: str, where: experiment.Where | None = None) -> None:
    """Train what is missing and draw Figure 5."""
    where = where or experiment.Where()
    _check(config)
    out = where.workdir / "cifar10_distillation" / experiment.label(config, size, SIZES)
    analyse.check_folder(out)
    images = load_data(config, where.data_dir)
    if config.teacher:
        distillation.load_teacher(config.teacher, *_shapes(images))
    with experiment.workers(where) as train:
        runs = train_teachers(config, train)
        teachers = {point: run.saved_model for point, run in runs.items()}
        if config.teacher:
            teachers |= {(0.0, seed): config.teacher for seed in range(config.seeds)}
        accuracy = {"teacher": {point: analyse.accuracy(run) for point, run in runs.items()}}
        accuracy |= train_students(config, teachers, train)
    gamma = smoothness(config, teachers, images)
    curves = {curve: _over_gamma(curve, accuracy[curve], gamma.get(curve)) for curve in accuracy}
    figure = plots.distillation_figure(
        teacher=curves["teacher"],
        baseline=curves["student, label smoothing"],
        hard_teacher=curves["student of the hard-target teacher"],
        smoothed_teacher=curves["student of smoothed teachers"],
    )
    rows = [
        [name, f"{at:.3f}", f"{np.mean(values):.4f}", f"{np.min(values):.4f} to {np.max(values):.4f}"]
        for name, curve in curves.items()
        for at, values in zip(curve.gamma, curve.accuracy, strict=True)
    ]
    illustration = report.Illustration(
        figure,
        f"Mean, least and greatest held-out accuracy over {config.seeds} seeds, over γ on the training set.",
        "Accuracy over equivalent smoothing, four curves.",
    )
    by_alpha = {a: [run for (at, _), run in runs.items() if at == a] for a in dict.fromkeys(a for a, _ in runs)}
    observed = {f"α = {a:g}": analyse.information_through_training(same) for a, same in by_alpha.items()}
    table = report.Table("Held-out accuracy over seeds.", ["curve", "γ", "mean", "least to greatest"], rows)
    analyse.publish(
        analyse.Findings(
            [], {"figure_5": illustration, "figure_6": analyse.information_figure(observed, images)}, [table]
        ),
        out,
        quiet=where.quiet,
        title=f"Distillation on {images.name}",
        lead="Held-out accuracy of teachers and students over the equivalent smoothing γ of the student's targets.",
        made_how=analyse.made_how(images),
    )


def train_teachers(config: Config, train: experiment.Train) -> dict[Point, experiment.Run]:
    """Return the teachers that were trained here, by α and seed."""
    base = dataclasses.replace(
        cifar100_resnet56.SIZES[config.networks], dataset=config.dataset, observe_every=config.observe_every
    )
    points = [(alpha, seed) for alpha in config.alphas if alpha or not config.teacher for seed in range(config.seeds)]
    configs = [dataclasses.replace(base, alpha=alpha, seed=seed) for alpha, seed in points]
    return dict(zip(points, train(cifar100_resnet56.run, configs, size=config.networks, what="teachers"), strict=True))


def train_students(
    config: Config, teachers: dict[Point, Path], train: experiment.Train
) -> dict[str, dict[Point, float]]:
    """Return each curve's held-out accuracy for each (α or T, seed)."""
    base = _student(config)
    seeds, smoothed = range(config.seeds), [alpha for alpha in config.alphas if alpha]
    curves = {
        "student, label smoothing": {(a, s): {"alpha": a} for a in config.alphas for s in seeds},
        "student of the hard-target teacher": {
            (t, s): {"teacher": teachers[0.0, s], "temperature": t} for t in config.temperatures for s in seeds
        },
        "student of smoothed teachers": {(a, s): {"teacher": teachers[a, s]} for a in smoothed for s in seeds},
    }
    measured = {}
    for name, fields in curves.items():
        configs = [dataclasses.replace(base, seed=seed, **given) for (_, seed), given in fields.items()]
        runs = train(cifar10_alexnet.run, configs, size=config.networks, what=name)
        measured[name] = {point: analyse.accuracy(run) for point, run in zip(fields, runs, strict=True)}
    return measured


def smoothness(config: Config, teachers: dict[Point, Path], images: Images) -> dict[str, dict[Point, float]]:
    """Return γ of the teachers' targets on the training set, without augmentation."""
    labels, seeds = images.labels("train"), range(config.seeds)
    logits = {
        point: distillation.teacher_logits(distillation.load_teacher(path, *_shapes(images)), images)
        for point, path in teachers.items()
    }
    gamma = distillation.equivalent_smoothing
    return {
        "student of the hard-target teacher": {
            (t, s): gamma(logits[0.0, s], labels, t) for t in config.temperatures for s in seeds
        },
        "student of smoothed teachers": {
            (alpha, seed): gamma(logits[alpha, seed], labels) for alpha, seed in teachers if alpha
        },
    }


def _check(config: Config) -> None:
    if config.networks not in SIZES or config.seeds < 1:
        raise ValueError(
            f"networks must be one of {', '.join(SIZES)} and seeds at least 1; received {config.networks!r} and "
            f"{config.seeds}."
        )
    analyse.check_series("temperatures", config.temperatures, below=math.inf)
    analyse.check_series("alphas", config.alphas, zero=True)
    if 0.0 not in config.alphas or len(config.alphas) < 2:
        raise ValueError(f"alphas must hold 0 and at least one other; received {config.alphas}.")
    teacher = cifar100_resnet56.SIZES[config.networks]
    if not 0 < config.observe_every <= teacher.steps or config.observe_every % teacher.evaluate_every:
        raise ValueError(
            f"observe_every must be a multiple of {teacher.evaluate_every} up to {teacher.steps}, the steps of the "
            f"{config.networks} networks; received {config.observe_every}."
        )


def _student(config: Config) -> cifar10_alexnet.Config:
    return dataclasses.replace(cifar10_alexnet.SIZES[config.networks], dataset=config.dataset, alpha=0.0)


def _shapes(images: Images) -> tuple[int, tuple[int, ...]]:
    return images.num_classes, images.input_shape


def _over_gamma(name: str, values: dict[Point, float], gamma: dict[Point, float] | None) -> plots.SeedCurve:
    """Average γ over the seeds of each α or T; without a teacher γ is α."""
    points, seeds = sorted({at for at, _ in values}), sorted({seed for _, seed in values})
    at = np.array([np.mean([gamma[p, s] for s in seeds]) if gamma else p for p in points])
    order = np.argsort(at)
    return plots.SeedCurve(name, at[order], np.array([[values[p, s] for s in seeds] for p in points])[order])


if __name__ == "__main__":
    experiment.main(__doc__, SIZES, run)
