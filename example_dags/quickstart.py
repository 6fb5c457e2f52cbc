"""Fine-tune a small language model on one machine: prepare data, train, evaluate, report.

The model learns to answer questions about Python in the terse style of Python's own documentation: one DAG for each of
LoRA, SFT and OSFT. ``make demo ALGORITHM=lora`` runs one of them from nothing in a few minutes on two CPU cores. To run
it in an Airflow of your own, set ``local_python`` in the section ``[finetune]`` of its configuration to an interpreter
that has training-hub, and trigger it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airflow.configuration import AIRFLOW_HOME, conf
from airflow.sdk import DAG, task

from airflow_provider_finetune import FineTuneOperator, LoRAOperator

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TRAINING_PYTHON = conf.get("finetune", "local_python", fallback="") or sys.executable
DATA_DIR = Path(conf.get("finetune", "work_dir", fallback="") or Path(AIRFLOW_HOME, "finetune"), "quickstart-data")
ROWS, HELD_OUT = 320, 24


MODULES = """
    base64 bisect builtins calendar collections configparser contextlib csv datetime decimal difflib fractions functools
    glob gzip heapq html io itertools json logging math mimetypes operator os os.path pathlib pprint queue random re
    secrets shelve shlex shutil socket sqlite3 statistics string subprocess tarfile tempfile textwrap threading timeit
    traceback unicodedata urllib.parse uuid warnings weakref zipfile
"""


def documented_names() -> Iterator[tuple[str, str]]:
    """Yield the public functions, classes and methods, each with the first paragraph of its docstring."""
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        prefix = "" if module_name == "builtins" else f"{module_name}."
        members = {prefix + name: getattr(module, name) for name in getattr(module, "__all__", dir(module))}
        for name, member in list(members.items()):
            if inspect.isclass(member):
                members |= {f"{name}.{attribute}": value for attribute, value in vars(member).items()}
        for name, member in members.items():
            if callable(member) and "._" not in f".{name}":
                yield name, " ".join((inspect.getdoc(member) or "").split("\n\n")[0].split())


@task(multiple_outputs=True)
def data_prep() -> dict[str, str]:
    """Turn docstrings of the standard library into chats, and hold some of them out for the evaluation."""
    questions: dict[str, str] = {}
    for name, answer in documented_names():
        is_sentence = answer[:1].isupper() and answer.endswith(".") and "->" not in answer
        if is_sentence and 30 <= len(answer) <= 200:
            # Methods share docstrings; an answer that was held out must not come back under another name.
            questions.setdefault(answer, f"What does `{name}` do in Python?")
    chats = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for answer, question in questions.items()
    ]
    random.Random(0).shuffle(chats)
    # The question that the report shows must not be trained on, so it leads the rows that are held out.
    chats.sort(key=lambda chat: "`textwrap.dedent`" not in chat["messages"][0]["content"])

    DATA_DIR.mkdir(parents=True, exist_ok=True)
    paths = {}
    for part, rows in {"held_out": chats[:HELD_OUT], "train": chats[HELD_OUT : HELD_OUT + ROWS]}.items():
        path = DATA_DIR / f"{part}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        paths[part] = str(path)
        print(f"{len(rows)} chats in {path}")
    return paths


@task.external_python(python=TRAINING_PYTHON, expect_airflow=False)
def evaluate(base_model: str, trained: dict[str, Any], held_out: str) -> dict[str, Any]:
    """Compare the model before and after the training on chats that it was not trained on."""
    import json
    import os

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    base = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32).eval()

    with open(held_out) as file:
        chats = [json.loads(line)["messages"] for line in file]
    prompts = [tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, tokenize=False) for chat in chats]
    texts = [prompt + chat[1]["content"] + tokenizer.eos_token for prompt, chat in zip(prompts, chats, strict=True)]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    # Only the answers count: neither the questions nor the padding.
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, prompt in enumerate(prompts):
        labels[row, : len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100

    @torch.no_grad()
    def measure(model, when: str) -> dict[str, float | str]:
        loss = model(**batch, labels=labels).loss.item()
        print(f"loss {when}: {loss:.3f} on {len(chats)} answers; asking {chats[0][0]['content']}")
        prompt = tokenizer(prompts[0], add_special_tokens=False, return_tensors="pt")
        tokens = model.generate(**prompt, max_new_tokens=48, do_sample=False)
        answer = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        return {f"loss_{when}": loss, f"answer_{when}": " ".join(answer.split())}

    before = measure(base, "before")
    path = trained["model_path"]
    if os.path.exists(os.path.join(path, "adapter_config.json")):
        after = measure(PeftModel.from_pretrained(base, path).eval(), "after")
    else:
        after = measure(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), "after")
    return {"question": chats[0][0]["content"], **before, **after}


@task
def report(trained: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Say what came of it."""
    print(
        f"""
Model       {trained["model_path"]}
Loss chart  {trained["loss_chart"].removeprefix("file://")}
Held out    loss {evaluation["loss_before"]:.2f} before, {evaluation["loss_after"]:.2f} after
Question    {evaluation["question"]}
  before    {evaluation["answer_before"]}
  after     {evaluation["answer_after"]}
"""
    )


TRAININGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lora": (LoRAOperator, {"training_learning_rate": 5e-4}),
    "sft": (FineTuneOperator, {"training_algorithm": "SFT", "training_learning_rate": 2e-5}),
    "osft": (FineTuneOperator, {"training_algorithm": "OSFT", "training_learning_rate": 5e-5}),
}


def quickstart(algorithm: str) -> DAG:
    """Return the DAG that trains by one algorithm."""
    params = {"base_model": BASE_MODEL}
    with DAG(f"quickstart_{algorithm}", schedule=None, params=params, tags=["finetune", "example"]) as dag:
        data = data_prep()
        operator, own = TRAININGS[algorithm]
        fine_tune = operator(
            task_id="fine_tune",
            launcher="local",
            dataset=data["train"],
            training_base_model="{{ params.base_model }}",
            training_num_epochs=1,
            training_effective_batch_size=8,
            training_max_seq_len=512,
            training_max_tokens_per_gpu=4096,
            training_lr_warmup_steps=4,
            training_seed=42,
            **own,
        )
        evaluation = evaluate("{{ params.base_model }}", fine_tune.output, data["held_out"])
        report(fine_tune.output, evaluation)
    return dag


DAGS = {algorithm: quickstart(algorithm) for algorithm in TRAININGS}
