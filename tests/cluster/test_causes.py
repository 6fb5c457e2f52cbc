"""Why a training has no model, each cause planted in a real cluster and told in the last lines of a real task.

Tested: ends from outside (a pod deleted, evicted, preempted; a node that is lost); ends from inside (memory, disk, no
outcome, a loss that is not finite, broken data); places that no node has; a queue that Kueue does not know; a hub that
refuses. Causes of a start, of the API and of runtimes are in test_refusals.py; what cannot be planted is in
tests/kubernetes and tests/runner as the words that were recorded.
"""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cluster.bed import runtime
from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.node import GATEWAY
from tests.cluster.conftest import end_jobs

LONG = {"training_num_epochs": 3000}
"""Minutes of training, which something else ends."""

Fail = Callable[..., SimpleNamespace]
Act = Callable[[dict[str, Any]], None]


@pytest.fixture
def fail(run: Callable[..., SimpleNamespace], cluster: Cluster, namespace: str, claim: Path) -> Iterator[Fail]:
    """Run a task that must fail, doing something to its pod once its log has some words; give its error in parts."""

    def failed(act: Act | None = None, when: str = "step ", **arguments: Any) -> SimpleNamespace:
        with _acting(cluster, namespace, act, when):
            result = run(f'LoRAOperator(task_id="train", **CLUSTER | {arguments!r})')
        assert result.state == "failed", result.log[-4000:]
        found = re.findall(r"Training failed \((\w+): (\w+)\)\. (.*)\nWhat to do: (.*)\n", result.log)
        assert found, result.log[-4000:]
        kind, cause, message, cure = found[-1]
        end = result.log[result.log.rindex(f"Training failed ({kind}: {cause})") :]
        return SimpleNamespace(kind=kind, cause=cause, message=message, cure=cure, log=result.log, end=end)

    yield failed
    end_jobs(cluster, namespace)


@contextmanager
def _acting(cluster: Cluster, namespace: str, act: Act | None, when: str) -> Iterator[None]:
    def watch() -> None:
        while act and not ended.wait(0.3):
            for pod in pods(cluster, namespace):
                if when in log_of(cluster, pod):
                    try:
                        act(pod)
                    except Exception as error:
                        errors.append(error)
                    return

    errors: list[Exception] = []
    ended = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not errors, errors


def pods(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    found = json.loads(cluster.kubectl("get", "pods", f"--namespace={namespace}", "--output=json"))["items"]
    return [pod for pod in found if "airflow-provider-finetune/job" in pod["metadata"]["labels"]]


def log_of(cluster: Cluster, pod: dict[str, Any]) -> str:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    try:
        return cluster.kubectl("logs", name, f"--namespace={namespace}")
    except subprocess.CalledProcessError:
        return ""  # it waits to start


# Taken away.


def test_a_pod_that_is_deleted_leaves_a_checkpoint_and_says_where(cluster: Cluster, fail: Fail):
    def delete(pod: dict[str, Any]) -> None:
        where = f"--namespace={pod['metadata']['namespace']}"
        cluster.kubectl("delete", "pod", pod["metadata"]["name"], where, "--wait=false")

    error = fail(delete, **LONG)
    assert (error.kind, error.cause) == ("preempted", "terminated")
    assert "was ended by SIGTERM at step" in error.message
    assert re.search(r"Checkpoint: step \d+ in pvc://work/runs/.*/checkpoint-\d+, where a retry of the same", error.end)
    assert re.search(r"Where to look: .*node node1, where pod \S+ was \(kubectl describe node node1\)", error.end)
    assert "pvc://work/runs/" in error.end
    assert "Retry: goes on with the same training" in error.end


def test_an_eviction_is_told_as_such_though_nothing_is_left_of_it(cluster: Cluster, fail: Fail):
    def evict(pod: dict[str, Any]) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        cluster.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))

    error = fail(evict, **LONG)
    assert (error.kind, error.cause) == ("preempted", "evicted")
    assert "(rank 0, node node1): it was taken from its node. EvictionByEvictionAPI" in error.message
    assert "Checkpoint: step " in error.end


SLOT = "example.org/slot"


