"""What KubernetesPodOperator makes of a training's pod, by the operator itself.

* its arguments, by its own names; a pod built from them is the pod that was asked for
* pod templates, models with templates in them, the mutation hook, its own labels
* what is refused, while a DAG file is read and before a request
* a task whose launcher was another one before
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.exceptions import InvalidParameters
from airflow_provider_finetune.launchers.container import runner_config_map
from airflow_provider_finetune.launchers.observed import DOMAIN, IDENTITY, JOB, MANAGED_BY, TASK, WHOLE
from tests.kubernetes.conftest import CORE, JOBS, ApiServer
from tests.kubernetes.fake_cluster import own_pod, running, terminated, train_job
from tests.kubernetes.test_task import Task, context, let_submit, same_task

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred  # type: ignore[no-redef]

MUTATION_HOOK = "airflow.providers.cncf.kubernetes.operators.pod.pod_mutation_hook"
IMAGE = "registry.example/training-hub:1"


class PodTask(Task):
    """Trains in a pod of its own."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"launcher": "pod", "image": IMAGE, **arguments})


@pytest.fixture(autouse=True)
def cluster(kubeconfig: Callable[..., Path], connection: Callable[..., None]) -> None:
    connection(kube_config_path=str(kubeconfig()))
    logging.getLogger("airflow").setLevel(logging.WARNING)


@pytest.fixture
def made(api: ApiServer) -> Callable[..., dict[str, Any]]:
    """The pod that a task asks the cluster to make."""

    def make(**arguments: Any) -> dict[str, Any]:
        api.answer(f"get {CORE}/pods", {"items": []})
        api.answer(f"patch {CORE}/configmaps/{runner_config_map('ml')['metadata']['name']}", {"kind": "ConfigMap"})
        api.answer(f"post {CORE}/pods", (201, own_pod("a")))
        with pytest.raises(TaskDeferred) as deferred:
            PodTask(**arguments).execute(template_context())
        assert deferred.value.trigger.workload["kind"] == "pod"
        (asked,) = [request for request in api.requests if request.method.value == "POST"]
        return dict(json.loads(asked.body))

    return make


def template_context(try_number: int = 1) -> Any:
    """What Airflow gives a task, as far as templates and labels of these tests go."""
    found = context(try_number)
    return {**found, "run_id": found["ti"].run_id, "dag": None, "ds": "2026-01-31"}


def test_a_first_try_takes_three_requests(api: ApiServer, made: Callable[..., dict[str, Any]]) -> None:
    made()
    assert [request.partition(" ")[0] for request in api.asked] == ["GET", "PATCH", "POST"]


def test_the_pod_is_ours_and_of_this_try(made: Callable[..., dict[str, Any]]) -> None:
    pod = made(training_metadata_labels={"team": "nlp"})
    metadata, (container,) = pod["metadata"], pod["spec"]["containers"]
    assert metadata["name"].startswith("dag-train-")
    assert metadata["namespace"] == "ml"
    assert {MANAGED_BY, IDENTITY, TASK, WHOLE, JOB, "team"} <= metadata["labels"].keys()
    assert metadata["labels"][JOB] == metadata["name"]
    assert metadata["annotations"][f"{DOMAIN}/run_id"] == "run"
    assert (container["name"], container["image"]) == ("base", IMAGE)
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 300
    assert {volume["name"] for volume in pod["spec"]["volumes"]} == {
        "finetune-training",
        "finetune-runner",
        "finetune-shm",
    }


def test_it_carries_the_labels_by_which_people_find_pods_of_tasks(made: Callable[..., dict[str, Any]]) -> None:
    labels = made()["metadata"]["labels"]
    assert (labels["dag_id"], labels["task_id"], labels["try_number"]) == ("dag", "train", "1")
    assert labels["kubernetes_pod_operator"] == "True"


def test_its_arguments_are_those_of_an_operator_that_makes_the_same_pod(made: Callable[..., dict[str, Any]]) -> None:
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import ApiClient, Configuration

    further = {"init_containers": [], "hostnetwork": True}
    config = {"tolerations": [{"key": "gpu", "operator": "Exists"}], "scheduler_name": "volcano"}
    task = PodTask(pod_operator_arguments=further, kubernetes_config=config)
    arguments = task.as_pod_operator_arguments(template_context())
    assert arguments["task_id"] == "train"
    assert arguments["schedulername"] == "volcano"
    assert arguments["hostnetwork"] is True
    assert not [value for value in arguments.values() if value is None]
    operator = KubernetesPodOperator(**arguments)
    built = ApiClient(Configuration()).sanitize_for_serialization(operator.build_pod_request_obj(template_context()))
    there = made(pod_operator_arguments=further, kubernetes_config=config)
    built["metadata"]["labels"].pop("airflow_kpo_in_cluster", None)
    there["metadata"]["labels"].pop("airflow_kpo_in_cluster", None)
    built["spec"].setdefault("terminationGracePeriodSeconds", 300)
    assert built == there


def test_another_launcher_has_no_such_arguments() -> None:
    with pytest.raises(InvalidParameters, match="it starts no KubernetesPodOperator"):
        Task().as_pod_operator_arguments(template_context())


