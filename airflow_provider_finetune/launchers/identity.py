"""Names, labels and annotations by which a workload is found again."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from airflow_provider_finetune.launchers.observed import DOMAIN, IDENTITY, MANAGED_BY, TASK

LONGEST_NAME = 47
"""Of a workload. JobSet makes a pod name of it, ``<name>-node-0-<node>-<5 characters>``, and refuses more than 63."""

_HASH_LENGTH = 8
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, kw_only=True)
class TaskInstance:
    """One try of one task instance.

    * ``map_index``: ``-1`` where the task is not mapped
    * ``ti_id``: Airflow's id of the try: new for each
    * ``first_try``: number of the first try since the user has cleared the task; 1 where that has not happened
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    ti_id: str
    first_try: int = 1

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of its work directory."""
        return (self.dag_id, self.run_id, self.task_id, *([str(self.map_index)] if self.map_index >= 0 else []))


def job_name(dag_id: str, task_id: str, ti_id: str) -> str:
    """Return the name of a try's workload: readable, and never used by another try.

    :param dag_id: its first letters and those of the task make the name readable.
    :param task_id: with its task groups.
    :param ti_id: Airflow's id of the try.
    """
    room = LONGEST_NAME - _HASH_LENGTH - 1
    task = _slug(task_id)[: room // 2]
    readable = f"{_slug(dag_id)[: room - len(task) - 1]}-{task}".strip("-")
    # RFC 1035: a name begins with a letter.
    readable = readable if readable[:1].isalpha() else f"ft-{readable}"[:room].strip("-")
    return f"{readable}-{digest(ti_id)[:_HASH_LENGTH]}"


def identity_labels(task: TaskInstance, *, deployment: str, namespace: str) -> dict[str, str]:
    """Return the labels by which the workloads of a task instance are found, whatever the try.

    :param task: the try.
    :param deployment: what tells this Airflow from another one that uses the same namespace.
    :param namespace: of the workload.
    """
    same_task = [deployment, namespace, task.dag_id, task.task_id, task.map_index]
    return {MANAGED_BY: DOMAIN, IDENTITY: digest([*same_task, task.run_id]), TASK: digest(same_task)}


def identity_annotations(task: TaskInstance) -> dict[str, str]:
    """Return the ids of a try in readable form: a run id is no valid value of a label.

    :param task: the try.
    """
    ids = ("dag_id", "run_id", "task_id", "map_index", "try_number")
    return {f"{DOMAIN}/{name}": str(getattr(task, name)) for name in ids}


def digest(document: Any) -> str:
    """Return 16 hexadecimal digits that stand for a JSON document.

    :param document: what JSON has.
    """
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


def _slug(name: str) -> str:
    return _NOT_IN_A_NAME.sub("-", name.lower()).strip("-")
