"""What one try of a task has been asked for: rendered, coerced and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from airflow_provider_finetune.contract.parameters import TrainingParameters
from airflow_provider_finetune.launchers.identity import TaskInstance

if TYPE_CHECKING:
    from airflow.sdk.types import RuntimeTaskInstanceProtocol


class TaskLog(Protocol):
    """What a task's log takes, whichever logger the version of Airflow has there."""

    def info(self, event: str, *args: Any) -> Any: ...

    def warning(self, event: str, *args: Any) -> Any: ...

    def error(self, event: str, *args: Any) -> Any: ...

    def log(self, level: int, event: str, *args: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """One try of a task, with all that its launcher must know.

    * ``algorithm``: training-hub's name
    * ``documented``: the documented inputs by name; ``values``: those of ``record``, in their declared types
    * ``arguments``: the other arguments by name, ``launcher`` resolved
    """

    instance: TaskInstance
    algorithm: str
    record: type[TrainingParameters]
    documented: Mapping[str, Any]
    values: Mapping[str, Any]
    arguments: Mapping[str, Any]


def task_instance(ti: RuntimeTaskInstanceProtocol) -> TaskInstance:
    """Return the ids of a try.

    :param ti: Airflow's.
    """
    return TaskInstance(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        ti_id=str(ti.id),
        # Airflow allows for as many tries more with each clear.
        first_try=ti.max_tries - (ti.task.retries or 0) + 1,
    )


def state_of(ti: RuntimeTaskInstanceProtocol) -> str | None:
    """Return the state in which Airflow has a task instance, whichever try it is in by now; ``None``: not known.

    :param ti: Airflow's.
    """
    from airflow_provider_finetune.triggers import state_in

    index = ti.map_index if ti.map_index is not None and ti.map_index >= 0 else None
    try:
        states = ti.get_task_states(ti.dag_id, map_index=index, task_ids=[ti.task_id], run_ids=[ti.run_id])
        return state_in(states, ti)
    except Exception:  # whatever keeps Airflow from answering
        return None
