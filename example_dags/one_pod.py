"""Fine-tune in one GPU pod, on a cluster without Kubeflow Trainer.

README, "Without Kubeflow Trainer", says what cluster and Airflow need.
"""

from __future__ import annotations

from airflow.sdk import DAG, Param

from airflow_provider_finetune import LoRAOperator

CLAIM = "training"  # put in yours, and your image with training-hub
IMAGE = "registry.example/training-hub:0.11.2"

with DAG(
    "one_pod",
    schedule=None,
    params={
        "base_model": Param("HuggingFaceTB/SmolLM2-135M-Instruct", type="string"),
        "gpus": Param(1, type="integer", minimum=0, description="0 trains on the CPU"),
        "cpu": Param("4", type="string"),
        "memory": Param("16Gi", type="string"),
    },
    doc_md=__doc__,
):
    LoRAOperator(
        task_id="train",
        launcher="pod",
        image=IMAGE,
        pool="gpus",
        dataset=f"pvc://{CLAIM}/train.jsonl",
        pvc_path=f"pvc://{CLAIM}/runs",
        training_base_model="{{ params.base_model }}",
        training_resource_gpu_per_worker="{{ params.gpus }}",
        training_resource_cpu_per_worker="{{ params.cpu }}",
        training_resource_memory_per_worker="{{ params.memory }}",
        training_effective_batch_size=8,
        kubernetes_config={"security_context": {"fsGroup": 1001}},  # the image's user may write to the claim
        pod_operator_arguments={"image_pull_policy": "IfNotPresent"},
    )
