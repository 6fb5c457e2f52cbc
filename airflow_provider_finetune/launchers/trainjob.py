"""A training as a Kubeflow ``TrainJob`` (Trainer v2), in the forms of its API, and how such a job tells of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from typing import Any

from airflow_provider_finetune.launchers import pod_spec
from airflow_provider_finetune.launchers.job_request import QUEUE, JobRequest
from airflow_provider_finetune.launchers.observed import (
    DOMAIN,
    IDENTITY,
    JOB,
    MANAGED_BY,
    RUNS_ONCE,
    WHOLE,
    JobState,
    marks_of,
    time_of,
)
from airflow_provider_finetune.launchers.refusal import CannotRender

API_VERSION = "trainer.kubeflow.org/v1alpha1"

NODE = "node"
"""Name of the replicated job that trains, and of its container: the Trainer gives these two their PET_* variables."""

_LONGEST_ARGUMENT = 65_536
"""Bytes: what a TrainJob of 2.2 takes. 2.1 and 2.3 take more, Linux 128 KiB."""

_LONGEST_OBJECT = 256_000
_MOST_ENTRIES = 128


class TrainerApi(str, Enum):
    """The forms of the Trainer's API, newest first. They differ in what they take; their version is the same."""

    RUNTIME_PATCHES = "runtimePatches"
    """Trainer 2.3."""

    RUNTIME_PATCHES_2_2 = "runtimePatches-2.2"
    """Trainer 2.2: as 2.3, without a grace period."""

    POD_TEMPLATE_OVERRIDES = "podTemplateOverrides"
    """Trainer 2.1: also without security contexts and without ``activeDeadlineSeconds``."""


_ALL = frozenset(TrainerApi)
_PATCHES = _ALL - {TrainerApi.POD_TEMPLATE_OVERRIDES}
_NONE: frozenset[TrainerApi] = frozenset()

CARRIED: dict[str, frozenset[TrainerApi]] = {
    "volumes": _ALL,
    "volume_mounts": _ALL,
    "env": _ALL,
    "env_from": _NONE,
    "node_selector": _ALL,
    "tolerations": _ALL,
    "affinity": _ALL,
    "service_account_name": _ALL,
    "security_context": _PATCHES,
    "container_security_context": _PATCHES,
    "image_pull_secrets": _ALL,
    "priority_class_name": _NONE,
    "scheduler_name": _NONE,
    "termination_grace_period_seconds": frozenset({TrainerApi.RUNTIME_PATCHES}),
}
"""Which forms take which key of ``kubernetes_config``."""

NEVER_CARRIED = tuple(key for key, forms in CARRIED.items() if not forms)
"""Keys of ``kubernetes_config`` that only the runtime can set."""


_FORMS_WITH = {
    "spec.runtimePatches": _PATCHES,
    "spec.podTemplateOverrides": _ALL - _PATCHES,
    "spec.activeDeadlineSeconds": _PATCHES,
    f".{pod_spec.GRACE_PERIOD}": CARRIED["termination_grace_period_seconds"],
}
"""Which forms have a field, by the end of its name."""


class Unsupported(CannotRender):
    """The Trainer of this cluster is older than what was asked for.

    :param keys: keys of ``kubernetes_config`` that its form lacks.
    """

    def __init__(self, keys: list[str]) -> None:
        rule = f"the Trainer of this cluster is too old to carry {', '.join(keys)}"
        super().__init__("kubernetes_config", rule, "Set it in the runtime's pod template, or install Trainer 2.3")
        self.keys = keys


def render(request: JobRequest, api: TrainerApi) -> dict[str, Any]:
    """Return the TrainJob.

    ``spec.trainer`` is always there, else the Trainer injects no variable at all, and in it ``numProcPerNode``, which
    it would guess. ``suspend`` is never there: it is the queue's.

    :param request: what was asked for.
    :param api: the form that the cluster takes.
    :raises Unsupported: the form lacks what was asked for.
    :raises CannotRender: the object would be too large, or would run nothing.
    """
    missing = [key for key in request.kubernetes_config if api not in CARRIED[key]]
    if missing:
        raise Unsupported(missing)
    if request.spec.nodes < 1:
        # The Trainer completes such a job at once, without a pod.
        raise CannotRender("training_resource_num_workers", "it must be at least 1", "1 trains in one pod")
    queue = {QUEUE: request.queue_name} if request.queue_name else {}
    group = API_VERSION.partition("/")[0]
    spec = {
        "runtimeRef": {"apiGroup": group, "kind": request.runtime_kind, "name": request.runtime},
        "trainer": _trainer(request, api),
        **_pods(request, api),
    }
    if request.deadline is not None and api is not TrainerApi.POD_TEMPLATE_OVERRIDES:
        spec["activeDeadlineSeconds"] = request.deadline
    job = {
        "apiVersion": API_VERSION,
        "kind": "TrainJob",
        "metadata": {
            "name": request.name,
            "namespace": request.namespace,
            "labels": {**request.user_labels, **request.labels, WHOLE: request.whole, **queue},
            "annotations": {**request.user_annotations, **request.annotations},
        },
        "spec": spec,
    }
    _check_sizes(job)
    return job


