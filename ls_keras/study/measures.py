"""What is measured of a network: in training, and when it is finished."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ls_keras import distillation
from ls_keras.analysis import calibration, geometry, information

import numpy as np
from scipy import special

if TYPE_CHECKING:  # a recipe names `observe` before its --help is printed, and must not wait for TensorFlow
    from ls_keras.analysis import probe
    from ls_keras.data import Dataset

# Classes whose logits' difference mutual information is about: airplane and dog on CIFAR-10, as in the paper.
OBSERVED_PAIR = (0, 5)
# Examples of either class.
OBSERVED_EXAMPLES = 300
# Training accuracies whose first moment mutual information is compared at: the paper's peak lies where the training
# examples are just learnt, at 10 to 15 % of training, and no fixed part of training is that.
LEARNT = (0.95, 0.999)
# Examples of a split that are looked at in training, and training examples that a finished network is measured on.
MOST_OBSERVED = 10_000
# Examples of each class in Figure 1 [section 2].
_SHOWN = 100
_BATCH = 500


@dataclass(frozen=True, eq=False)
class Network:
    """An exported network and what it makes of its training and held-out examples."""

    name: str
    kernel: np.ndarray
    bias: np.ndarray
    train: probe.Collected
    held_out: probe.Collected


def held_out(data: Dataset) -> str:
    """Return the split that stands for examples never seen in training: the test set, where none are held out."""
    return "held_out" if data.size("held_out") else "test"


def collect(network: probe.Probe, name: str, data: Dataset, limit: int | None = None) -> Network:
    """Run a network over its training (up to `limit`) and held-out examples, without augmentation.

    Raises:
        ValueError: It tells another number of classes apart than the data have.
    """
    if network.num_classes != data.num_classes:
        raise ValueError(
            f"The {network.name} tells {network.num_classes} classes apart, but {data.name} has {data.num_classes}."
        )
    train, other = (
        network.collect(data.evaluation(split, _BATCH), most)
        for split, most in (("train", limit), (held_out(data), None))
    )
    return Network(name, network.kernel, network.bias, train, other)


def statistics(
    logits: np.ndarray, labels: np.ndarray, temperature: float | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return what held-out logits say, by name: numbers, and for means over examples each example's part [N].

    A temperature that is not given is fitted on each half of the examples and scored on the other. ECE comes plug-in,
    as the literature reports it, and bias-reduced, as networks are compared by it; the latter's parts vary as it does.

    Args:
        logits: float `[N, K]`.
        labels: int `[N]`.
        temperature: Fitted on other examples.
    """
    fitted = temperature
    if temperature is None:
        halves = calibration.cross_fitted(logits, labels)
        fitted, temperature = halves.temperature, float(np.mean([fit.temperature for fit in halves.fits]))
    numbers: dict[str, float] = {}
    examples: dict[str, np.ndarray] = {}
    for at, each in (("", 1.0), (" at temperature", fitted)):
        confidence, correct = calibration.top_label(logits, labels, temperature=each)
        examples["accuracy"] = correct.astype(float)
        examples["overconfidence" + at] = confidence - correct
        examples["nll" + at] = _negative_log_likelihoods(logits, labels, each)
        numbers["ece" + at] = calibration.top_label_reliability(confidence, correct).ece
        name = "bias-reduced ece" + at
        numbers[name], examples[name] = calibration.top_label_contributions(confidence, correct)
    means = {name: float(rows.mean()) for name, rows in examples.items() if name not in numbers}
    slope = calibration.reliability(logits, labels).slope
    return {**means, **numbers, "reliability slope": slope, "temperature": temperature}, examples


def similar_classes(network: Network) -> tuple[int, int, int]:
    """Return the two most similar classes and the one most different from both, by a network's class means."""
    means = geometry.class_means(network.train.penultimate, network.train.labels, network.kernel.shape[1])
    return geometry.similar_and_different(means)


def shapes(network: Network, chosen: tuple[int, int, int]) -> dict[str, float]:
    """Return the numbers behind claims C1 to C4, by name.

    They are averaged over the planes of all classes (k, k + 1, k + 2), so that none is picked by hand; the continuum is
    that of two similar classes and a different one.
    """
    found = {"continuum": geometry.continuum(network.train.logits, network.train.labels, chosen[:2], chosen[2])}
    for split in ("train", "held_out"):
        for name, value in plane_statistics(network, split).items():
            found[f"{name}, {split.replace('_', '-')}"] = value
    return found


def plane_statistics(network: Network, split: Literal["train", "held_out"]) -> dict[str, float]:
    """Return what clusters look like on the planes through three templates, mean over the planes."""
    part: probe.Collected = getattr(network, split)
    num_classes = network.kernel.shape[1]
    rows = [np.flatnonzero(part.labels == label) for label in range(num_classes)]
    each = []
    for first in range(num_classes):
        classes = [(first + step) % num_classes for step in range(3)]
        plane = geometry.template_plane(network.kernel, network.bias, classes)
        shown = np.concatenate([rows[label] for label in classes])
        points, labels = plane.project(part.penultimate[shown]), part.labels[shown]
        centres = geometry.cluster_centres(points, labels, plane)
        each.append(
            {
                "spread over distance of centres": geometry.tightness(points, labels, plane, reference=centres),
                "spread over distance of templates": geometry.tightness(points, labels, plane),
                "variation of edges": geometry.triangle_regularity(centres).edge_variation,
                "mean distance from the origin": geometry.scale(points, labels, plane),
            }
        )
    return {name: float(np.mean([values[name] for values in each])) for name in each[0]}


