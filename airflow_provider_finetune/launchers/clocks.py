"""The three clocks of a training, computed from the cluster's own times: who looks, and since when, changes nothing.

Each belongs to one phase and begins with it. So waiting in a queue never eats training time, and a training that a
queue took back for another starts all three anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from airflow_provider_finetune.launchers.observed import JobState, PodState
from airflow_provider_finetune.launchers.phases import Phase, entered, program_started

CLOCKS = {Phase.QUEUED: "queue_timeout", Phase.STARTING: "startup_timeout", Phase.RUNNING: "training_timeout"}
"""Which argument of the operators limits which phase."""


@dataclass(frozen=True)
class Clock:
    """One clock that runs.

    * ``name``: the operators' argument; ``limit``: its value in seconds
    * ``since``: when it began
    """

    name: str
    limit: float
    since: datetime

    def left(self, now: datetime) -> float:
        """Return the seconds until it runs out; 0 or less where it has.

        :param now: the present, with a time zone.
        """
        return self.limit - (now - self.since).total_seconds()


def running_clock(
    limits: Mapping[str, float | None], phase: Phase, job: JobState, pods: Iterable[PodState]
) -> Clock | None:
    """Return the clock of a phase, ``None`` where that phase has no limit.

    :param limits: seconds by the names in :data:`CLOCKS`.
    :param phase: where the training is.
    :param job: the workload.
    :param pods: its pods, as far as they are known.
    """
    name = CLOCKS.get(phase, "")
    limit = limits.get(name)
    return None if limit is None else Clock(name, limit, entered(phase, job, pods))


def spent_before(phase: Phase, job: JobState, pods: Sequence[PodState]) -> dict[str, float]:
    """Return what the phases took that were over when a training was first looked at, as far as its objects tell.

    :param phase: where the training is.
    :param job: the workload.
    :param pods: its pods, as far as they are known.
    """
    started = program_started(job, pods)
    let_go = job.admitted_at or job.created
    spans = {
        Phase.QUEUED: (job.created, job.admitted_at if phase is not Phase.QUEUED else None),
        Phase.STARTING: (let_go, started if phase is not Phase.STARTING else None),
        Phase.RUNNING: (started, job.ended_at),
    }
    return {
        name.value: max(0.0, (end - begin).total_seconds()) for name, (begin, end) in spans.items() if begin and end
    }
