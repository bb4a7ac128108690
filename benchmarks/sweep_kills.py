"""Kill the processes of sweeps at random moments: every sweep must end in the table of one that nothing disturbed.

    python benchmarks/sweep_kills.py                   # 10 kills of a process alone, 10 among a chief and three workers
    python benchmarks/sweep_kills.py --alone 2 --together 2

12 points of the smallest network, one seed each. Alone, the command is killed at a random moment and given again.
Together, one process drawn among chief and workers is killed; a killed chief is begun again at once, a killed worker
never, so that others must do its point. Compared are table.csv and that every point was trained once. Linux alone.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SWEEP = Path(__file__).parents[1] / "recipes" / "sweep.py"
POINTS = ["--over", "alpha=0,0.05,0.1,0.2", "--over", "learning_rate=0.25,0.5,1"]
COMMAND = [sys.executable, str(SWEEP), "mnist_mlp", "smoke", *POINTS, "--seeds", "1", "--name", "killed"]
WORKERS = ("one", "two", "three")
# Minutes after which nothing is going to come.
HANGS = 10


def begin(workdir, **variables):
    environment = {**os.environ, **variables}
    if variables:  # so that no worker begins a process for each core
        command = ["taskset", "-c", str(hash(variables["KERASTUNER_TUNER_ID"]) % os.cpu_count()), *COMMAND]
    else:
        command = COMMAND
    return subprocess.Popen(
        [*command, "--workdir", workdir],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def table(workdir):
    folder = Path(workdir) / "sweep" / "mnist_mlp" / "killed"
    begun = (folder / "trials.jsonl").read_text().count('"values"')
    return (folder / "table.csv").read_text(), begun, len(list((folder / "measured").iterdir()))


def alone(workdir, duration, draw):
    process = begin(workdir)
    try:
        process.communicate(timeout=draw.uniform(0.1, 0.95) * duration)
    except subprocess.TimeoutExpired:
        kill(process)
    process = begin(workdir)
    output = process.communicate(timeout=60 * HANGS)[0].decode()
    return f"exit code {process.returncode}: {output[-500:]}" if process.returncode else ""


def together(workdir, duration, draw):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
    running = {name: begin(workdir, KERASTUNER_TUNER_ID=name, **address) for name in ("chief", *WORKERS)}
    try:
        victim = draw.choice(list(running))
        time.sleep(draw.uniform(0.1, 0.7) * duration)
        kill(running.pop(victim))
        print(f"    {victim} killed", flush=True)
        if victim == "chief":
            running["chief"] = begin(workdir, KERASTUNER_TUNER_ID="chief", **address)
        wrong = []
        for name, process in running.items():
            output = process.communicate(timeout=60 * HANGS)[0].decode()
            if process.returncode:
                wrong.append(f"{name}: exit code {process.returncode}: {output[-500:]}")
        return "; ".join(wrong)
    except subprocess.TimeoutExpired:
        return "hangs"
    finally:
        for process in running.values():
            kill(process)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", type=int, default=10, help="kills of a process alone")
    parser.add_argument("--together", type=int, default=10, help="kills among a chief and three workers")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    workdir, started = tempfile.mkdtemp(), time.monotonic()
    output = begin(workdir).communicate()[0].decode()
    if not (Path(workdir) / "sweep").exists():
        sys.exit(output)
    duration, expected = time.monotonic() - started, table(workdir)
    shutil.rmtree(workdir)
    good = 0
    for count in range(options.alone + options.together):
        trial = alone if count < options.alone else together
        workdir, started = tempfile.mkdtemp(), time.monotonic()
        wrong = trial(workdir, duration if trial is alone else 2 * duration, draw)
        if not wrong and table(workdir) != expected:
            wrong = "another table"
        shutil.rmtree(workdir, ignore_errors=True)
        good += not wrong
        seconds = time.monotonic() - started
        print(f"{count + 1:3} {trial.__name__}, {seconds:.0f} s: {wrong or 'as undisturbed'}", flush=True)
    print(f"{good} of {options.alone + options.together} sweeps ended in the same table, each point trained once")
    sys.exit(good < options.alone + options.together)


if __name__ == "__main__":
    main()
