"""Why a training does not start, and why it has ended, in the words that Kubernetes, JobSet and Trainer use.

* causes that pods show, and those that only events show, with whom they concern and whether waiting helps
* what is passed over: noise of healthy jobs, troubles that are over
* ends: exit codes, reasons, evictions, several ranks, the runner's own word
"""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_finetune.cluster.diagnosis import outcome_of, why_failed, why_stuck
from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.launchers.observed import job_state, pod_state
from tests.kubernetes.fake_cluster import condition, event, pod, running, terminated, train_job, waiting

JOB = train_job("x")
POD = pod("x")
UID = POD["metadata"]["uid"]
PULL = 'failed to pull and unpack image "r.example/a:1": failed to resolve reference "r.example/a:1": '
BACK_OFF = 'Back-off pulling image "r.example/a:1": ErrImagePull: '
FORBIDDEN = 'Error creating: pods "x-node-0-0-" is forbidden: '
NOT_MADE = 'job "x-node-0" creation failed with error: '
NOT_RECONCILED = "TrainJobResourcesCreationFailed"
NO_SET = "TrainJob resources reconciliation failed: "
INVALID_SET = NO_SET + 'JobSet.jobset.x-k8s.io "x" is invalid: '
NO_SERVICE_ACCOUNT = 'error looking up service account ns/nosa: serviceaccount "nosa" not found'
WEBHOOK_DOWN = NO_SET + 'failed calling webhook "mjobset.kb.io": failed to call webhook: connect: connection refused'
NODES = "0/1 nodes are available: "


def unschedulable(text: str) -> dict[str, Any]:
    return pod(
        "x", None, condition("PodScheduled", value="False", reason="Unschedulable", message=text), phase="Pending"
    )


@pytest.mark.parametrize(
    ("shown", "cause", "hopeless"),
    [
        (waiting("InvalidImageName", "couldn't parse image name: invalid reference format"), "image_name", 1),
        (waiting("ErrImageNeverPull", "not present with pull policy of Never"), "image_missing", 1),
        (waiting("ErrImagePull", PULL + "dial tcp: lookup r: no such host"), "registry_unreachable", 0),
        (waiting("ImagePullBackOff", BACK_OFF + PULL + "dial tcp: i/o timeout"), "registry_unreachable", 0),
        (waiting("ErrImagePull", PULL + "r.example/a:1: not found"), "image_missing", 1),
        (waiting("ErrImagePull", PULL + "pull access denied, repository does not exist"), "image_forbidden", 1),
        (waiting("ErrImagePull", PULL + "unexpected status: 403 Forbidden"), "image_forbidden", 1),
        (waiting("ImagePullBackOff", 'Back-off pulling image "r.example/a:1"'), "image_pull", 0),
        (waiting("CreateContainerConfigError", 'secret "nosec" not found'), "secret_missing", 1),
        (waiting("CreateContainerConfigError", "couldn't find key token in Secret ml/hf"), "secret_missing", 1),
        (waiting("CreateContainerConfigError", 'configmap "nocm" not found'), "config_map_missing", 1),
        (waiting("CreateContainerConfigError", "failed to sync secret cache: timed out"), "node_slow", 0),
        (waiting("RunContainerError", 'exec: "/no/such/binary": no such file or directory'), "program_missing", 1),
        (waiting("ContainerCreating"), "slow_start", 0),
    ],
)  # fmt: skip
def test_what_a_waiting_container_says(shown: dict[str, Any], cause: str, hopeless: int) -> None:
    found = why_stuck(job_state(JOB), [pod_state(pod("x", shown))], ())
    assert (found.failure.cause, found.hopeless) == (cause, bool(hopeless))
    assert (found.failure.failure_class == "user") == found.hopeless
    assert "x-node-0-0-abc" in found.failure.message
    assert found.failure.cure


@pytest.mark.parametrize(
    ("text", "cause", "hopeless"),
    [
        (NODES + "1 Insufficient nvidia.com/gpu. no new claims to deallocate", "no_free_gpus", 0),
        (NODES + "1 Insufficient cpu.", "no_free_node", 0),
        (NODES + "1 node(s) didn't match Pod's node affinity/selector.", "no_fitting_node", 0),
        (NODES + "1 node(s) had untolerated taint(s).", "no_fitting_node", 0),
        (NODES + 'persistentvolumeclaim "nope" not found. not found', "claim_missing", 1),
        (NODES + "pod has unbound immediate PersistentVolumeClaims.", "claim_pending", 0),
    ],
)
def test_what_a_pod_that_is_not_scheduled_says(text: str, cause: str, hopeless: int) -> None:
    found = why_stuck(job_state(JOB), [pod_state(unschedulable(text))], ())
    assert (found.failure.cause, found.hopeless) == (cause, bool(hopeless))


