"""Why processes under torchrun have ended, as their own words tell it: real ones, which raise, hang or are killed.

* out of memory, a full disk, any other exception: as if it had been raised here
* a signal; the process that was first, not the one that it took along
* no words at all
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_finetune.contract.outcome import Failure
from airflow_provider_finetune.runner.offspring import why_ended

PRELUDE = """
import os, signal, time, torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
"""


@pytest.fixture
def end(tmp_path: Path) -> object:
    """Run a program by torchrun, keep what it prints where a library would, and return how it is read."""

    def run(program: str, processes: int = 1) -> Failure | None:
        script = tmp_path / "train.py"
        script.write_text(PRELUDE + program)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        with (tmp_path / "training_log_node0.log").open("w") as log:
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
            status = subprocess.call([*torchrun, str(script)], stdout=log, stderr=log, env=environment)
        assert status != 0
        return why_ended(tmp_path, "osft", 0)

    return run


@pytest.mark.parametrize(
    ("raised", "failure_class", "cause", "said"),
    [
        (
            "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB.')",
            "resources",
            "gpu_out_of_memory",
            "GPU memory did not suffice: CUDA out of memory. Tried to allocate 20.00 MiB.",
        ),
        ("OSError(28, 'No space left on device')", "resources", "disk_full", "The disk is full"),
        (
            "ValueError('a ratio of 2\\nis odd')",
            "infrastructure",
            "library_crash",
            "ended with ValueError: a ratio of 2",
        ),
    ],
)
def test_what_was_raised_is_told_as_if_it_had_been_raised_here(
    end: object, raised: str, failure_class: str, cause: str, said: str
) -> None:
    failure = end(f"raise {raised}")  # type: ignore[operator]
    assert (failure.failure_class, failure.cause) == (failure_class, cause)
    assert said in failure.message


def test_the_process_that_was_first_is_told_and_not_the_one_that_it_took_along(end: object) -> None:
    failure = end(  # type: ignore[operator]
        "time.sleep(2 * (1 - rank))\n"
        "if rank == 1: raise ValueError('of the first')\n"
        "dist.barrier()\n"
        "raise KeyError('of the other')\n",
        processes=2,
    )
    assert "of the first" in failure.message


def test_a_failure_of_nccl_that_was_really_one_of_memory_is_told_as_that(end: object) -> None:
    failure = end(  # type: ignore[operator]
        "if rank == 1:\n"
        "    print('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.', flush=True)\n"
        "    time.sleep(30)\n"
        "time.sleep(2)\n"
        "raise dist.DistBackendError('NCCL error in: NCCLUtils.cpp:77, remote process exited')\n",
        processes=2,
    )
    assert (failure.failure_class, failure.cause) == ("resources", "gpu_out_of_memory")
    assert "Tried to allocate 2 GiB. The other processes only lost it" in failure.message


def test_a_process_that_was_killed_is_told_with_the_signal(end: object) -> None:
    failure = end("os.kill(os.getpid(), signal.SIGKILL)")  # type: ignore[operator]
    assert (failure.cause, failure.message) == ("killed", "Process 0 of the training was ended by SIGKILL")


def test_no_words_are_no_reason(tmp_path: Path) -> None:
    assert why_ended(tmp_path, "osft", 0) is None
    (tmp_path / "full_logs_global1.log").write_text("loading\n")
    assert why_ended(tmp_path, "sft", 1) is None
    assert why_ended(tmp_path, "lora_sft", 0) is None
