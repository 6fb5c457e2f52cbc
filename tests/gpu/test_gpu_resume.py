"""A training on a GPU that is ended: it goes on where it was, and nothing of it is left on the GPU.

* within the first epoch: at its step, with the losses of a training that nobody has ended
* OSFT's checkpoint has the parameters that it trains on a CPU, by name and shape
* in a later epoch: anew, with a warning
* the processes of the library end with the child that has started them
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_finetune.runner.tries.checkpoints import newest
from tests.gpu.conftest import Spec, of
from tests.train.conftest import RunRunner, StartRunner, chat, write_rows
from tests.train.test_runner import children_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]


@pytest.fixture
def long(spec: Spec, tmp_path: Path) -> Spec:
    """A spec whose one epoch has 300 steps."""
    write_rows(tmp_path / "chat.jsonl", [chat(f"What is {n}?", f"It is {'very ' * (n % 5)}{n}.") for n in range(600)])
    spec["parameters"] |= {"effective_batch_size": 2, "num_epochs": 1, "learning_rate": 1e-4}
    return {**spec, "keep": "checkpoints"}


@pytest.mark.parametrize("algorithm", ["osft", "sft"])
def test_a_training_goes_on_within_its_first_epoch(
    end_at: Any, run_runner: RunRunner, long: Spec, tmp_path: Path, algorithm: str
) -> None:
    spec = of(long, algorithm)
    failure, output = end_at(spec, 10)
    assert (failure.failure_class, failure.cause) == ("preempted", "terminated"), output
    checkpoint = newest(tmp_path / "work" / "1" / "checkpoints")
    assert checkpoint is not None, output
    if algorithm == "osft":
        assert saved_shapes(checkpoint.path) >= trained_shapes(Path(spec["base_model"]))
    ended = run_runner(spec)
    assert ended.status == 0, ended.output
    assert f"this training goes on from {checkpoint.unit} {checkpoint.number} of an earlier try" in ended.output
    whole = run_runner({**spec, "work_dir": str(tmp_path / "whole")})
    resumed, expected = ({int(step): loss for step, loss in run.full.loss_curve} for run in (ended, whole))
    common = resumed.keys() & expected.keys()
    assert len(common) > 20
    # mini-trainer takes the first step with another learning rate, which one step of 300 hardly shows.
    assert {step: resumed[step] for step in common} == pytest.approx(
        {step: expected[step] for step in common}, rel=2e-2
    )
    assert ended.full.metrics["samples"] == 600


def saved_shapes(checkpoint: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of the tensors in a checkpoint of mini-trainer."""
    from torch.distributed.checkpoint import FileSystemReader

    found = FileSystemReader(checkpoint / "distributed").read_metadata().state_dict_metadata
    return {(name.removeprefix("model."), tuple(item.size)) for name, item in found.items() if hasattr(item, "size")}


def trained_shapes(model: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of what OSFT trains on a CPU."""
    from airflow_provider_finetune.runner import targets
    from airflow_provider_finetune.runner.backends import osft

    parted = osft.load(str(model), 0.25, targets.patterns_of("llama"), trust_remote_code=False)
    return {(name, tuple(weight.shape)) for name, weight in parted.named_parameters() if weight.requires_grad}


def test_a_training_in_a_later_epoch_begins_anew(end_at: Any, run_runner: RunRunner, spec: Spec) -> None:
    spec = of(spec, "osft", num_epochs=60)
    failure, output = end_at(spec, 12)
    assert failure.cause == "terminated", output
    ended = run_runner(spec)
    assert ended.status == 0, ended.output
    assert "warning: this training starts anew, since training-hub" in ended.output
    assert "goes on wrongly where the first epoch is over" in ended.output
    assert ended.full.loss_curve[0][0] == 1
    assert ended.full.metrics["steps"] == 240


def test_the_librarys_processes_end_with_a_child_that_is_killed(start_runner: StartRunner, long: Spec) -> None:
    process = start_runner(long)
    assert process.stdout is not None
    assert any(line.startswith("step ") for line in process.stdout), "the training has made no step"
    (child,) = children_of(process.pid)
    assert processes_with(long["work_dir"]) > {child}
    os.kill(child, signal.SIGKILL)
    process.communicate(timeout=60)
    until = time.monotonic() + 60
    while left := processes_with(long["work_dir"]):
        assert time.monotonic() < until, left
        time.sleep(0.5)


def processes_with(argument: str) -> set[int]:
    """Return the processes whose command line has ``argument`` in it."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if argument.encode() in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found
