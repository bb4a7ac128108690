"""Time of one training step on the CPU: our networks, the same in stock Keras layers, the same in PyTorch.

    pip install -e '.[benchmarks]' && python benchmarks/training_step.py

A step is forward, backward and a Nesterov update on one fixed batch of 128 images of 32×32×3, through
`train_on_batch` for Keras. Each variant lives in a process of its own (TensorFlow and PyTorch do not always bear
each other in one), and they take turns, one step at a time, so that whatever else the machine does hits all alike;
the table shows medians and their ratio to stock Keras in float32, graph mode. Where TensorFlow sees no accelerator,
Keras's `compile()` leaves XLA off by default, and its row repeats the first one: a measure of the noise.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import statistics
from collections.abc import Callable

import numpy as np
import turns

# Neither TensorFlow nor PyTorch is imported here: every process begins by importing this file.

BATCH, SHAPE, CLASSES = 128, (32, 32, 3), 10
NETWORKS = ("resnet", "alexnet")
BASE = "stock Keras, float32, graph"

Step = tuple[Callable[[], float], int]
"""A function that takes a step and returns the loss, and the network's number of parameters."""


def batch():
    draw = np.random.default_rng(0)
    images = draw.standard_normal((BATCH, *SHAPE), dtype="float32")
    return images, draw.integers(CLASSES, size=BATCH).astype("int32")


def keras_step(network, *, ours, policy, jit_compile) -> Step:
    from ls_keras import models

    import keras
    import tensorflow as tf

    keras.config.set_dtype_policy(policy)
    model = getattr(models, network)(SHAPE, CLASSES, seed=0)
    if not ours:
        model = keras.models.clone_model(model, clone_function=stock)
    model.compile(
        keras.optimizers.SGD(0.001, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    x, y = (tf.constant(array) for array in batch())
    return lambda: float(model.train_on_batch(x, y)), sum(w.numpy().size for w in model.trainable_weights)


def stock(layer):
    """The layer that stock Keras offers in place of ours."""
    from ls_keras.models.layers import BatchNormalization, LocalResponseNormalization

    import keras
    import tensorflow as tf

    class TensorFlowLRN(keras.layers.Layer):
        """TensorFlow's own kernel, as one would write the network without ours; it has none for bfloat16."""

        def call(self, inputs):
            outputs = tf.nn.local_response_normalization(tf.cast(inputs, "float32"), 4, 1.0, 0.001 / 9, 0.75)
            return tf.cast(outputs, inputs.dtype)

    if isinstance(layer, BatchNormalization):
        return keras.layers.BatchNormalization.from_config(layer.get_config())
    if isinstance(layer, LocalResponseNormalization):
        return TensorFlowLRN(name=layer.name)
    return layer.__class__.from_config(layer.get_config())


def torch_alexnet():
    from torch import nn

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
    from torch import nn

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


def torch_step(network) -> Step:
    import torch

    torch.set_num_threads(os.cpu_count())
    model = {"resnet": torch_resnet, "alexnet": torch_alexnet}[network]()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.001, momentum=0.9, nesterov=True)
    images, labels = batch()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
    y = torch.from_numpy(labels.astype("int64"))

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = torch.nn.functional.cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in model.parameters())


def variants(*, xla) -> dict[str, tuple[Callable[..., Step], dict]]:
    def keras_variant(ours, policy, jit_compile):
        return keras_step, {"ours": ours, "policy": policy, "jit_compile": jit_compile}

    found = {
        BASE: keras_variant(False, "float32", False),
        "stock Keras, compile() defaults": keras_variant(False, "float32", "auto"),
        "stock Keras, mixed_bfloat16, graph": keras_variant(False, "mixed_bfloat16", False),
        "ours, float32, graph": keras_variant(True, "float32", False),
        "ours, mixed_bfloat16, graph": keras_variant(True, "mixed_bfloat16", False),
    }
    if xla:
        found["stock Keras, float32, XLA"] = keras_variant(False, "float32", True)
        found["ours, mixed_bfloat16, XLA"] = keras_variant(True, "mixed_bfloat16", True)
    if importlib.util.find_spec("torch"):
        found["PyTorch eager, bfloat16 autocast"] = torch_step, {}
    return found


def measure(network, repeats, *, xla) -> dict[str, list[float]]:
    contenders = {name: (make, {"network": network, **options}) for name, (make, options) in variants(xla=xla).items()}
    seconds, sizes = turns.measure(contenders, repeats)
    if len(set(sizes.values())) > 1:
        raise RuntimeError(f"these are not the same {network}; numbers of parameters: {sizes}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=NETWORKS)
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each variant")
    parser.add_argument("--xla", action="store_true", help="also measure XLA, which takes minutes to compile")
    arguments = parser.parse_args()

    peers = [("Keras", "keras"), ("TensorFlow", "tensorflow"), ("PyTorch", "torch")]
    versions = [
        f"{name} {importlib.metadata.version(package)}" for name, package in peers if importlib.util.find_spec(package)
    ]
    print(f"{turns.machine()}; {', '.join(versions)}; batch {BATCH}, {SHAPE}")
    print(f"\n{'network':9}{'variant':37}{'median ms':>10}{'min ms':>9}{'ratio':>7}")
    for network in arguments.network:
        seconds = measure(network, arguments.repeats, xla=arguments.xla)
        base = statistics.median(seconds[BASE])
        for name, times in seconds.items():
            median = statistics.median(times)
            print(f"{network:9}{name:37}{1e3 * median:10.0f}{1e3 * min(times):9.0f}{median / base:7.2f}", flush=True)


if __name__ == "__main__":
    main()
