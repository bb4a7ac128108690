"""Networks that differ in their seed alone run one traced program, and are what they would be by themselves."""

import dataclasses

from ls_keras import artifact, distribution, experiment, losses, metrics, models
from ls_keras.experiment import run as running
from ls_keras_recipes import cifar10_alexnet, mnist_mlp

import keras
import pytest
import tensorflow as tf
import tiny_recipe

MLP = dataclasses.replace(mnist_mlp.SIZES["smoke"], dropout=0.3, max_norm=2.0, observe_every=0)


def result(run):
    return artifact.digest(run.saved_model), (run.folder / "history.csv").read_bytes()


@pytest.mark.parametrize(("recipe", "config"), [(mnist_mlp.RECIPE, MLP), (cifar10_alexnet.RECIPE, None)])
def test_a_second_seed_ends_in_the_bytes_of_a_fresh_program(recipe, config, tmp_path):
    config = config or recipe.sizes["smoke"]
    together, alone = (experiment.Where(workdir=tmp_path / name, quiet=True) for name in ("together", "alone"))
    running._traced.clear()
    recipe.run(config, size="smoke", where=together)
    (before,) = running._traced
    second = recipe.run(dataclasses.replace(config, seed=1), size="smoke", where=together)
    assert running._traced == [before]
    running._traced.clear()
    assert result(second) == result(recipe.run(dataclasses.replace(config, seed=1), size="smoke", where=alone))


def test_a_gradient_goes_through_what_a_second_seed_exported(tmp_path):
    where = experiment.Where(workdir=tmp_path, quiet=True)
    for seed in (0, 1):
        config = dataclasses.replace(cifar10_alexnet.SIZES["smoke"], seed=seed)
        run = cifar10_alexnet.RECIPE.run(config, size="smoke", where=where)
    assert has_gradient(run.saved_model)


def has_gradient(saved_model):
    network, x = tf.saved_model.load(str(saved_model)), tf.ones((2, 8, 8, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(network.serve(x) ** 2)
    return float(tf.reduce_max(tf.abs(tape.gradient(total, x)))) > 0


def test_snapshots_change_nothing_and_are_whole(tmp_path):
    config = dataclasses.replace(cifar10_alexnet.SIZES["smoke"], observe_every=2)
    runs = [
        cifar10_alexnet.RECIPE.run(
            config,
            size="smoke",
            where=experiment.Where(workdir=tmp_path / str(snapshots), quiet=True, snapshots=snapshots),
        )
        for snapshots in (False, True)
    ]
    assert artifact.digest(runs[0].saved_model) == artifact.digest(runs[1].saved_model)
    found = sorted((runs[1].folder / "snapshots").iterdir())
    assert [path.name for path in found] == ["step-000000", "step-000002", "step-000004"]
    assert all(map(has_gradient, [*found, runs[1].saved_model]))
    assert artifact.digest(found[-1]) == artifact.digest(runs[1].saved_model)


def closure(alpha):
    def build_model(config, images):
        network = models.mlp(images.input_shape, images.num_classes, units=config.units, seed=config.seed)
        model = distribution.Model(network.input, network.output)
        loss = losses.SmoothedCrossentropy(alpha)
        model.compile(keras.optimizers.SGD(0.1), loss, weighted_metrics=metrics.classification())
        return model

    return experiment.Recipe("closure", tiny_recipe.SIZES, tiny_recipe.load_data, build_model, one_program=True)


def test_another_function_builds_another_program(tmp_path):
    found = []
    for at, alpha in enumerate((0.0, 0.6)):  # whose closures may get one id after the other
        where = experiment.Where(workdir=tmp_path / str(at), quiet=True)
        found.append(result(closure(alpha).run(tiny_recipe.Config(), size="small", where=where)))
    assert found[0] != found[1]
