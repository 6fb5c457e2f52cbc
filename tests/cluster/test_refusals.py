"""What goes wrong between a task and its cluster, each told with its cure, and retried where that can help.

Tested, each by a task on the real cluster: a connection that leads nowhere, to nobody or as nobody; each missing right;
objects that the task names and that are not there; what admission checks and quotas refuse; pods that cannot start,
ended at once or by ``startup_timeout``; a place that would be lost; a runtime that starts failed trainings again.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from airflow_provider_finetune.cluster import cache
from tests.cluster import rights
from tests.cluster.admission import probe, rule
from tests.cluster.bed import runtime
from tests.cluster.bed.cluster import Cluster
from tests.cluster.conftest import end_jobs

SECRET = "a-value-that-nobody-else-may-read"

Train = Callable[..., SimpleNamespace]


@pytest.fixture
def train(run: Callable[..., SimpleNamespace]) -> Train:
    """Run a task that must fail, tried twice if it may; give its error in parts, its tries and its log."""

    def fail(**arguments: Any) -> SimpleNamespace:
        base = {"trainjob": "CLUSTER", "pod": "POD"}[arguments.pop("launcher", "trainjob")]
        arguments = {"retries": 1, "retry_delay": 0, **arguments}
        result = run(f'LoRAOperator(task_id="train", **{base} | {arguments!r})')
        assert result.state == "failed"
        parts = r"Error: Training failed \((\w+): (\w+)\)\. (.*)\nWhat to do: (.*)\n"
        found = re.findall(parts.replace("Error", r"\w+"), result.log)
        assert found, result.log[-4000:]
        kind, cause, message, cure = found[-1]
        tries = result.tasks["train"].try_number
        return SimpleNamespace(kind=kind, cause=cause, message=message, cure=cure, tries=tries, log=result.log)

    return fail


@pytest.fixture
def made(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """Make objects that are removed after the test."""
    names: list[list[str]] = []

    def make(*objects: dict[str, Any]) -> None:
        cluster.apply(*objects)
        for item in objects:
            where = [f"--namespace={found}"] if (found := item["metadata"].get("namespace")) else []
            names.append([f"{item['kind']}/{item['metadata']['name']}", *where])

    yield make
    for name in names:
        cluster.kubectl("delete", *name)


def jobs(cluster: Cluster, namespace: str) -> list[str]:
    """Workloads of either kind: of all pods those that belong to no TrainJob."""
    found = cluster.kubectl("get", "trainjobs", f"--namespace={namespace}", "--output=name").split()
    selector = "--selector=airflow-provider-finetune/whole"
    return found + cluster.kubectl("get", "pods", selector, f"--namespace={namespace}", "--output=name").split()


# The connection.


def test_a_connection_that_is_not_there_is_named_with_the_command_that_makes_it(train: Train):
    error = train(kubernetes_conn_id="nowhere")
    assert (error.cause, error.tries) == ("connection_missing", 1)
    assert "'nowhere'" in error.message
    assert "airflow connections add nowhere --conn-type kubernetes" in error.cure


def test_a_kubeconfig_that_is_not_there_is_named(train: Train, connect: Callable[..., None], tmp_path: Path):
    connect(tmp_path / "kubeconfig", "lost")
    error = train(kubernetes_conn_id="lost")
    assert (error.cause, error.tries) == ("connection_unusable", 1)
    assert str(tmp_path / "kubeconfig") in error.message
    assert "kube_config_path" in error.cure


@pytest.fixture
def altered(account: Path, connect: Callable[..., None], tmp_path: Path) -> Callable[..., None]:
    """Make the connection ``altered`` of the account's kubeconfig with something changed."""

    def make(**changes: str) -> None:
        config = yaml.safe_load(account.read_text())
        for part in (config["clusters"][0]["cluster"], config["users"][0]["user"]):
            part.update({name: value for name, value in changes.items() if name in part})
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        connect(tmp_path / "kubeconfig", "altered")

    return make


def test_a_server_that_does_not_answer_is_asked_again_by_a_retry(train: Train, altered: Callable[..., None]):
    altered(server="https://127.0.0.1:9")
    error = train(kubernetes_conn_id="altered")
    assert (error.kind, error.cause, error.tries) == ("infrastructure", "unreachable", 2)
    assert "https://127.0.0.1:9 of connection 'altered' does not answer" in error.message


def test_a_token_that_is_not_taken_is_not_shown(train: Train, altered: Callable[..., None]):
    altered(token=SECRET)
    error = train(kubernetes_conn_id="altered")
    assert (error.cause, error.tries) == ("unauthorized", 1)
    assert "rejects the credentials of connection 'altered'" in error.message
    assert "Renew the token" in error.cure
    assert SECRET not in error.log


@pytest.fixture
def without(cluster: Cluster, namespace: str, connect: Callable[..., None]) -> Iterator[Callable[[str, str], str]]:
    """Connect as an account that lacks one right, and give its name."""
    granted: list[list[dict[str, Any]]] = []

    def lacking(resource: str, verb: str) -> str:
        suffix = f"-without-{verb}-{resource}"
        granted.append(rights.without(rights.shipped(namespace, suffix), resource, verb))
        connect(rights.grant(cluster, granted[-1]))
        return f"system:serviceaccount:{namespace}:finetune-worker{suffix}"

    yield lacking
    for objects in granted:
        rights.withdraw(cluster, objects)


