"""A training as a process of the worker, through real task runs with a real process in the runner's place.

Aspects: XCom; asset events, also mapped; failures and retries; the log; environment and secrets; time limit; a kill.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest


def attempt(local, result, task="train"):
    (run_dir,) = Path(local["pvc_path"], result.dag.dag_id).iterdir()
    return run_dir / task / "1"


def lora(further="", **envs):
    return f'LoRAOperator(task_id="train", training_envs={envs!r}, **LOCAL, {further})'


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie whose parent has not reaped it yet has ended too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_result_is_in_xcom_whole_and_under_keys_of_its_own(run, local, xcom):
    result = run(lora("training_seed=7"))
    assert result.state == "success"
    directory, train = attempt(local, result), result.tasks["train"]
    assert xcom(train) == {
        "model_uri": f"file://{directory}/model",
        "model_path": f"{directory}/model",
        "metrics": {"loss": 0.5, "seed": 7},
        "loss_curve": [[1, 2.0], [2, 0.5]],
        "loss_chart": f"file://{directory}/loss.html",
        "job": {"launcher": "local", "work_dir": str(directory)},
    }
    assert xcom(train, "model_uri") == f"file://{directory}/model"
    assert xcom(train, "metrics") == {"loss": 0.5, "seed": 7}
    assert xcom(train, "loss_chart") == f"file://{directory}/loss.html"


def test_without_the_full_outcome_the_small_one_is_delivered(run, local, xcom):
    result = run(lora(STAND_IN="small"))
    assert result.state == "success"
    assert xcom(result.tasks["train"])["loss_curve"] == []


def asset_events(result):
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        events = session.scalars(select(AssetEvent).where(AssetEvent.source_dag_id == result.dag.dag_id))
        return [(event.uri, event.extra) for event in events]


def test_an_asset_in_output_model_becomes_an_event_with_uri_and_metrics(run):
    result = run(lora('output_model=Asset("file:///tmp/model-one")'))
    assert result.state == "success"
    ((uri, extra),) = asset_events(result)
    assert uri == "file:///tmp/model-one"
    assert extra["model_uri"] == "file:///tmp/model-one"
    assert extra["metrics"] == {"loss": 0.5, "seed": None}


MAPPED = """
model = Asset("file:///tmp/model-many")
LoRAOperator.partial(task_id="train", retries=2, output_model=model, {outlets} **LOCAL).expand(training_seed=[1, 2])
"""


def test_a_mapped_asset_named_in_outlets_gets_an_event_from_each_instance(run):
    result = run(MAPPED.format(outlets="outlets=[model],"))
    assert result.state == "success"
    assert sorted(extra["metrics"]["seed"] for _, extra in asset_events(result)) == [1, 2]


def test_a_mapped_asset_that_the_scheduler_would_not_see_is_an_error(run):
    result = run(MAPPED.format(outlets=""))
    assert result.state == "failed"
    assert {ti.try_number for ti in result.tasks.values()} == {1}
    assert "Name it in outlets=[...] of .partial() as well" in result.log


def test_lines_of_the_runner_have_their_level_and_lines_for_machines_are_not_logged(run):
    log = run(lora()).log
    (begun,) = [line for line in log.splitlines() if "training has begun" in line]
    assert "info" in begun.lower()
    (warning,) = [line for line in log.splitlines() if "the data is small" in line]
    assert "warning" in warning.lower()
    assert "warning: the data" not in warning
    assert "finetune-progress" not in log
    assert "finetune-outcome" not in log


def test_a_failure_that_the_author_must_mend_is_not_retried_and_ends_with_cause_cure_and_place(run, local):
    result = run(lora("retries=2, retry_delay=timedelta(0)", STAND_IN="reject"))
    assert (result.state, result.tasks["train"].try_number) == ("failed", 1)
    assert "TrainingRejected: Training failed (user: dataset_empty). It broke here.\nWhat to do: Mend it." in result.log
    assert f"Where to look: {attempt(local, result) / 'train.log'}" in result.log


def test_a_failure_that_time_can_mend_is_retried(run):
    result = run(lora("retries=1, retry_delay=timedelta(0)", STAND_IN="fail"))
    assert (result.state, result.tasks["train"].try_number) == ("failed", 2)
    assert "TrainingFailed: Training failed (infrastructure: no_cuda_device)" in result.log


def test_a_runner_that_dies_without_an_outcome_is_told_with_status_and_last_line(run):
    result = run(lora(STAND_IN="die"))
    assert result.state == "failed"
    assert "infrastructure: runner_died" in result.log
    assert "exited with status 3 and left no outcome. Its last line: last words" in result.log


def test_a_training_over_its_time_limit_is_ended_and_says_so(run):
    result = run(lora("training_timeout=1", STAND_IN="wait"))
    assert result.state == "failed"
    assert "The training was ended after training_timeout=1 s." in result.log


def test_nothing_of_airflow_and_of_this_interpreter_is_in_the_environment_of_the_runner(run, local, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_SECRET", "http://:password@host")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    result = run(lora(TOKENIZERS_PARALLELISM="true", A="1,2"))
    environment = json.loads((attempt(local, result) / "environment.json").read_text())
    assert [name for name in environment if name.startswith(("AIRFLOW", "_AIRFLOW"))] == []
    assert not {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"} & set(environment)
    assert environment["NCCL_DEBUG"] == "WARN"
    assert environment["TOKENIZERS_PARALLELISM"] == "true"
    assert environment["A"] == "1,2"
    assert environment["PATH"] == os.environ["PATH"]


def test_a_secret_is_the_password_of_a_connection_and_stays_out_of_spec_and_log(run, local, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_HUB", "generic://:hf_very_secret@")
    result = run(lora('secrets={"HF_TOKEN": "conn:hub"}'))
    assert result.state == "success"
    environment = json.loads((attempt(local, result) / "environment.json").read_text())
    assert environment["HF_TOKEN"] == "hf_very_secret"
    assert "hf_very_secret" not in (attempt(local, result).parent / "spec.json").read_text()
    assert "hf_very_secret" not in result.log


def test_a_signed_link_is_not_kept(run, local):
    link = "https://host/rows.jsonl?X-Amz-Signature=not-to-be-kept-9876"
    result = run(lora(f"extra_args={{'eval_data_path': {link!r}}}"))
    assert result.state == "success"
    spec = (attempt(local, result).parent / "spec.json").read_text()
    assert '"https://host/rows.jsonl"' in spec
    assert "not-to-be-kept" not in spec


@pytest.mark.parametrize(
    ("connection", "sentence"),
    [(None, "there is no such connection"), ("generic://user@host", "that connection has no password")],
)
def test_a_secret_that_is_not_there_is_named_and_not_retried(run, monkeypatch, connection, sentence):
    if connection:
        monkeypatch.setenv("AIRFLOW_CONN_HUB", connection)
    result = run(lora('retries=2, secrets={"HF_TOKEN": "conn:hub"}'))
    assert (result.state, result.tasks["train"].try_number) == ("failed", 1)
    assert sentence in result.log
    assert "secrets={'HF_TOKEN': 'conn:hub'}" in result.log


def test_a_literal_credential_warns_and_is_masked(run):
    result = run(lora(HF_TOKEN="hf_literal_secret"))
    assert result.state == "success"
    assert "training_envs holds HF_TOKEN (***) as readable text" in result.log
    assert "hf_literal_secret" not in result.log


def test_arguments_without_effect_are_named_once_and_defaults_are_not(run):
    line = "Without effect with launcher='local'"
    further = 'training_resource_gpu_per_worker=2, kubernetes_config={"env": []}, deferrable=True'
    (said,) = [text for text in run(lora(further)).log.splitlines() if line in text]
    assert "training_resource_gpu_per_worker, kubernetes_config, deferrable" in said
    assert line not in run(lora()).log


@pytest.mark.parametrize(("executor", "warned"), [("CeleryExecutor", True), ("LocalExecutor", False)])
def test_files_that_another_worker_would_not_see_are_warned_of(run, monkeypatch, executor, warned):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    result = run('LoRAOperator(task_id="train", **{**LOCAL, "pvc_path": None})')
    assert result.state == "success"
    assert ("The executor may run the next task on another machine" in result.log) is warned


def test_it_says_that_it_holds_a_worker_slot(run):
    assert "this task holds its worker slot until it ends" in run(lora()).log


def test_a_kill_of_the_task_asks_the_runner_and_ends_its_whole_group(run, local):
    """Airflow's own SIGTERM handler calls ``on_kill`` in the thread that waits for the runner."""
    pids: list[int] = []

    def kill_when_it_waits():
        for _ in range(300):
            found = list(Path(local["pvc_path"]).glob("*/*/train/1/pids.json"))
            if found and found[0].stat().st_size:
                pids.extend(json.loads(found[0].read_text()))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.1)

    before = signal.getsignal(signal.SIGTERM)
    killer = threading.Thread(target=kill_when_it_waits)
    killer.start()
    try:
        result = run(lora(STAND_IN="wait"))
    finally:
        killer.join()
        signal.signal(signal.SIGTERM, before)
    assert result.state == "failed"
    assert "preempted: sigterm" in result.log
    assert [pid for pid in pids if alive(pid)] == []
    assert len(pids) == 2
