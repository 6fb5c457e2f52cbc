"""The training processes of one node, started by torchrun inside this child, which says how one of them has ended."""

from __future__ import annotations

import os
import traceback
from dataclasses import asdict
from typing import Any

from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import offspring, worker
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import explain
from airflow_provider_finetune.runner.nodes import Placement, placement
from airflow_provider_finetune.runner.prepared import Prepared
from airflow_provider_finetune.runner.tries.workdir import WorkDir


def main(work_dir: WorkDir) -> int:
    """Run the processes to their end.

    :param work_dir: the lineage, with spec and prepared data.
    :return: exit status; the reason has been told to the parent.
    """
    events = Events.from_environment()
    try:
        spec = TrainingSpec.from_json(work_dir.spec.read_text(encoding="utf-8"))
        prepared = Prepared.from_json(work_dir.prepared.read_text(encoding="utf-8"))
        if prepared.device == "cuda" and spec.algorithm != "lora_sft":
            # training-hub calls torchrun itself.
            return worker.main(work_dir, only="train")
        _torchrun(placement(spec, os.environ), work_dir)
    except BaseException as error:
        traceback.print_exc()
        failure = _ended(*error.get_first_failure()) if hasattr(error, "get_first_failure") else explain(error)
        if failure is not None:
            events.failed(asdict(failure))
        return 1
    return 0


def _torchrun(here: Placement, work_dir: WorkDir) -> None:
    from torch.distributed import run

    # Without an address of their own the nodes would each wait for themselves for ever.
    meet = (
        ["--standalone"]
        if here.master is None
        else [f"--node-rank={here.node}", f"--master-addr={here.master[0]}", f"--master-port={here.master[1]}"]
    )
    several = [f"--nnodes={here.nodes}", f"--nproc-per-node={here.processes_per_node}", *meet]
    program = ["--module", "airflow_provider_finetune.runner", "work", "--only", "train"]
    # What Trainer sets (PET_*) is torchrun's default for every option, and is of no use beside ours.
    for name in [name for name in os.environ if name.startswith("PET_")]:
        del os.environ[name]
    run.run(run.parse_args([*several, *program, "--work-dir", str(work_dir.path)]))


def _ended(rank: int, process: Any) -> Failure | None:
    """Speak for a process that a signal has ended; every other has told the parent itself."""
    if process.exitcode >= 0:
        return None
    return offspring.killed(rank, -process.exitcode)
