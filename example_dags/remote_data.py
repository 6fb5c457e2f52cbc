"""Fine-tune on Kubernetes with data and model in S3, and hand the model on by its URI.

No claim is needed: the pod works on the disk of its node, and what outlives it lies in the bucket. The image needs
``s3fs`` beside training-hub; the Kubernetes Secret ``s3`` holds the keys. An S3 of your own is named by
``training_envs={"AWS_ENDPOINT_URL": "https://minio.example"}``.
"""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, task

from airflow_provider_finetune import LoRAOperator

ANSWERS = Asset("s3://models/answers")

with DAG("remote_data", schedule=[Asset("s3://training-data/chats")], catchup=False, doc_md=__doc__):
    train = LoRAOperator(
        task_id="train",
        dataset="s3://training-data/chats",  # every file below it, all of one format
        training_base_model="HuggingFaceTB/SmolLM2-135M-Instruct@main",  # a branch, a tag or a commit
        output_model=ANSWERS,  # metrics.json and loss.html lie beside the model
        output_kind="merged",  # needs no base model where it is served
        secrets={"AWS_ACCESS_KEY_ID": "s3/id", "AWS_SECRET_ACCESS_KEY": "s3/key"},
        training_resource_gpu_per_worker=0,  # trains on the CPU
        training_effective_batch_size=8,
    )

    @task
    def serve(model: dict[str, Any]) -> None:
        """Stand for what takes a model by its URI; ``model_path`` is None, as no file system has it."""
        print("serve", model["model_uri"], "with loss", model["metrics"]["loss"])

    serve(train.output)  # type: ignore[arg-type]
