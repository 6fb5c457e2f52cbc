"""``TrainingTrigger``: waits for one training in the triggerer, or inside ``dag.test()``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.exceptions import TrainingFailed
from airflow_provider_finetune.launchers.kinds import KINDS
from airflow_provider_finetune.launchers.observed import JOB

if TYPE_CHECKING:
    from airflow_provider_finetune.cluster.follow import Following

_ASK_SECONDS = 20.0
"""The first question of a triggerer takes Airflow some seconds of CPU; it gives ``on_kill`` 30 s in all."""

_PODS_SECONDS = 5.0


class TrainingTrigger(BaseTrigger):
    """Follows one training to its end and fires one event.

    The event's payload: ``outcome`` (the small form of :class:`Outcome`, also of a failure), ``workload`` (which one
    was followed in the end), ``phases`` (seconds by phase), ``runs_once`` and, each only where it is so, ``recover``
    (the job is complete and has left no word), ``gone`` (it was deleted), ``unknown`` (it is no longer followed).

    :param workload: fields of :class:`~airflow_provider_finetune.cluster.hook.Workload`.
    :param clocks: seconds of ``queue_timeout``, ``startup_timeout`` and ``training_timeout``, ``None`` without a limit.
    :param progress_interval: seconds between two looks into the training's log.
    :param fail_fast: end a start at once that only the DAG author can mend.
    :param nodes: how many pods train together.
    :param identity: value of the job's identity label, by which an older job is found after a restart.
    :param whole: value of the label for all that was asked for.
    :param deadline: when the task's ``execution_timeout`` is over, in POSIX seconds; ``None`` without one.
    :param follower: Airflow's id of the try that waits.
    """

    def __init__(
        self,
        *,
        workload: Mapping[str, str],
        clocks: Mapping[str, float | None],
        progress_interval: float = 30.0,
        fail_fast: bool = True,
        nodes: int = 1,
        identity: str = "",
        whole: str = "",
        deadline: float | None = None,
        follower: str = "",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.workload = dict(workload)
        self.clocks = dict(clocks)
        self.progress_interval = progress_interval
        self.fail_fast = fail_fast
        self.nodes = nodes
        self.identity = identity
        self.whole = whole
        self.deadline = deadline
        self.follower = follower
        self._following: Following | None = None
        self._fired = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments, which are JSON values and hold no credentials."""
        names = ["workload", "clocks", "progress_interval", "fail_fast", "nodes"]
        names += ["identity", "whole", "deadline", "follower"]
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Follow the training and yield one event; a failure is an event too."""
        # The import takes a second or two, in which a triggerer's event loop must not stand still.
        follow = await asyncio.to_thread(_follow_module)
        terms = follow.Terms(
            limits=self.clocks,
            progress_interval=self.progress_interval,
            fail_fast=self.fail_fast,
            nodes=self.nodes,
            deadline=self.deadline,
        )
        self._following = follow.Following(
            follow.Workload(**self.workload), terms, self.log, identity=(self.identity, self.whole)
        )
        try:
            payload = await self._following.result()
        except TrainingFailed as error:
            outcome = Outcome(status="failed", failure=self._unknown(error.failure))
            payload = {
                "outcome": json.loads(outcome.to_small_json()),
                "workload": self._current(),
                "phases": {},
                "runs_once": False,
                "unknown": True,
            }
        self._fired = True
        yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's

    async def on_kill(self) -> None:
        """Delete the job, where a user has marked the task or cleared it while it was deferred (Airflow 3.3 and later).

        A triggerer that was missed for a while calls this as well, for triggers that another one has taken over.
        """
        await _undisturbed(self._delete_unless_deferred())

    async def cleanup(self) -> None:
        """Before Airflow 3.3 do what ``on_kill`` does since then; this also runs when a triggerer stops."""
        if not hasattr(BaseTrigger, "on_kill"):
            await _undisturbed(self._delete_unless_deferred())

    async def _delete_unless_deferred(self) -> None:
        """Delete the job where the task waits no more; without an answer from Airflow nothing is deleted."""
        if self._fired:
            return
        try:
            state = await asyncio.wait_for(self._task_state(), _ASK_SECONDS)
        except Exception as error:
            self.log.warning("%s is left alone: the task's state is not known (%s)", self._name(), repr(error))
            return
        if state == "deferred":
            self.log.info("%s is left alone: the task still waits for it", self._name())
        else:
            await self._delete()

    async def _task_state(self) -> str | None:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
        from asgiref.sync import sync_to_async

        ti: Any = self.task_instance
        states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
            dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
        )
        return state_in(states, ti)

    async def _delete(self) -> None:
        from airflow_provider_finetune.cluster.hook import TrainingHook

        workload = self._current()
        self.log.info("Deleting %s, as the task was ended by a user", self._name())
        try:
            kind = KINDS[workload["kind"]]
            async with TrainingHook(workload["conn_id"], workload["namespace"], kind=kind) as hook:
                if not await hook.end_job(workload["name"], workload["uid"], self.follower):
                    self.log.info("%s is left alone: a later try of the task waits for it", self._name())
                    return
                stay = await hook.pods_that_stay({JOB: workload["name"]}, _PODS_SECONDS)
        except TrainingFailed as error:
            self.log.error("%s could not be deleted and may train on. %s", self._name(), error)
            return
        if stay:
            left = ", ".join(stay)
            self.log.warning("%s is deleted, and has pods that have not ended: %s", self._name(), left)

    def _unknown(self, why: Failure) -> Failure:
        """Return why the task waits no longer; another try can go on with the job, whatever the reason."""
        message = f"{self._name()} is no longer followed, and may train on. {why.message}"
        cure = f"{why.cure}. A retry goes on with the job; clearing the task begins a new one"
        return replace(why, failure_class="infrastructure", message=message, cure=cure)

    def _current(self) -> dict[str, str]:
        return asdict(self._following.workload) if self._following else self.workload

    def _name(self) -> str:
        workload = self._current()
        return f"{KINDS[workload['kind']].title} {workload['namespace']}/{workload['name']}"


def state_in(states: Mapping[str, Mapping[str, Any]], ti: Any) -> str | None:
    """Return the state of a task instance in Airflow's answer to the question for it.

    :param states: the answer, by run and task.
    :param ti: whose state it is.
    :raises KeyError: it is not in the answer, so its state is not known.
    """
    mapped = ti.map_index is not None and ti.map_index >= 0
    state = states[ti.run_id][f"{ti.task_id}_{ti.map_index}" if mapped else ti.task_id]
    return None if state is None else str(getattr(state, "value", state))


async def _undisturbed(work: Coroutine[Any, Any, None]) -> None:
    """Do ``work`` to its end: a triggerer cancels a trigger again with each of its rounds, about a second apart."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    task.result()


def _follow_module() -> Any:
    from airflow_provider_finetune.cluster import follow

    return follow