def forms_with(field: str) -> frozenset[TrainerApi]:
    """Return the forms that a server rules out by not knowing ``field``; none where no form differs in it.

    :param field: e.g. ``spec.runtimePatches``.
    """
    return next((forms for end, forms in _FORMS_WITH.items() if field.endswith(end)), _NONE)


def _trainer(request: JobRequest, api: TrainerApi) -> dict[str, Any]:
    program = pod_spec.program(request, _grace(request, api))
    resources = program.pop("resources")
    return {
        **({"image": request.image} if request.image else {}),
        **program,
        "numNodes": request.spec.nodes,
        "numProcPerNode": int(request.spec.processes_per_node),
        "resourcesPerNode": resources,
    }


def _pods(request: JobRequest, api: TrainerApi) -> dict[str, Any]:
    """Return what is asked for beside ``spec.trainer``, as the form has it."""
    ours = {name: request.labels[name] for name in (MANAGED_BY, IDENTITY) if name in request.labels}
    metadata: dict[str, Any] = {"labels": {**request.user_labels, **ours, JOB: request.name}}
    if request.user_annotations:
        metadata["annotations"] = request.user_annotations
    spec = pod_spec.pod_spec(request, NODE)
    if api is TrainerApi.POD_TEMPLATE_OVERRIDES:
        return {"podTemplateOverrides": [{"targetJobs": [{"name": NODE}], "metadata": metadata, "spec": spec}]}
    if grace := _grace(request, api):
        spec[pod_spec.GRACE_PERIOD] = grace
    job = {"name": NODE, "template": {"spec": {"template": {"metadata": metadata, "spec": spec}}}}
    patch = {"template": {"spec": {"replicatedJobs": [job]}}}
    return {"runtimePatches": [{"manager": f"{DOMAIN}/operator", "trainingRuntimeSpec": patch}]}


def _grace(request: JobRequest, api: TrainerApi) -> int | None:
    """Return the seconds from SIGTERM to SIGKILL, ``None`` where the runtime or Kubernetes decides."""
    return pod_spec.grace(request) if api in CARRIED["termination_grace_period_seconds"] else None


def _check_sizes(job: Mapping[str, Any]) -> None:
    trainer = job["spec"]["trainer"]
    cure = "Move large values into files on the claim: extra_args, training_envs and kubernetes_config travel here"
    for number, argument in enumerate(trainer["args"], start=1):
        size = len(argument.encode())
        if size > _LONGEST_ARGUMENT:
            rule = f"argument {number} of the container has {size:,} bytes, and it may have {_LONGEST_ARGUMENT:,}"
            raise CannotRender("TrainJob", rule, cure)
    if len(trainer["env"]) > _MOST_ENTRIES:
        rule = f"the container has {len(trainer['env'])} environment variables, and a TrainJob takes {_MOST_ENTRIES}"
        raise CannotRender("TrainJob", rule, "Leave some out of training_envs, secrets and kubernetes_config")
    size = len(json.dumps(job).encode())
    if size > _LONGEST_OBJECT:
        rule = f"it has {size:,} bytes, and each of its copies in the cluster's database may have {_LONGEST_OBJECT:,}"
        raise CannotRender("TrainJob", rule, cure)


def job_state(job: Mapping[str, Any]) -> JobState:
    """Read a TrainJob.

    :param job: the object as the API gives it.
    """
    metadata, status = job["metadata"], job.get("status") or {}
    annotations = metadata.get("annotations") or {}
    created = time_of(metadata["creationTimestamp"])
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    end = _final(conditions, created)
    suspended = conditions.get("Suspended", {})
    held = suspended.get("status") == "True"
    return JobState(
        name=metadata["name"],
        uid=metadata["uid"],
        created=created,
        **marks_of(metadata),
        runs_once=annotations.get(RUNS_ONCE) == "true",
        deleting="deletionTimestamp" in metadata,
        # Before the controller has seen the object only its specification tells.
        suspended=held if suspended else bool((job.get("spec") or {}).get("suspend")),
        suspended_at=time_of(suspended["lastTransitionTime"]) if held else None,
        admitted_at=time_of(suspended["lastTransitionTime"]) if suspended and not held else None,
        condition=end.get("type"),
        reason=end.get("reason", ""),
        message=end.get("message", ""),
        ended_at=time_of(end["lastTransitionTime"]) if end else None,
        progress=tuple((status.get("trainerStatus") or {}).items()),
    )


def _final(conditions: Mapping[str, Mapping[str, Any]], created: datetime) -> Mapping[str, Any]:
    for kind in ("Complete", "Failed"):
        found = conditions.get(kind, {})
        # A name that is used again shows for a moment the end of the object that had it before.
        if found.get("status") == "True" and time_of(found["lastTransitionTime"]) >= created:
            return found
    return {}
