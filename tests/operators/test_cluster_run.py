"""What a task makes of the end of a training in pods, before it passes it on.

Aspects: places in a failure as the DAG author named them; a training of which no file outlives the pod; what there is
to recover.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.contract.parameters import LoRAParameters
from airflow_provider_finetune.launchers.identity import job_name
from airflow_provider_finetune.operators.cluster_run import ClusterRun
from airflow_provider_finetune.operators.delivery import error_of
from airflow_provider_finetune.operators.task import TrainingTask
from tests.operators.test_cluster import TASK, checked

REMOTE: dict[str, Any] = {"pvc_path": None, "output_model": "s3://bucket/model"}
WORKLOAD = {"kind": "trainjob", "conn_id": "c", "namespace": "team-a", "name": "train-1", "uid": "u"}


NO_PODS: Any = None
"""Nothing is submitted here."""


def run_of(workload: dict[str, str] | None = None, **given: Any) -> ClusterRun:
    documented, values, arguments, problems = checked(**given)
    assert not problems
    task = TrainingTask(
        instance=TASK,
        algorithm="lora_sft",
        record=LoRAParameters,
        documented=documented,
        values=values,
        arguments=arguments,
    )
    return ClusterRun(task, logging.getLogger(), {**WORKLOAD, **(workload or {})}, pods=NO_PODS)


def failed(cause: str, message: str, cure: str = "", work_dir: str = "/mnt/training/runs/1") -> Outcome:
    failure = Failure(failure_class="user", cause=cause, message=message, cure=cure)
    return Outcome(status="failed", failure=failure, work_dir=work_dir)


def test_a_failure_names_the_claim_and_not_where_it_is_mounted():
    told = failed("dataset_missing", "'/mnt/training/data/train.jsonl' is not there", "Put it into /mnt/training/data")
    failure = run_of().named(told).failure
    assert failure is not None
    assert failure.message == "'pvc://training/data/train.jsonl' is not there"
    assert failure.cure == "Put it into pvc://training/data"


def test_where_no_file_outlives_the_pod_none_is_named():
    told = failed("no_model", "There is none.", work_dir="/var/lib/finetune/dag/run/train/1")
    error = error_of(run_of(**REMOTE).named(told), WORKLOAD, stays=True)
    assert str(error).endswith("Where to look: TrainJob train-1 in namespace team-a")
    error = error_of(run_of(**REMOTE).named(told), WORKLOAD)
    assert str(error).endswith("Where to look: the lines above, as nothing else is left of the training")


def test_the_files_of_a_failed_training_on_a_claim_are_named():
    error = str(error_of(run_of().named(failed("no_model", "There is none.")), WORKLOAD))
    assert "/mnt/training/runs/1/train.log on its volume" in error


@pytest.mark.parametrize(
    ("given", "workload", "can"),
    [
        ({}, {}, True),
        ({}, {"name": job_name(TASK.dag_id, TASK.task_id, f"{TASK.ti_id}/recover")}, False),
        (REMOTE, {}, False),
        ({**REMOTE, "configured_pvc_path": "pvc://training/runs"}, {}, True),
    ],
)
def test_a_lost_outcome_is_looked_for_once_and_only_where_files_outlive_the_pod(
    given: dict[str, Any], workload: dict[str, str], can: bool
):
    assert run_of(workload, **given).can_recover is can


def test_a_lost_outcome_that_cannot_be_found_says_that_a_retry_trains_anew():
    failure = run_of(**REMOTE).named(failed("no_outcome", "No word.", "A retry finds the model")).failure
    assert failure is not None
    assert failure.cure == "A retry trains anew: without pvc_path no outcome outlives the pod"
