"""What came of a training that has ended, and where it was seen to fail, from its job and its pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from airflow_provider_finetune.cluster.ends import DISRUPTION_RULES, NODE_LOST, RETRY
from airflow_provider_finetune.cluster.waiting import Stuck, shortened
from airflow_provider_finetune.contract.causes import failure_of
from airflow_provider_finetune.contract.durations import duration
from airflow_provider_finetune.contract.last_words import NCCL_FAILURE, last_exception, meaning_of_log
from airflow_provider_finetune.contract.outcome import DATA_MARK, PEER_FAILED, Failure, Outcome, UnreadableOutcome
from airflow_provider_finetune.launchers.clocks import Clock
from airflow_provider_finetune.launchers.observed import JobState, PodState

_LONGEST_LOG = 2048
"""Bytes that a kubelet keeps of the log of a program that has left no message."""

_TAKES_LONG = "Raise training_timeout, or train less (training_num_epochs, fewer rows)"


def run_out(clock: Clock, now: datetime, stuck: Stuck | None) -> Failure:
    """Say which clock has run out, and what was waited for.

    :param clock: the one that has.
    :param now: the present.
    :param stuck: what was waited for, as far as that is known.
    """
    waited, limit = duration(clock.limit - clock.left(now)), f"{clock.name}={clock.limit:g} s"
    if clock.name == "training_timeout":
        return failure_of(clock.name, f"The training was ended after {waited}, by {limit}", _TAKES_LONG)
    what = "The queue did not let the job in" if clock.name == "queue_timeout" else "The program did not start"
    message = f"{what} within {limit} and the job was deleted after {waited}"
    if stuck is None:
        cure = f"Raise {clock.name}, or see what the queue or the cluster is busy with"
        return failure_of(clock.name, message, cure)
    cause = stuck.failure
    return replace(
        cause, cause=clock.name, message=f"{message}. {cause.message}", cure=f"{cause.cure}, or raise {clock.name}"
    )


NO_OUTCOME = "no_outcome"
"""Cause of a job that is complete and has left no word: its model may be there."""

_KILLED, _SEGFAULT, _TERMINATED = 137, 139, 143
_CONSEQUENCES = (PEER_FAILED, NCCL_FAILURE, "terminated")
"""Causes that a runner gives where another pod has ended first, or somebody has ended it."""

_RUNNER_SAW_ONLY_A_SIGNAL = ("killed", "library_crash", *_CONSEQUENCES)


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
        return Outcome(status="failed", failure=_disrupted(disrupted, *(disrupted.disruption or ("", ""))))
    message = f"{named} was deleted before it had ended"
    return Outcome(status="failed", failure=failure_of("deleted", message, RETRY))


def why_failed(job: JobState, pods: Iterable[PodState]) -> Failure:
    """Return why a job has failed: what ended first is the culprit, the others end because it has.

    :param job: the workload.
    :param pods: its pods, those that have gone included.
    """
    if job.reason == "DeadlineExceeded":
        return failure_of(
            "training_timeout", f"{job.title} {job.name} ran longer than its deadline allows", _TAKES_LONG
        )
    pod = culprit(pods)
    if pod is None:
        said = f"{job.reason}: {shortened(job.message)}"
        message = f"{job.title} {job.name} failed and no pod is left to tell why. {said}"
        cure = "A runtime with restartPolicy Never and backoffLimit 0 keeps the pod that failed"
        return failure_of("job_failed", message, cure)
    if _has_ended(pod):
        return _why_pod_ended(pod)
    if pod.disruption or pod.silent:
        return _disrupted(pod, *(pod.disruption or ("", "")))
    return failure_of("pod_deleted", f"{_named(pod)} was deleted while it trained", RETRY)


def culprit(pods: Iterable[PodState]) -> PodState | None:
    """Return the pod that shows why a job has failed, ``None`` where none does.

    :param pods: of the job, those that have gone included.
    """
    pods = list(pods)
    ended = sorted(filter(_has_ended, pods), key=_culprit_first)
    first = [pod for pod in ended if not _follows(pod)]
    disrupted = [pod for pod in pods if pod.disruption]
    lost = [pod for pod in pods if not pod.live and not pod.finished_at]
    return next(iter([*first, *disrupted, *ended, *lost]), None)


def _has_ended(pod: PodState) -> bool:
    return bool(pod.fault or (pod.finished_at and pod.exit_code))


def _finished(pod: PodState) -> datetime:
    return pod.finished_at or pod.created


def _culprit_first(pod: PodState) -> tuple[bool, datetime, int]:
    # Times are whole seconds, and an end by SIGTERM is mostly the consequence of another.
    weight = 0 if pod.end == "OOMKilled" else 2 if pod.exit_code == _TERMINATED else 1
    return _follows(pod), _finished(pod), weight


def _follows(pod: PodState) -> bool:
    """Return whether a pod says itself that it has only ended because another had, or because it was told to."""
    told = _outcome_in(pod.words)
    follows = told is not None and told.failure is not None and told.failure.cause in _CONSEQUENCES
    return follows and pod.end != "OOMKilled"


def _why_pod_ended(pod: PodState) -> Failure:
    told = _outcome_in(pod.words)
    failure = told.failure if told else None
    kubernetes_knows_more = pod.end == "OOMKilled" or pod.disruption is not None or pod.fault is not None
    if failure and not (kubernetes_knows_more and failure.cause in _RUNNER_SAW_ONLY_A_SIGNAL):
        return failure
    log_tail = [] if told else _last_lines(pod)[-20:]
    return replace(_by_exit(pod), log_tail=failure.log_tail if failure else log_tail)


def _by_exit(pod: PodState) -> Failure:
    """Say why a pod ended by what its container shows: the reason before the exit code, which may be any."""
    if pod.end == "OOMKilled":
        message = f"{_named(pod)} used up its memory and was ended by the kernel"
        cure = "Raise training_resource_memory_per_worker, or lower training_max_tokens_per_gpu or training_max_seq_len"
        return failure_of("out_of_memory", message, cure)
    if pod.disruption:
        return _disrupted(pod, *pod.disruption)
    if pod.fault:
        return _faulty(pod, *pod.fault)
    if pod.end in ("StartError", "ContainerCannotRun"):
        message = f"{_named(pod)} could not start its program: {shortened(pod.words)}"
        return failure_of("program_missing", message, "Take an image that has python3 on its PATH")
    if "argument list too long" in pod.words:
        message = f"{_named(pod)} could not start its program: {shortened(pod.words)}"
        cure = "Shorten training_envs and extra_args, or set runner='configmap' or 'image'"
        return failure_of("arguments_too_long", message, cure)
    return _by_exit_code(pod)


def _by_exit_code(pod: PodState) -> Failure:
    if pod.exit_code == _KILLED:
        message = f"{_named(pod)} was killed (exit code 137), and not for its memory limit"
        cure = "Its node may have been short of memory, or it outlived its grace period; see the node's events"
        return failure_of("killed", message, cure)
    if pod.exit_code == _TERMINATED:
        message = f"{_named(pod)} was told to end (SIGTERM) and left no outcome"
        return failure_of("terminated", message, f"Its pod or node was taken away. {RETRY}")
    lines = _last_lines(pod)
    if known := meaning_of_log(lines):
        return replace(known, message=f"{_named(pod)} left no outcome. {known.message}")
    how = "crashed with a segmentation fault" if pod.exit_code == _SEGFAULT else f"exited with code {pod.exit_code}"
    last = last_exception(lines) or next(reversed(lines), "")
    message = f"{_named(pod)} {how} and left no outcome" + f"; its last line: {shortened(last)}" * bool(last)
    return failure_of("runner_died", message, "Look at its last lines in this log")


def _last_lines(pod: PodState) -> list[str]:
    """Return the end of a pod's log without text of the data, which the first line may be the rest of."""
    cut = len(pod.words.encode()) >= _LONGEST_LOG
    lines = pod.words.splitlines()[1 if cut else 0 :]
    return [line for line in lines if line.strip() and not line.startswith(DATA_MARK)]


