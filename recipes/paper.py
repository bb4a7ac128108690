"""The paper's claims about image classifiers, re-tested on this machine with intervals.

    python recipes/paper.py                    # scikit-learn's handwritten digits, a minute or two, no download
    python recipes/paper.py digits --all       # students at three degrees of softness instead of one, and C11
    python recipes/paper.py fashion            # Fashion-MNIST, hours on two cores
    python recipes/paper.py fashion-4000       # little of it, half an hour; results/README.md has more such studies
    python recipes/paper.py paper --plan       # the paper's own networks: what would be trained, and for how long
    python recipes/paper.py digits --recipe cifar100_resnet56 --student cifar10_alexnet

Trains the networks of a recipe with hard and with smoothed targets over several seeds, distils each into students at
equal softness, judges every claim at every α and γ by differences paired over seeds and examples, and writes
`report.html`. What was measured is kept in `measured.json` and not trained again. Several machines share a study by
seeds: `--seeds 5 --first-seed 5 --workdir there` on one, then `--join there/paper/…` on the other.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ls_keras import experiment, study
from ls_keras.verdicts import Verdict
from ls_keras_recipes import named


@dataclass(frozen=True)
class Config:
    """What is tested."""

    recipe: str = "mnist_mlp"
    """recipe whose networks are tested: one of this folder, or module:NAME of any `experiment.Recipe`"""
    networks: str = "digits"
    """size of that recipe, and of the students'"""
    dataset: str | None = None
    """data set of all networks; None is the size's own"""
    train_size: int | None = None
    """training examples of all networks; None is the size's own"""
    split_seed: int | None = None
    """shuffles the images of all networks before they are split; None is the size's own"""
    label_noise: float | None = None
    """fraction of training labels of all networks that are wrong [Lukasik et al. 2020]; None is the size's own"""
    steps: int | None = None
    """optimisation steps of all networks; None is the size's own"""
    student: str | None = None
    """recipe of the students; None is the teachers'"""
    student_units: tuple[int, ...] | None = (50, 50)
    """hidden layers of fully connected students, weaker than the teacher as in Figure 5; None is the size's"""
    seeds: int = 5
    """networks trained of each kind"""
    first_seed: int = 0
    """the first of these seeds"""
    alphas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.3, 0.6)
    """label smoothing factors; 0 is hard targets"""
    alpha: float = 0.1
    """the α of Figure 1, C11 and C12 [Table 2, A.5]"""
    calibrated_alpha: float = 0.05
    """the α beside temperature scaling in Figure 2 [Table 3, CIFAR-100]"""
    best_alpha: float = 0.6
    """the α up to which teachers improve (C8) [section 4]"""
    distilled: tuple[float, ...] = (0.1, 0.3, 0.6)
    """the α of the teachers whose students C9 and C10 compare; none leaves distillation out"""
    matching_rate: float = 0.1
    """rate of the students of A.5, who match logits, as a fraction of their teachers' [silent; `mnist_mlp student`]"""
    all: bool = False
    """also what takes as long again: students at every α of `distilled`, not the first alone, and C11"""
    accuracy_margin: float = 0.01
    """loss of accuracy that counts as none (C5, C10)"""
    ece_margin: float = 0.01
    """difference in ECE that counts as similar (C6)"""
    nll_margin: float = 0.01
    """loss of NLL that counts as none, nats (C10)"""
    join: tuple[Path, ...] = ()
    """folders of this study with other seeds, measured elsewhere, that are judged together"""
    also: tuple[str, ...] = ()
    """further sizes, studied one after the other with the options given"""
    plan: bool = False
    """print what would be trained, on which data and for how long, and train nothing"""


