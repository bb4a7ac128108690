"""Time of one training step on the CPU: our networks, the same in stock Keras layers, the same in PyTorch.

    pip install -e '.[benchmarks]' && python benchmarks/training_step.py

A step is forward, backward and a Nesterov update on one fixed batch of 128 images of 32×32×3, through
`train_on_batch` for Keras. Variants take turns, so that whatever else the machine does hits all alike; the
table shows medians and their ratio to stock Keras in float32, graph mode. Where TensorFlow sees no accelerator,
Keras's `compile()` leaves XLA off by default, and its row repeats the first one: a measure of the noise.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import ls_keras  # noqa: F401  (silences TensorFlow's start-up log)
from ls_keras import models
from ls_keras.models.layers import BatchNormalization, LocalResponseNormalization

import keras
import numpy as np
import tensorflow as tf

try:
    import torch
    from torch import nn
except ImportError:
    torch = None

BATCH, SHAPE, CLASSES = 128, (32, 32, 3), 10
BASE = "stock Keras, float32, graph"
BUILDERS = {"resnet": models.resnet, "alexnet": models.alexnet}


class TensorFlowLRN(keras.layers.Layer):
    """TensorFlow's own kernel, as one would write the network without ours; it has none for bfloat16."""

    def call(self, inputs):
        outputs = tf.nn.local_response_normalization(tf.cast(inputs, "float32"), 4, 1.0, 0.001 / 9, 0.75)
        return tf.cast(outputs, inputs.dtype)


def stock(layer):
    """The layer that stock Keras offers in place of ours."""
    if isinstance(layer, BatchNormalization):
        return keras.layers.BatchNormalization.from_config(layer.get_config())
    if isinstance(layer, LocalResponseNormalization):
        return TensorFlowLRN(name=layer.name)
    return layer.__class__.from_config(layer.get_config())


def keras_step(network, batch, *, ours, policy, jit_compile) -> Callable[[], float]:
    keras.config.set_dtype_policy(policy)
    model = BUILDERS[network](SHAPE, CLASSES, seed=0)
    if not ours:
        model = keras.models.clone_model(model, clone_function=stock)
    model.compile(
        keras.optimizers.SGD(0.001, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    keras.config.set_dtype_policy("float32")
    x, y = (tf.constant(array) for array in batch)
    return lambda: float(model.train_on_batch(x, y))


def torch_alexnet():
    class LRN(nn.LocalResponseNorm):
        def __init__(self):
            super().__init__(size=9, alpha=0.001, beta=0.75, k=1.0)  # PyTorch divides the sum by 9

    def pool():
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2))  # "same"; ReLU makes 0 neutral

    return nn.Sequential(
        *(nn.Conv2d(3, 64, 5, padding=2), nn.ReLU(), pool(), LRN()),
        *(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), LRN(), pool()),
        *(nn.Flatten(), nn.Linear(4096, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU()),
        nn.Linear(192, CLASSES),
    )


def torch_resnet():
    class Block(nn.Module):
        def __init__(self, inside, width, stride, first):
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(width)
            self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
            self.shortcut = None
            if first:
                shortcut = nn.Conv2d(inside, width, 1, stride, bias=False)
                self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(width))

        def forward(self, x):
            h = nn.functional.relu(self.norm1(x))
            x = self.shortcut(h) if self.shortcut else x
            return x + self.conv2(nn.functional.relu(self.norm2(self.conv1(h))))

    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inside = 16
    for width, stride in ((32, 1), (64, 2), (128, 2)):
        for index in range(9):
            layers.append(Block(inside, width, stride if index == 0 else 1, index == 0))
            inside = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES))


def torch_step(network, batch) -> Callable[[], float]:
    torch.set_num_threads(os.cpu_count())
    model = {"resnet": torch_resnet, "alexnet": torch_alexnet}[network]()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, nesterov=True)
    x = torch.from_numpy(batch[0].transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
    y = torch.from_numpy(batch[1].astype("int64"))
    parameters = sum(p.numel() for p in model.parameters())
    expected = sum(w.numpy().size for w in BUILDERS[network](SHAPE, CLASSES).trainable_weights)
    if parameters != expected:
        raise RuntimeError(f"the PyTorch {network} has {parameters} parameters, ours {expected}")

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def variants(network, batch, *, xla) -> dict[str, Callable[[], float]]:
    def step(**options):
        return keras_step(network, batch, **options)

    steps = {
        BASE: step(ours=False, policy="float32", jit_compile=False),
        "stock Keras, compile() defaults": step(ours=False, policy="float32", jit_compile="auto"),
        "stock Keras, mixed_bfloat16, graph": step(ours=False, policy="mixed_bfloat16", jit_compile=False),
        "ours, float32, graph": step(ours=True, policy="float32", jit_compile=False),
        "ours, mixed_bfloat16, graph": step(ours=True, policy="mixed_bfloat16", jit_compile=False),
    }
    if xla:
        steps["stock Keras, float32, XLA"] = step(ours=False, policy="float32", jit_compile=True)
        steps["ours, mixed_bfloat16, XLA"] = step(ours=True, policy="mixed_bfloat16", jit_compile=True)
    if torch:
        steps["PyTorch eager, bfloat16 autocast"] = torch_step(network, batch)
    return steps


def measure(steps, repeats, warm_up=2) -> dict[str, list[float]]:
    for step in steps.values():
        for _ in range(warm_up):
            step()
    seconds = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            step()  # brings its own weights and kernels back into the caches
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=[*BUILDERS], nargs="+", default=[*BUILDERS])
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each variant")
    parser.add_argument("--xla", action="store_true", help="also measure XLA, which takes minutes to compile")
    arguments = parser.parse_args()

    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    versions += f", PyTorch {torch.__version__}" if torch else ", PyTorch not installed"
    print(f"{processor()}, {os.cpu_count()} cores; {versions}; batch {BATCH}, {SHAPE}")
    draw = np.random.default_rng(0)
    batch = (
        draw.standard_normal((BATCH, *SHAPE), dtype="float32"),
        draw.integers(CLASSES, size=BATCH).astype("int32"),
    )
    print(f"\n{'network':9}{'variant':37}{'median ms':>10}{'min ms':>9}{'ratio':>7}")
    for network in arguments.network:
        seconds = measure(variants(network, batch, xla=arguments.xla), arguments.repeats)
        base = statistics.median(seconds[BASE])
        for name, times in seconds.items():
            median = statistics.median(times)
            print(f"{network:9}{name:37}{1e3 * median:10.0f}{1e3 * min(times):9.0f}{median / base:7.2f}")


if __name__ == "__main__":
    main()
