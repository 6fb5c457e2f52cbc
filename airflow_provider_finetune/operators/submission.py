"""How the workload of one try comes to be: one that an earlier try has left is taken, else a new one is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Protocol

from airflow_provider_finetune.cluster import making
from airflow_provider_finetune.cluster.diagnosis import outcome_of
from airflow_provider_finetune.cluster.hook import TrainingHook
from airflow_provider_finetune.cluster.refusals import Refused
from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.exceptions import training_error
from airflow_provider_finetune.launchers import pod, trainjob
from airflow_provider_finetune.launchers.adoption import Adoption, adopt
from airflow_provider_finetune.launchers.container import runner_config_map
from airflow_provider_finetune.launchers.job_request import JobRequest
from airflow_provider_finetune.launchers.kinds import KINDS, POD
from airflow_provider_finetune.launchers.observed import FOLLOWER, IDENTITY, JOB, RUNS_ONCE, JobState
from airflow_provider_finetune.launchers.runtime import check_runtime, runs_once
from airflow_provider_finetune.operators.task import TaskLog, TrainingTask

_PODS_END_SECONDS = 600.0
"""How long a new training waits for the pods of earlier tries, whose grace period may be minutes; then the task fails
and may be tried again."""


class Pods(Protocol):
    """What Airflow makes of the pod of a training, where that is the workload."""

    def arguments(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a ``KubernetesPodOperator``."""
        ...

    def pod(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the pod as it is to be made."""
        ...


class Submission:
    """Finds or makes the workload of one try.

    :param task: what to train.
    :param log: the task's.
    :param request: what the workload is rendered from.
    :param pods: makes it where it is a pod of its own.
    :param ended: tells whether the task is being ended meanwhile.
    """

    def __init__(
        self, task: TrainingTask, log: TaskLog, request: JobRequest, pods: Pods, ended: Callable[[], bool]
    ) -> None:
        self._task, self._log, self._request, self._pods, self._ended = task, log, request, pods, ended
        self._identity = request.labels[IDENTITY]

    async def workload(self, hook: TrainingHook) -> JobState:
        """Return the workload to wait for.

        :param hook: of the task's connection and of the kind of its launcher.
        :raises TrainingFailed: the cluster refuses it, or what an earlier try has left does not end.
        :raises CannotRender: no workload of this cluster can carry what was asked for.
        """
        request, title = self._request, hook.kind.title
        existing = map(hook.kind.read, await hook.list_jobs({IDENTITY: self._identity}))
        first_try = self._task.instance.first_try
        found = adopt(existing, identity=self._identity, whole=request.whole, first_try=first_try)
        if found.failed and await self._fails_each_time(hook, found.failed):
            found = replace(found, follow=found.failed)
        await self._make_way(hook, found)
        job = found.follow
        if job:
            state = "has ended, and nobody has collected it" if job.condition else "still trains"
            await hook.mark(job.name, job.uid, FOLLOWER, self._task.instance.ti_id)
            self._log.info("Following %s %s of an earlier try: it %s", title, job.name, state)
            return job
        job = await self._create(hook)
        runtime = f", runtime {request.runtime}" if request.runtime else ""
        self._log.info("%s %s made in namespace %s%s", title, job.name, hook.namespace, runtime)
        return job

    def stop_where_ended(self) -> None:
        """Go no further where the task is being ended.

        :raises TrainingFailed: it is.
        """
        if self._ended():
            message, cure = (
                "The task was ended while it submitted its training, which is not made",
                "Run the task again",
            )
            failure = failure_of("task_ended", message, cure)
            raise training_error(failure, "Airflow's audit log")

    async def _fails_each_time(self, hook: TrainingHook, job: JobState) -> bool:
        """Return whether a failed one has the DAG author's fault in its last words, which a worker was lost with."""
        now = datetime.now(timezone.utc)
        pods = [hook.kind.read_pod(pod, None, now) for pod in await hook.pods({JOB: job.name})]
        failure = outcome_of(job, pods).failure
        return failure is not None and failure.failure_class == "user"

    async def _make_way(self, hook: TrainingHook, found: Adoption) -> None:
        await self._delete(hook, found.delete)
        if found.follow or not (found.delete or self._task.instance.try_number > 1):
            return
        # The work directory is theirs too. A pod outlives its job for its grace period; a TrainJob may have none yet.
        same_task = {IDENTITY: self._identity}
        stay = await hook.pods_that_stay(same_task, timeout=0)
        if hook.kind is POD or stay:
            await self._delete(*await self._of_other_launchers(hook))
            if stay:
                self._log.info("Waiting for the end of what an earlier try has left: %s", ", ".join(stay))
            stay = await hook.pods_that_stay(same_task, _PODS_END_SECONDS)
            if stay:
                raise training_error(_pods_stay(stay), f"kubectl --namespace {hook.namespace} get pods")

    async def _delete(self, hook: TrainingHook, jobs: Sequence[JobState]) -> None:
        for job in jobs:
            cleared = job.try_number < self._task.instance.first_try
            why = "was made before the task was cleared" if cleared else "trains something else"
            self._log.info("Deleting %s %s of an earlier try, which %s", job.title, job.name, why)
            await hook.delete_job(job.name, job.uid)

    async def _of_other_launchers(self, hook: TrainingHook) -> tuple[TrainingHook, list[JobState]]:
        """Return what still trains from a time when the task had another launcher, as far as it may be known."""
        (kind,) = (kind for kind in KINDS.values() if kind is not hook.kind)
        other = hook.of(kind)
        try:
            jobs = await other.list_jobs({IDENTITY: self._identity})
        except Refused as error:
            # Where that launcher cannot be used, nothing of it can be there.
            if error.cause not in ("trainer_missing", "forbidden"):
                raise
            return other, []
        return other, [job for job in map(kind.read, jobs) if job.active]

    async def _create(self, hook: TrainingHook) -> JobState:
        request = self._request
        runtime = None if hook.kind is POD else await self._runtime(hook)
        if request.runner == "configmap":
            await making.ensure_config_map(hook, runner_config_map(hook.namespace))
        self.stop_where_ended()
        if hook.kind is POD:
            return hook.kind.read(await making.create_job(hook, self._pods.pod(pod.render(request))))
        once = {RUNS_ONCE: str(runs_once(runtime)).lower()}
        request = replace(request, annotations={**request.annotations, **once})
        return hook.kind.read(await making.create_trainjob(hook, lambda form: trainjob.render(request, form)))

    async def _runtime(self, hook: TrainingHook) -> dict[str, Any] | None:
        request = self._request
        runtime = await hook.runtime(request.runtime_kind, request.runtime)
        for warning in check_runtime(runtime, request.runtime_kind, request.runtime):
            self._log.warning("%s", warning)
        return runtime


def _pods_stay(names: Sequence[str]) -> Failure:
    return failure_of(
        "pods_stay",
        f"Pods of an earlier try have not ended within {_PODS_END_SECONDS:g} s: {', '.join(names)}.",
        "Look at their node: it may be lost. Where it is, delete the pods by force, then run the task again.",
    )
