"""One try of a task on a cluster: its workload, how it comes to be, and what becomes of it when it has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from airflow_provider_finetune.cluster.diagnosis import NO_OUTCOME
from airflow_provider_finetune.cluster.hook import TrainingHook, Workload
from airflow_provider_finetune.cluster.logs import reads_per_second
from airflow_provider_finetune.contract.checking import Problem
from airflow_provider_finetune.contract.outcome import Outcome
from airflow_provider_finetune.exceptions import InvalidParameters, TrainingFailed
from airflow_provider_finetune.launchers import pod
from airflow_provider_finetune.launchers.adoption import leftovers
from airflow_provider_finetune.launchers.identity import identity_labels, job_name
from airflow_provider_finetune.launchers.job_request import JobRequest
from airflow_provider_finetune.launchers.kinds import KINDS, POD
from airflow_provider_finetune.launchers.observed import DELIVERED, IDENTITY, TASK, JobState
from airflow_provider_finetune.launchers.refusal import CannotRender
from airflow_provider_finetune.operators.arguments import none_if_empty, seconds
from airflow_provider_finetune.operators.cluster_places import places_of, root_of
from airflow_provider_finetune.operators.cluster_rules import plain_config
from airflow_provider_finetune.operators.request import cluster_request, safe_name
from airflow_provider_finetune.operators.submission import Pods, Submission
from airflow_provider_finetune.operators.task import TaskLog, TrainingTask
from airflow_provider_finetune.settings import deployment_id
from airflow_provider_finetune.triggers import TrainingTrigger


class ClusterRun:
    """The workload of one try, from the task's side. Each call opens the connection for itself.

    :param task: what to train.
    :param log: the task's.
    :param workload: fields of one that there is already.
    :param pods: makes the workload where it is a pod of its own.
    """

    def __init__(
        self, task: TrainingTask, log: TaskLog, workload: Mapping[str, str] | None = None, *, pods: Pods
    ) -> None:
        self.workload = Workload(**workload) if workload else None
        # The argument may have been another one when it was made.
        made_by = {"launcher": self.workload.kind} if self.workload else {}
        self._task = replace(task, arguments={**task.arguments, **made_by})
        self._log, self._pods = log, pods
        self._request: JobRequest | None = None
        self._ended = False

    def submit(self, *, recover: bool = False) -> None:
        """Find or make the workload: one that an earlier try has left, else a new one.

        :param recover: look for the outcome of a training that has ended without a word, and train only without one.
        :raises InvalidParameters: no workload of this cluster can carry what was asked for.
        :raises TrainingFailed: the cluster refuses it, or does not answer, or a setting is wrong.
        """
        reads_per_second()  # a wrong one would be found by the triggerer, with the job made
        if deployment_id() is None:
            self._log.info(
                "Neither [finetune] deployment_id nor [api] base_url is set: no other Airflow without them may train "
                "in the same namespace, as each would take the other's jobs for its own"
            )
        with self._renders():
            self._use(lambda hook: self._submit(hook, recover=recover))

    def pod_operator_arguments(self) -> dict[str, Any]:
        """Return the arguments of the ``KubernetesPodOperator`` that would make the pod; no request is made.

        :raises InvalidParameters: the launcher is another one, or one pod cannot be what was asked for.
        """
        launcher = self._task.arguments["launcher"]
        if launcher != POD.name:
            problem = Problem("launcher", launcher, "it starts no KubernetesPodOperator", "Use launcher='pod'")
            raise InvalidParameters(self._task.instance.task_id, [problem])
        found: list[dict[str, Any]] = []

        async def look(hook: TrainingHook) -> None:
            found.append(self._pods.arguments(pod.render(self._make_request(hook.namespace, recover=False))))

        with self._renders():
            self._use(look)
        return found[0]

    @contextmanager
    def _renders(self) -> Iterator[None]:
        """Say what no object can carry as what is wrong with the task's arguments."""
        try:
            yield
        except CannotRender as error:
            problem = Problem(error.parameter, "***", error.rule, error.cure)
            raise InvalidParameters(self._task.instance.task_id, [problem]) from error

    @property
    def can_recover(self) -> bool:
        """Whether a lost outcome may still be found: what was written outlives the pod, and nobody has looked yet."""
        assert self.workload is not None
        return self._keeps_files and self.workload.name != self._name(recover=True)

    @property
    def gpus(self) -> int:
        """How many GPUs the pods of this training have together."""
        values = self._task.values
        return int(values["resource_gpu_per_worker"] * values["resource_num_workers"])

    @property
    def _keeps_files(self) -> bool:
        return root_of(self._task.documented, self._task.arguments) is not None

    def named(self, outcome: Outcome) -> Outcome:
        """Return an outcome whose failure speaks of places as the DAG author knows them, and of those that there are.

        :param outcome: as the runner or the cluster tells it.
        """
        failure, task = outcome.failure, self._task
        if failure is None:
            return outcome
        config = plain_config(task.documented["kubernetes_config"], task.arguments["launcher"])
        places = places_of(task.documented, task.arguments, config)
        failure = replace(failure, message=places.named(failure.message), cure=places.named(failure.cure))
        if self._keeps_files:
            kept = {name: places.named(str(value)) for name, value in outcome.checkpoint.items()}
            work_dir = places.named(outcome.work_dir) if outcome.work_dir else self._newest_directory()
            return replace(outcome, failure=failure, checkpoint=kept, work_dir=work_dir)
        if failure.cause == NO_OUTCOME:
            failure = replace(failure, cure="A retry trains anew: without pvc_path no outcome outlives the pod")
        return replace(outcome, failure=failure, checkpoint={}, work_dir=None)

    def _newest_directory(self) -> str:
        """Name the directory of a training that could not say so: of those of its tries the one of the last."""
        root = root_of(self._task.documented, self._task.arguments)
        parts = [str(root).rstrip("/"), *map(safe_name, self._task.instance.path), "<highest number>"]
        return "/".join(parts)

    def trigger(self, deadline: float | None = None) -> TrainingTrigger:
        """Return what waits for the workload.

        :param deadline: when the task's ``execution_timeout`` is over, in POSIX seconds.
        """
        assert self.workload is not None
        assert self._request is not None
        arguments = self._task.arguments
        clocks = ("queue_timeout", "startup_timeout", "training_timeout")
        return TrainingTrigger(
            workload=asdict(self.workload),
            clocks={name: seconds(arguments[name]) for name in clocks},
            progress_interval=seconds(arguments["progress_interval"]) or 30,
            fail_fast=arguments["fail_fast"],
            nodes=self._request.spec.nodes,
            identity=self._request.labels[IDENTITY],
            whole=self._request.whole,
            deadline=deadline,
            follower=self._task.instance.ti_id,
        )

    def wait(self) -> dict[str, Any]:
        """Wait for the end of the workload in this process, and return the trigger's event."""

        async def first() -> dict[str, Any]:
            async for event in self.trigger().run():
                return dict(event.payload)
            raise RuntimeError(f"the trigger of {self.workload} ended without an event")

        return asyncio.run(first())

    def stays(self, event: Mapping[str, Any], *, succeeded: bool) -> bool:
        """Return whether the workload is to stay: where that is asked for, and nothing would start it again.

        :param event: the trigger's.
        :param succeeded: whether there is a model.
        """
        on_finish = self._task.arguments["on_finish"]
        asked = on_finish == "keep" or (on_finish == "delete_succeeded" and not succeeded)
        return bool(event.get("unknown") or (asked and (succeeded or event["runs_once"]) and not event.get("gone")))

    def mark_delivered(self) -> None:
        """Note on the workload that its outcome has been passed on; what the cluster does not do is a warning."""
        assert self.workload is not None
        work = self.workload
        with self._warns_of(work.name):
            self._use(lambda hook: hook.mark(work.name, work.uid, DELIVERED))

    def settle(self, event: Mapping[str, Any], *, succeeded: bool) -> None:
        """Delete the workload, whose end has been passed on, or note on it that it has.

        A failed one stays where nothing starts it again, until the next success of the same task; one of which nothing
        is known stays as it is. What the cluster does not do is a warning: the end that was passed on counts.

        :param event: the trigger's.
        :param succeeded: whether there is a model.
        """
        assert self.workload is not None
        work = self.workload
        if event.get("unknown"):
            message = "%s %s is left alone, as its program may be running: kubectl --namespace %s get %s %s"
            self._log.warning(message, work.title, work.name, work.namespace, work.kind, work.name)
        elif not event.get("gone"):
            stays = self.stays(event, succeeded=succeeded)
            with self._warns_of(work.name):
                self._use(lambda hook: self._settle(hook, stays=stays, succeeded=succeeded))

    def end(self) -> None:
        """Delete the workload, also one that is being made, and let its pods end; a signal handler may call this."""
        self._ended = True
        if self.workload is None:
            return
        self._log.info("Deleting %s %s, as this task is being ended", self.workload.title, self.workload.name)
        # The handler may have interrupted an event loop of this thread.
        thread = threading.Thread(target=self._delete, args=[self.workload])
        thread.start()
        thread.join()

    def _delete(self, workload: Workload) -> None:
        async def delete(hook: TrainingHook) -> None:
            if not await hook.end_job(workload.name, workload.uid, self._task.instance.ti_id):
                message = "%s %s is left alone: a later try of this task waits for it"
                self._log.warning(message, workload.title, workload.name)

        try:
            self._use(delete)
        except TrainingFailed as error:
            message = "%s %s could not be deleted and may train on. %s"
            self._log.error(message, workload.title, workload.name, error)

    def _use(self, use: Callable[[TrainingHook], Coroutine[Any, Any, Any]]) -> None:
        async def with_hook() -> None:
            arguments = self._task.arguments
            conn_id, namespace = arguments["kubernetes_conn_id"], none_if_empty(arguments["namespace"])
            async with TrainingHook(conn_id, namespace, kind=KINDS[arguments["launcher"]]) as hook:
                await use(hook)

        asyncio.run(with_hook())

    async def _submit(self, hook: TrainingHook, *, recover: bool) -> None:
        self._request = request = self._make_request(hook.namespace, recover=recover)
        if recover and self.workload:
            self._log.info("Deleting %s %s, which has left no word", self.workload.title, self.workload.name)
            await hook.delete_job(self.workload.name, self.workload.uid)
        submission = Submission(self._task, self._log, request, self._pods, lambda: self._ended)
        job = await submission.workload(hook)
        self.workload = Workload(hook.kind.name, hook.conn_id, hook.namespace, job.name, job.uid)
        if self._ended:
            await hook.delete_job(job.name, job.uid)
        submission.stop_where_ended()

    def _make_request(self, namespace: str, *, recover: bool) -> JobRequest:
        task = self._task
        request = cluster_request(
            task.algorithm,
            task.documented,
            task.values,
            task.arguments,
            task=task.instance,
            namespace=namespace,
            deployment=deployment_id() or "",
        )
        if not recover:
            return request
        # It must be the same request, else the file that it reads is another training's.
        return replace(request, name=self._name(recover=True), spec=replace(request.spec, recover=True))

    def _name(self, *, recover: bool) -> str:
        task = self._task.instance
        return job_name(task.dag_id, task.task_id, f"{task.ti_id}/recover" if recover else task.ti_id)

    async def _settle(self, hook: TrainingHook, *, stays: bool, succeeded: bool) -> None:
        assert self.workload is not None
        title, name, uid = self.workload.title, self.workload.name, self.workload.uid
        older = await self._leftovers(hook) if succeeded and not stays else []
        with self._warns_of(name):
            if stays:
                await hook.mark(name, uid, DELIVERED)
                self._log.info("%s %s stays in namespace %s", title, name, hook.namespace)
            else:
                if not succeeded:
                    self._log.info("Deleting %s %s, which nobody follows any more", title, name)
                await hook.delete_job(name, uid)
        for job in older:
            self._log.info("Deleting %s %s, which failed before this success", title, job.name)
            with self._warns_of(job.name):
                await hook.delete_job(job.name, job.uid)

    async def _leftovers(self, hook: TrainingHook) -> list[JobState]:
        """Return what this success makes useless, as far as the cluster tells."""
        assert self.workload is not None
        labels = identity_labels(self._task.instance, deployment=deployment_id() or "", namespace=hook.namespace)
        try:
            same_task = [*map(hook.kind.read, await hook.list_jobs({TASK: labels[TASK]}))]
        except TrainingFailed as error:
            message = "Failed %ss of earlier tries stay, if there are any. %s"
            self._log.warning(message, hook.kind.title, error.failure.message)
            return []
        success = next((job for job in same_task if job.uid == self.workload.uid), None)
        return leftovers(same_task, success) if success else []

    @contextmanager
    def _warns_of(self, name: str) -> Iterator[None]:
        """Warn of what is left of an ended training, where the cluster does not do what it is asked for."""
        try:
            yield
        except TrainingFailed as error:
            assert self.workload is not None
            delete = f"kubectl --namespace {self.workload.namespace} delete {self.workload.kind} {name}"
            message = "%s %s is left over: %s. Delete it before this task is cleared: %s"
            self._log.warning(message, self.workload.title, name, error.failure.message, delete)
