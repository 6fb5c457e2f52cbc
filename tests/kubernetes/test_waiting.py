"""Why a training does not start, in the words that Kubernetes, JobSet, Trainer and Kueue use.

* causes that pods show, and those that only events show, with whom they concern and whether waiting helps
* what a scheduler says of several nodes, and what a queue says
* what is passed over: noise of healthy jobs, troubles that are over
* each cause that the rules know is in one of these tables
"""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_finetune.cluster.causes import NO_POD_RULES, POD_RULES, QUEUE_RULES, SCHEDULING_RULES
from airflow_provider_finetune.cluster.waiting import why_queued, why_stuck
from airflow_provider_finetune.contract.causes import input_at_fault
from airflow_provider_finetune.launchers.observed import pod_state
from airflow_provider_finetune.launchers.trainjob import job_state
from tests.kubernetes.fake_cluster import condition, event, pod, train_job, waiting

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


WAITING: list[tuple[dict[str, Any], str, int]] = [
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
    (waiting("CreateContainerConfigError", "image will run as root"), "container_config", 1),
    (waiting("CreateContainerConfigError", "failed to sync secret cache: timed out"), "node_slow", 0),
    (waiting("CreateContainerConfigError", "services have not yet been read at least once, cannot"), "node_slow", 0),
    (waiting("CreateContainerConfigError", 'object "ml"/"keys" not registered'), "node_slow", 0),
    (waiting("CreateContainerConfigError", 'secrets "k" is forbidden: User "system:node:n1" can'), "node_slow", 0),
    (waiting("RunContainerError", 'exec: "/no/such/binary": no such file or directory'), "program_missing", 1),
    (waiting("ContainerCreating"), "slow_start", 0),
]  # fmt: skip


@pytest.mark.parametrize(("shown", "cause", "hopeless"), WAITING)
def test_what_a_waiting_container_says(shown: dict[str, Any], cause: str, hopeless: int) -> None:
    found = why_stuck(job_state(JOB), [pod_state(pod("x", shown))], ())
    assert (found.failure.cause, found.hopeless) == (cause, bool(hopeless))
    assert (found.failure.failure_class == "user") == found.hopeless
    assert "x-node-0-0-abc" in found.failure.message
    assert found.failure.cure


UNSCHEDULABLE = [
    (NODES + "1 Insufficient nvidia.com/gpu. no new claims to deallocate", "no_free_gpus", 0),
    (NODES + "1 Insufficient cpu.", "no_free_cpu", 0),
    (NODES + "1 Insufficient memory.", "no_free_memory", 0),
    (NODES + "1 Insufficient ephemeral-storage.", "no_free_disk", 0),
    (NODES + "1 Too many pods.", "node_full", 0),
    (NODES + "1 node(s) were unschedulable.", "nodes_away", 0),
    (NODES + "1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.", "nodes_away", 0),
    (NODES + "1 node(s) had untolerated taint(s).", "node_taint", 0),
    (NODES + "1 node(s) didn't match Pod's node affinity/selector.", "node_affinity", 0),
    (NODES + "1 node(s) didn't match pod anti-affinity rules.", "node_affinity", 0),
    (NODES + "1 node(s) didn't have free ports for the requested pod ports.", "no_fitting_node", 0),
    (NODES + 'persistentvolumeclaim "nope" not found. not found', "claim_missing", 1),
    (NODES + "pod has unbound immediate PersistentVolumeClaims.", "claim_pending", 0),
]


@pytest.mark.parametrize(("text", "cause", "hopeless"), UNSCHEDULABLE)
def test_what_a_pod_that_is_not_scheduled_says(text: str, cause: str, hopeless: int) -> None:
    found = why_stuck(job_state(JOB), [pod_state(unschedulable(text))], ())
    assert (found.failure.cause, found.hopeless) == (cause, bool(hopeless))
    assert (found.failure.failure_class == "user") == found.hopeless
    assert found.failure.parameter == input_at_fault(cause)


def test_all_that_keeps_a_pod_from_its_nodes_has_its_cure() -> None:
    text = NODES + "1 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint(s). preemption: not helpful"
    failure = why_stuck(job_state(JOB), [pod_state(unschedulable(text))], ()).failure
    assert failure.cause == "no_free_gpus"
    assert "training_resource_gpu_per_worker" in failure.cure
    assert ". Or: Compare the nodes' taints" in failure.cure
    assert "as the pod asks for; nodes have a taint that the pod does not tolerate. Pod x-" in failure.message
    assert "selector" not in failure.cure


