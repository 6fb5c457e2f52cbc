"""Prepare data, fine-tune on Kubernetes, evaluate: three pods that share one claim.

README, "Kubernetes", says what the cluster needs. The pool keeps the sum of GPUs in bounds, and counts tasks that wait
deferred as well: ``airflow pools set gpus 4 "GPUs that DAGs may use" --include-deferred``.
"""

from __future__ import annotations

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG, Param

from airflow_provider_finetune import LoRAOperator, volumes_for

CLAIM = "training"
IMAGE = "registry.example/training-hub:0.11.2"

PREPARE = """
import json, os, sys
os.makedirs(os.path.dirname(sys.argv[1]), exist_ok=True)
with open(sys.argv[1], "w") as file:
    for word, number in [("one", 1), ("two", 2), ("three", 3), ("four", 4)] * 8:
        turns = [{"role": "user", "content": f"Which number is {word}?"}, {"role": "assistant", "content": str(number)}]
        file.write(json.dumps({"messages": turns}) + "\\n")
"""

EVALUATE = """
import sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model, tokenizer = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
question = [{"role": "user", "content": "Which number is two?"}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print("answer:", tokenizer.decode(model.generate(**inputs, max_new_tokens=8)[0], skip_special_tokens=True))
"""

with DAG(
    "kubernetes",
    schedule=None,
    params={
        "base_model": Param("HuggingFaceTB/SmolLM2-135M-Instruct", type="string"),
        "gpus": Param(0, type="integer", minimum=0, description="0 trains on the CPU"),
        "cpu": Param("4", type="string"),
        "memory": Param("16Gi", type="string"),
    },
    doc_md=__doc__,
):
    claim = volumes_for(f"pvc://{CLAIM}", claim_read_only=False)
    data = f"{claim.path}/data/{{{{ run_id }}}}/train.jsonl"

    prepare = KubernetesPodOperator(
        task_id="prepare",
        image=IMAGE,
        cmds=["python3", "-c", PREPARE, data],
        volumes=claim.volumes,
        volume_mounts=claim.volume_mounts,
    )
    train = LoRAOperator(
        task_id="train",
        pool="gpus",
        dataset=f"pvc://{CLAIM}/data/{{{{ run_id }}}}/train.jsonl",
        pvc_path=f"pvc://{CLAIM}/runs",
        training_base_model="{{ params.base_model }}",
        training_resource_gpu_per_worker="{{ params.gpus }}",
        training_resource_cpu_per_worker="{{ params.cpu }}",
        training_resource_memory_per_worker="{{ params.memory }}",
        training_effective_batch_size=8,
    )
    evaluate = KubernetesPodOperator(
        task_id="evaluate",
        image=IMAGE,
        cmds=["python3", "-c", EVALUATE, "{{ ti.xcom_pull('train')['model_path'] }}"],
        volumes=claim.volumes,
        volume_mounts=claim.volume_mounts,
    )
    prepare >> train >> evaluate
