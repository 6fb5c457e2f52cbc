"""The test cluster itself: what every other test here builds on.

Tested, each by a TrainJob with the runtime that is shipped: pods find rank 0 by its name; a pretended GPU is scheduled;
a program that fails leaves its message and is not run again; the training environment works in a pod; claims are
folders of this machine. Besides: a service account's rights; each bare API server knows the fields of its Trainer.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.bed.cluster import Cluster
from tests.cluster.bed.trainer_api import TrainerAPI

MEETING = """
import os, socket, time
address = (os.environ["PET_MASTER_ADDR"], int(os.environ["PET_MASTER_PORT"]))
if os.environ["PET_NODE_RANK"] == "0":
    with socket.create_server(("", address[1])) as server:
        guest, _ = server.accept()
        said = guest.recv(100).decode()
else:
    said = "hello from 1"
    while True:
        try:
            socket.create_connection(address, 1).send(said.encode())
            break
        except OSError:
            time.sleep(0.2)
open("/dev/termination-log", "w").write(said)
"""


def train_job(name: str, program: str, **trainer: Any) -> dict[str, Any]:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name},
        "spec": {
            "runtimeRef": {"name": "training-hub"},
            "trainer": {"numNodes": 1, "command": ["python3", "-c"], "args": [program], **trainer},
        },
    }


def pod_patch(**spec: Any) -> list[dict[str, Any]]:
    """What changes the pods of a TrainJob, in the form of Trainer 2.2 and newer."""
    job = {"name": "node", "template": {"spec": {"template": {"spec": spec}}}}
    runtime = {"template": {"spec": {"replicatedJobs": [job]}}}
    return [{"manager": "tests.example.org/bed", "trainingRuntimeSpec": runtime}]


@pytest.fixture
def run(cluster: Cluster, namespace: str, wait: Callable[..., Any]) -> Callable[..., tuple[str, list[Any]]]:
    """Run a TrainJob to its end; give its final condition and how its containers ended."""

    def run_job(manifest: dict[str, Any]) -> tuple[str, list[Any]]:
        name = manifest["metadata"]["name"]
        cluster.apply({**manifest, "metadata": {"name": name, "namespace": namespace}})

        def get(*what: str) -> Any:
            return json.loads(cluster.kubectl("get", *what, f"--namespace={namespace}", "--output=json"))

        def ended() -> str | None:
            conditions = get("trainjob", name).get("status", {}).get("conditions", [])
            return next((c["type"] for c in conditions if c["type"] in ("Complete", "Failed")), None)

        condition = wait(ended, f"end of the TrainJob {name}", timeout=120)
        pods = get("pods", f"--selector=jobset.sigs.k8s.io/jobset-name={name}")["items"]
        return condition, [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in pods]

    return run_job


def test_two_nodes_meet_at_the_name_of_rank_0_that_the_trainer_injects(run):
    condition, ends = run(train_job("meeting", MEETING, numNodes=2))
    assert condition == "Complete"
    assert [end["message"] for end in ends] == ["hello from 1", "hello from 1"]


def test_a_pod_that_asks_for_pretended_gpus_is_scheduled(run):
    condition, _ = run(train_job("gpus", "pass", resourcesPerNode={"limits": {"nvidia.com/gpu": "8"}}))
    assert condition == "Complete"


def test_a_failing_program_leaves_the_end_of_its_log_on_its_pod_and_is_not_run_again(run):
    condition, ends = run(train_job("failing", "raise SystemExit('no such model')"))
    assert condition == "Failed"
    assert [(end["exitCode"], end["message"].strip()) for end in ends] == [(1, "no such model")]


def test_the_training_environment_works_in_a_pod(run):
    program = "import torch; open('/dev/termination-log', 'w').write(str(torch.ones(2, 2).sum().item()))"
    condition, ends = run(train_job("torch", program))
    assert (condition, ends[0]["message"]) == ("Complete", "4.0")


def test_a_claim_is_a_folder_of_this_machine(run, cluster, namespace):
    job = train_job("claim", "open('/work/model', 'w').write('weights')")
    volume = {"name": "work", "persistentVolumeClaim": {"claimName": "work"}}
    container = {"name": "node", "volumeMounts": [{"name": "work", "mountPath": "/work"}]}
    job["spec"]["runtimePatches"] = pod_patch(volumes=[volume], containers=[container])
    condition, _ = run(job)
    assert condition == "Complete"
    assert (cluster.work_dir / namespace / "work" / "model").read_text() == "weights"


def test_a_service_account_has_its_own_rights_and_no_others(cluster, namespace):
    own = cluster.service_account_kubeconfig(namespace, "airflow")
    asked = [cluster.programs / "kubectl", f"--kubeconfig={own}", "get", "trainjobs"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert f'User "system:serviceaccount:{namespace}:airflow" cannot list resource "trainjobs"' in answer.stderr


def test_each_version_of_the_trainer_takes_its_own_fields_and_refuses_the_others(trainer_api: TrainerAPI):
    old = train_job("old", "pass")
    override = {"targetJobs": [{"name": "node"}], "spec": {"nodeSelector": {"pool": "gpu"}}}
    old["spec"]["podTemplateOverrides"] = [override]
    new = train_job("new", "pass")
    new["spec"]["runtimePatches"] = pod_patch(nodeSelector={"pool": "gpu"})
    if trainer_api.version == "2.1.0":
        taken, refused, field = old, new, "spec.runtimePatches"
    else:
        taken, refused, field = new, old, "spec.podTemplateOverrides"
    trainer_api.dry_run(taken)
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        trainer_api.dry_run(refused)
    assert f'unknown field "{field}"' in refusal.value.stderr
