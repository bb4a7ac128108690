"""Claim C12: how much of its examples a network remembers, through training (section 4, Figure 6)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ls_keras import plots, report
from ls_keras.study.claims import Claim, Comparison, Term
from ls_keras.study.measures import OBSERVED_PAIR
from ls_keras.study.records import Measured
from ls_keras.study.representations import HARD

import numpy as np


def claims(smoothed: str) -> list[Claim]:
    """Return C12 about the arms `hard targets` and `smoothed`, at moments fixed beforehand."""
    middle, start, end = (f"information, {moment}" for moment in ("middle third", "start", "end"))
    unit = "nats, from 20 draws of each example"
    return [
        Claim(
            "C12a",
            "With smoothing, mutual information between examples and logits rises at first.",
            f"middle third of training − start, {smoothed}, {unit}",
            (Comparison(Term(smoothed, middle), Term(smoothed, start)),),
        ),
        Claim(
            "C12b",
            "With smoothing, mutual information falls later in training.",
            f"middle third of training − end, {smoothed}, {unit}",
            (Comparison(Term(smoothed, middle), Term(smoothed, end)),),
        ),
        Claim(
            "C12c",
            "It falls faster with smoothing than with hard targets.",
            f"fall from the middle third to the end, {smoothed} − hard targets, {unit}",
            (Comparison(Term(smoothed, "information, fall"), Term(HARD, "information, fall")),),
        ),
        Claim(
            "C12d",
            "It ends lower with smoothing than with hard targets.",
            f"end of training, hard targets − {smoothed}, {unit}",
            (Comparison(Term(HARD, end), Term(smoothed, end)),),
        ),
    ]


def not_run(reason: str) -> list[Claim]:
    """Return C12 as not judged, with the reason."""
    sentence = "Mutual information between examples and logits rises, then falls, faster and lower with smoothing."
    return [Claim("C12", sentence, "mutual information through training", (), note=reason)]


def figure(measured: Measured, arms: Sequence[str]) -> report.Illustration:
    """Draw Figure 6."""
    first, second = (measured.data["class_names"][k] for k in OBSERVED_PAIR)
    examples = measured.data["observed"]
    curves = []
    for arm in arms:
        # Of few examples the bound from fresh draws can come out above the estimate: both are noisy.
        names = ("information", "information_low", "information_high", "information_paper")
        # A network that had collapsed at some moment was not observed then.
        seen = [record.curves["steps"] for record in measured.of(arm)]
        steps = functools.reduce(np.intersect1d, seen)
        each = {
            name: np.mean([r.curves[name][np.isin(r.curves["steps"], steps)] for r in measured.of(arm)], axis=0)
            for name in names
        }
        three = np.stack([each[name] for name in names[:3]])
        curves.append(
            plots.InformationCurve(
                arm, steps, each["information"], three.min(axis=0), three.max(axis=0), each["information_paper"]
            )
        )
    return report.Illustration(
        plots.information_figure(curves, examples),
        f"Mutual information between {examples} examples of {first} and {second} and the difference of these two "
        "logits under augmentation, mean over seeds. The band runs from the lower bound by fresh draws to the "
        "upward-biased estimate by the same draws; beside it the paper's own estimate, from 5 draws.",
        "Mutual information over training steps, curves with bands.",
        paper="Figure 6",
    )