_CIFAR = Config(networks="paper", student_units=None, alphas=(0.0, 0.05, 0.1), best_alpha=0.1, distilled=())
_FEW = Config(
    networks="fashion-4000", seeds=10, alphas=(0.0, 0.02, 0.05, 0.1, 0.3, 0.6), distilled=(0.1, 0.3), all=True
)
_MUCH = dataclasses.replace(_FEW, alphas=(0.0, 0.02, 0.05, 0.1), best_alpha=0.1, distilled=(), seeds=5)
SIZES = {
    "digits": Config(),
    "fashion": Config(networks="fashion", all=True),
    # The studies of results/README.md.
    "fashion-4000": _FEW,
    "fashion-2000": Config(
        networks="fashion-2000",
        seeds=10,
        alphas=(0.0, 0.1, 0.3),
        calibrated_alpha=0.1,
        best_alpha=0.3,
        distilled=(0.1, 0.3),
        matching_rate=0.03,  # at 0.1 the squared error of a dropout teacher's logits diverges
        all=True,
    ),
    "fashion-resnet": Config(
        recipe="cifar100_resnet56",
        student="mnist_mlp",
        networks="fashion-2000",
        alphas=(0.0, 0.1, 0.3, 0.6),
        calibrated_alpha=0.1,
        distilled=(0.1, 0.3, 0.6),
        all=True,
    ),
    "fashion-1000": dataclasses.replace(_FEW, train_size=1_000, distilled=(), seeds=5),
    "fashion-20000": dataclasses.replace(_MUCH, train_size=20_000, steps=10_000),
    "fashion-50000": dataclasses.replace(_MUCH, train_size=50_000, steps=25_000),
    "fashion-noise": dataclasses.replace(_FEW, label_noise=0.2, seeds=5),
    # The paper's own networks on the paper's own data.
    "paper": Config(networks="paper", student_units=(800, 800), all=True, also=("alexnet", "resnet", "distillation")),
    "alexnet": dataclasses.replace(_CIFAR, recipe="cifar10_alexnet"),
    "resnet": dataclasses.replace(_CIFAR, recipe="cifar100_resnet56"),
    "distillation": dataclasses.replace(
        _CIFAR,
        recipe="cifar100_resnet56",
        dataset="cifar10",
        student="cifar10_alexnet",
        alphas=(0.0, 0.05, 0.1, 0.3, 0.6),
        best_alpha=0.6,
        distilled=(0.1, 0.3, 0.6),
        all=True,
    ),
    "smoke": Config(
        networks="smoke",
        seeds=2,
        alphas=(0.0, 0.05, 0.1),
        best_alpha=0.1,
        distilled=(0.1,),
        all=True,
        student_units=(8, 8),
    ),
}
# Fields of the networks' Configs that a study may set in all of them, and options of one size alone.
_OVERRIDES = ("dataset", "train_size", "split_seed", "label_noise", "steps")
_OF_ONE = ("recipe", "networks", *_OVERRIDES, "student", "student_units", "join")


def plan(config: Config) -> study.Study:
    """Return the arms: which networks, in which order."""
    _check(config)
    recipe = named(config.recipe)
    base = _base(recipe, config)
    smoothed = (0.0, config.alpha)
    arms = study.representations.arms(recipe, config.networks, base, _alphas(config), smoothed, smoothed)
    if config.distilled:
        student = named(config.student or config.recipe)
        _check_student(student, config)
        plain = _alone(_base(student, config))
        if config.student_units is not None and hasattr(plain, "units"):
            plain = dataclasses.replace(plain, units=config.student_units)
        # Of a student that can match logits or learn from labels besides: from the teacher's softmax alone [A.1].
        fields = {"match": "probabilities", "beta": 1.0}
        taught = dataclasses.replace(plain, **{name: fields[name] for name in fields if hasattr(plain, name)})
        arms += study.distillation.arms(student, config.networks, plain, taught, _distilled(config))
    if _has_pairs(config):
        arms += _mnist_pairs(recipe, config, base)
    return study.Study("paper", config, arms, tuple(range(config.first_seed, config.first_seed + config.seeds)))


def claims(config: Config) -> list[study.Claim]:
    """Return what is judged; all of it was fixed before any network was trained."""
    alphas, smoothed = _alphas(config), study.representations.name_of(config.alpha)
    found = study.representations.claims(alphas, config.accuracy_margin, config.ece_margin)
    found.append(
        study.Claim(
            "C7",
            "Translation: smoothing improves BLEU and calibration at worse NLL.",
            "BLEU, token ECE and NLL over temperature",
            (),
            note="this version has no translation recipe",
        )
    )
    found += study.distillation.teacher_claims(alphas, config.best_alpha)
    if config.distilled:
        found += study.distillation.claims(_distilled(config), config.accuracy_margin, config.nll_margin)
    else:
        found += study.distillation.not_run("no α is distilled here; `paper.py distillation` does")
    if _has_pairs(config):
        found += study.mnist.claims(smoothed, config.matching_rate)
    elif config.recipe == "mnist_mlp" and config.distilled:
        found += study.mnist.not_run("the four networks of A.5 are trained with --all")
    if _is_observed(config):
        return found + study.information.claims(smoothed)
    return found + study.information.not_run("these networks are not observed, or see images without augmentation")


