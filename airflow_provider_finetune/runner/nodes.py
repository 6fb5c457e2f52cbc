"""Which of several nodes this is, and what the nodes of a training leave for each other."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from airflow_provider_finetune.contract.outcome import PEER_FAILED, Failure
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.tries.workdir import WorkDir

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Placement:
    """Where in the training this node stands.

    * ``node``: 0 is the one that checks, publishes and reports; ``nodes``: how many there are
    * ``processes_per_node``: training processes on each
    * ``master``: address and port of node 0; ``None`` with one node
    """

    node: int = 0
    nodes: int = 1
    processes_per_node: int = 1
    master: tuple[str, int] | None = None

    @property
    def processes(self) -> int:
        """Training processes over all nodes."""
        return self.nodes * self.processes_per_node


def placement(spec: TrainingSpec, environment: Mapping[str, str]) -> Placement:
    """Read where this node stands.

    :param spec: says how many nodes and processes there are; ``auto`` is one process on a CPU.
    :param environment: holds what Kubeflow Trainer sets on each node (``PET_*``).
    :raises RunFailed: the two contradict each other, the second is not there, or there would be no process.
    """
    wanted = "1" if spec.processes_per_node == "auto" else str(spec.processes_per_node)
    if not wanted.isdecimal() or not int(wanted):
        raise UserError(
            "processes_wrong",
            f"processes_per_node={spec.processes_per_node!r} is neither a number above 0 nor 'auto'",
            "Set training_resource_num_procs_per_worker to one of them",
        )
    per_node = int(wanted)
    if spec.nodes == 1:
        return Placement(processes_per_node=per_node)
    try:
        node, started = int(environment.get("PET_NODE_RANK", 0)), int(environment.get("PET_NNODES", spec.nodes))
        master = environment["PET_MASTER_ADDR"], int(environment["PET_MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise misplaced(
            f"PET_MASTER_ADDR, PET_MASTER_PORT or PET_NODE_RANK is missing or no number: {error}"
        ) from error
    if started != spec.nodes or not 0 <= node < spec.nodes:
        raise misplaced(f"this is node {node} of {started}")
    return Placement(node, spec.nodes, per_node, master)


def misplaced(what: str) -> RunFailed:
    """Return the failure of nodes that do not belong together."""
    return RunFailed(
        "infrastructure",
        "nodes_not_set_up",
        f"The training wants several nodes, and {what}",
        "Start it as a TrainJob, whose controller gives each node its rank and the address of the first",
    )


def tell(work_dir: WorkDir, node: int, failure: Failure) -> None:
    """Leave why the training has ended on this node for the others, which only see that it is gone."""
    with suppress(OSError):
        (work_dir.nodes / f"{node}.json").write_text(json.dumps(asdict(failure)), encoding="utf-8")


def culprit(work_dir: WorkDir, failure: Failure, seconds: float = 5.0) -> Failure:
    """Return ``failure`` with the reason of the node that has ended first, where it has left one.

    :param work_dir: the lineage.
    :param failure: says that another process is gone.
    :param seconds: how long to wait for that node's word.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for file in sorted(work_dir.nodes.glob("*.json"), key=os.path.getmtime):
            with suppress(OSError, ValueError):
                told = json.loads(file.read_text(encoding="utf-8"))
                return Failure(
                    failure_class=told["failure_class"],
                    cause=PEER_FAILED,
                    message=f"Node {file.stem} has ended, and the training with it: {told['message']}",
                    cure=told["cure"],
                )
        time.sleep(_POLL_SECONDS)
    return failure
