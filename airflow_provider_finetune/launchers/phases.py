"""Where a training is, and since when, as the cluster's own times tell it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum

from airflow_provider_finetune.launchers.observed import SAME_TIME, JobState, PodState


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


def phase_of(job: JobState, pods: Iterable[PodState], nodes: int = 1) -> Phase:
    """Return where a training is: conditions first, then the pods; the Trainer's own counters lag and flicker.

    It is running once the program has been started on every node, and stays so while pods end and no new ones are
    there: they go a moment before the job is said to have failed or to be held back again.

    :param job: the workload.
    :param pods: its pods, as far as they are known; one that is gone may be among them.
    :param nodes: how many pods train together.
    """
    if job.condition:
        return Phase.SUCCEEDED if job.condition == "Complete" else Phase.FAILED
    if job.suspended:
        return Phase.QUEUED
    started = [pod for pod in _newest(job, pods).values() if pod.started_at]
    return Phase.RUNNING if len(started) >= nodes else Phase.STARTING


def entered(phase: Phase, job: JobState, pods: Iterable[PodState]) -> datetime:
    """Return when a training came into its phase, as the cluster's own times tell it.

    :param phase: what :func:`phase_of` has returned for the same job and pods.
    :param job: the workload.
    :param pods: its pods, as far as they are known.
    """
    if phase.final:
        return job.ended_at or job.created
    if phase is Phase.QUEUED:
        return job.suspended_at or job.created
    newest = _newest(job, pods).values()
    starts = [pod.started_at for pod in newest if pod.started_at]
    let_go = job.admitted_at or job.created
    if phase is Phase.RUNNING:
        return max(starts, default=let_go)
    # A pod that takes the place of one that had trained for hours begins to start when it is made.
    return max(let_go, min((pod.created for pod in newest if not pod.started_at), default=let_go))


def program_started(job: JobState, pods: Iterable[PodState]) -> datetime | None:
    """Return when the program was running on all nodes that are known, ``None`` before the first.

    :param job: the workload.
    :param pods: its pods, as far as they are known.
    """
    return max((pod.started_at for pod in _newest(job, pods).values() if pod.started_at), default=None)


def _newest(job: JobState, pods: Iterable[PodState]) -> dict[int, PodState]:
    """Return by rank the pod that was made last, be it gone, of those made since the job was last let go."""
    since = (job.admitted_at or job.created) - SAME_TIME
    return {pod.rank: pod for pod in sorted(pods, key=lambda pod: pod.created) if pod.created >= since}
