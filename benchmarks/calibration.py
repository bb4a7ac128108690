"""Calibration error and temperature of 50,000 x 1,000 float32 logits, beside torchmetrics, netcal and L-BFGS.

    pip install -e '.[benchmarks]' && python benchmarks/calibration.py

netcal is compared where it is installed (`pip install netcal`). Everything is measured in one run, on the same
arrays, in alternation; the table gives medians. "ratio" is a peer's time over ours: above 1, ours is faster.
"""

import argparse
import importlib
import statistics
import time

from ls_keras.analysis import calibration

import numpy as np


def optional(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: left out ({error})")
        return None


def over_confident(num_examples, num_classes, seed=0):
    """Logits twice as large as those that the labels were drawn from, so T = 2 is right."""
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((num_examples, num_classes), dtype=np.float32)
    logits[np.arange(num_examples), generator.integers(num_classes, size=num_examples)] += 9
    labels = np.empty(num_examples, int)
    for start in range(0, num_examples, 1000):
        block = logits[start : start + 1000]
        labels[start : start + 1000] = (block + generator.gumbel(size=block.shape)).argmax(axis=1)
    return 2 * logits, labels


def lbfgs_temperature(torch, logits, labels, steps=50):
    """As gpleiss/temperature_scaling: one parameter from 1.5, L-BFGS at rate .01, at most `steps` iterations."""
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    temperature = torch.nn.Parameter(torch.ones(1) * 1.5)
    optimizer = torch.optim.LBFGS([temperature], lr=0.01, max_iter=steps)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / temperature, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return temperature.item()


def torchmetrics_error(torch, functional, logits, labels):
    probabilities = torch.from_numpy(logits).softmax(dim=1)
    return functional.multiclass_calibration_error(
        probabilities, torch.from_numpy(labels), num_classes=logits.shape[1], n_bins=15, norm="l1"
    ).item()


def netcal_error(netcal, torch, logits, labels):
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
    return netcal.ECE(15).measure(probabilities, labels)


def medians(contestants, repeats):
    """Runs each contestant in turn, `repeats` times over; returns its median seconds and its last value."""
    seconds, values = {name: [] for name in contestants}, {}
    for _ in range(repeats):
        for name, function in contestants.items():
            start = time.perf_counter()
            values[name] = function()
            seconds[name].append(time.perf_counter() - start)
    return {name: (statistics.median(taken), values[name]) for name, taken in seconds.items()}


def report(title, results):
    ours = next(iter(results.values()))[0]
    print(f"\n{title:48}{'seconds':>9}{'ratio':>8}{'value':>12}")
    for name, (seconds, value) in results.items():
        print(f"{name:48}{seconds:9.3f}{seconds / ours:8.2f}{value:12.6f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch, functional, netcal = map(optional, ("torch", "torchmetrics.functional.classification", "netcal.metrics"))
    logits, labels = over_confident(arguments.examples, arguments.classes)
    print(f"{arguments.examples:,} x {arguments.classes:,} logits, median of {arguments.repeats} runs")

    errors = {"ls_keras": lambda: calibration.expected_calibration_error(logits, labels)}
    if torch and functional:
        errors["torchmetrics"] = lambda: torchmetrics_error(torch, functional, logits, labels)
    if torch and netcal:
        errors["netcal"] = lambda: netcal_error(netcal, torch, logits, labels)
    report("ECE, 15 bins, from logits", medians(errors, arguments.repeats))

    fits = {"ls_keras": lambda: calibration.fit_temperature(logits, labels).temperature}
    if torch:
        fits["torch L-BFGS, rate .01, 50 steps"] = lambda: lbfgs_temperature(torch, logits, labels)
    report("Temperature", medians(fits, arguments.repeats))

    confidence, correct = calibration.top_label(logits, labels)
    beside = {
        "interval of ECE": lambda: calibration.calibration_interval(logits, labels).high,
        "interval of ECE from top labels": lambda: calibration.top_label_interval(confidence, correct).high,
        "adaptive ECE": lambda: calibration.adaptive_calibration_error(logits, labels),
        "cross-fitted temperatures": lambda: calibration.cross_fitted(logits, labels).fits[0].temperature,
    }
    report("Beside them (ratio to the first)", medians(beside, 3))


if __name__ == "__main__":
    main()
