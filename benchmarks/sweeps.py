"""What a sweep costs beside its trainings, and whether its thousandth point costs what its first did.

python benchmarks/sweeps.py trials      # seconds a trial beside the recipe called in a loop, in one process
python benchmarks/sweeps.py main        # 90 networks on digits beside a study of the same networks
python benchmarks/sweeps.py thousand    # time, memory and names over 1,000 points of a few steps
"""

import dataclasses
import itertools
import os
import sys
import tempfile
import time
from pathlib import Path

from ls_keras import study, sweeps
from ls_keras.experiment import Where, many
from ls_keras.sweeps import driver, networks
from ls_keras_recipes.mnist_mlp import RECIPE

POINTS = 30
ALPHAS, RATES, SEEDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.6), (0.25, 0.5, 1.0), 5
OBSERVED_NOTHING = dataclasses.replace(RECIPE.sizes["digits"], observe_every=0)


def trials():
    """Of a network that is trained for ten seconds the overhead is the same: it does not depend on steps."""
    alphas = [k / 100 for k in range(POINTS)]
    many._places = lambda where: [{}]
    base = dataclasses.replace(RECIPE.sizes["smoke"], observe_every=0, steps=30, evaluate_every=30)
    RECIPE.run(base, size="smoke", where=Where(workdir=Path(tempfile.mkdtemp()), quiet=True))  # TensorFlow warms up
    called, swept, measured = [], [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            where = Where(workdir=Path(folder), quiet=True)
            started = time.perf_counter()
            runs = [RECIPE.run(dataclasses.replace(base, alpha=a), size="smoke", where=where) for a in alphas]
            called.append(time.perf_counter() - started)
            started = time.perf_counter()
            for run in runs:
                networks._measured(RECIPE, base, run, where)
            measured.append(time.perf_counter() - started)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            over = {"alpha": alphas, "steps": "30", "evaluate_every": "30"}
            sweeps.sweep(RECIPE, over=over, size="smoke", seeds=1, where=Where(workdir=Path(folder), quiet=True))
            swept.append(time.perf_counter() - started)
    each, measuring = (min(swept) - min(called)) / POINTS, min(measured) / POINTS
    print(
        f"{POINTS} trials: {min(called):.1f} s called in a loop, {min(swept):.1f} s swept; {each:.3f} s more a trial, "
        f"{measuring:.3f} s of which measure the network; at 10 s a trial {10 * each:.1f} %"
    )


def main_job():
    with tempfile.TemporaryDirectory() as folder:
        arms = tuple(
            study.Arm(
                f"{a} {r}",
                RECIPE,
                "digits",
                study.Fixed(dataclasses.replace(OBSERVED_NOTHING, alpha=a, learning_rate=r)),
            )
            for a, r in itertools.product(ALPHAS, RATES)
        )
        started = time.perf_counter()
        planned = study.Study("benchmark", OBSERVED_NOTHING, arms, tuple(range(SEEDS)))
        study.run(planned, Path(folder) / "study", Where(workdir=Path(folder), quiet=True))
        by_study = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        over = {"alpha": ALPHAS, "learning_rate": RATES}
        where = Where(workdir=Path(folder), quiet=True)
        sweeps.sweep(RECIPE, over=over, size="digits", seeds=SEEDS, where=where)
        by_sweep = time.perf_counter() - started
    number = len(arms) * SEEDS
    print(f"{number} networks: {by_study:.0f} s as a study, {by_sweep:.0f} s swept; ratio {by_sweep / by_study:.2f}")


def resident():
    """MiB of this process and its children."""
    pages = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == os.getpgrp():
                pages += int((entry / "statm").read_text().split()[1])
        except (OSError, ValueError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def thousand():
    seen, ended = [], driver._Work._end
    started = time.perf_counter()

    def end(self, slot):
        ended(self, slot)
        seen.append(time.perf_counter())
        if len(seen) % 100 == 0:
            seconds = seen[-1] - (seen[-100] if len(seen) > 100 else started)
            print(f"{len(seen):5} points: {seconds:.1f} s for the last hundred, {resident():,.0f} MiB", flush=True)

    driver._Work._end = end
    with tempfile.TemporaryDirectory() as folder:
        over = {"alpha": [k / 2000 for k in range(1000)], "steps": "4", "evaluate_every": "4"}
        options = {"over": over, "size": "smoke", "seeds": 1, "where": Where(workdir=Path(folder), quiet=True)}
        found = sweeps.sweep(RECIPE, **options)
        begun = time.perf_counter()
        sweeps.sweep(RECIPE, **options)
        names = [path.name for path in Path(folder).rglob("*")]
        print(
            f"the same call again: {time.perf_counter() - begun:.1f} s; {len(found.rows)} rows; the longest name has "
            f"{max(map(len, names))} letters"
        )


if __name__ == "__main__":
    {"trials": trials, "main": main_job, "thousand": thousand}[sys.argv[1] if len(sys.argv) > 1 else "trials"]()