@pytest.fixture
def slot(cluster: Cluster, namespace: str, train_python: Path) -> Iterator[str]:
    """A runtime whose pods take the only one of something that the node has, and a priority above theirs."""
    one = runtime.load(train_python)
    one["kind"] = "TrainingRuntime"
    one["metadata"] |= {"name": "slot", "namespace": namespace}
    pod = one["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["containers"][0]["resources"] = {"limits": {SLOT: "1"}}
    priority = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1000}
    cluster.apply(one, {**priority, "metadata": {"name": namespace}})
    patch_slot(cluster, "add")
    yield "slot"
    patch_slot(cluster, "remove")
    cluster.kubectl("delete", "priorityclass", namespace)


def patch_slot(cluster: Cluster, what: str) -> None:
    path = f"/status/capacity/{SLOT.replace('/', '~1')}"
    patch = [{"op": what, "path": path, **({"value": "1"} if what == "add" else {})}]
    cluster.kubectl("patch", "node", "node1", "--subresource=status", "--type=json", f"--patch={json.dumps(patch)}")


def test_a_training_that_had_to_make_room_is_told_as_such(cluster: Cluster, namespace: str, fail: Fail, slot: str):
    def crowd_out(_: dict[str, Any]) -> None:
        container = {"name": "c", "image": "none", "resources": {"limits": {SLOT: "1"}}}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "urgent", "namespace": namespace}}
        cluster.apply({**pod, "spec": {"priorityClassName": namespace, "containers": [container]}})

    error = fail(crowd_out, **LONG, runtime=slot, runtime_kind="TrainingRuntime")
    assert (error.kind, error.cause) == ("preempted", "preempted")
    assert "it had to make room for a pod of higher priority. PreemptionByScheduler" in error.message
    assert "Checkpoint: step " in error.end


def test_a_training_that_takes_too_long_is_ended_and_leaves_its_checkpoint(fail: Fail):
    error = fail(**LONG, training_timeout=25)
    assert (error.kind, error.cause) == ("resources", "training_timeout")
    assert "Raise training_timeout" in error.cure
    assert re.search(r"Where to look: pvc://work/runs/\S+/train/1/train.log\nCheckpoint: step \d+ in pvc://", error.end)


# Ended from inside.


def test_a_training_that_uses_up_its_memory_is_told_by_the_reason_and_not_by_the_status(fail: Fail):
    error = fail(training_resource_memory_per_worker="200Mi")
    assert (error.kind, error.cause) == ("resources", "out_of_memory")
    assert "(rank 0, node node1) used up its memory and was ended by the kernel" in error.message
    assert "Argument: training_resource_memory_per_worker" in error.end
    assert re.search(r"Where to look: Pod (\S+) on node node1 \(kubectl --namespace \S+ logs \1\)", error.end)


def test_a_program_that_leaves_no_outcome_is_told_with_its_last_line(fail: Fail):
    error = fail(training_envs={"PYTHONHOME": "/nowhere"})
    assert (error.kind, error.cause) == ("infrastructure", "runner_died")
    assert "exited with code 1 and left no outcome; its last line: " in error.message
    assert "encodings" in error.message


def test_a_volume_that_is_full_is_told_as_such(fail: Fail):
    volume = {"name": "small", "emptyDir": {"medium": "Memory", "sizeLimit": "8Ki"}}
    config = {"volumes": [volume], "volume_mounts": [{"name": "small", "mountPath": "/small"}]}
    error = fail(kubernetes_config=config, training_data_output_dir="/small/data")
    assert error.kind == "resources"
    assert error.cause in ("disk_full", "disk_too_small")
    assert "Argument: pvc_path" in error.end


def test_a_pod_that_writes_more_than_it_may_is_evicted_for_its_disk(fail: Fail):
    volume = {"name": "small", "emptyDir": {"sizeLimit": "1Ki"}}
    config = {"volumes": [volume], "volume_mounts": [{"name": "small", "mountPath": "/small"}]}
    error = fail(
        **LONG,
        kubernetes_config=config,
        training_envs={"TRITON_CACHE_DIR": "/small"},
        training_data_output_dir="/small/d",
    )
    assert (error.kind, error.cause) == ("resources", "disk_full")
    assert "exceeds the limit" in error.message


