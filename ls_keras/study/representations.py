"""Claims C1 to C6: what smoothing does to penultimate activations and to calibration (sections 2 and 3)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from ls_keras import plots, report
from ls_keras.analysis import calibration
from ls_keras.experiment import Recipe
from ls_keras.study.claims import Claim, Comparison, Term, interval
from ls_keras.study.driver import Arm, Fixed
from ls_keras.study.page import cell, number
from ls_keras.study.records import Measured

import numpy as np

HARD = "hard targets"
# What is a mean over held-out examples, or varies as one, in the order of its table.
OUTCOMES = (
    "accuracy",
    "overconfidence",
    "nll",
    "nll at temperature",
    "bias-reduced ece",
    "bias-reduced ece at temperature",
)
_REST = (
    "ece",
    "ece at temperature",
    "reliability slope",
    "temperature",
    "continuum",
    "spread over distance of centres, train",
    "spread over distance of templates, train",
    "variation of edges, train",
    "mean distance from the origin, train",
    "spread over distance of centres, held-out",
    "spread over distance of templates, held-out",
    "variation of edges, held-out",
    "mean distance from the origin, held-out",
)


def name_of(alpha: float) -> str:
    """Return the name of the arm that is smoothed by α."""
    return f"α = {alpha:g}" if alpha else HARD


def arms(
    recipe: Recipe, size: str, config: Any, alphas: Sequence[float], observed: Sequence[float], shown: Sequence[float]
) -> tuple[Arm, ...]:
    """Return networks with hard and with smoothed targets.

    Args:
        recipe: How they are trained; its Config has `alpha` and, where some are observed, `observe_every`.
        size: What `config` started from.
        config: All that they share.
        alphas: One arm for each; 0 is hard targets, and comes first.
        observed: Those that are followed through training.
        shown: Those whose first network Figure 1 shows.
    """
    order = sorted(set(alphas))
    fields = {alpha: {"observe_every": observe_every(config) if alpha in observed else 0} for alpha in order}
    if not hasattr(config, "observe_every"):
        fields = {alpha: {} for alpha in order}
    return tuple(
        Arm(
            name_of(alpha),
            recipe,
            size,
            Fixed(dataclasses.replace(config, alpha=alpha, **fields[alpha]), (("alpha", alpha),)),
            shapes_by=HARD,
            shown=alpha in shown,
        )
        for alpha in order
    )


def observe_every(config: Any) -> int:
    """Return a config's own number of steps or, where it has none, that of about a tenth of training."""
    own = getattr(config, "observe_every", 0)
    return own or config.evaluate_every * max(1, config.steps // config.evaluate_every // 10)


def claims(alphas: Sequence[float], accuracy_margin: float, ece_margin: float) -> list[Claim]:
    """Return C1 to C6, each about hard targets and every smoothed arm."""
    smoothed = [alpha for alpha in alphas if alpha]

    def hard_less(quantity: str, other: str = "", *, relative: bool = False) -> tuple[Comparison, ...]:
        first = Term(HARD, quantity)
        return tuple(Comparison(first, Term(name_of(a), other or quantity), name_of(a), relative) for a in smoothed)

    tight = "spread within classes ÷ distance between their centres, mean over the planes of classes k, k+1, k+2"
    vs = "hard targets − smoothing"
    ece, ece_at_temperature = "bias-reduced ece", "bias-reduced ece at temperature"
    return [
        Claim(
            "C1a",
            "Smoothing tightens the clusters of penultimate activations: training examples.",
            f"{tight}; {vs}",
            hard_less("spread over distance of centres, train"),
            note="not ÷ distance of templates, which depends on how a network shares its scale between templates and "
            "activations; that is in the table",
        ),
        Claim(
            "C1b",
            "Smoothing tightens the clusters of penultimate activations: held-out examples.",
            f"{tight}; {vs}",
            hard_less("spread over distance of centres, held-out"),
        ),
        Claim(
            "C2",
            "With smoothing the clusters form regular triangles.",
            f"variation of the edge lengths between class centres, training examples; {vs}",
            hard_less("variation of edges, train"),
        ),
        Claim(
            "C3",
            "With smoothing the projections have a smaller scale.",
            "relative fall of the mean distance from the origin, training examples, from hard targets to smoothing",
            hard_less("mean distance from the origin, train", relative=True),
        ),
        Claim(
            "C4",
            "Hard targets keep a continuum from two similar classes to a different one; smoothing erases it.",
            "variance of the different class's logit within the similar classes ÷ variance of the logits, training "
            f"examples; {vs}",
            hard_less("continuum"),
            note="classes chosen by a rule from the hard-target network of the same seed",
        ),
        Claim(
            "C5",
            "Smoothing keeps the accuracy or improves it.",
            "held-out accuracy, smoothing − hard targets",
            tuple(Comparison(Term(name_of(a), "accuracy"), Term(HARD, "accuracy"), name_of(a)) for a in smoothed),
            margin=accuracy_margin,
            paper="−0.1 points on CIFAR-10, +0.6 on CIFAR-100, 0.0 on ImageNet, at α = 0.1",
        ),
        Claim(
            "C6a",
            "Networks trained with hard targets are over-confident.",
            "mean confidence − accuracy, held-out examples, T = 1",
            (Comparison(Term(HARD, "overconfidence")),),
        ),
        Claim(
            "C6b",
            "Temperature scaling calibrates the hard-target network.",
            "fall of held-out ECE, bias-reduced, from T = 1 to the T fitted on the other half",
            (Comparison(Term(HARD, ece), Term(HARD, ece_at_temperature)),),
            paper="0.150 to 0.021 on CIFAR-100",
        ),
        Claim(
            "C6c",
            "Smoothing calibrates without a temperature.",
            "fall of held-out ECE, bias-reduced, at T = 1 from hard targets to smoothing",
            hard_less(ece),
            paper="0.150 to 0.024 on CIFAR-100, at α = 0.05",
        ),
        Claim(
            "C6d",
            "Smoothing calibrates about as well as a temperature, or better.",
            "held-out ECE, bias-reduced, hard targets at the fitted T − smoothing at T = 1",
            hard_less(ece_at_temperature, ece),
            margin=ece_margin,
            paper="0.021 and 0.024 on CIFAR-100, at α = 0.05",
        ),
    ]


def figures(measured: Measured, alpha: float, calibrated_alpha: float) -> dict[str, report.Illustration]:
    """Draw Figures 1 and 2."""
    hard, smoothed = (measured.of(name_of(each))[0] for each in (0.0, alpha))
    names = [[measured.data["class_names"][k] for k in hard.arrays[f"classes {row}"]] for row in (0, 1)]
    panels = [
        plots.PlanePanel(*(record.arrays[f"{part} {row} {split}"] for part in ("points", "labels", "templates")))
        for row in (0, 1)
        for record in (hard, smoothed)
        for split in ("train", "held_out")
    ]
    planes = plots.template_plane_figure(
        panels,
        names,
        row_names=("first three classes", "two similar, one different"),
        pair_titles=(HARD, f"label smoothing, α = {alpha:g}"),
    )
    similar = names[1]
    curves = [
        reliability_curve(measured, HARD, "hard targets, T = 1"),
        reliability_curve(measured, HARD, "hard targets, T fitted", at=" at temperature"),
        reliability_curve(measured, name_of(calibrated_alpha), f"α = {calibrated_alpha:g}, T = 1"),
    ]
    seeds = len(measured.seeds(HARD))
    return {
        "figure_1": report.Illustration(
            planes,
            "Penultimate activations of the first seed on the plane through the templates (stars) of three classes; "
            f"below, {similar[0]} and {similar[1]} are the most similar pair and {similar[2]} is the class most "
            "different from both.",
            "Eight scatter plots of three classes, for hard targets and for smoothing.",
            paper="Figure 1",
        ),
        "figure_2": report.Illustration(
            plots.reliability_figure(curves),
            f"Accuracy over confidence of the held-out examples, pooled over {seeds} seeds; on the dashed line a "
            "network is calibrated. ECE is the mean over the seeds.",
            "Reliability diagram with three curves and the number of examples in each bin.",
            paper="Figure 2",
        ),
    }


def reliability_curve(measured: Measured, arm: str, name: str, at: str = "") -> plots.ReliabilityCurve:
    """Return a curve of Figure 2: held-out examples pooled over seeds, ECE their mean; `at` chooses fitted T."""
    correct = measured.examples(arm, "accuracy").ravel()
    confidence = measured.examples(arm, "overconfidence" + at).ravel() + correct
    bins = calibration.top_label_reliability(np.clip(confidence, 0.0, 1.0), correct)
    ece = float(measured.values(arm, "ece" + at).mean())
    return plots.ReliabilityCurve(name, bins.confidence, bins.accuracy, bins.count, ece)


def tables(measured: Measured, alphas: Sequence[float], calibrated_alpha: float) -> list[report.Table]:
    """Set Table 3, what is a mean over examples, and what is not, each with its own kind of interval."""
    arms_ = [name_of(alpha) for alpha in sorted(set(alphas))]
    seeds = len(measured.seeds(HARD))
    return [
        _calibration_table(measured, name_of(calibrated_alpha)),
        report.Table(
            f"Means over the held-out examples, with 95 % intervals over {seeds} seeds and the examples; NLL in nats.",
            ["quantity", *arms_],
            [
                [label(name), *(cell(interval(measured, Comparison(Term(arm, name)))) for arm in arms_)]
                for name in OUTCOMES
            ],
        ),
        report.Table(
            f"The rest, with 95 % intervals over {seeds} seeds, by Student's t; distances in the units of the "
            "activations.",
            ["quantity", *arms_],
            [[label(name), *(number(measured.values(arm, name)) for arm in arms_)] for name in _REST],
        ),
    ]


def label(name: str) -> str:
    """Return what a reader calls a quantity."""
    words = {"overconfidence": "confidence − accuracy", "nll": "NLL", "ece": "ECE", "at temperature": "at the fitted T"}
    for word, better in words.items():
        name = re.sub(rf"\b{word}\b", better, name)
    return name


def _calibration_table(measured: Measured, smoothed: str) -> report.Table:
    columns = ((HARD, ""), (HARD, " at temperature"), (smoothed, ""), (smoothed, " at temperature"))
    header = ["", "hard, T = 1", "hard, T fitted", f"{smoothed}, T = 1", f"{smoothed}, T fitted"]
    rows = [
        [text, *(number(measured.values(arm, name + at)) for arm, at in columns)]
        for text, name in (("ECE, 15 bins", "ece"), ("NLL, nats", "nll"))
    ]
    fitted = [number(measured.values(arm, "temperature")) for arm in (HARD, smoothed)]
    rows.append(["temperature", "1", fitted[0], "1", fitted[1]])
    return report.Table(
        "The paper's Table 3 on these data: held-out calibration error and NLL, with 95 % intervals over seeds. ECE is "
        "the plug-in value of the literature, biased upwards.",
        header,
        rows,
    )


def findings(measured: Measured, alphas: Sequence[float]) -> list[str]:
    """Say in sentences which targets gave the best NLL, and what calibrates."""
    return [_best_nll(measured, alphas), _what_calibrates(measured, alphas)]


def _best_nll(measured: Measured, alphas: Sequence[float]) -> str:
    quantity = "nll at temperature"
    means = {alpha: float(measured.values(name_of(alpha), quantity).mean()) for alpha in sorted(set(alphas))}
    best = min(means, key=means.get)
    temperature = float(measured.values(name_of(best), "temperature").mean())
    if not best:
        return (
            f"Hard targets with a fitted temperature (T = {temperature:.2f}) gave the best NLL, {means[best]:.3f} nats "
            f"on held-out {measured.data['name']}: no α that was tried is needed."
        )
    gain = interval(measured, Comparison(Term(HARD, quantity), Term(name_of(best), quantity)))
    sure = f"lower by {gain.estimate:.3f} [{gain.low:.3f}, {gain.high:.3f}]".replace("-", "−")
    advice = "smooth, and fit a temperature" if gain.low > 0 else "undecided, so that a temperature alone may do"
    chosen = f"the best of {len(means)}, chosen on these examples"
    return (
        f"On held-out {measured.data['name']}, {name_of(best)} ({chosen}) with T = {temperature:.2f} gave the best "
        f"NLL: {means[best]:.3f} nats against {means[0.0]:.3f} for hard targets with their own T; {sure}: {advice}."
    )


def _what_calibrates(measured: Measured, alphas: Sequence[float]) -> str:
    over = interval(measured, Comparison(Term(HARD, "overconfidence")))
    kind = "neither over- nor under-confident beyond chance"
    if over.low > 0 or over.high < 0:
        kind = "over-confident" if over.low > 0 else "under-confident"
    ece, smoothed = "bias-reduced ece", [alpha for alpha in alphas if alpha]
    best = min(smoothed, key=lambda alpha: measured.values(name_of(alpha), ece).mean())
    ways = {
        "fit a temperature": Term(HARD, f"{ece} at temperature"),
        f"smooth by α = {best:g}": Term(name_of(best), ece),
    }
    gains = {way: interval(measured, Comparison(Term(HARD, ece), term)) for way, term in ways.items()}
    helps = [way for way, gain in gains.items() if gain.low > 0]
    advice = max(helps, key=lambda way: gains[way].estimate) if helps else "neither is shown to help"
    hard, fitted, alone = (
        measured.values(each.arm, each.quantity).mean() for each in (Term(HARD, ece), *ways.values())
    )
    points = f"{100 * over.estimate:+.1f}".replace("-", "−")
    return (
        f"Hard-target networks are {kind} (confidence − accuracy {points} points); bias-reduced ECE is {hard:.3f} as "
        f"trained, {fitted:.3f} with a fitted temperature and {alone:.3f} with the best α ({best:g}) alone: to be "
        f"calibrated, {advice}."
    )
