"""The runner as a process in an environment without training-hub: every end leaves an outcome that says why.

* a spec that cannot be read, as a file or as text; a place that cannot be written
* outputs where something of the user's lies; a relative place
* metrics and chart: those of a failed training are not published, and a fault in them changes no outcome
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Failure, Outcome, Status
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import attempt
from airflow_provider_finetune.runner.log import RunLog
from airflow_provider_finetune.runner.reporting.metrics import Point
from airflow_provider_finetune.runner.reporting.series import Series
from airflow_provider_finetune.runner.tries.workdir import WorkDir

Spec = dict[str, Any]


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    """A spec whose data and model are there."""
    row = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    (tmp_path / "rows.jsonl").write_text(row)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return {
        "version": 1,
        "algorithm": "lora_sft",
        "base_model": str(tmp_path / "base"),
        "dataset": str(tmp_path / "rows.jsonl"),
        "work_dir": str(tmp_path / "work"),
    }


def check(tmp_path: Path, spec: Spec | bytes | str) -> Failure:
    """Run ``check`` on a spec, bytes of a file, or text, and return the failure."""
    file = tmp_path / "spec.json"
    message = tmp_path / "termination"
    command = [sys.executable, "-m", "airflow_provider_finetune.runner", "check"]
    if isinstance(spec, str):
        command += ["--spec-json", spec]
    else:
        file.write_bytes(spec if isinstance(spec, bytes) else json.dumps(spec).encode())
        command += ["--spec", str(file)]
    ended = subprocess.run(
        [*command, "--termination-message", str(message)],
        env={**os.environ, "PYTHONPATH": str(Path(attempt.__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    outcome = Outcome.from_json(message.read_text())
    assert (ended.returncode, outcome.status) == (1, "failed"), ended
    assert outcome.failure is not None
    assert f"error: {outcome.failure.message}" in ended.stdout
    return outcome.failure


@pytest.mark.parametrize("document", [b"\xff\xfe", b"[]", b'{"version": 1, "algorithm": "other"}'])
def test_a_spec_that_cannot_be_read_ends_in_an_outcome(tmp_path: Path, document: bytes) -> None:
    failure = check(tmp_path, document)
    assert (failure.cause, failure.failure_class) == ("spec_unreadable", "user")


def test_a_spec_is_read_from_the_command_line_too(tmp_path: Path, spec: Spec) -> None:
    assert check(tmp_path, "[]").cause == "spec_unreadable"
    assert check(tmp_path, json.dumps({**spec, "dataset": "/nowhere.jsonl"})).cause == "training_hub_missing"


def test_a_work_directory_that_cannot_be_written_ends_in_an_outcome(tmp_path: Path, spec: Spec) -> None:
    assert check(tmp_path, {**spec, "work_dir": str(tmp_path / "rows.jsonl")}).cause == "work_dir_not_writable"


def test_a_relative_work_directory_is_used(tmp_path: Path, spec: Spec) -> None:
    failure = check(tmp_path, {**spec, "work_dir": "here", "dataset": str(tmp_path / "nowhere.jsonl")})
    assert failure.cause == "training_hub_missing"
    assert Outcome.from_json((tmp_path / "here" / "1" / "outcome.json").read_text()).work_dir == str(
        tmp_path / "here" / "1"
    )


@pytest.mark.parametrize("output", ["/", "base", "", "notes", "rows.jsonl"])
def test_an_output_that_would_remove_something_of_the_users_is_refused_before_training(
    tmp_path: Path, spec: Spec, output: str
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").touch()
    failure = check(tmp_path, {**spec, "output_model": str(tmp_path / output)})
    assert (failure.failure_class, failure.cause) == ("user", "output_in_use")
    assert "output_model" in failure.message
    assert (tmp_path / "notes" / "diary.txt").exists()


@pytest.mark.parametrize("argument", ["output_metrics", "output_loss_chart"])
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, spec: Spec, argument: str) -> None:
    failure = check(tmp_path, {**spec, argument: str(tmp_path / "rows.jsonl")})
    assert failure.cause == "output_not_writable"
    assert argument in failure.message


def test_a_machine_without_training_hub_is_told_what_to_install(tmp_path: Path, spec: Spec) -> None:
    assert "airflow-provider-finetune[local]" in check(tmp_path, spec).cure


def drawn(tmp_path: Path, status: Status, **outputs: Any) -> Outcome:
    """Write metrics and chart of a training of two steps."""
    spec = TrainingSpec(algorithm="lora_sft", base_model="m", dataset="d", work_dir=str(tmp_path), **outputs)
    (tmp_path / "1").mkdir()
    outcome = Outcome(status=status, model_uri="file:///m" if status == "succeeded" else None)
    series = Series([Point(1, loss=2.0), Point(2, loss=1.0, learning_rate=float("nan"))])
    return attempt._draw(outcome, spec, WorkDir(tmp_path / "1"), series, RunLog())


def test_metrics_and_chart_of_a_model_are_published(tmp_path: Path) -> None:
    outcome = drawn(
        tmp_path, "succeeded", output_metrics=str(tmp_path / "out"), output_loss_chart=str(tmp_path / "c.html")
    )
    assert outcome.loss_chart == (tmp_path / "c.html").as_uri()
    assert outcome.loss_curve == [[1, 2.0], [2, 1.0]]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["learning_rate"] is None


def test_a_chart_on_a_volume_is_told_by_the_volumes_uri(tmp_path: Path) -> None:
    outcome = drawn(tmp_path, "succeeded", mounts={"pvc://claim/runs": str(tmp_path)})
    assert outcome.loss_chart == "pvc://claim/runs/1/loss.html"


def test_those_of_a_failed_training_stay_in_the_work_directory_and_say_so(tmp_path: Path) -> None:
    outcome = drawn(tmp_path, "failed", output_metrics=str(tmp_path / "out"))
    assert outcome.loss_chart == (tmp_path / "1" / "loss.html").as_uri()
    assert json.loads((tmp_path / "1" / "metrics.json").read_text())["status"] == "failed"
    assert not (tmp_path / "out").exists()


def test_metrics_that_cannot_be_written_are_a_warning_and_unmake_neither_chart_nor_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    outcome = drawn(
        tmp_path, "succeeded", output_metrics=str(tmp_path / "file" / "out"), output_loss_chart=str(tmp_path / "c.html")
    )
    assert (outcome.status, outcome.model_uri) == ("succeeded", "file:///m")
    assert outcome.loss_chart == (tmp_path / "c.html").as_uri()
    assert outcome.metrics["loss"] == 1.0
    assert "warning: The metrics could not be written" in capsys.readouterr().out


def test_a_chart_that_cannot_be_published_is_found_in_the_work_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    outcome = drawn(tmp_path, "succeeded", output_loss_chart=str(tmp_path / "file" / "out"))
    assert outcome.loss_chart == (tmp_path / "1" / "loss.html").as_uri()
    assert "warning: The loss chart could not be written" in capsys.readouterr().out


def test_a_failure_is_left_with_the_end_of_the_log_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"line {number}" for number in range(3)]
    failure = Failure(failure_class="user", cause="dataset_empty", message="No row", cure="Write one", log_tail=lines)
    assert attempt._leave(Outcome(status="failed", failure=failure), WorkDir(tmp_path), RunLog(), None) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:5] == [f"::group::The last 3 lines of {tmp_path / 'train.log'}", *lines, "::endgroup::"]
    assert said[5:7] == ["error: No row", "Write one"]


@pytest.mark.parametrize(
    ("resume", "cause", "kept"),
    [("auto", "out_of_memory", True), ("never", "out_of_memory", False), ("auto", "non_finite_loss", False)],
)
def test_the_checkpoint_is_named_that_a_retry_goes_on_from(tmp_path: Path, resume: str, cause: str, kept: bool) -> None:
    for step in (3, 12):
        (tmp_path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").touch()
    spec = TrainingSpec(algorithm="sft", base_model="m", dataset="d", work_dir=str(tmp_path), resume=resume)
    failure = Failure(failure_class="resources", cause=cause, message="m")
    path = str(tmp_path / "checkpoints" / "checkpoint-12")
    found = attempt._checkpoint(spec, WorkDir(tmp_path), failure)
    assert found == ({"unit": "step", "number": 12, "path": path} if kept else {})
