"""The paper's claims about image classifiers, re-tested on this machine with intervals.

    python recipes/paper.py            # scikit-learn's handwritten digits, a few minutes, no download
    python recipes/paper.py fashion    # Fashion-MNIST, hours on two cores
    python recipes/paper.py paper      # MNIST with the paper's network

Trains the fully connected network of `mnist_mlp.py` with hard and with smoothed targets over several seeds, distils
each into students at equal softness, judges every claim by differences paired over the seeds, and writes
`report.html`. What is finished is reused.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ls_keras import experiment, losses, plots, report
from ls_keras.analysis import intervals
from ls_keras.analysis.intervals import Interval
from ls_keras.data import Images
from ls_keras.report import Verdict

import analyse
import distill
import mnist_mlp
import numpy as np
from matplotlib.figure import Figure
from scipy import special
from tqdm import tqdm


@dataclass(frozen=True)
class Config:
    """What is tested."""

    networks: str = "digits"
    """size of `mnist_mlp.py` that is trained"""
    seeds: int = 5
    """networks trained for each α, with seeds 0, 1, …"""
    alphas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.3, 0.6)
    """label smoothing factors; the first is hard targets"""
    alpha: float = 0.1
    """the α that claims C1 to C5 compare with hard targets [Table 2]"""
    calibrated_alpha: float = 0.05
    """the α that claim C6 compares with temperature scaling [Table 3, CIFAR-100]"""
    accuracy_margin: float = 0.01
    """loss of accuracy that counts as none (C5)"""
    ece_margin: float = 0.01
    """difference in ECE that counts as similar (C6)"""


SIZES = {
    "digits": Config(),
    "fashion": Config(networks="fashion"),
    "paper": Config(networks="paper"),
    "smoke": Config(networks="smoke", seeds=2, alphas=(0.0, 0.05, 0.1)),
}

Trained = dict[float, list[analyse.Network]]
Measured = dict[float, list[analyse.Statistics]]


def load_data(config: Config, data_dir: Path | None = None) -> Images:
    """Give the data that all networks share."""
    return mnist_mlp.load_data(mnist_mlp.SIZES[config.networks], data_dir)


def judge(config: Config, networks: Trained, measured: Measured) -> list[Verdict]:
    """Return a verdict for each claim; what is compared was fixed before any network was trained.

    What is a mean over examples gets an interval over seeds and examples; geometry, which is none, one over seeds.
    """
    hard, smoothed = measured[0.0], measured[config.alpha]
    calibrated = measured[config.calibrated_alpha]

    def differences(name: str) -> Interval:
        pairs = zip(hard, smoothed, strict=True)
        return intervals.over_seeds([a.values[name] - b.values[name] for a, b in pairs])

    def relative(name: str) -> Interval:
        pairs = zip(hard, smoothed, strict=True)
        return intervals.over_seeds([1 - b.values[name] / a.values[name] for a, b in pairs])

    vs = f"hard targets − smoothing α = {config.alpha:g}"
    tight = "spread within classes ÷ distance between their centres, mean over the planes of classes k, k+1, k+2"
    ece, ece_at_temperature = "bias-reduced ece", "bias-reduced ece at temperature"
    return [
        report.paired_verdict(
            "C1a",
            "Smoothing tightens the clusters of penultimate activations: training examples.",
            f"{tight}; {vs}",
            differences("spread over distance of centres, train"),
            note="not ÷ distance of templates, which depends on how a network shares its scale between templates and "
            "activations; that is in the table",
        ),
        report.paired_verdict(
            "C1b",
            "Smoothing tightens the clusters of penultimate activations: held-out examples.",
            f"{tight}; {vs}",
            differences("spread over distance of centres, held-out"),
        ),
        report.paired_verdict(
            "C2",
            "With smoothing the clusters form regular triangles.",
            f"variation of the edge lengths between class centres, training examples; {vs}",
            differences("variation of edges, train"),
        ),
        report.paired_verdict(
            "C3",
            "With smoothing the projections have a smaller scale.",
            "relative fall of the mean distance from the origin, training examples, from hard targets to "
            f"α = {config.alpha:g}",
            relative("mean distance from the origin, train"),
        ),
        report.paired_verdict(
            "C4",
            "Hard targets keep a continuum from two similar classes to a different one; smoothing erases it.",
            "variance of the different class's logit within the similar classes ÷ variance of the logits, "
            f"training examples; {vs}",
            differences("continuum"),
            note="classes chosen by a rule from the first hard-target network",
        ),
        report.noninferiority_verdict(
            "C5",
            "Smoothing keeps the accuracy or improves it.",
            f"held-out accuracy, α = {config.alpha:g} − hard targets",
            analyse.crossed(smoothed, "accuracy", hard),
            config.accuracy_margin,
            paper="−0.1 points on CIFAR-10, +0.6 on CIFAR-100, 0.0 on ImageNet",
        ),
        report.paired_verdict(
            "C6a",
            "Networks trained with hard targets are over-confident.",
            "mean confidence − accuracy, held-out examples, T = 1",
            analyse.crossed(hard, "overconfidence"),
        ),
        report.paired_verdict(
            "C6b",
            "Temperature scaling calibrates the hard-target network.",
            "fall of held-out ECE, bias-reduced, from T = 1 to the T fitted on the other half",
            analyse.crossed(hard, ece, hard, ece_at_temperature),
            paper="0.150 to 0.021 on CIFAR-100",
        ),
        report.paired_verdict(
            "C6c",
            "Smoothing calibrates without a temperature.",
            f"fall of held-out ECE, bias-reduced, at T = 1 from hard targets to α = {config.calibrated_alpha:g}",
            analyse.crossed(hard, ece, calibrated),
            paper="0.150 to 0.024 on CIFAR-100",
        ),
        report.noninferiority_verdict(
            "C6d",
            "Smoothing calibrates about as well as a temperature, or better.",
            f"held-out ECE, bias-reduced, hard targets at the fitted T − α = {config.calibrated_alpha:g} at T = 1",
            analyse.crossed(hard, ece_at_temperature, calibrated, ece),
            config.ece_margin,
            paper="0.021 and 0.024 on CIFAR-100",
        ),
        report.not_run(
            "C7",
            "Translation: smoothing improves BLEU and calibration at worse NLL.",
            "BLEU, token ECE and NLL over temperature",
            "this version has no translation recipe",
        ),
        *identities(networks[0.0][0].held_out.logits, networks[0.0][0].held_out.labels),
    ]


def identities(logits: np.ndarray, labels: np.ndarray, alpha: float = 0.1) -> list[Verdict]:
    """Check claim C13 on a trained network's logits, the right-hand sides by NumPy in float64."""
    logits, num_classes = logits.astype(float), logits.shape[1]
    log_p = special.log_softmax(logits, axis=-1)
    hard = -np.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    uniform_first = -np.log(num_classes) - log_p.mean(-1)  # KL(u‖p)
    network_first = np.log(num_classes) + (np.exp(log_p) * log_p).sum(-1)  # KL(p‖u)
    smoothed = losses.SmoothedCrossentropy(alpha, reduction=None, dtype="float64")(labels, logits)
    penalised = losses.ConfidencePenalty(alpha, reduction=None, dtype="float64")(labels, logits)
    redrawn = (1 - alpha) * hard - alpha * log_p.mean(-1)
    return [
        report.identity_verdict(
            "C13a",
            "Smoothing is the confidence penalty with the divergence reversed.",
            "largest error of smoothed loss = (1 − α) H + α KL(u‖p) + α ln K and of penalised loss = "
            "H + β KL(p‖u) − β ln K, nats",
            np.concatenate(
                [
                    np.asarray(smoothed) - ((1 - alpha) * hard + alpha * (uniform_first + np.log(num_classes))),
                    np.asarray(penalised) - (hard + alpha * (network_first - np.log(num_classes))),
                ]
            ),
            tolerance=1e-9,
        ),
        report.identity_verdict(
            "C13b",
            "DisturbLabel is smoothing in expectation.",
            "largest error of smoothed loss = mean loss over labels redrawn with probability α, nats",
            np.asarray(smoothed) - redrawn,
            tolerance=1e-9,
        ),
    ]


