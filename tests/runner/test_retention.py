"""What a run leaves behind: what ``keep`` asks for, and after a failure all that somebody may need.

* keep="model", "checkpoints", "all" after a model is published
* a run that has failed: checkpoints, logs and processed data stay, caches and downloads do not
* processed data in a directory of the user's
"""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.tries import retention
from airflow_provider_finetune.runner.tries.workdir import WorkDir

RESULTS = {"spec.json", "outcome.json", "metrics.json", "loss.html", "train.log", "train-node-1.log", "model"}


@pytest.fixture
def work_dir(tmp_path: Path) -> WorkDir:
    """A lineage in which two nodes have trained."""
    for name in (
        *("spec.json", "prepared.json", "outcome.json", "metrics.json", "loss.html", "train.log", "train-node-1.log"),
        *("nodes/token", "model/adapter_config.json", "checkpoints/training_metrics.jsonl"),
        *("checkpoints/checkpoint-3/adapter_config.json", "data/train.parquet", "data/cache/x", "data/node-1/cache/x"),
    ):
        file = tmp_path / "work" / "1" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return WorkDir(tmp_path / "work" / "1")


def spec(**chosen: object) -> TrainingSpec:
    return TrainingSpec(algorithm="lora_sft", base_model="m", dataset="d", work_dir="w", **chosen)  # type: ignore[arg-type]


def left(work_dir: WorkDir) -> set[str]:
    return {entry.name for entry in work_dir.path.iterdir()}


def test_of_a_run_that_keeps_its_model_only_results_and_logs_stay(work_dir: WorkDir) -> None:
    assert retention.tidy(spec(), work_dir, published=True) == ["data", "checkpoints"]
    assert left(work_dir) == RESULTS
    assert retention.tidy(spec(), work_dir, published=True) == []


def test_checkpoints_stay_with_their_metrics_and_the_data_goes(work_dir: WorkDir) -> None:
    assert retention.tidy(spec(keep="checkpoints"), work_dir, published=True) == ["data"]
    assert left(work_dir) == RESULTS | {"checkpoints"}
    assert (work_dir.checkpoints / "checkpoint-3" / "adapter_config.json").is_file()
    assert (work_dir.checkpoints / "training_metrics.jsonl").is_file()


def test_of_a_check_no_data_stays_unless_somebody_asks_for_it(work_dir: WorkDir) -> None:
    retention.tidy(spec(keep="all"), work_dir, published=False, check_only=True)
    assert (work_dir.data / "train.parquet").is_file()
    retention.tidy(spec(), work_dir, published=False, check_only=True)
    assert not work_dir.data.exists()
    assert work_dir.checkpoints.is_dir()


def test_all_stays_where_somebody_asks_for_it(work_dir: WorkDir) -> None:
    before = sorted(work_dir.path.rglob("*"))
    assert retention.tidy(spec(keep="all"), work_dir, published=True) == []
    assert sorted(work_dir.path.rglob("*")) == before


@pytest.mark.parametrize("keep", ["model", "all"])
def test_a_failed_run_keeps_all_but_what_can_be_had_again(work_dir: WorkDir, keep: str) -> None:
    assert retention.tidy(spec(keep=keep), work_dir, published=False) == []
    assert left(work_dir) == RESULTS | {"checkpoints", "data", "nodes", "prepared.json"}
    assert [entry.name for entry in work_dir.data.iterdir()] == ["train.parquet"]


def test_of_data_in_a_directory_of_the_users_ours_goes_and_theirs_stays(work_dir: WorkDir, tmp_path: Path) -> None:
    theirs = str(tmp_path / "tokenised")
    mine, other = work_dir.processed(theirs), WorkDir(tmp_path / "work" / "2").processed(theirs)
    for directory in (mine, other):
        directory.mkdir(parents=True)
        (directory / "train.parquet").touch()
    chosen = spec(parameters={"data_output_dir": theirs})
    retention.tidy(chosen, work_dir, published=False)
    assert (mine / "train.parquet").is_file()
    retention.tidy(chosen, work_dir, published=True)
    assert [entry.name for entry in Path(theirs).iterdir()] == [other.name]
