"""What the cluster says of one training, read from its objects into small records. Pure functions on dicts.

A watch keeps these records and not the objects: a pod is some 10 kB of JSON, of which a training needs a few words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

DOMAIN = "airflow-provider-finetune"
"""Prefix of all labels and annotations of ours."""

MANAGED_BY = "app.kubernetes.io/managed-by"
"""Label whose value :data:`DOMAIN` marks what is ours; the shared watches select by it."""

IDENTITY = f"{DOMAIN}/identity"
"""Label: hash of deployment, namespace, dag, run, task and map index. The same for all tries of a task instance."""

TASK = f"{DOMAIN}/task"
"""Label: as :data:`IDENTITY` without the run. The same for all runs of a task."""

WHOLE = f"{DOMAIN}/whole"
"""Label: :meth:`TrainingSpec.whole_hash` together with all else that was asked for. Equal ones are the same request."""

JOB = f"{DOMAIN}/job"
"""Label of a pod: name of the workload that it belongs to."""

DELIVERED = f"{DOMAIN}/delivered"
"""Annotation of a workload whose outcome the task has passed on."""

RUNS_ONCE = f"{DOMAIN}/runs-once"
"""Annotation ``true`` of a workload that nothing starts again after it has failed: only such a one may be kept."""

RANK = "batch.kubernetes.io/job-completion-index"


class Phase(str, Enum):
    """Where a training is: each lasts until the next, and the last two are final."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether nothing comes after it."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class JobState:
    """One workload: a TrainJob, or a pod that is its own.

    * ``suspended``: a queue holds it back; ``admitted_at``: when it was let go, ``None`` where it never was held
    * ``condition``: ``Complete`` or ``Failed`` once it has ended, with ``reason`` and ``message``
    * ``progress``: ``status.trainerStatus`` as it stands, empty where the Trainer does not fill it
    """

    name: str
    uid: str
    created: datetime
    identity: str = ""
    whole: str = ""
    delivered: bool = False
    runs_once: bool = False
    deleting: bool = False
    suspended: bool = False
    admitted_at: datetime | None = None
    condition: str | None = None
    reason: str = ""
    message: str = ""
    progress: tuple[tuple[str, Any], ...] = ()

    @property
    def active(self) -> bool:
        """Whether it may still train."""
        return self.condition is None and not self.deleting


@dataclass(frozen=True)
class PodState:
    """One pod of a workload.

    * ``rank``: node rank; ``node``: where it was scheduled, empty before
    * ``waiting``: reason and text of a container that has not started, or of a pod that cannot be scheduled
    * ``started_at``: when the program began; ``finished_at``, ``exit_code``, ``end`` (reason) and ``words``
      (termination message) once it has ended
    * ``disruption``: reason and text of ``DisruptionTarget``, e.g. of an eviction
    """

    name: str
    uid: str
    job: str
    rank: int = 0
    phase: str = "Pending"
    node: str = ""
    waiting: tuple[str, str] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    end: str = ""
    words: str = ""
    disruption: tuple[str, str] | None = None
    deleting: bool = False


def job_state(job: Mapping[str, Any]) -> JobState:
    """Read a TrainJob.

    :param job: the object as the API gives it.
    """
    metadata, status = job["metadata"], job.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    created = _time(metadata["creationTimestamp"])
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    end = _final(conditions, created)
    suspended = conditions.get("Suspended", {})
    held = suspended.get("status") == "True"
    return JobState(
        name=metadata["name"],
        uid=metadata["uid"],
        created=created,
        identity=labels.get(IDENTITY, ""),
        whole=labels.get(WHOLE, ""),
        delivered=DELIVERED in annotations,
        runs_once=annotations.get(RUNS_ONCE) == "true",
        deleting="deletionTimestamp" in metadata,
        # Before the controller has seen the object only its specification tells.
        suspended=held if suspended else bool((job.get("spec") or {}).get("suspend")),
        admitted_at=_time(suspended["lastTransitionTime"]) if suspended and not held else None,
        condition=end.get("type"),
        reason=end.get("reason", ""),
        message=end.get("message", ""),
        progress=tuple((status.get("trainerStatus") or {}).items()),
    )


def _final(conditions: Mapping[str, Mapping[str, Any]], created: datetime) -> Mapping[str, Any]:
    for kind in ("Complete", "Failed"):
        found = conditions.get(kind, {})
        # A name that is used again shows for a moment the end of the object that had it before.
        if found.get("status") == "True" and _time(found["lastTransitionTime"]) >= created:
            return found
    return {}


def pod_state(pod: Mapping[str, Any], container: str = "node") -> PodState:
    """Read a pod.

    :param pod: the object as the API gives it.
    :param container: the one that trains.
    """
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    states = {found["name"]: found for found in status.get("containerStatuses") or ()}
    ours = states.get(container, {})
    state = ours.get("state") or {}
    # Between two starts of a container its end stands one step further back.
    ended = state.get("terminated") or (ours.get("lastState") or {}).get("terminated") or {}
    began = (state.get("running") or ended).get("startedAt")
    disruption = conditions.get("DisruptionTarget", {})
    return PodState(
        name=metadata["name"],
        uid=metadata["uid"],
        job=labels.get(JOB, ""),
        rank=int(labels.get(RANK) or 0),
        phase=status.get("phase", "Pending"),
        node=(pod.get("spec") or {}).get("nodeName", ""),
        waiting=_waiting((*(status.get("initContainerStatuses") or ()), ours), conditions),
        started_at=_time(began) if began else None,
        finished_at=_time(ended["finishedAt"]) if ended.get("finishedAt") else None,
        exit_code=ended.get("exitCode"),
        end=ended.get("reason", ""),
        words=ended.get("message", ""),
        disruption=_why(disruption) if disruption.get("status") == "True" else None,
        deleting="deletionTimestamp" in metadata,
    )


def _waiting(
    containers: Iterable[Mapping[str, Any]], conditions: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting:
            return _why(waiting)
    scheduled = conditions.get("PodScheduled", {})
    return _why(scheduled) if scheduled.get("status") == "False" else None


def _why(said: Mapping[str, Any]) -> tuple[str, str]:
    return said.get("reason", ""), said.get("message", "")


def phase_of(job: JobState, pods: Iterable[PodState]) -> Phase:
    """Return where a training is: conditions first, then the pods; the Trainer's own counters lag and flicker.

    :param job: the workload.
    :param pods: its pods, as far as they are known; one that is gone may be among them.
    """
    if job.condition:
        return Phase.SUCCEEDED if job.condition == "Complete" else Phase.FAILED
    if job.suspended:
        return Phase.QUEUED
    return Phase.RUNNING if any(pod.started_at for pod in pods) else Phase.STARTING


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
