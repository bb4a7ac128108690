"""Claim C11: the four networks of appendix A.5, two teachers and their students."""

from __future__ import annotations

import dataclasses
from typing import Any

from ls_keras.experiment import Recipe, Where
from ls_keras.study.claims import Claim, Comparison, Term
from ls_keras.study.driver import Arm, Done, Fixed

DROPOUT, OF_DROPOUT, OF_SMOOTHED = (
    "A.5: dropout teacher",
    "A.5: student of the dropout teacher",
    "A.5: student of the smoothed teacher",
)
_OUTCOMES = (("accuracy", "held-out accuracy", 1), ("nll at temperature", "held-out NLL at the fitted T, nats", -1))


@dataclasses.dataclass(frozen=True)
class Taught:
    """The config of a student of one teacher."""

    config: Any

    def __call__(self, seed: int, where: Where, *before: Done) -> tuple[Any, dict[str, float]]:
        return dataclasses.replace(self.config, seed=seed, teacher=before[0].saved_model), {}


def arms(recipe: Recipe, size: str, dropout: Any, student: Any, smoothed: str) -> tuple[Arm, ...]:
    """Return the dropout teacher, and a student of it and of the smoothed teacher."""
    return (
        Arm(DROPOUT, recipe, size, Fixed(dropout)),
        Arm(OF_DROPOUT, recipe, size, Taught(student), (DROPOUT,)),
        Arm(OF_SMOOTHED, recipe, size, Taught(student), (smoothed,)),
    )


def claims(smoothed: str, rate: float) -> list[Claim]:
    """Return C11, by accuracy and by NLL; the students' rate is a fraction of their teachers'."""
    pairs = (
        (
            "The smoothed teacher is better than the dropout teacher (A.5)",
            smoothed,
            DROPOUT,
            "0.59 and 0.67 % errors on MNIST",
            "",
        ),
        (
            "The smoothed teacher's student is worse than the dropout teacher's (A.5)",
            OF_DROPOUT,
            OF_SMOOTHED,
            "0.74 and 0.91 % errors on MNIST",
            f"students learn at {rate:g} of the teachers' rate; at all of it their squared errors diverge",
        ),
    )
    found = []
    for quantity, measure, sign in _OUTCOMES:
        for sentence, one, other, paper, note in pairs:
            terms = [Term(arm, quantity) for arm in (one, other)][::sign]
            found.append(
                Claim(
                    f"C11{'abcd'[len(found)]}",
                    f"{sentence}, by {'accuracy' if sign > 0 else 'NLL'}.",
                    f"{measure}, {terms[0].arm} − {terms[1].arm}",
                    (Comparison(*terms),),
                    paper=paper if sign > 0 else "",
                    note=note,
                )
            )
    return found


def not_run(reason: str) -> list[Claim]:
    """Return C11 as not judged, with the reason."""
    sentence = "On MNIST the smoothed teacher beats the dropout teacher, and its student loses (A.5)."
    return [Claim("C11", sentence, "accuracy of two teachers and of their students", (), note=reason)]
