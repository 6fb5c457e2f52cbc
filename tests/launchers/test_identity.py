"""Names and labels of workloads.

Aspects: a name is short, valid, readable and of one try only; identity is the same for all tries and differs where the
task instance does.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from airflow_provider_finetune.launchers.identity import identity_labels, job_name
from airflow_provider_finetune.launchers.observed import IDENTITY, TASK
from tests.launchers.conftest import TASK as A_TRY


@pytest.mark.parametrize(
    ("dag", "task", "readable"),
    [
        ("weekly", "train", "weekly-train"),
        ("Weekly_retrain", "group.train__1", "weekly-retrain-group-train-1"),
        ("2026_weekly", "train", "ft-2026-weekly-train"),
        ("дообучение", "обучить", "ft"),
        ("x" * 250, "y" * 250, f"{'x' * 18}-{'y' * 19}"),
        ("x" * 250, "train", f"{'x' * 32}-train"),
        ("9" * 250, "train", f"ft-{'9' * 32}-tr"),
        ("-", "y" * 250, "y" * 19),
    ],
)
def test_a_name_is_readable_and_one_that_a_job_of_many_nodes_can_have(dag: str, task: str, readable: str):
    name = job_name(dag, task, "id")
    assert re.fullmatch(rf"{re.escape(readable)}-[0-9a-f]{{8}}", name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 47


def test_a_name_is_the_same_for_one_try_and_new_for_the_next():
    assert job_name("dag", "task", "1") == job_name("dag", "task", "1")
    assert job_name("dag", "task", "1") != job_name("dag", "task", "2")


def identity(**changes: object) -> dict[str, str]:
    where = {"deployment": "prod", "namespace": "team-a"}
    where.update({name: str(changes.pop(name)) for name in list(changes) if name in where})
    return identity_labels(replace(A_TRY, **changes), **where)  # type: ignore[arg-type]


def test_all_tries_of_a_task_instance_have_one_identity():
    assert identity(try_number=2, ti_id="other") == identity()


@pytest.mark.parametrize(
    "change",
    [
        {"deployment": "test"},
        {"namespace": "team-b"},
        {"dag_id": "other"},
        {"task_id": "other"},
        {"map_index": 0},
    ],
)
def test_another_task_differs_in_both_labels(change: dict[str, object]):
    assert identity(**change)[IDENTITY] != identity()[IDENTITY]
    assert identity(**change)[TASK] != identity()[TASK]


def test_another_run_of_a_task_is_another_instance_of_the_same_task():
    assert identity(run_id="other")[IDENTITY] != identity()[IDENTITY]
    assert identity(run_id="other")[TASK] == identity()[TASK]