@pytest.mark.parametrize(
    ("resource", "verb"), [("trainjobs", "create"), ("configmaps", "patch"), ("trainjobs", "list")]
)
def test_a_right_that_is_missing_is_named_with_the_file_that_has_it(
    cluster: Cluster, namespace: str, train: Train, without: Callable[[str, str], str], resource: str, verb: str
):
    account, before = without(resource, verb), jobs(cluster, namespace)
    error = train()
    assert (error.cause, error.tries) == ("forbidden", 1)
    assert f"'{account}', the account of connection 'kubernetes_default', may not {verb} '{resource}'" in error.message
    assert f"in namespace '{namespace}'" in error.message
    assert "rbac.yaml has the least that is needed" in error.cure
    assert jobs(cluster, namespace) == before


def test_a_right_to_watch_that_is_missing_is_named_and_ends_no_training(
    cluster: Cluster,
    namespace: str,
    train: Train,
    without: Callable[[str, str], str],
    queue: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(cache, "_REFUSED_SECONDS", 1.0)
    account, before = without("pods", "watch"), jobs(cluster, namespace)
    error = train(queue_name=queue)  # so that it does not end meanwhile
    assert (error.kind, error.cause, error.tries) == ("infrastructure", "forbidden", 2)
    assert f"'{account}', the account of connection 'kubernetes_default', may not watch 'pods'" in error.message
    assert "rbac-pod.yaml for launcher='pod'. A retry goes on with the job" in error.cure
    (job,) = {*jobs(cluster, namespace)} - {*before}
    assert f"Following TrainJob {job.partition('/')[2]} of an earlier try" in error.log
    end_jobs(cluster, namespace)


# What the task names.


def test_a_namespace_that_is_not_there_is_named_if_the_account_may_know(
    cluster: Cluster, train: Train, connect: Callable[..., None]
):
    error = train(namespace="nowhere")
    assert (error.cause, error.tries) == ("forbidden", 1)
    assert "may not list 'trainjobs' of API group 'trainer.kubeflow.org' in namespace 'nowhere'" in error.message
    assert "or name another namespace" in error.cure
    connect(cluster.kubeconfig, "administrator")
    error = train(namespace="nowhere", kubernetes_conn_id="administrator")
    assert (error.cause, error.tries) == ("namespace_missing", 1)
    assert "no namespace 'nowhere'" in error.message
    assert "namespace=" in error.cure


@pytest.mark.parametrize("kind", ["ClusterTrainingRuntime", "TrainingRuntime"])
def test_a_runtime_that_is_not_there_is_named_with_the_file_that_has_one(train: Train, kind: str):
    error = train(runtime="nowhere", runtime_kind=kind)
    assert (error.cause, error.tries) == ("runtime_missing", 1)
    assert f"no {kind} 'nowhere'" in error.message
    assert "docs/kubernetes/runtime.yaml" in error.cure


def test_a_model_that_would_go_with_its_pod_is_refused_while_the_dag_is_read(parse: Callable[..., SimpleNamespace]):
    error = parse('LoRAOperator(task_id="train", **CLUSTER | {"pvc_path": "/somewhere"})').error
    assert "no volume that outlives the pod is mounted there" in error
    assert "pvc://<claim>/<path>" in error


# What the cluster refuses.


def dry_run(cluster: Cluster, manifest: dict[str, Any]) -> str:
    """What the API server makes of an object, or why it refuses it."""
    try:
        return cluster.kubectl(
            "create", "--dry-run=server", "--output=json", "--filename=-", stdin=json.dumps(manifest)
        )
    except subprocess.CalledProcessError as error:
        return str(error.stderr)


def test_an_admission_check_is_told_without_the_values_that_it_quotes(
    cluster: Cluster, namespace: str, train: Train, made: Callable[..., None], wait: Callable[..., Any]
):
    quoted = "object.spec.trainer.env.map(e, e.name + '=' + (has(e.value) ? e.value : '')).join(', ')"
    says = f"'team nobody may not train; spec.trainer.env: Invalid value: \"' + {quoted} + '\": no budget'"
    denied = {"expression": "object.metadata.labels.team != 'nobody'", "messageExpression": says}
    made(*rule("Validating", namespace, "team", "team", validations=[denied]))
    probed = probe(namespace, "team", "nobody")
    probed["spec"]["trainer"]["env"] = [{"name": "PLACE", "value": SECRET}]
    wait(lambda: f'{SECRET}": no budget' in dry_run(cluster, probed), "admission check that quotes")
    error = train(training_metadata_labels={"team": "nobody"}, training_envs={"PLACE": SECRET})
    assert (error.cause, error.tries) == ("rejected", 1)
    assert "team nobody may not train; spec.trainer.env: no budget" in error.message
    assert f"'team.{namespace}.example.org'" in error.message
    assert SECRET not in error.log


def test_a_namespace_that_is_full_is_worth_a_retry(
    cluster: Cluster, namespace: str, train: Train, made: Callable[..., None], wait: Callable[..., Any]
):
    made(quota(namespace, "jobs", **{"count/trainjobs.trainer.kubeflow.org": "0"}))
    show = ("get", "resourcequota/jobs", f"--namespace={namespace}", "--output=jsonpath={.status.used}")
    wait(lambda: cluster.kubectl(*show), "quota in force")
    error = train()
    assert (error.kind, error.cause, error.tries) == ("resources", "quota_exceeded", 2)
    assert f"The quota of namespace '{namespace}' is used up: jobs, requested: " in error.message
    assert "raise the ResourceQuota" in error.cure


def quota(namespace: str, name: str, **hard: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}}