def content(config: Config, measured: study.Measured) -> study.page.Content:
    """Return findings, figures and tables, from records alone."""
    alphas, smoothed = _alphas(config), study.representations.name_of(config.alpha)
    figures = study.representations.figures(measured, config.alpha, config.calibrated_alpha)
    tables = study.representations.tables(measured, alphas, config.calibrated_alpha)
    findings = study.representations.findings(measured, alphas)
    if config.distilled:
        pairs = (study.mnist.DROPOUT, study.mnist.OF_DROPOUT, study.mnist.OF_SMOOTHED) if _has_pairs(config) else ()
        figures["figure_5"] = study.distillation.figure(measured, alphas, _distilled(config))
        tables.append(study.distillation.table(measured, alphas, _distilled(config), pairs))
        findings += study.distillation.findings(measured, _distilled(config))
    if _is_observed(config):
        compared = [study.representations.HARD, smoothed]
        figures["figure_6"] = study.information.figure(measured, compared)
        tables.append(study.information.table(measured, compared))
    return study.page.Content(findings, figures, tables)


def run(config: Config, *, size: str, where: experiment.Where | None = None) -> list[Verdict]:
    """Train what is missing, judge every claim, and write the page."""
    where = where or experiment.Where()
    configs = _configs(config, size)
    if config.plan:
        _show_plans(configs, where)
        return []
    return [verdict for name, each in configs.items() for verdict in _run(each, name, where)]


def _configs(config: Config, size: str) -> dict[str, Config]:
    """Return the studies by size: what was given holds for all of them."""
    if size not in SIZES:
        raise ValueError(experiment.unknown("size", size, SIZES))
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    given = {name: value for name, value in fields.items() if value != getattr(SIZES[size], name) and name != "also"}
    for name in config.also:
        if name not in SIZES:
            raise ValueError(experiment.unknown("size", name, SIZES))
    of_one = [f"--{name.replace('_', '-')}" for name in _OF_ONE if name in given]
    if config.also and of_one:
        raise ValueError(
            f"{', '.join(of_one)} can be meant for one study alone, and {size} is followed by "
            f"{', '.join(config.also)}: name one of these sizes instead, or give --also without values."
        )
    return {size: config, **{name: dataclasses.replace(SIZES[name], **given) for name in config.also}}


def _show_plans(configs: dict[str, Config], where: experiment.Where) -> None:
    total = 0.0
    for name, config in configs.items():
        text, hours = study.planned(plan(config), _folder(config, name, where), where, name)
        total += hours
        print(text, end="\n\n")
    if len(configs) > 1:
        print(f"{total:,.0f} hours in all, one network after the other")


def _run(config: Config, size: str, where: experiment.Where) -> list[Verdict]:
    planned = plan(config)
    out = _folder(config, size, where)
    study.page.check_folder(out)
    others = [study.read(folder) for folder in config.join]
    for each in others:
        each.require_all([arm.name for arm in planned.arms])
    started = time.perf_counter()
    measured = study.run(planned, out, where).joined(others)
    first = measured.of(study.representations.HARD)[0].arrays
    trained = sum(record.seconds for record in measured.records)
    return study.page.judged(
        out,
        claims(config),
        measured,
        lambda records: content(config, records),
        exact=study.identities.judge(first),
        title="When does label smoothing help?",
        lead=f"The claims of Müller, Kornblith and Hinton (2019) about image classifiers, tested on "
        f"{measured.data['name']} with {len(measured.records)} networks of {config.recipe}.",
        made=study.page.made_how(
            measured.data,
            Networks=f"{config.recipe}, size {config.networks}; every field is in measured.json",
            Seeds=f"{len(measured.seeds(study.representations.HARD))} of each network",
            Intervals=study.page.INTERVALS,
            Time=f"{time.perf_counter() - started:.0f} s here; {trained:.0f} s of training in all",
            **measured.made,
        ),
        quiet=where.quiet,
    )


def _folder(config: Config, size: str, where: experiment.Where) -> Path:
    plain = dataclasses.replace(config, join=(), plan=False, also=SIZES[size].also)
    return where.workdir / "paper" / experiment.label(plain, size, SIZES)


