"""Why a training does not start, and what came of one that has ended, from jobs, pods and events. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from airflow_provider_finetune.cluster.causes import NO_POD_RULES, POD_RULES, Rule
from airflow_provider_finetune.contract.durations import duration
from airflow_provider_finetune.contract.outcome import (
    DATA_MARK,
    PEER_FAILED,
    Failure,
    FailureClass,
    Outcome,
    UnreadableOutcome,
)
from airflow_provider_finetune.launchers.clocks import Clock
from airflow_provider_finetune.launchers.observed import JobState, PodState

_LONGEST_TEXT = 500
_LONGEST_LOG = 2048
"""Bytes that a kubelet keeps of the log of a program that has left no message."""


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
    waits = [(f"Pod {pod.name}", *(pod.waiting or ("", ""))) for pod in starting]
    shown = [found for wait in waits if (found := _by_rule(POD_RULES, *wait, nodes))]
    # The text of a back-off may be only that; then the events tell what it backs off from.
    clear = [found for found in shown if found.failure.cause != "image_pull"]
    if clear:
        return clear[0]
    said = sorted(events, key=_event_time)
    for pod in starting:
        for event in reversed(_troubles(said, pod)):
            found = _by_rule(POD_RULES, f"Pod {pod.name}", event.get("reason", ""), event.get("message", ""), nodes)
            if found:
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


def _by_rule(rules: Iterable[Rule], where: str, reason: str, text: str, nodes: int = 1) -> Stuck | None:
    rule = next((rule for rule in rules if rule.fits(reason, text)), None)
    if rule is None or not rule.cause:
        return None
    message = f"{rule.what}. {where}: {_shortened(text) or reason}"
    failure_class = "user" if rule.one_node and nodes > 1 else rule.failure_class
    failure = Failure(failure_class=failure_class, cause=rule.cause, message=message, cure=rule.cure)
    return Stuck(failure, hopeless=failure_class == "user")


def _unexplained(job: JobState, starting: Sequence[PodState]) -> Failure:
    if not starting:
        return Failure(
            failure_class="infrastructure",
            cause="no_pods",
            message=f"{job.title} {job.name} has no pods, and nothing says why",
            cure="See whether the controllers of Kubeflow Trainer and JobSet run",
        )
    pod = starting[0]
    reason, text = pod.waiting or ("", "")
    said = f"{reason}: {_shortened(text)}" if text else reason
    return Failure(
        failure_class="infrastructure",
        cause="slow_start",
        message=f"Pod {pod.name} on {pod.node or 'no node yet'} has not started its program ({said or pod.phase})",
        cure="A large image takes long to pull the first time; 'kubectl describe pod' shows what it does",
    )


def _event_time(event: Mapping[str, Any]) -> datetime:
    metadata = event.get("metadata") or {}
    text = event.get("lastTimestamp") or event.get("eventTime") or metadata.get("creationTimestamp")
    return datetime.fromisoformat((text or "1970-01-01T00:00:00Z").replace("Z", "+00:00"))


def _shortened(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")  # a sentence of ours goes on
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"


def events_of(job: JobState, pods: Iterable[PodState]) -> list[str]:
    """Return the names of the objects whose events may tell why a job does not start.

    :param job: the workload.
    :param pods: its pods, as far as they are known.
    """
    return [*(pod.name for pod in pods if pod.live), f"{job.name}-node-0", job.name]


def why_queued(job: JobState, events: Iterable[Mapping[str, Any]]) -> Stuck | None:
    """Return what a queue says of a job that it holds back, ``None`` where it says nothing.

    :param job: the workload.
    :param events: of Kueue's own object for it, or of the job.
    """
    said = [event for event in sorted(events, key=_event_time) if event.get("reason") in _QUEUE_REASONS]
    if not said:
        return None
    message = f"The queue says of {job.title} {job.name}: {_shortened(said[-1].get('message') or '')}"
    cure = "Wait for other jobs of the queue, ask for less, or name another by queue_name="
    return Stuck(_failure("resources", "queued", message, cure), hopeless=False)


_QUEUE_REASONS = ("Pending", "Inadmissible", "Stopped", "Preempted")


def run_out(clock: Clock, now: datetime, stuck: Stuck | None) -> Failure:
    """Say which clock has run out, and what was waited for.

    :param clock: the one that has.
    :param now: the present.
    :param stuck: what was waited for, as far as that is known.
    """
    waited, limit = duration(clock.limit - clock.left(now)), f"{clock.name}={clock.limit:g} s"
    if clock.name == "training_timeout":
        message = f"The training was ended after {waited}, by {limit}"
        cure = "Raise training_timeout, or train less (training_num_epochs, fewer rows)"
        return Failure(failure_class="resources", cause=clock.name, message=message, cure=cure)
    what = "The queue did not let the job in" if clock.name == "queue_timeout" else "The program did not start"
    message = f"{what} within {limit} and the job was deleted after {waited}"
    if stuck is None:
        cure = f"Raise {clock.name}, or see what the queue or the cluster is busy with"
        return Failure(failure_class="resources", cause=clock.name, message=message, cure=cure)
    cause = stuck.failure
    return replace(
        cause, cause=clock.name, message=f"{message}. {cause.message}", cure=f"{cause.cure}, or raise {clock.name}"
    )


NO_OUTCOME = "no_outcome"
"""Cause of a job that is complete and has left no word: its model may be there."""

_KILLED, _SEGFAULT, _TERMINATED = 137, 139, 143
_RUNNER_SAW_ONLY_A_SIGNAL = ("killed", "library_crash", "terminated")
_RETRY = "A retry trains on from the last checkpoint"


def outcome_of(job: JobState, pods: Iterable[PodState], said: Outcome | None = None) -> Outcome:
    """Return what came of a training whose job has ended; only the word of the runner itself is a success.

    :param job: the workload, with its final condition.
    :param pods: its pods, those that have gone included.
    :param said: what rank 0 has printed as its outcome, where its log was read.
    """
    pods = list(pods)
    rank_0 = sorted((pod for pod in pods if pod.rank == 0 and pod.finished_at), key=_finished)
    words = [found for pod in rank_0 if (found := _outcome_in(pod.words))]
    outcome = words[-1] if words else said
    if job.condition == "Complete":
        return outcome or Outcome(status="failed", failure=_no_outcome(job))
    failure = why_failed(job, pods)
    if outcome is None:
        return Outcome(status="failed", failure=failure)
    if outcome.failure and failure.cause in ("job_failed", outcome.failure.cause):
        return outcome
    return replace(outcome, status="failed", failure=failure)


def deleted(named: str, pods: Iterable[PodState]) -> Outcome:
    """Return what came of a training whose workload is no longer there.

    A pod of its own takes its end with it, which was seen in it before: an eviction, or even a success.

    :param named: the workload in a sentence.
    :param pods: its pods as they were last seen.
    """
    last = max((pod.workload for pod in pods if pod.workload), key=lambda job: job.created, default=None)
    if last and last.condition:
        return outcome_of(last, pods)
    disrupted = next((pod for pod in pods if pod.workload and pod.disruption), None)
    if disrupted:
        return Outcome(status="failed", failure=_evicted(disrupted))
    message = f"{named} was deleted before it had ended"
    return Outcome(status="failed", failure=_failure("preempted", "deleted", message, _RETRY))


def why_failed(job: JobState, pods: Iterable[PodState]) -> Failure:
    """Return why a job has failed: what ended first is the culprit, the others end because it has.

    :param job: the workload.
    :param pods: its pods, those that have gone included.
    """
    if job.reason == "DeadlineExceeded":
        message = f"{job.title} {job.name} ran longer than its deadline allows"
        cure = "Raise training_timeout, or train less (training_num_epochs, fewer rows)"
        return _failure("resources", "training_timeout", message, cure)
    pods = list(pods)
    ended = sorted((pod for pod in pods if pod.fault or (pod.finished_at and pod.exit_code)), key=_culprit_first)
    if ended:
        return _why_pod_ended(ended[0])
    disrupted = next((pod for pod in pods if pod.disruption), None)
    if disrupted:
        return _evicted(disrupted)
    lost = next((pod for pod in pods if not pod.live and not pod.finished_at), None)
    if lost:
        return _failure("preempted", "pod_deleted", f"Pod {lost.name} was deleted while it trained", _RETRY)
    message = f"{job.title} {job.name} failed and no pod is left to tell why. {job.reason}: {_shortened(job.message)}"
    cure = "A runtime with restartPolicy Never and backoffLimit 0 keeps the pod that failed"
    return _failure("infrastructure", "job_failed", message, cure)


_CONSEQUENCES = (PEER_FAILED, "terminated")
"""Causes that a runner gives where another pod has ended first, or somebody has ended it."""


def _finished(pod: PodState) -> datetime:
    return pod.finished_at or pod.created


def _culprit_first(pod: PodState) -> tuple[bool, datetime, int]:
    # Times are whole seconds, and an end by SIGTERM is mostly the consequence of another.
    weight = 0 if pod.end == "OOMKilled" else 2 if pod.exit_code == _TERMINATED else 1
    told = _outcome_in(pod.words)
    follows = told is not None and told.failure is not None and told.failure.cause in _CONSEQUENCES
    return follows and pod.end != "OOMKilled", _finished(pod), weight


def _why_pod_ended(pod: PodState) -> Failure:
    told = _outcome_in(pod.words)
    failure = told.failure if told else None
    kubernetes_knows_more = pod.end == "OOMKilled" or pod.disruption is not None
    if failure and not (kubernetes_knows_more and failure.cause in _RUNNER_SAW_ONLY_A_SIGNAL):
        return failure
    log_tail = [] if told else _last_lines(pod)[-20:]
    return replace(_by_exit(pod), log_tail=failure.log_tail if failure else log_tail)


def _by_exit(pod: PodState) -> Failure:
    """Say why a pod ended by what its container shows: the reason before the exit code, which may be any."""
    if pod.end == "OOMKilled":
        message = f"{_named(pod)} used up its memory and was ended by the kernel"
        cure = "Raise training_resource_memory_per_worker, or lower training_max_tokens_per_gpu or training_max_seq_len"
        return _failure("resources", "out_of_memory", message, cure)
    if pod.disruption:
        return _evicted(pod)
    if pod.fault:
        reason, text = pod.fault
        message = f"{_named(pod)} failed, and not by its program. {reason}: {_shortened(text)}"
        return _failure("infrastructure", "pod_failed", message, "Look at its node, and at what the runtime adds to it")
    if pod.end in ("StartError", "ContainerCannotRun"):
        message = f"{_named(pod)} could not start its program: {_shortened(pod.words)}"
        return _failure("user", "program_missing", message, "Take an image that has python3 on its PATH")
    if "argument list too long" in pod.words:
        message = f"{_named(pod)} could not start its program: {_shortened(pod.words)}"
        cure = "Shorten training_envs and extra_args, or set runner='configmap' or 'image'"
        return _failure("user", "arguments_too_long", message, cure)
    return _by_exit_code(pod)


def _by_exit_code(pod: PodState) -> Failure:
    if pod.exit_code == _KILLED:
        message = f"{_named(pod)} was killed (exit code 137), and not for its memory limit"
        cure = "Its node may have been short of memory, or it outlived its grace period; see the node's events"
        return _failure("infrastructure", "killed", message, cure)
    if pod.exit_code == _TERMINATED:
        message = f"{_named(pod)} was told to end (SIGTERM) and left no outcome"
        return _failure("preempted", "terminated", message, f"Its pod or node was taken away. {_RETRY}")
    how = "crashed with a segmentation fault" if pod.exit_code == _SEGFAULT else f"exited with code {pod.exit_code}"
    lines = _last_lines(pod)
    last = f"; its last line: {_shortened(lines[-1])}" if lines else ""
    message = f"{_named(pod)} {how} and left no outcome{last}"
    return _failure("infrastructure", "runner_died", message, "Look at its last lines in this log")


def _last_lines(pod: PodState) -> list[str]:
    """Return the end of a pod's log without text of the data, which the first line may be the rest of."""
    cut = len(pod.words.encode()) >= _LONGEST_LOG
    lines = pod.words.splitlines()[1 if cut else 0 :]
    return [line for line in lines if line.strip() and not line.startswith(DATA_MARK)]


def _evicted(pod: PodState) -> Failure:
    reason, text = pod.disruption or ("", "")
    message = f"{_named(pod)} was taken from its node. {reason}: {_shortened(text)}"
    return _failure("preempted", "evicted", message, _RETRY)


def _no_outcome(job: JobState) -> Failure:
    message = f"{job.title} {job.name} is complete and has left no word of its model"
    return _failure("infrastructure", NO_OUTCOME, message, "A retry finds the model in the work directory")


def _named(pod: PodState) -> str:
    return f"Pod {pod.name} (rank {pod.rank}, node {pod.node or 'unknown'})"


def _failure(failure_class: FailureClass, cause: str, message: str, cure: str) -> Failure:
    return Failure(failure_class=failure_class, cause=cause, message=message, cure=cure)


def _outcome_in(words: str) -> Outcome | None:
    try:
        return Outcome.from_json(words) if words else None
    except UnreadableOutcome:
        return None
