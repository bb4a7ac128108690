"""Claim C12: how much of its examples a network remembers, through training (section 4, Figure 6)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ls_keras import plots, report
from ls_keras.study.claims import Claim, Comparison, Term
from ls_keras.study.measures import LEARNT, OBSERVED_PAIR, learnt
from ls_keras.study.page import number
from ls_keras.study.records import Measured
from ls_keras.study.representations import HARD

import numpy as np


def claims(smoothed: str) -> list[Claim]:
    """Return C12 about the arms `hard targets` and `smoothed`, at moments that training accuracy chooses."""
    start, first, end = (f"information, {moment}" for moment in ("start", learnt(LEARNT[0]), "end"))
    unit = "nats, from 20 draws of each example"
    moment = "first observed moment with that accuracy on the training examples without augmentation"

    def fall(accuracy: float, *arms: str) -> Comparison:
        terms = (Term(arm, f"information, fall from {learnt(accuracy)}") for arm in arms)
        return Comparison(*terms, at=f"from {learnt(accuracy)}")

    return [
        Claim(
            "C12a",
            "With smoothing, mutual information between examples and logits rises at first.",
            f"{learnt(LEARNT[0])} − start, {smoothed}, {unit}; {moment}",
            (Comparison(Term(smoothed, first), Term(smoothed, start)),),
        ),
        Claim(
            "C12b",
            "With smoothing, mutual information falls later in training.",
            f"that training accuracy − end, {smoothed}, {unit}; {moment}",
            tuple(fall(accuracy, smoothed) for accuracy in LEARNT),
        ),
        Claim(
            "C12c",
            "It falls faster with smoothing than with hard targets.",
            f"fall from that training accuracy to the end, {smoothed} − hard targets, {unit}; {moment}",
            tuple(fall(accuracy, smoothed, HARD) for accuracy in LEARNT),
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


def table(measured: Measured, arms: Sequence[str]) -> report.Table:
    """Set mutual information at the moments of C12, and when they came."""
    moments = [f"information, {name}" for name in ("start", *map(learnt, LEARNT), "end")]
    rows = [*moments, *(f"steps to {learnt(accuracy)}" for accuracy in LEARNT)]
    return report.Table(
        "Mutual information at the moments of C12, nats, and the steps to them, with 95 % intervals over seeds; nan is "
        "a training accuracy that some network never had.",
        ["quantity", *arms],
        [[name, *(number(measured.values(arm, name)) for arm in arms)] for name in rows],
    )
