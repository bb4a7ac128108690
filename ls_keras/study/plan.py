"""What a study would train, on which data and for how long, before it does."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ls_keras.data import SHAPES
from ls_keras.experiment import Recipe, Where
from ls_keras.study.driver import Arm, Study, networks

import numpy as np
import tensorflow as tf

# Steps that are timed, after one that traces.
_TIMED = 3


def planned(study: Study, folder: Path, where: Where, title: str) -> tuple[str, float]:
    """Return a table of what would be trained, and its hours: networks that are not finished, seconds of one.

    Seconds are those of finished networks, or those of a few training steps on this machine times their number, on
    images made up of noise and without reading any (of other data, on their first batch).
    """
    lines = [f"{title}: {study.name} of {', '.join(sorted({arm.recipe.name for arm in study.arms}))}"]
    lines += _data_lines(study, where)
    lines.append(f"  {'networks':<50}{'missing':>8}{'s each':>10}{'hours':>8}")
    known: dict[str, float] = {}
    total = 0.0
    for arm, missing, seconds in networks(study, folder, where):
        each = seconds if math.isfinite(seconds) else _measured(arm, known, where)
        total += missing * each
        lines.append(f"  {arm.name:<50}{missing:>8}{each:>10.0f}{missing * each / 3600:>8.1f}")
    text = "\n".join([*lines, f"  {'one after the other, on ' + _device():<68}{total / 3600:>8.1f}"])
    return text, total / 3600


def _data_lines(study: Study, where: Where) -> list[str]:
    lines = {}
    for arm in study.arms:
        config = arm.make.config
        name = getattr(config, "dataset", arm.recipe.name)
        if name in lines:
            continue
        try:
            data = arm.recipe.load_data(config, where.data_dir)
            lines[name] = f"  data: {name} from {getattr(data, 'origin', 'its recipe')}, {data.num_train:,} to train on"
        except (OSError, ValueError) as problem:
            lines[name] = f"  missing here: {problem}"
    return list(lines.values())


def _measured(arm: Arm, known: dict[str, float], where: Where) -> float:
    """Return the seconds of a network's steps; α, seeds and teachers hardly change them."""
    plain = {"seed": 0, "alpha": 0.0, "teacher": None, "observe_every": 0}
    fields = {name: value for name, value in plain.items() if hasattr(arm.make.config, name)}
    config = dataclasses.replace(arm.make.config, **fields)
    key = f"{arm.recipe.name} {config}"
    if key not in known:
        known[key] = _step_seconds(arm.recipe, config, where) * config.steps
    return known[key]


def _step_seconds(recipe: Recipe, config: Any, where: Where) -> float:
    shape = SHAPES.get(getattr(config, "dataset", ""))
    if shape is None:
        data = recipe.load_data(config, where.data_dir)
        batch = next(iter(data.train(config.batch_size, seed=0)))
    else:
        *input_shape, num_classes = shape
        data = SimpleNamespace(name="noise", input_shape=tuple(input_shape), num_classes=num_classes, num_train=1)
        generator = np.random.default_rng(0)
        x = tf.constant(generator.normal(size=(config.batch_size, *input_shape)).astype("float32"))
        batch = (x, tf.constant(generator.integers(num_classes, size=config.batch_size)))
    model = recipe.build_model(config, data)
    seconds = []
    for _ in range(1 + _TIMED):
        started = time.perf_counter()
        model.train_on_batch(*batch)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def _device() -> str:
    accelerators = [device for device in tf.config.list_physical_devices() if device.device_type != "CPU"]
    return f"one {accelerators[0].device_type}" if accelerators else "the cores of this machine"
