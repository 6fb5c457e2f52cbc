"""Why a training has ended, in the words that Kubernetes, JobSet and Trainer use.

* exit codes, reasons, evictions and other ends from outside, the last words of a program, the runner's own word
* several ranks: which one shows the cause; nodes of which nothing is heard
* each cause that the rules know is in the table
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_provider_finetune.cluster.diagnosis import culprit, outcome_of, why_failed
from airflow_provider_finetune.cluster.ends import DISRUPTION_RULES
from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.launchers.observed import pod_state
from airflow_provider_finetune.launchers.trainjob import job_state
from tests.kubernetes.fake_cluster import condition, pod, running, terminated, train_job

FAILED = train_job(
    "x", condition("Failed", reason="FailedJobs", message="jobset failed due to one or more job failures")
)
EVICTED = condition("DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting")


def faulty(*, rank: int = 0, **status: Any) -> dict[str, Any]:
    """A pod that failed without its program."""
    found = pod("x", rank=rank, phase="Failed")
    return {**found, "status": {**found["status"], **status}}


REFUSED: Any = {"reason": "UnexpectedAdmissionError", "message": "Allocate failed due to no healthy devices present"}
INIT = {"name": "fetch", "state": terminated(3, "no such bucket")}


def said(cause: str, failure_class: Any = "user") -> str:
    failure = Failure(failure_class=failure_class, cause=cause, message="m", log_tail=["last line"])
    return Outcome(status="failed", failure=failure, work_dir="/w").to_small_json()


def disrupted(reason: str, text: str = "") -> dict[str, str]:
    return condition("DisruptionTarget", reason=reason, message=text)


def by_kubelet(text: str, state: dict[str, Any] | None = None) -> dict[str, Any]:
    """A pod that its kubelet has evicted, which stays as it was."""
    found = pod("x", state, phase="Failed")
    return {**found, "status": {**found["status"], "reason": "Evicted", "message": text}}


SILENT = condition("Ready", 60, "False")
LOW_MEMORY = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 74Mi. "
LOW_DISK = "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 1Mi. "
OWN_DISK = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
BY_NODE = "TerminationByKubelet"
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040)."
TAINTED = "Taint manager: deleting due to NoExecute taint"
NO_SPACE = "Traceback (most recent call last):\nOSError: [Errno 28] No space left on device"
CUDA_OOM = "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."
NCCL = "[rank0]: torch.distributed.DistBackendError: NCCL error in: NCCLUtils.cpp:77, unhandled system error"
ENDS: list[tuple[list[Any], str, str]] = [
    ([pod("x", terminated(3, "words", "OOMKilled"))], "out_of_memory", "resources"),
    ([pod("x", terminated(137, said("killed", "infrastructure"), "OOMKilled"))], "out_of_memory", "resources"),
    ([pod("x", terminated(1, said("dataset_missing"), "OOMKilled"))], "dataset_missing", "user"),
    ([pod("x", terminated(143, said("terminated", "preempted")), EVICTED)], "evicted", "preempted"),
    ([pod("x", running(), EVICTED)], "evicted", "preempted"),
    ([pod("x", terminated(137))], "killed", "infrastructure"),
    ([pod("x", terminated(139))], "runner_died", "infrastructure"),
    ([pod("x", terminated(143))], "terminated", "preempted"),
    ([pod("x", terminated(128, 'exec: "/no": no such file', "StartError"))], "program_missing", "user"),
    ([pod("x", terminated(1, "exec /usr/bin/python3: argument list too long"))], "arguments_too_long", "user"),
    ([pod("x", terminated(1, "Traceback\nValueError: no"))], "runner_died", "infrastructure"),
    ([pod("x", terminated(143)), pod("x", terminated(7, said("disk_full"), ago=4), rank=1)], "disk_full", "user"),
    ([pod("x", terminated(143)), pod("x", terminated(137, "", "OOMKilled"), rank=1)], "out_of_memory", "resources"),
    ([faulty(**REFUSED)], "pod_failed", "infrastructure"),
    ([faulty(initContainerStatuses=[INIT])], "pod_failed", "infrastructure"),
    ([pod("x", terminated(143)), faulty(rank=1, **REFUSED)], "pod_failed", "infrastructure"),
    ([], "job_failed", "infrastructure"),
    ([pod("x", running(), disrupted("PreemptionByScheduler", "preempting"))], "preempted", "preempted"),
    ([pod("x", running(), disrupted("DeletionByTaintManager", TAINTED))], "evicted", "preempted"),
    ([pod("x", running(), disrupted("DeletionByTaintManager", TAINTED), SILENT, ready=True)], "node_lost", "preempted"),
    ([pod("x", running(), disrupted("DeletionByPodGC", "node no longer exists"))], "node_lost", "preempted"),
    ([pod("x", terminated(137), disrupted(BY_NODE, LOW_MEMORY))], "node_short_of_memory", "preempted"),
    ([by_kubelet(LOW_MEMORY)], "node_short_of_memory", "preempted"),
    ([by_kubelet(LOW_DISK)], "disk_full", "resources"),
    ([by_kubelet(OWN_DISK, terminated(143, said("terminated", "preempted")))], "disk_full", "resources"),
    ([pod("x", terminated(137), disrupted(BY_NODE, OWN_DISK))], "disk_full", "resources"),
    ([pod("x", terminated(137, "", "OOMKilled"), disrupted(BY_NODE, OWN_DISK))], "out_of_memory", "resources"),
    ([faulty(reason="NodeLost", message="Node n1 is unresponsive")], "node_lost", "preempted"),
    ([pod("x", terminated(1, NO_SPACE))], "disk_full", "resources"),
    ([pod("x", terminated(1, f"{CUDA_OOM}\n{NCCL}"))], "gpu_out_of_memory", "resources"),
    ([pod("x", terminated(1, NCCL))], "nccl_failure", "infrastructure"),
    ([pod("x", terminated(1, f"RuntimeError: {OLD_DRIVER}"))], "driver_too_old", "infrastructure"),
    ([pod("x", terminated(1, "RuntimeError: No CUDA GPUs are available"))], "no_cuda_device", "infrastructure"),
]  # fmt: skip


@pytest.mark.parametrize(("pods", "cause", "failure_class"), ENDS)
def test_the_first_end_of_a_failed_job_is_its_cause(pods: list[Any], cause: str, failure_class: str) -> None:
    failure = why_failed(job_state(FAILED), [pod_state(one) for one in pods])
    assert (failure.cause, failure.failure_class) == (cause, failure_class)
    assert failure.message


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (faulty(**REFUSED), "UnexpectedAdmissionError: Allocate failed due to no healthy devices present"),
        (faulty(initContainerStatuses=[INIT]), "Error: init container 'fetch' exited with code 3: no such bucket"),
    ],
)
def test_what_a_pod_failed_of_before_its_program_is_told(shown: dict[str, Any], words: str) -> None:
    message = why_failed(job_state(FAILED), [pod_state(shown)]).message
    assert message == f"Pod x-node-0-0-abc (rank 0, node node1) failed, and not by its program. {words}"


def test_a_deadline_is_a_training_that_took_too_long() -> None:
    late = train_job(
        "x", condition("Failed", reason="DeadlineExceeded", message="TrainJob exceeded its active deadline")
    )
    assert why_failed(job_state(late), [pod_state(pod("x", terminated(143)))]).cause == "training_timeout"


def test_the_last_words_of_a_program_that_left_no_outcome_are_kept() -> None:
    failure = why_failed(job_state(FAILED), [pod_state(pod("x", terminated(1, "Traceback\nValueError: no")))])
    assert failure.log_tail == ["Traceback", "ValueError: no"]
    assert "ValueError: no" in failure.message


def test_samples_of_the_data_are_no_last_words() -> None:
    rest = "of a sample, which the kubelet has cut " + "x" * 2048
    for words in ("Traceback\n| SECRET\n| ", f"SECRET {rest}\nTraceback\n| SECRET"):
        failure = why_failed(job_state(FAILED), [pod_state(pod("x", terminated(1, words)))])
        assert failure.log_tail == ["Traceback"]
        assert "its last line: Traceback" in failure.message


@pytest.mark.parametrize(
    ("ended", "words", "status", "cause"),
    [
        ("Complete", Outcome(status="succeeded", model_uri="pvc://c/m").to_small_json(), "succeeded", None),
        ("Complete", said("no_model", "infrastructure"), "failed", "no_model"),
        ("Complete", "", "failed", "no_outcome"),
        ("Complete", '{"status": "succ', "failed", "no_outcome"),
        ("Failed", Outcome(status="succeeded", model_uri="pvc://c/m").to_small_json(), "failed", "job_failed"),
        ("Failed", "", "failed", "job_failed"),
    ],
)
def test_only_a_complete_job_with_the_runners_word_has_succeeded(
    ended: str, words: str, status: str, cause: str | None
) -> None:
    outcome = outcome_of(job_state(train_job("x", condition(ended))), [pod_state(pod("x", terminated(0, words)))])
    assert (outcome.status, outcome.failure.cause if outcome.failure else None) == (status, cause)


def test_each_cause_that_the_rules_know_is_in_the_table() -> None:
    assert {rule.cause for rule in DISRUPTION_RULES} <= {cause for _, cause, _ in ENDS}


def test_a_pod_that_was_deleted_while_it_ran_is_told_with_its_node() -> None:
    gone = replace(pod_state(pod("x", running())), gone=True)
    failure = why_failed(job_state(FAILED), [gone])
    assert (failure.cause, failure.failure_class) == ("pod_deleted", "preempted")
    assert failure.message == "Pod x-node-0-0-abc (rank 0, node node1) was deleted while it trained"


def test_a_program_on_a_lost_node_is_not_said_to_have_ended() -> None:
    gone = replace(pod_state(pod("x", running(), SILENT, ready=True)), gone=True)
    failure = why_failed(job_state(FAILED), [gone])
    assert failure.cause == "node_lost"
    assert "where the program may still run" in failure.message
    assert "before a retry writes to the same place" in failure.cure


def test_the_culprit_is_the_pod_that_ended_first_or_was_taken_away() -> None:
    alive, failed = pod_state(pod("x", running())), pod_state(pod("x", terminated(1), rank=1))
    taken = pod_state(pod("x", running(), EVICTED, rank=2))
    assert culprit([alive, taken, failed]) == failed
    assert culprit([alive, taken]) == taken
    assert culprit([alive]) is None


def test_a_pod_that_only_lost_another_is_not_the_culprit() -> None:
    for cause in ("nccl_failure", "peer_failed"):
        follows = pod_state(pod("x", terminated(1, said(cause, "infrastructure"), ago=5)))
        taken = pod_state(pod("x", running(), EVICTED, rank=1))
        assert culprit([follows, taken]) == taken
        out_of_memory = pod_state(pod("x", terminated(137, "", "OOMKilled"), rank=1))
        assert culprit([follows, out_of_memory]) == out_of_memory
        assert culprit([follows]) == follows
