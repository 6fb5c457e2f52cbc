"""The outcome of a job whose pod is gone is found again in seconds, and never that of another request.

* what the last attempt has published is reported, and nothing else is started
* another request, an earlier attempt, a model that is no longer whole: the training is done
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_finetune.contract.outcome import Outcome
from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner import attempt
from airflow_provider_finetune.runner.tries import recovery


@pytest.fixture
def spec(tmp_path: Path) -> TrainingSpec:
    """A training that has ended well in its second attempt."""
    spec = TrainingSpec(algorithm="lora_sft", base_model="m", dataset="d", work_dir=str(tmp_path / "work"))
    for number in ("1", "2"):
        lineage = tmp_path / "work" / number
        (lineage / "model").mkdir(parents=True)
        (lineage / "model" / "adapter_config.json").write_text("{}")
        (lineage / "model" / "adapter_model.safetensors").write_text("weights")
        outcome = Outcome(
            status="succeeded",
            model_uri=f"pvc://claim/work/{number}/model",
            model_path=str(lineage / "model"),
            metrics={"loss": 0.5},
            spec_hash=spec.whole_hash(),
            work_dir=str(lineage),
        )
        (lineage / "outcome.json").write_text(outcome.to_json())
    return replace(spec, recover=True)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_last_attempts_outcome_is_reported_and_nothing_is_started(
    tmp_path: Path, spec: TrainingSpec, rank: str
) -> None:
    message = tmp_path / "termination"
    nodes = {"PET_NNODES": "2", "PET_NODE_RANK": rank, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "1"}
    document = replace(spec, nodes=2)
    for file in (tmp_path / "work").glob("*/outcome.json"):
        file.write_text(file.read_text().replace(spec.whole_hash(), document.whole_hash()))
    command = [sys.executable, "-m", "airflow_provider_finetune.runner", "run", "--spec-json", document.to_json()]
    ended = subprocess.run(
        [*command, "--termination-message", message],
        env={**os.environ, **nodes, "PYTHONPATH": str(Path(attempt.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 0, ended
    assert "nothing is trained" in ended.stdout
    assert sorted(entry.name for entry in (tmp_path / "work").iterdir()) == ["1", "2"]
    if rank == "0":
        outcome = Outcome.from_json(message.read_text())
        assert (outcome.model_uri, outcome.metrics) == ("pvc://claim/work/2/model", {"loss": 0.5})
    else:
        assert not message.exists(), "node 0 reports for all"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_model_that_is_no_longer_whole_is_trained_again(spec: TrainingSpec, tmp_path: Path, name: str) -> None:
    (tmp_path / "work" / "2" / "model" / name).write_text("")
    if name.endswith(".json"):
        (tmp_path / "work" / "2" / "model" / name).unlink()
    assert recovery.find(spec) is None


def test_another_request_is_not_answered_with_this_model(spec: TrainingSpec) -> None:
    assert recovery.find(spec)
    assert recovery.find(replace(spec, output_model="/elsewhere")) is None


@pytest.mark.parametrize("document", ["", "{", '{"status": "failed"}', json.dumps({"status": "succeeded"})])
def test_only_the_last_attempt_counts_since_a_clear_asks_for_a_new_training(
    spec: TrainingSpec, tmp_path: Path, document: str
) -> None:
    (tmp_path / "work" / "3").mkdir()
    (tmp_path / "work" / "3" / "outcome.json").write_text(document)
    assert recovery.find(spec) is None


def test_a_work_directory_that_nobody_has_used_yet_has_nothing(spec: TrainingSpec, tmp_path: Path) -> None:
    assert recovery.find(replace(spec, work_dir=str(tmp_path / "none"))) is None
