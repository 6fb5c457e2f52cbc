"""One training on several nodes: two runner processes on this machine, as two pods of a TrainJob would be started.

* both train the model that one process trains; it is published once, and told by node 0 alone
* one process is killed: both nodes end, and both name it
* the check fails on node 0: the other ends as well, and says why
* a signal ends a node that waits, and every process of one that trains
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Outcome
from tests.train.conftest import RunRunner, StartRunner
from tests.train.test_runner import children_of, is_running, start_training

Spec = dict[str, Any]


@dataclass
class Node:
    """One node's runner."""

    process: subprocess.Popen[str]
    message: Path

    def end(self, timeout: float = 240) -> tuple[int, str, Outcome | None]:
        """Wait for its end and return status, output and what stands in its termination message."""
        output = self.process.communicate(timeout=timeout)[0]
        text = self.message.read_text() if self.message.exists() else ""
        return self.process.returncode, output, Outcome.from_json(text) if text else None


StartNode = Callable[..., Node]


@pytest.fixture
def start_node(runner_pyz: Path, tmp_path: Path) -> Iterator[StartNode]:
    """Start the runner as one of two nodes, with what Kubeflow Trainer sets."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started: list[Node] = []

    def start(spec: Spec, rank: int, **environment: str) -> Node:
        message = tmp_path / f"termination-{rank}"
        pet = {
            "PET_NNODES": "2",
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "PET_NPROC_PER_NODE": "auto",
        }
        process = subprocess.Popen(
            [sys.executable, runner_pyz, "run", "--spec-json", json.dumps(spec), "--termination-message", message],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo", **pet, **environment},
        )
        started.append(Node(process, message))
        return started[-1]

    yield start
    for node in started:
        if node.process.poll() is None:
            node.process.kill()
            node.process.communicate()


def losses(outcome: Outcome) -> list[float]:
    """Return the losses of the steps."""
    return [loss for _, loss in outcome.loss_curve]


@pytest.mark.timeout(400)
def test_two_nodes_train_the_model_that_one_process_trains(
    start_node: StartNode, run_runner: RunRunner, spec: Spec, tmp_path: Path
) -> None:
    alone = run_runner(spec).full
    shared = str(tmp_path / "shared")
    together = {**spec, "nodes": 2, "processes_per_node": 1, "work_dir": shared, "mounts": {"pvc://claim": shared}}
    nodes = [start_node(together, rank) for rank in (0, 1)]
    (status, output, outcome), (other_status, other_output, other_outcome) = (node.end() for node in nodes)
    assert (status, other_status) == (0, 0), output + other_output
    assert other_outcome is None, "node 0 reports for all"
    assert "finetune-outcome" not in other_output
    assert outcome is not None
    lineage = tmp_path / "shared" / "1"
    assert (outcome.model_uri, outcome.model_path) == ("pvc://claim/1/model", str(lineage / "model"))
    assert (lineage / "model" / "adapter_model.safetensors").is_file()
    assert losses(outcome) == pytest.approx(losses(alone), rel=1e-3)
    assert "effective batch 8 = micro-batch 4 x accumulation 1 x 2 processes" in output
    assert outcome.metrics["peak_memory_bytes"] > 100e6, "that of the training process"
    assert [entry.name for entry in (tmp_path / "shared").iterdir()] == ["1"]


@pytest.mark.timeout(300)
def test_a_process_that_is_killed_ends_both_nodes_and_both_name_it(
    start_node: StartNode, spec: Spec, tmp_path: Path
) -> None:
    spec |= {"nodes": 2, "processes_per_node": 1}
    spec["parameters"]["num_epochs"] = 100000
    first, second = (start_node(spec, rank) for rank in (0, 1))
    assert first.process.stdout is not None
    assert any(line.startswith("step ") for line in first.process.stdout), "the training has made no step"
    (launcher,) = children_of(second.process.pid)
    (trainer,) = children_of(launcher)
    os.kill(trainer, signal.SIGKILL)
    status, output, outcome = second.end(60)
    assert (status, outcome and outcome.failure and outcome.failure.cause) == (1, "killed"), output
    status, output, outcome = first.end(60)
    assert status == 1
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.cause == "peer_failed", "a consequence, and told as one"
    assert outcome.failure.message.startswith("Node 1 has ended, and the training with it: Process 1")
    assert "SIGKILL" in outcome.failure.message
    assert outcome.model_uri is None
    full = Outcome.from_json((tmp_path / "work" / "1" / "outcome.json").read_text()).failure
    assert full is not None
    assert replace(full, log_tail=[]) == replace(outcome.failure, log_tail=[])


def test_why_the_check_fails_on_node_0_ends_the_other_at_once(start_node: StartNode, spec: Spec) -> None:
    spec |= {"nodes": 2, "processes_per_node": 1, "dataset": "/nowhere/rows.jsonl"}
    second, first = start_node(spec, 1), start_node(spec, 0)
    for node, cause in ((first, "dataset_missing"), (second, "peer_failed")):
        status, output, outcome = node.end(60)
        assert outcome is not None, output
        assert outcome.failure is not None
        assert (status, outcome.failure.failure_class, outcome.failure.cause) == (1, "user", cause)
        assert "/nowhere/rows.jsonl does not exist" in outcome.failure.message


@pytest.mark.timeout(300)
def test_a_signal_ends_a_node_that_waits_and_all_processes_of_one_that_trains(
    start_runner: StartRunner, start_node: StartNode, spec: Spec
) -> None:
    waiting = start_node({**spec, "nodes": 2}, 1)
    spec |= {"processes_per_node": 2}
    training = start_training(start_runner, spec)
    (launcher,) = children_of(training.pid)
    processes = [launcher, *children_of(launcher)]
    assert len(processes) == 3
    waiting.process.terminate()
    training.terminate()
    outcome = waiting.end(40)[2]
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.cause == "terminated"
    assert "error: The training was ended by SIGTERM at step" in training.communicate(timeout=40)[0]
    assert not any(map(is_running, processes))
