"""What a task makes of the end of a training in pods, before it passes it on.

Aspects: places in a failure as the DAG author named them; a training of which no file outlives the pod; what there is
to recover.
"""

from __future__ import annotations

import logging
from dataclasses import replace
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


def where(outcome: Outcome, *, stays: bool = False, **event: Any) -> str:
    return error_of(outcome, {"workload": WORKLOAD, "phases": {"running": 5.0}, **event}, stays=stays).where


def test_where_no_file_outlives_the_pod_none_is_named():
    told = failed("no_model", "There is none.", work_dir="/var/lib/finetune/dag/run/train/1")
    told = replace(told, checkpoint={"unit": "step", "number": 3, "path": "/var/lib/finetune/dag/run/train/1/c"})
    named = run_of(**REMOTE).named(told)
    assert where(named, stays=True) == "TrainJob train-1 (kubectl --namespace team-a describe trainjob train-1)"
    assert where(named) == "the lines above, as nothing else is left of the training"
    assert not named.checkpoint


def test_what_is_left_of_a_failed_training_is_named_as_the_dag_author_knows_it_with_the_command_that_shows_it():
    named = run_of().named(failed("no_model", "There is none."))
    pod = {"name": "p", "node": "gpu-3", "gone": False}
    log = "pvc://training/runs/1/train.log"
    assert where(named, pod=pod, stays=True) == f"Pod p on node gpu-3 (kubectl --namespace team-a logs p); {log}"
    taken = f"node gpu-3, where pod p was (kubectl describe node gpu-3); {log}"
    assert where(named, pod=pod) == taken
    job = "TrainJob train-1 (kubectl --namespace team-a describe trainjob train-1)"
    assert where(named, pod={**pod, "gone": True}, stays=True) == f"{job}; {taken}"
    assert where(named) == log
    assert where(named, phases={"starting": 5.0}).startswith("the lines above")
    killed = run_of().named(replace(failed("out_of_memory", "It was killed."), work_dir=None))
    assert where(killed) == "pvc://training/runs/dag/run/train/<highest number>/train.log"


def test_the_last_lines_say_what_the_training_has_cost_and_left():
    told = replace(
        failed("out_of_memory", "Its memory was used up.", "Ask for more"),
        spec_hash="h",
        checkpoint={"unit": "step", "number": 40, "path": "/mnt/training/runs/1/checkpoints/checkpoint-40"},
    )
    assert told.failure
    told = replace(told, failure=replace(told.failure, failure_class="resources"))
    event = {"workload": WORKLOAD, "phases": {"starting": 5, "running": 5400.0}}
    assert str(error_of(run_of().named(told), event, gpus=8)).splitlines() == [
        "Training failed (resources: out_of_memory). Its memory was used up.",
        "What to do: Ask for more",
        "Argument: training_resource_memory_per_worker",
        "Where to look: pvc://training/runs/1/train.log",
        "GPU time: 12.00 GPU hours",
        "Checkpoint: step 40 in pvc://training/runs/1/checkpoints/checkpoint-40, where a retry of the same training "
        "goes on",
        "Retry: of use once the request has changed, or where there is room by then",
    ]
    here = replace(told, metrics={"gpu_seconds": 5400})
    assert "GPU time: 1.50 GPU hours" in str(error_of(here))
    none = replace(told, checkpoint={})
    assert "Checkpoint: none" in str(error_of(none, event))
    # Nothing was trained, or nobody has said what lies there.
    assert "Checkpoint" not in str(error_of(none, {**event, "phases": {}}))
    assert "Checkpoint" not in str(error_of(replace(none, spec_hash=None), event))


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