MULTI_ATTACH = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) y-node-0-0-abc'


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (NODES + "1 Insufficient nvidia.com/gpu, 2 node(s) had volume node affinity conflict.", "claim_elsewhere"),
        (NODES + "1 node(s) didn't match PersistentVolume's node affinity.", "claim_elsewhere"),
        (NODES + "1 node(s) had no available volume zone.", "claim_elsewhere"),
        (MULTI_ATTACH, "claim_in_use"),
    ],
)
@pytest.mark.parametrize(("nodes", "hopeless"), [(1, False), (2, True)])
def test_a_claim_for_one_node_keeps_one_pod_waiting_and_several_for_ever(
    text: str, cause: str, nodes: int, hopeless: bool
) -> None:
    attaching = pod_state(pod("x", waiting("ContainerCreating")))
    pods = [attaching if cause == "claim_in_use" else pod_state(unschedulable(text))]
    events = [event("Pod", attaching.name, "FailedAttachVolume", text, UID)] if cause == "claim_in_use" else []
    found = why_stuck(job_state(JOB), pods, events, nodes)
    assert (found.failure.cause, found.hopeless) == (cause, hopeless)
    assert "Take a ReadWriteMany claim" in found.failure.cure


@pytest.mark.parametrize(
    ("events", "cause", "hopeless"),
    [
        ([event("Job", "x-node-0", "FailedCreate", FORBIDDEN + NO_SERVICE_ACCOUNT)], "service_account_missing", 1),
        ([event("Job", "x-node-0", "FailedCreate", FORBIDDEN + "exceeded quota: gpu-quota")], "quota_exceeded", 0),
        ([event("Job", "x-node-0", "FailedCreate", FORBIDDEN + "violates PodSecurity")], "pod_spec", 1),
        ([event("JobSet", "x", "JobCreationFailed", NOT_MADE + 'Job.batch "x-node-0" is invalid: ...')], "pod_spec", 1),
        ([event("JobSet", "x", "JobCreationFailed", NOT_MADE + '"x-node-0" already exists')], "no_pods", 0),
        ([event("TrainJob", "x", NOT_RECONCILED, INVALID_SET + "JobSet name is too long, ...")], "name_too_long", 1),
        ([event("TrainJob", "x", NOT_RECONCILED, INVALID_SET + "[...]")], "pod_spec", 1),
        ([event("TrainJob", "x", NOT_RECONCILED, WEBHOOK_DOWN)], "webhook_down", 0),
        ([event("TrainJob", "x", NOT_RECONCILED, 'metadata in body must be of type object: "null"')], "no_pods", 0),
        ([], "no_pods", 0),
    ],
)  # fmt: skip
def test_what_events_say_where_no_pod_is_made(events: list[dict[str, Any]], cause: str, hopeless: int) -> None:
    found = why_stuck(job_state(JOB), (), events)
    assert (found.failure.cause, found.hopeless) == (cause, bool(hopeless))


def mount_failed(text: str, ago: float = 0) -> dict[str, Any]:
    return event(
        "Pod", POD["metadata"]["name"], "FailedMount", f'MountVolume.SetUp failed for volume "d" : {text}', UID, ago
    )


@pytest.mark.parametrize(
    ("events", "cause", "hopeless"),
    [
        ([mount_failed('configmap "nocm" not found')], "config_map_missing", 1),
        ([mount_failed('secret "nosec" not found')], "secret_missing", 1),
        ([mount_failed('configmap "kube-root-ca.crt" not found')], "slow_start", 0),
        ([mount_failed("mount failed: exit status 32")], "mount", 0),
        ([mount_failed('configmap "nocm" not found', 9), event("Pod", "p", "Pulling", "", UID)], "slow_start", 0),
        ([{**mount_failed('secret "of another pod" not found'), "involvedObject": {"uid": "other"}}], "slow_start", 0),
    ],
)  # fmt: skip
def test_what_events_say_of_a_pod_that_is_being_made(events: list[dict[str, Any]], cause: str, hopeless: int) -> None:
    found = why_stuck(job_state(JOB), [pod_state(pod("x", waiting("ContainerCreating")))], events)
    assert (found.failure.cause, found.hopeless) == (cause, bool(hopeless))


def test_a_back_off_without_a_text_is_explained_by_what_it_backs_off_from() -> None:
    shown = pod("x", waiting("ImagePullBackOff", 'Back-off pulling image "a"'))
    events = [
        event("Pod", "p", "Failed", f"Failed to pull image: {PULL}not found", UID, 9),
        event("Pod", "p", "Failed", "Error: ErrImagePull", UID, 9),
        event("Pod", "p", "Pulling", "Pulling image", UID, 8),
        event("Pod", "p", "BackOff", 'Back-off pulling image "a"', UID),
    ]
    assert why_stuck(job_state(JOB), [pod_state(shown)], events).failure.cause == "image_missing"


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


@pytest.mark.parametrize(
    ("pods", "cause", "failure_class"),
    [
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
    ],
)  # fmt: skip
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
