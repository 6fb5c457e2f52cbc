"""Real trainings in real pods, each through a real Airflow task with the rights that are shipped.

Aspects: data in, model out on the claim, XCom, phases and progress in the task log, what is left in the cluster;
several nodes; a worker that waits itself; the example DAG with its claim, whose last pod reads the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.cluster import rights
from tests.cluster.bed.claims import claim_objects
from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.runtime import load

EXAMPLE = Path(__file__).parents[2] / "example_dags" / "kubernetes.py"

PHASES = ("starting: TrainJob", "running on node1", "step 4/4", "; succeeded")
WEIGHTS = {"adapter": "adapter_model.safetensors", "full": "model.safetensors"}


@dataclass(frozen=True)
class Case:
    """A training, and what comes of it.

    * ``task``: its source in a DAG file, with the arguments ``TASK``; ``launcher``: what runs it
    * ``model``: the kind of its model; ``says``: words of its log
    """

    task: str
    model: str
    launcher: str = "trainjob"
    says: tuple[str, ...] = PHASES


TRAININGS = {
    "lora": Case("LoRAOperator(training_lora_r=4, **TASK)", "adapter"),
    "sft": Case('FineTuneOperator(training_algorithm="SFT", **TASK)', "full"),
    "osft": Case('FineTuneOperator(training_algorithm="OSFT", training_unfreeze_rank_ratio=0.5, **TASK)', "full"),
    "sft on two nodes": Case(
        'FineTuneOperator(training_algorithm="SFT", training_resource_num_workers=2, **TASK)', "full"
    ),
}
SMALL = {"gpus": 0, "cpu": "900m", "memory": "3Gi"}

Run = Callable[..., SimpleNamespace]
XCom = Callable[..., Any]


def jobs(cluster: Cluster, namespace: str) -> str:
    return cluster.kubectl("get", "trainjobs", f"--namespace={namespace}", "--output=name")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_ends_as_a_model_on_the_claim(
    run: Run, xcom: XCom, cluster: Cluster, namespace: str, claim: Path, name: str
) -> None:
    case = TRAININGS[name]
    result = run(f"TASK = CLUSTER | {{'task_id': 'train', 'launcher': {case.launcher!r}}}\n{case.task}")
    assert result.state == "success", result.log[-4000:]
    said = xcom(result.tasks["train"])
    place = f"runs/{result.dag.dag_id}/"
    assert said["model_uri"].startswith(f"pvc://work/{place}")
    model = claim / said["model_uri"].removeprefix("pvc://work/")
    assert (model / WEIGHTS[case.model]).is_file()
    assert (claim / said["loss_chart"].removeprefix("pvc://work/")).is_file()
    assert said["metrics"]["loss"] > 0
    assert said["job"]["launcher"] == case.launcher
    assert [words for words in case.says if words not in result.log] == []
    assert "finetune-progress" not in result.log
    assert jobs(cluster, namespace) == ""


def test_a_worker_that_waits_itself_delivers_the_same(run: Run, xcom: XCom) -> None:
    result = run('LoRAOperator(task_id="train", deferrable=False, **CLUSTER)')
    assert result.state == "success", result.log[-4000:]
    assert "holds its worker slot" in result.log
    assert xcom(result.tasks["train"])["model_uri"].startswith("pvc://work/runs/")


def test_a_job_that_failed_stays_until_the_next_success_of_its_task(
    cluster: Cluster, namespace: str, claim: Path, parse: Callable[..., SimpleNamespace]
) -> None:
    data = "pvc://work/{{ dag_run.conf['data'] }}"
    dag = parse(f'LoRAOperator(task_id="train", **CLUSTER | {{"dataset": {data!r}}})').dag
    assert str(dag.test(run_conf={"data": "nowhere.jsonl"}).state) == "failed"
    (failed,) = jobs(cluster, namespace).split()
    said = json.loads(cluster.kubectl("get", failed, f"--namespace={namespace}", "--output=json"))["metadata"]
    assert said["annotations"]["airflow-provider-finetune/delivered"] == "true"
    assert str(dag.test(run_conf={"data": "train.jsonl"}).state) == "success"
    assert jobs(cluster, namespace) == ""


def test_the_example_prepares_trains_and_evaluates(
    cluster: Cluster,
    namespace: str,
    account: Path,
    train_python: Path,
    model_to: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    run_file: Callable[..., SimpleNamespace],
) -> None:
    cluster.apply(*rights.shipped(namespace, file="pods.yaml"))
    volume, _ = claim_objects(cluster, namespace, "training", "ReadWriteMany")
    claim = yaml.safe_load((rights.SHIPPED / "claim.yaml").read_text(encoding="utf-8"))
    claim["metadata"]["namespace"] = namespace
    volume["spec"]["capacity"] = claim["spec"]["resources"]["requests"]
    cluster.apply(volume, claim)
    model_to(cluster.work_dir / namespace / "training" / "tiny")
    connection = {"kube_config_path": str(account), "namespace": namespace}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": connection}))
    # A pod of the example has no image here: as in the runtime of the tests it sees the machine's own Python.
    pod = load(train_python)["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    monkeypatch.setattr("airflow.providers.cncf.kubernetes.operators.pod.pod_mutation_hook", machine_python(pod))
    result = run_file(EXAMPLE, run_conf={**SMALL, "base_model": "pvc://training/tiny"})
    assert result.state == "success", result.log[-6000:]
    assert "answer: " in result.log


def machine_python(template: dict[str, Any]) -> Callable[[Any], None]:
    def mutate(pod: Any) -> None:
        from kubernetes.client import V1EnvVar, V1HostPathVolumeSource, V1Volume, V1VolumeMount

        (container,), (model,) = pod.spec.containers, template["containers"]
        for volume in template["volumes"]:
            source = V1HostPathVolumeSource(path=volume["hostPath"]["path"])
            pod.spec.volumes.append(V1Volume(name=volume["name"], host_path=source))
        for mount in model["volumeMounts"]:
            there = V1VolumeMount(name=mount["name"], mount_path=mount["mountPath"], read_only=True)
            container.volume_mounts.append(there)
        container.env = [*(container.env or []), *(V1EnvVar(**variable) for variable in model["env"])]
        container.image, container.image_pull_policy = model["image"], "Never"

    return mutate