def panel(
    network: Network, split: Literal["train", "held_out"], classes: Sequence[int], *, with_bias: bool = False
) -> dict[str, np.ndarray]:
    """Return a panel of Figure 1: points [N, 2], labels [N] of 0, 1, 2 and templates [3, 2], 100 examples a class."""
    plane = geometry.template_plane(network.kernel, network.bias, classes, with_bias=with_bias)
    part: probe.Collected = getattr(network, split)
    rows = np.concatenate([np.flatnonzero(part.labels == label)[:_SHOWN] for label in classes])
    position = np.searchsorted(np.sort(classes), part.labels[rows])
    points = plane.project(part.penultimate[rows])
    return {"points": points, "labels": np.argsort(classes)[position], "templates": plane.templates}


def observe(network: probe.Probe, data: Dataset) -> dict[str, float]:
    """Return what Figure 6 follows through training: mutual information, tightness, γ, ECE and training accuracy.

    Training accuracy is that of up to 10,000 training examples without augmentation, by the labels trained on.
    Mutual information is between up to 300 training examples of each of the classes 0 and 5 (airplane and dog on
    CIFAR-10, as in the paper) and the difference of these two logits under augmentation, by 20 draws for the means and
    5 fresh ones; nothing is drawn where training images are not augmented.
    """
    datasets = _observed(data)
    train, other = (network.collect(datasets[split], limit=MOST_OBSERVED) for split in ("train", "held_out"))
    seen = {
        "tightness": plane_statistics(Network("", network.kernel, network.bias, train, other), "train")[
            "spread over distance of centres"
        ],
        "gamma": distillation.equivalent_smoothing(train.logits, train.labels),
        "train_accuracy": float((train.logits.argmax(axis=1) == train.labels).mean()),
        "held_out_ece": calibration.expected_calibration_error(other.logits, other.labels),
    }
    if "draws" not in datasets:
        return seen
    draws, fresh = (network.logit_differences(datasets[name], OBSERVED_PAIR) for name in ("draws", "fresh"))
    bracket = information.mutual_information(draws, fresh)
    return {
        **seen,
        "information": bracket.corrected,
        "information_low": bracket.lower_bound,
        "information_high": bracket.same_draws,
        "information_paper": information.mutual_information(draws[:, :5]).same_draws,
    }


def learnt(accuracy: float) -> str:
    """Return the name of the first observed moment with this training accuracy."""
    return f"training accuracy {accuracy:g}"


def information_at(steps: np.ndarray, values: np.ndarray, train_accuracy: np.ndarray) -> dict[str, float]:
    """Return mutual information at moments that do not depend on its values, and the steps to them, by name.

    The greatest of noisy values would always lie above the others, so the moments are the start, the first observed
    ones at which training accuracy is at least 0.95 and 0.999, and the end. What is never reached has no value: NaN.

    Args:
        steps: [P], ascending, those at which the network was observed.
        values: Mutual information [P], nats.
        train_accuracy: [P], as `observe` measures it.
    """
    found = {"information, start": values[0], "information, end": values[-1]}
    for accuracy in LEARNT:
        reached = np.flatnonzero(train_accuracy >= accuracy)
        step, value = (steps[reached[0]], values[reached[0]]) if len(reached) else (np.nan, np.nan)
        found[f"steps to {learnt(accuracy)}"] = step
        found[f"information, {learnt(accuracy)}"] = value
        found[f"information, fall from {learnt(accuracy)}"] = value - values[-1]
    return {name: float(value) for name, value in found.items()}


@functools.lru_cache(maxsize=1)
def _observed(data: Dataset) -> dict[str, Any]:
    """Build what `observe` reads: once for a network, and kept in memory, since building takes longer than reading."""
    batches = -(-MOST_OBSERVED // _BATCH)
    parts = {"train": "train", "held_out": held_out(data)}
    datasets = {name: data.evaluation(split, _BATCH).take(batches) for name, split in parts.items()}
    if getattr(data, "augmented", False):
        labels = data.labels("train")
        rows = np.concatenate([np.flatnonzero(labels == label)[:OBSERVED_EXAMPLES] for label in OBSERVED_PAIR])
        for name, number, seed in (("draws", 20, 0), ("fresh", 5, 1)):
            datasets[name] = data.draws(rows, number, seed=seed, batch_size=_BATCH)
    return {name: dataset.cache() for name, dataset in datasets.items()}


def _negative_log_likelihoods(logits: np.ndarray, labels: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    scaled = logits.astype(float) / np.reshape(temperature, (-1, 1))
    return special.logsumexp(scaled, axis=1) - np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
