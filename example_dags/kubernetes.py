"""Prepare data, fine-tune on Kubernetes, evaluate: three pods that share one claim.

README, "Kubernetes", says what cluster and Airflow need: claim, image, rights, connection and the pool ``gpus``.
"""

from __future__ import annotations

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG, Param

from airflow_provider_finetune import LoRAOperator, volumes_for

CLAIM = "training"  # put in yours, and your image with training-hub
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

    pod = {
        "image": IMAGE,
        "volumes": claim.volumes,
        "volume_mounts": claim.volume_mounts,
        "security_context": {"fsGroup": 1001},  # as in the runtime: the image's user may write to the claim
    }

    prepare = KubernetesPodOperator(task_id="prepare", cmds=["python3", "-c", PREPARE, data], **pod)
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
    model = "{{ ti.xcom_pull('train')['model_path'] }}"
    evaluate = KubernetesPodOperator(task_id="evaluate", cmds=["python3", "-c", EVALUATE, model], **pod)
    prepare >> train >> evaluate
