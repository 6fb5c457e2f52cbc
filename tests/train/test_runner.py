"""The runner as a user's task starts it: a real process, a real training, an outcome at the end of each story.

* the whole path: data in, proven model, chart, metrics and outcome out
* what is kept, where it is published, and that an earlier lineage is never touched
* how it ends when it is stopped: SIGTERM, a killed child, a parent that is gone
* how it ends when the training goes wrong: NaN, a full disk
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Outcome
from tests.train.conftest import RunRunner, StartRunner, chat, write_rows


def test_a_run_leaves_a_proven_adapter_and_tells_how_it_got_there(
    run_runner: RunRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    assert find_spec("airflow") is None, "the runner must not need Airflow"
    ended = run_runner(spec)
    assert (ended.status, ended.outcome.status) == (0, "succeeded"), ended.output

    work_dir = tmp_path / "work" / "1"
    outcome = ended.full
    assert outcome.model_uri == (work_dir / "model").as_uri()
    assert outcome.metrics["steps"] == 6
    assert outcome.metrics["loss"] == pytest.approx(outcome.loss_curve[-1][1], rel=1e-5)
    assert outcome.metrics["loss"] < outcome.loss_curve[0][1], "the last loss is told, not the first"
    assert outcome.metrics["best_loss"] == pytest.approx(min(loss for _, loss in outcome.loss_curve), rel=1e-5)
    assert outcome.metrics["peak_memory_bytes"] > 100e6
    assert outcome.dataset["rows_used"] == 24
    assert 0 < outcome.dataset["trained_share"] < 1
    assert set(outcome.versions) >= {"training-hub", "torch", "trl", "peft"}
    assert outcome.loss_chart == (work_dir / "loss.html").as_uri()
    assert "<svg" in (work_dir / "loss.html").read_text()

    assert "step 6/6 (100 %)" in ended.output
    progress = [json.loads(line[18:]) for line in ended.output.splitlines() if line.startswith("finetune-progress ")]
    assert progress[-1]["step"] == progress[-1]["total_steps"] == 6
    log = (work_dir / "train.log").read_text()
    assert "step 6/6 (100 %)" in log
    assert "train_runtime" in log, "what the libraries print is kept"
    assert "train_runtime" not in ended.output, "and does not drown the task log"

    files = {entry.name for entry in (work_dir / "model").iterdir()}
    assert files >= {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"}
    left = {"spec.json", "outcome.json", "metrics.json", "loss.html", "train.log", "model"}
    assert {entry.name for entry in work_dir.iterdir()} == left
    assert "data and checkpoints of the run are removed, since keep='model'" in ended.output


def test_the_published_adapter_answers_when_somebody_else_loads_it(
    run_runner: RunRunner, spec: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    spec["output_model"] = (tmp_path / "models" / "answers").as_uri()
    write_rows(dataset, [chat(f"What is {n}?", "It is.") for n in range(8)])
    spec["parameters"] |= {"num_epochs": 60, "learning_rate": 0.01}
    ended = run_runner(spec)
    assert ended.outcome.model_path == str(tmp_path / "models" / "answers")
    tokenizer = AutoTokenizer.from_pretrained(ended.outcome.model_path)
    model = AutoPeftModelForCausalLM.from_pretrained(ended.outcome.model_path)
    question = [{"role": "user", "content": "What is 4?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=20, do_sample=False)[0][ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "It is.<|im_end|>", "the end of the turn is learned too"


def test_results_go_where_the_spec_wants_them(run_runner: RunRunner, spec: dict[str, Any], tmp_path: Path) -> None:
    spec |= {
        "output_model": str(tmp_path / "out" / "model"),
        "output_metrics": str(tmp_path / "out"),
        "output_loss_chart": (tmp_path / "charts" / "mine.html").as_uri(),
        "keep": "all",
    }
    spec["parameters"]["checkpoint_at_epoch"] = True
    stale = tmp_path / "out" / "model" / "adapter_of_yesterday"
    stale.parent.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", stale.name):
        (stale.parent / name).touch()
    outcome = run_runner(spec).outcome
    assert outcome.loss_chart == (tmp_path / "charts" / "mine.html").as_uri()
    assert (tmp_path / "charts" / "mine.html").is_file()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["steps"] == 6
    assert not stale.exists(), "the old model is replaced whole"
    assert not [entry for entry in (tmp_path / "out").iterdir() if entry.name.startswith(".")]
    kept = tmp_path / "work" / "1"
    assert (kept / "data" / "train.parquet").is_file()
    assert (kept / "checkpoints" / "checkpoint-3").is_dir()


def test_another_run_of_the_same_task_starts_beside_the_first(
    run_runner: RunRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    first = tmp_path / "work" / "1"
    first.mkdir(parents=True)
    (first / "outcome.json").write_text("{}")
    assert run_runner(spec, "check").outcome.work_dir == str(tmp_path / "work" / "2")
    assert [entry.name for entry in first.iterdir()] == ["outcome.json"]


def test_check_tells_what_would_come_and_trains_nothing(run_runner: RunRunner, spec: dict[str, Any]) -> None:
    ended = run_runner(spec, "check")
    assert (ended.status, ended.outcome.status, ended.outcome.model_uri) == (0, "checked", None)
    assert "plan: 6 steps in 2 epochs, effective batch 8 = micro-batch 8 x accumulation 1 x 1 process" in ended.output
    assert "step 1/" not in ended.output
    assert ended.outcome.dataset["rows_used"] == 24


def test_a_check_looks_at_a_sample_or_at_all_rows_and_a_training_at_all(
    run_runner: RunRunner, start_runner: StartRunner, spec: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    write_rows(dataset, [chat(f"What is {n}?", "It.") for n in range(2400)])
    spec["parameters"] |= {"effective_batch_size": 1200, "num_epochs": 1, "max_tokens_per_gpu": 4096}
    ended = run_runner(spec, "check")
    assert "tokens: about " in ended.output
    assert "(2,000 rows drawn evenly: " in ended.output
    assert "plan: about 2 steps" in ended.output
    assert (ended.outcome.dataset["sample"], ended.outcome.dataset["rows_used"]) == (2000, 2400)
    assert not (tmp_path / "work" / "1" / "data" / "train.parquet").exists()

    every = start_runner(spec, "check", every_row=True).communicate(timeout=240)[0]
    assert "tokens: about " not in every
    assert "in 2,400 rows (" in every

    ended = run_runner(spec)
    assert (ended.outcome.dataset["sample"], ended.outcome.dataset["rows_used"]) == ("all", 2400)
    assert "plan: 2 steps" in ended.output, ended.output
    assert ended.outcome.metrics["steps"] == 2


def test_samples_stand_in_the_task_log_with_the_trained_text_marked_and_nowhere_else(
    run_runner: RunRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    spec |= {"show_samples": 2, "extra_args": {"eval_steps": 5}, "keep": "all"}
    spec["parameters"]["data_output_dir"] = (tmp_path / "tokenised").as_uri()
    ended = run_runner(spec, "check")
    assert "| sample of line 1, trained between ⟦ and ⟧:" in ended.output
    assert "| What is 1?<|im_end|>\n| <|im_start|>assistant\n| ⟦It is very 1.<|im_end|>⟧" in ended.output
    assert "What is 2?" not in ended.output
    assert "It is" not in (tmp_path / "work" / "1" / "train.log").read_text()
    assert "It is" not in ended.full.to_json()
    assert "warning: eval_steps has no effect" in ended.output
    (mine,) = (tmp_path / "tokenised").iterdir()
    assert (mine / "train.parquet").is_file(), "in a directory of its own: others may be given the same"


def test_the_librarys_own_way_of_chat_rows_is_told_as_it_is(run_runner: RunRunner, spec: dict[str, Any]) -> None:
    spec["extra_args"] = {"dataset_type": "chat_template"}
    ended = run_runner(spec, "check")
    assert ended.outcome.dataset["loss_on"] == "all", ended.output
    assert ended.outcome.dataset["trained_share"] == 1
    assert "warning: mask: all tokens are trained, the prompts as well" in ended.output


def test_a_warmup_as_long_as_the_training_and_a_short_epoch_are_said(
    run_runner: RunRunner, spec: dict[str, Any]
) -> None:
    spec["parameters"] |= {"effective_batch_size": 128, "lr_warmup_steps": None, "lora_sample_packing": True}
    output = run_runner(spec, "check").output
    assert "warning: an epoch has 24 rows, fewer than the effective batch size 128: one step each" in output
    assert "warning: the warm-up takes 10 steps and the whole training 2" in output
    assert output.count("training_lora_sample_packing=True has no effect") == 1


def test_rows_that_are_cut_are_counted_and_said(run_runner: RunRunner, spec: dict[str, Any]) -> None:
    spec["parameters"]["max_seq_len"] = 45
    ended = run_runner(spec, "check")
    assert ended.outcome.dataset["rows_cut"] > 0
    assert f"warning: {ended.outcome.dataset['rows_cut']} rows are cut to training_max_seq_len=45" in ended.output
    assert ended.outcome.dataset["tokens_longest"] == 45


def test_sigterm_in_the_middle_ends_the_training_and_says_at_which_step(
    start_runner: StartRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    process = start_training(start_runner, spec)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=40)[0]
    outcome = Outcome.from_json((tmp_path / "termination").read_text())
    assert process.returncode == 1
    assert outcome.failure is not None
    assert outcome.model_uri is None
    assert (outcome.failure.failure_class, outcome.failure.cause) == ("preempted", "terminated")
    assert "error: The training was ended by SIGTERM at step" in output
    assert (tmp_path / "work" / "1" / "loss.html").is_file(), "the chart shows how far it came"
    assert not children_of(process.pid)


def test_a_killed_child_ends_in_an_outcome_with_the_last_log_lines(
    start_runner: StartRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    process = start_training(start_runner, spec)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    process.communicate(timeout=40)
    failure = Outcome.from_json((tmp_path / "termination").read_text()).failure
    assert failure is not None
    assert (failure.failure_class, failure.cause) == ("infrastructure", "killed")
    assert "SIGKILL at step" in failure.message
    assert failure.log_tail


def test_nothing_trains_on_when_the_runner_itself_is_killed(start_runner: StartRunner, spec: dict[str, Any]) -> None:
    process = start_training(start_runner, spec)
    (child,) = children_of(process.pid)
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(child)


def test_a_loss_that_is_not_finite_is_a_failure_and_no_model_is_published(
    run_runner: RunRunner, spec: dict[str, Any], tmp_path: Path
) -> None:
    spec["parameters"] |= {"learning_rate": 1e30, "num_epochs": 4}
    spec["output_model"] = str(tmp_path / "published")
    ended = run_runner(spec)
    assert ended.status == 1
    assert ended.outcome.failure is not None
    assert (ended.outcome.failure.failure_class, ended.outcome.failure.cause) == ("user", "non_finite_loss")
    assert "learning rate" in ended.outcome.failure.cure
    assert ended.outcome.metrics["first_non_finite_step"] > 1
    assert not (tmp_path / "published").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    place = tmp_path / "small-disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small file system: {mounted.stderr.decode()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up_before_the_model_is_saved_is_named_as_the_cause(
    start_runner: StartRunner, spec: dict[str, Any], small_disk: Path, tmp_path: Path
) -> None:
    spec["work_dir"] = str(small_disk / "work")
    spec["parameters"] |= {"lora_r": 1024, "num_epochs": 50}
    process = start_runner(spec)
    _wait_for_a_step(process)
    (small_disk / "of others").write_bytes(bytes(shutil.disk_usage(small_disk).free - 500_000))
    output = process.communicate(timeout=100)[0]
    failure = Outcome.from_json((tmp_path / "termination").read_text()).failure
    assert failure is not None, output
    assert (failure.failure_class, failure.cause) == ("resources", "disk_full")


def test_the_runner_ends_with_the_process_that_started_it(
    runner_pyz: Path, spec: dict[str, Any], tmp_path: Path
) -> None:
    spec["parameters"]["num_epochs"] = 100000
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, str(runner_pyz), "run", "--spec", str(tmp_path / "spec.json"), "--exit-with-parent"]
    code = f"import subprocess, time; p = subprocess.Popen({command!r}); print(p.pid, flush=True); time.sleep(999)"
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    runner = int(starter.stdout.readline())
    while not children_of(runner):
        time.sleep(0.1)
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + 40
    while is_running(runner) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(runner)
    starter.stdout.close()


def start_training(start_runner: StartRunner, spec: dict[str, Any]) -> subprocess.Popen[str]:
    """Start a training without end and return once it has made a step."""
    spec["parameters"]["num_epochs"] = 100000
    process = start_runner(spec)
    _wait_for_a_step(process)
    return process


def _wait_for_a_step(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any(line.startswith("step ") for line in process.stdout), "the training has made no step"


def children_of(pid: int) -> list[int]:
    """Return the process ids of a process's children."""
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in text.read_text().split()] if text.exists() else []


def is_running(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
