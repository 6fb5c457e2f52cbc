"""A node that is lost with a training on it: the task says so, begins no second training, and claims no clean-up.

The node is pretended: the test does what its kubelet would do, and what the node controller does 50 s after the kubelet
was last heard of. Scheduler, taints and garbage collection are the cluster's own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_finetune.cluster.nodes import OUT_OF_SERVICE
from airflow_provider_finetune.exceptions import TrainingFailed, TrainingRejected
from airflow_provider_finetune.operators import submission
from tests.cluster.bed.cluster import Cluster
from tests.cluster.observer import Observer
from tests.cluster.tries import Tries, program, run_id, tries

__all__ = ["program", "run_id", "tries"]

ALONE = "tests.example.org/pretended"
LOST = "node.kubernetes.io/unreachable"


class PretendedNode:
    """A node without a kubelet, on which only those pods run that ask for it.

    :param cluster: its cluster.
    :param observed: the namespace of its pods.
    :param name: of the node.
    """

    def __init__(self, cluster: Cluster, observed: Observer, name: str) -> None:
        self.name, self._cluster, self._observed = name, cluster, observed

    @property
    def config(self) -> dict[str, Any]:
        """The ``kubernetes_config`` of a task that trains here, and leaves 2 s after the node is lost."""
        leaves = {"key": LOST, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
        return {
            "node_selector": {"kubernetes.io/hostname": self.name},
            "tolerations": [{"key": ALONE, "operator": "Exists"}, leaves],
        }

    def join(self) -> None:
        """Become a node of the cluster."""
        labels = {"kubernetes.io/hostname": self.name}
        taint = {"key": ALONE, "effect": "NoSchedule"}
        metadata = {"name": self.name, "labels": labels}
        self._cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [taint]}})
        self._tell("True", "KubeletReady")

    def run(self, pod: str) -> None:
        """Say that a pod runs."""
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        conditions = [{"type": kind, "status": "True", "lastTransitionTime": _now()} for kind in kinds]
        (container,) = self._pod(pod)["spec"]["containers"]
        shown = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
        shown |= {"ready": True, "started": True, "state": {"running": {"startedAt": _now()}}}
        self._patch("pod", pod, {"phase": "Running", "conditions": conditions, "containerStatuses": [shown]})

    def vanish(self, pod: str) -> None:
        """Be heard of no more."""
        self._tell("Unknown", "NodeStatusUnknown")
        conditions = self._pod(pod)["status"]["conditions"]
        changed = [{**found, "status": "False"} if found["type"] == "Ready" else found for found in conditions]
        self._patch("pod", pod, {"conditions": changed})

    def is_off(self) -> None:
        """Be told to the cluster as one on which nothing runs any more."""
        self._cluster.kubectl("taint", "node", self.name, OUT_OF_SERVICE)

    def leave(self) -> None:
        """Be no node of the cluster any more, with all that has run here."""
        where = f"--namespace={self._observed.namespace}"
        self._cluster.kubectl("delete", "trainjobs", "--all", where, "--cascade=background")
        self._cluster.kubectl("delete", "pods", "--all", where, "--force", "--grace-period=0")
        self._cluster.kubectl("delete", "node", self.name)

    def _tell(self, ready: str, reason: str) -> None:
        times = {"lastHeartbeatTime": _now(), "lastTransitionTime": _now()}
        room = {"cpu": "4", "memory": "8Gi", "pods": "10"}
        condition = {"type": "Ready", "status": ready, "reason": reason, "message": "As the test says", **times}
        self._patch("node", self.name, {"capacity": room, "allocatable": room, "conditions": [condition]})

    def _pod(self, name: str) -> dict[str, Any]:
        (pod,) = self._observed.get("pods", f"--field-selector=metadata.name={name}")
        return pod

    def _patch(self, kind: str, name: str, status: dict[str, Any]) -> None:
        how = ("--subresource=status", "--type=merge", f"--patch={json.dumps({'status': status})}")
        self._cluster.kubectl("patch", kind, name, f"--namespace={self._observed.namespace}", *how)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@pytest.fixture
def node(cluster: Cluster, namespace: str, observed: Observer) -> Iterator[PretendedNode]:
    pretended = PretendedNode(cluster, observed, f"{namespace}-lost")
    pretended.join()
    yield pretended
    pretended.leave()


@pytest.fixture
def begun(tries: Tries, node: PretendedNode, observed: Observer, wait: Callable[..., Any]) -> Callable[..., Any]:
    """Begin a try whose pod runs; return the try, its job and its pod."""

    def begin() -> tuple[Any, str, str]:
        attempt = tries.next(kubernetes_config=node.config)
        job = attempt.submit()
        (pod,) = wait(lambda: [*observed.pods(job)], "pod")
        wait(lambda: observed.get("pods", f"--field-selector=spec.nodeName={node.name}"), "pod on the node")
        node.run(pod)
        return attempt, job, pod

    return begin


@pytest.fixture
def force(cluster: Cluster, namespace: str) -> Callable[[str], None]:
    """Delete a pod as somebody does who knows that its node is off."""

    def delete(pod: str) -> None:
        cluster.kubectl("delete", "pod", pod, f"--namespace={namespace}", "--force", "--grace-period=0")

    return delete


def test_a_task_says_that_its_node_is_lost_and_waits_until_the_cluster_is_told_that_it_is_off(
    tries: Tries,
    begun: Callable[..., Any],
    node: PretendedNode,
    observed: Observer,
    wait: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, job, pod = begun()
    waiting = first.waiting()
    wait(lambda: f"running on {node.name}" in caplog.text, "line that it runs")
    node.vanish(pod)
    lost = f"Node {node.name} does not answer, so it is not known whether pod {pod} trains on; this is waited for"
    wait(lambda: lost in caplog.text, "line that the node is lost")
    wait(lambda: observed.deleting(pod), "eviction from the lost node")
    time.sleep(2)
    assert not waiting.done()
    assert observed.pods(job) == [pod], "no other one beside it"
    node.is_off()
    event = waiting.result(60)
    with pytest.raises(TrainingFailed) as error:
        first.complete(event)
    assert error.value.failure.failure_class == "preempted"
    assert not isinstance(error.value, TrainingRejected), "a retry helps"
    assert caplog.text.count("does not answer") == 1
    new = tries.next().submit()
    wait(lambda: observed.pods(new), "pod of the next try")


def test_a_task_that_is_ended_after_its_node_was_lost_claims_no_end_of_its_pod_and_begins_no_other(
    tries: Tries,
    begun: Callable[..., Any],
    node: PretendedNode,
    observed: Observer,
    force: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, job, pod = begun()
    node.vanish(pod)
    first.kill()
    not_known = f"{pod} (its node {node.name} does not answer)"
    assert f"{job} is deleted, and has pods that have not ended: {not_known}" in caplog.text
    monkeypatch.setattr(submission, "_PODS_END_SECONDS", 1.0)
    with pytest.raises(TrainingFailed) as error:
        tries.next(cleared=True).submit()
    assert error.value.failure.cause == "pods_stay"
    assert not_known in error.value.failure.message
    assert "delete the pods by force" in error.value.failure.cure
    assert observed.jobs(first.ti.run_id) == []
    force(pod)
    assert tries.next().submit() != job
