"""Workers that wait, that are of two minds, and that die: the others say so and end, and a restart goes on."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading

from ls_keras import experiment, workers

import numpy as np
import pytest
import tensorflow as tf
import tiny_recipe
from processes import TESTS, free_addresses

# Seconds after which a process counts as hanging, however busy the machine is.
HANGS = 600


def config_of(addresses, index):
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def start(addresses, index, workdir, *options, dies=None):
    """Begin one worker with a workdir of its own, as on a cluster whose machines share no folder."""
    environment = {key: value for key, value in os.environ.items() if key != "TPU_NAME"}
    environment |= {"PYTHONPATH": str(TESTS.parent), "CUDA_VISIBLE_DEVICES": "-1", "DIES": str(dies)}
    environment["TF_CONFIG"] = config_of(addresses, index)
    script = "dying_worker.py" if dies else "tiny_recipe.py"
    command = [sys.executable, TESTS / script, "plain", "--strategy", "multi-worker", "--workdir", workdir, *options]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def ended(processes):
    """Exit codes and what was printed, of processes that all end by themselves."""
    try:
        printed = [process.communicate(timeout=HANGS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, printed, strict=True)]


def train(folder, dies=(None, None), options=((), ())):
    addresses = free_addresses(2)
    workers = [
        start(addresses, index, folder / f"worker {index}", *options[index], dies=dies[index]) for index in range(2)
    ]
    return addresses, ended(workers)


def test_a_worker_that_dies_ends_the_others_and_a_restart_ends_in_the_same_numbers(tmp_path):
    addresses, (chief, dead) = train(tmp_path, dies=(None, 6))
    assert dead[0] == -signal.SIGKILL
    assert chief[0] == 1
    assert "Traceback" not in chief[1]
    newest = max(tmp_path.glob("worker 0/tiny/plain/checkpoints/step-*.npz"))
    step = int(newest.stem.removeprefix("step-"))
    assert step in (3, 6), "worker 1 may have gone before the chief had all of their last sum"
    sentence = rf"worker 1 of 2 \({addresses[1]}\) has gone: restart all workers with the same command; "
    assert re.search(rf"{sentence}the run goes on from step {step}\n", chief[1]), chief[1]

    addresses, (dead, other) = train(tmp_path, dies=(9, None))
    assert f"going on from step {step}" in dead[1]
    assert other[0] == 1
    assert "Traceback" not in other[1]
    sentence = rf"worker 0 of 2 \({addresses[0]}\) has gone: restart .*; the run goes on from the chief's newest chec"
    assert re.search(sentence, other[1]), other[1]

    _, finished = train(tmp_path)
    assert [code for code, _ in finished] == [0, 0], finished
    assert "going on from step 6" in finished[1][1], "told by the chief, in whose folder it cannot look"
    where = experiment.Where(workdir=tmp_path / "alone", strategy="cpu", quiet=True)
    alone = tiny_recipe.RECIPE.run(tiny_recipe.SIZES["plain"], size="plain", where=where)
    together = experiment.Run(tmp_path / "worker 0" / "tiny" / "plain", {})
    for column, values in alone.history().items():
        np.testing.assert_allclose(together.history()[column], values, rtol=1e-6, atol=1e-6, err_msg=column)
    assert not (tmp_path / "worker 1").exists()


def test_workers_of_two_runs_are_told_apart_before_training(tmp_path):
    _, (chief, other) = train(tmp_path, options=((), ("--alpha", "0.3")))
    for (code, text), there, here in ((chief, "0.3", "0.1"), (other, "0.1", "0.3")):
        assert code == 1
        assert f"alpha is {there} there and {here} here" in text or "has gone" in text, text
    assert any("Give all workers the same command" in text for _, text in (chief, other))
    assert not list(tmp_path.rglob("*")), "neither left anything behind"


def test_a_worker_that_does_not_come_is_named_in_time(monkeypatch, tmp_path, capsys):
    here, missing = free_addresses(2)
    monkeypatch.setenv("TF_CONFIG", config_of([here, missing], 0))
    monkeypatch.setattr(workers, "_FIRST_WORD", 0.0)
    where = experiment.Where(workdir=tmp_path / "runs", strategy="multi-worker", wait_minutes=0.02)
    with pytest.raises(
        ValueError, match=rf"^worker 1 of 2 \({missing}\) did not answer within 0.02 minutes.*TF_CONFIG"
    ):
        tiny_recipe.RECIPE.run(tiny_recipe.SIZES["plain"], size="plain", where=where)
    assert capsys.readouterr().err == f"waiting for worker 1 of 2 ({missing}) …\n"
    assert not where.workdir.exists()


def test_workers_meet_as_soon_as_all_answer():
    with socket.create_server(("127.0.0.1", 0)) as other:
        (here,) = free_addresses(1)
        cluster = workers.Cluster((f"127.0.0.1:{other.getsockname()[1]}", here), 1)
        workers.meet(cluster, 0.0)
        with socket.create_server(("127.0.0.1", int(here.rpartition(":")[2]))):
            workers.meet(cluster, 0.0)  # again in this process: the port is TensorFlow's by then


def test_a_port_that_another_process_has_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"worker 0 of 1 \({address}\) is this one, and its port .* same index"):
            workers.meet(workers.Cluster((address,), 0), 1.0)


DEAF = """
import time
from ls_keras import workers
cluster = workers.Cluster(("127.0.0.1:1", "127.0.0.1:2"), 0)
with workers.watched(cluster, lambda: "the run goes on from step 7", grace=0.0):
    time.sleep(3000)  # as in a collective operation that never ends
"""


def test_where_tensorflow_does_not_notice_the_process_is_ended():
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        [sys.executable, "-c", DEAF], env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "error: worker 1 of 2 (127.0.0.1:2) has gone: restart all workers with the same command; the run goes on from "
        "step 7\n"
    )


def test_a_killed_worker_is_named_though_its_port_closes_late():
    other = socket.create_server(("127.0.0.1", 0))
    cluster = workers.Cluster(("127.0.0.1:1", f"127.0.0.1:{other.getsockname()[1]}"), 0)
    threading.Timer(1.5, other.close).start()
    with pytest.raises(workers.Gone, match=r"^worker 1 of 2 .* has gone"), workers.watched(cluster, str):
        raise tf.errors.UnavailableError(None, None, "Collective ops is aborted by: Socket closed")


def test_only_errors_of_missing_workers_are_taken_for_such(monkeypatch):
    monkeypatch.setattr(workers, "_CLOSING", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        cluster = workers.Cluster(("127.0.0.1:1", f"127.0.0.1:{other.getsockname()[1]}"), 0)
        with pytest.raises(tf.errors.ResourceExhaustedError), workers.watched(cluster, str):
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")
        with pytest.raises(workers.Gone, match=r"^another worker no longer answers"), workers.watched(cluster, str):
            raise tf.errors.UnavailableError(None, None, "Collective ops is aborted by: Deadline Exceeded")
        with workers.watched(None, str) as watch:
            assert watch is None
