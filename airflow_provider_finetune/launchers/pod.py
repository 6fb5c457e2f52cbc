"""A training as one pod of its own: what it looks like, and how it tells of itself as a workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from airflow_provider_finetune.launchers import pod_spec
from airflow_provider_finetune.launchers.job_request import QUEUE, JobRequest
from airflow_provider_finetune.launchers.observed import JOB, WHOLE, JobState, PodState, marks_of, pod_state, time_of
from airflow_provider_finetune.launchers.refusal import CannotRender

BASE = "base"
"""Name of the container that trains: what ``KubernetesPodOperator`` calls its own, and mutation hooks know."""

TITLE = "Pod"

_ENDED = ("Succeeded", "Failed")


def render(request: JobRequest) -> dict[str, Any]:
    """Return the pod as it would be without a template and without a mutation hook.

    :param request: what was asked for.
    :raises CannotRender: one pod cannot be what was asked for.
    """
    if request.spec.nodes != 1:
        raise CannotRender("training_resource_num_workers", *ONE_WORKER)
    grace = pod_spec.grace(request)
    spec = pod_spec.pod_spec(request, BASE)
    training: dict[str, Any] = spec["containers"][0]
    training |= pod_spec.program(request, grace)
    # Where a training dies before it has written its result, the end of its log takes its place.
    training["terminationMessagePolicy"] = "FallbackToLogsOnError"
    if request.kubernetes_config.get("env_from"):
        training["envFrom"] = request.kubernetes_config["env_from"]
    if request.image:
        training["image"] = request.image
    if request.deadline is not None:
        spec["activeDeadlineSeconds"] = request.deadline
    queue = {QUEUE: request.queue_name} if request.queue_name else {}
    ours = {**request.labels, WHOLE: request.whole, JOB: request.name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": request.name,
            "namespace": request.namespace,
            "labels": {**request.user_labels, **ours, **queue},
            "annotations": {**request.user_annotations, **request.annotations},
        },
        "spec": {**spec, "restartPolicy": "Never", pod_spec.GRACE_PERIOD: grace},
    }


ONE_WORKER = ("a pod of its own trains with one worker", "Use launcher='trainjob' for several, or one with more GPUs")
"""What more than one worker breaks, and what to do about it."""


def made_as_asked(pod: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pod that templates and a mutation hook have had their hands on, unless they took what we follow it by.

    :param pod: as it is to be made.
    :param asked: as :func:`render` has returned it.
    :raises CannotRender: it could not be followed, or would not train.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    labels = metadata.get("labels") or {}
    kept = {
        "its name": metadata.get("name") == asked["metadata"]["name"],
        "its namespace": metadata.get("namespace") == asked["metadata"]["namespace"],
        "its labels": asked["metadata"]["labels"].items() <= labels.items(),
        "restartPolicy: Never": spec.get("restartPolicy") == "Never",
    }
    lost = [what for what, is_kept in kept.items() if not is_kept]
    if lost:
        rule = f"the pod template or the pod mutation hook of this Airflow changes {', '.join(lost)}"
        raise CannotRender("launcher", rule, "Let it leave pods with the label airflow-provider-finetune/job alone")
    if not any(found["name"] == BASE and found.get("image") for found in spec["containers"]):
        rule = f"the pod has no container {BASE!r} with an image"
        raise CannotRender("image", rule, "Name an image with training-hub, here or under [finetune] image")
    # The oldest KubernetesPodOperator that is supported takes it for its own deletions only.
    spec.setdefault(pod_spec.GRACE_PERIOD, asked["spec"][pod_spec.GRACE_PERIOD])
    return pod


def bare_pod_state(pod: Mapping[str, Any], before: PodState | None = None, seen_at: datetime | None = None) -> PodState:
    """Read a pod that is a workload of its own.

    :param pod: the object as the API gives it.
    :param before: as it was last seen.
    :param seen_at: the present: when a queue has let a pod go is told by no field of it.
    """
    state = pod_state(pod, BASE)
    workload = _workload(pod, state)
    if QUEUE in (pod["metadata"].get("labels") or {}) and not workload.suspended:
        known = before.workload.admitted_at if before and before.workload else None
        workload = replace(workload, admitted_at=known or _scheduled_at(pod) or seen_at)
    return replace(state, workload=workload)


def workload_state(pod: Mapping[str, Any]) -> JobState:
    """Read a pod as a workload.

    It has ended when the container that trains has, whatever others in the pod do: a mesh's proxy runs for ever.

    :param pod: the object as the API gives it.
    """
    return _workload(pod, pod_state(pod, BASE))


def _workload(pod: Mapping[str, Any], state: PodState) -> JobState:
    status = pod.get("status") or {}
    condition = _condition(state, status)
    ended = {
        "condition": condition,
        "reason": status.get("reason", ""),
        "message": status.get("message", ""),
        "ended_at": state.finished_at or _last_change(pod) or state.created,
    }
    return JobState(
        name=state.name,
        uid=state.uid,
        created=state.created,
        title=TITLE,
        **marks_of(pod["metadata"]),
        # In another state a container of it goes on, and holds what the pod was given.
        runs_once=state.phase in _ENDED,
        deleting=state.deleting,
        suspended=bool((pod.get("spec") or {}).get("schedulingGates")),
        **(ended if condition else {}),
    )


def _condition(state: PodState, status: Mapping[str, Any]) -> str | None:
    if state.phase in _ENDED:
        return "Complete" if state.phase == "Succeeded" else "Failed"
    # A kubelet tells the end of the last container a moment before that of the pod.
    others_run = any("terminated" not in (found.get("state") or {}) for found in status.get("containerStatuses") or ())
    if state.finished_at is None or not others_run:
        return None
    return "Failed" if state.exit_code else "Complete"


def _scheduled_at(pod: Mapping[str, Any]) -> datetime | None:
    scheduled = _conditions(pod).get("PodScheduled", {})
    return time_of(scheduled["lastTransitionTime"]) if scheduled.get("status") == "True" else None


def _last_change(pod: Mapping[str, Any]) -> datetime | None:
    times = [found["lastTransitionTime"] for found in _conditions(pod).values() if found.get("lastTransitionTime")]
    return max(map(time_of, times), default=None)


def _conditions(pod: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {condition["type"]: condition for condition in (pod.get("status") or {}).get("conditions") or ()}
