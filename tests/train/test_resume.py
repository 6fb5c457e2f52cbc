"""A training that is ended goes on: each algorithm through the runner, killed while it trains and started again.

* SIGTERM saves a checkpoint in the grace period; the next try goes on at the same step, and every loss is that of a
  training that nobody has ended
* a try that was killed while it saved, data or base model that have changed, another number of processes: anew
* after a success, with other parameters, with resume="never": a new lineage; resume="require" is an error there
* two attempts at once never share a lineage
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Failure, Outcome
from tests.train.conftest import RunRunner, StartRunner, chat, write_rows
from tests.train.test_nodes import StartNode, losses, start_node

__all__ = ["start_node"]

Spec = dict[str, Any]

ALGORITHMS = {
    "lora_sft": {},
    "sft": {"algorithm": "SFT", "save_samples": 40},
    "osft": {"unfreeze_rank_ratio": 0.5, "lr_scheduler": "linear", "checkpoint_at_epoch": True},
}


@pytest.fixture
def long(spec: Spec, dataset: Path, tiny_model: Path) -> Spec:
    """A spec that trains 300 steps in several seconds, in epochs of 3 steps."""
    spec["parameters"] |= {"num_epochs": 100}
    return spec


def of(spec: Spec, algorithm: str) -> Spec:
    return {**spec, "algorithm": algorithm, "parameters": {**spec["parameters"], **ALGORITHMS[algorithm]}}


@pytest.fixture
def end_at(start_runner: StartRunner, tmp_path: Path) -> Any:
    """Start the runner, end it once it has said that it is at a step, and return its failure and output."""

    def run(spec: Spec, step: int, number: int = signal.SIGTERM, **environment: str) -> tuple[Failure | None, str]:
        process = start_runner(spec, **environment)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("finetune-progress") and json.loads(line.split(" ", 1)[1])["step"] >= step:
                break
        process.send_signal(number)
        lines.append(process.communicate(timeout=60)[0])
        failure = None
        if number == signal.SIGTERM:
            failure = Outcome.from_json((tmp_path / "termination").read_text()).failure
        return failure, "".join(lines)

    return run


def checkpoints(tmp_path: Path, lineage: str = "1") -> list[int]:
    found = (tmp_path / "work" / lineage / "checkpoints").glob("checkpoint-*")
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in found)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_training_that_was_ended_goes_on_at_its_step_with_the_losses_of_one_that_was_not(
    end_at: Any, run_runner: RunRunner, long: Spec, tmp_path: Path, algorithm: str
) -> None:
    spec = of(long, algorithm)
    failure, output = end_at(spec, 20)
    (step,) = checkpoints(tmp_path)
    assert (failure.failure_class, failure.cause) == ("preempted", "terminated"), output
    assert failure.message == f"The training was ended by SIGTERM at step {step}"
    assert failure.cure.endswith(f"A retry goes on from step {step}")
    assert not (tmp_path / "work" / "1" / "model").exists()
    ended = run_runner(spec)
    assert ended.status == 0, ended.output
    assert f"this training goes on from step {step} of an earlier try" in ended.output
    assert ended.full.metrics["resumed_from_step"] == step
    whole = run_runner({**spec, "work_dir": str(tmp_path / "whole")})
    assert losses(ended.full) == pytest.approx(losses(whole.full), rel=1e-4)
    assert ended.full.metrics["steps"] == whole.full.metrics["steps"] == 300
    assert ended.full.model_uri == (tmp_path / "work" / "1" / "model").as_uri()
    assert not (tmp_path / "work" / "1" / "checkpoints").exists()


def test_a_checkpoint_that_was_being_written_is_not_gone_on_from(
    end_at: Any, run_runner: RunRunner, long: Spec, tmp_path: Path
) -> None:
    end_at(long, 20)
    (step,) = checkpoints(tmp_path)
    directory = tmp_path / "work" / "1" / "checkpoints"
    shutil.copytree(directory / f"checkpoint-{step}", directory / "checkpoint-200")
    (directory / ".incomplete-checkpoint-200").touch()
    shutil.copytree(directory / f"checkpoint-{step}", directory / "checkpoint-250")
    (directory / "checkpoint-250" / "trainer_state.json").unlink()
    ended = run_runner(long)
    assert f"this training goes on from step {step} of an earlier try" in ended.output
    assert ended.full.metrics["steps"] == 300


def test_a_training_that_ended_before_it_could_save_begins_anew_where_it_was(
    end_at: Any, run_runner: RunRunner, long: Spec, tmp_path: Path
) -> None:
    end_at(long, 20, signal.SIGKILL)
    assert checkpoints(tmp_path) == []
    ended = run_runner(long)
    assert ended.status == 0, ended.output
    assert "an earlier try of this training has been in" in ended.output
    assert "goes on from" not in ended.output
    assert ended.full.model_uri == (tmp_path / "work" / "1" / "model").as_uri()
    assert ended.full.loss_curve[0][0] == 1, "nothing of the first try is in the metrics"
    assert ended.full.metrics["steps"] == 300


def test_data_that_has_changed_since_is_trained_on_from_the_beginning(
    end_at: Any, run_runner: RunRunner, long: Spec, dataset: Path, tmp_path: Path
) -> None:
    end_at(long, 20)
    write_rows(dataset, [chat(f"What is {n}?", "Who knows?") for n in range(24)])
    required = run_runner({**long, "resume": "require"}, "run")
    assert required.outcome.failure is not None
    assert required.outcome.failure.cause == "nothing_to_resume"
    assert "the data has changed since the checkpoint" in required.outcome.failure.message
    ended = run_runner(long)
    assert ended.status == 0, ended.output
    assert "warning: this training starts anew, since the data has changed since the checkpoint" in ended.output
    assert "resumed_from_step" not in ended.full.metrics


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"resume": "never"}, None),
        ({"parameters": {"learning_rate": 1e-3}}, "was something else"),
    ],
)
def test_another_training_gets_a_lineage_of_its_own(
    end_at: Any, run_runner: RunRunner, long: Spec, tmp_path: Path, change: Spec, why: str | None
) -> None:
    end_at(long, 20)
    other = {**long, **change, "parameters": {**long["parameters"], "num_epochs": 100, **change.get("parameters", {})}}
    if why:
        failure = run_runner({**other, "resume": "require"}).outcome.failure
        assert failure is not None
        assert (failure.failure_class, failure.cause) == ("user", "nothing_to_resume")
        assert why in failure.message
    ended = run_runner(other)
    assert ended.full.model_uri == (tmp_path / "work" / "2" / "model").as_uri()
    assert len(checkpoints(tmp_path)) == 1, "what may still be gone on from stays"


def test_after_a_success_nothing_is_gone_on_from(run_runner: RunRunner, spec: Spec, tmp_path: Path) -> None:
    first = run_runner({**spec, "resume": "require"}).outcome.failure
    assert first is not None
    assert "no earlier try has left anything in" in first.message
    assert run_runner({**spec, "keep": "all"}).status == 0
    failure = run_runner({**spec, "resume": "require"}).outcome.failure
    assert failure is not None
    assert "has its model already" in failure.message
    again = run_runner(spec)
    assert again.full.model_uri == (tmp_path / "work" / "2" / "model").as_uri()
    assert "goes on" not in again.output


def test_a_check_opens_no_lineage_and_hides_none(
    end_at: Any, run_runner: RunRunner, long: Spec, tmp_path: Path
) -> None:
    end_at(long, 20)
    assert run_runner(long, "check").status == 0
    assert "goes on from step" in run_runner(long).output


def test_two_attempts_at_once_never_share_a_lineage(
    start_runner: StartRunner, run_runner: RunRunner, long: Spec, tmp_path: Path
) -> None:
    process = start_runner(long)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("finetune-progress"):
            break
    try:
        ended = run_runner({**long, "parameters": {**long["parameters"]}})
        assert ended.status == 0, ended.output
        assert ended.full.work_dir == str(tmp_path / "work" / "2")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(400)
def test_two_nodes_go_on_together_where_one_of_them_was_evicted(
    start_node: StartNode, long: Spec, tmp_path: Path
) -> None:
    together = {**of(long, "sft"), "nodes": 2, "processes_per_node": 1, "work_dir": str(tmp_path / "work")}
    nodes = [start_node(together, rank) for rank in (0, 1)]
    metrics = tmp_path / "work" / "1" / "checkpoints" / "training_params_and_metrics_global0.jsonl"
    until = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") >= 20):
        assert time.monotonic() < until, [node.end() for node in nodes]
        time.sleep(0.1)
    nodes[1].process.send_signal(signal.SIGTERM)
    (status, output, outcome), (other_status, _, _) = (node.end() for node in nodes)
    assert (status, other_status) == (1, 1), output
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.failure_class in ("preempted", "infrastructure")
    (step,) = checkpoints(tmp_path)
    nodes = [start_node(together, rank) for rank in (0, 1)]
    (status, output, outcome), _ = (node.end() for node in nodes)
    assert status == 0, output
    assert outcome is not None
    assert f"this training goes on from step {step} of an earlier try" in output
    assert outcome.metrics["steps"] == 300