def figures(
    config: Config, networks: Trained, chosen: tuple[int, int, int], class_names: Sequence[str]
) -> tuple[Figure, Figure]:
    """Draw Figures 1 and 2."""
    hard, smoothed = networks[0.0], networks[config.alpha]
    rows = [(0, 1, 2), chosen]
    panels = [
        panel
        for classes in rows
        for network in (hard[0], smoothed[0])
        for panel in analyse.plane_panels(network, classes)
    ]
    names = [[class_names[label] for label in classes] for classes in rows]
    curves = [
        analyse.reliability_curve("hard targets, T = 1", hard),
        analyse.reliability_curve("hard targets, T fitted", hard, fitted=True),
        analyse.reliability_curve(f"α = {config.calibrated_alpha:g}, T = 1", networks[config.calibrated_alpha]),
    ]
    planes = plots.template_plane_figure(
        panels,
        names,
        row_names=("first three classes", "two similar, one different"),
        pair_titles=("hard targets", f"label smoothing, α = {config.alpha:g}"),
    )
    return planes, plots.reliability_figure(curves)


def find(config: Config, where: experiment.Where, train: experiment.Train) -> analyse.Findings:
    """Train what is missing, judge claims C1 to C6 and C13, and draw Figures 1 and 2."""
    data = load_data(config, where.data_dir)
    base = mnist_mlp.SIZES[config.networks]
    points = [(alpha, seed) for alpha in config.alphas for seed in range(config.seeds)]
    configs = [distill.teacher_config(base, alpha, seed, (0.0, config.alpha)) for alpha, seed in points]
    runs = train(mnist_mlp.run, configs, size=config.networks, what="networks")
    networks: Trained = {alpha: [] for alpha in config.alphas}
    for (alpha, seed), finished in zip(points, tqdm(runs, desc="analysis", unit="network", leave=False), strict=True):
        network = analyse.load(finished.saved_model, f"α = {alpha:g}, seed {seed}", data, limit=10_000)
        networks[alpha].append(network)
    chosen = analyse.similar_classes(networks[0.0][0])
    measured = {alpha: [analyse.statistics(n, chosen) for n in networks[alpha]] for alpha in networks}
    similar, different, names = chosen[:2], chosen[2], data.class_names
    figure_1, figure_2 = figures(config, networks, chosen, names)
    return analyse.Findings(
        judge(config, networks, measured),
        {
            "figure_1": report.Illustration(
                figure_1,
                "Penultimate activations of the first seed on the plane through the templates (stars) of three "
                f"classes; below, {names[similar[0]]} and {names[similar[1]]} are the most similar pair and "
                f"{names[different]} is the class most different from both.",
                "Eight scatter plots: hard targets spread each class, smoothing draws it together.",
            ),
            "figure_2": report.Illustration(
                figure_2,
                f"Accuracy over confidence of the held-out examples, pooled over {config.seeds} seeds; on the dashed "
                "line a network is calibrated.",
                "Reliability diagram with three curves and the number of examples in each bin.",
            ),
        },
        tables(config, measured),
    )


