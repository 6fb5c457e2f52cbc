"""What the cluster says of one training, read from its objects into small records. Pure functions on dicts.

A watch keeps these records and not the objects: a pod is some 10 kB of JSON, of which a training needs a few words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
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

FOLLOWER = f"{DOMAIN}/follower"
"""Annotation of a workload that a later try waits for than the one that has made it: Airflow's id of that try."""

RUNS_ONCE = f"{DOMAIN}/runs-once"
"""Annotation ``true`` of a workload that nothing starts again after it has failed: only such a one may be kept."""

TRY_NUMBER = f"{DOMAIN}/try_number"
"""Annotation: number of the task's try that has made a workload."""

RANK = "batch.kubernetes.io/job-completion-index"


SAME_TIME = timedelta(seconds=5)
"""By how much the clocks of API server, controllers and nodes may differ, with times that are told in whole seconds."""


@dataclass(frozen=True, slots=True)
class JobState:
    """One workload: a TrainJob, or a pod that is its own.

    * ``title``: what it is called in sentences
    * ``try_number``: the task's try that has made it
    * ``suspended``: a queue holds it back, since ``suspended_at``; ``admitted_at``: when it was let go. Both are
      ``None`` where the controller has not said so
    * ``condition``: ``Complete`` or ``Failed`` once it has ended, with ``reason``, ``message`` and ``ended_at``
    * ``progress``: ``status.trainerStatus`` as it stands, empty where the Trainer does not fill it
    """

    name: str
    uid: str
    created: datetime
    title: str = "TrainJob"
    identity: str = ""
    whole: str = ""
    try_number: int = 0
    delivered: bool = False
    runs_once: bool = False
    deleting: bool = False
    suspended: bool = False
    suspended_at: datetime | None = None
    admitted_at: datetime | None = None
    condition: str | None = None
    reason: str = ""
    message: str = ""
    ended_at: datetime | None = None
    progress: tuple[tuple[str, Any], ...] = ()

    @property
    def active(self) -> bool:
        """Whether it may still train."""
        return self.condition is None and not self.deleting


@dataclass(frozen=True, slots=True)
class PodState:
    """One pod of a workload.

    * ``rank``: node rank; ``node``: where it was scheduled, empty before
    * ``waiting``: reason and text of a container that has not started, or of a pod that cannot be scheduled
    * ``started_at``: when the program began, for the first time where it was started again
    * ``finished_at``, ``exit_code``, ``end`` (reason) and ``words`` (termination message): of its last end, also where
      it was started again
    * ``fault``: reason and text where it failed by something else than its program, which may have ended by that: its
      node, or an init container
    * ``restarts``: how often it was started again
    * ``disruption``: reason and text of ``DisruptionTarget``, e.g. of an eviction
    * ``silent``: its node does not answer, so that nobody knows whether it runs
    * ``deleting``: it is being ended; ``gone``: it is no longer there, and this is the last that was seen of it
    * ``workload``: what it says as a workload of its own, ``None`` for a pod of a TrainJob
    """

    name: str
    uid: str
    job: str
    created: datetime
    rank: int = 0
    phase: str = "Pending"
    node: str = ""
    waiting: tuple[str, str] | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    exit_code: int | None = None
    end: str = ""
    words: str = ""
    fault: tuple[str, str] | None = None
    restarts: int = 0
    disruption: tuple[str, str] | None = None
    silent: bool = False
    deleting: bool = False
    gone: bool = False
    workload: JobState | None = None

    @property
    def live(self) -> bool:
        """Whether it is neither gone nor about to go."""
        return not self.gone and not self.deleting


def marks_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a workload's state that stand in our own labels and annotations.

    :param metadata: of the object.
    """
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return {
        # A label is easily copied: what lacks the annotation is somebody else's, neither to be followed nor deleted.
        "identity": labels.get(IDENTITY, "") if TRY_NUMBER in annotations else "",
        "whole": labels.get(WHOLE, ""),
        "try_number": int(annotations.get(TRY_NUMBER) or 0),
        "delivered": DELIVERED in annotations,
    }


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
    # Between two starts of a container its end stands one step further back. Of two that failed the first is the cause:
    # a program that was started again is often ended only because the first had failed.
    now, before = state.get("terminated"), (ours.get("lastState") or {}).get("terminated")
    ended = (now if now and not now.get("exitCode") else before or now) or {}
    created = time_of(metadata["creationTimestamp"])
    disruption = conditions.get("DisruptionTarget", {})
    return PodState(
        name=metadata["name"],
        uid=metadata["uid"],
        job=labels.get(JOB, ""),
        created=created,
        rank=int(labels.get(RANK) or 0),
        phase=status.get("phase", "Pending"),
        node=(pod.get("spec") or {}).get("nodeName", ""),
        waiting=_waiting((*(status.get("initContainerStatuses") or ()), ours), conditions),
        started_at=_first_start(ours, ended, created, conditions),
        finished_at=time_of(ended["finishedAt"]) if ended.get("finishedAt") else None,
        exit_code=ended.get("exitCode"),
        end=ended.get("reason", ""),
        words=ended.get("message", ""),
        fault=_fault(status) if status.get("phase") == "Failed" and (status.get("reason") or not ended) else None,
        restarts=int(ours.get("restartCount") or 0),
        disruption=_why(disruption) if disruption.get("status") == "True" else None,
        silent=is_silent(pod),
        deleting="deletionTimestamp" in metadata,
    )


def is_silent(pod: Mapping[str, Any]) -> bool:
    """Return whether the node of a pod does not answer, so that nobody knows whether the pod runs.

    Then the cluster calls the pod not ready; its node would give a reason for that, and say so of a container as well.

    :param pod: the object as the API gives it.
    """
    status = pod.get("status") or {}
    ready = {condition["type"]: condition for condition in status.get("conditions") or ()}.get("Ready", {})
    containers = status.get("containerStatuses") or ()
    called_so = ready.get("status") == "False" and not ready.get("reason")
    return called_so and bool(containers) and all(container.get("ready") for container in containers)


def _waiting(
    containers: Iterable[Mapping[str, Any]], conditions: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting:
            return _why(waiting)
    scheduled = conditions.get("PodScheduled", {})
    return _why(scheduled) if scheduled.get("status") == "False" else None


def _first_start(
    container: Mapping[str, Any],
    ended: Mapping[str, Any],
    created: datetime,
    conditions: Mapping[str, Mapping[str, Any]],
) -> datetime | None:
    running = (container.get("state") or {}).get("running")
    text = (running or ended).get("startedAt")
    # A program that could not be started is told to have begun in 1970.
    if not text or (not running and time_of(text) < created - SAME_TIME):
        return None
    if container.get("restartCount") and "Initialized" in conditions:
        # Only its last start is told; all else before the first was done when the pod was initialised.
        text = conditions["Initialized"]["lastTransitionTime"]
    return time_of(text)


def _fault(status: Mapping[str, Any]) -> tuple[str, str] | None:
    for container in status.get("initContainerStatuses") or ():
        end = (container.get("state") or {}).get("terminated") or {}
        if end.get("exitCode"):
            how = f"init container {container['name']!r} exited with code {end['exitCode']}"
            return end.get("reason", ""), f"{how}: {end['message']}" if end.get("message") else how
    return _why(status) if status.get("reason") else None


def _why(said: Mapping[str, Any]) -> tuple[str, str]:
    return said.get("reason", ""), said.get("message", "")


def time_of(text: str) -> datetime:
    """Return a time as the API writes it.

    :param text: e.g. ``2026-01-31T12:00:00Z``.
    """
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
