"""From arguments to what runs on a cluster, and what is refused before.

Aspects: the one root of files and places that a pod loses; names, labels, variables and secrets; kubernetes_config with
models and with what no TrainJob carries; the spec and the request that come out; values that are not known yet.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_finetune.contract.parameters import FineTuneParameters, LoRAParameters
from airflow_provider_finetune.launchers.identity import TaskInstance
from airflow_provider_finetune.launchers.job_request import JobRequest
from airflow_provider_finetune.launchers.trainjob import TrainerApi, render
from airflow_provider_finetune.operators.arguments import problems_of
from airflow_provider_finetune.operators.request import cluster_request

DOCUMENTED = {
    "pvc_path": "pvc://training/runs",
    "output_model": None,
    "output_metrics": None,
    "output_loss_chart": None,
    "dataset": "pvc://training/data/train.jsonl",
    "training_base_model": "org/model",
    "training_data_output_dir": None,
    "kubernetes_config": None,
}
ARGUMENTS: dict[str, Any] = {
    "launcher": "trainjob",
    "kubernetes_conn_id": "kubernetes_default",
    "namespace": None,
    "image": None,
    "runtime": "training-hub",
    "runtime_kind": "ClusterTrainingRuntime",
    "queue_name": None,
    "gpu_resource": "nvidia.com/gpu",
    "secrets": None,
    "runner": "configmap",
    "local_python": None,
    "queue_timeout": None,
    "startup_timeout": timedelta(minutes=30),
    "training_timeout": None,
    "progress_interval": 30,
    "resume": "auto",
    "on_finish": "delete_succeeded",
    "keep": "model",
    "fail_fast": True,
    "max_dropped": 0.05,
    "show_samples": 0,
    "pod_operator_arguments": None,
    "extra_args": None,
    "deferrable": None,
}
TASK = TaskInstance(
    dag_id="dag",
    run_id="run",
    task_id="train",
    map_index=-1,
    try_number=1,
    ti_id="019b76da-a800-7000-8000-000000000001",
)
MOUNTED = {
    "volumes": [{"name": "work", "nfs": {"server": "s", "path": "/"}}],
    "volume_mounts": [{"name": "work", "mountPath": "/work"}],
}


def checked(record: Any = LoRAParameters, **given: Any) -> tuple[Any, Any, Any, list[str]]:
    documented = {**DOCUMENTED, **{name: it for name, it in given.items() if name not in ARGUMENTS}}
    arguments = {**ARGUMENTS, **{name: it for name, it in given.items() if name not in documented}}
    configured = {name: documented.pop(name) for name in list(documented) if name.startswith("configured_")}
    arguments |= configured
    values, problems = problems_of(record, documented, arguments)
    return documented, values, arguments, list(map(str, problems))


def problems(record: Any = LoRAParameters, **given: Any) -> list[str]:
    return checked(record, **given)[3]


def request_of(record: Any = LoRAParameters, *, task: TaskInstance = TASK, **given: Any) -> JobRequest:
    documented, values, arguments, found = checked(record, **given)
    assert not found
    return cluster_request("lora_sft", documented, values, arguments, task=task, namespace="team-a", deployment="prod")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"pvc_path": None}, "pvc_path=None: nothing that a pod writes to its own disk is there when it has gone"),
        ({"pvc_path": "None"}, "or pvc_path under [finetune]"),
        ({"pvc_path": None}, "or a remote output_model such as s3://<bucket>/<path>"),
        ({"pvc_path": None, "output_model": "/models/mine"}, "so the model would be lost"),
        ({"pvc_path": None, "output_model": "s3://b/m", "keep": "all"}, "keep='all': nothing that a pod writes"),
        ({"pvc_path": "/work/runs"}, "pvc_path='/work/runs': no volume that outlives the pod is mounted there"),
        ({"pvc_path": "runs"}, "it must be an absolute path in the pod"),
        ({"pvc_path": "s3://bucket/runs"}, "the training works in it, so it must be a directory"),
        ({"training_data_output_dir": "s3://bucket/tokens"}, "the training works in it, so it must be a directory"),
        ({"pvc_path": "pvc:///runs"}, "it names no PersistentVolumeClaim. Write pvc://<claim>/<path>"),
        ({"pvc_path": None, "configured_pvc_path": "/x"}, "[finetune] pvc_path='/x': no volume that outlives"),
        (
            {"pvc_path": None, "configured_pvc_path": "s3://b/x"},
            "[finetune] pvc_path='s3://b/x': the training works in",
        ),
        ({"output_model": "/models/mine"}, "output_model='/models/mine': no volume that outlives"),
        ({"output_model": "pvc://training"}, "publishing would replace all that is in the claim"),
        ({"output_metrics": "file:///metrics"}, "output_metrics='file:///metrics': no volume that outlives"),
        ({"dataset": "data/train.jsonl"}, "neither an absolute path in the pod nor a URI nor a HuggingFace id"),
        ({"dataset": "./org/data"}, "neither an absolute path in the pod nor a URI nor a HuggingFace id"),
        ({"dataset": "squad"}, "neither an absolute path in the pod nor a URI nor a HuggingFace id"),
        ({"dataset": "org/data@"}, "neither an absolute path in the pod nor a URI nor a HuggingFace id"),
        ({"training_base_model": "gpt2@607a30d"}, "neither an absolute path in the pod nor a URI nor a HuggingFace id"),
        ({"dataset": "file://data/x"}, "another machine's name"),
        ({"training_base_model": "models/base/v1"}, "Write e.g. /path, pvc://<claim>/<path>"),
        ({"training_base_model": "pvc://A/model"}, "'A' is no name of a PersistentVolumeClaim"),
        ({"namespace": "Team A"}, "namespace='Team A': it is no name that a Kubernetes object can have"),
        ({"runtime": "training_hub"}, "runtime='training_hub'"),
        ({"queue_name": "a/b"}, "queue_name='a/b'"),
        ({"gpu_resource": "gpu"}, "gpu_resource='gpu': it is no name of a resource"),
        ({"secrets": {"HF_TOKEN": "Hub/token"}}, "secrets={'HF_TOKEN': '***'}: on a cluster it names where"),
        ({"secrets": {"PET_NNODES": "hub/token"}}, "PET_NNODES is set by Kubeflow Trainer"),
        ({"training_envs": {"PET_NODE_RANK": "1"}}, "PET_NODE_RANK is set by Kubeflow Trainer, which refuses it"),
        ({"training_envs": {"a b": "1"}}, "'a b' is no name of an environment variable"),
        ({"training_metadata_labels": "run=a:b"}, "Use training_metadata_annotations for it"),
        ({"training_metadata_labels": {"kueue.x-k8s.io/queue-name": "q"}}, "Use queue_name"),
        ({"training_metadata_labels": {"airflow-provider-finetune/job": "q"}}, "finds its own objects by it"),
        ({"training_metadata_annotations": {"a b": "q"}}, "it is no key that Kubernetes takes"),
        ({"training_resource_num_workers": 2}, "LoRA on several workers is refused until it has been seen on GPUs"),
        ({"kubernetes_config": {"env_from": [{}]}}, "kubernetes_config['env_from']='***': no TrainJob can carry it"),
        ({"kubernetes_config": {"scheduler_name": "volcano"}}, "pod template of the runtime that runtime= names"),
        ({"kubernetes_config": {"volumes": [{"emptyDir": {}}]}}, "an entry has no 'name'"),
        ({"kubernetes_config": {"node_selector": "gpu"}}, "it must be a dict"),
        ({"kubernetes_config": {"termination_grace_period_seconds": True}}, "it must be a whole number"),
        ({"kubernetes_config": {"affinity": {"a": timedelta(1)}}}, "a timedelta is nothing that JSON has"),
        ({"kubernetes_config": {"env": [{"name": "PET_NNODES"}]}}, "PET_NNODES is set by Kubeflow Trainer"),
        (
            {"kubernetes_config": {"env": [{"name": "HF_TOKEN", "value": "hf_secret"}]}},
            "HF_TOKEN would stand readable in the job object. Use secrets={'HF_TOKEN': 'secret-name/key'}",
        ),
        ({"kubernetes_config": {"volumes": [{"name": "finetune-x"}]}}, "are the provider's own"),
        ({"kubernetes_config": {"volume_mounts": [{"name": "x", "mountPath": "/opt/finetune/x"}]}}, "mounts something"),
        ({"kubernetes_config": {"volume_mounts": [{"name": "x", "mountPath": "x"}]}}, "is no absolute path"),
        (
            {
                "kubernetes_config": {
                    "volume_mounts": [{"name": "x", "mountPath": "/x"}, {"name": "y", "mountPath": "/x/"}]
                }
            },
            "two volumes are mounted at /x",
        ),
    ],
)
def test_what_a_cluster_would_refuse_or_lose_is_said_with_the_cure(given: dict[str, Any], sentence: str):
    assert any(sentence in problem for problem in problems(**given)), problems(**given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"pvc_path": None, "configured_pvc_path": "pvc://shared/finetune"},
        {"pvc_path": "/work/runs", "kubernetes_config": MOUNTED},
        {"pvc_path": "file:///work/runs", "kubernetes_config": MOUNTED},
        {"training_data_output_dir": "/tmp/tokens"},
        {"training_base_model": "hf://models/org/model"},
        {"training_base_model": "org/model-1.5B@v1.0"},
        {"training_base_model": "oci://registry.example:5000/models/base:1"},
        {"training_base_model": "gs://bucket/base"},
        {"dataset": "s3://bucket/x.jsonl"},
        {"dataset": "org/data"},
        {"dataset": "org/data@refs/pr/1?config=en&split=train"},
        {"dataset": "hf://org/data@main?split=train"},
        {"dataset": "weka://cluster/rows.parquet"},
        {"pvc_path": None, "output_model": "s3://bucket/model"},
        {"output_model": "gs://bucket/model", "output_metrics": "s3://bucket/metrics.json"},
        {"training_base_model": "/models/in-the-image"},
        {"secrets": {"HF_TOKEN": "my.hub/token_1"}},
        {"gpu_resource": "nvidia.com/mig-1g.5gb"},
        {"launcher": "pod", "kubernetes_config": {"scheduler_name": "volcano", "env_from": [{}]}},
        {
            "kubernetes_config": {
                "env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "k"}}}]
            }
        },
    ],
)
def test_the_nearest_right_values_pass(given: dict[str, Any]):
    assert not problems(**given)


@pytest.mark.parametrize("launcher", ["trainjob", "pod"])
@pytest.mark.parametrize(
    ("record", "given"),
    [
        (LoRAParameters, {}),
        (FineTuneParameters, {"training_algorithm": "SFT"}),
        (FineTuneParameters, {"training_algorithm": "OSFT", "training_unfreeze_rank_ratio": 0.25}),
    ],
)
def test_each_gpu_of_a_pod_has_a_process(record: Any, given: dict[str, Any], launcher: str):
    image: dict[str, Any] = {"image": "registry.example/training-hub:1"}
    request = request_of(record, launcher=launcher, training_resource_gpu_per_worker=4, **given, **image)
    assert (request.gpus, request.spec.processes_per_node, request.spec.device) == (4, 4, "cuda")


def test_several_workers_are_refused_for_lora_only():
    assert not problems(FineTuneParameters, training_resource_num_workers=2)


@pytest.mark.parametrize("name", ["pvc_path", "dataset", "output_model", "kubernetes_config", "namespace", "secrets"])
def test_what_is_not_known_yet_waits(name: str):
    assert not problems(**{name: "{{ params.later }}"})


def test_places_in_the_spec_are_paths_of_the_pod():
    request = request_of(
        output_model="pvc://models/best",
        output_metrics="/work/metrics",
        training_data_output_dir="pvc://training/tokens",
        training_base_model="pvc://models/base",
        kubernetes_config=MOUNTED,
    )
    spec = request.spec
    assert spec.work_dir == "/mnt/training/runs/dag/run/train"
    assert spec.dataset == "/mnt/training/data/train.jsonl"
    assert (spec.base_model, spec.output_model) == ("/mnt/models/base", "/mnt/models/best")
    assert (spec.output_metrics, spec.parameters["data_output_dir"]) == ("/work/metrics", "/mnt/training/tokens")
    assert spec.mounts == {"pvc://training": "/mnt/training", "pvc://models": "/mnt/models"}
    assert request.hub_cache == "/mnt/training/runs/.cache/huggingface/hub"
    assert "pvc://" not in str({**request.claims, **request.kubernetes_config})


def test_a_mapped_task_works_and_publishes_in_its_index():
    task = TaskInstance(**{**vars(TASK), "map_index": 3})
    spec = request_of(task=task, output_model="pvc://models/best").spec
    assert spec.work_dir == "/mnt/training/runs/dag/run/train/3"
    assert spec.output_model == "/mnt/models/best/3"


@pytest.mark.parametrize(
    ("gpus", "processes", "device", "expected"),
    [(0, "auto", "cpu", 1), (0, 2, "cpu", 2), (1, "auto", "cuda", 1), (4, "auto", "cuda", 4), (4, 2, "cuda", 2)],
)
def test_devices_and_processes_are_those_that_were_asked_for(gpus: int, processes: Any, device: str, expected: int):
    asked = {"training_resource_gpu_per_worker": gpus, "training_resource_num_procs_per_worker": processes}
    spec = request_of(**asked).spec
    assert (spec.device, spec.processes_per_node) == (device, expected)


def test_the_workers_are_the_nodes():
    assert request_of(FineTuneParameters, training_resource_num_workers=2).spec.nodes == 2


@pytest.mark.parametrize(
    ("startup", "training", "deadline"),
    [(timedelta(minutes=30), 3600.5, 5521), (None, 3600, None), (60, None, None)],
)
def test_the_deadline_lies_behind_the_clocks_of_start_and_training(startup: Any, training: Any, deadline: int | None):
    assert request_of(startup_timeout=startup, training_timeout=training).deadline == deadline


def test_the_image_is_the_tasks_own_else_the_configured_one_else_the_runtimes():
    assert request_of(image="own", configured_image="configured").image == "own"
    assert request_of(image="None", configured_image="configured").image == "configured"
    assert request_of().image is None


@pytest.mark.parametrize("api", TrainerApi)
def test_what_asks_for_nothing_needs_no_trainer_that_carries_it(api: TrainerApi):
    config: dict[str, Any] = {"env_from": [], "priority_class_name": "", "scheduler_name": None, "security_context": {}}
    request = request_of(kubernetes_config=config)
    assert render(request, api) == render(request_of(), api)
    assert request.whole == request_of().whole


def test_no_grace_at_all_is_asked_for():
    assert request_of(kubernetes_config={"termination_grace_period_seconds": 0}).kubernetes_config


def test_models_of_kubernetes_become_the_json_that_they_stand_for():
    from kubernetes import client

    claim = client.V1PersistentVolumeClaimVolumeSource(claim_name="training")
    config = {
        "volumes": [client.V1Volume(name="work", persistent_volume_claim=claim)],
        "volume_mounts": (client.V1VolumeMount(name="work", mount_path="/work", sub_path="runs"),),
        "env": [client.V1EnvVar(name="A", value_from=client.V1EnvVarSource(field_ref={"fieldPath": "status.podIP"}))],
        "security_context": client.V1PodSecurityContext(run_as_non_root=False, fs_group=0),
    }
    request = request_of(kubernetes_config=config)
    assert request.kubernetes_config == {
        "volumes": [{"name": "work", "persistentVolumeClaim": {"claimName": "training"}}],
        "volume_mounts": [{"name": "work", "mountPath": "/work", "subPath": "runs"}],
        "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "security_context": {"runAsNonRoot": False, "fsGroup": 0},
    }
    assert request.spec.work_dir == "/work/dag/run/train"
    # The data lies beside the part that is mounted there.
    assert request.spec.dataset == "/mnt/training/data/train.jsonl"
    render(request, TrainerApi.RUNTIME_PATCHES)
