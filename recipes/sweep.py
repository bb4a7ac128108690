"""Sweeps over any recipe: a grid, random, Bayesian or Hyperband search, and what of it can be told apart.

    python recipes/sweep.py mnist_mlp digits --over alpha=0,0.05,0.1,0.3 --over learning_rate=0.25,0.5,1 --seeds 5
    python recipes/sweep.py mnist_mlp digits --over units=50x50 --over match=probabilities --over beta=1 \\
        --teacher-over alpha=0,0.1 --over temperature=1,2,4
    python recipes/sweep.py mnist_mlp digits --over alpha=0:0.6 --over learning_rate=0.1:2:log --algorithm bayesian

Points are chosen on held-out examples, and their numbers are those of test examples too. A field with one value is
fixed. The temperature of a network without a teacher is fitted, never swept. Several processes or machines sweep
together as KerasTuner's chief and workers: the same command for each, with KERASTUNER_ORACLE_IP,
KERASTUNER_ORACLE_PORT and a KERASTUNER_TUNER_ID of its own, one of them `chief`, and one --workdir that they share.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from ls_keras import experiment, sweeps
from ls_keras_recipes import named

import tyro

_Fields = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FIELD=VALUE,…")]


@dataclass(frozen=True)
class Config:
    """What is swept."""

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """a recipe of this folder, or module:NAME of any `experiment.Recipe`"""
    size: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="SIZE")] = None
    """its size, whose fields networks have where nothing else is said; None is the paper's"""
    over: _Fields = ()
    """a field and its values: alpha=0,0.1 or units=50x50,100x100 or a range, alpha=0:0.6 or learning_rate=0.01:1:log"""
    teacher_over: _Fields = ()
    """the same of teachers: the networks are then students, of one teacher for each of its points and each seed"""
    teacher_recipe: str | None = None
    """recipe of the teachers; None is the students'"""
    teacher_size: str | None = None
    """size of the teachers; None is the students'"""
    seeds: int = 5
    """networks of each point"""
    algorithm: Literal["grid", "random", "bayesian", "hyperband"] = "grid"
    """all points; as many as --trials at random, or where the last ones point to; many a little, the better ones on"""
    trials: int | None = None
    """the most points of random and Bayesian search; None is 20"""
    objective: str = "nll"
    """on held-out examples: nll (of hard labels), accuracy, ece (bias-reduced), or nll_at_temperature"""
    search_seed: int = 0
    """of what the search itself draws"""
    name: str | None = None
    """folder below <workdir>/sweep/<recipe>/; None is made of size, fields and a digest of all options"""


def run(config: Config, where: experiment.Where) -> sweeps.Swept | None:
    """Sweep, print the table, and say which points failed."""
    students = sweeps.parse(config.teacher_over, "--teacher-over") if config.teacher_over else None
    found = sweeps.sweep(
        named(config.recipe),
        over=sweeps.parse(config.over, "--over"),
        seeds=config.seeds,
        size=config.size,
        teacher_over=students,
        teacher_recipe=named(config.teacher_recipe) if config.teacher_recipe else None,
        teacher_size=config.teacher_size,
        algorithm=config.algorithm,
        objective=config.objective,
        trials=config.trials,
        search_seed=config.search_seed,
        name=config.name,
        where=where,
    )
    if found is not None and not where.quiet:
        print(found, end="\n\n")
        written = ("table.md", "table.csv", "records.json", "sweep.png")
        print(f"{found.folder}: {', '.join(name for name in written if (found.folder / name).exists())}")
    return found


@dataclass(frozen=True)
class Command:
    """What is swept, and where."""

    config: tyro.conf.OmitArgPrefixes[Config]
    where: tyro.conf.OmitArgPrefixes[experiment.Where]


if __name__ == "__main__":
    given = tyro.cli(Command, prog=experiment.program(), description=__doc__)
    with experiment.messages(given.where.traceback):
        swept = run(given.config, given.where)
        if swept is not None and swept.failed:
            sys.exit(f"error: {len(swept.failed)} of {len(swept.rows)} points failed:\n{swept.failures()}")