# What cannot start.

HOPELESS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "a claim": ({"dataset": "pvc://nowhere/train.jsonl"}, "claim_missing", '"nowhere" not found', "pvc:// URIs"),
    "a secret": ({"secrets": {"HF_TOKEN": "nowhere/token"}}, "secret_missing", '"nowhere" not found', "secrets="),
    "an image's name": ({"image": "No Image"}, "image_name", "No Image", "image="),
    "a service account": (
        {"kubernetes_config": {"service_account_name": "nowhere"}},
        "service_account_missing",
        '"nowhere" not found',
        "service_account",
    ),
}


@pytest.mark.parametrize("launcher", ["trainjob", "pod"])
@pytest.mark.parametrize("what", HOPELESS)
def test_a_start_without_hope_ends_at_once_and_leaves_no_job(
    cluster: Cluster, namespace: str, train: Train, wait: Callable[..., Any], what: str, launcher: str
):
    arguments, cause, said, cure = HOPELESS[what]
    before = jobs(cluster, namespace)
    error = train(**arguments, launcher=launcher)
    assert (error.kind, error.cause, error.tries) == ("user", cause, 1)
    assert said in error.message
    assert cure in error.cure
    wait(lambda: jobs(cluster, namespace) == before, "end of the job")


LATE: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "GPUs that no node has": (
        {"training_resource_gpu_per_worker": 16},
        "resources",
        "Insufficient nvidia.com/gpu",
        "training_resource_gpu_per_worker",
    ),
    "a claim of another node": (
        {"dataset": "pvc://rwo/train.jsonl"},
        "resources",
        "PersistentVolume's node affinity",
        "Take a ReadWriteMany claim",
    ),
    "an image that cannot be pulled": (
        {"image": "registry.invalid/training-hub:1"},
        "infrastructure",
        "registry.invalid/training-hub:1",
        "nodes reach the registry",
    ),
    # Only an event tells of it, and events are not asked for at once.
    "a ConfigMap": (
        {
            "kubernetes_config": {
                "volumes": [{"name": "settings", "configMap": {"name": "nowhere"}}],
                "volume_mounts": [{"name": "settings", "mountPath": "/settings"}],
            }
        },
        "user",
        'configmap "nowhere" not found',
        "kubernetes_config",
    ),
    "a quota of GPUs": (
        {"training_resource_gpu_per_worker": 2, "gpu_resource": "example.org/gpu"},
        "resources",
        "exceeded quota: gpus",
        "have the quota raised",
    ),
}


@pytest.mark.parametrize("what", LATE)
def test_a_clock_that_runs_out_says_what_was_waited_for_and_leaves_no_job(
    cluster: Cluster, namespace: str, train: Train, what: str
):
    arguments, kind, said, cure = LATE[what]
    cluster.apply(quota(namespace, "gpus", **{"requests.example.org/gpu": "1"}))
    before = jobs(cluster, namespace)
    error = train(**arguments, retries=0, startup_timeout=4)
    assert (error.kind, error.cause) == (kind, "startup_timeout")
    # Kubernetes tells times in whole seconds.
    assert re.search(r"did not start within startup_timeout=4 s and the job was deleted after [4-9] s\.", error.message)
    assert said in error.message
    assert cure in error.cure
    assert jobs(cluster, namespace) == before


# A runtime that starts failed trainings again.


def test_a_failed_job_that_its_runtime_might_start_again_is_deleted(
    cluster: Cluster, namespace: str, train: Train, train_python: Path
):
    lenient = runtime.load(train_python)
    lenient["kind"] = "TrainingRuntime"
    lenient["metadata"] |= {"name": "lenient", "namespace": namespace}
    job = lenient["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    del job["podFailurePolicy"], job["template"]["spec"]["restartPolicy"]
    cluster.apply(lenient)
    before = jobs(cluster, namespace)
    error = train(runtime="lenient", runtime_kind="TrainingRuntime")
    assert error.cause == "model_missing", "the word of the first start, and not that of the one that was ended"
    assert "TrainingRuntime 'lenient' does not set restartPolicy: Never: a failed program is started again" in error.log
    assert "Set it in job 'node'; docs/kubernetes/runtime.yaml has it right" in error.log
    assert jobs(cluster, namespace) == before
