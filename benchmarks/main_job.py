"""Time the main job from an empty folder, here and at another commit, one after the other on this machine.

    python benchmarks/main_job.py            # beside 1d56600, the reference
    python benchmarks/main_job.py main~5 --repeats 2

Prints seconds of the bare `python recipes/paper.py`, their ratio, and those of the same command given again.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default="1d56600", help="what is compared with")
    parser.add_argument("--repeats", type=int, default=1, help="of both; the least seconds count")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        git("worktree", "add", "--detach", str(other), given.commit)
        try:
            rounds = [(timed(other, folder), timed(ROOT, folder)) for _ in range(given.repeats)]
        finally:
            git("worktree", "remove", "--force", str(other))
    before = min(first for (first, _), _ in rounds)
    now, again = (min(pair[at] for _, pair in rounds) for at in (0, 1))
    print(f"{given.commit}: {before:.0f} s; here: {now:.0f} s, ratio {now / before:.2f}; given again: {again:.1f} s")


def timed(tree, folder):
    """Seconds of the main job from an empty folder, and of the same once more."""
    recipes = Path(tree) / "ls_keras_recipes"  # as a checkout's own package, whatever is installed
    if (Path(tree) / "recipes" / "__init__.py").exists() and not recipes.exists() and Path(tree) != ROOT:
        recipes.symlink_to("recipes")
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        command = [sys.executable, "recipes/paper.py", "--workdir", workdir, "--quiet"]
        return tuple(seconds(command, tree) for _ in range(2))


def seconds(command, tree):
    started = time.perf_counter()
    subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True, capture_output=True)
    return time.perf_counter() - started


def git(*arguments):
    subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True)


if __name__ == "__main__":
    main()
