"""Smoothed cross-entropy over a large vocabulary, forward and backward: time and peak memory.

    pip install -e '.[benchmarks]' && python benchmarks/losses.py

2,048 integer labels over 32,768 classes; a step gives the loss and its gradient. "graph" is what Keras's `compile()`
does by default on a CPU. Each contender runs in a process of its own, and they take turns. Memory is how far the
first step lifts the process's resident memory above that with the logits in place.
"""

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import turns

TOKENS, CLASSES, ALPHA, ROUNDS = 2_048, 32_768, 0.1, 9


def arrays():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(TOKENS, CLASSES)).astype("float32")
    return logits, generator.integers(0, CLASSES, TOKENS).astype("int32")


def keras_step(*, ours, compiled):
    from ls_keras import losses

    import keras
    import tensorflow as tf

    logits, labels = map(tf.constant, arrays())
    stock = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=ALPHA)
    loss = losses.SmoothedCrossentropy(ALPHA) if ours else lambda y, z: stock(tf.one_hot(y, CLASSES), z)

    @tf.function(jit_compile=compiled)
    def step(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            value = loss(labels, z)
        return value, tape.gradient(value, z)

    return with_peak(lambda: float(step(logits)[0]))


def copying():
    from ls_keras import losses  # noqa: F401  (the same libraries in memory)

    import tensorflow as tf

    logits = tf.constant(arrays()[0])
    return with_peak(lambda: float(tf.identity(logits + 0.0)[0, 0]))


def torch_step():
    import torch

    logits, labels = arrays()
    z, y = torch.tensor(logits, requires_grad=True), torch.tensor(labels.astype("int64"))

    def step():
        z.grad = None
        value = torch.nn.functional.cross_entropy(z, y, label_smoothing=ALPHA)
        value.backward()
        return value.item()

    return with_peak(step)


def with_peak(step: Callable[[], float]) -> tuple[Callable[[], float], float]:
    """Return the step and what the first one adds to the peak of memory, in MiB (Linux); later ones reuse it."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    step()
    return step, resident("VmHWM") - before


def resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def contenders():
    found = {
        f"{name}, {how}": (keras_step, {"ours": ours, "compiled": compiled})
        for name, ours in (("keras CategoricalCrossentropy, one-hot", False), ("ls_keras, integer labels", True))
        for how, compiled in (("graph", False), ("XLA", True))
    }
    found["one copy of the logits"] = copying, {}
    if importlib.util.find_spec("torch"):
        found["PyTorch cross_entropy, integer labels, eager"] = torch_step, {}
    return found


def main() -> None:
    seconds, memory = turns.measure(contenders(), ROUNDS)
    base = next(iter(seconds))
    print(f"{turns.machine()}; {TOKENS} x {CLASSES}, forward and backward, median of {ROUNDS}")
    print(f"{'':48}{'ms':>8}{'ratio':>8}{'MiB':>8}{'ratio':>8}")
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[base], strict=True))
        print(
            f"{name:48}{1e3 * statistics.median(times):8.0f}{ratio:8.2f}{memory[name]:8.0f}"
            f"{memory[name] / memory[base]:8.2f}"
        )


if __name__ == "__main__":
    main()
