"""What is observed during training is what an analysis of the kept snapshot finds, and Figure 6 is drawn from it."""

import dataclasses
import functools

from ls_keras import experiment, study
from ls_keras.analysis import Probe
from ls_keras.study import driver
from ls_keras_recipes import mnist_mlp

import numpy as np
import pytest


@pytest.fixture(scope="module")
def observed(tmp_path_factory):
    where = experiment.Where(workdir=tmp_path_factory.mktemp("observed"), snapshots=True, quiet=True)
    return mnist_mlp.RECIPE.run(mnist_mlp.SIZES["smoke"], size="smoke", where=where)


@pytest.mark.parametrize("step", [0, 30, 60])
def test_history_equals_the_analysis_of_the_snapshot(observed, step):
    data = mnist_mlp.load_data(mnist_mlp.SIZES["smoke"])
    expected = study.observe(Probe(observed.folder / "snapshots" / f"step-{step:06d}"), data)
    history = observed.history()
    (row,) = np.flatnonzero(history["step"] == step)
    assert expected.keys() <= history.keys()
    assert "information" in expected
    for name, value in expected.items():
        assert history[name][row] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_the_last_snapshot_is_the_exported_network(observed):
    last, exported = Probe(observed.folder / "snapshots" / "step-000060"), Probe(observed.saved_model)
    np.testing.assert_array_equal(last.kernel, exported.kernel)


def test_observing_does_not_change_the_training(observed, tmp_path):
    config = dataclasses.replace(mnist_mlp.SIZES["smoke"], observe_every=0)
    alone = mnist_mlp.RECIPE.run(config, size="smoke", where=experiment.Where(workdir=tmp_path, quiet=True))
    np.testing.assert_array_equal(Probe(alone.saved_model).kernel, Probe(observed.saved_model).kernel)
    assert "information" not in alone.history()


def test_figure_6_reads_the_observed_steps(observed):
    curves, history = driver._curves(observed), observed.history()
    np.testing.assert_array_equal(curves["steps"], [0, 30, 60])
    for name in ("information", "information_low", "information_high", "information_paper", "tightness"):
        np.testing.assert_array_equal(curves[name], history[name][np.isin(history["step"], [0, 30, 60])])


def test_several_networks_at_a_time_equal_one_after_the_other(tmp_path):
    base = dataclasses.replace(mnist_mlp.SIZES["smoke"], observe_every=0, steps=4, evaluate_every=2)
    configs = [dataclasses.replace(base, seed=seed) for seed in (0, 1, 2)]
    together = experiment.Where(workdir=tmp_path / "together", quiet=True)
    work = functools.partial(mnist_mlp.RECIPE.run, size="smoke", where=together)
    jobs = [experiment.Job(config.seed, functools.partial(work, config)) for config in configs]
    found = dict(experiment.finish(jobs, together, what="networks"))
    runs = [found[config.seed] for config in configs]
    for config, run in zip(configs, runs, strict=True):
        alone = mnist_mlp.RECIPE.run(
            config, size="smoke", where=dataclasses.replace(together, workdir=tmp_path / "alone")
        )
        assert alone.folder.name == run.folder.name
        np.testing.assert_allclose(Probe(alone.saved_model).kernel, Probe(run.saved_model).kernel, atol=1e-6)
