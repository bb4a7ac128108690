"""Smoothed cross-entropy over a large vocabulary, forward and backward: time and peak memory.

    python benchmarks/losses.py

2,048 integer labels over 32,768 classes. Each contender runs in a process of its own for the peak memory, and
all take turns in one process for the times, so that a slow moment of the machine hits them alike. PyTorch is
shown if it is installed (`pip install -e '.[benchmarks]'`).
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ls_keras import losses

import keras
import numpy as np
import tensorflow as tf

TOKENS, CLASSES, ALPHA, ROUNDS = 2_048, 32_768, 0.1, 9


def contenders():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(TOKENS, CLASSES)).astype("float32")
    indices = generator.integers(0, CLASSES, TOKENS)
    logits, labels = tf.constant(values), tf.constant(indices, tf.int32)
    stock = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=ALPHA)
    ours = losses.SmoothedCrossentropy(ALPHA)

    def stock_step(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = stock(tf.one_hot(labels, CLASSES), z)
        return tape.gradient(loss, z)

    def our_step(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            loss = ours(labels, z)
        return tape.gradient(loss, z)

    steps = {}
    for name, step in (("keras CategoricalCrossentropy, one-hot", stock_step), ("ls_keras, integer labels", our_step)):
        for how, compiled in (("graph", False), ("XLA", True)):
            function = tf.function(step, jit_compile=compiled)
            steps[f"{name}, {how}"] = lambda f=function: f(logits)[0, 0].numpy()
    steps["one copy of the logits"] = lambda: tf.identity(logits + 0.0)[0, 0].numpy()
    if importlib.util.find_spec("torch"):
        import torch

        z, y = torch.tensor(values, requires_grad=True), torch.tensor(indices)

        def torch_step():
            z.grad = None
            torch.nn.functional.cross_entropy(z, y, label_smoothing=ALPHA).backward()

        steps["PyTorch cross_entropy, integer labels, eager"] = torch_step
    return steps


def peak_memory(name):
    """Print how far the process's resident memory rises above that with the inputs in place, in MiB (Linux).

    The first step counts: later ones reuse memory that the allocator has kept.
    """
    step = contenders()[name]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step()
    print(json.dumps(resident("VmHWM") - before))


def resident(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main():
    steps = contenders()
    times = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    baseline = next(iter(steps))
    memory = {}
    for name in steps:
        output = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True).stdout
        memory[name] = json.loads(output.splitlines()[-1])
    print(f"{TOKENS} x {CLASSES}, forward and backward, median of {ROUNDS}; memory beyond the logits themselves")
    print(f"{'':48}{'ms':>8}{'ratio':>8}{'MiB':>8}{'ratio':>8}")
    for name in steps:
        ratio = statistics.median(a / b for a, b in zip(times[name], times[baseline], strict=True))
        print(
            f"{name:48}{1e3 * statistics.median(times[name]):8.0f}{ratio:8.2f}"
            f"{memory[name]:8.0f}{memory[name] / memory[baseline]:8.2f}"
        )


if __name__ == "__main__":
    peak_memory(sys.argv[1]) if len(sys.argv) > 1 else main()
