"""Kill runs at random moments and give the same command again: every run must end as one that nothing disturbed.

    python benchmarks/kills.py                     # 30 SIGKILLs and 10 SIGTERMs, about a quarter of an hour
    python benchmarks/kills.py --kills 3 --terms 1

Each command is run whole once, for its results and its duration. Then it is begun, ended by a signal after a random
part of that time, and given again until it succeeds; now and then the second try is ended, too. Compared are metrics,
history and what the SavedModels compute; nothing hidden, no checkpoint and no process may be left. Linux alone: it
reads /proc.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"
COMMANDS = {
    "mnist_mlp": ["mnist_mlp.py", "smoke"],
    "cifar100_resnet56": ["cifar100_resnet56.py", "smoke"],
    "paper": ["paper.py", "smoke"],
}


def begin(command, workdir):
    return subprocess.Popen(
        [sys.executable, RECIPES / command[0], *command[1:], "--workdir", workdir],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def processes_of(session):
    """The processes of a session that are still there, with workers whose parent is gone."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


def results(workdir):
    """Everything that a run computes, by its place."""
    from ls_keras import artifact

    found = {}
    for path in sorted(Path(workdir).rglob("*")):
        name = str(path.relative_to(workdir))
        if path.name == "metrics.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        elif path.name in ("history.csv", "verdicts.json"):
            found[name] = path.read_text()
        elif path.name == "saved_model.pb":
            found[name] = artifact.digest(path.parent)
    return found


def debris(workdir):
    return [str(path) for path in Path(workdir).rglob("*") if path.name.startswith(".") or path.name == "checkpoints"]


def ended_at(process, seconds, number):
    """Send a signal after some time; return whether the process was still there."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        process.communicate()
        return True
    return False


def settle(session):
    """Wait until a session's processes are gone; return those that are not after a quarter of a minute."""
    for _ in range(150):
        if not processes_of(session):
            return []
        time.sleep(0.1)
    return processes_of(session)


def trial(command, number, duration, expected, draw):
    workdir = tempfile.mkdtemp()
    wrong, signals, wanted = [], 0, draw.choice([1, 1, 2])
    while signals < wanted:
        process = begin(command, workdir)
        if ended_at(process, draw.uniform(0.1, 0.9) * duration, number):
            signals += 1
            if number == signal.SIGTERM and process.returncode not in (143, -signal.SIGTERM):
                wrong.append(f"exit code {process.returncode} at SIGTERM")
        else:
            shutil.rmtree(workdir)
            workdir, signals = tempfile.mkdtemp(), 0
        if left := settle(process.pid):
            wrong.append(f"processes left: {left}")
    process = begin(command, workdir)
    output = process.communicate()[0].decode()
    if process.returncode:
        wrong.append(f"exit code {process.returncode}: {output[-300:]}")
    elif results(workdir) != expected:
        wrong.append("other results")
    if left := debris(workdir):
        wrong.append(f"left behind: {left[:3]}")
    shutil.rmtree(workdir)
    return wrong, signals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="runs ended by SIGKILL")
    parser.add_argument("--terms", type=int, default=10, help="runs ended by SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    whole = {}
    for name, command in COMMANDS.items():
        workdir, started = tempfile.mkdtemp(), time.monotonic()
        output = begin(command, workdir).communicate()[0].decode()
        whole[name] = results(workdir), time.monotonic() - started
        if not whole[name][0] or debris(workdir):
            sys.exit(f"{name} does not end well undisturbed: {output[-2000:]}")
        shutil.rmtree(workdir)
    numbers = [signal.SIGKILL] * options.kills + [signal.SIGTERM] * options.terms
    good = 0
    for count, number in enumerate(numbers):
        # The main job takes long, and is every eighth.
        name = "paper" if count % 8 == 7 else ("mnist_mlp", "cifar100_resnet56")[count % 2]
        expected, duration = whole[name]
        wrong, signals = trial(COMMANDS[name], number, duration, expected, draw)
        good += not wrong
        said = "as undisturbed" if not wrong else "; ".join(wrong)
        print(f"{count + 1:3} {name:18} {number.name} x {signals}: {said}", flush=True)
    print(f"{good} of {len(numbers)} ended in the same values, with no process and nothing half-written left")
    sys.exit(good != len(numbers))


if __name__ == "__main__":
    main()
