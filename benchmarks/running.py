"""What a run costs beside its training steps: steps per second against a bare `fit`, and checkpoints.

    python benchmarks/running.py

Steps are those of the smallest network (32-32 on 200 digits, batches of 50), in seconds of a long run less those of a
short one, so that start-up and export cancel; bare is `keras.Model.fit` with the same data and `steps_per_execution`.
Checkpoints are the whole state of the paper's networks, each flushed to the disk.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

from ls_keras import distribution, experiment, metrics
from ls_keras.experiment.folder import Checkpoint, Checkpoints
from ls_keras_recipes import cifar10_alexnet, cifar100_resnet56, mnist_mlp

import keras

SHORT, LONG, REPEATS = 2_000, 22_000, 3
SMALL = dataclasses.replace(mnist_mlp.SIZES["smoke"], observe_every=0, held_out_size=100)


def main():
    ours = min(per_step(a_run) for _ in range(REPEATS))
    bare = min(per_step(bare_fit) for _ in range(REPEATS))
    print(f"steps per second: {1 / ours:,.0f} in a run, {1 / bare:,.0f} by a bare fit; ratio {bare / ours:.3f}")
    for recipe in (mnist_mlp.RECIPE, cifar10_alexnet.RECIPE, cifar100_resnet56.RECIPE):
        write, read, size = checkpoint(recipe)
        print(f"checkpoint of {recipe.name}: {size / 2**20:.1f} MiB, written in {write:.2f} s, read in {read:.2f} s")


def per_step(job):
    return (job(LONG) - job(SHORT)) / (LONG - SHORT)


def a_run(steps):
    config = dataclasses.replace(SMALL, steps=steps, evaluate_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        mnist_mlp.RECIPE.run(config, size="smoke", where=experiment.Where(workdir=Path(folder), quiet=True))
        return time.perf_counter() - started


def bare_fit(steps):
    config = dataclasses.replace(SMALL, steps=steps)
    images = mnist_mlp.load_data(config)
    built = mnist_mlp.build_model(config, images)
    model = keras.Model(built.input, built.output)
    model.compile(built.optimizer, built.loss, weighted_metrics=metrics.classification(), steps_per_execution=50)
    started = time.perf_counter()
    model.fit(images.train(config.batch_size, seed=0), steps_per_epoch=steps, epochs=1, verbose=0)
    return time.perf_counter() - started


def checkpoint(recipe):
    class Data:
        input_shape, num_classes = ((28, 28, 1), 10) if recipe is mnist_mlp.RECIPE else ((32, 32, 3), 100)

    model = recipe.build_model(recipe.sizes["paper"], Data)
    model.optimizer.build(model.trainable_variables)
    state = distribution.get_state(model)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), keep=2)
        started = time.perf_counter()
        checkpoints.save(Checkpoint(1, [], state, []))
        written = time.perf_counter()
        distribution.set_state(model, checkpoints.latest().state)
        return written - started, time.perf_counter() - written, checkpoints.paths()[0].stat().st_size


if __name__ == "__main__":
    main()