def test_a_pod_template_gives_what_is_not_asked_for_otherwise(
    made: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    template = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"labels": {"cost-centre": "17"}},
        "spec": {
            "containers": [{"name": "base", "image": IMAGE, "env": [{"name": "FROM", "value": "template"}]}],
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
        },
    }
    file = tmp_path / "pod.yaml"
    file.write_text(json.dumps(template))
    pod = made(image=None, pod_operator_arguments={"pod_template_file": str(file)})
    assert pod["metadata"]["labels"]["cost-centre"] == "17"
    assert pod["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == IMAGE
    assert {"name": "FROM", "value": "template"} in container["env"]


def test_models_among_its_arguments_may_hold_templates(made: Callable[..., dict[str, Any]]) -> None:
    from kubernetes.client import V1EnvVar, V1Pod, V1PodSpec, V1Toleration

    day = V1EnvVar(name="DAY", value="{{ ds }}")
    base = V1Pod(spec=V1PodSpec(containers=[], tolerations=[V1Toleration(key="gpu", operator="Exists")]))
    pod = made(pod_operator_arguments={"full_pod_spec": base, "pod_runtime_info_envs": [day]})
    assert pod["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert pod["spec"]["containers"][0]["env"][-1]["name"] == "DAY"


def test_text_that_looks_like_a_template_is_rendered_once_only(made: Callable[..., dict[str, Any]]) -> None:
    chat = "{% for message in messages %}{{ message.content }}{% endfor %}"
    pod = made(extra_args={"chat_template": chat}, pod_operator_arguments={"subdomain": "{{ no template }}"})
    assert chat in json.loads(pod["spec"]["containers"][0]["args"][2])["extra_args"]["chat_template"]
    assert pod["spec"]["subdomain"] == "{{ no template }}", "Airflow has rendered it before execute"


def test_a_secret_of_its_own_kind_is_attached(made: Callable[..., dict[str, Any]]) -> None:
    from airflow.providers.cncf.kubernetes.secret import Secret

    pod = made(pod_operator_arguments={"secrets": [Secret("env", "HF_TOKEN", "hub", "token")]})
    (token,) = [entry for entry in pod["spec"]["containers"][0]["env"] if entry["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}


def test_the_mutation_hook_has_the_last_word(
    made: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mutate(pod: Any) -> None:
        pod.spec.node_selector = {"pool": "gpu"}

    monkeypatch.setattr(MUTATION_HOOK, mutate)
    assert made()["spec"]["nodeSelector"] == {"pool": "gpu"}


def test_a_mutation_hook_that_takes_our_labels_is_told_so(api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def mutate(pod: Any) -> None:
        pod.metadata.labels = {}

    monkeypatch.setattr(MUTATION_HOOK, mutate)
    api.answer(f"get {CORE}/pods", {"items": []})
    with pytest.raises(InvalidParameters, match="the pod mutation hook of this Airflow changes its labels"):
        PodTask(runner="image").execute(template_context())
    assert f"POST {CORE}/pods" not in api.asked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image": None}, "launcher='pod' has no runtime that would name one"),
        ({"training_resource_num_workers": 2}, "Use launcher='trainjob' for several"),
        ({"pod_operator_arguments": {"env_vars": {"A": "{{ ds }}"}}}, "Use training_envs, secrets or"),
        ({"pod_operator_arguments": {"get_logs": False}}, "'get_logs' is set by this operator, or has no effect in it"),
        ({"pod_operator_arguments": {"on_finish_action": "keep_pod"}}, "Use on_finish"),
        ({"pod_operator_arguments": ["env_vars"]}, "it must be a dict"),
    ],
)
def test_what_is_wrong_is_said_while_the_dag_is_read(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameters, match=said):
        PodTask(**arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {
                "pod_operator_arguments": {"node_selector": {"a": "b"}},
                "kubernetes_config": {"node_selector": {"c": "d"}},
            },
            "Use it, or training_kubernetes_config['node_selector'], and not both",
        ),
        ({"pod_operator_arguments": {"hostnetwerk": True}}, "KubernetesPodOperator has no argument 'hostnetwerk'"),
        ({"pod_operator_arguments": {"retries": 3}}, "KubernetesPodOperator has no argument 'retries' of its own"),
    ],
)
def test_what_only_the_operator_itself_knows_is_said_before_a_request(
    api: ApiServer, arguments: dict[str, Any], said: str
) -> None:
    api.answer(f"get {CORE}/pods", {"items": []})
    with pytest.raises(InvalidParameters) as error:
        PodTask(runner="image", **arguments).execute(template_context())
    assert said in str(error.value)
    assert f"POST {CORE}/pods" not in api.asked


def test_what_trains_from_a_time_with_another_launcher_is_ended_first(api: ApiServer) -> None:
    job = train_job("old")
    api.answer(f"get {JOBS}", same_task(job))
    api.answer(f"delete {JOBS}/old", {"kind": "Status"})
    api.answer(f"get {CORE}/pods", {"items": []})
    api.answer(f"post {CORE}/pods", (201, own_pod("a")))
    with pytest.raises(TaskDeferred):
        PodTask(runner="image").execute(template_context(try_number=2))
    assert f"DELETE {JOBS}/old" in api.asked
    assert api.asked[-1] == f"POST {CORE}/pods"


def test_a_cluster_without_trainer_has_no_trainjob_to_end(api: ApiServer) -> None:
    api.answer(f"get {CORE}/pods", {"items": []})
    api.answer(f"post {CORE}/pods", (201, own_pod("a")))
    with pytest.raises(TaskDeferred):
        PodTask(runner="image").execute(template_context(try_number=2))
    assert f"GET {JOBS}" in api.asked


def test_a_pod_of_its_own_is_ended_before_a_trainjob_of_the_same_task(api: ApiServer) -> None:
    let_submit(api)
    old = own_pod("old", running(60))
    ended = own_pod("old", terminated(143), phase="Failed")
    api.answer(f"get {CORE}/pods", same_task(old), same_task(old), same_task(ended))
    api.answer(f"delete {CORE}/pods/old", {"kind": "Status"})
    with pytest.raises(TaskDeferred):
        Task().execute(context(try_number=2))
    assert api.asked.index(f"DELETE {CORE}/pods/old") < api.asked.index(f"POST {JOBS}")
