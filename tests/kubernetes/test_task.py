"""A task on a worker and its workload, by the operator itself, against an API server over HTTP.

* what becomes of the workload of a task that has ended, and what is left alone
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_finetune import LoRAOperator
from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.exceptions import AirflowFailException, TrainingFailed
from tests.kubernetes.conftest import ApiServer

WORKLOAD = {"kind": "trainjob", "conn_id": "cluster", "namespace": "ml", "name": "a", "uid": "u1"}


class Task(LoRAOperator):
    """Trains on the cluster of the test."""

    log = logging.getLogger("task")  # type: ignore[assignment]  # Airflow's own writes to wherever it is configured to

    def __init__(self, **arguments: Any) -> None:
        given: dict[str, Any] = {
            "task_id": "train",
            "launcher": "trainjob",
            "kubernetes_conn_id": "cluster",
            "namespace": "ml",
            "dataset": "pvc://training/train.jsonl",
            "pvc_path": "pvc://training/runs",
            "training_base_model": "org/model",
            "training_effective_batch_size": 8,
        }
        super().__init__(**{**given, **arguments})


def context(try_number: int = 1) -> Any:
    ti = SimpleNamespace(
        dag_id="dag",
        run_id="run",
        task_id="train",
        map_index=-1,
        try_number=try_number,
        id=f"try-{try_number}",
        max_tries=3,
        task=SimpleNamespace(retries=3),
        xcom_push=lambda key, value: None,
    )
    return {"ti": ti}


def event(outcome: Outcome, **more: Any) -> dict[str, Any]:
    small = json.loads(outcome.to_small_json())
    return {"outcome": small, "workload": WORKLOAD, "phases": {}, "runs_once": False, **more}


def failed(cause: str = "runner_died", failure_class: Any = "infrastructure") -> Outcome:
    failure = Failure(failure_class=failure_class, cause=cause, message="It ended.", cure="Look there")
    return Outcome(status="failed", failure=failure, work_dir="/mnt/training/runs/dag/run/train/1")


@pytest.fixture(autouse=True)
def cluster(kubeconfig: Callable[..., Path], connection: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    connection(kube_config_path=str(kubeconfig()))
    caplog.set_level(logging.INFO)


def test_a_job_of_which_nothing_is_known_is_left_alone(api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainingFailed) as error:
        Task().execute_complete(context(), event(failed("forbidden"), unknown=True))
    assert not isinstance(error.value, AirflowFailException)
    assert not api.asked
    assert "TrainJob a is left alone" in caplog.text
    assert "kubectl --namespace ml get trainjob a" in caplog.text
