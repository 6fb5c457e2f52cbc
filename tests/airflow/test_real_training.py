"""One real training from a DAG: Airflow's task, the real runner, training-hub, a tiny model.

* data-prep hands its path on by XCom, LoRA trains, the next task gets the model
* SFT leaves a full model where LoRA leaves an adapter
* what the user must change is not retried, and the last lines of the red task say what it is
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny_model(train_python, tmp_path_factory):
    """The model of the runner's own tests, made in the training environment."""
    directory = tmp_path_factory.mktemp("tiny-model")
    code = f"from pathlib import Path; from tests.train.tiny_model import *; save_tiny_model(Path({str(directory)!r}))"
    subprocess.run([train_python, "-c", code], cwd=REPOSITORY, check=True, capture_output=True)
    return directory


def dag_body(model, train_python, tmp_path, operator="LoRAOperator", weights="adapter_model", **arguments):
    given = {
        "launcher": "local",
        "local_python": str(train_python),
        "pvc_path": str(tmp_path / "work"),
        "training_base_model": str(model),
        "training_num_epochs": "{{ 1 + 1 }}",
        "training_effective_batch_size": 8,
        "training_max_seq_len": 128,
        "training_max_tokens_per_gpu": 512,
        "training_resource_gpu_per_worker": 0,
        "progress_interval": 0.1,
        **arguments,
    }
    return f"""
    @task
    def prep():
        import json
        rows = [[{{"role": "user", "content": f"What is {{n}}?"}}, {{"role": "assistant", "content": f"It is {{n}}."}}]
                for n in range(16)]
        path = Path({str(tmp_path / "data.jsonl")!r})
        path.write_text("".join(json.dumps({{"messages": row}}) + "\\n" for row in rows))
        return str(path)

    @task
    def use(model):
        assert (Path(model["model_path"]) / "{weights}.safetensors").is_file()
        return model["metrics"]["steps"]

    use({operator}(task_id="train", dataset=prep(), retries=2, output_model=Asset("file://{tmp_path}/model"),
                     **{given!r}).output)
    """


def test_a_dag_prepares_data_trains_and_hands_the_model_on(run, xcom, tiny_model, train_python, tmp_path):
    result = run(dag_body(tiny_model, train_python, tmp_path))
    assert result.state == "success", result.log
    trained = xcom(result.tasks["train"])
    assert trained["model_uri"] == f"file://{tmp_path}/model"
    assert xcom(result.tasks["use"]) == trained["metrics"]["steps"] == 4
    assert Path(trained["loss_chart"].removeprefix("file://")).read_text().startswith("<!DOCTYPE html>")
    assert trained["loss_curve"][-1][0] == 4
    assert "step 4/4 (100 %)" in result.log


def test_sft_hands_a_full_model_on(run, xcom, tiny_model, train_python, tmp_path):
    body = dag_body(tiny_model, train_python, tmp_path, "FineTuneOperator", "model", training_algorithm="SFT")
    result = run(body)
    assert result.state == "success", result.log
    trained = xcom(result.tasks["train"])
    assert trained["model_uri"] == f"file://{tmp_path}/model"
    assert (trained["loss_curve"][-1][0], xcom(result.tasks["use"])) == (4, 4)
    assert "training starts on the CPU (SFT by TRL, float32)" in result.log


def test_a_users_mistake_is_said_in_the_last_lines_and_not_retried(run, tiny_model, train_python, tmp_path):
    result = run(dag_body(tiny_model, train_python, tmp_path, extra_args={"wieght_decay": 0.1}))
    assert (result.state, result.tasks["train"].state) == ("failed", "failed")
    assert "training-hub 0.11.2 would ignore wieght_decay for lora_sft" in result.log
    assert result.tasks["train"].try_number == 1
