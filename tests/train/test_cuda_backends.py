"""training-hub's own backends of OSFT and SFT around a pretended GPU: real processes of theirs that train on the CPU.

* each step has the loss of our own backend on a CPU, from data that both libraries read to a proven model
* SIGTERM saves within the first epoch, and the next try goes on where it ended
* what is gone on from wrongly begins anew; what instructlab-training has counted wrongly is corrected
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from airflow_provider_finetune.contract.spec import TrainingSpec
from airflow_provider_finetune.runner.events import Events
from airflow_provider_finetune.runner.failures import RunFailed, UserError
from airflow_provider_finetune.runner.model import BaseModel, ensure_instructlab_takes
from airflow_provider_finetune.runner.tries import resume
from airflow_provider_finetune.runner.tries.checkpoints import newest
from airflow_provider_finetune.runner.tries.workdir import WorkDir
from tests.train.conftest import RunRunner
from tests.train.test_nodes import losses
from tests.train.test_resume import end_at

__all__ = ["end_at"]

Spec = dict[str, Any]

PRETENDED = {
    "PYTHONPATH": str(Path(__file__).with_name("pretended_gpu")),
    "PRETEND_GPU": "1",
    "ACCELERATE_USE_CPU": "1",
    # mini-trainer does without flash-attn in its own tests, and so here.
    "TESTING": "true",
    "CUDA_VISIBLE_DEVICES": "",
    # What Trainer sets also for one node, and what a shell may have left.
    "PET_NNODES": "1",
    "PET_NPROC_PER_NODE": "4",
    "PET_MASTER_ADDR": "node-0.invalid",
    "PET_MASTER_PORT": "29500",
    "MASTER_ADDR": "another.invalid",
    "NODE_RANK": "3",
}
OF: dict[str, Spec] = {
    "osft": {"algorithm": "osft"},
    "sft": {"algorithm": "sft", "extra_args": {"disable_flash_attn": True}},
}


@pytest.mark.timeout(400)
@pytest.mark.parametrize("algorithm", OF)
def test_each_step_is_that_of_the_cpu_and_the_model_is_proven(
    run_runner: RunRunner, spec: Spec, tmp_path: Path, algorithm: str
) -> None:
    spec["parameters"] |= {"checkpoint_at_epoch": True, "data_output_dir": str(tmp_path / "tokenised")}
    ended = run_runner({**spec, **OF[algorithm], "device": "cuda", "keep": "checkpoints"}, **PRETENDED)
    assert ended.status == 0, ended.output
    outcome = ended.full
    assert "training starts on CUDA" in ended.output
    assert "step 6/6 (100 %)  epoch 2.0/2" in ended.output
    alone = run_runner({**spec, "algorithm": algorithm, "work_dir": str(tmp_path / "cpu")})
    # bfloat16 in the one, float32 in the other.
    assert losses(outcome) == pytest.approx(losses(alone.full), rel=2e-3)
    assert outcome.metrics["samples"] == 48
    assert outcome.metrics["tokens_per_second"] > 0
    assert outcome.metrics["peak_gpu_memory_bytes"] == (3_000_000 if algorithm == "osft" else None)
    saved = {path.name for path in (tmp_path / "work" / "1" / "checkpoints" / "hf_format").iterdir()}
    assert saved in ({"samples_24", "samples_48"}, {"samples_24.0", "samples_48.0"})
    config, base = (
        json.loads((Path(model) / "config.json").read_text())
        for model in (outcome.model_path or "", spec["base_model"])
    )
    assert (config["architectures"], config["use_cache"]) == (base["architectures"], base["use_cache"])


@pytest.mark.timeout(400)
@pytest.mark.parametrize("algorithm", OF)
def test_a_training_that_was_ended_goes_on_within_the_first_epoch(
    end_at: Any, run_runner: RunRunner, spec: Spec, tmp_path: Path, algorithm: str
) -> None:
    spec |= {**OF[algorithm], "device": "cuda", "keep": "checkpoints"}
    spec["parameters"] |= {"effective_batch_size": 1, "num_epochs": 1, "learning_rate": 1e-3}
    failure, output = end_at(spec, 3, **PRETENDED)
    assert (failure.failure_class, failure.cause) == ("preempted", "terminated"), output
    checkpoint = newest(tmp_path / "work" / "1" / "checkpoints")
    assert checkpoint is not None, output
    assert failure.cure.endswith(f"A retry goes on from {checkpoint.unit} {checkpoint.number}")
    ended = run_runner(spec, **PRETENDED)
    assert ended.status == 0, ended.output
    assert f"this training goes on from {checkpoint.unit} {checkpoint.number} of an earlier try" in ended.output
    whole = run_runner({**spec, "device": "cpu", "extra_args": {}, "work_dir": str(tmp_path / "whole")})
    resumed, expected = ({int(step): loss for step, loss in run.full.loss_curve} for run in (ended, whole))
    # A step that was done when the signal came may be missing in the metrics, never in the training.
    assert len(expected.keys() - resumed.keys()) <= 1
    # mini-trainer takes one step with another learning rate, and says so. The rows' own losses differ by more.
    tolerance = 5e-2 if algorithm == "osft" else 2e-3
    assert resumed == pytest.approx({step: expected[step] for step in resumed}, rel=tolerance)
    assert ("learning rate that its schedule begins with" in ended.output) == (algorithm == "osft")
    assert ended.full.metrics["samples"] == 24


@pytest.fixture
def begin(tmp_path: Path) -> Any:
    """Begin a training of 2 epochs where an earlier try has left a checkpoint; return what was said."""
    work_dir = WorkDir(tmp_path / "1")
    origin = {"dataset": "a", "base_model": "b", "device": "cuda", "processes": 1}

    def run(algorithm: str, name: str, epochs: int = 2, **saved: Any) -> str:
        file = work_dir.checkpoints / name
        file.parent.mkdir(parents=True)
        work_dir.origin.write_text(json.dumps(origin))
        torch.save(saved, file)
        row = {"step": 9, "epoch": 0, "steps_per_epoch": 10, "loss": 1.0}
        (work_dir.checkpoints / "training_metrics_0.jsonl").write_text(json.dumps(row) + "\n")
        parameters = {"num_epochs": epochs, "effective_batch_size": 8}
        spec = TrainingSpec(
            algorithm=algorithm,
            base_model="m",
            dataset="d",
            work_dir=str(tmp_path),
            parameters=parameters,
        )
        reading, writing = os.pipe()
        try:
            resume.begin(spec, work_dir, origin, Events(writing))
        finally:
            os.close(writing)
        with os.fdopen(reading) as pipe:
            return " ".join(json.loads(line).get("message", "") for line in pipe)

    return run


@pytest.mark.parametrize(
    ("step", "epoch", "epochs", "goes_on"), [(9, 0, 2, True), (10, 0, 2, False), (10, 0, 1, True), (13, 1, 2, False)]
)
def test_osft_goes_on_within_its_first_epoch_only(
    begin: Any, step: int, epoch: int, epochs: int, goes_on: bool
) -> None:
    said = begin("osft", f"full_state_checkpoints/step_{step}/training_state.pt", epochs, step=step, epoch=epoch)
    assert (f"goes on from step {step}" in said) == goes_on, said
    assert ("goes on wrongly where the first epoch is over" in said) != goes_on


@pytest.mark.parametrize(
    ("saved", "goes_on"),
    [
        ({"current_epoch": 0, "global_step": 3, "samples_seen": 16}, True),
        ({"current_epoch": 1, "global_step": 13, "samples_seen": 96}, False),
        ({"current_epoch": 1, "samples_seen": 160}, True),
    ],
)
def test_sft_goes_on_within_its_first_epoch_or_between_two(begin: Any, saved: dict[str, int], goes_on: bool) -> None:
    said = begin("sft", f"full_state/epoch_{saved['current_epoch']}/training_metadata.json", 3, **saved)
    assert (f"goes on from epoch {saved['current_epoch']}" in said) == goes_on, said


@pytest.mark.parametrize(("seen", "done"), [(0, 0), (16, 2), (24, 3), (21, 3)])
def test_a_step_that_sft_was_stopped_in_is_done_again(begin: Any, tmp_path: Path, seen: int, done: int) -> None:
    name = "full_state/epoch_0/training_metadata.json"
    begin("sft", name, current_epoch=0, global_step=3, samples_seen=seen)
    saved = torch.load(tmp_path / "1" / "checkpoints" / name)
    assert saved == {"current_epoch": 0, "global_step": done, "samples_seen": seen}


@pytest.mark.parametrize("lacks", ["chat_template", "eos_token"])
def test_a_tokenizer_that_instructlab_training_refuses_is_refused_before(tiny_model: Path, lacks: str) -> None:
    base = BaseModel("org/base", str(tiny_model), "org/base", None, 1, fetched=True)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ensure_instructlab_takes(tokenizer, base)
    setattr(tokenizer, lacks, None)
    with pytest.raises(UserError, match="SFT on a GPU wants one whatever the data is"):
        ensure_instructlab_takes(tokenizer, base)


def test_what_must_go_on_and_cannot_is_refused(tmp_path: Path) -> None:
    spec = TrainingSpec(algorithm="osft", base_model="m", dataset="d", work_dir="w", resume="require")
    with pytest.raises(RunFailed, match="no try has saved a checkpoint"):
        resume.begin(spec, WorkDir(tmp_path), {}, Events(os.open(os.devnull, os.O_WRONLY)))