def tables(config: Config, measured: Measured) -> list[report.Table]:
    """Set what is a mean over examples, and what is not, each with its own kind of interval."""
    header = ["quantity", *(f"α = {alpha:g}" if alpha else "hard targets" for alpha in measured)]
    first = measured[0.0][0]
    return [
        report.Table(
            f"Means over the held-out examples, with 95 % intervals over {config.seeds} seeds and the examples; NLL in "
            "nats.",
            header,
            [
                [name, *(analyse.interval_text(analyse.crossed(measured[alpha], name)) for alpha in measured)]
                for name in first.examples
            ],
        ),
        report.Table(
            f"The rest, with 95 % intervals over {config.seeds} seeds, by Student's t; distances in the units of the "
            "activations.",
            header,
            [
                [name, *(_over_seeds([each.values[name] for each in measured[alpha]]) for alpha in measured)]
                for name in first.values
                if name not in first.examples
            ],
        ),
    ]


def _over_seeds(values: Sequence[float]) -> str:
    # A slope that is not defined, or seeds that agree to the last digit, leave the others' numbers as they are.
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return f"{np.mean(values):.4g}"
    return analyse.interval_text(intervals.over_seeds(values))


def run(config: Config, *, size: str, where: experiment.Where | None = None) -> list[Verdict]:
    """Train what is missing, judge every claim, and write the report."""
    where = where or experiment.Where()
    distillation = dataclasses.replace(
        distill.SIZES.get(config.networks, distill.Config()), networks=config.networks, seeds=config.seeds
    )
    distill.check(distillation)
    _check(config)
    out = where.workdir / "paper" / experiment.label(config, size, SIZES)
    analyse.check_folder(out)
    started = time.perf_counter()
    with experiment.workers(where) as train:
        found = find(config, where, train)
        found += distill.find(distillation, where, train)
    data, network = load_data(config, where.data_dir), mnist_mlp.SIZES[config.networks]
    return analyse.publish(
        found,
        out,
        quiet=where.quiet,
        title="When does label smoothing help?",
        lead=f"The claims of Müller, Kornblith and Hinton (2019) about image classifiers, tested on {data.name} with "
        f"fully connected networks and {config.seeds} seeds of everything.",
        made_how=analyse.made_how(
            data,
            Networks=f"{' and '.join(map(str, network.units))} ReLU units, {network.steps:,} steps of "
            f"{network.batch_size}; every field is in the config.json of each folder of mnist_mlp",
            Intervals=distill.INTERVALS,
            Time=f"{time.perf_counter() - started:.0f} s; networks that were finished before took none",
        ),
    )


def _check(config: Config) -> None:
    analyse.check_series("alphas", config.alphas, zero=True)
    analyse.check_series("alpha", [config.alpha])
    analyse.check_series("calibrated_alpha", [config.calibrated_alpha])
    analyse.check_series("accuracy_margin", [config.accuracy_margin])
    analyse.check_series("ece_margin", [config.ece_margin])
    missing = {0.0, config.alpha, config.calibrated_alpha} - set(config.alphas)
    if missing:
        raise ValueError(
            f"alphas must hold 0, alpha and calibrated_alpha; {', '.join(map(str, sorted(missing)))} is missing."
        )


if __name__ == "__main__":
    experiment.main(__doc__, SIZES, run)
