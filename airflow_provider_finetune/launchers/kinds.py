"""The two objects that a training may be on a cluster: all in which they differ, beside how they are rendered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_provider_finetune.launchers import pod, trainjob
from airflow_provider_finetune.launchers.observed import WHOLE, JobState, PodState, pod_state
from airflow_provider_finetune.launchers.trainjob import job_state


@dataclass(frozen=True)
class Kind:
    """One kind of workload.

    * ``name``: the launcher that makes it, and what ``kubectl`` calls it; ``title``: what sentences call it
    * ``resource``: of the API; ``selector``: labels that tell it from other objects of that resource, ``None`` for any
      value
    * ``container``: name of the one that trains
    * ``read``: reads it as a workload; ``read_pod``: reads a pod of it, given how that was seen before, and the present
    """

    name: str
    title: str
    resource: str
    container: str
    read: Callable[[Mapping[str, Any]], JobState]
    read_pod: Callable[[Mapping[str, Any], PodState | None, datetime], PodState]
    selector: tuple[tuple[str, str | None], ...] = ()


TRAINJOB = Kind(
    "trainjob", "TrainJob", "trainjobs", trainjob.NODE, job_state, lambda found, before, now: pod_state(found)
)
POD = Kind(
    # The pods of a TrainJob lack this label.
    "pod",
    pod.TITLE,
    "pods",
    pod.BASE,
    pod.workload_state,
    pod.bare_pod_state,
    selector=((WHOLE, None),),
)

KINDS = {kind.name: kind for kind in (TRAINJOB, POD)}
"""By the launcher that makes it."""