def _base(recipe: experiment.Recipe, config: Config) -> Any:
    if config.networks not in recipe.sizes:
        raise ValueError(experiment.unknown("size", config.networks, recipe.sizes))
    base = recipe.sizes[config.networks]
    given = {name: getattr(config, name) for name in _OVERRIDES if getattr(config, name) is not None}
    missing = [f"--{name.replace('_', '-')}" for name in given if not hasattr(base, name)]
    if missing:
        raise ValueError(f"{', '.join(missing)} cannot act: the Config of {recipe.name} has no such field.")
    return dataclasses.replace(base, **given)


def _check_student(student: experiment.Recipe, config: Config) -> None:
    """Refuse, before teachers are trained, a recipe whose networks cannot learn from one."""
    missing = [name for name in ("teacher", "temperature") if not hasattr(_base(student, config), name)]
    if missing:
        raise ValueError(
            f"Networks of {student.name} cannot be students: its Config has no {' and no '.join(missing)}. Give "
            "--student a recipe that has, or leave distillation out by --distilled without values."
        )


def _alone(base: Any) -> Any:
    """Return a config of which the end alone matters: evaluated twice, never observed."""
    halves = base.steps // 2 if base.steps % 2 == 0 else base.steps
    unobserved = {"observe_every": 0} if hasattr(base, "observe_every") else {}
    return dataclasses.replace(base, evaluate_every=halves, **unobserved)


def _mnist_pairs(recipe: experiment.Recipe, config: Config, base: Any) -> tuple[study.Arm, ...]:
    """Return the networks of A.5 beside the smoothed teacher, at this size's widths and rates."""
    dropout, student = (recipe.sizes[name] for name in ("dropout", "student"))
    alone = dataclasses.replace(_alone(base), alpha=0.0)
    regularised = {name: getattr(dropout, name) for name in ("input_dropout", "dropout", "max_norm")}
    of_a_teacher = dataclasses.replace(
        alone,
        units=tuple(2 * width // 3 for width in base.units),  # 800 of 1200 in A.5
        shift=student.shift,
        learning_rate=base.learning_rate * config.matching_rate,
    )
    smoothed = study.representations.name_of(config.alpha)
    return study.mnist.arms(recipe, config.networks, dataclasses.replace(alone, **regularised), of_a_teacher, smoothed)


def _has_pairs(config: Config) -> bool:
    return config.recipe == "mnist_mlp" and bool(config.distilled) and config.all


def _distilled(config: Config) -> tuple[float, ...]:
    return tuple(sorted(config.distilled)) if config.all else config.distilled[:1]


def _is_observed(config: Config) -> bool:
    base = named(config.recipe).sizes[config.networks]
    moves = any(getattr(base, name, 0) for name in ("shift", "crop_padding", "flip"))
    return hasattr(base, "observe_every") and moves


def _alphas(config: Config) -> tuple[float, ...]:
    return tuple(sorted({*config.alphas, *config.distilled}))


def _check(config: Config) -> None:
    experiment.check_series("alphas", config.alphas, zero=True)
    for name in (
        "alpha",
        "calibrated_alpha",
        "best_alpha",
        "accuracy_margin",
        "ece_margin",
        "nll_margin",
        "matching_rate",
    ):
        experiment.check_series(name, [getattr(config, name)])
    if config.distilled:
        experiment.check_series("distilled", config.distilled)
    if config.matching_rate != Config.matching_rate and not _has_pairs(config):
        raise ValueError("--matching-rate cannot act without the networks of A.5: give --all, or leave it out.")
    missing = {0.0, config.alpha, config.calibrated_alpha, config.best_alpha} - set(_alphas(config))
    if missing:
        raise ValueError(
            "alphas must hold 0, alpha, calibrated_alpha and best_alpha; "
            f"{', '.join(map(str, sorted(missing)))} is missing."
        )
    experiment.check_whole("first_seed", config.first_seed, 0)
    if config.seeds < 2:
        raise ValueError(f"an interval needs at least 2 seeds; received {config.seeds}.")
    if config.student_units is not None and (not config.student_units or min(config.student_units) < 1):
        raise ValueError(f"student_units must be positive widths of hidden layers; received {config.student_units}.")


if __name__ == "__main__":
    experiment.main(__doc__, SIZES, run)
