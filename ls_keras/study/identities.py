"""Claim C13: what smoothing is, checked exactly on a trained network's logits."""

from __future__ import annotations

from collections.abc import Mapping

from ls_keras import losses, verdicts
from ls_keras.verdicts import Verdict

import numpy as np
from scipy import special

_PENALTY, _DISTURB = "errors of the reversed penalty", "errors of disturbed labels"


def errors(logits: np.ndarray, labels: np.ndarray, alpha: float = 0.1) -> dict[str, np.ndarray]:
    """Return left minus right sides of the identities of C13, the right-hand sides by NumPy in float64.

    Args:
        logits: float `[N, K]`.
        labels: int `[N]`.
        alpha: α, and β of the confidence penalty.
    """
    logits, num_classes = logits.astype(float), logits.shape[1]
    log_p = special.log_softmax(logits, axis=-1)
    hard = -np.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    uniform_first = -np.log(num_classes) - log_p.mean(-1)  # KL(u‖p)
    network_first = np.log(num_classes) + (np.exp(log_p) * log_p).sum(-1)  # KL(p‖u)
    smoothed = losses.SmoothedCrossentropy(alpha, reduction=None, dtype="float64")(labels, logits)
    penalised = losses.ConfidencePenalty(alpha, reduction=None, dtype="float64")(labels, logits)
    reversed_penalty = [
        np.asarray(smoothed) - ((1 - alpha) * hard + alpha * (uniform_first + np.log(num_classes))),
        np.asarray(penalised) - (hard + alpha * (network_first - np.log(num_classes))),
    ]
    redrawn = (1 - alpha) * hard - alpha * log_p.mean(-1)
    return {_PENALTY: np.concatenate(reversed_penalty), _DISTURB: np.asarray(smoothed) - redrawn}


def judge(measured: Mapping[str, np.ndarray]) -> list[Verdict]:
    """Return the verdicts on claim C13 from what `errors` gave."""
    return [
        verdicts.identity(
            "C13a",
            "Smoothing is the confidence penalty with the divergence reversed.",
            "largest error of smoothed loss = (1 − α) H + α KL(u‖p) + α ln K and of penalised loss = "
            "H + β KL(p‖u) − β ln K, nats",
            measured[_PENALTY],
            tolerance=1e-9,
        ),
        verdicts.identity(
            "C13b",
            "DisturbLabel is smoothing in expectation.",
            "largest error of smoothed loss = mean loss over labels redrawn with probability α, nats",
            measured[_DISTURB],
            tolerance=1e-9,
        ),
    ]