def test_a_loss_that_is_not_finite_publishes_nothing_and_is_not_retried(fail: Fail):
    error = fail(training_learning_rate=1e30, training_num_epochs=4)
    assert (error.kind, error.cause) == ("user", "non_finite_loss")
    assert "Argument: training_learning_rate" in error.end
    assert "Retry: none" in error.end
    assert "Checkpoint: none" in error.end


def test_data_that_cannot_be_trained_on_is_told_with_the_end_of_the_log(claim: Path, fail: Fail):
    (claim / "broken.jsonl").write_text('{"a": 1}\n')
    error = fail(dataset="pvc://work/broken.jsonl")
    assert (error.kind, error.cause) == ("user", "dataset_form_unknown")
    assert "Argument: dataset" in error.end
    assert re.search(r"::group::The last \d+ lines of /\S+/train.log", error.log)
    assert error.log.index("::endgroup::") < error.log.index("Training failed (")


# No place for it.

NO_PLACE: dict[str, tuple[dict[str, Any], str, str]] = {
    "cpu": ({"training_resource_cpu_per_worker": "1000"}, "as much free CPU", "training_resource_cpu_per_worker"),
    "memory": (
        {"training_resource_memory_per_worker": "9000Gi"},
        "as much free memory",
        "training_resource_memory_per_worker",
    ),
    "affinity": (
        {"kubernetes_config": {"node_selector": {"pool": "nowhere"}}},
        "o node has what the pod's node selector or affinity asks for",
        "with node_selector and affinity in kubernetes_config",
    ),
    "taint": (
        {"kubernetes_config": {"node_selector": {"ghost": "yes"}}},
        "odes have a taint that the pod does not tolerate",
        "tolerations",
    ),
}


@pytest.fixture(scope="module")
def ghost(cluster: Cluster, namespace: str) -> Iterator[str]:
    """A node without a kubelet, which lives as long as somebody says so, and takes no pod that does not ask for it."""
    name = f"ghost-{namespace}"
    metadata = {"name": name, "labels": {"ghost": "yes", "kubernetes.io/hostname": name}}
    taint = {"key": "example.org/ghost", "value": "yes", "effect": "NoSchedule"}
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [taint]}})
    alive(cluster, name)
    yield name
    cluster.kubectl("delete", "node", name, "--ignore-not-found")


def alive(cluster: Cluster, node: str) -> None:
    now = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}"
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
    room = {"cpu": "4", "memory": "8Gi", "pods": "10", "ephemeral-storage": "8Gi"}
    status = {"capacity": room, "allocatable": room, "conditions": [{**ready, "lastTransitionTime": now}]}
    patch(cluster, "node", node, {"status": status})


def patch(cluster: Cluster, kind: str, name: str, change: dict[str, Any], *more: str) -> None:
    cluster.kubectl("patch", kind, name, "--subresource=status", "--type=merge", f"--patch={json.dumps(change)}", *more)


@pytest.mark.parametrize("what", NO_PLACE)
def test_what_no_node_has_is_told_with_its_own_cure(fail: Fail, ghost: str, what: str):
    arguments, said, cure = NO_PLACE[what]
    error = fail(**arguments, startup_timeout=4)
    assert (error.kind, error.cause) == ("resources", "startup_timeout")
    assert said in error.message
    assert cure in error.cure


