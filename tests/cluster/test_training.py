"""Real trainings in real pods, each through a real Airflow task with the rights that are shipped.

Aspects: data in, model out on the claim, XCom, phases and progress in the task log, what is left in the cluster;
several nodes; a worker that waits itself; the example DAG with its claim, whose last pod reads the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
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

EXAMPLES = Path(__file__).parents[2] / "example_dags"

ARGUMENTS = {"trainjob": "CLUSTER", "pod": "POD"}
PHASES = {
    "trainjob": ("starting: TrainJob", "running on node1", "step 4/4", "; succeeded"),
    "pod": ("starting: Pod", "running on node1", "step 4/4", "; succeeded"),
}
WEIGHTS = {"adapter": "adapter_model.safetensors", "full": "model.safetensors"}


@dataclass(frozen=True)
class Case:
    """A training, and what comes of it.

    * ``task``: its source in a DAG file, with the arguments ``TASK``
    * ``model``: the kind of its model
    * ``launchers``: what may run it
    """

    task: str
    model: str
    launchers: tuple[str, ...] = ("trainjob", "pod")


TRAININGS = {
    "lora": Case("LoRAOperator(training_lora_r=4, **TASK)", "adapter"),
    "sft": Case('FineTuneOperator(training_algorithm="SFT", **TASK)', "full"),
    "osft": Case('FineTuneOperator(training_algorithm="OSFT", training_unfreeze_rank_ratio=0.5, **TASK)', "full"),
    "sft in two processes": Case(
        'FineTuneOperator(training_algorithm="SFT", training_resource_num_procs_per_worker="2", **TASK)', "full"
    ),
    "lora in two processes": Case(
        'LoRAOperator(training_lora_r=4, training_resource_num_procs_per_worker="2", **TASK)', "adapter", ("pod",)
    ),
    "sft on two nodes": Case(
        'FineTuneOperator(training_algorithm="SFT", training_resource_num_workers=2, **TASK)', "full", ("trainjob",)
    ),
}
SMALL = {"gpus": 0, "cpu": "900m", "memory": "3Gi"}

Run = Callable[..., SimpleNamespace]
XCom = Callable[..., Any]
Wait = Callable[..., Any]


def jobs(cluster: Cluster, namespace: str) -> str:
    return cluster.kubectl("get", "pods,trainjobs", f"--namespace={namespace}", "--output=name")


@pytest.mark.parametrize(
    ("name", "launcher"), [(name, launcher) for name, case in TRAININGS.items() for launcher in case.launchers]
)
def test_a_training_ends_as_a_model_on_the_claim(
    run: Run, xcom: XCom, cluster: Cluster, namespace: str, claim: Path, wait: Wait, name: str, launcher: str
) -> None:
    case = TRAININGS[name]
    result = run(f"TASK = {ARGUMENTS[launcher]} | {{'task_id': 'train'}}\n{case.task}")
    assert result.state == "success", result.log[-4000:]
    said = xcom(result.tasks["train"])
    place = f"runs/{result.dag.dag_id}/"
    assert said["model_uri"].startswith(f"pvc://work/{place}")
    model = claim / said["model_uri"].removeprefix("pvc://work/")
    assert (model / WEIGHTS[case.model]).is_file()
    assert (claim / said["loss_chart"].removeprefix("pvc://work/")).is_file()
    assert said["metrics"]["loss"] > 0
    assert said["job"]["launcher"] == launcher
    assert [words for words in PHASES[launcher] if words not in result.log] == []
    assert "finetune-progress" not in result.log
    wait(lambda: jobs(cluster, namespace) == "", "end of all pods")


def test_a_worker_that_waits_itself_delivers_the_same(run: Run, xcom: XCom) -> None:
    result = run('LoRAOperator(task_id="train", deferrable=False, **CLUSTER)')
    assert result.state == "success", result.log[-4000:]
    assert "holds its worker slot" in result.log
    assert xcom(result.tasks["train"])["model_uri"].startswith("pvc://work/runs/")


@pytest.mark.parametrize("launcher", ARGUMENTS)
def test_a_job_that_failed_stays_until_the_next_success_of_its_task(
    cluster: Cluster, namespace: str, claim: Path, wait: Wait, parse: Callable[..., SimpleNamespace], launcher: str
) -> None:
    data = "pvc://work/{{ dag_run.conf['data'] }}"
    dag = parse(f'LoRAOperator(task_id="train", **{ARGUMENTS[launcher]} | {{"dataset": {data!r}}})').dag
    assert str(dag.test(run_conf={"data": "nowhere.jsonl"}).state) == "failed"
    *_, failed = jobs(cluster, namespace).split()  # a TrainJob comes after its pod
    said = json.loads(cluster.kubectl("get", failed, f"--namespace={namespace}", "--output=json"))["metadata"]
    assert said["annotations"]["airflow-provider-finetune/delivered"] == "true"
    assert str(dag.test(run_conf={"data": "train.jsonl"}).state) == "success"
    wait(lambda: jobs(cluster, namespace) == "", "end of all pods")


@pytest.fixture
def example(
    cluster: Cluster,
    namespace: str,
    train_python: Path,
    model_to: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    run_file: Callable[..., SimpleNamespace],
) -> Iterator[Callable[[str, Path], SimpleNamespace]]:
    """Run an example DAG with the account of a kubeconfig, and the claim that is shipped."""
    volume, _ = claim_objects(cluster, namespace, "training", "ReadWriteMany")
    claim = yaml.safe_load((rights.SHIPPED / "claim.yaml").read_text(encoding="utf-8"))
    claim["metadata"]["namespace"] = namespace
    volume["spec"]["capacity"] = claim["spec"]["resources"]["requests"]
    cluster.apply(volume, claim)
    folder = cluster.work_dir / namespace / "training"
    model_to(folder / "tiny")
    # A pod of the example has no image here: as in the runtime of the tests it sees the machine's own Python.
    pod = load(train_python)["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    monkeypatch.setattr("airflow.providers.cncf.kubernetes.operators.pod.pod_mutation_hook", machine_python(pod))

    def run_example(name: str, account: Path) -> SimpleNamespace:
        extra = {"kube_config_path": str(account), "namespace": namespace}
        monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
        return run_file(EXAMPLES / f"{name}.py", run_conf={**SMALL, "base_model": "pvc://training/tiny"})

    yield run_example
    cluster.kubectl("delete", f"--namespace={namespace}", "--wait=false", "persistentvolumeclaim/training")
    cluster.kubectl("delete", "--wait=false", f"persistentvolume/{volume['metadata']['name']}")
    shutil.rmtree(folder)


def test_the_example_prepares_trains_and_evaluates(
    cluster: Cluster, namespace: str, account: Path, example: Callable[[str, Path], SimpleNamespace]
) -> None:
    cluster.apply(*rights.shipped(namespace, file="pods.yaml"))
    result = example("kubernetes", account)
    assert result.state == "success", result.log[-6000:]
    assert "answer: " in result.log


def test_the_example_of_one_pod_trains(
    cluster: Cluster,
    namespace: str,
    claim: Path,
    pod_account: Path,
    example: Callable[[str, Path], SimpleNamespace],
) -> None:
    shutil.copy(claim / "train.jsonl", cluster.work_dir / namespace / "training" / "train.jsonl")
    result = example("one_pod", pod_account)
    assert result.state == "success", result.log[-6000:]


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
