"""A request that has everything, and the golden files that its objects are held against.

``FINETUNE_WRITE_GOLDEN=1 pytest tests/launchers`` writes the files anew; look at their diff before committing it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.launchers.identity import TaskInstance, identity_annotations, identity_labels, job_name
from airflow_provider_finetune.launchers.job_request import JobRequest

GOLDEN = Path(__file__).with_name("golden")

TASK = TaskInstance(
    dag_id="Weekly_retrain",
    run_id="manual__2026-01-01T00:00:00+00:00",
    task_id="train",
    map_index=-1,
    try_number=1,
    ti_id="019b76da-a800-7000-8000-000000000001",
)

MINIMAL = JobRequest(
    spec=TrainingSpec(
        algorithm="lora_sft",
        base_model="org/model",
        dataset="/mnt/training/data/train.jsonl",
        work_dir="/mnt/training/runs/Weekly_retrain/run/train",
        processes_per_node=1,
        device="cuda",
        mounts={"pvc://training": "/mnt/training"},
    ),
    name=job_name(TASK.dag_id, TASK.task_id, TASK.ti_id),
    namespace="team-a",
    runtime="training-hub",
    runtime_kind="ClusterTrainingRuntime",
    labels=identity_labels(TASK, deployment="prod", namespace="team-a"),
    annotations=identity_annotations(TASK),
    hub_cache="/mnt/training/runs/.cache/huggingface/hub",
    cpu="8",
    memory="32Gi",
    gpus=1,
    gpu_resource="nvidia.com/gpu",
    claims={
        "volumes": [{"name": "finetune-training", "persistentVolumeClaim": {"claimName": "training"}}],
        "volume_mounts": [{"name": "finetune-training", "mountPath": "/mnt/training"}],
    },
)

OLD_CONFIG: dict[str, Any] = {
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}],
    "volume_mounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
    "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {"nodeAffinity": {}},
    "service_account_name": "trainer",
    "image_pull_secrets": [{"name": "registry"}],
}
"""What every form of the API carries."""

PATCHES_CONFIG: dict[str, Any] = {
    **OLD_CONFIG,
    "security_context": {"fsGroup": 1000, "runAsNonRoot": True},
    "container_security_context": {"allowPrivilegeEscalation": False},
}
"""What Trainer 2.2 carries."""

FULL_CONFIG: dict[str, Any] = {**PATCHES_CONFIG, "termination_grace_period_seconds": 120}

FULL = replace(
    MINIMAL,
    image="registry.example/training-hub:1",
    user_labels={"team": "nlp"},
    user_annotations={"example.org/owner": "team a"},
    envs={"NCCL_DEBUG": "INFO", "PRICE": "5$(USD)"},
    secrets={"HF_TOKEN": "hub/token"},
    cpu="500m",
    gpus=4,
    gpu_resource="amd.com/gpu",
    queue_name="gpu-queue",
    kubernetes_config=FULL_CONFIG,
    deadline=9120,
)


def stable(thing: dict[str, Any]) -> dict[str, Any]:
    """The object without what changes with each edit of the runner."""
    text = re.sub(r"finetune-runner-[0-9a-f]{12}", "finetune-runner-<hash>", json.dumps(thing))
    changed: dict[str, Any] = json.loads(text)
    trainer = changed["spec"].get("trainer", {"args": []})
    if "--" in trainer["args"]:
        trainer["args"][: trainer["args"].index("--")] = ["<chunk>"]
    return changed


@pytest.fixture
def holds() -> Callable[[str, dict[str, Any]], None]:
    """Compare an object with a golden file."""

    def compare(name: str, rendered: dict[str, Any]) -> None:
        file = GOLDEN / f"{name}.yaml"
        if os.environ.get("FINETUNE_WRITE_GOLDEN"):
            file.write_text(yaml.safe_dump(rendered, sort_keys=False, width=120), encoding="utf-8")
        assert rendered == yaml.safe_load(file.read_text(encoding="utf-8"))

    return compare
