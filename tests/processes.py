"""Processes of their own, since TensorFlow fixes devices and workers once a process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def start(script, name, path, tf_config=None):
    """Run a script of this folder, which takes a name and writes JSON to a path; it logs beside that."""
    environment = {key: value for key, value in os.environ.items() if key not in ("TF_CONFIG", "TPU_NAME")}
    environment["PYTHONPATH"] = str(TESTS.parent)
    # The strategies are compared on CPUs, whatever else the machine has.
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    if tf_config:
        environment["TF_CONFIG"] = json.dumps(tf_config)
    command = [sys.executable, str(TESTS / script), name, str(path)]
    with path.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def start_workers(script, folder, count=2):
    """Run a script as each of so many workers: processes by name, `worker 0` the chief."""
    cluster = {"worker": free_addresses(count)}
    return {
        f"worker {index}": start(
            script,
            "multi-worker",
            folder / f"worker {index}.json",
            {"cluster": cluster, "task": {"type": "worker", "index": index}},
        )
        for index in range(count)
    }


def read_results(processes, folder):
    """Wait for processes by name, and read what each wrote to `name.json`."""
    try:
        for name, process in processes.items():
            assert process.wait(timeout=3000) == 0, (folder / f"{name}.log").read_text()[-4000:]
    finally:
        for process in processes.values():
            process.kill()
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in processes}


def free_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()