def test_a_node_that_is_lost_is_told_and_never_that_the_program_has_ended(
    cluster: Cluster, namespace: str, fail: Fail, ghost: str, wait: Callable[..., Any]
):
    def play() -> None:
        (pod,) = wait(lambda: [pod for pod in pods(cluster, namespace) if pod["spec"].get("nodeName") == ghost], "pod")
        name, now = pod["metadata"]["name"], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        ready = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in ("Initialized", "Ready")]
        node = {"name": "node", "image": "i", "imageID": "i", "restartCount": 0, "ready": True, "started": True}
        runs = {**node, "state": {"running": {"startedAt": now}}}
        status = {"phase": "Running", "startTime": now, "conditions": ready, "containerStatuses": [runs]}
        patch(cluster, "pod", name, {"status": status}, f"--namespace={namespace}")

        def is_ready() -> str:
            query = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
            return cluster.kubectl("get", "pod", name, f"--namespace={namespace}", f"--output={query}")

        wait(lambda: is_ready() == "False", "word of the node controller", 150)
        time.sleep(25)
        cluster.kubectl("delete", "node", ghost)

    alive(cluster, ghost)
    thread = threading.Thread(target=play)
    thread.start()
    tolerations = [{"key": "example.org/ghost", "operator": "Exists"}]
    error = fail(kubernetes_config={"node_selector": {"ghost": "yes"}, "tolerations": tolerations})
    thread.join()
    assert f"Node {ghost} does not answer" in error.log
    assert (error.kind, error.cause) == ("preempted", "node_lost")
    assert f"node {ghost}): its node was lost, where the program may still run" in error.message
    assert "Look at the node before a retry writes to the same place" in error.cure


# A queue.

WORKLOADS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "workloads.kueue.x-k8s.io",
        "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/kueue"},
    },
    "spec": {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"kind": "Workload", "plural": "workloads", "singular": "workload", "listKind": "WorkloadList"},
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture
def workloads(cluster: Cluster) -> Iterator[None]:
    """Kueue's own kind of object, without Kueue."""
    cluster.apply(WORKLOADS)
    cluster.kubectl("wait", "--for=condition=Established", "crd/workloads.kueue.x-k8s.io", "--timeout=30s")
    yield
    cluster.kubectl("delete", "crd", "workloads.kueue.x-k8s.io")


def test_a_queue_that_is_not_there_ends_the_task_at_once(
    cluster: Cluster, namespace: str, fail: Fail, queue: str, workloads: None, wait: Callable[..., Any]
):
    def speak_for_kueue() -> None:
        show = ("get", "trainjobs", f"--namespace={namespace}", "--output=json")
        job = wait(lambda: json.loads(cluster.kubectl(*show))["items"], "job")[0]["metadata"]
        labels = {"kueue.x-k8s.io/job-uid": job["uid"]}
        metadata = {"name": f"trainjob-{job['name']}", "namespace": namespace, "labels": labels}
        said = {"reason": "Inadmissible", "message": "LocalQueue gpus doesn't exist"}
        condition = {"type": "QuotaReserved", "status": "False", **said}
        item = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "metadata": metadata}
        cluster.apply({**item, "status": {"conditions": [condition]}})

    thread = threading.Thread(target=speak_for_kueue)
    thread.start()
    began = time.monotonic()
    error = fail(queue_name=queue)
    thread.join()
    assert (error.kind, error.cause) == ("user", "queue_missing")
    assert "LocalQueue gpus doesn't exist" in error.message
    assert "Argument: queue_name" in error.end
    assert time.monotonic() - began < 60


# The hub.

ANSWERS = {
    "gated": (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted"}),
    "hidden": (401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
    "expired": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "broken": (500, {}),
}


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers = next((said for name, said in ANSWERS.items() if f"/{name}" in self.path), (404, {}))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815  # the name of the standard library

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def hub(cluster: Cluster) -> Iterator[str]:
    """A hub that refuses, at an address that pods reach."""
    server = ThreadingHTTPServer((GATEWAY, 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://{GATEWAY}:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("arguments", "kind", "cause"),
    [
        ({"training_base_model": "org/gated"}, "user", "model_gated"),
        ({"training_base_model": "org/expired"}, "user", "hub_token_refused"),
        ({"training_base_model": "org/broken"}, "infrastructure", "hub_failed"),
        ({"dataset": "hf://org/hidden"}, "user", "dataset_missing"),
    ],
)
def test_what_a_hub_refuses_is_told_with_the_argument_that_names_it(
    fail: Fail, hub: str, arguments: dict[str, Any], kind: str, cause: str
):
    error = fail(**arguments, training_envs={"HF_ENDPOINT": hub})
    assert (error.kind, error.cause) == (kind, cause)
    at_fault = "secrets" if cause == "hub_token_refused" else next(iter(arguments))
    assert f"Argument: {at_fault}\n" in error.end