def test_a_pod_that_a_queue_holds_back_is_queued() -> None:
    gated = pod("x", None, condition("PodScheduled", value="False", reason="SchedulingGated", message="blocked"))
    assert why_stuck(job_state(JOB), [pod_state(gated)], ()).failure.cause == "queued"


NO_FLAVOUR = "couldn't assign flavors to pod set node: "
UNUSED = "insufficient unused quota for nvidia.com/gpu in flavor gpu, 1 more needed"
TOO_SMALL = (
    "insufficient quota for nvidia.com/gpu in flavor gpu, previously considered podsets requests (0) + current podset "
    "request (5) > maximum capacity (2)"
)
QUEUED = [
    ("Pending", NO_FLAVOUR + UNUSED, "queued", "resources"),
    ("Pending", NO_FLAVOUR + TOO_SMALL, "queue_too_small", "user"),
    ("Pending", f"{NO_FLAVOUR}{TOO_SMALL}, {UNUSED}", "queued", "resources"),
    ("Inadmissible", "LocalQueue noqueue doesn't exist", "queue_missing", "user"),
    ("Inadmissible", "ClusterQueue cq doesn't exist", "queue_missing", "user"),
    ("Inadmissible", "ClusterQueue cq is inactive", "queue_inactive", "infrastructure"),
]


@pytest.mark.parametrize(("reason", "message", "cause", "failure_class"), QUEUED)
@pytest.mark.parametrize("by", ["condition", "event"])
def test_what_a_queue_says(by: str, reason: str, message: str, cause: str, failure_class: str) -> None:
    held = [condition("Admitted", value="False"), condition("QuotaReserved", value="False", reason=reason)]
    conditions = [{**one, "message": message} for one in held] if by == "condition" else []
    events = [event("Workload", "x-1", reason, message)] if by == "event" else []
    found = why_queued(job_state(JOB), events, conditions)
    assert found is not None
    assert (found.failure.cause, found.failure.failure_class) == (cause, failure_class)
    assert found.hopeless == (failure_class == "user")
    assert "TrainJob x: " in found.failure.message
    assert found.failure.parameter


def test_a_queue_that_says_nothing_leaves_it_at_that() -> None:
    assert why_queued(job_state(JOB), [event("TrainJob", "x", "CreatedWorkload", "Created Workload: ns/x-1")]) is None


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


EVENTS: list[tuple[list[dict[str, Any]], str, int]] = [
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
]  # fmt: skip


@pytest.mark.parametrize(("events", "cause", "hopeless"), EVENTS)
def test_what_events_say_where_no_pod_is_made(events: list[dict[str, Any]], cause: str, hopeless: int) -> None:
    found = why_stuck(job_state(JOB), (), events)
    assert (found.failure.cause, found.hopeless) == (cause, bool(hopeless))


def mount_failed(text: str, ago: float = 0) -> dict[str, Any]:
    return event(
        "Pod", POD["metadata"]["name"], "FailedMount", f'MountVolume.SetUp failed for volume "d" : {text}', UID, ago
    )


POD_EVENTS: list[tuple[list[dict[str, Any]], str, int]] = [
    ([mount_failed('configmap "nocm" not found')], "config_map_missing", 1),
    ([mount_failed('secret "nosec" not found')], "secret_missing", 1),
    ([mount_failed('configmap "kube-root-ca.crt" not found')], "slow_start", 0),
    ([event("Pod", POD["metadata"]["name"], "FailedCreatePodSandBox", "no network", UID)], "sandbox", 0),
    ([mount_failed("mount failed: exit status 32")], "mount", 0),
    ([mount_failed('configmap "nocm" not found', 9), event("Pod", "p", "Pulling", "", UID)], "slow_start", 0),
    ([{**mount_failed('secret "of another pod" not found'), "involvedObject": {"uid": "other"}}], "slow_start", 0),
]  # fmt: skip


@pytest.mark.parametrize(("events", "cause", "hopeless"), POD_EVENTS)
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


def test_each_cause_that_the_rules_know_is_in_these_tables() -> None:
    rules = [*POD_RULES, *SCHEDULING_RULES, *NO_POD_RULES, *QUEUE_RULES]
    tabled = {row[1] for table in (WAITING, UNSCHEDULABLE, EVENTS, POD_EVENTS) for row in table}
    tabled |= {row[2] for row in QUEUED} | {"claim_elsewhere", "claim_in_use"}
    assert {rule.cause for rule in rules if rule.cause} <= tabled
