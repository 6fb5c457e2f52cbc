"""What becomes of the workloads that earlier tries of a task have left. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from airflow_provider_finetune.launchers.observed import JobState


@dataclass(frozen=True)
class Adoption:
    """What to do before the task waits.

    * ``follow``: the workload to wait for, or to collect where it has succeeded; ``None``: make a new one
    * ``delete``: what still trains, and must not
    * ``failed``: where there is nothing to follow, one that has failed and whose end nobody has passed on
    """

    follow: JobState | None
    delete: tuple[JobState, ...]
    failed: JobState | None = None


def adopt(existing: Iterable[JobState], *, identity: str, whole: str, first_try: int) -> Adoption:
    """Decide on the workloads of a task instance.

    An active one of the same request is followed, of several the oldest; one that has succeeded and that nobody has
    collected is collected; all other active ones are deleted. A cleared task trains anew: what is delivered is not
    taken again, and what an earlier try trains is not followed, as the trigger that waited for it is about to end it.
    A task that is tried again without that has not come to its end: what it has delivered is delivered again.
    A failed one is no obstacle, unless it fails each time: that is for the caller to see.

    :param existing: workloads found by label; those of another identity are left alone.
    :param identity: value of the label of this task instance.
    :param whole: value of the label of this request.
    :param first_try: number of the first try since the user has cleared the task.
    """
    ours = sorted((job for job in existing if job.identity == identity), key=_age)
    active = [job for job in ours if job.active]
    same = [job for job in active if job.whole == whole and job.try_number >= first_try]
    done = [job for job in ours if job.condition == "Complete" and job.whole == whole and not job.deleting]
    done = [job for job in done if not job.delivered or job.try_number >= first_try]
    follow = next(iter([*same, *reversed(done)]), None)
    lost = [job for job in ours if job.condition == "Failed" and job.whole == whole and job.try_number >= first_try]
    failed = None if follow else next((job for job in reversed(lost) if not job.delivered and not job.deleting), None)
    return Adoption(follow, tuple(job for job in active if job is not follow), failed)


def leftovers(existing: Iterable[JobState], success: JobState) -> list[JobState]:
    """Return which older workloads of the same task a success makes useless.

    A failed one of another run may still be read by the task that waits for it, unless that has noted its end.

    :param existing: workloads of the task, found by label, of all runs.
    :param success: the one that has succeeded.
    """
    return [
        job
        for job in sorted(existing, key=_age)
        if job.condition
        and not job.deleting
        and _age(job) < _age(success)
        and (job.identity == success.identity or (job.condition == "Failed" and job.delivered))
    ]


def _age(job: JobState) -> tuple[object, ...]:
    return job.created, job.name
