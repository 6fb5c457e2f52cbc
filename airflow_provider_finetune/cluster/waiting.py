"""Why a training does not start yet, from its job, pods and events, and from what a queue says of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from airflow_provider_finetune.cluster.causes import NO_POD_RULES, POD_RULES, QUEUE_RULES, SCHEDULING_RULES, Rule
from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.launchers.observed import JobState, PodState

_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Stuck:
    """Why a start takes long. ``hopeless``: time will not mend it, the DAG author must."""

    failure: Failure
    hopeless: bool


_GOES_ON = ("Pulling", "Pulled", "Created", "Started", "Scheduled", "SuccessfulAttachVolume")
"""Events of a pod after which earlier troubles are over."""


def why_stuck(job: JobState, pods: Iterable[PodState], events: Iterable[Mapping[str, Any]], nodes: int = 1) -> Stuck:
    """Return why a job that may start does not run yet, by the object nearest to the program that says something.

    :param job: the workload.
    :param pods: its pods, as far as they are known.
    :param events: of pods, Job, JobSet and TrainJob, as the API gives them; none where they were not asked for.
    :param nodes: how many pods train together.
    """
    starting = [pod for pod in pods if pod.live and not pod.started_at]
    shown = [found for pod in starting if (found := _by_pod(pod, *(pod.waiting or ("", "")), nodes))]
    # The text of a back-off may be only that; then the events tell what it backs off from.
    clear = [found for found in shown if found.failure.cause != "image_pull"]
    if clear:
        return clear[0]
    said = sorted(events, key=_event_time)
    for pod in starting:
        for event in reversed(_troubles(said, pod)):
            if found := _by_pod(pod, event.get("reason", ""), event.get("message", ""), nodes):
                return found
    found = _why_no_pod(said) if len(starting) < nodes else None
    return found or next(iter(shown), None) or Stuck(_unexplained(job, starting), hopeless=False)


def _why_no_pod(events: Sequence[Mapping[str, Any]]) -> Stuck | None:
    for kind in ("Job", "JobSet", "TrainJob"):
        for event in reversed(events):
            about = event.get("involvedObject") or {}
            if about.get("kind") == kind:
                where = f"{kind} {about.get('name')}"
                found = _by_rule(NO_POD_RULES, where, event.get("reason", ""), event.get("message", ""))
                if found:
                    return found
    return None


def _troubles(events: Sequence[Mapping[str, Any]], pod: PodState) -> list[Mapping[str, Any]]:
    ours = [event for event in events if (event.get("involvedObject") or {}).get("uid") == pod.uid]
    last = max((index for index, event in enumerate(ours) if event.get("reason") in _GOES_ON), default=-1)
    # A pull that fails begins anew each time, so what it failed with stands before.
    pulling = bool(pod.waiting and "Image" in pod.waiting[0])
    return ours if pulling else ours[last + 1 :]


def _by_pod(pod: PodState, reason: str, text: str, nodes: int) -> Stuck | None:
    where = f"Pod {pod.name}"
    return _by_rule(POD_RULES, where, reason, text, nodes) or _by_scheduling(where, reason, text, nodes)


def _by_scheduling(where: str, reason: str, text: str, nodes: int) -> Stuck | None:
    """Read what a scheduler says: of each node what keeps the pod from it, and any of that may be what to mend."""
    fitting = [rule for rule in SCHEDULING_RULES if rule.fits(reason, text)]
    if not fitting:
        return None
    first, *others = fitting
    # The last rule is of what no other knows.
    others = [rule for rule in others if rule.text]
    what = "; ".join([first.what, *(rule.what[0].lower() + rule.what[1:] for rule in others)])
    cure = ". Or: ".join(rule.cure for rule in (first, *others))
    return _by_rule([replace(first, what=what, cure=cure)], where, reason, text, nodes)


def _by_rule(rules: Iterable[Rule], where: str, reason: str, text: str, nodes: int = 1) -> Stuck | None:
    rule = next((rule for rule in rules if rule.fits(reason, text)), None)
    if rule is None or not rule.cause:
        return None
    failure = failure_of(rule.cause, f"{rule.what}. {where}: {shortened(text) or reason}", rule.cure)
    if rule.one_node and nodes > 1:
        failure = replace(failure, failure_class="user")
    return Stuck(failure, hopeless=failure.failure_class == "user")


def _unexplained(job: JobState, starting: Sequence[PodState]) -> Failure:
    if not starting:
        message = f"{job.title} {job.name} has no pods, and nothing says why"
        return failure_of("no_pods", message, "See whether the controllers of Kubeflow Trainer and JobSet run")
    pod = starting[0]
    reason, text = pod.waiting or ("", "")
    said = f"{reason}: {shortened(text)}" if text else reason
    return failure_of(
        "slow_start",
        f"Pod {pod.name} on {pod.node or 'no node yet'} has not started its program ({said or pod.phase})",
        "A large image takes long to pull the first time; 'kubectl describe pod' shows what it does",
    )


def _event_time(event: Mapping[str, Any]) -> datetime:
    metadata = event.get("metadata") or {}
    text = event.get("lastTimestamp") or event.get("eventTime") or metadata.get("creationTimestamp")
    return datetime.fromisoformat((text or "1970-01-01T00:00:00Z").replace("Z", "+00:00"))


def shortened(text: str) -> str:
    """Return a text of Kubernetes as a part of a sentence of ours."""
    text = " ".join(text.split()).rstrip(".")  # a sentence of ours goes on
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"


def events_of(job: JobState, pods: Iterable[PodState]) -> list[str]:
    """Return the names of the objects whose events may tell why a job does not start.

    :param job: the workload.
    :param pods: its pods, as far as they are known.
    """
    return [*(pod.name for pod in pods if pod.live), f"{job.name}-node-0", job.name]


def why_queued(
    job: JobState, events: Iterable[Mapping[str, Any]], conditions: Iterable[Mapping[str, Any]] = ()
) -> Stuck | None:
    """Return what a queue says of a job that it holds back, ``None`` where it says nothing.

    :param job: the workload.
    :param events: of Kueue's own object for it, or of the job.
    :param conditions: of Kueue's own object, where it may be read: not all that it says becomes an event.
    """
    held = [one for one in conditions if (one.get("type"), one.get("status")) == ("QuotaReserved", "False")]
    for said in [*held, *sorted(events, key=_event_time, reverse=True)]:
        found = _by_rule(QUEUE_RULES, f"{job.title} {job.name}", said.get("reason", ""), said.get("message") or "")
        if found:
            return found
    return None
