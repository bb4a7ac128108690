"""Distillation at equal softness, claims C8 to C12, with fully connected networks.

    python recipes/distill.py            # scikit-learn's handwritten digits, a few minutes, no download
    python recipes/distill.py fashion    # Fashion-MNIST, hours on two cores
    python recipes/distill.py paper      # MNIST with the network of appendix A.5

The curves of Figure 5 and Figure 6 and the four networks of appendix A.5, over several seeds: teachers with hard and
with smoothed targets, and students that learn from each, or from smoothed labels, at the same equivalent smoothing γ.
`paper.py` runs this together with the claims about representations and calibration. What is finished is reused.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ls_keras import distillation, experiment, plots, report
from ls_keras.analysis import intervals
from ls_keras.data import Images
from ls_keras.report import Verdict

import analyse
import mnist_mlp
import numpy as np

INTERVALS = (
    "95 %; of accuracy, confidence, NLL and ECE over seeds and examples, from variance components; of the rest over "
    "seeds, Student's t; differences are paired by seed and example"
)


@dataclass(frozen=True)
class Config:
    """What is compared."""

    networks: str = "digits"
    """size of `mnist_mlp.py` that is trained"""
    seeds: int = 5
    """networks trained for each point, with seeds 0, 1, …"""
    alpha: float = 0.1
    """the α of C11 and C12 [A.5]"""
    best_alpha: float = 0.6
    """the α up to which teachers improve (C8) [section 4]"""
    distilled: tuple[float, ...] = (0.1, 0.3, 0.6)
    """the α of the teachers whose students C9 and C10 compare"""
    student_units: tuple[int, ...] = (50, 50)
    """hidden layers of these students, a weaker network than the teacher as in Figure 5"""


SIZES = {
    "digits": Config(),
    "fashion": Config(networks="fashion"),
    "paper": Config(networks="paper", student_units=(800, 800)),
    "smoke": Config(networks="smoke", seeds=2, best_alpha=0.1, distilled=(0.1,), student_units=(8, 8)),
}


def load_data(config: Config, data_dir: Path | None = None) -> Images:
    """Give the data that all networks share."""
    return mnist_mlp.load_data(mnist_mlp.SIZES[config.networks], data_dir)


def find(config: Config, where: experiment.Where, train: experiment.Train) -> analyse.Findings:
    """Train what is missing, judge the claims, and draw Figures 5 and 6."""
    data = load_data(config, where.data_dir)
    teachers = train_teachers(config, train)
    students, gamma = train_students(config, teachers, data, train)
    pairs = train_mnist_pairs(config, teachers, train)
    hard, smoothed = (analyse.information_through_training(teachers[alpha]) for alpha in (0.0, config.alpha))
    by_alpha = {alpha: np.array([analyse.correct(run) for run in runs], float) for alpha, runs in teachers.items()}
    verdicts = judge_distillation(config, by_alpha, students, pairs) + judge_information(config, hard, smoothed)
    softness = gamma.mean(axis=1)
    figure_5 = plots.distillation_figure(
        teacher=plots.SeedCurve("teacher", np.array(list(by_alpha)), np.array(list(by_alpha.values())).mean(axis=2)),
        baseline=plots.SeedCurve("student, smoothed labels", softness, students["smoothing"].mean(axis=2)),
        hard_teacher=plots.SeedCurve("student of the hard-target teacher", softness, students["hard"].mean(axis=2)),
        smoothed_teacher=plots.SeedCurve(
            "student of the smoothed teacher", softness, students["smoothed"].mean(axis=2)
        ),
    )
    return analyse.Findings(
        verdicts,
        {
            "figure_5": report.Illustration(
                figure_5,
                f"The paper's Figure 5: mean, least and greatest accuracy over {config.seeds} seeds; students of one "
                "column learn from equally soft targets.",
                "Accuracy over equivalent smoothing, four curves.",
            ),
            "figure_6": analyse.information_figure(
                {"hard targets": hard, f"label smoothing, α = {config.alpha:g}": smoothed}, data
            ),
        },
        [accuracy_table(config, by_alpha, students, gamma, pairs)],
    )


def teacher_config(base: mnist_mlp.Config, alpha: float, seed: int, observed: Sequence[float]) -> mnist_mlp.Config:
    """Return a teacher's config; only those whose mutual information is compared are observed in training."""
    a_tenth = base.evaluate_every * max(1, base.steps // base.evaluate_every // 10)
    return dataclasses.replace(base, alpha=alpha, seed=seed, observe_every=a_tenth if alpha in observed else 0)


def train_teachers(config: Config, train: experiment.Train) -> dict[float, list[experiment.Run]]:
    """Return the networks with hard and smoothed targets, by α and seed."""
    base = mnist_mlp.SIZES[config.networks]
    alphas = sorted({0.0, config.alpha, config.best_alpha, *config.distilled})
    points = [(alpha, seed) for alpha in alphas for seed in range(config.seeds)]
    configs = [teacher_config(base, alpha, seed, (0.0, config.alpha)) for alpha, seed in points]
    runs = train(mnist_mlp.run, configs, size=config.networks, what="teachers")
    return {alpha: runs[at * config.seeds : (at + 1) * config.seeds] for at, alpha in enumerate(alphas)}


def alone(base: mnist_mlp.Config) -> mnist_mlp.Config:
    """Return a config of which the end alone matters: evaluated twice, never observed."""
    return dataclasses.replace(base, observe_every=0, evaluate_every=base.steps // 2)


def train_students(
    config: Config, teachers: dict[float, list[experiment.Run]], data: Images, train: experiment.Train
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return which examples students of three kinds get right [α, seed, example], and their softness γ [α, seed].

    γ is the smoothed teacher's at T = 1. The hard-target teacher is heated until it is as soft, and students without
    a teacher learn from labels smoothed by α = γ; all else is equal [A.1: β = 1, the student's temperature 1].
    """
    base = dataclasses.replace(alone(mnist_mlp.SIZES[config.networks]), units=config.student_units)
    labels = data.labels("train")

    def logits(run: experiment.Run) -> np.ndarray:
        teacher = distillation.load_teacher(run.saved_model, data.num_classes, data.input_shape)
        return distillation.teacher_logits(teacher, data)

    hard = [logits(run) for run in teachers[0.0]]
    gamma = np.array(
        [[distillation.equivalent_smoothing(logits(r), labels) for r in teachers[alpha]] for alpha in config.distilled]
    ).round(4)
    configs: dict[str, list[mnist_mlp.Config]] = {"smoothing": [], "hard": [], "smoothed": []}
    for row, alpha in enumerate(config.distilled):
        for seed in range(config.seeds):
            softness = float(gamma[row, seed])
            temperature = round(distillation.matching_temperature(hard[seed], labels, softness), 4)
            own = dataclasses.replace(base, alpha=0.0, seed=seed)
            taught = dataclasses.replace(own, match="probabilities", beta=1.0)
            of_hard, of_smoothed = teachers[0.0][seed].saved_model, teachers[alpha][seed].saved_model
            configs["smoothing"].append(dataclasses.replace(own, alpha=softness))
            configs["hard"].append(dataclasses.replace(taught, teacher=of_hard, temperature=temperature))
            configs["smoothed"].append(dataclasses.replace(taught, teacher=of_smoothed))
    right = {
        kind: np.array(
            [analyse.correct(r) for r in train(mnist_mlp.run, each, size=config.networks, what=f"students, {kind}")],
            float,
        )
        for kind, each in configs.items()
    }
    return {kind: values.reshape(*gamma.shape, -1) for kind, values in right.items()}, gamma


def train_mnist_pairs(
    config: Config, teachers: dict[float, list[experiment.Run]], train: experiment.Train
) -> dict[str, np.ndarray]:
    """Return what the four networks of A.5 get right [seed, example]: two teachers, one dropout and one smoothed, and
    their students.
    """
    base = dataclasses.replace(alone(mnist_mlp.SIZES[config.networks]), alpha=0.0)
    dropout = mnist_mlp.SIZES["dropout"]
    seeds = range(config.seeds)
    regularised = [
        dataclasses.replace(
            base,
            input_dropout=dropout.input_dropout,
            dropout=dropout.dropout,
            max_norm=dropout.max_norm,
            seed=seed,
        )
        for seed in seeds
    ]
    runs = {"dropout": train(mnist_mlp.run, regularised, size=config.networks, what="dropout teachers")}
    runs["smoothed"] = teachers[config.alpha]
    student = mnist_mlp.SIZES["student"]
    rate = base.learning_rate * student.learning_rate / mnist_mlp.Config.learning_rate
    units = tuple(2 * width // 3 for width in base.units)  # 800 of 1200 in A.5
    for kind in ("dropout", "smoothed"):
        students = [
            dataclasses.replace(
                base,
                units=units,
                shift=student.shift,
                learning_rate=rate,
                teacher=runs[kind][seed].saved_model,
                seed=seed,
            )
            for seed in seeds
        ]
        what = f"students of {kind} teachers"
        runs[f"student of {kind}"] = train(mnist_mlp.run, students, size=config.networks, what=what)
    return {kind: np.array([analyse.correct(run) for run in runs[kind]], float) for kind in runs}


def judge_distillation(
    config: Config,
    by_alpha: dict[float, np.ndarray],
    students: dict[str, np.ndarray],
    pairs: dict[str, np.ndarray],
) -> list[Verdict]:
    """Return the verdicts on claims C8 to C11, from 1 for right and 0 for wrong [..., seed, example]."""
    mean = {kind: values.mean(axis=0) for kind, values in students.items()}
    at = "held-out accuracy, mean over γ of " + ", ".join(f"α = {alpha:g}" for alpha in config.distilled)
    return [
        report.paired_verdict(
            "C8",
            f"Teachers improve with smoothing up to α = {config.best_alpha:g}.",
            f"held-out accuracy, α = {config.best_alpha:g} − hard targets",
            of_accuracy(by_alpha[config.best_alpha] - by_alpha[0.0]),
        ),
        report.paired_verdict(
            "C9",
            "Students of hard-target teachers beat students that learn from smoothed labels.",
            f"{at}; student of the heated hard-target teacher − smoothing, at equal γ",
            of_accuracy(mean["hard"] - mean["smoothing"]),
        ),
        report.paired_verdict(
            "C10a",
            "Students of smoothed teachers are beaten by students that learn from smoothed labels.",
            f"{at}; smoothing − student of the smoothed teacher, at equal γ",
            of_accuracy(mean["smoothing"] - mean["smoothed"]),
            paper="no better, and sometimes worse",
        ),
        report.paired_verdict(
            "C10b",
            "A hard-target teacher makes better students than a smoothed one.",
            f"{at}; student of the heated hard-target teacher − student of the smoothed one, at equal γ",
            of_accuracy(mean["hard"] - mean["smoothed"]),
        ),
        report.paired_verdict(
            "C11a",
            "The smoothed teacher is better than the dropout teacher (A.5).",
            f"held-out accuracy, teacher with α = {config.alpha:g} − teacher with dropout",
            of_accuracy(pairs["smoothed"] - pairs["dropout"]),
            paper="0.59 and 0.67 % errors on MNIST",
        ),
        report.paired_verdict(
            "C11b",
            "The smoothed teacher's student is worse (A.5).",
            "held-out accuracy, student of the dropout teacher − student of the smoothed teacher",
            of_accuracy(pairs["student of dropout"] - pairs["student of smoothed"]),
            paper="0.74 and 0.91 % errors on MNIST",
            note="students learn at a tenth of the teachers' rate, at which their squared errors diverge",
        ),
    ]


def of_accuracy(rows: np.ndarray) -> intervals.Interval:
    """Return the interval over seeds and examples of an accuracy, or of a difference of two, from [seed, example]."""
    return intervals.crossed(rows, step=1 / rows.shape[1])


def judge_information(config: Config, hard: dict[str, np.ndarray], smoothed: dict[str, np.ndarray]) -> list[Verdict]:
    """Return the verdicts on claim C12.

    Moments do not depend on the values, since the greatest of noisy ones would always lie above the others: the start,
    the mean over the middle third of training, and the end.
    """
    steps = hard["steps"]
    middle = (steps >= steps[-1] / 3) & (steps <= steps[-1] * 2 / 3)
    start, half, end = (
        {"hard": hard["information"][:, at].mean(axis=1), "smoothed": smoothed["information"][:, at].mean(axis=1)}
        for at in (slice(0, 1), middle, slice(-1, None))
    )
    fall = {kind: half[kind] - end[kind] for kind in half}
    unit = "nats, from 20 draws of each example"
    return [
        report.paired_verdict(
            "C12a",
            "With smoothing, mutual information between examples and logits rises at first.",
            f"middle third of training − start, α = {config.alpha:g}, {unit}",
            intervals.over_seeds(half["smoothed"] - start["smoothed"]),
        ),
        report.paired_verdict(
            "C12b",
            "With smoothing, mutual information falls later in training.",
            f"middle third of training − end, α = {config.alpha:g}, {unit}",
            intervals.over_seeds(fall["smoothed"]),
        ),
        report.paired_verdict(
            "C12c",
            "It falls faster with smoothing than with hard targets.",
            f"fall from the middle third to the end, α = {config.alpha:g} − hard targets, {unit}",
            intervals.over_seeds(fall["smoothed"] - fall["hard"]),
        ),
        report.paired_verdict(
            "C12d",
            "It ends lower with smoothing than with hard targets.",
            f"end of training, hard targets − α = {config.alpha:g}, {unit}",
            intervals.over_seeds(end["hard"] - end["smoothed"]),
        ),
    ]


def accuracy_table(
    config: Config,
    teachers: dict[float, np.ndarray],
    students: dict[str, np.ndarray],
    gamma: np.ndarray,
    pairs: dict[str, np.ndarray],
) -> report.Table:
    """Set every network's accuracy and 95 % interval over the seeds and examples."""

    def cell(rows: np.ndarray) -> str:
        return analyse.interval_text(of_accuracy(rows))

    rows = [[f"teacher, α = {alpha:g}", f"{alpha:g}", cell(teachers[alpha])] for alpha in teachers]
    names = {"smoothing": "smoothed labels", "hard": "hard-target teacher", "smoothed": "smoothed teacher"}
    rows += [
        [f"student, {names[kind]}", f"{gamma[row].mean():.3f}", cell(students[kind][row])]
        for kind in students
        for row in range(len(config.distilled))
    ]
    rows += [[f"A.5: {kind}", "", cell(values)] for kind, values in pairs.items()]
    return report.Table(
        f"Accuracy: mean and 95 % interval over {config.seeds} seeds and the held-out examples.",
        ["network", "γ", "accuracy"],
        rows,
    )


def check(config: Config) -> None:
    """Refuse, before any network is trained, what one of them or a verdict would refuse."""
    if config.networks not in SIZES:
        raise ValueError(f"networks must be one of {', '.join(SIZES)}; received {config.networks!r}.")
    if config.seeds < 2:
        raise ValueError(f"an interval needs at least 2 seeds; received {config.seeds}.")
    analyse.check_series("alpha", [config.alpha])
    analyse.check_series("best_alpha", [config.best_alpha])
    analyse.check_series("distilled", config.distilled)
    if not config.student_units or min(config.student_units) < 1:
        raise ValueError(f"student_units must be positive widths of hidden layers; received {config.student_units}.")


def run(config: Config, *, size: str, where: experiment.Where | None = None) -> list[Verdict]:
    """Run the distillation claims alone and write their page."""
    where = where or experiment.Where()
    check(config)
    out = where.workdir / "distill" / experiment.label(config, size, SIZES)
    analyse.check_folder(out)
    with experiment.workers(where) as train:
        findings = find(config, where, train)
    return analyse.publish(
        findings,
        out,
        quiet=where.quiet,
        title="What smoothing erases",
        lead="The claims of Müller, Kornblith and Hinton (2019) about distillation and mutual information, tested with "
        f"fully connected networks ({config.networks}).",
        made_how=analyse.made_how(load_data(config, where.data_dir), Intervals=INTERVALS),
    )


if __name__ == "__main__":
    experiment.main(__doc__, SIZES, run)