def _faulty(pod: PodState, reason: str, text: str) -> Failure:
    if next(rule for rule in DISRUPTION_RULES if rule.fits(reason, text)) is not DISRUPTION_RULES[-1]:
        return _disrupted(pod, reason, text)
    message = f"{_named(pod)} failed, and not by its program. {reason}: {shortened(text)}"
    return failure_of("pod_failed", message, "Look at its node, and at what the runtime adds to it")


def _disrupted(pod: PodState, reason: str, text: str) -> Failure:
    """Say what has ended a pod from outside; of one whose node was silent nobody knows whether it has ended."""
    rule = next(rule for rule in DISRUPTION_RULES if rule.fits(reason, text))
    if pod.silent:
        rule = NODE_LOST
    said = f". {reason}: {shortened(text)}" if reason else ""
    return failure_of(rule.cause, f"{_named(pod)}: {rule.what[0].lower()}{rule.what[1:]}{said}", rule.cure)


def _no_outcome(job: JobState) -> Failure:
    message = f"{job.title} {job.name} is complete and has left no word of its model"
    return failure_of(NO_OUTCOME, message, "A retry finds the model in the work directory")


def _named(pod: PodState) -> str:
    return f"Pod {pod.name} (rank {pod.rank}, node {pod.node or 'unknown'})"


def _outcome_in(words: str) -> Outcome | None:
    try:
        return Outcome.from_json(words) if words else None
    except UnreadableOutcome:
        return None
