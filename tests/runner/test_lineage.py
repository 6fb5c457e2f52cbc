"""Which lineage an attempt enters, and which checkpoint in it is whole.

* open ones of the same training are gone on with; closed ones, spoilt ones and those of others are not
* what an earlier try needed alone is removed, its checkpoints stay
* a lineage that somebody is in is left alone
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.contract.outcome import Failure, Outcome
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.failures import UserError
from airflow_provider_finetune.runner.tries import checkpoints, lineage, workdir
from airflow_provider_finetune.runner.tries.workdir import WorkDir


@pytest.fixture
def spec(tmp_path: Path) -> TrainingSpec:
    return TrainingSpec(
        algorithm="sft",
        base_model="m",
        dataset="https://data.example/rows.jsonl?X-Amz-Signature=first",
        work_dir=str(tmp_path),
        parameters={"num_epochs": 3},
    )


@pytest.fixture
def left(spec: TrainingSpec, tmp_path: Path) -> WorkDir:
    """A lineage of this training that an earlier try has left open."""
    work_dir = workdir.create(tmp_path)
    work_dir.spec.write_text(spec.shown().to_json())
    (work_dir.checkpoints / "checkpoint-3").mkdir(parents=True)
    for directory in (work_dir.nodes, work_dir.proven):
        directory.mkdir()
    work_dir.stopped.touch()
    return work_dir


def ended(work_dir: WorkDir, status: Any, cause: str | None = None) -> None:
    failure = Failure(failure_class="user", cause=cause, message="m") if cause else None
    work_dir.outcome.write_text(Outcome(status=status, failure=failure).to_json())


def entered(spec: TrainingSpec, *, check_only: bool = False) -> tuple[str, bool]:
    with lineage.entered(spec, check_only=check_only) as (work_dir, going_on):
        return work_dir.path.name, going_on


def test_an_open_lineage_is_gone_on_with_and_cleared_of_what_the_earlier_try_needed(
    spec: TrainingSpec, left: WorkDir
) -> None:
    ended(left, "failed", "disk_full")
    assert entered(spec) == ("1", True)
    assert (left.checkpoints / "checkpoint-3").is_dir()
    assert not any(path.exists() for path in (left.nodes, left.proven, left.outcome, left.stopped))


def test_a_link_that_was_signed_anew_names_the_same_data(spec: TrainingSpec, left: WorkDir) -> None:
    again = replace(spec, dataset="https://data.example/rows.jsonl?X-Amz-Signature=second")
    assert entered(again) == ("1", True)


@pytest.mark.parametrize(
    ("status", "cause", "why"),
    [
        ("succeeded", None, "has its model already"),
        ("failed", "non_finite_loss", "ended with a loss that was not finite"),
    ],
)
def test_a_lineage_that_is_closed_or_spoilt_is_left_and_a_new_one_begun(
    spec: TrainingSpec, left: WorkDir, status: str, cause: str | None, why: str
) -> None:
    ended(left, status, cause)
    with pytest.raises(UserError, match=why):
        entered(replace(spec, resume="require"))
    assert entered(spec) == ("2", False)


@pytest.mark.parametrize("change", [{"parameters": {"num_epochs": 4}}, {"dataset": "other"}, {"base_model": "n"}])
def test_another_training_begins_a_lineage_of_its_own(
    spec: TrainingSpec, left: WorkDir, change: dict[str, Any]
) -> None:
    assert entered(replace(spec, **change)) == ("2", False)


def test_more_memory_or_another_output_is_no_other_training(spec: TrainingSpec, left: WorkDir) -> None:
    assert entered(replace(spec, output_model="/elsewhere", keep="all", processes_per_node=2)) == ("1", True)


def test_never_begins_anew_and_a_check_opens_nothing(spec: TrainingSpec, left: WorkDir) -> None:
    assert entered(spec, check_only=True) == ("2", False)
    ended(WorkDir(left.path.with_name("2")), "checked")
    assert entered(spec) == ("1", True)
    assert entered(replace(spec, resume="never")) == ("3", False)


def test_a_lineage_that_somebody_is_in_is_left_alone(spec: TrainingSpec, left: WorkDir) -> None:
    with lineage.entered(spec, check_only=False) as (first, _):
        assert first.path == left.path
        assert entered(spec) == ("2", False)
        with pytest.raises(UserError, match="another attempt still trains in"):
            entered(replace(spec, resume="require"))
    assert entered(spec) == ("1", True), "what ended before it began is passed over"


def test_a_disk_without_locks_keeps_nobody_out(
    spec: TrainingSpec, left: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", unknown)
    assert entered(spec) == ("1", True)


def test_nothing_is_found_where_nothing_was_left(spec: TrainingSpec) -> None:
    with pytest.raises(UserError, match="no earlier try has left anything in"):
        entered(replace(spec, resume="require"))
    assert entered(spec) == ("1", False)


def saved(directory: Path, name: str, last_file: str) -> Path:
    (directory / name).mkdir(parents=True)
    (directory / name / last_file).touch()
    return directory / name


def test_the_newest_whole_checkpoint_counts_and_broken_ones_go(tmp_path: Path) -> None:
    whole = saved(tmp_path, "checkpoint-9", "trainer_state.json")
    saved(tmp_path, "checkpoint-10", "trainer_state.json")
    (tmp_path / ".incomplete-checkpoint-10").touch()
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.path, found.number, found.unit) == (whole, 9, "step")
    checkpoints.forget_broken(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".incomplete-checkpoint-10",
        "checkpoint-9",
        "checkpoint-best",
    ]


@pytest.mark.parametrize(
    ("name", "last_file", "unit"),
    [
        ("full_state_checkpoints/step_7", "training_state.pt", "step"),
        ("full_state/epoch_7", "training_metadata.json", "epoch"),
    ],
)
def test_the_layouts_of_the_cuda_backends_are_known(tmp_path: Path, name: str, last_file: str, unit: str) -> None:
    assert checkpoints.newest(tmp_path) is None
    saved(tmp_path, name, last_file)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert (found.number, found.unit) == (7, unit)
